"""Reading a Hugging Face config.json: the same model as the catalogue's, or an error that says what to do."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import BadInput
from headway.model import from_hf_config, model

# The fields that decide, as the vendors publish them (Hugging Face, repositories named in the catalogue). Of
# Gemma 3 4B the vendor leaves out most of the text model: there a missing field is a default of the family.
PUBLISHED_CONFIGS: dict[str, dict[str, Any]] = yaml.safe_load("""
llama-2-7b:
  {architectures: [LlamaForCausalLM], num_hidden_layers: 32, hidden_size: 4096, num_attention_heads: 32,
   vocab_size: 32000, max_position_embeddings: 4096, intermediate_size: 11008}
llama-3.1-8b:
  {architectures: [LlamaForCausalLM], num_hidden_layers: 32, hidden_size: 4096, num_attention_heads: 32,
   vocab_size: 128256, max_position_embeddings: 131072, num_key_value_heads: 8, intermediate_size: 14336}
llama-3.2-1b:
  {architectures: [LlamaForCausalLM], num_hidden_layers: 16, hidden_size: 2048, num_attention_heads: 32,
   vocab_size: 128256, max_position_embeddings: 131072, num_key_value_heads: 8, intermediate_size: 8192,
   head_dim: 64, tie_word_embeddings: true}
llama-4-scout:
  {architectures: [Llama4ForConditionalGeneration], text_config: {num_hidden_layers: 48, hidden_size: 5120,
   num_attention_heads: 40, vocab_size: 202048, max_position_embeddings: 10485760, num_key_value_heads: 8,
   intermediate_size: 8192, intermediate_size_mlp: 16384, head_dim: 128, num_local_experts: 16,
   num_experts_per_tok: 1, interleave_moe_layer_step: 1, attention_chunk_size: 8192, no_rope_layers: [],
   use_qk_norm: true}, vision_config: {hidden_size: 1408}}
qwen2.5-7b:
  {architectures: [Qwen2ForCausalLM], num_hidden_layers: 28, hidden_size: 3584, num_attention_heads: 28,
   vocab_size: 152064, max_position_embeddings: 32768, num_key_value_heads: 4, intermediate_size: 18944,
   sliding_window: 131072, use_sliding_window: false, max_window_layers: 28}
qwen3-8b:
  {architectures: [Qwen3ForCausalLM], num_hidden_layers: 36, hidden_size: 4096, num_attention_heads: 32,
   vocab_size: 151936, max_position_embeddings: 40960, num_key_value_heads: 8, intermediate_size: 12288,
   head_dim: 128}
qwen3-30b-a3b:
  {architectures: [Qwen3MoeForCausalLM], num_hidden_layers: 48, hidden_size: 2048, num_attention_heads: 32,
   vocab_size: 151936, max_position_embeddings: 40960, num_key_value_heads: 4, intermediate_size: 6144,
   head_dim: 128, num_experts: 128, num_experts_per_tok: 8, moe_intermediate_size: 768,
   decoder_sparse_step: 1, mlp_only_layers: []}
mistral-7b-v0.1:
  {architectures: [MistralForCausalLM], num_hidden_layers: 32, hidden_size: 4096, num_attention_heads: 32,
   vocab_size: 32000, max_position_embeddings: 32768, num_key_value_heads: 8, intermediate_size: 14336,
   sliding_window: 4096}
mixtral-8x7b:
  {architectures: [MixtralForCausalLM], num_hidden_layers: 32, hidden_size: 4096, num_attention_heads: 32,
   vocab_size: 32000, max_position_embeddings: 32768, num_key_value_heads: 8, intermediate_size: 14336,
   num_local_experts: 8, num_experts_per_tok: 2, sliding_window: null}
gemma-3-4b:
  {architectures: [Gemma3ForConditionalGeneration], text_config: {hidden_size: 2560,
   intermediate_size: 10240, num_hidden_layers: 34, sliding_window: 1024}}
phi-4:
  {architectures: [Phi3ForCausalLM], num_hidden_layers: 40, hidden_size: 5120, num_attention_heads: 40,
   vocab_size: 100352, max_position_embeddings: 16384, num_key_value_heads: 10, intermediate_size: 17920,
   sliding_window: null}
phi-4-mini:
  {architectures: [Phi3ForCausalLM], num_hidden_layers: 32, hidden_size: 3072, num_attention_heads: 24,
   vocab_size: 200064, max_position_embeddings: 131072, num_key_value_heads: 8, intermediate_size: 8192,
   sliding_window: 262144, tie_word_embeddings: true}
