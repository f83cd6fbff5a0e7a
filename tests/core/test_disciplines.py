"""How engines differ: prompts computed alone, queues looked at now and then, time spent outside the engine."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from drive import Case, make_case, plain_table, run_core
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import EngineSettings, Replica, StepTable
from headway.engine.reference import Row
from headway.metrics import Result
from headway.sim import Deployment, Pool, simulate
from headway.workload import Workload, WorkloadSpec, parse_arrival, parse_length, workload

STEP_S, TOKEN_S = 0.010, 0.001
SETTINGS = EngineSettings(max_batched_tokens=256, max_seqs=16)


def table(**changes: object) -> StepTable:
    """Decode steps of 10 ms whatever the batch, prompts of 1 ms a token beside them."""
    plain = plain_table(linear_s=STEP_S, token_s=0.0)
    linear_s = STEP_S + TOKEN_S * np.maximum(np.arange(257.0) - 16.0, 0.0)
    return msgspec.structs.replace(plain, linear_s=linear_s, **changes)


def served(rows: list[Row], **changes: object) -> dict[str, np.ndarray]:
    columns, _ = run_core(Case(table(**changes), SETTINGS, 0, "fcfs", rows))
    return columns


def test_a_prompt_alone_stalls_the_decodes() -> None:
    """The first request's second token waits for the other's prompt; mixed, both go in one step."""
    rows = [Row(0.0, 16, 4), Row(0.005, 116, 2)]
    alone, mixed = served(rows, prefill_alone=True), served(rows)
    # 10 ms first prompt; 10 + 100 ms the second one; then three steps of both or one
    np.testing.assert_allclose(alone["first_token_s"], [0.010, 0.120])
    np.testing.assert_allclose(alone["last_token_s"], [0.150, 0.130])
    np.testing.assert_allclose(mixed["first_token_s"], [0.010, 0.121])  # the decode's token counts in the step
    np.testing.assert_allclose(mixed["last_token_s"], [0.141, 0.131])


@pytest.mark.parametrize(("poll_steps", "looks_s"), [(1, 0.060), (4, 0.090), (100, 0.210)])
def test_a_busy_engine_looks_for_requests_now_and_then(poll_steps: int, looks_s: float) -> None:
    """The first decode step ends at 20 ms; after the last of 20 the engine is idle, which ends the wait."""
    columns = served([Row(0.0, 16, 21), Row(0.055, 16, 1)], poll_steps=poll_steps, prefill_alone=True)
    np.testing.assert_allclose(columns["admitted_s"][1], looks_s)


@pytest.mark.parametrize(("ahead", "admitted_s"), [(False, 0.060), (True, 0.070)])
def test_a_step_composed_ahead_leaves_out_who_comes_while_one_runs(ahead: bool, admitted_s: float) -> None:
    """Steps end every 10 ms: who comes at 55 ms misses the step of 60 ms, which is composed already."""
    columns = served([Row(0.0, 16, 21), Row(0.055, 16, 1)], ahead=ahead)
    np.testing.assert_allclose(columns["admitted_s"][1], admitted_s)


def test_an_idle_engine_takes_a_request_at_once_though_it_composes_ahead() -> None:
    """Nothing was composed while it had nothing to do; nor does a request wait for steps that would be empty."""
    columns = served([Row(0.0, 16, 1), Row(0.005, 16, 1), Row(0.5, 16, 1)], ahead=True)
    np.testing.assert_allclose(columns["admitted_s"], [0.0, 0.010, 0.5])


def test_who_waits_is_not_held_up_by_a_newcomer_who_goes_first() -> None:
    """Shortest first, two places, one free at 56 ms: the newcomer of 50 ms is not in the step composed before."""
    rows = [Row(0.0, 16, 40), Row(0.0, 16, 4), Row(0.001, 60, 1), Row(0.050, 20, 1)]
    two_places = msgspec.structs.replace(SETTINGS, max_seqs=2)
    ahead, plain = (run_core(Case(table(ahead=each), two_places, 0, "sjf", rows))[0] for each in (True, False))
    freed_s = ahead["last_token_s"][1]
    assert 0.050 < freed_s == ahead["admitted_s"][2] < ahead["admitted_s"][3]
    assert freed_s == plain["admitted_s"][3] < plain["admitted_s"][2]


def closed_or_open(kind: str, intake_s: float) -> Result:
    spec = WorkloadSpec(arrival=parse_arrival(kind), prompt=parse_length("40"), output=parse_length("8"), requests=60)
    load: Workload = workload(spec) if kind.startswith("closed") else workload(spec, rate=20.0)
    pool = Pool(replica=Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=SETTINGS))
    return simulate(Deployment(pools=(pool,)), load, warmup=0.0, tables=(table(intake_s=intake_s),))


def test_time_outside_the_engine_delays_the_first_token_alone() -> None:
    """Everything else is the same: in a closed loop the next request is sent in time to arrive as the last one ends."""
    for kind in ("poisson", "closed:1", "closed:5"):
        there, away = closed_or_open(kind, 0.0), closed_or_open(kind, 0.25)
        assert there.records is not None and away.records is not None
        np.testing.assert_allclose(away.records.ttft_s, there.records.ttft_s + 0.25, atol=1e-9)
        np.testing.assert_allclose(away.records.tpot_s, there.records.tpot_s, atol=1e-9)
        assert away.duration_s == pytest.approx(there.duration_s + 0.25)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**40))
def test_a_trace_holds_every_step(seed: int) -> None:
    """Steps, tokens and attention summed over the trace are what the engine counted."""
    case = make_case(seed)
    _, engine = run_core(case, trace=True)
    work = engine.work.as_dict()
    rows = np.array(engine.trace or np.zeros((0, 11)), dtype=np.int64).reshape(-1, 11)
    steps, n, ctx, _, _, tokens, chunks, area, window_area, _, _ = rows.T
    assert steps.sum() == work["steps"]
    assert (steps * n).sum() == (np.arange(len(work["steps_by_decodes"])) * work["steps_by_decodes"]).sum()
    assert (n > 0) @ (steps * ctx) + (n * steps * (steps - 1) // 2).sum() == work["ctx_by_decodes"].sum()
    assert tokens.sum() == work["prefill_by_tokens"].sum()
    assert (chunks.sum(), area.sum(), window_area.sum()) == (work["chunks"], work["area"], work["window_area"])
