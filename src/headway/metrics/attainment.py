"""SLO attainment: which requests met their limits, what share that is, and how sure one can be of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.metrics.records import Records
from headway.metrics.slo import Slo, Slos
from headway.specs import Spec

__all__ = ["Attainment", "SloOutcome", "attained", "count_by_class", "judge", "wilson_interval"]

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Attainment(Spec, frozen=True, kw_only=True):
    """Share of the measured requests that met every limit; None where no SLO was given or none was measured.

    `attainment_low` and `attainment_high` are the 95 % Wilson score interval.
    """

    attainment: float | None = None
    attainment_low: float | None = None
    attainment_high: float | None = None
    attained: int | None = None
    measured: int = 0
    target: float | None = None
    met: bool | None = None
    limits: Slo | None = None


class SloOutcome(Attainment, frozen=True, kw_only=True):
    """Attainment over all classes, the verdict on the ITL limit, and the attainment of each class.

    With one SLO per class, `met` says that each class met its own; `target` and `limits` are then None here.
    """

    itl_met: bool | None = None
    by_class: dict[str, Attainment] = msgspec.field(default_factory=dict)


def attained(records: Records, slo: Slos) -> NDArray[np.bool_]:
    """Return which requests finished within every limit; bool[n].

    Under a mapping, a request whose class has no SLO only has to finish.
    """
    ttft_s, tpot_s, e2e_s = records.ttft_s, records.tpot_s, records.e2e_s
    good = records.finished
    if isinstance(slo, Slo):
        return good & slo.met(ttft_s, tpot_s, e2e_s)
    for slo_class, class_slo in slo.items():
        rows = np.flatnonzero(records["slo_class"] == slo_class)
        good[rows] &= class_slo.met(ttft_s[rows], tpot_s[rows], e2e_s[rows])
    return good


def count_by_class(records: Records, rows: NDArray[np.bool_]) -> dict[int, int]:
    """Return how many of the given rows (bool[n]) each SLO class has; classes without any are left out."""
    counts = np.bincount(records["slo_class"][rows]).tolist()
    return {slo_class: count for slo_class, count in enumerate(counts) if count}


def judge(
    measured: Mapping[int, int], good: Mapping[int, int], slo: Slos | None, itl_p99_s: float | None
) -> SloOutcome:
    """Return the outcome of a run from its requests per SLO class: how many were `measured`, how many `good`.

    The ITL limit, the strictest where classes have several, is held against the 99th percentile of all gaps.
    """
    total = sum(measured.values())
    if slo is None:
        return SloOutcome(measured=total)
    classes = {
        slo_class: _attainment(count, good.get(slo_class, 0), slo_of(slo, slo_class))
        for slo_class, count in sorted(measured.items())
    }
    shared = slo if isinstance(slo, Slo) else None
    overall = msgspec.structs.asdict(_attainment(total, sum(good.values()), shared))
    itl_met = _itl_met([shared] if shared else [slo_of(slo, slo_class) for slo_class in classes], itl_p99_s)
    if total:
        verdicts = [overall["met"]] if shared else [outcome.met for outcome in classes.values()]
        overall["met"] = all(verdicts) and itl_met is not False
    told = {} if shared and len(classes) < 2 else {str(number): each for number, each in classes.items()}
    return SloOutcome(**overall, itl_met=itl_met, by_class=told)


def slo_of(slo: Slos, slo_class: int) -> Slo:
    """Return the SLO of a class: under a mapping that lacks it, one without limits."""
    return slo if isinstance(slo, Slo) else slo.get(slo_class, Slo())


def _attainment(measured: int, good: int, slo: Slo | None) -> Attainment:
    target = slo.attainment if slo else None
    if not measured:
        return Attainment(attained=0, target=target, limits=slo)
    share = good / measured
    low, high = wilson_interval(good, measured)
    return Attainment(
        attainment=share,
        attainment_low=low,
        attainment_high=high,
        attained=good,
        measured=measured,
        target=target,
        met=None if target is None else share >= target,
        limits=slo,
    )


def wilson_interval(good: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval for a share of `good` in `count` > 0 independent trials.

    Requests that queue behind each other are correlated, so the truth is less certain than this.
    Source: E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, Journal of
    the American Statistical Association 22 (1927), 209-212.
    """
    share, spread = good / count, _Z95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def _itl_met(slos: list[Slo], itl_p99_s: float | None) -> bool | None:
    limits = [slo.itl_s for slo in slos if slo.itl_s is not None]
    if not limits or itl_p99_s is None:
        return None
    return itl_p99_s <= min(limits)
