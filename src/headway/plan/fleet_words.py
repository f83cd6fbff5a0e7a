"""A fleet's answer in words: what serves whom, whether sharing pays, and what stands in the way where nothing does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headway.hardware.files import gpu_name
from headway.plan.fleet_answer import Fleet, Part, Way
from headway.plan.question import Question
from headway.units import counted

__all__ = ["amount", "kinds", "listed", "message", "supply", "told"]

_LIMITS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "memory": "memory", "rate": "the rate"}


def message(made: Fleet, least: Mapping[str, int] | None) -> str:
    """Return the answer in some sentences; `least` are the GPUs that would do where those there are do not."""
    so_far = (
        f"Interrupted with {made.planned} of {made.groups} groups of classes planned for to the end; so far: "
        if made.interrupted
        else ""
    )
    if not made.parts:
        return so_far + _nothing(made, least)
    served = "; ".join(_part(part) for part in made.parts)
    cost = "" if made.usd_per_hour is None else f", ${made.usd_per_hour:.2f} per hour"
    also = f", {amount(made.value, made.question)}" if made.question.objective in ("energy", "carbon") else ""
    return f"{so_far}{served}: {kinds(made.gpus)}{cost}{also} in all. {told(made)}"


def told(made: Fleet) -> str:
    """Return whether sharing pays, and what breaks first, of an answer with pools."""
    limits = [f"{_limit(part)} in {part.serves}" for part in made.parts]
    return " ".join([*_sharing(made), f"First to break at a higher rate: {listed(limits)}."])


def _part(part: Part) -> str:
    return f"{listed(part.classes)} on {part.candidate.name} of {part.model}"


def _sharing(made: Fleet) -> list[str]:
    """Of each model with several classes: one pool for all against a pool for each, and who is the best."""
    said = []
    for model in dict.fromkeys(way.model for way in made.ways):
        ways = [way for way in made.ways if way.model == model]
        fewest, most = min(ways, key=lambda way: len(way.pools)), max(ways, key=lambda way: len(way.pools))
        said.append(_compared(fewest, most, made.question))
        if ways[0] not in (fewest, most):
            pools = " | ".join(listed(each) for each in ways[0].pools)
            said.append(f"Best of all is {pools}: {amount(ways[0].value, made.question)}.")
    return said


def _compared(shared: Way, apart: Way, question: Question) -> str:
    names = listed(name for pool in shared.pools for name in pool)
    one, each = amount(shared.value, question), amount(apart.value, question)
    if shared.value is None and apart.value is None:
        return f"Neither one pool for {names} nor a pool for each will do."
    if apart.value is None:
        return f"{names} share a pool; a pool for each will not do: {apart.why}"
    if shared.value is None:
        return f"{names} have a pool each; one pool for all will not do: {shared.why}"
    start = f"One pool for {names} comes to {one} in all, a pool for each to {each}:"
    if shared.value == apart.value:
        return f"{start} sharing changes nothing."
    less, more = sorted((shared.value, apart.value))
    how = "sharing" if shared.value < apart.value else "keeping them apart"
    return f"{start} {how} saves {amount(more - less, question)} ({1 - less / more:.0%})."


def _limit(part: Part) -> str:
    whose = part.candidate.binding_class or (part.classes[0] if len(part.classes) == 1 else "")
    return _LIMITS[part.candidate.binding] + (f" of {whose}" if whose else "")


def _nothing(made: Fleet, least: Mapping[str, int] | None) -> str:
    if made.interrupted and made.planned < made.groups:
        return "no choice of pools for all classes is known yet."
    if least is not None:
        return (
            f"Every class can be served by itself, but not all of them on {supply(made.question)}: the best choice "
            f"takes {kinds(least)}."
        )
    short = " ".join(f"{names}: {said}" for names, said in made.short.items())
    return f"Not every class can be served on {supply(made.question)}. {short}"


def supply(question: Question) -> str:
    """Return what there is to choose from, in words."""
    usd = "" if question.max_usd_per_hour is None else f" for ${question.max_usd_per_hour:.2f} per hour"
    watts = "" if question.max_watts is None else f" within {question.max_watts:,.0f} W"
    racks = "" if question.watts_per_rack is None else f" with {question.watts_per_rack:,.0f} W per rack"
    return question.gpu_words + usd + watts + racks


def amount(value: float | None, question: Question) -> str:
    """Return a sum of the objective with its unit."""
    if value is None:
        return "-"
    objective = question.known(question.objective)
    if objective == "cost":
        return f"${value:.2f} per hour"
    if objective == "gpus":
        return counted(round(value), "GPU")
    return f"{value:,.0f} W" if objective == "energy" else f"{value:,.0f} g CO2 per hour"


def kinds(gpus: Mapping[str, int]) -> str:
    """Return how many GPUs of each kind."""
    return " and ".join(f"{count} {gpu_name(kind)}" for kind, count in gpus.items())


def listed(names: Iterable[str]) -> str:
    """Return ``a, b and c``."""
    *most, last = list(names)
    return f"{', '.join(most)} and {last}" if most else last
