"""An endpoint picker of the Gateway API Inference Extension: the gateway is someone else's, the decisions are ours.

The gateway (Envoy Gateway, Istio, or another that conforms) opens one stream of Envoy's external processing protocol
for a request, in the mode FULL_DUPLEX_STREAMED: it sends headers and body, waits for both to come back with the
endpoint named, in a header and in metadata of the same value, and then sends the answer past us, headers and
chunks, which go back as they are. What passes is counted on the way, because there is no access log. The stream ends
with the request: that is the end in the books. (Protocol: docs/proposals/004-endpoint-picker-protocol of
kubernetes-sigs/gateway-api-inference-extension.)
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from headway.errors import MissingExtra
from headway.gateway.decider import Decider
from headway.gateway.envoy_config import DESTINATION, HEADERS, LINE_BYTES, TAIL_BYTES, TRACEPARENT
from headway.gateway.events import Answer, EndRecord, Held, Left, Refused, Routed
from headway.gateway.plainhttp import AdminPages
from headway.gateway.reading import Reply, refusal
from headway.gateway.spec import address
from headway.gateway.steering import KEEP_HINT, PREFILLER, STEERING

METADATA = "envoy.lb"
SUBSET = ("envoy.lb.subset_hint", f"{DESTINATION}-subset")
SERVED = f"{DESTINATION}-served"
OBJECTIVE = "x-gateway-inference-objective"
PROCESSOR, HEALTH = "envoy.service.ext_proc.v3.ExternalProcessor", "grpc.health.v1.Health"
# From engines; without `x-forwarded-proto` Envoy would find no route.
UNTOLD = (*HEADERS, "x-forwarded-for", *STEERING)
SENT = (*PREFILLER, KEEP_HINT)  # by us alone: removed where we say nothing
CHUNK_BYTES = 60_000  # of a body in one message: Envoy refuses larger ones
SERVING, NOT_SERVING, UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
CALLS_MAX = 20_000
BODIES_BYTES = 1 << 28  # of all requests that are being read or held, together


class Passing:
    """One request on its way: what has been seen of it."""

    def __init__(self, now: float) -> None:
        self.id = str(uuid.uuid4())
        self.began_s = now
        self.headers: dict[str, str] = {}
        self.ours: dict[str, str] = {}  # those of them that say who asks, and for what class and limits
        self.body = bytearray()
        self.kept_bytes = 0
        self.subset: list[str] | None = None
        self.hosts: tuple[int, ...] = ()
        self.arrived = False
        self.status = 0
        self.first_s: float | None = None
        self.sent_s: float | None = None
        self.served: str = ""
        self.over = False
        self.events = self.tokens = 0
        self.tail = self.rest = b""

    def count(self, chunk: bytes, now: float, last: bool) -> None:
        """Count the tokens of a chunk of the answer; of a line that goes on in the next chunk, with that one."""
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]
        text = self.rest + chunk
        ended = len(text) if last else text.rfind(b"\n") + 1
        if len(text) - ended > LINE_BYTES:
            ended = len(text)
        text, self.rest = text[:ended], text[ended:]
        events = text.count(b"data:")
        if events and self.first_s is None:
            self.first_s = now - self.began_s
        self.events += events
        self.tokens += len(re.findall(rb'"(?:content|text)"\s*:\s*"[^"]', text))

    def usage(self, name: str) -> int | None:
        """The engine's own count at the end of the answer."""
        found = re.findall(rb'"%s"\s*:\s*(\d{1,9})' % name.encode(), self.tail)
        return int(found[-1]) if found else None


