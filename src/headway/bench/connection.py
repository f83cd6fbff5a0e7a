"""Connections: bytes out at once, bytes in with the time they came, by the kernel's clock where it tells.

The kernel stamps what arrives (SO_TIMESTAMPNS), so a token's time does not depend on when this process got around to
read it: a busy loop costs nothing but merged reads. With TLS, and where there is no such stamp, it is the time of the
read. All times are those of `time.monotonic`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import socket
import struct
import sys
import time
from typing import Any, Protocol

from headway.bench.target import Address

__all__ = ["Clock", "Connection", "Connections", "Owner", "event_loop"]

READ_BYTES = 65_536
SPARE = 8  # open ahead, so that no request waits for a handshake
CONNECT_S = 10.0
OPEN_AHEAD_S = 2.0
LATE_S = 5.0  # a stamp further from now than this is no stamp
_STAMP = struct.Struct("@ll")
STAMPED = sys.platform == "linux"
_SO_TIMESTAMPNS = 35  # of asm-generic/socket.h; 64-bit Linux


class Owner(Protocol):
    """Who is told what happens on a connection."""

    def data(self, connection: Connection, data: bytes, now_s: float) -> None:
        """Bytes came at a time."""

    def opened(self, connection: Connection) -> None:
        """It can be written to."""

    def lost(self, connection: Connection, why: str) -> None:
        """It is gone: "" when the other side closed it."""


class Clock:
    """Turns the kernel's stamps (time of day) into monotonic time; `now_s` is when the loop last woke."""

    def __init__(self) -> None:
        self.offset_s = 0.0
        self.set()

    def set(self) -> None:
        """Compare the two clocks again, as the time of day may be set."""
        before_s, day_ns = time.monotonic(), time.time_ns()
        self.offset_s = day_ns * 1e-9 - (before_s + time.monotonic()) / 2

    def stamped(self, ancillary: list[tuple[int, int, bytes]]) -> float:
        """Return when the last bytes read came, seconds."""
        now_s = time.monotonic()
        if not ancillary:
            return now_s
        seconds, nanoseconds = _STAMP.unpack_from(ancillary[0][2])
        came_s: float = seconds + nanoseconds * 1e-9 - self.offset_s
        return came_s if -LATE_S < came_s - now_s <= 0 else now_s


