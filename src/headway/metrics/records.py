"""One row per arrived request, as numpy columns; the files they are written to are in `record_files`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.errors import BadInput, UnknownName
from headway.metrics import record_files
from headway.metrics.columns import COLUMNS, STATUS_WORDS, Column, Status

__all__ = ["Records"]


class Records:
    """Numpy columns of equal length n, one row per arrived request.

    id int64; arrival_s, admitted_s (first scheduled), first_token_s, last_token_s float64, seconds since the
    run began, NaN where it did not happen; prompt_tokens, output_tokens (generated), cached_tokens (of the
    prompt, from a prefix cache) int64; preemptions, pool, replica, slo_class, tenant int32; status int8
    (`Status`); measured bool (arrived after warm-up). A column of the right type is kept as it is, not
    copied.

    Raises:
        BadInput: a column is missing, unknown, of another length, or holds values its type or meaning
        forbids.
    """

    __slots__ = ("columns",)

    def __init__(self, columns: Mapping[str, Any]) -> None:
        for name in columns:
            if name not in COLUMNS:
                raise UnknownName("column", name, COLUMNS)
        rows = len(columns["id"]) if "id" in columns else 0
        self.columns: dict[str, NDArray[Any]] = {
            name: _column(name, columns.get(name), column, rows) for name, column in COLUMNS.items()
        }
        if rows and not 0 <= self["status"].min() <= self["status"].max() < len(Status):
            raise BadInput(f"column 'status': codes are 0 to {len(Status) - 1} ({', '.join(STATUS_WORDS)})")
        if rows and (self["slo_class"].min() < 0 or not np.isfinite(self["arrival_s"]).all()):
            raise BadInput("column 'slo_class' holds classes from 0, column 'arrival_s' finite times")

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which requests got all their tokens; bool[n]."""
        return np.asarray(self["status"] == Status.FINISHED)

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Arrival to first output token, seconds; NaN where none came."""
        return np.asarray(self["first_token_s"] - self["arrival_s"])

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        """Arrival to last output token, seconds; NaN where none came."""
        return np.asarray(self["last_token_s"] - self["arrival_s"])

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """(e2e - ttft) / (output tokens - 1), seconds; NaN (undefined) for fewer than two tokens."""
        gaps = self["output_tokens"] - 1
        spread_s = self["last_token_s"] - self["first_token_s"]
        return np.asarray(np.divide(spread_s, gaps, out=np.full(len(self), np.nan), where=gaps > 0))

    def replace(self, **columns: Any) -> Records:
        """Return records with these columns in place of the old ones; the others are shared, not copied."""
        return Records(self.columns | columns)

    def check_integrity(self) -> None:
        """Raise `ValueError` where time runs backwards, or a finished request lacks a token or a time."""
        arrival, admitted, first, last = (
            self[name] for name in ("arrival_s", "admitted_s", "first_token_s", "last_token_s")
        )
        backwards = (arrival > admitted) | (arrival > first) | (admitted > first) | (first > last)
        lacking = self.finished & (np.isnan(last - first) | (self["output_tokens"] < 1))
        for broken, law in (
            (backwards, "arrival <= admitted <= first token <= last token"),
            (lacking, "a finished request has a token and the times of its first and last"),
        ):
            if broken.any():
                row = int(broken.argmax())
                came = {name: values[row].item() for name, values in self.columns.items()}
                raise ValueError(f"law broken: {law}; came {came}")

    def write(self, path: str | Path) -> None:
        """Write the rows to a file, its form by suffix: .parquet, .csv, .json (a list of objects) or .jsonl.

        `status` is written as a word, a time that did not happen as null (empty in CSV). Every form reads
        back to the same bits.

        Raises:
            BadInput: another suffix, or the file cannot be written.
            MissingExtra: .parquet without pyarrow.
        """
        record_files.write(path, self.columns)

    @classmethod
    def read(cls, path: str | Path) -> Records:
        """Return the records of a file that `write` made, or another program in the same form.

        Raises:
            BadInput: another suffix, no such file, or a broken row (naming file, line and what was expected).
            MissingExtra: .parquet without pyarrow.
        """
        columns = record_files.read(path)
        try:
            return cls(columns)
        except BadInput as error:
            raise BadInput(f"{path}: {error}") from None


def _column(name: str, values: Any, column: Column, rows: int) -> NDArray[Any]:
    if values is None:
        if column.default is None:
            needed = [other for other, spec in COLUMNS.items() if spec.default is None]
            raise BadInput(f"column {name!r} is missing; records need {', '.join(needed)}")
        return np.full(rows, column.default, dtype=column.dtype)
    came = np.asarray(values)
    if came.shape != (rows,):
        raise BadInput(f"column {name!r} has shape {came.shape}, but the column 'id' has {rows} rows")
    if came.dtype == column.dtype:
        return came
    try:
        cast = came.astype(column.dtype)
    except (OverflowError, TypeError, ValueError):
        cast = np.empty(0, column.dtype)
    if not np.array_equal(cast, came, equal_nan=cast.dtype.kind == "f"):
        raise BadInput(
            f"column {name!r} holds {column.dtype.__name__}, came {came.dtype} values that are none"
        )
    return cast
