"""Block-hash prefix cache of one replica: which prompt units its KV holds, who uses them, which goes first.

A unit is `Workload.block_tokens` tokens, a whole number of KV blocks. A unit that no sequence references stays
cached, at the end of the LRU list, until its pages are needed; a chain is released from its tail, so that the tail
of the longest unused chain is evicted first, as vLLM's free-block queue does. A unit that is kept until a time is
evicted as if it had been used last then: after all that was used before, whatever is left then.
"""

from __future__ import annotations

import heapq

import cython
import numpy as np

from headway.engine.sequence import HashChains

ABSENT = 0
IDLE = 1
SHARED = 2
SENTINEL = cython.declare(cython.int, -1)  # references of a slot that is a list, not a unit
LISTS_MIN = 64


MIX = cython.declare(cython.ulonglong, 0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads consecutive ids (Knuth)
ALL = cython.declare(cython.ulonglong, 0xFFFFFFFFFFFFFFFF)


class UnitTable:
    """Unit id to slot by open addressing: three times as fast as a dict, whose lookups were half of a replay's time.

    At most half full; linear probing; on removal later entries move back, so that no tombstones collect.
    """

    def __init__(self, bits: cython.int) -> None:
        self.resize(bits)

    def resize(self, bits: cython.int) -> cython.int:
        """Start empty with 2**bits buckets; slot 0 marks an empty one."""
        self.shift = 64 - bits
        self.mask = (1 << bits) - 1
        self.unit = np.zeros(1 << bits, dtype=np.int64)
        self.slot = np.zeros(1 << bits, dtype=np.int32)
        return 0

    def home(self, unit: cython.longlong) -> cython.Py_ssize_t:
        """The bucket where the search for a unit starts."""
        mixed: cython.ulonglong = (cython.cast(cython.ulonglong, unit) * MIX) & ALL
        return cython.cast(cython.Py_ssize_t, mixed >> self.shift)

    def find(self, unit: cython.longlong) -> cython.Py_ssize_t:
        """The unit's slot, 0 when it has none."""
        at: cython.Py_ssize_t = self.home(unit)
        slot: cython.Py_ssize_t = self.slot[at]
        while slot != 0 and self.unit[at] != unit:
            at = (at + 1) & self.mask
            slot = self.slot[at]
        return slot

    def add(self, unit: cython.longlong, slot: cython.Py_ssize_t) -> cython.int:
        """Enter a unit that is not there."""
        at: cython.Py_ssize_t = self.home(unit)
        while self.slot[at] != 0:
            at = (at + 1) & self.mask
        self.unit[at] = unit
        self.slot[at] = cython.cast(cython.int, slot)
        return 0

    def remove(self, unit: cython.longlong) -> cython.int:
        """Take out a unit that is there."""
        at: cython.Py_ssize_t = self.home(unit)
        while self.unit[at] != unit or self.slot[at] == 0:
            at = (at + 1) & self.mask
        other: cython.Py_ssize_t = (at + 1) & self.mask
        while self.slot[other] != 0:
            if ((other - at) & self.mask) <= ((other - self.home(self.unit[other])) & self.mask):
                self.unit[at] = self.unit[other]
                self.slot[at] = self.slot[other]
                at = other
            other = (other + 1) & self.mask
        self.slot[at] = 0
        return 0


class PrefixCache:
    """Units by id with reference counts and an LRU list of the idle ones (slot 0 is the list's sentinel).

    `keeps`: somebody's prefix was kept once. `until_s`: by slot, until when it is kept. The order of eviction is by the
    later of this and the last use. An idle unit whose time is after `ripe_s` is in a list of its time: `kept` is a heap
    of (time, serial, sentinel) of such lists. `ripen` puts those whose time has come at the LRU list's end, before
    anything else is released: so what is evicted does not depend on how often it is called between two releases, and k
    steps at once evict what k steps singly do.
    """

    def __init__(self) -> None:
        self.bits = 7  # few slots at first: 1,024 took 9 of the 42 us of making a replica, and a plan makes 100,000
        self.table = UnitTable(self.bits)
        self.key = np.zeros(64, dtype=np.int64)
        self.refs = np.zeros(64, dtype=np.int32)
        self.newer = np.arange(1, 65, dtype=np.int32)
        self.older = np.zeros(64, dtype=np.int32)
        self.newer[0] = self.newer[63] = 0
        self.spare = 1
        self.idle = 0
        self.keeps = False
        self.until_s = np.zeros(64, dtype=np.float64)
        self.ripe_s = 0.0
        self.kept: list[tuple[float, int, int]] = []
        self.lists = 0
        self.lists_most = LISTS_MIN
        self.open_list = 0  # the list made last, and its time: the units of one chain mostly share it
        self.open_until_s = 0.0

    def match(self, chains: HashChains, start: cython.Py_ssize_t, count: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Count the leading units of the chain that are cached."""
        i: cython.Py_ssize_t
        for i in range(count):
            if self.table.find(chains.ids[start + i]) == 0:
                return i
        return count

    def pinned(self, chains: HashChains, start: cython.Py_ssize_t, count: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Count the units of this stretch that somebody references now: they cost no page to share."""
        i: cython.Py_ssize_t
        slot: cython.Py_ssize_t
        found: cython.longlong = 0
        for i in range(start, start + count):
            slot = self.table.find(chains.ids[i])
            if slot > 0 and self.refs[slot] > 0:
                found += 1
        return found

    def acquire(self, unit: cython.longlong) -> cython.int:
        """Reference a unit, caching it if it is new; tells what it was: ABSENT, IDLE or SHARED."""
        slot: cython.Py_ssize_t = self.table.find(unit)
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
        slot: cython.Py_ssize_t = self.table.find(unit)
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

    def evict(self) -> cython.int:
        """Forget the unit that has been idle longest; where all are kept, the one whose time ends first."""
        slot: cython.Py_ssize_t = self.newer[0]
        if slot == 0:
            return self.evict_kept()
        self.unlink(slot)
        self.idle -= 1
        self.table.remove(self.key[slot])
        self.newer[slot] = cython.cast(cython.int, self.spare)
        self.spare = slot
        return 0

    def keep(
        self, chains: HashChains, start: cython.Py_ssize_t, count: cython.Py_ssize_t, until_s: cython.double
    ) -> cython.int:
        """Keep these units, which somebody references, until a time at least."""
        i: cython.Py_ssize_t
        slot: cython.Py_ssize_t
        self.keeps = True
        for i in range(start, start + count):
            slot = self.table.find(chains.ids[i])
            self.until_s[slot] = max(self.until_s[slot], until_s)
        return 0

    def set_aside(self) -> cython.int:
        """Move the unit that was released last from the LRU list to that of its time, where this is not over."""
        slot: cython.Py_ssize_t = self.older[0]
        if self.until_s[slot] <= self.ripe_s:
            return 0
        end: cython.Py_ssize_t = self.list_until(self.until_s[slot])
        last: cython.Py_ssize_t = self.older[end]
        self.unlink(slot)
        self.older[end] = cython.cast(cython.int, slot)
        self.newer[last] = cython.cast(cython.int, slot)
        self.older[slot] = cython.cast(cython.int, last)
        self.newer[slot] = cython.cast(cython.int, end)
        return 0

    def ripen(self, now: cython.double) -> cython.int:
        """Whose time has come is evicted like any other from now on; to be called before releases at `now`."""
        if now <= self.ripe_s:
            return 0
        end: cython.Py_ssize_t
        last: cython.Py_ssize_t
        self.ripe_s = now
        while self.kept and self.kept[0][0] <= now:
            end = self.kept[0][2]
            if self.newer[end] != end:
                last = self.older[0]
                self.newer[last] = self.newer[end]
                self.older[self.newer[end]] = cython.cast(cython.int, last)
                self.newer[self.older[end]] = 0
                self.older[0] = self.older[end]
                self.newer[end] = cython.cast(cython.int, end)
            self.drop_first_list()
        return 0

    def evict_kept(self) -> cython.int:
        """Forget the kept unit whose time ends first, as nothing else is left; there must be one."""
        end: cython.Py_ssize_t = self.kept[0][2]
        while self.newer[end] == end:
            self.drop_first_list()
            end = self.kept[0][2]
        slot: cython.Py_ssize_t = self.newer[end]
        self.until_s[slot] = 0.0  # of any other its time is over: it means nothing to whom the slot is given next
        self.unlink(slot)
        self.newer[0] = self.older[0] = cython.cast(cython.int, slot)
        self.newer[slot] = self.older[slot] = 0
        return self.evict()

    def list_until(self, until_s: cython.double) -> cython.Py_ssize_t:
        """The sentinel of a list of units that are kept until this time."""
        if until_s == self.open_until_s:
            return self.open_list
        if len(self.kept) >= self.lists_most:
            self.drop_empty_lists()
        if self.spare == 0:
            self.grow()
        end: cython.Py_ssize_t = self.spare
        self.spare = self.newer[end]
        self.refs[end] = SENTINEL
        self.newer[end] = self.older[end] = cython.cast(cython.int, end)
        self.lists += 1
        heapq.heappush(self.kept, (until_s, self.lists, end))
        self.open_list, self.open_until_s = end, until_s
        return end

    def drop_first_list(self) -> cython.int:
        """Take the list whose time ends first, which is empty, off the heap."""
        return self.drop_list(heapq.heappop(self.kept)[2])

    def drop_empty_lists(self) -> cython.int:
        """Forget the lists whose units were all used again or evicted."""
        end: cython.Py_ssize_t
        for _, _, end in self.kept:
            if self.newer[end] == end:
                self.drop_list(end)
        self.kept = [entry for entry in self.kept if self.refs[entry[2]] == SENTINEL]
        heapq.heapify(self.kept)
        self.lists_most = max(LISTS_MIN, 2 * len(self.kept))
        return 0

    def drop_list(self, end: cython.Py_ssize_t) -> cython.int:
        """Let the slot of an empty list be used for something else."""
        if end == self.open_list:
            self.open_list, self.open_until_s = 0, 0.0
        self.refs[end] = 0
        self.newer[end] = cython.cast(cython.int, self.spare)
        self.spare = end
        return 0

    def unlink(self, slot: cython.Py_ssize_t) -> cython.int:
        """Take a slot out of the list it is in."""
        self.newer[self.older[slot]] = self.newer[slot]
        self.older[self.newer[slot]] = self.older[slot]
        return 0

    def new_slot(self, unit: cython.longlong) -> cython.Py_ssize_t:
        """Give a unit a slot, doubling everything when there is none left."""
        if self.spare == 0:
            self.grow()
        slot: cython.Py_ssize_t = self.spare
        self.spare = self.newer[slot]
        self.table.add(unit, slot)
        self.key[slot] = unit
        return slot

    def grow(self) -> cython.int:
        """Double the slots and the table; a spare slot names the next one in `newer`."""
        size: cython.Py_ssize_t = self.key.shape[0]
        slot: cython.Py_ssize_t
        self.key = np.concatenate([np.asarray(self.key), np.zeros(size, dtype=np.int64)])
        self.refs = np.concatenate([np.asarray(self.refs), np.zeros(size, dtype=np.int32)])
        self.newer = np.concatenate([np.asarray(self.newer), np.arange(size + 1, 2 * size + 1, dtype=np.int32)])
        self.older = np.concatenate([np.asarray(self.older), np.zeros(size, dtype=np.int32)])
        self.until_s = np.concatenate([np.asarray(self.until_s), np.zeros(size, dtype=np.float64)])
        self.newer[2 * size - 1] = 0
        self.spare = size
        self.bits += 1
        self.table.resize(self.bits)
        for slot in range(1, size):
            if self.refs[slot] >= 0:
                self.table.add(self.key[slot], slot)
        return 0

    def check_integrity(self) -> cython.bint:
        """Check the lists against the table; raises AssertionError naming what is broken."""
        seen: cython.longlong = 0
        for until_s, _, end in [(0.0, 0, 0), *self.kept]:
            assert end == 0 or until_s > self.ripe_s, f"a list until {until_s} s stands at {self.ripe_s} s"
            slot: cython.Py_ssize_t = self.newer[end]
            while slot != end:
                assert self.refs[slot] == 0, f"unit {self.key[slot]} is idle with {self.refs[slot]} references"
                assert self.table.find(self.key[slot]) == slot, f"unit {self.key[slot]} is not in its slot"
                late = self.until_s[slot] <= self.ripe_s if end == 0 else self.until_s[slot] == until_s
                assert late, f"unit {self.key[slot]}, kept until {self.until_s[slot]} s, is in the list of {until_s} s"
                seen += 1
                slot = self.newer[slot]
        assert seen == self.idle, f"{seen} idle units in the lists, {self.idle} counted"
        return True
