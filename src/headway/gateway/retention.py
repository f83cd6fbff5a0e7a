"""How long prefixes are to be kept: the policy is asked about each request that is routed, and who obeys is told."""

from __future__ import annotations

from headway.gateway.books import Backing, Entry, ReplicaBook
from headway.gateway.events import Routed
from headway.gateway.fence import Fence
from headway.gateway.figures import Figures


class Retention:
    """Asks the policy "retain", where the deployment has one.

    Where the engine of a replica does not take hints, the decision is logged all the same and nobody is told.
    """

    def __init__(self, fence: Fence, books: list[ReplicaBook], backings: list[Backing], figures: Figures) -> None:
        self.fence = fence
        self.books = books
        self.takes = [backing.keep_hints for backing in backings]
        self.figures = figures

    def ask(self, now: float, entry: Entry, chosen: ReplicaBook) -> float | None:
        """Ask about a request on its way to a replica, for seconds; None where there is no policy.

        As in the simulator it is the replica that computes the prompt, and its view does not have the request yet.
        """
        if "retain" not in self.fence.policies:
            return None
        book = chosen if entry.prefill is None else self.books[entry.prefill]
        book.advance(now)
        keep_s = self.fence.retain(entry.view, book.view)
        if keep_s:
            self.figures.count("headway_kept_total")
        return keep_s

    def hint(self, routed: Routed) -> str:
        """Return what the header says, in seconds; "" where there is none, as one who may read it does not obey."""
        if not routed.keep_s:
            return ""
        readers = routed.hosts if routed.prefill is None else (*routed.hosts, routed.prefill)
        return repr(routed.keep_s) if all(self.takes[i] for i in readers) else ""
