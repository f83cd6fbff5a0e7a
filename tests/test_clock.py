"""Locked clocks: time and power follow them, the boost clock changes nothing, of clock and cap the lower holds."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_cases import refused, run
from headway.cost import EngineSettings, Replica, compile_replica
from headway.cost.physics import Cost
from headway.cost.power import power_law, resident_watts, spend, waiting_watts
from headway.errors import BadInput
from headway.hardware import gpu, gpu_keys
from headway.specs import override, to_mapping

ENGINE = EngineSettings(max_batched_tokens=2048, max_seqs=64)
KEYS = ["h100-sxm", "h200", "b200", "a100-80gb-sxm", "l40s", "mi300x"]
REPLICAS = [
    Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=ENGINE),
    Replica(model="qwen3-30b-a3b", gpu="b200", engine=ENGINE),
    Replica(model="llama-3.1-70b", gpu="a100-80gb-sxm", tp=2, pp=2, engine=ENGINE),
    Replica(model="gemma-3-27b", gpu="mi300x", engine=ENGINE),
]

cards = st.sampled_from(KEYS)
shares = st.floats(0.0, 1.0)
clocks = st.floats(0.15, 1.0)  # of the boost clock
limits = st.floats(0.35, 1.2)  # of TDP


def operator(flops: float, bytes_moved: float) -> Cost:
    return Cost(np.asarray(1.0), np.asarray(flops), np.asarray(bytes_moved))


def spent(key, cost, clock=None, cap=None):
    card = gpu(key)
    clock_mhz = None if clock is None else clock * card.boost_mhz
    return spend(power_law(key), card, cost, 1, None if cap is None else cap * card.tdp_watts, clock_mhz)


def watts(key, cost, clock=None, cap=None):
    card, law = gpu(key), power_law(key)
    clock_mhz = None if clock is None else clock * card.boost_mhz
    done = spent(key, cost, clock, cap)
    waiting = waiting_watts(law, card, None if cap is None else cap * card.tdp_watts, clock_mhz)
    return waiting + float(done.joules / done.seconds)


def locked(replica: Replica, share: float, **changes) -> Replica:
    return msgspec.structs.replace(replica, clock_mhz=share * gpu(replica.gpu).boost_mhz, **changes)


# --- one operator


@given(cards, shares, shares, clocks, clocks)
def test_a_lower_clock_takes_longer_and_draws_less(key, flops, bytes_moved, one, other):
    low, high = sorted((one, other))
    cost = operator(flops, bytes_moved)
    assert spent(key, cost, low).seconds >= spent(key, cost, high).seconds * (1 - 1e-12)
    assert gpu(key).idle_watts < watts(key, cost, low) <= watts(key, cost, high) * (1 + 1e-9)
    assert spent(key, cost, low).joules >= 0.0


@given(cards, clocks, st.floats(0.05, 1.0))
def test_what_flops_set_goes_with_the_inverse_and_power_above_waiting_with_the_cube(key, clock, flops):
    cost, waiting = operator(flops, 0.0), waiting_watts(power_law(key), gpu(key))
    assert float(spent(key, cost, clock).seconds) == pytest.approx(1 / clock)
    above = watts(key, cost) - waiting
    assert watts(key, cost, clock) - waiting == pytest.approx(above * clock**3)


@given(cards, clocks, shares)
def test_what_bytes_set_keeps_its_time_and_costs_less_energy(key, clock, bytes_moved):
    cost = operator(0.0, bytes_moved)
    assert spent(key, cost, clock).seconds == 1.0
    assert watts(key, cost, clock) <= watts(key, cost) * (1 + 1e-12)


@given(cards, shares, shares, clocks, limits)
def test_of_a_clock_and_a_cap_the_lower_holds(key, flops, bytes_moved, clock, cap):
    cost = operator(flops, bytes_moved)
    both, capped, slow = spent(key, cost, clock, cap), spent(key, cost, None, cap), spent(key, cost, clock)
    assert float(both.seconds) == pytest.approx(max(float(capped.seconds), float(slow.seconds)), rel=1e-12)
    assert watts(key, cost, clock, cap) <= cap * gpu(key).tdp_watts * (1 + 1e-9)
    assert watts(key, cost, clock, cap) == pytest.approx(min(watts(key, cost, None, cap), watts(key, cost, clock)))


@pytest.mark.parametrize("key", [key for key in gpu_keys() if gpu(key).boost_mhz])
def test_what_steps_draw_goes_with_the_cube_and_waiting_costs_the_same(key):
    law, card = power_law(key), gpu(key)
    half = 0.5 * card.boost_mhz
    assert 300 < card.boost_mhz < 3500
    assert waiting_watts(law, card, None, half) == waiting_watts(law, card) > card.idle_watts
    assert resident_watts(law, card, None, half) == pytest.approx(resident_watts(law, card) / 8)


# --- a replica


@pytest.mark.parametrize("replica", REPLICAS, ids=lambda one: one.gpu)
def test_the_boost_clock_changes_nothing(replica):
    free, same = compile_replica(replica), compile_replica(locked(replica, 1.0))
    for name in free.__struct_fields__:
        before, after = getattr(free, name), getattr(same, name)
        np.testing.assert_array_equal(before, after, err_msg=name)


@given(st.sampled_from(REPLICAS), clocks, clocks, st.integers(0, 60), st.integers(0, 1900))
def test_steps_take_longer_at_lower_clocks(replica, one, other, decodes, chunk):
    slow, fast = (compile_replica(locked(replica, share)) for share in sorted((one, other)))
    step = (decodes, decodes * 500, decodes * 500, [(0, chunk)] if chunk else [])
    if decodes or chunk:
        assert slow.step_seconds(*step) >= fast.step_seconds(*step) * (1 - 1e-12)
        assert np.all(np.diff(slow.linear_s) >= -1e-15)


@pytest.mark.parametrize("replica", REPLICAS, ids=lambda one: one.gpu)
def test_decoding_at_a_lower_clock_saves_energy_and_hardly_any_time(replica):
    tables = [compile_replica(locked(replica, share)) for share in (1.0, 0.85, 0.7)]
    step = (8, 8 * 1024, 8 * 1024)
    seconds = [table.step_seconds(*step) for table in tables]
    joules = [table.idle_watts * table.step_seconds(*step) + table.step_joules(*step) for table in tables]
    assert joules == sorted(joules, reverse=True)
    assert joules[-1] < 0.7 * joules[0]
    assert seconds[-1] < 1.03 * seconds[0]


def test_prompts_pay_for_it():
    tables = [compile_replica(locked(REPLICAS[0], share)) for share in (1.0, 0.7)]
    free_s, slow_s = (table.step_seconds(0, 0, 0, [(0, 2048)]) for table in tables)
    assert 1.2 < slow_s / free_s < 1 / 0.7


# --- what is said


def test_it_is_set_like_any_field():
    replica = override(REPLICAS[0], ["clock_mhz=1200"])
    assert to_mapping(replica)["clock_mhz"] == 1200.0
    assert "clock_mhz" not in to_mapping(REPLICAS[0])


@pytest.mark.parametrize(
    ("key", "clock_mhz", "message"),
    [
        ("h100-sxm", 2000.0, r"clock_mhz=2000: a h100-sxm can be locked up to its boost clock of 1980 MHz"),
        ("h100-sxm", 1.98, r"clock_mhz=1.98: .* no less than 198 MHz"),
        ("h100-sxm", -1.0, r"clock_mhz=-1.0: expected MHz above 0"),
        ("gb300", 1500.0, r"boost clock of a gb300 is not in the catalogue; .* \(cap_watts\) can be given instead"),
    ],
)
def test_clocks_that_cannot_be_are_refused(key, clock_mhz, message):
    with pytest.raises(BadInput, match=message):
        compile_replica(Replica(model="llama-3.1-8b", gpu=key, clock_mhz=clock_mhz))


def test_the_command_line_takes_it():
    words = ("simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--requests", 50, "--rate", 2, "--quiet")
    free, slow = (run(*words, "--json", "-", *more) for more in ((), ("--set", "pools.0.replica.clock_mhz=1200")))
    assert free.exit_code == slow.exit_code == 0, slow.output
    energy = [msgspec.json.decode(each.stdout)["energy"] for each in (free, slow)]
    assert energy[1]["mean_watts"] < 0.8 * energy[0]["mean_watts"]
    assert [each["kind"] for each in energy] == ["fitted", "estimated"]
    refused(run(*words, "--set", "pools.0.replica.clock_mhz=2500"), "up to its boost clock of 1980 MHz")
