"""The decision channel: what the library's own client makes of it, and what no sequence of bytes may make of it."""

from __future__ import annotations

import asyncio
import importlib.util
from random import Random
from struct import Struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headway.gateway import channel as c

FRAME, SETTING = Struct(">HBBBL"), Struct(">HL")
OPEN = c.PREFACE + FRAME.pack(0, 0, c.SETTINGS, 0, 0)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def message(text: bytes) -> bytes:
    return b"\0" + len(text).to_bytes(4, "big") + text


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """What was sent, as kind, flags, stream, payload."""
    found = []
    while data:
        high, low, kind, flags, stream = FRAME.unpack_from(data)
        size = high << 8 | low
        found.append((kind, flags, stream, data[9 : 9 + size]))
        data = data[9 + size :]
    return found


class Echo:
    """Sends each message back; fails where it says so."""

    def __init__(self) -> None:
        self.heard: dict[int, list[bytes]] = {}
        self.over: list[int] = []

    def message(self, call: c.Call, message: bytes) -> None:
        self.heard.setdefault(call.id, []).append(message)
        if message == b"fail":
            raise ValueError("secret")
        call.send(message)

    def ended(self, call: c.Call) -> None:
        self.over.append(call.id)
        call.send(b"too late")


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.data, self.closed = b"", False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.data += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


class Side:
    """A channel in front of an echo, without an event loop."""

    def __init__(self, message_max: int = 1 << 20) -> None:
        self.echo, self.wire, self.said = Echo(), Wire(), list[str]()
        self.channel = c.Channel(self.echo, message_max, self.said.append)
        self.channel.reading = True  # nothing is to be written later
        self.channel.connection_made(self.wire)
        self.channel.flush()

    def take(self, *data: bytes) -> list[tuple[int, int, int, bytes]]:
        """Feed bytes; the frames sent since."""
        self.wire.data = b""
        for part in data:
            if not self.wire.closed:
                self.channel.data_received(part)
        return frames(self.wire.data)


def answers(sent: list[tuple[int, int, int, bytes]], stream: int) -> bytes:
    return b"".join(payload for kind, _, at, payload in sent if kind == c.DATA and at == stream)


@given(st.lists(st.lists(st.binary(max_size=70), max_size=4), min_size=1, max_size=5), st.integers(0, 2**32))
def test_bytes_may_come_in_any_pieces(calls, seed):
    rng = Random(seed)
    whole, waiting = OPEN, {1 + 2 * i: b"".join(map(message, texts)) for i, texts in enumerate(calls)}
    for stream in waiting:
        split = rng.random() < 0.5
        whole += frame(c.HEADERS, 0 if split else c.END_HEADERS, stream, b"abc")
        whole += frame(c.CONTINUATION, c.END_HEADERS, stream, b"def") if split else b""
    while waiting:
        stream, size = rng.choice(sorted(waiting)), rng.randint(0, 40)
        part, waiting[stream] = waiting[stream][:size], waiting[stream][size:]
        pad = rng.randint(0, 9)
        padded = frame(c.DATA, c.PADDED, stream, bytes([pad]) + part + bytes(pad))
        whole += padded if pad else frame(c.DATA, 0, stream, part)
        if not waiting[stream]:
            whole += frame(c.DATA, c.END_STREAM, stream, b"")
            del waiting[stream]
    cuts = sorted(rng.randint(0, len(whole)) for _ in range(rng.randint(0, 20)))
    parts = [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    side = Side()
    sent = side.take(*parts)
    for i, texts in enumerate(calls):
        assert side.echo.heard.get(1 + 2 * i, []) == texts
        assert answers(sent, 1 + 2 * i) == b"".join(map(message, texts))
        assert [f for f in sent if f[2] == 1 + 2 * i][-1][1] == c.END_HEADERS | c.END_STREAM
    assert sorted(side.echo.over) == sorted(1 + 2 * i for i, texts in enumerate(calls) if texts)
    assert not side.channel.calls and not side.channel.unfinished and not side.said


STREAMS, CALLS = st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 + 3]), st.sampled_from([1, 3, 5])
NUMBERS = st.integers(0, 2**32 - 1)
SENSE = st.one_of(
    st.builds(lambda i: frame(c.HEADERS, c.END_HEADERS, i, b"x"), CALLS),
    st.builds(lambda i, text: frame(c.DATA, 0, i, message(text)), CALLS, st.binary(max_size=30)),
    st.builds(lambda i, n: frame(c.WINDOW_UPDATE, 0, i, n.to_bytes(4, "big")), st.integers(0, 5), NUMBERS),
    st.builds(lambda n, v: frame(c.SETTINGS, 0, 0, SETTING.pack(n, v)), st.integers(0, 9), NUMBERS),
)
NOISE = st.builds(frame, st.integers(0, 12), st.integers(0, 255), STREAMS, st.binary(max_size=30))


