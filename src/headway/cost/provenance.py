"""Which numbers a step table was made from, each with its kind, source and interval."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from typing import Any

import msgspec

from headway.cost.efficiency import Efficiency, Estimate, Law
from headway.cost.engines import EngineFacts
from headway.hardware import Gpu

__all__ = ["provenance"]

_POWER = "fitted on the GPU power of vLLM runs in ML.ENERGY Benchmark V3 (Apache-2.0)"
_SCALED = {"own": "this GPU", "sibling": "a GPU of the same architecture, by TDP", "pooled": "other GPUs, by TDP"}
_ASSUMED = "assumed by analogy: no public timings of this kind"
_EVIDENCE = {
    "own": "this GPU and engine",
    "engine": "this GPU under another engine",
    "sibling": "another GPU of the same architecture",
    "pooled": "pooled over other GPUs",
    "sheet": "data sheet alone",
}
_CARD = {
    "memory_bytes": "byte",
    "memory_bytes_per_s": "byte/s",
    "link_bytes_per_s": "byte/s",
    "tdp_watts": "W",
    "idle_watts": "W",
}
_UNITS = {
    "p": "exponent",
    "padding": "tokens",
    "tile_tokens": "tokens",
    "compute": "share of peak",
    "prefill_compute": "share of peak",
    "memory": "share of bandwidth",
    "memory_fp8": "share of bandwidth",
    "ratio": "ratio by shape",
    "ratio_fp8": "ratio by shape",
    "root_s": "s/byte^0.5",
}


def provenance(card: Gpu, laws: Efficiency, used: Mapping[str, Law], engine: EngineFacts) -> dict[str, Estimate]:
    """Return every number a table depends on by dotted name (`gpu.tdp_watts`, `gemm.bf16.compute`).

    `used` are the laws that took part, by the name they have in the data file. A table of ratios is one number, 1,
    whose interval is that of its nodes. Intervals of host terms are the median error of the release's figures: what a
    term is off by alone is not known.
    """
    host = f"{engine.name} from {engine.since}: {engine.source}"
    found = {f"gpu.{name}": _fact(card, name, getattr(card, name), unit) for name, unit in _CARD.items()}
    for dtype, flops in card.peak_flops.items():
        found[f"gpu.peak_flops.{dtype}"] = _fact(card, f"peak_flops.{dtype}", flops, "FLOP/s")
    for name, law in used.items():
        timed = f"{laws.source}; {_EVIDENCE[law.evidence]}: {law.timed}"
        source = {"host": host}.get(name, timed) if law.kind == "fitted" else _ASSUMED
        if name == "power":
            source = f"{_POWER}; {_SCALED[law.evidence]}: {law.timed}"
        found |= _coefficients(name, law, source)
    return found


def _fact(card: Gpu, name: str, value: float, unit: str) -> Estimate:
    origin = card.sources[name]
    exact = float(value)
    return Estimate(value=exact, unit=unit, kind=origin.kind, source=origin.source, low=exact, high=exact)


def _coefficients(name: str, law: Law, source: str) -> dict[str, Estimate]:
    found = {}
    for field, value in _fields(law).items():
        unit = _UNITS.get(field) or ("s" if field.endswith("_s") else "ratio")
        if name == "power":
            unit = "share of TDP less idle"
        if isinstance(value, dict):  # a table of ratios
            nodes = [0, *value["permille"]]
            edges = (1.0, exp(min(nodes) / 1000.0), exp(max(nodes) / 1000.0))
            found[f"{name}.{field}"] = _estimate(edges, unit, law.kind, source)
            continue
        by_gpus = isinstance(value, (list, tuple))
        numbers = {f"{field}.{2 << i}gpus": v for i, v in enumerate(value)} if by_gpus else {field: value}
        for key, number in numbers.items():
            if number:  # else a term the law does without
                edges = (number, number - abs(number) * law.error, number + abs(number) * law.error)
                found[f"{name}.{key}"] = _estimate(edges, unit, law.kind, source)
    return found


def _fields(law: Law) -> dict[str, Any]:
    said = ("error", "kind", "evidence", "timed")
    fields: dict[str, Any] = msgspec.to_builtins(law)
    return {field: value for field, value in fields.items() if field not in said and value is not None}


def _estimate(edges: tuple[float, float, float], unit: str, kind: str, source: str) -> Estimate:
    value, low, high = edges
    return Estimate(value=value, unit=unit, kind=kind, source=source, low=low, high=high)
