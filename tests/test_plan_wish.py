"""Where nothing will do: the physical floor of a limit, and what a plan says would do instead."""

import re
from itertools import combinations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import EngineSettings, Replica, memory_fit
from headway.errors import BadInput, DoesNotFit
from headway.hardware import gpu
from headway.metrics import Slo
from headway.model import model
from headway.plan import Question, plan
from headway.plan.bounds import Lengths, reach
from headway.plan.evaluate import Evaluator
from headway.plan.floor import floor, token_bytes, token_s
from headway.plan.space import enumerate_space, singles
from headway.plan.wish import wishes
from headway.sim import Deployment, Pool
from headway.sim.run import compiled
from headway.units import parse_seconds
from headway.workload import parse_length, workload

pytestmark = pytest.mark.usefixtures("without_curves")

SMALL = Question(
    model="llama-3.1-8b", gpu="h100-sxm", gpus=2, rate_req_s=1.0, slo=Slo(ttft_s=0.5, tpot_s=0.03), requests=300,
    margin=0,
)  # fmt: skip


def changed(**changes):
    return msgspec.structs.replace(SMALL, **changes)


# --- the floor ----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v3", "gemma-3-27b", "gpt-oss-120b", "llama-3.2-1b"]),
    st.sampled_from(["h100-sxm", "a100-80gb-sxm", "mi300x", "b200", "l40s"]), st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2]), st.sampled_from([(1, False), (2, False), (8, False), (8, True)]),
    st.sampled_from(["vllm", "sglang"]), st.integers(1, 30_000), st.integers(1, 3_000),
)  # fmt: skip
def test_no_replica_is_faster_than_its_floor(name, card, tp, pp, ranks, engine, prompt, output):
    dp, divided = ranks
    replica = Replica(
        model=name, gpu=card, tp=tp, pp=pp, dp=dp, ep=tp * dp if divided else 1, weights=model(name).native_dtype,
        engine=EngineSettings(name=engine),
    )  # fmt: skip
    try:
        deployment, tables = Deployment(pools=(Pool(replica=replica),)), (compiled(replica),)
        memory_fit(replica)
    except (BadInput, DoesNotFit):
        return
    lengths = Lengths(np.array([prompt]), np.array([output]), cached=False)
    best = reach(deployment, tables, lengths, Slo(tpot_s=1.0))
    assert token_s(replica) <= best.tpot_s
    for limit, least_s in (("ttft_s", best.ttft_s[0]), ("e2e_s", best.e2e_s[0])):
        assert floor([replica], lengths, Slo(**{limit: 1.0001 * least_s})) is None
        below = floor([replica], lengths, Slo(**{limit: 1e-9}))
        assert 0 < below.least_s <= least_s


def test_a_floor_is_weights_over_bandwidth_and_operations_over_peak():
    card, spec = gpu("h100-sxm"), model("llama-3.1-70b")
    replica = Replica(model=spec.key, gpu=card.key, tp=8, weights="fp8")
    assert token_bytes(replica) == spec.weight_bytes("fp8") - 2 * spec.embedding_params()
    lengths = Lengths(np.array([4000]), np.array([100]), cached=False)
    low = floor([replica, msgspec.structs.replace(replica, tp=4)], lengths, Slo(tpot_s=0.001))
    assert low.replica == replica and low.binding == "tpot"
    assert low.least_s == pytest.approx(token_bytes(replica) / (8 * card.memory_bytes_per_s))
    gap = floor([replica], lengths, Slo(itl_s=0.001))
    assert (gap.binding, gap.least_s) == ("itl", low.least_s)
    flops = 2 * (spec.total_params() - spec.head_params() - spec.embedding_params()) * 4000
    low = floor([replica], lengths, Slo(ttft_s=0.001))
    assert low.least_s == pytest.approx(flops / (8 * card.peak_flops["fp8"]))
    found_again = floor([replica], lengths._replace(cached=True), Slo(ttft_s=0.001))
    assert found_again.least_s == pytest.approx(token_s(replica))
    mixture = Replica(model="deepseek-v3", gpu="h200", tp=8, weights="fp8")
    assert token_bytes(mixture) < 1.3 * model("deepseek-v3").active_params()


def test_a_token_of_a_rank_reads_what_is_no_expert_from_its_own_gpus_alone():
    spec, card = model("deepseek-v3"), gpu("h200")
    ranks = Replica(model=spec.key, gpu=card.key, dp=8, ep=8, weights="fp8")
    alone = msgspec.structs.replace(ranks, tp=8, dp=1, ep=1)
    experts = spec.moe_layers() * spec.experts_per_token * spec.expert_params()
    rest = token_bytes(ranks) - experts
    assert token_s(ranks) == pytest.approx((rest + experts / 8) / card.memory_bytes_per_s)
    assert token_s(alone) == pytest.approx((rest + experts) / 8 / card.memory_bytes_per_s)
    lengths = Lengths(np.array([100]), np.array([100]), cached=False)
    low = floor([ranks], lengths, Slo(tpot_s=0.0005))
    assert f"{rest / 1e9:.3g} GB of them on the 1 of its own rank" in low.why
    assert floor([ranks, alone], lengths, Slo(tpot_s=0.0005)).replica == alone


