"""Turns a workload's batches into sequences, one at a time, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cython
import numpy as np

from headway.engine.sequence import HashChains, Sequence

NEVER = cython.declare(cython.double, float("inf"))


class Arrivals:
    """The stream of requests; `next_s` is when the next one arrives, `exhausted` when there is none left."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self.at = 0
        self.size = 0
        self.taken = 0
        self.exhausted = False
        self.next_s = NEVER
        self.with_chains = False
        self.chains: HashChains | None = None
        self.refill()

    def refill(self) -> cython.int:
        """Open the next batch that holds a request."""
        while self.at == self.size:
            batch = next(self.batches, None)
            if batch is None:
                self.exhausted = True
                self.next_s = NEVER
                return 0
            self.at = 0
            self.size = len(batch)
            self.id = np.ascontiguousarray(batch.id, dtype=np.int64)
            self.arrival_s = np.ascontiguousarray(batch.arrival_s, dtype=np.float64)
            self.prompt_tokens = np.ascontiguousarray(batch.prompt_tokens, dtype=np.int64)
            self.output_tokens = np.ascontiguousarray(batch.output_tokens, dtype=np.int64)
            self.predicted = np.ascontiguousarray(batch.predicted_output_tokens, dtype=np.float64)
            self.priority = np.ascontiguousarray(batch.priority, dtype=np.int32)
            self.deadline_s = np.ascontiguousarray(batch.deadline_s, dtype=np.float64)
            self.slo_class = np.ascontiguousarray(batch.slo_class, dtype=np.int32)
            self.tenant = np.ascontiguousarray(batch.tenant, dtype=np.int32)
            self.session = np.ascontiguousarray(batch.session, dtype=np.int64)
            self.with_chains = batch.hash_offsets is not None
            if self.with_chains:
                self.offsets = np.ascontiguousarray(batch.hash_offsets, dtype=np.int64)
                self.chains = HashChains(np.ascontiguousarray(batch.hashes, dtype=np.int64))
        self.next_s = self.arrival_s[self.at]
        return 0

    def take(self) -> Sequence:
        """Hand out the next request."""
        i: cython.Py_ssize_t = self.at
        seq: Sequence = Sequence.__new__(Sequence)
        seq.fill(self.id[i], self.arrival_s[i], self.prompt_tokens[i], self.output_tokens[i])
        seq.predicted_output_tokens = self.predicted[i]
        seq.priority = self.priority[i]
        seq.deadline_s = self.deadline_s[i]
        seq.slo_class = self.slo_class[i]
        seq.tenant = self.tenant[i]
        seq.session = self.session[i]
        seq.row = self.taken
        if self.with_chains:
            seq.chains = self.chains
            seq.hash_start = self.offsets[i]
            seq.hash_count = self.offsets[i + 1] - self.offsets[i]
        self.taken += 1
        self.at += 1
        if self.at == self.size:
            self.refill()
        else:
            self.next_s = self.arrival_s[self.at]
        return seq
