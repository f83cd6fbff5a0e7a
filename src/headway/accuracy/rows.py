"""Reading a table of measured operating points: one row, one point; empty cells are not known."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any, Final

import msgspec

from headway.errors import BadInput, nearest
from headway.workload.trace import open_bytes, reading_errors

__all__ = ["FIGURES", "Row", "read_rows"]

_UNREADABLE: tuple[type[Exception], ...] = (*reading_errors(), csv.Error)
_MS: Final = 1e-3
_STATS: Final = ("mean", "p50", "p90", "p99")
FIGURES: Final[dict[str, tuple[str, float]]] = {  # column -> name inside, factor to seconds, tokens/s, W or J
    **{f"{kind}_{stat}_ms": (f"{kind}_{stat}", _MS) for kind in ("ttft", "tpot", "itl", "e2e") for stat in _STATS},
    "output_throughput_tok_s": ("output_throughput", 1.0),
    "total_throughput_tok_s": ("total_throughput", 1.0),
    "request_throughput_req_s": ("request_throughput", 1.0),
    "power_w": ("power", 1.0),
    "energy_per_token_j": ("energy_per_token", 1.0),
}
_NEEDED: Final = ("row_id", "source", "engine", "model_key", "gpu_key", "gpu_count", "mode")
_TEXTS: Final = ("row_id", "source", "engine", "engine_version", "model", "model_key", "precision_weights",
                 "precision_kv", "gpu", "gpu_key", "mode", "workload", "dist_note", "notes")  # fmt: skip
_COUNTS: Final = ("gpu_count", "tp", "pp", "ep", "dp")
_LOADS: Final = ("isl_mean", "osl_mean", "request_rate", "concurrency", "batch_size", "num_prompts")
_UNREAD: Final = ("source_file", "licence", "prefill_tok_s", "energy_per_request_j", "duration_s",
                  "completed")  # fmt: skip
_COLUMNS: Final = (*_TEXTS, *_COUNTS, *_LOADS, *_UNREAD, *FIGURES)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measured operating point; texts are "" and numbers None where they are not known.

    `measured` holds the figures by name ("ttft_mean", "output_throughput", "power", ...) in seconds, tokens/s,
    requests/s, watts and joules per output token, of all `gpu_count` GPUs together.
    """

    row_id: str
    source: str
    engine: str
    engine_version: str = ""
    model: str = ""
    model_key: str
    precision_weights: str = ""
    precision_kv: str = ""
    gpu: str = ""
    gpu_key: str
    mode: str
    workload: str = ""
    dist_note: str = ""
    notes: str = ""
    gpu_count: int | None = None
    tp: int | None = None
    pp: int | None = None
    ep: int | None = None
    dp: int | None = None
    isl_mean: float | None = None
    osl_mean: float | None = None
    request_rate: float | None = None
    concurrency: float | None = None
    batch_size: float | None = None
    num_prompts: float | None = None
    measured: dict[str, float] = msgspec.field(default_factory=dict)


def read_rows(path: str | Path) -> list[Row]:
    """Return the rows of a CSV file, plain or gzipped, in their order.

    Columns may come in any order, and those not needed may be absent. A figure of 0 counts as not known.

    Raises:
        BadInput: no such file, a column that is missing or unknown, or a cell that is no number of its kind.
    """
    path = Path(path)
    try:
        with open_bytes(path) as file:
            reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
            header = next(reader, [])
            _check_header(path, header)
            rows = [_row(path, reader.line_num, header, cells) for cells in reader if cells]
    except _UNREADABLE as error:
        raise BadInput(f"{path}: cannot be read as CSV: {error}") from None
    if not rows:
        raise BadInput(f"{path}: holds a header and no rows")
    return rows


def _check_header(path: Path, header: list[str]) -> None:
    between = next((sign for sign in (";", "\t") if len(header) == 1 and sign in header[0]), "")
    if between:
        raise BadInput(f"{path}: cells stand between {between!r}; commas are expected, as in a CSV file")
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise BadInput(
            f"{path}: column {missing[0]!r} is missing; a table of measurements needs {', '.join(_NEEDED)} and at "
            f"least one figure such as ttft_mean_ms, tpot_mean_ms or output_throughput_tok_s"
        )
    for name in header:
        if name not in _COLUMNS or header.count(name) > 1:
            problem = "comes twice" if name in _COLUMNS else "is unknown"
            near = nearest(name, _COLUMNS)
            raise BadInput(f"{path}: column {name!r} {problem}; nearest: {', '.join(near) or 'none'}")
    if not any(name in FIGURES for name in header):
        raise BadInput(f"{path}: no column holds a figure; known ones: {', '.join(FIGURES)}")


def _row(path: Path, line: int, header: list[str], cells: list[str]) -> Row:
    if len(cells) != len(header):
        raise BadInput(f"{path}:{line}: came {len(cells)} cells; expected {len(header)}, one for each column")
    came = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    numbers = {
        name: _number(path, line, name, text)
        for name, text in came.items()
        if text and (name in _LOADS or name in _COUNTS or name in FIGURES)
    }
    for name in _COUNTS:
        if name in numbers and numbers[name] % 1:
            raise BadInput(f"{path}:{line}: {name} {came[name]!r}: expected a whole number")
    known: dict[str, Any] = {name: came.get(name, "") for name in _TEXTS}
    known |= {name: int(numbers[name]) for name in _COUNTS if name in numbers}
    known |= {name: numbers[name] for name in _LOADS if name in numbers}
    return Row(
        **known,
        measured={name: numbers[c] * factor for c, (name, factor) in FIGURES.items() if numbers.get(c)},
    )


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise BadInput(f"{path}:{line}: {name} {text!r}: expected a number, 0 or more, or an empty cell")
    return number
