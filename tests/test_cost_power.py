"""Power and energy: between waiting and TDP, rising with load, never above a limit; joules and grams add up."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headway.cost import EngineSettings, Replica, compile_replica
from headway.cost.physics import Cost
from headway.cost.power import power_law, resident_watts, serving, spend, waiting_watts
from headway.cost.uncertainty import evidence_level
from headway.errors import BadInput, UnknownName
from headway.hardware import gpu, gpu_keys
from headway.metrics import Prices
from headway.sim import Deployment, Pool, simulate
from headway.workload import WorkloadSpec, workload
from headway.workload.arrivals import Closed, Poisson
from headway.workload.lengths import Constant

ENGINE = EngineSettings(max_batched_tokens=2048, max_seqs=64)
KEYS = ["h100-sxm", "h200", "b200", "a100-80gb-sxm", "l40s", "mi300x"]

cards = st.sampled_from(KEYS)
shares = st.floats(0.0, 1.0)
seconds = st.floats(1e-6, 1e3)
limits = st.floats(0.35, 1.5)  # of TDP; an idle MI300X draws a quarter


def operator(seconds: float, flops: float, bytes_moved: float) -> Cost:
    return Cost(np.asarray(seconds), np.asarray(seconds * flops), np.asarray(seconds * bytes_moved))


def watts(key: str, cost: Cost, cap_watts: float | None = None) -> float:
    """Mean watts of one GPU over an operator."""
    law, card = power_law(key), gpu(key)
    spent = spend(law, card, cost, 1, cap_watts)
    return waiting_watts(law, card, cap_watts) + float(spent.joules / spent.seconds)


# --- one operator


@given(cards, seconds, shares, shares)
def test_watts_lie_between_resident_and_tdp(key, busy_s, flops, bytes_moved):
    law, card = power_law(key), gpu(key)
    least = waiting_watts(law, card) + resident_watts(law, card)
    assert card.idle_watts < waiting_watts(law, card) < least
    assert least * (1 - 1e-9) <= watts(key, operator(busy_s, flops, bytes_moved)) <= card.tdp_watts * (1 + 1e-9)


@given(cards, shares, shares, shares, shares)
def test_watts_never_fall_with_load(key, flops, more_flops, bytes_moved, more_bytes):
    less = operator(1.0, min(flops, more_flops), min(bytes_moved, more_bytes))
    more = operator(1.0, max(flops, more_flops), max(bytes_moved, more_bytes))
    assert watts(key, less) <= watts(key, more) * (1 + 1e-12)


@given(cards, seconds, shares, shares, limits)
def test_a_limit_is_kept_and_never_makes_anything_faster_or_idle(key, busy_s, flops, bytes_moved, share):
    law, card, cost = power_law(key), gpu(key), operator(busy_s, flops, bytes_moved)
    cap_watts = share * card.tdp_watts
    free, capped = spend(law, card, cost, 1), spend(law, card, cost, 1, cap_watts)
    assert waiting_watts(law, card) < watts(key, cost, cap_watts) <= min(cap_watts, card.tdp_watts) * (1 + 1e-9)
    assert watts(key, cost, cap_watts) <= watts(key, cost) * (1 + 1e-9)
    assert capped.seconds >= free.seconds
    if share >= 1.0:
        assert (capped.seconds, capped.joules) == (free.seconds, free.joules)


@given(cards, shares, shares, limits, limits)
def test_a_lower_limit_takes_longer(key, flops, bytes_moved, one, other):
    law, card, cost = power_law(key), gpu(key), operator(1.0, flops, bytes_moved)
    low, high = (spend(law, card, cost, 1, share * card.tdp_watts) for share in sorted((one, other)))
    assert low.seconds >= high.seconds * (1 - 1e-12)


@given(cards, shares, limits)
def test_a_limit_costs_no_time_where_no_flops_are(key, bytes_moved, share):
    cost = operator(1.0, 0.0, bytes_moved)
    assert spend(power_law(key), gpu(key), cost, 1, share * gpu(key).tdp_watts).seconds == 1.0


@given(cards, shares, shares, st.integers(1, 72), st.floats(0.1, 100.0))
def test_joules_are_proportional_to_gpus_and_to_repetition(key, flops, bytes_moved, gpus, times):
    law, card, cost = power_law(key), gpu(key), operator(1.0, flops, bytes_moved)
    once = float(spend(law, card, cost, 1).joules)
    assert float(spend(law, card, cost.times(times), gpus).joules) == pytest.approx(once * gpus * times)


def test_a_limit_that_loading_the_engine_exceeds_is_refused():
    with pytest.raises(BadInput, match=r"cap_watts=100: a h100-sxm with an engine loaded draws 120 W"):
        compile_replica(Replica(model="llama-3.1-8b", gpu="h100-sxm", cap_watts=100.0))


@pytest.mark.parametrize("key", gpu_keys())
def test_every_gpu_has_a_law_that_says_what_it_rests_on(key):
    law = power_law(key)
    assert (law.kind == "fitted") == (law.evidence == "own") == (key.split("-")[0] in ("h100", "b200"))
    assert 0.0 < law.waiting < law.resident < 1.0
    assert law.resident + law.memory + law.compute > 1.0  # something reaches TDP


# --- one step of a replica


def replicas() -> list[Replica]:
    return [
        Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=ENGINE),
        Replica(model="qwen3-30b-a3b", gpu="b200", engine=ENGINE),
        Replica(model="llama-3.1-70b", gpu="a100-80gb-sxm", tp=2, pp=2, engine=ENGINE),
        Replica(model="gemma-3-27b", gpu="mi300x", engine=ENGINE),
    ]


@st.composite
def capped_steps(draw):
    replica = draw(st.sampled_from(replicas()))
    share = draw(st.floats(0.3, 1.0))
    decodes, chunk = draw(st.integers(0, 63)), draw(st.integers(0, 1900))
    assume(decodes or chunk)
    context = decodes * draw(st.integers(1, 8000))
    return replica, share, (decodes, context, min(context, 1024 * decodes), [(0, chunk)] if chunk else [])


@given(capped_steps())
def test_a_step_keeps_its_limit_and_takes_no_less(case):
    replica, share, step = case
    limit = share * gpu(replica.gpu).tdp_watts
    free, capped = compile_replica(replica), compile_replica(msgspec.structs.replace(replica, cap_watts=limit))
    drawn = (capped.idle_watts + capped.step_joules(*step) / capped.step_seconds(*step)) / capped.gpus
    assert drawn <= limit * (1 + 1e-9)
    assert capped.step_seconds(*step) >= free.step_seconds(*step) * (1 - 1e-12)
    assert np.all(np.diff(capped.linear_s) >= 0.0)


def test_a_limit_at_tdp_changes_nothing():
    for replica in replicas():
        limit = gpu(replica.gpu).tdp_watts
        free, capped = compile_replica(replica), compile_replica(msgspec.structs.replace(replica, cap_watts=limit))
        for name in ("linear", "seq", "decode", "decode_ctx", "decode_window", "prefill_area", "prefill_base"):
            for unit in "sj":
                np.testing.assert_array_equal(getattr(free, f"{name}_{unit}"), getattr(capped, f"{name}_{unit}"))


def test_half_of_tdp_slows_prompts_as_splitwise_has_it_and_leaves_decoding_alone():
    """Splitwise's published data (P. Patel et al., ISCA 2024): 1.30 times a prompt's time, 1.00 a decode step's."""
    free = Replica(model="llama-2-70b", gpu="h100-sxm", tp=4)
    tables = [compile_replica(msgspec.structs.replace(free, cap_watts=limit)) for limit in (None, 350.0)]
    prompt = [table.step_seconds(0, 0, 0, [(0, 4096)]) for table in tables]
    decode = [table.step_seconds(16, 16 * 1024, 0) for table in tables]
    assert prompt[1] / prompt[0] == pytest.approx(1.30, abs=0.08)
    assert decode[1] / decode[0] == pytest.approx(1.00, abs=0.03)


