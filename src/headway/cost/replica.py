"""What one engine instance is: a model on GPUs, a parallel layout, precisions and engine settings."""

from __future__ import annotations

import math

import msgspec

from headway.cost.calibration import Calibration
from headway.cost.engines import check_engine
from headway.cost.power import media_kinds
from headway.cost.speculation import MTP, NGRAM, Speculation
from headway.errors import BadInput, UnknownName, nearest
from headway.hardware import Gpu, gpu
from headway.hardware.files import gpu_name, is_file, located
from headway.model import Model, model, model_keys
from headway.specs import Spec, check_types

__all__ = ["EngineSettings", "Replica", "limits", "resolve"]

_STEP_TOKENS_MAX = 1 << 20  # the step table holds one entry per token of the budget


class EngineSettings(Spec):
    """Which engine runs, and the settings of its scheduler and KV cache, named after what they limit.

    `name` and `version` choose the host times and the batching discipline (`cost/data/engines.yaml`; "" is the
    newest release known). `max_batched_tokens` and `max_seqs` bound one step, `block_tokens` is the size of a KV
    block, and `memory_utilization` the share of the GPU's memory that the engine may use. `poll_steps`: a busy engine
    looks for new requests every so many decode steps. `ahead`: the next step is composed while one runs (vLLM's
    `async-scheduling`, the overlap schedulers of SGLang and TensorRT-LLM); absent, as the release does by default.
    `align_steps`, above 0: data-parallel ranks withhold prompts until all have one, or until the `align_steps`-th step;
    `gather_steps`: and then for so many more (TensorRT-LLM's `attention_dp_config` with `enable_balance`:
    `timeout_iters`, `batching_wait_iters`).
    `speculation` drafts tokens and verifies them.

    Raises:
        BadInput: a value of another type, a number out of its range, or more sequences than tokens in a step.
    """

    name: str = "vllm"
    version: str = ""
    max_batched_tokens: int = 8192
    max_seqs: int = 256
    block_tokens: int = 16
    prefix_cache: bool = True
    memory_utilization: float = 0.90
    poll_steps: int = 1
    ahead: bool | None = None
    align_steps: int = 0
    gather_steps: int = 0
    speculation: Speculation | None = None

    def __post_init__(self) -> None:
        check_types(self, "engine")
        for name in ("max_batched_tokens", "max_seqs", "block_tokens", "poll_steps"):
            value = getattr(self, name)
            if not 1 <= value <= _STEP_TOKENS_MAX:
                raise BadInput(f"{name}={value}: expected 1 to {_STEP_TOKENS_MAX}")
        if self.align_steps < 0 or self.gather_steps < 0:
            raise BadInput(
                f"align_steps={self.align_steps}, gather_steps={self.gather_steps}: expected numbers of steps; with 0 "
                f"prompts do not wait"
            )
        if self.gather_steps and not self.align_steps:
            raise BadInput(f"gather_steps={self.gather_steps}: nothing waits without align_steps; set that too")
        if self.max_seqs > self.max_batched_tokens:
            raise BadInput(
                f"max_seqs={self.max_seqs} is more than max_batched_tokens={self.max_batched_tokens}, but a "
                f"step runs at least one token of each sequence: raise max_batched_tokens or lower max_seqs"
            )
        if self.max_seqs * self.step_tokens > self.max_batched_tokens:
            raise BadInput(
                f"max_seqs={self.max_seqs} with speculation.tokens={self.step_tokens - 1} are up to "
                f"{self.max_seqs * self.step_tokens} tokens to verify in a step, more than "
                f"max_batched_tokens={self.max_batched_tokens}: raise that, or lower one of them"
            )
        if not (math.isfinite(self.memory_utilization) and 0.0 < self.memory_utilization <= 1.0):
            raise BadInput(
                f"memory_utilization={self.memory_utilization}: expected a share above 0 and up to 1"
            )

    @property
    def step_tokens(self) -> int:
        """Tokens that a decoding sequence has in a step: 1, or those to be verified."""
        return 1 if self.speculation is None else self.speculation.verified


class Replica(Spec):
    """One engine instance: `model` (catalogue key or path to a config.json) on `tp * dp * pp` GPUs of one kind.

    `gpu` is a catalogue key, or the path of a file, which is kept from the root on: what is written down from one
    folder is read in another.

    `dp` ranks of `tp` GPUs each attend their own sequences and share the experts, which `ep` groups divide among
    themselves, each expert cut over the `tp * dp / ep` GPUs of its group. Stages that stand `apart` have a node each,
    even where all would fit one: then each can hand its KV to the same stage of a replica beside it. `weights` is the
    precision of the weights and of the matrix products, `kv` that of the KV cache (bf16 or fp8). `cap_watts` limits the
    power of each GPU, `clock_mhz` is what its SM clock is locked to. `media` is what prompts hold ("text", and beside
    it "image" or "video"): the host prepares pictures while GPUs wait. `calibration` is what the user's own
    measurements change in the step law. Names are checked against the catalogues when the replica is used, not here.

    Raises:
        BadInput: a value of another type, a degree below 1, an ep that does not divide tp * dp, one stage apart, no
            power or no clock at all.
        UnknownName: a kind of media that is not known.
    """

    model: str
    gpu: str
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    apart: bool = False
    weights: str = "bf16"
    kv: str = "bf16"
    cap_watts: float | None = None
    clock_mhz: float | None = None
    media: str = "text"
    engine: EngineSettings = EngineSettings()
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        check_types(self, "replica")
        if is_file(self.gpu):
            msgspec.structs.force_setattr(self, "gpu", located(self.gpu))
        for name in ("tp", "pp", "dp", "ep"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)}: a number of GPUs or groups, at least 1")
        if self.tp * self.dp % self.ep:
            raise BadInput(f"ep={self.ep} does not divide the tp * dp = {self.tp * self.dp} GPUs of a stage")
        if self.apart and self.pp == 1:
            raise BadInput("apart=true with pp=1: one stage stands apart from nothing; leave it out, or raise pp")
        if self.cap_watts is not None and not 0.0 < self.cap_watts < math.inf:
            raise BadInput(f"cap_watts={self.cap_watts}: expected watts above 0")
        if self.clock_mhz is not None and not 0.0 < self.clock_mhz < math.inf:
            raise BadInput(f"clock_mhz={self.clock_mhz}: expected MHz above 0")
        if self.media not in media_kinds():
            raise UnknownName("media", self.media, media_kinds())

    @property
    def gpu_name(self) -> str:
        """The GPU as people read it: a file without its folder."""
        return gpu_name(self.gpu)

    @property
    def gpus(self) -> int:
        """GPUs of this replica."""
        return self.tp * self.dp * self.pp

    @property
    def rank_gpus(self) -> int:
        """GPUs of one data-parallel rank: all of them when `dp` is 1."""
        return self.tp * self.pp


