"""A day's replicas where they fill several nodes, and the network between these is slow: more may serve less."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_cases import SLOW
from headway.cost import Replica
from headway.metrics import Slo
from headway.plan.day import Slot, _Job, _message, _Sizer
from headway.plan.sizes import scattered
from headway.plan.slots import parts_of
from headway.sim import Deployment, Policies, Pool
from headway.workload import WorkloadSpec, parse_length, workload


@given(st.data())
def test_where_more_may_serve_less_no_pair_cheaper_than_the_one_found_does(data):
    """Over any set of pairs of which none is cheaper than what would do on one node."""
    prices = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    near = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    cost = {pair: sum(a * b for a, b in zip(pair, prices, strict=True)) for pair in product(range(1, 9), repeat=2)}
    can = sorted(pair for pair in cost if cost[pair] >= cost[near] and sum(pair) < 9)
    does = set(data.draw(st.lists(st.sampled_from(can), max_size=5)))
    found = scattered(does.__contains__, near, [(near[0] - 1, 30)], prices, 8)
    able = [pair for pair in does if pair[0] >= near[0]]
    assert found is None or found in does
    assert (found and cost[found]) == (min(cost[pair] for pair in able) if able else None)


def test_of_very_many_pairs_that_miss_the_first_multiple_that_does_is_made_cheaper():
    found = scattered(lambda n: n[0] >= 40 and n[1] >= 33, (8, 8), [], (1, 1), 512)
    assert found == (40, 33)
    assert scattered(lambda _: False, (8, 8), [], (1, 1), 512) is None


@pytest.mark.parametrize("route", ["same-node", "least-requests"])
def test_on_a_slow_network_the_cheapest_pair_is_found_whatever_the_pools_in_the_file_are(route):
    replica = Replica(model="opt-13b", gpu=SLOW, tp=2)
    lengths = {"prompt": parse_length("uniform:100:1200"), "output": parse_length("uniform:50:300")}
    made = workload(WorkloadSpec(name="w", **lengths))
    slo = Slo(ttft_s=0.4, tpot_s=0.1)
    parts = parts_of(made, [slo], [13.5, 27.0], None, 0)
    for counts in ((4, 3), (1, 1)):
        roles = zip(("prefill", "decode"), counts, strict=True)
        pools = tuple(Pool(role=role, count=count, replica=replica) for role, count in roles)
        unit = Deployment(pools=pools, policies=Policies(route=route))
        sizer = _Sizer(unit, parts, slo, 0, [2.0, 2.0])
        assert [sizer(_Job(place)).counts for place in range(2)] == [(1, 1), (2, 2)]


def test_what_a_slow_network_does_not_let_be_served_is_said_with_the_router_that_may():
    lost = Slot(
        start_s=0.0, end_s=3600.0, rate_req_s=4.0, replicas=None, pools=None, gpus=None, attainment=None,
        attainment_low=None, attainment_high=None, target=0.9, usd_per_hour=None, mean_watts=None, misses="far off",
    )  # fmt: skip
    replica = Replica(model="opt-13b", gpu=SLOW, tp=2)
    unit = Deployment(pools=tuple(Pool(role=role, replica=replica) for role in ("prefill", "decode")))
    said = _message(unit, [lost], None, None)
    assert "route=same-node keeps it on its node; route=round-robin takes idle replicas in turns" in said
    turns = msgspec.structs.replace(unit, policies=Policies(route="round-robin"))
    assert _message(turns, [lost], None, None).endswith("route=same-node keeps it on its node.")
    near = msgspec.structs.replace(unit, policies=Policies(route="same-node"))
    assert "same-node" not in _message(near, [lost], None, None)
