"""A replica under a live host, which needs two things that a simulation does not: who gets a token at each step, and
a way to take a request out before its end.

Every step is taken by itself here, never several at once: tokens leave one by one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cython
import numpy as np

from headway.engine.core import Engine
from headway.engine.lane import Lane
from headway.engine.law import buffer
from headway.engine.sequence import FINISHED, HashChains, Sequence

ENDED = cython.declare(cython.int, FINISHED)


class Told(NamedTuple):
    """How far a request has come: tokens, and the times of its admission, its first and its last token (or NaN)."""

    generated: int
    cached_tokens: int
    preemptions: int
    admitted_s: float
    first_s: float
    last_s: float


def make_sequence(
    id: cython.longlong,
    arrival_s: cython.double,
    tokens: tuple[int, int],
    priority: cython.int = 0,
    units: Any = None,
    keep_s: cython.double = 0.0,
) -> Sequence:
    """Return a request of (prompt, output) tokens whose output length is foreseen exactly.

    `units`: int64 ids of its full prefix units, from the first token on; None without prefix identity. `keep_s`: so
    long after its end they are kept.
    """
    seq: Sequence = Sequence(id, arrival_s, tokens[0], tokens[1])
    seq.priority = priority
    seq.keep_s = keep_s
    seq.predicted_output_tokens = float(tokens[1])
    if units is not None:
        seq.chains = HashChains(buffer(np.asarray(units, dtype=np.int64)))
        seq.hash_count = len(units)
    return seq


def hand_over(seq: Sequence) -> Sequence:
    """Have a request handed over once its prompt is computed, unless it needs but the one token that comes with it."""
    seq.handoff = seq.output_tokens > 1
    return seq


def told(seq: Sequence) -> Told:
    """Return how far a request has come; what it has generated is exact once it has ended."""
    return Told(seq.generated, seq.cached, seq.preemptions, seq.admitted_s, seq.first_s, seq.last_s)


class LiveReplica:
    """An engine, or data-parallel ranks in lock-step, stepped by whoever keeps the time.

    `handed` collects requests whose prompt is computed and who go on elsewhere; the host empties it.
    """

    def __init__(self, engines: list[Engine]) -> None:
        engine: Engine
        self.engines = engines
        self.leader = engines[0]
        self.handed: list[Any] = []
        for engine in engines:
            engine.set_leaps(False)

    def next_s(self) -> cython.double:
        """When `step` wants to be called: infinity while there is nothing to do."""
        return self.leader.next_s

    def fits(self, seq: Sequence) -> cython.bint:
        """Whether the request could ever run here, alone."""
        return self.leader.fits(seq)

    def enqueue(self, seq: Sequence, now: cython.double) -> cython.int:
        """A request arrives: at the rank that has the fewest, the first of them."""
        best: Engine = self.emptiest(seq)
        best.enqueue(seq, now, False)
        return 0

    def expect(self, seq: Sequence, now: cython.double) -> cython.int:
        """A request whose prompt was computed elsewhere is to be fetched: by the rank that has the fewest."""
        seq.handoff = False
        seq.source = seq.replica
        best: Engine = self.emptiest(seq)
        best.expect(seq, now, False)
        return 0

    def emptiest(self, seq: Sequence) -> Engine:
        """Give a request the rank that has the fewest, the first of them."""
        engine: Engine
        best: Engine = self.leader
        for engine in self.engines:
            if engine.running + engine.waiting < best.running + best.waiting:
                best = engine
        seq.replica = self.engines.index(best)
        return best

    def fetching(self) -> list[Any]:
        """Who may be fetched from now on, each with the ranks it is at and goes to, and the tokens of its KV."""
        engine: Engine
        seq: Sequence
        found: list[Any] = []
        for engine in self.engines:
            while engine.starts.size > 0:
                seq = engine.starts.take()
                found.append((seq, seq.source, seq.replica, seq.target))
        return found

    def let_go(self, seq: Sequence, now: cython.double) -> cython.int:
        """The KV of a request whose prompt was computed here has been fetched, or is not wanted any more."""
        engine: Engine = self.engines[seq.source]
        engine.let_go(seq, now)
        return 0

    def land(self, seq: Sequence, now: cython.double) -> cython.int:
        """The KV of a request has arrived here."""
        engine: Engine = self.engines[seq.replica]
        engine.land(seq, now, False)
        return 0

    def forsake(self, seq: Sequence, now: cython.double) -> cython.bint:
        """Wait no more for the KV of a request that was expected here and has not landed; whether its turn had come.

        Then pages were set aside for it, and the host forgets its transfer.
        """
        engine: Engine = self.engines[seq.replica]
        begun: cython.bint = not engine.incoming.remove(seq)
        if begun:
            engine.kv.used -= engine.kv.pages(seq.target)
            engine.running -= 1
        else:
            engine.waiting -= 1
        engine.notice(now, False)
        return begun

    def step(self, now: cython.double) -> tuple[list[Sequence], list[Sequence]]:
        """Close what ends now and open what can start; who got a token, first ones first, and who ended with it."""
        engine: Engine
        lane: Lane
        seq: Sequence
        tokens: list[Any] = []
        ended: list[Any] = []
        for engine in self.engines:
            for lane in engine.lanes:
                if lane.busy and lane.end_s <= now:
                    tokens.extend(lane.chunks.items[lane.chunks.head : lane.chunks.head + lane.chunks.size])
                    if not (engine.alone and lane.chunk_count > 0):
                        tokens.extend(lane.finish.members())
        self.leader.step(now)
        for engine in self.engines:
            while engine.out.size > 0:
                seq = engine.out.take()
                if seq.status == ENDED:
                    ended.append(seq)
                else:
                    self.handed.append(seq)
        return tokens, ended

    def abort(self, seq: Sequence, now: cython.double) -> cython.bint:
        """Take out a request that has not ended. True: it is out. False: it ends with the step under way.

        A step cannot lose a sequence half-way; so one that runs is given an output that ends with this step, and then
        ends like any other.
        """
        engine: Engine = self.engines[seq.replica]
        if engine.inbox.remove(seq) or engine.queue.remove(seq):
            engine.waiting -= 1
            engine.waiting_tokens -= seq.target
        elif seq in engine.landed:
            engine.landed = [other for other in engine.landed if other is not seq]
            engine.kv.used -= engine.kv.pages(seq.target)
            engine.running -= 1
        elif engine.partial is seq:
            engine.partial = None
            engine.kv.free(seq, seq.computed, now, True)
            engine.running -= 1
        else:
            self.cut_short(engine, seq)
            return False
        engine.notice(now, False)
        return True

    def cut_short(self, engine: Engine, seq: Sequence) -> cython.int:
        """Let a sequence of the step under way end with it.

        Where a prompt is computed alone, the others get no token in this step: they end as they are.
        """
        lane: Lane
        ends: cython.longlong
        for lane in engine.lanes:
            if not lane.finish.remove(seq):
                continue
            ends = lane.step + (0 if engine.alone and lane.busy and lane.chunk_count > 0 else 1)
            if seq.cross_step > ends and seq.cross_step < seq.finish_step:
                lane.cross.remove(seq)
            seq.finish_step = ends
            seq.output_tokens = seq.generated + ends - seq.join_step
            lane.finish.push(ends, seq)
            if ends == lane.step:
                lane.fresh = [other for other in lane.fresh if other is not seq]
            return 0
        seq.output_tokens = seq.generated + 1
        return 0
