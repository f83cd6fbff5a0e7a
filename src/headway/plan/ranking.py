"""The order of candidates and their Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from headway.plan.evaluate import Outcome
from headway.plan.question import Objective
from headway.plan.trial import STEP
from headway.sim import Deployment

__all__ = ["EXACT", "MEASURES", "Entry", "front", "rank", "undecided"]

TOLERANCE = STEP - 1  # what the search leaves open of a goodput; runs of 8,000 requests tell others no better
EXACT = "cost", "gpus"  # objectives that are not simulated


class Entry(NamedTuple):
    """A deployment with what was found out about it; `meets` may be a hope while only short runs were made.

    `changes`: what its runs found is compared times these, as longer runs and further seeds change it for others.
    """

    deployment: Deployment
    outcome: Outcome
    meets: bool
    changes: Mapping[Objective, float] = MappingProxyType({})

    @property
    def goodput_per_gpu(self) -> float:
        """Requests per second and GPU."""
        return self.outcome.goodput.req_s / self.deployment.gpus

    @property
    def usd_per_hour(self) -> float | None:
        """Dollars per hour for all its GPUs; None without a price."""
        return self.deployment.usd_per_hour

    @property
    def joules(self) -> float:
        """Joules per output token at the asked rate; infinite where unknown."""
        return self._asked("joules_per_output_token")

    def _asked(self, *names: str) -> float:
        """The sum of what is known of these figures at the asked rate; infinite where the first is not."""
        values = [getattr(self.outcome.asked, name, None) for name in names]
        return math.inf if values[0] is None else sum(value for value in values if value is not None)

    @property
    def miss(self) -> float:
        """How many times its limit the binding latency takes; infinite where something else binds."""
        return self.outcome.worst_s / self.outcome.limit_s if self.outcome.limit_s else math.inf

    def measure(self, objective: Objective) -> float:
        """What the objective wants small: `MEASURES` has the words and units."""
        return MEASURES[objective](self) * self.changes.get(objective, 1.0)


MEASURES: dict[Objective, Callable[[Entry], float]] = {
    "cost": lambda entry: math.inf if (usd := entry.usd_per_hour) is None else usd,
    "gpus": lambda entry: entry.deployment.gpus,
    "energy": lambda entry: entry.joules,
    "carbon": lambda entry: entry._asked("carbon_g_per_million_output_tokens", "embodied_g_per_million_output_tokens"),
    "goodput": lambda entry: -entry.goodput_per_gpu,
    "rate": lambda entry: -entry.outcome.goodput.req_s,
    "ttft": lambda entry: entry._asked("ttft_s"),
    "tpot": lambda entry: entry._asked("tpot_s"),
}


def rank(entries: list[Entry], objective: Objective) -> list[Entry]:
    """Return the entries, the best first.

    Those that meet the SLO at the asked rate come first, by their objective; at equal cost the one with fewer GPUs, as
    where they are owned and their price is 0, then the one that can serve more, and of those that serve as much the one
    with less energy. Then the others by what they serve, and those that serve nothing by how far they miss. Names break
    ties.
    """

    def key(entry: Entry) -> tuple[int, float, float, float, float, int, str]:
        less, gpus, name = entry.measure("rate"), entry.deployment.gpus, entry.deployment.name
        if entry.meets:
            fewer = gpus if objective == "cost" else 0
            return 0, entry.measure(objective), fewer, less, entry.joules, gpus, name
        return 1, 0.0, less, entry.miss, entry.joules, gpus, name

    return sorted(entries, key=key)


def front(entries: list[Entry], objectives: tuple[Objective, ...], objective: Objective) -> list[Entry]:
    """Return the entries that no other matches, the best by `objective` first.

    One beats another if it is as good in all objectives and better in one. Down the ranking of the unbeaten, those are
    left out that one before them matches: it is as good in all, where `TOLERANCE` counts for nothing in what is
    simulated. So each entry is matched by one of the front, of which the best by `objective` is, if it is unbeaten.
    Only entries that meet the SLO are compared; if there are none, all that serve anything.
    """
    field = [entry for entry in entries if entry.meets] or [e for e in entries if e.outcome.goodput.req_s > 0]
    point = {id(entry): tuple(entry.measure(each) for each in objectives) for entry in field}
    unbeaten: set[tuple[float, ...]] = set()
    for mine in sorted(set(point.values())):  # who beats another comes before it
        if not any(all(a <= b for a, b in zip(other, mine, strict=True)) for other in unbeaten):
            unbeaten.add(mine)
    slacks = [0.0 if each in EXACT else TOLERANCE for each in objectives]

    def matches(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return all(a <= (b + slack * abs(b) if slack else b) for a, b, slack in zip(one, other, slacks, strict=True))

    kept: dict[tuple[float, ...], Entry] = {}
    for entry in rank([entry for entry in field if point[id(entry)] in unbeaten], objective):
        if not any(matches(other, point[id(entry)]) for other in kept):
            kept[point[id(entry)]] = entry
    return list(kept.values())


def undecided(ranked: list[Entry], objective: Objective, target: float) -> list[Entry]:
    """Return those that would be first, but whose interval on several seeds does not tell whether they meet the SLO."""
    best = ranked[0].measure(objective) if ranked and ranked[0].meets else math.inf

    def open_yet(entry: Entry) -> bool:
        may = entry.outcome.asked is not None and entry.outcome.asked.may_meet(target)
        in_doubt = not entry.meets and bool(entry.outcome.seeds) and may
        return in_doubt and entry.measure(objective) < best

    return [entry for entry in ranked if open_yet(entry)]
