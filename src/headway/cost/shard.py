"""What one GPU of a replica holds and computes: the slowest pipeline stage, cut by tensor parallelism."""

from __future__ import annotations

from typing import NamedTuple

from headway.cost.replica import Replica
from headway.hardware import Gpu
from headway.model import DTYPE_BYTES, Model

__all__ = ["Precision", "Product", "Shard", "precision", "shard"]


class Precision(NamedTuple):
    """How a matrix product runs: `law` names its efficiency; bytes are of one weight and one activation."""

    law: str
    peak_flops: float
    weight_bytes: float
    input_bytes: float


class Product(NamedTuple):
    """`times` products of width `n` and depth `k` in a step; `low` when in the replica's own precision."""

    times: int
    n: int
    k: int
    low: bool = True


class Shard(NamedTuple):
    """One GPU's part of the slowest stage: its layers, heads and matrix products.

    A query attends all tokens in `full_layers` and at most `window` tokens in `window_layers`; `state_layers` keep a
    state of constant size. Sparse attention reads like a window of its top k tokens in every layer, while every token
    stays cached.
    """

    layers: int
    moe_layers: int
    full_layers: int
    window_layers: int
    state_layers: int
    window: int
    heads: int
    kv_heads: int
    products: tuple[Product, ...]
    stage_share: float  # of the model's layers, by parameters: 1 without a pipeline

    @property
    def attention_layers(self) -> int:
        """Layers that keep keys and values."""
        return self.layers - self.state_layers


def precision(dtype: str, card: Gpu, spec: Model) -> Precision:
    """Return how weights of `dtype` are multiplied: natively, or widened to bf16 for want of such units.

    Checkpoints in fp8 have a scale for each block of 128 x 128 weights where the model's vendor publishes them so.
    """
    size = DTYPE_BYTES[dtype]
    if dtype == "mxfp4" and "fp4" in card.peak_flops:
        return Precision("mxfp4", card.peak_flops["fp8"], size, 1.0)
    if dtype not in card.peak_flops:
        return Precision("weight-only", card.peak_flops["bf16"], size, 2.0)
    law = "fp8_block" if dtype == "fp8" and spec.fp8_blocks else dtype
    return Precision(law, card.peak_flops[dtype], size, min(2.0, size))


def shard(replica: Replica, spec: Model) -> Shard:
    """Return one GPU's part of the slowest stage of a resolved replica.

    Stages have ``layers / pp`` layers rounded up; the slowest is taken to have as many MoE layers as it can.
    KV heads are copied when there are more GPUs than heads.
    """
    layers = -(-spec.layers // replica.pp)
    moe_layers = min(layers, spec.moe_layers())
    window_layers = min(layers, -(-spec.window_layers * layers // spec.layers))
    window = spec.window
    if spec.sparse_topk:
        window, window_layers = spec.sparse_topk, layers
    state_layers = spec.state_layers * layers // spec.layers
    attention_layers = layers - state_layers
    return Shard(
        layers=layers,
        moe_layers=moe_layers,
        full_layers=attention_layers - window_layers,
        window_layers=window_layers,
        state_layers=state_layers,
        window=window,
        heads=spec.heads // replica.tp,
        kv_heads=max(1, spec.kv_heads // replica.tp) if spec.attention == "gqa" else 1,
        products=(
            *_attention(replica, spec, attention_layers),
            *_states(replica, spec, state_layers),
            *_mlp(replica, spec, layers, moe_layers),
        ),
        stage_share=_stage_share(spec, layers, moe_layers),
    )


def _attention(replica: Replica, spec: Model, layers: int) -> list[Product]:
    heads = spec.heads // replica.tp
    if spec.attention == "gqa":
        kv_heads = max(1, spec.kv_heads // replica.tp)
        width, queries = spec.head_dim, heads * (1 + spec.attention_gate)
        return [
            Product(layers, (queries + 2 * kv_heads) * width, spec.hidden),
            Product(layers, spec.hidden, heads * width),
        ]
    latent = spec.kv_lora_rank + spec.qk_rope_head_dim
    query = heads * spec.head_dim
    down = [Product(layers, latent + (spec.q_lora_rank or query), spec.hidden)]
    if spec.q_lora_rank:
        down.append(Product(layers, query, spec.q_lora_rank))
    if spec.index_layers:
        index = -(-spec.index_layers * layers // spec.layers)
        down.append(Product(index, spec.index_heads * spec.index_head_dim, spec.q_lora_rank))
    return [
        *down,
        Product(layers, heads * (spec.qk_nope_head_dim + spec.v_head_dim), spec.kv_lora_rank),
        Product(layers, spec.hidden, heads * spec.v_head_dim),
    ]


def _states(replica: Replica, spec: Model, layers: int) -> list[Product]:
    """The two projections of a layer that keeps a state, cut by heads."""
    if not layers:
        return []
    values = -(-spec.state_heads * spec.state_head_dim // replica.tp)
    into = -(-(spec.state_linear_params() // spec.hidden - spec.state_heads * spec.state_head_dim) // replica.tp)
    return [Product(layers, into, spec.hidden), Product(layers, spec.hidden, values)]


def _mlp(replica: Replica, spec: Model, layers: int, moe_layers: int) -> list[Product]:
    products = []
    dense_layers = -(-spec.mlp_layers() * layers // spec.layers) - moe_layers
    if dense_layers > 0 and spec.intermediate:
        products += _mlp_pair(dense_layers, spec, spec.intermediate, replica.tp)
    if moe_layers:
        products.append(Product(moe_layers, spec.experts, spec.hidden, low=False))
        if spec.shared_intermediate:
            products += _mlp_pair(moe_layers, spec, spec.shared_intermediate, replica.tp)
    return products


def _mlp_pair(count: int, spec: Model, width: int, tp: int) -> list[Product]:
    part = -(-width // tp)
    return [
        Product(count, (2 if spec.gated_mlp else 1) * part, spec.hidden),
        Product(count, spec.hidden, part),
    ]


def _stage_share(spec: Model, layers: int, moe_layers: int) -> float:
    if spec.state_layers or spec.bare_layers:  # mixed evenly over the stages
        return layers / spec.layers

    def params(count: int, moe: int) -> int:
        experts = spec.experts * spec.expert_params() + spec.shared_expert_params_per_layer()
        dense = (count - moe) * spec.dense_mlp_params_per_layer()
        return (
            count * spec.attention_params_per_layer()
            + dense
            + moe * (experts + spec.router_params_per_layer())
        )

    return params(layers, moe_layers) / params(spec.layers, spec.moe_layers())
