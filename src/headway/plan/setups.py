"""What is tried besides layouts: engines and their settings, policies of the library."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import msgspec

from headway.cost import EngineSettings, Replica, kv_links, kv_transfer_bytes
from headway.cost.engines import engine_facts
from headway.plan.question import Question
from headway.policies import policy
from headway.sim import Deployment, Policies
from headway.sim.run import compiled

__all__ = [
    "Setup", "check_policies", "goes_by_node", "keeps_kv", "kept_near", "policed", "setups_of", "slow_network",
]  # fmt: skip

Chosen = tuple[tuple[str, str], ...]  # decision points with the names tried
_SLOW = 0.5  # of the time in which a prompt is computed: KV that moves faster is not worth a router that looks for it


class Setup(NamedTuple):
    """How the engine of every replica is set; `words` are what candidates' names say of it."""

    engine: EngineSettings
    words: str

    def budgets(self, question: Question) -> list[int]:
        """Token budgets in which a step has room for all its sequences."""
        least = self.engine.max_seqs * self.engine.step_tokens
        return [budget for budget in question.budget_tokens if budget >= least]


def setups_of(question: Question) -> list[Setup]:
    """Return every engine times its settings to try; the question's own where it names none.

    Raises:
        UnknownName: an engine. BadInput: a version that is no number.
    """
    engine, setups = question.engine, []
    cache: tuple[bool | None, ...] = question.prefix_cache or (None,)
    for named, seqs, cached in product(question.engines or ("",), question.max_seqs or (0,), cache):
        changes: dict[str, object] = {}
        if named:
            changes["name"], _, changes["version"] = named.partition(":")
            for kind in question.stock:
                engine_facts(str(changes["name"]), str(changes["version"]), kind)
        if seqs:
            changes |= {"max_seqs": seqs, "max_batched_tokens": max(question.budget_tokens)}
        if cached is not None:
            changes["prefix_cache"] = cached
        words = (named, f"s{seqs}" if seqs else "", {True: "cached", False: "uncached", None: ""}[cached])
        made = msgspec.structs.replace(engine, **changes) if changes else engine
        setups.append(Setup(made, "".join(f" {word}" for word in words if word)))
    return setups


def check_policies(question: Question) -> None:
    """Refuse policies to try that there are not, or that cannot be built.

    Raises:
        UnknownName, BadInput: see `policy`.
    """
    for kind, names in question.policies_to_try.items():
        for name in names:
            own = question.policies.params.get(kind) if name == getattr(question.policies, kind) else None
            policy(kind, name, own)


def policed(question: Question, deployment: Deployment) -> Iterator[Deployment]:
    """Yield a deployment with each choice of the policies to try; as it is where the question names none.

    Routers are tried where they have a choice. `params` of the question are those of the policy that it names itself;
    weights of unlike replicas stay with the router that takes them.
    """
    tried = dict(question.policies_to_try)
    if not tried:
        yield deployment
        return
    if not _chooses(deployment):
        tried.pop("route", None)
    for names in product(*tried.values()):
        yield _with(question, deployment, tuple(zip(tried, names, strict=True)))


def kept_near(question: Question, deployment: Deployment) -> Iterator[Deployment]:
    """Yield a deployment, and a split one with each prompt's KV kept on its node, too, where the network is slow.

    For that each node has replicas of both roles. Where the question names routers or a link, nothing is added. Stages
    stand apart for that alone: over several nodes such a deployment comes with its KV kept there, or not at all.

    Raises:
        DoesNotFit: a replica's memory is too small.
    """
    pools = deployment.pools
    apart = pools[0].replica.apart
    if not (apart and deployment.wide(pools[0].model)):
        yield deployment
    if pools[0].role == "mixed" or not keeps_kv(question) or len({p.replica.gpu for p in pools}) > 1:
        return
    slow = apart or slow_network(pools[0].replica, pools[1].replica)
    if slow and deployment.shares_nodes(pools[0].model):
        yield _with(question, deployment, (("route", "same-node"),))


def keeps_kv(question: Question) -> bool:
    """Whether a plan may choose to keep KV on its node: the question names no router and no link."""
    given = "route" in question.policies_to_try or question.policies.route != Policies().route
    return not given and question.kv_link is None


@functools.lru_cache(maxsize=4096)
def slow_network(prefill: Replica, decode: Replica) -> bool:
    """Whether KV takes long to a decode replica on another node, beside the time that its prompt took."""
    table, (network, _) = compiled(prefill), kv_links([prefill.gpu, decode.gpu])
    tokens = table.max_batched_tokens
    moved = max(kv_transfer_bytes(each, tokens) for each in (prefill, decode))
    return moved / network.bytes_per_s > _SLOW * table.step_seconds(0, 0, 0, [(0, tokens)])


def goes_by_node(deployment: Deployment, name: str) -> bool:
    """Whether what a model's prefill and decode replicas serve depends on which of them share nodes.

    As where the network is slow, or the router keeps KV on its node. Where no two may share one, it does not.
    """
    pools = [pool for pool in deployment.pools if pool.model == name]
    if pools[0].role == "mixed" or len({pool.replica.gpu for pool in pools}) > 1:
        return False
    slow = deployment.kv_link is None and slow_network(pools[0].replica, pools[-1].replica)
    return slow or deployment.policies.route == "same-node"


def _chooses(deployment: Deployment) -> bool:
    """Whether some role has several schedulers to route among."""
    roles = [pool.role for pool in deployment.pools for _ in range(min(pool.ranks, 2))]
    return len(set(roles)) < len(roles)


def _with(question: Question, deployment: Deployment, chosen: Chosen) -> Deployment:
    policies, own, params = deployment.policies, question.policies, dict(deployment.policies.params)
    for kind, name in chosen:
        if name != getattr(policies, kind):
            params.pop(kind, None)
            if name == getattr(own, kind) and kind in own.params:
                params[kind] = own.params[kind]
    named = msgspec.structs.replace(policies, **dict(chosen), params=params)
    words = "".join(f" {kind}={name}" for kind, name in chosen)
    return msgspec.structs.replace(deployment, name=deployment.name + words, policies=named)