# --- a run


def run(arrival, cap_watts=None, prices=None, count=1, model="llama-3.1-8b"):
    replica = Replica(model=model, gpu="h100-sxm", engine=ENGINE, cap_watts=cap_watts)
    deployment = Deployment(pools=(Pool(count=count, replica=replica),), prices=prices or Prices())
    prompt, output = Constant(tokens=700), Constant(tokens=40)
    spec = WorkloadSpec(arrival=arrival, prompt=prompt, output=output, requests=60)
    return simulate(deployment, workload(spec), seed=5)


def test_pictures_take_watts_and_no_time_and_experts_give_some():
    free = compile_replica(Replica(model="llama-3.1-8b", gpu="h100-sxm"))
    drawn = [free]
    for media in ("image", "video"):
        drawn.append(compile_replica(Replica(model="llama-3.1-8b", gpu="h100-sxm", media=media)))
        assert np.array_equal(drawn[-1].linear_s, free.linear_s)
        assert drawn[-1].idle_watts == free.idle_watts
    joules = [table.linear_j[8] for table in drawn]  # with more, the GPU is at its TDP
    assert joules == sorted(joules, reverse=True) and joules[-1] < 0.9 * joules[0]
    law = power_law("b200")
    assert serving(law, True, "text").resident == law.resident + law.experts > serving(law, False, "text").resident


def test_an_unknown_kind_of_media_suggests_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown media 'images': nearest: image"):
        Replica(model="llama-3.1-8b", gpu="h100-sxm", media="images")


