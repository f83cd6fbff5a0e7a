"""DistServe's claim for OPT-66B and OPT-175B: goodput per GPU, the phases apart against both together.

    python benchmarks/distserve_large.py [CASE ...] [--regimes] [--seeds N] [--requests N]

As `distserve.py`, whose engine and goodput these are: A100 80 GB by the published latency law of each (TP, PP) that it
covers, Poisson arrivals, 90 % of requests. Chat: the 300 published ShareGPT requests, drawn at random. Code and
summaries: lengths around the means of HumanEval (171 in, 98 out) and LongBench (1,738 in, 91 out), whose rows are not
published. Every plan is tried on short runs, then those in front and the authors' own on more seeds and longer ones. KV
and what passes between stages cross the node's own links, as the authors place a pipeline's segments. `--regimes`
tightens and loosens both limits, to find where which kind wins.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from distserve import Plan, bisect, goodput, interval, requests, settings
from measure import keep, show
from published import ATTAINMENT, VLLM_66B_TP4, Law, prefill_first

from headway.cost import Replica, StepTable, distserve_table
from headway.errors import BadInput
from headway.metrics import Slo
from headway.sim import Deployment, Pool
from headway.workload import Workload, WorkloadSpec, parse_arrival, parse_length, workload

GPU = "a100-80gb-sxm"
MOST_GPUS = {"opt-66b": 16, "opt-175b": 32}  # of a split, the least of which has 4 and 12
FEW_GPUS = {"opt-66b": 12, "opt-175b": 16}  # where only the regimes are sought
BUDGETS = (2048, 8192)
CUTS = {"opt-66b": ((2, 3, 4), (1, 2, 4)), "opt-175b": ((1, 2, 4), (2, 3, 4, 6, 8))}
COUNTS = ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3))
FRONT, SHORT = 5, 600
Cut = tuple[int, int]


class Case(NamedTuple):
    """A model and its requests as the paper has them; `theirs`: the (tp, pp) that it chose, where a law covers them.

    `ratio` is the paper's, of request rates over vLLM on `baseline`: (tp, pp) of its vLLM, or of as many GPUs where the
    law covers no such TP.
    """

    model: str
    requests: str
    slo: tuple[float, float]
    theirs: tuple[Cut, Cut] | None
    baseline: Cut
    ratio: str


CASES = {
    "66b-chat": Case("opt-66b", "chat", (2.5, 0.15), ((4, 1), (2, 2)), (4, 1), "2.0 to 4.6"),
    "66b-code": Case("opt-66b", "code", (0.125, 0.2), ((4, 1), (2, 2)), (4, 1), "5.7"),
    "66b-summaries": Case("opt-66b", "summaries", (15.0, 0.15), ((4, 1), (2, 2)), (4, 1), "4.3"),
    "175b-chat": Case("opt-175b", "chat", (4.0, 0.2), None, (4, 2), "2.0 to 4.6"),
}
LENGTHS = {"code": ("lognormal:mean=171,sigma=0.4", "lognormal:mean=98,sigma=0.5")}
LENGTHS["summaries"] = ("uniform:1530:1946", "uniform:82:100")  # longer ones leave OPT's context of 2,048
LIMITS = ((0.25, 1.0), (0.5, 0.5), (0.5, 2.0), (1.0, 0.5), (1.0, 1.0), (1.0, 2.0), (4.0, 0.5), (4.0, 1.0))  # times SLO


def load(what: str, count: int, seed: int) -> Workload:
    """Return Poisson arrivals of requests of a kind."""
    if what == "chat":
        return requests(count, seed)
    prompt, output = map(parse_length, LENGTHS[what])
    spec = WorkloadSpec(name=what, arrival=parse_arrival("poisson"), prompt=prompt, output=output, requests=count)
    return workload(spec, rate=1.0)


def cuts(model: str) -> list[Cut]:
    """Return the (tp, pp) that the published law covers."""
    found = []
    for tp, pp in product(*CUTS[model]):
        try:
            distserve_table(model, tp, pp)
        except BadInput:
            continue
        found.append((tp, pp))
    return found


def _pool(model: str, role: str, count: int, cut: Cut, budget: int) -> tuple[Pool, StepTable]:
    engine = settings(budget)
    replica = Replica(model=model, gpu=GPU, tp=cut[0], pp=cut[1], engine=engine)
    return Pool(role=role, count=count, replica=replica), distserve_table(model, *cut, engine=engine)


def _named(cut: Cut) -> str:
    return f"tp{cut[0]}" + f" pp{cut[1]}" * (cut[1] > 1)


def together(model: str, cut: Cut, budget: int = 8192) -> Plan:
    """Return one replica that does both phases."""
    pool, table = _pool(model, "mixed", 1, cut, budget)
    return Plan(f"colocated {_named(cut)} b{budget}", Deployment(pools=(pool,)), (table,))


def apart(model: str, prefill: Cut, decode: Cut, counts: tuple[int, int] = (1, 1)) -> Plan:
    """Return replicas that prefill and others that decode."""
    made = [_pool(model, role, n, cut, 8192) for role, n, cut in
            zip(("prefill", "decode"), counts, (prefill, decode), strict=True)]  # fmt: skip
    name = f"{counts[0]} x prefill {_named(prefill)} + {counts[1]} x decode {_named(decode)}"
    return Plan(name, Deployment(pools=tuple(pool for pool, _ in made)), tuple(table for _, table in made))


def every(model: str, most_gpus: int) -> tuple[list[Plan], list[Plan]]:
    """Return the plans with both phases together, and those with the phases apart, up to so many GPUs."""
    known = cuts(model)
    mixed = [together(model, cut, budget) for cut in known for budget in BUDGETS]
    split = [apart(model, *pair, counts) for pair in product(known, repeat=2) for counts in COUNTS]
    return mixed, [plan for plan in split if plan.deployment.gpus <= most_gpus]


def own_law(model: str, tp: int) -> Law:
    """Return DistServe's own law without a pipeline."""
    found = distserve_table(model, tp).provenance
    phases = ("prefill", "decode_small", "decode_large")
    return Law(*(tuple(found[f"{phase}.{name}"].value for name in "abc") for phase in phases))


