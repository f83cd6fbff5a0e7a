"""Reads the `config.json` that Hugging Face repositories publish beside the weights.

Fields are read by name, whatever the class: most families differ only in what their config leaves out. That
is the table `_FAMILIES`: what a missing field means there, and what the code of the family fixes without any
field. Both follow the configuration and modeling files of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from headway.errors import BadInput, UnknownName, nearest
from headway.model.spec import Model
from headway.specs import from_mapping

_Facts = Mapping[str, Any]

_BIASES: Final[_Facts] = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
_BLOOM_FACTS: Final[_Facts] = {"gated_mlp": False, "norm_bias": True, "embedding_norm": True, **_BIASES}
_GEMMA3: Final[tuple[_Facts, _Facts]] = (
    {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window_pattern": 6,
        "tie_word_embeddings": True,
    },
    {"qk_norm": "head", "norms_per_layer": 4},
)
_LLAMA4: Final[tuple[_Facts, _Facts]] = ({"n_shared_experts": 1, "interleave_moe_layer_step": 1}, {})
_DEEPSEEK: Final[tuple[_Facts, _Facts]] = ({}, {"router_bias": True, "active_vocab": "head"})
_GLM: Final[_Facts] = {"router_bias": True, "active_vocab": "none"}

_QWEN_DELTA: Final[tuple[_Facts, _Facts]] = ({}, {"attention_gate": True, "qk_norm": "head", "state_kind": "delta"})

# architecture: (config fields that may be missing, fields of Model that no config field states)
_FAMILIES: Final[dict[str, tuple[_Facts, _Facts]]] = {
    "LlamaForCausalLM": ({}, {}),
    "MistralForCausalLM": ({}, {}),
    "MixtralForCausalLM": ({}, {}),
    "Qwen2ForCausalLM": ({}, {"qkv_bias": True}),
    "Qwen3ForCausalLM": ({}, {"qk_norm": "head"}),
    "Qwen3MoeForCausalLM": ({}, {"qk_norm": "head"}),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Gemma2ForCausalLM": (
        {"tie_word_embeddings": True, "sliding_window_pattern": 2},
        {"norms_per_layer": 4},
    ),
    "Phi3ForCausalLM": ({}, {}),
    "BloomForCausalLM": ({"tie_word_embeddings": True, "seq_length": 2048}, _BLOOM_FACTS),
    "DeciLMForCausalLM": ({}, {}),
    "OPTForCausalLM": ({"tie_word_embeddings": True}, {"gated_mlp": False, "norm_bias": True, **_BIASES}),
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "DeepseekV32ForCausalLM": _DEEPSEEK,
    "Glm4MoeForCausalLM": ({"use_qk_norm": False}, {"qk_norm": "head", "o_bias": False, **_GLM}),
    "Glm4MoeLiteForCausalLM": ({"first_k_dense_replace": 1}, _GLM),
    "GlmMoeDsaForCausalLM": ({"first_k_dense_replace": 3}, _GLM),
    "GptOssForCausalLM": (
        {"attention_bias": True, "sliding_window_pattern": 2},
        {"attention_sinks": True, "expert_bias": True, "router_bias": True, "active_vocab": "head"},
    ),
    "MiniMaxM2ForCausalLM": ({}, {"qk_norm": "full", "router_bias": True, "active_vocab": "none"}),
    "Qwen3NextForCausalLM": _QWEN_DELTA,
    "Qwen3_5ForCausalLM": _QWEN_DELTA,
    "Qwen3_5ForConditionalGeneration": _QWEN_DELTA,
    "Qwen3_5MoeForCausalLM": _QWEN_DELTA,
    "Qwen3_5MoeForConditionalGeneration": _QWEN_DELTA,
    "NemotronHForCausalLM": ({}, {"gated_mlp": False, "state_kind": "mamba2"}),
    "Llama4ForCausalLM": _LLAMA4,
    "Llama4ForConditionalGeneration": _LLAMA4,
}

_CONTEXT = ("max_position_embeddings", "seq_length")
_SHARED_WIDTHS = (
    "shared_intermediate_size",
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
)
_LAYERS_MAX = 10_000  # a longer count is a mistake, and would be walked layer by layer
_LIMITED_LAYERS = {"sliding_attention", "chunked_attention"}
_FULL_LAYERS = {"full_attention", "indexed_attention"}


def from_hf_config(config: Mapping[str, Any], name: str) -> Model:
    """Return the model that a Hugging Face `config.json` describes; of a multimodal one, the text model.

    Raises:
        BadInput: an architecture that is not supported, a field that is missing or that no model can have, a
            quantization without a known size per value.
    """
    architecture = _architecture(config, name)
    defaults, facts = _FAMILIES[architecture]
    fields = _Fields(name, defaults, config, _Fields(name, config).mapping("text_config"))
    if architecture.startswith("OPT"):
        facts = {**facts, **_opt_facts(fields)}
    if architecture.startswith("Bloom"):
        facts = {**facts, "intermediate": 4 * fields.count("hidden_size", "n_embed")}
    read = {"key": name, "name": name, "source": f"config of {name}", **_common(fields), **_moe(fields)}
    read |= _attention(fields) | _states(fields)
    if fields.get("use_qk_norm") is False:
        facts = {key: value for key, value in facts.items() if key != "qk_norm"}
    return from_mapping(Model, {**read, **facts}, name)


class _Fields:
    """The fields of a config under their several spellings; null counts as missing."""

    def __init__(self, name: str, *layers: Mapping[str, Any]) -> None:
        self.name = name
        self.data = {key: value for layer in layers for key, value in layer.items() if value is not None}

    def get(self, *spellings: str) -> Any:
        return next((self.data[key] for key in spellings if key in self.data), None)

    def count(self, *spellings: str, default: int | None = None) -> int:
        value = self.get(*spellings)
        if value is None:
            if default is not None:
                return default
            near = nearest(spellings[0], self.data)
            hint = f" (it has {', '.join(near)})" if near else ""
            raise BadInput(
                f"{self.name}: the config has no {' or '.join(map(repr, spellings))}{hint}; "
                "use the config.json as published beside the weights"
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            self._refuse(spellings, "a whole number of at least 0")
        return int(value)

    def items(self, *spellings: str) -> list[str | int] | None:
        value = self.get(*spellings)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(item, str | int) for item in value)
        ):
            self._refuse(spellings, "a list with one entry per layer")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.get(key)
        if not isinstance(value, dict | None):
            self._refuse((key,), "a JSON object")
        return value or {}

    def _refuse(self, spellings: tuple[str, ...], expected: str) -> NoReturn:
        key = next(key for key in spellings if key in self.data)
        raise BadInput(f"{self.name}: {key!r} is {self.data[key]!r:.80}, expected {expected}")


def _architecture(config: Mapping[str, Any], name: str) -> str:
    came = config.get("architectures")
    if not isinstance(came, list) or not came:
        raise BadInput(
            f"{name}: the config names no 'architectures'; use the config.json as published beside the "
            f"weights, of one of {', '.join(_FAMILIES)}"
        )
    known = [architecture for architecture in _FAMILIES if architecture in came]
    if not known:
        raise BadInput(
            f"{name}: {UnknownName('architecture', came[0], _FAMILIES)}. Supported: {', '.join(_FAMILIES)}. "
            "If the model equals one of these layer by layer, put that name into 'architectures' of a copy"
        )
    return str(known[0])


def _common(fields: _Fields) -> dict[str, Any]:
    hidden, heads = fields.count("hidden_size", "n_embed"), fields.count("num_attention_heads", "n_head")
    return {
        "layers": _layers(fields),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": fields.count("num_key_value_heads", default=heads),
        "head_dim": fields.count("head_dim", default=hidden // max(heads, 1)),
        "vocab": fields.count("vocab_size"),
        "max_context": fields.count(*_CONTEXT),
        "tied_embeddings": bool(fields.get("tie_word_embeddings")),
        "qkv_bias": bool(fields.get("attention_bias")),
        "o_bias": bool(fields.get("attention_bias")),
        "mlp_bias": bool(fields.get("mlp_bias")),
        "native_dtype": _native_dtype(fields),
        "fp8_blocks": fields.mapping("quantization_config").get("quant_method") == "fp8",
    }


def _layers(fields: _Fields) -> int:
    layers = fields.count("num_hidden_layers", "n_layer")
    if layers > _LAYERS_MAX:
        raise BadInput(f"{fields.name}: 'num_hidden_layers' is {layers}, expected at most {_LAYERS_MAX}")
    return layers


def _moe(fields: _Fields) -> dict[str, Any]:
    experts = fields.count("num_local_experts", "n_routed_experts", "num_experts", default=0)
    if not experts:
        default = 0 if fields.get("n_embed") else None  # BLOOM's is fixed by its width
        return {"intermediate": fields.count("intermediate_size", "ffn_dim", default=default)}
    dense = _dense_layers(fields)
    width = fields.count("moe_intermediate_size", "intermediate_size")
    shared = fields.count("n_shared_experts", default=0) * width
    return {
        "intermediate": fields.count("intermediate_size_mlp", "intermediate_size") if dense else 0,
        "experts": experts,
        "experts_per_token": fields.count("num_experts_per_tok", "experts_per_token"),
        "expert_intermediate": width,
        "shared_intermediate": fields.count(*_SHARED_WIDTHS, default=shared),
        "shared_gate": fields.get("shared_expert_intermediate_size") is not None,
        "dense_layers": dense,
    }


def _dense_layers(fields: _Fields) -> int:
    """How many layers of a mixture of experts are dense, by whichever of the five ways the config says it."""
    layers = _layers(fields)
    kinds, moe_layers = fields.items("mlp_layer_types"), fields.items("moe_layers")
    if kinds is not None:
        return kinds.count("dense")
    if moe_layers is not None:
        return layers - len(set(moe_layers) & set(range(layers)))
    first = fields.count("first_k_dense_replace", default=0)
    step = max(fields.count("decoder_sparse_step", "interleave_moe_layer_step", default=1), 1)
    listed = set(fields.items("mlp_only_layers") or ())
    return sum(i < first or i in listed or (i + 1) % step != 0 for i in range(layers))


def _attention(fields: _Fields) -> dict[str, Any]:
    if fields.get("kv_lora_rank") is None:
        if fields.get("linear_num_value_heads", "hybrid_override_pattern") is not None:
            return {}
        window, window_layers = _window(fields)
        return {"window": window, "window_layers": window_layers, **_uneven_heads(fields)}
    nope, rope = fields.count("qk_nope_head_dim"), fields.count("qk_rope_head_dim")
    read = {
        "attention": "mla",
        "kv_heads": fields.count("num_attention_heads"),
        "head_dim": nope + rope,
        "q_lora_rank": fields.count("q_lora_rank", default=0),
        "kv_lora_rank": fields.count("kv_lora_rank"),
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": fields.count("v_head_dim"),
    }
    if fields.get("index_topk") is not None:
        read |= {
            "index_heads": fields.count("index_n_heads"),
            "index_head_dim": fields.count("index_head_dim"),
            "index_layers": _index_layers(fields),
            "sparse_topk": fields.count("index_topk"),
        }
    return read


def _uneven_heads(fields: _Fields) -> dict[str, Any]:
    """KV heads that differ from layer to layer (DeciLM): their sum, and the number that is nearest to most."""
    listed = fields.items("num_key_value_heads_per_layer")
    if not listed:
        return {}
    numbers = [number for number in listed if isinstance(number, int) and 0 < number < 2**31]
    if len(numbers) != _layers(fields):
        raise BadInput(f"{fields.name}: 'num_key_value_heads_per_layer' needs one whole number per layer")
    heads = fields.count("num_attention_heads")
    most = next((n for n in range(sum(numbers) // len(numbers), 0, -1) if heads % n == 0), 1)
    return {"kv_heads": most, "kv_heads_total": sum(numbers)}


def _states(fields: _Fields) -> dict[str, Any]:
    """Layers that keep a state of constant size: by their kinds or interval (Qwen), or by a pattern (Nemotron-H)."""
    pattern = fields.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return _pattern_states(fields, pattern)
    if fields.get("linear_num_value_heads") is None:
        return {}
    layers, kinds = _layers(fields), fields.items("layer_types")
    every = max(fields.count("full_attention_interval", default=4), 1)
    return {
        "state_layers": kinds.count("linear_attention") if kinds is not None else layers - layers // every,
        "state_heads": fields.count("linear_num_value_heads"),
        "state_head_dim": fields.count("linear_value_head_dim"),
        "state_keys": fields.count("linear_num_key_heads"),
        "state_key_dim": fields.count("linear_key_head_dim"),
        "state_conv": fields.count("linear_conv_kernel_dim", default=4),
    }


def _pattern_states(fields: _Fields, pattern: str) -> dict[str, Any]:
    """A letter for each block: M mixes with a state, * attends, - is an MLP, E routes to experts."""
    if len(pattern) > _LAYERS_MAX or not set(pattern) <= set("M*-E"):
        raise BadInput(f"{fields.name}: 'hybrid_override_pattern' is {pattern!r:.80}, expected letters out of M*-E")
    mixers, dense = pattern.count("M") + pattern.count("*"), pattern.count("-")
    return {
        "layers": mixers,
        "bare_layers": mixers - dense - pattern.count("E"),
        "dense_layers": dense if "E" in pattern else 0,
        "router_bias": "E" in pattern,
        "state_layers": pattern.count("M"),
        "state_heads": fields.count("mamba_num_heads"),
        "state_head_dim": fields.count("mamba_head_dim"),
        "state_keys": fields.count("n_groups"),
        "state_key_dim": fields.count("ssm_state_size"),
        "state_conv": fields.count("conv_kernel", default=4),
    }


def _index_layers(fields: _Fields) -> int:
    """How many layers run an indexer of their own; the others reuse the choice of the layer before."""
    layers, kinds = _layers(fields), fields.items("indexer_types")
    pattern = fields.get("index_topk_pattern")
    if kinds is not None or isinstance(pattern, str):
        return sum(kind in ("full", "F") for kind in kinds or pattern)
    every = max(fields.count("index_topk_freq", default=1), 1)
    offset = fields.count("index_skip_topk_offset", default=2)
    return sum(max(i - offset + 1, 0) % every == 0 for i in range(layers))


def _window(fields: _Fields) -> tuple[int, int]:
    """The window and how many layers have it; one that is never shorter than the context is none."""
    layers, kinds = _layers(fields), fields.items("layer_types")
    if kinds is not None and (strange := set(kinds) - _LIMITED_LAYERS - _FULL_LAYERS):
        raise BadInput(
            f"{fields.name}: 'layer_types' has {', '.join(sorted(map(str, strange)))}; supported are "
            f"{', '.join(sorted(_LIMITED_LAYERS | _FULL_LAYERS))}"
        )
    chunk = fields.count("attention_chunk_size", default=0)
    window = chunk or fields.count("sliding_window", default=0)
    if fields.get("use_sliding_window") is False or window >= fields.count(*_CONTEXT):
        return 0, 0
    if kinds is not None:
        limited = sum(kind in _LIMITED_LAYERS for kind in kinds)
    elif chunk:
        rotary = fields.items("no_rope_layers")  # 1 marks a layer with positions, hence with chunks
        every = max(fields.count("no_rope_layer_interval", default=4), 1)
        limited = rotary.count(1) if rotary else layers - layers // every
    elif fields.get("use_sliding_window"):
        limited = layers - min(fields.count("max_window_layers", default=0), layers)
    else:  # one full layer ends each group of `pattern` layers
        pattern = fields.count("sliding_window_pattern", default=layers + 1)
        limited = layers - layers // max(pattern, 1)
    return (window, limited) if window and limited else (0, 0)


def _opt_facts(fields: _Fields) -> dict[str, Any]:
    hidden, embedded = fields.count("hidden_size"), fields.count("word_embed_proj_dim", default=0)
    if embedded not in (0, hidden) or fields.get("do_layer_norm_before") is False:
        raise BadInput(
            f"{fields.name}: word_embed_proj_dim {embedded} differs from hidden_size {hidden} or norms come "
            "after the block, as in opt-350m alone; use another size of OPT"
        )
    return {"learned_positions": fields.count("max_position_embeddings") + 2}  # OPT offsets positions by 2


def _native_dtype(fields: _Fields) -> str:
    """The dtype of the linear layers; unquantized checkpoints are served in 16 bits."""
    quantization = fields.mapping("quantization_config")
    if not quantization:
        return "bf16"
    method = str(quantization.get("quant_method", "")).lower()
    algorithm = str(quantization.get("quant_algo", method)).lower()
    groups = _Fields(fields.name, _Fields(fields.name, quantization).mapping("config_groups"))
    weights = [_Fields(fields.name, groups.mapping(group)).mapping("weights") for group in groups.data]
    kinds = {f"{weight.get('type')}{weight.get('num_bits')}" for weight in weights}
    by_name = {"fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4", "nvfp4": "fp4"}
    by_kind = {"float8": "fp8", "int8": "int8", "float4": "fp4"}
    found = by_name.get(algorithm) or (by_kind.get(kinds.pop()) if len(kinds) == 1 else None)
    if found is None:
        raise BadInput(
            f"{fields.name}: quantization {method or 'without quant_method'!r} is not known; known are "
            f"{', '.join(by_name)}, compressed-tensors of 8 bits or 4-bit floats. Use the config of the "
            "unquantized model and choose the precision in the deployment"
        )
    return found
