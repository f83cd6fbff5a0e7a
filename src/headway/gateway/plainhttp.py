"""The little HTTP that the gateway speaks itself: GET from engines, and its own admin pages."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64decode
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from pathlib import Path

from headway.gateway.spec import address

BODY_MAX = 8 << 20
HEAD_MAX = 16 << 10
READ_S, REFUSED_S = 5.0, 1.0
CONNECTIONS_MAX = 64
GUARDS = (  # nothing is kept, framed, guessed at, or fetched from anywhere else
    "cache-control: no-store\r\nx-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
    "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
)
ASKS_FOR_KEY = 'www-authenticate: Basic realm="Headway: any user, the admin key as password", charset="UTF-8"\r\n'

Page = Callable[[], tuple[str, bytes]]  # content type, body


async def get(
    at: str, path: str, timeout_s: float, *, tls: ssl.SSLContext | None = None, name: str = ""
) -> tuple[int, bytes]:
    """GET a page by HTTP/1.0, so that it comes whole and unchunked; status and body.

    `at`: host:port, or the path of a socket. `tls`: how a server is trusted whose certificate is for `name`; without it
    nothing is encrypted.

    Raises:
        OSError: no connection, or an answer that is no HTTP. TimeoutError: none in time.
    """
    async with asyncio.timeout(timeout_s):
        if at.startswith("/"):
            who = name
            reader, writer = await asyncio.open_unix_connection(at)
        else:
            host, port = address(at, "address")
            who = f"{name or host}:{port}"
            reader, writer = await asyncio.open_connection(host, port, ssl=tls, server_hostname=name if tls else None)
        try:
            lines = (f"GET {path} HTTP/1.0", f"Host: {who}", "Accept: */*", "Connection: close", "", "")
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
        raise ConnectionError(f"{at} {path} did not answer in HTTP")
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
    """Serves a few pages by GET to whoever shows the key, as a bearer token or as the password that a browser asks for;
    `/healthz` to everyone.

    A browser keeps the password until it is closed. There is no session that could be forged, guessed or lost with the
    process, and no page changes anything, so that a foreign site gains nothing by having one fetched.
    """

    def __init__(self, pages: dict[str, Page], key_sha256: str) -> None:
        self.pages = pages
        self.key_sha256 = key_sha256
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection with one page."""
        self.open += 1
        try:
            if self.open > CONNECTIONS_MAX:  # said at once: silence would be taken for a process that hangs
                writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                async with asyncio.timeout(REFUSED_S):
                    await reader.read(HEAD_MAX)  # closed with a question unread the answer would be lost
                return
            async with asyncio.timeout(READ_S):
                head = await reader.readuntil(b"\r\n\r\n")
            status, kind, body = self.answer(head.decode("latin-1"))
            asks = ASKS_FOR_KEY if status == HTTPStatus.UNAUTHORIZED else ""
            line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {kind}\r\n{GUARDS}{asks}"
            writer.write(f"{line}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
            async with asyncio.timeout(READ_S):
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()  # a caller that sends no whole request in time, or does not read, gets no answer
        finally:
            self.open -= 1
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
            key = _key_of(headers.get("authorization", ""))
            if not compare_digest(sha256(key).hexdigest(), self.key_sha256):
                return 401, "text/plain", b"send the admin key: Authorization: Bearer KEY, or as a password\n"
        page = self.pages.get(path.rstrip("/") or "/")
        if page is None:
            return 404, "text/plain", f"there are {', '.join(self.pages)}\n".encode()
        return 200, *page()


def _key_of(authorization: str) -> bytes:
    """The key in an Authorization header: a bearer token, or the password of any user; b"" where there is none."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "basic":
        return given.strip().encode()
    try:
        return b64decode(given.strip(), validate=True).partition(b":")[2]
    except ValueError:  # binascii's, and that of what is not ASCII
        return b""
