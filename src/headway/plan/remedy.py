"""How many GPUs would do where a rate is beyond those there are: copies of the candidate with most goodput per GPU."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from headway.plan.classes import classes_of
from headway.plan.contest import Contest
from headway.plan.question import Question
from headway.plan.ranking import Entry
from headway.plan.space import powered_copies, resized, without
from headway.plan.trial import Load, try_rate
from headway.sim import Deployment
from headway.sim.run import compiled
from headway.workload import Workload

__all__ = ["Remedy", "copied", "remedy"]

_REQUESTS_MAX = 40_000  # a few seconds of simulation for each try; the search makes no longer runs either
_REPLICAS_MAX = 512  # routing looks at each of them
_TRIES = 6
_GROWTH = 16  # each try has a sixteenth more copies, so the last has a third more than the first, ...
_FAR = 4  # ... and four times that after one that serves less than half of what it should


class Remedy(NamedTuple):
    """Copies of a candidate for the rate asked for; simulated they met the SLO for `attainment` of `requests`.

    Without an attainment none was found: `copies` missed it and all fewer that were simulated, or with no `requests`
    none was simulated, and only goodputs are behind it.
    """

    entry: Entry
    copies: int
    attainment: float | None = None
    requests: int = 0

    @property
    def gpus(self) -> int:
        """GPUs of all copies."""
        return self.copies * self.entry.deployment.gpus


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
    first = max(_evaluated(frugal.deployment, question) + 1, math.ceil(rate_req_s / frugal.outcome.goodput.req_s))
    replicas = sum(pool.count for pool in frugal.deployment.pools)
    wanted = min(contest.long * first, most or _REQUESTS_MAX, _REQUESTS_MAX)
    tables = tuple(compiled(pool.replica) for pool in frugal.deployment.pools)
    slo = classes_of(question, source).slo
    load, copies, missed = Load(source.densest(wanted), wanted, rate_req_s, question.seed + 1), first, 0
    for _ in range(_TRIES):
        if copies * replicas > _REPLICAS_MAX:
            break
        left = without(copied(frugal.deployment, copies), question.spare)
        trial = try_rate(left, tables, load, slo, 0)
        if trial.met:
            return Remedy(frugal, copies, trial.attainment, wanted)
        step = max(1, copies // _GROWTH) * (_FAR if trial.attainment < question.slo.attainment / 2 else 1)
        missed, copies = copies, copies + step
    return Remedy(frugal, missed, requests=wanted) if missed else Remedy(frugal, first)


def _evaluated(deployment: Deployment, question: Question) -> int:
    """The most copies that the question's GPUs and dollars allow: fewer were evaluated, and miss the SLO."""
    counts: Counter[str] = Counter()
    for pool in deployment.pools:
        counts[pool.replica.gpu] += pool.count * pool.replica.gpus
    most = min(question.most // deployment.gpus, *(question.stock[kind] // count for kind, count in counts.items()))
    each, usd = deployment.priced().usd_per_gpu_hour, question.max_usd_per_hour
    if each and usd is not None:
        most = min(most, int(usd / (each * deployment.gpus)))
    return max(1, int(min(most, powered_copies(deployment, question))))


def copied(deployment: Deployment, copies: int) -> Deployment:
    """Return the deployment with so many times the replicas in every pool."""
    return resized(deployment, [pool.count * copies for pool in deployment.pools])
