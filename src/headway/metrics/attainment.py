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

__all__ = [
    "BATCHES",
    "T95",
    "Attainment",
    "SloOutcome",
    "attained",
    "count_by_batch",
    "count_by_class",
    "group_interval",
    "judge",
    "wilson_interval",
]

BATCHES = 10  # of M/M/1 at load 0.9, 32,000 requests: 90 % of intervals cover the truth, with 20 batches 87 %


_BATCHED_FROM = 200  # requests; with fewer, batches of under ten say little of their spread
_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
# The same of Student's t with 1 to 9 degrees of freedom (R. A. Fisher and F. Yates, *Statistical Tables*, table III).
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069,
)  # fmt: skip

Ints = NDArray[np.int64]


class Attainment(Spec, frozen=True, kw_only=True):
    """Share of the measured requests that met every limit; None where no SLO was given or none was measured.

    `attainment_low` and `attainment_high` are its 95 % interval, by `group_interval` over `BATCHES` batches of
    consecutive requests; below 200 measured requests the score interval, which takes them as independent.
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


def count_by_batch(records: Records, measured: NDArray[np.bool_], good: NDArray[np.bool_]) -> dict[int, Ints]:
    """Return, by SLO class, the measured requests of each batch and the good ones of these; int64[2, BATCHES].

    Measured request i of n, in order of arrival and over all classes, is in batch ``i * BATCHES // n``.
    """
    rows = np.flatnonzero(measured)
    rows = rows[np.argsort(records["arrival_s"][rows], kind="stable")]
    batch = np.arange(len(rows)) * BATCHES // max(1, len(rows))
    classes, fine = records["slo_class"][rows], good[rows]
    counts = {}
    for slo_class in np.unique(classes).tolist():
        own = classes == slo_class
        counts[slo_class] = np.stack([np.bincount(batch[kept], minlength=BATCHES) for kept in (own, own & fine)])
    return counts


def judge(
    measured: Mapping[int, int],
    good: Mapping[int, int],
    slo: Slos | None,
    itl_p99_s: float | None,
    batches: Mapping[int, Ints] | None = None,
) -> SloOutcome:
    """Return the outcome of a run from its requests per SLO class: how many were `measured`, how many `good`.

    `batches` has both by batch, as `count_by_batch` returns them; without, intervals take requests as independent.
    The ITL limit, the strictest where classes have several, is held against the 99th percentile of all gaps.
    """
    total = sum(measured.values())
    if slo is None:
        return SloOutcome(measured=total)
    batches = batches or {}
    whole = sum(batches.values(), np.zeros((2, BATCHES), dtype=np.int64))
    classes = {
        slo_class: _attainment(count, good.get(slo_class, 0), slo_of(slo, slo_class), batches.get(slo_class))
        for slo_class, count in sorted(measured.items())
    }
    shared = slo if isinstance(slo, Slo) else None
    overall = msgspec.structs.asdict(_attainment(total, sum(good.values()), shared, whole))
    itl_met = _itl_met([shared] if shared else [slo_of(slo, slo_class) for slo_class in classes], itl_p99_s)
    if total:
        verdicts = [overall["met"]] if shared else [outcome.met for outcome in classes.values()]
        overall["met"] = all(verdicts) and itl_met is not False
    told = {} if shared and len(classes) < 2 else {str(number): each for number, each in classes.items()}
    return SloOutcome(**overall, itl_met=itl_met, by_class=told)


def slo_of(slo: Slos, slo_class: int) -> Slo:
    """Return the SLO of a class: under a mapping that lacks it, one without limits."""
    return slo if isinstance(slo, Slo) else slo.get(slo_class, Slo())


def _attainment(measured: int, good: int, slo: Slo | None, batches: Ints | None) -> Attainment:
    target = slo.attainment if slo else None
    if not measured:
        return Attainment(attained=0, target=target, limits=slo)
    share = good / measured
    low, high = wilson_interval(good, measured)
    if batches is not None and measured >= _BATCHED_FROM:
        low, high = group_interval(*batches)
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

    Source: E. B. Wilson, *Probable inference, the law of succession, and statistical inference*, Journal of
    the American Statistical Association 22 (1927), 209-212.
    """
    share, spread = good / count, _Z95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def group_interval(measured: Ints, good: Ints) -> tuple[float, float]:
    """Return the 95 % interval for the share of good requests, from how much groups of them differ.

    Requests that queue behind each other share their fate; groups of many, batches of consecutive ones or runs of other
    seeds, hardly do. Never narrower than the score interval, which is returned where there is but one group.

    Args:
        measured: requests in each of up to 24 groups; empty groups are left out.
        good: of these; both int64[groups], `measured` with at least one request.

    Source: batch means with Student's t (A. M. Law, *Simulation Modeling and Analysis*, section 9.5.3), groups of
    unequal size by the ratio estimator (W. G. Cochran, *Sampling Techniques*, chapter 6).
    """
    good, measured = good[measured > 0], measured[measured > 0]
    total, groups = int(measured.sum()), len(measured)
    share = float(good.sum() / total)
    low, high = wilson_interval(int(good.sum()), total)
    if groups < 2:
        return low, high
    spread = float(((good - share * measured) ** 2).sum()) * groups / (groups - 1)
    half = T95[groups - 2] * math.sqrt(spread) / total
    return max(0.0, min(low, share - half)), min(1.0, max(high, share + half))


def _itl_met(slos: list[Slo], itl_p99_s: float | None) -> bool | None:
    limits = [slo.itl_s for slo in slos if slo.itl_s is not None]
    if not limits or itl_p99_s is None:
        return None
    return itl_p99_s <= min(limits)
