"""Writes the decision log beside the decisions: a bounded queue, a thread, files of bounded size and age.

The open file is an Arrow stream, to which a batch is added every half second: a process that is killed loses what was
not written yet, and a reader takes every whole batch. A file that is full or old enough becomes Parquet under another
name, written whole before it is named. Nothing here waits for the disk but the thread: what the queue has no room for
is dropped and counted, and the serial numbers say where.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from headway.errors import BadInput
from headway.gateway.brain import Brain
from headway.gateway.events import Answer
from headway.gateway.log.form import Form, Header, Prompt, Row, State, rows_of, without_secrets
from headway.gateway.log.state import kept
from headway.gateway.spec import GatewaySpec, LogSpec
from headway.gateway.tenants import Keys
from headway.gateway.watch import watch

FLUSH_S = 0.5
SWITCH_S = 0.0005  # for so long the encoding of a batch may hold up a decision; Python's own default is 5 ms
BATCH_EVENTS, BATCH_BYTES = 256, 512 << 10  # encoded at once
QUEUE_EVENTS, QUEUE_BYTES = 100_000, 64 << 20
EVENT_BYTES, HASH_BYTES = 1000, 36  # of an event in the queue, and of each hash of its chain, about
ROTATE_S = 600.0
SEGMENT_BYTES = 8 << 20
SHARE = 16  # a file is such a part of the whole log, or up to two where no state was kept
STATE_SHARE = 1e-4  # of the time may go into keeping the brain's state
NAME = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}-\d{6}\.(arrows|parquet)(\.part)?")
CLOSE_S = 3.0

Happened = tuple[int, float, str, tuple[Any, ...], tuple[msgspec.Struct, ...]]


class LogWriter:
    """One run's log.

    Args:
        spec: where, how large, how old.
        header: of the run.
        say: takes a line about what goes wrong, once for each time that it begins.
        write: writes bytes to a descriptor, as `os.write` does.

    Raises:
        BadInput: the folder cannot be made. MissingExtra: pyarrow is not installed.
    """

    def __init__(
        self,
        spec: LogSpec,
        header: Header,
        say: Callable[[str], None] = lambda text: None,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self.spec = spec
        self.header = header
        self.say = say
        self.folder = Path(spec.folder)
        self.form = Form(header)
        self.queue: deque[Happened] = deque()
        self.serial = 0
        self.put_bytes = self.taken_bytes = 0  # each has one thread that counts it
        self.dropped = 0
        self.written_rows = 0
        self.failing = ""
        self.state_wanted = False
        self.next_state_s = 0.0
        self.stopping = threading.Event()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"gateway.log.folder {self.folder}: cannot be made: {error.strerror}") from None
        self.segments = Segments(self.folder, spec, header, self.form, write)
        self.thread = threading.Thread(target=self._run, name="decision log", daemon=True)

    # --- the host's side: never waits --------------------------------------------------------------------------

    def follow(self, brain: Brain) -> None:
        """Log what this brain is told and answers from now on, beginning with what it knows."""

        def event(now: float, name: str, values: tuple[Any, ...], answers: list[Answer]) -> None:
            said: tuple[msgspec.Struct, ...] = tuple(answers)
            if brain.shadow is not None:
                said += tuple(brain.shadow.take())
            self.put(now, name, values, said)
            if self.state_wanted:
                self.keep_state(now, brain)

        sys.setswitchinterval(SWITCH_S)
        self.keep_state(0.0, brain)
        watch(brain, event)
        self.thread.start()

    def put(self, now: float, what: str, values: tuple[Any, ...], said: tuple[msgspec.Struct, ...] = ()) -> None:
        """Add an event; where the queue is full it is dropped, and its number is missing from the log."""
        serial, self.serial = self.serial, self.serial + 1
        size = _size(values)
        if len(self.queue) >= QUEUE_EVENTS or self.put_bytes - self.taken_bytes + size > QUEUE_BYTES:
            self.dropped += 1
            return
        self.put_bytes += size
        self.queue.append((serial, now, what, values, said))

    def prompt(self, now: float, id: str, body: bytes) -> None:
        """Add a request's body, where the file asks for prompts."""
        if self.spec.prompts:
            self.put(now, "prompt", (Prompt(id=id, text=body.decode("utf-8", "replace")),))

    def keep_state(self, now: float, brain: Brain) -> None:
        """Add what the brain knows: the next file begins with it, and can be decided again without those before."""
        self.state_wanted = False
        began_s = time.perf_counter()
        if began_s < self.next_state_s:
            return
        try:
            data = kept(brain)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            self.next_state_s = math.inf
            self.say(f"the decision log is replayed from its beginning alone: {type(error).__name__}: {error}")
            return
        self.next_state_s = began_s + (time.perf_counter() - began_s) / STATE_SHARE
        if len(data) < self.segments.most_bytes:
            self.put(now, "state", (State(data=data),))

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Rows written and events dropped, for Prometheus."""
        yield "headway_logged_total", {}, self.written_rows
        yield "headway_log_dropped_total", {}, self.dropped

    def status(self) -> dict[str, Any]:
        """How the log does, as JSON."""
        return {
            "folder": str(self.folder),
            "run": self.header.run,
            "rows": self.written_rows,
            "queued": len(self.queue),
            "dropped": self.dropped,
            "failing": self.failing,
        }

    def close(self, now: float) -> None:
        """Mark the end of the run and write what is queued; where the disk hangs, give up after `CLOSE_S`."""
        self.put(now, "stop", ())
        self.stopping.set()
        if self.thread.is_alive():
            self.thread.join(CLOSE_S)

    # --- the thread's side -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self.stopping.wait(FLUSH_S):
                self.flush()
            if self.flush():
                self._tried(self.segments.finish)
        except Exception as error:  # whatever it is, requests are served on and the queue counts what is missing
            self.failing = f"{type(error).__name__}: {error}"
            self.say(f"the decision log has ended: {self.failing}")

    def flush(self) -> bool:
        """Write what is queued; whether all of it is written."""
        while self.queue:
            happened: list[Happened] = []
            size = 0
            begins = self.queue[0][2] == "state"
            while len(happened) < min(len(self.queue), BATCH_EVENTS) and size < BATCH_BYTES:
                if happened and self.queue[len(happened)][2] == "state":
                    break
                happened.append(self.queue[len(happened)])
                size += _size(happened[-1][3])
            rows, data = self._encoded(happened)
            if not self._tried(partial(self.segments.add, data, begins)):
                return False
            self.written_rows += rows
            for _ in happened:
                self.queue.popleft()
            self.taken_bytes += size
            time.sleep(0)  # the decisions come first
        self.state_wanted = self.state_wanted or self.segments.full
        return True

    def _encoded(self, happened: list[Happened]) -> tuple[int, bytes]:
        """Rows and bytes of some events; one that no column can hold is dropped."""
        rows = [rows_of(*each) for each in happened]
        try:
            flat = [row for each in rows for row in each]
            return len(flat), self._bytes(flat)
        except (ValueError, TypeError, OverflowError):
            pass
        good: list[Row] = []
        for each in rows:
            try:
                self._bytes(each)
                good += each
            except (ValueError, TypeError, OverflowError) as error:
                self.dropped += 1
                self.say(f"an event {each[0].what!r} does not fit the decision log: {type(error).__name__}")
        return len(good), self._bytes(good)

    def _bytes(self, rows: list[Row]) -> bytes:
        return bytes(self.form.batch(rows).serialize())

    def _tried(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except OSError as error:
            if not self.failing:
                self.say(f"the decision log cannot be written: {error.strerror or error}; requests are served on")
            self.failing = error.strerror or str(error)
            return False
        if self.failing:
            self.failing = ""
            self.say(f"the decision log is written again; {self.dropped} events were dropped so far")
        return True


def header_of(spec: GatewaySpec, deployment: dict[str, Any], seed: int, version: str) -> Header:
    """Return the header of a run that begins now; `deployment` is the whole file, from which keys are taken out."""
    tenants = [tenant.name for tenant in Keys(spec.tenants).tenants]
    return Header(
        version=version,
        run=os.urandom(4).hex(),
        started=time.strftime("%Y%m%dT%H%M%S", time.gmtime()),
        seed=seed,
        names={"tenant": tenants, "slo_class": [klass.name for klass in spec.classes]},
        deployment=without_secrets(msgspec.to_builtins(deployment)),
    )


def _size(values: tuple[Any, ...]) -> int:
    """About the bytes that an event takes in the queue."""
    size = EVENT_BYTES
    for value in values:
        size += HASH_BYTES * len(getattr(value, "chain", ()))
        size += len(getattr(value, "text", "")) + len(getattr(value, "data", b""))
    return size


class Segments:
    """The files of one run, of which the newest is open; and those of earlier runs, as far as they are deleted."""

    def __init__(
        self, folder: Path, spec: LogSpec, header: Header, form: Form, write: Callable[[int, bytes], int]
    ) -> None:
        self.folder, self.spec, self.form, self.write = folder, spec, form, write
        self.stem = f"{header.started}-{header.run}"
        self.most_bytes = min(SEGMENT_BYTES, spec.max_bytes // SHARE)
        self.number = 0
        self.open: int | None = None
        self.path = folder
        self.size = 0
        self.opened_s = 0.0

    @property
    def full(self) -> bool:
        """Whether the open file should be followed by another, as soon as there is a state to begin it with."""
        late = time.monotonic() - self.opened_s > ROTATE_S
        return self.open is not None and (self.size > self.most_bytes or late)

    def add(self, data: bytes, begins: bool = False) -> None:
        """Append a batch to the open file, or begin one with it; after a failure the file ends where it did before."""
        waited = time.monotonic() - self.opened_s > 2 * ROTATE_S
        if self.open is not None and (begins or waited or self.size + len(data) > 2 * self.most_bytes):
            self.finish()
        if self.open is None:
            self._begin(len(data))
        self._append(data)

    def finish(self) -> None:
        """Close the open file, make it Parquet, and keep the log within its bounds."""
        if self.open is None:
            return
        os.close(self.open)
        self.open = None
        self.prune(self.size)
        part = self.path.with_suffix(".parquet.part")
        try:
            self._convert(part)
            os.replace(part, self.path.with_suffix(".parquet"))
            self.path.unlink()
        except OSError:
            part.unlink(missing_ok=True)  # the stream stays, and is as good to read
            raise

    def prune(self, coming: int) -> None:
        """Delete the oldest files until `coming` bytes more fit, and all that are too old."""
        files = sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))
        known = [(path, path.stat()) for path in files if path != self.path]
        size = sum(stat.st_size for _, stat in known) + (self.size if self.path in files else 0)
        for path, stat in known:
            if size + coming > self.spec.max_bytes or stat.st_mtime < time.time() - self.spec.max_age_s:
                path.unlink()
                size -= stat.st_size

    def _begin(self, coming: int) -> None:
        self.path = self.folder / f"{self.stem}-{self.number:06d}.arrows"
        self.size = 0
        self.prune(max(2 * self.most_bytes, coming))
        self.open = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self.opened_s = time.monotonic()
        try:
            self._append(bytes(self.form.schema.serialize()))
        except OSError:
            os.close(self.open)
            self.open = None
            self.path.unlink()
            raise
        self.number += 1

    def _append(self, data: bytes) -> None:
        assert self.open is not None
        done = 0
        try:
            while done < len(data):
                done += self.write(self.open, data[done:])
        except OSError:
            os.ftruncate(self.open, self.size)
            os.lseek(self.open, self.size, os.SEEK_SET)
            raise
        self.size += done

    def _convert(self, part: Path) -> None:
        from pyarrow import ArrowException, ipc, parquet

        try:
            with open(self.path, "rb") as source, open(part, "wb", opener=_own) as target:
                parquet.write_table(ipc.open_stream(source).read_all(), target, compression="zstd")
                target.flush()
                os.fsync(target.fileno())
        except ArrowException as error:
            raise OSError(str(error).splitlines()[0]) from None


def _own(path: str, flags: int) -> int:
    """Open a file that is for this user alone."""
    return os.open(path, flags, 0o600)
