"""An emulator on a free port of this machine, its engine fast enough for tests, and a small client."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from unittest.mock import patch

from headway.cost import EngineSettings, Replica
from headway.emulate import Emulator, PacedReplica, Settings
from headway.emulate.port import Port
from tests.core.drive import plain_table

ENGINE = EngineSettings(max_batched_tokens=256, max_seqs=16)
REPLICA = Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=ENGINE)
MODEL = "llama-3.1-8b"


class Reply(NamedTuple):
    """A response as it came: `pieces` are the chunks of a chunked body."""

    status: int
    headers: dict[str, str]
    pieces: list[bytes]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, the closing mark among them as text."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == ""
        assert all(part.startswith("data: ") for part in parts)
        return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        self.send(method, path, body, **headers)
        return await self.reply()

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: test", f"content-length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + data)

    async def reply(self) -> Reply:
        status, headers = await self.head()
        if headers.get("transfer-encoding") != "chunked":
            return Reply(status, headers, [await self.reader.readexactly(int(headers["content-length"]))])
        pieces = []
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            pieces.append((await self.reader.readexactly(size + 2))[:-2])
        assert await self.reader.readexactly(2) == b"\r\n"
        return Reply(status, headers, pieces)

    async def head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        return int(first.split()[1]), headers

    def close(self) -> None:
        self.writer.close()


OPENED: list[Client] = []  # of this test: closed at its end


async def connect(port: Port) -> Client:
    OPENED.append(Client(*await asyncio.open_connection(*port.address)))
    return OPENED[-1]


def serve(
    what: Callable[[Emulator], Awaitable[Any]],
    replicas: int = 1,
    table: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Run a test against an emulator; after it nothing may be left in any engine."""
    fast = plain_table(**{"linear_s": 0.001, "decode_s": 0.0005, **(table or {})})
    emulator = Emulator([REPLICA] * replicas, Settings(port=0, **settings))
    for port in emulator.ports:
        port.make_engine = functools.partial(PacedReplica, fast, ENGINE)
        port.start_anew()

    async def and_rest(emulator: Emulator) -> Any:
        done = await what(emulator)
        for port in emulator.ports:
            await settled(port)
        return done

    return held(emulator, and_rest)


def held(emulator: Emulator, what: Callable[[Emulator], Awaitable[Any]]) -> Any:
    """Start an emulator for a test of at most half a minute, and close it and all connections after it."""

    async def whole() -> Any:
        with patch("headway.emulate.server.gc"):  # in a process of so many tests it takes longer than they do
            await emulator.start()
        try:
            return await asyncio.wait_for(what(emulator), 30)
        finally:
            emulator.close()
            for client in OPENED:
                client.close()
            OPENED.clear()
            await asyncio.sleep(0.002)

    return asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; `serve` is patient for half a minute."""
    while not condition():
        await asyncio.sleep(0.002)


async def settled(port: Port) -> None:
    """Wait until the engine has nothing to do; then its books must be zero."""
    await until(lambda: port.paced.next_s == float("inf"))
    books = port.paced.books(1e9)
    assert (books["running"], books["waiting"], books["kv_used"]) == (0, 0, 0)
    assert not port.under_way


async def one(port: Port, path: str, body: Any, **headers: str) -> Reply:
    client = await connect(port)
    try:
        return await client.ask("POST", path, body, **headers)
    finally:
        client.close()
