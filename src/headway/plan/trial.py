"""One simulation at one rate: does a deployment meet the SLO? `simulate` without what the search need not know."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.cost import StepTable
from headway.metrics import Histogram, Result, Slo, warmup_requests
from headway.metrics.attainment import group_interval
from headway.metrics.records import Records
from headway.plan.bounds import Lengths
from headway.sim import Deployment, simulate
from headway.sim.recorder import Recorder
from headway.sim.run import BINS, build
from headway.workload import Batch, Workload

__all__ = [
    "KEPT_BYTES",
    "STEP",
    "Load",
    "Trial",
    "ask",
    "interval",
    "judged",
    "needs_rows",
    "pooled",
    "probit",
    "try_rate",
]

STEP = 1.03  # from one rate of the grid to the next: the tolerance of a goodput

Slos = Slo | dict[int, Slo]  # one for all requests, or one for each class by its number

_EVENTS_AT_ONCE = 50_000  # some 20 ms between looks at signals
_WARMUP = 0.05
KEPT_BYTES = 64 << 20  # of requests at different rates, kept because candidates come back to the same rates
_QUEUE_SHARE = 0.10
_AMONG, _MOST_ARRIVE = 64, 0.9  # requests in a row that tell a burst from chance, and the share that has to be served
_CHANCE = 1 + NormalDist().inv_cdf(_MOST_ARRIVE) / math.sqrt(_AMONG)
_BURSTY = 1.2  # times the mean rate: arrivals at random look up to 1.1 times as fast
_PAUSE = 8.0  # mean gaps: a longer one lies between bursts
_KNOWN = 0.9  # a target whose quantile every result has


class Trial(NamedTuple):
    """What a simulation says of one rate; latencies in seconds, quantiles at the attainment target.

    `sure` is the attainment that runs of several seeds leave no doubt of; None for a single run. Where classes have
    SLOs of their own, `by_class` has number, SLO and trial of each that had requests: all of them have to be met.
    """

    met: bool
    attainment: float
    measured: int
    failed: int
    ttft_s: float
    tpot_s: float
    e2e_s: float
    itl_s: float
    keeps_up: bool
    sure: float | None = None
    by_class: tuple[tuple[int, Slo, Trial], ...] = ()

    @property
    def score(self) -> float:
        """What decides, on a scale on which it falls about evenly with the logarithm of the rate.

        Of several classes that of the `nearest`, less its target.
        """
        if self.by_class:
            _, slo, nearest = self.nearest
            return nearest.score - nearest.target(slo)
        return probit(self.attainment if self.sure is None else self.sure, self.measured)

    def target(self, slo: Slo | Mapping[int, Slo]) -> float:
        """The score that just reaches what the SLO asks."""
        return probit(slo.attainment, self.measured) if isinstance(slo, Slo) else 0.0

    @property
    def nearest(self) -> tuple[int, Slo, Trial]:
        """The class that misses its target by most, or else is the first to miss it at a higher rate."""
        return min(self.by_class, key=lambda each: (each[2].met, each[2].score - each[2].target(each[1])))


def probit(share: float, measured: int) -> float:
    """Normal quantile of a share of `measured` requests, finite at its ends."""
    edge = 0.5 / max(1, measured)
    return NormalDist().inv_cdf(min(max(share, edge), 1 - edge))


class _Kept(Workload):
    """The first requests of a workload at one rate and seed: made once, given out again and again.

    Prompts and outputs are `longer` by these factors.
    """

    def __init__(
        self, made: Workload, requests: int, rate_req_s: float, seed: int, longer: tuple[float, float]
    ) -> None:
        cut = made.at_rate(rate_req_s).cut(requests)
        super().__init__(cut.spec, cut._trace, cut._recorded, cut._parts)
        batches = cut.folded(seed)
        self._made = list(batches) if longer == (1.0, 1.0) else [batch.lengthened(*longer) for batch in batches]

    def batches(self, seed: int, rate_req_s: float | None = None, chunk: int = 0) -> Iterator[Batch]:
        """Return what was made."""
        return iter(self._made)

    @property
    def nbytes(self) -> int:
        """What is kept."""
        arrays = [getattr(batch, name) for batch in self._made for name in batch.__struct_fields__]
        return sum(array.nbytes for array in arrays if array is not None)

    def lengths(self, skipped: int) -> Lengths:
        """Tokens of all requests but the first `skipped`."""
        prompt, output, classes = (
            np.concatenate([getattr(batch, name) for batch in self._made])[skipped:]
            for name in ("prompt_tokens", "output_tokens", "slo_class")
        )
        arrival_s = np.concatenate([batch.arrival_s for batch in self._made])[skipped:]
        span_s = float(arrival_s[-1] - arrival_s[0])
        pace = 1.0
        if self.recorded and span_s > 0:
            pace = (len(arrival_s) - 1) / span_s / (self.rate_req_s or math.inf)
        peak, bursts = _bursts(arrival_s, pace * (self.rate_req_s or math.inf))
        return Lengths(prompt, output, self.block_tokens > 0, span_s, pace, peak, bursts, classes)


def _bursts(arrival_s: NDArray[np.float64], rate_req_s: float) -> tuple[float, float]:
    """At how many times a rate nine tenths of requests come at most, and the squared variation of the gaps then.

    By `_AMONG` neighbours each, of which arrivals at random look as much faster as `_CHANCE` says. Both are 1 where
    these are too few, or all at once, or where bursts are not told from chance.
    """
    spans_s = arrival_s[_AMONG:] - arrival_s[:-_AMONG]
    if len(spans_s) < _AMONG:
        return 1.0, 1.0
    within_s = float(np.quantile(spans_s, 1 - _MOST_ARRIVE)) * _CHANCE
    peak = _AMONG / within_s / rate_req_s if within_s else 1.0
    if peak < _BURSTY:
        return 1.0, 1.0
    gaps = np.diff(arrival_s) * peak * rate_req_s
    short = gaps[gaps < _PAUSE]
    return peak, float(short.var() / short.mean() ** 2) if short.any() else 1.0


class Load:
    """The question's requests at any rate of the grid ``asked * STEP**k``: always the same ones, their gaps scaled.

    `longer` multiplies their prompts and outputs.
    """

    def __init__(
        self,
        workload: Workload,
        requests: int,
        rate_req_s: float,
        seed: int,
        kept_bytes: int = KEPT_BYTES,
        longer: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.rate_req_s, self.seed, self.requests = rate_req_s, seed, requests
        self.warmup = 0.0 if workload.spec.trace is not None else _WARMUP
        self.skipped = warmup_requests(requests, self.warmup)
        self._asked = _Kept(workload, requests, rate_req_s, seed, longer)
        kept = max(1, kept_bytes // self._asked.nbytes)
        self._make = functools.lru_cache(kept)(lambda k: _Kept(workload, requests, self.rate(k), seed, longer))
        self.lengths = self._asked.lengths(self.skipped)

    def rate(self, k: float) -> float:
        """Requests per second at place k of the grid."""
        return float(self.rate_req_s * STEP**k)

    def at(self, k: int) -> Workload:
        """The requests at place k of the grid."""
        return self._make(k) if k else self._asked


def ask(
    deployment: Deployment, load: Load, slo: Slos, tables: tuple[StepTable, ...] | None = None, k: int = 0
) -> tuple[Trial, Result]:
    """Simulate at the rate asked for, or at place k of the grid, and return everything there is to say of it.

    `tables` as for `simulate`.

    Raises:
        KeyboardInterrupt: meanwhile.
    """
    result = _simulate(deployment, load, slo, k, tables)
    return judged(result, slo), result


def try_rate(deployment: Deployment, tables: tuple[StepTable, ...], load: Load, slo: Slos, k: int) -> Trial:
    """Simulate at place k of the grid; attainment is that of `simulate` to the bit.

    Where the SLO limits neither TTFT nor E2E, requests could wait for ever: then a rate is met only if the deployment
    keeps up, that is, if the quantile of TTFT stays within a tenth of the time in which the requests arrive.
    """
    slos = [slo] if isinstance(slo, Slo) else slo.values()
    if any(each.itl_s is not None for each in slos):
        return judged(_simulate(deployment, load, slo, k, tables), slo)
    rows = not isinstance(slo, Slo)  # of each class, which no histogram tells apart
    recorder = Recorder(rows, load.requests, load.skipped, [each.limits() for each in slos], BINS)
    cluster, _ = build(deployment, load.at(k), tables, recorder, load.seed)
    while cluster.advance(_EVENTS_AT_ONCE):
        pass
    if not isinstance(slo, Slo):
        kept = Records(recorder.columns())
        return _classed(kept, np.arange(len(kept)) >= load.skipped, slo, 0.0)
    measured, attained = (sum(counts.values()) for counts in recorder.by_class())
    tallies = (recorder.ttft, recorder.tpot, recorder.e2e)
    ttft_s, tpot_s, e2e_s = (_quantile(Histogram(tally.as_array()), slo) for tally in tallies)
    keeps_up = _keeps_up(slo, measured, ttft_s, recorder.last_arrival_s)
    met = attained / measured >= slo.attainment and keeps_up
    return Trial(met, attained / measured, measured, recorder.failed, ttft_s, tpot_s, e2e_s, 0.0, keeps_up)


def pooled(trials: Sequence[Trial], slo: Slos, *, surely: bool = True) -> Trial:
    """Return what trials of several seeds say together: a rate is met when the lower end of the interval is.

    Latencies are means over the seeds. Where all requests of all seeds were in time, more cannot be asked. If not
    `surely`, the attainment itself decides, as it does for a single run.
    """
    if len(trials) == 1:
        return trials[0]
    measured = sum(trial.measured for trial in trials)
    attainment, sure, _ = interval(trials)
    sure = attainment if attainment == 1 or not surely else sure
    ttft_s, tpot_s, e2e_s, itl_s = (
        float(np.mean([getattr(trial, name) for trial in trials])) for name in ("ttft_s", "tpot_s", "e2e_s", "itl_s")
    )
    keeps_up = all(trial.keeps_up for trial in trials)
    by_class: tuple[tuple[int, Slo, Trial], ...] = ()
    if not isinstance(slo, Slo):
        of = [(i, own, [each for trial in trials for j, _, each in trial.by_class if j == i]) for i, own in slo.items()]
        by_class = tuple((i, own, pooled(theirs, own, surely=surely)) for i, own, theirs in of if theirs)
        failed = sum(trial.failed for trial in trials)
        met = all(each.met for _, _, each in by_class)
        return Trial(met, attainment, measured, failed, ttft_s, tpot_s, e2e_s, itl_s, keeps_up, sure, by_class)
    met = sure >= slo.attainment and keeps_up and (slo.itl_s is None or itl_s <= slo.itl_s)
    failed = sum(trial.failed for trial in trials)
    return Trial(met, attainment, measured, failed, ttft_s, tpot_s, e2e_s, itl_s, keeps_up, sure)


def interval(trials: Sequence[Trial]) -> tuple[float, float, float]:
    """Return attainment over all requests of several seeds, and its 95 % interval by how the seeds differ."""
    measured = np.array([trial.measured for trial in trials])
    good = np.array([round(trial.attainment * trial.measured) for trial in trials])
    return float(good.sum() / measured.sum()), *group_interval(measured, good)


def _simulate(
    deployment: Deployment, load: Load, slo: Slos, k: int, tables: tuple[StepTable, ...] | None = None
) -> Result:
    rows = needs_rows(slo)
    result = simulate(deployment, load.at(k), slo=slo, seed=load.seed, records=rows, warmup=load.warmup, tables=tables)
    if "stopped" in result.provenance:
        raise KeyboardInterrupt
    return result


def needs_rows(slo: Slos) -> bool:
    """Whether a result has to have its rows to be judged by what its target's share keeps to."""
    return not isinstance(slo, Slo) or slo.attainment != _KNOWN


