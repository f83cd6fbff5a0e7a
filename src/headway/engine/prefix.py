"""Block-hash prefix cache of one replica: which prompt units its KV holds, who uses them, which goes first.

A unit is `Workload.block_tokens` tokens, a whole number of KV blocks. A unit that no sequence references stays
cached, at the end of the LRU list, until its pages are needed; a chain is released from its tail, so that the tail
of the longest unused chain is evicted first, as vLLM's free-block queue does.
"""

from __future__ import annotations

import cython
import numpy as np

from headway.engine.sequence import HashChains

ABSENT = 0
IDLE = 1
SHARED = 2


class PrefixCache:
    """Units by id with reference counts and an LRU list of the idle ones (slot 0 is the list's sentinel)."""

    def __init__(self) -> None:
        self.slots = {}
        self.key = np.zeros(1024, dtype=np.int64)
        self.refs = np.zeros(1024, dtype=np.int32)
        self.newer = np.zeros(1024, dtype=np.int32)
        self.older = np.zeros(1024, dtype=np.int32)
        self.spare = list(range(1023, 0, -1))
        self.idle = 0

    def match(self, chains: HashChains, start: cython.Py_ssize_t, count: cython.Py_ssize_t) -> cython.longlong:
        """Count the leading units of the chain that are cached."""
        i: cython.Py_ssize_t
        for i in range(count):
            if chains.ids[start + i] not in self.slots:
                return i
        return count

    def pinned(self, chains: HashChains, start: cython.Py_ssize_t, count: cython.Py_ssize_t) -> cython.longlong:
        """Count the units of this stretch that somebody references now: they cost no page to share."""
        i: cython.Py_ssize_t
        slot: cython.Py_ssize_t
        found: cython.longlong = 0
        for i in range(start, start + count):
            slot = self.slots.get(chains.ids[i], 0)
            if slot > 0 and self.refs[slot] > 0:
                found += 1
        return found

    def acquire(self, unit: cython.longlong) -> cython.int:
        """Reference a unit, caching it if it is new; tells what it was: ABSENT, IDLE or SHARED."""
        slot: cython.Py_ssize_t = self.slots.get(unit, 0)
        if slot == 0:
            slot = self.new_slot(unit)
            self.refs[slot] = 1
            return ABSENT
        self.refs[slot] += 1
        if self.refs[slot] > 1:
            return SHARED
        self.unlink(slot)
        self.idle -= 1
        return IDLE

    def release(self, unit: cython.longlong) -> cython.bint:
        """Drop one reference; True when it was the last, and the unit is now idle at the LRU list's end."""
        slot: cython.Py_ssize_t = self.slots[unit]
        self.refs[slot] -= 1
        if self.refs[slot] > 0:
            return False
        last: cython.Py_ssize_t = self.older[0]
        self.older[0] = cython.cast(cython.int, slot)
        self.newer[last] = cython.cast(cython.int, slot)
        self.older[slot] = cython.cast(cython.int, last)
        self.newer[slot] = 0
        self.idle += 1
        return True

    def evict(self) -> None:
        """Forget the unit that has been idle longest."""
        slot: cython.Py_ssize_t = self.newer[0]
        self.unlink(slot)
        self.idle -= 1
        del self.slots[self.key[slot]]
        self.spare.append(slot)

    def unlink(self, slot: cython.Py_ssize_t) -> None:
        """Take a slot out of the LRU list."""
        self.newer[self.older[slot]] = self.newer[slot]
        self.older[self.newer[slot]] = self.older[slot]

    def new_slot(self, unit: cython.longlong) -> cython.Py_ssize_t:
        """Give a unit a slot, doubling the table when it is full."""
        size: cython.Py_ssize_t = self.key.shape[0]
        if not self.spare:
            self.key = np.concatenate([np.asarray(self.key), np.zeros(size, dtype=np.int64)])
            self.refs = np.concatenate([np.asarray(self.refs), np.zeros(size, dtype=np.int32)])
            self.newer = np.concatenate([np.asarray(self.newer), np.zeros(size, dtype=np.int32)])
            self.older = np.concatenate([np.asarray(self.older), np.zeros(size, dtype=np.int32)])
            self.spare = list(range(2 * size - 1, size - 1, -1))
        slot: cython.Py_ssize_t = self.spare.pop()
        self.slots[unit] = slot
        self.key[slot] = unit
        return slot

    def check_integrity(self) -> cython.bint:
        """Check the list against the table; raises AssertionError naming what is broken."""
        slot: cython.Py_ssize_t = self.newer[0]
        seen: cython.longlong = 0
        while slot != 0:
            assert self.refs[slot] == 0, f"unit {self.key[slot]} is idle with {self.refs[slot]} references"
            assert self.slots[self.key[slot]] == slot, f"unit {self.key[slot]} is not in its slot"
            seen += 1
            slot = self.newer[slot]
        assert seen == self.idle, f"{seen} idle units in the list, {self.idle} counted"
        return True
