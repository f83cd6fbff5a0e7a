"""Twenty workloads on one fleet of 64 GPUs, more than 10,000 candidates each, answered by 1 and 2 workers of two kinds.

    python benchmarks/scale.py [--questions N] [--head HOST:PORT] [--only NAME ...]

`plans` takes the questions, with processes of this machine and on a Ray cluster, which is started here with as many
processors, unless --head names one. The plans of all runs must be equal to the byte. Wall seconds are from the call to
the last plan: a cluster stands before the clock starts, joining it is counted. CPU seconds are those of this process,
of those it started, and of the cluster that was started here: on a busy machine they tell more than the wall.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from measure import keep, show

from headway.metrics import Slo
from headway.plan import Plan, Question, RayCluster, plans
from headway.workload import WorkloadSpec, parse_arrival, parse_length

FLEET = {"h100-sxm": 32, "a100-80gb-sxm": 32}
PROMPTS, OUTPUTS = (256, 512, 1024, 2048, 4096), (64, 128, 256, 512)
TOKENS_PER_S = 40_000.0  # of prompts and outputs, the latter counted eight times, that each workload asks for
STARTED_S = 60


def questions(count: int) -> list[Question]:
    """Return a question for each pair of median lengths, all of about the same load."""
    made = []
    for prompt in PROMPTS:
        for output in OUTPUTS:
            spec = WorkloadSpec(
                name=f"{prompt} in, {output} out",
                arrival=parse_arrival("poisson"),
                prompt=parse_length(f"lognormal:median={prompt},sigma=0.8,max=16384"),
                output=parse_length(f"lognormal:median={output},sigma=0.8,max=4096"),
            )
            rate = round(TOKENS_PER_S / (prompt + 8 * output), 1)
            slo = Slo(ttft_s=max(0.5, prompt / 2000), tpot_s=0.05)
            made.append(Question(model="llama-3.1-70b", gpu=FLEET, workload=spec, rate_req_s=rate, slo=slo))
    return made[:count]


@contextlib.contextmanager
def cluster(processors: int) -> Iterator[tuple[str, int]]:
    """Start a Ray cluster of one node for as long as the context lasts; return its address and its process."""
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = (
            "start", "--head", "--block", f"--port={port}", f"--num-cpus={processors}", "--num-gpus=0",
            f"--temp-dir={folder}", "--include-dashboard=false", "--disable-usage-stats", "--min-worker-port=0",
            "--max-worker-port=0", "--object-store-memory=100000000",
        )  # fmt: skip
        log = Path(folder, "log")
        with open(log, "w") as out:
            command = [sys.executable, "-m", "ray.scripts.scripts", *words]
            node = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            end_s = time.monotonic() + STARTED_S
            while "Ray runtime started" not in log.read_text():
                if node.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError(f"no Ray cluster: {log.read_text()}")
                time.sleep(0.1)
            yield f"127.0.0.1:{port}", node.pid
        finally:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()


def measured(
    name: str, asked: list[Question], workers: int | RayCluster, root: int = 0
) -> tuple[dict[str, Any], list[bytes]]:
    """Return what a run took, and its plans without their seconds."""
    began_s, before_s, cluster_s = time.perf_counter(), _cpu_s() + _tree_cpu_s(root), 0.0
    found: dict[int, Plan] = {}
    for place, plan in plans(asked, workers=workers):
        found[place], cluster_s = plan, _tree_cpu_s(root)  # after the last one its workers are gone, and their times
        print(f"  {name}: {len(found)} of {len(asked)}", file=sys.stderr)
    wall_s = time.perf_counter() - began_s
    every = [found[place] for place in range(len(asked))]
    row = {
        "workers": name,
        "wall s": wall_s,
        "CPU s": _cpu_s() + cluster_s - before_s,
        "plans": len(every),
        "candidates that fit": sum(each.enumerated - each.discarded.get("memory", 0) for each in every),
        "least of a plan": min(each.enumerated - each.discarded.get("memory", 0) for each in every),
        "simulated": sum(each.evaluated for each in every),
        "feasible": sum(each.feasible for each in every),
        "seconds of a plan, mean": sum(each.seconds for each in every) / len(every),
    }
    return row, [msgspec.structs.replace(each, seconds=0.0).to_json().encode() for each in every]


def _cpu_s() -> float:
    """CPU of this process and of those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _tree_cpu_s(process: int) -> float:
    """CPU of a process and of all below it that live; 0 for none."""
    folder = Path("/proc", str(process))
    try:
        ticks = sum(map(int, folder.joinpath("stat").read_text().rpartition(")")[2].split()[11:15]))
        below = folder.joinpath("task", str(process), "children").read_text().split()
    except OSError:  # there is none, or it has just ended
        return 0.0
    return ticks / os.sysconf("SC_CLK_TCK") + sum(_tree_cpu_s(int(each)) for each in below)


def main() -> None:
    """Run all, hold the plans against each other, and keep the figures."""
    runs = {"1 process": 1, "2 processes": 2, "Ray, 1 processor": 1, "Ray, 2 processors": 2}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=len(PROMPTS) * len(OUTPUTS))
    parser.add_argument("--head", help="of a Ray cluster that stands already, in place of those started here")
    parser.add_argument("--only", nargs="*", choices=list(runs), default=list(runs))
    given = parser.parse_args()
    asked, rows, plans_of = questions(given.questions), [], {}
    for name in given.only:
        if not name.startswith("Ray"):
            row, plans_of[name] = measured(name, asked, runs[name])
        elif given.head:
            row, plans_of[name] = measured(name, asked, RayCluster(given.head))
        else:
            with cluster(runs[name]) as (head, root):
                row, plans_of[name] = measured(name, asked, RayCluster(head), root)
        rows.append(row | {"load average": os.getloadavg()[0]})
        show(f"{len(asked)} workloads, {FLEET}", rows)
    first, *others = plans_of.values()
    same = all(each == first for each in others)
    print(f"plans of all runs equal to the byte: {same}")
    keep("scale", {f"{len(asked)} workloads": {"equal to the byte": same, "rows": rows}})


if __name__ == "__main__":
    main()
