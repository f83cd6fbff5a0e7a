"""Data-parallel ranks that withhold prompts to compute them together, as TensorRT-LLM's balancing does."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
from drive import Case, make_case, plain_table, run_ranks, with_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import EngineSettings, StepTable
from headway.engine.reference import ReferenceRanks, Row
from headway.errors import BadInput

SETTINGS = EngineSettings(max_batched_tokens=256, max_seqs=16)


def second_steps(ranks: int, **changes: int) -> StepTable:
    """Every step takes one second."""
    shared = {"shared_s": np.zeros(256 * ranks + 1), "shared_j": np.zeros(256 * ranks + 1)}
    plain = plain_table(linear_s=0.0, kv_blocks=4_000)
    return msgspec.structs.replace(plain, linear_s=np.ones(257), ranks=ranks, **shared, **changes)


def served(rows: list[Row], table: StepTable) -> dict[str, np.ndarray]:
    columns, _ = run_ranks(Case(table, SETTINGS, 0, "fcfs", copy.deepcopy(rows)))
    return columns


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name, column in one.items():
        np.testing.assert_array_equal(column, other[name], err_msg=name)


@pytest.mark.parametrize(
    ("align_steps", "gather_steps", "admitted_s"),
    [
        (0, 0, [3.0, 6.0]),  # at the next step
        (1, 0, [3.0, 6.0]),
        (4, 0, [4.0, 8.0]),  # steps are counted with and without prompts: every fourth
        (10, 0, [6.0, 6.0]),  # the first waits for the second
        (10, 2, [8.0, 8.0]),  # and both for two steps more
    ],
)
def test_a_prompt_waits_for_one_in_the_other_rank(
    align_steps: int, gather_steps: int, admitted_s: list[float]
) -> None:
    """Both ranks decode from 1 s on; a prompt comes to the first at 2.5 s, one to the second at 5.5 s."""
    rows = [Row(0.0, 4, 30), Row(0.0, 4, 30), Row(2.5, 4, 2), Row(5.5, 4, 2)]
    table = second_steps(2, align_steps=align_steps, gather_steps=gather_steps)
    columns = served(rows, table)
    ReferenceRanks(table, SETTINGS, 0, None).run(rows)
    assert columns["admitted_s"][2:].tolist() == [row.admitted_s for row in rows[2:]] == admitted_s
    assert columns["admitted_s"][:2].tolist() == [0.0, 0.0]


def test_a_rank_with_nothing_else_to_do_ends_the_wait() -> None:
    """The third of four ranks is idle when its prompt comes; the others' go with it, though the last one has none."""
    started = [Row(0.0, 4, 30), Row(0.0, 4, 30), Row(0.0, 4, 1), Row(0.0, 4, 30)]
    rows = [*started, Row(2.5, 4, 2), Row(3.5, 4, 2), Row(5.5, 4, 2)]
    columns = served(rows, second_steps(4, align_steps=100))
    assert columns["admitted_s"].tolist() == [0.0, 0.0, 0.0, 0.0, 6.0, 6.0, 6.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(1, 12), st.integers(0, 5), st.lists(st.floats(0.0, 60.0), max_size=20))
def test_no_prompt_is_withheld_beyond_the_limit(ranks: int, align: int, gather: int, arrivals_s: list[float]) -> None:
    """Where there is room, a prompt waits for less than the limit and then for the steps of gathering."""
    started = [Row(0.0, 4, 200) for _ in range(ranks)]
    rows = [*started, *(Row(at_s, 4, 2) for at_s in sorted(arrivals_s))]
    columns = served(rows, second_steps(ranks, align_steps=align, gather_steps=gather))
    waited_steps = columns["admitted_s"] - np.ceil(columns["arrival_s"])
    assert (waited_steps >= 0).all() and (waited_steps <= align - 1 + gather).all()
    assert (columns["status"] == 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(1, 12), st.integers(2, 50), st.integers(1, 200), st.integers(1, 60))
def test_nothing_changes_while_all_ranks_have_prompts(
    ranks: int, each: int, align: int, prompt: int, output: int
) -> None:
    """Every rank has as many prompts of one length from the start on."""
    rows = [Row(0.0, prompt, output) for _ in range(ranks * each)]
    assert_same(served(rows, second_steps(ranks, align_steps=align)), served(rows, second_steps(ranks)))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.lists(st.tuples(st.floats(0.0, 9.0), st.integers(1, 300)), max_size=20))
def test_nothing_changes_where_nothing_is_decoded(ranks: int, prompts: list[tuple[float, int]]) -> None:
    """As in a pool that only computes prompts."""
    rows = [Row(at_s, tokens, 1) for at_s, tokens in sorted(prompts)]
    held = served(rows, second_steps(ranks, align_steps=50, gather_steps=10))
    assert_same(held, served(rows, second_steps(ranks)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from([2, 9, 50]), st.integers(0, 9))
def test_a_limit_of_one_step_is_none_and_every_request_ends(seed: int, align: int, gather: int) -> None:
    """Random cases: preemptions, shared prefixes, prompts alone; whatever the limits, nobody is lost."""

    def run(**changes: int) -> dict[str, np.ndarray]:
        case = with_ranks(make_case(seed), seed)
        case.table = msgspec.structs.replace(case.table, **changes)
        return run_ranks(case)[0]

    never = run(align_steps=0, gather_steps=0)
    assert_same(run(align_steps=1, gather_steps=0), never)
    held = run(align_steps=align, gather_steps=gather)
    np.testing.assert_array_equal(held["status"], never["status"])
    assert np.isfinite(held["last_token_s"][held["status"] == 0]).all()
    assert set(held["status"].tolist()) <= {0, 2}


@pytest.mark.parametrize("wrong", [{"align_steps": -1}, {"gather_steps": 3}, {"align_steps": 2, "gather_steps": -1}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=r"align_steps|gather_steps"):
        EngineSettings(**wrong)
