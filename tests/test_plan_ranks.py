"""Models with experts: replicas of data-parallel ranks, what is tried of them, what proves, and where each wins."""

import msgspec
import numpy as np
import pytest
import yaml

from headway.cost import EngineSettings, Replica
from headway.cost.engines import cut_blocks
from headway.cost.speculation import Speculation
from headway.errors import BadInput
from headway.export import export
from headway.metrics import Slo
from headway.model import model
from headway.plan import Question, plan
from headway.plan.bounds import Ceiling
from headway.plan.space import enumerate_space, resized
from headway.plan.trial import Load, try_rate
from headway.sim import Deployment, Pool, simulate
from headway.sim.run import compiled
from headway.specs import from_mapping
from headway.workload import workload

pytestmark = pytest.mark.usefixtures("without_curves")

DRAFT = Speculation(tokens=2, acceptance=0.7, draft="mtp")
SLO = Slo(ttft_s=1.0, tpot_s=0.05)
QUESTION = Question(
    model="qwen3-30b-a3b", gpu="h100-sxm", gpus=4, rate_req_s=30, slo=SLO, requests=500, weights=("bf16",),
    kv=("bf16",), budget_tokens=(2048,), margin=0,
)  # fmt: skip
DEEPSEEK = Question(
    model="deepseek-r1", gpu="h200", gpus=16, rate_req_s=30, slo=Slo(ttft_s=5.0, tpot_s=0.1), requests=600,
    kv=("fp8",), budget_tokens=(8192,), tp=(1, 8), dp=(1, 8), ep=(1,), pp=(1,), exhaustive=True,
)  # fmt: skip


def changed(question=QUESTION, **changes):
    return msgspec.structs.replace(question, **changes)


def deployments(**changes):
    return [option.deployment for option in enumerate_space(changed(**changes)).options]


def layouts(role="mixed", **changes):
    pools = [pool for deployment in deployments(**changes) for pool in deployment.pools if pool.role == role]
    return {(pool.replica.tp, pool.replica.dp, pool.replica.ep) for pool in pools}


def tables(deployment):
    return tuple(compiled(pool.replica) for pool in deployment.pools)


# --- the space ----------------------------------------------------------------------------------------------


def test_ranks_are_every_power_of_two_in_a_node_with_experts_whole_and_divided():
    expected = {(tp, 1, 1) for tp in (1, 2, 4)}
    expected |= {(tp, dp, ep) for tp in (1, 2, 4) for dp in (2, 4) if tp * dp <= 4 for ep in (1, tp * dp)}
    assert layouts() == expected
    assert layouts("decode") == {(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 2, 2)}  # two pools: half the GPUs are the most
    assert layouts("decode", gpus=16) == {(1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 8, 1), (1, 8, 8)}


def test_ranks_span_nodes_only_where_a_node_is_needed_or_degrees_are_named():
    assert max(tp * dp for tp, dp, _ in layouts(gpus=16)) == 8
    assert (1, 16, 16) in layouts(gpus=16, dp=(16,))
    large = {"model": "deepseek-v3", "gpu": "h200", "gpus": 16, "weights": None, "kv": ("fp8",)}
    assert {(1, 8, 8), (1, 16, 1), (8, 2, 16)} <= layouts(**large)
    assert {(8, 1, 1), (1, 8, 8), (4, 2, 1)} <= layouts("prefill", **large)


def test_a_dense_model_has_no_ranks_and_named_degrees_are_kept():
    assert {(dp, ep) for _, dp, ep in layouts(model="llama-3.1-8b")} == {(1, 1)}
    assert layouts(tp=(2,), dp=(1, 2), ep=(2,)) == {(2, 1, 2), (2, 2, 2)} - {(2, 2, 2)}  # vLLM: among 1 or all 4
    sglang = EngineSettings(name="sglang", max_batched_tokens=2048)
    assert layouts(tp=(2,), dp=(1, 2), ep=(2,), engine=sglang) == {(2, 1, 2), (2, 2, 2)}
    assert {tp for tp, dp, _ in layouts(engine=EngineSettings(name="trtllm")) if dp > 1} == {1}
    assert {dp for _, dp, _ in layouts(engine=EngineSettings(name="llama.cpp"))} == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama-3.1-8b", "dp": (2,)}, r"dp \[2\] against model llama-3.1-8b, which has no experts"),
        ({"model": "llama-3.1-8b", "ep": (2,)}, r"ep \[2\] against model llama-3.1-8b, which has no experts"),
        ({"dp": (2,), "pp": (2,)}, r"dp \[2\] against pp \[2\]"),
        ({"dp": (2,), "tp": (1,), "ep": (4,)}, r"ep \[4\] against tp \[1\] and dp \[2\]"),
        ({"dp": (2,), "tp": (2,), "ep": (2,)}, r"and ep \[2\] against engine vllm.*: ep 1 or tp \* dp with it, any"),
        ({"dp": (2,), "engine": EngineSettings(name="llamacpp")}, r"engine llamacpp.*: dp 1 and ep 1 with it"),
        ({"dp": (2,), "tp": (2,), "engine": EngineSettings(name="trtllm")}, r"against engine trtllm"),
        ({"dp": (8,)}, r"gpus 4 of h100-sxm against dp \[8\]: the smallest replica asked for takes 8"),
        ({"ep": (256,), "dp": (256,)}, r"ep \[256\] against the 128 experts"),
        ({"dp": (0,)}, "degrees from 1"),
        ({"dp": (2, 2)}, "each value to try once"),
        ({"dp": (2,), "engine": EngineSettings(speculation=DRAFT)}, r"dp \[2\] against engine.speculation"),
    ],
)  # fmt: skip
def test_degrees_that_contradict_another_wish_are_refused_with_both(changes, message):
    with pytest.raises(BadInput, match=message):
        enumerate_space(changed(**changes))


