"""From a replica to its step table: every operator's law, summed over the layers of the slowest stage."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from headway.cost.calibration import calibrated, mismatch, shifted
from headway.cost.drafting import drafter, folded, speculating
from headway.cost.efficiency import Efficiency, Law, efficiency
from headway.cost.engines import EngineFacts, HostTerms, engine_facts
from headway.cost.memory import MemoryFit, memory_fit
from headway.cost.physics import (
    Cost,
    Floats,
    all_reduce,
    decode_attention,
    dispatch,
    experts,
    gather,
    gemm,
    prefill_attention,
    stream,
)
from headway.cost.power import resident_watts, serving, spend, waiting_watts
from headway.cost.provenance import provenance
from headway.cost.replica import Replica, limits, resolve
from headway.cost.shard import Precision, Shard, precision, shard
from headway.cost.steptable import StepTable
from headway.errors import BadInput
from headway.hardware import Gpu, gpu
from headway.model import DTYPE_BYTES, FILE_DTYPES, Model

__all__ = ["compile_replica"]

_ELEMENTWISE_KERNELS: Final = 5  # a layer's two norms with residual, rotation, activation, cache write
_ELEMENTWISE_S: Final = 2e-6  # one of their launches
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
    engine: EngineFacts
    low: Precision  # linear layers
    expert: Precision
    plain: Precision  # router and output head: bf16
    queries: int = 1  # of a decoding sequence in a step: more when drafted tokens are verified


def compile_replica(
    replica: Replica, *, laws: Efficiency | None = None, host: HostTerms | None = None
) -> StepTable:
    """Return the step table of a replica; what it costs is a few hundred small array operations.

    Curves over tokens are computed on knots (every integer to 32, then four to an octave) and filled in
    linearly. `laws` and `host` take the place of those of its GPU and of its engine, to try others.

    Raises:
        UnknownName, BadInput, DoesNotFit: see `memory_fit`.
    """
    spec, card = resolve(replica)
    fit, speculation = memory_fit(replica), replica.engine.speculation
    if speculation is None:
        return _calibrated(replica, spec, fit, laws, host)
    terms = host or engine_facts(replica.engine.name, replica.engine.version, card.key).host
    own, draft = drafter(replica, spec, card), None
    if own is not None:  # its layers' launches; no scheduler runs between the tokens of a draft
        draft = _table(*own, fit, laws, msgspec.structs.replace(terms, step_s=0.0, sequence_s=0.0, intake_s=0.0))
    wide = _calibrated(speculating(replica), spec, fit, laws, host, speculation.verified)
    if replica.calibration is not None:
        terms = shifted(terms, {"sequence_s": replica.calibration.sequence_s.value})
    return folded(speculation, replica.engine.max_seqs, wide, draft, terms.sequence_s)


def _calibrated(
    replica: Replica, spec: Model, fit: MemoryFit, laws: Efficiency | None, host: HostTerms | None, queries: int = 1
) -> StepTable:
    """The table of a replica by its calibration, if it has one."""
    calibration, engine = replica.calibration, replica.engine
    if calibration is None:
        return _table(replica, spec, fit, laws, host, queries)
    differs = mismatch(calibration, replica.gpu, engine.name)
    if differs:
        raise BadInput(f"the calibration does not hold here: {differs}; leave it out, or measure again there")
    own = host or engine_facts(engine.name, engine.version, replica.gpu).host
    return calibrated(calibration, own, lambda terms: _table(replica, spec, fit, laws, terms, queries))


def _table(
    replica: Replica, spec: Model, fit: MemoryFit, laws: Efficiency | None, host: HostTerms | None, queries: int = 1
) -> StepTable:
    """The table of a replica that neither is calibrated nor speculates; `queries` as in `_Site`."""
    card = gpu(replica.gpu)
    laws, part = laws or efficiency(card, replica.engine.name), shard(replica, spec)
    linear = "bf16" if replica.weights == "mxfp4" and spec.experts else replica.weights
    low, expert, plain = (precision(dtype, card, spec) for dtype in (linear, replica.weights, "bf16"))
    facts = engine_facts(replica.engine.name, replica.engine.version, card.key)
    if host is not None:
        facts = msgspec.structs.replace(facts, host=host)
    site = _Site(replica, spec, card, part, laws, facts, low, expert, plain, queries)

    curves = _curves(site)
    throttle, power = (replica.cap_watts, replica.clock_mhz), serving(laws.power, spec.experts > 0, replica.media)
    idle_watts = waiting_watts(power, card, *throttle)
    spent = [spend(power, card, curve.cost, curve.gpus, *throttle) for curve in curves]
    budget, seqs = replica.engine.max_batched_tokens, replica.engine.max_seqs
    return StepTable(
        **{f"{curve.name}_s": curve.filled(each.seconds) for curve, each in zip(curves, spent, strict=True)},
        **{f"{curve.name}_j": curve.filled(each.joules) for curve, each in zip(curves, spent, strict=True)},
        p2p_s=_frozen(_between_stages(site, np.arange(budget + 1.0))),
        idle_watts=idle_watts * replica.rank_gpus,
        resident_watts=resident_watts(power, card, *throttle) * replica.rank_gpus,
        gpus=replica.rank_gpus,
        stages=replica.pp,
        max_batched_tokens=budget,
        max_seqs=seqs,
        kv_blocks=fit.kv_blocks,
        block_tokens=replica.engine.block_tokens,
        window=part.window or 2 * bool(part.state_layers),  # states: pages beside the first block, whatever follows
        window_group=fit.window_group,
        window_blocks=fit.window_blocks,
        max_context=spec.max_context,
        prefill_alone=facts.prefill_alone,
        poll_steps=replica.engine.poll_steps,
        ahead=facts.ahead if replica.engine.ahead is None else replica.engine.ahead,
        align_steps=replica.engine.align_steps,
        gather_steps=replica.engine.gather_steps,
        prompt_step_s=_prompt_step_s(site),
        intake_s=facts.host.intake_s,
        ranks=replica.dp,
        provenance=provenance(card, laws, _laws_used(site), facts),
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
    gpus, last_stage = site.replica.rank_gpus, site.replica.tp
    curves = [
        _Curve("decode", _decode(site, by_seq), gpus, by_seq, seqs),
        _Curve("decode_ctx", context, gpus, by_seq, seqs),
        _Curve("decode_window", window, gpus, by_seq, seqs),
        _Curve("prefill_base", base, gpus),
        _Curve("prefill_area", area, gpus),
        _Curve("prefill_window_area", window_area, gpus),
    ]
    if site.replica.dp > 1:
        of_all = _knots(site.replica.dp * budget)
        shared = _Curve("shared", _shared(site, of_all), site.replica.gpus, of_all, site.replica.dp * budget)
        curves.append(shared)
    return [
        _Curve("linear", _linear(site, by_token), gpus, by_token, budget),
        _Curve("seq", _sequences(site, by_seq), last_stage, by_seq, seqs),
        *(curve._replace(cost=_run(site.engine.host.kernels, [curve.cost])) for curve in curves),
    ]


def _prompt_step_s(site: _Site) -> float:
    """What the host adds to a step that holds a prompt."""
    host, part = site.engine.host, site.part
    layer_s = host.prompt_layer_s + (host.prompt_mla_layer_s if site.spec.attention == "mla" else 0.0)
    states_s = part.state_layers * host.prompt_state_layer_s
    media_s = {"image": host.image_s, "video": host.video_s}.get(site.replica.media, 0.0)
    return part.layers * layer_s + states_s + media_s


def _laws_used(site: _Site) -> dict[str, Law]:
    laws, card = site.laws, site.card
    used: dict[str, Law] = {f"gemm.{name}": laws.gemm[name] for name in sorted({"bf16", _gemm_law(site.low)})}
    if site.part.moe_layers:
        used[f"experts.{site.expert.law}"] = laws.experts[site.expert.law]
    if site.replica.tp > 1:
        used[f"collective.{card.link_kind}"] = laws.collective[card.link_kind]
    if site.spec.attention == "mla":
        used["mla"] = laws.mla
    power = laws.power
    if site.queries > 1 or any(limits(site.replica)):  # no watts were measured there
        power = msgspec.structs.replace(power, kind="modelled")
    return used | {"decode": laws.decode, "prefill": laws.prefill, "host": site.engine.host, "power": power}


def _gemm_law(how: Precision) -> str:
    """The law of a product: weights in a precision the GPU lacks are widened and multiplied in bf16."""
    return "bf16" if how.law == "weight-only" else how.law


# --- operator groups ----------------------------------------------------------------------------------------


def _linear(site: _Site, tokens: Floats) -> Cost:
    """Everything that depends on the tokens of a step alone."""
    card, part, laws, host, replica = site.card, site.part, site.laws, site.engine.host, site.replica
    costs = []
    for product in part.products:
        how = site.low if product.low else site.plain
        law, sizes = laws.gemm[_gemm_law(how)], (how.weight_bytes, how.input_bytes)
        cost = gemm(law, card, how.peak_flops, tokens, product.n, product.k, sizes)
        costs.append(cost.times(product.times))
    if part.moe_layers and replica.dp == 1:
        costs.append(_experts(site, tokens).times(part.moe_layers))
    costs.append(_prefill_tokens(site, tokens))
    moved = stream(card, _ELEMENTWISE_KERNELS, _ELEMENTWISE_S, _elementwise_bytes(site) * tokens)
    costs.append(moved.times(part.layers))
    collective, hidden_bytes = laws.collective[card.link_kind], 2.0 * site.spec.hidden * tokens
    if replica.tp > 1:
        reduced = all_reduce(collective, card, replica.tp, hidden_bytes)
        mixers_and_mlps = part.layers + -(-site.spec.mlp_layers() * part.layers // site.spec.layers)
        costs.append(reduced.times(mixers_and_mlps - (part.moe_layers if replica.dp > 1 else 0)))
    attention = laws.mla if site.spec.attention == "mla" else laws.decode
    costs.append(Cost(np.full_like(tokens, part.layers * attention.launch_s), *np.zeros((2, len(tokens)))))
    total = _run(host.kernels, costs)
    moe_layer_s = host.moe_layer_s + (host.fp8_experts_s if replica.weights == "fp8" else 0.0)
    layers_s = part.layers * host.layer_s + part.moe_layers * moe_layer_s + part.state_layers * host.state_layer_s
    host_s = layers_s + host.step_s + (host.rank_step_s if replica.dp > 1 else 0.0)
    seconds = np.maximum(total.seconds + host_s, _run(0.0, costs).seconds)  # launches that overlap, see `HostTerms`
    return Cost(np.where(tokens > 0.0, seconds, 0.0), total.flop_s, total.byte_s)


def _shared(site: _Site, tokens: Floats) -> Cost:
    """What data-parallel ranks do together for the tokens of all: the experts, and the exchange around them."""
    total = _sum([_experts(site, tokens), _exchange(site, tokens)]).times(site.part.moe_layers)
    return Cost(np.where(tokens > 0.0, total.seconds, 0.0), total.flop_s, total.byte_s)


def _exchange(site: _Site, tokens: Floats) -> Cost:
    """Tokens of all ranks to the experts and back, the faster way: gathered and scattered whole, or as copies."""
    spec, laws, gpus = site.spec, site.laws, site.replica.tp * site.replica.dp
    whole = 2.0 * spec.hidden * tokens
    ways = [_sum([gather(laws.gathers[op], site.card, gpus, whole) for op in ("all_gather", "reduce_scatter")])]
    if laws.dispatch and site.replica.ep > 1:
        topk = spec.experts_per_token
        ways.append(dispatch(laws.dispatch, site.card, gpus, tokens / gpus, topk, spec.hidden))
    return Cost(*(np.minimum.reduce(parts) for parts in zip(*ways, strict=True)))


def _experts(site: _Site, tokens: Floats) -> Cost:
    """One layer's share of the experts on one GPU, for the tokens of all ranks."""
    spec, how, replica = site.spec, site.expert, site.replica
    params = spec.expert_params() * replica.ep / (replica.tp * replica.dp)
    routed = tokens * spec.experts_per_token / replica.ep
    law = site.laws.experts[how.law]
    held = -(-spec.experts // replica.ep)
    return experts(law, site.card, how.peak_flops, routed, held, params, how.weight_bytes, replica.ep)


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
    size = DTYPE_BYTES[site.replica.weights] if site.replica.weights in FILE_DTYPES else 2.0
    head = gemm(laws.gemm["bf16"], card, site.plain.peak_flops, sequences, width, spec.hidden, (size, 2.0))
    host = site.engine.host
    others_s = _SAMPLER_S + _SAMPLER_SEQUENCE_S * sequences
    if tp > 1:
        law = laws.collective[card.link_kind]
        others_s = others_s + 0.5 * all_reduce(law, card, tp, 2.0 * spec.vocab * sequences).seconds
    seconds = _run(host.kernels, [head]).seconds + host.kernels * others_s + host.sequence_s * sequences
    return Cost(np.where(sequences > 0.0, seconds, 0.0), head.flop_s, head.byte_s)


def _decode(site: _Site, sequences: Floats) -> Cost:
    """Attention of decoding sequences, less the KV bytes: a block per sequence and KV head; states read and written."""
    part, card = site.part, site.card
    block_s, _ = _attention_token(site, 0.0, 0.0)
    seconds, nothing = part.attention_layers * block_s * sequences, np.zeros_like(sequences)
    if not part.state_layers:
        return Cost(seconds, nothing, nothing)
    states = site.spec.state_bytes() * part.state_layers / (site.spec.state_layers * site.replica.tp)
    passes = 1.0 + site.queries  # read once, written after every token, so that a draft can be taken back
    byte_s = passes * states * sequences / card.memory_bytes_per_s
    return Cost(seconds + byte_s / site.laws.decode.memory, nothing, byte_s)


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
    _, layer = _attention_token(site, flops, values * size)
    full, window = layer.times(part.full_layers), layer.times(part.window_layers)
    if spec.index_layers:  # the indexer scores every cached token in fp8, whatever attention then reads
        index_layers = -(-spec.index_layers * part.layers // spec.layers)
        key_bytes = spec.index_bytes_per_token() / spec.index_layers
        _, index = _attention_token(site, 2.0 * spec.index_heads * spec.index_head_dim, key_bytes)
        full = _sum([full, index.times(index_layers)])
    return full, window


def _attention_token(site: _Site, flops: float, kv_bytes: float) -> tuple[float, Cost]:
    """Seconds of a decoding sequence in one layer, and the cost of a token of its context."""
    spec, part, laws = site.spec, site.part, site.laws
    law, kv_heads = (laws.mla, 1) if spec.attention == "mla" else (laws.decode, part.kv_heads)
    heads, fp8 = (part.heads, kv_heads), site.replica.kv == "fp8"
    block_s, token = decode_attention(law, site.card, heads, spec.head_dim, (site.queries * flops, kv_bytes), fp8)
    if site.queries > 1 and law is laws.decode:  # several queries read KV once; their products run as in prefill
        token = token._replace(seconds=np.maximum(token.seconds, token.flop_s / laws.prefill.compute))
    return block_s, Cost(token.seconds * _UNEQUAL_CONTEXTS, token.flop_s, token.byte_s)


def _pair(site: _Site) -> tuple[float, float, Cost]:
    """Seconds of a chunk and of a token, and the cost of a query with an attended token, in one layer."""
    spec = site.spec
    flops = 2.0 * site.part.heads * (spec.head_dim + (spec.v_head_dim or spec.head_dim))
    law = site.laws.mla if spec.attention == "mla" else site.laws.prefill
    return prefill_attention(law, site.card, site.part.heads, spec.head_dim, flops)


def _prefill_tokens(site: _Site, tokens: Floats) -> Cost:
    """What a token costs in attention whatever its context: tiles half empty, queries and outputs moved."""
    spec, part, replica = site.spec, site.part, site.replica
    _, token_s, _ = _pair(site)
    nothing = np.zeros_like(tokens)
    flop_s = part.state_layers * spec.state_flops_per_token() / replica.tp * tokens / site.card.peak_flops["bf16"]
    recurrence_s = flop_s / site.laws.prefill.compute
    return Cost(part.attention_layers * token_s * tokens + recurrence_s, flop_s, nothing)


def _prefill(site: _Site) -> tuple[Cost, Cost, Cost]:
    """One chunk; one query-token pair in the full-attention layers; one in the windowed layers."""
    law, part, card = site.laws.prefill, site.part, site.card
    nothing = np.zeros(())
    chunk_s, _, pair = _pair(site)
    full, window = pair.times(part.full_layers), pair.times(part.window_layers)
    if site.spec.index_layers:
        index_layers = -(-site.spec.index_layers * part.layers // site.spec.layers)
        index_s = np.asarray(2.0 * site.spec.index_heads * site.spec.index_head_dim / card.peak_flops["bf16"])
        full = _sum([full, Cost(index_s / law.compute, index_s, nothing).times(index_layers)])
    return Cost(np.asarray(part.attention_layers * chunk_s), nothing, nothing), full, window


def _between_stages(site: _Site, tokens: Floats) -> Floats:
    """Hidden state and residual of a step's tokens to the next stage, in one node when all stages fit."""
    replica, card = site.replica, site.card
    if replica.pp == 1:
        return np.zeros_like(tokens)
    inside = replica.gpus <= card.gpus_per_node and not replica.apart
    latency_s, bandwidth = (
        (card.link_latency_s, card.link_bytes_per_s)
        if inside
        else (card.rdma_latency_s, card.rdma_bytes_per_s)
    )
    return np.asarray(_SEND_S + latency_s + 2.0 * 2.0 * site.spec.hidden / bandwidth * tokens)


# --- arrays -------------------------------------------------------------------------------------------------


def _run(kernels: float, costs: list[Cost]) -> Cost:
    """Operators one after another, each times the engine's factor, none faster than the data sheet lets it be."""
    floors = (np.maximum(cost.flop_s, cost.byte_s) for cost in costs)
    return _sum([c._replace(seconds=np.maximum(kernels * c.seconds, f)) for c, f in zip(costs, floors, strict=True)])


def _sum(costs: list[Cost]) -> Cost:
    return Cost(*(np.asarray(sum(parts)) for parts in zip(*costs, strict=True)))


def _knots(last: int) -> Floats:
    octaves = np.exp2(np.arange(5.25, np.log2(max(last, 1)) + 0.25, 0.25))
    knots = np.unique(np.rint(np.concatenate([np.arange(33.0), octaves, [last]])))
    return knots[knots <= last]


def _frozen(values: Floats) -> Floats:
    values.flags.writeable = False
    return values
