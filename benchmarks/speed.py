"""How fast the simulator is: the core's loop, its growth and memory, the command line, starting up.

    python benchmarks/speed.py [core] [linear] [memory] [cli] [small] [mooncake] [start] [interpreted]
        [--runs N] [--traces FOLDER]

The plain case: Llama-3.1-8B on h100-sxm, prompts and answers exponential with means 512 and 128 tokens, Poisson at
80 % of capacity. "Loop" is everything from the first event to the last, the drawing of the requests included;
capacity is the throughput of an overloaded replica. CPU seconds of one process, best and median of several runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from measure import ROOT, TRACES, Timed, child, keep, python, show, timed

from headway.cost import Replica
from headway.metrics import Slo
from headway.sim import Deployment, Policies, Pool, simulate
from headway.sim.recorder import Recorder
from headway.sim.run import BINS, SYNTHETIC_WARMUP, build, compiled
from headway.workload import Workload, WorkloadSpec, parse_arrival, parse_length, workload

LOAD = 0.8
PLAIN = Replica(model="llama-3.1-8b", gpu="h100-sxm")
CLI = (
    "simulate --model llama-3.1-8b --gpu h100-sxm --replicas 8 --input exp:512 --output exp:128 --rate 300 "
    "--requests 1000000 --json -"
)
SMALL = "simulate --model llama-3.1-8b --gpu h100-sxm --input exp:512 --output exp:128 --rate 6"
_EVENTS_AT_ONCE = 20_000
_OVERLOAD_REQ_S = 1000.0


def plain(replicas: int, requests: int, rate_req_s: float) -> tuple[Deployment, Workload]:
    """Return the plain case."""
    spec = WorkloadSpec(
        name="plain",
        arrival=parse_arrival("poisson"),
        prompt=parse_length("exp:512"),
        output=parse_length("exp:128"),
        requests=requests,
    )
    return Deployment(pools=(Pool(count=replicas, replica=PLAIN),)), workload(spec).at_rate(rate_req_s)


@cache
def capacity_req_s() -> float:
    """Return the requests per second that an overloaded replica finishes."""
    deployment, load = plain(1, 20_000, _OVERLOAD_REQ_S)
    result = simulate(deployment, load, records=False)
    return result.requests.finished / result.duration_s


def loop(replicas: int, requests: int, records: bool) -> Timed:
    """Time one run of the core's loop at 80 % of capacity; the value is the number of events."""
    deployment, load = plain(replicas, requests, LOAD * capacity_req_s() * replicas)
    tables = tuple(compiled(pool.replica) for pool in deployment.pools)
    first_measured = int(SYNTHETIC_WARMUP * requests)
    recorder = Recorder(records, requests, first_measured, [Slo().limits()], BINS)
    cluster, _ = build(deployment, load, tables, recorder, 0)

    def run() -> int:
        while cluster.advance(_EVENTS_AT_ONCE):
            pass
        return int(cluster.events)

    return timed(run, 1)


def loops(replicas: int, requests: int, records: bool, runs: int) -> Timed:
    """Time several runs of the core's loop, each on a new cluster."""
    done = [loop(replicas, requests, records) for _ in range(runs)]
    return Timed([each.best_s for each in done], done[-1].value)


def core(runs: int) -> list[dict[str, Any]]:
    """Requests per second of CPU in the loop, by replicas, with and without a row per request."""
    rows = []
    for replicas in (1, 8, 64):
        for records in (False, True):
            done = loops(replicas, 1_000_000, records, runs)
            rows.append(
                {
                    "replicas": replicas,
                    "records": "on" if records else "off",
                    "rate req/s": LOAD * capacity_req_s() * replicas,
                    "events per request": done.value / 1e6,
                    "best CPU s": done.best_s,
                    "median CPU s": done.median_s,
                    "best req/CPU s": 1e6 / done.best_s,
                    "median req/CPU s": 1e6 / done.median_s,
                }
            )
    return rows


def linear(runs: int) -> list[dict[str, Any]]:
    """CPU time of the loop per request from 10,000 to 10,000,000 of them: 8 replicas, records off."""
    rows = []
    for requests in (10_000, 100_000, 1_000_000, 10_000_000):
        done = loops(8, requests, False, max(1, runs if requests <= 1_000_000 else runs // 2))
        rows.append(
            {
                "requests": requests,
                "best CPU s": done.best_s,
                "best us per request": 1e6 * done.best_s / requests,
                "median us per request": 1e6 * done.median_s / requests,
            }
        )
    return rows


def memory(runs: int) -> list[dict[str, Any]]:
    """Peak memory of a process that simulates, by requests: 8 replicas."""
    rows = []
    for requests, records in ((1000, False), (1_000_000, False), (10_000_000, False), (1_000_000, True)):
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); from speed import plain; from headway.sim import simulate;"
            f"simulate(*plain(8, {requests}, {LOAD * capacity_req_s() * 8!r}), records={records})"
        )
        done = python("-c", code, str(Path(__file__).parent))
        rows.append(
            {
                "requests": requests,
                "records": "on" if records else "off",
                "peak MiB": done.peak_mib,
                "CPU s, start and summary included": done.cpu_s,
            }
        )
    return rows


