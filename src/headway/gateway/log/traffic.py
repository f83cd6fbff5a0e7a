"""What a decision log says of the traffic: a workload that can be simulated, and the result that was measured."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.errors import BadInput
from headway.gateway.events import Arrival, EndRecord, Left, Refused
from headway.gateway.log.reader import Run
from headway.gateway.predict import OutputLengths
from headway.gateway.prefix import BLOCK_BYTES
from headway.gateway.spec import GatewaySpec
from headway.metrics import Counters, Prices, Records, Result, Slo, Status, summarize
from headway.workload import Batch

BYTES_PER_TOKEN = 4.0  # of a prompt's text, until an engine has counted
OVER_LIMIT = "rate_limit_exceeded"
OUTPUT_UNKNOWN = 256.0  # tokens, where not one request of the log tells


class _Request:
    """What the log says of one request."""

    __slots__ = ("arrival_s", "ended", "facts", "predicted", "record", "refused")

    def __init__(self, arrival_s: float, facts: Arrival, predicted: float) -> None:
        self.arrival_s, self.facts, self.predicted = arrival_s, facts, predicted
        self.record: EndRecord | None = None
        self.refused: Refused | None = None
        self.ended = False

    @property
    def status(self) -> Status:
        """How it ended."""
        record = self.record
        if self.refused is not None:
            return Status.REJECTED
        if record is None:
            return Status.FAILED if self.ended else Status.UNFINISHED
        served = 200 <= record.status < 300 and not record.upstream_failed and not record.caller_left
        return Status.FINISHED if served else Status.FAILED


class Traffic(NamedTuple):
    """Requests of a log, in order of arrival from 0 s on: as a workload has them, and as they were served."""

    batch: Batch
    records: Records
    notes: list[str]
    models: tuple[str, ...] = ()  # the name that requests of each class ask for, where there is a choice


def traffic(run: Run, spec: GatewaySpec, block_tokens: int, several: bool = False) -> Traffic:
    """Return the traffic of a run; chains name blocks of so many tokens.

    With `several` models the gateway's classes stand in `Traffic.models` once for each name that was asked for: the
    class of a request then says both.

    Requests that the tenant's own limits refused are left out, since a simulation has no such limits. The output of a
    request that was not served whole is not known: it is taken as long as it was predicted when it came.

    Raises:
        BadInput: the log holds no request.
    """
    requests, missing, sizes = _collected(run)
    over = sum(1 for one in requests if one.refused is not None and one.refused.code == OVER_LIMIT)
    requests = [one for one in requests if one.refused is None or one.refused.code != OVER_LIMIT]
    if not requests:
        raise BadInput(f"run {run.header.run} of the log holds no requests: nothing to simulate")
    served = [one for one in requests if one.status == Status.FINISHED]
    guessed = len(requests) - len(served)
    known = [float(one.record.output_tokens) for one in served if one.record and one.record.output_tokens]
    mean = float(np.mean(known)) if known else OUTPUT_UNKNOWN
    prompt = np.array([_prompt_tokens(one, sizes) for one in requests], np.int64)
    predicted = np.array([mean if math.isnan(one.predicted) else one.predicted for one in requests])
    output = np.array([_output_tokens(one, guess) for one, guess in zip(requests, predicted, strict=True)], np.int64)
    batch = _batch(requests, spec, prompt, output, predicted)
    names = list(dict.fromkeys(one.facts.model for one in requests)) if several else [""]
    places = np.array([names.index(one.facts.model) if several else 0 for one in requests], np.int32)
    batch = msgspec.structs.replace(batch, slo_class=batch.slo_class + places * len(spec.classes))
    chains = [_chain(one, i, int(prompt[i]), sizes, block_tokens) for i, one in enumerate(requests)]
    offsets = np.concatenate([[0], np.cumsum([len(chain) for chain in chains])]).astype(np.int64)
    batch = msgspec.structs.replace(batch, hash_offsets=offsets, hashes=np.concatenate(chains))
    said = {
        "events are missing from the log": missing,
        "requests over their tenant's limits are left out": over,
        "requests were not served whole: their output is taken as predicted": guessed,
    }
    notes = [f"{count:,} {what}" for what, count in said.items() if count]
    models = tuple(name for name in names for _ in spec.classes) if several else ()
    return Traffic(batch, _records(requests, batch), notes, models)


def measured(seen: Traffic, slo: Slo | dict[int, Slo] | None, gpus: int, prices: Prices, **about: Any) -> Result:
    """Return what was measured, as a result; it has no gaps of tokens.

    `about`: its deployment, workload, seed and provenance, as `summarize` takes them.
    """
    records = seen.records
    ends = np.bincount(records["status"], minlength=len(Status)).tolist()
    last = np.concatenate([records["last_token_s"], records["arrival_s"]])
    counters = Counters(
        arrived=len(records), finished=ends[Status.FINISHED], rejected=ends[Status.REJECTED],
        failed=ends[Status.FAILED], unfinished=ends[Status.UNFINISHED],
        prompt_tokens=int(records["prompt_tokens"].sum()), cached_tokens=int(records["cached_tokens"].sum()),
        output_tokens=int(records["output_tokens"].sum()), prefix_queried_tokens=int(records["prompt_tokens"].sum()),
        prefix_hit_tokens=int(records["cached_tokens"].sum()), gpus=gpus, duration_s=float(np.nanmax(last)),
    )  # fmt: skip
    return summarize(records, counters, slo, prices, **about)


def limits_of(spec: GatewaySpec, models: tuple[str, ...] = ()) -> Slo | dict[int, Slo] | None:
    """The limits of the gateway's classes, as a result is judged by; None where there are none. `models`: of traffic"""
    if all(limit == math.inf for klass in spec.classes for limit in klass.slo.limits()):
        return None
    count = len(spec.classes)
    return spec.classes[0].slo if count == 1 else {i: spec.classes[i % count].slo for i in range(len(models) or count)}


