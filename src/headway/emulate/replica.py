"""One emulated replica in virtual time: the simulator's engine, and requests on their way to it.

No clock and no network here: whoever keeps the time says how far to go. Fed with the arrivals of a simulation it gives
the simulation's times, to the bit.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from typing import Any

from headway.cost import EngineSettings, StepTable
from headway.engine import Engine, Gaps, Lockstep, Sequence, StepLaw, WorkDone
from headway.engine.live import LiveReplica
from headway.metrics import Histogram

_BINS = (Histogram.BINS, Histogram.MIN_S, Histogram.INV_LOG_GROWTH)


class PacedReplica:
    """An engine, or data-parallel ranks in lock-step, with the requests that have been sent and not yet arrived.

    A request reaches the engine `intake_s` after it was sent, as in `simulate`. `order`: an order policy, None for
    first come first served. `block_tokens`: tokens of a prefix unit, 0 where the engine caches no prefixes.
    """

    def __init__(self, table: StepTable, settings: EngineSettings, order: Any = None) -> None:
        self.intake_s = table.intake_s
        self.max_context = table.max_context
        self.block_tokens = table.block_tokens if settings.prefix_cache else 0
        self.engines = engines_of(table, settings, "mixed", order)
        self.live = LiveReplica(self.engines)
        self.coming: list[tuple[float, int, Sequence]] = []
        self.sent = 0

    @property
    def next_s(self) -> float:
        """When something happens next; infinity while nothing is under way."""
        arrives_s = self.coming[0][0] if self.coming else math.inf
        return min(arrives_s, self.live.next_s())

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return sum(engine.running for engine in self.engines)

    def fits(self, seq: Sequence) -> bool:
        """Whether the request could ever run here, alone."""
        return bool(self.live.fits(seq))

    def send(self, seq: Sequence, sent_s: float) -> None:
        """A client sends a request that fits."""
        self.sent += 1
        heapq.heappush(self.coming, (sent_s + self.intake_s, self.sent, seq))

    def advance(self, until_s: float) -> Iterator[tuple[float, list[Sequence], list[Sequence]]]:
        """Let everything up to `until_s` happen: the time of each step's end, who got a token, who of them ended.

        At one instant requests arrive before the engine steps, so that the step sees them.
        """
        live, coming = self.live, self.coming
        while True:
            steps_s = live.next_s()
            if coming and coming[0][0] <= steps_s:
                if coming[0][0] > until_s:
                    return
                arrives_s, _, seq = heapq.heappop(coming)
                live.enqueue(seq, arrives_s)
                continue
            if steps_s > until_s or steps_s == math.inf:
                return
            tokens, ended = live.step(steps_s)
            if tokens or ended:
                yield steps_s, tokens, ended

    def abort(self, seq: Sequence, now_s: float) -> None:
        """A client has left: its request goes at once if it waits, with the step under way if it runs."""
        for at, (_, _, other) in enumerate(self.coming):
            if other is seq:
                del self.coming[at]
                heapq.heapify(self.coming)
                return
        self.live.abort(seq, now_s)

    def books(self, now_s: float) -> dict[str, float]:
        """Return what is in use: requests running and waiting, KV pages used and in all, tokens asked and found."""
        return books_of(self.engines, now_s)


def engines_of(table: StepTable, settings: EngineSettings, role: str, order: Any) -> list[Engine]:
    """Return the engine of a replica, or its data-parallel ranks, which step together."""
    law, work = StepLaw(table), WorkDone(settings.max_batched_tokens, settings.max_seqs)
    gaps = Gaps(*_BINS, settings.max_seqs)
    shared = (law, settings, role, order, table.block_tokens, work, gaps)
    engines = [Engine(rank, *shared) for rank in range(table.ranks)]
    if table.ranks > 1:
        Lockstep(engines)
    return engines


def books_of(engines: list[Engine], now_s: float) -> dict[str, float]:
    """Return what is in use at the ranks of a replica."""
    for engine in engines:
        engine.refresh(now_s)
    return {
        "running": sum(engine.running for engine in engines),
        "waiting": sum(engine.waiting for engine in engines),
        "kv_used": sum(engine.kv_used_blocks for engine in engines),
        "kv_total": sum(engine.kv_total_blocks for engine in engines),
        "queried": sum(engine.queried_tokens for engine in engines),
        "hit": sum(engine.hit_tokens for engine in engines),
        "preemptions": sum(engine.preemptions for engine in engines),
    }
