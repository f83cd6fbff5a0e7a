"""A request inside an engine, and the heap that says which sequence finishes at which step."""

from __future__ import annotations

from typing import Any

import cython
import numpy as np

from headway.engine.law import buffer, zeros
from headway.state.views import Request

FINISHED = 0
REJECTED = 1
FAILED = 2
UNFINISHED = 3

ROOM_MIN = 64

OPEN = cython.declare(cython.int, UNFINISHED)
NAN = cython.declare(cython.double, float("nan"))
NEVER = cython.declare(cython.double, float("inf"))


class HashChains:
    """Block ids of one batch of requests, back to back; a sequence holds its slice of them."""

    def __init__(self, ids: Any) -> None:
        self.ids: Any = ids


class Sequence(Request):
    """A request with what only the engine knows: its true length, progress, pages and times.

    `target`: tokens whose KV must be computed before it decodes (the prompt; after a preemption the generated
    tokens too). `computed`: of these, how many are. `held`: prefix units referenced. `most`: tokens it
    ever held before a preemption, to tell what is computed a second time. `ready_s`: it joins a step that starts later.
    `keep_s`: so long after its end its prefix is kept.
    `residue`: it needs a new block for the steps of this residue modulo the block size.
    """

    def __init__(
        self,
        id: cython.longlong,
        arrival_s: cython.double,
        prompt_tokens: cython.longlong,
        output_tokens: cython.longlong,
    ) -> None:
        self.fill(id, arrival_s, prompt_tokens, output_tokens)

    def fill(
        self,
        id: cython.longlong,
        arrival_s: cython.double,
        prompt_tokens: cython.longlong,
        output_tokens: cython.longlong,
    ) -> cython.int:
        """Set every field; after `Sequence.__new__` this makes a sequence at a third of a constructor's price."""
        self.id = id
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.predicted_output_tokens = NAN
        self.priority = 0
        self.deadline_s = NEVER
        self.slo_class = 0
        self.tenant = 0
        self.session = -1
        self.node = -1
        self.models = ()
        self.output_tokens = output_tokens
        self.generated = 0
        self.target = prompt_tokens
        self.computed = 0
        self.cached = 0
        self.held = 0
        self.recomputed = 0
        self.most = 0
        self.preemptions = 0
        self.status = OPEN
        self.handoff = False
        self.serial = 0
        self.join_step = 0
        self.finish_step = 0
        self.cross_step = 0
        self.residue = 0
        self.ready_s = -NEVER
        self.keep_s = 0.0
        self.admitted_s = NAN
        self.first_s = NAN
        self.last_s = NAN
        self.pool = 0
        self.replica = -1
        self.source = -1
        self.row = 0
        self.chains: Any = None
        self.hash_start = 0
        self.hash_count = 0
        return 0


