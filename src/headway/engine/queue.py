"""The waiting line of one replica: first come first served, or by the keys of an order policy."""

from __future__ import annotations

import heapq
from typing import Any

import cython
import numpy as np

from headway.engine.sequence import Line, Sequence
from headway.errors import BadInput
from headway.policies.base import Policy
from headway.state.views import QueueView


class WaitingQueue:
    """Without a policy a line. With one, a heap of (key, serial): requests are keyed in one call per admission
    round, newcomers only, or all of them when the policy re-keys on "step".
    """

    def __init__(self, policy: Policy | None) -> None:
        self.fifo = Line()
        self.keyed: list[tuple[float, int, Sequence]] = []
        self.fresh: list[tuple[int, Sequence]] = []
        self.policy: Any = policy
        self.ordered = policy is not None
        self.rekeys = policy is not None and "step" in policy.rekey_on
        self.serial = 0
        self.size = 0

    def push(self, seq: Sequence) -> cython.int:
        """Add an arriving request at the end."""
        self.size += 1
        self.serial += 1
        if self.ordered:
            self.fresh.append((self.serial, seq))
        else:
            self.fifo.append(seq)
        return 0

    def push_from(self, news: Line, before_s: cython.double) -> cython.int:
        """Add what is in a line and came during a step that ended before a time."""
        seq: Sequence
        while news.size > 0:
            seq = news.first()
            if seq.ready_s >= before_s:
                return 0
            self.push(news.take())
        return 0

    def push_back_in(self, seq: Sequence) -> cython.int:
        """Put a preempted request back: at the head, or where its key says, before its equals."""
        self.size += 1
        if self.ordered:
            self.fresh.append((-seq.serial, seq))
        else:
            self.fifo.append_first(seq)
        return 0

    def peek(self, now: cython.double) -> Sequence:
        """Show the request to be served next; the queue must not be empty."""
        if not self.ordered:
            return self.fifo.first()
        if self.fresh or self.rekeys:
            self.key_fresh(now)
        seq: Sequence = self.keyed[0][2]
        return seq

    def drop_head(self) -> cython.int:
        """Remove the request that `peek` showed."""
        self.size -= 1
        if self.ordered:
            heapq.heappop(self.keyed)
        else:
            self.fifo.take()
        return 0

    def remove(self, seq: Sequence) -> cython.bint:
        """Take a request out from wherever it stands, in O(n); whether it was there."""
        if self.ordered:
            keyed = [entry for entry in self.keyed if entry[2] is not seq]
            fresh = [entry for entry in self.fresh if entry[1] is not seq]
            left = len(keyed) + len(fresh) < self.size
            heapq.heapify(keyed)
            self.keyed, self.fresh = keyed, fresh
        else:
            left = self.fifo.remove(seq)
        if left:
            self.size -= 1
        return left

    def key_fresh(self, now: cython.double) -> cython.int:
        """Ask the policy for the missing keys."""
        if self.rekeys:
            self.fresh.extend((serial, seq) for _, serial, seq in self.keyed)
            self.keyed.clear()
        answer = self.policy.order(QueueView(now, [seq for _, seq in self.fresh]))
        try:
            keys = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError):
            keys = np.empty(0)
        if keys.shape != (len(self.fresh),) or np.isnan(keys).any():
            raise BadInput(
                f"order policy {type(self.policy).__name__} answered {answer!r} for {len(self.fresh)} waiting "
                "requests: one number per request is expected, none of them NaN"
            )
        for key, (serial, seq) in zip(keys.tolist(), self.fresh, strict=True):
            heapq.heappush(self.keyed, (key, serial, seq))
        self.fresh.clear()
        return 0
