"""HTTP/1.1 for the emulator: parsed by httptools, everything bounded, tokens written straight to the socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from typing import Any, NamedTuple, Protocol

from headway.emulate.answers import response
from headway.emulate.asks import ApiError
from headway.errors import MissingExtra
from headway.specs import Spec

NEVER = float("inf")
_LINGER_S = 2.0  # after a refusal: until then what still comes is read and dropped, so that the refusal is not lost
_WAITING_MAX = 8  # requests sent ahead of their turn on one connection


class Limits(Spec, frozen=True, kw_only=True):
    """What one client may take: bytes, seconds, connections. A reader too slow for `unsent_bytes` is cut off."""

    body_bytes: int = 8 << 20
    header_bytes: int = 32 << 10
    header_s: float = 10.0
    body_s: float = 30.0
    idle_s: float = 120.0
    connections: int = 4096
    unsent_bytes: int = 1 << 20


class Request(NamedTuple):
    """A request that has come in whole."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    http_1_0: bool
    received_s: float


class Host(Protocol):
    """Who answers. `handle` may answer at once or later; `gone` hears of a connection that was lost, once."""

    limits: Limits
    connections: set[Connection]

    def handle(self, conn: Connection, request: Request) -> None:
        """Answer a request, now or later."""

    def gone(self, conn: Connection) -> None:
        """A connection is lost."""


def parser_class() -> Any:
    """Return httptools' parser.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        from httptools import HttpRequestParser
    except ImportError:
        raise MissingExtra("emulating an engine needs httptools", "serve") from None
    return HttpRequestParser


class _Refused(Exception):
    """Raised inside the parser's callbacks to stop it."""