def judged(result: Result, slo: Slos) -> Trial:
    """Return what a result says of its rate; by class it has to have its rows.

    Its latencies are quantiles at the target; without its rows 90th percentiles, whatever the target.
    """
    if not isinstance(slo, Slo):
        assert result.records is not None
        return _classed(result.records, result.records["measured"], slo, result.itl_s.p99 or 0.0)
    ttft_s, tpot_s, e2e_s = (getattr(result, name).p90 or 0.0 for name in ("ttft_s", "tpot_s", "e2e_s"))
    rows = result.records
    if rows is not None and slo.attainment != _KNOWN:
        told = np.flatnonzero(rows["measured"] & rows.finished)
        ttft_s, tpot_s, e2e_s = (
            _kept_to(seconds[told], slo.attainment) for seconds in (rows.ttft_s, rows.tpot_s, rows.e2e_s)
        )
    keeps_up = _keeps_up(slo, result.slo.measured, ttft_s, result.window.end_s)
    outcome = result.slo
    return Trial(
        bool(outcome.met) and keeps_up,
        outcome.attainment or 0.0,
        outcome.measured,
        result.requests.failed,
        ttft_s,
        tpot_s,
        e2e_s,
        result.itl_s.p99 or 0.0,
        keeps_up,
    )


def _classed(rows: Records, measured: NDArray[np.bool_], slos: Mapping[int, Slo], itl_s: float) -> Trial:
    """What the rows of a run say of each class; latencies are quantiles at the class's target."""
    ttft_s, tpot_s, e2e_s, finished = rows.ttft_s, rows.tpot_s, rows.e2e_s, rows.finished
    last_arrival_s, classes = float(rows["arrival_s"].max()), rows["slo_class"]
    by_class, good = [], 0
    for number, slo in slos.items():
        own = measured & (classes == number)
        count, told = int(own.sum()), np.flatnonzero(own & finished)
        if not count:
            continue
        latencies = ttft_s[told], tpot_s[told], e2e_s[told]
        within = int(slo.met(*latencies).sum())
        first_s, each_s, last_s = (_kept_to(seconds, slo.attainment) for seconds in latencies)
        keeps_up = _keeps_up(slo, count, first_s, last_arrival_s)
        met = within / count >= slo.attainment and keeps_up and (slo.itl_s is None or itl_s <= slo.itl_s)
        share, failed = within / count, count - len(told)
        by_class.append((number, slo, Trial(met, share, count, failed, first_s, each_s, last_s, itl_s, keeps_up)))
        good += within
    whole = [each for _, _, each in by_class]
    total = sum(each.measured for each in whole)
    return Trial(
        all(each.met for each in whole),
        good / total,
        total,
        sum(each.failed for each in whole),
        max(each.ttft_s for each in whole),
        max(each.tpot_s for each in whole),
        max(each.e2e_s for each in whole),
        itl_s,
        all(each.keeps_up for each in whole),
        by_class=tuple(by_class),
    )


def _kept_to(seconds: NDArray[np.float64], share: float) -> float:
    """What this share of finished requests kept to."""
    known = seconds[~np.isnan(seconds)]
    place = max(0, math.ceil(share * len(known)) - 1)
    return float(np.partition(known, place)[place]) if len(known) else 0.0


def _quantile(histogram: Histogram, slo: Slo) -> float:
    return histogram.percentiles((100 * slo.attainment,))[0] or 0.0


def _keeps_up(slo: Slo, measured: int, ttft_s: float, last_arrival_s: float) -> bool:
    if slo.ttft_s is not None or slo.e2e_s is not None or measured < 2:
        return True
    return ttft_s <= _QUEUE_SHARE * last_arrival_s
