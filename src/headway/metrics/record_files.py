"""Per-request rows as files: Parquet, CSV, JSON, JSON lines, chosen by the file's suffix.

The text forms share one row type, so a broken row gets the same message in each: file, line, what came, what
was expected. They are written in slices: a million rows as Python objects at once would take a gigabyte.
"""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.errors import BadInput, MissingExtra
from headway.metrics.columns import COLUMNS, STATUS_WORDS, Column

__all__ = ["check", "read", "write"]

Columns = Mapping[str, NDArray[Any]]

_ROWS_PER_SLICE = 65_536


def check(path: str | Path) -> None:
    """Refuse a name that `write` would refuse, before there is something to write.

    Raises:
        BadInput: another suffix. MissingExtra: .parquet without pyarrow.
    """
    if _by_suffix(Path(path), _WRITERS) is _write_parquet:
        _pyarrow("pyarrow.parquet", "writing")


def write(path: str | Path, columns: Columns) -> None:
    """Write columns of equal length, named as in `COLUMNS`; see `Records.write`.

    The file takes its name when it is whole: an interrupt leaves what was there before.
    """
    path = Path(path)
    writer = _by_suffix(path, _WRITERS)
    target = path.resolve()  # of a link: the file behind it
    try:
        if target.exists() and not target.is_file():  # a pipe or a device cannot be replaced
            writer(path, columns)
            return
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            writer(part, columns)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None


def read(path: str | Path) -> dict[str, NDArray[Any]]:
    """Return the columns a file holds; see `Records.read`."""
    path = Path(path)
    reader = _by_suffix(path, _READERS)
    try:
        columns: dict[str, NDArray[Any]] = reader(path)
        return columns
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text at byte {error.start}") from None


def _by_suffix(path: Path, forms: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    form = forms.get(path.suffix.lower())
    if form is None:
        raise BadInput(f"{path}: records are kept as {', '.join(forms)}; came the suffix {path.suffix!r}")
    return form


# --- text --------------------------------------------------------------------------------------------------


def _row_field(name: str, column: Column) -> tuple[str, Any] | tuple[str, Any, Any]:
    kinds: dict[str, Any] = {"f": float | None, "i": int, "b": bool}
    kind = Literal[STATUS_WORDS] if name == "status" else kinds[np.dtype(column.dtype).kind]
    return (name, kind) if column.default is None else (name, kind, column.default)


_Row = msgspec.defstruct(
    "Row", [_row_field(*item) for item in COLUMNS.items()], kw_only=True, forbid_unknown_fields=True
)


def _slices(columns: Columns, missing: str | None) -> Iterator[Iterator[tuple[Any, ...]]]:
    """Yield rows in slices; a row is a tuple of Python values in the order of `columns`.

    Status is its word; NaN (the one value unequal to itself), a time that did not happen, is `missing`.
    """
    for start in range(0, len(columns["id"]), _ROWS_PER_SLICE):
        lists = []
        for name, values in columns.items():
            part = values[start : start + _ROWS_PER_SLICE]
            if name == "status":
                lists.append([STATUS_WORDS[code] for code in part.tolist()])
            elif part.dtype.kind == "f":
                lists.append([missing if x != x else x for x in part.tolist()])
            else:
                lists.append(part.tolist())
        yield zip(*lists, strict=True)


def _write_csv(path: Path, columns: Columns) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for rows in _slices(columns, ""):
            writer.writerows(rows)


def _write_jsonl(path: Path, columns: Columns) -> None:
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for rows in _slices(columns, None):
            file.write(encoder.encode_lines(dict(zip(columns, row, strict=True)) for row in rows))


def _write_json(path: Path, columns: Columns) -> None:
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        before = b"["
        for rows in _slices(columns, None):
            for row in rows:
                file.write(before + encoder.encode(dict(zip(columns, row, strict=True))))
                before = b",\n"
        file.write(b"]\n" if before == b",\n" else b"[]\n")


def _read_csv(path: Path) -> dict[str, NDArray[Any]]:
    decode = partial(msgspec.convert, type=_Row, strict=False)
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames:
            raise BadInput(f"{path}:1: expected a first line with the columns' names: {', '.join(COLUMNS)}")
        for cells in reader:
            if None in cells or None in cells.values():
                wanted = len(reader.fieldnames)
                raise BadInput(f"{path}:{reader.line_num}: expected {wanted} cells, as the first line has")
            row = {name: text or None for name, text in cells.items()}
            rows.append(_decoded(decode, row, f"{path}:{reader.line_num}"))
    return _columns(rows)


def _read_jsonl(path: Path) -> dict[str, NDArray[Any]]:
    decode = msgspec.json.Decoder(_Row).decode
    with path.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        return _columns([_decoded(decode, line, f"{path}:{number}") for number, line in lines])


def _read_json(path: Path) -> dict[str, NDArray[Any]]:
    return _columns(_decoded(msgspec.json.Decoder(list[_Row]).decode, path.read_bytes(), str(path)))  # type: ignore[valid-type]


def _decoded(decode: Callable[[Any], Any], came: Any, place: str) -> Any:
    try:
        return decode(came)
    except msgspec.DecodeError as error:  # also a value of a wrong type: ValidationError is one
        raise BadInput(f"{place}: {str(error).replace('`', '')}; a row holds {', '.join(COLUMNS)}") from None


def _columns(rows: list[Any]) -> dict[str, NDArray[Any]]:
    columns = {}
    for name, column in COLUMNS.items():
        values: Any = [getattr(row, name) for row in rows]
        if name == "status":
            values = [STATUS_WORDS.index(word) for word in values]
        is_time = issubclass(column.dtype, np.floating)
        columns[name] = np.array(values, dtype=np.float64 if is_time else None)  # None becomes NaN
    return columns


# --- Parquet -----------------------------------------------------------------------------------------------


def _pyarrow(module: str, doing: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(f"{doing} Parquet needs pyarrow", "parquet") from None


def _write_parquet(path: Path, columns: Columns) -> None:
    arrow, parquet = _pyarrow("pyarrow", "writing"), _pyarrow("pyarrow.parquet", "writing")
    arrays = {
        name: arrow.array(values, mask=np.isnan(values) if values.dtype.kind == "f" else None)
        for name, values in columns.items()
    }
    arrays["status"] = arrow.DictionaryArray.from_arrays(columns["status"], list(STATUS_WORDS))
    with path.open("wb") as file:  # Python's own errors; pyarrow's name no reason
        parquet.write_table(arrow.table(arrays), file)


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    arrow, parquet = _pyarrow("pyarrow", "reading"), _pyarrow("pyarrow.parquet", "reading")
    try:
        with path.open("rb") as file:
            table = parquet.read_table(file)
        columns = {name: table[name] for name in table.column_names}
        if "status" in columns:
            words = columns["status"].cast(arrow.string())
            columns["status"] = _pyarrow("pyarrow.compute", "reading").index_in(
                words, arrow.array(STATUS_WORDS)
            )
        for name, column in columns.items():
            if column.null_count and not arrow.types.is_floating(column.type):
                raise BadInput(f"{path}: column {name!r} holds nulls or unknown words")
        return {name: column.to_numpy() for name, column in columns.items()}
    except arrow.ArrowException as error:
        raise BadInput(f"{path}: not Parquet as expected: {str(error).splitlines()[0]}") from None


_WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".json": _write_json, ".jsonl": _write_jsonl}
_READERS = {".parquet": _read_parquet, ".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl}