class _Sizes:
    """Bytes of prompts per token by tenant, over a whole log."""

    def __init__(self) -> None:
        self.size_bytes: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()

    def learn(self, facts: Arrival, tokens: int) -> None:
        self.size_bytes[facts.tenant] += facts.prompt_bytes
        self.tokens[facts.tenant] += tokens

    def per_token(self, tenant: int) -> float:
        return self.size_bytes[tenant] / self.tokens[tenant] if self.tokens[tenant] else BYTES_PER_TOKEN


def _collected(run: Run) -> tuple[list[_Request], int, _Sizes]:
    """The requests in order of arrival, with what was predicted of each when it came; events missing; sizes."""
    found: dict[str, _Request] = {}
    lengths, sizes, missing = OutputLengths(), _Sizes(), 0
    for event in run.events():
        missing += event.missing
        if event.what == "arrive" and not any(isinstance(answer, Left) for answer in event.answers):
            facts: Arrival = event.values[0]
            expected = lengths.predict(facts.tenant, facts.max_tokens) if facts.generates else 1.0
            found[facts.id] = _Request(event.now_s, facts, expected)
        elif event.what == "end" and event.values[0] in found:
            found[event.values[0]].ended = True
        elif event.what == "record" and event.values[0].id in found:
            one, record = found[event.values[0].id], event.values[0]
            one.record = record
            if one.status == Status.FINISHED:
                if record.output_tokens and one.facts.generates:
                    lengths.learn(one.facts.tenant, record.output_tokens)
                if record.prompt_tokens:
                    sizes.learn(one.facts, record.prompt_tokens)
        for answer in event.answers:
            if isinstance(answer, Refused) and answer.id in found:
                found[answer.id].refused = answer
    return list(found.values()), missing, sizes


def _prompt_tokens(one: _Request, sizes: _Sizes) -> int:
    counted = one.record.prompt_tokens if one.record is not None else None
    guess = round(one.facts.prompt_bytes / sizes.per_token(one.facts.tenant))
    return max(counted or one.facts.prompt_tokens or guess, 1)


