"""A day cut into slots: when each is, how fast requests come in it, and which they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np

from headway.errors import BadInput
from headway.metrics import Slo
from headway.plan.classes import long_requests
from headway.specs import check_argument
from headway.workload import Batch, Workload
from headway.workload.arrivals import Diurnal, Replay
from headway.workload.batch import Floats, join
from headway.workload.spool import release
from headway.workload.trace import Trace

__all__ = ["Part", "parts_of"]

DAY_S = 86400.0
SLOTS = 24
SLOTS_MAX = 1440
STRETCH = 20_000  # requests of a trace's slot that are simulated, the densest there
CRUMB = 0.02  # of a slot: so little at the end of a day belongs to the slot before
LOOKS = 64  # at a curve within a slot, for its highest rate


class Part(NamedTuple):
    """A slot to be sized: when it is, its rate, and its requests."""

    start_s: float
    end_s: float
    rate_req_s: float
    workload: Workload


def parts_of(
    made: Workload, slos: Sequence[Slo], curve: Sequence[float] | None, slot_s: float | None, seed: int
) -> list[Part]:
    """Return the slots of a day, as `capacity` has them.

    Raises:
        BadInput: no day in it, or a rate, a length or a number of slots that cannot be.
    """
    check_argument("curve", curve, tuple[float, ...] | None, "[0.5, 4, 2]")
    check_argument("slot_s", slot_s, float | None)
    arrival = made.spec.process
    if slot_s is not None and not 0 < slot_s < math.inf:
        raise BadInput(f"slot {slot_s:g} s: give a time above zero, as in 1h")
    if curve is not None:
        length = slot_s or DAY_S / max(len(curve), 1)
        return [_steady(made, slos, i * length, (i + 1) * length, rate) for i, rate in enumerate(_checked(curve))]
    if isinstance(arrival, Diurnal):
        edges = _edges(arrival.period_s, slot_s)
        return [_steady(made, slos, a, b, _highest(arrival, a, b)) for a, b in pairwise(edges)]
    if isinstance(arrival, Replay):
        return _recorded(made, slot_s, seed)
    kind = type(arrival).__struct_config__.tag
    raise BadInput(
        f"workload {made.name} has {kind} arrivals, which are no day: give a trace with times, rates by the hour, or "
        "diurnal arrivals, as in diurnal:peak_to_trough=4"
    )


def _checked(curve: Sequence[float]) -> list[float]:
    if not 1 <= len(curve) <= SLOTS_MAX or not all(0 <= rate < math.inf for rate in curve) or not any(curve):
        raise BadInput(f"a curve of {len(curve)} rates: give 1 to {SLOTS_MAX} of them, from 0 on, not all of them 0")
    return list(curve)


def _edges(length_s: float, slot_s: float | None) -> list[float]:
    count = SLOTS if slot_s is None else max(1, math.ceil(length_s / slot_s - CRUMB))
    if not 1 <= count <= SLOTS_MAX:
        raise BadInput(f"slots of {slot_s:g} s: {count:,} of them in {length_s:g} s; give 1 to {SLOTS_MAX}, as in 1h")
    return [*(i * (slot_s or length_s / SLOTS) for i in range(count)), length_s]


def _highest(arrival: Diurnal, start_s: float, end_s: float) -> float:
    """The highest rate of a sinusoid between two times, requests/s."""
    swing = (arrival.peak_to_trough - 1) / (arrival.peak_to_trough + 1)
    phase = np.linspace(start_s, end_s, LOOKS + 1) / arrival.period_s
    return float(arrival.rate_req_s * (1 + swing * np.sin(2 * np.pi * phase)).max())


def _steady(made: Workload, slos: Sequence[Slo], start_s: float, end_s: float, rate_req_s: float) -> Part:
    """A slot of a curve: requests that keep its rate, enough of them to judge it by."""
    requests = long_requests(tuple(slos), rate_req_s, made.mean_output_tokens)
    each = made.steady().cut(requests)
    return Part(start_s, end_s, rate_req_s, each.at_rate(rate_req_s) if rate_req_s else each)


class _Stretch(Workload):
    """Requests of a trace that follow each other, from time 0 on, and nothing of the rest."""

    def __init__(self, made: Workload, batch: Batch) -> None:
        spec = msgspec.structs.replace(made.spec, requests=len(batch), first=0)
        first_s = batch.arrival_s[0]
        self.batch = msgspec.structs.replace(
            batch, arrival_s=batch.arrival_s - first_s, deadline_s=batch.deadline_s - first_s
        )
        own = _part(made._trace, batch)
        super().__init__(spec, own, own if made._recorded is made._trace else _part(made._recorded, batch))

    def batches(self, seed: int, rate_req_s: float | None = None, chunk: int = 0) -> Any:
        """Return them at once."""
        return iter([self.batch])


def _part(file: Trace | None, batch: Batch) -> Trace | None:
    """A trace of these requests alone, at the rate of the whole."""
    if file is None:
        return None
    return msgspec.structs.replace(file, requests=batch, first=0, whole_rate_req_s=file.rate_req_s)


def _recorded(made: Workload, slot_s: float | None, seed: int) -> list[Part]:
    """The slots of a trace, each with its own requests, or the densest stretch of many: no more are held at once."""
    times = np.concatenate([batch.arrival_s + 0.0 for batch in _read(made, seed)])
    length_s = float(times[-1])
    moment = length_s <= float(times[0])  # one request, or all at once: they have a slot to themselves
    edges = [0.0, slot_s or DAY_S / SLOTS] if moment else _edges(length_s, slot_s)
    ends = np.searchsorted(times, edges[1:-1]).tolist()
    places = [
        _densest(times, first, last, end_s - start_s) if last > first else (0, 1, math.inf)  # an idle slot has no rate
        for (start_s, end_s), (first, last) in zip(pairwise(edges), pairwise([0, *ends, len(times)]), strict=True)
    ]
    taken = _taken(made, seed, [(begin, end) for begin, end, _ in places])
    return [
        Part(start_s, end_s, (end - begin) / seconds, _Stretch(made, batch))
        for (start_s, end_s), (begin, end, seconds), batch in zip(pairwise(edges), places, taken, strict=True)
    ]


def _read(made: Workload, seed: int) -> Iterator[Batch]:
    """The requests of a trace in batches, of which memory holds one at a time."""
    for batch in made.batches(seed):
        yield batch
        for file in made._files():
            release(file.requests)


def _taken(made: Workload, seed: int, places: list[tuple[int, int]]) -> list[Batch]:
    """The requests at these places of a trace, each from its first up to its last, read once."""
    pieces: list[list[Batch]] = [[] for _ in places]
    at = 0
    for batch in _read(made, seed):
        for (begin, end), held in zip(places, pieces, strict=True):
            if begin < at + len(batch) and end > at:
                held.append(join([batch.rows(max(begin - at, 0), min(end - at, len(batch)))]))  # a copy
        at += len(batch)
    return [join(held) for held in pieces]


def _densest(times: Floats, first: int, last: int, slot_s: float) -> tuple[int, int, float]:
    """Places of at most `STRETCH` requests that come in the shortest time, and that time."""
    if last - first <= STRETCH:
        return first, last, slot_s
    spans = times[first + STRETCH : last] - times[first : last - STRETCH]
    at = int(np.argmin(spans))
    return first + at, first + at + STRETCH, max(float(spans[at]), 1e-9)
