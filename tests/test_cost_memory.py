"""Laws of the memory fit, and the message when a model does not fit."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import EngineSettings, Replica, compile_replica, kv_links, kv_transfer_bytes, memory_fit
from headway.cost.memory import check_context, sequence_tokens
from headway.errors import BadInput, DoesNotFit, HeadwayError, UnknownName
from headway.hardware import gpu, gpu_keys
from headway.model import model, model_keys
from headway.sim import Deployment, Pool

GIB = 1 << 30


def replica(key: str, card: str, **fields: object) -> Replica:
    return Replica(model=key, gpu=card, **fields)  # type: ignore[arg-type]


replicas = st.builds(
    Replica,
    model=st.sampled_from(model_keys()),
    gpu=st.sampled_from(gpu_keys()),
    tp=st.sampled_from([1, 2, 3, 4, 8, 16]),
    pp=st.sampled_from([1, 2, 3, 8]),
    weights=st.sampled_from(["bf16", "fp8", "int8", "fp4", "mxfp4"]),
    kv=st.sampled_from(["bf16", "fp8"]),
)


@settings(max_examples=400, deadline=None)
@given(replicas)
def test_every_replica_fits_into_its_memory_or_is_refused_by_design(one):
    try:
        fit = memory_fit(one)
    except HeadwayError as error:
        assert len(str(error)) > 20
        if isinstance(error, DoesNotFit):
            assert error.needed_bytes > error.available_bytes
        return
    used = fit.weight_bytes + fit.activation_bytes + fit.overhead_bytes + fit.kv_blocks * fit.page_bytes
    room = fit.memory_bytes * one.engine.memory_utilization
    assert room - fit.page_bytes < used <= room
    assert fit.kv_blocks * one.engine.block_tokens >= min(
        one.engine.max_batched_tokens, model(one.model).max_context
    )
    table = compile_replica(one)
    assert (table.kv_blocks, table.window_group) == (fit.kv_blocks, fit.window_group)


@settings(max_examples=200, deadline=None)
@given(replicas)
def test_the_longest_sequence_takes_all_pages_that_it_can(one):
    try:
        fit = memory_fit(one)
    except HeadwayError:
        return
    size = one.engine.block_tokens

    def pages(blocks: int) -> int:
        return blocks + min(blocks, fit.window_blocks + 1 if fit.window_group else 0) * fit.window_group

    tokens = sequence_tokens(fit, size)
    assert pages(tokens // size) <= fit.kv_blocks < pages(tokens // size + 1)


def test_a_context_that_is_named_has_to_fit():
    check_context(replica("llama-3.1-8b", "a10g"))
    check_context(replica("llama-3.1-8b:16384", "a10g"))
    with pytest.raises(DoesNotFit, match=r"65,536 tokens that llama-3.1-8b:65536 names .* at most 2\d,\d{3}") as told:
        check_context(replica("llama-3.1-8b:65536", "a10g"))
    assert told.value.needed_bytes > told.value.available_bytes
    check_context(replica("llama-3.1-8b:65536", "a10g", tp=2))


@pytest.mark.parametrize("key", model_keys())
def test_one_gpu_holds_exactly_the_published_weights_and_kv(key):
    spec = model(key)
    whole = replica(key, "b200", weights=spec.native_dtype)
    try:
        assert memory_fit(whole).weight_bytes == spec.weight_bytes(spec.native_dtype)
    except DoesNotFit as error:
        assert error.needed_bytes > spec.weight_bytes(spec.native_dtype)
    for tokens in (1, 100, 5000):
        assert kv_transfer_bytes(whole, tokens) == spec.kv_bytes(tokens) + spec.state_bytes()


@pytest.mark.parametrize("card", ["h100-sxm", "mi300x"])
def test_smaller_weights_and_more_gpus_leave_more_room_for_kv(card):
    def blocks(**fields: object) -> int:
        return memory_fit(replica("llama-3.1-70b", card, **{"tp": 4, **fields})).kv_blocks

    assert blocks() < blocks(weights="fp8") < blocks(weights="fp8", kv="fp8")
    assert blocks(tp=4) < blocks(tp=8)
    assert blocks(tp=4) < blocks(tp=4, pp=2)
    tight, budget = EngineSettings(memory_utilization=0.7), EngineSettings(max_batched_tokens=32768)
    assert blocks(engine=tight) < blocks() > blocks(engine=budget)


def test_ranks_in_stages_are_refused_not_run_at_the_pace_of_one_stage():
    with pytest.raises(BadInput, match=r"dp=2, pp=2: .* not modelled in stages"):
        memory_fit(replica("qwen3-30b-a3b", "h100-sxm", dp=2, pp=2))


def test_gpus_share_the_weights_evenly_but_for_copied_heads():
    spec = model("llama-3.1-70b")
    for tp in (2, 4, 8):
        assert (
            memory_fit(replica(spec.key, "h100-sxm", tp=tp)).weight_bytes == spec.weight_bytes("bf16") // tp
        )
    small = model("qwen2.5-7b")  # 4 KV heads
    even = memory_fit(replica(small.key, "gb200", tp=4)).weight_bytes
    copied = memory_fit(replica(small.key, "gb200", tp=28)).weight_bytes
    assert copied > even * 4 / 28


def test_kv_heads_are_copied_and_the_latent_of_mla_is_never_cut():
    def page(key: str, tp: int, **fields: object) -> int:
        return memory_fit(replica(key, "gb200", tp=tp, **fields)).page_bytes

    assert page("llama-3.1-8b", 1) == 8 * page("llama-3.1-8b", 8) == 8 * page("llama-3.1-8b", 16)
    assert page("deepseek-v3", 8, weights="fp8") == page("deepseek-v3", 64, weights="fp8")
    assert page("deepseek-v3", 8, weights="fp8") == 16 * model("deepseek-v3").kv_bytes_per_token()


@pytest.mark.parametrize(
    ("key", "full", "windowed", "window"), [("gpt-oss-20b", 12, 12, 128), ("gemma-3-27b", 10, 52, 1024)]
)
def test_windowed_layers_form_groups_as_large_as_the_full_one(key, full, windowed, window):
    spec, fit = model(key), memory_fit(replica(key, "h100-sxm"))
    assert (spec.layers - spec.window_layers, spec.window_layers, spec.window) == (full, windowed, window)
    assert fit.window_group == -(-windowed // full)
    assert fit.window_blocks == window // 16
    assert fit.page_bytes == 16 * spec.kv_full_bytes_per_token()
    padded = fit.window_group * fit.page_bytes
    assert padded >= 16 * spec.kv_window_bytes_per_token() > padded - fit.page_bytes


def test_sparse_attention_reads_like_a_window_and_keeps_every_token():
    spec = model("glm-5")
    table = compile_replica(replica("glm-5", "b200", tp=8, weights="fp8"))
    assert table.window == spec.sparse_topk > 0 == table.window_group
    assert kv_transfer_bytes(replica("glm-5", "b200", tp=8), 100_000) == spec.kv_bytes_per_token() * 100_000


# --- what does not fit


@pytest.mark.parametrize(
    ("key", "card", "tp", "remedy"),
    [
        ("llama-3.1-70b", "h100-sxm", 1, r"tp=2 would do"),
        ("llama-3.1-405b", "a100-80gb-sxm", 1, r"h200 with tp=8 would do"),
        ("phi-4", "rtx-4090", 1, r"tp=2 would do"),
        ("kimi-k2", "l4", 1, r"weights=fp8, as published, on \S+ with tp=8 would do"),
    ],
)
def test_the_error_says_what_is_needed_what_there_is_and_what_would_do(key, card, tp, remedy):
    one = replica(key, card, tp=tp)
    with pytest.raises(DoesNotFit, match=remedy) as caught:
        memory_fit(one)
    error, text = caught.value, str(caught.value)
    assert error.exit_code == 1
    assert f"needs {error.needed_bytes / GIB:.1f} GiB" in text
    assert f"has {error.available_bytes / GIB:.1f} GiB" in text
    assert error.available_bytes == int(0.9 * gpu(card).memory_bytes)
    assert f"{model(key).weight_bytes('bf16') / GIB:.1f} GiB weights" in text
    would = re.search(r"(?:(\S+) with )?tp=(\d) would do", text)
    if would:
        weights = model(key).native_dtype if "as published" in text else "bf16"
        remedied = msgspec.structs.replace(one, gpu=would[1] or card, tp=int(would[2]), weights=weights)
        assert memory_fit(remedied).kv_blocks > 0
        if not would[1]:
            with pytest.raises(DoesNotFit):
                memory_fit(msgspec.structs.replace(remedied, tp=int(would[2]) // 2))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["llama-3.1-70b", "mixtral-8x22b", "gpt-oss-120b"]), st.integers(1, 100))
def test_exactly_the_memory_needed_is_enough(key, percent):
    """The boundary is where the error says: just above what was needed fits, just below does not."""
    one = replica(key, "h100-sxm", tp=4 if key != "mixtral-8x22b" else 8)

    def at(share: float) -> Replica:
        return msgspec.structs.replace(one, engine=EngineSettings(memory_utilization=share))

    total = gpu("h100-sxm").memory_bytes
    try:
        memory_fit(at(percent / 100))
    except DoesNotFit as error:
        share = error.needed_bytes / total
        if share < 0.999:
            memory_fit(at(share + 1e-6))
        with pytest.raises(DoesNotFit):
            memory_fit(at(min(1.0, share - 1e-6)))


@pytest.mark.parametrize(
    ("key", "card", "tp", "published"),
    [
        ("deepseek-v3", "h200", 8, "fp8"),
        ("gpt-oss-120b", "a100-80gb-sxm", 1, "mxfp4"),
        ("gpt-oss-20b", "rtx-4090", 1, "mxfp4"),
    ],
)
def test_the_published_precision_is_the_first_remedy(key, card, tp, published):
    one = replica(key, card, tp=tp)
    with pytest.raises(DoesNotFit, match=f"weights={published}, as published, would fit"):
        memory_fit(one)
    assert memory_fit(msgspec.structs.replace(one, weights=published)).kv_blocks > 0


def test_the_published_precision_comes_with_the_gpus_it_needs():
    with pytest.raises(DoesNotFit, match=r"weights=fp8, as published, with tp=8 would do"):
        memory_fit(replica("deepseek-v3", "h200", tp=1))
    assert memory_fit(replica("deepseek-v3", "h200", tp=8, weights="fp8")).kv_blocks > 0


# --- what is not a replica


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"model": "llama-3.1-8"}, UnknownName, "llama-3.1-8b"),
        ({"gpu": "h100"}, UnknownName, "h100-sxm"),
        ({"tp": 3}, BadInput, "allowed: 1, 2, 4, 8"),
        ({"tp": 16}, BadInput, "at most 8 GPUs"),
        ({"tp": 0}, BadInput, "at least 1"),
        ({"pp": 33}, BadInput, "32 layers"),
        ({"weights": "fp8", "gpu": "a100-80gb-sxm"}, BadInput, "bf16, int8"),
        ({"weights": "fp"}, BadInput, "nearest: fp8"),
        ({"kv": "fp4"}, BadInput, "bf16, fp8"),
        ({"kv": "fp8", "gpu": "a100-80gb-sxm"}, BadInput, "held in bf16"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(fields, error, text):
    with pytest.raises(error, match=re.escape(text)):
        memory_fit(Replica(**{"model": "llama-3.1-8b", "gpu": "h100-sxm", **fields}))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"max_seqs": 512, "max_batched_tokens": 256}, "raise max_batched_tokens or lower max_seqs"),
        ({"max_seqs": 0}, "max_seqs=0: expected 1"),
        ({"block_tokens": -16}, "block_tokens=-16"),
        ({"max_batched_tokens": 1 << 30}, "expected 1 to 1048576"),
        ({"memory_utilization": 0.0}, "above 0"),
        ({"memory_utilization": float("nan")}, "above 0"),
    ],
)
def test_engine_settings_out_of_range_are_refused(fields, text):
    with pytest.raises(BadInput, match=re.escape(text)):
        EngineSettings(**fields)


def test_weights_as_published_run_where_the_gpu_cannot_compute_in_them():
    published = compile_replica(replica("gpt-oss-20b", "a100-80gb-sxm", weights="mxfp4"))
    widened = compile_replica(replica("gpt-oss-20b", "a100-80gb-sxm"))
    assert published.kv_blocks > widened.kv_blocks
    assert published.step_seconds(8, 8192, 1024) < widened.step_seconds(8, 8192, 1024)


# --- moving KV


def test_kv_moves_over_the_fast_link_inside_a_node_and_over_the_network_else():
    one, other = gpu("h100-sxm"), gpu("a100-80gb-sxm")
    far, near = kv_links([one.key, one.key])
    assert (far.bytes_per_s, near.bytes_per_s) == (one.rdma_bytes_per_s, one.link_bytes_per_s)
    slower = min(one.rdma_bytes_per_s, other.rdma_bytes_per_s)
    assert kv_links([one.key, other.key])[0].bytes_per_s == kv_links([other.key, one.key])[0].bytes_per_s == slower


@pytest.mark.parametrize(("counts", "inside"), [((1, 1), True), ((3, 1), True), ((3, 2), False)])
def test_a_fleet_of_one_node_hands_over_inside_it_and_a_larger_one_over_the_network(counts, inside):
    one = replica("llama-3.1-70b", "h100-sxm", tp=2)
    roles = zip(("prefill", "decode"), counts, strict=True)
    fleet = Deployment(pools=tuple(Pool(role=role, count=count, replica=one) for role, count in roles))
    card = gpu("h100-sxm")
    assert fleet.link("llama-3.1-70b").bytes_per_s == (card.link_bytes_per_s if inside else card.rdma_bytes_per_s)


@given(st.integers(1, 100_000))
def test_shards_add_up_to_the_models_kv(tokens):
    spec = model("llama-3.1-70b")
    for tp, pp in ((1, 2), (4, 1), (8, 1), (2, 4)):
        one = replica(spec.key, "h100-sxm", tp=tp, pp=pp)
        assert kv_transfer_bytes(one, tokens) * tp * pp == spec.kv_bytes(tokens)
