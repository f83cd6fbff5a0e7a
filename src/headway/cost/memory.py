"""Does a replica fit, and how many KV pages are left: counted per GPU of the fullest pipeline stage."""

from __future__ import annotations

from typing import Final

import msgspec

from headway.cost.drafting import drafter
from headway.cost.replica import Replica, resolve, tp_degrees
from headway.cost.shard import Shard, shard
from headway.cost.speculation import MTP
from headway.errors import BadInput, DoesNotFit
from headway.hardware import Gpu, gpu, gpu_keys
from headway.model import DTYPE_BYTES, FILE_DTYPES, Model
from headway.specs import Spec

__all__ = ["MemoryFit", "kv_shard_bytes", "memory_fit"]

_GIB: Final = 1 << 30
_CONTEXT_BYTES: Final = int(0.55 * _GIB)  # CUDA context, modules and libraries' workspaces
_GRAPH_BYTES: Final = int(0.60 * _GIB)  # captured decode graphs up to 512 sequences
_COLLECTIVE_BYTES: Final = int(
    0.90 * _GIB
)  # NCCL channels and the all-reduce buffers, with more than one GPU


class MemoryFit(Spec):
    """Memory of one GPU of the fullest stage, in bytes.

    A page holds `block_tokens` tokens of one group of layers: the full-attention layers are one group,
    windowed layers fill `window_group` groups of the same size, padded. A block of tokens takes one page, and
    `window_group` more while it touches the last `window_blocks` blocks of its sequence. `kv_blocks` counts
    pages.

    States of constant size take `window_group` pages beside one block of their sequence. A model whose layers
    are all windowed is counted as if they were not: its pages are never dropped.
    """

    memory_bytes: int
    weight_bytes: int
    activation_bytes: int
    overhead_bytes: int
    kv_bytes: int
    page_bytes: int
    kv_blocks: int
    window_group: int
    window_blocks: int

    @property
    def needed_bytes(self) -> int:
        """Bytes taken before the first KV page."""
        return self.weight_bytes + self.activation_bytes + self.overhead_bytes


def memory_fit(replica: Replica) -> MemoryFit:
    """Return how the memory of one GPU is divided.

    Weights are cut evenly by TP (KV projections and the latent of MLA are copied where they must be) and by
    layers over the stages; embedding and output head count on the fullest stage. Activations are those of a
    step of `max_batched_tokens` and of the sampler's logits in fp32 for `max_seqs`; what remains under
    `memory_utilization` holds KV pages. What drafts tokens has its weights beside the model's, and its own KV in every
    page; states are kept for each token to be verified.

    Raises:
        UnknownName, BadInput: see `resolve`. DoesNotFit: with the GiB needed and had on each GPU, and the
        smallest TP or the GPU that would do. Room for
            one sequence as long as the token budget (or the model's context, if shorter) is part of the need.
    """
    spec, card = resolve(replica)
    fit = _fit(replica, spec, card)
    room, least = _room(replica, card), _least_kv_bytes(replica, spec, fit)
    if fit.needed_bytes + least > room:
        raise DoesNotFit(
            _explain(replica, spec, card, fit, least),
            needed_bytes=fit.needed_bytes + least,
            available_bytes=room,
            remedy=_remedy(replica, spec, card),
        )
    return fit


def kv_shard_bytes(replica: Replica, spec: Model, tokens: int) -> int:
    """Return the KV and state bytes that one GPU of the fullest stage holds of one sequence, windows applied."""
    full, windowed = _kv_layer_bytes(replica, spec)
    part = shard(replica, spec)
    window_layers = part.window_layers if spec.window else 0
    inside = min(tokens, spec.window)
    kv_bytes = (part.attention_layers - window_layers) * full * tokens + window_layers * windowed * inside
    _, draft_bytes = _draft_bytes(replica, spec, gpu(replica.gpu))
    return kv_bytes + draft_bytes * tokens + _state_shard_bytes(replica, spec, part)


def _draft_bytes(replica: Replica, spec: Model, card: Gpu) -> tuple[int, int]:
    """Bytes on one GPU of what drafts: its weights, and its KV of one token, no window dropping any.

    One more layer of the model itself has no vocabulary tables of its own.
    """
    own = drafter(replica, spec, card)
    if own is None or replica.engine.speculation is None:
        return 0, 0
    draft, layers = own
    part = shard(draft, layers)
    weight_bytes = _weight_bytes(draft, layers, part)
    if replica.engine.speculation.draft == MTP:
        params = layers.embedding_params() + (0 if layers.tied_embeddings else layers.head_params())
        size = DTYPE_BYTES[replica.weights] if replica.weights in FILE_DTYPES else 2.0
        weight_bytes -= int(size * params / replica.tp)
    full, windowed = _kv_layer_bytes(draft, layers)
    window_layers = layers.window_layers
    return weight_bytes, (part.attention_layers - window_layers) * full + window_layers * windowed


