"""Rows of the decision log, and their columns, which follow from the types of events and answers.

A row is an event ("arrive", "end", "record", ...), an answer to one ("routed", "held", "refused", ...), what a shadow
policy said ("shadow"), a prompt's text ("prompt"), the brain's state ("state") or the end of a run ("stop"). Rows that
belong together have one serial number; numbers that are missing are events that could not be written. A field of an
event is a column under its own name; tenants and classes are written by name.
"""

from __future__ import annotations

import functools
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from headway.errors import MissingExtra
from headway.gateway.events import Answer
from headway.gateway.shadow import ShadowSaid
from headway.gateway.watch import events_of

SCHEMA = "headway.log/1"
METADATA = b"headway.log"
NAMED = ("tenant", "slo_class")  # an index everywhere but in the log
_SECRET = re.compile(r"sha256|secret|password|_key$|token$")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's log says of it: enough to decide again. `deployment` is what the file said, without keys."""

    schema: str = SCHEMA
    version: str  # of Headway
    run: str  # of one decision process, its name
    started: str  # UTC
    seed: int
    names: dict[str, list[str]]  # of tenants and classes, by index
    deployment: dict[str, Any]


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request, kept only where it was asked for."""

    id: str
    text: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the brain knew at this moment (`state.py`), from which a log can be decided again."""

    data: bytes


class Row(NamedTuple):
    """One row; `values` has an entry per parameter of an event, or the one answer."""

    serial: int
    now_s: float
    what: str
    values: tuple[Any, ...]


class Cell(NamedTuple):
    """Where a value is kept."""

    column: str
    form: str  # "int", "float", "bool", "text", "bytes", "ints" or "json"
    type: Any


class Part(NamedTuple):
    """A parameter of an event, or an answer: a struct's fields, or one value."""

    struct: type[msgspec.Struct] | None
    cells: tuple[Cell, ...]
    fields: tuple[str, ...]


_FORMS: dict[Any, str] = {
    int: "int",
    float: "float",
    bool: "bool",
    str: "text",
    bytes: "bytes",
    tuple[int, ...]: "ints",
}


def _form(kind: Any) -> str:
    """How values of a type are kept; None is a missing value in every form but "json"."""
    if isinstance(kind, types.UnionType):
        others = [each for each in typing.get_args(kind) if each is not type(None)]
        return _FORMS.get(others[0], "json") if len(others) == 1 else "json"
    return _FORMS.get(kind, "json")


@functools.cache
def shapes() -> dict[str, tuple[Part, ...]]:
    """The parts of a row by what it is."""
    taken: dict[str, str] = {}

    def cell(what: str, name: str, kind: Any) -> Cell:
        form = "text" if name in NAMED and kind is int else _form(kind)
        for column in (name, f"{what}_{name}"):
            if taken.setdefault(column, form) == form:
                return Cell(column, form, kind)
        raise TypeError(f"{what}.{name}: columns of this name have other types")

    def part(what: str, name: str, kind: Any) -> Part:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            hints = typing.get_type_hints(kind)
            if all(_form(hint) != "json" for hint in hints.values()):
                return Part(kind, tuple(cell(what, field, hint) for field, hint in hints.items()), tuple(hints))
        return Part(None, (cell(what, name, kind),), (name,))

    found = {
        name: tuple(part(name, field, kind) for field, kind in event.types.items())
        for name, event in events_of().items()
    }
    for kind in (*typing.get_args(Answer), ShadowSaid, Prompt, State):
        what = {ShadowSaid: "shadow"}.get(kind, kind.__name__.lower())
        found[what] = (part(what, what, kind),)
    return found | {"stop": ()}


ANSWERS = {kind.__name__.lower() for kind in typing.get_args(Answer)}


def without_secrets(value: Any) -> Any:
    """Return builtins without what keys are told by, wherever it stands."""
    if isinstance(value, Mapping):
        return {name: without_secrets(each) for name, each in value.items() if not _SECRET.search(str(name))}
    if isinstance(value, list | tuple):
        return [without_secrets(each) for each in value]
    return value


