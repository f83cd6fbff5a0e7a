"""How sure a plan is: the cost model's error for its best, and which others that error does not tell from it."""

from __future__ import annotations

import math
from typing import NamedTuple

from headway.cost.uncertainty import ranking_spread
from headway.metrics.result import Uncertainty
from headway.plan.question import Objective
from headway.plan.ranking import Entry
from headway.sim.trust import uncertainty
from headway.units import format_rate

__all__ = ["Doubt", "doubt"]

_NAMED = 3  # in the sentence; the plan's `ties` has all
_DECIDES: dict[Objective, tuple[str, str, Objective]] = {  # metric, in words, what is compared
    "cost": ("output_throughput", "goodput at the same price", "rate"),
    "gpus": ("output_throughput", "goodput on as many GPUs", "rate"),
    "energy": ("energy_per_token", "joules per token", "energy"),
    "carbon": ("energy_per_token", "CO2 per token", "carbon"),
    "goodput": ("output_throughput", "goodput per GPU", "goodput"),
    "rate": ("output_throughput", "goodput", "rate"),
    "ttft": ("ttft", "TTFT", "ttft"),
    "tpot": ("tpot", "TPOT", "tpot"),
}
_LEVELS = {
    "calibrated": "calibrated models", "seen pair": "seen pairs", "seen GPU": "unseen pairs on seen GPUs",
    "family": "unseen GPUs", "data sheet": "data sheets alone",
}  # fmt: skip


class Doubt(NamedTuple):
    """Error of the best's figures, of ratios between candidates, who is tied with the best by it, and in words."""

    error: Uncertainty | None
    ratio: float
    ties: list[str]
    words: str


def doubt(ranked: list[Entry], objective: Objective, rate_req_s: float) -> Doubt:
    """Return how sure the first place is; `ranked` as the plan has them.

    Errors of candidates of one model, GPU and engine are alike, so their ratio is surer than each of them; of two
    engines it is as unsure as both together. Ties are
    those that meet the SLO and whose objective (at an equal price: whose goodput) is within the error of a ratio.
    """
    if not ranked:
        return Doubt(None, 0.0, [], "")
    best = ranked[0]
    error = uncertainty(best.deployment)
    metric, what, decisive = _DECIDES[objective]
    level, spread = error.levels[metric], _spread(error, metric)
    ratio = math.expm1(spread)
    if not best.meets:
        return Doubt(error, ratio, [], "")
    ties = [
        entry.deployment.name
        for entry in ranked[1:]
        if entry.meets
        and not (decisive in ("rate", "goodput") and entry.outcome.goodput.open_ended)  # nobody knows how much it is
        and (objective not in ("cost", "gpus") or _costs(entry, objective) == _costs(best, objective))
        and _near(entry.measure(decisive), best.measure(decisive), _between(entry, best, metric, spread))
    ]
    said = (_tied(ties, level, ratio, what), _tight(best, error, rate_req_s))
    return Doubt(error, ratio, ties, " ".join(filter(None, said)))


def _costs(entry: Entry, objective: Objective) -> tuple[float, int]:
    """What is exact of the ranking: at equal cost fewer GPUs come first."""
    return entry.measure(objective), entry.deployment.gpus


def _spread(error: Uncertainty, metric: str) -> float:
    """ln of how far a ratio of two candidates may be off; ratios of latencies were not measured: half their interval.

    What is wrong with both alike moves the middle of an interval, not its width.
    """
    if metric in ("ttft", "tpot"):
        low, high = getattr(error, metric)
        return math.log(high / low) / 2
    return ranking_spread(error.levels[metric], metric)


def _between(one: Entry, best: Entry, metric: str, spread: float) -> float:
    """ln of how far the ratio of two may be off: errors of different engines are taken to have nothing in common."""
    names = [{pool.replica.engine.name for pool in entry.deployment.pools} for entry in (one, best)]
    if names[0] == names[1]:
        return spread
    ends = [getattr(uncertainty(entry.deployment), metric) for entry in (one, best)]
    return math.hypot(*(math.log(high / low) / 2 for low, high in ends))


def _near(one: float, other: float, spread: float) -> bool:
    one, other = abs(one), abs(other)
    return 0.0 < one < math.inf and 0.0 < other < math.inf and abs(math.log(one / other)) <= spread


def _tied(ties: list[str], level: str, ratio: float, what: str) -> str:
    if not ties:
        return ""
    named = ", ".join(ties[:_NAMED])
    more = f" and {len(ties) - _NAMED} more" if len(ties) > _NAMED else ""
    return (
        f"In {what} it lies within the error of the cost model for {_LEVELS[level]} (±{ratio:.0%} between layouts) "
        f"of {named}{more}."
    )


def _tight(best: Entry, error: Uncertainty, rate_req_s: float) -> str:
    """Whether the headroom is less than the cost model's error."""
    goodput = best.outcome.goodput.req_s
    low, _ = error.around("output_throughput", goodput)
    if low >= rate_req_s:
        return ""
    return (
        f"Its headroom of {goodput / rate_req_s - 1:+.0%} is less than the error of the cost model: the "
        f"{error.coverage:.0%} interval of its throughput reaches down to {format_rate(low)} (--why simulates the SLO "
        "with steps as slow as they may be, which can say less)."
    )
