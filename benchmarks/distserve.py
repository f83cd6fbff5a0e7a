"""DistServe's claim in its own setting: goodput per GPU with prefill and decode apart against both together.

    python benchmarks/distserve.py [golden] [claim] [regimes] [motivating] [--seeds N] [--requests N]

OPT-13B on A100 80 GB by DistServe's published latency law, 300 published ShareGPT requests (`published.py` says from
where), Poisson arrivals, TTFT 200 ms, TPOT 100 ms, 90 % of requests. Goodput is searched by bisection on the rate, to
1 %. The engine puts decodes and whole prompts into one step, as vLLM V1 does; the paper's vLLM prefilled first.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measure import keep, show
from published import (
    ATTAINMENT,
    GOLDEN_REQ_S,
    LENGTHS,
    MODEL,
    TPOT_S,
    TTFT_S,
    VLLM,
    Law,
    lengths,
    own_law,
    prefill_alone,
    prefill_first,
    vllm_table,
)

from headway.cost import EngineSettings, Replica, StepTable, distserve_table
from headway.hardware import Link
from headway.metrics import Slo
from headway.sim import Deployment, Pool, simulate
from headway.workload import Workload, WorkloadSpec, parse_arrival, parse_length, workload

SLO = Slo(ttft_s=TTFT_S, tpot_s=TPOT_S, attainment=ATTAINMENT)
NARROW = Link(name="25 Gbit/s", bytes_per_s=25e9 / 8, latency_s=10e-6)
BUDGETS = (512, 2048, 8192)
_STUDENT_95 = {5: 2.776, 10: 2.262, 20: 2.093}
_TOLERANCE = 1.01
_IDLE_REQ_S = 0.05


class Plan(NamedTuple):
    """A deployment with the step laws of its pools."""

    name: str
    deployment: Deployment
    tables: tuple[StepTable, ...]


def settings(budget: int = 8192) -> EngineSettings:
    """Return an engine without prefix cache: the published requests share nothing."""
    return EngineSettings(max_batched_tokens=budget, prefix_cache=False)


def replica(tp: int, budget: int = 8192) -> Replica:
    """Return one OPT-13B engine."""
    return Replica(model=MODEL, gpu="a100-80gb-sxm", tp=tp, engine=settings(budget))


def colocated(tp: int, budget: int = 8192, law: str = "DistServe") -> Plan:
    """Return one replica that does both phases."""
    engine = settings(budget)
    table = distserve_table(MODEL, tp, engine=engine) if law == "DistServe" else vllm_table(tp, engine)
    name = f"colocated tp{tp}" + (f", {budget} tokens a step" if budget != 8192 else "")
    return Plan(name, Deployment(pools=(Pool(replica=replica(tp, budget)),)), (table,))


def split(prefill: tuple[int, int], decode: tuple[int, int], link: Link | None = None, law: str = "DistServe") -> Plan:
    """Return `(count, tp)` prefill and decode replicas."""
    pools = tuple(
        Pool(role=role, count=count, replica=replica(tp))
        for role, (count, tp) in (("prefill", prefill), ("decode", decode))
    )
    made = {tp: distserve_table(MODEL, tp) if law == "DistServe" else vllm_table(tp, settings()) for tp in (1, 2, 4)}
    name = f"{prefill[0]} x prefill tp{prefill[1]} + {decode[0]} x decode tp{decode[1]}"
    return Plan(name, Deployment(pools=pools, kv_link=link), (made[prefill[1]], made[decode[1]]))


COLOCATED = [colocated(tp, budget) for tp in (1, 2, 4) for budget in BUDGETS]
SPLIT = [
    split(p, d)
    for p, d in (
        ((1, 1), (1, 1)), ((2, 1), (1, 1)), ((1, 1), (2, 1)), ((1, 1), (3, 1)), ((2, 1), (3, 1)), ((1, 2), (1, 1)),
        ((1, 2), (2, 1)), ((1, 2), (1, 2)), ((2, 2), (1, 2)), ((1, 4), (1, 1)), ((1, 4), (2, 1)), ((1, 4), (3, 1)),
        ((1, 4), (1, 2)), ((1, 4), (2, 2)), ((1, 4), (1, 4)),
    )
]  # fmt: skip


def requests(count: int, seed: int) -> Workload:
    """Return Poisson arrivals of the published requests: as they are when 300, else drawn from them at random."""
    prompt, output = lengths()
    if count == len(prompt):
        return workload(LENGTHS, arrival="poisson", rate=1.0)
    rows = np.random.default_rng(seed).integers(0, len(prompt), count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "drawn.csv")
        pairs = np.column_stack([prompt[rows], output[rows]])
        np.savetxt(path, pairs, fmt="%d", delimiter=",", header="input_tokens,output_tokens", comments="")
        return workload(path, arrival="poisson", rate=1.0)


def goodput(plan: Plan, load: Workload, slo: Slo, seed: int) -> float:
    """Return requests per second and GPU at which the SLO is just met; 0 when it is missed at the lowest rate."""

    def met(rate_req_s: float) -> bool:
        at = load.at_rate(rate_req_s)
        result = simulate(
            plan.deployment, at, slo=slo, seed=seed, records=False, warmup=0.05, tables=plan.tables
        )
        return bool(result.slo.attainment is not None and result.slo.attainment >= slo.attainment)

    return bisect(met) / plan.deployment.gpus


def bisect(met: Callable[[float], bool], start_req_s: float = _IDLE_REQ_S) -> float:
    """Return the highest rate that is met, to 1 %; 0 when the first one is not."""
    low, high = start_req_s, 2 * start_req_s
    if not met(low):
        return 0.0
    while met(high):
        low, high = high, 2 * high
    while high / low > _TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if met(middle) else (low, middle)
    return low


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval by Student's t."""
    seen = list(values)
    spread = statistics.stdev(seen) if len(seen) > 1 else 0.0
    return statistics.fmean(seen), _STUDENT_95.get(len(seen), 2.0) * spread / math.sqrt(len(seen))