class Form:
    """Turns rows of one run into Arrow's batches, and back.

    Raises:
        MissingExtra: pyarrow is not installed.
    """

    def __init__(self, header: Header) -> None:
        try:
            import pyarrow
        except ImportError:
            raise MissingExtra("the decision log is kept as Parquet, which needs pyarrow", "parquet") from None
        self.arrow: Any = pyarrow
        self.names = header.names
        kinds = {
            "int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_(), "text": pyarrow.string(),
            "json": pyarrow.string(), "bytes": pyarrow.binary(), "ints": pyarrow.list_(pyarrow.uint64()),
        }  # fmt: skip
        forms = {cell.column: cell.form for parts in shapes().values() for part in parts for cell in part.cells}
        fields = [("serial", pyarrow.int64()), ("now_s", pyarrow.float64()), ("what", pyarrow.string())]
        self.schema: Any = pyarrow.schema(
            [*fields, *((column, kinds[form]) for column, form in forms.items())],
            metadata={METADATA: msgspec.json.encode(header)},
        )

    def batch(self, rows: list[Row]) -> Any:
        """Return the rows as a record batch."""
        columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in self.schema.names}
        for i, row in enumerate(rows):
            columns["serial"][i], columns["now_s"][i], columns["what"][i] = row.serial, row.now_s, row.what
            for part, value in zip(shapes()[row.what], row.values, strict=True):
                values = (value,) if part.struct is None else msgspec.structs.astuple(value)
                for cell, one in zip(part.cells, values, strict=True):
                    columns[cell.column][i] = self._kept(cell, one)
        arrays = [self.arrow.array(columns[field.name], field.type) for field in self.schema]
        return self.arrow.record_batch(arrays, schema=self.schema)

    def rows(self, table: Any) -> Iterator[Row]:
        """Read a table's rows; a column that an older log lacks leaves a field at its default."""
        columns = {name: table[name].to_pylist() for name in table.column_names}
        heads = zip(columns["serial"], columns["now_s"], columns["what"], strict=True)
        for i, (serial, now_s, what) in enumerate(heads):
            if what in shapes():
                yield Row(serial, now_s, what, tuple(self._part(part, columns, i) for part in shapes()[what]))

    def _kept(self, cell: Cell, value: Any) -> Any:
        if cell.form == "json":
            return json.dumps(without_secrets(msgspec.to_builtins(value)))  # unlike msgspec's it writes infinity
        if cell.form == "text" and cell.type is int:
            known = self.names.get(cell.column, [])
            return known[value] if 0 <= value < len(known) else str(value)
        if cell.form == "text" and value is not None:  # a policy's reason may be anything
            return str(value).encode("utf-8", "replace").decode()
        if cell.form == "int" and value is not None:  # a caller may ask for 2**63 tokens
            return min(max(value, -(2**63)), 2**63 - 1)
        return value

    def _read(self, cell: Cell, value: Any) -> Any:
        if cell.form == "json":
            return msgspec.convert(json.loads(value), cell.type, str_keys=True)
        if cell.form == "text" and cell.type is int:
            known = self.names.get(cell.column, [])
            return known.index(value) if value in known else int(value)
        return tuple(value) if cell.form == "ints" and value is not None else value

    def _part(self, part: Part, columns: Mapping[str, list[Any]], i: int) -> Any:
        if part.struct is None:
            return self._read(part.cells[0], columns[part.cells[0].column][i])
        found = zip(part.fields, part.cells, strict=True)
        return part.struct(**{
            name: self._read(cell, columns[cell.column][i]) for name, cell in found if cell.column in columns
        })  # fmt: skip


def rows_of(
    serial: int, now_s: float, event: str, values: tuple[Any, ...], said: Iterable[msgspec.Struct]
) -> list[Row]:
    """The rows of one event: itself, then its answers and what else was said, in order."""
    others = [
        Row(serial, now_s, "shadow" if isinstance(each, ShadowSaid) else type(each).__name__.lower(), (each,))
        for each in said
    ]
    return [Row(serial, now_s, event, values), *others]
