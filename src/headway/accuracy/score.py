"""Errors of predicted figures against measured ones, over all rows and by what they have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from headway.accuracy.judge import Outcome
from headway.accuracy.rows import Row
from headway.specs import Spec

__all__ = ["HEADLINES", "Errors", "by_group", "headline", "summarize_errors"]

Judged = tuple[Row, Outcome]

HEADLINES = {  # metric -> the figure that stands for it in a row: the first that was measured
    "ttft": ("ttft_mean", "ttft_p50"),
    "tpot": ("tpot_mean", "tpot_p50", "itl_mean", "itl_p50"),
    "e2e": ("e2e_mean", "e2e_p50"),
    "output_throughput": ("output_throughput", "total_throughput", "request_throughput"),
    "energy_per_token": ("energy_per_token",),
    "power": ("power",),
}


class Errors(Spec):
    """Of n relative errors e = predicted / measured - 1: mean, median and p90 of |e|, and `bias`, the mean of e.

    All are fractions (0.08 is 8 %); None where n is 0.
    """

    mape: float | None
    median: float | None
    p90: float | None
    bias: float | None
    n: int


def headline(judged: Judged, metric: str) -> tuple[float, float] | None:
    """Return (measured, predicted) of the figure that stands for a metric in a row; None where there is none."""
    row, outcome = judged
    for name in HEADLINES[metric]:
        if name in row.measured:
            return (row.measured[name], outcome.predicted[name]) if name in outcome.predicted else None
    return None


def errors_of(pairs: Iterable[tuple[float, float]]) -> Errors:
    """Return the summary of (measured, predicted) pairs; measured ones are above 0."""
    pairs = np.array(list(pairs)).reshape(-1, 2)
    if not len(pairs):
        return Errors(mape=None, median=None, p90=None, bias=None, n=0)
    relative = pairs[:, 1] / pairs[:, 0] - 1
    size = np.abs(relative)
    median, p90 = (float(q) for q in np.quantile(size, (0.5, 0.9)))
    return Errors(mape=float(size.mean()), median=median, p90=p90, bias=float(relative.mean()), n=len(pairs))


def summarize_errors(judged: Iterable[Judged]) -> dict[str, Errors]:
    """Return the errors of every metric, one figure a row."""
    judged = list(judged)
    return {
        metric: errors_of(pair for one in judged if (pair := headline(one, metric)) is not None) for metric in HEADLINES
    }


def by_group(judged: Iterable[Judged], column: str) -> dict[str, dict[str, Errors]]:
    """Return the errors by the values of a column, most rows first, metrics without a figure left out."""
    groups: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        value = getattr(one[0], column)
        groups["" if value is None else str(value)].append(one)
    return {
        value: {metric: errors for metric, errors in summarize_errors(rows).items() if errors.n}
        for value, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    }


def by_figure(judged: Iterable[Judged]) -> dict[str, Errors]:
    """Return the errors of every single figure that was measured, such as "ttft_p99"."""
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row, outcome in judged:
        for name, measured in row.measured.items():
            if name in outcome.predicted:
                pairs[name].append((measured, outcome.predicted[name]))
    return {name: errors_of(found) for name, found in sorted(pairs.items())}
