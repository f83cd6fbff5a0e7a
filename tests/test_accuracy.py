"""Laws of accuracy: what we measure ourselves has no error, what cannot be is reported, orders match brute force."""

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from accuracy_cases import KINDS, SPLIT, as_csv, measured_by_ourselves, point
from headway.accuracy import Outcome, judge, read_rows, sample, validate
from headway.accuracy.express import express
from headway.accuracy.predict import predict
from headway.accuracy.ranking import LIMITS_S, kendall_tau, rank
from headway.accuracy.reading import Inexpressible
from headway.accuracy.score import HEADLINES, errors_of, summarize_errors
from headway.errors import BadInput

# --- a simulator judged by its own measurements ---


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_what_the_simulator_measured_itself_has_no_error(changes, tmp_path):
    path = tmp_path / "points.csv"
    path.write_bytes(as_csv([measured_by_ourselves(**changes)]))
    found = validate(read_rows(path))
    assert (found.used, found.skipped) == (1, {})
    assert sum(errors.n for errors in found.errors.values()) >= 1
    for errors in (*found.errors.values(), *found.figures.values()):
        assert errors.n == 0 or errors.mape == pytest.approx(0, abs=1e-9)


def test_a_factor_on_every_figure_is_the_error_of_every_figure():
    found = validate([measured_by_ourselves(1.25), measured_by_ourselves(1.25, concurrency=2.0)])
    assert len(found.figures) > 10
    for errors in found.figures.values():
        figures = (errors.mape, errors.median, errors.p90, errors.bias)
        assert figures == pytest.approx((0.2, 0.2, 0.2, -0.2)) and errors.n == 2


def test_the_order_in_which_workers_answer_changes_nothing():
    rows = [measured_by_ourselves(1.1, row_id=str(c), concurrency=float(c)) for c in (1, 2, 4)]
    backwards = validate(rows, answers=lambda jobs: ((i, judge(jobs[i])) for i in reversed(range(len(jobs)))))
    assert backwards.to_json() == validate(rows).to_json()


# --- how rows are read ---


def test_throughput_and_power_are_of_all_gpus():
    one = measured_by_ourselves(workload="offline max throughput 512/64", concurrency=None)
    eight = measured_by_ourselves(workload="offline max throughput 512/64", concurrency=None, gpu_count=8, dp=8)
    for name in ("output_throughput", "total_throughput", "power"):
        assert eight.measured[name] == pytest.approx(8 * one.measured[name])
    assert eight.measured["energy_per_token"] == pytest.approx(one.measured["energy_per_token"])


@pytest.mark.parametrize(
    ("changes", "layout"),  # tp, pp, dp, ep, and how many instances
    [
        ({}, (1, 1, 1, 1, 1)),
        ({"dp": 2, "gpu_count": 2}, (1, 1, 1, 1, 2)),  # a dense model: two instances
        ({"model_key": "qwen3-30b-a3b", "dp": 4, "ep": 4, "gpu_count": 4}, (1, 1, 4, 4, 1)),
        ({"model_key": "qwen3-30b-a3b", "tp": 2, "dp": 2, "ep": 4, "gpu_count": 4}, (2, 1, 2, 4, 1)),
        ({"model_key": "qwen3-30b-a3b", "dp": 4, "gpu_count": 4, "notes": "moe_tp=4"}, (1, 1, 4, 1, 1)),
        ({"model_key": "qwen3-30b-a3b", "dp": 4, "gpu_count": 4}, (1, 1, 1, 1, 4)),
        ({"model_key": "qwen3-30b-a3b", "ep": 2, "dp": 1, "gpu_count": 2}, (2, 1, 1, 2, 1)),
        ({"model_key": "qwen3-30b-a3b", "tp": 4, "ep": 3, "gpu_count": 4}, (4, 1, 1, 1, 1)),
        ({"tp": 2, "ep": 2, "gpu_count": 2}, (2, 1, 1, 1, 1)),  # a dense model has no experts
        ({"tp": None, "gpu_count": 4, "notes": "Hybird Tensor (2) and Pipeline (2) Parallelism"}, (2, 2, 1, 1, 1)),
        ({"tp": None, "gpu_count": 4, "notes": "Hybrid TP = 2 and PP = 2"}, (2, 2, 1, 1, 1)),
        ({"tp": None, "gpu_count": 4, "notes": "PP"}, (1, 4, 1, 1, 1)),
        (
            {"model_key": "mixtral-8x7b", "tp": None, "gpu_count": 4, "notes": "Hybrid TP = 2 and EP = 2"},
            (4, 1, 1, 2, 1),
        ),
        ({"tp": None, "gpu_count": 4, "notes": "4xMi300x 1FP8-amd; chunked=False"}, (4, 1, 1, 1, 1)),
        ({"tp": None, "gpu_count": 8, "notes": "8xMi300x 2FP8-amd; chunked=False"}, (4, 1, 1, 1, 2)),
    ],
)  # fmt: skip
def test_layouts_are_read(changes, layout):
    pool = express(point(**changes)).deployment.pools[0]
    replica = pool.replica
    assert (replica.tp, replica.pp, replica.dp, replica.ep, pool.count) == layout