class Picker(Decider):
    """Answers a gateway's questions by gRPC, with the brain, the probes and the pages of the decision process."""

    asking: dict[str, asyncio.Future[Answer]]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asking = {}
        self.kept_bytes = 0  # of bodies

    def deliver(self, answers: list[Answer]) -> None:
        """Answer the calls that wait for one of these."""
        for answer in answers:
            future = self.asking.get(answer.id)
            if future is not None and not future.done() and not isinstance(answer, Held):
                future.set_result(answer)

    async def process(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """One HTTP request and its answer."""
        passing = Passing(self.now())
        try:
            async with asyncio.timeout(self.brain.spec.limits.upload_s) as reading:
                async for raw in messages:
                    message = self.types["ProcessingRequest"].FromString(raw)
                    if message.HasField("request_trailers") or _last_of_request(message):
                        reading.reschedule(None)
                    async for response in self._responses(passing, message):
                        yield bytes(response.SerializeToString())
                        if response.HasField("immediate_response"):
                            return
        except TimeoutError:
            late = refusal(408, "request_timeout", "the request did not arrive in time: send it without pauses", None)
            yield bytes(self._turned(passing, late).SerializeToString())
        finally:
            self._let_go(passing)
            if passing.arrived:
                self._gone(passing)

    async def _responses(self, passing: Passing, message: Any) -> AsyncIterator[Any]:
        """What is sent back for one message."""
        if message.HasField("request_headers"):
            self._open(passing, message)
            if message.request_headers.end_of_stream:
                yield self._bodiless(passing)
            elif (no := self._beforehand(passing)) is not None:
                yield self._turned(passing, no)
        elif message.HasField("request_body"):
            no = self._keep(passing, message.request_body.body)
            if no is not None:
                yield self._turned(passing, no)
            elif message.request_body.end_of_stream:
                for response in await self._decided(passing, last=True):
                    yield response
        elif message.HasField("request_trailers"):
            for response in await self._decided(passing, last=False):
                yield response
            yield self._response("request_trailers")
        else:
            yield self._answered(passing, message)

    def _beforehand(self, passing: Passing) -> Reply | None:
        """What speaks against a request by its headers, before a byte of its body is kept."""
        head = self.reader.head(passing.headers.get(":path", ""), passing.ours)
        if isinstance(head, Reply):
            return head
        size = passing.headers.get("content-length", "")
        large = size.isdigit() and (len(size) > len(str(self._most)) or int(size) > self._most)
        return self._too_large() if large else None

    def _keep(self, passing: Passing, part: bytes) -> Reply | None:
        """Keep a part of a body, or say why not."""
        if len(passing.body) + len(part) > self._most:
            return self._too_large()
        if self.kept_bytes + len(part) > max(BODIES_BYTES, self._most):
            return refusal(503, "busy", "too many requests are being read: try again in a second", 1.0)
        passing.body += part
        passing.kept_bytes += len(part)
        self.kept_bytes += len(part)
        return None

    def _let_go(self, passing: Passing) -> None:
        """The body is on its way, or not needed."""
        self.kept_bytes -= passing.kept_bytes
        passing.kept_bytes = 0
        passing.body.clear()

    @property
    def _most(self) -> int:
        return self.brain.spec.limits.body_bytes

    def _too_large(self) -> Reply:
        said = f"the request's body exceeds the limit of {self._most:,} bytes"
        return refusal(413, "request_too_large", said, None)

    def _turned(self, passing: Passing, reply: Reply) -> Any:
        self._not_taken(passing.id, reply)
        return self._refused(reply)

    def _response(self, kind: str) -> Any:
        message = self.types["ProcessingResponse"]()
        getattr(message, kind).SetInParent()
        return message

    def _refused(self, reply: Reply) -> Any:
        return self.types["ProcessingResponse"].FromString(self._immediate(reply))

    def _open(self, passing: Passing, message: Any) -> None:
        headers = message.request_headers.headers.headers
        passing.headers = {each.key.lower(): (each.raw_value.decode("latin-1") or each.value) for each in headers}
        passing.ours = {name: passing.headers[name] for name in HEADERS if name in passing.headers}
        objective = passing.headers.get(OBJECTIVE, "")
        if objective in [klass.name for klass in self.brain.spec.classes]:
            passing.ours.setdefault("x-headway-class", objective)
        space, key = SUBSET
        hint = message.metadata_context.filter_metadata
        if space in hint and key in hint[space].fields:
            value = hint[space].fields[key]
            listed = [each.string_value for each in value.list_value.values] or value.string_value.split(",")
            passing.subset = [each.strip() for each in listed if each.strip()]

    def _only(self, passing: Passing) -> tuple[int, ...] | None:
        if passing.subset is None:
            return None
        return tuple(self.index[each] for each in passing.subset if each in self.index)

    def _bodiless(self, passing: Passing) -> Any:
        """What has no body is answered here: an engine has more pages than are a caller's business."""
        if passing.headers.get(":method") not in ("GET", "HEAD"):
            return self._refused(refusal(400, "invalid_request", "the request has no body", None))
        return self._refused(self.reader.plain("GET", passing.headers.get(":path", ""), passing.ours))

    def _named(self, routed: Routed, size: int | None = None, traceparent: str | None = None) -> Any:
        """The answer to the headers: where the request goes, without what is no engine's business."""
        message, names = self._response("request_headers"), ",".join(self.addresses[i] for i in routed.hosts)
        prefill = None if routed.prefill is None else self.addresses[routed.prefill]
        common = message.request_headers.response
        common.clear_route_cache = True
        ours = dict.fromkeys(PREFILLER, prefill) | {KEEP_HINT: self.brain.retention.hint(routed) or None}
        common.header_mutation.remove_headers.extend((*UNTOLD, *(name for name in SENT if ours[name] is None)))
        told = [(DESTINATION, names), ("content-length", size), (TRACEPARENT, traceparent)]
        for name, value in [*told, *ours.items()]:
            if value is not None:
                option = common.header_mutation.set_headers.add()
                option.header.key, option.header.raw_value = name, str(value).encode()
                option.append_action = 2  # OVERWRITE_IF_EXISTS_OR_ADD
        message.dynamic_metadata.fields[METADATA].struct_value.fields[DESTINATION].string_value = names
        return message

    async def _decided(self, passing: Passing, last: bool) -> list[Any]:
        """Ask the brain, and wait as long as it holds the request; `last`: no trailers follow."""
        if passing.arrived:
            return []
        body = bytes(passing.body)
        passing.body.clear()
        asked = self._read(passing.id, passing.headers.get(":path", ""), passing.ours, body)
        if isinstance(asked, Reply):
            return [self._refused(asked)]
        passing.arrived = True
        self.asking[passing.id] = asyncio.get_running_loop().create_future()
        facts = msgspec.structs.replace(asked, only=self._only(passing))
        self.deliver(self._arrive(facts, body, passing.headers.get(TRACEPARENT, "")))
        trace = self.tracer.open.get(passing.id) if self.tracer else None
        answer = await self.asking[passing.id]
        if isinstance(answer, Refused):
            return [self._refused(refusal(answer.status, answer.code, answer.message, answer.retry_after_s))]
        if isinstance(answer, Left):
            return [self._refused(refusal(503, "left", "the request was over before it was read", None))]
        assert isinstance(answer, Routed)
        passing.hosts, passing.sent_s = answer.hosts, self.now() - passing.began_s
        sent_on = self.reader.rewritten(asked, body, answer.model)
        whole = body if sent_on is None else sent_on
        self._let_go(passing)
        parent = None if trace is None else trace.traceparent
        return [self._named(answer, len(whole), parent), *self._chunks("request_body", whole, last)]

    def _chunks(self, kind: str, body: bytes, last: bool) -> Iterator[Any]:
        """A body in messages that Envoy takes."""
        for at in range(0, max(len(body), 1), CHUNK_BYTES):
            message = self._response(kind)
            streamed = getattr(message, kind).response.body_mutation.streamed_response
            streamed.body = body[at : at + CHUNK_BYTES]
            streamed.end_of_stream = last and at + CHUNK_BYTES >= len(body)
            yield message

    def _answered(self, passing: Passing, message: Any) -> Any:
        """Let a part of the answer pass, and count it."""
        now = self.now()
        known = message.metadata_context.filter_metadata
        if METADATA in known and SERVED in known[METADATA].fields:
            passing.served = known[METADATA].fields[SERVED].string_value
        if message.HasField("response_body"):
            passing.over = message.response_body.end_of_stream
            passing.count(message.response_body.body, now, passing.over)
            (response,) = self._chunks("response_body", message.response_body.body, passing.over)
            return response
        if message.HasField("response_headers"):
            for each in message.response_headers.headers.headers:
                if each.key == ":status":
                    passing.status = int(each.raw_value or each.value or 0)
            passing.over = message.response_headers.end_of_stream
            return self._response("response_headers")
        passing.over = True
        return self._response("response_trailers")

    def _gone(self, passing: Passing) -> None:
        """The stream has ended, and with it the request."""
        self.asking.pop(passing.id, None)
        now = self.now()
        served = self.index.get(passing.served, passing.hosts[0] if passing.hosts else None)
        output = passing.usage("completion_tokens") or passing.tokens or passing.events - 1
        record = EndRecord(
            id=passing.id,
            status=passing.status,
            replica=served,
            attempts=1 if passing.hosts else 0,
            caller_left=not passing.over,
            sent_s=passing.sent_s,
            first_s=passing.first_s,
            duration_s=now - passing.began_s,
            prompt_tokens=passing.usage("prompt_tokens"),
            cached_tokens=passing.usage("cached_tokens"),
            output_tokens=max(output, 0) or None,
            counted_tokens=passing.tokens or None,
        )
        self.deliver(self.brain.end(now, passing.id))
        self.deliver(self.brain.record(now, record))

    async def check(self, asked: bytes, context: Any) -> bytes:
        """gRPC's health check: alive always, ready while an endpoint answers, of both pools where there are two."""
        service = asked[2:].decode("utf-8", "replace") if asked else ""
        if service == "liveness":
            return SERVING
        if service in ("", "readiness", PROCESSOR, "inference-extension"):
            whole = [line for line in self.brain.lines if all(any(b.healthy for b in group) for group in line.groups)]
            return SERVING if whole else NOT_SERVING
        return UNKNOWN


def _last_of_request(message: Any) -> bool:
    """Whether nothing more of the request follows this message."""
    part = message.request_headers if message.HasField("request_headers") else message.request_body
    return bool(part.end_of_stream)


async def pick(picker: Picker, listen: str, stop: asyncio.Event, pair: tuple[bytes, bytes] | None = None) -> None:
    """Serve a gateway's questions on `listen` until `stop` is set, with TLS where a key and its certificates are given.

    Raises:
        MissingExtra: grpcio is not installed.
        OSError: an address is in use.
    """
    try:
        import grpc
    except ImportError:
        raise MissingExtra("the picker answers gateways by gRPC, which is not installed", "serve") from None
    spec = picker.brain.spec
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)], maximum_concurrent_rpcs=CALLS_MAX)
    process = grpc.stream_stream_rpc_method_handler(picker.process)
    check = grpc.unary_unary_rpc_method_handler(picker.check)
    handlers = grpc.method_handlers_generic_handler
    server.add_generic_rpc_handlers((handlers(PROCESSOR, {"Process": process}), handlers(HEALTH, {"Check": check})))
    try:
        secured = grpc.ssl_server_credentials([pair]) if pair else None
        server.add_secure_port(listen, secured) if pair else server.add_insecure_port(listen)
    except RuntimeError:
        raise OSError(f"{listen} cannot be listened on") from None
    host, port = address(spec.admin, "gateway.admin")
    pages = AdminPages(picker.pages(), spec.admin_key_sha256)
    admin = await asyncio.start_server(pages.serve, host, port, limit=1 << 14)
    await server.start()
    tasks = [asyncio.create_task(picker.tick())]
    for i in range(len(picker.addresses)):
        tasks += [asyncio.create_task(picker.probe(i)), asyncio.create_task(picker.scrape(i))]
    picker.say(f"picking on {listen}, live page on http://{spec.admin}/headway")
    try:
        await stop.wait()
    finally:
        admin.close()
        await server.stop(spec.limits.drain_s)  # streams that run are let finish
        for task in tasks:
            task.cancel()
        for told in (picker.tracer, picker.log):
            if told is not None:
                await asyncio.to_thread(told.close)
