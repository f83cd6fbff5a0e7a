"""Session workloads: calls that build on one another, all sessions merged in order of arrival.

An open workload starts as if it had been running forever: sessions that began before time 0 take part with
what is left of them, so the rate is right from the first second (their earlier calls are in no cache, as
after a restart). A closed loop keeps `concurrency` sessions going; each takes the next one's place when its
last call is sent.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from headway.errors import BadInput
from headway.workload.arrivals import Clock, Closed, Replay, at_rate
from headway.workload.batch import Batch, Floats, Ints, chains, make_batch, offsets_of, stream
from headway.workload.generate import Labels
from headway.workload.lengths import Binned, Length, draw_lengths
from headway.workload.spec import Sessions, WorkloadSpec

_ROWS_MAX = 1024  # of a batch: a chain may have a thousand ids of 8 bytes, and is built in several steps
_SAMPLE = 2048  # sessions drawn to know means: 0.05 s for an agent, and within 1.5 %
_BLOCK_MIN, _BLOCK_MAX = 64, 8192  # sessions drawn at once


class Calls(NamedTuple):
    """Calls of some sessions, one array entry per call."""

    session: Ints  # from 0 when drawn
    time_s: Floats  # from the session's start when drawn, then absolute
    place: Ints  # in the session, from 0
    prompt_tokens: Ints
    output_tokens: Ints
    kept_tokens: Ints  # of the output that the next prompt holds
    slo_class: Ints

    def take(self, which: Ints | slice) -> Calls:
        """Return some of the calls."""
        return Calls(**{name: column[which] for name, column in self._asdict().items()})


_NONE = np.zeros(0, np.int64)
_NO_CALLS = Calls(_NONE, np.zeros(0), _NONE, _NONE, _NONE, _NONE, _NONE)


class Means(NamedTuple):
    """What sessions are like, estimated on a fixed sample."""

    prompt_tokens: float  # of a call
    output_tokens: float
    session_s: float  # from first to last call
    session_s_max: float  # that hardly any exceeds


def session_batches(
    spec: WorkloadSpec, requests: int, seed: int, chunk: int, *, folded: bool = False
) -> Iterator[Batch]:
    """Yield the first calls of a spec with sessions in order of arrival, at most `chunk` at a time.

    `folded`: the calls of a session have one chain together, in a hundredth of the time and memory.
    """
    labels, left, first = Labels(spec, seed), requests, 0
    chunk, chained = (chunk, _folded) if folded else (min(chunk, _ROWS_MAX), _chained)
    for calls in _in_time(spec, seed):
        for start in range(0, min(left, len(calls.session)), chunk):
            some = calls.take(slice(start, min(start + chunk, left)))
            yield labels.put(chained(spec, some, _batch(spec, some, first)), some.slo_class)
            first += len(some.session)
        left = requests - first
        if left == 0:
            return


@lru_cache(maxsize=8)
def session_means(prompt: Length | None, output: Length | Binned | None, sessions: Sessions) -> Means:
    """Return what sessions are like on average, from a sample that no seed changes."""
    spec = WorkloadSpec(prompt=prompt, output=output, sessions=sessions)
    calls = _Drawer(spec, 0, "means ").draw(_SAMPLE)
    ends = calls.time_s[np.append(calls.place[1:] == 0, True)]
    return Means(
        prompt_tokens=float(calls.prompt_tokens.mean()),
        output_tokens=float(calls.output_tokens.mean()),
        session_s=float(ends.mean()),
        session_s_max=1.5 * float(ends.max()),
    )


class _Drawer:
    """Draws sessions one after the other from its own streams."""

    def __init__(self, spec: WorkloadSpec, seed: int, prefix: str = "") -> None:
        if spec.sessions is None or spec.prompt is None or spec.output is None:
            raise BadInput("expected sessions with prompt and output lengths")
        self._sessions, self._prompt, self._output = spec.sessions, spec.prompt, spec.output
        names = ("calls", "prompt", "output", "growth", "gaps", "services")
        self._calls, self._prompts, self._outputs, self._growths, self._gaps, self._services = (
            stream(seed, prefix + name) for name in names
        )
        self._labels = Labels(spec, seed, prefix)

    def draw(self, n: int) -> Calls:
        """Return the calls of the next n sessions, session by session, times from each session's start."""
        model = self._sessions
        calls = model.calls.draw(self._calls, n)
        starts = offsets_of(calls)[:-1]
        session = np.repeat(np.arange(n), calls)
        place = np.arange(len(session)) - starts[session]
        later = place > 0
        growth = np.zeros(len(session), np.int64)
        growth[starts] = np.maximum(self._prompt.draw(self._prompts, n), model.system_tokens)
        growth[later] = draw_lengths(model.growth, self._growths, place[later])
        prompt_tokens = _run_sums(growth, starts, session)
        output_tokens = draw_lengths(self._output, self._outputs, prompt_tokens)
        kept = np.append(growth[1:], 0) >= output_tokens
        kept[np.append(~later[1:], True)] = True  # nothing follows a last call: its blocks stay its session's
        waits_ns = np.zeros(len(session), np.int64)  # whole numbers add up the same in any order
        n_later = int(later.sum())
        wait_s = model.gap.draw(self._gaps, n_later) + model.service.draw(self._services, n_later)
        waits_ns[later] = np.rint(wait_s * 1e9)
        return Calls(
            session=session,
            time_s=_run_sums(waits_ns, starts, session) / 1e9,
            place=place,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            kept_tokens=np.where(kept, output_tokens, 0),
            slo_class=self._labels.draw(n)[session],
        )