def test_tensor_parallel_attention_is_read_from_ep_on_one_instance():
    replica = express(point(**KINDS["experts on the same GPUs"])).deployment.pools[0].replica
    assert (replica.tp, replica.gpus) == (2, 2)


def test_a_split_deployment_is_read_from_the_notes():
    prefill, decode = express(point(**KINDS["split"])).deployment.pools
    assert (prefill.role, prefill.count, prefill.replica.tp) == ("prefill", 2, 1)
    assert (decode.role, decode.count, decode.replica.tp) == ("decode", 1, 2)


def test_a_split_deployment_of_ranks_that_share_experts():
    notes = SPLIT.replace("dp_size=1", "dp_size=8 moe_tp_size=1 moe_ep_size=8")
    row = point(mode="disagg", notes=notes, tp=None, model_key="deepseek-v3-r1", gpu_key="B200")
    prefill, decode = express(row).deployment.pools
    assert (prefill.count, prefill.replica.tp, prefill.replica.dp, prefill.replica.ep) == (2, 1, 8, 8)
    assert (decode.count, decode.replica.tp, decode.replica.dp, decode.replica.ep) == (1, 2, 8, 8)


def test_one_request_at_a_time_needs_no_number_of_workers():
    notes = SPLIT.replace("num_workers=2", "num_workers=nan").replace("num_workers=1", "num_workers=nan")
    pools = express(point(mode="disagg", notes=notes, tp=None, concurrency=1.0)).deployment.pools
    assert [pool.count for pool in pools] == [1, 1]


def test_a_study_beyond_the_models_context_is_served_with_a_longer_one():
    row = point(model_key="llama-2-7b", isl_mean=8192.0, osl_mean=128.0, concurrency=2.0, measured={"tpot_mean": 1.0})
    assert express(row).deployment.pools[0].replica.model == "llama-2-7b:16640"
    assert judge(row).reason == ""


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_key": "llama-3-70b", "gpu_count": 4, "tp": 4}, "llama-3.1-70b"),
        ({"model_key": "qwen3.5-397b", "gpu_count": 8, "tp": 8}, "qwen3.5-397b-a17b"),
        ({"model_key": "a", "model": "Qwen2.5-Coder-7B-Instruct"}, "qwen2.5-7b"),
        ({"model_key": "a", "model": "qwen3:8b"}, "qwen3-8b"),
        ({"model_key": "a", "model": "hf.co/unsloth/Qwen3.6-27B-MTP-GGUF:UD-Q4_K_XL"}, "qwen3.5-27b"),
        ({"model_key": "a", "model": "Qwen/Qwen3-VL-30B-A3B-Instruct"}, "qwen3-30b-a3b"),
        ({"model_key": "a", "model": "DeepSeek-R1-0528-Qwen3-8B"}, "qwen3-8b"),
        ({"model_key": "deepseek-v3-r1", "model": "DeepSeek-R1-Distill-8B"}, "sized:8b"),
        ({"model_key": "a", "model": "org_Grug-21B-A3B-it"}, "sized:21b-a3b"),
        ({"model_key": "a", "model": "SmallThinker-4BA0.6B-Instruct"}, "sized:4b-a0.6b"),
        ({"model_key": "falcon-7b"}, "sized:7b"),
        ({"model_key": "llama-7b"}, "llama-2-7b"),
    ],
)
def test_models_are_read_by_key_then_by_name_then_by_size(changes, key):
    assert express(point(**changes)).deployment.pools[0].replica.model == key


