"""Several workloads side by side, each a class of requests: their streams merged in order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np

from headway.workload.batch import Batch, Ints, join, stream

__all__ = ["merged", "seed_of"]

_AHEAD = 256  # requests of each stream that are drawn at a time, at least


def seed_of(seed: int, name: str) -> int:
    """Return the seed of a class, which depends on its name alone: classes beside it change none of its requests."""
    return int(stream(seed, f"class {name}").integers(1 << 62))


def merged(
    streams: Sequence[Callable[[int], Iterator[Batch]]],
    shares: Sequence[float],
    requests: int,
    chunk: int,
    linked: bool,
) -> Iterator[Batch]:
    """Yield the first requests of all streams in order of arrival, at most `chunk` at a time; class i is stream i.

    Fewer where one of the streams ends: beyond its end its class would be missing.

    Args:
        streams: what gives the requests of each class, at most so many at a time.
        shares: of all requests, by class; they sum to 1.
        requests: of all classes.
        chunk: at least 1.
        linked: whether requests have chains, those without any an empty one.
    """
    ahead = [max(_AHEAD, int(share * min(chunk, requests))) for share in shares]
    sources = [each(rows) for each, rows in zip(streams, ahead, strict=True)]
    held: list[Batch | None] = [None for _ in sources]
    waiting: list[Batch] = []
    done, ready = 0, 0
    while done < requests:
        for place, source in enumerate(sources):
            if held[place] is None:
                batch = next(source, None)
                if batch is None:  # nothing is known beyond the end of this one
                    yield from _cut(waiting, done, min(requests, done + ready), chunk)
                    return
                held[place] = _marked(batch, place, len(sources), linked)
        horizon_s = min(float(batch.arrival_s[-1]) for batch in held if batch is not None)
        parts = []
        for place, batch in enumerate(held):
            assert batch is not None
            known = int(np.searchsorted(batch.arrival_s, horizon_s, side="right"))
            parts.append(batch.rows(0, known))
            held[place] = batch.rows(known, len(batch)) if known < len(batch) else None
        together = join(parts)
        waiting.append(together.take(np.argsort(together.arrival_s, kind="stable")))
        ready += len(together)
        if ready >= chunk or done + ready >= requests:
            stop = min(requests, done + ready)
            yield from _cut(waiting, done, stop, chunk)
            done, ready, waiting = stop, 0, []


def _cut(waiting: list[Batch], first: int, stop: int, chunk: int) -> Iterator[Batch]:
    """The requests that wait, numbered from `first` up to `stop`."""
    if stop == first:
        return
    whole = join(waiting).rows(0, stop - first)
    whole = msgspec.structs.replace(whole, id=np.arange(first, stop))
    for at in range(0, len(whole), chunk):
        yield whole.rows(at, min(at + chunk, len(whole)))


def _marked(batch: Batch, place: int, classes: int, linked: bool) -> Batch:
    """The requests as those of a class, with names of sessions and blocks that no other class has."""
    n = len(batch)
    changed = msgspec.structs.replace(
        batch,
        slo_class=np.full(n, place, np.int32),
        session=np.where(batch.session < 0, batch.session, batch.session * classes + place),
    )
    if not linked:
        return changed
    offsets, hashes = batch.hash_offsets, batch.hashes
    if offsets is None or hashes is None:
        none: Ints = np.zeros(0, np.int64)
        return msgspec.structs.replace(changed, hash_offsets=np.zeros(n + 1, np.int64), hashes=none)
    return msgspec.structs.replace(changed, hashes=hashes * classes + place)
