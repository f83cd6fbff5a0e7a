"""A tree of spans for each sampled request, sent over OTLP: decision, queue, engine, its first byte, its stream.

The decision draws three random numbers and remembers them; spans are made by a thread of its own once the request is
over, from the figures that everyone else is told, and sent from there. What waits for that thread is bounded: a
collector that is slow or gone costs traces, which are counted, and no decision. Spans carry names of tenants, classes
and replicas, reasons and counts: no header, no key, no word of a prompt.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from random import Random
from typing import Any

from headway.errors import MissingExtra
from headway.gateway.behind import Behind
from headway.gateway.events import Outcome
from headway.gateway.spec import Traces

WAITING_MAX = 2048
TOGETHER_MAX = 128  # traces in one request to the collector
PAUSE_S = 0.5  # between two, so that they go together
TIMEOUT_S = 5.0  # of one, its retries included
CLOSE_S = 2.0
SCOPE = "headway"
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Trace:
    """One request's place in a trace; ids are those of W3C's trace context, `parent` the caller's span or 0."""

    __slots__ = ("engine", "id", "parent", "root", "took_s")

    def __init__(self, id: int, parent: int, draw: Random) -> None:
        self.id = id
        self.parent = parent
        self.root, self.engine = draw.getrandbits(64) | 1, draw.getrandbits(64) | 1
        self.took_s = 0.0  # of the decision

    @property
    def traceparent(self) -> str:
        """What the engine is told: its spans belong below ours."""
        return f"00-{self.id:032x}-{self.engine:016x}-01"


class Tracer:
    """Remembers the traces of requests under way, and hands those that are over to its thread.

    Args:
        asked: where to, and which share of the requests that no caller has decided about.
        replicas: their addresses, as the file has them.
        started_s: seconds since 1970 at which the brain's clock was zero.
        say: takes a line when the collector does not.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """

    def __init__(self, asked: Traces, replicas: tuple[str, ...], started_s: float, say: Callable[[str], None]) -> None:
        self.sample = asked.sample
        self.random = Random()
        self.open: dict[str, Trace] = {}
        self.sender = _Sender(asked.endpoint, replicas, started_s)
        self.say = say
        self.behind = Behind("traces", self._take, WAITING_MAX, TOGETHER_MAX, PAUSE_S)

    @property
    def dropped(self) -> int:
        """Traces that were lost."""
        return self.behind.dropped

    def begin(self, id: str, traceparent: str) -> Trace | None:
        """A request has come: follow the caller's decision to sample it, or draw; None where it is not."""
        given = _PARENT.fullmatch(traceparent)
        if given is not None and (given[1] != "00" or given[5] is None):
            sampled, trace_id, parent = bool(int(given[4], 16) & 1), int(given[2], 16), int(given[3], 16)
        else:
            sampled, trace_id, parent = self.random.random() < self.sample, self.random.getrandbits(128) | 1, 0
        if not sampled:
            return None
        self.open[id] = Trace(trace_id, parent, self.random)
        return self.open[id]

    def finish(self, outcome: Outcome) -> str | None:
        """A request is over; the id of its trace, if it has one."""
        trace = self.open.pop(outcome.id, None)
        if trace is None:
            return None
        self.behind.put((trace, outcome))
        return f"{trace.id:032x}"

    def close(self) -> None:
        """Send what waits, as far as that goes within two seconds."""
        self.behind.close(CLOSE_S)

    def _take(self, batch: list[tuple[Trace, Outcome]]) -> int:
        if self.sender.send(batch):
            return 0
        if not self.dropped:
            self.say("traces: the collector did not take them; what is lost is counted in the metrics")
        return len(batch)


