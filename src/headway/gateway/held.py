"""Headway's own queue: requests that no replica has room for, in the order that the policy's keys give."""

from __future__ import annotations

import heapq

from headway.gateway.books import Entry
from headway.gateway.fence import Fence

REKEY_S = 0.25  # keys that go stale with time are renewed this often; a queue of a thousand costs 1 ms


class HeldQueue:
    """A heap by (key, order of arrival); who has left is skipped when its turn comes."""

    def __init__(self, fence: Fence, aging_s: float) -> None:
        self.fence = fence
        self.aging_s = aging_s
        self.entries: dict[str, Entry] = {}
        self.base: dict[str, int] = {}
        self.heap: list[tuple[float, int, str]] = []
        self.rekeyed_s = 0.0
        self.stale = bool(fence.policies["order"].rekey_on) or aging_s > 0

    def __len__(self) -> int:
        return len(self.entries)

    def push(self, entry: Entry, now: float) -> None:
        """Let a request wait."""
        (key,) = self.fence.keys(now, [entry.view])
        self.entries[entry.facts.id] = entry
        self.base[entry.facts.id] = entry.view.priority
        heapq.heappush(self.heap, (key, entry.view.id, entry.facts.id))

    def pop(self, now: float) -> Entry | None:
        """Take the next one; None when nobody waits."""
        self._rekey(now)
        while self.heap:
            _, _, id = heapq.heappop(self.heap)
            if id in self.entries:
                return self.remove(id)
        return None

    def remove(self, id: str) -> Entry:
        """Take this one out."""
        del self.base[id]
        return self.entries.pop(id)

    def expired(self, now: float, hold_s: float) -> list[Entry]:
        """Return those that have waited too long, or whose deadline has passed."""
        return [e for e in self.entries.values() if now >= min(e.view.arrival_s + hold_s, e.view.deadline_s)]

    def _rekey(self, now: float) -> None:
        if not self.stale or now < self.rekeyed_s + REKEY_S or not self.entries:
            return
        self.rekeyed_s = now
        waiting = list(self.entries.values())
        if self.aging_s:
            for entry in waiting:
                waited = int((now - entry.view.arrival_s) / self.aging_s)
                entry.view.hurry(self.base[entry.facts.id] - waited)
        keys = self.fence.keys(now, [entry.view for entry in waiting])
        self.heap = [(key, e.view.id, e.facts.id) for key, e in zip(keys, waiting, strict=True)]
        heapq.heapify(self.heap)
