"""Step times as the core looks them up.

A step with n decoding sequences, whose attention reads `ctx` tokens in all, and some prefill chunks takes

    linear_s[tokens] + seq_s[sequences] + decode_s[n] + decode_ctx_s[n] * ctx + decode_window_s[n] * ctx_window
    + sum over chunks (prefill_base_s + prefill_area_s * area + prefill_window_area_s * window_area)
    + prompt_step_s, if there are chunks

where area is the sum over the chunk's tokens of the context each attends to, itself included. Data-parallel ranks wait
for the slowest of them and then for what they share: shared_s[tokens of all ranks].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython
import numpy as np

if TYPE_CHECKING:
    from headway.cost import StepTable


def buffer(values: Any) -> Any:
    """Numbers for the core to index: a typed buffer, a copy, when compiled; a list when interpreted.

    Reading an array from plain Python makes numpy scalars, which are slower than Python's and no JSON numbers.
    """
    array = np.array(values, order="C")
    return array if cython.compiled else array.tolist()


def zeros(count: cython.Py_ssize_t) -> Any:
    """As many integers 0, as `buffer` has them."""
    return np.zeros(count, dtype=np.int64) if cython.compiled else [0] * count


def window_area(prefix: cython.longlong, tokens: cython.longlong, window: cython.longlong) -> cython.longlong:
    """Sum of min(position, window) over positions prefix+1 .. prefix+tokens."""
    below: cython.longlong = min(max(window - prefix, 0), tokens)
    return below * prefix + below * (below + 1) // 2 + (tokens - below) * window


class StepLaw:
    """A `cost.StepTable`, typed, shared by the engines of a pool: 64 KiB a table, so that it stays in the cache."""

    def __init__(self, table: StepTable) -> None:
        self.linear_s = buffer(table.linear_s)
        self.seq_s = buffer(table.seq_s)
        self.decode_s = buffer(table.decode_s)
        self.decode_ctx_s = buffer(table.decode_ctx_s)
        self.decode_window_s = buffer(table.decode_window_s)
        self.p2p_s = buffer(table.p2p_s)
        self.prefill_base_s = table.prefill_base_s
        self.prefill_area_s = table.prefill_area_s
        self.prefill_window_area_s = table.prefill_window_area_s
        self.prompt_step_s = table.prompt_step_s
        self.shared_s = buffer(np.zeros(1) if table.shared_s is None else table.shared_s)
        self.stages = table.stages
        self.kv_blocks = table.kv_blocks
        self.block_tokens = table.block_tokens
        self.window = table.window
        self.window_group = table.window_group
        self.max_context = table.max_context
        self.longest = table.longest_tokens
        self.prefill_alone = table.prefill_alone
        self.poll_steps = table.poll_steps
        self.ahead = table.ahead
        self.align_steps = table.align_steps
        self.gather_steps = table.gather_steps

    def decode_base(self, n: cython.longlong) -> cython.double:
        """Seconds of a step with n decoding sequences and nothing else, but for what its context costs."""
        seconds: cython.double = self.linear_s[n] + self.seq_s[n] + self.decode_s[n]
        return seconds

    def chunk_s(self, area: cython.longlong, windowed: cython.longlong) -> cython.double:
        """Attention seconds of a prefill chunk that attends `area` tokens in all, `windowed` of them in a window."""
        seconds: cython.double = self.prefill_base_s + self.prefill_area_s * area
        if self.window > 0:
            seconds += self.prefill_window_area_s * windowed
        return seconds

    def mixed_s(
        self,
        n: cython.longlong,
        ctx: cython.longlong,
        ctx_window: cython.longlong,
        tokens: cython.longlong,
        seqs: cython.longlong,
    ) -> cython.double:
        """Seconds of a step with prefill chunks in it, without the chunks' own attention."""
        seconds: cython.double = self.linear_s[tokens] + self.seq_s[seqs]
        if n > 0:
            seconds += self.decode_s[n] + self.decode_ctx_s[n] * ctx + self.decode_window_s[n] * ctx_window
        return seconds
