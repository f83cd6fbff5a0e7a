"""Turns a workload's batches into sequences, one at a time, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cython
import numpy as np

from headway.engine.law import buffer
from headway.engine.sequence import HashChains, Sequence

NEVER = cython.declare(cython.double, float("inf"))


def column(values: Any, kind: Any) -> Any:
    """A column of a batch to index: as it is, where it has the right kind, when compiled; a list when interpreted."""
    array = np.ascontiguousarray(values, dtype=kind)
    return array if cython.compiled else array.tolist()


class Arrivals:
    """The stream of requests; `next_s` is when the next one comes to be routed, `exhausted` when there is none left.

    A request arrives when its client sends it, and comes to be routed `intake_s` later. The users of a closed loop send
    their next one `intake_s` before it is due. `menus`: the models that may serve a request, by SLO class; the last
    is that of all higher classes.
    """

    def __init__(
        self, batches: Iterator[Any], intake_s: cython.double = 0.0, menus: tuple[tuple[str, ...], ...] = ((),)
    ) -> None:
        self.batches = batches
        self.menus = menus
        self.intake_s = intake_s
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
            self.id = column(batch.id, np.int64)
            self.arrival_s = column(batch.arrival_s, np.float64)
            self.prompt_tokens = column(batch.prompt_tokens, np.int64)
            self.output_tokens = column(batch.output_tokens, np.int64)
            self.predicted = column(batch.predicted_output_tokens, np.float64)
            self.priority = column(batch.priority, np.int32)
            self.deadline_s = column(batch.deadline_s, np.float64)
            self.slo_class = column(batch.slo_class, np.int32)
            self.tenant = column(batch.tenant, np.int32)
            self.session = column(batch.session, np.int64)
            self.with_chains = batch.hash_offsets is not None
            if self.with_chains:
                counts = np.diff(batch.hash_offsets) if batch.hash_counts is None else batch.hash_counts
                self.offsets = column(batch.hash_offsets, np.int64)
                self.chained = column(counts, np.int64)
                self.chains = HashChains(buffer(batch.hashes.astype(np.int64, copy=False)))
        self.next_s = self.arrival_s[self.at] + self.intake_s
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
        seq.models = self.menus[min(seq.slo_class, len(self.menus) - 1)]
        seq.row = self.taken
        if self.with_chains:
            seq.chains = self.chains
            seq.hash_start = self.offsets[i]
            seq.hash_count = self.chained[i]
        self.taken += 1
        self.at += 1
        if self.at == self.size:
            self.refill()
        else:
            self.next_s = self.arrival_s[self.at] + self.intake_s
        return seq
