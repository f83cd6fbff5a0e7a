"""Laws of the log-spaced histogram: bounded error, merge = concatenation, monotone percentiles."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.metrics import Histogram

law = settings(max_examples=60, deadline=None)
DURATIONS = st.lists(
    st.floats(Histogram.MIN_S, Histogram.MAX_S) | st.floats(0.001, 0.1), min_size=1, max_size=60
)
PERCENTS = st.floats(0, 100)


def counted(seconds):
    histogram = Histogram()
    histogram.add(seconds)
    return histogram


@law
@given(DURATIONS, PERCENTS)
def test_percentile_is_within_one_percent_of_the_exact_one(seconds, percent):
    [told] = counted(seconds).percentiles((percent,))
    assert told == pytest.approx(float(np.percentile(seconds, percent)), rel=0.01)


@law
@given(DURATIONS, PERCENTS)
def test_counts_filled_one_by_one_with_the_published_constants_are_within_one_percent(seconds, percent):
    histogram = Histogram()
    for x in seconds:  # what the compiled core does
        place = int(math.log(x / Histogram.MIN_S) * Histogram.INV_LOG_GROWTH)
        histogram.counts[min(max(place, 0), Histogram.BINS - 1)] += 1
    [told] = histogram.percentiles((percent,))
    assert told == pytest.approx(float(np.percentile(seconds, percent)), rel=0.01)


@law
@given(DURATIONS, DURATIONS)
def test_merge_is_concatenation(first, second):
    merged = counted(first)
    merged.merge(counted(second))
    together = counted(first + second)
    assert np.array_equal(merged.counts, together.counts)
    assert merged.total == pytest.approx(together.total)


@law
@given(DURATIONS, st.lists(PERCENTS, min_size=2, max_size=10))
def test_percentiles_are_monotone(seconds, percents):
    told = counted(seconds).percentiles(tuple(sorted(percents)))
    assert told == sorted(told)


@law
@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(0, 50)), min_size=1, max_size=20))
def test_a_weight_is_that_many_repetitions(pairs):
    seconds, times = zip(*pairs, strict=True)
    weighted = Histogram()
    weighted.add(seconds, times)
    repeated = counted(np.repeat(seconds, times))
    assert np.array_equal(weighted.counts, repeated.counts)
    assert weighted.total == pytest.approx(repeated.total)
    assert weighted.count == sum(times)


def test_mean_is_exact_and_nothing_has_no_mean():
    assert counted([1.0, 2.0, 6.0]).mean == 3.0
    assert Histogram().mean is None
    assert Histogram().percentiles((50.0, 99.0)) == [None, None]


def test_durations_outside_the_range_are_clamped_to_its_ends():
    low, high = counted([0.0, 1e-9]), counted([1e9])
    assert low.counts[0] == 2 and low.percentiles((50.0,))[0] == pytest.approx(Histogram.MIN_S, rel=0.01)
    assert high.counts[-1] == 1 and high.percentiles((50.0,))[0] == pytest.approx(Histogram.MAX_S, rel=0.01)
    assert high.mean == 1e9


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_what_is_no_duration_is_refused(wrong):
    with pytest.raises(ValueError, match="finite durations"):
        counted([1.0, wrong])


@pytest.mark.parametrize("wrong", [np.zeros(3, np.int64), np.zeros(Histogram.BINS)])
def test_counts_of_another_shape_or_type_are_refused(wrong):
    with pytest.raises(ValueError, match="counts must be int64"):
        Histogram(wrong)