def first(law: Law, gpus: int, what: str, slo: Slo, count: int, seed: int) -> float:
    """Return requests per second and GPU of the paper's kind of baseline, which prefills first and mixes nothing."""
    batches = list(load(what, count, seed).batches(seed))
    prompt, output = (np.concatenate([getattr(each, name) for each in batches]).astype(np.int64)
                      for name in ("prompt_tokens", "output_tokens"))  # fmt: skip
    gaps = np.random.default_rng(seed).exponential(1.0, count)

    def met(rate_req_s: float) -> bool:
        ttft_s, tpot_s = prefill_first(np.cumsum(gaps) / rate_req_s, prompt, output, law)
        good = (ttft_s <= slo.ttft_s) & (tpot_s <= slo.tpot_s)
        return bool(good[count // 20 :].mean() >= ATTAINMENT)

    return bisect(met) / gpus


def front(case: Case, slo: Slo, most_gpus: int) -> tuple[list[Plan], list[Plan]]:
    """Return the plans of each kind that short runs put in front."""
    short = load(case.requests, SHORT, 1000)
    kinds = []
    for plans in every(case.model, most_gpus):
        score = {plan.name: goodput(plan, short, slo, 1000) for plan in plans}
        kinds.append(sorted(plans, key=lambda plan, score=score: -score[plan.name])[:FRONT])
    return kinds[0], kinds[1]


def measured(case: Case, seeds: int, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return goodput of those in front and of the paper's plans, and its ratios."""
    slo = Slo(ttft_s=case.slo[0], tpot_s=case.slo[1], attainment=ATTAINMENT)
    mixed, split = front(case, slo, MOST_GPUS[case.model])
    base = together(case.model, case.baseline)
    known = {plan.name: plan for plan in (*mixed, *split, base)}
    theirs = apart(case.model, *case.theirs) if case.theirs else None
    if theirs:
        known[theirs.name] = theirs
    loads = [load(case.requests, count, seed) for seed in range(seeds)]
    found = {name: [goodput(plan, each, slo, seed) for seed, each in enumerate(loads)] for name, plan in known.items()}
    gpus, queue = case.baseline[0] * case.baseline[1], f"colocated {_named(case.baseline)}, prefill first"
    laws = {}  # the discipline is modelled without pipelines
    if case.baseline[1] == 1:
        laws = {queue: own_law(case.model, case.baseline[0]), f"{queue}, vLLM's law": VLLM_66B_TP4}
    for name, law in laws.items():
        found[name] = [first(law, gpus, case.requests, slo, count, seed) for seed in range(seeds)]
    rows = []
    for name, values in found.items():
        mean, half = interval(values)
        rows.append({"plan": name, "GPUs": known[name].deployment.gpus if name in known else None,
                     "req/s/GPU": mean, "+-": half})  # fmt: skip

    def best(plans: list[Plan]) -> str:
        return max((plan.name for plan in plans), key=lambda name: statistics.fmean(found[name]))

    overs = [("best split", best(split))] + ([("the authors' plan", theirs.name)] if theirs else [])
    unders = [("best colocated", best(mixed)), ("the paper's GPUs", base.name)]
    unders += [("the paper's way", name) for name in laws]
    ratios = []
    for (what, over), (against, under) in product(overs, unders):
        mean, half = None, None
        if all(found[under]):
            mean, half = interval(a / b for a, b in zip(found[over], found[under], strict=True))
        ratios.append({"split": f"{what}: {over}", "baseline": f"{against}: {under}", "ratio": mean, "+-": half,
                       "paper": case.ratio if against != "best colocated" else None})  # fmt: skip
    return rows, ratios


def regimes(case: Case, count: int) -> list[dict[str, Any]]:
    """Return the best of each kind as the limits tighten and loosen, on one seed."""
    rows = []
    for ttft, tpot in LIMITS:
        slo = Slo(ttft_s=case.slo[0] * ttft, tpot_s=case.slo[1] * tpot, attainment=ATTAINMENT)
        top, judged = [], load(case.requests, count, 0)
        for plans in front(case, slo, FEW_GPUS[case.model]):
            top.append(max((goodput(plan, judged, slo, 0), plan.name) for plan in plans))
        (low, mixed), (high, split) = top
        row = {"TTFT s": slo.ttft_s, "TPOT s": slo.tpot_s, "best colocated": mixed, "req/s/GPU": low}
        ratio = high / low if low else None
        rows.append(row | {"best split": split, "its req/s/GPU": high, "split / colocated": ratio})
    return rows


def main() -> None:
    """Measure the cases asked for, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000, help="in each longer run")
    parser.add_argument("--regimes", action="store_true", help="the same as limits tighten and loosen; minutes more")
    asked = parser.parse_args()
    unknown = [name for name in asked.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}: choose from {', '.join(CASES)}")
    for name in asked.cases or CASES:
        case = CASES[name]
        if asked.regimes:
            found = {"regimes": regimes(case, asked.requests)}
        else:
            rows, ratios = measured(case, asked.seeds, asked.requests)
            found = {"plans": rows, "ratios": ratios}
        for title, table in found.items():
            show(f"{name}, {title}: TTFT {case.slo[0]} s, TPOT {case.slo[1]} s", table)
        keep("distserve_large", {f"{name}, {title}": table for title, table in found.items()})


if __name__ == "__main__":
    main()
