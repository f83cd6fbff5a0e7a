"""What is kept of each request: a row, or, where rows are not wanted, only what their statistics need."""

from __future__ import annotations

from typing import Any

import cython
import numpy as np

from headway.engine.gaps import LogCounts
from headway.engine.sequence import FAILED, FINISHED, REJECTED, Sequence
from headway.metrics.attainment import BATCHES

TIMES = ("arrival_s", "admitted_s", "first_token_s", "last_token_s")
ENDED = cython.declare(cython.int, FINISHED)
REFUSED = cython.declare(cython.int, REJECTED)
LOST = cython.declare(cython.int, FAILED)
COUNTS = (
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "preemptions",
    "pool",
    "replica",
    "status",
    "slo_class",
    "tenant",
)
ROWS_SUMMED_AT_ONCE = 1_000_000  # in 0.3 s


class Recorder:
    """Counts requests; keeps rows (`keep`), or histograms of the latencies of all requests after the `warmup` first.

    Of very many requests it keeps both: sums over the rows take too long for a run that was interrupted.

    `limits[c]` are the (TTFT, TPOT, E2E) limits of SLO class c in seconds, infinity where there is none; the last
    row serves all higher classes. Of `expected` requests in all, those after the warm-up are cut into batches.
    """

    def __init__(self, keep: cython.bint, expected: int, warmup: cython.longlong, limits: Any, bins: Any) -> None:
        self.keep = keep
        self.tallies = not keep or expected > ROWS_SUMMED_AT_ONCE
        self.warmup = warmup
        self.arrived = self.finished = self.rejected = self.failed = 0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.recomputed_tokens = 0
        self.last_arrival_s = self.last_end_s = 0.0
        self.capacity = expected if keep else 0
        self.id = np.zeros(self.capacity, dtype=np.int64)
        self.times = np.zeros(self.capacity * len(TIMES))
        self.counts = np.zeros(self.capacity * len(COUNTS), dtype=np.int32)
        self.limits = np.array(limits, dtype=np.float64)
        self.measured = max(0, expected - warmup)
        self.batches = BATCHES
        self.classes = np.zeros((2, len(limits), BATCHES), dtype=np.int64)
        self.ttft = LogCounts(*bins)
        self.tpot = LogCounts(*bins)
        self.e2e = LogCounts(*bins)
        self.start_s = self.end_s = 0.0
        self.at_window = np.zeros(4, dtype=np.int64)
        self.recent_s = np.zeros(1024)
        self.recent_tokens = np.zeros(1024, dtype=np.int64)
        self.recent_at = self.recent_size = 0
        self.ended = self.ended_tokens = 0

    def room(self, row: cython.longlong) -> cython.int:
        """Double the columns when a row lies beyond them."""
        if row < self.capacity:
            return 0
        more: cython.Py_ssize_t = max(self.capacity, 1024)
        self.id = np.concatenate([np.asarray(self.id), np.zeros(more, dtype=np.int64)])
        self.times = np.concatenate([np.asarray(self.times), np.zeros(more * len(TIMES))])
        self.counts = np.concatenate([np.asarray(self.counts), np.zeros(more * len(COUNTS), dtype=np.int32)])
        self.capacity += more
        return 0

    def arrive(self, seq: Sequence) -> cython.int:
        """Note a request that has arrived."""
        self.arrived += 1
        self.prompt_tokens += seq.prompt_tokens
        self.last_arrival_s = max(self.last_arrival_s, seq.arrival_s)
        if self.keep:
            self.room(seq.row)
            self.write(seq)
        if self.tallies:
            self.count_until(seq.arrival_s)
            if seq.row == self.warmup:
                self.start_s = seq.arrival_s
                self.at_window[0] = self.ended
                self.at_window[1] = self.ended_tokens
            self.end_s = seq.arrival_s
            self.at_window[2] = self.ended
            self.at_window[3] = self.ended_tokens
            if seq.row >= self.warmup:
                self.classes[0, min(seq.slo_class, self.limits.shape[0] - 1), self.batch(seq.row)] += 1
        return 0

    def end(self, seq: Sequence) -> cython.int:
        """Note how a request ended."""
        if seq.status == REFUSED:
            self.rejected += 1
        elif seq.status == LOST:
            self.failed += 1
        elif seq.status == ENDED:
            self.finished += 1
            self.last_end_s = max(self.last_end_s, seq.last_s)
            if self.tallies:
                self.remember(seq.last_s, seq.generated)
                if seq.row >= self.warmup:
                    self.tally(seq)
        self.output_tokens += seq.generated
        self.cached_tokens += seq.cached
        self.recomputed_tokens += seq.recomputed
        if self.keep:
            self.write(seq)
        return 0

    def remember(self, last_s: cython.double, tokens: cython.longlong) -> cython.int:
        """Queue a finished request until an arrival is known to come after it: a request is routed after it arrives."""
        size: cython.Py_ssize_t = self.recent_s.shape[0]
        if self.recent_size == size:
            order = (np.arange(size) + self.recent_at) % size
            self.recent_s = np.concatenate([np.asarray(self.recent_s)[order], np.zeros(size)])
            self.recent_tokens = np.concatenate([np.asarray(self.recent_tokens)[order], np.zeros(size, dtype=np.int64)])
            self.recent_at = 0
            size *= 2
        at: cython.Py_ssize_t = (self.recent_at + self.recent_size) & (size - 1)  # a power of two
        self.recent_s[at] = last_s
        self.recent_tokens[at] = tokens
        self.recent_size += 1
        return 0

    def count_until(self, time_s: cython.double) -> cython.int:
        """Count the requests, and their tokens, that had ended by a time."""
        size: cython.Py_ssize_t = self.recent_s.shape[0]
        while self.recent_size > 0 and self.recent_s[self.recent_at] <= time_s:
            self.ended += 1
            self.ended_tokens += self.recent_tokens[self.recent_at]
            self.recent_at = (self.recent_at + 1) & (size - 1)
            self.recent_size -= 1
        return 0

    def write(self, seq: Sequence) -> cython.int:
        """Fill the request's row with what is known of it."""
        at: cython.Py_ssize_t = 4 * seq.row
        self.id[seq.row] = seq.id
        self.times[at] = seq.arrival_s
        self.times[at + 1] = seq.admitted_s
        self.times[at + 2] = seq.first_s
        self.times[at + 3] = seq.last_s
        at = 9 * seq.row
        self.counts[at] = cython.cast(cython.int, seq.prompt_tokens)
        self.counts[at + 1] = cython.cast(cython.int, seq.generated)
        self.counts[at + 2] = cython.cast(cython.int, seq.cached)
        self.counts[at + 3] = seq.preemptions
        self.counts[at + 4] = cython.cast(cython.int, seq.pool)
        self.counts[at + 5] = cython.cast(cython.int, seq.replica)
        self.counts[at + 6] = seq.status
        self.counts[at + 7] = seq.slo_class
        self.counts[at + 8] = seq.tenant
        return 0

    def tally(self, seq: Sequence) -> cython.int:
        """Count a finished request's latencies, and whether it met every limit of its class."""
        row: cython.Py_ssize_t = min(seq.slo_class, self.limits.shape[0] - 1)
        ttft_s: cython.double = seq.first_s - seq.arrival_s
        e2e_s: cython.double = seq.last_s - seq.arrival_s
        met: cython.bint = ttft_s <= self.limits[row, 0] and e2e_s <= self.limits[row, 2]
        self.ttft.add(ttft_s, 1)
        self.e2e.add(e2e_s, 1)
        if seq.output_tokens > 1:
            tpot_s: cython.double = (seq.last_s - seq.first_s) / (seq.output_tokens - 1)
            self.tpot.add(tpot_s, 1)
            met = met and tpot_s <= self.limits[row, 1]
        if met:
            self.classes[1, row, self.batch(seq.row)] += 1
        return 0

    def batch(self, row: cython.longlong) -> cython.Py_ssize_t:
        """The batch of a measured request; the last for those beyond what was expected."""
        place: cython.longlong = row - self.warmup
        return place * self.batches // self.measured if place < self.measured else self.batches - 1

    def window_start(self) -> tuple[float, int, int]:
        """When the first measured request arrived; requests finished and their tokens by then."""
        return self.start_s, int(self.at_window[0]), int(self.at_window[1])

    def window_end(self) -> tuple[float, int, int]:
        """When the last request arrived; requests finished and their tokens by then."""
        return self.end_s, int(self.at_window[2]), int(self.at_window[3])

    def columns(self) -> dict[str, Any]:
        """The rows as columns by name, one entry per arrived request."""
        n = self.arrived
        times = np.asarray(self.times).reshape(-1, len(TIMES))[:n]
        counts = np.asarray(self.counts).reshape(-1, len(COUNTS))[:n]
        columns: dict[str, Any] = {"id": np.asarray(self.id)[:n]}
        columns |= {name: times[:, i].copy() for i, name in enumerate(TIMES)}
        return columns | {name: counts[:, i].copy() for i, name in enumerate(COUNTS)}

    def by_class(self) -> tuple[dict[int, int], dict[int, int]]:
        """Measured requests, and those that met every limit, by SLO class (rows kept off only)."""
        counts = np.asarray(self.classes).sum(axis=2)
        return tuple({i: int(n) for i, n in enumerate(row) if n} for row in counts)  # type: ignore[return-value]

    def by_batch(self) -> dict[int, Any]:
        """The same in each batch: SLO class to int64[2, batches]."""
        counts = np.asarray(self.classes)
        return {i: counts[:, i].copy() for i in range(counts.shape[1]) if counts[0, i].any()}
