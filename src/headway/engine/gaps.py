"""Durations counted in logarithmic bins while the simulation runs, gaps between tokens above all."""

from __future__ import annotations

import cython
import numpy as np
from cython.cimports.libc.math import log

from headway.engine.law import StepLaw


class LogCounts:
    """Counts of durations (seconds) in logarithmic bins, those of `metrics.Histogram`, and their sum."""

    def __init__(self, bins: cython.int, min_s: cython.double, inv_log_growth: cython.double) -> None:
        self.counts = np.zeros(bins, dtype=np.int64)
        self.total_s = 0.0
        self.log_min = log(min_s)
        self.inv_log_growth = inv_log_growth

    def bin(self, seconds: cython.double) -> cython.int:
        """Bin of a duration; what lies outside falls into the first or the last."""
        if seconds <= 0.0:
            return 0
        at: cython.double = (log(seconds) - self.log_min) * self.inv_log_growth
        if at <= 0.0:
            return 0
        if at >= self.counts.shape[0] - 1:
            return cython.cast(cython.int, self.counts.shape[0] - 1)
        return cython.cast(cython.int, at)

    def add(self, seconds: cython.double, times: cython.longlong) -> cython.int:
        """Count a duration `times` times."""
        self.counts[self.bin(seconds)] += times
        self.total_s += seconds * times
        return 0

    def as_array(self) -> np.ndarray:
        """A copy of the counts, int64[bins]."""
        return np.array(self.counts, dtype=np.int64)


class Gaps(LogCounts):
    """Gaps between consecutive tokens that end after `since_s`.

    The sum over steps of unchanging batches is kept in integers per batch size n (steps, tokens read), so that it
    is the same to the bit whether the engine leaps or steps.
    """

    def __init__(
        self, bins: cython.int, min_s: cython.double, inv_log_growth: cython.double, max_seqs: cython.longlong
    ) -> None:
        LogCounts.__init__(self, bins, min_s, inv_log_growth)
        self.since_s = float("inf")
        self.steps = np.zeros(max_seqs + 1, dtype=np.int64)
        self.ctx = np.zeros(max_seqs + 1, dtype=np.int64)
        self.ctx_window = np.zeros(max_seqs + 1, dtype=np.int64)

    def start(self, since_s: cython.double) -> cython.int:
        """Count from this time on."""
        self.since_s = since_s
        return 0

    def add_steps(
        self, n: cython.longlong, steps: cython.longlong, ctx: cython.longlong, ctx_window: cython.longlong
    ) -> cython.int:
        """Sum up `steps` steps of n sequences whose attention read `ctx` tokens in all (bins are counted apart)."""
        self.steps[n] += steps
        self.ctx[n] += ctx
        self.ctx_window[n] += ctx_window
        return 0

    def sum_s(self, law: StepLaw) -> float:
        """Sum of all gaps counted, seconds."""
        n = np.arange(len(np.asarray(self.steps)))
        base_s = np.asarray(law.linear_s)[: len(n)] + np.asarray(law.seq_s) + np.asarray(law.decode_s)
        ctx_s = np.asarray(law.decode_ctx_s) * np.asarray(self.ctx)
        window_s = np.asarray(law.decode_window_s) * np.asarray(self.ctx_window)
        return self.total_s + float((n * (base_s * np.asarray(self.steps) + ctx_s + window_s)).sum())
