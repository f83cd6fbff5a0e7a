"""Timings as files: a CSV for each kind of operator, in the columns of the public tables, and the fingerprint."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from headway.errors import BadInput
from headway.profile.operators import AllReduce, Decode, Gemm, Prefill
from headway.profile.profiling import Timing
from headway.specs import json_text

__all__ = ["write_timings"]

_US: Final = 1e6
_LONG: Final = {"bf16": "bfloat16", "fp8": "fp8"}
_ATTENTION: Final = ("gpu", "engine", "engine_version", "kernel", "attn_dtype", "kv_cache_dtype", "batch_size", "isl",
                     "step", "num_heads", "num_key_value_heads", "head_dim", "window_size", "time_us",
                     "power_w")  # fmt: skip
COLUMNS: Final = {
    "ops_gemm": ("gpu", "engine", "engine_version", "kernel", "dtype", "m", "n", "k", "time_us", "power_w"),
    "ops_attention_prefill": _ATTENTION,
    "ops_attention_decode": _ATTENTION,
    "ops_collectives": ("source", "gpu", "lib", "lib_version", "op", "dtype", "num_gpus", "message_bytes", "topology",
                        "time_us"),
}  # fmt: skip


def write_timings(
    folder: str | Path, timings: Sequence[Timing], fingerprint: dict[str, Any], gpu_key: str
) -> list[Path]:
    """Write `ops_*.csv.gz` and `fingerprint.json` into a folder, made where it is not there; return their paths.

    Raises:
        BadInput: it cannot be written.
    """
    folder = Path(folder)
    tables: dict[str, list[tuple[object, ...]]] = {}
    for timing in timings:
        name, cells = _line(timing, gpu_key, str(fingerprint.get("pytorch", "")), str(fingerprint.get("nccl", "")))
        tables.setdefault(name, []).append(cells)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "fingerprint.json"]
        written[0].write_text(json_text(fingerprint) + "\n", encoding="utf-8")
        for name, lines in tables.items():
            written.append(folder / f"{name}.csv.gz")
            written[-1].write_bytes(gzip.compress(_csv(COLUMNS[name], lines).encode(), mtime=0))
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror}") from None
    return written


def _line(timing: Timing, gpu: str, version: str, nccl: str) -> tuple[str, tuple[object, ...]]:
    shape, time_us = timing.operator, f"{timing.seconds * _US:.3f}"
    made = (gpu, "pytorch", version)
    if isinstance(shape, Gemm):
        kernel = "torch.mm" if shape.dtype == "bf16" else "torch._scaled_mm"
        return "ops_gemm", (*made, kernel, _LONG[shape.dtype], shape.m, shape.n, shape.k, time_us, "")
    if isinstance(shape, AllReduce):
        made = ("headway", gpu, "nccl")
        return "ops_collectives", (*made, nccl, "all_reduce", "bfloat16", shape.gpus, shape.message_bytes, "", time_us)
    isl, step = (shape.isl, 0) if isinstance(shape, Prefill) else (1, shape.step)
    heads = (shape.heads, shape.kv_heads, shape.head_dim)
    name = "ops_attention_decode" if isinstance(shape, Decode) else "ops_attention_prefill"
    attention = ("scaled_dot_product_attention", "bfloat16", "bfloat16")
    return name, (*made, *attention, shape.batch, isl, step, *heads, "", time_us, "")


def _csv(columns: tuple[str, ...], lines: list[tuple[object, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(lines)
    return text.getvalue()
