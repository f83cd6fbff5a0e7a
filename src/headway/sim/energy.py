"""Energy above idle of what engines have computed, and of the gaps between, split into prefill and decode."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.cost import StepTable


def pool_joules(table: StepTable, work: dict[str, Any], busy_s: float) -> tuple[float, float]:
    """Joules above idle that the engines of a pool spent on prefill and on decode, gaps inside busy time included.

    `work` is what they computed, with `shared_by_tokens`, the steps by the tokens of all ranks, where ranks share
    experts; `busy_s` is summed over them. What ranks share goes by tokens, gaps go by the joules of all else.
    """
    prefill, decode = dynamic_joules(table, work)
    prompts = prefill / max(prefill + decode, 1e-300)
    gap = _gap_joules(table, work, busy_s)
    shared, by_tokens = 0.0, work["steps_by_tokens"]
    if table.shared_j is not None:
        shared = float(work["shared_by_tokens"] @ table.shared_j)
    tokens = max(int((by_tokens * np.arange(len(by_tokens))).sum()), 1)
    share = float(work["prefill_by_tokens"].sum() / tokens)
    return prefill + shared * share + gap * prompts, decode + shared * (1.0 - share) + gap * (1.0 - prompts)


def dynamic_joules(table: StepTable, work: dict[str, Any]) -> tuple[float, float]:
    """Joules of what each engine computes for itself, above idle.

    A step's token-wise energy is shared between its prompt tokens and its decodes in proportion to their number;
    attention is known apart for both; what is spent per sequence goes by the number of sequences.
    """
    steps, prompt = work["steps_by_tokens"], work["prefill_by_tokens"]
    tokens = np.arange(len(steps))
    token_j = np.divide(table.linear_j[: len(steps)], tokens, out=np.zeros(len(steps)), where=tokens > 0)
    by_seqs, chunks = work["steps_by_seqs"], work["chunks"]
    sequences = int((np.arange(len(by_seqs)) * by_seqs).sum())
    seq_j = float((table.seq_j[: len(by_seqs)] * by_seqs)[1:].sum()) / max(sequences, 1)
    prefill = float((token_j * prompt).sum()) + seq_j * chunks
    prefill += table.prefill_base_j * chunks + table.prefill_area_j * work["area"]
    prefill += table.prefill_window_area_j * work["window_area"]
    decode = float((token_j * (tokens * steps - prompt)).sum()) + seq_j * (sequences - chunks)
    decode += float((table.decode_j * work["steps_by_decodes"])[1:].sum())
    decode += float((table.decode_ctx_j * work["ctx_by_decodes"]).sum())
    decode += float((table.decode_window_j * work["window_by_decodes"]).sum())
    return float(prefill), decode


def _gap_joules(table: StepTable, work: dict[str, Any], busy_s: float) -> float:
    """Joules above idle of the time with a step in flight that the step's operators do not account for.

    Such gaps are the host's around prompts, transfers between stages and waiting for other ranks; the GPU draws
    resident power in them.
    """
    return table.resident_watts * max(0.0, busy_s - _operator_seconds(table, work))


def _operator_seconds(table: StepTable, work: dict[str, Any]) -> float:
    by_tokens, by_seqs, by_decodes = work["steps_by_tokens"], work["steps_by_seqs"], work["steps_by_decodes"]
    seconds = float(table.linear_s[: len(by_tokens)] @ by_tokens) + float(table.seq_s[: len(by_seqs)] @ by_seqs)
    seconds += float((table.decode_s * by_decodes)[1:].sum())
    seconds += float((table.decode_ctx_s * work["ctx_by_decodes"]).sum())
    seconds += float((table.decode_window_s * work["window_by_decodes"]).sum())
    seconds += table.prefill_base_s * work["chunks"] + table.prefill_area_s * work["area"]
    if table.shared_s is not None:
        seconds += table.ranks * float(work["shared_by_tokens"] @ table.shared_s)
    return float(seconds + table.prefill_window_area_s * work["window_area"])