def test_requests_that_the_target_lets_go_may_be_below_the_floor():
    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm")
    lengths = Lengths(np.array([100] * 19 + [30_000]), np.array([1] * 19 + [50]), cached=False)
    assert floor([replica], lengths, Slo(ttft_s=0.1, tpot_s=0.001, attainment=0.95)) is None
    assert floor([replica], lengths, Slo(ttft_s=0.1, attainment=0.96)).binding == "ttft"
    assert floor([replica], lengths, Slo(tpot_s=0.001, attainment=0.96)).binding == "tpot"
    assert floor([], lengths, Slo(tpot_s=0.001)) is None


@pytest.mark.parametrize(
    ("slo", "binding", "words"),
    [
        (Slo(tpot_s=0.001), "tpot", ("TPOT 1 ms is below the physical floor of 1.2 ms", "8.03 GB of weights (fp8)")),
        pytest.param(
            Slo(itl_s=0.001), "itl", ("ITL 1 ms is below the physical floor of 1.2 ms", "3.35 TB/s each"),
            marks=pytest.mark.sweep,
        ),
        pytest.param(
            Slo(ttft_s=0.004), "ttft", ("TTFT 4 ms is below the physical floor of", "1,979 TFLOP/s each (fp8)"),
            marks=pytest.mark.sweep,
        ),
        (Slo(e2e_s=0.2), "e2e", ("E2E 200 ms is below the physical floor of", "Of ", "reads 8.03 GB")),
    ],
)  # fmt: skip
def test_a_limit_below_its_floor_is_answered_with_it_before_any_search(slo, binding, words):
    found = plan(changed(slo=slo), workers=1, progress=lambda done, planned: pytest.fail("something was searched"))
    assert (found.feasible, found.best, found.binding, found.evaluated) == (False, None, binding, 0)
    assert found.enumerated == sum(found.discarded.values()) and found.discarded["floor"] > 0
    for part in words:
        assert part in found.message
    wish_s = parse_seconds(re.search(r"ask for ([\d.]+ m?s) or more", found.message)[1])
    asked = changed(slo=Slo(**{f"{binding}_s": wish_s}), rate_req_s=0.05, requests=100, layouts=("mixed",))
    assert plan(asked, workers=1).feasible


def test_the_floor_is_that_of_what_is_allowed():
    found = plan(changed(slo=Slo(tpot_s=0.004), max_tp=1, weights=("bf16",)), workers=1)
    assert "physical floor of 4.4" in found.message and "with max_tp 1 and weights bf16" in found.message
    assert plan(changed(slo=Slo(tpot_s=0.0045), max_tp=1, weights=("bf16",)), workers=1).evaluated > 0


# --- what would do ------------------------------------------------------------------------------------------


def fits(_):
    return True


LIMITS = {
    "max_tp": lambda q, d: all(p.replica.tp <= q.max_tp for p in d.pools),
    "tp": lambda q, d: all(p.replica.tp in q.tp for p in d.pools),
    "pp": lambda q, d: all(p.replica.pp in q.pp for p in d.pools),
    "weights": lambda q, d: all(p.replica.weights in q.weights for p in d.pools),
    "kv": lambda q, d: all(p.replica.kv in q.kv for p in d.pools),
    "max_usd_per_hour": lambda q, d: d.gpus * d.priced().usd_per_gpu_hour <= q.max_usd_per_hour * 1.000001,
    "spare": lambda q, d: all(p.count > q.spare for p in d.pools),
    "layouts": lambda q, d: {"mixed" if p.role == "mixed" else "split" for p in d.pools} <= set(q.layouts),
}


def broken(question, deployment):
    """The constraints of a question that a deployment does not keep."""
    given = {n for n in LIMITS if getattr(question, n) not in (None, 0)}
    found = {name for name in given if not LIMITS[name](question, deployment)}
    kinds = {pool.replica.gpu for pool in deployment.pools}
    if not kinds <= set(question.stock):
        return found | {f"take {kind}" for kind in kinds}
    return found | ({"more GPUs"} if deployment.gpus > question.most else set())


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b"]), st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([None, 1, 2, 4]), st.sampled_from([None, ("bf16",)]), st.sampled_from([None, 5.0, 20.0]),
    st.sampled_from([0, 1]), st.sampled_from([("mixed",), ("split",)]), st.sampled_from([None, (1,)]),
)  # fmt: skip
def test_what_would_do_keeps_every_constraint_that_it_does_not_name(name, gpus, max_tp, weights, usd, spare, only, pp):
    try:
        question = changed(model=name, gpus=gpus, max_tp=max_tp, weights=weights, max_usd_per_hour=usd, spare=spare,
                           layouts=only, pp=pp)  # fmt: skip
    except BadInput:
        return
    for wish in wishes(question, fits):
        for constraint in broken(question, wish.deployment):
            assert constraint in wish.change, (wish, constraint)


