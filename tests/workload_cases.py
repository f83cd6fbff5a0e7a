"""Workloads of every kind, drawn for tests, and what tests look at."""

import numpy as np
from hypothesis import strategies as st

from headway.workload import (
    Batch,
    RequestClass,
    Sessions,
    SharedPrefix,
    Workload,
    WorkloadSpec,
    parse_arrival,
    parse_length,
)
from headway.workload.arrivals import Closed
from headway.workload.batch import join
from headway.workload.lengths import Binned
from headway.workload.spec import Wait

ARRIVALS = (
    "poisson:rate=5",
    "gamma:cv=3,rate=5",
    "constant:rate=5",
    "onoff:rate_on=20,on=5,off=20",
    "closed:7",
)
LENGTHS = ("40", "exp:700", "uniform:1:300", "lognormal:median=100,sigma=1")
BINNED = Binned(upto=(100, 400), tables=((1, 50, 90), (5, 6, 7), (1, 100, 3000)))

lengths = st.sampled_from(LENGTHS).map(parse_length)
prefixes = st.builds(
    SharedPrefix,
    tokens=lengths,
    groups=st.integers(1, 20),
    skew=st.sampled_from([0.0, 1.0]),
    block_tokens=st.sampled_from([16, 64]),
)
sessions = st.builds(
    Sessions,
    calls=st.sampled_from(["1", "5", "uniform:1:20", "exp:6"]).map(parse_length),
    growth=lengths | st.just(BINNED),
    gap=st.sampled_from([Wait(), Wait(seconds=(0.0, 1.0, 30.0))]),
    service=st.sampled_from([Wait(), Wait(seconds=(0.5, 5.0))]),
    system_tokens=st.sampled_from([0, 100, 640]),
    block_tokens=st.sampled_from([16, 64]),
)
PAIRS = Sessions(calls=parse_length("2"), growth=BINNED)
CLASSES = (
    RequestClass(name="chat", share=3, priority=1, tenant=4),
    RequestClass(name="batch", share=1, priority=2, tenant=9),
)


URGENT = (*CLASSES, RequestClass(name="urgent", share=2, deadline_s=2.7))


@st.composite
def specs(draw: st.DrawFn) -> WorkloadSpec:
    kind = draw(st.sampled_from(["plain", "prefix", "sessions"]))
    arrival = parse_arrival(draw(st.sampled_from(ARRIVALS)))
    return WorkloadSpec(
        arrival=arrival,
        prompt=draw(lengths),
        output=draw(lengths | st.just(BINNED)),
        requests=draw(st.integers(1, 400)),
        shared_prefix=draw(prefixes) if kind == "prefix" else None,
        sessions=draw(sessions) if kind == "sessions" else None,
        classes=draw(st.sampled_from([(), CLASSES if isinstance(arrival, Closed) else URGENT])),
        prediction_sigma=draw(st.sampled_from([0.0, 0.5])),
    )


seeds = st.integers(0, 2**32)


def all_of(made: Workload, seed: int = 0, chunk: int = 65_536, rate: float | None = None) -> Batch:
    return join(list(made.batches(seed, rate, chunk)))


def same_bytes(one: Batch, other: Batch) -> bool:
    for name in one.__struct_fields__:
        left, right = getattr(one, name), getattr(other, name)
        if (left is None) != (right is None):
            return False
        if left is not None and (left.dtype != right.dtype or left.tobytes() != right.tobytes()):
            return False
    return True


def chain(batch: Batch, request: int) -> np.ndarray:
    assert batch.hashes is not None and batch.hash_offsets is not None
    return batch.hashes[batch.hash_offsets[request] : batch.hash_offsets[request + 1]]
