"""Do intervals hold what they claim? The share of measured figures inside those of their predictions."""

from __future__ import annotations

from collections.abc import Iterable

from headway.accuracy.score import HEADLINES, Judged, headline
from headway.cost.uncertainty import COVERAGE, LEVELS
from headway.specs import Spec

__all__ = ["Coverage", "Held", "cover"]


class Held(Spec):
    """Of n measured figures, the share inside their intervals; None where n is 0. `width` is the median high / low."""

    share: float | None
    width: float | None
    n: int


class Coverage(Spec):
    """What share of figures the intervals hold that claim to hold `claimed`: in all, by metric, by level and metric.

    `trusted` is `overall` without suspect rows.
    """

    claimed: float
    overall: Held
    trusted: Held
    metrics: dict[str, Held]
    levels: dict[str, dict[str, Held]]


def cover(judged: Iterable[Judged], trusted: Iterable[Judged]) -> Coverage:
    """Return the coverage of the judged rows, one figure a row and metric; `trusted` are those not suspect."""
    found = _found(judged)
    levels = [level for level in LEVELS if any(level == of for of, _ in found)]
    return Coverage(
        claimed=COVERAGE,
        overall=_held(found.values()),
        trusted=_held(_found(trusted).values()),
        metrics={name: _held(each for (_, metric), each in found.items() if metric == name) for name in HEADLINES},
        levels={
            level: {
                "all": _held(each for (of, _), each in found.items() if of == level),
                **{name: _held([found[level, name]]) for name in HEADLINES if (level, name) in found},
            }
            for level in levels
        },
    )


def _found(judged: Iterable[Judged]) -> dict[tuple[str, str], list[tuple[bool, float]]]:
    """Whether each figure is inside, and the interval's high / low, by level and metric."""
    found: dict[tuple[str, str], list[tuple[bool, float]]] = {}
    for one in judged:
        levels, factors = one[1].levels, one[1].factors
        for metric in HEADLINES:
            pair = headline(one, metric)
            if pair is not None and metric in factors:
                low, high = factors[metric]
                inside = low * pair[1] <= pair[0] <= high * pair[1]
                found.setdefault((levels[metric], metric), []).append((inside, high / low))
    return found


def _held(parts: Iterable[list[tuple[bool, float]]]) -> Held:
    figures = [figure for part in parts for figure in part]
    if not figures:
        return Held(share=None, width=None, n=0)
    widths = sorted(width for _, width in figures)
    return Held(share=sum(inside for inside, _ in figures) / len(figures), width=widths[len(widths) // 2],
                n=len(figures))  # fmt: skip
