"""Headway's own queue: requests that no replica has room for.

The most urgent class goes first; among the tenants that wait with such requests, the one that has been served least for
its weight (`fairness.py`); of that tenant's requests, the one that the order policy puts first. Offline classes
come after all others. Who waits ages: every `aging_s` its priority rises by one, up to that of the most urgent class of
its kind and not beyond, so that a tenant's old requests never outrun another tenant's turn.
"""

from __future__ import annotations

import heapq

from headway.gateway.books import Entry
from headway.gateway.fairness import TokenCounters, cost
from headway.gateway.fence import Fence
from headway.gateway.spec import GatewaySpec

REKEY_S = 0.25  # keys that go stale with time are renewed this often; a queue of a thousand costs 1 ms


class HeldQueue:
    """Heaps by (key, order of arrival), one for each level of urgency and tenant; who has left is skipped in its turn.

    `weights`: of the tenants, by number.
    """

    def __init__(self, fence: Fence, spec: GatewaySpec, weights: list[float]) -> None:
        self.fence = fence
        self.aging_s = spec.limits.aging_s
        self.fair = spec.limits.fair
        self.weights = weights
        self.levels = sorted({(klass.offline, klass.priority) for klass in spec.classes})  # the most urgent first
        self.own_level = [self.levels.index((klass.offline, klass.priority)) for klass in spec.classes]
        self.counters = [TokenCounters(weights) for _ in self.levels]
        self.waiting: list[dict[int, int]] = [{} for _ in self.levels]  # requests by tenant
        self.entries: dict[str, Entry] = {}
        self.heaps: dict[tuple[int, int], list[tuple[float, int, str]]] = {}
        self.rekeyed_s = 0.0
        ages = self.aging_s > 0 and len(self.levels) > 1
        self.stale = bool(fence.policies["order"].rekey_on) or ages

    def __len__(self) -> int:
        return len(self.entries)

    def push(self, entry: Entry, now: float) -> None:
        """Let a request wait."""
        (key,) = self.fence.keys(now, [entry.view])
        self.entries[entry.facts.id] = entry
        self._enter(entry, self._level(entry, now))
        heapq.heappush(self._heap(entry), (key, entry.view.id, entry.facts.id))

    def first(self, now: float) -> Entry | None:
        """Return whose turn it is, who waits on until taken out; None when nobody waits."""
        self._rekey(now)
        for level, waiting in enumerate(self.waiting):
            if waiting:
                heap = self.heaps[level, self.counters[level].next(waiting)]
                while not self._waits(heap[0]):
                    heapq.heappop(heap)
                return self.entries[heap[0][2]]
        return None

    def remove(self, id: str) -> Entry:
        """Take this one out."""
        entry = self.entries.pop(id)
        self._leave(entry)
        return entry

    def pass_by(self, entry: Entry, now: float) -> None:
        """A request need not wait, because nobody does."""
        entry.level = self._level(entry, now)
        self.counters[entry.level].pass_by(self._tenant(entry))

    def charge(self, entry: Entry) -> None:
        """Charge a tenant for a request that is sent, whether it has waited or not."""
        entry.charged = cost(entry.view.prompt_tokens, entry.output)
        self.counters[entry.level].charge(self._tenant(entry), entry.charged)

    def settle(self, entry: Entry, prompt_tokens: int, output_tokens: int) -> None:
        """Charge what a request that was sent has cost beyond, or below, what was expected."""
        self.counters[entry.level].charge(self._tenant(entry), cost(prompt_tokens, output_tokens) - entry.charged)

    def ahead(self, entry: Entry, now: float) -> int:
        """Count those who wait and are as urgent, or more."""
        return sum(sum(waiting.values()) for waiting in self.waiting[: self._level(entry, now) + 1])

    def crowded_out(self, entry: Entry, now: float) -> Entry | None:
        """Return who gives up its place to this request in a full queue; None when it is the least urgent itself.

        Among equals the tenant gives way that fills the most of the queue for its weight, if the other would still
        fill less. Of a tenant's requests the last by the order policy goes.
        """
        level = max((level for level, waiting in enumerate(self.waiting) if waiting), default=-1)
        mine, tenant = self._level(entry, now), self._tenant(entry)
        if mine > level:
            return None
        waiting = self.waiting[level]
        loser = max(waiting, key=lambda other: waiting[other] / self.weights[other])
        share = (waiting.get(tenant, 0) + 1) / self.weights[tenant]
        if mine == level and (loser == tenant or waiting[loser] / self.weights[loser] <= share):
            return None
        _, _, id = max(place for place in self.heaps[level, loser] if self._waits(place))
        return self.entries[id]

    def expired(self, now: float, hold_s: float) -> list[Entry]:
        """Return those that have waited too long, or whose deadline has passed."""
        return [e for e in self.entries.values() if now >= min(e.view.arrival_s + hold_s, e.view.deadline_s)]

    # --- urgency and tenants -----------------------------------------------------------------------------------

    def _level(self, entry: Entry, now: float) -> int:
        level = self.own_level[entry.facts.slo_class]
        if not self.aging_s or not level:
            return level
        offline, priority = self.levels[level]
        aged = priority - int((now - entry.view.arrival_s) / self.aging_s)
        return next(i for i, other in enumerate(self.levels) if other >= (offline, aged))

    def _tenant(self, entry: Entry) -> int:
        return entry.facts.tenant if self.fair else 0

    def _heap(self, entry: Entry) -> list[tuple[float, int, str]]:
        return self.heaps.setdefault((entry.level, self._tenant(entry)), [])

    def _waits(self, place: tuple[float, int, str]) -> bool:
        entry = self.entries.get(place[2])
        return entry is not None and entry.view.id == place[1]

    def _enter(self, entry: Entry, level: int) -> None:
        waiting, tenant = self.waiting[level], self._tenant(entry)
        if tenant not in waiting:
            self.counters[level].join(tenant, waiting)
        waiting[tenant] = waiting.get(tenant, 0) + 1
        entry.level = level
        entry.view.hurry(self.levels[level][1])

    def _leave(self, entry: Entry) -> None:
        waiting, tenant = self.waiting[entry.level], self._tenant(entry)
        waiting[tenant] -= 1
        if not waiting[tenant]:
            del waiting[tenant]
            self.heaps.pop((entry.level, tenant), None)
            self.counters[entry.level].leave(tenant)

    def _rekey(self, now: float) -> None:
        if not self.stale or now < self.rekeyed_s + REKEY_S or not self.entries:
            return
        self.rekeyed_s = now
        entries = list(self.entries.values())
        for entry in entries:
            level = self._level(entry, now)
            if level != entry.level:
                self._leave(entry)
                self._enter(entry, level)
        keys = self.fence.keys(now, [entry.view for entry in entries])
        self.heaps.clear()
        for key, entry in zip(keys, entries, strict=True):
            self._heap(entry).append((key, entry.view.id, entry.facts.id))
        for heap in self.heaps.values():
            heapq.heapify(heap)

    def check(self) -> list[str]:
        """Say which of the queue's laws are broken."""
        counted = sum(sum(waiting.values()) for waiting in self.waiting)
        lines = {(entry.level, self._tenant(entry)) for entry in self.entries.values()}
        faults = [] if counted == len(self.entries) else [f"{counted} counted in the queue, {len(self.entries)} wait"]
        if lines != set(self.heaps) or lines != {(i, t) for i, waiting in enumerate(self.waiting) for t in waiting}:
            faults.append(f"lines of {sorted(self.heaps)} for those who wait in {sorted(lines)}")
        return faults
