"""What a question lists besides layouts: engines, settings, policies of the library, and watts as a constraint."""

import re
from itertools import product

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import EngineSettings
from headway.errors import BadInput, UnknownName
from headway.hardware import gpu
from headway.metrics import Slo
from headway.plan import Question, plan
from headway.plan.doubt import doubt
from headway.plan.evaluate import Asked, Goodput, Outcome
from headway.plan.ranking import Entry
from headway.plan.space import enumerate_space
from headway.sim import Deployment, Policies, simulate
from headway.specs import from_mapping
from headway.workload import workload

pytestmark = pytest.mark.usefixtures("without_curves")

SLO = Slo(ttft_s=1.0, tpot_s=0.05)
QUESTION = Question(
    model="llama-3.1-8b", gpu="h100-sxm", gpus=3, rate_req_s=15, slo=SLO, requests=600, weights=("bf16",),
    kv=("bf16",), budget_tokens=(2048,), tp=(1,), pp=(1,), layouts=("mixed",), margin=0,
)  # fmt: skip


def changed(**changes):
    return msgspec.structs.replace(QUESTION, **changes)


def deployments(**changes):
    return {option.name: option.deployment for option in enumerate_space(changed(**changes)).options}


def engine_of(deployment):
    return deployment.pools[0].replica.engine


# --- engines and their settings -----------------------------------------------------------------------------


def test_nothing_listed_changes_nothing():
    assert list(deployments()) == [f"{n}x tp1 bf16/bf16 b2048" for n in (1, 2, 3)]


def test_every_setting_is_tried_with_every_other_in_all_pools():
    found = deployments(
        engines=("vllm", "sglang:0.5"), max_seqs=(64, 512), prefix_cache=(True, False), layouts=("mixed", "split")
    )
    tried = {
        (each.engine.name, each.engine.version, each.engine.max_seqs, each.engine.prefix_cache)
        for deployment in found.values()
        for each in [pool.replica for pool in deployment.pools]
    }
    assert tried == set(product(("vllm",), ("",), (64, 512), (True, False))) | set(
        product(("sglang",), ("0.5",), (64, 512), (True, False))
    )
    assert len(found) == 8 * len(deployments(layouts=("mixed", "split")))
    for deployment in found.values():
        assert len({pool.replica.engine for pool in deployment.pools}) == 1
    one = found["2x tp1 bf16/bf16 sglang:0.5 s64 uncached b2048"]
    assert engine_of(one).max_batched_tokens == 2048


def test_more_sequences_than_a_budget_has_room_for_leave_that_budget_out():
    found = deployments(budget_tokens=(256, 2048), max_seqs=(128, 512))
    pairs = {(engine_of(each).max_batched_tokens, engine_of(each).max_seqs) for each in found.values()}
    assert pairs == {(256, 128), (2048, 128), (2048, 512)}


def test_an_engine_that_a_gpu_lacks_is_tried_on_the_others():
    both = {"gpu": {"h100-sxm": 1, "mi300x": 1}, "gpus": None, "engines": ("vllm", "trtllm")}
    used = {(p.replica.gpu, p.replica.engine.name) for d in deployments(**both).values() for p in d.pools}
    assert used == {("h100-sxm", "vllm"), ("h100-sxm", "trtllm"), ("mi300x", "vllm")}
    sides = [d for d in deployments(**both).values() if len(d.pools) == 2]
    assert sides and all(len({p.replica.engine.name for p in d.pools}) == 1 for d in sides)


# --- policies -----------------------------------------------------------------------------------------------


def test_routers_are_tried_where_there_is_a_choice():
    found = deployments(policies_to_try={"route": ("round-robin", "least-requests"), "order": ("fcfs", "sjf")})
    assert {d.policies.route for d in found.values() if d.pools[0].count == 1} == {"least-requests"}
    for count in (2, 3):
        chosen = {(d.policies.route, d.policies.order) for d in found.values() if d.pools[0].count == count}
        assert chosen == set(product(("round-robin", "least-requests"), ("fcfs", "sjf")))
    assert "2x tp1 bf16/bf16 b2048 route=round-robin order=sjf" in found


