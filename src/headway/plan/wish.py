"""What to change in a question that nothing answers: the fewest of its constraints to loosen, or another GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from headway.errors import BadInput
from headway.hardware import gpu, gpu_keys
from headway.plan.question import Question
from headway.plan.space import singles
from headway.sim import Deployment

__all__ = ["Wish", "wishes"]

_NODES = 4  # a replica over more of them is hardly served
_TOLD = 3
_LISTS = ("tp", "pp", "dp", "ep", "weights", "kv", "cap_watts", "clock_mhz", "max_seqs")
_BOTH = ("mixed", "split")

Meets = Callable[[Deployment], bool]


class Wish(NamedTuple):
    """A change of the question, in words that name what it said, and the smallest deployment that would do then."""

    change: str
    deployment: Deployment


def wishes(question: Question, meets: Meets) -> list[Wish]:
    """Return changes each of which alone makes a deployment possible that `meets`, none where not even all do.

    First the question's own constraints one by one; else another kind of GPU under the same constraints; else the
    fewest constraints that have to go together.

    Raises:
        KeyboardInterrupt: while `meets` simulated.
    """
    ways = _ways(question)
    found = [wish for name in ways if (wish := _loosened(question, ways, [name], meets))]
    if found:
        return found[:_TOLD]
    return _elsewhere(question, meets) or _together(question, ways, meets)


def _ways(question: Question) -> dict[str, tuple[str, dict[str, Any]]]:
    """By constraint: what to do about it, and the fields of a question without it."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {}
    if question.max_tp is not None:
        ways["max_tp"] = f"raise max_tp {question.max_tp}", {"max_tp": None}
    for name in _LISTS:
        tried = getattr(question, name)
        if tried is not None:
            listed = ", ".join(f"{each:g}" if isinstance(each, float) else f"{each}" for each in tried)
            ways[name] = f"allow other {name} than {listed}", {name: None}
    if "mixed" not in question.layouts:
        ways["layouts"] = "allow layouts mixed", {"layouts": _BOTH}
    if question.max_usd_per_hour is not None:
        ways["max_usd_per_hour"] = f"raise max_usd_per_hour {question.max_usd_per_hour:g}", {"max_usd_per_hour": None}
    for name in ("max_watts", "watts_per_rack"):
        most = getattr(question, name)
        if most is not None:
            both = {"watts_per_rack": None, "gpus_per_rack": None}
            ways[name] = f"raise {name} {most:g}", both if name in both else {name: None}
    if question.spare:
        ways["spare"] = f"lower spare {question.spare}", {"spare": 0}
    ways["gpus"] = f"have more GPUs than {question.gpu_words}", _more(question)
    return ways


def _more(question: Question) -> dict[str, Any]:
    many = {kind: max(count, _NODES * gpu(kind).gpus_per_node) for kind, count in question.stock.items()}
    if isinstance(question.gpu, str):
        return {"gpus": many[question.gpu]}
    return {"gpu": many, "gpus": None}


def _loosened(
    question: Question, ways: dict[str, tuple[str, dict[str, Any]]], names: Iterable[str], meets: Meets
) -> Wish | None:
    fields: dict[str, Any] = {}
    for name in names:
        fields |= ways[name][1]
    deployment = _first(msgspec.structs.replace(question, **fields), meets)
    return None if deployment is None else Wish(" and ".join(ways[name][0] for name in names), deployment)


def _together(question: Question, ways: dict[str, tuple[str, dict[str, Any]]], meets: Meets) -> list[Wish]:
    """All constraints loosened, then those taken back that need not be."""
    names = list(ways)
    if len(names) < 2 or not _loosened(question, ways, names, meets):
        return []
    for name in list(names):
        fewer = [each for each in names if each != name]
        if _loosened(question, ways, fewer, meets):
            names = fewer
    found = _loosened(question, ways, names, meets)
    return [found] if found else []


def _elsewhere(question: Question, meets: Meets) -> list[Wish]:
    """The cheapest deployment on a kind of GPU that can be rented and that the question does not have."""
    found = []
    for name in gpu_keys():
        card = gpu(name)
        if card.usd_per_hour is None or card.link_kind == "upi" or name in question.stock:
            continue  # a CPU is no remedy
        there = {"gpu": name, "gpus": min(question.most, card.gpus_per_node), "usd_per_gpu_hour": {}}
        try:
            other = msgspec.structs.replace(question, **there)
            found += [(card.usd_per_hour * each.gpus, each.gpus, name, each) for each in singles(other)]
        except BadInput:  # of no such precision, clock or engine, or none of it for the money
            continue
    for _, _, name, each in sorted(found, key=lambda one: one[:3]):
        if meets(each):
            return [Wish(f"take {name}", each)]
    return []


def _first(question: Question, meets: Meets) -> Deployment | None:
    """The smallest deployment that does."""
    return next(filter(meets, _ascending(question)), None)


def _ascending(question: Question) -> Iterator[Deployment]:
    try:
        return iter(sorted(singles(question), key=lambda each: each.gpus))
    except BadInput:
        return iter(())