def cli(runs: int) -> list[dict[str, Any]]:
    """The command line end to end: making a million requests, simulating, metrics, JSON."""
    cases = [("as given", CLI.split()), ("without records", [*CLI.split(), "--no-records"])]
    rows = []
    for name, arguments in cases:
        done = [python("-m", "headway.cli", *arguments) for _ in range(runs)]
        finished = json.loads(done[0].stdout)["requests"]["finished"]
        assert finished == 1_000_000, f"{finished} of 1,000,000 finished"
        rows.append(
            {
                "command": name,
                "best CPU s": min(each.cpu_s for each in done),
                "median CPU s": sorted(each.cpu_s for each in done)[len(done) // 2],
                "best wall s": min(each.wall_s for each in done),
                "peak MiB": max(each.peak_mib for each in done),
            }
        )
    return rows


def small(runs: int) -> list[dict[str, Any]]:
    """Seconds one waits for a small run on one replica at 6 req/s, start included, without a table on the screen."""
    rows = []
    for requests in (1000, 10_000):
        arguments = f"{SMALL} --requests {requests} --quiet --json -".split()
        done = [python("-m", "headway.cli", *arguments) for _ in range(runs)]
        rows.append(
            {
                "requests": requests,
                "best wall s": min(each.wall_s for each in done),
                "best CPU s": min(each.cpu_s for each in done),
            }
        )
    return rows


def mooncake(runs: int, traces: Path) -> list[dict[str, Any]]:
    """The Mooncake trace with prefix caching on 8 replicas: `simulate` as a whole, by router."""
    path = traces / "mooncake_conversation.jsonl.gz"
    if not path.exists():
        print(f"\nno {path.name} in {traces}: left out (--traces FOLDER)")
        return []
    load = workload(path)
    rows = []
    for route in ("round-robin", "least-requests", "prefix-affinity"):
        deployment = Deployment(pools=(Pool(count=8, replica=PLAIN),), policies=Policies(route=route))

        def run(deployment: Deployment = deployment) -> Any:
            return simulate(deployment, load, records=False)

        run()
        done = timed(run, max(5, runs))
        rows.append(
            {
                "route": route,
                "requests": load.requests,
                "hit rate": done.value.kv.prefix_hit_rate,
                "best CPU s": done.best_s,
                "best req/CPU s": load.requests / done.best_s,
                "median req/CPU s": load.requests / done.median_s,
            }
        )
    return rows


def start(runs: int) -> list[dict[str, Any]]:
    """Starting up: best of many, because the first is about reading files."""
    cases = {
        "python -c pass": ["-c", "pass"],
        "import headway": ["-c", "import headway"],
        "import headway.sim": ["-c", "import headway.sim"],
        "headway --help": ["-m", "headway.cli", "--help"],
        "headway simulate --help": ["-m", "headway.cli", "simulate", "--help"],
    }
    rows = []
    for name, arguments in cases.items():
        done = [child([sys.executable, *arguments]) for _ in range(3 * runs)]
        assert all(each.exit_code == 0 for each in done), done[0].stderr
        rows.append(
            {
                "command": name,
                "best wall s": min(each.wall_s for each in done),
                "best CPU s": min(each.cpu_s for each in done),
            }
        )
    return rows


def interpreted(runs: int) -> list[dict[str, Any]]:
    """The same loop on the sources as they are, uncompiled: 20,000 requests on 8 replicas."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import headway, speed;"
        "done = speed.loops(8, 20_000, False, int(sys.argv[2])); print(len(headway.interpreted_modules()), done.best_s)"
    )
    rows = []
    for name, source in (("compiled", None), ("interpreted", ROOT / "src")):
        plain_modules, best_s = python("-c", code, str(Path(__file__).parent), str(runs), source=source).stdout.split()
        rows.append({"core": name, "uncompiled modules": int(plain_modules), "best CPU s": float(best_s)})
    for row in rows:
        row["req/CPU s"] = 20_000 / row["best CPU s"]
        row["times as long"] = row["best CPU s"] / rows[0]["best CPU s"]
    return rows


def main() -> None:
    """Measure the sections asked for, all of them by default."""
    sections: dict[str, Callable[..., list[dict[str, Any]]]] = {
        "core": core, "linear": linear, "memory": memory, "cli": cli, "small": small, "mooncake": mooncake,
        "start": start, "interpreted": interpreted,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(sections)}; all by default")
    parser.add_argument("--runs", type=int, default=5, help="of each figure (5)")
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder of the Mooncake trace")
    asked = parser.parse_args()
    unknown = [name for name in asked.sections if name not in sections]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}: choose from {', '.join(sections)}")
    found: dict[str, Any] = {"capacity_req_s": capacity_req_s()}
    print(f"one replica serves {capacity_req_s():.1f} req/s of the plain case")
    for name in asked.sections or sections:
        started_s = time.perf_counter()
        rows = mooncake(asked.runs, asked.traces) if name == "mooncake" else sections[name](asked.runs)
        found[name] = rows
        show(f"{name}: {(sections[name].__doc__ or '').splitlines()[0]}", rows)
        print(f"({time.perf_counter() - started_s:.0f} s)")
        keep("speed", found)


if __name__ == "__main__":
    main()
