"""The decision process: Envoy's questions and end records come in by gRPC, the brain decides, its answers go back.

The stream of a question stays open until Envoy closes it, which it does when the HTTP request is over: that is the end
in the books, on the same connection as the decision and so in order. The access log brings the figures.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from headway.errors import MissingExtra
from headway.gateway.brain import Brain
from headway.gateway.envoy_config import DESTINATION, HEADERS, POLICY_DETAILS
from headway.gateway.events import Answer, Arrival, EndRecord, Held, Left, Refused, Routed
from headway.gateway.log.writer import LogWriter
from headway.gateway.messages import ACCESS_LOG, PROCESS, message_types, plain, seconds_of
from headway.gateway.plainhttp import AdminPages, ask_socket, get
from headway.gateway.reading import Reader, Reply, refusal
from headway.gateway.scrape import engine_sample
from headway.gateway.spec import address

TICK_S = 0.05
ADOPT_S = 0.5
PATIENCE_S = 2.0
SPARE_S = 0.5  # Envoy waits so much longer for a held request than the brain holds it
ATTRIBUTES = {name: f"request.headers['{name}']" for name in HEADERS}


class Decider:
    """Carries events to the brain and its answers back. `addresses`: of the replicas, as IP:port."""

    def __init__(
        self, brain: Brain, reader: Reader, addresses: list[str], say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.brain = brain
        self.reader = reader
        self.addresses = addresses
        self.say = say
        self.index = {text: i for i, text in enumerate(addresses)}
        self.types = message_types()
        self.waiting: dict[str, asyncio.Future[Answer]] = {}
        self.routed: dict[tuple[int, ...], bytes] = {}  # the answer that names these hosts, once made
        self.faults_said = 0
        self.shadow_said = ""
        self.journal: LogWriter | None = None  # the decision log
        self.started_s = time.monotonic()

    def now(self) -> float:
        """Seconds since this process began to decide."""
        return time.monotonic() - self.started_s

    # --- Envoy's questions -------------------------------------------------------------------------------------

    async def process(self, _: Any, context: Any) -> None:
        """One HTTP request: a message with its body, or with its headers where it has none."""
        id = ""
        try:
            while raw := await context.read():  # the end of the stream is false
                message = self.types["ProcessingRequest"].FromString(raw)
                about = message.attributes["envoy.filters.http.ext_proc"].fields
                path, method = (about[f"request.{name}"].string_value for name in ("path", "method"))
                headers = {name: about[key].string_value for name, key in ATTRIBUTES.items() if key in about}
                if not message.HasField("request_body"):
                    await context.write(self._immediate(self.reader.plain(method, path, headers)))
                    continue
                body = message.request_body.body
                asked = self._read(about["request.id"].string_value, path, headers, body)
                if isinstance(asked, Reply):
                    self.brain.figures.count("headway_decisions_total", outcome="refused", reason=str(asked.status))
                    await context.write(self._immediate(asked))
                    continue
                id = asked.id
                if self.journal is not None:
                    self.journal.prompt(self.now(), id, body)
                answer = self._arrive(asked)
                if isinstance(answer, Held):
                    await context.write(self._patience(answer))
                    answer = await self.waiting[id]
                self.waiting.pop(id, None)
                await context.write(self._answer(answer, self.reader.rewritten(asked, body)))
        finally:
            if id:
                self.waiting.pop(id, None)
                self._deliver(self.brain.end(self.now(), id))

    def _read(self, id: str, path: str, headers: dict[str, str], body: bytes) -> Arrival | Reply:
        """Read a request; what no reader expected is a fault of ours, told without what the request said."""
        try:
            return self.reader.read(id, path, headers, body)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.say(f"a request of {len(body)} bytes to {path} not read: {type(error).__name__}, line {where.lineno}")
            return refusal(500, "internal_error", "the gateway could not read this request", None)

    def _arrive(self, facts: Arrival) -> Answer:
        """Tell the brain; its answer to this request."""
        self.waiting[facts.id] = asyncio.get_running_loop().create_future()
        own: list[Answer] = []
        for answer in self.brain.arrive(self.now(), facts):
            own.append(answer) if answer.id == facts.id else self._deliver([answer])
        return own[-1]

    def _deliver(self, answers: list[Answer]) -> None:
        """Hand answers to those who wait for them."""
        for answer in answers:
            future = self.waiting.get(answer.id)
            if future is not None and not future.done():
                future.set_result(answer)

    def _answer(self, answer: Answer, body: bytes | None) -> bytes:
        if isinstance(answer, Refused):
            return self._immediate(refusal(answer.status, answer.code, answer.message, answer.retry_after_s))
        if isinstance(answer, Left):
            return self._immediate(refusal(503, "left", "the request was over before it was read", None))
        assert isinstance(answer, Routed)
        if body is None and answer.hosts in self.routed:
            return self.routed[answer.hosts]
        message = self.types["ProcessingResponse"]()
        message.request_body.SetInParent()
        if body is not None:
            message.request_body.response.body_mutation.body = body
        chosen = message.dynamic_metadata.fields["envoy.lb"].struct_value.fields[DESTINATION]
        chosen.string_value = ",".join(self.addresses[i] for i in answer.hosts)
        made = bytes(message.SerializeToString())
        if body is None:
            self.routed[answer.hosts] = made
        return made

    def _immediate(self, reply: Reply) -> bytes:
        message = self.types["ProcessingResponse"]()
        immediate = message.immediate_response
        immediate.status.code = reply.status
        immediate.body = reply.body + b"\n"
        immediate.details = POLICY_DETAILS
        for name, value in (("content-type", "application/json"), *reply.headers):
            option = immediate.headers.set_headers.add()
            option.header.key, option.header.raw_value = name, value.encode()
            option.append_action = 2  # OVERWRITE_IF_EXISTS_OR_ADD
        return bytes(message.SerializeToString())

    def _patience(self, held: Held) -> bytes:
        """Ask Envoy to wait for the decision until the brain has given up holding."""
        message = self.types["ProcessingResponse"]()
        nanos = int((max(held.until_s - self.now(), 0.0) + SPARE_S) * 1e9)
        message.override_message_timeout.seconds = nanos // 10**9
        message.override_message_timeout.nanos = nanos % 10**9
        return bytes(message.SerializeToString())

    # --- Envoy's records ---------------------------------------------------------------------------------------

    async def access_log(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        """Requests that are over, one record each."""
        async for raw in messages:
            for entry in self.types["AccessLogs"].FromString(raw).http_logs.log_entry:
                self._deliver(self.brain.record(self.now(), self._record(entry)))
        return b""

    def _record(self, entry: Any) -> EndRecord:
        common, response = entry.common_properties, entry.response
        flags = common.response_flags
        seen = plain(common.metadata.filter_metadata["headway"])
        socket = common.upstream_remote_address.socket_address
        from_upstream = response.response_code_details == "via_upstream"
        failed = (
            flags.upstream_remote_reset
            or flags.upstream_connection_failure
            or flags.upstream_connection_termination
            or flags.upstream_protocol_error
            or (from_upstream and response.response_code.value >= 500)
        )
        first_s = int(seen["first_us"]) * 1e-6 - seconds_of(common.start_time) if seen.get("first_us") else None
        output = seen.get("completion_tokens") or seen.get("tokens") or (seen.get("events") or 0) - 1
        return EndRecord(
            id=common.stream_id,
            status=response.response_code.value,
            replica=self.index.get(f"{socket.address}:{socket.port_value}"),
            attempts=common.upstream_request_attempt_count,
            upstream_failed=bool(failed),
            caller_left=flags.downstream_connection_termination or flags.downstream_remote_reset,
            sent_s=seconds_of(common.time_to_first_upstream_tx_byte) if socket.port_value else None,
            first_s=first_s,
            duration_s=seconds_of(common.duration),
            prompt_tokens=int(seen["prompt_tokens"]) if seen.get("prompt_tokens") else None,
            cached_tokens=int(seen["cached_tokens"]) if seen.get("cached_tokens") else None,
            output_tokens=max(int(output), 0) or None,
        )

    # --- what happens by the clock -----------------------------------------------------------------------------

    async def tick(self) -> None:
        """Let time pass in the brain, and say what policies did wrong."""
        while True:
            await asyncio.sleep(TICK_S)
            self._deliver(self.brain.tick(self.now()))
            wrong = sum(self.brain.fence.errors.values())
            if wrong > self.faults_said:
                self.faults_said = wrong
                self.say(f"{self.brain.fence.last}; the fallback decided ({wrong} times so far)")
            if self.brain.shadow is not None and self.brain.shadow.last_error != self.shadow_said:
                self.shadow_said = self.brain.shadow.last_error
                self.say(f"{self.shadow_said}; it decides nothing")

    async def probe(self, replica: int) -> None:
        """Ask a replica whether it is there, again and again; what it refuses at once counts at once."""
        health, (host, port) = self.brain.spec.health, address(self.addresses[replica], "upstream")
        book = self.brain.books[replica]
        while True:
            was = book.healthy
            try:
                status, _ = await get(host, port, health.path, health.timeout_s)
                answers = self.brain.health(self.now(), replica, status < 500)
            except TimeoutError:
                answers = self.brain.health(self.now(), replica, False, probe=False)
            except OSError:
                answers = self.brain.health(self.now(), replica, False)
            self._deliver(answers)
            if was != book.healthy:
                self.say(f"replica {self.addresses[replica]} {'is back' if book.healthy else 'does not answer'}")
            await asyncio.sleep(health.probe_s)

    async def scrape(self, replica: int) -> None:
        """Read an engine's own metrics again and again, where it publishes any."""
        host, port = address(self.addresses[replica], "upstream")
        every_s = self.brain.spec.scrape_s
        while True:
            if self.brain.books[replica].healthy:
                try:
                    status, body = await get(host, port, "/metrics", max(every_s, 1.0))
                    if status == 200:
                        sample = engine_sample(body.decode("utf-8", "replace"))
                        self._deliver(self.brain.sample(self.now(), replica, sample))
                except (OSError, TimeoutError):
                    pass  # the probe judges health; a reading less changes nothing
            await asyncio.sleep(every_s)

    async def adopt(self, envoy: Path) -> None:
        """Count the requests that an earlier decision process has left running, until they are over."""
        while envoy.exists():
            try:
                _, text = await ask_socket(envoy, "GET", "/clusters", PATIENCE_S)
            except (OSError, TimeoutError):
                return
            active = {
                host: int(n) for host, n in re.findall(r"^replicas::(\S+)::rq_active::(\d+)$", text.decode(), re.M)
            }
            for replica, host in enumerate(self.addresses):
                self._deliver(self.brain.adopt(self.now(), replica, active.get(host, 0)))
            if not any(book.orphans for book in self.brain.books):
                return
            await asyncio.sleep(ADOPT_S)

    # --- what is seen ------------------------------------------------------------------------------------------

    def pages(self) -> dict[str, Callable[[], tuple[str, bytes]]]:
        """The admin pages by path."""
        return {
            "/metrics": lambda: ("text/plain; version=0.0.4", self.brain.figures.text(self._gauges()).encode()),
            "/status": lambda: ("application/json", json.dumps(self.status()).encode() + b"\n"),
        }

    def _gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for source in (self.brain, self.brain.shadow, self.journal):
            if source is not None:
                yield from source.gauges()

    def status(self) -> dict[str, Any]:
        """What is under way, as JSON."""
        brain = self.brain
        return {
            "schema": "headway.status/1",
            "live": len(brain.live),
            "held": len(brain.held),
            "faults": brain.check(),
            "policy_errors": dict(brain.fence.errors),
            "shadow": None if brain.shadow is None else brain.shadow.status(),
            "log": None if self.journal is None else self.journal.status(),
            "replicas": [
                {
                    "address": text,
                    "healthy": book.healthy,
                    "in_flight": book.in_flight,
                    "others": book.others,
                    "window": book.window,
                    "ttft_ratio": round(book.pace.ratio, 3),
                }
                for text, book in zip(self.addresses, brain.books, strict=True)
            ],
        }


