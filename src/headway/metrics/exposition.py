"""Durations by bucket, and whatever a process counts, written as Prometheus reads it (text format 0.0.4).

The one writer of that text, for the gateway and for emulated engines. It is not the `prometheus_client` package because
of what counting costs there: 0.65 us for a duration where this takes 0.14 (Python 3.11), one call for each gap between
tokens, of which an emulator counts 60,000 a second, many alike, and 65 ms of import. That package's parser judges the
text in the tests.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

__all__ = ["TEXT_TYPE", "Buckets", "Labels", "family"]

Labels = tuple[tuple[str, str], ...]
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Buckets:
    """A histogram with fixed limits, in seconds; a duration equal to a limit lies below it."""

    __slots__ = ("counts", "limits_s", "sum_s")

    def __init__(self, limits_s: Sequence[float]) -> None:
        self.limits_s = limits_s
        self.counts = [0] * (len(limits_s) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a duration `times` times."""
        self.counts[bisect_left(self.limits_s, seconds)] += times
        self.sum_s += seconds * times


def family(name: str, kind: str, said: str, samples: Iterable[tuple[Labels, float | Buckets]]) -> list[str]:
    """Return the lines of one metric: what it is, and a value for each set of labels.

    Args:
        name: of the metric; of a histogram without the endings.
        kind: "counter", "gauge" or "histogram", whose values are `Buckets`.
        said: one sentence on what it counts.
        samples: labels and value; labels may hold any text.
    """
    lines = [f"# HELP {name} {said}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        if not isinstance(value, Buckets):
            lines.append(f"{name}{_braced(labels)} {_number(value)}")
            continue
        seen = 0
        for limit, count in zip((*value.limits_s, math.inf), value.counts, strict=True):
            seen += count
            lines.append(f"{name}_bucket{_braced((*labels, ('le', _number(limit))))} {seen}")
        lines += [f"{name}_sum{_braced(labels)} {_number(value.sum_s)}", f"{name}_count{_braced(labels)} {seen}"]
    return lines


def _number(value: float) -> str:
    """All digits of a count: six would stand still for seconds once a counter is past a million."""
    if math.isfinite(value):
        return f"{value:.15g}"
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _braced(labels: Labels) -> str:
    if not labels:
        return ""
    clean = [(name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels]
    return "{" + ",".join(f'{name}="{value}"' for name, value in clean) + "}"