# --- what is proven and what is guessed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "rate", "ttft_s", "proven"),
    [("summarize", 40.0, 8.0, 0), ("summarize", 80.0, 8.0, 0), ("summarize", 130.0, 8.0, 3),
     ("summarize", 250.0, 8.0, 5), ("chat", 150.0, 4.0, 0), ("chat", 300.0, 4.0, 3), ("chat", 600.0, 0.5, 12)],
)  # fmt: skip
def test_ranks_that_are_proven_overloaded_miss_the_slo(load, rate, ttft_s, proven):
    """All requests must be in time, and prompts (of summarize) are nearly all there is to do."""
    slo = Slo(ttft_s=ttft_s, tpot_s=0.2, attainment=1.0)
    requests = Load(workload(load), 600, rate, 1)
    given_up = 0
    for deployment in deployments(dp=(2, 4), tp=(1, 2)):
        if Ceiling(requests.lengths, slo)(deployment, tables(deployment)) < 1:
            given_up += 1
            assert not try_rate(deployment, tables(deployment), requests, slo, 0).met
    assert given_up >= proven


def test_the_proof_counts_what_ranks_do_together():
    """Experts are most of a step: without them a bound would promise several times as much."""
    slo, seen = Slo(ttft_s=4.0, attainment=1.0), 0
    for deployment in deployments(dp=(4,), tp=(1,), layouts=("mixed",)):
        table = compiled(deployment.pools[0].replica)
        bare = msgspec.structs.replace(table, shared_s=np.zeros_like(table.shared_s))
        for rate in np.geomspace(20, 1000, 40):
            lengths = Load(workload("summarize"), 600, float(rate), 1).lengths
            whole, without = (Ceiling(lengths, slo)(deployment, (each,)) < 1 for each in (table, bare))
            assert whole or not without
            seen += whole and not without
    assert seen > 5


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"rate_req_s": 40.0}, marks=pytest.mark.sweep),
        pytest.param({"rate_req_s": 25.0, "objective": "energy"}, marks=pytest.mark.sweep),
        pytest.param({"rate_req_s": 20.0, "objective": "rate", "tp": (1, 2)}, marks=pytest.mark.sweep),
        {"rate_req_s": 10.0, "objective": "tpot", "dp": (1, 4)},
    ],
)
def test_the_search_over_ranks_finds_what_simulating_everything_at_length_finds(changes):
    quick, slow = (plan(changed(exhaustive=every, **changes), workers=1) for every in (False, True))
    assert slow.evaluated == len(deployments(**changes))
    assert any("dp" in candidate.name for candidate in slow.ranked)
    measure = {
        "cost": lambda c: c.usd_per_hour, "energy": lambda c: c.joules_per_output_token,
        "rate": lambda c: 1 / c.goodput_req_s, "tpot": lambda c: c.tpot_p90_s,
    }[changes.get("objective", "cost")]  # fmt: skip
    assert quick.feasible and slow.feasible
    assert measure(quick.best) <= 1.01 * measure(slow.best)


# --- who wins -----------------------------------------------------------------------------------------------


def degrees(candidate):
    return [(p["replica"].get("tp", 1), p["replica"].get("dp", 1)) for p in candidate.deployment["pools"]]


def test_ranks_serve_most_of_a_large_mixture_and_tensor_parallelism_is_quickest():
    """Everything simulated at length: 8 ranks hold 5 times the KV that TP 8 does, whose latent every GPU copies."""
    most = plan(changed(DEEPSEEK, objective="rate"), workers=1)
    assert most.feasible
    assert degrees(most.best) == [(1, 8), (1, 8)]
    ablest = max(c.goodput_req_s for c in most.ranked if all(dp == 1 for _, dp in degrees(c)))
    assert most.best.goodput_req_s > 1.2 * ablest
    rate = (most.best.goodput_req_s * ablest) ** 0.5
    met = {c.name: simulate(from_mapping(Deployment, c.deployment, c.name), workload("chat", rate=rate, requests=2000),
                            slo=DEEPSEEK.slo, seed=77).slo.met for c in most.ranked}  # fmt: skip
    assert met[most.best.name]
    assert not any(met[c.name] for c in most.ranked if all(dp == 1 for _, dp in degrees(c)))

    quick = plan(changed(DEEPSEEK, rate_req_s=2.0, slo=Slo(ttft_s=1.0, tpot_s=0.02)), workers=1)
    assert quick.feasible
    assert degrees(quick.best) == [(8, 1)]
    assert not any(c.meets for c in quick.ranked if (1, 8) in degrees(c)[-1:])


