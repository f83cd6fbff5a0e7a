"""Figures in another unit than expected: far off at the median as no law of ours is, or often against physics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import Final

__all__ = ["BROKEN_MOST", "UNIT_RATIO", "doubts", "expected_unit", "times"]

BROKEN_MOST: Final = 0.2  # of the rows: with more a unit, a column or the setting named is wrong, in the others too
UNIT_RATIO: Final = 20.0  # measured to predicted, at the median: a wrong unit, or another quantity
_METRICS: Final = {"output_throughput": "tokens/s of all GPUs", "energy_per_token": "joules", "power": "watts"}


def doubts(pairs: Mapping[str, Iterable[tuple[float, float]]], broken: int, rows: int) -> Iterator[str]:
    """Tell by metric where (measured, predicted) pairs are so far apart, and that so many of the rows break physics."""
    for metric, found in pairs.items():
        ratios = [measured / predicted for measured, predicted in found if predicted > 0.0]
        ratio = median(ratios) if ratios else 1.0
        if not 1.0 / UNIT_RATIO <= ratio <= UNIT_RATIO:
            yield f"{metric}: measured is {times(ratio)} times the predicted at the median: {expected_unit(metric)}"
    if broken > BROKEN_MOST * rows:
        yield (
            f"{broken:,} of {rows:,} rows break physics: check the units (times in milliseconds), and the GPU, TP and "
            "precision they name"
        )


def times(ratio: float) -> str:
    """Return a ratio as it is said: two digits, whole where it is large."""
    return f"{ratio:,.0f}" if ratio >= UNIT_RATIO else f"{ratio:.2g}"


def expected_unit(metric: str) -> str:
    """Return what to check."""
    return f"check the unit, {_METRICS.get(metric, 'milliseconds')} are expected"