def _in_time(spec: WorkloadSpec, seed: int) -> Iterator[Calls]:
    """All calls in order of arrival, for ever: a call is given out once no session can start before it."""
    drawer, starts = _Drawer(spec, seed), _Starts(spec, seed)
    waiting, sessions = starts.under_way, 0
    while True:
        calls, start_s = starts.place(drawer.draw(starts.block))
        waiting = _join(waiting, calls._replace(session=2 * (calls.session + sessions)))
        waiting = waiting.take(np.argsort(waiting.time_s, kind="stable"))
        sessions += starts.block
        ready = int(np.searchsorted(waiting.time_s, start_s))
        yield waiting.take(slice(0, ready))
        waiting = waiting.take(slice(ready, None))


class _Starts:
    """When sessions start: in an open loop by its clock, in a closed one when a place becomes free.

    The time of a closed loop is virtual, one call per place and unit: it gives the order, not arrival times.
    `block` sessions are placed at once, as many as are under way, so that sorting costs the same per call at
    any rate.
    """

    def __init__(self, spec: WorkloadSpec, seed: int) -> None:
        arrival = spec.process
        if isinstance(arrival, Replay) or spec.sessions is None:
            raise BadInput("expected sessions with modelled arrivals or a closed loop")
        self._places: list[float] = []
        self._clock: Clock | None = None
        if isinstance(arrival, Closed):
            self._places = [0.0] * arrival.concurrency
            self.block = max(_BLOCK_MIN, arrival.concurrency)
            self.under_way = _NO_CALLS
        else:
            means = session_means(spec.prompt, spec.output, spec.sessions)
            rate = arrival.rate_req_s / spec.sessions.calls.expected_tokens
            self._clock = Clock(at_rate(arrival, rate), seed)
            self.block = int(np.clip(rate * means.session_s, _BLOCK_MIN, _BLOCK_MAX))
            past = Clock(at_rate(arrival, rate), seed, "past arrivals")
            self.under_way = _under_way(_Drawer(spec, seed, "past "), past, self.block, means.session_s_max)

    def place(self, calls: Calls) -> tuple[Calls, float]:
        """Return the calls at their times, and the last start: no call drawn later comes before it."""
        if self._clock is not None:
            starts = self._clock.take(self.block)
            return calls._replace(time_s=starts[calls.session] + calls.time_s), float(starts[-1])
        starts = np.zeros(self.block)
        for session, count in enumerate(np.bincount(calls.session).tolist()):
            starts[session] = heapq.heappop(self._places)
            heapq.heappush(self._places, starts[session] + count)
        return calls._replace(time_s=starts[calls.session] + calls.place), float(starts[-1])


def _under_way(drawer: _Drawer, clock: Clock, block: int, longest_s: float) -> Calls:
    """The calls from time 0 on of sessions that started before it, on a clock that runs backwards."""
    found, sessions, back_s = _NO_CALLS, 0, 0.0
    while back_s < longest_s:
        calls, ages = drawer.draw(block), clock.take(block)
        calls = calls._replace(
            time_s=calls.time_s - ages[calls.session], session=2 * (calls.session + sessions) + 1
        )
        found = _join(found, calls.take(np.flatnonzero(calls.time_s >= 0)))
        sessions, back_s = sessions + block, float(ages[-1])
    return found


def _join(first: Calls, second: Calls) -> Calls:
    after = second._asdict()
    return Calls(**{name: np.concatenate((column, after[name])) for name, column in first._asdict().items()})


def _batch(spec: WorkloadSpec, calls: Calls, first: int) -> Batch:
    """Calls as requests of their session, without chains yet."""
    arrival_s = np.zeros(len(calls.session)) if isinstance(spec.process, Closed) else calls.time_s
    batch = make_batch(arrival_s, calls.prompt_tokens, calls.output_tokens, first)
    return msgspec.structs.replace(batch, session=calls.session)


def _chained(spec: WorkloadSpec, calls: Calls, batch: Batch) -> Batch:
    """The requests with the chain of their session: the system prompt's blocks, then its own."""
    offsets, ids = _chains(spec, calls.session, _blocks(spec, calls))
    return msgspec.structs.replace(batch, hash_offsets=offsets, hashes=ids)


def _folded(spec: WorkloadSpec, calls: Calls, batch: Batch) -> Batch:
    """The same, each chain a beginning of the longest that its session has here."""
    counts = _blocks(spec, calls)
    sessions, place = np.unique(calls.session, return_inverse=True)
    longest = np.zeros_like(sessions)
    np.maximum.at(longest, place, counts)
    offsets, ids = _chains(spec, sessions, longest)
    return msgspec.structs.replace(batch, hash_offsets=offsets[:-1][place], hashes=ids, hash_counts=counts)


def _blocks(spec: WorkloadSpec, calls: Calls) -> Ints:
    assert spec.sessions is not None
    return (calls.prompt_tokens + calls.kept_tokens) // spec.sessions.block_tokens


def _chains(spec: WorkloadSpec, sessions: Ints, blocks: Ints) -> tuple[Ints, Ints]:
    assert spec.sessions is not None
    shared = np.full(len(blocks), spec.sessions.system_tokens // spec.sessions.block_tokens)
    return chains(sessions + 1, blocks, np.zeros_like(blocks), shared)


def _run_sums(values: Ints, starts: Ints, run: Ints) -> Ints:
    """Sums from the start of each run up to each entry."""
    sums = np.cumsum(values)
    return sums - (sums[starts] - values[starts])[run]
