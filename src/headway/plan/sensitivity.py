"""How far a plan holds: at other rates and lengths, where the cost model is off, with a replica more or fewer.

And which of its parts holds it back: each of them twice as good, one at a time.

Each variant changes one thing, sees the same requests, and is judged by the limits that the plan was judged by. What it
serves at most is searched anew. Figures are of one seed: the base is among them, to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from headway.hardware import Link
from headway.plan.answer import Kind, Plan, Sensitivity, Variant
from headway.plan.crew import Crew, Workforce, muster
from headway.plan.evaluate import Evaluator, Job
from headway.plan.question import Question
from headway.plan.setups import goes_by_node, keeps_kv, kept_near
from headway.plan.space import priced, resized
from headway.sim import CtrlC, Deployment, Policies
from headway.sim.trust import uncertainty
from headway.specs import from_mapping
from headway.workload import Workload, workload

__all__ = ["sensitivity"]

RATE, LENGTH = 0.5, 0.25  # by which shares they are changed, up and down
_FREE = Link(name="free", bytes_per_s=1e18, latency_s=0.0)


class _Ask(NamedTuple):
    """A variant to look at: the job that does, at a factor of the rate; or the best of it and `others`."""

    kind: Kind
    what: str
    job: Job
    rate: float = 1.0
    others: tuple[_Ask, ...] = ()


def sensitivity(
    plan: Plan,
    *,
    made: Workload | None = None,
    workers: Workforce = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity | None:
    """Return what becomes of a plan's best where the question, or the cost model, is not quite right.

    None where the plan has no best, and where Ctrl-C came.

    Args:
        plan: with its question.
        made: the question's workload where the caller has it already.
        workers: processes to use, or a `RayCluster`; the answer does not depend on it. Default: one per core.
        progress: called with variants done and in all.
    """
    if plan.best is None:
        return None
    question = plan.question
    best = from_mapping(Deployment, plan.best.deployment, plan.best.name)
    source = (made or workload(question.workload, skip_bad=question.skip_bad)).densest(plan.requests)
    rates = () if plan.alone else (-RATE, RATE)
    asks = _asks(question, best, Job(0, best, plan.requests, plan.best.goodput_req_s or None), rates)
    crew: Crew[_Ask, Variant] = muster(_Looker, (question, source, plan.rate_req_s), workers)
    found: dict[int, Variant] = {}
    with CtrlC() as ctrl_c:
        try:
            for place, variant in crew.answers(asks):
                found[place] = variant
                if progress is not None:
                    progress(len(found), len(asks))
            ctrl_c.hold()
        except KeyboardInterrupt:
            ctrl_c.hold()
            return None
        finally:
            crew.close()
    return Sensitivity(
        name=plan.best.name,
        requests=plan.requests,
        seed=question.seed,
        coverage=uncertainty(best).coverage,
        planned_req_s=plan.best.goodput_req_s,
        planned_breaks=plan.best.binding,
        variants=[found[place] for place in range(len(asks))],
    )


def _asks(question: Question, best: Deployment, job: Job, rates: tuple[float, ...]) -> list[_Ask]:
    low, high = uncertainty(best).tpot
    less, more = 1 - LENGTH, 1 + LENGTH
    longer = {
        f"prompts and outputs -{LENGTH:.0%}": (less, less),
        f"prompts and outputs +{LENGTH:.0%}": (more, more),
        f"prompts +{LENGTH:.0%}": (more, 1.0),
        f"outputs +{LENGTH:.0%}": (1.0, more),
    }
    return [
        _Ask("base", "as planned", job),
        *(_Ask("rate", f"rate {change:+.0%}", job, rate=1 + change) for change in rates),
        *(_Ask("lengths", what, job._replace(longer=factors)) for what, factors in longer.items()),
        *(_Ask("model", f"steps {times:.2f} times as long", job._replace(steps=times)) for times in (low, high)),
        *(_Ask("parts", what, eased) for what, eased in _parts(best, job)),
        *(_neighbour(job, ways) for ways in _neighbours(question, best)),
    ]


def _neighbour(job: Job, ways: list[tuple[str, Deployment]]) -> _Ask:
    """The best of these ways."""
    asks = [_Ask("replicas", what, job._replace(deployment=other)) for what, other in ways]
    return asks[0]._replace(others=tuple(asks[1:]))


def _parts(best: Deployment, job: Job) -> list[tuple[str, Job]]:
    """What one part of the deployment twice as good would change, links as if they took no time."""
    found = [
        ("prompts twice as fast", job._replace(eased="prompts")),
        ("tokens twice as fast", job._replace(eased="tokens")),
        ("twice the KV cache", job._replace(eased="kv")),
    ]
    split = any(pool.role != "mixed" for pool in best.pools)
    if split or any(pool.replica.pp > 1 for pool in best.pools):
        free = msgspec.structs.replace(best, kv_link=_FREE) if split else best
        found.append(("links that take no time", job._replace(deployment=free, eased="link")))
    return found


def _neighbours(question: Question, best: Deployment) -> list[list[tuple[str, Deployment]]]:
    """The deployment with a replica more, and one fewer where more are left than may be down, in each pool.

    Each with the routers that a plan tries for it.
    """
    found = []
    for place, (pool, name) in enumerate(zip(best.pools, best.pool_names(), strict=True)):
        for change, words in ((1, "more"), (-1, "fewer")):
            if pool.count + change <= question.spare:
                continue
            counts = [each.count for each in best.pools]
            counts[place] += change
            role = f" {name}" if len(best.pools) > 1 else ""
            made = priced(question, resized(best, counts))
            ways = _routed(question, made)
            found.append([(f"1{role} replica {words}{_where(best, each)}", each) for each in ways])
    return found


def _routed(question: Question, made: Deployment) -> list[Deployment]:
    """A deployment with its KV kept on its node, too, where the planner would try that."""
    if made.pools[0].role == "mixed" or not keeps_kv(question):
        return [made]
    plain = msgspec.structs.replace(made.policies, route=Policies().route)
    return [*kept_near(question, msgspec.structs.replace(made, policies=plain))] or [made]


def _where(best: Deployment, other: Deployment) -> str:
    """That its replicas take more than one node, as the best's do not, and another router than the best's."""
    name, said = other.models[0], ""
    if other.wide(name) and not best.wide(name) and goes_by_node(other, name):
        said = f" on {other.nodes_taken(name)} nodes"
    route = other.policies.route
    return said if route == best.policies.route else f"{said} with route={route}"


class _Looker:
    """Looks at one variant after another; the same answer in whatever process and order."""

    def __init__(self, question: Question, source: Workload, rate_req_s: float) -> None:
        self.question, self.source, self.rate_req_s = question, source, rate_req_s
        self.evaluators: dict[float, Evaluator] = {}

    def __call__(self, ask: _Ask) -> Variant:
        found = [self._look(each) for each in (ask, *ask.others)]
        served = [math.inf if each.goodput_req_s is None else each.goodput_req_s for each in found]
        return found[max(range(len(found)), key=lambda i: (found[i].meets, served[i]))]

    def _look(self, ask: _Ask) -> Variant:
        deployment, rate_req_s = ask.job.deployment, self.rate_req_s * ask.rate
        same = Variant(
            kind=ask.kind,
            what=ask.what,
            rate_req_s=rate_req_s,
            meets=True,
            gpus=deployment.gpus,
            usd_per_hour=deployment.usd_per_hour,
        )
        if ask.rate not in self.evaluators:
            self.evaluators[ask.rate] = Evaluator(self.question, self.source, rate_req_s)
        outcome = self.evaluators[ask.rate](ask.job)
        seen = outcome.asked
        return msgspec.structs.replace(
            same,
            attainment=seen.attainment if seen else None,
            attainment_low=seen.attainment_low if seen else None,
            attainment_high=seen.attainment_high if seen else None,
            meets=seen is not None and seen.meets,
            breaks=outcome.binding,
            goodput_req_s=None if outcome.goodput.open_ended else outcome.goodput.req_s,
        )