# --- the published result, on the authors' own grid ---------------------------------------------------------------


def authors_grid(met: Callable[[float], bool]) -> float:
    """Return the rate per GPU that the authors' bisection prints."""
    low, high = 0.0, 5.0
    while high - low >= 0.25:
        middle = (low + high) / 2
        low, high = (middle, high) if met(middle) else (low, middle)
    return low


def golden(seeds: int, _: int) -> dict[str, Any]:
    """Their command: 4 GPUs, 300 requests, P90 of each latency by itself."""
    load = requests(300, 0)
    rows = []
    for plan in [split((1, p), (1, d)) for p, d in ((1, 1), (1, 2), (2, 1), (2, 2))]:

        def met(per_gpu: float, seed: int, plan: Plan = plan) -> bool:
            at = load.at_rate(per_gpu * plan.deployment.gpus)
            result = simulate(plan.deployment, at, seed=seed, records=True, warmup=0.0, tables=plan.tables)
            return (result.ttft_s.p90 or 0) < TTFT_S and (result.tpot_s.p90 or 0) < TPOT_S

        found = [authors_grid(lambda rate, seed=seed, met=met: met(rate, seed)) for seed in range(seeds)]
        median = statistics.median(found)
        rows.append({"plan": plan.name, "median req/s/GPU": median, "least": min(found), "most": max(found)})
    return {"engine": rows, "prefill instance alone": _prefill_alone_rows()}


