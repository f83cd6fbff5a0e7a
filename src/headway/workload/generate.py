"""How a spec becomes batches: independent requests and those of a trace (sessions: `sessions.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from headway.errors import BadInput
from headway.workload.arrivals import Arrival, Clock, Closed, Replay
from headway.workload.batch import Batch, Floats, Ints, chains, make_batch, stream
from headway.workload.lengths import draw_lengths
from headway.workload.spec import SharedPrefix, WorkloadSpec
from headway.workload.trace import Trace


def independent(
    spec: WorkloadSpec, requests: int, seed: int, chunk: int, arrivals: Callable[[int], Floats]
) -> Iterator[Batch]:
    """Yield the first requests of a spec without sessions, `chunk` at a time."""
    if spec.prompt is None or spec.output is None:
        raise BadInput("expected prompt and output lengths")
    prompts, outputs, labels = stream(seed, "prompt"), stream(seed, "output"), Labels(spec, seed)
    prefixes = Prefixes(spec.shared_prefix, seed) if spec.shared_prefix else None
    for first in range(0, requests, chunk):
        n = min(chunk, requests - first)
        prompt_tokens = spec.prompt.draw(prompts, n)
        output_tokens = draw_lengths(spec.output, outputs, prompt_tokens)
        batch = make_batch(arrivals(n), prompt_tokens, output_tokens, first)
        batch = labels.put(batch, labels.draw(n))
        yield prefixes.put(batch) if prefixes else batch


def traced(
    spec: WorkloadSpec, trace: Batch, seed: int, chunk: int, arrivals: Callable[[int], Floats]
) -> Iterator[Batch]:
    """Yield the requests of a trace in its order, `chunk` at a time."""
    labels = Labels(spec, seed)
    for first in range(0, len(trace), chunk):
        rows = trace.rows(first, min(first + chunk, len(trace)))
        arrival_s = arrivals(len(rows))
        deadline_s = rows.deadline_s + (arrival_s - rows.arrival_s)  # exact where nothing moved
        rows = msgspec.structs.replace(rows, arrival_s=arrival_s, deadline_s=deadline_s)
        yield labels.put(rows, labels.draw(len(rows)))


def arrival_times(arrival: Arrival, seed: int, recorded: Trace | None) -> Callable[[int], Floats]:
    """Return what gives the next n arrival times: a model, a recorded trace, or zeros in a closed loop."""
    if isinstance(arrival, Closed):
        return np.zeros
    if not isinstance(arrival, Replay):
        return Clock(arrival, seed).take
    if recorded is None:
        raise BadInput(f"the trace {arrival.path} is not loaded")
    times, stretch = recorded.arrivals(seed), 1.0
    if arrival.rate_req_s is not None:
        own_req_s = recorded.rate_req_s or (arrival.rate_req_s if len(times) == 1 else None)
        if own_req_s is None:
            raise BadInput(
                f"{arrival.path}: no time passes between its {len(times):,} requests, so its clock cannot be "
                "stretched; another arrival process draws their times, as poisson does"
            )
        stretch = own_req_s / arrival.rate_req_s
    taken = 0

    def take(n: int) -> Floats:
        nonlocal taken
        taken += n
        return times[taken - n : taken] * stretch

    return take


class Labels:
    """Gives requests their class, with its priority, tenant and deadline, and a predicted output length."""

    def __init__(self, spec: WorkloadSpec, seed: int, prefix: str = "") -> None:
        self._classes, self._sigma = spec.classes, spec.prediction_sigma
        self._class_rng, self._predictor_rng = stream(seed, f"{prefix}classes"), stream(seed, "predictor")
        shares = np.cumsum([c.share for c in spec.classes])
        self._below = shares / shares[-1] if len(shares) else shares

    def draw(self, n: int) -> Ints:
        """Return n class numbers."""
        if not self._classes:
            return np.zeros(n, np.int64)
        return np.searchsorted(self._below, self._class_rng.random(n), side="right")

    def put(self, batch: Batch, classes: Ints) -> Batch:
        """Return the batch with what the spec says about classes and prediction."""
        if self._sigma:
            noise = np.exp(self._sigma * self._predictor_rng.standard_normal(len(batch)))
            batch = msgspec.structs.replace(batch, predicted_output_tokens=batch.output_tokens * noise)
        if not self._classes:
            return batch
        deadlines = np.array([np.inf if c.deadline_s is None else c.deadline_s for c in self._classes])
        return msgspec.structs.replace(
            batch,
            slo_class=classes.astype(np.int32),
            priority=np.array([c.priority for c in self._classes], np.int32)[classes],
            tenant=np.array([c.tenant for c in self._classes], np.int32)[classes],
            deadline_s=batch.arrival_s + deadlines[classes],
        )


class Prefixes:
    """Gives independent requests chains that begin with the blocks of their group's common text."""

    def __init__(self, spec: SharedPrefix, seed: int) -> None:
        self._rng, self._block_tokens = stream(seed, "prefix"), spec.block_tokens
        self._common_tokens = spec.tokens.draw(stream(seed, "prefix lengths"), spec.groups)
        weights = np.cumsum(np.arange(1, spec.groups + 1) ** -float(spec.skew))
        self._below = weights / weights[-1]

    def put(self, batch: Batch) -> Batch:
        """Return the batch with a group drawn for each request and its chain."""
        group = np.searchsorted(self._below, self._rng.random(len(batch)), side="right")
        blocks = batch.prompt_tokens // self._block_tokens
        common = self._common_tokens[group] // self._block_tokens
        offsets, ids = chains(2 * batch.id + 1, blocks, 2 * group, common)
        return msgspec.structs.replace(batch, hash_offsets=offsets, hashes=ids)