opt-13b:
  {architectures: [OPTForCausalLM], num_hidden_layers: 40, hidden_size: 5120, num_attention_heads: 40,
   vocab_size: 50272, max_position_embeddings: 2048, ffn_dim: 20480, word_embed_proj_dim: 5120}
deepseek-v3:
  {architectures: [DeepseekV3ForCausalLM], num_hidden_layers: 61, hidden_size: 7168,
   num_attention_heads: 128, vocab_size: 129280, max_position_embeddings: 163840, num_key_value_heads: 128,
   q_lora_rank: 1536, kv_lora_rank: 512, qk_rope_head_dim: 64, qk_nope_head_dim: 128,
   num_experts_per_tok: 8, n_shared_experts: 1, v_head_dim: 128, intermediate_size: 18432,
   n_routed_experts: 256, moe_intermediate_size: 2048, first_k_dense_replace: 3,
   quantization_config: {quant_method: fp8}}
kimi-k2:
  {architectures: [DeepseekV3ForCausalLM], num_hidden_layers: 61, hidden_size: 7168,
   num_attention_heads: 64, vocab_size: 163840, max_position_embeddings: 131072, num_key_value_heads: 64,
   q_lora_rank: 1536, kv_lora_rank: 512, qk_rope_head_dim: 64, qk_nope_head_dim: 128,
   num_experts_per_tok: 8, n_shared_experts: 1, v_head_dim: 128, intermediate_size: 18432,
   n_routed_experts: 384, moe_intermediate_size: 2048, first_k_dense_replace: 1,
   quantization_config: {quant_method: fp8}}
glm-4.5-air:
  {architectures: [Glm4MoeForCausalLM], num_hidden_layers: 46, hidden_size: 4096, num_attention_heads: 96,
   vocab_size: 151552, max_position_embeddings: 131072, num_key_value_heads: 8, intermediate_size: 10944,
   head_dim: 128, n_routed_experts: 128, n_shared_experts: 1, num_experts_per_tok: 8,
   moe_intermediate_size: 1408, first_k_dense_replace: 1, attention_bias: true, use_qk_norm: false}
glm-4.5:
  {architectures: [Glm4MoeForCausalLM], num_hidden_layers: 92, hidden_size: 5120, num_attention_heads: 96,
   vocab_size: 151552, max_position_embeddings: 131072, num_key_value_heads: 8, intermediate_size: 12288,
   head_dim: 128, n_routed_experts: 160, n_shared_experts: 1, num_experts_per_tok: 8,
   moe_intermediate_size: 1536, first_k_dense_replace: 3, attention_bias: true, use_qk_norm: true}
glm-5:
  {architectures: [GlmMoeDsaForCausalLM], num_hidden_layers: 78, hidden_size: 6144, num_attention_heads: 64,
   vocab_size: 154880, max_position_embeddings: 202752, num_key_value_heads: 64, q_lora_rank: 2048,
   kv_lora_rank: 512, qk_rope_head_dim: 64, qk_nope_head_dim: 192, num_experts_per_tok: 8,
   n_shared_experts: 1, v_head_dim: 256, intermediate_size: 12288, n_routed_experts: 256,
   moe_intermediate_size: 2048, index_n_heads: 32, index_head_dim: 128, index_topk: 2048,
   first_k_dense_replace: 3}
minimax-m2:
  {architectures: [MiniMaxM2ForCausalLM], num_hidden_layers: 62, hidden_size: 3072, num_attention_heads: 48,
   vocab_size: 200064, max_position_embeddings: 196608, num_key_value_heads: 8, intermediate_size: 1536,
   head_dim: 128, use_qk_norm: true, num_local_experts: 256, num_experts_per_tok: 8,
   shared_intermediate_size: 0, quantization_config: {quant_method: fp8}}
bloom-176b:
  {architectures: [BloomForCausalLM], n_layer: 70, n_embed: 14336, num_attention_heads: 112, vocab_size: 250880}
decilm-7b:
  {architectures: [DeciLMForCausalLM], num_hidden_layers: 32, hidden_size: 4096, num_attention_heads: 32,
   vocab_size: 32000, max_position_embeddings: 8192, intermediate_size: 14336, num_key_value_heads: 32,
   num_key_value_heads_per_layer: [4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1,
   1, 1, 1, 4]}
gemma-2-9b:
  {architectures: [Gemma2ForCausalLM], num_hidden_layers: 42, hidden_size: 3584, num_attention_heads: 16,
   num_key_value_heads: 8, head_dim: 256, vocab_size: 256000, max_position_embeddings: 8192,
   intermediate_size: 14336, sliding_window: 4096}