def _prefill_alone_rows() -> list[dict[str, Any]]:
    """The authors' arrivals (NumPy seed 0) and discipline; their sample of lengths is not published, so 200 draws."""
    prompt, _ = lengths()
    gaps = np.random.RandomState(0).gamma(1.0, 1.0, size=299)
    arrival_s = np.concatenate([[0.0], np.cumsum(gaps)])
    rows = []
    for name, law in (("DistServe's", own_law(2)), ("vLLM's", VLLM[2])):
        found = []
        for seed in range(200):
            tokens = prompt[np.random.default_rng(seed).integers(0, len(prompt), 300)]

            def met(per_gpu: float, tokens: Any = tokens, law: Law = law) -> bool:
                return bool(np.quantile(prefill_alone(arrival_s / (3 * per_gpu), tokens, law, True), 0.9) < TTFT_S)

            found.append(authors_grid(met))
        share = statistics.fmean(rate <= GOLDEN_REQ_S + 0.01 for rate in found)
        rows.append(
            {
                "law of the tp2 prefill": name,
                "median req/s/GPU": statistics.median(found),
                "5 % to 95 %": " to ".join(f"{each:.2f}" for each in np.quantile(found, [0.05, 0.95])),
                "share at 1.56 or below": share,
            }
        )
    return rows


# --- the claim ------------------------------------------------------------------------------------------------------


def claim(seeds: int, count: int) -> dict[str, Any]:
    """Goodput per GPU of every plan at TTFT 200 ms and TPOT 100 ms, mean and 95 % interval over seeds."""
    loads = [requests(count, seed) for seed in range(seeds)]
    plans = [*COLOCATED, *SPLIT, split((1, 2), (1, 1), NARROW)._replace(name="the paper's plan over 25 Gbit/s")]
    plans += [colocated(tp, law="vLLM")._replace(name=f"colocated tp{tp}, vLLM's law") for tp in (1, 2, 4)]
    found = {plan.name: [goodput(plan, load, SLO, seed) for seed, load in enumerate(loads)] for plan in plans}
    for tp in (1, 2, 4):
        for whose, law in (("", own_law(tp)), (", vLLM's law", VLLM[tp])):
            name = f"colocated tp{tp}, prefill first{whose}"
            found[name] = [_prefill_first(law, count, seed) / tp for seed in range(seeds)]
    rows = []
    for name, values in found.items():
        mean, half = interval(values)
        rows.append({"plan": name, "req/s/GPU": mean, "+-": half})
    return {"plans": rows, "ratios": _ratios(found)}


