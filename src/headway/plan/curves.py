"""A closer look at a plan's first candidates: from an idle system to overload, and the best's run moment by moment.

All of it is simulated, no formula draws a line. It changes nothing in the ranking.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from headway.cost.stretched import stretched
from headway.engine import Engine
from headway.metrics import Result, Slo
from headway.plan.answer import Candidate, Plan
from headway.plan.crew import Crew
from headway.plan.evaluate import Evaluator, Job, worst_of
from headway.plan.leaders import Course, LoadCurve, LoadPoint, PoolCourse, Spread
from headway.plan.spare import without
from headway.plan.trial import STEP, Load, Trial, ask, interval
from headway.sim import CtrlC, Deployment
from headway.sim.recorder import Recorder
from headway.sim.run import BINS, build, compiled
from headway.sim.trust import uncertainty
from headway.specs import from_mapping

__all__ = ["Look", "Looker", "with_curves"]

_LEADERS = 3
_SHARES = (0.25, 0.5, 0.75, 1.0, 1.1)  # of what a candidate serves, or else of the asked rate
_REQUESTS_MAX = 8_000  # longer runs would take seconds, and move no line by its width
_SEEDS = 3  # at the other rates; at the asked one all that the candidate's own figures rest on
_MOMENTS = 100
_EVENTS_AT_ONCE = 20
_DIGITS = 4

_Heard = tuple[Trial, Result]


class Look(NamedTuple):
    """A candidate at place `k` of the grid of rates; None: its run at the asked rate, moment by moment."""

    name: str
    deployment: Deployment
    requests: int
    seeds: tuple[int, ...]
    k: int | None


def with_curves(
    plan: Plan, crew: Crew[Look, LoadPoint | Course], progress: Callable[[int, int], None] | None = None
) -> Plan:
    """Return the plan with the curves of its first candidates and the course of the first, as a crew of `Looker` says.

    It is closed then. `progress` is called with looks done and in all. Ctrl-C ends it: the plan has those that were
    whole by then.
    """
    looks = [look for candidate in plan.ranked[:_LEADERS] for look in _looks(candidate, plan)]
    looks += [look._replace(seeds=look.seeds[:1], k=None) for look in looks[:1]]
    seen: dict[int, LoadPoint | Course] = {}
    try:
        with CtrlC() as ctrl_c:
            try:
                for place, found in crew.answers(looks):
                    seen[place] = found
                    if progress is not None:
                        progress(len(seen), len(looks))
                ctrl_c.hold()
            finally:
                crew.close()
    except KeyboardInterrupt:
        pass
    course = next((found for found in seen.values() if isinstance(found, Course)), None)
    return msgspec.structs.replace(plan, curves=_whole(looks, seen), course=course)


def _whole(looks: list[Look], seen: dict[int, LoadPoint | Course]) -> list[LoadCurve]:
    """The curves all of whose rates were looked at."""
    curves = []
    for name in dict.fromkeys(look.name for look in looks):
        places = [place for place, look in enumerate(looks) if look.name == name and look.k is not None]
        points = [point for place in places if isinstance(point := seen.get(place), LoadPoint)]
        if len(points) == len(places):
            look = looks[places[0]]
            error = uncertainty(look.deployment)
            curves.append(
                LoadCurve(name=name, requests=look.requests, steps=error.tpot, coverage=error.coverage, points=points)
            )
    return curves


def _looks(candidate: Candidate, plan: Plan) -> list[Look]:
    """Rates from a quarter of what it serves to a tenth more than it does, and the asked one."""
    deployment = from_mapping(Deployment, candidate.deployment, candidate.name)
    most = candidate.goodput_req_s or plan.rate_req_s
    places = {round(math.log(share * most / plan.rate_req_s) / math.log(STEP)) for share in _SHARES}
    requests = min(plan.requests, _REQUESTS_MAX)
    return [
        Look(candidate.name, deployment, requests, candidate.seeds[: _SEEDS if k else None], k)
        for k in sorted(places | {0})
    ]


class Looker(Evaluator):
    """Answers one look after another, and an evaluator's jobs; the same answer in whatever process and order."""

    def __call__(self, job: Job | Look) -> Any:  # of a job an `Outcome`, of a look a `LoadPoint` or a `Course`
        """Return what a job or a look asks for.

        Raises:
            KeyboardInterrupt: while it simulated.
        """
        return self._look(job) if isinstance(job, Look) else super().__call__(job)

    def _look(self, look: Look) -> LoadPoint | Course:
        loads = [self.load(look.requests, seed) for seed in look.seeds]
        if look.k is None:
            return _course(look, loads[0])
        lefts, slo = without(look.deployment, self.question.spare), self.classes.slo
        tables = tuple(compiled(pool.replica) for pool in look.deployment.pools)
        every = [[ask(left, load, slo, tables, look.k) for load in loads] for left in lefts]
        heard, place = worst_of(every, slo)
        left, ends = lefts[place], []
        for times in uncertainty(look.deployment).tpot:
            otherwise = tuple(stretched(table, times) for table in tables)
            ends.append(ask(left, loads[0], slo, otherwise, look.k))
        outcome = heard[0][1].slo
        share, low, high = outcome.attainment, outcome.attainment_low, outcome.attainment_high
        if len(heard) > 1:
            share, low, high = interval([trial for trial, _ in heard])
        return LoadPoint(
            rate_req_s=loads[0].rate(look.k),
            seeds=list(look.seeds),
            attainment=share,
            attainment_low=low,
            attainment_high=high,
            **{name: self._spread(name, heard, ends) for name in ("ttft_s", "tpot_s", "e2e_s", "itl_s")},
        )

    def _spread(self, name: str, seeds: Sequence[_Heard], ends: list[_Heard]) -> Spread | None:
        """One latency; its tail is the quantile at the SLO's attainment, of several classes p90, of ITL p99."""
        if any(getattr(result, name).p50 is None for _, result in seeds):
            return None

        def tail(heard: _Heard) -> float | None:
            trial, latency = heard[0], getattr(heard[1], name)
            if name == "itl_s":
                value: float | None = latency.p99
            else:
                value = getattr(trial, name) if isinstance(self.classes.slo, Slo) else latency.p90
            return value

        medians = [getattr(result, name).p50 for _, result in seeds]
        return _spread(medians, [tail(each) for each in seeds], [tail(each) for each in ends])


