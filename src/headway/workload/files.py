"""Headway's own trace form, JSON lines (plain or gzipped) or Parquet: all columns of a `Batch`, to the bit.

The first line (in Parquet: the key ``headway`` of the file's metadata) is a header such as ``{"headway":
"workload/1", "block_tokens": 64}``; it may be left out where no record has ``hashes``. Each record has
``prompt_tokens`` and ``output_tokens`` and, where they differ from their default, the other columns by name,
with the chain of block ids as ``hashes``.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import numpy as np

from headway.errors import BadInput, MissingExtra
from headway.workload.batch import Batch, Ints, make_batch, offsets_of
from headway.workload.lengths import TOKENS_MAX
from headway.workload.trace import ROWS, Broken, Facts, Lines, said, take

_FORMAT = "workload/1"
_INT32_MAX = 2**31 - 1

Tokens = Annotated[int, msgspec.Meta(ge=1, le=TOKENS_MAX)]
Small = Annotated[int, msgspec.Meta(ge=-_INT32_MAX, le=_INT32_MAX)]
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Real = Annotated[float, msgspec.Meta(ge=0)]


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What the records of a file share. `models`: the name that requests of each SLO class ask for."""

    headway: str = ""
    block_tokens: Annotated[int, msgspec.Meta(ge=0, multiple_of=16)] = 0
    concurrency: Annotated[int, msgspec.Meta(ge=1)] | None = None
    think_s: Real = 0.0
    models: tuple[str, ...] = ()