def _prefill_first(law: Law, count: int, seed: int) -> float:
    prompt, output = lengths()
    random = np.random.default_rng(seed)
    rows, gaps = random.integers(0, len(prompt), count), random.exponential(1.0, count)

    def met(rate_req_s: float) -> bool:
        ttft_s, tpot_s = prefill_first(np.cumsum(gaps) / rate_req_s, prompt[rows], output[rows], law)
        good = (ttft_s <= TTFT_S) & (tpot_s <= TPOT_S)
        return bool(good[count // 20 :].mean() >= ATTAINMENT)

    return bisect(met, 0.4)  # at lower rates hardly anybody meets, and a step at a time is slow


def _ratios(found: dict[str, list[float]]) -> list[dict[str, Any]]:
    theirs, apart = split((1, 2), (1, 1)).name, [plan.name for plan in SPLIT]
    together = [plan.name for plan in COLOCATED]
    pairs = [
        ("the paper's plan", [theirs], "colocated tp1", ["colocated tp1"]),
        ("the paper's plan", [theirs], "colocated tp1, prefill first", ["colocated tp1, prefill first"]),
        ("best split", apart, "colocated tp1", ["colocated tp1"]),
        ("best split", apart, "best colocated", together),
        ("best split", apart, "best prefill first", [f"colocated tp{tp}, prefill first" for tp in (1, 2, 4)]),
        ("best split", apart, "best prefill first, vLLM's law",
         [f"colocated tp{tp}, prefill first, vLLM's law" for tp in (1, 2, 4)]),
    ]  # fmt: skip
    rows = []
    for left, over, right, under in pairs:
        top, bottom = (max(names, key=lambda name: statistics.fmean(found[name])) for names in (over, under))
        mean, half = interval(a / b for a, b in zip(found[top], found[bottom], strict=True) if b)
        rows.append({"split": f"{left}: {top}", "baseline": f"{right}: {bottom}", "ratio": mean, "+-": half})
    return rows


# --- where which one wins -------------------------------------------------------------------------------------------


def regimes(seeds: int, count: int) -> dict[str, Any]:
    """Best split over best colocated as the limits loosen and tighten: all TPs, and tp1 only."""
    loads = [requests(count, seed) for seed in range(min(seeds, 3))]
    rows = []
    for ttft_s in (0.125, 0.2, 0.4, 1.0, 4.0):
        for tpot_s in (0.03, 0.04, 0.06, 0.1, 0.2):
            slo = Slo(ttft_s=ttft_s, tpot_s=tpot_s, attainment=ATTAINMENT)
            found = {
                plan.name: statistics.fmean(goodput(plan, load, slo, seed) for seed, load in enumerate(loads))
                for plan in (*COLOCATED, *SPLIT)
            }
            rows.append({"TTFT s": ttft_s, "TPOT s": tpot_s} | _regime(found))
    return {"regimes": rows}


def _regime(found: dict[str, float]) -> dict[str, Any]:
    def best(plans: list[Plan]) -> tuple[float, str]:
        return max((found[plan.name], plan.name) for plan in plans)

    def ratio(over: float, under: float) -> float | None:
        return over / under if under else None

    together, apart = best(COLOCATED), best(SPLIT)
    ones = [plan for plan in (*COLOCATED, *SPLIT) if all(pool.replica.tp == 1 for pool in plan.deployment.pools)]
    one_together = best([plan for plan in ones if len(plan.tables) == 1])
    one_apart = best([plan for plan in ones if len(plan.tables) == 2])
    return {
        "best colocated": together[1],
        "req/s/GPU": together[0],
        "best split": apart[1],
        "its req/s/GPU": apart[0],
        "split / colocated": ratio(apart[0], together[0]),
        "the same, tp1 only": ratio(one_apart[0], one_together[0]),
    }


def motivating(seeds: int, count: int) -> dict[str, Any]:
    """The paper's opening case: 512 tokens in, 64 out, one colocated GPU against two prefill and one decode."""
    spec = WorkloadSpec(
        name="512/64",
        arrival=parse_arrival("poisson"),
        prompt=parse_length("512"),
        output=parse_length("64"),
        requests=count,
    )
    load, rows = workload(spec), []
    for law, ttft_s in (("DistServe", 0.2), ("DistServe", 0.4), ("vLLM", 0.2), ("vLLM", 0.4)):
        slo = Slo(ttft_s=ttft_s, tpot_s=0.04, attainment=ATTAINMENT)
        plans = [colocated(1, law=law), split((1, 1), (1, 1), law=law), split((2, 1), (1, 1), law=law)]
        found = [interval(goodput(plan, load, slo, seed) for seed in range(seeds)) for plan in plans]
        for plan, (mean, half) in zip(plans, found, strict=True):
            rows.append(
                {
                    "law": law, "TTFT s": ttft_s, "TPOT s": 0.04, "plan": plan.name, "req/s/GPU": mean, "+-": half,
                    "over colocated": mean / found[0][0] if found[0][0] else None,
                }
            )  # fmt: skip
    return {"motivating": rows}


def main() -> None:
    """Measure the sections asked for, all of them by default."""
    sections = {"golden": golden, "claim": claim, "regimes": regimes, "motivating": motivating}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(sections)}; all by default")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=3000, help="in each run, except of the golden one (3000)")
    asked = parser.parse_args()
    unknown = [name for name in asked.sections if name not in sections]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}: choose from {', '.join(sections)}")
    for name in asked.sections or sections:
        started_s = time.perf_counter()
        found = sections[name](asked.seeds, asked.requests)
        for title, rows in found.items():
            show(f"{title}: {(sections[name].__doc__ or '').splitlines()[0]}", rows)
        print(f"({time.perf_counter() - started_s:.0f} s)")
        keep("distserve", {name: found})


if __name__ == "__main__":
    main()