@example([b"PRI * HTTP/2.0\r\n\r\nXX"])
@example([frame(c.DATA, c.PADDED, 1, b"")])
@example([frame(c.HEADERS, 0, 1, b"x"), frame(c.DATA, 0, 1, b"")])
@example([frame(c.CONTINUATION, 4, 1, b"")])
@given(st.lists(st.one_of(NOISE, SENSE, st.binary(max_size=60)), max_size=30))
def test_no_bytes_break_more_than_their_own_connection(parts):
    side = Side()
    side.take(OPEN, *parts)
    before = set(side.echo.heard)
    side.channel.connection_lost(None)
    assert sorted(side.echo.over) == sorted(before), "each call that spoke ended once"
    assert not side.channel.calls and not side.channel.unfinished
    assert all("secret" not in line for line in side.said)


@pytest.mark.parametrize(
    "bad",
    [
        b"GET / HTTP/1.1\r\nhost: h\r\n\r\n",
        OPEN + FRAME.pack(0xFFFF, 0xFF, c.DATA, 0, 1),
        OPEN + frame(c.HEADERS, c.END_HEADERS, 2, b""),
        OPEN + frame(c.DATA, 0, 1, b"x"),
        OPEN + frame(c.HEADERS, 0, 1, b"") + frame(c.CONTINUATION, 0, 1, bytes(c.FRAME_MAX)) * 3,
        OPEN + frame(c.PUSH_PROMISE, 0, 1, b""),
        OPEN + frame(c.RST_STREAM, 0, 9, bytes(4)),
        OPEN + frame(c.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
        OPEN + frame(c.PING, 0, 0, b"1234567"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_told_and_closed(bad):
    side = Side()
    sent = side.take(bad)
    assert sent[-1][0] == c.GOAWAY and side.wire.closed and side.said


def test_a_message_too_long_or_compressed_fails_its_call_alone():
    side = Side(message_max=100)
    opened = b"".join(frame(c.HEADERS, c.END_HEADERS, i, b"") for i in (1, 3, 5, 7))
    long, packed = b"\0" + (101).to_bytes(4, "big"), b"\1" + bytes(4)
    sent = side.take(OPEN + opened + frame(c.DATA, 0, 1, long) + frame(c.DATA, 0, 3, packed))
    sent += side.take(frame(c.DATA, 0, 5, message(b"fail")) + frame(c.DATA, 0, 7, message(b"well")))
    trailers = {stream: payload for kind, flags, stream, payload in sent if kind == c.HEADERS and flags & c.END_STREAM}
    assert trailers == {1: c.TRAILERS[8], 3: c.TRAILERS[12], 5: c.TRAILERS[13]}
    assert answers(sent, 7) == message(b"well")
    assert side.echo.over == [5]
    assert "ValueError" in side.said[0] and "secret" not in side.said[0]


def test_what_is_unfinished_is_bounded_over_all_calls(monkeypatch):
    monkeypatch.setattr(c, "UNFINISHED_MAX", 1000)
    side = Side(message_max=900)
    data = OPEN
    for i in (1, 3):
        data += frame(c.HEADERS, c.END_HEADERS, i, b"") + frame(c.DATA, 0, i, message(bytes(900))[:600])
    sent = side.take(data, frame(c.DATA, 0, 3, bytes(10)))
    assert (c.HEADERS, 5, 3, c.TRAILERS[8]) in sent
    assert set(side.channel.calls) == {1} and side.channel.unfinished == 600


@given(st.integers(0, 300), st.lists(st.integers(1, 90), min_size=1, max_size=30))
def test_windows_of_the_peer_are_kept_and_nothing_is_lost(first, grants):
    """Stream windows from SETTINGS; the connection's is 65,535 and is not at stake here."""
    text = bytes(range(200))
    side = Side()
    window = (c.INITIAL_WINDOW_SIZE).to_bytes(2, "big") + first.to_bytes(4, "big")
    asked = frame(c.HEADERS, c.END_HEADERS, 1, b"") + frame(c.DATA, 0, 1, message(text[:20]) + message(text))
    got = answers(side.take(c.PREFACE + frame(c.SETTINGS, 0, 0, window) + asked), 1)
    allowed, whole = first, message(text[:20]) + message(text)
    assert len(got) == min(allowed, len(whole))
    for more in grants:
        allowed += more
        got += answers(side.take(frame(c.WINDOW_UPDATE, 0, 1, more.to_bytes(4, "big"))), 1)
        assert len(got) == min(allowed, len(whole))
    assert whole.startswith(got)


@pytest.mark.parametrize("size", [0, 5, c.FRAME_MAX, 3 * c.FRAME_MAX])
def test_what_a_client_sends_in_one_go_is_heard_and_ended(size):
    side = Side()
    sent = side.take(c.asking(bytes(size)))
    assert side.echo.heard == {1: [bytes(size)]} and side.echo.over == [1]
    assert sent[-1][:3] == (c.HEADERS, c.END_HEADERS | c.END_STREAM, 1)


def test_a_peer_that_reads_nothing_is_given_up():
    side = Side()
    side.channel.pause_writing()
    assert side.wire.closed


@pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="gRPC's own library is not installed")
def test_the_librarys_own_client_is_served(tmp_path):
    import grpc

    sizes = [0, 1, 1000, 16_384, 65_536, 300_000, 4 << 20]

    async def one(stub: Any, size: int) -> None:
        call = stub()
        for text in (bytes(size), b"again"):
            await call.write(text)
            assert await call.read() == text
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK

    async def run() -> Echo:
        echo, path = Echo(), tmp_path / "c.sock"
        channels: list[c.Channel] = []

        def taken() -> c.Channel:
            channels.append(c.Channel(echo, (4 << 20) + 10, pytest.fail))
            return channels[-1]

        server = await asyncio.get_running_loop().create_unix_server(taken, path)
        options = [("grpc.max_receive_message_length", 1 << 24)]
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as client:
            stub = client.stream_stream("/any.Service/Any")
            await asyncio.gather(*(one(stub, size) for size in sizes * 4))
            left = stub()
            await left.write(b"leaves")
            assert await left.read() == b"leaves"
            left.cancel()
            failing = stub()
            with pytest.raises(BaseException, match=r"MESSAGE|RESOURCE|message"):
                await failing.write(bytes((4 << 20) + 11))
                assert await failing.read() is grpc.aio.EOF
                assert await failing.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
                raise RuntimeError("RESOURCE")
            async with asyncio.timeout(30):
                while len(echo.over) < 4 * len(sizes) + 1:  # the one that left among them
                    await asyncio.sleep(0.01)
        server.close()
        for channel in channels:
            channel.transport.abort()
        await asyncio.sleep(0.01)  # what was cut is closed in the loop's next turns
        return echo

    echo = asyncio.run(run())
    assert len(echo.over) == len(set(echo.over)) == len(echo.heard) == 4 * len(sizes) + 1
