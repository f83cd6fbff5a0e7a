"""Energy above idle of what an engine has computed, split into prefill and decode."""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.cost import StepTable


def dynamic_joules(table: StepTable, work: dict[str, Any]) -> tuple[float, float]:
    """Joules above idle spent on prefill and on decode.

    A step's token-wise energy is shared between its prompt tokens and its decodes in proportion to their number;
    attention is known apart for both; what is spent per sequence goes by the number of sequences.
    """
    steps = work["steps_by_tokens"]
    tokens = np.arange(len(steps))
    per_token_j = np.divide(table.linear_j[: len(steps)], tokens, out=np.zeros(len(steps)), where=tokens > 0)
    linear_prefill = float((per_token_j * work["prefill_by_tokens"]).sum())
    linear = float((table.linear_j[: len(steps)] * steps)[1:].sum())
    by_seqs = work["steps_by_seqs"]
    sequences = float((np.arange(len(by_seqs)) * by_seqs).sum())
    seq_j = float((table.seq_j[: len(by_seqs)] * by_seqs)[1:].sum())
    seq_prefill = seq_j * work["chunks"] / sequences if sequences else 0.0
    prefill = table.prefill_base_j * work["chunks"] + table.prefill_area_j * work["area"]
    prefill += table.prefill_window_area_j * work["window_area"]
    decode = (table.decode_j * work["steps_by_decodes"])[1:].sum()
    decode += (table.decode_ctx_j * work["ctx_by_decodes"]).sum()
    decode += (table.decode_window_j * work["window_by_decodes"]).sum()
    return prefill + linear_prefill + seq_prefill, float(decode) + linear - linear_prefill + seq_j - seq_prefill
