"""The way of an answer to its client: one class per kind of answer, and the line that carries a fault."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from headway.emulate import answers, prompts
from headway.emulate.asks import Ask
from headway.emulate.faults import Plan
from headway.emulate.http import Connection
from headway.engine import Sequence
from headway.engine.live import told


class Line(Protocol):
    """Where an answer's pieces go: a connection, or one with a fault."""

    def send(self, data: bytes) -> None:
        """Pass on the next piece."""

    def finish(self) -> None:
        """There are no more."""


class FaultyLine:
    """Holds pieces back, or cuts the connection, as planned. `clock` tells the wall time at which a piece was due."""

    def __init__(self, conn: Connection, plan: Plan, sent_s: float, clock: Any, streams: bool) -> None:
        self.conn = conn
        self.plan = plan
        self.sent_s = sent_s
        self.clock = clock
        self.number = 0
        self.reset_at = plan.reset_at if streams or plan.reset_at is None else 0
        self.stall_at = plan.stall_at if streams or plan.stall_at is None else 0
        self.stalled_until_s = 0.0
        self.held: deque[tuple[float, bytes | None]] = deque()

    def send(self, data: bytes) -> None:
        """Let a piece go when the fault allows it."""
        due_s = self.clock()
        leaves_s = self.sent_s + self.plan.slow * (due_s - self.sent_s)
        if self.number == self.stall_at:
            self.stalled_until_s = leaves_s + self.plan.stall_s
        if self.reset_at is None or self.number <= self.reset_at:
            self._hold(max(leaves_s, self.stalled_until_s), None if self.number == self.reset_at else data)
        self.number += 1

    def finish(self) -> None:
        """The connection is free when the last piece has left."""
        self._hold(self.held[-1][0] if self.held else self.clock(), b"")

    def _hold(self, leaves_s: float, data: bytes | None) -> None:
        self.held.append((leaves_s, data))
        asyncio.get_running_loop().call_at(leaves_s, self._pass_on)

    def _pass_on(self) -> None:
        _, data = self.held.popleft()
        if data is None:
            self.conn.cut()
        elif data:
            self.conn.send(data)
        else:
            self.conn.finish()


class Streamed:
    """A generation whose tokens leave one by one."""

    def __init__(
        self, seq: Sequence, ask: Ask, reason: str, frames: answers.Frames, line: Line, extra: bytes = b""
    ) -> None:
        self.seq = seq
        self.ask = ask
        self.extra = extra
        self.reason = reason
        self.frames = frames
        self.line = line
        self.sent = 0
        self.last_s = 0.0
        self.ending = False

    def emit(self, number: int) -> None:
        """Send the token with this number."""
        if self.ending:
            self.line.send(self.frames.last(number, self.reason, self.used(number + 1) if self.ask.usage else None))
            self.line.finish()
        else:
            self.line.send(self.frames.token(number))

    def used(self, tokens: int) -> dict[str, Any]:
        """Return the usage object."""
        return answers.usage(self.seq.prompt_tokens, tokens, told(self.seq).cached_tokens)


class Whole(Streamed):
    """A generation that leaves at its end."""

    def emit(self, number: int) -> None:
        """Send all, if this is the last token."""
        if self.ending:
            body = answers.whole(self.frames, number + 1, self.reason, self.used(number + 1))
            self.line.send(answers.response(200, body, extra=self.extra))
            self.line.finish()


class Embedded:
    """One input of a request for embeddings; the last of them to be computed sends the answer."""

    def __init__(self, seq: Sequence, together: list[Embedded], line: Line, body: Any) -> None:
        self.seq = seq
        self.together = together
        self.line = line
        self.body = body
        self.reason = "stop"
        self.sent = 0
        self.last_s = 0.0
        self.ending = False

    def emit(self, number: int) -> None:
        """Send all, if the others are computed."""
        self.together.remove(self)
        if not self.together:
            self.line.send(answers.response(200, self.body()))
            self.line.finish()


Answer = Streamed | Embedded


def make_frames(kind: str, request: str, model: str, created: int, first: int) -> answers.Frames:
    """Return the events of an answer to this request, whose id becomes the answer's."""
    prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
    return answers.Frames(kind, prefix + request, model, created, first % len(prompts.WORDS))
