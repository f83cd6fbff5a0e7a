"""One policy object, two hosts: what it decided in the simulator it decides for the same numbers in the gateway."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from headway.cost import Replica
from headway.gateway.fence import Fence
from headway.gateway.live import LiveCluster, LivePool, LiveReplica, LiveRequest
from headway.policies import Policy, policy, policy_names
from headway.sim import Deployment, Policies, Pool, simulate
from headway.state import Accept, QueueView, Route
from headway.workload import RequestClass, workload

FIELDS = ("running", "waiting", "waiting_tokens", "context_tokens", "kv_used_blocks")
SEEN: list[Any] = []
SEED = 3


class Stock:
    """A prefix index that answers what the simulator's replica did."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def cached_tokens(self, chain: tuple[int, ...], prompt_tokens: int) -> int:
        return self.tokens


class Recorder(Policy):
    """Asks the policy it is named after, and writes down what was shown and what was said."""

    def __init__(self, kind: str, name: str, params: dict[str, Any] | None = None) -> None:
        self.asked = policy(kind, name, params)
        self.reads_progress = self.asked.reads_progress

    def route(self, request: Any, pool: Any) -> Any:
        answer = self.asked.route(request, pool)
        SEEN.append((request_of(request), pool.role, *pool_of(pool, request), told(answer)))
        return answer

    def admit(self, request: Any, cluster: Any) -> Any:
        answer = self.asked.admit(request, cluster)
        refused = None if isinstance(answer, Accept) else told(answer)
        SEEN.append((request_of(request), "mixed", *pool_of(cluster.pools[0], request), refused))
        return answer


    def retain(self, request: Any, replica: Any) -> Any:
        answer = self.asked.retain(request, replica)
        SEEN.append((request_of(request), replica_of(replica, request), answer))
        return answer


class Filler(Policy):
    """Keeps by all that it is shown."""

    def retain(self, request: Any, replica: Any) -> Any:
        left = replica.kv_total_blocks - replica.kv_used_blocks
        return left / (1 + replica.running + replica.waiting) + replica.cached_tokens(request) + request.session % 7


class Chooser(Recorder):
    """The same of a choice among models: every model's pool is shown."""

    def choose_model(self, request: Any, cluster: Any) -> Any:
        answer = self.asked.choose_model(request, cluster)
        pools = [(pool.model, *pool_of(pool, request)) for pool in cluster.pools]
        SEEN.append((request_of(request), pools, (answer.model, answer.reason)))
        return answer


def told(answer: Any) -> Any:
    """What an answer says, to be compared."""
    if isinstance(answer, Route):
        return answer.index, answer.reason
    return (
        (type(answer).__name__, answer.reason, getattr(answer, "until_s", None))
        if hasattr(answer, "reason")
        else answer
    )


def request_of(request: Any) -> LiveRequest:
    made = LiveRequest(request.id, request.arrival_s, request.prompt_tokens)
    made.describe(
        request.predicted_output_tokens, request.priority, request.deadline_s, request.slo_class, request.tenant, (),
        request.session,
    )  # fmt: skip
    made.allow(request.models)
    return made


def pool_of(pool: Any, request: Any) -> tuple[float, list[LiveReplica], int]:
    """The same numbers in the gateway's own views."""
    return pool.now, [replica_of(theirs, request) for theirs in pool.replicas], pool.held


def replica_of(theirs: Any, request: Any) -> LiveReplica:
    ours = LiveReplica(theirs.index, theirs.kv_total_blocks, Stock(theirs.cached_tokens(request)))
    ours.show(*(getattr(theirs, field) for field in FIELDS))
    return ours


def recorded(kind: str, name: str) -> list[Any]:
    SEEN.clear()
    named = f"{__name__}:Recorder"
    policies = Policies(**{kind: named}, params={kind: {"kind": kind, "name": name}})
    pool = Pool(count=3, replica=Replica(model="llama-3.1-8b", gpu="l40s"))
    simulate(Deployment(pools=(pool,), policies=policies), workload("agent", requests=300, rate=3.0), seed=SEED)
    return list(SEEN)