qwen3-next-80b-a3b:
  {architectures: [Qwen3NextForCausalLM], num_hidden_layers: 48, hidden_size: 2048, num_attention_heads: 16,
   num_key_value_heads: 2, head_dim: 256, vocab_size: 151936, max_position_embeddings: 262144,
   full_attention_interval: 4, intermediate_size: 5120, linear_conv_kernel_dim: 4, linear_key_head_dim: 128,
   linear_num_key_heads: 16, linear_num_value_heads: 32, linear_value_head_dim: 128, moe_intermediate_size: 512,
   num_experts: 512, num_experts_per_tok: 10, shared_expert_intermediate_size: 512, decoder_sparse_step: 1,
   mlp_only_layers: [], use_sliding_window: false}
qwen3.5-27b:
  {architectures: [Qwen3_5ForConditionalGeneration], text_config: {num_hidden_layers: 64, hidden_size: 5120,
   num_attention_heads: 24, num_key_value_heads: 4, head_dim: 256, vocab_size: 248320,
   max_position_embeddings: 262144, full_attention_interval: 4, intermediate_size: 17408, linear_key_head_dim: 128,
   linear_num_key_heads: 16, linear_num_value_heads: 48, linear_value_head_dim: 128}}
nemotron-nano-9b:
  {architectures: [NemotronHForCausalLM], num_hidden_layers: 56, hidden_size: 4480, num_attention_heads: 40,
   num_key_value_heads: 8, head_dim: 128, vocab_size: 131072, max_position_embeddings: 131072,
   intermediate_size: 15680, mamba_num_heads: 128, mamba_head_dim: 80, n_groups: 8, ssm_state_size: 128,
   conv_kernel: 4, hybrid_override_pattern: "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"}
nemotron-3-nano-30b-a3b:
  {architectures: [NemotronHForCausalLM], num_hidden_layers: 52, hidden_size: 2688, num_attention_heads: 32,
   num_key_value_heads: 2, head_dim: 128, vocab_size: 131072, max_position_embeddings: 262144,
   intermediate_size: 1856, mamba_num_heads: 64, mamba_head_dim: 64, n_groups: 8, ssm_state_size: 128,
   conv_kernel: 4, n_routed_experts: 128, num_experts_per_tok: 6, moe_intermediate_size: 1856,
   moe_shared_expert_intermediate_size: 3712, n_shared_experts: 1,
   hybrid_override_pattern: "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"}
gpt-oss-120b:
  {architectures: [GptOssForCausalLM], num_hidden_layers: 36, hidden_size: 2880, num_attention_heads: 64,
   vocab_size: 201088, max_position_embeddings: 131072, num_key_value_heads: 8, intermediate_size: 2880,
   head_dim: 64, num_local_experts: 128, num_experts_per_tok: 4, sliding_window: 128, attention_bias: true,
   quantization_config: {quant_method: mxfp4}}
""")


@pytest.mark.parametrize("key", PUBLISHED_CONFIGS)
def test_a_config_gives_the_catalogue_model(key: str, tmp_path: Path) -> None:
    """The whole model, hence every count; `name` and `source` say where it was found."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_CONFIGS[key]))
    expected = model(key)  # the config of a bf16 checkpoint cannot tell how another one is scaled
    here = {"key": key, "name": key, "source": "here", "fp8_blocks": expected.native_dtype == "fp8"}
    expected = msgspec.structs.replace(expected, **here)
    for path in (tmp_path, tmp_path / "config.json"):
        assert msgspec.structs.replace(model(str(path)), **here) == expected
    assert msgspec.structs.replace(from_hf_config(PUBLISHED_CONFIGS[key], key), **here) == expected


@pytest.mark.parametrize(
    ("key", "drop", "add"),
    [
        ("gpt-oss-120b", "", {"layer_types": ["sliding_attention", "full_attention"] * 18}),
        ("llama-4-scout", "", {"layer_types": ["chunked_attention"] * 36 + ["full_attention"] * 12}),
        ("glm-5", "first_k_dense_replace", {"mlp_layer_types": ["dense"] * 3 + ["sparse"] * 75}),
        ("glm-5", "", {"indexer_types": ["full"] * 78}),
        ("glm-5", "", {"layer_types": ["indexed_attention"] * 78}),
        ("qwen3-30b-a3b", "num_experts", {"n_routed_experts": 128}),
        ("llama-3.1-8b", "", {"sliding_window": None, "layer_types": ["full_attention"] * 32}),
        ("deepseek-v3", "", {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}),
    ],
)
def test_two_spellings_of_one_fact_agree(key: str, drop: str, add: dict[str, Any]) -> None:
    config = PUBLISHED_CONFIGS[key]
    other = {name: value for name, value in config.items() if name != drop} | add
    here = from_hf_config(config, key)
    assert msgspec.structs.replace(from_hf_config(other, key), fp8_blocks=here.fp8_blocks) == here