class _Sender:
    """Makes spans with OpenTelemetry's SDK, and sends them with its exporter; used by one thread."""

    def __init__(self, endpoint: str, replicas: tuple[str, ...], started_s: float) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
            from opentelemetry.sdk.trace.export import SpanExportResult
            from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
            from opentelemetry.sdk.trace.sampling import ALWAYS_ON
        except ImportError:
            raise MissingExtra("traces are sent by OpenTelemetry, which is not installed", "otel") from None

        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())  # what matters is said by us
        logging.getLogger("opentelemetry").propagate = False
        ids: list[tuple[int, int]] = []  # of the next span's trace and of itself
        made: list[Any] = []

        class Known(RandomIdGenerator):
            """Gives spans the ids that the engine, or the log, was told already."""

            def generate_trace_id(self) -> int:
                return ids[0][0]

            def generate_span_id(self) -> int:
                return ids.pop()[1] if ids else super().generate_span_id()

        class Keep(SpanProcessor):
            """Keeps spans that have ended."""

            def on_end(self, span: Any) -> None:
                made.append(span)

        resource = Resource.create({"service.name": "headway-gateway"})
        provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, id_generator=Known(), shutdown_on_exit=False)
        provider.add_span_processor(Keep())
        self.tracer = provider.get_tracer(SCOPE)
        self.exporter = OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_S)
        self.api, self.success = trace, SpanExportResult.SUCCESS
        self.ids, self.made = ids, made
        self.replicas, self.started_s = replicas, started_s

    def send(self, batch: list[tuple[Trace, Outcome]]) -> bool:
        """Send the traces of these requests; whether they were taken."""
        self.made.clear()
        for trace, outcome in batch:
            self._make(trace, outcome)
        return bool(self.exporter.export(tuple(self.made)) == self.success)

    def _make(self, trace: Trace, outcome: Outcome) -> None:
        kinds = self.api.SpanKind
        begin_s = outcome.arrived_s
        decided_s = begin_s + trace.took_s
        end_s = max(begin_s + outcome.duration_s, decided_s)
        root = self._span("request", trace, trace.root, trace.parent, begin_s, end_s, _about(outcome), kinds.SERVER)
        said = "refused" if outcome.code else "routed"
        self._span(
            "decision", trace, 0, trace.root, begin_s, decided_s,
            {"headway.outcome": said, "headway.reason": outcome.reason, "headway.code": outcome.code},
        )  # fmt: skip
        if outcome.sent_s is not None and outcome.sent_s > decided_s:
            self._span("queue", trace, 0, trace.root, decided_s, outcome.sent_s, {})
        if outcome.upstream_s is not None and outcome.replica is not None:
            sent_s = begin_s + outcome.upstream_s
            about = {"server.address": self.replicas[outcome.replica], "headway.attempts": outcome.attempts}
            self._span("engine", trace, trace.engine, trace.root, sent_s, end_s, about, kinds.CLIENT)
            if outcome.ttft_s is not None:
                first_s = begin_s + outcome.ttft_s
                self._span("first byte", trace, 0, trace.engine, sent_s, first_s, {})
                about = {"gen_ai.usage.output_tokens": outcome.output_tokens or 0}
                self._span("stream", trace, 0, trace.engine, first_s, end_s, about)
        if outcome.status == 0 or outcome.status >= 500:
            root.set_status(self.api.Status(self.api.StatusCode.ERROR))
        root.end(self._unix_ns(end_s))

    def _span(
        self, name: str, trace: Trace, id: int, parent: int, begin_s: float, end_s: float, about: Any, kind: Any = None
    ) -> Any:
        """Make a span below `parent` (0: a root) and end it, but for the request's own."""
        api = self.api
        flags = api.TraceFlags(api.TraceFlags.SAMPLED)
        context: Any = None
        if parent:
            above = api.SpanContext(trace.id, parent, is_remote=id == trace.root, trace_flags=flags)
            context = api.set_span_in_context(api.NonRecordingSpan(above))
        self.ids[:] = [(trace.id, id)] if id else []
        kept = {key: value for key, value in about.items() if value not in (None, "")}
        kind, start_ns = kind or api.SpanKind.INTERNAL, self._unix_ns(begin_s)
        span = self.tracer.start_span(name, context=context, kind=kind, attributes=kept, start_time=start_ns)
        if id != trace.root:
            span.end(self._unix_ns(max(end_s, begin_s)))
        return span

    def _unix_ns(self, at_s: float) -> int:
        return int((self.started_s + at_s) * 1e9)


def _about(outcome: Outcome) -> dict[str, Any]:
    return {
        "http.response.status_code": outcome.status,
        "headway.request_id": outcome.id,
        "headway.tenant": outcome.tenant,
        "headway.slo_class": outcome.slo_class,
        "headway.attained": outcome.attained,
        "headway.code": outcome.code,
        "gen_ai.usage.input_tokens": outcome.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.output_tokens,
        "headway.cached_tokens": outcome.cached_tokens,
    }
