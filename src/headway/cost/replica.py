"""What one engine instance is: a model on GPUs, a parallel layout, precisions and engine settings."""

from __future__ import annotations

import math

from headway.errors import BadInput, nearest
from headway.hardware import Gpu, gpu
from headway.model import Model, model
from headway.specs import Spec

__all__ = ["EngineSettings", "Replica", "resolve"]

_STEP_TOKENS_MAX = 1 << 20  # the step table holds one entry per token of the budget


class EngineSettings(Spec):
    """Settings of the engine's scheduler and of its KV cache, named after what they limit.

    `max_batched_tokens` and `max_seqs` bound one step, `block_tokens` is the size of a KV block, and
    `memory_utilization` the share of the GPU's memory that the engine may use.

    Raises:
        BadInput: a number out of its range, or more sequences than tokens in a step.
    """

    max_batched_tokens: int = 8192
    max_seqs: int = 256
    block_tokens: int = 16
    prefix_cache: bool = True
    memory_utilization: float = 0.90

    def __post_init__(self) -> None:
        for name in ("max_batched_tokens", "max_seqs", "block_tokens"):
            value = getattr(self, name)
            if not 1 <= value <= _STEP_TOKENS_MAX:
                raise BadInput(f"{name}={value}: expected 1 to {_STEP_TOKENS_MAX}")
        if self.max_seqs > self.max_batched_tokens:
            raise BadInput(
                f"max_seqs={self.max_seqs} is more than max_batched_tokens={self.max_batched_tokens}, but a "
                f"step runs at least one token of each sequence: raise max_batched_tokens or lower max_seqs"
            )
        if not (math.isfinite(self.memory_utilization) and 0.0 < self.memory_utilization <= 1.0):
            raise BadInput(
                f"memory_utilization={self.memory_utilization}: expected a share above 0 and up to 1"
            )


class Replica(Spec):
    """One engine instance: `model` (catalogue key or path to a config.json) on `tp * pp` GPUs of one kind.

    `weights` is the precision of the weights and of the matrix products, `kv` that of the KV cache (bf16 or
    fp8). Names are checked against the catalogues when the replica is used, not here.

    Raises:
        BadInput: tp or pp below 1.
    """

    model: str
    gpu: str
    tp: int = 1
    pp: int = 1
    weights: str = "bf16"
    kv: str = "bf16"
    engine: EngineSettings = EngineSettings()

    def __post_init__(self) -> None:
        if self.tp < 1 or self.pp < 1:
            raise BadInput(f"tp={self.tp}, pp={self.pp}: both are numbers of GPUs, at least 1")

    @property
    def gpus(self) -> int:
        """GPUs of this replica."""
        return self.tp * self.pp


def resolve(replica: Replica) -> tuple[Model, Gpu]:
    """Return the model and the GPU of a replica after checking that its layout and precisions exist.

    Raises:
        UnknownName: a model or a GPU that is not in the catalogue. BadInput: a TP degree that does not divide
        the heads or leaves the node, more stages than layers, a precision
            that neither the GPU computes in nor the model is published in.
    """
    spec, card = model(replica.model), gpu(replica.gpu)
    _check_layout(replica, spec, card)
    _check_precision(replica, spec, card)
    return spec, card


def tp_degrees(spec: Model, card: Gpu) -> list[int]:
    """TP degrees that cut the model on one node, ascending; KV heads are split or copied evenly."""
    heads, kv_heads = spec.heads, spec.kv_heads if spec.attention == "gqa" else 1
    return [
        tp
        for tp in range(1, card.gpus_per_node + 1)
        if heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)
    ]


def weight_only(replica: Replica, spec: Model, card: Gpu) -> bool:
    """Whether weights are stored in a precision the GPU cannot compute in, so that products run in bf16."""
    return replica.weights not in card.peak_flops and replica.weights == spec.native_dtype


def _check_layout(replica: Replica, spec: Model, card: Gpu) -> None:
    degrees = tp_degrees(spec, card)
    if replica.tp > card.gpus_per_node:
        raise BadInput(
            f"tp={replica.tp}: {card.key} has at most {card.gpus_per_node} GPUs joined by its fast links; "
            f"allowed for {spec.key}: {_listed(degrees)}; use pp for more GPUs"
        )
    if replica.tp not in degrees:
        raise BadInput(
            f"tp={replica.tp} does not divide the {spec.heads} heads ({spec.kv_heads} KV heads) of "
            f"{spec.key}; allowed: {_listed(degrees)}"
        )
    if replica.pp > spec.layers:
        raise BadInput(f"pp={replica.pp}: {spec.key} has {spec.layers} layers, a stage needs at least one")


def _check_precision(replica: Replica, spec: Model, card: Gpu) -> None:
    allowed = sorted({*card.peak_flops, spec.native_dtype})
    if replica.weights not in card.peak_flops and not weight_only(replica, spec, card):
        near = nearest(replica.weights, allowed)
        raise BadInput(
            f"weights={replica.weights!r}: {card.key} computes in {_listed(sorted(card.peak_flops))}"
            f"{', nearest: ' + near[0] if near else ''}; {spec.key} is published in {spec.native_dtype}"
        )
    kv_allowed = ["bf16", "fp8"] if "fp8" in card.peak_flops else ["bf16"]
    if replica.kv not in kv_allowed:
        raise BadInput(f"kv={replica.kv!r}: a KV cache on {card.key} is held in {_listed(kv_allowed)}")


def _listed(values: list[int] | list[str]) -> str:
    return ", ".join(str(value) for value in values)