class _Row(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    arrival_s: Real | None = None
    prompt_tokens: Tokens
    output_tokens: Tokens
    priority: Small = 0
    slo_class: Annotated[int, msgspec.Meta(ge=0, le=_INT32_MAX)] = 0
    tenant: Small = 0
    deadline_s: Real | None = None
    predicted_output_tokens: Real | None = None
    session: Whole = -1
    hashes: list[Whole] = msgspec.field(default_factory=list)


_OPTIONAL = ("priority", "slo_class", "tenant", "session")
_COLUMNS = (
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    *_OPTIONAL,
    "deadline_s",
    "predicted_output_tokens",
)
_PLAIN = ("prompt_tokens", "output_tokens", *_OPTIONAL)
_REALS = ("arrival_s", "deadline_s", "predicted_output_tokens")
_decode_row = msgspec.json.Decoder(_Row).decode
_decode_header = msgspec.json.Decoder(Header).decode


def is_own(fields: Iterable[str]) -> bool:
    """Whether a first record with these fields is one of Headway's own form."""
    return "headway" in fields or {"prompt_tokens", "output_tokens"} <= set(fields)


def no_rows(lines: Lines) -> BadInput:
    """Return the error of a file in which no good record follows the header."""
    return lines.none_left() if lines.skipped else BadInput(f"{lines.path} holds no requests: only a header")


def read_own_lines(
    records: Iterator[tuple[int, bytes]], fields: dict[str, Any], lines: Lines
) -> tuple[Facts, Iterator[Batch]]:
    """Return what JSON lines in Headway's form say of their requests, and these; `fields` is the first, decoded."""
    header = Header()
    if "headway" in fields:
        line, raw = next(records)
        header = _header(raw, f"{lines.path}:{line}")
    first = next(records, None)
    if first is None:
        raise no_rows(lines)
    timed = b'"arrival_s"' in first[1]
    rows = lines.parse(chain([first], records), partial(_row, header.block_tokens, timed))
    return _facts(header, timed), _batches(rows, header)


def _facts(header: Header, timed: bool) -> Facts:
    return Facts(
        block_tokens=header.block_tokens, timed=timed and header.concurrency is None,
        concurrency=header.concurrency, think_s=header.think_s, models=header.models,
    )  # fmt: skip


def _batches(rows: Iterator[_Row], header: Header) -> Iterator[Batch]:
    while part := list(islice(rows, ROWS)):
        arrays: dict[str, Any] = {name: np.array([getattr(row, name) for row in part]) for name in _PLAIN}
        arrays["arrival_s"] = np.array([row.arrival_s or 0.0 for row in part])
        arrays["deadline_s"] = np.array([math.inf if row.deadline_s is None else row.deadline_s for row in part])
        arrays["predicted_output_tokens"] = np.array(
            [
                float(row.output_tokens) if row.predicted_output_tokens is None else row.predicted_output_tokens
                for row in part
            ]
        )
        hashes = np.array([each for row in part for each in row.hashes], np.int64)
        yield _batch(arrays, header, hashes, np.array([len(row.hashes) for row in part]))


def read_parquet(lines: Lines) -> tuple[Facts, Iterator[Batch]]:
    """Return what a Parquet file in Headway's form says of its requests, and these in batches."""
    arrow, parquet = _pyarrow("reading Parquet")
    damaged = OSError, arrow.ArrowException
    try:
        file = parquet.ParquetFile(lines.path)
    except damaged as error:
        raise BadInput(f"{lines.path}: damaged or not Parquet: {error}") from None
    names = file.schema_arrow.names
    missing = sorted({"prompt_tokens", "output_tokens"} - set(names))
    if missing:
        raise BadInput(
            f"{lines.path}: the columns {', '.join(missing)} are missing: not a workload of Headway"
        )
    if file.metadata.num_rows == 0:
        raise no_rows(lines)
    header = _header((file.schema_arrow.metadata or {}).get(b"headway", b"{}"), f"{lines.path}: metadata")

    def batches() -> Iterator[Batch]:
        count = 0
        try:
            for part in file.iter_batches(ROWS, columns=[name for name in names if name in (*_COLUMNS, "hashes")]):
                made = _of_table(arrow, arrow.Table.from_batches([part]), header, lines, count)
                count += part.num_rows
                if len(made):
                    yield made
        except damaged as error:
            raise BadInput(f"{lines.path}: damaged or not Parquet: {error}") from None

    return _facts(header, "arrival_s" in names), batches()


def _of_table(arrow: Any, table: Any, header: Header, lines: Lines, first: int) -> Batch:
    """The good rows of a part of a file that begins with its row `first`."""

    def column(name: str, type_: Any) -> Any:
        try:
            found = table[name].cast(type_).combine_chunks()
        except arrow.ArrowException as error:
            raise BadInput(f"{lines.path}: column {name}: expected {type_}: {error}") from None
        if found.null_count:
            raise BadInput(f"{lines.path}: column {name}: {found.null_count} values are missing")
        return found

    arrays = {
        name: np.array(column(name, arrow.float64() if name in _REALS else arrow.int64()))
        for name in _COLUMNS
        if name in table.column_names
    }
    defaults: dict[str, Any] = dict.fromkeys(_OPTIONAL, 0) | {"arrival_s": 0.0, "deadline_s": math.inf}
    defaults |= {"session": -1, "predicted_output_tokens": arrays["output_tokens"]}
    for name in defaults.keys() - arrays.keys():
        arrays[name] = np.full(table.num_rows, defaults[name])
    hashes, counts = np.zeros(0, np.int64), np.zeros(table.num_rows, np.int64)
    if "hashes" in table.column_names:
        chains = column("hashes", arrow.large_list(arrow.int64()))
        hashes, counts = np.array(chains.flatten()), np.array(chains.value_lengths())
    return _without_bad_rows(_batch(arrays, header, hashes, counts), header, lines, first)


def write_batches(batches: Iterable[Batch], path: Path, header: Header) -> None:
    """Write requests in Headway's form: ``.jsonl``, ``.jsonl.gz`` or ``.parquet``.

    Raises:
        BadInput: another suffix, or the file cannot be written.
        MissingExtra: Parquet without pyarrow.
    """
    header = msgspec.structs.replace(header, headway=_FORMAT)
    try:
        if path.suffix == ".parquet":
            _write_parquet(batches, path, header)
        elif path.suffix == ".jsonl":
            with open(path, "wb") as file:
                _write_lines(batches, file, header)
        elif path.suffixes[-2:] == [".jsonl", ".gz"]:
            # no name and time inside: the same workload gives the same bytes
            with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                _write_lines(batches, packed, header)
        else:
            raise BadInput(f"{path}: expected a name that ends in .jsonl, .jsonl.gz or .parquet")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None


def _write_lines(batches: Iterable[Batch], file: IO[bytes] | gzip.GzipFile, header: Header) -> None:
    encode = msgspec.json.Encoder().encode
    file.write(encode(header) + b"\n")
    for batch in batches:
        columns = {name: getattr(batch, name).tolist() for name in _COLUMNS}
        for index in range(len(batch)):
            row = _Row(**{name: column[index] for name, column in columns.items()})
            if row.deadline_s == math.inf:
                row.deadline_s = None
            if row.predicted_output_tokens == row.output_tokens:
                row.predicted_output_tokens = None
            if batch.hash_offsets is not None and batch.hashes is not None:
                row.hashes = batch.hashes[batch.hash_offsets[index] : batch.hash_offsets[index + 1]].tolist()
            file.write(encode(row) + b"\n")


def _write_parquet(batches: Iterable[Batch], path: Path, header: Header) -> None:
    arrow, parquet = _pyarrow("writing Parquet")
    writer = None
    try:
        for batch in batches:
            columns = {name: arrow.array(getattr(batch, name)) for name in _COLUMNS}
            if batch.hash_offsets is not None:
                columns["hashes"] = arrow.LargeListArray.from_arrays(batch.hash_offsets, batch.hashes)
            table = arrow.table(columns).replace_schema_metadata({"headway": msgspec.json.encode(header)})
            writer = writer or parquet.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _batch(arrays: dict[str, Any], header: Header, hashes: Ints, counts: Ints) -> Batch:
    made = make_batch(arrays["arrival_s"], arrays["prompt_tokens"], arrays["output_tokens"])
    others = [name for name in _COLUMNS if name not in ("arrival_s", "prompt_tokens", "output_tokens")]
    columns: dict[str, Any] = {name: arrays[name].astype(getattr(made, name).dtype) for name in others}
    if header.block_tokens:
        columns |= {"hash_offsets": offsets_of(counts.astype(np.int64)), "hashes": hashes}
    return msgspec.structs.replace(made, **columns)


def _without_bad_rows(batch: Batch, header: Header, lines: Lines, first: int) -> Batch:
    """Parquet comes as whole columns: the checks that JSON lines get one by one."""
    good = (batch.prompt_tokens >= 1) & (batch.output_tokens >= 1) & (batch.arrival_s >= 0)
    good &= np.isfinite(batch.arrival_s) & (batch.deadline_s >= 0) & (batch.predicted_output_tokens >= 0)
    if batch.hash_offsets is not None:
        good &= _chain_fits(
            batch.prompt_tokens, batch.output_tokens, np.diff(batch.hash_offsets), header.block_tokens
        )
    if good.all():
        return batch
    rows = [(first + int(row) + 1, row) for row in np.flatnonzero(~good)]
    for _ in lines.parse(rows, lambda row: _refuse(batch, row)):
        pass
    return take(batch, np.flatnonzero(good))


def _refuse(batch: Batch, row: np.intp) -> None:
    came = ", ".join(f"{name}={getattr(batch, name)[row]}" for name in _COLUMNS[:3])
    raise Broken(came, "lengths of at least 1, times of 0 or more, one hash per full block")


def _chain_fits(prompt: Any, output: Any, length: Any, block_tokens: int) -> Any:
    return (prompt // block_tokens <= length) & (length <= (prompt + output) // block_tokens)


def _row(block_tokens: int, timed: bool, raw: bytes) -> _Row:
    try:
        row = _decode_row(raw)
    except msgspec.DecodeError as error:
        raise Broken(raw, said(error)) from None
    if timed != (row.arrival_s is not None):
        raise Broken(raw, "arrival_s in every record or in none")
    if not all(
        map(math.isfinite, (row.arrival_s or 0, row.deadline_s or 0, row.predicted_output_tokens or 0))
    ):
        raise Broken(raw, "finite numbers")
    if row.hashes and not block_tokens:
        raise Broken(
            raw, f'a first line {{"headway":"{_FORMAT}","block_tokens":...}} that says what a hash stands for'
        )
    if block_tokens and not _chain_fits(row.prompt_tokens, row.output_tokens, len(row.hashes), block_tokens):
        blocks = row.prompt_tokens // block_tokens, (row.prompt_tokens + row.output_tokens) // block_tokens
        raise Broken(
            raw, f"{blocks[0]} to {blocks[1]} hashes of {block_tokens} tokens, not {len(row.hashes)}"
        )
    return row


def _header(raw: bytes, place: str) -> Header:
    try:
        return _decode_header(raw)
    except msgspec.DecodeError as error:
        raise BadInput(f"{place}: the header is broken: expected {said(error)}") from None


def _pyarrow(feature: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(f"{feature} needs pyarrow", "parquet") from None
    return pyarrow, pyarrow.parquet
