"""The prefill and decode replicas of one model in virtual time: engines, link and order of events are the simulator's.

A request is sent to a decode replica and names a prefill replica: there its prompt is computed, its first token made.
Then its decode replica fetches the KV when it has room, and goes on. Fed with the arrivals and the choices of a
simulation this gives the simulation's times, to the bit.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from headway.cost import Replica, StepTable
from headway.emulate.replica import books_of, engines_of
from headway.engine import Sequence
from headway.engine.live import LiveReplica, hand_over
from headway.errors import BadInput


class Link(Protocol):
    """What KV moves over, from rank to rank as all ranks of a deployment are numbered."""

    def send(self, source: int, target: int, tokens: int, now: float) -> float:
        """Start a transfer as soon as both ends are free; when it has arrived."""


class Way:
    """Where a request is, and whose port answers it."""

    __slots__ = ("at", "decode", "stage")

    def __init__(self, at: int, decode: int) -> None:
        self.at = at  # the replica that has it now
        self.decode = decode
        self.stage = "coming"  # then "engine", "expected" or "moving", and "engine" again


class Part(NamedTuple):
    """What a step gave to the answers of one port: who got a token, who of them ended."""

    replica: int
    tokens: list[Sequence]
    ended: list[Sequence]


class PacedPools:
    """Replicas by number, those that prefill among them, and the requests between them.

    Args:
        members: step table, replica and role of each, in the order of the pools.
        link: between prefill and decode.
        first: the number of the first rank of the first member at the link.
        order: an order policy, None for first come first served.

    Raises:
        BadInput: pools whose KV pages differ in size.
    """

    def __init__(
        self, members: list[tuple[StepTable, Replica, str]], link: Link, first: int = 0, order: Any = None
    ) -> None:
        sizes = {table.block_tokens for table, _, _ in members}
        if len(sizes) > 1:
            raise BadInput(f"prefill and decode pools with pages of {sizes} tokens: give both one engine.block_tokens")
        self.tables = [table for table, _, _ in members]
        self.roles = [role for _, _, role in members]
        self.caches = [replica.engine.prefix_cache for _, replica, _ in members]
        self.engines = [engines_of(table, replica.engine, role, order) for table, replica, role in members]
        self.lives = [LiveReplica(engines) for engines in self.engines]
        ends = [first]
        for engines in self.engines:
            ends.append(ends[-1] + len(engines))
        self.ends = ends
        self.link = link
        self.ways: dict[Sequence, Way] = {}
        self.coming: list[tuple[float, int, Sequence]] = []
        self.moving: list[tuple[float, int, Sequence]] = []
        self.serial = 0

    @property
    def intake_s(self) -> float:
        """The shortest time in which a request may reach an engine."""
        return min(table.intake_s for table in self.tables)

    @property
    def next_s(self) -> float:
        """When something happens next; infinity while nothing is under way."""
        firsts = [heap[0][0] for heap in (self.coming, self.moving) if heap]
        return min(*firsts, *(live.next_s() for live in self.lives), math.inf)

    def running(self) -> int:
        """Requests in the batches."""
        return sum(engine.running for engines in self.engines for engine in engines)

    def fits(self, seq: Sequence, decode: int, prefill: int | None) -> bool:
        """Whether a request could ever run at these, alone; it is to be handed over from then on."""
        fits = bool(self.lives[decode].fits(seq))
        return fits if prefill is None else fits and bool(self.lives[prefill].fits(hand_over(seq)))

    def send(self, seq: Sequence, sent_s: float, decode: int, prefill: int | None) -> None:
        """A client sends a request that fits; without a prefill replica the other computes the prompt itself.

        It reaches the engine that computes it by that one's `intake_s` later.
        """
        way = self.ways[seq] = Way(decode if prefill is None else prefill, decode)
        self._push(self.coming, sent_s + self.tables[way.at].intake_s, seq)

    def advance(self, until_s: float) -> Iterator[tuple[float, int, list[Part]]]:
        """Let everything up to `until_s` happen: the time of each step's end, whose it was, who got what.

        At one instant transfers end first, then requests arrive, then replicas step by their numbers.
        """
        while (now := self.next_s) <= until_s and now < math.inf:
            if self.moving and self.moving[0][0] == now:
                self._land(heapq.heappop(self.moving)[2], now)
            elif self.coming and self.coming[0][0] == now:
                self._arrive(heapq.heappop(self.coming)[2], now)
            else:
                number = next(i for i, live in enumerate(self.lives) if live.next_s() == now)
                parts = self._step(number, now)
                if parts:
                    yield now, number, parts

    def abort(self, seq: Sequence, now_s: float) -> None:
        """A client has left: its request goes at once, with the step under way if it runs."""
        way = self.ways.get(seq)
        if way is None:
            return
        live = self.lives[way.at]
        if way.stage == "engine":
            if live.abort(seq, now_s):
                del self.ways[seq]
            return
        if way.stage == "coming":
            self._take_out(self.coming, seq)
        else:
            self._source(way).let_go(seq, now_s)
            if self.lives[way.decode].forsake(seq, now_s):
                self._take_out(self.moving, seq)
        del self.ways[seq]

    def books(self, number: int, now_s: float) -> dict[str, float]:
        """Return what is in use at a replica, as `PacedReplica.books`."""
        return books_of(self.engines[number], now_s)

    def _arrive(self, seq: Sequence, now: float) -> None:
        way = self.ways[seq]
        way.stage = "engine"
        self.lives[way.at].enqueue(seq, now)

    def _land(self, seq: Sequence, now: float) -> None:
        way = self.ways[seq]
        self._source(way).let_go(seq, now)
        way.at, way.stage = way.decode, "engine"
        self.lives[way.decode].land(seq, now)

    def _step(self, number: int, now: float) -> list[Part]:
        live = self.lives[number]
        tokens, ended = live.step(now)
        parts = self._parts(number, tokens, ended)
        for seq in ended:
            del self.ways[seq]
        for seq in live.handed:
            way = self.ways[seq]
            way.stage = "expected"
            self.lives[way.decode].expect(seq, now)
        live.handed.clear()
        for seq, source, target, kv_tokens in live.fetching():
            way = self.ways[seq]
            way.stage = "moving"
            ends = self.ends[way.at] + source, self.ends[way.decode] + target
            self._push(self.moving, self.link.send(*ends, kv_tokens, now), seq)
        return parts

    def _parts(self, number: int, tokens: list[Sequence], ended: list[Sequence]) -> list[Part]:
        """The tokens of a step by the port that they leave from: a first token leaves from its decode replica's."""
        parts: dict[int, Part] = {}
        for seq in tokens:
            owner = self.ways[seq].decode
            parts.setdefault(owner, Part(owner, [], [])).tokens.append(seq)
        for seq in ended:
            parts[self.ways[seq].decode].ended.append(seq)
        return list(parts.values())

    def _source(self, way: Way) -> LiveReplica:
        return self.lives[way.at]

    def _push(self, heap: list[tuple[float, int, Sequence]], when_s: float, seq: Sequence) -> None:
        self.serial += 1
        heapq.heappush(heap, (when_s, self.serial, seq))

    @staticmethod
    def _take_out(heap: list[tuple[float, int, Sequence]], seq: Sequence) -> None:
        heap[:] = [entry for entry in heap if entry[2] is not seq]
        heapq.heapify(heap)


class Seat:
    """One replica of the pools as a port sees it, that is as a `PacedReplica`; `prefill` computes the prompts."""

    def __init__(self, pools: PacedPools, number: int, prefill: int | None = None) -> None:
        self.pools, self.number, self.prefill = pools, number, prefill
        table = pools.tables[number]
        self.max_context = table.max_context
        self.block_tokens = table.block_tokens if any(pools.caches) else 0

    def fits(self, seq: Sequence) -> bool:
        """Whether the request could ever run here, alone."""
        return self.pools.fits(seq, self.number, self.prefill)

    def send(self, seq: Sequence, sent_s: float) -> None:
        """A client sends a request that fits."""
        self.pools.send(seq, sent_s, self.number, self.prefill)

    def abort(self, seq: Sequence, now_s: float) -> None:
        """A client has left."""
        self.pools.abort(seq, now_s)

    def books(self, now_s: float) -> dict[str, float]:
        """Return what is in use."""
        return self.pools.books(self.number, now_s)