def test_parameters_are_those_of_the_policy_they_were_given_for():
    own = Policies(route="prefix-affinity", params={"route": {"token_price": 0.1}, "order": {}})
    found = deployments(policies=own, policies_to_try={"route": ("prefix-affinity", "round-robin")})
    for deployment in found.values():
        given = deployment.policies.params.get("route")
        assert given == ({"token_price": 0.1} if deployment.policies.route == "prefix-affinity" else None)


def test_weights_of_unlike_replicas_stay_with_the_router_that_takes_them():
    both = {"gpu": {"h100-sxm": 1, "l40s": 1}, "gpus": None}
    routes = ("weighted-requests", "least-requests")
    found = [d for d in deployments(**both, policies_to_try={"route": routes}).values() if len(d.pools) == 2]
    assert {d.policies.route: "weights" in d.policies.params.get("route", {}) for d in found} == {
        "weighted-requests": True, "least-requests": False,
    }  # fmt: skip


def test_a_plan_finds_the_better_policy_and_says_which():
    """Sessions of an agent come back to what their replica has cached."""
    found = plan(
        changed(workload="agent", gpus=2, rate_req_s=1.0, objective="rate", slo=Slo(ttft_s=2.0), exhaustive=True,
                requests=300, policies_to_try={"route": ("round-robin", "prefix-affinity")}),
        workers=1,
    )  # fmt: skip
    goodput = {c.name: c.goodput_req_s for c in found.ranked if c.gpus == 2}
    by_route = {name.rpartition("=")[2]: value for name, value in goodput.items()}
    assert by_route["prefix-affinity"] > by_route["round-robin"]
    assert found.best.name.endswith("route=prefix-affinity")
    assert from_mapping(Deployment, found.best.deployment, "best").policies.route == "prefix-affinity"


