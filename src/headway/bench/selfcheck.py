"""What the load generator itself adds: it reads a source of known timing, as busily as it read the endpoint."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from headway.bench.measured import Log, quantiles
from headway.metrics import Result
from headway.specs import Spec
from headway.workload import Workload, WorkloadSpec, parse_arrival, parse_length, workload

__all__ = ["ClientError", "Pace", "client_error", "pace_of", "warnings_of"]

TOLERATED = 0.10  # of what was measured
EVENTS_PER_S = 25_000.0  # that the source writes on time beside its readers on a small machine
FIRST_S, GAP_S = (0.02, 0.25), (0.005, 0.1)
TOKENS = 64
LENGTHS = 2.0  # of the check, in lifetimes of a stream
PROMPT_TOKENS_MAX = 4096


class Pace(Spec, frozen=True, kw_only=True):
    """The source's timing, and how many streams are read at once: as many as the run had at its peak."""

    streams: int
    first_s: float
    gap_s: float
    tokens: int
    prompt_tokens: int

    def workload(self) -> Workload:
        """Streams that begin evenly spaced, so many per second that `streams` are under way."""
        life_s = self.first_s + self.gap_s * (self.tokens - 1)
        spec = WorkloadSpec(
            name="paced",
            prompt=parse_length(str(self.prompt_tokens)),
            output=parse_length(str(self.tokens)),
            arrival=parse_arrival("constant"),
        )
        requests = max(16, math.ceil(LENGTHS * self.streams))
        return workload(spec, rate=self.streams / life_s, requests=requests)


class ClientError(Spec, frozen=True, kw_only=True):
    """What the client read too much, at the pace stated; seconds, median and 99th percentile.

    ttft: how late the first token was read after the source wrote it, and how late its request was sent, together.
    itl: by how much gaps between tokens differ from those the source wrote, either way. lateness: of sending.
    """

    pace: Pace
    ttft_s: dict[str, float]
    itl_s: dict[str, float]
    lateness_s: dict[str, float]


def pace_of(log: Log, result: Result) -> Pace:
    """Return a pace like that of a run: its peak of streams, its medians as far as they are within reason."""
    streams = max(1, log.peak)
    first_s = _within(result.ttft_s.p50, FIRST_S)
    gap_s = max(_within(result.itl_s.p50, GAP_S), streams / EVENTS_PER_S)
    prompt = min(max(round(float(log.counts["asked_prompt_tokens"].mean())), 1), PROMPT_TOKENS_MAX)
    return Pace(streams=streams, first_s=first_s, gap_s=gap_s, tokens=TOKENS, prompt_tokens=prompt)


def client_error(log: Log, pace: Pace) -> ClientError | None:
    """Return the client's error from the log of a paced run; None where not every token bore its stamp."""
    events = log.counts["events"]
    if not len(events) or len(log.written_s) != len(log.event_s) or not events.all():
        return None
    first = events.cumsum() - events
    read_late = log.event_s[first] - log.written_s[first]
    read, _ = log.gaps()
    written, _ = log.gaps(log.written_s)
    return ClientError(
        pace=pace,
        ttft_s=quantiles(read_late + log.lateness_s),
        itl_s=quantiles(abs(read - written)),
        lateness_s=quantiles(log.lateness_s),
    )


def warnings_of(error: ClientError | None, log: Log, result: Result) -> list[str]:
    """Return what of the result is not to be trusted, and why: errors above a tenth of what was measured."""
    found = []
    measured = {"TTFT": result.ttft_s, "ITL": result.itl_s}
    if error is not None:
        for name, errors in (("TTFT", error.ttft_s), ("ITL", error.itl_s)):
            for at in ("p50", "p99"):
                value, off = getattr(measured[name], at), errors.get(at)
                if value and off is not None and off > TOLERATED * value:
                    found.append(f"this client's own error of {name} {at} is {_ms(off)}, of {_ms(value)} measured")
    late = quantiles(log.lateness_s)
    for at in ("p50", "p99"):
        value = getattr(result.ttft_s, at)
        if value and late.get(at, 0.0) > TOLERATED * value:
            found.append(f"requests were sent late: {_ms(late[at])} at {at}, of {_ms(value)} TTFT")
    return found


def told(error: ClientError | None) -> dict[str, Any] | None:
    """Return the error as builtins."""
    mapping: dict[str, Any] | None = None if error is None else msgspec.to_builtins(error)
    return mapping


def _within(value: float | None, ends: tuple[float, float]) -> float:
    return min(max(value or ends[0], ends[0]), ends[1])


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
