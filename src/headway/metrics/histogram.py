"""Durations counted in log-spaced bins: memory independent of their number, error known in advance."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Histogram"]

_MIN_S, _MAX_S, _GROWTH = 1e-6, 1e6, 1.01
_LOG_GROWTH = math.log(_GROWTH)


class Histogram:
    """Counts of durations in bins that grow by 1 %, from a microsecond to a million seconds, and their sum.

    A duration of `x` seconds falls into bin ``int(log(x / MIN_S) * INV_LOG_GROWTH)``, clamped to ``[0, BINS
    - 1]``; whoever fills `counts` and `total` directly, as the compiled core does, uses these constants. A
    bin is read back at its geometric middle, so what lies between MIN_S and MAX_S comes back within 0.5 %;
    what is shorter, zero included, reads as about a microsecond.

    counts: int64[BINS], durations per bin.  total: exact sum of all durations, seconds.
    """

    MIN_S: ClassVar[float] = _MIN_S
    MAX_S: ClassVar[float] = _MAX_S
    GROWTH: ClassVar[float] = _GROWTH
    INV_LOG_GROWTH: ClassVar[float] = 1.0 / _LOG_GROWTH
    BINS: ClassVar[int] = math.ceil(math.log(_MAX_S / _MIN_S) / _LOG_GROWTH)

    __slots__ = ("counts", "total")

    def __init__(self, counts: NDArray[np.int64] | None = None, total: float = 0.0) -> None:
        if counts is not None and (counts.shape != (self.BINS,) or counts.dtype != np.int64):
            raise ValueError(f"counts must be int64[{self.BINS}], came {counts.dtype}{list(counts.shape)}")
        self.counts = np.zeros(self.BINS, dtype=np.int64) if counts is None else counts
        self.total = total

    def add(self, seconds: ArrayLike, times: ArrayLike = 1) -> None:
        """Count every duration `times` times (an array of the same length, or one number for all).

        Raises:
            ValueError: a duration that is NaN, infinite or negative.
        """
        values = np.atleast_1d(np.asarray(seconds, dtype=np.float64))
        weights = np.broadcast_to(np.asarray(times, dtype=np.int64), values.shape)
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError("a histogram counts finite durations of at least zero seconds")
        bins = (np.log(np.maximum(values, _MIN_S) / _MIN_S) * self.INV_LOG_GROWTH).astype(np.int64)
        np.add.at(self.counts, np.minimum(bins, self.BINS - 1), weights)
        self.total += float((values * weights).sum())

    def merge(self, other: Histogram) -> None:
        """Count everything `other` counted as well."""
        self.counts += other.counts
        self.total += other.total

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float | None:
        """Exact mean in seconds; None when nothing was counted."""
        return self.total / self.count if self.count else None

    def percentiles(self, percents: tuple[float, ...]) -> list[float | None]:
        """Return percentiles in seconds, linear between order statistics as numpy's; None when empty.

        Each order statistic is within 0.5 %, hence so is the interpolation between two of them.
        """
        seen = np.cumsum(self.counts)
        count = int(seen[-1])
        if not count:
            return [None] * len(percents)
        ranks = [percent / 100 * (count - 1) for percent in percents]
        around = [edge(rank) for edge in (math.floor, math.ceil) for rank in ranks]
        edges_s = _middle(seen.searchsorted(around, side="right")).tolist()
        both = zip(ranks, edges_s[: len(ranks)], edges_s[len(ranks) :], strict=True)
        return [min(low_s + (high_s - low_s) * (rank - math.floor(rank)), high_s) for rank, low_s, high_s in both]


def _middle(bins: NDArray[np.intp]) -> NDArray[np.float64]:
    return np.asarray(_MIN_S * np.exp((bins + 0.5) * _LOG_GROWTH))
