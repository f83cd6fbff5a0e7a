"""When each engine wants its next step: an indexed heap, and the one order of simultaneous events.

Events are ordered by (time, priority, serial). At one instant KV transfers end first, then requests arrive, then those
that were deferred are asked about again, then those leave whose deadline comes while they are held, then engines step,
so that a step sees everything that is there when it starts. Engines that step at the same instant go
by their index; what one of them causes at this instant finds those before it in their next step already.
"""

from __future__ import annotations

import cython
import numpy as np

from headway.engine.law import buffer

TRANSFER = 0
ARRIVAL = 1
DEFERRED = 2

NEVER = float("inf")


class EngineClock:
    """Binary heap of engines by next step time; `set` moves one engine in O(log n).

    `time_s` and `heap` are the times and the engines in the order of the heap, `place` is where in it each engine is.
    """

    def __init__(self, engines: cython.int) -> None:
        self.time_s = buffer(np.full(engines, NEVER))
        self.heap = np.arange(engines, dtype=np.int32)
        self.place = np.arange(engines, dtype=np.int32)
        self.size = engines

    def set(self, engine: cython.int, time_s: cython.double) -> cython.int:
        """Give an engine its next step time."""
        at: cython.Py_ssize_t = self.place[engine]
        to: cython.Py_ssize_t
        if self.time_s[at] == time_s:
            return 0
        while at > 0:
            to = (at - 1) >> 1
            if self.time_s[to] < time_s or (self.time_s[to] == time_s and self.heap[to] < engine):
                break
            at = self.move(to, at)
        to = 2 * at + 1
        while to < self.size:
            if to + 1 < self.size:
                if self.time_s[to + 1] == self.time_s[to]:
                    to += self.heap[to + 1] < self.heap[to]
                else:
                    to += self.time_s[to + 1] < self.time_s[to]
            if time_s < self.time_s[to] or (time_s == self.time_s[to] and engine < self.heap[to]):
                break
            at = self.move(to, at)
            to = 2 * at + 1
        self.time_s[at] = time_s
        self.heap[at] = engine
        self.place[engine] = cython.cast(cython.int, at)
        return 0

    def move(self, at: cython.Py_ssize_t, hole: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Move an engine into the hole; where the hole is now."""
        self.time_s[hole] = self.time_s[at]
        self.heap[hole] = self.heap[at]
        self.place[self.heap[at]] = cython.cast(cython.int, hole)
        return at
