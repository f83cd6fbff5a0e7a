"""The architecture of one language model, and everything that can be counted from it.

Counts are exact integers: parameters of the text model as an engine loads it, without vision towers and
without the extra layers that some checkpoints carry for speculative decoding. Shapes follow the public model
definitions of Hugging Face transformers, against which every catalogue entry was counted once.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from headway.errors import BadInput, UnknownName
from headway.specs import Spec

DTYPE_BYTES: Final[dict[str, float]] = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5625,  # NVFP4: 4 bits and one fp8 scale per 16 values
    "mxfp4": 0.53125,  # OCP MXFP4: 4 bits and one 8-bit scale per 32 values
    "int4": 0.53125,  # AWQ, GPTQ: 4 bits, a 16-bit scale and a zero point per 128 values, rounded up
    "mlx_4bit": 0.5625,  # MLX: 4 bits, a 16-bit scale and a 16-bit offset per 64 values
    "mlx_8bit": 1.0625,
    # GGUF files: bits per weight of a whole Llama-3.1-8B (llama.cpp, tools/quantize/README.md), rounded to 1/64
    # byte; q4_0 and q4_1, which it does not list, by their blocks and a q6_k head.
    "q2_k": 0.390625,
    "q3_k_s": 0.453125,
    "q3_k_m": 0.5,
    "q3_k_l": 0.53125,
    "q4_0": 0.578125,
    "q4_1": 0.640625,
    "q4_k_s": 0.578125,
    "q4_k_m": 0.609375,
    "q5_k_s": 0.703125,
    "q5_k_m": 0.71875,
    "q6_k": 0.828125,
    "q8_0": 1.0625,
    "iq3_xxs": 0.40625,
    "iq4_xs": 0.5625,
    "iq4_nl": 0.59375,
}
"""Bytes of one stored value, scales included. Multiples of 1/64, so byte counts below 2**47 are exact."""

FILE_DTYPES: Final = frozenset(name for name in DTYPE_BYTES if name.startswith(("q", "iq", "mlx_")))
"""Formats of files in which vocabulary tables and everything else are quantised as well."""

_INDEX_BLOCK = 128  # values of an index key per fp32 scale; the key is fp8 (vLLM, indexer of DeepSeek-V3.2)


def _value_bytes(count: int, dtype: str) -> int:
    try:
        return math.ceil(count * DTYPE_BYTES[dtype])
    except KeyError:
        raise UnknownName("dtype", dtype, DTYPE_BYTES) from None


class Model(Spec):
    """One architecture. Widths are in values, `window`, `sparse_topk` and `max_context` in tokens.

    Raises `BadInput` when the fields contradict each other.
    """

    key: str
    name: str
    source: str  # where the facts below are published
    layers: int
    hidden: int
    heads: int
    kv_heads: int  # MLA: the number of heads, since the cached latent is shared by all of them
    head_dim: int  # width of a query and key head; MLA: qk_nope_head_dim + qk_rope_head_dim
    vocab: int
    max_context: int
    intermediate: int = 0  # width of the dense MLP; 0 when every layer is MoE
    gated_mlp: bool = True  # three matrices (gate, up, down) rather than two
    tied_embeddings: bool = False  # the output head is the embedding table
    native_dtype: str = "bf16"  # of the linear layers in the published checkpoint
    fp8_blocks: bool = False  # its vendor's fp8 checkpoint has a scale for each block of 128 x 128 weights
    active_vocab: Literal["both", "head", "none"] = "both"  # see `active_params`

    attention: Literal["gqa", "mla"] = "gqa"
    window: int = 0  # sliding or chunked attention; 0 is none
    window_layers: int = 0  # how many layers use it; the others attend to everything
    q_lora_rank: int = 0  # MLA; 0 is an uncompressed query projection
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    index_heads: int = 0  # sparse attention: the indexer that scores every cached token
    index_head_dim: int = 0
    index_layers: int = 0  # layers with an indexer of their own; the others reuse the one before
    sparse_topk: int = 0  # tokens a query attends to at most; 0 is all. Every token stays cached
    kv_heads_total: int = 0  # of all attention layers, where they differ; 0: `kv_heads` in each
    attention_gate: bool = False  # a gate on the attention output, as wide as the query

    state_layers: int = 0  # layers that keep a state of constant size in place of keys and values
    state_kind: Literal["delta", "mamba2"] = "delta"  # gated delta rule (Qwen3-Next) or Mamba-2
    state_heads: int = 0
    state_head_dim: int = 0  # values per head
    state_keys: int = 0  # key heads of the delta rule, groups of Mamba-2
    state_key_dim: int = 0  # width of a key; the state holds head_dim * key_dim numbers per head
    state_conv: int = 4  # taps of the convolution over values, keys and queries

    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0  # width of all shared experts of one layer together
    shared_gate: bool = False  # one gate value for the shared experts
    dense_layers: int = 0  # of a mixture of experts: how many layers with an MLP are not MoE
    bare_layers: int = 0  # layers without an MLP, and without its norm

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    expert_bias: bool = False
    router_bias: bool = False  # one value per expert, be it a bias or a load-balancing correction
    qk_norm: Literal["none", "head", "full"] = "none"  # weights: none, one head wide, all heads wide
    attention_sinks: bool = False  # one learned logit per head
    norms_per_layer: int = 2
    norm_bias: bool = False
    embedding_norm: bool = False  # a norm right after the embedding
    learned_positions: int = 0  # rows of a learned position table

    def __post_init__(self) -> None:
        """Refuse what no model can be."""
        positive = {"layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "max_context"}
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if isinstance(value, int) and value < (field in positive):
                self._refuse(f"{field} is {value}, at least {int(field in positive)} is needed")
        if self.heads % self.kv_heads:
            self._refuse(f"{self.heads} heads cannot share {self.kv_heads} kv_heads evenly")
        if self.window_layers > self.attention_layers() or bool(self.window) != bool(self.window_layers):
            self._refuse(f"window {self.window} in {self.window_layers} of {self.attention_layers()} layers")
        if self.attention == "mla" and self.head_dim != self.qk_nope_head_dim + self.qk_rope_head_dim:
            self._refuse(f"head_dim is {self.head_dim}, MLA needs qk_nope_head_dim + qk_rope_head_dim")
        if any((width > 0) != (self.attention == "mla") for width in (self.kv_lora_rank, self.v_head_dim)):
            self._refuse(f"{self.attention} attention and kv_lora_rank {self.kv_lora_rank}: only MLA has one")
        if not bool(self.experts) <= self.experts_per_token <= self.experts:
            self._refuse(f"{self.experts_per_token} of {self.experts} experts per token")
        if bool(self.experts) != bool(self.expert_intermediate):
            self._refuse(f"{self.experts} experts of width {self.expert_intermediate}")
        if self.dense_layers > self.mlp_layers() or (self.dense_mlp_layers() and not self.intermediate):
            self._refuse(f"{self.dense_mlp_layers()} dense layers of width {self.intermediate}")
        if self.index_layers > self.layers or bool(self.index_layers) != bool(self.sparse_topk):
            self._refuse(f"{self.index_layers} index_layers with sparse_topk {self.sparse_topk}")
        if self.native_dtype not in DTYPE_BYTES:
            raise UnknownName("dtype", self.native_dtype, DTYPE_BYTES)
        self._check_states()

    def _check_states(self) -> None:
        shape = (self.state_heads, self.state_head_dim, self.state_keys, self.state_key_dim)
        if any((width > 0) != (self.state_layers > 0) for width in shape) or self.state_layers >= self.layers:
            self._refuse(f"{self.state_layers} of {self.layers} layers with states of {shape}")
        if self.state_layers and self.attention == "mla":
            self._refuse("states beside latent attention")
        if self.bare_layers > self.layers or (self.bare_layers and self.norms_per_layer != 2):
            self._refuse(f"{self.bare_layers} of {self.layers} layers without an MLP")
        if self.kv_heads_total and self.attention == "mla":
            self._refuse("kv_heads_total is of grouped-query attention")

    # --- layers ---------------------------------------------------------------------------------------------

    def attention_layers(self) -> int:
        """Return how many layers keep keys and values."""
        return self.layers - self.state_layers

    def mlp_layers(self) -> int:
        """Return how many layers have an MLP, dense or of experts."""
        return self.layers - self.bare_layers

    def moe_layers(self) -> int:
        """Return how many layers route to experts."""
        return self.mlp_layers() - self.dense_layers if self.experts else 0

    def dense_mlp_layers(self) -> int:
        """Return how many layers have a dense MLP."""
        return self.mlp_layers() - self.moe_layers()

    # --- parameters -----------------------------------------------------------------------------------------

    def attention_params_per_layer(self) -> int:
        """Return the parameters of one attention block: projections, biases, query-key norms, sinks, indexer.

        With an indexer in only some layers (`index_layers`) this is one of those; where layers differ in their KV
        heads, one with `kv_heads`.
        """
        return self._attention_linear() + self._attention_small() + sum(self._indexer())

    def dense_mlp_params_per_layer(self) -> int:
        """Return the parameters of the MLP of one dense layer."""
        return self._mlp_linear(self.intermediate) + self._mlp_bias(self.intermediate, self.mlp_bias)

    def expert_params(self) -> int:
        """Return the parameters of one routed expert of one layer."""
        width = self.expert_intermediate
        return self._mlp_linear(width) + self._mlp_bias(width, self.expert_bias)

    def shared_expert_params_per_layer(self) -> int:
        """Return the parameters of all shared experts of one MoE layer, with their gate."""
        width = self.shared_intermediate
        return self._mlp_linear(width) + self._mlp_bias(width, self.mlp_bias) + self.hidden * self.shared_gate

    def router_params_per_layer(self) -> int:
        """Return the parameters of the router of one MoE layer."""
        return self.experts * (self.hidden + self.router_bias)

    def head_params(self) -> int:
        """Return the parameters of the output projection, also when it is the embedding table."""
        return self.vocab * self.hidden

    def embedding_params(self) -> int:
        """Return the parameters of the token and the learned position tables."""
        return (self.vocab + self.learned_positions) * self.hidden

    def state_params_per_layer(self) -> int:
        """Return the parameters of one layer that keeps a state: projections, convolution, decay, norm."""
        return self.state_linear_params() + self._state_small()

    def state_linear_params(self) -> int:
        """Return the parameters of the two projections of one layer that keeps a state."""
        values = self.state_heads * self.state_head_dim
        gates = self.state_heads * (2 if self.state_kind == "delta" else 1)  # the delta rule has a rate and a decay
        return self.hidden * (self._state_width() + values + gates) + values * self.hidden

    def total_params(self) -> int:
        """Return all parameters; a tied embedding counts once."""
        return self._linear_params() + self._expert_linear_params() + self._unquantized_params()

    def active_params(self) -> int:
        """Return the parameters a token uses, by the convention of the vendor's own figure.

        Routed experts that are not chosen never count. Of the two vocabulary tables, `active_vocab` says what
        the vendor counts: "both" (Qwen, Mistral, Meta), "head" (OpenAI; DeepSeek and Moonshot, as their
        figures show) or "none" (Zhipu; MiniMax, as its figure shows). Of a dense model all are active.
        """
        idle_experts = self.experts - self.experts_per_token
        active = self.total_params() - self.moe_layers() * idle_experts * self.expert_params()
        tables = 1 if self.tied_embeddings else 2
        counted = {"both": tables, "head": 1, "none": 0}[self.active_vocab]
        return active - (tables - counted) * self.vocab * self.hidden

    # --- bytes ----------------------------------------------------------------------------------------------

    def weight_bytes(self, dtype: str) -> int:
        """Return the bytes of all weights with the linear layers and experts in `dtype`.

        Embeddings, output head, norms, biases and routers stay at 2 bytes, as engines keep them. "mxfp4"
        applies to the routed experts alone where there are any, which is how such checkpoints are published. The
        formats of `FILE_DTYPES` are means over a whole file and count for everything.

        Raises:
            UnknownName: a dtype that is not in `DTYPE_BYTES`.
        """
        if dtype in FILE_DTYPES:
            return _value_bytes(self.total_params(), dtype)
        rest_dtype = "bf16" if dtype == "mxfp4" and self.experts else dtype
        experts = _value_bytes(self._expert_linear_params(), dtype)
        linear = _value_bytes(self._linear_params(), rest_dtype)
        return experts + linear + _value_bytes(self._unquantized_params(), "bf16")

    def kv_bytes_per_token(self, dtype: str = "bf16") -> int:
        """Return the bytes one cached token takes in all layers while no window has dropped it."""
        return self.kv_full_bytes_per_token(dtype) + self.kv_window_bytes_per_token(dtype)

    def kv_full_bytes_per_token(self, dtype: str = "bf16") -> int:
        """Return the bytes one token takes in the layers that attend to everything.

        GQA keeps a key and a value per KV head; MLA keeps one latent and one rotary key for all heads. An
        indexer adds its own key, `index_bytes_per_token`.
        """
        if self.kv_heads_total:
            heads = self.kv_heads_total - self.window_layers * self.kv_heads
            return _value_bytes(2 * heads * self.head_dim, dtype)
        full_layers = self.attention_layers() - self.window_layers
        return self._kv_layer_bytes(dtype) * full_layers + self.index_bytes_per_token()

    def kv_window_bytes_per_token(self, dtype: str = "bf16") -> int:
        """Return the bytes one token takes in the windowed layers, while it is inside the window."""
        return self._kv_layer_bytes(dtype) * self.window_layers

    def index_bytes_per_token(self) -> int:
        """Return the part of the full bytes that holds the keys of sparse-attention indexers (always fp8)."""
        return self.index_layers * (self.index_head_dim + 4 * -(-self.index_head_dim // _INDEX_BLOCK))

    def kv_bytes(self, context_tokens: int, dtype: str = "bf16") -> int:
        """Return the bytes of one sequence's cache at a context of `context_tokens`, windows applied."""
        full, windowed = self.kv_full_bytes_per_token(dtype), self.kv_window_bytes_per_token(dtype)
        return full * context_tokens + windowed * min(context_tokens, self.window)

    def state_bytes(self) -> int:
        """Return the bytes of one sequence's states, whatever its context: none without `state_layers`.

        Each head holds a matrix of fp32, and the convolution its last inputs in bf16, as vLLM keeps them.
        """
        matrix = 4 * self.state_heads * self.state_head_dim * self.state_key_dim
        taps = 2 * self._state_width() * (self.state_conv - 1)
        return self.state_layers * (matrix + taps)

    def state_flops_per_token(self) -> int:
        """Return the FLOPs of one token in the recurrence of one layer: decay, update and reading of each head."""
        return 6 * self.state_heads * self.state_head_dim * self.state_key_dim

    # --- parts ----------------------------------------------------------------------------------------------

    def _attention_linear(self) -> int:
        out = self.heads * (self.v_head_dim or self.head_dim) * self.hidden
        if self.attention == "gqa":
            queries = self.heads * (1 + self.attention_gate)
            return self.hidden * (queries + 2 * self.kv_heads) * self.head_dim + out
        query = self.heads * self.head_dim
        q = self.q_lora_rank * (self.hidden + query) if self.q_lora_rank else self.hidden * query
        down = self.hidden * (self.kv_lora_rank + self.qk_rope_head_dim)
        return q + down + self.kv_lora_rank * self.heads * (self.qk_nope_head_dim + self.v_head_dim) + out

    def _attention_small(self) -> int:
        if self.attention == "mla":
            return self.q_lora_rank + self.kv_lora_rank  # norms of the two latents
        wide = (self.heads + self.kv_heads) * self.head_dim
        norms = {"none": 0, "head": 2 * self.head_dim, "full": wide}[self.qk_norm]
        bias = (wide + self.kv_heads * self.head_dim) * self.qkv_bias + self.hidden * self.o_bias
        return norms + bias + self.heads * self.attention_sinks

    def _state_width(self) -> int:
        """What the convolution runs over: values of all heads, and keys and queries of all groups."""
        return self.state_heads * self.state_head_dim + 2 * self.state_keys * self.state_key_dim

    def _state_small(self) -> int:
        """Convolution, time step, decay and norm; Mamba-2 adds biases, a skip, and a norm over all heads."""
        if self.state_kind == "delta":
            return self._state_width() * self.state_conv + 2 * self.state_heads + self.state_head_dim
        values = self.state_heads * self.state_head_dim
        return self._state_width() * (self.state_conv + 1) + 3 * self.state_heads + values

    def _indexer(self) -> tuple[int, int]:
        """Linear and other parameters of one indexer: query, key and weight projections; a norm with bias."""
        if not self.index_layers:
            return 0, 0
        width = self.index_heads * self.index_head_dim
        linear = self.q_lora_rank * width + self.hidden * (self.index_head_dim + self.index_heads)
        return linear, 2 * self.index_head_dim

    def _mlp_linear(self, width: int) -> int:
        return (3 if self.gated_mlp else 2) * self.hidden * width

    def _mlp_bias(self, width: int, present: bool) -> int:
        return ((2 if self.gated_mlp else 1) * width + self.hidden) * (present and width > 0)

    def _linear_params(self) -> int:
        """Attention and dense or shared MLP matrices of all layers."""
        dense = self.dense_mlp_layers() * self._mlp_linear(self.intermediate)
        shared = self.moe_layers() * self._mlp_linear(self.shared_intermediate)
        attention = self.attention_layers() * self._attention_linear() + self.index_layers * self._indexer()[0]
        if self.kv_heads_total:
            fewer = self.attention_layers() * self.kv_heads - self.kv_heads_total
            attention -= 2 * fewer * self.head_dim * self.hidden
        return attention + self.state_layers * self.state_linear_params() + dense + shared

    def _expert_linear_params(self) -> int:
        return self.moe_layers() * self.experts * self._mlp_linear(self.expert_intermediate)

    def _unquantized_params(self) -> int:
        """Vocabulary tables, norms, biases and routers of all layers."""
        moe = self.moe_layers()
        norms = self.layers * self.norms_per_layer - self.bare_layers + 1 + self.embedding_norm
        norms *= self.hidden * (1 + self.norm_bias)
        attention = self.attention_layers() * self._attention_small() + self.index_layers * self._indexer()[1]
        attention += self.state_layers * self._state_small()
        experts = self.experts * self._mlp_bias(self.expert_intermediate, self.expert_bias)
        shared = self._mlp_bias(self.shared_intermediate, self.mlp_bias) + self.hidden * self.shared_gate
        mlp = self.dense_mlp_layers() * self._mlp_bias(self.intermediate, self.mlp_bias)
        mlp += moe * (experts + shared + self.router_params_per_layer())
        head = 0 if self.tied_embeddings else self.head_params()
        return self.embedding_params() + head + norms + attention + mlp

    def _kv_layer_bytes(self, dtype: str) -> int:
        if self.attention == "mla":
            return _value_bytes(self.kv_lora_rank + self.qk_rope_head_dim, dtype)
        return _value_bytes(2 * self.kv_heads * self.head_dim, dtype)

    def _refuse(self, what: str) -> None:
        raise BadInput(f"model {self.key!r}: {what}; compare the model's published config.json")
