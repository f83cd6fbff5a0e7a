"""A replica's step law as arrays: what the engine looks up, and the readable reference of the formula."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from headway.cost.efficiency import Estimate

__all__ = ["StepTable", "chunk_area"]

Floats = npt.NDArray[np.float64]
Chunk = tuple[int, int]


def chunk_area(prefix: int, tokens: int, window: int = 0) -> int:
    """Return the tokens that a chunk of `tokens` queries after `prefix` cached ones attends, summed.

    The query at position i (from 1) attends i tokens, or min(i, window) when there is a window.
    """
    end = prefix + tokens
    if window <= 0:
        return tokens * prefix + tokens * (tokens + 1) // 2
    ramp_end, ramp_start = min(end, window), min(prefix, window)
    ramp = (ramp_end * (ramp_end + 1) - ramp_start * (ramp_start + 1)) // 2
    return ramp + window * (end - prefix - (ramp_end - ramp_start))


class StepTable(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Seconds and joules of any step of one replica, by lookup and a few products.

    Every ``*_s`` array holds seconds of one pipeline stage (the slowest one; all of the replica when `stages`
    is 1), every ``*_j`` array joules above idle of all the replica's GPUs, for the whole way through the
    stages. `idle_watts` are theirs with an engine loaded and no step in flight, `resident_watts` what comes on top
    while a step is in flight and none of its operators runs: gaps that no array holds. Arrays are float64 and
    read-only. `linear_*` and `p2p_s` are indexed by the tokens of the step (0 to `max_batched_tokens`), `seq_*` by its
    sequences, `decode_*` by its decoding sequences (0 to `max_seqs`). `linear_s` never decreases; single entries
    of a published law's `decode_s` may be negative, a whole step is not. With speculation a step is that part of a real
    one that gives each sequence one token (`drafting.folded`), and `decode_s` is negative for the most part.

    A step of a pipeline takes ``stages * step_seconds + (stages - 1) * p2p_s[tokens]`` to come out, and a
    stage is busy for `step_seconds`.

    `prefill_alone`: prompts are computed in steps of their own while decodes wait. `poll_steps`: a busy engine
    looks for new requests every so many decode steps. `ahead`: the next step is composed while one runs, so a request
    that comes meanwhile joins the one after it. `intake_s`: what a request and its answer spend outside the
    engine (HTTP, tokenizer, detokenizer), put before its arrival. `prompt_step_s`: once for a step with chunks.

    A table is one data-parallel rank's. With `ranks` above 1 all step together: as long as the slowest, and then
    `shared_s`, indexed by the tokens of all ranks (0 to `ranks * max_batched_tokens`), for the experts they share. With
    `align_steps` above 0 prompts wait until all ranks have one, at the latest for the `align_steps`-th step, and then
    `gather_steps` more; not while a rank has prompts alone.

    KV: a page holds `block_tokens` tokens of one group of layers. A block of tokens takes one page, and
    `window_group` more while any of its tokens is inside the window of `window` tokens (`window_blocks`
    blocks).
    """

    linear_s: Floats
    seq_s: Floats
    decode_s: Floats
    decode_ctx_s: Floats
    decode_window_s: Floats
    prefill_base_s: float
    prefill_area_s: float
    prefill_window_area_s: float
    p2p_s: Floats

    linear_j: Floats
    seq_j: Floats
    decode_j: Floats
    decode_ctx_j: Floats
    decode_window_j: Floats
    prefill_base_j: float
    prefill_area_j: float
    prefill_window_area_j: float

    idle_watts: float
    gpus: int
    stages: int
    max_batched_tokens: int
    max_seqs: int

    kv_blocks: int
    block_tokens: int
    window: int
    window_group: int
    window_blocks: int
    max_context: int

    prefill_alone: bool = False
    poll_steps: int = 1
    ahead: bool = False
    prompt_step_s: float = 0.0
    intake_s: float = 0.0
    resident_watts: float = 0.0
    ranks: int = 1
    shared_s: Floats | None = None
    shared_j: Floats | None = None
    align_steps: int = 0
    gather_steps: int = 0

    provenance: dict[str, Estimate]

    def __repr__(self) -> str:
        return (
            f"StepTable({self.gpus} GPUs in {self.stages} stages, {self.max_batched_tokens} tokens and "
            f"{self.max_seqs} sequences a step, {self.kv_blocks} KV pages of {self.block_tokens} tokens)"
        )

    @property
    def longest_tokens(self) -> int:
        """Tokens, prompt and output together, of the longest request that the replica could ever serve."""
        blocks = self.kv_blocks
        if self.window > 0:
            inside = (self.window + self.block_tokens - 2) // self.block_tokens
            blocks = max(blocks // (1 + self.window_group), blocks - self.window_group * inside)
        return min(self.max_context, blocks * self.block_tokens)

    def step_seconds(self, n_decode: int, ctx: int, ctx_window: int, chunks: Sequence[Chunk] = ()) -> float:
        """Return the seconds one stage needs for one step.

        The step decodes one token of each of `n_decode` sequences, which attend `ctx` tokens in sum
        (`ctx_window` = the sum of each one's context capped by the window), and prefills `chunks` of (cached
        prefix, new tokens). Of data-parallel ranks all are taken to be equally busy.
        """
        tokens = n_decode + sum(new for _, new in chunks)
        seconds = float(self.linear_s[tokens] + self.seq_s[n_decode + len(chunks)])
        if self.shared_s is not None:
            seconds += float(self.shared_s[tokens * self.ranks])
        if n_decode:
            seconds += float(self.decode_s[n_decode])
            seconds += (
                float(self.decode_ctx_s[n_decode]) * ctx + float(self.decode_window_s[n_decode]) * ctx_window
            )
        seconds += self.prompt_step_s if chunks else 0.0
        for prefix, new in chunks:
            seconds += self.prefill_base_s + self.prefill_area_s * chunk_area(prefix, new)
            seconds += self.prefill_window_area_s * chunk_area(prefix, new, self.window)
        return seconds

    def step_joules(self, n_decode: int, ctx: int, ctx_window: int, chunks: Sequence[Chunk] = ()) -> float:
        """Return the estimated joules above idle of the same step on all the replica's GPUs."""
        tokens = n_decode + sum(new for _, new in chunks)
        joules = float(self.linear_j[tokens] + self.seq_j[n_decode + len(chunks)])
        if self.shared_j is not None:
            joules += float(self.shared_j[tokens * self.ranks])
        if n_decode:
            joules += float(self.decode_j[n_decode])
            joules += (
                float(self.decode_ctx_j[n_decode]) * ctx + float(self.decode_window_j[n_decode]) * ctx_window
            )
        for prefix, new in chunks:
            joules += self.prefill_base_j + self.prefill_area_j * chunk_area(prefix, new)
            joules += self.prefill_window_area_j * chunk_area(prefix, new, self.window)
        return joules