@pytest.mark.parametrize(
    ("changes", "key", "count", "cap"),
    [
        ({"gpu": "NVIDIA H200-NVL-141GB", "gpu_key": "H200"}, "h200-nvl", 1, None),
        ({"gpu": "NVIDIA GeForce RTX 5090", "gpu_key": "NVIDIA GeForce RTX 5090"}, "rtx-5090", 1, None),
        ({"gpu": "Apple M3 Ultra", "gpu_key": "Apple M3 Ultra"}, "m3-ultra", 1, None),
        ({"gpu": "", "gpu_key": "RTX5090"}, "rtx-5090", 1, None),
        ({"gpu": "AMD Radeon 8060S Graphics", "gpu_key": "AMD Radeon 8060S Graphics"}, "radeon-8060s", 1, None),
        ({"gpu": "Intel(R) Arc(TM) A770 Graphics", "gpu_key": "Arc"}, "arc-a770", 1, None),
        ({"gpu": "Nvidia GH200 GPU", "gpu_key": "GH200"}, "gh200-96gb", 1, None),
        ({"gpu": "AMD MI250 GPU", "gpu_key": "MI250", "precision_weights": "fp16"}, "mi250", 1, None),
        ({"gpu": "AMD Instinct MI355X 288GB HBM3e (Power Cap 1000 W)", "gpu_key": "MI355X"}, "mi355x", 1, 1000.0),
        ({"gpu": "h100-80gb-pcap"}, "h100-sxm", 1, 350.0),
        ({"gpu": "MS-Intel Arc Pro B60 Dual 48G Turbo", "tp": 2}, "arc-pro-b60", 1, None),
        (
            {"gpu": "CPU INTEL(R) XEON(R) 6980P", "gpu_count": 0, "tp": 2, "precision_weights": "INT8",
             "notes": "1-node-2S-GNR_128C nodes=1"},
            "cpu-xeon-6980p", 1, None,
        ),
    ],
)  # fmt: skip
def test_gpus_are_read_from_their_full_names(changes, key, count, cap):
    pool = express(point(**changes)).deployment.pools[0]
    assert (pool.replica.gpu, pool.count, pool.replica.cap_watts) == (key, count, cap)


def test_engines_and_their_versions_are_read():
    def engine(**changes):
        settings = express(point(**changes)).deployment.pools[0].replica.engine
        return settings.name, settings.version

    assert engine(engine_version="0.11.1") == ("vllm", "0.11.1")
    assert engine(engine="trtllm", engine_version="1.2.0rc6.post3") == ("trtllm", "1.2.0")
    assert engine(engine="sglang", engine_version="nightly-dev") == ("sglang", "")
    assert engine(engine="vLLM v0.9.2, ROCm 6.4.1") == ("vllm", "0.9.2")
    assert engine(engine="TensorRT 10.11, CUDA 12.9", source="mlperf-inference-5.1") == ("trtllm", "1.0")
    assert engine(engine="vllm", engine_version="2023 (a paper)", source="splitwise-perf-model") == ("vllm", "0.2")
    assert engine(engine="some engine") == ("vllm", "")


def test_a_closed_loop_sends_ten_waves_at_most_so_many_and_saturation_fills_the_cache():
    assert express(point(concurrency=8.0)).workload.requests == 80
    assert express(point(concurrency=9000.0)).workload.requests == 36_000
    full = express(point(**KINDS["saturated"]))
    replica = full.deployment.pools[0].replica
    assert full.workload.process.concurrency <= replica.engine.max_seqs
    small = express(point(**(KINDS["saturated"] | {"isl_mean": 8000.0, "osl_mean": 2000.0})))
    assert small.workload.process.concurrency < full.workload.process.concurrency