def test_a_wider_replica_is_not_advised_where_it_is_forbidden_but_the_constraint_is_named():
    question = changed(model="llama-3.1-70b", gpus=8, max_tp=1, weights=("bf16",), slo=Slo(ttft_s=2.0, tpot_s=0.045))
    found = plan(question, workers=1)
    assert found.binding == "tpot"
    assert "or raise max_tp 1 (1x tp2 bf16/bf16" in found.message
    assert "allow other weights than bf16 (1x tp1 fp8/" in found.message
    for loose in ({"max_tp": 2}, {"weights": None}):
        few = {"rate_req_s": 0.05, "requests": 100, "layouts": ("mixed",)}
        assert plan(msgspec.structs.replace(question, **few, **loose), workers=1).feasible


def test_constraints_that_must_go_together_are_named_together_and_no_more_than_these():
    question = changed(model="llama-3.1-70b", gpus=8, max_tp=4, max_usd_per_hour=5.0, kv=("bf16",),
                       slo=Slo(ttft_s=2.0, tpot_s=0.0103))  # fmt: skip
    meets = Evaluator(question, workload("chat"), 1.0).meets_alone
    (wish,) = wishes(question, meets)
    assert wish.change == "raise max_tp 4 and raise max_usd_per_hour 5"
    assert meets(wish.deployment) and not any(map(meets, singles(question)))


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_what_would_do_is_the_smallest_change_by_brute_force(data):
    """Whatever deployments do, no fewer constraints loosened allow one, and none that takes less of one of them."""
    question = changed(
        model="llama-3.1-70b", gpus=data.draw(st.sampled_from([2, 4, 8])), max_tp=2, kv=("bf16",), weights=("bf16",),
        max_usd_per_hour=8.0, spare=data.draw(st.sampled_from([0, 1])), layouts=("mixed",), pp=(1,),
    )  # fmt: skip
    free = {"max_tp": None, "kv": None, "weights": None, "max_usd_per_hour": None, "spare": 0, "gpus": 32, "pp": None}
    said = {
        "max_tp": "raise max_tp", "kv": "other kv", "weights": "other weights", "pp": "other pp", "gpus": "more GPUs",
        "max_usd_per_hour": "raise max_usd_per_hour", "spare": "lower spare",
    }  # fmt: skip
    least = {
        "max_tp": lambda d: max(pool.replica.tp for pool in d.pools), "gpus": lambda d: d.gpus,
        "max_usd_per_hour": lambda d: d.gpus * d.priced().usd_per_gpu_hour,
        "spare": lambda d: -d.pools[0].count,
    }  # fmt: skip
    each = list(singles(msgspec.structs.replace(question, **free)))
    kinds = sorted({repr(one.pools[0].replica) for one in each})
    good = set(data.draw(st.lists(st.sampled_from(kinds), max_size=6)))

    def meets(deployment):
        return all(repr(pool.replica) in good for pool in deployment.pools)

    names = [name for name in free if name != "spare" or question.spare]
    does = {}
    for count in range(len(names) + 1):
        for chosen in combinations(names, count):
            spares = range(question.spare) if "spare" in chosen else [question.spare]
            fields = [{name: free[name] for name in chosen} | {"spare": spare} for spare in spares]
            looser = [msgspec.structs.replace(question, **each) for each in fields]
            does[chosen] = [one for asked in looser for one in singles(asked) if meets(one)]
        if count and any(does[chosen] for chosen in does if len(chosen) == count):
            break
    if does[()]:
        return  # something answers the question
    fewest = {chosen for chosen, found in does.items() if found}
    found = wishes(question, meets)
    assert bool(fewest) == bool(found)
    for wish in found:
        chosen = tuple(name for name in names if said[name] in wish.change)
        assert chosen in fewest
        if len(chosen) == 1 and chosen[0] in least:
            measure = least[chosen[0]]
            assert measure(wish.deployment) == min(map(measure, does[chosen]))


def test_what_would_do_says_what_it_serves_and_that_is_so():
    question = changed(max_tp=1, slo=Slo(ttft_s=0.5, tpot_s=0.0045), rate_req_s=4.0, requests=500, layouts=("mixed",))
    found = plan(question, workers=1)
    form = r"raise max_tp 1 \((1x tp2 \S+ b\d+) on .* would serve up to ([\d.]+) req/s\)"
    name, rate = re.search(form, found.message).groups()
    again = plan(msgspec.structs.replace(question, max_tp=2), workers=1)
    there = next(each for each in again.ranked if each.name == name)
    assert there.goodput_req_s == pytest.approx(float(rate), rel=0.1)


