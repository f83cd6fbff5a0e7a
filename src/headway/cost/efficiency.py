"""The coefficients of the step laws and where each one is from (`data/efficiency.yaml`)."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from headway.hardware import Gpu
from headway.specs import Spec, from_mapping, read_yaml

__all__ = ["Efficiency", "Estimate", "efficiency"]


class Estimate(Spec):
    """One number with its origin and its interval; `kind` is modelled, fitted, measured or vendor.

    A fitted coefficient's interval is the median error of its law, in both directions.
    """

    value: float
    unit: str
    kind: str
    source: str
    low: float
    high: float


class Law(Spec, kw_only=True):
    """What every law says about itself: its median relative error, and whether it was fitted or assumed."""

    error: float
    kind: str = "fitted"


class GemmLaw(Law, kw_only=True):
    """Matrix product: launch + p-norm of FLOPs at `compute` of the peak and bytes at `memory` of the peak."""

    compute: float
    memory: float
    launch_s: float
    p: float


class ExpertLaw(Law, kw_only=True):
    """Expert layer: launch + bytes of the experts touched + FLOPs; `skew` widens the routing's imbalance."""

    compute: float
    memory: float
    launch_s: float
    skew: float


class DecodeLaw(Law, kw_only=True):
    """Decode attention: launch + `head_s` per sequence, KV head and 1/SM + KV bytes at a share of peak."""

    launch_s: float
    head_s: float
    memory: float
    memory_fp8: float


class PrefillLaw(Law, kw_only=True):
    """Prefill attention: `head_s` per head and SM + FLOPs of the area and of `tile_tokens` more per token."""

    compute: float
    head_s: float
    tile_tokens: float


class CollectiveLaw(Law, kw_only=True):
    """All-reduce over 2, 4 and 8 GPUs: latency + bytes on the wire at the share `bus` of the link."""

    latency_s: tuple[float, float, float]
    bus: tuple[float, float, float]


class HostLaw(Law, kw_only=True):
    """Time around the kernels: gaps per layer, one element-wise launch, one step, one sequence of a step."""

    layer_s: float
    kernel_s: float
    step_s: float
    sequence_s: float


class PowerLaw(Law, kw_only=True):
    """Power above idle in shares of TDP less idle: while stepping, at full memory and at full tensor use."""

    resident: float
    memory: float
    compute: float


class Efficiency(Spec):
    """All laws for one GPU: `gemm` and `experts` by precision, `collective` by kind of link."""

    source: str
    own: bool  # timed on this GPU's family, not pooled over others
    gemm: dict[str, GemmLaw]
    experts: dict[str, ExpertLaw]
    decode: DecodeLaw
    prefill: PrefillLaw
    collective: dict[str, CollectiveLaw]
    host: HostLaw
    power: PowerLaw


@functools.cache
def _data() -> dict[str, Any]:
    with resources.as_file(resources.files("headway.cost") / "data" / "efficiency.yaml") as path:
        return read_yaml(path)


@functools.cache
def _family(name: str | None) -> Efficiency:
    data = _data()
    merged: dict[str, Any] = {"source": data["source"], "own": name is not None, **data["default"]}
    for section, laws in data[name].items() if name else ():
        by_key = section in ("gemm", "experts", "collective")
        merged[section] = {**merged[section], **laws} if by_key else laws
    return from_mapping(Efficiency, merged, "efficiency.yaml")


def efficiency(card: Gpu) -> Efficiency:
    """Return the laws for a GPU: its family's when that was timed, else those pooled over all timed ones."""
    families = (name for name in _data() if card.key == name or card.key.startswith(f"{name}-"))
    return _family(next(families, None))
