"""What a user may ask for: limits, shares, prices, and the ways to get them wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import BadInput
from headway.metrics import Prices, Slo
from headway.metrics.attainment import group_interval, wilson_interval
from headway.specs import from_mapping


def test_limits_are_read_as_people_write_them():
    slo = Slo.parse(ttft="500ms", tpot=0.05, itl="80 ms", e2e="2min", attainment="99%")
    assert slo == Slo(ttft_s=0.5, tpot_s=0.05, itl_s=0.08, e2e_s=120.0, attainment=0.99)
    assert slo.limits() == (0.5, 0.05, 120.0)
    assert Slo().limits() == (math.inf, math.inf, math.inf)
    assert from_mapping(Slo, {"ttft_s": "500ms", "attainment": "0.95"}, "slo") == Slo(
        ttft_s=0.5, attainment=0.95
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ttft": "fast"}, "TTFT limit: time 'fast' is not understood: write 500ms"),
        ({"tpot": "-5ms"}, "TPOT limit: .*negative"),
        ({"e2e": math.nan}, "E2E limit: .*finite"),
        ({"itl": "0s"}, "itl_s 0 is no limit"),
        ({"attainment": "most"}, "attainment 'most' is not understood: write 0.9 or 90%"),
        ({"attainment": 90}, "attainment 90: give a share above 0 and at most 1"),
        ({"attainment": "0%"}, "attainment 0: "),
        ({"attainment": "nan"}, "attainment nan: "),
    ],
)
def test_limits_that_are_none_are_refused(given, message):
    with pytest.raises(BadInput, match=message):
        Slo.parse(**given)


def test_limits_and_prices_of_other_types_are_refused():
    with pytest.raises(BadInput, match=r"slo: ttft_s: expected float \| None, came '500ms'"):
        Slo(ttft_s="500ms")
    with pytest.raises(BadInput, match="prices: pue: expected float, came nothing"):
        Prices(pue=None)


def test_a_spec_file_with_a_wrong_limit_names_the_place():
    with pytest.raises(BadInput, match=r"deployment\.yaml.*ttft_s -1 is no limit"):
        from_mapping(Slo, {"ttft_s": -1}, "deployment.yaml")
    with pytest.raises(BadInput, match=r"unknown field.*ttft_s"):
        from_mapping(Slo, {"ttft": "500ms"}, "deployment.yaml")


def test_a_value_equal_to_the_limit_meets_it_and_an_undefined_tpot_does():
    ttft, tpot, e2e = (
        np.array([0.5, 0.5, 0.6]),
        np.array([0.05, math.nan, math.nan]),
        np.array([1.0, 2.0, 1.0]),
    )
    assert Slo(ttft_s=0.5, tpot_s=0.05).met(ttft, tpot, e2e).tolist() == [True, True, False]
    assert Slo(e2e_s=1.0).met(ttft, tpot, e2e).tolist() == [True, False, True]
    assert Slo().met(ttft, tpot, e2e).all()


@pytest.mark.parametrize(
    "given", [{"usd_per_gpu_hour": -1.0}, {"carbon_g_per_kwh": math.inf}, {"pue": 0.9}, {"pue": math.nan}]
)
def test_prices_that_cannot_be_are_refused(given):
    with pytest.raises(BadInput, match=next(iter(given))):
        Prices(**given)


def test_groups_that_differ_widen_the_interval_and_equal_ones_do_not():
    even = np.full(10, 100)
    assert group_interval(even, np.full(10, 90)) == wilson_interval(900, 1000)
    low, high = group_interval(even, np.array([100, 80] * 5))
    assert (low, high) == pytest.approx((0.9 - 2.262 * 0.1 / math.sqrt(9), 0.9 + 2.262 * 0.1 / math.sqrt(9)))
    assert group_interval(np.array([0, 50]), np.array([0, 40])) == wilson_interval(40, 50)


def test_quantiles_of_students_t_as_scipy_computes_them():
    stats = pytest.importorskip("scipy.stats")
    for groups in range(2, 11):
        measured, good = np.full(groups, 10**6), np.full(groups, 500_000)
        good[0] = 499_000
        spread = stats.t.ppf(0.975, groups - 1) * np.std(good / measured, ddof=1) / math.sqrt(groups)
        low, high = group_interval(measured, good)
        assert (high - low) / 2 == pytest.approx(max(spread, 0.98 / math.sqrt(groups * 10**6)), rel=2e-3)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=10), st.data())
def test_an_interval_holds_the_share_and_is_never_narrower_than_for_independent_requests(sizes, data):
    sizes[0] += 1
    good = [data.draw(st.integers(0, size)) for size in sizes]
    low, high = group_interval(np.array(sizes), np.array(good))
    sure_low, sure_high = wilson_interval(sum(good), sum(sizes))
    assert 0 <= low <= sure_low <= sum(good) / sum(sizes) <= sure_high <= high <= 1


def test_the_interval_of_a_run_covers_the_truth_of_requests_that_queue():
    """M/M/1 at load 0.9: waits by Lindley's recursion; 90 % are shorter than its quantile (D. V. Lindley, 1952)."""
    load, runs = 0.9, 200
    limit = math.log(load / 0.1) / (1 - load)  # P(wait > t) = load exp(-(1 - load) t)
    batched, independent = 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        moves = rng.exponential(1.0, 36_000) - rng.exponential(1 / load, 36_000)
        walk = np.cumsum(moves)
        wait_s = (walk - np.minimum.accumulate(np.minimum(walk, 0)))[4_000:]
        good = (wait_s <= limit).reshape(10, -1).sum(axis=1)
        low, high = group_interval(np.full(10, 3_200), good)
        batched += low <= 0.9 <= high
        low, high = wilson_interval(int(good.sum()), 32_000)
        independent += low <= 0.9 <= high
    assert batched >= 0.85 * runs
    assert independent < 0.5 * runs


def test_wilson_interval_as_published():
    # R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17,
    # 857 (1998), method 3, table I; the last by symmetry with 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)
