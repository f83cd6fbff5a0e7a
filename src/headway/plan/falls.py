"""What longer runs and further seeds make of what short ones found, by what they made of it for others."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from statistics import median

__all__ = ["Falls"]

_PEERS = 9  # so many nearest in goodput tell
_ENOUGH = 3  # fewer cannot tell that a figure may not stay as it is
_BEYOND = 0.5  # of the way from their median to the last of them: with less, members of fronts were missed


class Falls:
    """By what a figure was multiplied for candidates of known goodput: (requests/s, factor); 1 where there are none.

    Runs of a length have the same requests, so that much of what is chance in them is the same for all: factors of
    candidates of about the same goodput differ by less than their goodputs are unsure.
    """

    def __init__(self, known: Iterable[tuple[float, float]]) -> None:
        sorted_ = sorted(known)
        self.goodputs_req_s = [goodput_req_s for goodput_req_s, _ in sorted_]
        factors = [factor for _, factor in sorted_]
        last = max(0, len(factors) - _PEERS)
        peers = [factors[i : i + _PEERS] or [1.0] for i in range(last + 1)]
        self.usual = [median(each) for each in peers]
        if len(factors) < _ENOUGH:
            peers = [[1.0, *each] for each in peers]
        self.most = [_beyond(max(each), middle) for each, middle in zip(peers, self.usual, strict=True)]
        self.least = [_beyond(min(each), middle) for each, middle in zip(peers, self.usual, strict=True)]

    def usually(self, goodput_req_s: float) -> float:
        """Return the median of its peers."""
        return self.usual[self._first(goodput_req_s)]

    def at_most(self, goodput_req_s: float) -> float:
        """Return what is hardly ever exceeded: a bit more than the most of its peers."""
        return self.most[self._first(goodput_req_s)]

    def at_least(self, goodput_req_s: float) -> float:
        """Return what hardly ever is less."""
        return self.least[self._first(goodput_req_s)]

    def _first(self, goodput_req_s: float) -> int:
        """The place of the peers among all runs of neighbours."""
        place = bisect(self.goodputs_req_s, goodput_req_s) - _PEERS // 2
        return max(0, min(place, len(self.usual) - 1))


def _beyond(last: float, middle: float) -> float:
    return last + _BEYOND * (last - middle)