def test_limits_stated_in_the_notes_reach_the_engine():
    engine = express(point(notes="max-num-seqs=32; max-num-batched-tokens=1024")).deployment.pools[0].replica.engine
    assert (engine.max_seqs, engine.max_batched_tokens) == (32, 1024)


def test_a_load_under_limits_keeps_them_and_a_tighter_one_is_lower():
    offline, server, interactive = (
        predict(express(point(workload=f"mlperf {scenario}", concurrency=None)))["output_throughput"]
        for scenario in ("Offline", "Server", "Interactive")
    )
    assert 0 < interactive <= server <= offline * 1.02


@pytest.mark.parametrize(
    ("changes", "weights", "kv"),
    [
        ({"precision_weights": "fp16"}, "bf16", "bf16"),
        ({"precision_weights": ""}, "bf16", "bf16"),
        ({"precision_weights": "fp8"}, "fp8", "bf16"),  # vLLM's own sweep
        ({"precision_weights": "fp8", "notes": "measured=2026-01-01"}, "fp8", "fp8"),
        ({"precision_weights": "fp8", "engine": "trtllm"}, "fp8", "fp8"),
        ({"precision_weights": "fp16", "precision_kv": "fp8"}, "bf16", "fp8"),
        ({"precision_weights": "fp16", "precision_kv": "fp8", "gpu_key": "A100"}, "bf16", "bf16"),
        ({"precision_weights": "fp8", "model_key": "gpt-oss-20b"}, "mxfp4", "bf16"),
        ({"precision_weights": "", "workload": "mlperf Offline", "gpu_key": "B200"}, "fp4", "fp8"),
        ({"precision_weights": "UNSET", "workload": "mlperf Offline"}, "fp8", "fp8"),
        ({"precision_weights": "fp8", "gpu_key": "A100"}, "fp8", "bf16"),  # widened to bf16
        ({"precision_weights": "UINT4"}, "int4", "bf16"),
        ({"precision_weights": "Q4_K_XL"}, "q4_k_m", "bf16"),
        ({"precision_weights": "Q4_NL"}, "iq4_nl", "bf16"),
        ({"precision_weights": "", "engine": "ollama", "model": "llama3.1:8b"}, "q4_k_m", "bf16"),
        ({"precision_weights": "", "engine": "ollama", "model": "llama3.1:8b-mlx"}, "mlx_4bit", "bf16"),
        ({"precision_weights": "", "model": "meta/Llama-3.1-8B-AWQ"}, "int4", "bf16"),
        ({"precision_weights": "mxfp4", "gpu_key": "B200"}, "fp4", "bf16"),
    ],
)
def test_precisions_are_those_stated_or_usual(changes, weights, kv):
    replica = express(point(**changes)).deployment.pools[0].replica
    assert (replica.weights, replica.kv) == (weights, kv)


