"""What a plan shows of its first candidates: latency against load with intervals, and the course of the best's run."""

from __future__ import annotations

import msgspec

from headway.specs import Spec

__all__ = ["Course", "LoadCurve", "LoadPoint", "PoolCourse", "Spread"]


class Spread(Spec, frozen=True, kw_only=True):
    """One latency at one rate, seconds: its median, and the percentile that its limit is on, with the model's interval.

    `tail_s` is the quantile at the SLO's attainment, where classes have SLOs of their own the 90th percentile of all
    requests, of gaps between tokens the 99th. `tail_low_s` and `tail_high_s` are what becomes of
    it where all steps are as much shorter and longer as the cost model may be off.
    """

    p50_s: float
    tail_s: float
    tail_low_s: float
    tail_high_s: float


class LoadPoint(Spec, frozen=True, kw_only=True):
    """One rate, simulated with each of `seeds`; None where no request has that latency.

    Attainment has its 95 % interval. The ends of the model's interval are of the first seed, taken over by their ratio.
    """

    rate_req_s: float
    seeds: list[int]
    attainment: float | None
    attainment_low: float | None
    attainment_high: float | None
    ttft_s: Spread | None
    tpot_s: Spread | None
    e2e_s: Spread | None
    itl_s: Spread | None


class LoadCurve(Spec, frozen=True, kw_only=True):
    """A candidate from an idle system to beyond its goodput, rates ascending, the asked one among them.

    With the question's spare replicas down, as goodput is. `requests` of each run. `steps`: by what all steps are
    multiplied at the ends of the model's interval, which hold the truth between them in `coverage` of cases.
    """

    name: str
    requests: int
    steps: tuple[float, float]
    coverage: float
    points: list[LoadPoint]


class PoolCourse(Spec, frozen=True, kw_only=True):
    """One pool between two moments, a value for each: `busy` is the share of the time with a step in flight.

    `kv_mean` and `kv_most`: share of the KV blocks in use, over all replicas and of the fullest. `running`, `waiting`:
    requests of the whole pool. Both are read at the moment itself.
    """

    pool: str
    replicas: int
    busy: list[float] = msgspec.field(default_factory=list)
    kv_mean: list[float] = msgspec.field(default_factory=list)
    kv_most: list[float] = msgspec.field(default_factory=list)
    running: list[int] = msgspec.field(default_factory=list)
    waiting: list[int] = msgspec.field(default_factory=list)


class Course(Spec, frozen=True, kw_only=True):
    """A candidate's run at the asked rate, looked at in the moments `at_s`, from empty replicas to the last token."""

    name: str
    requests: int
    seed: int
    at_s: list[float]
    pools: list[PoolCourse]
