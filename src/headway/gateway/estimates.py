"""What the load is estimated to draw and cost: the cost model's watts at the books' load, the GPUs' price by the hour.

Nothing here is measured. Power is looked at a few times a second and taken to stay as it is until the next look.
"""

from __future__ import annotations

import math

from headway.cost import StepTable
from headway.gateway.books import ReplicaBook

LOOK_S = 0.2  # between two looks; one costs 15 us for each replica


def watts(table: StepTable, running: int, context: int, waiting_tokens: int) -> float:
    """Return the power in watts of all GPUs of a replica that steps with so many requests, prompts among them.

    Data-parallel ranks share the load evenly; a pipeline computes one step at a time.
    """
    power = table.idle_watts
    n = min(math.ceil(running / table.ranks), table.max_seqs - 1)
    new = min(math.ceil(waiting_tokens / table.ranks), table.max_batched_tokens - n)
    if n + new > 0:
        ctx = math.ceil(context / table.ranks) if n else 0
        windowed = min(ctx, n * table.window) if table.window else 0
        chunks = [(0, new)] if new else []
        seconds = table.stages * table.step_seconds(n, ctx, windowed, chunks)
        seconds += (table.stages - 1) * float(table.p2p_s[n + new])
        if seconds > 0:
            power += table.step_joules(n, ctx, windowed, chunks) / seconds
    return power * table.ranks


class Meter:
    """Estimated power, energy and cost of one replica since the start."""

    def __init__(self, book: ReplicaBook, usd_per_hour: float | None) -> None:
        self.book = book
        self.usd_per_hour = usd_per_hour
        self.watts: float | None = None
        self.joules = 0.0
        self.usd = 0.0
        self.looked_s: float | None = None

    def look(self, now: float) -> None:
        """Bring the sums to the present."""
        passed_s = 0.0 if self.looked_s is None else now - self.looked_s
        self.looked_s = now
        if self.usd_per_hour is not None:
            self.usd += self.usd_per_hour * passed_s / 3600.0
        book, table = self.book, self.book.pace.table
        if table is not None:
            self.joules += (self.watts or 0.0) * passed_s
            book.advance(now)
            self.watts = watts(table, book.running + book.others, book.context, book.computing_tokens)