def test_pictures_are_refused_where_they_were_never_measured_and_are_less_sure_elsewhere():
    pictured = Replica(model="qwen3-32b", gpu="h100-sxm", tp=2, media="image")
    with pytest.raises(BadInput, match="measured with vllm alone"):
        compile_replica(msgspec.structs.replace(pictured, engine=EngineSettings(name="sglang")))
    levels = []
    for version in ("0.11.1", "0.12"):
        engine = EngineSettings(version=version)
        levels.append(evidence_level(msgspec.structs.replace(pictured, engine=engine), "tpot"))
    assert levels == ["seen pair", "family"]


def test_joules_add_up_and_a_gpu_that_does_nothing_counts():
    one, three = (run(Closed(concurrency=1), count=count) for count in (1, 3))
    for result in (one, three):
        energy = result.energy
        assert energy.joules == energy.idle_joules + energy.prefill_joules + energy.decode_joules
        assert energy.mean_watts * result.duration_s == pytest.approx(energy.joules)
    idle = waiting_watts(power_law("h100-sxm"), gpu("h100-sxm"))
    assert one.energy.idle_joules == pytest.approx(idle * one.duration_s)
    assert three.energy.idle_joules == pytest.approx(3 * idle * three.duration_s)


def test_ranks_whose_requests_all_fail_draw_what_they_draw_idle():
    pool = Pool(replica=Replica(model="qwen3-30b-a3b", gpu="h100-sxm", dp=2, ep=2, engine=ENGINE))
    spec = WorkloadSpec(prompt=Constant(tokens=200_000), output=Constant(tokens=4), requests=5)  # beyond the context
    result = simulate(Deployment(pools=(pool,)), workload(spec, rate=1.0))
    assert result.requests.failed == 5
    assert (result.energy.prefill_joules, result.energy.decode_joules) == (0.0, 0.0)
    assert result.energy.joules == result.energy.idle_joules > 0.0


def test_a_limit_holds_over_a_run_and_lowers_energy_at_an_easy_rate():
    free, capped = (run(Poisson(rate_req_s=2.0), limit) for limit in (None, 300.0))
    assert capped.energy.mean_watts < 300.0
    assert capped.energy.joules < free.energy.joules
    assert capped.ttft_s.mean > free.ttft_s.mean


def test_energy_says_whether_it_was_fitted_on_this_gpu():
    spec = WorkloadSpec(
        arrival=Closed(concurrency=2), prompt=Constant(tokens=64), output=Constant(tokens=8), requests=4
    )
    kinds = {}
    for key in ("h100-sxm", "b200", "h200", "a100-80gb-sxm"):
        pools = (Pool(replica=Replica(model="llama-3.1-8b", gpu=key, engine=ENGINE)),)
        kinds[key] = simulate(Deployment(pools=pools), workload(spec), seed=1).energy.kind
    assert kinds == {"h100-sxm": "fitted", "b200": "fitted", "h200": "estimated", "a100-80gb-sxm": "estimated"}


# --- carbon


@given(st.floats(1.0, 5000.0), st.floats(0.5, 20.0))
def test_making_a_gpu_is_borne_by_the_hours_of_its_life(kilograms, years):
    prices = Prices(embodied_kg_per_gpu=kilograms, lifetime_years=years)
    assert prices.embodied_g_per_gpu_hour * 24 * 365.25 * years == pytest.approx(1000 * kilograms)


def test_grams_are_energy_times_pue_times_intensity_and_making_comes_apart():
    """Green Algorithms (L. Lannelongue et al., Advanced Science 8, 2021): hours x kW x PUE x g/kWh."""
    bare = run(Closed(concurrency=1), prices=Prices(carbon_g_per_kwh=475.0, pue=1.67))
    given_ = Prices(carbon_g_per_kwh=475.0, pue=1.67, embodied_kg_per_gpu=150.0, lifetime_years=4.0)
    full = run(Closed(concurrency=1), prices=given_, count=2)
    hours, kilowatts = bare.duration_s / 3600, bare.energy.mean_watts / 1000
    assert bare.carbon.grams == pytest.approx(hours * kilowatts * 1.67 * 475.0)
    assert bare.carbon.embodied_grams is None
    assert full.carbon.embodied_grams == pytest.approx(full.duration_s / 3600 * 2 * 150e3 / (4 * 8766))
    assert full.carbon.grams == pytest.approx(full.energy.joules / 3.6e6 * 1.67 * 475.0)


@pytest.mark.parametrize(
    "came",
    [{"embodied_kg_per_gpu": 100.0}, {"lifetime_years": 4.0}, {"embodied_kg_per_gpu": -1.0, "lifetime_years": 4.0},
     {"embodied_kg_per_gpu": 1.0, "lifetime_years": 0.0}],
)  # fmt: skip
def test_half_of_what_making_needs_is_refused(came):
    with pytest.raises(BadInput, match=r"embodied_kg_per_gpu|lifetime_years"):
        Prices(**came)
