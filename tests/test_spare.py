"""Replicas to spare: what is judged is what is left when those are down whose absence hurts most."""

from __future__ import annotations

import shlex
from collections import Counter
from itertools import combinations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_cases import SLOW
from headway.cost import Replica
from headway.metrics import Slo
from headway.plan import Question
from headway.plan.evaluate import Evaluator, Job, Outcome
from headway.plan.explain import _down
from headway.plan.ranking import Entry
from headway.plan.spare import _kept, _marks, without
from headway.sim import Deployment, Policies, Pool, simulate
from headway.specs import override
from headway.workload import WorkloadSpec, parse_length, workload

LONG = {"prompt": parse_length("exp:755"), "output": parse_length("exp:200")}
SHORT = {"prompt": parse_length("exp:60"), "output": parse_length("exp:600")}


def fleet(prefill: int, decode: int, card: str = SLOW, tp: int = 2, route: str = "same-node") -> Deployment:
    """Pools of so many replicas of two GPUs, or as many as `tp` says."""
    replica = Replica(model="opt-13b" if card == SLOW else "llama-3.1-8b", gpu=card, tp=tp)
    roles = (("prefill", prefill), ("decode", decode))
    pools = tuple(Pool(role=role, count=count, replica=replica) for role, count in roles)
    return Deployment(pools=pools, policies=Policies(route=route))


def standing_on(made: Deployment, nodes: list[tuple[int, ...]]) -> Deployment:
    """Those of its replicas that are left on these nodes."""
    pools = (msgspec.structs.replace(p, count=len(n), nodes=n) for p, n in zip(made.pools, nodes, strict=True))
    return msgspec.structs.replace(made, pools=tuple(pools))


def nodes_of(made: Deployment) -> list[tuple[int, ...]]:
    return [tuple(pool.nodes) for pool in made.pools]


@pytest.mark.parametrize("route", ["same-node", "least-requests"])
@pytest.mark.parametrize(
    ("prefill", "decode", "spare", "lengths", "rate", "tpot_s"),
    [
        (4, 3, 1, LONG, 20.0, 0.1),  # a node without decode replicas is the worst ...
        (3, 2, 1, LONG, 6.0, 0.1),
        (6, 5, 1, LONG, 20.0, 0.1),
        (6, 4, 2, LONG, 15.0, 0.1),
        (2, 3, 1, SHORT, 10.0, 0.03),  # ... but where prompts are short, one with too few of them
        (5, 3, 1, SHORT, 12.0, 0.035),
        (4, 4, 1, SHORT, 20.0, 0.04),
    ],
)
def test_the_worst_of_all_that_may_be_left_is_among_what_is_judged(
    prefill, decode, spare, lengths, rate, tpot_s, route
):
    made = fleet(prefill, decode, route=route)
    load = workload(WorkloadSpec(name="w", **lengths), rate=rate, requests=1000)

    def attained(nodes):
        slo = Slo(ttft_s=0.4, tpot_s=tpot_s)
        return simulate(standing_on(made, nodes), load, slo=slo, seed=1, records=False).slo.attainment

    left = [set(combinations(stand, len(stand) - spare)) for stand in made.nodes]
    least = min(attained([one, other]) for one in left[0] for other in left[1])
    judged = [attained(nodes_of(each)) for each in without(made, spare)]
    assert min(judged) <= least + 0.01
    assert len(judged) <= (2 if route == "same-node" else 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=4), st.integers(1, 2))
def test_where_kv_stays_on_its_node_nothing_leaves_more_of_it_to_cross_or_a_node_with_more_to_decode(nodes, spare):
    prefill, decode = (Counter({i: each[role] for i, each in enumerate(nodes) if each[role]}) for role in (0, 1))
    if min(prefill.total(), decode.total()) <= spare:
        return
    ways = _kept(prefill, decode, spare)
    assert all(one.total() == other.total() == spare for one, other in ways)
    assert all(one <= prefill and other <= decode for one, other in ways)
    every = [
        _marks(prefill - Counter(one), decode - Counter(other))
        for one in combinations(prefill.elements(), spare)
        for other in combinations(decode.elements(), spare)
    ]
    marks = [_marks(prefill - one, decode - other) for one, other in ways]
    for place in (0, 1):
        assert max(mark[place] for mark in marks) == max(mark[place] for mark in every)


def test_on_a_network_that_hardly_counts_and_on_one_node_one_fleet_is_judged():
    fast = without(fleet(6, 5, "h100-sxm", route="least-requests"), 1)
    assert [nodes_of(each) for each in fast] == [[(0, 0, 1, 1, 2), (0, 1, 1, 2)]], "the last prefill, the first decode"
    assert len(without(fleet(2, 2), 1)) == 1
    two = without(fleet(3, 3, "h100-sxm", route="least-requests"), 2)
    assert [nodes_of(each) for each in two] == [[(0,), (1,)]], "who is left has no neighbour of the other role"
    apart = without(fleet(2, 2, "h100-sxm", tp=8, route="least-requests"), 1)
    assert [nodes_of(each) for each in apart] == [[(0,), (3,)]] and apart[0].wide("llama-3.1-8b")


ASKED = Question(
    model="opt-13b", gpu=SLOW, gpus=16, workload=WorkloadSpec(name="w", **LONG), rate_req_s=20.0, spare=1,
    requests=2000, slo=Slo(ttft_s=0.25, tpot_s=0.1),
)  # fmt: skip


def test_a_lone_decode_replica_of_a_node_is_missed_and_the_command_that_repeats_it_says_where_those_left_stand():
    made = fleet(4, 3)
    outcome = Evaluator(ASKED, workload(ASKED.workload), ASKED.rate_req_s)(Job(0, made, ASKED.requests))
    assert not outcome.asked.meets and outcome.asked.attainment < 0.5 < 0.9 < outcome.asked.attainment_all_up
    assert outcome.goodput.req_s < ASKED.rate_req_s
    words = shlex.split(_down(Entry(made, outcome, False), ASKED))
    again = override(made, [word for word in words if word != "--set"])
    assert nodes_of(again) == [(0, 1, 1), (0, 0)]
    load = workload(ASKED.workload, rate=ASKED.rate_req_s, requests=ASKED.requests)
    slo = simulate(again, load, slo=ASKED.aimed_slo, seed=ASKED.seed, warmup=0.05).slo
    assert slo.attainment == outcome.asked.attainment
    near = Outcome(outcome.goodput, outcome.asked, "tpot", 0.1, 0.2, 100, 1)
    assert "nodes" not in _down(Entry(fleet(2, 2), near, True), ASKED)