def test_a_full_name_says_more_than_the_key():
    static = {"workload": "static batch 512/64", "batch_size": 4.0, "precision_weights": "fp16", "gpu_key": "A100"}
    named = express(point(**static, gpu="Nvidia A100 GPU")).deployment.pools[0].replica.gpu
    assert (named, express(point(**static)).deployment.pools[0].replica.gpu) == ("a100-40gb-sxm", "a100-80gb-sxm")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_key": "nameless"}, "model not in the catalogue, and its name says no size"),
        ({"gpu_key": "SN40L"}, "GPU not in the catalogue"),
        ({"gpu_count": 0}, "no GPU"),
        ({"gpu_count": None}, "number of GPUs not stated"),
        ({"gpu_count": 0, "gpu": "CPU INTEL(R) XEON(R) 6980P"}, "number of CPU sockets not stated"),
        ({"gpu": "MI300X and MI325X"}, "several kinds of GPU in one deployment"),
        ({"precision_weights": "Q99"}, "precision of the weights not modelled"),
        (
            {"source": "mlperf-inference-6.0", "gpu": "Intel(R) Arc Pro(R) B70", "gpu_count": 4, "tp": None},
            "samples/s in the column of tokens/s",
        ),
        ({"tp": 3, "gpu_count": 3}, "TP degree refused by the cost model"),
        ({"tp": 2, "gpu_count": 3}, "layout and number of GPUs disagree"),
        ({"tp": None, "gpu_count": 4}, "layout not stated"),
        ({"model_key": "llama-3-70b", "precision_weights": "bf16"}, "does not fit by our count of memory"),
        ({"concurrency": None}, "load not stated"),
        ({"concurrency": 1e9}, "load of more than 100,000 requests"),
        ({"isl_mean": None}, "prompt length not stated"),
        ({"osl_mean": None}, "output length not stated"),
        ({"isl_mean": 3_000_000.0}, "requests longer than the model's context or the KV cache"),
        ({"mode": "prefill-only"}, "mode prefill-only: no load is stated"),
        ({"mode": "closed-loop"}, "mode 'closed-loop' is none of agg, disagg and single-stream"),
        ({"mode": "disagg"}, "split: prefill and decode not described in the notes"),
        (
            {"mode": "disagg", "notes": SPLIT.replace("num_workers=2", "num_workers=nan")},
            "split: number of workers not stated",
        ),
        (
            {"dist_note": "per-request file in x.csv"},
            "a replay request by request: `headway validate --requests` reads those",
        ),
        ({"measured": {"e2e_mean": 0.02}}, "breaks physics: end before the weights can be read for every token"),
        ({"measured": {"tpot_mean": 2e-3}}, "breaks physics: tpot_mean below the time to read the weights"),
        ({"measured": {"tpot_mean": 1e-5}}, "breaks physics: tpot_mean below the time to read the weights (are these "
         "seconds in a column of milliseconds?)"),
        ({"measured": {"output_throughput": 1e7}}, "breaks physics: throughput above the GPUs' peak"),
        ({"measured": {"tokens_per_furlong": 1.0}}, "no figure of ours was measured"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_expressed_is_counted_by_its_reason(changes, reason):
    found = validate([point(**changes), measured_by_ourselves()])
    assert (found.rows, found.used, found.skipped) == (2, 1, {reason: 1})
    assert found.broken == ({"a": reason} if reason.startswith("breaks physics") else {})


def test_rows_of_every_kind_obey_physics_when_simulated():
    for changes in KINDS.values():
        assert judge(measured_by_ourselves(**changes)).reason == ""


def test_repeats_and_doubtful_rows_are_used_and_told_apart():
    row = measured_by_ourselves(1.25)
    again = msgspec.structs.replace(row, row_id="b", notes="copied")
    doubtful = {"engine_version": "1.3.0rc5", "concurrency": 4.0}
    found = validate([row, again, measured_by_ourselves(**doubtful)])
    assert found.suspects == {"repeats another row": 1, "cached prompts": 1}
    assert (found.errors["tpot"].n, found.trusted["tpot"].n) == (3, 1)


# --- errors, orders, regret ---

POSITIVE = st.floats(0.001, 1000)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=30)


@given(PAIRS)
def test_errors_are_those_of_their_definition(pairs):
    found = errors_of(pairs)
    relative = sorted(abs(ours / real - 1) for real, ours in pairs)
    assert found.n == len(pairs)
    assert found.mape == pytest.approx(sum(relative) / len(relative))
    assert found.bias == pytest.approx(sum(ours / real - 1 for real, ours in pairs) / len(pairs))
    assert abs(found.bias) <= found.mape * (1 + 1e-9)
    assert relative[0] <= found.median <= found.p90 <= relative[-1]


def test_one_figure_a_row_stands_for_a_metric():
    row = point(measured={"tpot_p50": 2.0, "itl_mean": 8.0, "total_throughput": 5.0})
    outcome = Outcome({"tpot_p50": 3.0, "itl_mean": 1.0, "total_throughput": 10.0, "ttft_mean": 1.0})
    found = summarize_errors([(row, outcome)])
    assert {name: errors.bias for name, errors in found.items() if errors.n} == {"tpot": 0.5, "output_throughput": 1.0}


