"""From a replica to its step table: every operator's law, summed over the layers of the slowest stage."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from headway.cost.efficiency import Efficiency, Law, efficiency
from headway.cost.memory import memory_fit
from headway.cost.physics import Cost, Floats, all_reduce, experts, gemm, power_sum, stream
from headway.cost.power import dynamic_joules
from headway.cost.provenance import provenance
from headway.cost.replica import Replica, resolve
from headway.cost.shard import Precision, Shard, precision, shard
from headway.cost.steptable import StepTable
from headway.hardware import Gpu
from headway.model import Model

__all__ = ["compile_replica"]

_ELEMENTWISE_KERNELS: Final = 5  # a layer's two norms with residual, rotation, activation, cache write
_SAMPLER_S: Final = 25e-6  # LLMServingSim's public vLLM timings: 25 us at one sequence ...
_SAMPLER_SEQUENCE_S: Final = 0.5e-6  # ... to 118 us at 192
_UNEQUAL_CONTEXTS: Final = 1.03  # a batch of unequal contexts against one of equal ones, same sum
_SEND_S: Final = 10e-6  # launch of a send and of a receive between stages


class _Site(NamedTuple):
    """Everything the laws of one replica need."""

    replica: Replica
    spec: Model
    card: Gpu
    part: Shard
    laws: Efficiency
    low: Precision  # linear layers
    expert: Precision
    plain: Precision  # router and output head: bf16


def compile_replica(replica: Replica) -> StepTable:
    """Return the step table of a replica; what it costs is a few hundred small array operations.

    Curves over tokens are computed on knots (every integer to 32, then four to an octave) and filled in
    linearly.

    Raises:
        UnknownName, BadInput, DoesNotFit: see `memory_fit`.
    """
    spec, card = resolve(replica)
    fit = memory_fit(replica)
    laws, part = efficiency(card), shard(replica, spec)
    linear = "bf16" if replica.weights == "mxfp4" and spec.experts else replica.weights
    low, expert, plain = (precision(dtype, card) for dtype in (linear, replica.weights, "bf16"))
    site = _Site(replica, spec, card, part, laws, low, expert, plain)

    curves = _curves(site)
    joules = [dynamic_joules(laws.power, card, curve.cost, curve.gpus) for curve in curves]
    budget, seqs = replica.engine.max_batched_tokens, replica.engine.max_seqs
    return StepTable(
        **{f"{curve.name}_s": curve.filled(curve.cost.seconds) for curve in curves},
        **{f"{curve.name}_j": curve.filled(values) for curve, values in zip(curves, joules, strict=True)},
        p2p_s=_frozen(_between_stages(site, np.arange(budget + 1.0))),
        idle_watts=card.idle_watts * replica.gpus,
        gpus=replica.gpus,
        stages=replica.pp,
        max_batched_tokens=budget,
        max_seqs=seqs,
        kv_blocks=fit.kv_blocks,
        block_tokens=replica.engine.block_tokens,
        window=part.window,
        window_group=fit.window_group,
        window_blocks=fit.window_blocks,
        max_context=spec.max_context,
        provenance=provenance(card, laws, _laws_used(site)),
    )


class _Curve(NamedTuple):
    """A pair of fields of the table: its cost on knots or as one number, and how many GPUs spend it."""

    name: str
    cost: Cost
    gpus: int
    knots: Floats | None = None  # None: a scalar
    last: int = 0

    def filled(self, values: Floats) -> Any:
        """Return the field's value: a scalar, or an entry for every integer from 0 to `last`."""
        if self.knots is None:
            return float(values)
        spread = values if values.ndim else np.full_like(self.knots, float(values))
        return _frozen(np.interp(np.arange(self.last + 1.0), self.knots, spread))


def _curves(site: _Site) -> list[_Curve]:
    budget, seqs = site.replica.engine.max_batched_tokens, site.replica.engine.max_seqs
    by_token, by_seq = _knots(budget), _knots(seqs)
    context, window = _decode_token(site)
    base, area, window_area = _prefill(site)
    gpus, last_stage = site.replica.gpus, site.replica.tp
    return [
        _Curve("linear", _linear(site, by_token), gpus, by_token, budget),
        _Curve("seq", _sequences(site, by_seq), last_stage, by_seq, seqs),
        _Curve("decode", _decode(site, by_seq), gpus, by_seq, seqs),
        _Curve("decode_ctx", context, gpus, by_seq, seqs),
        _Curve("decode_window", window, gpus, by_seq, seqs),
        _Curve("prefill_base", base, gpus),
        _Curve("prefill_area", area, gpus),
        _Curve("prefill_window_area", window_area, gpus),
    ]


