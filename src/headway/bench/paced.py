"""A source of known timing: answers whose tokens leave at set times, each stamped with the time it left.

One loop over one epoll and one heap, no event loop above it, so that a core writes about 100,000 tokens a second. The
stamp is of the clock all processes of the machine share, so a reader can tell its own lateness from the source's.
"""

from __future__ import annotations

import heapq
import re
import select
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

__all__ = ["PacedSource", "serve"]

_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from headway.bench.paced import serve; serve({first!r}, {gap!r}, sys.stdout)"
)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MODELS = b'{"object":"list","data":[{"id":"paced","object":"model","created":0,"owned_by":"headway"}]}'
_LENGTH = re.compile(rb"content-length: *(\d+)", re.I)
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": *(\d+)')
_TOKENS_DEFAULT = 16
_READ_BYTES = 1 << 16
_WORD_CHARS = 5


class PacedSource:
    """A context in which the source runs in a process of its own at `url`.

    first_s: from the request's last byte to the first token. gap_s: from one token to the next.
    """

    def __init__(self, first_s: float, gap_s: float) -> None:
        self.first_s, self.gap_s = first_s, gap_s
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PacedSource:
        program = _PROGRAM.format(path=sys.path, first=self.first_s, gap=self.gap_s)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().decode().strip()
        if not port.isdigit():
            raise RuntimeError("the paced source did not start")
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


class _Due(NamedTuple):
    """A token that is to leave."""

    at_s: float
    serial: int
    place: int
    client: _Client


class _Client:
    """A connection: what came of a request, and how many tokens its answer has."""

    __slots__ = ("chat", "data", "open", "prompt_tokens", "socket", "tokens")

    def __init__(self, sock: socket.socket) -> None:
        self.socket, self.data, self.tokens, self.prompt_tokens = sock, b"", 0, 0
        self.chat, self.open = False, True


def serve(first_s: float, gap_s: float, said: Any, stop_fd: int = 0) -> None:
    """Answer on a free port, which is written to `said`, until `stop_fd` can be read."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    said.write(f"{listener.getsockname()[1]}\n")
    said.flush()
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(stop_fd, select.EPOLLIN)
    _Loop(first_s, gap_s, listener, poll).run(stop_fd)


class _Loop:
    def __init__(self, first_s: float, gap_s: float, listener: socket.socket, poll: select.epoll) -> None:
        self.first_s, self.gap_s, self.listener, self.poll = first_s, gap_s, listener, poll
        self.clients: dict[int, _Client] = {}
        self.due: list[_Due] = []
        self.serial = 0

    def run(self, stop_fd: int) -> None:
        """Write what is due, read what came, wait for either."""
        while True:
            now_s = time.monotonic()
            while self.due and self.due[0].at_s <= now_s:
                self.write(heapq.heappop(self.due))
            wait_s = self.due[0].at_s - time.monotonic() if self.due else 1.0
            ready = self.poll.poll(0)
            if not ready and wait_s > 0:  # select counts in microseconds, epoll in milliseconds
                select.select([self.poll.fileno()], [], [], wait_s)
                ready = self.poll.poll(0)
            for fd, _ in ready:
                if fd == stop_fd:
                    return
                if fd == self.listener.fileno():
                    self.accept()
                else:
                    self.read(self.clients[fd])

    def accept(self) -> None:
        """Take all connections that wait."""
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.clients[sock.fileno()] = _Client(sock)
            self.poll.register(sock, select.EPOLLIN)

    def read(self, client: _Client) -> None:
        """Read of a request; when it is whole, its first token is due after `first_s`."""
        try:
            data = client.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(client)
            return
        client.data += data
        head, end, body = client.data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        client.data = b""
        if head.startswith(b"GET"):
            answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_MODELS)
            client.socket.send(answer + _MODELS)
            return
        tokens = _TOKENS.search(body)
        client.tokens = int(tokens[1]) if tokens else _TOKENS_DEFAULT
        client.chat = b"/chat/" in head.partition(b"\r\n")[0]
        ids = body.partition(b'"prompt":[')[2]
        client.prompt_tokens = ids.count(b",") + 1 if ids else len(body) // _WORD_CHARS
        self.later(time.monotonic() + self.first_s, 0, client)

    def later(self, at_s: float, place: int, client: _Client) -> None:
        """Put a token on the heap."""
        self.serial += 1
        heapq.heappush(self.due, _Due(at_s, self.serial, place, client))

    def write(self, due: _Due) -> None:
        """Write a token, the last one with the end of the answer, and have the next one due."""
        client = due.client
        if not client.open:
            return
        last = due.place + 1 == client.tokens
        kind = b'"delta":{"content":" word"}' if client.chat else b'"text":" word"'
        name = b"chat.completion.chunk" if client.chat else b"text_completion"
        start = b'data: {"id":"p","object":"%b","created":0,"model":"paced","choices":[{"index":0,' % name
        text = b'%b%b}],"sent_ns":%d}\n\n' % (start, kind, time.monotonic_ns())
        if last:
            prompt = client.prompt_tokens
            usage = (prompt, client.tokens, prompt + client.tokens)
            empty = b'"delta":{}' if client.chat else b'"text":""'
            text += b'%b%b,"finish_reason":"length"}],' % (start, empty)
            text += b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}\n\n' % usage
            text += b"data: [DONE]\n\n"
        try:
            head = b"" if due.place else _HEAD
            client.socket.send(b"%b%x\r\n%b\r\n%b" % (head, len(text), text, b"0\r\n\r\n" if last else b""))
        except OSError:  # a reader that left, or one that does not read: not what this source is for
            self.drop(client)
            return
        if not last:
            self.later(due.at_s + self.gap_s, due.place + 1, client)

    def drop(self, client: _Client) -> None:
        """Forget a connection."""
        if client.open:
            client.open = False
            del self.clients[client.socket.fileno()]
            self.poll.unregister(client.socket)
            client.socket.close()
