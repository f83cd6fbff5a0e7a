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
    """Binary heap of engine indices by next step time; `set` moves one engine in O(log n)."""

    def __init__(self, engines: cython.int) -> None:
        self.time_s = buffer(np.full(engines, NEVER))
        self.heap = np.arange(engines, dtype=np.int32)
        self.place = np.arange(engines, dtype=np.int32)
        self.size = engines

    def before(self, a: cython.int, b: cython.int) -> cython.bint:
        """Whether engine a steps before engine b."""
        earlier: cython.bint = self.time_s[a] < self.time_s[b]
        return earlier or (self.time_s[a] == self.time_s[b] and a < b)

    def set(self, engine: cython.Py_ssize_t, time_s: cython.double) -> cython.int:
        """Give an engine its next step time."""
        self.time_s[engine] = time_s
        at: cython.Py_ssize_t = self.place[engine]
        me: cython.int = self.heap[at]
        other: cython.int
        to: cython.Py_ssize_t
        while at > 0:
            to = (at - 1) >> 1
            other = self.heap[to]
            if not self.before(me, other):
                break
            self.heap[at] = other
            self.place[other] = cython.cast(cython.int, at)
            at = to
        while True:
            to = 2 * at + 1
            if to >= self.size:
                break
            if to + 1 < self.size and self.before(self.heap[to + 1], self.heap[to]):
                to += 1
            other = self.heap[to]
            if not self.before(other, me):
                break
            self.heap[at] = other
            self.place[other] = cython.cast(cython.int, at)
            at = to
        self.heap[at] = me
        self.place[me] = cython.cast(cython.int, at)
        return 0