def _laws_used(site: _Site) -> dict[str, Law]:
    laws, card = site.laws, site.card
    used: dict[str, Law] = {f"gemm.{name}": laws.gemm[name] for name in sorted({"bf16", _gemm_law(site.low)})}
    if site.part.moe_layers:
        used[f"experts.{site.expert.law}"] = laws.experts[site.expert.law]
    if site.replica.tp > 1:
        used[f"collective.{card.link_kind}"] = laws.collective[card.link_kind]
    return used | {"decode": laws.decode, "prefill": laws.prefill, "host": laws.host, "power": laws.power}


def _gemm_law(how: Precision) -> str:
    """The law of a product: weights in a precision the GPU lacks are widened and multiplied in bf16."""
    return "bf16" if how.law == "weight-only" else how.law


# --- operator groups ----------------------------------------------------------------------------------------


def _linear(site: _Site, tokens: Floats) -> Cost:
    """Everything that depends on the tokens of a step alone."""
    card, part, laws, host = site.card, site.part, site.laws, site.laws.host
    costs = []
    for product in part.products:
        how = site.low if product.low else site.plain
        law, sizes = laws.gemm[_gemm_law(how)], (how.weight_bytes, how.input_bytes)
        cost = gemm(law, card, how.peak_flops, tokens, product.n, product.k, sizes)
        costs.append(cost.times(product.times))
    if part.moe_layers:
        costs.append(_experts(site, tokens).times(part.moe_layers))
    costs.append(_prefill_tokens(site, tokens))
    moved = stream(card, _ELEMENTWISE_KERNELS, host.kernel_s, _elementwise_bytes(site) * tokens)
    costs.append(moved.times(part.layers))
    if site.replica.tp > 1:
        reduced = all_reduce(
            laws.collective[card.link_kind], card, site.replica.tp, 2.0 * site.spec.hidden * tokens
        )
        costs.append(reduced.times(2 * part.layers))
    total = _sum(costs)
    seconds = total.seconds + part.layers * (host.layer_s + laws.decode.launch_s) + host.step_s
    return Cost(np.where(tokens > 0.0, seconds, 0.0), total.flop_s, total.byte_s)


def _experts(site: _Site, tokens: Floats) -> Cost:
    spec, how = site.spec, site.expert
    params = spec.expert_params() / site.replica.tp
    routed = tokens * spec.experts_per_token
    law = site.laws.experts[how.law]
    return experts(law, site.card, how.peak_flops, routed, spec.experts, params, how.weight_bytes)


def _elementwise_bytes(site: _Site) -> float:
    """Bytes a token moves through a layer's element-wise kernels: read and written once each, in bf16."""
    spec, tp = site.spec, site.replica.tp
    norms = 2 * 4 * spec.hidden
    rotation = 2 * (site.part.heads + 2 * site.part.kv_heads) * spec.head_dim
    activation = 3 * (spec.intermediate or spec.shared_intermediate) / tp
    return 2.0 * (norms + rotation + activation)


