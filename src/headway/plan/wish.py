"""What to change in a question that nothing answers: the fewest of its constraints to loosen, or another GPU.

Of the deployments that a change allows the one is named for which its constraints have to be loosened the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
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
    """A change of the question, in words that name what it said, and the deployment that asks for the least of it.

    `serves_req_s`: what that serves within the SLO, where this was simulated; with the spare replicas down.
    `names` are the fields of the question that it loosens, none where it takes another GPU.
    """

    change: str
    deployment: Deployment
    serves_req_s: float | None = None
    names: tuple[str, ...] = ()


def wishes(question: Question, meets: Meets) -> list[Wish]:
    """Return changes each of which alone makes a deployment possible that `meets`, none where not even all do.

    First the question's own constraints one by one; else another kind of GPU under the same constraints; else the
    fewest constraints that have to go together.

    Args:
        question: which nothing answers.
        meets: whether a deployment does; asked once for each that the question does not allow as it is.

    Raises:
        KeyboardInterrupt: while `meets` simulated.
    """
    tried = {each.pools: False for each in _ascending(question, ())}  # nothing answers it, so these do not do

    def known(deployment: Deployment) -> bool:
        if deployment.pools not in tried:
            tried[deployment.pools] = meets(deployment)
        return tried[deployment.pools]

    ways = _ways(question)
    found = [wish for name in ways if (wish := _loosened(question, ways, [name], known))]
    if found:
        return found[:_TOLD]
    return _elsewhere(question, known) or _together(question, ways, known)


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
    question: Question, ways: dict[str, tuple[str, dict[str, Any]]], names: Sequence[str], meets: Meets
) -> Wish | None:
    fields: dict[str, Any] = {}
    for name in names:
        fields |= ways[name][1]
    spares = range(question.spare - 1, -1, -1) if "spare" in names else [question.spare]
    for spare in spares:
        try:
            looser = msgspec.structs.replace(question, **(fields | {"spare": spare}))
        except BadInput:  # what is left contradicts itself: max_watts without the power limit that kept to it
            continue
        deployment = next(filter(meets, _ascending(looser, names)), None)
        if deployment is not None:
            return Wish(" and ".join(ways[name][0] for name in names), deployment, names=tuple(names))
    return None


def _together(question: Question, ways: dict[str, tuple[str, dict[str, Any]]], meets: Meets) -> list[Wish]:
    """The fewest constraints that have to go together; of equally many those that come first.

    Where all but one do not help, that one is among them, so only the others are tried in every number.
    """
    names = list(ways)
    if len(names) < 2 or not _loosened(question, ways, names, meets):
        return []
    needed = [name for name in names if not _loosened(question, ways, [n for n in names if n != name], meets)]
    others = [name for name in names if name not in needed]
    for more in range(len(others) + 1):
        for added in combinations(others, more):
            chosen = [name for name in names if name in needed or name in added]
            found = _loosened(question, ways, chosen, meets)
            if found:
                return [found]
    return []


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


def _ascending(question: Question, names: Sequence[str]) -> Iterator[Deployment]:
    """What a looser question allows, in order of how much of what was loosened they take; then of GPUs and dollars."""

    def taken(deployment: Deployment) -> tuple[float, ...]:
        gpus, usd = float(deployment.gpus), deployment.usd_per_hour
        dollars = math.inf if usd is None else usd
        of: dict[str, float] = {
            "max_tp": max(pool.replica.tp for pool in deployment.pools), "gpus": gpus, "max_usd_per_hour": dollars,
            "max_watts": _watts(question, deployment), "watts_per_rack": _watts(question, deployment),
        }  # fmt: skip
        return *(of[name] for name in names if name in of), gpus, dollars

    try:
        return iter(sorted(singles(question), key=taken))
    except BadInput:
        return iter(())


def _watts(question: Question, deployment: Deployment) -> float:
    """What all GPUs may draw together."""
    pools = deployment.pools
    return sum(
        pool.count * pool.replica.gpus * question.watts(pool.replica.gpu, pool.replica.cap_watts) for pool in pools
    )
