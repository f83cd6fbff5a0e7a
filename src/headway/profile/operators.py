"""The operators a profile measures, and the grid of their shapes."""

from __future__ import annotations

from itertools import product
from typing import Final, NamedTuple

__all__ = ["DTYPES", "AllReduce", "Decode", "Gemm", "Operator", "Prefill", "grid"]

DTYPES: Final = {"bf16": 2.0, "fp8": 1.0}  # bytes of an element
QUICK, FULL = 1, 2
_ROWS = {QUICK: (1, 16, 64, 256, 1024, 4096), FULL: (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)}
_WIDTHS = {QUICK: (1024, 4096, 16384), FULL: (512, 1024, 2048, 4096, 8192, 16384)}
_HEADS = {QUICK: ((32, 8),), FULL: ((32, 8), (8, 1), (64, 8), (32, 32))}  # query and KV heads of one GPU
_BATCHES = {QUICK: (1, 16, 128), FULL: (1, 4, 16, 64, 256)}
_CONTEXTS = {QUICK: (512, 4096, 16384), FULL: (128, 512, 2048, 8192, 32768)}
_MESSAGES = {QUICK: (1 << 14, 1 << 20, 1 << 26), FULL: tuple(1 << power for power in range(10, 29, 2))}
_HEAD_DIM: Final = 128
_TOKENS_MOST: Final = {"prompt": 1 << 16, "cache": 1 << 22}  # of a batch: beyond it a measurement fills the memory


class Gemm(NamedTuple):
    """``m x k`` times ``k x n``, weights and activations in `dtype`, the product in bf16."""

    dtype: str
    m: int
    n: int
    k: int

    @property
    def moved_bytes(self) -> float:
        """Weights, activations and product, once each."""
        return DTYPES[self.dtype] * self.k * (self.m + self.n) + 2.0 * self.m * self.n


class Prefill(NamedTuple):
    """Causal attention of `batch` prompts of `isl` tokens, bf16."""

    batch: int
    isl: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def moved_bytes(self) -> float:
        """Queries, outputs, keys and values, once each."""
        return 4.0 * self.batch * self.isl * self.head_dim * (self.heads + self.kv_heads)


class Decode(NamedTuple):
    """Attention of one new token of each of `batch` sequences after `step` cached ones, bf16."""

    batch: int
    step: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def moved_bytes(self) -> float:
        """Keys and values, once."""
        return 4.0 * self.batch * (self.step + 1) * self.head_dim * self.kv_heads


class AllReduce(NamedTuple):
    """The sum of `message_bytes` of bf16 over `gpus` GPUs."""

    gpus: int
    message_bytes: int

    @property
    def moved_bytes(self) -> float:
        """What each GPU holds."""
        return float(self.message_bytes)


Operator = Gemm | Prefill | Decode | AllReduce


def grid(dtypes: tuple[str, ...], gpus: int = 1, full: bool = False) -> list[Operator]:
    """Return the shapes to measure: products of each dtype, attention, and sums where there are several GPUs.

    The quick grid has some hundred shapes, the full one some two thousand.
    """
    size = FULL if full else QUICK
    found: list[Operator] = [
        Gemm(dtype, m, n, k) for dtype, n, k, m in product(dtypes, _WIDTHS[size], _WIDTHS[size], _ROWS[size])
    ]
    for (heads, kv_heads), batch, tokens in product(_HEADS[size], _BATCHES[size], _CONTEXTS[size]):
        if batch * tokens <= _TOKENS_MOST["prompt"]:
            found.append(Prefill(batch, tokens, heads, kv_heads, _HEAD_DIM))
        if batch * tokens <= _TOKENS_MOST["cache"]:
            found.append(Decode(batch, tokens - 1, heads, kv_heads, _HEAD_DIM))
    degrees = [count for count in (2, 4, 8) if count <= gpus]
    found += [AllReduce(count, message) for count, message in product(degrees, _MESSAGES[size])]
    return found