# --- watts --------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(most=st.floats(400, 5000), caps=st.sampled_from([None, (400.0,), (400.0, 700.0)]), rack=st.integers(1, 3))
def test_no_plan_may_draw_more_and_none_that_may_not_is_left_out(most, caps, rack):
    free = deployments(cap_watts=caps)
    together = enumerate_space(changed(cap_watts=caps, max_watts=max(most, 700.0)))
    racks = deployments(cap_watts=caps, watts_per_rack=max(most, 700.0), gpus_per_rack=rack)

    def watts(deployment):
        cap = deployment.pools[0].replica.cap_watts
        return min(cap or 700.0, gpu("h100-sxm").tdp_watts)

    expected = {name for name, each in free.items() if each.gpus * watts(each) <= max(most, 700.0) + 1e-6}
    assert {option.name for option in together.options} == expected
    assert together.discarded.get("watts", 0) == len(free) - len(expected)
    count = -(-3 // rack)
    assert set(racks) == {
        name for name, each in free.items() if each.gpus <= count * min(rack, int(max(most, 700.0) / watts(each)))
    }


def test_watts_that_leave_nothing_are_answered_with_the_pair_and_what_would_do():
    found = plan(changed(tp=(2,), max_watts=1000.0), workers=1)
    assert not found.feasible and found.binding is None
    assert "max_watts 1000 against tp 2 leaves none, as all whose replicas fit may draw more at their TDP (1)." in (
        found.message
    )
    assert "Allow other tp than 2 (1x tp1" in found.message
    assert "raise max_watts 1000 (1x tp2" in found.message
    dear = plan(changed(max_watts=1000.0, max_usd_per_hour=9.0, spare=1), workers=1)
    assert "max_watts 1000 against max_usd_per_hour 9 and spare 1 leaves none" in dear.message
    assert "may draw more at their TDP (1) or cost more (1)" in dear.message
    rack = plan(changed(tp=(2,), watts_per_rack=1000.0, gpus_per_rack=3), workers=1)
    assert "watts_per_rack 1000 against tp 2 leaves none" in rack.message
    assert "raise watts_per_rack 1000 (" in rack.message


def test_watts_that_leave_nothing_under_a_power_limit_are_not_answered_by_asking_for_one():
    found = plan(changed(tp=(2,), max_watts=500.0, cap_watts=(300.0, 400.0)), workers=1)
    assert "max_watts 500 against tp 2 leaves none, as all whose replicas fit may draw more at cap_watts 300, 400" in (
        found.message
    )
    assert "Allow other tp than 2 (1x tp1 bf16/bf16 300W" in found.message
    assert "raise max_watts 500 (1x tp2 bf16/bf16 300W" in found.message
    assert "power limit" not in found.message


def test_spare_replicas_for_which_there_are_no_gpus_are_no_matter_of_memory():
    found = plan(changed(tp=(2,), spare=1, max_watts=500.0, cap_watts=(300.0,)), workers=1)
    assert "spare 1 against 3 h100-sxm leaves none: it needs 2 replicas in every pool" in found.message


def test_copies_that_would_do_say_that_they_need_more_watts():
    found = plan(changed(rate_req_s=60.0, max_watts=1500.0), workers=1)
    assert not found.feasible and found.binding == "rate"
    assert "which needs max_watts 1500 raised" in found.message
    assert "raised" not in plan(changed(rate_req_s=60.0, max_watts=15_000.0), workers=1).message


def test_copies_that_would_do_say_how_many_racks_they_need():
    found = plan(changed(rate_req_s=60.0, watts_per_rack=1000.0, gpus_per_rack=3), workers=1)
    gpus = int(re.search(r"(\d+) GPUs would do", found.message)[1])
    assert f"which needs {gpus} racks, or watts_per_rack 1000 raised" in found.message, "one has power for one"
    assert "raised" not in plan(changed(rate_req_s=60.0, watts_per_rack=9000.0, gpus_per_rack=3), workers=1).message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_watts": 500.0}, "max_watts 500 against gpu h100-sxm, one of which draws up to 700 W"),
        (
            {"max_watts": 350.0, "cap_watts": (400.0,)},
            "one of which draws up to 400 W: raise the one, or try a cap_watts below 400",
        ),
        ({"max_watts": 0.0}, "give watts above 0"),
        ({"watts_per_rack": 9000.0}, "watts_per_rack 9000.0 and gpus_per_rack None"),
        ({"watts_per_rack": 300.0, "gpus_per_rack": 8}, "watts_per_rack 300 against gpu h100-sxm"),
        ({"watts_per_rack": 9000.0, "gpus_per_rack": 0}, "gpus_per_rack 0: give a number from 1"),
        ({"max_seqs": (4096,)}, r"max_seqs \[4096\] against budget_tokens \[2048\]"),
        ({"max_seqs": ()}, "give at least one value"),
        ({"engine": EngineSettings(max_seqs=64), "max_seqs": (128,)}, r"engine.max_seqs 64 against max_seqs \[128\]"),
        ({"engine": EngineSettings(max_batched_tokens=4096)}, r"engine.max_batched_tokens 4096 against budget_tokens"),
        ({"engine": EngineSettings(prefix_cache=False), "prefix_cache": (True,)}, "prefix_cache False against"),
        ({"policies": Policies(route="round-robin"), "policies_to_try": {"route": ("least-tokens",)}},
         r"policies.route round-robin against policies_to_try.route \['least-tokens'\]"),
        ({"engines": ("vllm", "vllm")}, "give each value to try once"),
        ({"engines": ("vlm",)}, "unknown engine 'vlm': nearest: vllm"),
        ({"engines": ("vllm:new",)}, "expected numbers with dots"),
        ({"gpu": "mi300x", "engines": ("trtllm",)}, "engine trtllm against gpu mi300x"),
        ({"policies_to_try": {"scale": ("fixed", "target-load")}}, "decision point of policies_to_try 'scale'"),
        ({"policies_to_try": {"route": ()}}, r"policies_to_try.route \[\]: give at least one"),
        ({"policies_to_try": {"route": ("round-robbin",)}}, "unknown route policy 'round-robbin': nearest: round-ro"),
    ],
)
def test_lists_and_limits_that_make_no_sense_are_refused(changes, message):
    with pytest.raises((BadInput, UnknownName), match=message):
        plan(changed(**changes), workers=1)


