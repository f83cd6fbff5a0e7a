"""What is made of a log's traffic: who arrived, how long it was, what prompts share, how it was served."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_cases import arrival, fill, writer

from headway.errors import BadInput
from headway.gateway import GatewaySpec, SloClass, Tenant
from headway.gateway.events import EndRecord, Left, Refused, Routed
from headway.gateway.log.reader import Run, runs
from headway.gateway.log.traffic import Traffic, _chain, _Request, _Sizes, limits_of, measured, traffic
from headway.gateway.prefix import chain_of
from headway.metrics import Prices, Slo, Status
from headway.workload import workload, write
from headway.workload.files import Header, write_batches

SPEC = GatewaySpec(
    upstreams=("127.0.0.1:1",),
    tenants=(Tenant(name="a"), Tenant(name="b")),
    classes=(SloClass(name="chat", slo=Slo(ttft_s=0.2)), SloClass(name="batch", priority=5, deadline_s=60.0)),
)


def record(i: int, **figures: Any) -> EndRecord:
    given = {"status": 200, "replica": 0, "attempts": 1, "sent_s": 0.0, "first_s": 0.1, "duration_s": 1.0}
    return EndRecord(id=f"r{i}", **(given | {"prompt_tokens": 100, "output_tokens": 10} | figures))


def logged(folder: Path, *events: tuple[float, str, tuple[Any, ...], tuple[Any, ...]]) -> Run:
    log = writer(folder)
    for now, what, values, answers in events:
        log.put(now, what, values, answers)
    assert log.flush()
    (run,) = runs(folder)
    return run


def lived(i: int, at_s: float, **figures: Any) -> list[Any]:
    """A request that was served."""
    facts = figures.pop("facts", {})
    return [
        (at_s, "arrive", (arrival(i, **facts),), (Routed(f"r{i}", (0,), ""),)),
        (at_s + 1, "end", (f"r{i}",), ()),
        (at_s + 1, "record", (record(i, **figures),), ()),
    ]


def test_a_request_is_what_the_engine_counted_and_came_when_it_came(tmp_path):
    facts = {"tenant": 1, "slo_class": 1, "deadline_s": 5.0, "prompt_bytes": 999}
    run = logged(
        tmp_path, *lived(0, 7.0), *lived(1, 9.5, facts=facts, prompt_tokens=300, output_tokens=7, cached_tokens=64)
    )
    seen = traffic(run, SPEC, 64)
    batch, rows = seen.batch, seen.records
    assert batch.arrival_s.tolist() == [0.0, 2.5]
    assert batch.prompt_tokens.tolist() == [100, 300] and batch.output_tokens.tolist() == [10, 7]
    assert batch.deadline_s.tolist() == [math.inf, 7.5] and batch.priority.tolist() == [0, 5]
    assert batch.tenant.tolist() == [0, 1] and batch.slo_class.tolist() == [0, 1]
    assert np.diff(batch.hash_offsets).tolist() == [1, 4]
    assert rows["cached_tokens"].tolist() == [0, 64]
    assert rows.ttft_s.tolist() == pytest.approx([0.1, 0.1]) and rows.e2e_s.tolist() == [1.0, 1.0]
    assert not seen.notes


def test_how_a_request_ended_is_told_and_what_is_not_known_is_said(tmp_path):
    full, late = Refused("r2", 429, "queue_full", "", 1.0), Refused("r3", 429, "rate_limit_exceeded", "", 1.0)
    run = logged(
        tmp_path,
        *lived(0, 0.0, output_tokens=50, facts={"max_tokens": 80}),
        *lived(1, 2.0, status=502, output_tokens=3, facts={"max_tokens": 20}),
        (3.0, "arrive", (arrival(2),), (full,)),
        (3.0, "arrive", (arrival(3),), (late,)),
        (4.0, "arrive", (arrival(4),), (Left("r4"),)),
        (5.0, "arrive", (arrival(5),), (Routed("r5", (0,), ""),)),
        (6.0, "arrive", (arrival(6),), (Routed("r6", (0,), ""),)),
        (7.0, "end", ("r6",), ()),
        *lived(7, 8.0, first_s=None, caller_left=True),
        *lived(8, 9.0, first_s=None, duration_s=2.0),
    )
    seen = traffic(run, SPEC, 64)
    words = [Status(code).name for code in seen.records["status"]]
    assert words == ["FINISHED", "FAILED", "REJECTED", "UNFINISHED", "FAILED", "FAILED", "FINISHED"]
    assert seen.batch.output_tokens.tolist() == [50, 20, 50, 50, 50, 50, 10], "as was predicted, where it is not known"
    assert seen.records.ttft_s[-1] == seen.records.e2e_s[-1] == 2.0, "an answer in one piece"
    assert len(seen.notes) == 2 and "1 requests over their tenant's limits" in seen.notes[0]
    assert seen.notes[1].startswith("5 requests were not served whole")
    result = measured(seen, limits_of(SPEC), 2, Prices(), seed=0)
    assert (result.requests.arrived, result.requests.finished, result.requests.rejected) == (7, 2, 1)
    assert result.slo.attainment == pytest.approx(1 / 7), "of all that arrived"


def test_a_log_without_requests_is_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no requests"):
        traffic(logged(tmp_path, (0.0, "tick", (), ())), SPEC, 64)


def test_events_that_are_missing_are_told(tmp_path):
    log = writer(tmp_path)
    fill(log, 0, 2)
    log.serial += 5
    fill(log, 2, 2)
    log.flush()
    (run,) = runs(tmp_path)
    assert traffic(run, SPEC, 64).notes[0] == "5 events are missing from the log"


def test_limits_are_those_of_the_classes():
    assert limits_of(GatewaySpec(upstreams=("h:1",))) is None
    one = GatewaySpec(upstreams=("h:1",), classes=SPEC.classes[:1])
    assert limits_of(one) == Slo(ttft_s=0.2)
    assert limits_of(SPEC) == {0: Slo(ttft_s=0.2), 1: Slo()}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 5000), st.integers(0, 3000), st.integers(0, 3000), st.floats(1.0, 9.0), st.sampled_from([64, 128])
)
def test_blocks_are_shared_where_the_bytes_are_and_not_beyond(common, one, other, per_token, block):
    """Equal ids are equal bytes; nothing that both hold in whole hashed blocks is missed; tenants share nothing."""
    sizes = _Sizes()
    for tenant in (0, 1):
        sizes.size_bytes[tenant], sizes.tokens[tenant] = int(per_token * 1_000_000), 1_000_000

    def ids(place: int, text: bytes, tenant: int) -> list[int]:
        facts = arrival(place, tenant=tenant, prompt_bytes=len(text), chain=chain_of(text, "ab"[tenant]))
        tokens = max(round(len(text) / sizes.per_token(tenant)), 1)
        return _chain(_Request(0.0, facts, 1.0), place, tokens, sizes, block).tolist()

    same = bytes(i % 251 for i in range(common))
    first, second = same + b"x" * one, same + b"y" * other
    a, b, c = ids(1, first, 0), ids(2, second, 0), ids(3, first, 1)
    assert len(set(a)) == len(a) and not set(a) & set(c)
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert not set(a[shared:]) & set(b), "equal ids name a prefix"
    size_bytes = block * sizes.per_token(0)
    if one and other:
        assert shared * size_bytes <= common + 1
    assert shared >= min(common // 256 * 256 / size_bytes - 1, len(a), len(b)) - 1


def test_of_several_models_a_class_says_what_was_asked_for_too(tmp_path):
    asked = [(0, "small"), (1, "auto"), (1, "small"), (0, "small")]
    events = [lived(i, float(i), facts={"slo_class": c, "model": name}) for i, (c, name) in enumerate(asked)]
    run = logged(tmp_path, *[each for one in events for each in one])
    seen = traffic(run, SPEC, 64, several=True)
    assert seen.models == ("small", "small", "auto", "auto")
    assert [seen.models[c] for c in seen.batch.slo_class] == [name for _, name in asked]
    limits = limits_of(SPEC, seen.models)
    assert [limits[c] for c in seen.batch.slo_class] == [SPEC.classes[c].slo for c, _ in asked]
    path = tmp_path / "traffic.jsonl.gz"
    write_batches([seen.batch], path, Header(block_tokens=64, models=seen.models))
    read = workload(path)
    assert read.models == seen.models and read.at_rate(3.0).models == seen.models
    write(read, tmp_path / "again.parquet")
    assert workload(tmp_path / "again.parquet").models == seen.models
    assert traffic(run, SPEC, 64).batch.slo_class.tolist() == [0, 1, 1, 0]


def test_ids_are_those_of_a_batch(tmp_path):
    seen: Traffic = traffic(logged(tmp_path, *lived(0, 0.0, facts={"chain": (2**64 - 1,)})), SPEC, 64)
    assert seen.batch.hashes is not None and seen.batch.hashes.dtype == np.int64 and (seen.batch.hashes >= 0).all()
