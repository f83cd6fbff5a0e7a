"""gRPC for one service on one socket: as much of HTTP/2 as a proxy on the same machine needs, and no more.

The library's server costs some 200 us of CPU a decision, this one some 10: frames are read where they lie, answers
leave together, nothing is switched between threads. What makes it small is what it need not know: it serves one method,
so it reads no header (the peer is told to keep no table of them), and its own headers and trailers are constants. What
a peer may take is bounded: frame, message, messages not yet whole, calls at once, and what it leaves unread.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from struct import Struct, error
from typing import Any, Protocol

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED = 0x4, 0x8
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, REFUSED_STREAM, CALM = 1, 3, 6, 7, 11
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5  # settings
OK, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 8, 12, 13  # status of gRPC
WINDOW_MOST = (1 << 31) - 1
FRAME_MAX = 1 << 16  # bytes of a frame that we take
HEADERS_MAX = 1 << 17
CALLS_MAX = 20_000
UNFINISHED_MAX = 1 << 28  # bytes of messages that are not whole yet, over all calls of a connection
UNREAD_MAX = 1 << 26  # bytes that the peer has not read
TOGETHER_MAX = 32  # frames in one write: while many questions are read the peer goes on with the first answers
OPENING = b"\x88\x0f\x10\x10application/grpc"  # :status 200, content-type, in HPACK without tables
TRAILERS = [b"\x00\x0bgrpc-status" + bytes([len(str(status))]) + str(status).encode() for status in range(17)]

_FRAME = Struct(">HBBBL")  # length in 16 + 8 bits, kind, flags, stream
_SETTING = Struct(">HL")
_MESSAGE = Struct(">BL")  # compressed or not, length


class Service(Protocol):
    """What answers calls. An exception fails the call it comes from and no other."""

    def message(self, call: Call, message: bytes) -> None:
        """A whole message has come; answers go to `call.send`, now or later."""

    def ended(self, call: Call) -> None:
        """The peer has ended the call, or is gone: told once for each call that has sent a message."""


class Violation(Exception):
    """The peer broke the protocol: the connection is closed. `args`: HTTP/2's error code, what was wrong."""


class Call:
    """One call: a stream of HTTP/2. `about` belongs to the service."""

    __slots__ = ("about", "channel", "credit", "heard", "id", "needed", "opened", "received", "unsent", "window")

    def __init__(self, channel: Channel, id: int) -> None:
        self.channel = channel
        self.id = id
        self.about: Any = None
        self.received = bytearray()  # of a message that is not whole yet
        self.needed = 5  # bytes of it, as far as is known
        self.credit = 0  # bytes received for which no window has been given back
        self.unsent = bytearray()
        self.window = channel.peer_window
        self.opened = self.heard = False

    def send(self, message: bytes) -> None:
        """Send a message, when the peer's windows allow; nothing is sent once the call is over."""
        channel = self.channel
        if channel.calls.get(self.id) is not self:
            return
        if not self.opened:
            self.opened = True
            channel.write(HEADERS, END_HEADERS, self.id, OPENING)
        size = len(message) + 5
        if self.unsent or size > min(self.window, channel.window, channel.peer_frame):
            self.unsent += _MESSAGE.pack(0, len(message)) + message
            channel.send_more(self)
            return
        self.window -= size
        channel.window -= size
        channel.write(DATA, 0, self.id, _MESSAGE.pack(0, len(message)) + message)

    def finish(self) -> None:
        """End the call from this side, with success; the service is told, as of any end."""
        if self.channel.calls.get(self.id) is self:
            self.channel.close(self, OK)


def asking(message: bytes) -> bytes:
    """Return all that a client of such a channel sends to ask one message and to want no answer."""
    whole = _MESSAGE.pack(0, len(message)) + message
    parts = [whole[i : i + FRAME_MAX] for i in range(0, len(whole), FRAME_MAX)]
    frames = [(SETTINGS, 0, 0, b""), (HEADERS, END_HEADERS, 1, b""), *((DATA, 0, 1, part) for part in parts)]
    return PREFACE + b"".join(_frame(*each) for each in (*frames, (DATA, END_STREAM, 1, b"")))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