async def decide(decider: Decider, folder: Path, stop: asyncio.Event) -> None:
    """Serve Envoy's questions on `decisions.sock` in `folder` until `stop` is set; `decisions.ready` says that it does.

    Raises:
        MissingExtra: grpcio is not installed.
        OSError: the admin address is in use.
    """
    try:
        import grpc
    except ImportError:
        raise MissingExtra("the gateway answers Envoy by gRPC, which is not installed", "serve") from None
    spec = decider.brain.spec
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", spec.limits.body_bytes + (1 << 20)), ("grpc.so_reuseport", 0)]
    )
    process, log = PROCESS.rpartition("/"), ACCESS_LOG.rpartition("/")
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                process[0][1:], {process[2]: grpc.stream_stream_rpc_method_handler(decider.process)}
            ),
            grpc.method_handlers_generic_handler(
                log[0][1:], {log[2]: grpc.stream_unary_rpc_method_handler(decider.access_log)}
            ),
        )
    )
    server.add_insecure_port(f"unix:{folder / 'decisions.sock'}")
    host, port = address(spec.admin, "gateway.admin")
    pages = AdminPages(decider.pages(), spec.admin_key_sha256)
    admin = await asyncio.start_server(pages.serve, host, port, limit=1 << 14)
    await server.start()
    tasks = [asyncio.create_task(decider.tick()), asyncio.create_task(decider.adopt(folder / "envoy.sock"))]
    for i in range(len(decider.addresses)):
        tasks += [asyncio.create_task(decider.probe(i)), asyncio.create_task(decider.scrape(i))]
    try:
        (folder / "decisions.ready").touch()
        await stop.wait()
    finally:
        for task in tasks:
            task.cancel()
        admin.close()
        await server.stop(0.2)