def tau_by_hand(first, second):
    """Tau-b by its definition, pair by pair."""
    agree = ones = twos = 0
    for i in range(len(first)):
        for j in range(i):
            one, two = np.sign(first[i] - first[j]), np.sign(second[i] - second[j])
            agree, ones, twos = agree + one * two, ones + abs(one), twos + abs(two)
    return agree / math.sqrt(ones * twos) if ones and twos else math.nan


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_kendall_matches_its_definition_and_scipy(pairs):
    first, second = np.array(pairs, dtype=float).T
    ours = kendall_tau(first, second)
    assert ours == pytest.approx(tau_by_hand(first, second), nan_ok=True)
    assert ours == pytest.approx(stats.kendalltau(first, second).statistic, nan_ok=True)


def choice(rows, limit_s, margin):
    """Regret of the configuration predicted best, by plain loops; None where no row keeps the limit."""
    possible = [value for value, _, pace, _ in rows if pace <= limit_s]
    if not possible:
        return None
    best = None
    for row in rows:
        if row[3] <= limit_s * (1 - margin) and (best is None or row[1] > best[1]):
            best = row
    best = best or min(rows, key=lambda row: row[3])  # what comes nearest
    return 1.0 if best[2] > limit_s else 1 - best[0] / max(possible)


PACE = st.floats(0.01, 0.12)


@settings(max_examples=60)
@given(st.lists(st.tuples(POSITIVE, POSITIVE, PACE, PACE), min_size=2, max_size=8))
def test_regret_matches_brute_force(rows):
    judged = [
        (
            point(concurrency=None, measured={"output_throughput": value, "tpot_mean": pace}),
            Outcome({"output_throughput": predicted, "tpot_mean": predicted_pace}, gpus=1),
        )
        for value, predicted, pace, predicted_pace in rows
    ]
    found = rank(judged).throughput_per_gpu
    for margin in (0.0, 0.1):
        expected = [regret for limit in LIMITS_S if (regret := choice(rows, limit, margin)) is not None]
        assert found.n == len(expected)
        if expected:
            assert found.by_margin[f"{margin:g}"] == pytest.approx(sum(expected) / len(expected))


def test_choosing_with_true_figures_costs_nothing_and_orders_alike():
    judged = []
    for users in (1, 2, 4, 8):
        row = measured_by_ourselves(concurrency=float(users), row_id=str(users))
        judged.append((row, judge(row)))
    found = rank(judged)
    assert (found.throughput_per_gpu.mean, found.energy_per_token.mean) == pytest.approx((0, 0))
    assert found.kendall["tpot"].mean == pytest.approx(1) and found.kendall["tpot"].n == 1


def test_energy_prefers_less():
    figures = [(4.0, 0.01), (2.0, 0.02), (1.0, 0.2)]
    judged = []
    for joules, pace in figures:
        predicted = {"energy_per_token": 1 / joules, "tpot_mean": pace}
        judged.append((point(measured={"energy_per_token": joules, "tpot_mean": pace}), Outcome(predicted)))
    regret = rank(judged).energy_per_token
    assert regret.n == 4
    assert regret.mean == pytest.approx((0 + 1 + 1 + 1) / 4)  # 4 J where 2 J do, but at 15 ms only 4 J keeps the limit


# --- the answer as JSON ---


def test_json_has_the_keys_that_are_documented_and_no_other():
    rows = [measured_by_ourselves(row_id=str(c), concurrency=float(c)) for c in (1, 2)] + [point(tp=3)]
    data = json.loads(validate(rows).to_json())
    assert list(data) == ["rows", "used", "skipped", "errors", "by", "regret", "coverage"]
    assert (data["rows"], data["used"], sum(data["skipped"].values())) == (3, 2, 1)
    assert set(data["errors"]) == set(HEADLINES)
    summary = {"mape", "median", "p90", "bias", "n"}
    assert all(set(errors) == summary for errors in data["errors"].values())
    assert set(data["by"]) == {"source", "engine", "model_key", "gpu_key"}
    assert set(data["by"]["gpu_key"]["H100"]["tpot"]) == summary
    assert set(data["regret"]) == {"throughput_per_gpu", "energy_per_token", "deployments", "kendall"}


