"""The answer to one request, sans I/O: bytes with the time they came go in, tokens with their times come out.

HTTP is parsed by httptools (0.26 us per chunk, a third of what slicing in Python takes), events are decoded with their
types by msgspec (0.5 us, a fifth of what `json` takes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from headway.errors import MissingExtra

__all__ = ["REFUSALS", "Answer", "Events"]

KEPT_BYTES = 4096  # of a body that is no stream: an example of what a server said
OK, UNMEETABLE = 200, 422
# Too many; and a gateway's word for what no replica could keep. Any other 422 is a bad request, and so a failure.
REFUSALS = ("HTTP 429", "HTTP 422, unmeetable")


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    sent_ns: int = 0  # of a paced source: when it wrote this, by the clock of the machine


_decode = msgspec.json.Decoder(_Event).decode


class Events:
    """Cuts a stream of server-sent events, however its bytes come, into the data of each event."""

    __slots__ = ("carry", "lines")

    def __init__(self) -> None:
        self.carry = b""  # of a line that is not complete
        self.lines: list[bytes] = []  # of an event that is not complete

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of the events that these bytes complete."""
        if not self.carry and not self.lines and data.endswith(b"\n\n") and b"\r" not in data:
            parts = data[:-2].split(b"\n\n")  # whole events, as nearly every server writes them
            if all(part.startswith(b"data: ") and b"\n" not in part for part in parts):
                return [part[6:] for part in parts]
        return self._by_lines(data)

    def _by_lines(self, data: bytes) -> list[bytes]:
        text = self.carry + data
        held = b"\r" if text.endswith(b"\r") else b""  # the first half of a line's end, or all of it
        text = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self.carry = rest + held
        done = []
        for line in lines:
            if line.startswith(b"data:"):
                self.lines.append(line[5:].removeprefix(b" "))
            elif not line and self.lines:
                done.append(b"\n".join(self.lines))
                self.lines = []
        return done


class Answer:
    """Fed by a connection until `complete`; then `problem` says what was wrong, "" when nothing was.

    times_s: when each event that bore output came. tokens: the output, as the engine counts it where it does.
    """

    __slots__ = (
        "cached_tokens", "complete", "events", "got_bytes", "keep_alive", "keeps", "now_s", "output_tokens", "parser",
        "problem", "prompt_tokens", "raw", "sent_ns", "stream_ended", "times_s",
    )  # fmt: skip

    def __init__(self) -> None:
        self.parser: Any = parser_class()(self)
        self.events = Events()
        self.times_s: list[float] = []
        self.sent_ns: list[int] = []
        self.now_s = 0.0
        self.raw = b""
        self.problem = ""
        self.keeps = False
        self.keep_alive = self.stream_ended = self.complete = False
        self.got_bytes = 0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = -1

    @property
    def tokens(self) -> int:
        """Output tokens: by the engine's count, else one per event."""
        return self.output_tokens if self.output_tokens >= 0 and self.times_s else len(self.times_s)

    @property
    def status(self) -> int:
        """The HTTP status; 0 before it came."""
        return int(self.parser.get_status_code()) if self.got_bytes else 0

    def feed(self, data: bytes, now_s: float) -> None:
        """Take bytes that came at a time."""
        self.now_s = now_s
        self.got_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except Exception as error:  # httptools has a class per kind of broken HTTP
            self.fail(f"broken HTTP ({type(error).__name__})")
            self.complete = True

    def closed(self) -> None:
        """The connection ended: the end of an answer without a length, else a cut."""
        if not self.complete:
            self.complete, self.keep_alive = True, False
            self._judge("connection closed before an answer" if not self.got_bytes else "stream cut")

    def fail(self, problem: str, example: bytes = b"") -> None:
        """Note the first thing that was wrong, with what the server said."""
        if not self.problem:
            self.problem = problem
            self.raw = example[:KEPT_BYTES] or self.raw

    # --- called by the parser ---

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self.keeps and self.status != OK:
            self.keeps = True
        if self.keeps:
            self.raw += body[: KEPT_BYTES - len(self.raw)]
            return
        for data in self.events.feed(body):
            self._event(data)

    def on_message_complete(self) -> None:
        """The end of the answer."""
        self.complete = True
        self.keep_alive = bool(self.parser.should_keep_alive())
        self._judge("stream ended without [DONE]")

    # --- inside ---

    def _judge(self, otherwise: str) -> None:
        """Say what was wrong of a complete answer; `otherwise` where its stream had not ended."""
        if self.got_bytes and self.status != OK:
            unmeetable = self.status == UNMEETABLE and b'"unmeetable"' in self.raw
            self.fail(REFUSALS[1] if unmeetable else f"HTTP {self.status}")
        elif not self.stream_ended:
            self.fail(otherwise)
        elif not self.times_s:
            self.fail("no token in the answer")

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.stream_ended = True
            return
        try:
            event = _decode(data)
        except msgspec.DecodeError as error:
            self.fail(f"broken event ({error})"[:120], data)
            return
        if event.error is not None:
            self.fail("error event", data)
        for choice in event.choices:
            delta = choice.delta
            if choice.text or (
                delta is not None and (delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)
            ):
                self.times_s.append(self.now_s)
                if event.sent_ns:
                    self.sent_ns.append(event.sent_ns)
            if choice.finish_reason:
                self.stream_ended = True
        if event.usage is not None:
            self._count(event.usage)

    def _count(self, usage: _Usage) -> None:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self.output_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens is not None:
            self.cached_tokens = usage.prompt_tokens_details.cached_tokens


def parser_class() -> Callable[[Answer], Any]:
    """Return httptools' parser of responses.

    Raises:
        MissingExtra: httptools is not installed.
    """
    try:
        from httptools import HttpResponseParser
    except ImportError:
        raise MissingExtra("driving an endpoint needs httptools", "bench") from None
    parser: Callable[[Answer], Any] = HttpResponseParser
    return parser
