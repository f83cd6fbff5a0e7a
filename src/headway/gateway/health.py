"""Which replicas may be asked: by probes, by requests that were cut off, and by answers that are errors.

An answer of 5xx may be the request's own fault, and one tenant's requests must not take a replica from all. So errors
eject only a replica that gives nothing else while another one of the same model answers, for a while, and never more
than half of a model's replicas; what comes back is out again at its first error, for longer.
"""

from __future__ import annotations

from headway.gateway.books import ReplicaBook
from headway.gateway.events import EndRecord
from headway.gateway.figures import Figures
from headway.gateway.spec import GatewaySpec

PROBATION_S = 5.0  # out for errors; twice as long after each relapse
RELAPSES_MOST = 4


class Judge:
    """Takes replicas out and lets them come back; `last` is what it did last for errors, in words.

    `groups`: the replicas, those together that do the same for the same model.
    """

    def __init__(self, spec: GatewaySpec, groups: list[list[ReplicaBook]], figures: Figures) -> None:
        self.spec = spec
        self.groups = groups
        self.figures = figures
        self.ejected, self.last = 0, ""  # for errors

    def hear(self, book: ReplicaBook, ok: bool, probe: bool) -> None:
        """A probe says whether a replica is there, or a request that it cut off that it is not."""
        if ok:
            book.failures = 0
            if probe and not book.answers:
                book.come_back()
            return
        book.failures += 1
        if book.answers and (probe or book.failures >= self.spec.health.failures):
            book.turn(False, book.out_until_s)
            self._count(book)

    def learn(self, now: float, book: ReplicaBook, record: EndRecord) -> None:
        """A request is over that this replica was the last to have."""
        if record.upstream_failed:
            self.hear(book, False, probe=False)
        elif not record.caller_left:
            self._answered(now, book, record.status)

    def learn_prompt(self, now: float, book: ReplicaBook, record: EndRecord) -> None:
        """A request is over whose prompt this replica computed for another: an error may be either's."""
        if not record.upstream_failed and not record.caller_left:
            self._answered(now, book, record.status)

    def _answered(self, now: float, book: ReplicaBook, status: int) -> None:
        if status >= 500:
            self._error(now, book)
        else:
            book.failures = 0
            if 200 <= status < 300:
                book.errors, book.relapses, book.served_s = 0, 0, now

    def tick(self, now: float) -> None:
        """Let those come back whose time is over, on probation."""
        for group in self.groups:
            for book in group:
                if book.out_until_s is not None and now >= book.out_until_s:
                    book.turn(book.answers, None)
                    book.errors = self.spec.health.errors - 1

    def _error(self, now: float, book: ReplicaBook) -> None:
        book.errors += 1
        if book.errors == 1:
            book.errors_since_s = now
        (group,) = [group for group in self.groups if book in group]
        others = [each for each in group if each is not book and each.healthy]
        out = sum(each.out_until_s is not None for each in group)
        if (
            not 0 < self.spec.health.errors <= book.errors
            or not book.healthy
            or not any(each.served_s >= book.errors_since_s for each in others)
            or 2 * (out + 1) > len(group)
        ):
            return
        out_s = PROBATION_S * 2**book.relapses
        book.turn(book.answers, now + out_s)
        book.relapses = min(book.relapses + 1, RELAPSES_MOST)
        self.ejected += 1
        self.last = (
            f"replica {self.spec.upstreams[book.index]} answered nothing but 5xx, {book.errors} in a row, while "
            f"others of its model serve: left out for {out_s:g} s"
        )
        self._count(book)

    def _count(self, book: ReplicaBook) -> None:
        self.figures.count("headway_ejected_total", replica=self.spec.upstreams[book.index])
