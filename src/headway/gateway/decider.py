"""The decision process: Envoy's questions and end records come in by gRPC, the brain decides, its answers go back.

The stream of a question stays open until Envoy closes it, which it does when the HTTP request is over: that is the end
in the books, on the same connection as the decision and so in order. The access log brings the figures.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import ssl
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

from headway.gateway.brain import Brain
from headway.gateway.channel import Call, asking
from headway.gateway.edge_replies import POLICY_DETAILS
from headway.gateway.envoy_config import ATTEMPTS, DESTINATION, HEADERS, TRACEPARENT, Seen
from headway.gateway.events import Answer, Arrival, EndRecord, Held, Left, Outcome, Refused, Routed
from headway.gateway.gauges import gauges_of
from headway.gateway.hedge_config import HEDGE_AFTER, HEDGE_RETRIES
from headway.gateway.ledger import Keeper, Ledger
from headway.gateway.log.writer import LogWriter
from headway.gateway.loglines import LogLines
from headway.gateway.messages import ATTEMPT_ENDED, ATTEMPT_SENT, message_types, place_of, seconds_of
from headway.gateway.overview import Overview
from headway.gateway.plainhttp import ask_socket, get
from headway.gateway.reading import Body, Reader, Reply, refusal
from headway.gateway.scrape import engine_sample
from headway.gateway.spec import upstream
from headway.gateway.steering import KEEP_HINT, PREFILLER
from headway.gateway.traces import Tracer
from headway.metrics.exposition import TEXT_TYPE

TICK_S = 0.05
ADOPT_S = 0.5
CLOCK_SET_S = 1.0
PATIENCE_S = 2.0
ELDER_S = 2.0
SPARE_S = 0.5  # Envoy waits so much longer for a held request than the brain holds it
ATTRIBUTES = {name: f"request.headers['{name}']" for name in (*HEADERS, TRACEPARENT)}


class Watched(Protocol):
    """Something beside the brain that is seen on the admin pages."""

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """For Prometheus."""

    def status(self) -> dict[str, Any]:
        """As JSON."""


class Decider:
    """Carries events to the brain and its answers back.

    `addresses`: of the replicas, as IP:port. `say` takes a line about the service, `log` one for each request.
    """

    def __init__(
        self,
        brain: Brain,
        reader: Reader,
        addresses: list[str],
        say: Callable[[str], None] = lambda text: None,
        log: LogLines | None = None,
    ) -> None:
        self.brain = brain
        self.reader = reader
        self.addresses = addresses
        self.say = say
        self.index = {text: i for i, text in enumerate(addresses)}
        self.types = message_types()
        self.keeper: Keeper | None = None
        self.peers: Watched | None = None
        secure = any(text.startswith("https://") for text in brain.spec.upstreams)
        self.trust = ssl.create_default_context(cafile=brain.spec.upstream_ca or None) if secure else None
        self.waiting: dict[str, tuple[Call, Body]] = {}  # calls without a decision yet, and the body to send on
        self.routed: dict[tuple[tuple[int, ...], int | None], bytes] = {}  # the answer that names these, once made
        self.faults_said = self.ejected_said = 0
        self.shadow_said = ""
        self.journal: LogWriter | None = None  # the decision log
        self.open = 0  # calls whose HTTP requests are not over
        self.elder: Path | None = None  # where the records go of requests that an earlier process decided
        self.telling: set[asyncio.Task[None]] = set()
        self.started_s = time.monotonic()
        self.epoch_s = 0.0  # the Unix time at which `now` was 0, as the brain was told
        self.overview = Overview(brain, self.now)
        self.log = log
        traces = brain.spec.traces
        self.tracer = None if traces is None else Tracer(traces, brain.spec.upstreams, time.time(), say)
        brain.tell = self._over

    @asynccontextmanager
    async def remembering(self, ledger: Path) -> AsyncIterator[None]:
        """Inside, the date is known, and what tenants use is kept in this SQLite file, where one has a limit for it."""
        self.look_at_calendar()
        if not any(tenant.remembered for tenant in self.brain.spec.tenants):
            yield
            return
        self.keeper = Keeper(Ledger(ledger), self.brain, self.now, self.say)
        await self.keeper.flush()  # what is kept of earlier is known before the first request
        keeping = asyncio.create_task(self.keeper.run())
        try:
            yield
        finally:
            self.keeper.stop.set()
            await keeping

    def now(self) -> float:
        """Seconds since this process began to decide."""
        return time.monotonic() - self.started_s

    # --- Envoy's questions -------------------------------------------------------------------------------------

    def message(self, call: Call, raw: bytes) -> None:
        """One HTTP request: a message with its body, or with its headers where it has none."""
        message = self.types["ProcessingRequest"].FromString(raw)
        about = message.attributes["envoy.filters.http.ext_proc"].fields
        path = about["request.path"].string_value
        headers = {name: about[key].string_value for name, key in ATTRIBUTES.items() if key in about}
        if not message.HasField("request_body"):
            method = about["request.method"].string_value
            reply = self.reader.plain(method, path, headers)
            self._turned_away(about["request.id"].string_value, reply)
            call.send(self._immediate(reply))
            return
        body = message.request_body.body
        asked = self._read(about["request.id"].string_value, path, headers, body)
        if isinstance(asked, Reply):
            call.send(self._immediate(asked))
            return
        if call.about is not None:
            raise ValueError("a second question in one call")
        call.about = asked.id
        self.open += 1
        answers = self._arrive(asked, body, headers.get(TRACEPARENT, ""))
        self.waiting[asked.id] = call, self.reader.sent_on(asked, body)
        self.deliver(answers)

    def ended(self, call: Call) -> None:
        """The HTTP request is over, however it ended."""
        if call.about is not None:
            self.open -= 1
            self.waiting.pop(call.about, None)
            self.deliver(self.brain.end(self.now(), call.about))
            if self.tracer and call.about not in self.brain.unread:
                self.tracer.open.pop(call.about, None)  # it was none to the brain: a second of its id

    def _read(self, id: str, path: str, headers: dict[str, str], body: bytes) -> Arrival | Reply:
        """Read a request; what no reader expected is a fault of ours, told without what the request said."""
        try:
            asked = self.reader.read(id, path, headers, body)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.say(f"a request of {len(body)} bytes to {path} not read: {type(error).__name__}, line {where.lineno}")
            asked = refusal(500, "internal_error", "the gateway could not read this request", None)
        if isinstance(asked, Reply):
            self._not_taken(id, asked)
        return asked

    def _not_taken(self, id: str, reply: Reply) -> None:
        """A request to a model was turned away before it could be decided on."""
        self.brain.figures.count("headway_decisions_total", outcome="refused", reason=str(reply.status))
        self._turned_away(id, reply)

    def _arrive(self, asked: Arrival, body: bytes, traceparent: str) -> list[Answer]:
        """Tell the brain of a request, and those who follow it."""
        now = self.now()
        if self.journal is not None:
            self.journal.prompt(now, asked.id, body)
        trace = self.tracer.begin(asked.id, traceparent) if self.tracer else None
        answers = self.brain.arrive(now, asked)
        if trace is not None:
            trace.took_s = self.now() - now
        return answers

    def deliver(self, answers: list[Answer]) -> None:
        """Send answers to the calls that wait for them."""
        for answer in answers:
            if isinstance(answer, Held):
                self.waiting[answer.id][0].send(self._patience(answer))
            elif (asking := self.waiting.pop(answer.id, None)) is not None:
                asking[0].send(self._answer(answer, asking[1]))

    def _answer(self, answer: Answer, sent_on: Body) -> bytes:
        if isinstance(answer, Refused):
            return self._immediate(refusal(answer.status, answer.code, answer.message, answer.retry_after_s))
        if isinstance(answer, Left):
            return self._immediate(refusal(503, "left", "the request was over before it was read", None))
        assert isinstance(answer, Routed)
        body = sent_on(answer.model) if callable(sent_on) else sent_on
        trace = self.tracer.open.get(answer.id) if self.tracer else None
        keep = self.brain.retention.hint(answer)
        usual = body is None and trace is None and answer.hedge_s is None and not keep
        if usual and (answer.hosts, answer.prefill) in self.routed:
            return self.routed[answer.hosts, answer.prefill]
        message = self.types["ProcessingResponse"]()
        message.request_body.SetInParent()
        if body is not None:
            message.request_body.response.body_mutation.body = body
        told = message.dynamic_metadata.fields["envoy.lb"].struct_value.fields
        hosts = islice(cycle(answer.hosts), ATTEMPTS)
        told[DESTINATION].string_value = ",".join(self.addresses[i] for i in hosts)
        if answer.prefill is not None:
            told[PREFILLER[0]].string_value = self.addresses[answer.prefill]
        if keep:
            told[KEEP_HINT].string_value = keep
        if answer.hedge_s is not None:
            told[HEDGE_AFTER].string_value, told[HEDGE_RETRIES].string_value = f"{math.ceil(1e3 * answer.hedge_s)}", "1"
        if trace is not None:
            told[TRACEPARENT].string_value = trace.traceparent
        made = bytes(message.SerializeToString())
        if usual:
            self.routed[answer.hosts, answer.prefill] = made
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

    def records(self, raw: bytes) -> None:
        """Requests that are over, one record each; those that this process never heard of are an earlier one's."""
        strange = self.types["AccessLogs"]()
        for entry in self.types["AccessLogs"].FromString(raw).http_logs.log_entry:
            record = self._record(entry)
            details = entry.response.response_code_details
            told = entry.common_properties.access_log_type
            whole = told not in (ATTEMPT_SENT, ATTEMPT_ENDED)
            if whole and record.status >= 400 and not record.attempts and details != POLICY_DETAILS:
                self._edge_replied(record, details)
            if self.elder and record.attempts and not self.brain.knows(record.id):
                strange.http_logs.log_entry.append(entry)
            elif not whole:
                if record.replica is not None and not record.status:  # one that has answered is told as a whole
                    happened = self.brain.hedged if told == ATTEMPT_SENT else self.brain.failed
                    self.deliver(happened(self.now(), record.id, record.replica))
            else:
                self.deliver(self.brain.record(self.now(), record))
        if strange.http_logs.log_entry:
            task = asyncio.get_running_loop().create_task(self._hand_back(strange.SerializeToString()))
            self.telling.add(task)
            task.add_done_callback(self.telling.discard)

    async def _hand_back(self, raw: bytes) -> None:
        """Let the elder have its records, as long as there is one; it has them when it has closed the connection."""
        try:
            async with asyncio.timeout(ELDER_S):
                reader, writer = await asyncio.open_unix_connection(self.elder)
                try:
                    writer.write(asking(raw))
                    writer.write_eof()
                    await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            self.elder = None
            self.records(raw)

    def _record(self, entry: Any) -> EndRecord:
        common, response = entry.common_properties, entry.response
        flags = common.response_flags
        seen = Seen.read(common.metadata.filter_metadata["headway"].fields["seen"].string_value)
        place = place_of(common.upstream_remote_address)
        failed = (
            flags.upstream_remote_reset
            or flags.upstream_connection_failure
            or flags.upstream_connection_termination
            or flags.upstream_protocol_error
        )
        return EndRecord(
            id=common.stream_id or entry.request.request_id,  # of an attempt the header alone says it
            status=response.response_code.value,
            replica=self.index.get(place),
            attempts=common.upstream_request_attempt_count,
            upstream_failed=bool(failed),
            caller_left=flags.downstream_connection_termination or flags.downstream_remote_reset,
            sent_s=seconds_of(common.time_to_first_upstream_tx_byte) if place else None,
            first_s=seen.first_us * 1e-6 - seconds_of(common.start_time) if seen.first_us else None,
            duration_s=seconds_of(common.duration),
            prompt_tokens=seen.prompt or None,
            cached_tokens=seen.cached or None,
            output_tokens=seen.completion or seen.tokens or max(seen.events - 1, 0) or None,
            counted_tokens=seen.tokens or None,
        )

    # --- what happens by the clock -----------------------------------------------------------------------------

    async def tick(self) -> None:
        """Let time pass in the brain, and say what policies did wrong."""
        while True:
            await asyncio.sleep(TICK_S)
            self.look_at_calendar()
            self.deliver(self.brain.tick(self.now()))
            self.overview.mark()
            wrong = sum(self.brain.fence.errors.values())
            if wrong > self.faults_said:
                self.faults_said = wrong
                self.say(f"{self.brain.fence.last}; the fallback decided ({wrong} times so far)")
            if self.brain.judge.ejected > self.ejected_said:
                self.ejected_said = self.brain.judge.ejected
                self.say(self.brain.judge.last)
            if self.brain.shadow is not None and self.brain.shadow.last_error != self.shadow_said:
                self.shadow_said = self.brain.shadow.last_error
                self.say(f"{self.shadow_said}; it decides nothing")

    def look_at_calendar(self) -> None:
        """Tell the brain the date, at first and when the machine's clock has been set, or was asleep."""
        now, unix_s = self.now(), time.time()
        if abs(unix_s - now - self.epoch_s) > CLOCK_SET_S:
            self.epoch_s = unix_s - now
            self.brain.dated(now, unix_s)

    async def probe(self, replica: int) -> None:
        """Ask a replica whether it is there, again and again; what it refuses at once counts at once."""
        health, book = self.brain.spec.health, self.brain.books[replica]
        while True:
            was = book.answers
            try:
                status, _ = await self._get(replica, health.path, health.timeout_s)
                answers = self.brain.health(self.now(), replica, status < 500)
            except TimeoutError:
                answers = self.brain.health(self.now(), replica, False, probe=False)
            except OSError:
                answers = self.brain.health(self.now(), replica, False)
            self.deliver(answers)
            if was != book.answers:
                name = self.brain.spec.upstreams[replica]
                self.say(f"replica {name} {'is back' if book.answers else 'does not answer'}")
            await asyncio.sleep(health.probe_s)

    async def scrape(self, replica: int) -> None:
        """Read an engine's own metrics again and again, where it publishes any."""
        every_s = self.brain.spec.scrape_s
        while True:
            if self.brain.books[replica].answers:
                try:
                    status, body = await self._get(replica, "/metrics", max(every_s, 1.0))
                    if status == 200:
                        sample = engine_sample(body.decode("utf-8", "replace"))
                        self.deliver(self.brain.sample(self.now(), replica, sample))
                except (OSError, TimeoutError):
                    pass  # the probe judges health; a reading less changes nothing
            await asyncio.sleep(every_s)

    async def _get(self, replica: int, path: str, timeout_s: float) -> tuple[int, bytes]:
        """GET a page of a replica's; raises as `get`."""
        where = upstream(self.brain.spec.upstreams[replica], "upstream")
        if not self.addresses[replica]:
            raise ConnectionError(f"{where.host} does not resolve")
        tls, name = self.trust if where.tls else None, where.host if where.port else "localhost"
        return await get(self.addresses[replica], path, timeout_s, tls=tls, name=name)

    async def adopt(self, envoy: Path, elder: Path) -> None:
        """Count the requests that an earlier decision process has left running, until it and they are over."""
        while envoy.exists():
            try:
                _, text = await ask_socket(envoy, "GET", "/clusters", PATIENCE_S)
            except (OSError, TimeoutError):
                return
            active = {
                host: int(n) for host, n in re.findall(r"^replicas::(\S+)::rq_active::(\d+)$", text.decode(), re.M)
            }
            for replica, host in enumerate(self.addresses):
                self.deliver(self.brain.adopt(self.now(), replica, active.get(host, 0)))
            if not any(book.orphans for book in self.brain.books) and not elder.exists():
                return
            await asyncio.sleep(ADOPT_S)

    # --- what is seen ------------------------------------------------------------------------------------------

    def pages(self) -> dict[str, Callable[[], tuple[str, bytes]]]:
        """The admin pages by path."""
        return {
            **self.overview.pages(),
            "/metrics": lambda: (TEXT_TYPE, self.brain.figures.text(self._gauges()).encode()),
            "/status": lambda: ("application/json", json.dumps(self.status()).encode() + b"\n"),
        }

    def _over(self, outcome: Outcome) -> None:
        """Tell everyone who wants to know of a request that is over."""
        self.overview.hear(outcome)
        trace_id = self.tracer.finish(outcome) if self.tracer else None
        if self.log is not None:
            names = [None if i is None else self.brain.spec.upstreams[i] for i in (outcome.replica, outcome.prefill)]
            self.log.over(outcome, names[0], names[1], trace_id)

    def _edge_replied(self, record: EndRecord, details: str) -> None:
        """Envoy has answered by itself, mostly to what never came as far as a question."""
        self.brain.figures.count("headway_edge_replies_total", status=str(record.status))
        if self.log is not None and record.id not in self.brain.live and record.id not in self.brain.unread:
            self.log.turned_away(record.id, record.status, f"edge: {details}")

    def _turned_away(self, id: str, reply: Reply) -> None:
        if self.log is not None:
            self.log.turned_away(id, reply.status, reply.code)

    def _gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield from (*gauges_of(self.brain), *self.overview.gauges())
        for source in (self.brain.shadow, self.journal, self.peers):
            if source is not None:
                yield from source.gauges()
        if self.log is not None:
            yield "headway_log_lines_dropped_total", {}, self.log.dropped
        if self.tracer is not None:
            yield "headway_traces_dropped_total", {}, self.tracer.dropped

    def status(self) -> dict[str, Any]:
        """What is under way, as JSON."""
        brain = self.brain
        return {
            "schema": "headway.status/1",
            "live": len(brain.live),
            "held": len(brain.held),
            "faults": brain.check(),
            "policy_errors": dict(brain.fence.errors),
            "scale": brain.advisor.status(),
            "shadow": None if brain.shadow is None else brain.shadow.status(),
            "log": None if self.journal is None else self.journal.status(),
            "ledger": self.keeper.status() if self.keeper is not None else None,
            "peers": self.peers.status() if self.peers is not None else None,
            "replicas": [
                {
                    "address": text,
                    "role": book.role,
                    "healthy": book.healthy,
                    "in_flight": book.in_flight,
                    "others": book.others,
                    "window": book.window,
                    "ttft_ratio": round(book.pace.first.ratio, 3),
                }
                for text, book in zip(self.addresses, brain.books, strict=True)
            ],
        }