def resolve(replica: Replica) -> tuple[Model, Gpu]:
    """Return the model and the GPU of a replica after checking that its layout and precisions exist.

    Raises:
        UnknownName: a model or a GPU that is not in the catalogue. BadInput: a TP degree that does not divide
        the heads or leaves the node, more stages than layers, a precision
            that neither the GPU computes in nor the model is published in, speculation that is not modelled.
    """
    spec, card = model(replica.model), gpu(replica.gpu)
    check_engine(replica.engine.name, card)
    if replica.media != "text" and replica.engine.name != "vllm":
        raise BadInput(
            f"media={replica.media} with engine={replica.engine.name}: what pictures take on the host was measured "
            f"with vllm alone; take that, or media=text, with prompts as long as with their pictures' tokens"
        )
    _check_layout(replica, spec, card)
    _check_precision(replica, spec, card)
    if replica.engine.speculation is not None:
        _check_speculation(replica, replica.engine.speculation, spec, card)
    return spec, card


def limits(replica: Replica) -> tuple[float, float]:
    """Return the power limit, W, and the locked clock, MHz, that can slow the GPU; 0 where there is none.

    A limit of TDP and more, or a clock locked to the boost clock, slows nothing.

    Raises:
        UnknownName: a GPU that is not in the catalogue.
    """
    card = gpu(replica.gpu)
    cap = replica.cap_watts if replica.cap_watts is not None and replica.cap_watts < card.tdp_watts else 0.0
    clock = replica.clock_mhz if replica.clock_mhz is not None and replica.clock_mhz != card.boost_mhz else 0.0
    return cap, clock


def drafting_model(speculation: Speculation) -> Model | None:
    """Return the other model that drafts, or None where none does.

    Raises:
        UnknownName: neither a model nor "mtp" or "ngram". BadInput: see `model`.
    """
    if speculation.draft in (MTP, NGRAM):
        return None
    try:
        return model(speculation.draft)
    except UnknownName:
        raise UnknownName("draft model", speculation.draft, [MTP, NGRAM, *model_keys()]) from None


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
    if replica.dp > 1 and not spec.experts:
        raise BadInput(
            f"dp={replica.dp}: {spec.key} has no experts for the ranks to share; use a pool of {replica.dp} replicas"
        )
    if replica.dp > 1 and replica.pp > 1:
        raise BadInput(
            f"dp={replica.dp}, pp={replica.pp}: ranks that step together are not modelled in stages; take more tp in "
            f"place of pp, or dp=1 and as many replicas"
        )
    if replica.ep > max(1, spec.experts):
        raise BadInput(f"ep={replica.ep}: {spec.key} has {spec.experts} experts, a group needs at least one")


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


def _check_speculation(replica: Replica, speculation: Speculation, spec: Model, card: Gpu) -> None:
    """Refuse layouts under which engines do not speculate or the step law cannot say what they do."""
    if replica.pp > 1:  # vLLM's documentation up to v0.9: "not compatible with pipeline parallelism"
        raise BadInput(f"speculation with pp={replica.pp}: only modelled without a pipeline; use tp, or leave it out")
    if replica.dp > 1:
        raise BadInput(
            f"speculation with dp={replica.dp}: not modelled where ranks step together; use a pool of "
            f"{replica.dp} replicas, or leave it out"
        )
    draft = drafting_model(speculation)
    if draft is None:
        return
    degrees = tp_degrees(draft, card)
    if replica.tp not in degrees:
        raise BadInput(
            f"tp={replica.tp} does not divide the {draft.heads} heads ({draft.kv_heads} KV heads) of the draft "
            f"{draft.key}; allowed: {_listed(degrees)}"
        )
    window, own = draft.sparse_topk or draft.window, spec.sparse_topk or spec.window
    if draft.state_layers or window not in (0, own):
        what = "states of constant size" if draft.state_layers else f"windows of {window} tokens"
        raise BadInput(
            f"draft {draft.key}: its layers with {what} are not modelled beside {spec.key}; give a draft that attends "
            f"to everything{f' or to {own} tokens' if own else ''}, or mtp"
        )


def _listed(values: list[int] | list[str]) -> str:
    return ", ".join(str(value) for value in values)
