"""`Trace`: the requests of a file, and what every reader needs to make one."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.errors import BadInput, nearest
from headway.workload.batch import Batch, Floats, join, stream
from headway.workload.spool import release

R = TypeVar("R")
T = TypeVar("T")

ROWS = 1 << 15  # requests read at a time
_LOOKED_AT = 1 << 16  # windows at a time
_MOMENT_S = 1e-9  # requests all at once are this far apart
_SHOWN = 90  # characters of a broken line that its error shows


class Trace(msgspec.Struct, frozen=True, eq=False):
    """The requests of a file in order of arrival, or those from its `first` on, and what is known about them.

    `whole_rate_req_s` is that of the whole file where they are a part of it.
    """

    requests: Batch
    block_tokens: int = 0
    timed: bool = True  # False: the file has no arrival times
    step_s: float = 0.0  # arrival times are rounded down to steps of about this length; 0: they are exact
    concurrency: int | None = None
    think_s: float = 0.0
    models: tuple[str, ...] = ()  # the name that requests of each SLO class ask for; none: no name
    skipped: int = 0
    notes: tuple[str, ...] = ()
    first: int = 0
    whole_rate_req_s: float | None = None

    def part(self, first: int, requests: int) -> Trace:
        """Return so many requests from the file's `first` on, the first of them at time 0; itself where these are it.

        They keep the rate of the whole file.

        Raises:
            BadInput: there are none from there on.
        """
        start = first - self.first
        if not 0 <= start < len(self.requests):
            raise BadInput(f"first {first:,}: the trace has its {len(self.requests):,} requests from {self.first:,} on")
        if start == 0 and requests >= len(self.requests):
            return self
        rows = self.requests.rows(start, start + requests)
        begin_s = rows.arrival_s[0] if start else 0.0
        held = join([rows])  # a copy: those of a long file are only mapped
        from_there = msgspec.structs.replace(
            held, id=np.arange(len(held)), arrival_s=held.arrival_s - begin_s, deadline_s=held.deadline_s - begin_s
        )
        return msgspec.structs.replace(self, requests=from_there, first=first, whole_rate_req_s=self.rate_req_s)

    def densest(self, requests: int, of: int) -> int:
        """Return the place in the file from which so many requests in a row bring the most tokens a second.

        Of the first `of` requests here, looked at in parts.
        """
        best, place = -1.0, 0
        for at in range(0, of - requests + 1, _LOOKED_AT):
            rows = self.requests.rows(at, min(of, at + _LOOKED_AT + requests - 1))
            tokens = np.concatenate(([0], np.cumsum(rows.prompt_tokens + rows.output_tokens)))
            spans_s = rows.arrival_s[requests - 1 :] - rows.arrival_s[: len(rows) - requests + 1]
            loads = (tokens[requests:] - tokens[:-requests]) / np.maximum(spans_s, _MOMENT_S)
            here = int(loads.argmax())
            if loads[here] > best:
                best, place = float(loads[here]), at + here
            release(self.requests)
        return self.first + place

    @property
    def rate_req_s(self) -> float | None:
        """Requests per second from first to last of the whole file; None when no time passes."""
        if self.whole_rate_req_s is not None:
            return self.whole_rate_req_s
        times = self.requests.arrival_s
        span = float(times[-1] - times[0]) + self.step_s
        return (len(times) - (0 if self.step_s else 1)) / span if self.timed and span > 0 else None

    def arrivals(self, seed: int) -> Floats:
        """Return the arrival times in seconds, those rounded to steps spread evenly at random within them."""
        times = self.requests.arrival_s
        if not self.step_s:
            return times
        starts, step = np.unique(times, return_inverse=True)
        widths = np.append(np.minimum(np.diff(starts), self.step_s), self.step_s)
        return np.sort(times + widths[step] * stream(seed, "arrivals").random(len(times)))


class Facts(NamedTuple):
    """What a file says of all its requests. `dated`: times are dates; `stepped`: rounded to steps."""

    block_tokens: int = 0
    timed: bool = True
    stepped: bool = False
    dated: bool = False
    concurrency: int | None = None
    think_s: float = 0.0
    models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Broken(Exception):
    """A record that is not what its form asks for."""

    def __init__(self, came: str | bytes, expected: str) -> None:
        text = came.decode("utf-8", "replace") if isinstance(came, bytes) else came
        self.came = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
        self.expected = expected


class Lines:
    """Parses the records of one file; a broken one stops with its place, or is counted when `skip_bad`."""

    def __init__(self, path: Path, skip_bad: bool) -> None:
        self.path, self.skip_bad, self.skipped = path, skip_bad, 0

    def parse(self, records: Iterable[tuple[int, R]], parse: Callable[[R], T]) -> Iterator[T]:
        """Yield what `parse` makes of every record, given as (line, content).

        Raises:
            BadInput: a record is broken and broken ones are not skipped.
        """
        for line, record in records:
            try:
                yield parse(record)
            except Broken as broken:
                if not self.skip_bad:
                    came = f"{self.path}:{line}: came {broken.came}; expected {broken.expected}"
                    raise BadInput(f"{came} (skip_bad leaves such lines out)") from None
                self.skipped += 1

    def none_left(self) -> BadInput:
        """Return the error of a file without a single request."""
        skipped = f": all {self.skipped} records are broken" if self.skipped else ": the file is empty"
        return BadInput(f"{self.path} holds no requests{skipped}")


def said(error: msgspec.DecodeError) -> str:
    """Return msgspec's message in the words of a trace error: "int >= 1 at input_length"."""
    text = str(error).replace("`", "").replace("Expected ", "").replace("$.", "").replace(" - at", " at")
    text = text.replace("int that's a multiple of", "a multiple of")
    if text == "Input data was truncated":
        return "valid JSON: it ends too early"
    return "valid JSON" + text.removeprefix("JSON is malformed") if text.startswith("JSON is") else text


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """Open a plain or gzipped file for reading.

    Raises:
        BadInput: no such file (naming the nearest beside it), or it cannot be opened.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; errors of the reader are not errors of opening
    except FileNotFoundError:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, beside)
        raise BadInput(f"{path}: no such file{'; nearest: ' + ', '.join(near) if near else ''}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    with file:
        yield gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file


def reading_errors() -> tuple[type[Exception], ...]:
    """Return what reading a damaged, cut or binary file raises."""
    return (OSError, EOFError, zlib.error, UnicodeDecodeError)


def take(batch: Batch, order: NDArray[np.intp]) -> Batch:
    """Return the requests at these places, in this order, numbered from 0."""
    return msgspec.structs.replace(batch.take(order), id=np.arange(len(order)))
