"""The public traces through `simulate`: 28,185 requests of Azure (conversation and code) and 12,031 of Mooncake.

    python benchmarks/traces.py [--traces FOLDER] [--runs N]

Llama-3.1-8B in bf16 on h100-sxm, tp 1, default engine (8,192 tokens and 256 sequences a step, prefix caching on):
2 replicas for each Azure trace, 8 for Mooncake's. Times of arrival are the recorded ones; Mooncake's, recorded in
steps of 3 s, are spread within the step. CPU seconds are those of `simulate` with a row per request; reading the file
is listed apart. The Azure traces carry no prefix identity, so nothing can hit there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from measure import TRACES, keep, show, timed

from headway.cost import Replica
from headway.sim import Deployment, Policies, Pool, simulate
from headway.workload import Workload, workload

REPLICA = Replica(model="llama-3.1-8b", gpu="h100-sxm")
ROUTES = ("round-robin", "least-requests", "prefix-affinity")
CASES = (
    ("Azure 2023 conversation", "azure_2023_conv.csv.gz", 2),
    ("Azure 2023 code", "azure_2023_code.csv.gz", 2),
    ("Mooncake conversation", "mooncake_conversation.jsonl.gz", 8),
)


def row(name: str, load: Workload, read_s: float, replicas: int, route: str, runs: int) -> dict[str, Any]:
    """Return what one deployment does with one trace."""
    deployment = Deployment(pools=(Pool(count=replicas, replica=REPLICA),), policies=Policies(route=route))
    done = timed(lambda: simulate(deployment, load), runs)
    result = done.value
    assert result.requests.arrived == load.requests
    latencies = {
        f"{short} {unit} {at}": scale * getattr(getattr(result, field), at)
        for short, field, unit, scale in (("TTFT", "ttft_s", "s", 1.0), ("TPOT", "tpot_s", "ms", 1e3))
        for at in ("p50", "p90", "p99")
    }
    return {
        "trace": name,
        "replicas": replicas,
        "route": route,
        "requests": load.requests,
        "finished": result.requests.finished,
        **latencies,
        "prefix hits": result.kv.prefix_hit_rate if load.block_tokens else None,
        "KV peak": result.kv.peak_utilization,
        "preemptions": result.kv.preemptions,
        "hours": result.duration_s / 3600,
        "read CPU s": read_s,
        "CPU s": done.best_s,
        "req/CPU s": load.requests / done.best_s,
    }


def main() -> None:
    """Simulate each trace with each router."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder of the trace files")
    parser.add_argument("--runs", type=int, default=5, help="of each figure, for the time it takes (5)")
    asked = parser.parse_args()
    rows = []
    for name, file, replicas in CASES:
        path = asked.traces / file
        if not path.exists():
            print(f"no {file} in {asked.traces}: left out (--traces FOLDER)")
            continue
        read = timed(lambda path=path: workload(path), 3)
        routes = ROUTES if read.value.block_tokens else ROUTES[:2]
        rows += [row(name, read.value, read.best_s, replicas, route, asked.runs) for route in routes]
    if rows:
        show("Public traces", rows)
        keep("traces", {"rows": rows})


if __name__ == "__main__":
    main()
