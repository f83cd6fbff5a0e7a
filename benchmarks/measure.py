"""Times, memory and tables for the benchmarks: CPU seconds, because other work may run on the same machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TRACES = ROOT.parent / "shared" / "data" / "traces"
RESULTS = Path(__file__).resolve().parent / "results"

_LOOKS_PER_S = 100
_TREE_LOOKS_PER_S = 5  # 100 a second at the pages of three processes took a fifth of a plan's wall time


class Timed(NamedTuple):
    """CPU seconds of the runs, and what the last one returned."""

    runs_s: list[float]
    value: Any

    @property
    def best_s(self) -> float:
        """The run that other work disturbed least."""
        return min(self.runs_s)

    @property
    def median_s(self) -> float:
        """The run in the middle."""
        return statistics.median(self.runs_s)


class Child(NamedTuple):
    """What a child process took: seconds, the peak of its own memory, and of it and its children together."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    tree_mib: float
    exit_code: int
    stdout: str
    stderr: str


def timed(what: Callable[[], Any], runs: int) -> Timed:
    """Return the CPU seconds of `runs` calls in this process."""
    seconds, value = [], None
    for _ in range(runs):
        start_s = time.process_time()
        value = what()
        seconds.append(time.process_time() - start_s)
    return Timed(seconds, value)


def child(arguments: Sequence[str], *, source: Path | None = None, tree: bool = False) -> Child:
    """Run a command to its end; `source` is put before everything on its Python path.

    Its memory is looked at 100 times a second, because the peak that the system reports afterwards is at least that of
    the parent. `tree` looks at its children's too (proportional set size), five times a second.
    """
    environment = dict(os.environ)
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start_s = time.perf_counter()
        process = subprocess.Popen(list(arguments), stdout=out, stderr=err, env=environment)
        peak_kib, tree_kib = 0, 0
        while True:
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            peak_kib = max(peak_kib, _kib(f"/proc/{process.pid}/status", "VmHWM:"))
            tree_kib = max(tree_kib, _tree_kib(process.pid) if tree else 0)
            time.sleep(1 / (_TREE_LOOKS_PER_S if tree else _LOOKS_PER_S))
        wall_s = time.perf_counter() - start_s
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    cpu_s = used.ru_utime + used.ru_stime
    return Child(cpu_s, wall_s, peak_kib / 1024, tree_kib / 1024, process.returncode, *texts)


def python(*arguments: str, source: Path | None = None, tree: bool = False) -> Child:
    """Run this Python in a child that must succeed."""
    done = child([sys.executable, *arguments], source=source, tree=tree)
    if done.exit_code:
        raise RuntimeError(f"{' '.join(arguments)[:200]} ended with {done.exit_code}: {done.stderr[-2000:]}")
    return done


def _tree_kib(pid: int) -> int:
    """Memory of a process and of its children; those that end meanwhile count nothing."""
    children = " ".join(_lines(f"/proc/{pid}/task/{pid}/children")).split()
    return _kib(f"/proc/{pid}/smaps_rollup", "Pss:") + sum(_tree_kib(int(each)) for each in children)


def _kib(path: str, field: str) -> int:
    return next((int(line.split()[1]) for line in _lines(path) if line.startswith(field)), 0)


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = next((line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ": unknown")
    gcc = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=False).stdout
    import headway

    return {
        "cpu": cpu.split(":", 1)[1].strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "gcc": gcc.splitlines()[0].rsplit(" ", 1)[-1] if gcc else None,
        "system": platform.system(),
        "headway": headway.__version__,
        "compiled": not headway.interpreted_modules(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of equal keys as a Markdown table."""
    print(f"\n{title}\n")
    if not rows:
        return
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for number, row in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    sys.stdout.flush()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def keep(name: str, sections: dict[str, Any]) -> None:
    """Write sections of figures into `results/NAME.json`; those not measured this time stay as they were."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | {"machine": machine()} | sections, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def machine_s() -> float:
    """Return seconds that five million additions take in plain Python: what the machine gives a process just now."""
    started_s, total = time.perf_counter(), 0
    for i in range(5_000_000):
        total += i
    return time.perf_counter() - started_s
