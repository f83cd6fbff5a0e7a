"""What an engine has computed, in exact integers, so that leaping or stepping through it gives the same sums."""

from __future__ import annotations

from typing import Any

import cython
import numpy as np

from headway.engine.lane import Lane


class WorkDone:
    """Counts by the sizes a step law is indexed with; energy is a sum of products with the law's joules.

    `steps_by_*[n]`: steps with n tokens, sequences, decoding sequences. `prefill_by_tokens[n]`: prompt tokens in
    steps of n tokens. `ctx_by_decodes[n]`, `window_by_decodes[n]`: tokens read by attention in steps of n decodes.
    """

    def __init__(self, max_tokens: cython.longlong, max_seqs: cython.longlong) -> None:
        self.steps = self.chunks = self.area = self.window_area = 0
        self.steps_by_tokens = np.zeros(max_tokens + 1, dtype=np.int64)
        self.prefill_by_tokens = np.zeros(max_tokens + 1, dtype=np.int64)
        self.steps_by_seqs = np.zeros(max_seqs + 1, dtype=np.int64)
        self.steps_by_decodes = np.zeros(max_seqs + 1, dtype=np.int64)
        self.ctx_by_decodes = np.zeros(max_seqs + 1, dtype=np.int64)
        self.window_by_decodes = np.zeros(max_seqs + 1, dtype=np.int64)

    def count(self, lane: Lane, n: cython.longlong, steps: cython.longlong) -> cython.int:
        """Count `steps` steps, with n decoding sequences, of a lane that is about to make them: all it has, or 0."""
        tokens: cython.longlong = n + lane.chunk_tokens
        pairs: cython.longlong = steps * (steps - 1) // 2
        self.steps += steps
        self.steps_by_tokens[tokens] += steps
        self.prefill_by_tokens[tokens] += lane.chunk_tokens
        self.steps_by_seqs[n + lane.chunk_count] += steps
        self.steps_by_decodes[n] += steps
        self.chunks += lane.chunk_count
        self.area += lane.chunk_area
        self.window_area += lane.chunk_window_area
        if n > 0:
            self.ctx_by_decodes[n] += steps * lane.ctx + n * pairs
            self.window_by_decodes[n] += steps * lane.ctx_window + lane.n_window * pairs
        return 0

    def as_dict(self) -> dict[str, Any]:
        """The counts as numbers and int64 arrays."""
        return {
            "steps": self.steps,
            "chunks": self.chunks,
            "area": self.area,
            "window_area": self.window_area,
            "steps_by_tokens": np.array(self.steps_by_tokens),
            "prefill_by_tokens": np.array(self.prefill_by_tokens),
            "steps_by_seqs": np.array(self.steps_by_seqs),
            "steps_by_decodes": np.array(self.steps_by_decodes),
            "ctx_by_decodes": np.array(self.ctx_by_decodes),
            "window_by_decodes": np.array(self.window_by_decodes),
        }


class BusyTime:
    """Seconds with a step in flight."""

    def __init__(self) -> None:
        self.since_s = -1.0
        self.total_s = 0.0

    def note(self, busy: cython.bint, now: cython.double) -> cython.int:
        """Note whether a step is in flight from `now` on."""
        if busy and self.since_s < 0.0:
            self.since_s = now
        elif not busy and self.since_s >= 0.0:
            self.total_s += now - self.since_s
            self.since_s = -1.0
        return 0

    def until(self, now: cython.double) -> cython.double:
        """Seconds so far."""
        return self.total_s + (now - self.since_s if self.since_s >= 0.0 else 0.0)
