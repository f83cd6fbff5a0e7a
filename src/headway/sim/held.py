"""Requests that wait at the router, at no replica yet: one line per pool, in the order that the deployment serves."""

from __future__ import annotations

import heapq

import cython

from headway.engine.queue import WaitingQueue
from headway.engine.sequence import Sequence
from headway.policies.base import Policy

NEVER = cython.declare(cython.double, float("inf"))


class HeldLines:
    """The lines, and whose deadline comes next: at `next_s`, infinity when nobody who waits has one."""

    def __init__(self, pools: cython.Py_ssize_t, order: Policy | None) -> None:
        self.lines = [WaitingQueue(order) for _ in range(pools)]
        self.pool_of: dict[int, int] = {}
        self.deadlines: list[tuple[float, int, Sequence]] = []
        self.serial = 0
        self.size = 0
        self.next_s = NEVER

    def line(self, pool: cython.Py_ssize_t) -> WaitingQueue:
        """The line of a pool."""
        line: WaitingQueue = self.lines[pool]
        return line

    def join(self, seq: Sequence, pool: cython.Py_ssize_t) -> cython.int:
        """Let a request wait for a pool."""
        self.line(pool).push(seq)
        self.pool_of[seq.row] = pool
        self.size += 1
        if seq.deadline_s < NEVER:
            self.serial += 1
            heapq.heappush(self.deadlines, (seq.deadline_s, self.serial, seq))
        return self.look_ahead()

    def leave(self, seq: Sequence) -> cython.Py_ssize_t:
        """Take a request out; the pool that it waited for."""
        pool: cython.Py_ssize_t = self.pool_of.pop(seq.row)
        self.line(pool).remove(seq)
        self.size -= 1
        self.look_ahead()
        return pool

    def leave_first(self, seq: Sequence, pool: cython.Py_ssize_t) -> cython.int:
        """Take out the request that the pool's line has just shown as its next."""
        del self.pool_of[seq.row]
        self.line(pool).drop_head()
        self.size -= 1
        return self.look_ahead()

    def most_urgent(self) -> Sequence:
        """The request whose deadline comes at `next_s`."""
        seq: Sequence = self.deadlines[0][2]
        return seq

    def look_ahead(self) -> cython.int:
        """Forget the deadlines of those who have left."""
        while self.deadlines and self.most_urgent().row not in self.pool_of:
            heapq.heappop(self.deadlines)
        self.next_s = self.deadlines[0][0] if self.deadlines else NEVER
        return 0
