"""The admin port when too many ask, or ask for nothing: an answer at once, since silence is taken for a hang."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from headway.gateway import plainhttp
from headway.gateway.plainhttp import CONNECTIONS_MAX, AdminPages, get


@asynccontextmanager
async def admin():
    """Pages on a port, and where that is."""
    pages = AdminPages({"/status": lambda: ("text/plain", b"well\n")}, "")
    server = await asyncio.start_server(pages.serve, "127.0.0.1", 0, limit=1 << 14)
    host, port = server.sockets[0].getsockname()
    try:
        yield pages, f"{host}:{port}"
    finally:
        server.close()
        await asyncio.sleep(0.01)  # what was closed is so in the loop's next turns


async def idle(at: str, pages: AdminPages, count: int) -> list[asyncio.StreamWriter]:
    """So many connections that say nothing, once they have been taken."""
    host, _, port = at.partition(":")
    before = pages.open
    opened = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(count)]
    async with asyncio.timeout(30):
        while pages.open < before + count:
            await asyncio.sleep(0.001)
    return opened


async def leave(*writers: asyncio.StreamWriter) -> None:
    for each in writers:
        each.close()
        with suppress(OSError):
            await each.wait_closed()


def test_beyond_its_connections_503_is_said_at_once_and_later_it_answers_again():
    async def run() -> None:
        async with admin() as (pages, at):
            opened = await idle(at, pages, CONNECTIONS_MAX)
            status, body = await get(at, "/status", 30)
            assert (status, body) == (503, b"")
            await leave(*opened)
            async with asyncio.timeout(30):
                while pages.open:
                    await asyncio.sleep(0.001)
            assert await get(at, "/status", 30) == (200, b"well\n")

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"GET /status HTTP/1.1\r\nhost:", b"x" * (1 << 16)])
def test_who_sends_no_whole_request_is_sent_away_and_counted_out(monkeypatch, sent):
    monkeypatch.setattr(plainhttp, "READ_S", 0.1)

    async def run() -> None:
        async with admin() as (pages, at):
            (writer,) = await idle(at, pages, 1)
            writer.write(sent)
            async with asyncio.timeout(30):
                while pages.open:
                    await asyncio.sleep(0.001)
            assert await get(at, "/status", 30) == (200, b"well\n")
            await leave(writer)

    asyncio.run(run())