class Channel(asyncio.Protocol):
    """One connection.

    Args:
        service: answers the calls.
        message_max: bytes of the longest message taken.
        say: takes a line about what went wrong.
    """

    def __init__(self, service: Service, message_max: int, say: Callable[[str], None]) -> None:
        self.service = service
        self.message_max = message_max
        self.say = say
        self.transport: Any = None
        self.buffer = b""
        self.out: list[bytes] = []
        self.reading = False
        self.calls: dict[int, Call] = {}
        self.last = 0
        self.greeted = False
        self.unfinished = 0
        self.credit = 0
        self.window = self.peer_window = (1 << 16) - 1
        self.peer_frame = 1 << 14
        self.open_block: tuple[int, int, int] | None = None  # stream, flags, bytes of headers that are still coming
        self.on_frame = {
            HEADERS: self._headers,
            CONTINUATION: self._continuation,
            RST_STREAM: self._reset,
            SETTINGS: self._settings,
            PING: self._ping,
            WINDOW_UPDATE: self._window,
            PUSH_PROMISE: self._never,
        }

    # --- the connection ----------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Say what we take: no header table, windows that a whole message fits into."""
        self.transport = transport
        transport.set_write_buffer_limits(UNREAD_MAX)
        values = {1: 0, 3: CALLS_MAX, INITIAL_WINDOW_SIZE: self._own_window, MAX_FRAME_SIZE: FRAME_MAX, 6: HEADERS_MAX}
        self.write(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in values.items()))
        self.write(WINDOW_UPDATE, 0, 0, (WINDOW_MOST - 65535).to_bytes(4, "big"))

    @property
    def _own_window(self) -> int:
        return max(self.message_max + 5, 1 << 16)

    def data_received(self, data: bytes) -> None:
        """Take frames apart; what they cause to be sent leaves in few writes."""
        self.reading = True
        try:
            self.buffer = self._frames(self.buffer + data if self.buffer else data)
        except Violation as broken:
            code, what = broken.args
            self.say(f"the connection of a proxy is closed: {what}")
            self.write(GOAWAY, 0, 0, self.last.to_bytes(4, "big") + code.to_bytes(4, "big"))
            self.flush()
            self.transport.close()
        finally:
            self.reading = False
            self.flush()

    def connection_lost(self, why: Exception | None) -> None:
        """End all calls."""
        self.out.clear()
        for call in list(self.calls.values()):
            self._over(call)

    def pause_writing(self) -> None:
        """The peer reads nothing: give it up."""
        self.transport.abort()

    def write(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Add a frame to what is sent next."""
        if not self.out and not self.reading:
            asyncio.get_running_loop().call_soon(self.flush)
        self.out.append(_frame(kind, flags, stream, payload))
        if len(self.out) >= TOGETHER_MAX:
            self.flush()

    def flush(self) -> None:
        """Send what has been gathered."""
        if self.out and not self.transport.is_closing():
            self.transport.write(b"".join(self.out))
        self.out.clear()

    # --- frames ------------------------------------------------------------------------------------------------

    def _frames(self, data: bytes) -> bytes:
        """Handle all whole frames; what is left over."""
        at, size = 0, len(data)
        if not self.greeted:
            if data[:24] != PREFACE[:size]:
                raise Violation(PROTOCOL_ERROR, "it does not speak HTTP/2")
            if size < 24:
                return data
            self.greeted, at = True, 24
        while size - at >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, at)
            length = high << 8 | low
            if length > FRAME_MAX:
                raise Violation(FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            if size - at - 9 < length:
                break
            at += 9 + length
            stream &= WINDOW_MOST
            if self.open_block is not None and (kind != CONTINUATION or stream != self.open_block[0]):
                raise Violation(PROTOCOL_ERROR, "a frame amid headers")
            if kind == DATA:
                self._data(flags, stream, data[at - length : at])
            elif kind in self.on_frame:
                try:
                    self.on_frame[kind](flags, stream, data[at - length : at])
                except (error, IndexError):
                    raise Violation(FRAME_SIZE_ERROR, f"a frame of kind {kind} is too short") from None
        return data[at:]

    def _never(self, flags: int, stream: int, payload: bytes) -> None:
        raise Violation(PROTOCOL_ERROR, "a client that pushes")

    def _headers(self, flags: int, stream: int, payload: bytes) -> None:
        if not stream % 2:
            raise Violation(PROTOCOL_ERROR, "headers of a stream that a client cannot open")
        if flags & END_HEADERS:
            self._opened(flags, stream)
        else:
            self.open_block = (stream, flags, len(payload))

    def _continuation(self, flags: int, stream: int, payload: bytes) -> None:
        if self.open_block is None:
            raise Violation(PROTOCOL_ERROR, "a continuation of nothing")
        _, first, size = self.open_block
        size += len(payload) + 1  # one more for each, so that empty ones are bounded, too
        if size > HEADERS_MAX:
            raise Violation(CALM, f"headers above {HEADERS_MAX} bytes")
        self.open_block = None if flags & END_HEADERS else (stream, first, size)
        if flags & END_HEADERS:
            self._opened(first, stream)

    def _opened(self, flags: int, stream: int) -> None:
        """Headers are whole: a new call, or the trailers of one."""
        if stream <= self.last:
            call = self.calls.get(stream)
            if call is not None and flags & END_STREAM:
                self.close(call, OK)
            return
        self.last = stream
        if len(self.calls) >= CALLS_MAX:
            self.write(RST_STREAM, 0, stream, REFUSED_STREAM.to_bytes(4, "big"))
            return
        call = self.calls[stream] = Call(self, stream)
        if flags & END_STREAM:
            self.close(call, OK)

    def _data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self.credit += size
        if self.credit > WINDOW_MOST >> 1:
            self.write(WINDOW_UPDATE, 0, 0, self.credit.to_bytes(4, "big"))
            self.credit = 0
        call = self.calls.get(stream)
        if call is None:
            if not stream or stream > self.last:
                raise Violation(PROTOCOL_ERROR, "data of a stream that is not open")
            return  # what was under way when the call ended
        if flags & PADDED:
            if not payload or payload[0] >= size:
                raise Violation(PROTOCOL_ERROR, "padding longer than its frame")
            payload = payload[1 : size - payload[0]]
        call.credit += size
        if call.credit > self._own_window:
            raise Violation(FLOW_CONTROL_ERROR, "data beyond its window")
        self._messages(call, payload)
        if self.calls.get(stream) is not call:
            return
        if flags & END_STREAM:
            self.close(call, OK)
        elif call.credit > self._own_window >> 1 and not call.received:
            self.write(WINDOW_UPDATE, 0, stream, call.credit.to_bytes(4, "big"))
            call.credit = 0

    def _messages(self, call: Call, data: bytes) -> None:
        """Cut messages out of what has come; the rest stays with the call."""
        if call.received:
            call.received += data
            self.unfinished += len(data)
            if len(call.received) < call.needed:
                if self.unfinished > UNFINISHED_MAX:
                    self.close(call, RESOURCE_EXHAUSTED)
                return
            data = bytes(call.received)
            self.unfinished -= len(data)
            call.received.clear()
        at, size, call.needed = 0, len(data), 5
        while size - at >= 5:
            compressed, length = _MESSAGE.unpack_from(data, at)
            if compressed or length > self.message_max:
                self.close(call, UNIMPLEMENTED if compressed else RESOURCE_EXHAUSTED)
                return
            if size - at - 5 < length:
                call.needed = 5 + length
                break
            at += 5 + length
            call.heard = True
            try:
                self.service.message(call, data[at - length : at])
            except Exception as wrong:
                self._said_wrong("a question", wrong)
                self.close(call, INTERNAL)
            if self.calls.get(call.id) is not call:
                return
        if at < size:
            call.received += data[at:]
            self.unfinished += size - at

    def _said_wrong(self, what: str, wrong: Exception) -> None:
        """Say where the service failed, and not with what: that may hold a prompt."""
        where = traceback.extract_tb(wrong.__traceback__)[-1]
        self.say(f"{what} failed: {type(wrong).__name__} in {where.name}, line {where.lineno}")

    def close(self, call: Call, status: int) -> None:
        """Close a call with this status of gRPC."""
        if not call.opened:
            self.write(HEADERS, END_HEADERS, call.id, OPENING)
        self.write(HEADERS, END_HEADERS | END_STREAM, call.id, TRAILERS[status])
        self._over(call)

    def _over(self, call: Call) -> None:
        if self.calls.pop(call.id, None) is None:
            return
        self.unfinished -= len(call.received)
        call.received.clear()
        if call.heard:
            try:
                self.service.ended(call)
            except Exception as wrong:
                self._said_wrong("an end", wrong)

    def _reset(self, flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Violation(FRAME_SIZE_ERROR, "a reset that is not of 4 bytes")
        if not stream or stream > self.last:
            raise Violation(PROTOCOL_ERROR, "a reset of a stream that is not open")
        call = self.calls.get(stream)
        if call is not None:
            self._over(call)

    def _settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream or len(payload) % 6:
            raise Violation(FRAME_SIZE_ERROR, "settings that are none")
        if flags & ACK:
            return
        for name, value in _SETTING.iter_unpack(payload):
            if name == INITIAL_WINDOW_SIZE:
                if value > WINDOW_MOST:
                    raise Violation(FLOW_CONTROL_ERROR, "a window above 2^31 - 1")
                for call in self.calls.values():
                    call.window += value - self.peer_window
                self.peer_window = value
            elif name == MAX_FRAME_SIZE:
                if not 1 << 14 <= value < 1 << 24:
                    raise Violation(PROTOCOL_ERROR, "a frame size that is none")
                self.peer_frame = value
        self.write(SETTINGS, ACK, 0, b"")
        self._send_all()

    def _ping(self, flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise Violation(FRAME_SIZE_ERROR, "a ping that is not of 8 bytes")
        if not flags & ACK:
            self.write(PING, ACK, 0, payload)

    def _window(self, flags: int, stream: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Violation(FRAME_SIZE_ERROR, "a window that is not of 4 bytes")
        more = int.from_bytes(payload, "big") & WINDOW_MOST
        call = self.calls.get(stream)
        if not stream:
            self.window += more
            self._send_all()
        elif call is not None:
            call.window += more
            self.send_more(call)
        if not more or max(self.window, call.window if call else 0) > WINDOW_MOST:
            raise Violation(FLOW_CONTROL_ERROR, "a window of nothing, or above 2^31 - 1")

    # --- what waits for the peer's windows ---------------------------------------------------------------------

    def _send_all(self) -> None:
        for call in self.calls.values():
            if call.unsent:
                self.send_more(call)

    def send_more(self, call: Call) -> None:
        """Send as much of what a call has left as the windows allow."""
        while call.unsent and (size := min(len(call.unsent), call.window, self.window, self.peer_frame)) > 0:
            self.write(DATA, 0, call.id, bytes(call.unsent[:size]))
            del call.unsent[:size]
            call.window -= size
            self.window -= size