class Connection:
    """One connection. `write` may be called before it is open."""

    def __init__(self, owner: Owner, clock: Clock) -> None:
        self.owner, self.clock = owner, clock
        self.loop = asyncio.get_running_loop()
        self.socket: socket.socket | None = None
        self.transport: asyncio.Transport | None = None
        self.unsent = b""
        self.open = self.gone = False
        self.used = 0  # requests
        self.started_s = time.monotonic()
        self.work: Any = None  # what its owner does on it

    def start(self, address: Address, where: tuple[Any, ...], tls: Any) -> None:
        """Begin to connect; `where` is an entry of getaddrinfo, `tls` a context or None."""
        family, kind, protocol, _, place = where
        try:
            self.socket = socket.socket(family, kind, protocol)
            self.socket.setblocking(False)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if STAMPED and tls is None:
                self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            code = self.socket.connect_ex(place)
        except OSError as error:
            self.loop.call_soon(self._gone, said(error))
            return
        if code not in (0, errno.EINPROGRESS):
            self.loop.call_soon(self._gone, said(OSError(code, os.strerror(code))))
        elif tls is None:
            self.loop.add_writer(self.socket, self._connected)
        else:
            self.loop.add_writer(self.socket, self._wrap, tls, address.host)

    def write(self, data: bytes) -> None:
        """Send bytes, now as many as the kernel takes."""
        if self.transport is not None:
            self.transport.write(data)
        elif self.unsent or not self.open or self.socket is None:
            self.unsent += data
        else:
            self._send(data)

    def close(self) -> None:
        """End it; nobody is told."""
        if self.gone:
            return
        self.gone = True
        if self.transport is not None:
            self.transport.abort()
        elif self.socket is not None:
            self.loop.remove_reader(self.socket)
            self.loop.remove_writer(self.socket)
            self.socket.close()

    def _send(self, data: bytes) -> None:
        assert self.socket is not None
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.loop.call_soon(self._gone, said(error))
            return
        self.unsent = data[sent:]
        if self.unsent:
            self.loop.add_writer(self.socket, self._writable)

    def _writable(self) -> None:
        assert self.socket is not None
        self.loop.remove_writer(self.socket)
        self._send(self.unsent)

    def _reached(self) -> bool:
        """Whether the socket, writable for the first time, is connected; it is given up where it is not."""
        assert self.socket is not None
        self.loop.remove_writer(self.socket)
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._gone(said(OSError(code, os.strerror(code))))
        return not code

    def _connected(self) -> None:
        if not self._reached():
            return
        assert self.socket is not None
        self.open = True
        self.loop.add_reader(self.socket, self._readable)
        if self.unsent:
            self._send(self.unsent)
        self.owner.opened(self)

    def _readable(self) -> None:
        assert self.socket is not None
        try:
            if STAMPED:
                data, ancillary, _, _ = self.socket.recvmsg(READ_BYTES, 64)
                now_s = self.clock.stamped(ancillary)
            else:
                data, now_s = self.socket.recv(READ_BYTES), time.monotonic()
        except BlockingIOError:
            return
        except OSError as error:
            self._gone(said(error))
            return
        if data:
            self.owner.data(self, data, now_s)
        else:
            self._gone("")

    def _gone(self, why: str) -> None:
        if not self.gone:
            self.close()
            self.owner.lost(self, why)

    def _wrap(self, tls: Any, host: str) -> None:
        if not self._reached():
            return
        made = self.loop.create_connection(lambda: _Wrapped(self), sock=self.socket, ssl=tls, server_hostname=host)
        self.handshake = self.loop.create_task(made)
        self.handshake.add_done_callback(self._wrapped)

    def _wrapped(self, task: asyncio.Task[tuple[asyncio.Transport, Any]]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._gone(said(error))
            return
        self.transport = task.result()[0]
        if self.gone:
            self.transport.abort()
            return
        self.open = True
        if self.unsent:
            self.transport.write(self.unsent)
            self.unsent = b""
        self.owner.opened(self)


class _Wrapped(asyncio.Protocol):
    """Hands on what a TLS transport gives."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def data_received(self, data: bytes) -> None:
        """Bytes came: the time is that of the read."""
        if not self.connection.gone:
            self.connection.owner.data(self.connection, data, time.monotonic())

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone."""
        if not self.connection.gone:
            self.connection.gone = True
            self.connection.owner.lost(self.connection, "" if error is None else said(error))


class Connections:
    """Connections to one address, kept alive and used again, the last used first; a few are open ahead."""

    def __init__(self, address: Address, owner: Owner, ahead: int = SPARE) -> None:
        self.address, self.owner, self.clock = address, owner, Clock()
        self.ahead = ahead
        self.where = resolved(address)
        self.tls = _tls_context() if address.tls else None
        self.idle: list[Connection] = []
        self.opening = 0
        self.all: set[Connection] = set()

    def take(self) -> Connection:
        """Return a connection nobody uses."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.gone:
                break
        else:
            connection = self._new()
        connection.used += 1
        return connection

    def spare(self) -> None:
        """Open one ahead where few are left."""
        if len(self.idle) + self.opening < SPARE:
            self.opening += 1
            self._new()

    async def open_ahead(self) -> None:
        """Open as many as will be used at once, and wait for them for a while."""
        for _ in range(self.ahead):
            self.opening += 1
            self._new()
        until_s = time.monotonic() + OPEN_AHEAD_S
        while self.opening and time.monotonic() < until_s:
            await asyncio.sleep(0.01)

    def opened(self, connection: Connection) -> None:
        """One that nobody uses is ready."""
        if not connection.used:
            self.opening -= 1
            self.idle.append(connection)

    def back(self, connection: Connection) -> None:
        """Take back a connection that can be used again."""
        connection.work = None
        if not connection.gone:
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        """Forget one that is gone."""
        if not connection.used and not connection.open:
            self.opening -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        self.all.discard(connection)

    def close(self) -> None:
        """End all."""
        for connection in self.all:
            connection.close()
        self.all.clear()
        self.idle.clear()

    def _new(self) -> Connection:
        connection = Connection(self.owner, self.clock)
        self.all.add(connection)
        connection.start(self.address, self.where, self.tls)
        return connection


def resolved(address: Address) -> tuple[Any, ...]:
    """Return the first address of a host that takes a connection, the first of all where none does.

    Raises:
        OSError: the name is not known.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, place in found if len(found) > 1 else []:
        with socket.socket(family, kind, protocol) as trial:
            trial.settimeout(CONNECT_S)
            if not trial.connect_ex(place):
                return family, kind, protocol, "", place
    return found[0]


def event_loop() -> asyncio.SelectorEventLoop:
    """Return an event loop whose timers are exact to some tens of microseconds."""
    return asyncio.SelectorEventLoop(_Exact() if STAMPED else selectors.DefaultSelector())


def said(error: BaseException) -> str:
    """Return what went wrong with a connection, without addresses, so that equal reasons are counted together."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error.strerror.lower()
    return type(error).__name__


if STAMPED:
    import select

    class _Exact(selectors.EpollSelector):
        """Waits by select on the epoll itself: epoll alone counts in whole milliseconds."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            ready = super().select(0)
            if ready or timeout is None or timeout <= 0:
                return ready if ready or timeout is not None else super().select(None)
            select.select([self.fileno()], [], [], timeout)
            return super().select(0)


def _tls_context() -> Any:
    import ssl

    return ssl.create_default_context()