def _spread(medians: list[float], tails: list[float | None], ends: list[float | None]) -> Spread | None:
    """Means over the seeds; the ends by their ratio to the first seed, which saw the same requests."""
    known = [value for value in (*medians, *tails) if value is not None]
    if len(known) < 2 * len(medians) or not tails[0]:
        return None
    mean = sum(known[len(medians) :]) / len(medians)
    ratios = [(end or 0.0) / tails[0] for end in ends]
    return Spread(
        p50_s=sum(known[: len(medians)]) / len(medians),
        tail_s=mean,
        tail_low_s=mean * min(1.0, *ratios),
        tail_high_s=mean * max(1.0, *ratios),
    )


def _course(look: Look, load: Load) -> Course:
    """Let the run happen a few events at a time, and look at all replicas at even distances."""
    tables = tuple(compiled(pool.replica) for pool in look.deployment.pools)
    recorder = Recorder(False, load.requests, load.skipped, [(math.inf, math.inf, math.inf)], BINS)
    cluster, pools = build(look.deployment, load.at(0), tables, recorder, load.seed)
    watched = [_Pool(name, engines) for name, engines in zip(look.deployment.pool_names(), pools, strict=True)]
    every_s = load.requests / load.rate(0) / _MOMENTS
    at_s: list[float] = []
    more = True
    while more:
        more = cluster.advance(_EVENTS_AT_ONCE)
        if cluster.now >= every_s * (len(at_s) + 1) or not more:
            for each in watched:
                each.look(cluster.now)
            at_s.append(round(cluster.now, _DIGITS))
    return Course(
        name=look.name, requests=look.requests, seed=load.seed, at_s=at_s, pools=[each.seen for each in watched]
    )


class _Pool:
    """The replicas of a pool, and what was seen of them."""

    def __init__(self, name: str, engines: list[Engine]) -> None:
        self.engines, self.seen = engines, PoolCourse(pool=name, replicas=len(engines))
        self.busy_s = self.until_s = 0.0

    def look(self, now: float) -> None:
        """Add a moment."""
        for engine in self.engines:
            engine.refresh(now)
        seen, count = self.seen, len(self.engines)
        shares = [engine.kv_used_blocks / engine.kv_total_blocks for engine in self.engines]
        busy_s = sum(engine.busy.until(now) for engine in self.engines)
        passed_s = now - self.until_s
        seen.busy.append(round((busy_s - self.busy_s) / passed_s / count, _DIGITS) if passed_s else 0.0)
        seen.kv_mean.append(round(sum(shares) / count, _DIGITS))
        seen.kv_most.append(round(max(shares), _DIGITS))
        seen.running.append(sum(engine.running for engine in self.engines))
        seen.waiting.append(sum(engine.waiting for engine in self.engines))
        self.busy_s, self.until_s = busy_s, now
