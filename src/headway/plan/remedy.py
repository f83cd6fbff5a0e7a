"""What would do where a rate is beyond the GPUs or the money there is, all of it simulated.

Copies of the candidate with the most goodput per GPU; or what costs less than these, where they are few enough to look.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import NamedTuple

import msgspec

from headway.cost.replica import tp_degrees
from headway.hardware import gpu
from headway.metrics import Slo
from headway.model import model
from headway.plan.bounds import Guess
from headway.plan.classes import classes_of
from headway.plan.contest import Contest
from headway.plan.question import Question
from headway.plan.screen import price_of
from headway.plan.space import enumerate_space, powered_copies, resized
from headway.plan.spare import standing, without, worst
from headway.plan.trial import Load, Trial, pooled, try_rate
from headway.sim import Deployment, Pool
from headway.sim.run import compiled
from headway.workload import Workload

__all__ = ["WIDER_GPUS", "Remedy", "copied", "larger", "remedy"]

_REQUESTS_MAX = 40_000  # a few seconds of simulation for each try; the search makes no longer runs either
_REPLICAS_MAX = 512  # routing looks at each of them
_TRIES = 6
_GROWTH = 16  # each try has a sixteenth more copies, so the last has a third more than the first, ...
_FAR = 4  # ... and four times that after one that serves less than half of what it should
WIDER_GPUS = 64  # the space of so many is looked through in some seconds
_OF_A_PRICE, _CHEAPER_TRIES = 6, 60  # the ablest by estimate of each price, the lowest price first
_LEAST_OF_GUESS = 0.6  # of a rate: what serves it is hardly estimated to serve less
_HOPE = 0.05  # who misses the target by more on one seed does not meet it on all


class Remedy(NamedTuple):
    """Copies of a deployment for the rate asked for; simulated they met the SLO for `attainment` of `requests`.

    Without an attainment none was found: `copies` missed it and all fewer that were simulated, or with no `requests`
    none was simulated, and only goodputs are behind it. `cheapest`: what costs less was looked for too. `wider`: the TP
    degrees beyond the question's GPUs that were looked at for it, on up to `WIDER_GPUS` GPUs.
    """

    deployment: Deployment
    copies: int
    attainment: float | None = None
    requests: int = 0
    cheapest: bool = False
    wider: tuple[int, ...] = ()

    @property
    def gpus(self) -> int:
        """GPUs of all copies."""
        return self.copies * self.deployment.gpus

    @property
    def usd_per_hour(self) -> float | None:
        """Dollars per hour of all copies; None without a price."""
        each = self.deployment.usd_per_hour
        return None if each is None else each * self.copies


def remedy(contest: Contest, source: Workload, most: int | None) -> Remedy | None:
    """Return what would serve the rate when all is evaluated; None where it is served, or no rate is.

    The candidate gets the requests of a long run for every copy, up to the `most` that the workload has, of a seed
    that had no part in the search.

    Raises:
        KeyboardInterrupt: while it simulated.
    """
    ranked, question, rate_req_s = contest.ranked(), contest.question, contest.rate_req_s
    if not ranked or ranked[0].meets or ranked[0].outcome.goodput.req_s <= 0:
        return None
    frugal = max(ranked, key=lambda entry: entry.goodput_per_gpu)
    unit = frugal.deployment
    first = max(_evaluated(unit, question) + 1, math.ceil(rate_req_s / frugal.outcome.goodput.req_s))
    wanted = min(contest.long * first, most or _REQUESTS_MAX, _REQUESTS_MAX)
    rehearsal, copies, missed = _Rehearsal(contest, source, wanted, (question.seed + 1,)), first, 0
    for _ in range(_TRIES):
        if copies * sum(pool.count for pool in unit.pools) > _REPLICAS_MAX:
            break
        trial = rehearsal(copied(unit, copies))
        if trial.met:
            return _cheaper(contest, source, Remedy(unit, copies, trial.attainment, wanted))
        step = max(1, copies // _GROWTH) * (_FAR if trial.attainment < question.slo.attainment / 2 else 1)
        missed, copies = copies, copies + step
    return _cheaper(contest, source, Remedy(unit, missed, requests=wanted) if missed else Remedy(unit, first))


class _Rehearsal:
    """Simulates deployments at the asked rate, the spare replicas down, on all seeds unless the first is far off."""

    def __init__(self, contest: Contest, source: Workload, requests: int, seeds: tuple[int, ...]) -> None:
        classes, part = classes_of(contest.question, source), source.densest(requests)
        self.spare, self.slo, self.requests = contest.question.spare, classes.slo, requests * len(seeds)
        self.loads = [Load(part, requests, contest.rate_req_s, seed) for seed in seeds]
        self.guess = Guess(self.loads[0].lengths, *classes.aimed).calm

    def __call__(self, deployment: Deployment) -> Trial:
        """Return what it attains."""
        trials = [self._with(left) for left in without(deployment, self.spare)]
        return trials[worst(trials)]

    def _with(self, left: Deployment) -> Trial:
        """What it attains with what is left of it."""
        tables = tuple(compiled(pool.replica) for pool in left.pools)
        first = try_rate(left, tables, self.loads[0], self.slo, 0)
        if isinstance(self.slo, Slo) and first.attainment < self.slo.attainment - _HOPE:
            return first
        return pooled([first, *(try_rate(left, tables, load, self.slo, 0) for load in self.loads[1:])], self.slo)

    def serves(self, deployment: Deployment) -> float:
        """Return the rate that it is estimated to serve."""
        return self.guess(*standing(deployment, self.spare))


def larger(question: Question) -> tuple[int, ...]:
    """Return the TP degrees that a node and the question allow, and that its GPUs are too few for."""
    spec, stock = model(question.model), question.stock
    most = max(stock.values())
    degrees = question.tp or sorted({tp for kind in stock for tp in tp_degrees(spec, gpu(kind))})
    degrees = [tp for tp in degrees if question.max_tp is None or tp <= question.max_tp]
    return tuple(tp for tp in degrees if tp > most and tp & (tp - 1) == 0)


def _cheaper(contest: Contest, source: Workload, found: Remedy) -> Remedy:
    """Return what serves the rate for less than the copies found, by the runs that confirm a plan; else these.

    It is looked for where the question's limits on GPUs, money and watts are as loose as the copies need them; where
    they need many GPUs, or do not serve it, on `WIDER_GPUS`, if that allows larger replicas than the question's GPUs
    could hold, or copies serve it not at all: few of those may do what many small ones do not, or other ratios.
    """
    question, known = contest.question, {option.name for option in contest.options}
    met = found.attainment is not None
    far = not met or found.gpus > WIDER_GPUS
    wider = tuple(tp for tp in larger(question) if tp <= (WIDER_GPUS if far else found.gpus))
    if far and not wider and (met or question.most >= WIDER_GPUS):
        return found
    rehearsal = _Rehearsal(contest, source, contest.long, contest.seeds or (contest.question.seed,))
    whole = copied(found.deployment, found.copies)
    freer, limit = _freed(question, whole, far), price_of(whole, question) if met else math.inf
    space = enumerate_space(freer, lambda replica: rehearsal.serves(_spared(Pool(replica=replica), question)))
    able = []
    for option in space.options:
        price = price_of(option.deployment, question)
        if price < limit and option.name not in known:
            guess = rehearsal.serves(option.deployment)
            if guess >= _LEAST_OF_GUESS * contest.rate_req_s:
                able.append((price, -guess, option))
    able.sort(key=lambda each: each[:2])
    first = [each for _, alike in groupby(able, key=lambda each: each[0]) for each in [*alike][:_OF_A_PRICE]]
    for _, _, option in first[:_CHEAPER_TRIES]:
        trial = rehearsal(option.deployment)
        if trial.met:
            return Remedy(option.deployment, 1, trial.attainment, rehearsal.requests, cheapest=True, wider=wider)
    return found._replace(cheapest=not far, wider=wider)


def _spared(pool: Pool, question: Question) -> Deployment:
    """One replica of a pool, and as many as may be down."""
    return Deployment(pools=(msgspec.structs.replace(pool, count=1 + question.spare),))


def _freed(question: Question, whole: Deployment, far: bool) -> Question:
    """The question with as many GPUs as a deployment has, and no limit on money and watts.

    `far`: with `WIDER_GPUS` in all, of each kind that it has.
    """
    used = whole.gpus_by_kind
    room = dict.fromkeys(used, WIDER_GPUS) if far else used
    stock = {kind: max(count, room.get(kind, 0)) for kind, count in question.stock.items()}
    kinds = question.gpu if isinstance(question.gpu, str) else stock
    most = max(question.most, WIDER_GPUS if far else whole.gpus)
    return msgspec.structs.replace(
        question, gpu=kinds, gpus=most, max_usd_per_hour=None, max_watts=None,
        watts_per_rack=None, gpus_per_rack=None,
    )  # fmt: skip


def _evaluated(deployment: Deployment, question: Question) -> int:
    """The most copies that the question's GPUs and dollars allow: fewer were evaluated, and miss the SLO."""
    used = deployment.gpus_by_kind
    most = min(question.most // deployment.gpus, *(question.stock[kind] // count for kind, count in used.items()))
    each, usd = deployment.usd_per_hour, question.max_usd_per_hour
    if each and usd is not None:
        most = min(most, int(usd / each))
    return max(1, int(min(most, powered_copies(deployment, question))))


def copied(deployment: Deployment, copies: int) -> Deployment:
    """Return the deployment with so many times the replicas in every pool."""
    return resized(deployment, [pool.count * copies for pool in deployment.pools])
