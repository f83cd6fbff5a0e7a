"""Several parts as one deployment: their pools side by side, and the names that lead each class to its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from headway.plan.question import Question
from headway.plan.space import priced
from headway.sim import Deployment, Policies, Pool

__all__ = ["Share", "joined"]


class Share(NamedTuple):
    """What serves some classes, by their numbers, under a name of its own."""

    serves: str
    classes: tuple[int, ...]
    deployment: Deployment


def joined(question: Question, shares: Sequence[Share], asks: Mapping[int, str], name: str) -> Deployment:
    """Return one deployment in which every class gets the replicas of its share.

    Where several shares run one model, their pools serve names of their own, and the name that requests ask by is an
    alias: the policy `by-class` then tells them apart, unless the question names another.

    Args:
        question: its policies and prices are those of all.
        shares: those of one model next to each other.
        asks: the name of a model that requests of each class ask for; "" where they ask for none.
        name: of the deployment.
    """
    pools: list[Pool] = []
    weights: dict[str, list[float]] = {}
    names = {number: share.serves for share in shares for number in share.classes}
    policies = question.policies
    for share in shares:
        for pool in share.deployment.pools:
            serves = "" if share.serves == pool.replica.model else share.serves
            pools.append(msgspec.structs.replace(pool, serves=serves))
        theirs = share.deployment.policies
        if theirs.route != question.policies.route:  # by weights that were found for it
            policies = msgspec.structs.replace(policies, route=theirs.route)
            weights[share.serves] = theirs.params["route"]["weights"]["mixed"]
    params: dict[str, dict[str, Any]] = {**policies.params}
    if weights:
        params["route"] = {"weights": weights}
    aliases: dict[str, list[str]] = {}
    for number, asked in asks.items():
        if asked and asked not in names.values():
            aliases.setdefault(asked, []).append(names[number])
    astray = any(asks[number] != serves for number, serves in names.items())
    if len(set(names.values())) > 1 and astray and policies.choose_model == Policies().choose_model:
        policies = msgspec.structs.replace(policies, choose_model="by-class")
        params["choose_model"] = {"models": [names[number] for number in sorted(names)]}
    made = Deployment(
        name=name,
        pools=tuple(pools),
        policies=msgspec.structs.replace(policies, params=params),
        prices=question.prices,
        aliases={asked: tuple(dict.fromkeys(each)) for asked, each in aliases.items()},
    )
    return priced(question, made)
