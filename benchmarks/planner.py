"""The planner end to end: seconds, memory and what it found.

    python benchmarks/planner.py [--runs N]

A 70B model on up to 16 H100s for the `chat` preset at 20 req/s. CPU and wall seconds are of the command with its worker
processes; memory is the peak of all of them together (proportional set size, looked at 100 times a second).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from measure import keep, python, show

COMMAND = (
    "plan --model llama-3.1-70b --gpu h100-sxm --gpus 16 --workload chat --rate 20 --ttft 500ms --tpot 50ms --quiet"
)


def run(*more: str) -> dict[str, Any]:
    """Return what one run took and found."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plan.json")
        done = python("-m", "headway.cli", *COMMAND.split(), "--json", str(path), *more, tree=True)
        plan = json.loads(path.read_text())
    return {
        "wall s": done.wall_s,
        "CPU s": done.cpu_s,
        "peak MiB, all processes": done.tree_mib,
        "enumerated": plan["enumerated"],
        "evaluated": plan["evaluated"],
        "requests a run": plan["requests"],
        "best": plan["best"]["name"] if plan["best"] else None,
        "its goodput req/s/GPU": plan["best"]["goodput_req_s_per_gpu"] if plan["best"] else None,
    }


def main() -> None:
    """Time the command with the workers it chooses, and with one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    rows = []
    for name, more in (("as given", ()), ("--workers 1", ("--workers", "1"))):
        done = [run(*more) for _ in range(asked.runs)]
        best = min(done, key=lambda each: each["wall s"])
        rows.append({"command": name, "median wall s": sorted(each["wall s"] for each in done)[len(done) // 2]} | best)
    show(f"headway {COMMAND}", rows)
    keep("planner", {"command": f"headway {COMMAND}", "rows": rows})


if __name__ == "__main__":
    main()
