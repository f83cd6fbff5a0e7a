"""Hedging: a stream whose first byte is late is sent to a second replica, too, and the first of the two to answer wins.

The proxy keeps the time and cancels the loser; here is decided who may be hedged and when, and both replicas have the
request in their books until one of them has it no more. No caller pays for it: to its tenant it is one request.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from statistics import NormalDist

from headway.gateway.books import Entry, ReplicaBook
from headway.gateway.predict import SIGMA_LEAST, Pace
from headway.gateway.spec import Hedging

SAVED_MAX = 100.0  # hedges that a calm time saves up for a bad one
TOLD_WITHIN_S = 1.0  # the proxy tells of a hedge at most so long after it
PLACED = ("at", "cached", "due_s", "paced_at", "prefill_s", "stage", "waiting")  # of an entry: what its place makes


class Hedges:
    """Promises hedges within the budget, and keeps the second places of those that are hedged.

    Each request passed on saves up the budget's share of a hedge. One is promised only where that much is saved
    beyond all open promises, so that hedges never exceed the budget's share of all requests so far.
    """

    def __init__(self, spec: Hedging | None, books: list[ReplicaBook]) -> None:
        self.spec = spec
        self.books = books
        self.saved = 0.0
        self.promised: OrderedDict[str, float] = OrderedDict()  # by id, when nothing more is to be heard of it
        self.copies: dict[str, Entry] = {}
        self.spread = 0.0 if spec is None or spec.quantile is None else NormalDist().inv_cdf(spec.quantile)

    def wait_s(self, now: float, entry: Entry, first: ReplicaBook, spare: ReplicaBook | None) -> float | None:
        """Promise, or not: the seconds after which a request that is passed on now may be hedged; None for never."""
        if self.spec is None:
            return None
        self.saved = min(self.saved + self.spec.budget, SAVED_MAX)
        while self.promised and next(iter(self.promised.values())) < now:
            self.promised.popitem(last=False)
        if spare is None or not spare.room or first.role != "mixed" or not entry.facts.streams:
            return None
        wait_s = self._late_s(first.pace, entry.due_s - entry.sent_s)
        if self.saved - len(self.promised) < 1 or now + wait_s >= entry.view.deadline_s:
            return None
        until_s = now + wait_s + TOLD_WITHIN_S
        if self.promised:  # in order, so that what is over stands in front
            until_s = max(until_s, next(reversed(self.promised.values())))
        self.promised[entry.facts.id], entry.hedged, entry.hedge_at_s = until_s, False, now + wait_s
        return wait_s

    def _late_s(self, pace: Pace, predicted_s: float) -> float:
        assert self.spec is not None
        if self.spec.after_s is not None:
            return self.spec.after_s
        if not pace.known:
            return math.inf
        return predicted_s * math.exp(self.spread * max(math.sqrt(pace.first.variance), SIGMA_LEAST))

    def begin(self, now: float, entry: Entry, replica: int) -> bool:
        """The proxy has sent a request to this host: whether that is a hedge. It is none where the first has failed.

        It counts after the request's end, too: that is told at once, this within `RECORDS_WITHIN_S`.
        """
        if entry.hedged is not False or [entry.at, replica] != list(entry.hosts):
            return False
        self.promised.pop(entry.facts.id, None)
        self.saved -= 1
        entry.hedged = True
        if entry.stage == "ended":
            return True
        copy = self.copies[entry.facts.id] = Entry(entry.facts, entry.view, entry.limits)
        copy.line, copy.hosts = entry.line, entry.hosts
        self.books[replica].add(copy, now)
        return True

    def untold(self, now: float, entry: Entry) -> bool:
        """Whether a second attempt at a request that is over was its hedge, of which nothing has been heard yet."""
        return entry.hedged is False and now >= entry.hedge_at_s

    def lost(self, now: float, entry: Entry, replica: int) -> bool:
        """A replica has a hedged request no more, the other one has: whether this is such a one."""
        copy = self.copies.get(entry.facts.id)
        if copy is None or replica not in (entry.at, copy.at):
            return False
        if replica == copy.at:
            self.end(now, entry)
            return True
        del self.copies[entry.facts.id]
        first, other = self.books[replica], self.books[copy.at]
        if now - entry.sent_s > entry.due_s - entry.sent_s:  # it would have taken longer still
            first.learn_first(now, entry, now - entry.sent_s)
        first.remove(entry, now)
        if entry in first.computing:
            first.computing.remove(entry)
        for name in PLACED:
            setattr(entry, name, getattr(copy, name))
        other.entries[entry.facts.id] = entry
        if copy in other.computing:
            other.computing[other.computing.index(copy)] = entry
        return True

    def end(self, now: float, entry: Entry) -> None:
        """Take a request's second place out of the books, where it has one; what cannot be used any more is saved."""
        if now < entry.hedge_at_s:
            self.promised.pop(entry.facts.id, None)
        copy = self.copies.pop(entry.facts.id, None)
        if copy is not None:
            self.books[copy.at].remove(copy, now)
