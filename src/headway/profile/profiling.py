"""The measuring loop: operators one after the other on whatever backend runs them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from headway.errors import HeadwayError
from headway.profile.operators import Operator

__all__ = ["Backend", "NoGpu", "Run", "Timing", "measure"]

Progress = Callable[[int, int | None], None]

REPEATS: Final = 7  # the median of them is kept
COLD_CACHES: Final = 3.0  # buffers rotate over so many times the L2 cache: in service weights and KV are never in it
LAUNCHES_LEAST, LAUNCHES_MOST = 4, 64
BUFFERS_BYTES: Final = 8e9  # no more of them than this, all copies together


class NoGpu(HeadwayError):
    """There is nothing to measure on."""

    exit_code = 1


class Run(Protocol):
    """One operator made ready: its copies lie in memory."""

    def __call__(self, launches: int, /) -> float:
        """Launch so many times, copy after copy, and return the seconds of all by the device's own clock."""


class Backend(Protocol):
    """What runs operators."""

    cache_bytes: float

    def fingerprint(self) -> dict[str, Any]:
        """Return what the timings depend on: GPU, driver, versions."""

    def prepare(self, operator: Operator, copies: int) -> Run | None:
        """Return the operator made ready on `copies` sets of buffers; None where it cannot run here."""


class Timing(NamedTuple):
    """Seconds of one launch: the median over repeats."""

    operator: Operator
    seconds: float


def measure(
    backend: Backend, operators: Sequence[Operator], *, repeats: int = REPEATS, progress: Progress | None = None
) -> list[Timing]:
    """Return the timings of all operators that can run; others are left out.

    Each runs over enough copies of its buffers that none is still in the cache when its turn comes again.
    """
    found = []
    for done, operator in enumerate(operators, start=1):
        copies = _copies(operator, backend.cache_bytes)
        run = backend.prepare(operator, copies)
        if run is not None:
            launches = min(LAUNCHES_MOST, max(LAUNCHES_LEAST, copies))
            run(launches)  # the first one compiles, allocates and raises the clocks
            each = [run(launches) / launches for _ in range(repeats)]
            found.append(Timing(operator, statistics.median(each)))
        if progress is not None:
            progress(done, len(operators))
    return found


def _copies(operator: Operator, cache_bytes: float) -> int:
    """Sets of buffers: enough to be cold, no more than memory holds."""
    wanted = int(COLD_CACHES * cache_bytes // operator.moved_bytes) + 2
    return max(1, min(wanted, LAUNCHES_MOST, int(BUFFERS_BYTES // operator.moved_bytes)))
