"""How far a plan holds: at other rates and lengths, where the cost model is off, with a replica more or fewer.

Each variant changes one thing, sees the same requests, and is judged by the limits that the plan was judged by. What it
serves at most is searched anew. Figures are of one seed: the base is among them, to compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from headway.cost import StepTable
from headway.cost.stretched import stretched
from headway.errors import BadInput
from headway.metrics import Slo
from headway.plan.answer import Kind, Plan, Sensitivity, Variant
from headway.plan.bounds import guess_rate, reach
from headway.plan.evaluate import binding, idle_place
from headway.plan.search import search
from headway.plan.trial import Load, Trial, ask, probit, try_rate
from headway.plan.workers import Workers
from headway.sim import CtrlC, Deployment
from headway.sim.run import compiled
from headway.sim.trust import uncertainty
from headway.specs import from_mapping
from headway.workload import Workload, workload

__all__ = ["sensitivity"]

RATE, LENGTH = 0.5, 0.25  # by which shares they are changed, up and down


class _Job(NamedTuple):
    """A variant to look at: times the rate, prompts and outputs, steps; with `goodput` unless that is the base's."""

    kind: Kind
    what: str
    deployment: Deployment
    rate: float = 1.0
    longer: tuple[float, float] = (1.0, 1.0)
    steps: float = 1.0
    goodput: bool = True


def sensitivity(
    plan: Plan,
    *,
    made: Workload | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity | None:
    """Return what becomes of a plan's best where the question, or the cost model, is not quite right.

    None where the plan has no best, and where Ctrl-C came.

    Args:
        plan: with its question.
        made: the question's workload where the caller has it already.
        workers: processes to use; the answer does not depend on it. Default: as many as there are cores.
        progress: called with variants done and in all.
    """
    if plan.best is None:
        return None
    question = plan.question
    best = from_mapping(Deployment, plan.best.deployment, plan.best.name)
    source = made or workload(question.workload)
    jobs = _jobs(best)
    context = (source, question.aimed_slo, plan.rate_req_s, plan.requests, question.seed)
    crew: Workers[_Job, Variant] = Workers(_Looker, context, workers)
    found: dict[int, Variant] = {}
    with CtrlC() as ctrl_c:
        try:
            for place, variant in crew.answers(jobs):
                found[place] = variant
                if progress is not None:
                    progress(len(found), len(jobs))
            ctrl_c.hold()
        except KeyboardInterrupt:
            ctrl_c.hold()
            return None
        finally:
            crew.close()
    variants = [found[place] for place in range(len(jobs))]
    served = variants[0].goodput_req_s
    variants = [
        variant if job.goodput else msgspec.structs.replace(variant, goodput_req_s=served)
        for job, variant in zip(jobs, variants, strict=True)
    ]
    return Sensitivity(
        name=plan.best.name,
        requests=plan.requests,
        seed=question.seed,
        coverage=uncertainty(best).coverage,
        planned_req_s=plan.best.goodput_req_s,
        variants=variants,
    )


def _jobs(best: Deployment) -> list[_Job]:
    low, high = uncertainty(best).tpot
    less, more = 1 - LENGTH, 1 + LENGTH
    return [
        _Job("base", "as planned", best),
        _Job("rate", f"rate -{RATE:.0%}", best, rate=1 - RATE, goodput=False),
        _Job("rate", f"rate +{RATE:.0%}", best, rate=1 + RATE, goodput=False),
        _Job("lengths", f"prompts and outputs -{LENGTH:.0%}", best, longer=(less, less)),
        _Job("lengths", f"prompts and outputs +{LENGTH:.0%}", best, longer=(more, more)),
        _Job("lengths", f"prompts +{LENGTH:.0%}", best, longer=(more, 1.0)),
        _Job("lengths", f"outputs +{LENGTH:.0%}", best, longer=(1.0, more)),
        _Job("model", f"steps {low:.2f} times as long", best, steps=low),
        _Job("model", f"steps {high:.2f} times as long", best, steps=high),
        *(_Job("replicas", words, other) for words, other in _neighbours(best)),
    ]


def _neighbours(best: Deployment) -> list[tuple[str, Deployment]]:
    """The deployment with a replica more, and one fewer where one is left, in each pool."""
    found = []
    for place, (pool, name) in enumerate(zip(best.pools, best.pool_names(), strict=True)):
        for change, words in ((1, "more"), (-1, "fewer")):
            if pool.count + change < 1:
                continue
            pools = list(best.pools)
            pools[place] = msgspec.structs.replace(pool, count=pool.count + change)
            role = f" {name}" if len(best.pools) > 1 else ""
            found.append((f"1{role} replica {words}", msgspec.structs.replace(best, pools=tuple(pools))))
    return found


class _Looker:
    """Looks at one variant after another; the same answer in whatever process and order."""

    def __init__(self, source: Workload, slo: Slo, rate_req_s: float, requests: int, seed: int) -> None:
        self.source, self.slo, self.rate_req_s, self.requests, self.seed = source, slo, rate_req_s, requests, seed

    def __call__(self, job: _Job) -> Variant:
        deployment, slo = job.deployment, self.slo
        load = Load(self.source, self.requests, self.rate_req_s * job.rate, self.seed, longer=job.longer)
        tables = tuple(stretched(compiled(pool.replica), job.steps) for pool in deployment.pools)
        trial, result = ask(deployment, load, slo, tables)
        usd = deployment.priced().usd_per_gpu_hour
        seen = Variant(
            kind=job.kind,
            what=job.what,
            rate_req_s=load.rate_req_s,
            attainment=result.slo.attainment,
            attainment_low=result.slo.attainment_low,
            attainment_high=result.slo.attainment_high,
            meets=trial.met,
            breaks=None if trial.met else binding(trial, slo)[0],
            gpus=deployment.gpus,
            usd_per_hour=None if usd is None else usd * deployment.gpus,
        )
        if not job.goodput:
            return seen
        try:
            served, missed = _served(deployment, tables, load, slo, trial)
        except BadInput:  # these runs are too short to fill its queue: no rate is too high
            return seen
        return msgspec.structs.replace(seen, goodput_req_s=served, breaks=binding(missed, slo)[0])


def _served(
    deployment: Deployment, tables: tuple[StepTable, ...], load: Load, slo: Slo, asked: Trial
) -> tuple[float, Trial]:
    """The highest rate that meets the SLO (0: none does), and the trial beyond it that does not."""
    trials = {0: asked}

    def trial(k: int) -> Trial:
        if k not in trials:
            trials[k] = try_rate(deployment, tables, load, slo, k)
        return trials[k]

    start = load.place(guess_rate(deployment, tables, load.lengths.sample(), slo))
    floor = idle_place(reach(tables, load.lengths, slo), load)
    found = search(trial, start, floor, probit(slo.attainment, asked.measured))
    return (load.rate(found.at) if found.at is not None else 0.0), found.missed