def test_another_gpu_is_advised_only_under_the_same_constraints():
    question = changed(model="llama-3.1-70b", gpus=8, max_tp=4, slo=Slo(ttft_s=2.0, tpot_s=0.008))
    meets = Evaluator(question, workload("chat"), 1.0).meets_alone
    (wish,) = wishes(question, meets)
    assert wish.change.startswith("take ") and wish.deployment.pools[0].replica.tp <= 4


def test_a_model_that_does_not_fit_is_answered_within_the_constraints():
    found = plan(changed(model="llama-3.1-405b", gpus=8, weights=("bf16",)), workers=1)
    assert found.binding == "memory" and "does not fit on h100-sxm" in found.message
    assert "allow other weights than bf16 (1x tp8 fp8/" in found.message
    assert "h200" not in found.message  # of the smallest change: the GPUs there are do


def test_gpus_that_would_do_but_cost_more_than_allowed_say_so():
    question = changed(rate_req_s=300.0, max_usd_per_hour=8.0)
    found = plan(question, workers=1)
    assert found.binding == "rate"
    usd = float(re.search(r"for \$([\d.]+) per hour, which needs max_usd_per_hour 8 raised", found.message)[1])
    assert usd == pytest.approx(3.99 * int(re.search(r"(\d+) GPUs would do", found.message)[1]))


def test_singles_are_candidates_of_the_space_one_for_each_replica():
    question = changed(gpu={"h100-sxm": 4, "l40s": 4}, gpus=None, budget_tokens=(2048, 8192), weights=("bf16",))
    found = list(singles(question))
    assert {each.name for each in found} <= {option.name for option in enumerate_space(question).options}
    assert len({each.pools[0].replica for each in found}) == len(found)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"gpus": 1, "layouts": ("split",)}, ("layouts split against 1 h100-sxm", "Allow layouts mixed (1x tp1")),
        ({"gpus": 4, "spare": 2, "layouts": ("split",)}, ("spare 2 against 4 h100-sxm", "lower spare 2")),
        ({"gpus": 2, "spare": 1, "max_usd_per_hour": 4.0}, ("max_usd_per_hour 4 against spare 1", "Raise max_usd_per")),
        ({"model": "llama-3.1-70b", "gpus": 8, "max_tp": 1, "weights": ("bf16",), "pp": (1,)}, ("raise max_tp 1 (",)),
    ],
)
def test_constraints_that_leave_nothing_name_the_pair_and_what_to_loosen(changes, parts):
    found = plan(changed(**changes), workers=1)
    assert not found.feasible
    for part in parts:
        assert part in found.message


def test_an_engine_is_not_planned_on_a_gpu_that_it_does_not_run_on():
    both = changed(gpu={"h100-sxm": 1, "mi300x": 1}, gpus=None, engine=EngineSettings(name="trtllm"))
    kinds = {pool.replica.gpu for o in enumerate_space(both).options for pool in o.deployment.pools}
    assert kinds == {"h100-sxm"}
    with pytest.raises(BadInput, match="engine trtllm against gpu mi300x"):
        memory_fit(Replica(model="llama-3.1-8b", gpu="mi300x", engine=EngineSettings(name="trtllm")))


def test_prompts_beyond_the_context_are_not_promised_a_time():
    long = workload("chat").spec
    spec = msgspec.structs.replace(long, prompt=parse_length("200000"), output=parse_length("100"))
    found = plan(changed(workload=spec, slo=Slo(ttft_s=0.5)), workers=1)
    assert "below the physical floor" in found.message and "exceed the KV cache or the context" in found.message
    assert "0 s" not in found.message


def test_a_rate_far_beyond_the_gpus_is_not_searched_at_length_for_all():
    found = plan(changed(rate_req_s=5000.0, requests=4000), workers=1)
    assert found.binding == "rate"
    assert found.long_runs < len(found.ranked) / 2
    assert found.ranked[0].requests == found.requests


def test_what_the_question_allows_is_no_wish():
    """Of 500 requests fewer are longer than the context than of all: alone it seemed to do."""
    asked = Question(
        model="opt-13b", gpu="a100-80gb-sxm", gpus=2, rate_req_s=0.5, requests=1000, layouts=("mixed",),
        slo=Slo(ttft_s=2.0, tpot_s=0.1, attainment=0.857), weights=("bf16",), kv=("bf16",),
    )  # fmt: skip
    held = {deployment.name for deployment in singles(asked)}
    assert held
    for each in wishes(asked, lambda deployment: True):
        assert each.deployment.name not in held
