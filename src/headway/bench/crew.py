"""The processes that drive: started from an import path alone, told to go at one moment, and to stop."""

from __future__ import annotations

import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from headway.bench.driver import Job
from headway.bench.frames import receive, send
from headway.bench.measured import Log
from headway.errors import HeadwayError

__all__ = ["Crew", "Seen"]

# In a session of its own: Ctrl-C at the terminal is for the caller, who then asks for what there is.
_PROGRAM = (
    "import os, sys, pickle; answers = os.dup(1); os.dup2(2, 1); "
    "from base64 import b64decode; sys.path[:] = pickle.loads(b64decode(sys.argv[1])); "
    "from headway.bench.worker import serve; serve(0, answers)"
)
START_S = 0.1  # between "go" and the start, for all to hear it
LAST_WORDS_S = 20.0  # to hand over a log once asked to stop
LOOK_S = 0.05


class Seen(NamedTuple):
    """How far a run is: requests sent, ended and in flight, and what went wrong how often."""

    sent: int
    ended: int
    in_flight: int
    problems: dict[str, int]


class Crew:
    """`count` processes; `run` gives each its share of a job and returns what all of them saw."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.members: list[subprocess.Popen[bytes]] = []
        self.listeners: list[threading.Thread] = []
        self.heard: queue.SimpleQueue[tuple[int, str, Any]] = queue.SimpleQueue()

    def __enter__(self) -> Crew:
        from base64 import b64encode

        path = b64encode(pickle.dumps(sys.path)).decode()
        for place in range(self.count):
            member = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            self.members.append(member)
            listener = threading.Thread(target=self._listen, args=(place, member), daemon=True)
            listener.start()
            self.listeners.append(listener)
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            if member.stdin is not None:
                member.stdin.close()
            try:
                member.wait(1.0)
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()
        for listener, member in zip(self.listeners, self.members, strict=True):
            listener.join()  # what it reads from has ended
            if member.stdout is not None:
                member.stdout.close()

    def run(
        self, share: Callable[[int], Job], progress: Callable[[Seen], None], stop: Callable[[], bool]
    ) -> tuple[Log, bool]:
        """Have every process do its share; returns what they saw, and whether `stop()` ended it early.

        Raises:
            HeadwayError: what a process found wrong.
            RuntimeError: a process ended.
        """
        for place in range(self.count):
            self._send(place, share(place))
        for _ in range(self.count):
            self._next("ready")
        start_s = time.monotonic() + START_S
        for place in range(self.count):
            self._send(place, ("go", start_s))
        seen: dict[int, tuple[int, int, int, dict[str, int]]] = {}
        logs: list[Log] = []
        stopped_s = None
        while len(logs) < self.count:
            if stopped_s is None and stop():
                stopped_s = time.monotonic()
                for place in range(self.count):
                    self._send(place, ("stop", None))
            if stopped_s is not None and time.monotonic() > stopped_s + LAST_WORDS_S:
                raise RuntimeError("a load process does not answer")
            try:
                place, kind, told = self._hear(LOOK_S)
            except queue.Empty:
                continue
            if kind == "log":
                logs.append(told)
            elif kind == "progress":
                seen[place] = told
                progress(_sum(seen.values()))
        return Log.joined(logs), stopped_s is not None

    def _next(self, kind: str) -> None:
        while self._hear(None)[1] != kind:
            pass

    def _hear(self, wait_s: float | None) -> tuple[int, str, Any]:
        place, kind, told = self.heard.get(timeout=wait_s)
        if kind == "error":
            if isinstance(told, HeadwayError):
                raise told
            raise RuntimeError(f"a load process failed: {told!r}") from told
        if kind == "end":
            raise RuntimeError(f"a load process ended (exit code {self.members[place].poll()})")
        return place, kind, told

    def _send(self, place: int, message: Any) -> None:
        pipe = self.members[place].stdin
        assert pipe is not None
        try:
            send(pipe.fileno(), message)
        except OSError:
            raise RuntimeError(f"a load process ended (exit code {self.members[place].poll()})") from None

    def _listen(self, place: int, member: subprocess.Popen[bytes]) -> None:
        assert member.stdout is not None
        try:
            while True:
                kind, told = receive(member.stdout.fileno())
                self.heard.put((place, kind, told))
        except (EOFError, OSError, ValueError):
            self.heard.put((place, "end", None))


def _sum(parts: Any) -> Seen:
    problems: dict[str, int] = {}
    sent = ended = in_flight = 0
    for part in parts:
        sent, ended, in_flight = sent + part[0], ended + part[1], in_flight + part[2]
        for reason, count in part[3].items():
            problems[reason] = problems.get(reason, 0) + count
    return Seen(sent, ended, in_flight, problems)
