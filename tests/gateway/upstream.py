"""A tiny OpenAI-like engine on asyncio: streams tokens at a pace, remembers what it was sent, fails when told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import threading

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Upstream:
    """`tokens` tokens, `pace_s` apart, after `first_s`; `fail`: "reset" closes before the first byte, "hang" waits,
    "error" answers requests (and no probe) with 500.

    A stream begun while `endless` is set goes on until `release`, however slow the machine is.
    """

    def __init__(
        self, tokens: int = 4, pace_s: float = 0.005, first_s: float = 0.005, tls: ssl.SSLContext | None = None
    ) -> None:
        self.tls = tls
        self.path = ""  # of a socket to listen on
        self.tokens, self.pace_s, self.first_s = tokens, pace_s, first_s
        self.fail = ""
        self.counting = False  # each event of a stream has the tokens so far
        self.head_first = False  # the head of a stream comes at once, as vLLM's does
        self.word = ""  # what each token says beside its number
        self.piece_bytes = 0  # a network that cuts what is sent after so many bytes; 0: where it was written
        self.endless, self.released = False, threading.Event()
        self.sent = 0  # bytes of streams
        self.seen: list[tuple[str, bytes]] = []
        self.active = 0
        self.cut = 0
        self.port = 0
        self.writers: set[asyncio.StreamWriter] = set()

    async def start(self, port: int = 0) -> None:
        if self.path:
            self.server = await asyncio.start_unix_server(self.serve, self.path, limit=1 << 23)
            return
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", port, limit=1 << 23, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]

    def release(self) -> None:
        """Let the endless streams end, and begin no more of them."""
        self.endless = False
        self.released.set()
        self.released = threading.Event()

    async def stop(self) -> None:
        self.server.close()
        for writer in list(self.writers):
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self.one(reader, writer):
                    pass
        finally:
            self.writers.discard(writer)
            writer.close()

    async def one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        size = re.search(r"content-length: (\d+)", head, re.I)
        body = await reader.readexactly(int(size[1])) if size else b""
        if re.search("transfer-encoding: chunked", head, re.I):
            while chunk := int(await reader.readline(), 16):
                body += (await reader.readexactly(chunk + 2))[:-2]
            await reader.readline()
        if self.fail == "hang":
            self.seen += [] if head.startswith("GET") else [(head, body)]
            await reader.read()
            return False
        if head.startswith("GET"):
            text = f"vllm:num_requests_running {self.active}\nvllm:num_requests_waiting 0\n".encode()
            text = text if head.startswith("GET /metrics") else b"ok"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(text) + text)
            await writer.drain()
            return False
        self.seen.append((head, body))
        if self.fail == "reset":
            writer.transport.abort()
            return False
        if self.fail == "error":
            writer.write(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4\r\n\r\noops")
            await writer.drain()
            return True
        self.active += 1
        try:
            if self.head_first:
                writer.write(STREAM_HEAD)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), self.first_s)
                    raise ConnectionResetError("the caller left")
            else:
                await asyncio.sleep(self.first_s)
            await (self.stream if json.loads(body).get("stream") else self.whole)(writer)
        except OSError:
            self.cut += 1
            raise
        finally:
            self.active -= 1
        return True

    async def whole(self, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.tokens * self.pace_s)
        usage = {"prompt_tokens": 9, "completion_tokens": self.tokens, "total_tokens": 9 + self.tokens}
        text = json.dumps({"object": "chat.completion", "port": self.port, "usage": usage}).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(text)
        await self.write(writer, head + text)

    async def stream(self, writer: asyncio.StreamWriter) -> None:
        if not self.head_first:
            writer.write(STREAM_HEAD)
        # Of this stream, whatever is set for later ones.
        i, tokens, pace_s, released = 0, self.tokens, self.pace_s, self.released if self.endless else None
        while i <= tokens or (released and not released.is_set()):  # the first names the role only
            delta = {"role": "assistant", "content": ""} if not i else {"content": f'"{i}{self.word}'}
            usage = {"usage": {"completion_tokens": i}} if self.counting else {}
            await self.event(writer, json.dumps({"choices": [{"delta": delta}], "port": self.port, **usage}).encode())
            i += 1
            if pace_s:
                await asyncio.sleep(pace_s)
        await self.event(writer, b"[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def event(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        text = b"data: " + data + b"\n\n"
        await self.write(writer, b"%x\r\n" % len(text) + text + b"\r\n")
        self.sent += len(text)
        if writer.transport.is_closing():
            raise ConnectionResetError("the caller left")

    async def write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        for at in range(0, len(data), self.piece_bytes or len(data)):
            writer.write(data[at : at + (self.piece_bytes or len(data))])
            await writer.drain()
            if self.piece_bytes:
                await asyncio.sleep(0.002)  # each piece is a packet of its own
