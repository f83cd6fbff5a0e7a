"""From what was logged of requests to a `Result`: the types and the summing up are those of a simulation."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.bench.answer import REFUSALS
from headway.metrics import Counters, Histogram, Prices, Records, Result, Slo, Status, summarize, warmup_requests

if TYPE_CHECKING:
    from headway.bench.answer import Answer
    from headway.bench.driver import Row
    from headway.workload import Workload

__all__ = ["Log", "Lost", "Run", "measured_result", "quantiles"]

SYNTHETIC_WARMUP = 0.05  # of open loops without a trace, as in a simulation
_TIMES = ("arrival_s", "sent_s", "first_token_s", "last_token_s")
_COUNTS = (
    "id", "asked_prompt_tokens", "prompt_tokens", "asked_output_tokens", "output_tokens", "cached_tokens", "status",
    "slo_class", "tenant", "events",
)  # fmt: skip
_NS = 1e-9

Floats = NDArray[np.float64]


class Lost(NamedTuple):
    """Requests that ended for one reason, and what the server said of one of them."""

    requests: int
    example: str


class Log:
    """What one process saw: a row per request that has ended, the time of every event, seconds from the start.

    -1 stands for counts that the engine did not tell. After `frozen`, columns are arrays.
    """

    def __init__(self) -> None:
        self.times: dict[str, Any] = {name: array("d") for name in _TIMES}
        self.counts: dict[str, Any] = {name: array("q") for name in _COUNTS}
        self.event_s: Any = array("d")  # of all requests, one after the other, `events` each
        self.written_s: Any = array("d")  # the same by the writer's stamp, where all events bear one
        self.lost: dict[str, Lost] = {}
        self.peak = self.requests = self.retried = 0
        self.in_flight = 0

    def sent(self, in_flight: int) -> None:
        """Note that a request was sent, and how many are on their way."""
        self.requests += 1
        self.in_flight = in_flight
        self.peak = max(self.peak, in_flight)

    def ended(
        self, row: Row, answer: Answer, status: Status, when_s: tuple[float, float, float], problem: tuple[str, str]
    ) -> None:
        """Note how a request ended: when it was due, sent and the run began; what was wrong and an example."""
        due_s, sent_s, start_s = when_s
        events = answer.times_s
        first_s, last_s = (events[0] - start_s, events[-1] - start_s) if events else (np.nan, np.nan)
        for name, value in zip(_TIMES, (due_s - start_s, sent_s - start_s, first_s, last_s), strict=True):
            self.times[name].append(value)
        counts = (
            row.id, row.prompt_tokens, answer.prompt_tokens, row.output_tokens, answer.tokens, answer.cached_tokens,
            int(status), row.slo_class, row.tenant, len(events),
        )  # fmt: skip
        for name, count in zip(_COUNTS, counts, strict=True):
            self.counts[name].append(count)
        self.event_s.extend([came_s - start_s for came_s in events])
        if len(answer.sent_ns) == len(events):
            self.written_s.extend([sent_ns * _NS - start_s for sent_ns in answer.sent_ns])
        self.in_flight -= 1
        reason, example = problem
        if reason:
            known = self.lost.get(reason, Lost(0, example))
            self.lost[reason] = Lost(known.requests + 1, known.example or example)

    def frozen(self) -> Log:
        """Return it with arrays for columns, as it travels between processes."""
        self.times = {name: np.array(column) for name, column in self.times.items()}
        self.counts = {name: np.array(column, np.int64) for name, column in self.counts.items()}
        self.event_s, self.written_s = np.array(self.event_s), np.array(self.written_s)
        return self

    @classmethod
    def joined(cls, logs: Iterable[Log]) -> Log:
        """Return what all processes saw, in order of arrival; the peak is the sum of theirs."""
        parts, whole = list(logs), cls()
        whole.times = {name: np.concatenate([log.times[name] for log in parts]) for name in _TIMES}
        whole.counts = {name: np.concatenate([log.counts[name] for log in parts]) for name in _COUNTS}
        event_s = np.concatenate([log.event_s for log in parts])
        written_s = np.concatenate([log.written_s for log in parts])
        order = np.lexsort((whole.counts["id"], whole.times["arrival_s"]))
        events = whole.counts["events"]
        starts = np.cumsum(events) - events
        counts = events[order]
        places = np.repeat(starts[order] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        whole.event_s = event_s[places]
        whole.written_s = written_s[places] if len(written_s) == len(event_s) else written_s[:0]
        whole.times = {name: column[order] for name, column in whole.times.items()}
        whole.counts = {name: column[order] for name, column in whole.counts.items()}
        for log in parts:
            whole.peak += log.peak
            whole.requests += log.requests
            whole.retried += log.retried
            for reason, lost in log.lost.items():
                known = whole.lost.get(reason, Lost(0, lost.example))
                whole.lost[reason] = Lost(known.requests + lost.requests, known.example or lost.example)
        return whole

    @property
    def lateness_s(self) -> Floats:
        """How late each request was sent; float64[n]."""
        return np.asarray(np.maximum(self.times["sent_s"] - self.times["arrival_s"], 0.0))

    def gaps(self, event_s: Floats | None = None) -> tuple[Floats, Floats]:
        """Return all gaps between consecutive events of a request, and when each ended; of `written_s` if given."""
        times = self.event_s if event_s is None else event_s
        request = np.repeat(np.arange(len(self.counts["events"])), self.counts["events"])
        within = request[1:] == request[:-1]
        return np.maximum(np.diff(times)[within], 0.0), times[1:][within]


class Run(NamedTuple):
    """What a result is told of the run besides the log."""

    workload: Workload
    seed: int
    slo: Slo | None
    gpus: int
    prices: Prices | None
    deployment: Mapping[str, Any] | None
    told: Mapping[str, Any]  # provenance
    warmup: float | None = None


def measured_result(log: Log, run: Run) -> Result:
    """Return the result of a joined log.

    A token that came in one event with others has a gap of zero. Prompts count as long as the engine says, else as
    asked.
    """
    warmup = run.warmup
    if warmup is None:
        synthetic = run.workload.concurrency is None and run.workload.spec.trace is None
        warmup = SYNTHETIC_WARMUP if synthetic else 0.0
    counts, times = log.counts, log.times
    n = len(counts["id"])
    prompt = np.where(counts["prompt_tokens"] >= 0, counts["prompt_tokens"], counts["asked_prompt_tokens"])
    told_cached = counts["cached_tokens"] >= 0
    columns: dict[str, Any] = {
        "id": counts["id"], "arrival_s": times["arrival_s"], "prompt_tokens": prompt,
        "first_token_s": np.maximum(times["first_token_s"], times["arrival_s"]),
        "last_token_s": np.maximum(times["last_token_s"], times["arrival_s"]),
        "output_tokens": counts["output_tokens"], "cached_tokens": np.maximum(counts["cached_tokens"], 0),
        "status": counts["status"].astype(np.int8), "slo_class": counts["slo_class"].astype(np.int32),
        "tenant": counts["tenant"].astype(np.int32),
    }  # fmt: skip
    ends = np.bincount(counts["status"], minlength=len(Status)).tolist()
    last = max((float(np.nanmax(column)) for column in times.values() if np.isfinite(column).any()), default=0.0)
    counters = Counters(
        arrived=n, finished=ends[Status.FINISHED], rejected=ends[Status.REJECTED], failed=ends[Status.FAILED],
        unfinished=ends[Status.UNFINISHED], prompt_tokens=int(prompt.sum()),
        cached_tokens=int(columns["cached_tokens"].sum()), output_tokens=int(counts["output_tokens"].sum()),
        prefix_queried_tokens=int(prompt[told_cached].sum()), prefix_hit_tokens=int(columns["cached_tokens"].sum()),
        gpus=run.gpus, duration_s=last, itl=_gaps(log, warmup),
    )  # fmt: skip
    failed = {reason: lost.requests for reason, lost in sorted(log.lost.items()) if reason not in REFUSALS}
    told = {**run.told, **({"failed": failed} if failed else {})}
    return summarize(
        Records(columns), counters, run.slo, run.prices, warmup_fraction=warmup, seed=run.seed,
        deployment=run.deployment, workload=_mapping(run.workload), provenance=told,
    )  # fmt: skip


def quantiles(seconds: Floats) -> dict[str, float]:
    """Return median and 99th percentile; empty where there is nothing."""
    if not len(seconds):
        return {}
    p50, p99 = np.percentile(seconds, (50, 99)).tolist()
    return {"p50": p50, "p99": p99}


def _gaps(log: Log, warmup: float) -> Histogram:
    """Count every gap that ends after the first measured arrival."""
    histogram = Histogram()
    arrivals = log.times["arrival_s"]
    if not len(arrivals):
        return histogram
    first_s = arrivals[min(warmup_requests(len(arrivals), warmup), len(arrivals) - 1)]
    gaps, ends = log.gaps()
    histogram.add(gaps[ends > first_s])
    together = np.maximum(log.counts["output_tokens"] - np.maximum(log.counts["events"], 1), 0)
    ended = log.times["last_token_s"] > first_s
    histogram.add(0.0, int(together[ended].sum()))
    return histogram


def _mapping(workload: Workload) -> dict[str, Any]:
    from headway.specs import to_mapping

    spec: dict[str, Any] = to_mapping(workload.spec)
    return spec