def _state_shard_bytes(replica: Replica, spec: Model, part: Shard) -> int:
    """Bytes of one sequence's states on one GPU, cut by heads."""
    if not part.state_layers:
        return 0
    return -(-spec.state_bytes() * part.state_layers // (spec.state_layers * replica.tp))


def _kv_layer_bytes(replica: Replica, spec: Model) -> tuple[int, int]:
    """Bytes of one token in one full and in one windowed layer on one GPU; MLA's latent is not cut."""
    ways = min(replica.tp, spec.kv_heads) if spec.attention == "gqa" else 1
    full_layers = max(1, spec.attention_layers() - spec.window_layers)
    full = spec.kv_full_bytes_per_token(replica.kv) // (full_layers * ways)
    windowed = spec.kv_window_bytes_per_token(replica.kv) // (max(1, spec.window_layers) * ways)
    return full or windowed, windowed


def _fit(replica: Replica, spec: Model, card: Gpu) -> MemoryFit:
    part = shard(replica, spec)
    full_bytes, _ = _kv_layer_bytes(replica, spec)
    window_layers = part.window_layers if spec.window else 0
    full_layers = part.attention_layers - window_layers
    group = full_layers or part.attention_layers
    draft_bytes, draft_kv_bytes = _draft_bytes(replica, spec, card)
    weight_bytes = _weight_bytes(replica, spec, part) + draft_bytes
    activation_bytes = _activation_bytes(replica, spec)
    overhead_bytes = _CONTEXT_BYTES + _GRAPH_BYTES + (_COLLECTIVE_BYTES if replica.gpus > 1 else 0)
    kv_bytes = max(0, _room(replica, card) - weight_bytes - activation_bytes - overhead_bytes)
    page_bytes = replica.engine.block_tokens * (group * full_bytes + draft_kv_bytes)
    windowed = bool(full_layers and window_layers)
    window_group = -(-window_layers // full_layers) if windowed else 0
    window_blocks = -(-spec.window // replica.engine.block_tokens) if windowed else 0
    if part.state_layers:  # one block of a sequence carries the pages of its states
        states = replica.engine.step_tokens * _state_shard_bytes(replica, spec, part)
        window_group, window_blocks = -(-states // page_bytes), 1
    return MemoryFit(
        memory_bytes=card.memory_bytes,
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        overhead_bytes=overhead_bytes,
        kv_bytes=kv_bytes,
        page_bytes=page_bytes,
        kv_blocks=kv_bytes // page_bytes,
        window_group=window_group,
        window_blocks=window_blocks,
    )


def _room(replica: Replica, card: Gpu) -> int:
    return int(card.memory_bytes * replica.engine.memory_utilization)


def _weight_bytes(replica: Replica, spec: Model, part: Shard) -> int:
    """Weights on one GPU; the fullest stage holds an embedding or a head, and the only stage both.

    Experts are spread over the GPUs of all data-parallel ranks, everything else is held by each rank.
    """
    embedding, head = 2 * spec.embedding_params(), 2 * spec.head_params()
    tables = embedding + (0 if spec.tied_embeddings else head)
    body = (spec.weight_bytes(replica.weights) - tables) * part.stage_share
    vocabulary = tables if replica.pp == 1 else max(embedding, head)
    copies = 0.0
    if spec.attention == "gqa" and replica.tp > spec.kv_heads:
        extra_heads = replica.tp - spec.kv_heads
        copies = part.layers * 2.0 * extra_heads * spec.head_dim * spec.hidden * _linear_bytes(replica, spec)
    if spec.attention == "mla":
        latent = spec.hidden * (spec.q_lora_rank + spec.kv_lora_rank + spec.qk_rope_head_dim)
        copies = part.layers * latent * (replica.tp - 1.0) * _linear_bytes(replica, spec)
    experts = part.moe_layers * spec.experts * spec.expert_params() * DTYPE_BYTES[replica.weights]
    return int((body - experts + vocabulary + copies) / replica.tp + experts / (replica.tp * replica.dp))


def sequence_tokens(fit: MemoryFit, block_tokens: int, ahead_tokens: int = 0) -> int:
    """Return the most tokens of one sequence that the KV pages hold, whatever the model's context.

    `ahead_tokens` have pages of a window before those that it leaves are dropped.
    """
    most, kept = fit.kv_blocks // (1 + fit.window_group), fit.window_blocks + 1 - (-ahead_tokens // block_tokens)
    if fit.window_group and most > kept:  # no more of a window than its last blocks
        most = fit.kv_blocks - kept * fit.window_group
    return most * block_tokens


def named_context(replica: Replica) -> int | None:
    """Return the context that the model's name asks for, as in `qwen3-8b:131072`."""
    _, colon, end = replica.model.rpartition(":")
    return int(end) if colon and end.isdecimal() else None


def check_context(replica: Replica) -> None:
    """Refuse a context that the model's name asks for and of which KV holds no request.

    Raises:
        DoesNotFit: with the tokens that it would hold. As `memory_fit`.
    """
    fit, named = memory_fit(replica), named_context(replica)
    most = sequence_tokens(fit, replica.engine.block_tokens)
    if named is None or named <= most:
        return
    pages = fit.kv_blocks * named // max(1, most)
    raise DoesNotFit(
        f"the context of {named:,} tokens that {replica.model} names does not fit on {replica.gpu} (tp={replica.tp}, "
        f"pp={replica.pp}): beside the weights KV of {most:,} tokens does",
        needed_bytes=fit.needed_bytes + pages * fit.page_bytes,
        available_bytes=fit.needed_bytes + fit.kv_blocks * fit.page_bytes,
        remedy=f"name a context of at most {most:,}, or more GPUs a replica",
    )


def _linear_bytes(replica: Replica, spec: Model) -> float:
    """Bytes of one attention weight: checkpoints in mxfp4 keep attention in bf16."""
    return 2.0 if replica.weights == "mxfp4" and spec.experts else DTYPE_BYTES[replica.weights]


def _activation_bytes(replica: Replica, spec: Model) -> int:
    """Peak of one layer at the full token budget, in bf16, and the sampler's logits."""
    tp = replica.tp
    attention = (spec.heads + 2 * spec.kv_heads) * spec.head_dim / tp
    mlp = 3 * max(spec.intermediate, spec.shared_intermediate) / tp
    routed = spec.experts_per_token * (3 * spec.expert_intermediate / tp + spec.hidden)
    per_token = 2.0 * (4 * spec.hidden + attention + max(mlp, routed))
    logits = 2.0 * 4.0 * spec.vocab * replica.engine.max_seqs * replica.engine.step_tokens
    return int(per_token * replica.engine.max_batched_tokens + logits)


def _least_kv_bytes(replica: Replica, spec: Model, fit: MemoryFit) -> int:
    """Pages of one sequence as long as the token budget or the model's context."""
    blocks = -(-min(replica.engine.max_batched_tokens, spec.max_context) // replica.engine.block_tokens)
    return (
        blocks + min(blocks, fit.window_blocks + 1 if fit.window_group else 0) * fit.window_group
    ) * fit.page_bytes


# --- the message --------------------------------------------------------------------------------------------


def _explain(replica: Replica, spec: Model, card: Gpu, fit: MemoryFit, least: int) -> str:
    room = _room(replica, card)
    parts = (
        ("weights", fit.weight_bytes),
        ("activations", fit.activation_bytes),
        ("engine", fit.overhead_bytes),
        (f"KV of {min(replica.engine.max_batched_tokens, spec.max_context):,} tokens", least),
    )
    listed = ", ".join(f"{_gib(size)} {name}" for name, size in parts)
    share = f"{replica.engine.memory_utilization:.0%} of {_gib(card.memory_bytes)}"
    ranks = f", dp={replica.dp}" if replica.dp > 1 else ""
    return (
        f"{spec.key} ({replica.weights}, tp={replica.tp}, pp={replica.pp}{ranks}) does not fit on {card.key}: each "
        f"GPU needs {_gib(fit.needed_bytes + least)} ({listed}) and has {_gib(room)} ({share})"
    )


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"


def _remedy(replica: Replica, spec: Model, card: Gpu) -> str:
    """The published precision, else the smallest TP on the same GPU, else another GPU, else what to try.

    Of other GPUs the one with the least memory that would do; in the published precision where that is smaller.
    """
    published = msgspec.structs.replace(replica, weights=spec.native_dtype)
    smaller = DTYPE_BYTES[published.weights] < DTYPE_BYTES[replica.weights]
    said = f"weights={published.weights}, as published, "
    if smaller and _would_fit(published, spec, card, replica.tp):
        return f"{said}would fit"
    tp = _smallest_tp(replica, spec, card)
    if tp:
        return f"tp={tp} would do"
    tp = _smallest_tp(published, spec, card) if smaller else 0
    if tp:
        return f"{said}with tp={tp} would do"
    replica, said = (published, f"{said}on ") if smaller else (replica, "")
    # What can be rented; a CPU is no remedy.
    cards = [other for other in map(gpu, gpu_keys()) if other.link_kind != "upi" and other.usd_per_hour is not None]
    cards.sort(key=lambda other: (other.memory_bytes, other.key))
    for other in cards:
        if _would_fit(replica, spec, other, replica.tp):
            return f"{said}{other.key} with tp={replica.tp} would do"
    for other in cards:
        tp = _smallest_tp(replica, spec, other)
        if tp:
            return f"{said}{other.key} with tp={tp} would do"
    also = f" with weights={replica.weights}, as published" if said else ""
    return f"no TP up to 8 does on any GPU: try pp={2 * replica.pp}{also}"


def _smallest_tp(replica: Replica, spec: Model, card: Gpu) -> int:
    """The smallest power of two up to 8 that fits; 0 when there is none."""
    return next(
        (tp for tp in (1, 2, 4, 8) if tp in tp_degrees(spec, card) and _would_fit(replica, spec, card, tp)), 0
    )


def _would_fit(replica: Replica, spec: Model, card: Gpu, tp: int) -> bool:
    candidate = msgspec.structs.replace(replica, gpu=card.key, tp=tp, ep=1)  # groups change nothing in what a GPU holds
    try:
        resolve(candidate)
    except BadInput:
        return False
    fit = _fit(candidate, spec, card)
    return fit.needed_bytes + _least_kv_bytes(candidate, spec, fit) <= _room(candidate, card)
