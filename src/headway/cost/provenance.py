"""Which numbers a step table was made from, each with its kind, source and interval."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headway.cost.efficiency import Efficiency, Estimate, Law
from headway.hardware import Gpu

__all__ = ["provenance"]

_HOST = "chosen on vLLM operating points published by NVIDIA aiconfigurator (Apache-2.0)"
_POWER = "fitted on the GPU power of vLLM runs in ML.ENERGY Benchmark V3 (Apache-2.0); an estimate"
_ASSUMED = "assumed by analogy: no public timings of this kind"
_CARD = {
    "memory_bytes": "byte",
    "memory_bytes_per_s": "byte/s",
    "link_bytes_per_s": "byte/s",
    "tdp_watts": "W",
    "idle_watts": "W",
}
_UNITS = {
    "p": "exponent",
    "tile_tokens": "tokens",
    "compute": "share of peak",
    "memory": "share of bandwidth",
    "memory_fp8": "share of bandwidth",
}


def provenance(card: Gpu, laws: Efficiency, used: Mapping[str, Law]) -> dict[str, Estimate]:
    """Return every number a table depends on by dotted name (`gpu.tdp_watts`, `gemm.bf16.compute`).

    `used` are the laws that took part, by the name they have in the data file.
    """
    found = {f"gpu.{name}": _fact(card, name, getattr(card, name), unit) for name, unit in _CARD.items()}
    for dtype, flops in card.peak_flops.items():
        found[f"gpu.peak_flops.{dtype}"] = _fact(card, f"peak_flops.{dtype}", flops, "FLOP/s")
    timed = laws.source if laws.own else f"{laws.source}; pooled over other GPUs"
    for name, law in used.items():
        source = {"host": _HOST, "power": _POWER}.get(name, timed)
        found |= _coefficients(name, law, source if law.kind == "fitted" else _ASSUMED)
    return found


def _fact(card: Gpu, name: str, value: float, unit: str) -> Estimate:
    origin = card.sources[name]
    exact = float(value)
    return Estimate(value=exact, unit=unit, kind=origin.kind, source=origin.source, low=exact, high=exact)


def _coefficients(name: str, law: Law, source: str) -> dict[str, Estimate]:
    found = {}
    for field, value in msgspec.to_builtins(law).items():
        if field in ("error", "kind"):
            continue
        by_gpus = isinstance(value, (list, tuple))
        numbers = {f"{field}.{2 << i}gpus": v for i, v in enumerate(value)} if by_gpus else {field: value}
        unit = "s" if field.endswith("_s") else _UNITS.get(field, "ratio")
        if name == "power":
            unit = "share of TDP less idle"
        for key, number in numbers.items():
            found[f"{name}.{key}"] = Estimate(
                value=number,
                unit=unit,
                kind=law.kind,
                source=source,
                low=number * (1.0 - law.error),
                high=number * (1.0 + law.error),
            )
    return found
