"""Goodput by search on the rate: it ends, in few trials, between a rate that is met and one that is missed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.plan.search import search
from headway.plan.trial import Trial, probit


def trial(score):
    share = 0.5 * (1 + math.erf(score / math.sqrt(2)))
    return Trial(share >= 0.9, share, 10**9, 0, 0.0, 0.0, 0.0, 0.0, True)


TARGET = probit(0.9, 10**9)


@given(
    crossing=st.floats(-90, 300), start=st.floats(-120, 300), slope=st.floats(0.01, 2.0), bend=st.floats(0, 1.0),
    told=st.booleans(), width=st.integers(1, 5),
)  # fmt: skip
def test_the_search_ends_between_neighbours_or_so_and_is_not_slow(crossing, start, slope, bend, told, width):
    tried = []

    def curve(k):
        tried.append(k)
        away = crossing - k
        return trial(TARGET + slope * (away if away > 0 else away * (1 + bend)))

    found = search(curve, start, -100, TARGET, told, width)
    assert 1 <= found.high - found.low <= width
    assert found.low - 1e-9 <= crossing <= found.high + 1e-9
    assert found.at == pytest.approx(crossing, abs=1e-3 if not bend else width)
    assert len(tried) == len(set(tried)) <= 32  # 25 in the worst of some 100,000 draws


@given(st.lists(st.booleans(), min_size=60, max_size=60), st.floats(-40, 40), st.booleans())
def test_noise_may_move_the_crossing_but_not_break_the_bracket(met, start, told):
    def curve(k):
        return trial(TARGET + (0.1 if k < -30 or (k < 30 and met[k + 30]) else -0.1))

    found = search(curve, start, -31, TARGET, told)
    assert curve(found.low).met
    assert not curve(found.high).met
    assert found.high == found.low + 1
    assert (found.low >= 0) == curve(0).met


@given(st.floats(4, 200), st.floats(-3.5, 0.5), st.floats(0.1, 1.0), st.sampled_from([1.2, 2.5]))
def test_a_start_that_was_told_takes_few_trials_where_scores_flatten(crossing, off, slope, most):
    """As they do for a large fleet far above its asked rate: nearly all requests are in time, then nearly none."""
    tried = []

    def curve(k):
        tried.append(k)
        return trial(TARGET + min(max(slope * (crossing - k), -most), most))

    found = search(curve, crossing - off, -100, TARGET, told=True)
    assert found.low <= crossing <= found.high
    assert len(tried) <= 7


@given(st.floats(-40, 40))
def test_a_limit_missed_at_every_rate_is_told_from_the_lowest(start):
    found = search(lambda k: trial(TARGET - 1.0), start, -300, TARGET)
    assert (found.low, found.high, found.at) == (None, -300, None)


@given(st.floats(0, 900))
def test_a_limit_met_at_every_rate_gives_a_lower_bound(start):
    found = search(lambda k: trial(TARGET + 1.0), start, -300, TARGET)
    assert (found.low, found.high, found.at) == (400, None, 400.0)
    assert found.last.met


@given(st.floats(1, 300), st.floats(-300, 300), st.sampled_from([-1e-6, 1e-6]), st.booleans())
def test_scores_that_stay_at_the_target_take_few_trials_too(crossing, start, above, told):
    """As where about as many requests are too long for any replica as the SLO lets go."""
    tried = []

    def curve(k):
        tried.append(k)
        return trial(TARGET + above if k < crossing else TARGET - 1.0 - 0.1 * (k - crossing))

    found = search(curve, start, -300, TARGET, told)
    assert (found.low, found.high) == ((math.ceil(crossing) - 1, math.ceil(crossing)) if above > 0 else (None, -300))
    assert len(tried) <= 30
