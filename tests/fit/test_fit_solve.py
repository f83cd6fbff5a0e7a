"""The solver: errors, what is held out, scalars under noise and outliers, tables of ratios."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing_cases import noisy

from fit.solve import basis, errors, evenly, held_out, pool, ratio_table, read_ratio, scalars

axis = st.lists(st.floats(0.1, 1e5), min_size=2, max_size=4, unique_by=lambda v: round(np.log(v), 3)).map(
    sorted
)
places = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=20)


def test_errors_are_relative_to_what_was_measured():
    found = errors(np.array([1.0, 2.0, 2.0, 0.5]), np.array([1.0, 1.0, 4.0, 1.0]))
    assert found == pytest.approx((0.5, 0.5, 0.85, 4))
    assert np.isnan(errors(np.zeros(0), np.zeros(0)).median)


# --- what is held out


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=5, max_size=60), st.randoms())
def test_a_key_is_held_out_whole_and_whatever_the_order(keys, random):
    first, second = np.array(keys, dtype=float).T
    out = held_out(first, second)
    by_key = dict(zip(keys, out, strict=True))
    assert [by_key[key] for key in keys] == list(out)
    assert sum(by_key.values()) == max(1, round(0.2 * len(by_key)))
    order = list(range(len(keys)))
    random.shuffle(order)
    assert list(held_out(first[order], second[order])) == list(out[order])


# --- scalars

TIMES = np.linspace(1.0, 50.0, 400)


def line(numbers, at=slice(None)):
    return numbers[0] + numbers[1] * TIMES[at]


@pytest.mark.parametrize(
    ("spread", "outliers", "within"), [(0.0, 0.0, 1e-3), (0.05, 0.0, 0.02), (0.05, 0.05, 0.06)]
)
def test_scalars_are_found_under_noise_and_outliers(spread, outliers, within):
    seconds = noisy(line((4.0, 0.7)), spread, outliers)
    found = scalars(line, seconds, (1.0, 1.0), ((0.1, 50.0), (0.01, 5.0)))
    assert found == pytest.approx([4.0, 0.7], rel=within)


def test_scalars_stay_within_their_bounds():
    found = scalars(line, line((4.0, 0.7)), (1.0, 1.0), ((0.1, 2.0), (0.01, 5.0)))
    assert found[0] == pytest.approx(2.0, rel=1e-3)


# --- tables of ratios

AXES = ((1.0, 10.0, 100.0), (1.0, 4.0))
RNG = np.random.default_rng(3)
PLACES = tuple(np.exp(RNG.uniform(0.0, np.log(edge[-1]), 20000)) for edge in AXES)


@given(st.lists(axis, min_size=1, max_size=3), st.data())
def test_a_table_is_read_as_a_mean_of_its_nodes(axes, data):
    count = data.draw(st.integers(1, 5))
    at = [np.array(data.draw(st.lists(st.floats(0.01, 1e6), min_size=count, max_size=count))) for _ in axes]
    matrix = basis(axes, at).toarray()
    assert matrix.sum(axis=1) == pytest.approx(np.ones(count))
    assert matrix.min() >= -1e-12


def truth(first, second):
    """Log ratio: linear between nodes, so that a table can hold it."""
    return 0.3 * np.log10(first) - 0.2 * np.log(second) / np.log(4.0)


@pytest.mark.parametrize(
    ("spread", "outliers", "within"), [(0.0, 0.0, 0.01), (0.1, 0.0, 0.03), (0.05, 0.03, 0.03)]
)
def test_a_table_finds_the_ratios_and_leaves_the_fixed_part_alone(spread, outliers, within):
    fixed, scaled = np.full(20000, 2.0), np.full(20000, 5.0)
    seconds = noisy(fixed + scaled * np.exp(truth(*PLACES)), spread, outliers)
    table = ratio_table(AXES, PLACES, fixed, scaled, seconds)
    nodes = tuple(
        np.array(column) for column in zip(*[(a, b) for a in AXES[0] for b in AXES[1]], strict=True)
    )
    assert np.log(read_ratio(table, nodes)) == pytest.approx(truth(*nodes), abs=within)
    beyond = (np.array([1e-6, 1e9]), np.array([1e-6, 1e9]))
    edges = (np.array([1.0, 100.0]), np.array([1.0, 4.0]))
    assert read_ratio(table, beyond) == pytest.approx(read_ratio(table, edges))


def test_rows_that_are_mostly_the_fixed_part_say_little_of_the_ratio():
    fixed = np.repeat([20.0, 0.0], [500, 100])
    seconds = fixed * 1.1 + 1.0
    table = ratio_table(((1.0, 2.0),), (np.ones(600),), fixed, np.ones(600), seconds, ridge=0.1, smooth=0.1)
    assert read_ratio(table, (np.ones(1),)) == pytest.approx([1.0], abs=0.15)


def test_a_corner_without_timings_follows_its_neighbours_and_few_timings_count_little():
    seen = PLACES[0] < 10.0
    at = tuple(column[seen] for column in PLACES)
    seconds = np.full(seen.sum(), 2.0)
    table = ratio_table(AXES, at, np.zeros(len(seconds)), np.ones(len(seconds)), seconds)
    far, near = read_ratio(table, (np.array([100.0, 1.0]), np.array([1.0, 1.0])))
    assert near == pytest.approx(2.0, rel=0.02)
    assert 1.0 < far < near
    few = ratio_table(AXES, tuple(c[:2] for c in at), np.zeros(2), np.ones(2), seconds[:2])
    assert np.all(read_ratio(few, at) < 1.4)


FOUND = ratio_table(AXES, PLACES, np.zeros(20000), np.ones(20000), np.exp(truth(*PLACES)))


@given(places, places)
def test_the_table_read_in_a_simulation_is_the_table_fitted(first, second):
    for value in second:
        at = (np.array(first), np.full(len(first), value))
        assert FOUND.along(first, value) == pytest.approx(read_ratio(FOUND, at), rel=1e-9)


# --- pooling


@given(st.integers(1, 500), st.integers(1, 100))
def test_places_spread_evenly_hold_both_ends_and_no_place_twice(count, most):
    found = evenly(count, most)
    assert len(found) == len(set(found)) <= min(count, most)
    assert found[0] == 0
    assert found[-1] == (count - 1 if min(count, most) > 1 else 0)


class Rows(NamedTuple):
    gpu: str
    engine: str
    of: str
    version: str
    seconds: np.ndarray

    def rows(self, mask):
        return self._replace(seconds=self.seconds[mask])


def test_a_gpu_with_many_timings_does_not_outweigh_one_with_few():
    merged = pool(
        [Rows("h100", "vllm", "bf16", "1", np.full(900, 1.0)), Rows("b200", "x", "", "", np.full(50, 2.0))],
        60,
    )
    assert [merged.gpu, merged.engine, merged.of, merged.version] == ["pooled", "vllm", "bf16", ""]
    assert [(merged.seconds == value).sum() for value in (1.0, 2.0)] == [60, 50]
