"""Data-parallel ranks of one replica: each has its own queue and KV, all step together."""

from __future__ import annotations

import cython
import numpy as np

from headway.engine.core import Engine
from headway.engine.lane import Lane
from headway.engine.law import StepLaw
from headway.engine.sequence import Sequence

NEVER = cython.declare(cython.double, float("inf"))


class Lockstep:
    """Ranks share their experts, so every step takes as long as the slowest rank's and then the experts' for all.

    The first rank leads: its `next_s` is the group's, that of the others is never. `shared_by_tokens[n]` counts the
    steps with n tokens in all ranks together. Where ranks align their prompts, `waited` counts the steps since these
    last went or all ranks had one, `gathered` those since.
    """

    def __init__(self, ranks: list[Engine]) -> None:
        engine: Engine = ranks[0]
        self.ranks = ranks
        self.law = engine.law
        self.busy = False
        self.end_s = 0.0
        self.waited = self.gathered = 0
        self.shared_by_tokens = np.zeros(len(self.law.shared_s), dtype=np.int64)
        for engine in ranks:
            engine.group = self
            engine.single = True

    def notice(self, now: cython.double) -> None:
        """Look at the news of a rank when the step under way ends, now if there is none."""
        leader: Engine = self.ranks[0]
        if not self.busy:
            leader.next_s = now

    def wants(self, engine: Engine, now: cython.double) -> cython.bint:
        """Whether a rank could compute a prompt now."""
        if engine.partial is not None:
            return True
        if engine.queue.size == 0 or engine.running >= engine.max_seqs:
            return False
        seq: Sequence = engine.queue.peek(now)
        return engine.kv.entry_price(seq, engine.kv.hit(seq)) <= engine.kv.total - engine.kv.used

    def withholds(self, now: cython.double) -> cython.bint:
        """Whether the next step leaves prompts out, as TensorRT-LLM's balancing of data-parallel attention does.

        They wait until all ranks have one, for `align_steps` at most, and then `gather_steps` for more of them. A rank
        that has nothing but prompts ends the wait, so that no group stands still.
        """
        engine: Engine
        lane: Lane
        prompts: cython.Py_ssize_t = 0
        decoding: cython.Py_ssize_t = 0
        starved: cython.bint = False
        for engine in self.ranks:
            lane = engine.lanes[0]
            if lane.n > 0 or engine.landed:
                decoding += 1
                prompts += self.wants(engine, now)
            elif self.wants(engine, now):
                prompts += 1
                starved = True
        if prompts + decoding == 0:
            return False
        if prompts == len(self.ranks):
            self.waited = 0
            if starved:
                return False
            self.gathered = self.gathered + 1 if self.gathered < self.law.gather_steps else 0
            return self.gathered > 0
        self.waited = 0 if starved or self.waited + 1 >= self.law.align_steps else self.waited + 1
        return self.waited > 0

    def step(self, now: cython.double) -> None:
        """Close the step that ends now in all ranks, then open the next in all."""
        engine: Engine
        lane: Lane
        law: StepLaw = self.law
        n: cython.longlong
        tokens: cython.longlong = 0
        slowest_s: cython.double = 0.0
        for engine in self.ranks:
            lane = engine.lanes[0]
            if lane.busy:
                engine.close(lane, now)
        held: cython.bint = law.align_steps > 0 and self.withholds(now)
        for engine in self.ranks:
            lane = engine.lanes[0]
            engine.held = held
            if engine.open(lane, now) and not lane.busy:
                engine.held = False
                engine.open(lane, now)
            engine.busy.note(lane.busy, now)
            if lane.busy:
                n = 0 if engine.alone and lane.chunk_count > 0 else lane.n
                tokens += n + lane.chunk_tokens
                slowest_s = max(
                    slowest_s,
                    lane.chunk_s
                    + law.mixed_s(n, lane.ctx, lane.ctx_window, n + lane.chunk_tokens, n + lane.chunk_count),
                )
        self.busy = tokens > 0
        self.end_s = now + (slowest_s + law.shared_s[tokens])
        for engine in self.ranks:
            lane = engine.lanes[0]
            lane.end_s = self.end_s
        if self.busy:
            self.shared_by_tokens[tokens] += 1
        engine = self.ranks[0]
        engine.next_s = self.end_s if self.busy else NEVER
