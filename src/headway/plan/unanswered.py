"""The answer to a question that nothing answers: what stands in the way, and what to change."""

from __future__ import annotations

from collections.abc import Mapping

from headway.errors import DoesNotFit
from headway.plan.explain import NAMES, breaks, named, of_class
from headway.plan.floor import Floor
from headway.plan.question import Question
from headway.plan.ranking import Entry
from headway.plan.shapes import shape_of
from headway.plan.wish import Wish
from headway.units import format_rate, format_seconds

__all__ = ["below_floor", "nothing_allowed", "nothing_fits", "too_tight"]

_DEGREES = ("tp", "pp", "dp", "ep")


def too_tight(entry: Entry, question: Question, changes: list[Wish]) -> str:
    """Return the answer when no rate meets the SLO; `entry` comes nearest, at a rate at which requests hardly meet."""
    outcome, target = entry.outcome, question.slo_of(entry.outcome.binding_class).attainment
    who = f"the nearest, {entry.deployment.name},"
    if outcome.binding not in NAMES:
        return f"No plan on {question.gpu_words} works: in {who} {breaks(entry)}.{_otherwise(changes)}"
    name, limit, takes = named(outcome), format_seconds(outcome.limit_s), format_seconds(outcome.worst_s)
    start = f"No plan on {question.gpu_words} meets the SLO at any rate:"
    if outcome.worst_s <= outcome.limit_s:
        return (
            f"{start} {who} keeps each limit for {target:.0%} of requests, but not all at once; {name} is "
            f"tightest.{_otherwise(changes)}"
        )
    share, less = 1.0, ""
    if outcome.binding in ("tpot", "itl") and question.margin:
        share, less = 1 - question.margin, f" less {question.margin:.0%} of margin"
    return (
        f"{start} {who} needs {takes} of {name} for {target:.0%} of requests even when they hardly meet, and the "
        f"limit{less} is {limit}. Ask for {format_seconds(1.01 * outcome.worst_s / share)} or more"
        + (f", or {_changes(changes)}." if changes else ": no other replica, precision or GPU with a price meets it.")
    )


def below_floor(low: Floor, whose: str, needs_s: float | None, question: Question, changes: list[Wish]) -> str:
    """Return the answer when a limit is below what the data sheet allows at all; simulated alone it `needs_s`.

    `whose`: the class with that limit, where there are several.
    """
    name, limit, least = NAMES[low.binding] + of_class(whose), format_seconds(low.limit_s), format_seconds(low.least_s)
    ask = f"Ask for clearly more than {least}"
    if needs_s == 0.0:
        ask = "Besides, its requests exceed the KV cache or the context"
    elif needs_s is not None:
        share = 1 - question.margin if low.binding in ("tpot", "itl") else 1.0
        ask = (
            f"Simulated with requests that hardly meet, it needs {format_seconds(needs_s)}: ask for "
            f"{format_seconds(1.01 * needs_s / share)} or more"
        )
    return (
        f"{name} {limit} is below the physical floor of {least}, so nothing was searched. On the quickest replica "
        f"possible on {question.gpu_words}{_bounds(question)}, {low.replica.model} as {shape_of(low.replica)}: "
        f"{low.why} All else comes on top. {ask}" + (f", or {_changes(changes)}." if changes else ".")
    )


def _bounds(question: Question) -> str:
    """The constraints that a replica's latency depends on."""
    said = [f"max_tp {question.max_tp}"] if question.max_tp is not None else []
    said += [_tried(question, name) for name in ("tp", "dp", "ep", "weights") if getattr(question, name)]
    return f" with {' and '.join(said)}" if said else ""


def _changes(changes: list[Wish], does: str = "would do") -> str:
    """What to change and what would do then: "raise max_tp 4 (1x tp8 ... on 8 h100-sxm would serve up to 2 req/s)"."""
    return ", or ".join(f"{each.change} ({_would(each, does)})" for each in changes)


def _would(wish: Wish, does: str) -> str:
    usd = wish.deployment.usd_per_hour
    cost = "" if usd is None else f", ${usd:.2f} per hour,"
    if wish.serves_req_s is not None:
        does = f"would serve up to {format_rate(wish.serves_req_s)}"
    return f"{wish.deployment.name} on {wish.deployment.gpu_words}{cost} {does}"


def _otherwise(changes: list[Wish], does: str = "would do") -> str:
    words = _changes(changes, does)
    return f" {words[0].upper()}{words[1:]}." if words else ""


def nothing_fits(refusal: DoesNotFit | None, question: Question, changes: list[Wish]) -> str:
    """Return the answer when no replica fits its GPUs; `refusal` lacks the least."""
    lack = f": {refusal.lack}" if refusal else ""
    would = f"; {_changes(changes, 'would fit') or 'no GPU with a price holds it under these constraints'}"
    return f"No plan on {question.gpu_words} fits the model{lack}{would}."


def nothing_allowed(
    discarded: Mapping[str, int], question: Question, changes: list[Wish], *, without_spare: bool
) -> str:
    """Return the answer when it is constraints of the question that leave no candidate; "" where it is the memory.

    `without_spare` says whether some hold the model where no replica may be down.
    """
    spare = f"spare {question.spare}" if question.spare else ""
    start = f"No plan on {question.gpu_words} is allowed:"
    if discarded.get("watts"):
        return f"{start} {_power(discarded, question, changes)}{_otherwise(changes, 'would fit')}"
    if discarded.get("budget"):
        most = f"max_usd_per_hour {question.max_usd_per_hour:g}"
        against = f"{most} against {spare}" if spare else most
        return (
            f"{start} {against} leaves none, as all {discarded['budget']:,} whose replicas fit cost "
            f"more.{_otherwise(changes, 'would fit')}"
        )
    if not discarded and not question.spare:
        return (
            f"{start} layouts {', '.join(question.layouts)} against {question.gpu_words} leaves none: a prefill and a "
            f"decode replica that KV goes between take more GPUs than there are.{_otherwise(changes, 'would fit')}"
        )
    if without_spare:
        return (
            f"{start} {spare} against {question.gpu_words} leaves none: it needs {question.spare + 1} replicas in "
            f"every pool, and so many that hold the model take more GPUs than there "
            f"are.{_otherwise(changes, 'would fit')}"
        )
    return ""


def _power(discarded: Mapping[str, int], question: Question, changes: list[Wish]) -> str:
    """That the GPUs of all that are left may draw too much, or cost too much, and what of the question makes them."""
    named = {"max_watts": question.max_watts, "watts_per_rack": question.watts_per_rack}
    power = " and ".join(f"{name} {most:g}" for name, most in named.items() if most is not None)
    dear, money = discarded.get("budget", 0), f"max_usd_per_hour {question.max_usd_per_hour or 0:g}"
    loosened = [name for each in changes for name in each.names]
    degrees = [_tried(question, name) for name in _DEGREES if name in loosened]
    spare = f"spare {question.spare}" if question.spare else ""
    against = " and ".join(filter(None, (money if dear else "", spare, *degrees))) or question.gpu_words
    limit = "their TDP" if question.cap_watts is None else _tried(question, "cap_watts")
    costs = f" or cost more ({dear:,})" if dear else ""
    return (
        f"{power} against {against} leaves none, as all whose replicas fit may draw more at {limit} "
        f"({discarded['watts']:,}){costs}."
    )


def _tried(question: Question, name: str) -> str:
    """``tp 2, 4``: what a question lists of something."""
    values = [f"{each:g}" if isinstance(each, float) else f"{each}" for each in getattr(question, name)]
    return f"{name} {', '.join(values)}"
