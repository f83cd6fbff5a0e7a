"""How many replicas each of several pools takes: the cheapest numbers that do, found pool by pool.

What is met stays so with more of any pool. Pools that serve different models do not help each other, so each is sized
while the others have plenty. Two pools of one model, as prefill and decode, do: all pairs of numbers that may be
cheaper than the best known are looked at, between the fewest of each that any number of the other lets do.

Where replicas fill several nodes and the network between these is slow, more of a pool may serve less. There pairs are
looked at one by one, the cheapest first, from the one that would do if all stood on one node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

__all__ = ["apart", "fewest", "scattered"]

Counts = tuple[int, ...]

_PAIRS = 50  # looked at one by one: some seconds of simulation

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


def scattered(
    met: Callable[[Counts], bool], near: Counts, lacking: Iterable[Counts], prices: Sequence[float], most: int
) -> Counts | None:
    """Return the cheapest pair of numbers that is `met`, though more of either may be met less; None where none is.

    Of `_PAIRS` the cheapest one; where none of these is met, one cheaper than the first multiple of `near` that is.

    Args:
        met: whether so many replicas of each pool do; asked again for what it was asked before.
        near: what would do if all stood on one node; nothing cheaper does.
        lacking: pairs that would not do even so: neither do fewer.
        prices: of a replica of each pool.
        most: replicas of both.
    """

    def price(pair: Counts) -> float:
        return sum(count * each for count, each in zip(pair, prices, strict=True))

    first, lacks = price(near) * (1 - _ROUNDING), set(lacking)
    pairs = [(a, b) for a in range(1, most) for b in range(1, most - a + 1) if price((a, b)) >= first]
    looked = 0
    for pair in sorted(pairs, key=lambda pair: (price(pair), pair)):
        if any(pair[0] <= a and pair[1] <= b for a, b in lacks):
            continue
        if met(pair):
            return pair
        looked += 1
        if looked == _PAIRS:
            break
    largest = max(1, most // sum(near))
    times = fewest(lambda n: met(_times(near, n)), min(2, largest), largest)
    return apart(met, _times(near, times), prices, [(0, 1)]) if times else None


def _times(counts: Counts, times: int) -> Counts:
    return tuple(times * count for count in counts)


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