@pytest.mark.parametrize(
    ("key", "add", "expected"),
    [
        ("qwen2.5-7b", {"use_sliding_window": True, "sliding_window": 99, "max_window_layers": 20}, (99, 8)),
        ("qwen3-30b-a3b", {"mlp_only_layers": [0, 1, 2]}, 3),
        ("qwen3-30b-a3b", {"decoder_sparse_step": 2}, 24),
        ("qwen3-30b-a3b", {"moe_layers": [1, 3]}, 46),
        ("glm-5", {"index_topk_freq": 4, "index_skip_topk_offset": 2}, 21),
        ("glm-5", {"index_topk_pattern": "FSS" * 26}, 26),
    ],
)
def test_mixed_layers_are_counted(key: str, add: dict[str, Any], expected: object) -> None:
    read = from_hf_config(PUBLISHED_CONFIGS[key] | add, key)
    windowed = (read.window, read.window_layers)
    came = {"qwen2.5-7b": windowed, "glm-5": read.index_layers, "qwen3-30b-a3b": read.dense_layers}
    assert came[key] == expected


def test_llama_4_layers_without_positions_have_no_chunks() -> None:
    text = PUBLISHED_CONFIGS["llama-4-scout"]["text_config"] | {"no_rope_layers": [1, 1, 0] * 16}
    read = from_hf_config({"architectures": ["Llama4ForCausalLM"], **text}, "x")
    assert (read.window, read.window_layers) == (8192, 32)


def _quantized(weights: dict[str, Any]) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        (_quantized({"num_bits": 8, "type": "float"}), "fp8"),
        (_quantized({"num_bits": 8, "type": "int"}), "int8"),
        (_quantized({"num_bits": 4, "type": "float"}), "fp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "fp4"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)
def test_the_published_precision_is_read(quantization: dict[str, Any], dtype: str) -> None:
    config = PUBLISHED_CONFIGS["qwen3-8b"] | {"quantization_config": quantization}
    assert from_hf_config(config, "x").native_dtype == dtype


# --- what cannot be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ["LlamaForCausalM"]}, "nearest: LlamaForCausalLM"),
        ({"architectures": ["MambaForCausalLM"]}, "Supported: LlamaForCausalLM"),
        ({"architectures": None}, "names no 'architectures'"),
        ({"num_hidden_layers": None}, "no 'num_hidden_layers'"),
        ({"hidden_size": None, "hidden_sizes": 4096}, "it has hidden_sizes"),
        ({"hidden_size": "4096"}, "'hidden_size' is '4096'"),
        ({"hidden_size": True}, "expected a whole number"),
        ({"num_hidden_layers": 0}, "layers is 0"),
        ({"num_attention_heads": 0, "num_key_value_heads": 0}, "heads is 0"),
        ({"num_key_value_heads": 5}, "share 5 kv_heads"),
        ({"layer_types": ["linear_attention"] * 32}, "linear_attention"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization 'awq'"),
        ({"quantization_config": _quantized({"num_bits": 4, "type": "int"})}, "compressed-tensors"),
    ],
)
def test_a_config_that_cannot_be_read_says_why(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match="my-model") as caught:
        from_hf_config(PUBLISHED_CONFIGS["llama-3.1-8b"] | change, "my-model")
    assert said in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(st.data())
def test_a_damaged_config_is_a_model_or_bad_input(data: st.DataObject) -> None:
    config = PUBLISHED_CONFIGS[data.draw(st.sampled_from(sorted(PUBLISHED_CONFIGS)))]
    more = ("layer_types", "quantization_config", "moe_layers", "text_config")
    field = data.draw(st.sampled_from([*config, *more]))
    with contextlib.suppress(BadInput):
        from_hf_config(config | {field: data.draw(_JSON)}, "damaged").total_params()


def test_opt_350m_is_refused() -> None:
    with pytest.raises(BadInput, match="opt-350m alone"):
        from_hf_config(PUBLISHED_CONFIGS["opt-13b"] | {"word_embed_proj_dim": 512}, "opt")


def test_paths_that_hold_no_config(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no such file.*llama-3\.1-8b"):
        model("meta-llama/Llama-3.1-8B")
    for text, said in (("{", "not JSON"), ("[]", "expected a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BadInput, match=said):
            model(str(tmp_path))
