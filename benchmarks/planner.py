"""The planner end to end: seconds, memory, what it found, and whether simulating everything finds better.

    python benchmarks/planner.py [--runs N] [--exhaustive] [--gpus "16 H100"] [--load chat]
    python benchmarks/planner.py --classes [--runs N]

A 70B model on up to 16 and 64 H100s, and on 16 and 32 of them with as many A100s, for three workloads. CPU and wall
seconds are of the command with its worker processes; memory is the peak of all of them together (proportional set
size, looked at five times a second). Five million additions in plain Python before and after tell what the machine
gave. Where the best has two kinds of GPU, it and every plan of one kind for the same money or less are simulated again,
with another seed and twice the requests.

Regret (`--exhaustive`) is by how much the plan's best is dearer than the best of an exhaustive search: every candidate
that fits, at length, then those in front on further seeds. That keeps results of its own, `results/planner_whole.json`
and `planner_whole.md`, a table of what a candidate costs to look at either way.

`--classes` times the answer for several classes and models on one stock of GPUs (`examples/office.yaml`) in place of
these, and writes `results/planner_classes.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from measure import RESULTS, ROOT, keep, machine_s, python, show

from headway.plan import Question
from headway.plan.space import Option, enumerate_space
from headway.sim import Deployment, simulate
from headway.specs import from_mapping
from headway.workload import workload

_OTHER_SEED = 99
FLEETS = {
    "16 H100": "h100-sxm:16",
    "16 H100 + 16 A100": "h100-sxm:16,a100-80gb-sxm:16",
    "32 H100 + 32 A100": "h100-sxm:32,a100-80gb-sxm:32",
    "64 H100": "h100-sxm:64",
}
LOADS = {
    "chat": "--workload chat --rate 20 --ttft 500ms --tpot 50ms",
    "summarize": "--workload summarize --rate 3 --ttft 3s --tpot 60ms",
    "code": "--workload code --rate 3 --ttft 1s --tpot 50ms",
}
OFFICE = (
    f"--workload {ROOT / 'examples' / 'office.yaml'} --slo chat:ttft=300ms,tpot=20ms "
    "--slo batch:e2e=20s,attainment=95% --slo code:ttft=500ms"
)
STOCKS = {"4 H100 + 4 L40S": "h100-sxm:4,l40s:4", "8 H100": "h100-sxm:8"}


def of_classes(stock: str) -> dict[str, Any]:
    """Return what one answer for several classes and models took and found."""
    asked = f"plan --gpu {STOCKS[stock]} {OFFICE} --quiet"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "fleet.json")
        done = python("-m", "headway.cli", *asked.split(), "--json", str(path), tree=True)
        fleet = json.loads(path.read_text())
    parts = [(" and ".join(part["classes"]), part["candidate"]["name"]) for part in fleet["parts"]]
    return {
        "wall s": done.wall_s,
        "CPU s": done.cpu_s,
        "peak MiB, all processes": done.tree_mib,
        "classes": len(fleet["classes"]),
        "groups planned for": fleet["groups"],
        "simulated, of the groups chosen": sum(part["plan"]["evaluated"] for part in fleet["parts"]),
        "best": "; ".join(f"{classes}: {name}" for classes, name in parts),
        "$ per hour": fleet["usd_per_hour"],
    }


def run(fleet: str, load: str, *more: str) -> dict[str, Any]:
    """Return what one run took and found."""
    asked = f"plan --model llama-3.1-70b --gpu {FLEETS[fleet]} {LOADS[load]} --quiet"
    with tempfile.TemporaryDirectory() as folder:
        path, before_s = Path(folder, "plan.json"), machine_s()
        done = python("-m", "headway.cli", *asked.split(), "--json", str(path), *more, tree=True)
        plan, after_s = json.loads(path.read_text()), machine_s()
    best, left = plan["best"], plan["discarded"]
    fitting = plan["enumerated"] - left.get("memory", 0) - left.get("budget", 0)
    found = {
        "wall s": done.wall_s,
        "CPU s": done.cpu_s,
        "additions s, before": before_s,
        "additions s, after": after_s,
        "peak MiB, all processes": done.tree_mib,
        "enumerated": plan["enumerated"],
        "fitting": fitting,
        "simulated": plan["evaluated"],
        "proven away": left.get("rate", 0),
        "CPU ms per fitting candidate": 1000 * done.cpu_s / fitting,
        "requests a run": plan["requests"],
        "best": best["name"] if best else None,
        "$ per hour": best["usd_per_hour"] if best else None,
        "front": plan["front"],
    }
    return found | (again(plan) if best and " + " in best["name"] and len(kinds(best["deployment"])) > 1 else {})


def kinds(deployment: dict[str, Any]) -> set[str]:
    """Return the kinds of GPU that a deployment has."""
    return {pool["replica"]["gpu"] for pool in deployment["pools"]}


def again(plan: dict[str, Any]) -> dict[str, Any]:
    """Return what a plan of two kinds attains on a fresh, longer run, and the best that one kind does for its money."""
    question = from_mapping(Question, plan["question"], "question")
    best = plan["best"]
    made = workload(question.workload, rate=plan["rate_req_s"], requests=2 * plan["requests"])

    def attained(deployment: Deployment) -> float:
        return simulate(deployment, made, slo=question.aimed_slo, seed=_OTHER_SEED, records=False).slo.attainment or 0.0

    alike = [option.deployment for option in enumerate_space(question).options if len(_pools_kinds(option)) == 1]
    cheap = [each for each in alike if (each.priced().usd_per_gpu_hour or 0.0) * each.gpus <= best["usd_per_hour"]]
    return {
        "again, attainment": attained(from_mapping(Deployment, best["deployment"], "best")),
        "of one kind for its money": len(cheap),
        "the most of these": max(map(attained, cheap), default=0.0),
    }


def _pools_kinds(option: Option) -> set[str]:
    return {pool.replica.gpu for pool in option.deployment.pools}


def beside_all(fleet: str, load: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return what looking at every candidate at length took, and how far behind its best the search's best is."""
    whole = run(fleet, load, "--set", "exhaustive=true")
    per_candidate = whole["CPU s"] / whole["fitting"]
    return {
        "exhaustive CPU s": whole["CPU s"],
        "exhaustive CPU ms per fitting candidate": 1000 * per_candidate,
        "share of that": found["CPU s"] / whole["CPU s"],
        "exhaustive best": whole["best"],
        "exhaustive $ per hour": whole["$ per hour"],
        "regret": found["$ per hour"] / whole["$ per hour"] - 1,
        "same front": found["front"] == whole["front"],
        "exhaustive front": whole["front"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the search beside everything at length, as Markdown."""
    head = (
        "GPUs", "workload", "candidates", "search CPU s", "ms each", "all, CPU s", "ms each", "best", "of all",
        "regret", "same front",
    )  # fmt: skip
    lines = [head, ("---", "---", *("---:" for _ in range(5)), "---", "---", "---:", "---")]
    lines += [
        (
            row["GPUs"], row["workload"], f"{row['fitting']:,}", f"{row['CPU s']:.1f}",
            f"{row['CPU ms per fitting candidate']:.0f}", f"{row['exhaustive CPU s']:.0f}",
            f"{row['exhaustive CPU ms per fitting candidate']:.0f}", f"`{row['best']}`", f"`{row['exhaustive best']}`",
            f"{row['regret']:.1%}", "yes" if row["same front"] else "no",
        )
        for row in rows
    ]  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Time every question with the workers the command chooses, and hold the answers against everything at length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--exhaustive", action="store_true", help="everything at length, too: an hour more")
    parser.add_argument("--gpus", choices=FLEETS, help="only these; figures of the others stay")
    parser.add_argument("--load", choices=LOADS, help="only this workload, likewise")
    parser.add_argument("--classes", action="store_true", help="several classes and models in place of these")
    asked = parser.parse_args()
    if asked.classes:
        told = []
        for stock in STOCKS:
            best = min((of_classes(stock) for _ in range(asked.runs)), key=lambda each: each["wall s"])
            told.append({"GPUs": stock} | best)
            show(f"headway plan, {stock}, office", told[-1:])
        keep("planner_classes", {"command": f"headway plan {OFFICE.replace(f'{ROOT}/', '')}", "rows": told})
        return
    name = "planner_whole" if asked.exhaustive else "planner"
    kept = RESULTS / f"{name}.json"
    before = json.loads(kept.read_text())["rows"] if kept.exists() else []
    fleets, loads = [asked.gpus] if asked.gpus else [*FLEETS], [asked.load] if asked.load else [*LOADS]
    rows = [row for row in before if row["GPUs"] not in fleets or row["workload"] not in loads]
    for fleet in fleets:
        for load in loads:
            done = [run(fleet, load) for _ in range(asked.runs)]
            best = min(done, key=lambda each: each["wall s"])
            row = {"GPUs": fleet, "workload": load} | best
            if asked.exhaustive:
                row |= beside_all(fleet, load, best)
            rows = sorted([*rows, row], key=lambda row: ([*FLEETS].index(row["GPUs"]), [*LOADS].index(row["workload"])))
            show(f"headway plan, {fleet}, {load}", [row])
            keep(name, {"command": f"headway plan --model llama-3.1-70b, {LOADS}", "rows": rows})
            if asked.exhaustive:
                (RESULTS / "planner_whole.md").write_text(table(rows))


if __name__ == "__main__":
    main()
