"""What the live page is drawn from: rings that stay bounded, sums that agree, and estimates that obey physics."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from brain_cases import ask, brain, table
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.books import ReplicaBook
from headway.gateway.estimates import Meter, watts
from headway.gateway.events import EngineSample, Outcome
from headway.gateway.gauges import gauges_of
from headway.gateway.history import DURATIONS_MAX, POINTS, RECENT_S, REFUSALS_MAX, STEP_S, History, quantile
from headway.gateway.overview import Overview
from headway.hardware import gpu


def outcome(rng: Random) -> Outcome:
    refused = rng.random() < 0.3
    return Outcome(
        id="r",
        tenant=rng.choice("abc"),
        slo_class=rng.choice(["chat", "batch"]),
        status=429 if refused else 200,
        code=rng.choice(["queue_full", "late"]) if refused else "",
        arrived_s=0.0,
        attained=not refused and rng.random() < 0.8,
        ttft_s=None if refused else rng.random(),
        e2e_s=None if refused else 2.0,
    )


def test_the_rings_are_bounded_and_count_everything_once():
    rng, history, now, told = Random(1), History(["chat", "batch"], dict), 0.0, []
    for _ in range(20_000):
        now += rng.choice([0.0, 0.05, 0.2])
        told.append((now, outcome(rng)))
        history.add(*told[-1])
        history.mark(now)
    assert len(history.points) == POINTS and len(history.refusals) == REFUSALS_MAX
    assert all(len(kept) <= DURATIONS_MAX for each in history.classes.values() for kept in each.durations.values())
    times = [point["at_s"] for point in history.points]
    assert np.diff(times) == pytest.approx(STEP_S), "points stand on a grid"
    assert [point["serial"] for point in history.points] == list(range(history.serial - POINTS + 1, history.serial + 1))
    since = [each for at, each in told if times[0] < at <= times[-1]]
    for name in ("chat", "batch"):
        points = [point["classes"][name] for point in list(history.points)[1:]]
        mine = [each for each in since if each.slo_class == name]
        # what came with the tick that made a point is in that point: a step of the clock to either side
        assert abs(sum(point["over"] for point in points) - len(mine)) <= 4
        assert abs(sum(point["met"] for point in points) - sum(each.attained for each in mine)) <= 4
        lately = history.classes[name].lately()
        recent = [each for at, each in told if at > now - RECENT_S and each.slo_class == name]
        assert lately["over"] == pytest.approx(len(recent), abs=0.06 * len(recent) + 4)


def test_refusals_of_one_kind_in_a_row_become_one():
    history, refused = History(["chat"], dict), dict(id="r", tenant="a", slo_class="chat", status=429, arrived_s=0.0)
    for code in ("queue_full", "queue_full", "queue_full", "late", "queue_full"):
        history.add(7.0, Outcome(**refused, code=code))
    assert [(each["code"], each["times"]) for each in history.refusals] == [
        ("queue_full", 3),
        ("late", 1),
        ("queue_full", 1),
    ]


def test_after_a_pause_the_grid_begins_anew():
    history = History(["chat"], dict)
    for now in (0.0, 2.1, 50.0, 51.0, 52.3):
        history.mark(now)
    assert [point["at_s"] for point in history.points] == [0.0, 2.0, 50.0, 52.0]


@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=60), share=st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_value_that_so_many_do_not_exceed(values, share):
    found = quantile(sorted(values), share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


@given(running=st.integers(0, 400), tokens=st.integers(0, 3000), waiting=st.integers(0, 50_000))
def test_power_lies_between_idle_and_what_the_card_is_built_for(running, tokens, waiting):
    power = watts(table(), running, running * tokens, waiting)
    assert table().idle_watts <= power <= gpu("h100-sxm").tdp_watts * table().gpus * 1.05
    if not running and not waiting:
        assert power == table().idle_watts


def test_an_idle_replica_draws_idle_power_and_costs_its_price():
    meter = Meter(ReplicaBook(0, table(), 8), usd_per_hour=3.6)
    for second in range(101):
        meter.look(float(second))
    assert meter.watts == table().idle_watts
    assert meter.joules == pytest.approx(100 * table().idle_watts)
    assert meter.usd == pytest.approx(0.1)
    unknown = Meter(ReplicaBook(0, None, 8), usd_per_hour=None)
    unknown.look(0.0), unknown.look(9.0)
    assert (unknown.watts, unknown.joules, unknown.usd) == (None, 0.0, 0.0)


def test_what_peers_told_of_is_no_drift_on_the_page():
    b = brain(1)
    b.beside(0.0, 0, 5)
    b.sample(0.0, 0, EngineSample(running=7, waiting=1))
    (replica,) = Overview(b, lambda: 0.0).present()["replicas"]
    assert replica["drift"] == 3


def test_drift_is_of_the_moment_of_the_reading():
    """What came or went since is no difference between books and engine."""
    b = brain(1)
    overview = Overview(b, lambda: 0.0)

    def shown():
        (gauge,) = [value for name, _, value in gauges_of(b) if name == "headway_drift"]
        (replica,) = overview.present()["replicas"]
        assert replica["drift"] == gauge
        return gauge

    for i in range(3):
        b.arrive(0.0, ask(f"r{i}"))
    b.sample(0.1, 0, EngineSample(running=2, waiting=0))
    assert shown() == -1, "one is on its way"
    for i in range(3):
        b.end(0.2, f"r{i}")
    assert shown() == -1
    b.sample(0.3, 0, EngineSample(running=0, waiting=0))
    assert shown() == 0
    b.sample(0.4, 0, EngineSample())
    assert overview.present()["replicas"][0]["drift"] is None
