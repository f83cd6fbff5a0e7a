"""The little HTTP that the gateway speaks itself: GET from engines, and its own admin pages."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from pathlib import Path

BODY_MAX = 8 << 20
HEAD_MAX = 16 << 10
READ_S = 5.0

Page = Callable[[], tuple[str, bytes]]  # content type, body


async def get(
    host: str, port: int, path: str, timeout_s: float, *, tls: ssl.SSLContext | None = None, name: str = ""
) -> tuple[int, bytes]:
    """GET a page by HTTP/1.0, so that it comes whole and unchunked; status and body.

    `tls`: how a server is trusted whose certificate is for `name`; without it nothing is encrypted.

    Raises:
        OSError: no connection, or an answer that is no HTTP. TimeoutError: none in time.
    """
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name if tls else None)
        try:
            lines = (f"GET {path} HTTP/1.0", f"Host: {name or host}:{port}", "Accept: */*", "Connection: close", "", "")
            writer.write("\r\n".join(lines).encode())
            await writer.drain()
            answer = bytearray()
            while len(answer) < BODY_MAX and (more := await reader.read(65536)):
                answer += more
        finally:
            writer.close()
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ConnectionError(f"{host}:{port}{path} did not answer in HTTP")
    return int(words[1]), body


async def ask_socket(socket: Path, method: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Ask Envoy's admin on its unix socket, which only this user may open; status and body, in chunks as it came.

    Raises:
        OSError: nobody listens. TimeoutError: no answer in time.
    """
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(str(socket))
        try:
            lines = (f"{method} {path} HTTP/1.1", "Host: envoy", "Connection: close", "Content-Length: 0", "", "")
            writer.write("\r\n".join(lines).encode())
            await writer.drain()
            answer = await reader.read(-1)
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    return (int(words[1]) if len(words) > 1 else 0), body.strip()


class AdminPages:
    """Serves a few pages by GET to whoever shows the key; `/healthz` to everyone."""

    def __init__(self, pages: dict[str, Page], key_sha256: str) -> None:
        self.pages = pages
        self.key_sha256 = key_sha256

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection with one page."""
        try:
            async with asyncio.timeout(READ_S):
                head = await reader.readuntil(b"\r\n\r\n")
            status, kind, body = self.answer(head.decode("latin-1"))
            line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {kind}\r\n"
            writer.write(f"{line}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a caller that sends no whole request in time gets no answer
        finally:
            writer.close()

    def answer(self, head: str) -> tuple[int, str, bytes]:
        """Return status, content type and body for a request's head."""
        request, *lines = head.split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return 405, "text/plain", b"only GET\n"
        if path == "/healthz":
            return 200, "text/plain", b"ok\n"
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if self.key_sha256:
            key = headers.get("authorization", "").partition(" ")[2].strip()
            if not compare_digest(sha256(key.encode("utf-8", "replace")).hexdigest(), self.key_sha256):
                return 401, "text/plain", b"send the admin key: Authorization: Bearer KEY\n"
        page = self.pages.get(path)
        if page is None:
            return 404, "text/plain", f"there are {', '.join(self.pages)}\n".encode()
        return 200, *page()
