"""All laws for one GPU and engine: operators' from `data/operators.json`, assumed ones from `data/efficiency.yaml`."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import numpy as np

from headway.cost.datafile import alike, family_of, packaged
from headway.cost.operators import (
    CollectiveLaw,
    DecodeLaw,
    DispatchLaw,
    ExpertLaw,
    GemmLaw,
    Law,
    MlaLaw,
    PrefillLaw,
    find_law,
    laws_of,
    precisions,
    source,
    timed_families,
)
from headway.cost.physics import experts, gemm
from headway.cost.power import PowerLaw, power_law
from headway.hardware import Gpu, gpu, silicon
from headway.specs import Spec

__all__ = ["CollectiveLaw", "Efficiency", "Estimate", "Law", "PowerLaw", "efficiency"]

GATHERS = ("all_gather", "reduce_scatter", "all_to_all")


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


class Efficiency(Spec):
    """All laws for one GPU under one engine.

    `gemm` and `experts` by precision; `collective` (all-reduce) by kind of link, `gathers` by operator, both over the
    GPU's own links; `dispatch` by DeepEP's mode, empty without fast links. Each law says what it was timed on.
    """

    source: str
    gemm: dict[str, GemmLaw]
    experts: dict[str, ExpertLaw]
    decode: DecodeLaw
    prefill: PrefillLaw
    mla: MlaLaw
    collective: dict[str, CollectiveLaw]
    gathers: dict[str, CollectiveLaw]
    dispatch: dict[str, DispatchLaw]
    power: PowerLaw


class _Assumed(Spec):
    """Laws without timings: by the data sheet alone, or by analogy."""

    gemm: GemmLaw
    experts: ExpertLaw
    collective: dict[str, CollectiveLaw]
    siblings: dict[str, str]  # beginnings of GPU keys: the timed family of the same architecture


@functools.cache
def _assumed() -> _Assumed:
    return packaged(_Assumed, "efficiency.yaml")


def efficiency(card: Gpu, engine: str = "vllm") -> Efficiency:
    """Return the laws for a GPU under an engine.

    Each is the nearest that was timed (`Law.evidence`): this GPU's family under this engine, the family under another
    engine, a family of the same architecture, one pooled over other GPUs; else the data sheet with usual shares.
    """
    return _laws(silicon(card.key), card.link_kind, engine)


def _family(key: str) -> tuple[str | None, bool]:
    """The timed family a GPU belongs to, or is like, and whether it is only like it."""
    own = family_of(key, timed_families())
    return own or alike(key, _assumed().siblings), own is None


def _probe_s(op: str, law: Any) -> float:
    """Geometric mean of the seconds of usual shapes: what an engine's tuner compares."""
    card, rows = gpu("h100-sxm"), np.exp2(np.arange(0.0, 13.0))
    if op == "gemm":
        shapes = ((8192, 8192), (7168, 2048), (4096, 14336), (2048, 4096))
        costs = [gemm(law, card, 1e15, rows, n, k, (1.0, 1.0)).seconds for n, k in shapes]
    else:
        sizes = ((128, 4.7e6), (32, 44e6), (16, 44e6))
        costs = [experts(law, card, 1e15, 8.0 * rows, count, params, 1.0).seconds for count, params in sizes]
    return float(np.exp(np.mean(np.log(np.concatenate(costs)))))


@functools.cache
def _fastest(op: str, of: str, family: str | None) -> Law | None:
    """The fastest kernel any engine was timed with on a GPU family: engines choose among kernels."""
    names = ("fp8", "fp8_block") if of in ("fp8", "fp8_block") else (of,)
    found = [law for name in names for law in laws_of(op, name, family)]
    return min(found, key=lambda law: _probe_s(op, law), default=None)


@functools.cache
def _laws(key: str, link: str, engine: str) -> Efficiency:
    family, sibling = _family(key)

    def nearest(op: str, of: str) -> Any:
        law = find_law(op, of, family, engine)
        if law is None or not sibling or law.evidence == "pooled":
            return law
        return msgspec.structs.replace(law, evidence="sibling")

    def best(op: str, of: str) -> Any:
        law = _fastest(op, of, family)
        if law is None:
            return nearest(op, of)
        return msgspec.structs.replace(law, evidence="sibling") if sibling else law

    assumed = _assumed()
    linked = {op: nearest(op, link) or assumed.collective[link] for op in ("all_reduce", *GATHERS)}
    modes = precisions("dispatch") if link == "nvlink" else []
    return Efficiency(
        source=source(),
        gemm={of: best("gemm", of) or assumed.gemm for of in precisions("gemm")},
        experts={of: best("experts", of) or assumed.experts for of in {*precisions("experts"), "int8"}},
        decode=nearest("decode", "gqa"),
        prefill=nearest("prefill", "gqa"),
        mla=nearest("mla", "mla"),
        collective={link: linked["all_reduce"]},
        gathers={op: linked[op] for op in GATHERS},
        dispatch={mode: nearest("dispatch", mode) for mode in modes},
        power=power_law(key),
    )
