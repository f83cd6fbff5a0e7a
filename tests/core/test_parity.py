"""Laws 7 and 8: leaping equals stepping, and the core equals the reference, to the bit."""

from __future__ import annotations

import numpy as np
from drive import BINS, CASES, make_case, order_of, run_core, run_ranks, run_reference, with_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.engine import Engine, LogCounts
from headway.engine.reference import ReferenceRanks, Row

SEEDS = st.integers(0, 2**40)
REFERENCE_NAMES = {  # of the columns
    "admitted_s": "admitted_s",
    "first_token_s": "first_s",
    "last_token_s": "last_s",
    "cached_tokens": "cached",
    "preemptions": "preemptions",
}


def assert_same_rows(columns: dict[str, np.ndarray], rows: list[Row]) -> None:
    for name, mine in REFERENCE_NAMES.items():
        theirs = np.array([getattr(row, mine) for row in rows], dtype=np.float64)
        np.testing.assert_array_equal(columns[name].astype(np.float64), theirs, err_msg=name)


def assert_same_gaps(engine: Engine, gaps: list[float]) -> None:
    counts = LogCounts(*BINS)
    for gap in gaps:
        counts.add(gap, 1)
    np.testing.assert_array_equal(engine.gaps.as_array(), counts.as_array())


@settings(max_examples=2 * CASES, deadline=None)
@given(SEEDS)
def test_core_equals_reference(seed: int) -> None:
    """Every time, hit, preemption, gap and page count of the reference."""
    case = make_case(seed)
    reference = run_reference(case)
    columns, engine = run_core(case)
    words = {0: "finished", 2: "failed"}
    assert [words[int(s)] for s in columns["status"]] == [row.status for row in case.rows]
    assert_same_rows(columns, case.rows)
    assert engine.kv.peak == reference.peak
    assert engine.work.steps == reference.steps
    assert engine.kv_used_blocks == 0
    assert engine.hit_tokens == reference.hit_tokens
    assert columns["recomputed_tokens"] == sum(row.recomputed for row in case.rows)
    assert_same_gaps(engine, reference.gaps)
    assert np.isclose(engine.gaps.sum_s(engine.law), sum(reference.gaps), rtol=1e-9)


@settings(max_examples=2 * CASES, deadline=None)
@given(SEEDS)
def test_leaping_equals_stepping(seed: int) -> None:
    """The same bits, whether k steps are taken at once or singly."""
    leapt, fast = run_core(make_case(seed))
    stepped, slow = run_core(make_case(seed), leaps=False)
    for name, column in leapt.items():
        np.testing.assert_array_equal(column, stepped[name], err_msg=name)
    assert fast.kv.peak == slow.kv.peak
    assert fast.gaps.sum_s(fast.law) == slow.gaps.sum_s(slow.law)
    np.testing.assert_array_equal(fast.gaps.as_array(), slow.gaps.as_array())
    for name, value in fast.work.as_dict().items():
        np.testing.assert_array_equal(value, slow.work.as_dict()[name], err_msg=name)


@settings(max_examples=2 * CASES, deadline=None)
@given(SEEDS)
def test_ranks_that_step_together_equal_the_reference(seed: int) -> None:
    """Every time, hit, preemption and gap of data-parallel ranks in lock-step."""
    case = with_ranks(make_case(seed), seed)
    reference = ReferenceRanks(case.table, case.settings, case.unit_tokens, order_of(case))
    columns, engines = run_ranks(case)
    reference.run(case.rows)
    assert_same_rows(columns, case.rows)
    assert [engine.kv.peak for engine in engines] == [rank.peak for rank in reference.ranks]
    assert engines[0].work.steps == sum(rank.steps for rank in reference.ranks)
    assert_same_gaps(engines[0], [gap for rank in reference.ranks for gap in rank.gaps])
