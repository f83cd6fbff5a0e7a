"""Replicas that start and leave in the midst of a run."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import msgspec
import numpy as np
import pytest
from drive import CASES, make_cluster_case, run_cluster
from hypothesis import given, settings
from hypothesis import strategies as st

from headway import Deployment, Pool, Replica, simulate
from headway.cost import EngineSettings
from headway.errors import BadInput
from headway.metrics import Prices
from headway.policies import Policy, policy
from headway.policies.contract import make_cluster, make_pool
from headway.sim import Policies
from headway.state import Scale
from headway.workload import workload

SEEDS = st.integers(0, 2**40)
law = settings(max_examples=CASES, deadline=None)
REPLICA = Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=EngineSettings(max_seqs=16))
LOAD = workload("chat", requests=300, rate=12.0)


class Planned(Policy):
    """Asks for what it was told, at each time in turn."""

    seen: ClassVar[list[tuple[float, int, int]]] = []

    def __init__(self, plan: list[int]) -> None:
        self.plan = list(plan)
        type(self).seen = []

    def scale(self, cluster):
        pool = cluster.pools[0]
        self.seen.append((cluster.now, len(pool.replicas), pool.starting))
        return [Scale(0, self.plan.pop(0), "as planned")] if self.plan else []


class Wrong(Policy):
    def scale(self, cluster):
        return [Scale(0, 0, "nobody")]


def scaled(
    plan: list[int], *, count: int = 1, most: int = 4, startup_s: float = 5.0, every_s: float = 2.0
) -> Deployment:
    chosen = Policies(scale=f"{__name__}:Planned", params={"scale": {"plan": plan}})
    pool = Pool(count=count, most=most, startup_s=startup_s, replica=REPLICA)
    return Deployment(pools=(pool,), policies=chosen, scale_every_s=every_s)


# --- laws -------------------------------------------------------------------------------------------------------


@law
@given(SEEDS)
def test_leaping_equals_stepping_while_replicas_come_and_go(seed: int) -> None:
    case = dataclasses.replace(make_cluster_case(seed), route="late-binding")
    case.scale = (0.1, 0.25, [1] * len(case.pools))
    leapt, stepped = run_cluster(case), run_cluster(case, leaps=False)
    assert leapt.rule is not None and stepped.rule is not None and leapt.rule.log == stepped.rule.log
    for name in ("admitted_s", "first_token_s", "last_token_s", "status", "replica"):
        np.testing.assert_array_equal(leapt.columns[name], stepped.columns[name])
    for pool in range(len(case.pools)):
        ends = leapt.cluster.now
        assert leapt.cluster.scaler.powered_until(pool, ends) == stepped.cluster.scaler.powered_until(pool, ends)


@law
@given(SEEDS)
def test_whoever_works_is_powered_and_one_replica_always_is(seed: int) -> None:
    case = make_cluster_case(seed)
    case.scale = (0.1, 0.25, [1] * len(case.pools))
    served = run_cluster(case)
    ends = served.cluster.now
    for place, pool in enumerate(served.pools):
        busy_s = sum(engine.busy.until(ends) for engine in pool)
        powered_s = served.cluster.scaler.powered_until(place, ends)
        assert max(busy_s, ends) * (1 - 1e-9) <= powered_s <= len(pool) * ends * (1 + 1e-9)


def test_a_policy_that_asks_for_what_there_is_changes_nothing() -> None:
    plain = simulate(Deployment(pools=(Pool(count=2, replica=REPLICA),)), LOAD, seed=3)
    asked = simulate(scaled([2] * 1000, count=2), LOAD, seed=3)
    assert asked.scaling is not None and asked.scaling.changes == []
    assert asked.energy == plain.energy or asked.energy.joules == pytest.approx(plain.energy.joules, rel=1e-12)
    for one, other in ((asked.ttft_s, plain.ttft_s), (asked.e2e_s, plain.e2e_s), (asked.itl_s, plain.itl_s)):
        assert one == other
    assert asked.duration_s == plain.duration_s
    assert asked.scaling.gpu_hours == pytest.approx(2 * plain.duration_s / 3600)


def test_energy_and_cost_are_of_the_gpus_that_were_powered() -> None:
    deployment = msgspec.structs.replace(scaled([3, 3, 3, 1]), prices=Prices(usd_per_gpu_hour=3.6))
    result = simulate(deployment, LOAD, seed=3)
    assert result.scaling is not None and len(result.scaling.changes) == 2
    hours = result.scaling.gpu_hours
    assert result.cost.usd == pytest.approx(3.6 * hours)
    fixed = simulate(Deployment(pools=(Pool(count=1, replica=REPLICA),)), LOAD, seed=3)
    idle_watts = fixed.energy.idle_joules / fixed.duration_s
    assert result.energy.idle_joules == pytest.approx(idle_watts * hours * 3600)
    energy = result.energy
    assert energy.joules == pytest.approx(energy.idle_joules + energy.prefill_joules + energy.decode_joules)


# --- what happens -----------------------------------------------------------------------------------------------


def test_a_replica_takes_requests_when_it_has_started_and_leaves_when_it_has_ended_them() -> None:
    result = simulate(scaled([2, 2, 2, 2, 1]), LOAD, seed=3)
    assert Planned.seen[:7] == [(2, 1, 0), (4, 1, 1), (6, 1, 1), (8, 2, 0), (10, 2, 0), (12, 1, 0), (14, 1, 0)]
    assert result.records is not None
    second = result.records["replica"] == 1
    assert second.any() and result.records["arrival_s"][second].min() >= 7.0
    assert result.records["arrival_s"][second].max() <= 10.0
    assert result.requests.finished == 300
    drained_s = float(result.records["last_token_s"][second].max())
    assert result.scaling is not None
    assert result.scaling.gpu_hours * 3600 == pytest.approx(result.duration_s + drained_s - 2.0)


def test_who_starts_is_given_up_first_and_who_drains_comes_back_first() -> None:
    simulate(scaled([3, 1, 3], count=2), LOAD, seed=3)
    assert Planned.seen[:4] == [(2, 2, 0), (4, 2, 1), (6, 1, 0), (8, 2, 1)]  # the one back at once, another starts


def test_no_more_than_there_may_be() -> None:
    result = simulate(scaled([99], most=2), LOAD, seed=3)
    assert result.scaling is not None
    assert [(change.at_s, change.replicas, change.reason) for change in result.scaling.changes] == [
        (2, 2, "as planned")
    ]


def test_the_run_does_not_wait_for_who_starts() -> None:
    fixed = simulate(Deployment(pools=(Pool(count=1, replica=REPLICA),)), LOAD, seed=3)
    started = simulate(scaled([4], startup_s=1e6), LOAD, seed=3)
    assert started.duration_s == fixed.duration_s


def test_target_load_goes_up_at_once_and_down_when_fewer_were_enough_for_long() -> None:
    rule, said = policy("scale", "target-load", {"target": 20.0, "down_after_s": 60.0}), []
    up = [(20, 0, 1, 0), (21, 0, 1, 0), (50, 40, 1, 0), (95, 0, 1, 4), (95, 0, 5, 0)]
    for step, (requests, held, count, starting) in enumerate([*up, *([(16, 0, 5, 0)] * 5)]):
        now = 20.0 * step
        loads = [(requests if i == 0 else 0, 0, 0, 0, 0, 0) for i in range(count)]
        pool = make_pool("mixed", loads, None, now, held, starting)
        said.append([(each.pool, each.replicas) for each in rule.scale(make_cluster((pool,), None, now))])
    assert said == [[], [], [(0, 5)], [], [], [], [], [(0, 1)], [(0, 1)], [(0, 1)]]


def test_target_load_saves_gpu_hours_at_about_the_same_latency() -> None:
    peaks = workload("chat", requests=1500, rate=6.0)
    chosen = Policies(scale="target-load", params={"scale": {"target": 8.0, "down_after_s": 60.0}})
    pool = Pool(count=4, most=8, startup_s=10.0, replica=REPLICA)
    scaling = simulate(Deployment(pools=(pool,), policies=chosen, scale_every_s=5.0), peaks, seed=1)
    fixed = simulate(Deployment(pools=(Pool(count=8, replica=REPLICA),)), peaks, seed=1)
    assert scaling.scaling is not None and scaling.scaling.gpu_hours < 0.6 * 8 * fixed.duration_s / 3600
    assert scaling.requests.finished == fixed.requests.finished == 1500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pool(count=3, most=2, replica=REPLICA), "most=2: expected at least count=3"),
        (lambda: Pool(startup_s=-1.0, replica=REPLICA), "startup_s=-1.0: expected seconds from 0 on"),
        (lambda: Deployment(pools=(Pool(most=2, replica=REPLICA),)), "nothing scales them: name a policy"),
        (lambda: scaled([], every_s=0.0), "scale_every_s=0.0: expected seconds above 0"),
        (
            lambda: Deployment(pools=(Pool(replica=REPLICA),) * 2, policies=Policies(scale="target-load")),
            "has one pool of each model and role",
        ),
    ],
)
def test_what_cannot_scale_is_refused(make, message) -> None:
    with pytest.raises(BadInput, match=message):
        make()


def test_an_answer_that_cannot_be_is_refused() -> None:
    chosen = Policies(scale=f"{__name__}:Wrong")
    deployment = Deployment(pools=(Pool(count=1, most=2, replica=REPLICA),), policies=chosen, scale_every_s=1.0)
    with pytest.raises(BadInput, match=r"answered Scale\(0, 0, 'nobody'\)"):
        simulate(deployment, LOAD)