def test_a_table_of_which_nothing_can_be_used_is_an_answer_too():
    data = json.loads(validate([point(gpu_key="abacus")]).to_json())
    assert data["skipped"] == {"GPU not in the catalogue": 1}
    assert data["errors"]["ttft"] == {"mape": None, "median": None, "p90": None, "bias": None, "n": 0}


# --- reading a table ---

HEADER = "row_id,source,engine,model_key,gpu_key,gpu_count,mode,tpot_mean_ms\n"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("column 'row_id' is missing",)),
        (HEADER.replace(",", ";"), ("cells stand between ';'", "commas are expected")),
        (HEADER, ("holds a header and no rows",)),
        (HEADER.replace("gpu_key", "gpu_kye"), ("column 'gpu_key' is missing",)),
        (HEADER.replace(",mode,", ",mode,tpto_p50_ms,"), ("column 'tpto_p50_ms' is unknown", "tpot_p50_ms")),
        (HEADER.replace(",mode,", ",mode,mode,"), ("column 'mode' comes twice",)),
        (HEADER.replace(",tpot_mean_ms", ""), ("no column holds a figure",)),
        (HEADER + "a,b,c,d,e,1,agg\n", (":2: came 7 cells; expected 8",)),
        (HEADER + "a,b,c,d,e,one,agg,3\n", (":2: gpu_count 'one': expected a number, 0 or more",)),
        (HEADER + "a,b,c,d,e,1.5,agg,3\n", ("gpu_count '1.5': expected a whole number",)),
        (HEADER + "a,b,c,d,e,1,agg,-3\n", ("tpot_mean_ms '-3': expected a number, 0 or more",)),
        (HEADER + "a,b,c,d,e,1,agg,nan\n", ("tpot_mean_ms 'nan'",)),
    ],
)
def test_a_broken_table_is_refused_with_its_place(text, parts, tmp_path):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(BadInput) as error:
        read_rows(path)
    assert all(part in str(error.value) for part in parts), error.value


def test_plain_and_gzipped_tables_are_read_alike_and_empty_cells_are_unknown(tmp_path):
    rows = [measured_by_ourselves(), point(row_id="b", measured={"ttft_p99": 0.25})]
    for name, zipped in (("a.csv", False), ("a.csv.gz", True)):
        (tmp_path / name).write_bytes(as_csv(rows, zipped))
    plain, unzipped = read_rows(tmp_path / "a.csv"), read_rows(tmp_path / "a.csv.gz")
    assert plain == unzipped
    assert plain[1].measured == pytest.approx({"ttft_p99": 0.25})
    assert (plain[1].dp, plain[1].request_rate, plain[1].notes) == (None, None, "")


def test_a_file_that_is_not_there_or_not_a_table_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_rows(tmp_path / "points.csv")
    (tmp_path / "points.csv").write_bytes(b"\x1f\x8b\x00broken")
    with pytest.raises(BadInput, match="cannot be read as CSV"):
        read_rows(tmp_path / "points.csv")


def test_a_sample_is_spread_over_the_table():
    rows = [point(row_id=str(i)) for i in range(10)]
    assert [row.row_id for row in sample(rows, 5)] == ["0", "2", "4", "6", "8"]
    assert sample(rows, None) == sample(rows, 99) == rows
    with pytest.raises(BadInput, match="expected 1 to 10"):
        sample(rows, 0)


def test_a_reason_is_what_is_raised():
    with pytest.raises(Inexpressible, match="load not stated"):
        express(point(concurrency=None))


# --- published measurements ---


def test_a_sample_of_the_published_measurements(shared_data):
    rows = sample(read_rows(shared_data / "measured" / "serving.csv.gz"), 500)
    found = validate(rows)
    assert found.used > 0.85 * found.rows
    assert not [reason for reason in found.skipped if reason.startswith("refused")]
    assert found.errors["tpot"].median < 0.25
    order = found.regret.kendall["throughput_per_gpu"]
    assert order.n > 10 and order.mean > 0.5
