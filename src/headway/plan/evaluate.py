"""One candidate: screened, its goodput searched, and simulated at the rate asked for."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from headway.metrics import Result, Slo
from headway.plan.answer import Binding
from headway.plan.bounds import Floats, Reach, guess_rate, reach
from headway.plan.question import Question
from headway.plan.search import Bracket, search
from headway.plan.trial import STEP, Load, Trial, ask, probit, try_rate
from headway.sim import Deployment
from headway.sim.run import compiled
from headway.workload import Workload

__all__ = ["Asked", "Evaluator", "Goodput", "Job", "Outcome"]

_ALONE = 0.05  # mean requests in flight at the lowest rate tried


class Job(NamedTuple):
    """A deployment to evaluate by runs of `requests`, near a goodput (None: unknown) or only `alone`.

    `alone` asks what latencies it reaches when requests hardly meet.
    """

    place: int
    deployment: Deployment
    requests: int
    near_req_s: float | None = None
    alone: bool = False


class Asked(NamedTuple):
    """At the rate asked for."""

    attainment: float | None
    attainment_low: float | None
    attainment_high: float | None
    ttft_p90_s: float | None
    tpot_p90_s: float | None
    usd_per_million_output_tokens: float | None
    joules_per_output_token: float | None
    meets: bool


class Goodput(NamedTuple):
    """In requests per second: interpolated, highest met and lowest missed; 0, 0 and None when no rate is met."""

    req_s: float = 0.0
    low_req_s: float = 0.0
    high_req_s: float | None = None


class Outcome(NamedTuple):
    """What was found out about a deployment, by runs of `requests`.

    `binding` breaks first: it comes to `worst_s` against the SLO's `limit_s` (both 0 where it is no latency). Without
    `asked` a bound proves that no rate meets the SLO; `worst_s` is that bound while there are no simulations.
    """

    goodput: Goodput
    asked: Asked | None
    binding: Binding
    worst_s: float
    limit_s: float
    requests: int
    simulations: int


class Evaluator:
    """Answers for one deployment after another; the same answer in whatever process and order."""

    def __init__(self, question: Question, workload: Workload, rate_req_s: float) -> None:
        self.question, self.workload, self.rate_req_s = question, workload, rate_req_s
        self.loads: dict[int, Load] = {}

    def load(self, requests: int) -> Load:
        """The requests of runs of that length."""
        if requests not in self.loads:
            self.loads[requests] = Load(self.workload, requests, self.rate_req_s, self.question.seed)
        return self.loads[requests]

    def __call__(self, job: Job) -> Outcome:
        """Return the outcome of a deployment whose replicas fit.

        Raises:
            KeyboardInterrupt: while it simulated.
        """
        deployment, slo, load = job.deployment, self.question.slo, self.load(job.requests)
        tables = tuple(compiled(pool.replica) for pool in deployment.pools)
        lengths = load.lengths
        hope = reach(tables, lengths, slo)
        if job.alone:
            missed = try_rate(deployment, tables, load, slo, _idle_place(hope, load))
            return Outcome(Goodput(), None, *_binding(missed, slo), job.requests, 1)
        if hope.attainment < slo.attainment:
            return _hopeless(hope, slo, job.requests)
        asked, result = ask(deployment, load, slo)
        trials = {0: asked}

        def trial(k: int) -> Trial:
            if k not in trials:
                trials[k] = try_rate(deployment, tables, load, slo, k)
            return trials[k]

        near = job.near_req_s or guess_rate(deployment, tables, lengths.sample(), slo)
        start = _place(near, load)
        found = search(trial, start, _idle_place(hope, load), probit(slo.attainment, asked.measured))
        binding, worst_s, limit_s = _binding(found.missed, slo)
        return Outcome(
            _goodput(found, load), _fields(result, asked.met), binding, worst_s, limit_s, job.requests, len(trials)
        )


def _place(rate_req_s: float, load: Load) -> float:
    return math.log(rate_req_s / load.rate_req_s) / math.log(STEP)


def _idle_place(hope: Reach, load: Load) -> int:
    """The place of the grid's lowest rate, below the asked one, at which requests hardly ever meet."""
    return min(-1, math.floor(_place(_ALONE / float(hope.e2e_s.mean()), load)))


def _goodput(found: Bracket, load: Load) -> Goodput:
    if found.low is None or found.at is None:
        return Goodput()
    return Goodput(load.rate(found.at), load.rate(found.low), load.rate(found.high))


def _fields(result: Result, meets: bool) -> Asked:
    slo = result.slo
    return Asked(
        attainment=slo.attainment,
        attainment_low=slo.attainment_low,
        attainment_high=slo.attainment_high,
        ttft_p90_s=result.ttft_s.p90,
        tpot_p90_s=result.tpot_s.p90,
        usd_per_million_output_tokens=result.cost.usd_per_million_output_tokens,
        joules_per_output_token=result.energy.joules_per_output_token,
        meets=meets,
    )


def _hopeless(hope: Reach, slo: Slo, requests: int) -> Outcome:
    """The latency that exceeds its limit the most even at best, by the quantile that would have to be within it."""
    best = (_quantile(hope.ttft_s, slo), hope.tpot_s, _quantile(hope.e2e_s, slo), 0.0)
    return Outcome(Goodput(), None, *_worst(best, slo), requests, 0)


def _quantile(seconds: Floats, slo: Slo) -> float:
    return float(np.quantile(seconds, slo.attainment))


def _binding(missed: Trial, slo: Slo) -> tuple[Binding, float, float]:
    """What a missed trial misses: requests too large for the KV cache, a limit, or only the pace."""
    if missed.failed > (1 - slo.attainment) * missed.measured:
        return "memory", 0.0, 0.0
    if not missed.keeps_up and missed.attainment >= slo.attainment:
        return "rate", 0.0, 0.0
    return _worst((missed.ttft_s, missed.tpot_s, missed.e2e_s, missed.itl_s), slo)


def _worst(seconds: tuple[float, float, float, float], slo: Slo) -> tuple[Binding, float, float]:
    """The limit that is exceeded the most, or come nearest to, of (TTFT, TPOT, E2E, ITL)."""
    names: tuple[Binding, ...] = ("ttft", "tpot", "e2e", "itl")
    limits = (*slo.limits(), math.inf if slo.itl_s is None else slo.itl_s)
    worst = max(range(len(names)), key=lambda i: seconds[i] / limits[i])
    return names[worst], seconds[worst], limits[worst]
