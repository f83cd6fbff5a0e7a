"""The order of candidates and their Pareto front."""

from __future__ import annotations

import math
from typing import NamedTuple

from headway.plan.evaluate import Outcome
from headway.plan.question import Objective
from headway.sim import Deployment

__all__ = ["Entry", "front", "rank"]


class Entry(NamedTuple):
    """A deployment with what was found out about it; `meets` may be a hope while only short runs were made."""

    deployment: Deployment
    outcome: Outcome
    meets: bool

    @property
    def goodput_per_gpu(self) -> float:
        """Requests per second and GPU."""
        return self.outcome.goodput.req_s / self.deployment.gpus

    @property
    def usd_per_hour(self) -> float | None:
        """Dollars per hour for all its GPUs; None without a price."""
        each = self.deployment.priced().usd_per_gpu_hour
        return None if each is None else each * self.deployment.gpus

    @property
    def price(self) -> float:
        """Dollars per hour, or the number of GPUs where there is no price."""
        usd = self.usd_per_hour
        return self.deployment.gpus if usd is None else usd

    @property
    def joules(self) -> float:
        """Joules per output token at the asked rate; infinite where unknown."""
        joules = self.outcome.asked.joules_per_output_token if self.outcome.asked else None
        return math.inf if joules is None else joules

    @property
    def miss(self) -> float:
        """How many times its limit the binding latency takes; infinite where something else binds."""
        return self.outcome.worst_s / self.outcome.limit_s if self.outcome.limit_s else math.inf

    def measure(self, objective: Objective) -> float:
        """What the objective wants small."""
        return {"cost": self.price, "energy": self.joules, "goodput": -self.goodput_per_gpu}[objective]


def rank(entries: list[Entry], objective: Objective) -> list[Entry]:
    """Return the entries, the best first.

    Those that meet the SLO at the asked rate come first, by their objective; at equal cost the one that can serve more.
    Then the others by what they serve, and those that serve nothing by how far they miss. Names break ties.
    """

    def key(entry: Entry) -> tuple[int, float, float, int, str]:
        goodput, gpus, name = entry.outcome.goodput.req_s, entry.deployment.gpus, entry.deployment.name
        if entry.meets:
            return 0, entry.measure(objective), -goodput, gpus, name
        return 1, -goodput, entry.miss, gpus, name

    return sorted(entries, key=key)


def front(entries: list[Entry]) -> list[Entry]:
    """Return the entries that no other beats: none is as good in price, joules and goodput per GPU, and better in one.

    Only entries that meet the SLO are compared; if there are none, all that serve anything.
    """
    field = [entry for entry in entries if entry.meets] or [e for e in entries if e.outcome.goodput.req_s > 0]
    points = [(entry.price, entry.joules, -entry.goodput_per_gpu) for entry in field]

    def beaten(point: tuple[float, float, float]) -> bool:
        return any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)

    return [entry for entry, point in zip(field, points, strict=True) if not beaten(point)]
