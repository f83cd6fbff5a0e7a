"""Speculative decoding as declared: what a step costs, what memory holds, and which declarations are refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_cases import refused, run
from headway.cost import EngineSettings, Replica, compile_replica, kv_transfer_bytes, memory_fit
from headway.cost.calibration import Calibration, Term
from headway.cost.speculation import Speculation
from headway.cost.uncertainty import evidence_level
from headway.errors import BadInput, UnknownName
from headway.metrics import Slo
from headway.plan.bounds import Lengths, reach
from headway.plan.question import Question
from headway.plan.space import enumerate_space
from headway.sim import Deployment, Pool, simulate
from headway.specs import from_mapping, override, read_yaml, to_mapping, write_yaml
from headway.workload import WorkloadSpec, workload
from headway.workload.arrivals import Closed
from headway.workload.lengths import Constant

ENGINE = EngineSettings(max_batched_tokens=4096, max_seqs=128)
TARGETS = {
    "llama": (Replica(model="llama-3.1-70b", gpu="h100-sxm", tp=4, engine=ENGINE), "llama-3.2-1b"),
    "fp8": (Replica(model="llama-3.1-8b", gpu="l40s", weights="fp8", kv="fp8", engine=ENGINE), "llama-3.2-1b"),
    "windowed": (Replica(model="gpt-oss-120b", gpu="h100-sxm", tp=2, weights="mxfp4", engine=ENGINE), "gpt-oss-20b"),
    "latent": (Replica(model="deepseek-v3", gpu="h200", tp=8, weights="fp8", engine=ENGINE), "mtp"),
    "states": (Replica(model="qwen3-next-80b-a3b", gpu="h200", tp=2, engine=ENGINE), "mtp"),
    "alone": (
        Replica(model="qwen3-32b", gpu="h200", engine=msgspec.structs.replace(ENGINE, name="sglang")), "qwen3-0.6b",
    ),
}  # fmt: skip
PLAIN = {name: compile_replica(replica) for name, (replica, _) in TARGETS.items()}

names = st.sampled_from(sorted(TARGETS))
drafts = st.sampled_from(["own", "mtp", "ngram"])
drafted = st.sampled_from([1, 2, 3, 5, 8, 16])
acceptances = st.floats(0.0, 1.0)


def declared(name: str, tokens: int, acceptance: float, draft: str = "own", **engine) -> Replica:
    replica, own = TARGETS[name]
    spec = Speculation(tokens=tokens, acceptance=acceptance, draft=own if draft == "own" else draft)
    settings = msgspec.structs.replace(replica.engine, speculation=spec, **{"max_batched_tokens": 4096} | engine)
    return msgspec.structs.replace(replica, engine=settings)


def table(name, tokens, acceptance, draft="own"):
    return compile_replica(declared(name, tokens, acceptance, draft, max_seqs=128))


def small(name, tokens, acceptance, draft="own"):
    """A table for any number of drafted tokens."""
    return compile_replica(declared(name, tokens, acceptance, draft, max_seqs=128, max_batched_tokens=8192))


def decode_s(law, n: int, context: int = 1024) -> float:
    attended = n * min(context, law.window) if law.window else 0
    return law.step_seconds(n, n * context, attended)


# --- laws


@given(drafted, acceptances)
def test_emitted_tokens_are_the_geometric_sum_and_never_more_than_are_verified(tokens, acceptance):
    spec = Speculation(tokens=tokens, acceptance=acceptance, draft="ngram")
    assert 1.0 <= spec.emitted <= spec.verified
    if acceptance < 0.999:
        assert spec.emitted == pytest.approx((1 - acceptance ** (tokens + 1)) / (1 - acceptance))


@given(names, drafted, drafts, st.integers(1, 128))
def test_drafts_that_are_never_accepted_never_make_a_step_faster(name, tokens, draft, n):
    law = small(name, tokens, 0.0, draft)
    assert law.decode_s[0] == law.decode_j[0] == 0.0
    assert decode_s(law, n) >= decode_s(PLAIN[name], n) * (1 - 1e-12)
    attended = n * min(1024, law.window) if law.window else 0
    step = (n, n * 1024, attended)
    assert law.step_joules(*step) >= PLAIN[name].step_joules(*step) * (1 - 1e-9)


@given(names, drafted, drafts, st.integers(1, 128), acceptances, acceptances)
def test_a_step_gets_faster_with_acceptance(name, tokens, draft, n, one, other):
    low, high = sorted((one, other))
    slow, fast = (decode_s(small(name, tokens, share, draft), n) for share in (low, high))
    assert 0.0 < fast <= slow * (1 + 1e-12)


@given(names, drafted, acceptances, st.integers(1, 128))
def test_no_speed_up_beyond_the_tokens_emitted_and_free_drafts_are_fastest(name, tokens, acceptance, n):
    laws = {draft: small(name, tokens, acceptance, draft) for draft in ("own", "mtp", "ngram")}
    emitted = Speculation(tokens=tokens, acceptance=acceptance, draft="ngram").emitted
    gains = {draft: decode_s(PLAIN[name], n) / decode_s(law, n) for draft, law in laws.items()}
    assert gains["ngram"] <= emitted * (1 + 1e-12)
    assert max(gains["mtp"], gains["own"]) <= gains["ngram"]


@given(names, drafted, acceptances, drafts, st.integers(1, 3000), st.integers(0, 4000))
def test_prompts_alone_cost_what_they_do_and_the_draft_computes_them_once(name, tokens, acceptance, draft, new, prefix):
    law, chunk = small(name, tokens, acceptance, draft), [(prefix, new)]
    plain_s = PLAIN[name].step_seconds(0, 0, 0, chunk)
    if draft == "ngram":
        assert law.step_seconds(0, 0, 0, chunk) == plain_s
    else:
        assert law.step_seconds(0, 0, 0, chunk) > plain_s
        assert law.step_seconds(0, 0, 0, chunk) == small(name, 1, 0.3, draft).step_seconds(0, 0, 0, chunk)


@given(names, drafted, acceptances, drafts, st.integers(1, 127), st.integers(1, 2000))
def test_a_prompt_beside_decodes_takes_time_and_no_more_than_alone(name, tokens, acceptance, draft, n, new):
    law = small(name, tokens, acceptance, draft)
    if not law.prefill_alone:
        step = (n, n * 512, n * min(512, law.window))
        alone_s = law.step_seconds(0, 0, 0, [(0, new)])
        both_s = law.step_seconds(*step, [(0, new)])
        assert law.step_seconds(*step) <= both_s <= (law.step_seconds(*step) + alone_s) * 1.02


# --- theory


@pytest.mark.parametrize("tokens", [1, 3, 7])
def test_accepted_free_drafts_are_k_plus_one_times_as_fast_where_weights_are_read(tokens):
    gain = decode_s(PLAIN["llama"], 1, 64) / decode_s(table("llama", tokens, 1.0, "ngram"), 1, 64)
    assert gain == pytest.approx(tokens + 1, rel=0.03)


@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.8, 0.9])
@pytest.mark.parametrize("tokens", [1, 3, 5])
def test_the_speed_up_of_leviathan(tokens, acceptance):
    """Theorem 3.8: E / (k c + 1), c a draft's time over the model's, where verifying takes no longer than a step."""
    plain_s = decode_s(PLAIN["llama"], 1, 64)
    free_s, paid_s = (decode_s(table("llama", 1, 0.0, draft), 1, 64) for draft in ("ngram", "own"))
    cost = (paid_s - free_s) / plain_s
    emitted = (1 - acceptance ** (tokens + 1)) / (1 - acceptance)
    gain = plain_s / decode_s(table("llama", tokens, acceptance), 1, 64)
    assert gain == pytest.approx(emitted / (tokens * cost + 1), rel=0.03)


def test_the_gain_shrinks_with_the_batch():
    law = table("llama", 3, 0.8)
    gains = [decode_s(PLAIN["llama"], n) / decode_s(law, n) for n in (1, 8, 32, 64, 128)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 1.5 * gains[-1] > 1.5


def test_one_layer_that_drafts_gains_what_deepseek_reports():
    """DeepSeek-V3 Technical Report, 5.4.3: 85 to 90 % of second tokens accepted, 1.8 times the tokens per second."""
    law = table("latent", 1, 0.85)
    gain = decode_s(PLAIN["latent"], 64) / decode_s(law, 64)
    assert gain == pytest.approx(1.8, rel=0.15)


# --- memory


def test_weights_and_kv_of_the_draft_are_counted():
    plain, fit = (memory_fit(each) for each in (TARGETS["llama"][0], declared("llama", 3, 0.8)))
    alone = memory_fit(Replica(model="llama-3.2-1b", gpu="h100-sxm", tp=4, engine=ENGINE))
    assert fit.weight_bytes == plain.weight_bytes + alone.weight_bytes
    assert fit.page_bytes == plain.page_bytes + alone.page_bytes
    assert fit.activation_bytes == plain.activation_bytes + 3 * 2 * 4 * 128256 * 128  # logits of three more rows
    assert fit.kv_blocks < plain.kv_blocks


def test_one_more_layer_has_no_tables_and_a_layer_of_kv():
    plain, fit = (memory_fit(each) for each in (TARGETS["latent"][0], declared("latent", 1, 0.8)))
    assert fit.page_bytes == plain.page_bytes * 62 // 61
    assert fit.weight_bytes - plain.weight_bytes == pytest.approx(11.5e9 / 8, rel=0.05)  # 14 GB less tables, TP 8


def test_matching_ngrams_takes_no_memory_but_for_logits():
    plain, fit = (memory_fit(each) for each in (TARGETS["fp8"][0], declared("fp8", 3, 0.8, "ngram")))
    assert (fit.weight_bytes, fit.page_bytes) == (plain.weight_bytes, plain.page_bytes)
    assert fit.activation_bytes > plain.activation_bytes


def test_states_are_kept_for_every_token_to_be_verified():
    plain, fit = (memory_fit(each) for each in (TARGETS["states"][0], declared("states", 3, 0.8, "ngram")))
    assert 3 * plain.window_group < fit.window_group <= 4 * plain.window_group


def test_the_draft_moves_its_kv_too():
    plain, both = (kv_transfer_bytes(each, 1000) for each in (TARGETS["llama"][0], declared("llama", 3, 0.8)))
    alone = kv_transfer_bytes(Replica(model="llama-3.2-1b", gpu="h100-sxm", tp=4), 1000)
    assert both == plain + alone


# --- runs


def served(replica: Replica, users: int):
    loop = WorkloadSpec(
        arrival=Closed(concurrency=users), prompt=Constant(tokens=64), output=Constant(tokens=400), requests=3 * users
    )
    return simulate(Deployment(pools=(Pool(replica=replica),)), workload(loop), seed=1)


@pytest.mark.parametrize("name", ["llama", "alone"])
def test_a_run_gains_what_its_steps_gain(name):
    plain, fast = (served(replica, 4) for replica in (TARGETS[name][0], declared(name, 3, 0.8)))
    gain = decode_s(PLAIN[name], 4, 264) / decode_s(table(name, 3, 0.8), 4, 264)
    assert plain.tpot_s.mean / fast.tpot_s.mean == pytest.approx(gain, rel=0.05)
    assert fast.energy.joules_per_output_token < plain.energy.joules_per_output_token
    assert fast.throughput.output_tokens_per_s > 1.5 * plain.throughput.output_tokens_per_s


def test_the_first_token_comes_no_later_and_not_much_sooner():
    plain, fast = (served(replica, 1) for replica in (TARGETS["llama"][0], declared("llama", 3, 0.8, "ngram")))
    assert fast.ttft_s.mean == pytest.approx(plain.ttft_s.mean, rel=0.02)


# --- calibrated


def calibrated(name: str, **terms) -> Replica:
    replica = declared(name, 3, 0.8, "ngram", max_seqs=128)
    found = {key: Term(value=value, low=value, high=value) for key, value in terms.items()}
    own = Calibration(gpu=replica.gpu, engine=replica.engine.name, **found)
    return msgspec.structs.replace(replica, calibration=own)


@pytest.mark.parametrize("name", ["llama", "latent", "alone"])
def test_measurements_that_change_nothing_change_nothing(name):
    plain, same = table(name, 3, 0.8, "ngram"), compile_replica(calibrated(name))
    for n in (1, 16, 128):
        assert decode_s(same, n) == pytest.approx(decode_s(plain, n), rel=1e-12)


def test_the_host_of_a_sequence_comes_once_in_a_real_step_and_kernels_scale_with_it():
    plain, slow = table("llama", 3, 0.8, "ngram"), compile_replica(calibrated("llama", sequence_s=1e-4))
    assert decode_s(slow, 16) - decode_s(plain, 16) == pytest.approx(16 * 1e-4 / 2.952)
    double = compile_replica(calibrated("llama", few_tokens=2.0, many_tokens=2.0, context=2.0))
    assert 1.9 < decode_s(double, 4) / decode_s(plain, 4) <= 2.0


# --- declared, written, planned


def test_a_declaration_survives_the_way_through_yaml_and_json(tmp_path):
    replica = declared("llama", 3, 0.8)
    deployment = Deployment(pools=(Pool(replica=replica),))
    path = tmp_path / "deployment.yaml"
    write_yaml(deployment, path)
    assert from_mapping(Deployment, read_yaml(path), "file") == deployment
    assert msgspec.json.decode(msgspec.json.encode(replica), type=Replica) == replica
    assert "speculation" not in to_mapping(TARGETS["llama"][0])
    words = ("tokens=3", "acceptance=0.8", "draft=llama-3.2-1b")
    bare = msgspec.structs.replace(replica, engine=ENGINE)
    assert override(bare, [f"engine.speculation.{word}" for word in words]).engine.speculation == (
        replica.engine.speculation
    )


def test_provenance_says_what_was_declared_and_what_follows():
    found = table("llama", 3, 0.8).provenance
    assert found["speculation.acceptance"].value == 0.8
    assert found["speculation.tokens_per_step"].value == pytest.approx(2.952)
    assert "Leviathan" in found["speculation.tokens_per_step"].source
    assert not any(name.startswith("speculation") for name in PLAIN["llama"].provenance)


def test_nothing_was_measured_under_a_declaration():
    assert evidence_level(TARGETS["llama"][0], "tpot") != "family" == evidence_level(declared("llama", 3, 0.8), "tpot")


def test_bounds_of_a_plan_stay_below_what_is_simulated():
    law, lengths = table("llama", 3, 0.9), Lengths(np.array([64] * 4), np.array([400] * 4), False)
    one = Deployment(pools=(Pool(replica=TARGETS["llama"][0]),))
    least = reach(one, (law,), lengths, Slo(ttft_s=1.0))
    result = served(declared("llama", 3, 0.9), 2)
    assert least.tpot_s <= result.tpot_s.mean
    assert least.ttft_s.max() <= result.ttft_s.mean
    plain = reach(one, (PLAIN["llama"],), lengths, Slo(ttft_s=1.0))
    assert least.tpot_s < plain.tpot_s


def test_a_plan_tries_no_pipelines_and_only_degrees_that_cut_the_draft():
    spec = Speculation(tokens=3, acceptance=0.7, draft="qwen2.5-0.5b")  # 14 heads
    engine = EngineSettings(speculation=spec)
    question = Question(model="qwen2.5-7b", gpu="h100-sxm", gpus=4, rate_req_s=1, slo=Slo(ttft_s=1.0), engine=engine)
    shapes = {
        (pool.replica.tp, pool.replica.pp)
        for option in enumerate_space(question).options for pool in option.deployment.pools
    }  # fmt: skip
    assert shapes == {(1, 1), (2, 1)}


REFUSED = [
    ({"tokens": 0}, {}, r"speculation.tokens=0: .* expected 1 to 16"),
    ({"tokens": 17}, {}, r"speculation.tokens=17: .* expected 1 to 16"),
    ({"acceptance": 1.2}, {}, r"speculation.acceptance=1.2: .* expected 0 to 1"),
    ({"acceptance": -0.1}, {}, r"speculation.acceptance=-0.1"),
    ({"tokens": 16, "max_seqs": 256}, {}, r"max_seqs=256 with speculation.tokens=16 .* max_batched_tokens=4096"),
    ({"draft": "llama-3.2-1"}, {}, r"unknown draft model 'llama-3.2-1': nearest: llama-3.2-1b"),
    ({"draft": "ngrams"}, {}, r"unknown draft model 'ngrams': nearest: ngram"),
    ({"draft": "qwen2.5-0.5b"}, {}, r"tp=4 does not divide the 14 heads .* of the draft qwen2.5-0.5b; allowed: 1, 2"),
    ({"draft": "gpt-oss-20b"}, {}, r"windows of 128 tokens are not modelled beside llama-3.1-70b"),
    ({"draft": "ngram"}, {"pp": 2}, r"speculation with pp=2: only modelled without a pipeline"),
    ({"draft": "mtp"}, {"model": "qwen3-30b-a3b", "dp": 2}, r"speculation with dp=2: .* use a pool of 2 replicas"),
]


@pytest.mark.parametrize(("said", "layout", "message"), REFUSED)
def test_what_cannot_be_is_refused(said, layout, message):
    def build():
        given = {"tokens": 3, "acceptance": 0.8, "draft": "llama-3.2-1b"} | said
        seqs = given.pop("max_seqs", 128)
        engine = msgspec.structs.replace(ENGINE, speculation=Speculation(**given), max_seqs=seqs)
        memory_fit(Replica(**{"model": "llama-3.1-70b", "gpu": "h100-sxm", "tp": 4, "engine": engine} | layout))

    with pytest.raises(BadInput, match=message):
        build()


def test_an_unknown_draft_is_an_unknown_name():
    with pytest.raises(UnknownName) as refusal:
        compile_replica(declared("llama", 3, 0.8, "mpt"))
    assert "mtp" in refusal.value.nearest


def test_the_command_line_takes_it_and_refuses_what_is_missing():
    words = ("simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--requests", 50, "--rate", 2, "--json", "-")
    path = "pools.0.replica.engine.speculation"
    told = ("--set", f"{path}={{tokens: 3, acceptance: 0.8, draft: ngram}}")
    plain, fast = (run(*words, "--quiet", *more) for more in ((), told))
    assert plain.exit_code == fast.exit_code == 0, fast.output
    tpot = [msgspec.json.decode(each.stdout)["tpot_s"]["mean"] for each in (plain, fast)]
    assert tpot[0] / tpot[1] > 2.0
    refused(run(*words, "--set", f"{path}.tokens=3"), "'acceptance' is missing")
    refused(run(*words, "--set", f"{path}={{tokens: 3, acceptance: 0.8, draft: ngram, k: 1}}"), "unknown field 'k'")
