"""Where replicas that hand over KV stand, what that makes of their links, and when a plan keeps KV on its node."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_cases import SLOW
from headway.cost import EngineSettings, Replica, compile_replica
from headway.errors import BadInput
from headway.export.place import place
from headway.hardware import gpu
from headway.metrics import Slo
from headway.plan import Question
from headway.plan.space import enumerate_space
from headway.report.words import deployment_words
from headway.sim import Deployment, Policies, Pool, simulate
from headway.workload import workload


def replica(gpus: int, card: str = "h100-sxm", model: str = "llama-3.1-8b") -> Replica:
    """Of so many GPUs."""
    return Replica(model=model, gpu=card, tp=min(gpus, 8), pp=max(gpus // 8, 1))


def split(prefill: tuple[int, int], decode: tuple[int, int], *which: str, route: str = "least-requests") -> Deployment:
    """Pools of (replicas, GPUs of each)."""
    roles = zip(("prefill", "decode"), (prefill, decode), strict=True)
    pools = (Pool(role=role, count=count, replica=replica(gpus, *which)) for role, (count, gpus) in roles)
    return Deployment(pools=tuple(pools), policies=Policies(route=route))


@pytest.mark.parametrize(
    ("prefill", "decode", "nodes", "shared"),
    [
        ((1, 4), (1, 4), [[0], [0]], False),  # one node
        ((5, 2), (2, 2), [[0, 0, 0, 1, 1], [0, 1]], True),
        ((4, 2), (4, 2), [[0, 0, 1, 1], [0, 0, 1, 1]], True),
        ((2, 8), (1, 4), [[0, 1], [2]], False),  # who fills a node shares none
        ((1, 16), (2, 4), [[0], [1, 1]], False),
        ((1, 4), (6, 2), [[0], [0, 0, 1, 1, 1, 1]], False),
        ((3, 4), (1, 4), [[0, 0, 1], [1]], False),
        ((10, 1), (6, 1), [[0, 0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]], True),
        ((11, 1), (5, 1), [[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], True),  # who has less of one has more
        ((2, 4), (3, 2), [[0, 1], [0, 0, 1]], True),
    ],
)
def test_replicas_stand_on_as_few_nodes_as_hold_them(prefill, decode, nodes, shared):
    made = split(prefill, decode)
    assert made.nodes == nodes
    assert made.shares_nodes("llama-3.1-8b") is shared
    assert made.wide("llama-3.1-8b") is (nodes != [[0], [0]])


SIZES = st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4, 8, 16]))


@given(SIZES, SIZES, st.sampled_from(["h100-sxm", "a100-80gb-sxm"]))
def test_no_node_has_more_than_its_gpus_and_exports_place_replicas_there(prefill, decode, card):
    made = split(prefill, decode, card)
    used: dict[int, int] = {}
    nodes = made.nodes
    for pool, stand in zip(made.pools, nodes, strict=True):
        assert len(stand) == pool.count
        for node in stand:
            used[node] = used.get(node, 0) + pool.replica.gpus
    assert all(gpus <= 8 or gpus == 16 for gpus in used.values())
    assert sorted(used) == list(range(len(used)))
    said = tuple(
        msgspec.structs.replace(pool, nodes=tuple(stand)) for pool, stand in zip(made.pools, nodes, strict=True)
    )
    assert Deployment(pools=said).nodes == nodes, "said or not, it is the same"
    if made.wide("llama-3.1-8b"):
        places = iter(place(made))
        hosts = {(node, next(places).hosts) for stand in nodes for node in stand}
        assert len(hosts) == len(used), "a host for each node, and a node for each host"


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([1, 2, 4]))
def test_of_equal_replicas_every_node_has_its_share_of_both(prefill, decode, gpus):
    made = split((prefill, gpus), (decode, gpus))
    nodes = -(-(prefill + decode) * gpus // 8)
    for stand, count in zip(made.nodes, (prefill, decode), strict=True):
        each = [stand.count(node) for node in range(nodes)]
        assert sum(each) == count and max(each) - min(each) <= 1
    assert made.shares_nodes("llama-3.1-8b") is (nodes > 1 and min(prefill, decode) >= nodes)


def test_kinds_of_gpu_share_no_node():
    pools = Pool(role="prefill", replica=replica(2)), Pool(role="decode", replica=replica(2, "a100-80gb-sxm"))
    made = Deployment(pools=pools)
    assert made.nodes == [[0], [1]] and not made.shares_nodes("llama-3.1-8b")
    far, _ = made.links("llama-3.1-8b")
    assert made.link("llama-3.1-8b") == far
    assert far.bytes_per_s == min(gpu(pool.replica.gpu).rdma_bytes_per_s for pool in pools)


@pytest.mark.parametrize(
    ("prefill", "decode", "says"),
    [
        ((0,), None, "some say their `nodes` and some do not"),
        ((0, 1), (0,), "expected a number from 0 on for each of its 1 replicas"),
        ((-1,), (0,), "expected a number from 0 on"),
        ((0,), (0,), "replicas of 12 GPUs stand on node 0: one of h100-sxm has 8"),
    ],
)
def test_nodes_that_cannot_be_are_refused(prefill, decode, says):
    first = {"role": "prefill", "replica": replica(8), "nodes": prefill}
    with pytest.raises(BadInput, match=says.replace("(", r"\(")):
        Deployment(pools=(Pool(**first), Pool(role="decode", replica=replica(4), nodes=decode)))


def test_a_node_is_no_larger_for_a_replica_of_several():
    small = Pool(role="prefill", count=2, replica=replica(8), nodes=(0, 0))
    said = "32 GPUs stand on node 0: one of h100-sxm has 8; give one of 16, which takes several, a number of its own"
    with pytest.raises(BadInput, match=said):
        Deployment(pools=(small, Pool(role="decode", count=2, replica=replica(16), nodes=(0, 1))))


def test_a_node_of_two_kinds_and_nodes_of_mixed_replicas_are_refused():
    pools = [Pool(role="prefill", replica=replica(2), nodes=(3,))]
    pools.append(Pool(role="decode", replica=replica(2, "a100-80gb-sxm"), nodes=(3,)))
    with pytest.raises(BadInput, match="node 3 has h100-sxm and a100-80gb-sxm"):
        Deployment(pools=tuple(pools))
    with pytest.raises(BadInput, match="prefill and decode pools alone"):
        Pool(replica=replica(1), nodes=(0,))


def test_on_a_slow_network_tokens_come_sooner_where_kv_stays_on_its_node():
    load = workload("chat", rate=6.0, requests=300)  # 0.8 MB of KV for each token of a prompt
    kept, scattered = (
        simulate(split((4, 2), (4, 2), SLOW, "opt-13b", route=route), load, seed=2)
        for route in ("same-node", "round-robin")
    )
    assert kept.tpot_s.p90 < 0.96 * scattered.tpot_s.p90 and kept.tpot_s.mean < scattered.tpot_s.mean
    assert kept.ttft_s.count == scattered.ttft_s.count


def stages(prefill: tuple[int, int], decode: tuple[int, int], *, pp: int = 2) -> Deployment:
    """Pools of (replicas, GPUs of a stage), whose stages stand apart."""
    made = split((prefill[0], 1), (decode[0], 1))
    pools = (
        msgspec.structs.replace(pool, replica=Replica(model="llama-3.1-70b", gpu="h100-sxm", tp=tp, pp=pp, apart=True))
        for pool, tp in zip(made.pools, (prefill[1], decode[1]), strict=True)
    )
    return msgspec.structs.replace(made, pools=tuple(pools))


@pytest.mark.parametrize(
    ("prefill", "decode", "nodes"),
    [
        ((1, 4), (1, 4), [[0], [0]]),
        ((2, 4), (2, 4), [[0, 1], [0, 1]]),
        ((3, 2), (1, 4), [[0, 1, 1], [0]]),
        ((1, 8), (1, 8), [[0], [1]]),
    ],
)
def test_stages_apart_are_packed_by_stage(prefill, decode, nodes):
    made = stages(prefill, decode)
    assert made.nodes == nodes
    hosts = {(node, each.hosts) for node, each in zip([n for of in nodes for n in of], place(made), strict=True)}
    assert len(hosts) == len({node for node, _ in hosts}), "the replicas of a number share all their hosts"
    taken = [(host, number) for each in place(made) for host in each.hosts for number in each.gpus]
    assert len(taken) == len(set(taken)) == made.gpus and max(number for _, number in taken) < 8
    ports = [(each.hosts[0], each.port) for each in place(made)]
    assert len(ports) == len(set(ports))


def test_stages_apart_send_their_activations_over_the_network():
    together = Replica(model="llama-3.1-70b", gpu="h100-sxm", tp=4, pp=2)
    apart = msgspec.structs.replace(together, apart=True)
    near, far = (compile_replica(each) for each in (together, apart))
    assert far.p2p_s[1000] > 2 * near.p2p_s[1000] and far.kv_blocks == near.kv_blocks
    assert near.step_seconds(0, 0, 0, [(0, 1000)]) == far.step_seconds(0, 0, 0, [(0, 1000)])


def test_words_say_that_stages_stand_apart():
    made = stages((1, 4), (1, 4))
    assert deployment_words(made).count(", a stage on each node") == 2
    assert "stage on" not in deployment_words(split((1, 4), (1, 4)))


def test_stages_and_whole_replicas_share_no_node():
    one = stages((1, 2), (1, 2)).pools[0]
    with pytest.raises(BadInput, match="replicas of 2 and 1 stages apart"):
        whole = Pool(role="decode", replica=Replica(model="llama-3.1-70b", gpu="h100-sxm", tp=4), nodes=(0,))
        Deployment(pools=(msgspec.structs.replace(one, nodes=(0,)), whole))
    with pytest.raises(BadInput, match="apart=true with pp=1"):
        Replica(model="llama-3.1-70b", gpu="h100-sxm", tp=4, apart=True)


def test_segments_are_tried_where_two_replicas_do_not_fit_a_node():
    asked = question(SLOW, model="opt-175b", gpus=32, weights=("bf16",), kv=("bf16",))
    assert not any("apart" in option.name for option in enumerate_space(asked).options), "vLLM has no such handover"
    asked = msgspec.structs.replace(asked, engine=EngineSettings(name="sglang"))
    found = {option.name: option.deployment for option in enumerate_space(asked).options}
    assert found["1P tp4pp2apart + 1D tp4pp2apart bf16/bf16"].policies.route == "least-requests", "one place, all near"
    two = "2P tp4pp2apart + 2D tp4pp2apart bf16/bf16"
    assert two not in found and found[f"{two} route=same-node"].shares_nodes("opt-175b")
    assert not any("apart" in name for name in found if "P" not in name)
    fast = question("a100-80gb-sxm", model="llama-3.1-405b", gpus=32)
    assert not any("apart" in option.name for option in enumerate_space(fast).options)


def question(card: str, **more: object) -> Question:
    slo = Slo(ttft_s=0.25, tpot_s=0.03)
    asked = {"model": "opt-13b", "gpu": card, "gpus": 16, "workload": "chat", "rate_req_s": 4.0, "slo": slo}
    return Question(**asked | more)


def test_plans_keep_kv_on_its_node_where_the_network_is_slow_and_nobody_chose_a_router():

    def near(asked: Question) -> list[Deployment]:
        found = [option.deployment for option in enumerate_space(asked).options]
        return [made for made in found if made.policies.route == "same-node"]

    slow = near(question(SLOW))
    assert len(slow) > 100 and all(made.shares_nodes("opt-13b") for made in slow)
    names = {option.name for option in enumerate_space(question(SLOW)).options}
    assert {made.name.removesuffix(" route=same-node") for made in slow} < names
    assert not near(question("h100-sxm", model="llama-3.1-8b"))
    assert not near(question(SLOW, policies=Policies(route="power-of-two")))
    assert not near(question(SLOW, policies_to_try={"route": ("round-robin",)}))
    assert not near(question(SLOW, kv_link={"name": "own", "bytes_per_s": 1e9, "latency_s": 1e-5}))
