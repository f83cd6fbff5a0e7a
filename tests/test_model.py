"""Laws of counting, and the catalogue against published figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import BadInput, UnknownName
from headway.model import DTYPE_BYTES, Model, model, model_keys
from headway.model import catalogue as catalogue_module

DTYPES = st.sampled_from(sorted(DTYPE_BYTES))


@st.composite
def models(draw: st.DrawFn) -> Model:
    """Any consistent architecture: dense or MoE, GQA or MLA, with or without windows and an indexer."""

    def pick(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    kv_heads, layers, moe, mla = pick(1, 8), pick(1, 20), draw(st.booleans()), draw(st.booleans())
    heads = kv_heads * pick(1, 4)
    fields: dict[str, Any] = {
        "layers": layers,
        "hidden": 8 * pick(1, 64),
        "heads": heads,
        "kv_heads": heads if mla else kv_heads,
        "head_dim": 2 * pick(1, 64),
        "vocab": pick(1, 5000),
        "max_context": pick(1, 10000),
        "intermediate": pick(1, 300),
    }
    biases = ("qkv_bias", "o_bias", "mlp_bias", "expert_bias", "router_bias")
    for flag in ("gated_mlp", "tied_embeddings", *biases):
        fields[flag] = draw(st.booleans())
    if moe:
        experts = pick(1, 64)
        fields |= {"experts": experts, "experts_per_token": pick(1, experts), "dense_layers": pick(0, layers)}
        fields |= {"expert_intermediate": pick(1, 300), "shared_intermediate": pick(0, 300)}
        fields["active_vocab"] = draw(st.sampled_from(["both", "head", "none"]))
    if mla:
        width = fields["head_dim"]
        rope = pick(0, width)
        fields |= {"attention": "mla", "qk_rope_head_dim": rope, "qk_nope_head_dim": width - rope}
        fields |= {"kv_lora_rank": pick(1, 99), "v_head_dim": pick(1, 99), "q_lora_rank": pick(0, 99)}
        if draw(st.booleans()):
            fields |= {"index_layers": layers, "index_heads": pick(1, 9), "index_head_dim": pick(1, 300)}
            fields["sparse_topk"] = pick(1, 4096)
    elif draw(st.booleans()):
        fields |= {"window": pick(1, 5000), "window_layers": pick(1, layers)}
    elif layers > 1 and draw(st.booleans()):
        fields |= {"state_layers": pick(1, layers - 1), "state_kind": draw(st.sampled_from(["delta", "mamba2"]))}
        for width in ("state_heads", "state_head_dim", "state_keys", "state_key_dim"):
            fields[width] = pick(1, 64)
    if not moe:
        fields["bare_layers"] = pick(0, layers)
    fields["attention_gate"] = draw(st.booleans()) and not mla
    fields["embedding_norm"] = draw(st.booleans())
    return Model(key="any", name="any", source="drawn", **fields)


# --- laws ---------------------------------------------------------------------------------------------------


@given(models(), st.integers(0, 20000), DTYPES)
def test_kv_grows_with_the_context_ever_more_slowly(any_model: Model, context: int, dtype: str) -> None:
    sizes = [any_model.kv_bytes(context + i, dtype) for i in range(3)]
    first, second = sizes[1] - sizes[0], sizes[2] - sizes[1]
    assert first >= second >= 0
    assert first > 0 or any_model.window_layers == any_model.layers


@given(models(), st.integers(0, 20000), DTYPES)
def test_kv_is_linear_until_the_window_is_full(any_model: Model, context: int, dtype: str) -> None:
    full, windowed = any_model.kv_full_bytes_per_token(dtype), any_model.kv_window_bytes_per_token(dtype)
    assert any_model.kv_bytes_per_token(dtype) == full + windowed
    beyond = max(context - any_model.window, 0) if any_model.window else 0
    assert any_model.kv_bytes(context, dtype) == context * (full + windowed) - beyond * windowed


@given(models())
def test_fewer_bits_never_weigh_more(any_model: Model) -> None:
    sizes = [any_model.weight_bytes(dtype) for dtype in ("bf16", "fp8", "fp4")]
    assert sizes == sorted(sizes, reverse=True)
    files = [any_model.weight_bytes(dtype) for dtype in ("bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")]
    assert files == sorted(files, reverse=True)
    assert files[4] == pytest.approx(any_model.total_params() * 4.8944 / 8, rel=0.01, abs=1)
    assert sizes[0] == 2 * any_model.total_params()
    assert any_model.weight_bytes("mxfp4") <= sizes[0]
    assert any_model.kv_bytes_per_token("fp8") <= any_model.kv_bytes_per_token("bf16")


@given(models())
def test_the_parts_add_up_to_the_total(any_model: Model) -> None:
    m, moe = any_model, any_model.moe_layers()
    parts = m.embedding_params() + m.head_params() * (not m.tied_embeddings)
    parts += m.attention_layers() * m.attention_params_per_layer()
    if m.state_layers:
        parts += m.state_layers * m.state_params_per_layer()
    parts += m.dense_mlp_layers() * m.dense_mlp_params_per_layer()
    parts += moe * (m.experts * m.expert_params() + m.shared_expert_params_per_layer())
    parts += moe * m.router_params_per_layer()
    norms = (m.layers * m.norms_per_layer - m.bare_layers + 1 + m.embedding_norm) * m.hidden
    assert m.total_params() == parts + norms


@given(models())
def test_active_is_part_of_the_total_and_all_of_a_dense_model(any_model: Model) -> None:
    assert 0 < any_model.active_params() <= any_model.total_params()
    if not any_model.experts:
        assert any_model.active_params() == any_model.total_params()


@given(models().filter(lambda m: m.moe_layers() > 0))
def test_one_more_expert_costs_memory_and_only_its_router_row_is_active(any_model: Model) -> None:
    more = msgspec.structs.replace(any_model, experts=any_model.experts + 1)
    row = any_model.hidden + any_model.router_bias
    assert more.active_params() - any_model.active_params() == any_model.moe_layers() * row
    extra = any_model.moe_layers() * (row + any_model.expert_params())
    assert more.total_params() - any_model.total_params() == extra


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 0},
        {"intermediate": -1},
        {"kv_heads": 3},
        {"window": 128},
        {"window": 128, "window_layers": 33},
        {"experts": 4},
        {"experts": 4, "experts_per_token": 5, "expert_intermediate": 64},
        {"kv_lora_rank": 512},
        {"attention": "mla"},
        {"intermediate": 0},
        {"native_dtype": "fp12"},
        {"sparse_topk": 2048},
        {"state_layers": 4},
        {"state_layers": 32, "state_heads": 1, "state_head_dim": 1, "state_keys": 1, "state_key_dim": 1},
        {"state_heads": 4},
        {"bare_layers": 33},
        {"bare_layers": 3, "norms_per_layer": 4},
        {"window": 128, "window_layers": 31, "state_layers": 2, "state_heads": 1, "state_head_dim": 1, "state_keys": 1,
         "state_key_dim": 1},
    ],
)
def test_contradictions_are_refused(change: dict[str, Any]) -> None:
    fields = msgspec.structs.asdict(model("llama-3.1-8b"))
    with pytest.raises(BadInput):
        Model(**{**fields, **change})


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"llama-3\.1-70b.*headway list models"):
        model("llama3.1-70B")


def test_an_unknown_dtype_names_the_known() -> None:
    with pytest.raises(UnknownName, match="fp8"):
        model("llama-3.1-8b").weight_bytes("fp7")


# --- golden figures -----------------------------------------------------------------------------------------

# Parameters of the text model, counted on the public model classes (transformers 5.23, without weights; of the models
# with states, of BLOOM and of the small families by the spec alone, against the published total); the
# vendor's figures in billions, total and active (C model card, P paper or report, W Hugging Face checkpoint).
# Llama 4 checkpoints hold 0.9 billion more for vision; the totals of GLM-4.5 hold an extra prediction layer.
PUBLISHED = """
llama-2-7b                6738415616 W 6.74
llama-2-13b              13015864320 W 13.0
llama-2-70b              68976648192 W 69.0
llama-3-8b                8030261248 W 8.03
llama-3-70b              70553706496 W 70.6
llama-3.1-8b              8030261248 W 8.03
llama-3.1-70b            70553706496 W 70.6
llama-3.1-405b          405853388800 W 406
llama-3.2-1b              1235814400 C 1.23
llama-3.2-3b              3212749824 C 3.21
llama-3.3-70b            70553706496 W 70.6
llama-4-scout           107769861120 W 108.6 17
llama-4-maverick        400711848960 W 401.6 17
qwen2-7b                  7615616512 W 7.62
qwen2-72b                72706203648 W 72.7
qwen2.5-0.5b               494032768 C 0.49
qwen2.5-1.5b              1543714304 C 1.54
qwen2.5-3b                3085938688 C 3.09
qwen2.5-7b                7615616512 C 7.61
qwen2.5-14b              14770033664 C 14.7
qwen2.5-32b              32763876352 C 32.5
qwen2.5-72b              72706203648 C 72.7
qwen3-0.6b                 596049920 C 0.6
qwen3-1.7b                1720574976 C 1.7
qwen3-4b                  4022468096 C 4.0
qwen3-8b                  8190735360 C 8.2
qwen3-14b                14768307200 C 14.8
qwen3-32b                32762123264 C 32.8
qwen3-30b-a3b            30532122624 C 30.5 3.3
qwen3-235b-a22b         235093634560 C 235 22
qwen3-coder-480b-a35b   480154875392 C 480 35
mistral-7b                7248023552 W 7.25
mistral-7b-v0.1           7241732096 W 7.24
mistral-nemo-12b         12247782400 W 12.2
mistral-small-24b        23572403200 W 23.6
mixtral-8x7b             46702792704 C 46.7 12.9
mixtral-8x22b           140620634112 C 141 39
gemma-3-1b                 999885952 P 1.000
gemma-3-4b                3880263168 P 3.884
gemma-3-12b              11766034176 P 11.77
gemma-3-27b              27009346304 P 27.02
phi-4                    14659507200 W 14.7
phi-4-mini                3836021760 C 3.8
opt-6.7b                  6658473984 P 6.7
opt-13b                  12853473280 P 13
opt-30b                  29974540288 P 30
opt-66b                  65719701504 P 66
opt-175b                174604468224 P 175
deepseek-v3             671026419200 C 671 36.7
deepseek-r1             671026419200 C 671 37
deepseek-v3.2           671877944064 C 671 37
kimi-k2                1026408232448 W 1026 32
glm-4.5                 352797829024 P 355 32
glm-4.5-air             106852251264 P 106 12
glm-4.7-flash            29943393920 C 30 3
glm-5                   743911218432 P 744 40
minimax-m2              228689764864 C 230 10
bloom-7b1                 7069016064 W 7.07
bloom-176b              176247271424 C 176
codestral-22b            22247282688 W 22.2
decilm-7b                 7043551232 C 7.04
deepseek-v2-lite         15706484224 C 15.7 2.4
gemma-2b                  2506172416 W 2.51
gemma-7b                  8537680896 W 8.54
gemma-2-2b                2614341888 W 2.61
gemma-2-9b                9241705984 W 9.24
gemma-2-27b              27227128320 W 27.2
gemma-3-270m               268098176 W 0.268
mistral-large-123b      122610069504 C 123
nemotron-h-8b             8100852736 C 8.1
nemotron-nano-9b          8888227328 W 8.89
nemotron-nano-12b        12310001152 W 12.31
nemotron-3-nano-30b-a3b  31577940288 C 31.6 3.6
phi-3-medium             13960238080 W 14.0
phi-3.5-mini              3821079552 W 3.82
qwen1.5-7b                7721324544 W 7.72
qwen3-next-80b-a3b       79674391296 C 80 3
qwen3.5-0.8b               752393024 C 0.8
qwen3.5-2b                1881825088 C 2
qwen3.5-4b                4205751296 C 4
qwen3.5-9b                8953803264 C 9
qwen3.5-27b              26895998464 C 27
qwen3.5-35b-a3b          34660610688 C 35 3
qwen3.5-122b-a10b       122111526912 C 122 10
qwen3.5-397b-a17b       396346350336 C 397 17
smollm2-135m               134515008 W 0.135
smollm2-360m               361821120 W 0.362
smollm2-1.7b              1711376384 W 1.71
smollm3-3b                3075098624 W 3.08
tinyllama-1.1b            1100048384 W 1.1
yi-1.5-9b                 8829407232 W 8.83
yi-1.5-34b               34388917248 W 34.4
gpt-oss-20b              20914757184 P 20.91 3.61
gpt-oss-120b            116829156672 P 116.83 5.13
"""
ROWS = {row.split()[0]: row.split()[1:] for row in PUBLISHED.strip().splitlines()}


def _agree(count: int, billions: str) -> bool:
    """Within 1 %, or equal once rounded or cut to the digits that were published."""
    unit = 10.0 ** -len(billions.partition(".")[2])
    return abs(count / 1e9 - float(billions)) <= max(0.01 * float(billions), unit)


@pytest.mark.parametrize("key", model_keys())
def test_parameters_equal_the_published_counts(key: str) -> None:
    exact, _, total, *active = ROWS[key]
    assert model(key).total_params() == int(exact)
    assert _agree(model(key).total_params(), total)
    assert bool(active) == bool(model(key).experts)
    if active:
        assert _agree(model(key).active_params(), active[0])


def test_counts_more_than_one_percent_off_are_documented() -> None:
    """The tolerance above lets rounded figures pass; which ones it does, docs/models.md says."""
    off = []
    for key in model_keys():
        _, _, total, *active = ROWS[key]
        counts = {"total": (model(key).total_params(), total)}
        counts |= {"active": (model(key).active_params(), active[0])} if active else {}
        off += [
            f"| `{key}` | {what} | {count / 1e9:.2f} | {said} |"
            for what, (count, said) in counts.items()
            if abs(count / 1e9 - float(said)) > 0.01 * float(said)
        ]
    told = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    assert [line for line in told.splitlines() if line.startswith("| `")] == off


@pytest.mark.parametrize(
    ("key", "active"),  # to four digits, so that a change of convention shows
    [
        ("qwen3-30b-a3b", 3.353e9), ("qwen3-235b-a22b", 22.19e9), ("mixtral-8x7b", 12.88e9),
        ("deepseek-v3", 36.63e9), ("kimi-k2", 31.69e9), ("gpt-oss-120b", 5.133e9), ("gpt-oss-20b", 3.608e9),
        ("glm-4.5", 32.08e9), ("glm-5", 39.88e9), ("minimax-m2", 9.801e9), ("llama-4-scout", 17.17e9),
    ],
)  # fmt: skip
def test_active_parameters(key: str, active: float) -> None:
    assert model(key).active_params() == pytest.approx(active, rel=2e-4)


@pytest.mark.parametrize(
    ("key", "full", "windowed"),
    [
        ("llama-3.1-8b", 2 * 8 * 128 * 32 * 2, 0),  # 131072
        ("llama-3.1-70b", 2 * 8 * 128 * 80 * 2, 0),  # 327680
        ("llama-2-7b", 2 * 32 * 128 * 32 * 2, 0),
        ("deepseek-v3", (512 + 64) * 61 * 2, 0),  # 70272
        ("kimi-k2", (512 + 64) * 61 * 2, 0),
        ("glm-5", (512 + 64) * 78 * 2 + 78 * 132, 0),  # an index key: 128 fp8 values and a scale
        ("gpt-oss-120b", 2 * 8 * 64 * 18 * 2, 2 * 8 * 64 * 18 * 2),
        ("gemma-3-27b", 2 * 16 * 128 * 10 * 2, 2 * 16 * 128 * 52 * 2),
        ("llama-4-scout", 2 * 8 * 128 * 12 * 2, 2 * 8 * 128 * 36 * 2),
        ("mistral-7b-v0.1", 0, 2 * 8 * 128 * 32 * 2),
    ],
)
def test_kv_bytes_per_token(key: str, full: int, windowed: int) -> None:
    assert model(key).kv_full_bytes_per_token() == full
    assert model(key).kv_window_bytes_per_token() == windowed


@given(models(), st.integers(0, 20000))
def test_states_take_the_place_of_keys_and_values(any_model: Model, context: int) -> None:
    grown = any_model.kv_bytes(context + 1) - any_model.kv_bytes(context)
    every = 2 * 2 * any_model.kv_heads * any_model.head_dim
    if any_model.attention == "gqa" and not any_model.window:
        assert grown == every * any_model.attention_layers()
    assert bool(any_model.state_bytes()) == bool(any_model.state_layers)


@pytest.mark.parametrize(
    ("key", "full", "state"),
    [
        # 15 of 60 layers, 2 heads of 256; 64 matrices of 128 x 128 in fp32, and 3 inputs of 8192 + 2 x 2048 in bf16
        ("qwen3.5-397b-a17b", 2 * 2 * 256 * 15 * 2, 45 * (64 * 128 * 128 * 4 + 12288 * 3 * 2)),
        ("nemotron-nano-9b", 2 * 8 * 128 * 4 * 2, 27 * (128 * 80 * 128 * 4 + 12288 * 3 * 2)),
        ("decilm-7b", 2 * 67 * 128 * 2, 0),  # 67 KV heads in 32 layers
        ("bloom-176b", 2 * 112 * 128 * 70 * 2, 0),
        ("llama-3.1-8b", 131072, 0),
    ],
)
def test_kv_and_states(key: str, full: int, state: int) -> None:
    assert model(key).kv_bytes_per_token() == full
    assert model(key).state_bytes() == state


# --- sizes and formats --------------------------------------------------------------------------------------


@given(st.floats(0.06, 500))
def test_a_size_gives_a_model_of_that_size(billions: float) -> None:
    found = model(f"sized:{billions:.3f}b")
    assert found.total_params() == pytest.approx(billions * 1e9, rel=0.01)
    assert "typical" in found.source and not found.experts


@given(st.floats(0.5, 37), st.floats(3, 20))
def test_two_sizes_give_experts(active: float, times: float) -> None:
    found = model(f"sized:{active * times:.2f}b-a{active:.2f}b")
    assert found.total_params() == pytest.approx(active * times * 1e9, rel=0.02)
    assert found.active_params() == pytest.approx(active * 1e9, rel=0.02)


@pytest.mark.parametrize("key", ["sized:", "sized:b", "sized:8", "sized:-8b", "sized:3b-a8b", "sized:1m", "sized:9e9b"])
def test_what_is_no_size_says_what_is(key: str) -> None:
    with pytest.raises(BadInput, match=r"sized:8b"):
        model(key)


def test_a_format_names_a_quantised_copy() -> None:
    plain, copy = model("llama-3.1-8b"), model("llama-3.1-8b:q4_k_m")
    assert msgspec.structs.replace(copy, key=plain.key, native_dtype=plain.native_dtype) == plain
    assert copy.native_dtype == "q4_k_m" and copy.key == "llama-3.1-8b:q4_k_m"
    # llama.cpp prints 4.58 GiB for this file
    assert copy.weight_bytes("q4_k_m") / 2**30 == pytest.approx(4.58, rel=0.01)
    assert model("sized:7b:q8_0").native_dtype == "q8_0"
    longer = model("llama-2-7b:8192:q8_0")
    assert (longer.max_context, longer.native_dtype, longer.layers) == (8192, "q8_0", 32)
    with pytest.raises(BadInput):
        model("llama-2-7b:0")
    with pytest.raises(UnknownName, match="q4_k_m"):
        model("llama-3.1-8b:q4_k_n")
    with pytest.raises(UnknownName, match=r"llama-3\.1-8b"):
        model("llama-3.1-8c:q4_k_m")


def test_kv_precision() -> None:
    assert model("llama-3.1-8b").kv_bytes_per_token("fp8") == 65536
    assert model("deepseek-v3").kv_bytes_per_token("fp8") == 35136
    assert model("glm-5").kv_bytes_per_token("fp8") == 576 * 78 + 132 * 78
    assert model("gpt-oss-20b").kv_bytes(100_000) == 24576 * 100_000 + 24576 * 128


@pytest.mark.parametrize(("key", "gib"), [("gpt-oss-120b", 60.8), ("gpt-oss-20b", 12.8)])
def test_mxfp4_weights_equal_the_published_checkpoint_size(key: str, gib: float) -> None:
    """gpt-oss model card, table 1: experts in MXFP4, the rest in bf16."""
    assert model(key).weight_bytes("mxfp4") / 2**30 == pytest.approx(gib, abs=0.05)


def test_every_model_is_found_in_the_file_named_by_its_prefix() -> None:
    files = list(catalogue_module._DATA.glob("*.yaml"))
    assert {key for path in files for key in catalogue_module._family(path)} == set(model_keys()) == set(ROWS)
    assert all(key.startswith(path.stem) for path in files for key in catalogue_module._family(path))
    assert len(model_keys()) == len(set(model_keys())) >= 30
    assert all(model(key).key == key for key in model_keys())
