"""Step laws published by others, as step tables: DistServe's OPT on A100."""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from headway.cost.datafile import packaged
from headway.cost.efficiency import Estimate
from headway.cost.replica import EngineSettings
from headway.cost.steptable import StepTable
from headway.errors import BadInput, UnknownName
from headway.hardware import Gpu, gpu
from headway.model import model as model_facts
from headway.specs import Spec

__all__ = ["distserve_table"]

_MS: Final = 1e-3
_BUSY_SHARE: Final = 0.7  # of TDP less idle while stepping: DistServe publishes no power


class _Fit(Spec):
    """Milliseconds: ``(a, b, c)`` of prefill and of decode at small and large batches; KV tokens by PP."""

    prefill: tuple[float, float, float]
    decode_small: tuple[float, float, float]
    decode_large: tuple[float, float, float]
    kv_tokens: dict[int, int]


class _Family(Spec):
    large_batch: int
    tp: dict[int, _Fit]


class _Published(Spec):
    source: str
    memory_source: str
    gpu: str
    models: dict[str, _Family]


@functools.cache
def _published() -> _Published:
    return packaged(_Published, "distserve.yaml")


def distserve_table(model: str, tp: int, pp: int = 1, engine: EngineSettings | None = None) -> StepTable:
    """Return the step table of DistServe's published latency law for OPT on A100 80 GB.

    A step without decodes takes ``(a + b * sum(t) + c * sum(t**2)) / pp`` for whole prompts of t tokens, a
    step without prefill ``(a' + b' * sum(context) + c' * n) / pp``, exactly as published: sum(t**2) is twice
    the chunk area less the tokens, and `decode_s` takes back what `linear_s` counts for the decoded tokens. A
    mixed step, which the law does not know, takes the decode step and the prefill's b and c terms. Transfers
    between stages are free, KV room is the published one. Source: simdistserve, path and commit in
    `data/distserve.yaml`.

    Raises:
        UnknownName: a model without a published law.
        BadInput: a TP or PP without one.
    """
    published, engine = _published(), engine or EngineSettings()
    fit = _find(published, model, tp, pp)
    card = gpu(published.gpu)
    seconds = _seconds(fit, published.models[model].large_batch, pp, engine)
    watts = _BUSY_SHARE * (card.tdp_watts - card.idle_watts) * tp * pp
    return StepTable(
        **{f"{name}_s": _frozen(value) for name, value in seconds.items()},
        **{f"{name}_j": _frozen(watts * value) for name, value in seconds.items()},
        p2p_s=_frozen(np.zeros(engine.max_batched_tokens + 1)),
        idle_watts=card.idle_watts * tp * pp,
        gpus=tp * pp,
        stages=pp,
        max_batched_tokens=engine.max_batched_tokens,
        max_seqs=engine.max_seqs,
        kv_blocks=fit.kv_tokens[pp] // engine.block_tokens,
        block_tokens=engine.block_tokens,
        window=0,
        window_group=0,
        window_blocks=0,
        max_context=model_facts(model).max_context,
        provenance=_provenance(published, fit, card, pp),
    )


def _seconds(fit: _Fit, large_batch: int, pp: int, engine: EngineSettings) -> dict[str, Any]:
    """The table's fields in seconds, by name without their unit."""
    scale = _MS / pp
    a, b, c = fit.prefill
    linear = scale * (a + (b - c) * np.arange(engine.max_batched_tokens + 1.0))
    linear[0] = 0.0
    batch = np.arange(engine.max_seqs + 1)
    both = zip(fit.decode_small, fit.decode_large, strict=True)
    decode_a, decode_b, decode_c = (np.where(batch < large_batch, small, large) for small, large in both)
    decode = scale * (decode_a + decode_c * batch) - linear[batch]
    decode[0] = 0.0
    return {
        "linear": linear,
        "seq": np.zeros(engine.max_seqs + 1),
        "decode": decode,
        "decode_ctx": scale * decode_b,
        "decode_window": np.zeros(engine.max_seqs + 1),
        "prefill_base": 0.0,
        "prefill_area": scale * 2.0 * c,
        "prefill_window_area": 0.0,
    }


def _find(published: _Published, model: str, tp: int, pp: int) -> _Fit:
    if model not in published.models:
        raise UnknownName("model with a DistServe law", model, published.models)
    fits = published.models[model].tp
    if tp not in fits:
        raise BadInput(f"tp={tp}: DistServe's law for {model} covers tp {', '.join(map(str, fits))}")
    if pp not in fits[tp].kv_tokens:
        covered = ", ".join(map(str, fits[tp].kv_tokens))
        raise BadInput(f"pp={pp}: DistServe publishes KV room for {model} with tp={tp} at pp {covered}")
    return fits[tp]


def _provenance(published: _Published, fit: _Fit, card: Gpu, pp: int) -> dict[str, Estimate]:
    def estimate(value: float, unit: str, kind: str, source: str) -> Estimate:
        return Estimate(value=value, unit=unit, kind=kind, source=source, low=value, high=value)

    found = {}
    for phase in ("prefill", "decode_small", "decode_large"):
        last = "ms/token^2" if phase == "prefill" else "ms/sequence"
        for name, unit, value in zip("abc", ("ms", "ms/token", last), getattr(fit, phase), strict=True):
            found[f"{phase}.{name}"] = estimate(value, unit, "fitted", published.source)
    found["kv_tokens"] = estimate(fit.kv_tokens[pp], "tokens", "measured", published.memory_source)
    power = "not published: a constant share of TDP less idle while stepping; an estimate"
    found["power.busy"] = estimate(_BUSY_SHARE, "ratio", "modelled", power)
    for name in ("tdp_watts", "idle_watts"):
        found[f"gpu.{name}"] = estimate(
            getattr(card, name), "W", card.sources[name].kind, card.sources[name].source
        )
    return found


def _frozen(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        values.flags.writeable = False
    return values