class StepHeap:
    """Binary min-heap of sequences keyed by a step number; equal keys come out in order of admission.

    Only numbers move in it: `slots` says where in `items` each entry's sequence stays, and behind the heap's end which
    places are free. There is no room until somebody joins: half of a replica's heaps stay empty.
    """

    def __init__(self) -> None:
        self.keys: Any = None
        self.serials: Any = None
        self.slots: Any = None
        self.items: list[Any] = []
        self.size = 0

    def push(self, key: cython.longlong, seq: Sequence) -> cython.int:
        """Add a sequence."""
        if self.size == len(self.items):
            self.double()
        self.items[self.slots[self.size]] = seq
        self.size += 1
        return self.put(self.size - 1, key, seq.serial, self.slots[self.size - 1])

    def double(self) -> cython.int:
        """Make room for twice as many."""
        room: cython.Py_ssize_t = max(ROOM_MIN, 2 * self.size)
        keys, serials, slots = zeros(room), zeros(room), buffer(np.arange(room, dtype=np.int64))
        if self.size > 0:
            keys[: self.size], serials[: self.size], slots[: self.size] = self.keys, self.serials, self.slots
        self.keys, self.serials, self.slots = keys, serials, slots
        self.items += [None] * (room - self.size)
        return 0

    def pop(self) -> Sequence:
        """Take the sequence with the smallest key."""
        return self.take(0)

    def take(self, at: cython.Py_ssize_t) -> Sequence:
        """Take the sequence at a place of the heap, which the last one fills."""
        slot: cython.longlong = self.slots[at]
        seq: Sequence = self.items[slot]
        self.items[slot] = None
        self.size -= 1
        last: cython.Py_ssize_t = self.size
        moved: cython.longlong = self.slots[last]
        self.slots[last] = slot
        if at < last:
            self.put(at, self.keys[last], self.serials[last], moved)
        return seq

    def remove(self, seq: Sequence) -> cython.bint:
        """Take this sequence out, wherever it stands, in O(n); whether it was there."""
        at: cython.Py_ssize_t
        for at in range(self.size):
            if self.items[self.slots[at]] is seq:
                self.take(at)
                return True
        return False

    def members(self) -> list[Any]:
        """All sequences, in no order that means anything."""
        return [seq for seq in self.items if seq is not None]

    def put(
        self, at: cython.Py_ssize_t, key: cython.longlong, serial: cython.longlong, slot: cython.longlong
    ) -> cython.int:
        """Fill the hole at `at` with an entry, moving the hole up or down to where the entry belongs."""
        to: cython.Py_ssize_t
        while at > 0:
            to = (at - 1) >> 1
            if self.keys[to] < key or (self.keys[to] == key and self.serials[to] < serial):
                break
            at = self.move(to, at)
        to = 2 * at + 1
        while to < self.size:
            if to + 1 < self.size:
                if self.keys[to + 1] == self.keys[to]:
                    to += self.serials[to + 1] < self.serials[to]
                else:
                    to += self.keys[to + 1] < self.keys[to]  # added, not asked: which is smaller nobody can predict
            if key < self.keys[to] or (key == self.keys[to] and serial < self.serials[to]):
                break
            at = self.move(to, at)
            to = 2 * at + 1
        self.keys[at] = key
        self.serials[at] = serial
        self.slots[at] = slot
        return 0

    def move(self, at: cython.Py_ssize_t, hole: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Move an entry into the hole; where the hole is now."""
        self.keys[hole] = self.keys[at]
        self.serials[hole] = self.serials[at]
        self.slots[hole] = self.slots[at]
        return at


class Line:
    """First in, first out; who was preempted may step in at the front.

    The list behind it is reused while the line runs empty now and then, which saves an allocation per step.
    """

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.head = 0
        self.size = 0

    def append(self, seq: Sequence) -> cython.int:
        """Join at the end."""
        end: cython.Py_ssize_t = self.head + self.size
        if end < len(self.items):
            self.items[end] = seq
        else:
            self.items.append(seq)
        self.size += 1
        return 0

    def append_first(self, seq: Sequence) -> cython.int:
        """Step in at the front."""
        if self.head > 0:
            self.head -= 1
            self.items[self.head] = seq
        else:
            self.items.insert(0, seq)
        self.size += 1
        return 0

    def remove(self, seq: Sequence) -> cython.bint:
        """Leave from wherever one stands, in O(n); whether it was there."""
        at: cython.Py_ssize_t
        for at in range(self.head, self.head + self.size):
            if self.items[at] is seq:
                del self.items[at]
                self.size -= 1
                return True
        return False

    def first(self) -> Sequence:
        """Who is served next; the line must not be empty."""
        seq: Sequence = self.items[self.head]
        return seq

    def take(self) -> Sequence:
        """Serve the first; the served are forgotten when they are the greater part of the list."""
        seq: Sequence = self.items[self.head]
        self.items[self.head] = None
        self.head += 1
        self.size -= 1
        if self.size == 0:
            self.head = 0
        elif self.head >= 256 and 2 * self.head >= len(self.items):
            del self.items[: self.head]
            self.head = 0
        return seq