class Connection(asyncio.Protocol):
    """One client's connection: one request at a time, its answer in as many pieces as the host likes."""

    def __init__(self, host: Host, parser: Any) -> None:
        self.host = host
        self.make_parser = parser
        self.answers: list[Any] = []  # the host's: what is under way for this client
        self.fd = -1
        self.blocked = False
        self.busy = False
        self.keep = True
        self.deadline_s = NEVER
        self.waiting: list[tuple[Request, bool]] = []
        self.refusal: tuple[int, str] | None = None
        self.discarding = False
        self.begin()

    def begin(self) -> None:
        """Make ready for a request."""
        self.in_head = True
        self.started = False
        self.url = b""
        self.headers: dict[str, str] = {}
        self.head_bytes = 0
        self.body: list[bytes] = []
        self.body_bytes = 0

    # --- what the event loop tells ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connects."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio leaves accepted sockets as they are
        self.fd = sock.fileno()
        transport.set_write_buffer_limits(high=0)  # `blocked` tells whether anything is unsent
        self.parser = self.make_parser(self)
        self.deadline_s = time.monotonic() + self.host.limits.header_s
        self.host.connections.add(self)
        if len(self.host.connections) > self.host.limits.connections:
            self.refuse(503, f"more than {self.host.limits.connections} connections")

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone, or was sent away."""
        self.fd = -1
        self.host.connections.discard(self)
        self.waiting.clear()
        self.host.gone(self)

    def pause_writing(self) -> None:
        """Something could not be sent yet."""
        self.blocked = True

    def resume_writing(self) -> None:
        """Everything is sent."""
        self.blocked = False

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self.discarding:
            return
        if not self.started and not self.busy:
            self.started = True
            self.deadline_s = time.monotonic() + self.host.limits.header_s
        if self.in_head:
            self.head_bytes += len(data)
        from httptools import HttpParserError, HttpParserUpgrade

        try:
            self.parser.feed_data(data)
            if self.in_head and self.head_bytes > self.host.limits.header_bytes:
                self.refusal = (431, f"more than {self.host.limits.header_bytes} bytes of headers")
        except HttpParserUpgrade:  # CONNECT
            self.refusal = self.refusal or (400, "upgrades are not supported")
        except HttpParserError as error:
            self.refusal = self.refusal or (400, f"not HTTP/1.1: {error}")
        if self.refusal is not None and not self.busy:
            self.refuse(*self.refusal)
        elif self.refusal is not None:
            self.cut()

    # --- what the parser tells ---

    def on_message_begin(self) -> None:
        """A request begins."""
        self.begin()
        self.started = True

    def on_url(self, url: bytes) -> None:
        """Part of the request's target."""
        self.url += url
        self._check_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._check_head(len(name) + len(value) + 4)
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def _check_head(self, more: int) -> None:
        self.body_bytes += more
        if self.body_bytes > self.host.limits.header_bytes:
            self.refusal = (431, f"more than {self.host.limits.header_bytes} bytes of headers")
            raise _Refused

    def on_headers_complete(self) -> None:
        """All headers are there: is the body welcome?"""
        limits = self.host.limits
        self.in_head = False
        self.body_bytes = 0
        if self.parser.should_upgrade():  # the parser would take the body for the next request
            self.refusal = (400, "upgrades are not supported: send the request without an upgrade header")
            raise _Refused
        if not self.busy:
            self.deadline_s = time.monotonic() + limits.body_s
        length = self.headers.get("content-length", "0")
        if length.isdigit() and int(length) > limits.body_bytes:
            self._too_large(length)
        if self.headers.get("expect", "").lower() == "100-continue" and not self.busy:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Part of the body."""
        self.body_bytes += len(data)
        if self.body_bytes > self.host.limits.body_bytes:
            self._too_large(f"at least {self.body_bytes}")
        self.body.append(data)

    def _too_large(self, came: str) -> None:
        self.refusal = (413, f"a body of {came} bytes: at most {self.host.limits.body_bytes} are taken")
        raise _Refused

    def on_message_complete(self) -> None:
        """The request is whole."""
        self.started = False
        request = Request(
            method=self.parser.get_method().decode("latin-1"),
            path=self.url.partition(b"?")[0].decode("latin-1"),
            headers=self.headers,
            body=b"".join(self.body),
            http_1_0=self.parser.get_http_version() == "1.0",
            received_s=time.monotonic(),
        )
        self.in_head, self.head_bytes, self.body = True, 0, []
        if self.busy:
            if len(self.waiting) == _WAITING_MAX:
                self.refusal = (400, "too many requests sent ahead")
                raise _Refused
            self.waiting.append((request, self.parser.should_keep_alive()))
            return
        self._answer(request, self.parser.should_keep_alive())

    def _answer(self, request: Request, keep: bool) -> None:
        self.busy, self.keep, self.deadline_s = True, keep, NEVER
        self.host.handle(self, request)

    # --- what the host does ---

    def send(self, data: bytes) -> None:
        """Write bytes, at once where the socket takes them."""
        if self.fd < 0:
            return
        if not self.blocked:
            try:
                sent = os.write(self.fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.cut()
                return
            if sent == len(data):
                return
            data = data[sent:]
        self.transport.write(data)
        if self.transport.get_write_buffer_size() > self.host.limits.unsent_bytes:
            self.cut()

    def finish(self) -> None:
        """The answer is complete: the connection is free for the next request, or closed."""
        if self.fd < 0:
            return
        self.busy = False
        if not self.keep:
            self.close()
            return
        self.deadline_s = time.monotonic() + self.host.limits.idle_s
        if self.waiting:
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self.waiting and not self.busy and self.fd >= 0:
            request, keep = self.waiting.pop(0)
            self._answer(request._replace(received_s=time.monotonic()), keep)

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error, and close when the client has read it."""
        self.discarding = True
        self.deadline_s = time.monotonic() + _LINGER_S
        self.send(response(status, ApiError(status, message).body(), keep=False))
        if self.fd >= 0:
            self.transport.write_eof()

    def close(self) -> None:
        """Close when everything is sent."""
        self.fd = -1
        self.transport.close()

    def cut(self) -> None:
        """Reset the connection."""
        if self.fd < 0 and self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.fd = -1
        self.transport.abort()