# --- how sure -----------------------------------------------------------------------------------------------


def test_engines_are_told_apart_less_surely_than_layouts_of_one():
    named = {name.split()[3]: each for name, each in deployments(engines=("vllm", "sglang"), gpus=1).items()}
    asked = Asked(1.0, 1.0, 1.0, 0.1, 0.01, 1.0, 1.0, True)

    def entry(name, rate, count=1):
        outcome = Outcome(Goodput(rate, rate, 1.03 * rate), asked, "tpot", 0.1, 0.2, 100, 1)
        return Entry(msgspec.structs.replace(named[name], name=f"{name}{rate}"), outcome, True)

    best = entry("vllm", 10.0)
    ratio = doubt([best], "rate", 5.0).ratio
    far = 10.0 / (1 + ratio) / 1.05
    found = doubt([best, entry("vllm", far), entry("sglang", far)], "rate", 5.0)
    assert found.ties == [f"sglang{far}"]


def test_the_chosen_settings_are_those_simulated():
    found = plan(changed(engines=("sglang",), max_seqs=(64,), prefix_cache=(False,), gpus=2), workers=1)
    best = from_mapping(Deployment, found.best.deployment, "best")
    expected = EngineSettings(name="sglang", max_seqs=64, prefix_cache=False, max_batched_tokens=2048)
    assert engine_of(best) == expected
    made = workload("chat", rate=15, requests=600)
    runs = [simulate(best, made, slo=SLO, seed=seed).slo for seed in found.best.seeds]
    assert sum(run.attained for run in runs) / sum(run.measured for run in runs) == found.best.attainment


# --- questions built in Python ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "costs"}, "question: objective: unknown value 'costs': nearest: cost; allowed: carbon, cost, "),
        ({"front": ("cost", "speed")}, "question: front.1: unknown value 'speed'"),
        ({"tp": 3}, "question: tp: expected list | None, came 3"),
        ({"gpus": "2"}, "question: gpus: expected int | None, came '2'"),
        ({"gpu": {"h100-sxm": "2"}}, "question: gpu.h100-sxm: expected int, came '2'"),
        ({"rate_req_s": "30"}, "question: rate_req_s: expected float | None, came '30'"),
        ({"slo": 0.5}, "question: slo: expected Slo, came 0.5"),
        ({"prices": 5}, "question: prices: expected Prices, came 5"),
        ({"workload": 5}, "question: workload: expected str | WorkloadSpec, came 5"),
    ],
)
def test_a_question_built_in_python_says_which_field_is_of_a_wrong_type(changes, message):
    fields = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "gpus": 2, "slo": Slo(ttft_s=0.5), **changes}
    with pytest.raises(BadInput, match="^" + re.escape(message)):
        Question(**fields)


def test_a_question_takes_numbers_of_numpy_lists_and_a_path(tmp_path):
    made = Question(
        model="llama-3.1-8b", gpu="h100-sxm", gpus=np.int64(2), slo=Slo(ttft_s=np.float64(0.5)), tp=[1, 2],
        rate_req_s=np.float32(4), workload=tmp_path / "trace.csv",
    )  # fmt: skip
    assert msgspec.json.decode(msgspec.json.encode(made), type=Question) == made
    assert (made.tp, made.workload, made.rate_req_s) == ((1, 2), str(tmp_path / "trace.csv"), 4.0)