def test_experts_are_divided_where_ranks_span_nodes():
    found = plan(
        changed(DEEPSEEK, gpu="h100-sxm", dp=None, ep=None, rate_req_s=5.0, objective="rate", pp=None),
        workers=1,
    )
    best = found.best.deployment["pools"][0]["replica"]
    assert best["dp"] > 1 and best["ep"] == 16
    deployment = from_mapping(Deployment, found.best.deployment, "best")
    launch = " ".join(text for _, text in sorted(export(deployment, "vllm").files.items()))
    assert f"--data-parallel-size {best['dp']}" in launch and "--enable-expert-parallel" in launch


# --- what is done with them ---------------------------------------------------------------------------------


def test_unlike_replicas_are_routed_to_by_what_each_rank_is_expected_to_serve():
    both = {"gpu": {"h100-sxm": 2, "a100-80gb-sxm": 2}, "gpus": None, "layouts": ("mixed",), "tp": (1,), "ep": (1,)}
    found = enumerate_space(changed(**both), lambda replica: 8.0 if replica.gpu == "h100-sxm" else 2.0).options
    side = next(
        o.deployment for o in found if [(p.count, p.replica.dp) for p in o.deployment.pools] == [(1, 2), (2, 1)]
    )
    assert side.policies.params["route"]["weights"]["mixed"] == [2.0, 2.0, 1.0, 1.0]
    grown = resized(side, [2, 1])
    assert grown.policies.params["route"]["weights"]["mixed"] == [2.0] * 4 + [1.0]
    served = simulate(grown, workload("chat", rate=20.0, requests=400), records=False)
    assert served.requests.finished == 400
    written = yaml.safe_load(export(grown, "gateway").files["gateway.yaml"])
    assert written["policies"]["params"]["route"]["weights"]["mixed"] == [4.0, 4.0, 1.0]


@pytest.mark.parametrize(
    ("engine", "key", "tp", "dp", "ep", "what"),
    [
        ("sglang", "minimax-m2", 2, 4, 1, "an expert of minimax-m2, 1536 wide, in 8 parts"),
        ("sglang", "minimax-m2", 8, 1, 1, "in 8 parts of no whole blocks of 128"),
        ("sglang", "minimax-m2", 8, 1, 8, ""),
        ("sglang", "minimax-m2", 4, 1, 1, ""),
        ("vllm", "minimax-m2", 8, 1, 1, ""),
        ("trtllm", "minimax-m2", 8, 1, 1, "an expert"),
        ("sglang", "deepseek-r1", 1, 16, 16, ""),
        ("sglang", "deepseek-r1", 1, 32, 32, "its shared experts of deepseek-r1, 2048 wide, in 32 parts"),
        ("trtllm", "deepseek-r1", 1, 32, 32, ""),
        ("vllm", "deepseek-r1", 1, 32, 1, ""),
        ("sglang", "qwen3-235b-a22b", 8, 1, 1, ""),
        ("llama.cpp", "minimax-m2", 8, 1, 1, ""),
    ],
)
def test_weights_that_are_cut_within_blocks_of_fp8_are_known(engine, key, tp, dp, ep, what):
    told = cut_blocks(engine, model(key), tp, dp, ep)
    assert what in told and bool(what) is bool(told)


def test_what_an_engine_does_not_load_is_neither_planned_nor_exported():
    asked = {"model": "minimax-m2", "gpu": "l40s", "gpus": 8, "weights": None, "kv": None}
    found = layouts(**asked, engine=EngineSettings(name="sglang"))
    assert {(8, 1, 8), (4, 1, 1)} <= found and not {(8, 1, 1), (2, 4, 1)} & found
    assert (8, 1, 1) in layouts(**asked)
    with pytest.raises(BadInput, match=r"tp \[8\] .* ep \[1\] against engine sglang, which does not load minimax"):
        layouts(**asked, engine=EngineSettings(name="sglang"), tp=(8,), ep=(1,), dp=(1,), pp=(1,))
    replica = Replica(model="minimax-m2", gpu="h100-sxm", tp=8, weights="fp8", engine=EngineSettings(name="sglang"))
    made = Deployment(pools=(Pool(replica=replica),))
    with pytest.raises(BadInput, match=r"pools\.0\.replica: tp 8, dp 1 and ep 1 cut an expert of minimax-m2"):
        export(made, "sglang")
    assert export(made, "sglang", model_path="minimax/in-blocks-of-64").files