def _sequences(site: _Site, sequences: Floats) -> Cost:
    """Output head, gathering of logits, sampler and the host's work per sequence."""
    spec, card, laws, tp = site.spec, site.card, site.laws, site.replica.tp
    width = -(-spec.vocab // tp)
    head = gemm(laws.gemm["bf16"], card, site.plain.peak_flops, sequences, width, spec.hidden, (2.0, 2.0))
    seconds = head.seconds + _SAMPLER_S + (_SAMPLER_SEQUENCE_S + laws.host.sequence_s) * sequences
    if tp > 1:
        law = laws.collective[card.link_kind]
        seconds = seconds + 0.5 * all_reduce(law, card, tp, 2.0 * spec.vocab * sequences).seconds
    return Cost(np.where(sequences > 0.0, seconds, 0.0), head.flop_s, head.byte_s)


def _decode(site: _Site, sequences: Floats) -> Cost:
    """Attention of decoding sequences, less the KV bytes: a block per sequence and KV head."""
    seconds = site.part.layers * site.laws.decode.head_s * site.part.kv_heads / site.card.sm_count * sequences
    return Cost(seconds, np.zeros_like(seconds), np.zeros_like(seconds))


def _decode_token(site: _Site) -> tuple[Cost, Cost]:
    """One token of context: in the full-attention layers, and in the windowed ones."""
    spec, part = site.spec, site.part
    size = 1.0 if site.replica.kv == "fp8" else 2.0
    if spec.attention == "mla":
        values = spec.kv_lora_rank + spec.qk_rope_head_dim
        flops = 2.0 * part.heads * (values + spec.kv_lora_rank)
    else:
        values = 2 * part.kv_heads * spec.head_dim
        flops = 4.0 * part.heads * spec.head_dim
    layer = _attention_token(site, flops, values * size)
    full, window = layer.times(part.full_layers), layer.times(part.window_layers)
    if spec.index_layers:  # the indexer scores every cached token in fp8, whatever attention then reads
        index_layers = -(-spec.index_layers * part.layers // spec.layers)
        key_bytes = spec.index_bytes_per_token() / spec.index_layers
        index = _attention_token(site, 2.0 * spec.index_heads * spec.index_head_dim, key_bytes)
        full = _sum([full, index.times(index_layers)])
    return full, window


def _attention_token(site: _Site, flops: float, kv_bytes: float) -> Cost:
    law, card = site.laws.decode, site.card
    share = law.memory_fp8 if site.replica.kv == "fp8" else law.memory
    flop_s = np.asarray(flops / card.peak_flops["bf16"])
    byte_s = np.asarray(kv_bytes / card.memory_bytes_per_s)
    seconds = power_sum(flop_s / site.laws.prefill.compute, byte_s / share, 2.0) * _UNEQUAL_CONTEXTS
    return Cost(seconds, flop_s, byte_s)


def _pair_flops(site: _Site) -> float:
    """FLOPs of one query with one attended token, all of a GPU's heads."""
    spec = site.spec
    return 2.0 * site.part.heads * (spec.head_dim + (spec.v_head_dim or spec.head_dim))


def _prefill_tokens(site: _Site, tokens: Floats) -> Cost:
    """What a token costs in attention whatever its context: tiles half empty, queries and outputs moved."""
    law, part = site.laws.prefill, site.part
    flop_s = np.zeros_like(tokens)
    pairs = law.tile_tokens * tokens * _pair_flops(site) / site.card.peak_flops["bf16"]
    return Cost(pairs / law.compute, flop_s, flop_s).times(part.layers)


def _prefill(site: _Site) -> tuple[Cost, Cost, Cost]:
    """One chunk; one query-token pair in the full-attention layers; one in the windowed layers."""
    law, part, card = site.laws.prefill, site.part, site.card
    nothing = np.zeros(())
    base_s = np.asarray(part.layers * law.head_s * part.heads / card.sm_count)
    flop_s = np.asarray(_pair_flops(site) / card.peak_flops["bf16"])
    pair = Cost(flop_s / law.compute, flop_s, nothing)
    full, window = pair.times(part.full_layers), pair.times(part.window_layers)
    if site.spec.index_layers:
        index_layers = -(-site.spec.index_layers * part.layers // site.spec.layers)
        index_s = np.asarray(2.0 * site.spec.index_heads * site.spec.index_head_dim / card.peak_flops["bf16"])
        full = _sum([full, Cost(index_s / law.compute, index_s, nothing).times(index_layers)])
    return Cost(base_s, nothing, nothing), full, window


def _between_stages(site: _Site, tokens: Floats) -> Floats:
    """Hidden state and residual of a step's tokens to the next stage, in one node when all stages fit."""
    replica, card = site.replica, site.card
    if replica.pp == 1:
        return np.zeros_like(tokens)
    inside = replica.gpus <= card.gpus_per_node
    latency_s, bandwidth = (
        (card.link_latency_s, card.link_bytes_per_s)
        if inside
        else (card.rdma_latency_s, card.rdma_bytes_per_s)
    )
    return np.asarray(_SEND_S + latency_s + 2.0 * 2.0 * site.spec.hidden / bandwidth * tokens)


# --- arrays -------------------------------------------------------------------------------------------------


def _sum(costs: list[Cost]) -> Cost:
    return Cost(*(np.asarray(sum(parts)) for parts in zip(*costs, strict=True)))


def _knots(last: int) -> Floats:
    octaves = np.exp2(np.arange(5.25, np.log2(max(last, 1)) + 0.25, 0.25))
    knots = np.unique(np.rint(np.concatenate([np.arange(33.0), octaves, [last]])))
    return knots[knots <= last]


def _frozen(values: Floats) -> Floats:
    values.flags.writeable = False
    return values
