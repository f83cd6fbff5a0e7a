"""Goodput by search on the rate: places of a grid of rates are tried until a met one has a missed neighbour."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from headway.plan.trial import Trial

__all__ = ["Bracket", "search"]

_SLOPE = 0.25  # by how much a trial's score usually falls per place of the grid, near the target
_STRIDE_MAX = 8.0  # at first; then twice the step before that found no end
_SAME = 2  # so many trials on the same side as the one before them; then steps grow, however near the target they are
_STRIDE_TOLD = 4.0  # at first where the guess was told, and no less than what may be left open
_CEILING = 400  # places: 137,000 times the asked rate
_CLOSE = 8  # places between met and missed that a line through both bridges well
_FAR = 1.0  # from the target: scores beyond it flatten, as nearly all requests are in time or nearly none
_SATURATED = 2 * _FAR  # scores beyond it tell no slope
_REACH = 4.0  # places by which what was told is rarely wrong; it doubles with each step that finds it is


class Bracket(NamedTuple):
    """Where goodput lies on the grid: place `low` was met, `high` was not, `at` is interpolated between them.

    `low` and `at` are None where the SLO is missed even at the lowest rate; `high` where it is met even at the highest,
    as all requests of a short run together are: then `at` is `low`. `last` is the trial at `high`, or else at `low`.
    """

    low: int | None
    high: int | None
    at: float | None
    last: Trial


def search(
    trial: Callable[[int], Trial], start: float, floor: int, target: float, told: bool = False, width: int = 1
) -> Bracket:
    """Return places on the grid, `width` apart at most, between which the SLO begins to be missed.

    Attainment falls with the rate up to noise; where noise makes it cross the target more than once, one of the
    crossings is found, on the side of place 0 that the trial there tells.

    Args:
        trial: simulates a place of the grid, or recalls it.
        start: a guess of the place, the better the fewer trials.
        floor: place below 0 of a rate so low that requests do not meet; what misses the SLO there always does.
        target: score of a trial that just reaches its attainment.
        told: whether the guess comes from such a search, by fewer requests or other seeds.
        width: places that may be left open; neighbours are 1 apart.
    """
    known = {0: trial(0)}
    low, high = (0, None) if known[0].met else (None, 0)
    at, met, again, k = start, known[0].met, 0, 0
    stride = max(_STRIDE_TOLD, width) if told else _STRIDE_MAX
    if (start > 0) != met:
        at = _beyond(known, 0, 0, target, stride, width, 0)
    while low is None or high is None or high - low > width:
        if high is not None and high <= floor:
            return Bracket(None, high, None, known[high])
        if low is not None and low >= _CEILING:
            return Bracket(low, None, float(low), known[low])
        k, before = min(_next(low, high, at, floor), _CEILING), k
        known[k] = trial(k)
        again = again + 1 if known[k].met == met else 0
        met = known[k].met
        low, high = (k, high) if met else (low, k)
        if low is None or high is None:
            at = _beyond(known, k, before, target, stride, width, again)
            stride = 2 * abs(at - k)
        else:
            at = _within(known, low, high, target, k, again, told)
    return Bracket(low, high, _between(known[low], known[high], low, high, target), known[high])


def _next(low: int | None, high: int | None, at: float, floor: int) -> int:
    """The place to try: the one below the estimate, or, where that is known to be met, the one above."""
    k = math.floor(at)
    if low is not None:
        k = max(k, low + 1)
    if high is not None:
        k = min(k, high - 1)
    return max(k, floor)


def _beyond(
    known: dict[int, Trial], k: int, before: int, target: float, stride: float, width: int, again: int
) -> float:
    """Where the target is surely crossed: as far from trial k as a line through the one `before` has it, and a bit.

    By the usual slope where there is none before, or where that has nearly all requests in time or nearly none. Nearer
    than `width` would tell no more, and `stride` is as far as it dares. `again` trials ended as the one before them: a
    score may stay near the target over all rates that are met, as where that many requests are too long for any.
    """
    last, past, slope = known[k], known[before], _SLOPE
    if before != k and abs(past.score - target) < _SATURATED:
        slope = min(max(abs(last.score - past.score) / abs(k - before), _SLOPE / 8), _SLOPE)
    least = width * 2.0 ** max(0, again - _SAME)
    away = min(max(abs(last.score - target) / slope + width / 2, least), stride)
    return k + away if last.met else k - away


def _within(
    known: dict[int, Trial], low: int, high: int, target: float, last: int, again: int, told: bool
) -> float:
    """Where the target is crossed between two trials, of which `last` took the place of the same end `again` times.

    A line bridges them, unless they are far apart and the score of one so far from the target that it hardly tells
    rates apart: then the other one does, or what was `told`, by the usual slope, in steps that grow.
    """
    line, width = _between(known[low], known[high], low, high, target), high - low
    if width <= _CLOSE:
        return (low + high) / 2 if again else line
    short, over = known[low].score - target, target - known[high].score
    reach = _REACH * 2.0**again
    if max(short, over) > _FAR and (told or min(short, over) <= _FAR) and reach <= width / 2:
        upwards = last == low if min(short, over) > _FAR else short < over
        away = min(max((short if upwards else over) / _SLOPE, reach / _STRIDE_MAX), reach)
        return low + away if upwards else high - away
    return min(max(line, low + width / 4), high - width / 4)


def _between(low: Trial, high: Trial, k_low: int, k_high: int, target: float) -> float:
    """Where a line through two scores crosses the target; the middle if something else than attainment decided."""
    if not low.score >= target > high.score:
        return (k_low + k_high) / 2
    return k_low + (k_high - k_low) * (low.score - target) / (low.score - high.score)
