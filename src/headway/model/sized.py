"""A typical architecture of a given size, for models of which no more is known than their name says.

`sized:8b` is a dense model of 8e9 parameters, `sized:35b-a3b` a mixture of experts of 35e9 of which a token uses 3e9.
Depth, width and heads come from the published models next in size (`_DENSE`, `_MOE`); the width of the MLP or of the
experts is solved for, so that the counts come out as asked to within half a percent.
"""

from __future__ import annotations

import itertools
import re
from typing import Any, Final, NamedTuple

from headway.errors import BadInput
from headway.model.spec import Model

__all__ = ["PREFIX", "sized"]

PREFIX: Final = "sized:"
_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)([bm])(?:-a(\d+(?:\.\d+)?)([bm]))?")
_UNIT: Final = {"b": 1e9, "m": 1e6}
_LEAST, _MOST = 60e6, 20e12
_SOURCE: Final = "a typical shape of this size, no published model: depth, width and heads of {near}"
_FORMS: Final = "expected a size as sized:8b, sized:350m or, of experts with active parameters, sized:35b-a3b"


class _Shape(NamedTuple):
    """Depth, width and heads of a published model, and the size up to which they stand for others."""

    up_to: float  # parameters; of a mixture of experts active ones
    near: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocab: int = 131072
    tied: bool = False


_DENSE: Final = (
    _Shape(0.2e9, "SmolLM2 135M", 30, 576, 9, 3, 64, 49152, True),
    _Shape(0.45e9, "SmolLM2 360M", 32, 960, 15, 5, 64, 49152, True),
    _Shape(0.9e9, "Qwen3 0.6B", 28, 1024, 16, 8, tied=True),
    _Shape(2.4e9, "Qwen3 1.7B", 28, 2048, 16, 8, tied=True),
    _Shape(5.5e9, "Qwen3 4B", 36, 2560, 32, 8, tied=True),
    _Shape(11e9, "Qwen3 8B", 36, 4096, 32, 8),
    _Shape(20e9, "Qwen3 14B", 40, 5120, 40, 8),
    _Shape(48e9, "Qwen3 32B", 64, 5120, 64, 8),
    _Shape(95e9, "Llama 3.1 70B", 80, 8192, 64, 8),
    _Shape(220e9, "Mistral Large 123B", 88, 12288, 96, 8),
    _Shape(_MOST, "Llama 3.1 405B", 126, 16384, 128, 8),
)
_MOE: Final = (
    _Shape(0.7e9, "Granite 3.1 1B-A400M", 24, 1024, 16, 8, 64, 49152, True),
    _Shape(1.4e9, "Granite 3.1 3B-A800M", 32, 1536, 24, 8, 64, 49152, True),
    _Shape(8e9, "Qwen3 30B-A3B", 48, 2048, 32, 4),
    _Shape(17e9, "Qwen3.5 122B-A10B", 48, 3072, 32, 2, 256),
    _Shape(29e9, "Qwen3 235B-A22B", 94, 4096, 64, 4),
    _Shape(_MOST, "Llama 3.1 70B", 80, 8192, 64, 8),
)
_ROUTED: Final = ((8, 2), (32, 8), (64, 8), (128, 8), (256, 8), (512, 10), (1024, 8))  # experts, and those a token uses


def sized(key: str) -> Model:
    """Return the typical model of a key such as `sized:8b` or `sized:35b-a3b`.

    Raises:
        BadInput: no such form, a size beyond any model, or more active parameters than there are.
    """
    found = _FORM.fullmatch(key.removeprefix(PREFIX).lower())
    if not found:
        raise BadInput(f"model {key!r}: {_FORMS}")
    total = float(found[1]) * _UNIT[found[2]]
    active = float(found[3]) * _UNIT[found[4]] if found[3] else total
    if not _LEAST <= active <= total <= _MOST:
        raise BadInput(f"model {key!r}: {active:.3g} of {total:.3g} parameters; {_FORMS}")
    return _dense(key, total) if active == total else _experts(key, total, active)


def _dense(key: str, total: float) -> Model:
    shape = next(shape for shape in _DENSE if total <= shape.up_to)
    rest = _model(key, shape, intermediate=1).total_params()
    return _model(key, shape, intermediate=max(1, 1 + round((total - rest) / (3 * shape.layers * shape.hidden))))


def _experts(key: str, total: float, active: float) -> Model:
    """The fewest experts that leave an active part to attention and vocabulary; a shared expert takes what is over.

    Where that part is too small even so, the next smaller shape is tried.
    """
    fitting = next(i for i, shape in enumerate(_MOE) if active <= shape.up_to)
    for shape, (experts, used) in itertools.product(_MOE[fitting::-1], _ROUTED):
        a_width = 3.0 * shape.layers * shape.hidden
        width = max(1, round((total - active) / (a_width * (experts - used))))
        routed = {"experts": experts, "experts_per_token": used, "expert_intermediate": width}
        over = active - _model(key, shape, **routed).active_params()
        if over >= 0:
            return _model(key, shape, **routed, shared_intermediate=round(over / a_width))
    raise BadInput(f"model {key!r}: too few active parameters for attention and vocabulary of a typical shape")


def _model(key: str, shape: _Shape, **widths: Any) -> Model:
    return Model(
        key=key,
        name=f"typical {key.removeprefix(PREFIX).upper()}",
        source=_SOURCE.format(near=shape.near),
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab=shape.vocab,
        tied_embeddings=shape.tied,
        max_context=131072,
        **widths,
    )
