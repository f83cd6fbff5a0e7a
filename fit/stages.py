"""The stages that fit the data files of the cost model: what each reads, what it writes, and how one is run.

Each rests on the files that those before it wrote, and runs in a process of its own, because a process keeps what it
has read of them.
"""

from __future__ import annotations

import filecmp
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from fit import engines, operators, power, published, uncertainty
from headway import cost
from headway.errors import HeadwayError

SERVING = "serving.csv.gz"
TIMINGS = tuple(
    f"ops_{name}.csv.gz"
    for name in ("gemm", "moe", "attention_decode", "attention_prefill", "mla", "collectives", "deepep")
)
ORIGIN = {
    "ops": "operator timings published by NVIDIA aiconfigurator (Apache-2.0), one row a timing",
    "serving": "published operating points, one a row, in the columns of `headway validate`; the sources are named in "
    "src/headway/cost/data/engines.yaml",
}


class Stage(NamedTuple):
    """A fit, the file it writes, and the files of measurements it reads."""

    fit: Callable[[Path, int], None]
    writes: Path
    reads: tuple[str, ...]


def _operators(folder: Path, cores: int) -> None:
    operators.main(folder)


def _engines(folder: Path, cores: int) -> None:
    _commanded(engines.main, folder, cores)


def _power(folder: Path, cores: int) -> None:
    power.main(folder)


def _uncertainty(folder: Path, cores: int) -> None:
    _commanded(uncertainty.main, folder, cores)


def _published(folder: Path, cores: int) -> None:
    _commanded(published.main, folder, cores)


def _commanded(program: Callable[[], None], folder: Path, cores: int) -> None:
    sys.argv[1:] = [str(folder / SERVING), "--cores", str(cores), "--write"]
    program()


STAGES = {  # in the order of dependence
    "operators": Stage(_operators, operators.DATA, TIMINGS),
    "engines": Stage(_engines, engines.DATA, (SERVING,)),
    "power": Stage(_power, power.DATA, (SERVING, "ops_gemm.csv.gz")),
    "uncertainty": Stage(_uncertainty, uncertainty.DATA, (SERVING,)),
    "published": Stage(_published, published.DATA, (SERVING,)),
}


def lacking(folder: Path, names: Sequence[str]) -> str:
    """Return what a folder of measurements lacks for some stages and where that comes from, empty if nothing."""
    needed = dict.fromkeys(file for name in names for file in STAGES[name].reads)
    absent = [file for file in needed if not (folder / file).is_file()]
    if not absent:
        return ""
    lines = [f"{folder}: {'no' if folder.is_dir() else 'no such folder, so no'} {', '.join(absent)}; nothing is done"]
    for kind, origin in ORIGIN.items():
        lines += [f"  {kind}*: {origin}"] if any(file.startswith(kind) for file in absent) else []
    able = [name for name, stage in STAGES.items() if all((folder / file).is_file() for file in stage.reads)]
    lines += [f"  what is there is enough for --only {' '.join(able)}"] if able else []
    return "\n".join([*lines, "  measurements elsewhere: make fit DATA=FOLDER"])


def ran(name: str, folder: Path, cores: int) -> str:
    """Run one stage in a process of its own; return what became of its file and how long it took."""
    begin, path = time.monotonic(), STAGES[name].writes
    before = path.read_bytes() if path.exists() else b""
    hand_on()
    process = multiprocessing.get_context("spawn").Process(target=run, args=(name, folder, cores))
    process.start()
    process.join()
    if process.exitcode:
        killed = f"{name}: ended by signal {-process.exitcode}; out of memory?" if process.exitcode < 0 else ""
        sys.exit(killed or process.exitcode)
    hand_on()
    after = path.read_bytes()
    became = "as before" if after == before else "changed"
    return f"{path.name}, {len(after):,} bytes, {became}; {time.monotonic() - begin:.0f} s"


def run(name: str, folder: Path, cores: int) -> None:
    """Fit one stage; a file that cannot be read ends the program with a message."""
    try:
        STAGES[name].fit(folder, cores)
    except (HeadwayError, OSError, pa.ArrowInvalid) as error:
        sys.exit(f"{name}: {error}; {STAGES[name].writes.name} stays as it was")


def hand_on() -> None:
    """Give the package that is imported the data files of the checkout, where it is an installed copy."""
    for stage in STAGES.values():
        read = Path(cost.__file__).parent / "data" / stage.writes.name
        if stage.writes.exists() and not (read.exists() and filecmp.cmp(stage.writes, read, shallow=False)):
            shutil.copyfile(stage.writes, read)


def stale(names: Sequence[str]) -> str:
    """Return which files rest on those that were written and were not fitted again, empty if none."""
    first = min(list(STAGES).index(name) for name in names)
    later = [name for name in list(STAGES)[first:] if name not in names]
    return f"; fitted on the files before: {', '.join(STAGES[name].writes.name for name in later)}" if later else ""
