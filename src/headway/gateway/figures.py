"""What has happened, counted, and written as Prometheus reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable

BOUNDS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0)
Labels = tuple[tuple[str, str], ...]
HELP = {
    "headway_arrived_total": ("counter", "Requests that arrived and were well formed."),
    "headway_decisions_total": ("counter", "Decisions by outcome and reason."),
    "headway_ended_total": (
        "counter",
        "Accepted requests that ended, by the status the caller saw (0: left before one).",
    ),
    "headway_attained_total": ("counter", "Requests that met every limit of their class."),
    "headway_tokens_total": ("counter", "Tokens of ended requests, as the engines or the stream's events count them."),
    "headway_policy_errors_total": ("counter", "Decisions that a policy failed to give; the fallback gave them."),
    "headway_retried_total": ("counter", "Requests that the second host of their decision answered."),
    "headway_misrouted_total": ("counter", "Requests answered by a host that was not chosen: must be 0."),
    "headway_unmatched_total": ("counter", "End records, or ends, of requests that the books do not know."),
    "headway_drifted_total": ("counter", "Readings in which an engine and the books differed by more than 2 and 10 %."),
    "headway_ejected_total": ("counter", "Times that a replica was taken out after failures in a row."),
    "headway_shadow_total": ("counter", "Decisions in which the shadow policy agreed with the live one, or failed."),
    "headway_logged_total": ("counter", "Rows of the decision log that were written."),
    "headway_log_dropped_total": ("counter", "Events that the decision log lacks: its disk was full or too slow."),
    "headway_ttft_seconds": ("histogram", "Arrival to first event of a stream."),
    "headway_tpot_seconds": ("histogram", "Mean time per output token after the first."),
    "headway_e2e_seconds": ("histogram", "Arrival to the end."),
    "headway_in_flight": ("gauge", "Requests at a replica by the books."),
    "headway_engine_requests": ("gauge", "Requests at a replica as its own metrics say, running and waiting."),
    "headway_kv_share": ("gauge", "Share of a replica's KV in use, as its own metrics say."),
    "headway_drift": ("gauge", "Requests that the engine has more than the books."),
    "headway_healthy": ("gauge", "1 while a replica is sent requests."),
    "headway_held": ("gauge", "Requests that wait in Headway's queue."),
    "headway_predicted_ttft_seconds": (
        "gauge",
        "Time to first token of a prompt of 512 tokens sent now, as predicted.",
    ),
    "headway_attainment": ("gauge", "Share of the requests that arrived and are over which met every limit."),
}


class _Spread:
    """Durations by bucket, their sum and number."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds


class Figures:
    """Counters and histograms by name and labels."""

    def __init__(self) -> None:
        self.counters: dict[str, Counter[Labels]] = defaultdict(Counter)
        self.spreads: dict[str, dict[Labels, _Spread]] = defaultdict(lambda: defaultdict(_Spread))

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self.counters[name][tuple(labels.items())] += amount  # type: ignore[assignment]

    def spread(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        self.spreads[name][tuple(labels.items())].add(seconds)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a counter over all labels that include these."""
        wanted = set(labels.items())
        return sum(value for key, value in self.counters[name].items() if wanted <= set(key))

    def text(self, gauges: Iterable[tuple[str, dict[str, str], float]]) -> str:
        """Return everything in Prometheus' text format, these gauges of the moment included."""
        lines: dict[str, list[str]] = defaultdict(list)
        for name, values in self.counters.items():
            lines[name] += [f"{name}{_labels(key)} {value:g}" for key, value in values.items()]
        for name, spreads in self.spreads.items():
            for key, spread in spreads.items():
                seen = 0
                for bound, count in zip((*BOUNDS_S, "+Inf"), spread.counts, strict=True):
                    seen += count
                    lines[name].append(f"{name}_bucket{_labels((*key, ('le', str(bound))))} {seen}")
                lines[name] += [f"{name}_sum{_labels(key)} {spread.total_s:.6f}", f"{name}_count{_labels(key)} {seen}"]
        for name, labels, value in gauges:
            lines[name].append(f"{name}{_labels(tuple(labels.items()))} {value:g}")
        out = []
        for name, (kind, said) in HELP.items():
            if name in lines:
                out += [f"# HELP {name} {said}", f"# TYPE {name} {kind}", *lines[name]]
        return "\n".join(out) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    clean = [(name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels]
    return "{" + ",".join(f'{name}="{value}"' for name, value in clean) + "}"
