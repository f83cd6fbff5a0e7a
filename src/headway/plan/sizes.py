"""How many replicas each of several pools takes: the cheapest numbers that do, found pool by pool.

What is met stays so with more of any pool. Pools that serve different models do not help each other, so each is sized
while the others have plenty. Two pools of one model, as prefill and decode, do: all pairs of numbers that may be
cheaper than the best known are looked at, between the fewest of each that any number of the other lets do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

__all__ = ["apart", "fewest"]

Counts = tuple[int, ...]

_ROUNDING = 1e-9


def apart(
    met: Callable[[Counts], bool], start: Counts, prices: Sequence[float], groups: Sequence[Sequence[int]]
) -> Counts:
    """Return the cheapest numbers of replicas that are `met`.

    Args:
        met: whether so many replicas of each pool do; asked again for what it was asked before.
        start: numbers that do.
        prices: of a replica of each pool.
        groups: places of pools that serve one model; of three or more the numbers stay those of `start`.
    """
    best = start
    for group in groups:
        if len(group) == 1:
            best = _set(best, group, (fewest(_of(met, best, group), best[group[0]], best[group[0]]),))
        elif len(group) == 2:
            first, second = group
            ratio = prices[first] / prices[second]
            best = _set(best, group, _pair(_of(met, best, group), best[first], best[second], ratio))
    return best


def fewest(met: Callable[[int], bool], start: int, most: int) -> int:
    """Return the least number from 1 to `most` that is `met`, or 0 where none is; what is met stays so with more.

    Strides from `start` double until the end lies between two numbers tried, then it is bisected.
    """
    stride = 1
    if met(start):
        low, high = 0, start
        while high > 1 and low == 0:
            tried = max(1, high - stride)
            if met(tried):
                high, stride = tried, 2 * stride
            else:
                low = tried
    else:
        low, high = start, 0
        while not high:
            if low >= most:
                return 0
            tried = min(low + stride, most)
            if met(tried):
                high = tried
            else:
                low, stride = tried, 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return high


def _set(counts: Counts, group: Sequence[int], new: Sequence[int]) -> Counts:
    changed = dict(zip(group, new, strict=True))
    return tuple(changed.get(place, count) for place, count in enumerate(counts))


def _of(met: Callable[[Counts], bool], counts: Counts, group: Sequence[int]) -> Callable[..., bool]:
    """Whether so many of a group's pools do, all others as they are."""
    return lambda *new: met(_set(counts, group, new))


def _pair(met: Callable[[int, int], bool], first: int, second: int, ratio: float) -> tuple[int, int]:
    """The cheapest pair, where one of the first costs `ratio` times one of the second; `first`, `second` do."""
    cost = ratio * first + second
    beside = max(second, _below(cost - ratio))  # so many of the second may stand beside one of the first, and ...
    before = max(first, _below((cost - 1) / ratio))
    least = (  # 1 where plenty of the other is not met: their prompts share less of a cache each
        max(1, fewest(lambda n: met(n, beside), first, first)),
        max(1, fewest(lambda n: met(before, n), second, second)),
    )
    best, count = (first, second), least[0]
    while (most := _below(ratio * best[0] + best[1] - ratio * count)) >= least[1]:
        if met(count, most):
            best = count, _between(partial(met, count), least[1], most)
        count += 1
    return best


def _between(met: Callable[[int], bool], low: int, high: int) -> int:
    """The least number from `low` to `high`, which is met."""
    return low - 1 + fewest(lambda n: met(low - 1 + n), high - low + 1, high - low + 1)


def _below(amount: float) -> int:
    """The largest number below an amount."""
    return math.ceil(amount - _ROUNDING * max(1.0, abs(amount))) - 1
