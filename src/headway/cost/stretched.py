"""A step law whose steps, or a part of each, take longer or shorter: where it may be off, and what holds it back."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from headway.cost.steptable import StepTable

__all__ = ["Part", "eased", "stretched"]

Part = Literal["prompts", "tokens", "kv", "link"]


def stretched(table: StepTable, factor: float) -> StepTable:
    """Return the law with every time multiplied by `factor`, above 0; joules, pages and limits stay."""
    if factor == 1.0:
        return table
    times = {}
    for name in table.__struct_fields__:
        seconds = getattr(table, name)
        if name.endswith("_s") and seconds is not None:
            times[name] = _kept(seconds * factor)
    return msgspec.structs.replace(table, **times)


def eased(table: StepTable, part: Part, role: Literal["mixed", "prefill", "decode"] = "mixed") -> StepTable:
    """Return the law with one part of it twice as good; of "link" as if exchanges between stages took no time.

    "prompts": what chunks and the tokens beyond `max_seqs` of a step add to it, so what is computed and not what is
    read. "tokens": all else of a step. "kv": the pages. Prompts and tokens together are all steps in half the time, and
    that is what either of them is for replicas of its own `role`.
    """
    if part in ("prompts", "tokens") and role != "mixed":
        own = part == ("prompts" if role == "prefill" else "tokens")
        return eased(eased(table, "prompts"), "tokens") if own else table
    if part == "kv":
        return msgspec.structs.replace(table, kv_blocks=2 * table.kv_blocks)
    if part == "link":
        return msgspec.structs.replace(table, p2p_s=_kept(np.zeros_like(table.p2p_s)))
    prompts = part == "prompts"
    times = {
        name: _kept(getattr(table, name) / 2)
        for name in (
            ("prefill_base_s", "prefill_area_s", "prefill_window_area_s", "prompt_step_s") if prompts
            else ("seq_s", "decode_s", "decode_ctx_s", "decode_window_s")
        )
    }  # fmt: skip
    for name, tokens in (("linear_s", table.max_seqs), ("shared_s", table.max_seqs * table.ranks)):
        seconds = getattr(table, name)
        if seconds is not None:
            most = seconds[min(tokens, len(seconds) - 1)]
            read, computed = np.minimum(seconds, most), np.maximum(seconds - most, 0.0)
            times[name] = _kept(read + computed / 2 if prompts else read / 2 + computed)
    return msgspec.structs.replace(table, **times)


def _kept(seconds: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64] | float:
    """Times that nobody writes to."""
    if isinstance(seconds, np.ndarray):
        seconds.setflags(write=False)
    return seconds
