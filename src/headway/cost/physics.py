"""The laws of one operator: seconds, FLOPs and bytes as functions of tokens, all vectorised over tokens.

Every law is physics (FLOPs over peak, bytes over bandwidth) times fitted shares of the data sheet, plus the time of a
launch, times a smooth table of ratios. Token counts are ascending; seconds never fall with them and never beat the
data sheet. Seconds are those of one GPU's shard.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.cost.operators import CollectiveLaw, DecodeLaw, DispatchLaw, ExpertLaw, GemmLaw, MlaLaw, PrefillLaw
from headway.hardware import Gpu

__all__ = [
    "Cost",
    "all_reduce",
    "copies_sent",
    "decode_attention",
    "dispatch",
    "experts",
    "gather",
    "gemm",
    "power_sum",
    "prefill_attention",
    "stream",
]

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
    """Return the cost of ``rows x k`` times ``k x n``; `rows` ascend.

    `bits` are the bytes of one weight and of one input activation; outputs are bf16.
    """
    flop_s = 2.0 * n * k / peak_flops * rows
    byte_s = (bits[0] * n * k + (bits[1] * k + 2.0 * n) * rows) / card.memory_bytes_per_s
    seconds = law.launch_s + power_sum(flop_s / law.compute, byte_s / law.memory, law.p)
    if law.ratio is not None:
        seconds = np.maximum.accumulate(seconds * law.ratio.along(rows, n, k))
    return Cost(np.maximum(seconds, np.maximum(flop_s, byte_s)), flop_s, byte_s)


def experts(
    law: ExpertLaw,
    card: Gpu,
    peak_flops: float,
    routed: Floats,
    count: int,
    expert_params: float,
    weight_bytes: float,
    ep: int = 1,
) -> Cost:
    """Return the cost of a GPU's `count` experts of `expert_params` each for `routed` token-expert pairs; these ascend.

    Only experts that some token chose are read: ``count * (1 - exp(-routed / (count * (1 + skew))))`` of
    them. `routed` is the mean over `ep` groups; the law is that of the busiest, as routing is skewed.
    """
    busiest = routed * (1.0 + law.load * float(np.sqrt((ep - 1.0) / count)))
    touched = count * -np.expm1(-busiest / (count * (1.0 + law.skew)))
    expert_flop_s = 2.0 * expert_params / peak_flops
    flop_s = expert_flop_s * routed
    byte_s = weight_bytes * expert_params / card.memory_bytes_per_s * touched
    computed_s = expert_flop_s * (busiest + law.padding * touched)
    core = power_sum(computed_s / law.compute, byte_s / law.memory, law.p)
    if law.ratio is not None:
        core = np.maximum.accumulate(core * law.ratio.along(routed / count, count, expert_params))
    return Cost(law.launch_s + np.maximum(core, np.maximum(flop_s, byte_s)), flop_s, byte_s)


def decode_attention(
    law: DecodeLaw | MlaLaw, card: Gpu, heads: tuple[int, int], width: int, token: tuple[float, float], fp8: bool
) -> tuple[float, Cost]:
    """Return the seconds of a decoding sequence whatever its context, and the cost of a token of context.

    `heads` are the query and KV heads of the GPU, `width` the head dimension, `token` the FLOPs and the cached bytes of
    one token of context. The first is a block for each KV head; the launch is not in it.
    """
    flop_s, byte_s = token[0] / card.peak_flops["bf16"], token[1] / card.memory_bytes_per_s
    seconds = byte_s / (law.memory_fp8 if fp8 else law.memory)
    if isinstance(law, MlaLaw):
        seconds = float(np.hypot(flop_s / law.compute, seconds))
    elif law.ratio is not None and law.ratio_fp8 is not None:
        seconds *= float((law.ratio_fp8 if fp8 else law.ratio).along(heads[0] / heads[1], width))
    cost = Cost(*(np.asarray(value) for value in (max(seconds, flop_s, byte_s), flop_s, byte_s)))
    return law.head_s * heads[1] / card.sm_count, cost


def prefill_attention(
    law: PrefillLaw | MlaLaw, card: Gpu, heads: int, width: int, pair_flops: float
) -> tuple[float, float, Cost]:
    """Return the seconds of a chunk, of a token whatever its context, and the cost of a query-token pair.

    `heads` are the query heads of the GPU, `width` is the head dimension, `pair_flops` what one query and one token
    take in all heads.
    """
    flop_s = pair_flops / card.peak_flops["bf16"]
    if isinstance(law, MlaLaw):
        head_s, seconds = law.prefill_head_s, flop_s / law.prefill_compute
    else:
        shape = 1.0 if law.ratio is None else float(law.ratio.along(heads, width))
        head_s, seconds = law.head_s, max(flop_s, flop_s / law.compute * shape)
    pair = Cost(np.asarray(seconds), np.asarray(flop_s), np.zeros(()))
    return head_s * heads / card.sm_count, law.tile_tokens * seconds, pair


def stream(card: Gpu, kernels: int, kernel_s: float, bytes_moved: Floats) -> Cost:
    """Return the cost of `kernels` element-wise launches that move `bytes_moved` together."""
    byte_s = bytes_moved / card.memory_bytes_per_s
    return Cost(kernels * kernel_s + byte_s / _STREAM_SHARE, np.zeros_like(byte_s), byte_s)


def all_reduce(law: CollectiveLaw, card: Gpu, gpus: int, payload_bytes: Floats) -> Cost:
    """Return the cost of summing `payload_bytes` over n GPUs: ``2 (n - 1) / n`` of them cross each link."""
    return _collective(law, card, gpus, payload_bytes, 2.0)


def gather(law: CollectiveLaw, card: Gpu, gpus: int, payload_bytes: Floats) -> Cost:
    """Return the cost of an all-gather, a reduce-scatter or an all-to-all: ``(n - 1) / n`` cross each link.

    `payload_bytes` is the whole: what each GPU has after gathering or before scattering, or sends to all in turn.
    """
    return _collective(law, card, gpus, payload_bytes, 1.0)


def _collective(law: CollectiveLaw, card: Gpu, gpus: int, payload_bytes: Floats, turns: float) -> Cost:
    octave = np.log2(gpus)
    latency_s, bus, root_s, p = (
        float(np.interp(octave, (1.0, 2.0, 3.0), values)) for values in (law.latency_s, law.bus, law.root_s, law.p)
    )
    latency_s *= max(1.0, float(octave) / 3.0)
    wire_s = turns * (gpus - 1) / gpus * payload_bytes / card.link_bytes_per_s
    moving_s = root_s * np.sqrt(payload_bytes) + wire_s / bus
    seconds = power_sum(np.full_like(moving_s, latency_s), moving_s, p)
    return Cost(seconds, np.zeros_like(seconds), turns * payload_bytes / card.memory_bytes_per_s)


def dispatch(
    laws: dict[str, DispatchLaw], card: Gpu, gpus: int, tokens: Floats, topk: int, hidden: int
) -> Cost:
    """Return the cost of sending `tokens` of one GPU to the experts on `gpus` GPUs (fp8) and back (bf16).

    The faster of DeepEP's modes: "ll" sends every copy and starts quickly, "normal" one copy to a GPU and, across
    nodes, one to a node.
    """
    size = 3.0 * hidden * tokens
    best = np.full_like(tokens, np.inf)
    for mode, law in laws.items():
        near, far = copies_sent(mode, gpus, card.gpus_per_node, topk)
        seconds = size * near / (law.link * card.link_bytes_per_s)
        if far:
            seconds = np.maximum(seconds, law.rdma_launch_s + size * far / (law.rdma * card.rdma_bytes_per_s))
        best = np.minimum(best, law.launch_s + seconds)
    return Cost(best, np.zeros_like(best), size / card.memory_bytes_per_s)


def copies_sent(mode: str, gpus: int, per_node: int, topk: float) -> tuple[float, float]:
    """Return how many copies of a token leave over the scale-up links and over the network."""
    nodes, inside = -(-gpus // per_node), min(gpus, per_node)
    if mode == "ll":
        return topk * (inside - 1) / gpus, topk * (gpus - inside) / gpus
    landed = gpus * (1.0 - (1.0 - 1.0 / gpus) ** topk)
    far = (nodes - 1) * (1.0 - (1.0 - 1.0 / nodes) ** topk)
    return landed * (gpus - 1) / gpus, far
