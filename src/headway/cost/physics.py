"""The laws of one operator: seconds, FLOPs and bytes as functions of tokens, all vectorised over tokens.

Every law is physics (FLOPs over peak, bytes over bandwidth) times a fitted share of the data sheet, plus the
time of a launch. Seconds are those of one GPU's shard.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.cost.efficiency import CollectiveLaw, ExpertLaw, GemmLaw
from headway.hardware import Gpu

__all__ = ["Cost", "all_reduce", "experts", "gemm", "power_sum", "stream"]

Floats = npt.NDArray[np.float64]
_STREAM_SHARE = 0.80  # of the memory bandwidth, for element-wise kernels (median of public per-layer timings)


class Cost(NamedTuple):
    """Seconds of an operator on one GPU; its FLOPs and its bytes as seconds at the data sheet's peak."""

    seconds: Floats
    flop_s: Floats
    byte_s: Floats

    def times(self, count: float) -> Cost:
        """Return `count` such operators one after the other."""
        return Cost(self.seconds * count, self.flop_s * count, self.byte_s * count)


def power_sum(x: Floats, y: Floats, p: float) -> Floats:
    """Return ``(x**p + y**p)**(1/p)``, scaled by the larger term so that it neither over- nor underflows."""
    high, low = np.maximum(x, y), np.minimum(x, y)
    ratio = np.divide(low, high, out=np.zeros_like(high), where=high > 0.0)
    return np.asarray(high * (1.0 + ratio**p) ** (1.0 / p))


def gemm(
    law: GemmLaw, card: Gpu, peak_flops: float, rows: Floats, n: int, k: int, bits: tuple[float, float]
) -> Cost:
    """Return the cost of ``rows x k`` times ``k x n``.

    `bits` are the bytes of one weight and of one input activation; outputs are bf16.
    """
    flop_s = 2.0 * n * k / peak_flops * rows
    byte_s = (bits[0] * n * k + (bits[1] * k + 2.0 * n) * rows) / card.memory_bytes_per_s
    return Cost(law.launch_s + power_sum(flop_s / law.compute, byte_s / law.memory, law.p), flop_s, byte_s)


def experts(
    law: ExpertLaw,
    card: Gpu,
    peak_flops: float,
    routed: Floats,
    count: int,
    expert_params: float,
    weight_bytes: float,
) -> Cost:
    """Return the cost of a layer of `count` experts of `expert_params` each for `routed` token-expert pairs.

    Only experts that some token chose are read: ``count * (1 - exp(-routed / (count * (1 + skew))))`` of
    them.
    """
    touched = count * -np.expm1(-routed / (count * (1.0 + law.skew)))
    flop_s = 2.0 * expert_params / peak_flops * routed
    byte_s = weight_bytes * expert_params / card.memory_bytes_per_s * touched
    return Cost(law.launch_s + flop_s / law.compute + byte_s / law.memory, flop_s, byte_s)


def stream(card: Gpu, kernels: int, kernel_s: float, bytes_moved: Floats) -> Cost:
    """Return the cost of `kernels` element-wise launches that move `bytes_moved` together."""
    byte_s = bytes_moved / card.memory_bytes_per_s
    return Cost(kernels * kernel_s + byte_s / _STREAM_SHARE, np.zeros_like(byte_s), byte_s)


def all_reduce(law: CollectiveLaw, card: Gpu, gpus: int, payload_bytes: Floats) -> Cost:
    """Return the cost of summing `payload_bytes` over n GPUs: ``2 (n - 1) / n`` of them cross each link."""
    octave = np.log2(gpus)
    latency_s = float(np.interp(octave, (1.0, 2.0, 3.0), law.latency_s)) * max(1.0, octave / 3.0)
    bus = float(np.interp(octave, (1.0, 2.0, 3.0), law.bus)) * card.link_bytes_per_s
    seconds = latency_s + 2.0 * (gpus - 1) / gpus * payload_bytes / bus
    return Cost(seconds, np.zeros_like(seconds), 2.0 * payload_bytes / card.memory_bytes_per_s)