def _output_tokens(one: _Request, predicted: float) -> int:
    counted = one.record.output_tokens if one.record is not None and one.status == Status.FINISHED else None
    return max(counted or round(min(predicted, one.facts.max_tokens or math.inf)), 1)


def _batch(
    requests: list[_Request],
    spec: GatewaySpec,
    prompt: NDArray[np.int64],
    output: NDArray[np.int64],
    predicted: NDArray[np.float64],
) -> Batch:
    first_s = requests[0].arrival_s
    arrival_s = np.array([one.arrival_s - first_s for one in requests])
    classes = [spec.classes[one.facts.slo_class] for one in requests]
    patience_s = [
        min((s for s in (one.facts.deadline_s, klass.deadline_s) if s is not None), default=math.inf)
        for one, klass in zip(requests, classes, strict=True)
    ]
    return Batch(
        id=np.arange(len(requests)),
        arrival_s=arrival_s,
        prompt_tokens=prompt,
        output_tokens=output,
        priority=np.array([klass.priority for klass in classes], np.int32),
        slo_class=np.array([one.facts.slo_class for one in requests], np.int32),
        tenant=np.array([one.facts.tenant for one in requests], np.int32),
        deadline_s=arrival_s + np.array(patience_s),
        predicted_output_tokens=predicted,
        session=np.array([one.facts.session for one in requests], np.int64),
    )


def _chain(one: _Request, place: int, tokens: int, sizes: _Sizes, block_tokens: int) -> NDArray[np.int64]:
    """Ids of the prompt's full blocks of tokens, from hashes of its blocks of bytes.

    A block of tokens is the same in two prompts of a tenant where the bytes up to its end are, at the tenant's mean
    bytes per token. What the hashes do not cover is the request's own.
    """
    count = tokens // block_tokens
    places = np.arange(count, dtype=np.uint64)
    size_bytes = block_tokens * sizes.per_token(one.facts.tenant)
    ends = np.ceil(np.arange(1, count + 1) * size_bytes / BLOCK_BYTES).astype(np.int64)
    hashes = np.array(one.facts.chain, np.uint64)
    known = ends <= len(hashes)
    names = np.full(count, place, np.uint64)
    names[known] = hashes[ends[known] - 1]
    own = np.where(known, np.uint64(0), np.uint64(1))
    mixed = (names + own) * np.uint64(0x9E3779B97F4A7C15) + places * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(1)).astype(np.int64)


def _records(requests: list[_Request], batch: Batch) -> Records:
    """Rows of what was measured; an answer that was not streamed came to its caller all at its end."""
    status = np.array([one.status for one in requests], np.int8)
    finished = status == Status.FINISHED
    seen = [one.record for one in requests]
    lasts = np.array([math.nan if one is None else one.duration_s for one in seen])
    firsts = np.array([math.nan if one is None or one.first_s is None else one.first_s for one in seen])
    firsts = np.minimum(np.where(np.isnan(firsts), lasts, np.maximum(firsts, 0.0)), lasts)
    tokens = np.array([0 if one is None else one.output_tokens or 0 for one in seen], np.int64)
    cached = np.array([0 if one is None else one.cached_tokens or 0 for one in seen], np.int64)
    replica = np.array([0 if one is None else one.replica or 0 for one in seen], np.int32)
    return Records({
        "id": batch.id, "arrival_s": batch.arrival_s, "prompt_tokens": batch.prompt_tokens,
        "first_token_s": np.where(finished, batch.arrival_s + firsts, np.nan),
        "last_token_s": np.where(finished, batch.arrival_s + lasts, np.nan),
        "output_tokens": np.where(finished, np.maximum(tokens, 1), tokens),
        "cached_tokens": np.minimum(cached, batch.prompt_tokens), "replica": replica, "status": status,
        "slo_class": batch.slo_class, "tenant": batch.tenant,
    })  # fmt: skip
