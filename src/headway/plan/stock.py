"""One stock of GPUs for several pools: the exact choice of a candidate for each, by what they take of it together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["NOTHING", "Choice", "both", "cheapest", "unbeaten"]


class Choice(NamedTuple):
    """Candidates taken together: their `value`, the less the better, what they take of each supply, and which they are.

    `picks`: (pool, candidate) by their places.
    """

    value: float
    used: tuple[float, ...]
    picks: tuple[tuple[int, int], ...]


NOTHING = Choice(0.0, (), ())
_ROUNDING = 1e-9


def unbeaten(choices: Iterable[Choice]) -> list[Choice]:
    """Return those that no other beats: none is of less value and takes less of every supply. One of equal ones.

    Whatever else is taken beside them, the best sum within any supply is made of these alone, as both add up.
    """
    kept: list[Choice] = []
    for choice in sorted(choices):
        if not any(all(a <= b for a, b in zip(other.used, choice.used, strict=True)) for other in kept):
            kept.append(choice)
    return kept


def both(left: Sequence[Choice], right: Sequence[Choice], supply: Sequence[float]) -> list[Choice]:
    """Return the unbeaten sums of one of each that the supply allows."""
    sums = []
    for one in left:
        for other in right:
            used = tuple(a + b for a, b in zip(one.used or (0.0,) * len(other.used), other.used, strict=True))
            if all(taken <= most * (1 + _ROUNDING) for taken, most in zip(used, supply, strict=True)):
                sums.append(Choice(one.value + other.value, used, one.picks + other.picks))
    return unbeaten(sums)


def cheapest(sets: Iterable[Sequence[Choice]], supply: Sequence[float]) -> Choice | None:
    """Return the best sum of one choice out of each set within the supply; None where there is none."""
    sums = [NOTHING]
    for each in sets:
        sums = both(sums, each, supply)
    return min(sums, default=None)
