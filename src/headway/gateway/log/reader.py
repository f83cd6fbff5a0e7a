"""Reads a decision log: the runs in a folder, and what happened in each, with the places where something is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from headway.errors import BadInput, MissingExtra
from headway.gateway.events import Answer
from headway.gateway.log.form import ANSWERS, METADATA, SCHEMA, Form, Header
from headway.gateway.shadow import ShadowSaid

SUFFIXES = (".arrows", ".parquet")


class Happened(NamedTuple):
    """One event of a run. `missing`: so many events before it are not in the log."""

    serial: int
    now_s: float
    what: str
    values: tuple[Any, ...]
    answers: list[Answer]
    shadow: list[ShadowSaid]
    missing: int


class Run:
    """One decision process's part of a log. `closed` after reading: whether it ended with its mark."""

    def __init__(self, header: Header, files: list[Path]) -> None:
        self.header = header
        self.files = files
        self.form = Form(header)
        self.closed = False

    def events(self) -> Iterator[Happened]:
        """Yield what happened, in order.

        Raises:
            BadInput: a file that is damaged other than by having been cut short.
        """
        event: Happened | None = None
        expected = 0
        for path in self.files:
            for row in self.form.rows(_table(path)):
                if event is not None and row.serial == event.serial:
                    if row.what in ANSWERS:
                        event.answers.append(row.values[0])
                    elif row.what == "shadow":
                        event.shadow.append(row.values[0])
                    continue
                if event is not None:
                    yield event
                event = Happened(row.serial, row.now_s, row.what, row.values, [], [], row.serial - expected)
                expected = row.serial + 1
                self.closed = row.what == "stop"
        if event is not None:
            yield event


def runs(path: str | Path) -> list[Run]:
    """Return the runs of a log's folder, or the one that a file of it belongs to, oldest first.

    Raises:
        BadInput: there is no log. MissingExtra: pyarrow is not installed.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; `gateway.log.folder` of a deployment says where its log is")
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        stem, _, number = file.stem.rpartition("-")
        twin = file.suffix == ".arrows" and file.with_suffix(".parquet").exists()  # already turned into Parquet
        if file.suffix in SUFFIXES and number.isdigit() and not twin and file.is_file():
            found.setdefault(stem, []).append(file)
    if path.is_file():
        found = {stem: files for stem, files in found.items() if path in files}
    read = [(header, files) for files in found.values() if (header := _header(files)) is not None]
    if not read:
        raise BadInput(f"{path}: holds no decision log: expected files such as 20260101T120000-0123abcd-000000.parquet")
    return [Run(header, files) for header, files in read]


def _arrow() -> tuple[Any, Any, Any]:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise MissingExtra("reading a decision log needs pyarrow", "parquet") from None
    return pyarrow, ipc, parquet


def _header(files: list[Path]) -> Header | None:
    """The header of a run; None where its only file was cut within it."""
    arrow, ipc, parquet = _arrow()
    for path in files:
        try:
            with open(path, "rb") as file:
                schema = parquet.read_schema(file) if path.suffix == ".parquet" else ipc.open_stream(file).schema
        except arrow.ArrowException:
            continue
        except OSError as error:
            raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
        try:
            header = msgspec.json.decode((schema.metadata or {}).get(METADATA, b"{}"), type=Header)
        except msgspec.ValidationError as error:
            raise BadInput(f"{path}: not a decision log of Headway: {str(error).replace('`', '')}") from None
        if header.schema != SCHEMA:
            raise BadInput(f"{path}: expected the schema {SCHEMA!r}, came {header.schema!r}")
        return header
    return None


def _table(path: Path) -> Any:
    """The whole batches of a file; a stream may have been cut after any byte."""
    arrow, ipc, parquet = _arrow()
    try:
        with open(path, "rb") as file:
            if path.suffix == ".parquet":
                return parquet.read_table(file)
            batches = []
            try:
                stream = ipc.open_stream(file)
                for batch in stream:
                    batches.append(batch)
            except (arrow.ArrowException, OSError):
                if not batches:
                    return arrow.table({"serial": [], "now_s": [], "what": []})
            return arrow.Table.from_batches(batches, stream.schema)
    except (arrow.ArrowException, OSError) as error:
        raise BadInput(f"{path}: damaged: {str(error).splitlines()[0]}") from None
