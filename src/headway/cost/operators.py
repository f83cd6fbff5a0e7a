"""Operator laws: a few fitted scalars times a small table of ratios, and which of them holds for a GPU and engine.

Every law is a roofline with fitted shares of the data sheet. A `Ratio` table corrects it by shape; it is smooth
(fitted with a ridge toward 1) and constant beyond its outermost nodes. `data/operators.json` holds one law per
operator, GPU family, engine and precision.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from importlib import resources
from math import log
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from headway.specs import Spec

__all__ = [
    "CollectiveLaw",
    "DecodeLaw",
    "DispatchLaw",
    "ExpertLaw",
    "GemmLaw",
    "Law",
    "MlaLaw",
    "PrefillLaw",
    "Ratio",
    "find_law",
    "laws_of",
    "precisions",
    "source",
    "timed_families",
]

Floats = npt.NDArray[np.float64]
POOLED: Final = "pooled"
_DATACENTRE_ONLY: Final = ("fp8", "fp8_block", "fp4", "mxfp4")  # never pooled onto workstation Blackwell
_WORKSTATION: Final = ("rtx-pro-6000",)


class Law(Spec, kw_only=True):
    """What every law says about itself.

    `error` is its median relative error on shapes held out, `kind` whether it was fitted or assumed, `evidence` what
    it was timed on: "own" this GPU and engine, "engine" this GPU under another engine, "sibling" a GPU of the same
    architecture, "pooled" other GPUs, "sheet" nothing. `timed` names engine, version and number of rows.
    """

    error: float
    kind: str = "fitted"
    evidence: str = "own"
    timed: str = ""


class Ratio(msgspec.Struct, frozen=True, eq=False):
    """Ratio of measured to roofline time on a grid: linear in the logarithms of ratio and coordinates.

    `axes` are the coordinates of the nodes, ascending; `permille` the natural logarithm of the ratio at each node
    in thousandths, the last axis running fastest.
    """

    axes: tuple[tuple[float, ...], ...]
    permille: tuple[int, ...]

    def along(self, values: npt.ArrayLike, *fixed: float) -> Floats:
        """Return the ratios at `values` of the first axis, and one number on each other axis."""
        first, table = _grid(self)
        for logs, value in zip(reversed(_logs(self)[1:]), reversed(fixed), strict=True):
            table = _between(logs, value, table)
        ratios = np.interp(np.log(np.maximum(values, 1e-9)), first, table)
        return np.asarray(np.exp(ratios))


@functools.cache
def _logs(ratio: Ratio) -> list[list[float]]:
    return [[log(value) for value in axis] for axis in ratio.axes]


@functools.cache
def _grid(ratio: Ratio) -> tuple[Floats, Floats]:
    shape = [len(axis) for axis in ratio.axes]
    return np.array(_logs(ratio)[0]), np.reshape(ratio.permille, shape) / 1000.0


def _between(logs: list[float], value: float, table: Floats) -> Floats:
    """The table with its last axis read at `value`."""
    at = min(max(log(max(value, 1e-9)), logs[0]), logs[-1])
    left = min(bisect_right(logs, at), len(logs) - 1) - 1
    share = (at - logs[left]) / (logs[left + 1] - logs[left])
    return np.asarray(table[..., left] * (1.0 - share) + table[..., left + 1] * share)


class GemmLaw(Law, kw_only=True):
    """Matrix product: launch + p-norm of FLOPs at `compute` and bytes at `memory` of the peak, times ratio(m, n, k)."""

    compute: float
    memory: float
    launch_s: float
    p: float
    ratio: Ratio | None = None


class ExpertLaw(Law, kw_only=True):
    """Expert layer: launch + (p-norm of bytes of the experts touched and FLOPs) * ratio(rows, experts, parameters).

    `skew` widens the routing's imbalance: ``E (1 - exp(-rows / (E (1 + skew))))`` of a GPU's E experts are touched.
    Under expert parallelism the busiest GPU gets ``1 + load * sqrt((ep - 1) / E)`` times the mean. Each expert touched
    computes `padding` rows more. The ratio's axes are rows per expert, experts of the GPU and parameters of one expert.
    """

    compute: float
    memory: float
    launch_s: float
    skew: float
    p: float = 1.0
    load: float = 0.0
    padding: float = 0.0
    ratio: Ratio | None = None


class DecodeLaw(Law, kw_only=True):
    """Decode attention: launch + `head_s` per sequence, KV head and 1/SM + KV bytes at a share of peak * ratio.

    The ratios multiply the time of the bytes; their axes are query heads per KV head and head dimension.
    """

    launch_s: float
    head_s: float
    memory: float
    memory_fp8: float
    ratio: Ratio | None = None
    ratio_fp8: Ratio | None = None


class PrefillLaw(Law, kw_only=True):
    """Prefill attention: `head_s` per head and SM + FLOPs of the area and of `tile_tokens` more per token.

    The ratio multiplies the FLOPs' time; its axes are query heads of the GPU and head dimension.
    """

    compute: float
    head_s: float
    tile_tokens: float
    ratio: Ratio | None = None


class MlaLaw(Law, kw_only=True):
    """Attention over a compressed KV cache: the decode law with `compute` for its FLOPs, and the prefill law."""

    launch_s: float
    head_s: float
    memory: float
    memory_fp8: float
    compute: float
    prefill_compute: float
    prefill_head_s: float
    tile_tokens: float


class CollectiveLaw(Law, kw_only=True):
    """A collective over 2, 4 and 8 GPUs.

    ``(latency**p + (root * sqrt(bytes) + bytes on the wire at the share `bus` of the link)**p)**(1/p)``.
    """

    latency_s: tuple[float, float, float]
    bus: tuple[float, float, float]
    root_s: tuple[float, float, float] = (0.0, 0.0, 0.0)  # per square root of a byte
    p: tuple[float, float, float] = (1.0, 1.0, 1.0)


class DispatchLaw(Law, kw_only=True):
    """Expert dispatch and combine of one layer: launch + bytes of the remote copies of tokens.

    Inside the scale-up domain they cross links at the share `link`, between nodes the network at the share `rdma`.
    """

    launch_s: float
    link: float
    rdma_launch_s: float
    rdma: float


_KINDS: Final[dict[str, type[Law]]] = {
    "gemm": GemmLaw,
    "experts": ExpertLaw,
    "decode": DecodeLaw,
    "prefill": PrefillLaw,
    "mla": MlaLaw,
    "all_reduce": CollectiveLaw,
    "all_gather": CollectiveLaw,
    "reduce_scatter": CollectiveLaw,
    "all_to_all": CollectiveLaw,
    "dispatch": DispatchLaw,
}


class Entry(Spec):
    """One line of the data file; `gpu` is a family or "pooled", `of` a precision, a kind of link or a mode."""

    op: str
    gpu: str
    engine: str
    of: str
    law: dict[str, Any]


class _File(Spec):
    source: str
    laws: list[Entry]


@functools.cache
def _file() -> _File:
    path = resources.files("headway.cost") / "data" / "operators.json"
    return msgspec.json.decode(path.read_bytes(), type=_File)


@functools.cache
def _index() -> dict[tuple[str, str, str], dict[str, Entry]]:
    """Entries by operator, precision and GPU family, then by engine in the order of the file."""
    found: dict[tuple[str, str, str], dict[str, Entry]] = {}
    for entry in _file().laws:
        found.setdefault((entry.op, entry.of, entry.gpu), {})[entry.engine] = entry
    return found


def timed_families() -> list[str]:
    """GPU families with laws of their own."""
    return sorted({entry.gpu for entry in _file().laws} - {POOLED})


def precisions(op: str) -> list[str]:
    """Precisions, kinds of link or modes that some law of an operator covers."""
    return sorted({entry.of for entry in _file().laws if entry.op == op})


def source() -> str:
    """Where the timings behind the laws are from."""
    return _file().source


@functools.cache
def find_law(op: str, of: str, family: str | None, engine: str) -> Law | None:
    """Return the law nearest to a GPU family and engine with its level of evidence; None leaves the data sheet.

    Same GPU and engine, else the same GPU under another engine, else pooled over other GPUs.
    """
    own = _index().get((op, of, family or ""), {})
    pooled = _index().get((op, of, POOLED), {})
    if engine in own or "" in own:  # "": whatever the engine
        return _law(own.get(engine) or own[""], "own")
    if own:
        return _law(next(iter(own.values())), "engine")
    if not pooled or (family in _WORKSTATION and of in _DATACENTRE_ONLY):
        return None
    return _law(pooled.get(engine) or next(iter(pooled.values())), "pooled")


def laws_of(op: str, of: str, family: str | None) -> list[Law]:
    """Return the laws of all engines timed on a GPU family, each as own evidence."""
    return [_law(entry, "own") for entry in _index().get((op, of, family or ""), {}).values()]


def _law(entry: Entry, evidence: str) -> Law:
    return msgspec.convert({**entry.law, "evidence": evidence}, type=_KINDS[entry.op])