@pytest.mark.parametrize("name", policy_names("route"))
def test_routes_are_the_same_in_both_hosts(name):
    asks = recorded("route", name)
    fence, pool = Fence({"route": policy("route", name)}), LivePool("mixed", [], Random(f"{SEED}/route/0"))
    assert len(asks) >= 300
    for request, role, now, replicas, held, said in asks:
        assert role == "mixed"
        pool.show(now, replicas, held)
        assert told(fence.route(request, pool)) == said
    assert not fence.errors
    assert len({said[0] for *_, said in asks}) >= 3, "the case is one in which routes differ"


@pytest.mark.parametrize("name", policy_names("admit"))
def test_admissions_are_the_same_in_both_hosts(name):
    asks = recorded("admit", name)
    pool = LivePool("mixed", [], Random(0))
    fence, cluster = Fence({"admit": policy("admit", name)}), LiveCluster((pool,), Random(f"{SEED}/admit"))
    for request, _, now, replicas, held, said in asks:
        pool.show(now, replicas, held)
        cluster.show(now)
        assert told(fence.admit(request, cluster)) == said
    assert not fence.errors


TIGHT = {
    "in-time": {"ttft_s": 0.2, "prompt_tokens_per_s": 2000.0}, "threshold": {"at": 300},
    "by-class": {"models": ["llama-3.2-1b", "llama-3.1-8b"]},
}  # fmt: skip
KINDS = (RequestClass(name="a"), RequestClass(name="b"))


@pytest.mark.parametrize("name", policy_names("choose_model"))
def test_models_are_the_same_in_both_hosts(name):
    SEEN.clear()
    named = {"kind": "choose_model", "name": name, "params": TIGHT.get(name)}
    policies = Policies(choose_model=f"{__name__}:Chooser", params={"choose_model": named})
    pools = tuple(Pool(count=2, replica=Replica(model=each, gpu="l40s")) for each in ("llama-3.2-1b", "llama-3.1-8b"))
    load = msgspec.structs.replace(workload("chat", requests=300, rate=20.0).spec, classes=KINDS)
    simulate(Deployment(pools=pools, policies=policies), workload(load), seed=SEED)
    fence = Fence({"choose_model": policy("choose_model", name, TIGHT.get(name))})
    live = {pool.model: LivePool("mixed", [], Random(0), pool.model) for pool in pools}
    cluster = LiveCluster(tuple(live.values()), Random(f"{SEED}/admit"))
    asks = list(SEEN)
    assert len(asks) == 300
    for request, shown, said in asks:
        for model, now, replicas, held in shown:
            live[model].show(now, replicas, held)
            cluster.show(now)
        assert fence.choose_model(request, cluster) == said
    assert not fence.errors
    assert name == "first" or len({said[0] for *_, said in asks}) == 2, "the case is one in which choices differ"


@pytest.mark.parametrize("name", [*policy_names("retain"), f"{__name__}:Filler"])
def test_what_is_kept_is_the_same_in_both_hosts(name):
    asks = recorded("retain", name)
    fence = Fence({"retain": policy("retain", name)})
    assert len(asks) >= 300
    for request, replica, said in asks:
        assert fence.retain(request, replica) == said
    assert not fence.errors
    assert name != f"{__name__}:Filler" or len({said for *_, said in asks}) > 100


@pytest.mark.parametrize("name", policy_names("order"))
def test_keys_are_those_the_policy_gives(name):
    rng = Random(1)
    waiting = []
    for i in range(50):
        request = LiveRequest(i, i * 0.1, rng.randint(1, 9999))
        request.describe(rng.uniform(1, 500), rng.randint(-2, 2), rng.choice([5.0, float("inf")]), 0, 0, ())
        waiting.append(request)
    direct = policy("order", name).order(QueueView(9.0, waiting))
    assert Fence({"order": policy("order", name)}).keys(9.0, waiting) == [float(key) for key in direct]
