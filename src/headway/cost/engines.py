"""Inference engines: how each one batches, and the time its host adds to the kernels (`data/engines.yaml`)."""

from __future__ import annotations

import functools
import re
from typing import Any, Final

import msgspec

from headway.cost.datafile import family_of, packaged
from headway.cost.efficiency import Law
from headway.errors import BadInput, UnknownName
from headway.hardware import Gpu, silicon
from headway.model import Model
from headway.specs import Spec, from_mapping

__all__ = [
    "EngineFacts", "HostTerms", "check_engine", "cut_blocks", "engine_facts", "engine_names", "spreads", "standing_for",
]  # fmt: skip


class HostTerms(Law, kw_only=True):
    """Seconds that the GPU waits for the host, or that a request spends outside the engine.

    `layer_s` a layer of every step, `moe_layer_s` more for one with experts, `fp8_experts_s` more still where these are
    in fp8, `state_layer_s` more for one with a state and no attention, `step_s` a step, `sequence_s` a sequence of a
    step, `prompt_layer_s` more for a layer of a step that holds a prompt and so runs outside captured graphs,
    `prompt_mla_layer_s` and `prompt_state_layer_s` more still for one with latent attention and with a state, `image_s`
    and `video_s` more for one whose prompts hold pictures (`Replica.media`), `rank_step_s` more for a step that data-
    parallel ranks take together, `intake_s` a request. `layer_s` may be negative: launches timed one by one overlap in
    a graph. `kernels` multiplies the time of all kernels, none of which gets faster than bandwidth and peak: other than
    1 where an engine runs others than those timed, or the GPU's were never timed.
    """

    layer_s: float = 0.0
    moe_layer_s: float = 0.0
    fp8_experts_s: float = 0.0
    state_layer_s: float = 0.0
    step_s: float = 0.0
    sequence_s: float = 0.0
    prompt_layer_s: float = 0.0
    prompt_mla_layer_s: float = 0.0
    prompt_state_layer_s: float = 0.0
    image_s: float = 0.0
    video_s: float = 0.0
    rank_step_s: float = 0.0
    intake_s: float = 0.0
    kernels: float = 1.0


class EngineFacts(Spec):
    """One release of an engine: its batching discipline and its host's times on one GPU.

    What its users switch on, such as `EngineSettings.align_steps`, is not here.
    """

    name: str
    since: str
    prefill_alone: bool
    ahead: bool
    host: HostTerms
    source: str


class _Release(Spec):
    since: str
    host: HostTerms
    by_gpu: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)


class _Family(Spec):
    prefill_alone: bool
    releases: list[_Release]
    ahead_since: str = ""  # the release from which steps are composed ahead by default; "" is none


class _File(Spec):
    source: str
    engines: dict[str, _Family]


_FP8_BLOCK: Final = 128  # weights, each way (quantization_config of DeepSeek-V3, Kimi-K2 and MiniMax-M2)
_ONLY_ON: Final = {"trtllm": "NVIDIA", "deepspeed-mii": "NVIDIA"}  # as their own documentation has it


def check_engine(name: str, card: Gpu) -> None:
    """Refuse a GPU that an engine does not run on.

    Raises:
        BadInput: its maker's is not the engine's only one.
    """
    only = _ONLY_ON.get(name)
    if only is not None and card.vendor != only:
        others = ", ".join(each for each in engine_names() if each not in _ONLY_ON)
        raise BadInput(
            f"engine {name} against gpu {card.key}: it runs on GPUs of {only} alone, and this one is {card.vendor}'s; "
            f"name another of the two (engines without that limit: {others})"
        )


def spreads(name: str, tp: int, dp: int, ep: int) -> bool:
    """Return whether an engine starts data-parallel ranks, or groups of experts, of these degrees.

    vLLM divides the experts among all GPUs of a stage (`--enable-expert-parallel`) or cuts each over all of them; in
    TensorRT-LLM each GPU attends its own sequences (`enable_attention_dp`) or all share them.
    """
    if dp == ep == 1 or name == "sglang":
        return True
    return {"vllm": ep in (1, tp * dp), "trtllm": dp == 1 or tp == 1}.get(name, False)


def cut_blocks(name: str, spec: Model, tp: int, dp: int, ep: int) -> str:
    """Return which weights of a checkpoint in fp8 a replica cuts within a block of one scale; "" is none.

    Engines then stop on loading it. Of each expert vLLM 0.33 makes the blocks smaller (`refine_fp8_moe_block_shape`),
    SGLang 0.5.23 does not (`create_fp8_moe_weight_` of layers/quantization/fp8.py), and cuts what every token passes
    through over all ranks, where the others cut it over those of one (`validate_fp8_block_shape`).
    """
    if name not in ("vllm", "sglang", "trtllm") or not spec.fp8_blocks or spec.native_dtype != "fp8":
        return ""
    group = tp * dp if name == "sglang" else tp
    cuts = {
        "an expert": (spec.expert_intermediate, 1 if name == "vllm" else tp * dp // ep),
        "its shared experts": (spec.shared_intermediate, group),
        "a dense layer": (spec.intermediate if spec.dense_mlp_layers() else 0, group),
    }
    for what, (width, parts) in cuts.items():
        if width % (_FP8_BLOCK * parts):
            return f"{what} of {spec.key}, {width} wide, in {parts} parts of no whole blocks of {_FP8_BLOCK}"
    return ""


@functools.cache
def _file() -> _File:
    return packaged(_File, "engines.yaml")


def engine_names() -> list[str]:
    """Names of the engines known."""
    return sorted(_file().engines)


@functools.cache
def engine_facts(name: str, version: str, gpu_key: str) -> EngineFacts:
    """Return the facts of the newest release up to `version`; "" is the newest of all.

    Raises:
        UnknownName: an engine that is not in the data file.
        BadInput: a version that does not begin with a number.
    """
    families = _file().engines
    if name not in families:
        raise UnknownName("engine", name, families)
    family = families[name]
    wanted = _number(version) if version else (1 << 30,)
    known = [release for release in family.releases if _number(release.since) <= wanted] or family.releases[:1]
    release = known[-1]
    host = release.host
    for key, terms in release.by_gpu.items():
        if family_of(silicon(gpu_key), (key,)):
            host = from_mapping(HostTerms, _merged(host, terms), "engines.yaml")
    return EngineFacts(
        name=name,
        since=release.since,
        prefill_alone=family.prefill_alone,
        ahead=bool(family.ahead_since) and _number(family.ahead_since) <= wanted,
        host=host,
        source=_file().source,
    )


def standing_for(name: str, version: str) -> str:
    """Return the release whose times stand for one that is not known; "" where it is.

    Not known are releases after the newest of the data file, whose later patches are, and before the oldest.

    Raises:
        As `engine_facts`.
    """
    if not version:
        return ""
    since = engine_facts(name, version, "").since
    wanted, release = _number(version), _number(since)
    newest = since == _file().engines[name].releases[-1].since
    later = newest and wanted[: len(release)] != release
    return since if later or wanted < release else ""


def _merged(host: HostTerms, terms: dict[str, float]) -> dict[str, Any]:
    return {**msgspec.to_builtins(host), **terms}


def _number(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.5.8.post1" is (0, 5, 8)."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    if not found:
        raise BadInput(f"engine version {version!r}: expected numbers with dots, as in 0.11.1")
    return tuple(int(part) for part in found[1].split("."))
