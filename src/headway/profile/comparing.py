"""What the cost model says of the operators that were measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headway.cost.efficiency import efficiency
from headway.cost.physics import all_reduce, decode_attention, gemm, prefill_attention
from headway.hardware import gpu
from headway.profile.operators import DTYPES, AllReduce, Gemm, Operator, Prefill
from headway.profile.profiling import Timing

__all__ = ["Comparison", "compare", "predicted_seconds"]

_FEW, _MANY = 64, 1024  # rows of a product


class Comparison(NamedTuple):
    """Predicted over measured seconds of a kind of operator: n of them, median ratio and median absolute error."""

    kind: str
    n: int
    ratio: float
    error: float


def compare(timings: Sequence[Timing], gpu_key: str) -> list[Comparison]:
    """Return the comparison by kind of operator; kinds whose dtype the catalogue's GPU lacks are left out.

    Raises:
        UnknownName: no such GPU in the catalogue.
    """
    ratios: dict[str, list[float]] = defaultdict(list)
    for timing in timings:
        predicted = predicted_seconds(timing.operator, gpu_key)
        if predicted is not None:
            ratios[_kind(timing.operator)].append(predicted / timing.seconds)
    return [
        Comparison(kind, len(found), float(np.median(found)), float(np.median(np.abs(np.array(found) - 1.0))))
        for kind, found in ratios.items()
    ]


def _kind(shape: Operator) -> str:
    if isinstance(shape, Gemm):
        rows = f"to {_FEW}" if shape.m <= _FEW else f"to {_MANY}" if shape.m <= _MANY else f"above {_MANY}"
        return f"product {shape.dtype}, rows {rows}"
    if isinstance(shape, AllReduce):
        return f"all-reduce, {shape.gpus} GPUs"
    return "attention, prompts" if isinstance(shape, Prefill) else "attention, decoding"


def predicted_seconds(shape: Operator, gpu_key: str) -> float | None:
    """Return what our law says of a launch on a GPU of the catalogue; None where it does not compute in the dtype.

    Raises:
        UnknownName: no such GPU.
    """
    card = gpu(gpu_key)
    laws = efficiency(card)
    if isinstance(shape, Gemm):
        if shape.dtype not in card.peak_flops:
            return None
        law, size = laws.gemm[shape.dtype], DTYPES[shape.dtype]
        rows = np.array([float(shape.m)])
        return float(gemm(law, card, card.peak_flops[shape.dtype], rows, shape.n, shape.k, (size, size)).seconds[0])
    if isinstance(shape, AllReduce):
        message = np.array([float(shape.message_bytes)])
        return float(all_reduce(laws.collective[card.link_kind], card, shape.gpus, message).seconds[0])
    pair_flops = 4.0 * shape.heads * shape.head_dim
    if isinstance(shape, Prefill):
        chunk_s, token_s, pair = prefill_attention(laws.prefill, card, shape.heads, shape.head_dim, pair_flops)
        area = shape.isl * (shape.isl + 1) / 2.0
        return laws.decode.launch_s + shape.batch * float(chunk_s + token_s * shape.isl + pair.seconds * area)
    kv_bytes = 4.0 * shape.kv_heads * shape.head_dim
    heads = (shape.heads, shape.kv_heads)
    block_s, token = decode_attention(laws.decode, card, heads, shape.head_dim, (pair_flops, kv_bytes), False)
    return laws.decode.launch_s + shape.batch * (block_s + float(token.seconds) * (shape.step + 1))
