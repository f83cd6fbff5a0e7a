"""Laws of the arrival models."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput, UnknownName
from headway.workload import WorkloadSpec, parse_arrival, parse_length, workload
from headway.workload.arrivals import (
    Clock,
    Closed,
    Diurnal,
    Gamma,
    Modelled,
    OnOff,
    Poisson,
    Regular,
    Replay,
    at_rate,
)

rates = st.floats(0.1, 1000)
seconds = st.floats(0.5, 1000)
steady = st.one_of(
    st.builds(Poisson, rate_req_s=rates),
    st.builds(Regular, rate_req_s=rates),
    st.builds(Gamma, rate_req_s=rates, cv=st.floats(0.05, 20)),
)
turning = st.one_of(
    st.builds(OnOff, rate_on_req_s=rates, on_s=seconds, off_s=seconds, cv=st.sampled_from([1.0, 2.5])),
    st.builds(Diurnal, rate_req_s=rates, peak_to_trough=st.floats(1, 1e6), period_s=seconds),
)
modelled = steady | turning
seeds = st.integers(0, 2**32)


@given(modelled, seeds)
def test_times_never_fall_and_start_after_zero(arrival: Modelled, seed: int) -> None:
    times = Clock(arrival, seed).take(500)
    assert times[0] >= 0
    assert np.isfinite(times).all()
    assert (np.diff(times) >= 0).all()


@given(modelled, seeds, st.lists(st.integers(0, 200), min_size=1, max_size=6))
def test_cutting_into_runs_changes_nothing(arrival: Modelled, seed: int, runs: list[int]) -> None:
    clock = Clock(arrival, seed)
    cut = np.concatenate([clock.take(n) for n in runs])
    assert cut.tobytes() == Clock(arrival, seed).take(sum(runs)).tobytes()


@given(steady, seeds, rates)
def test_another_rate_scales_the_same_gaps(arrival: Modelled, seed: int, rate: float) -> None:
    before, after = Clock(arrival, seed).take(300), Clock(at_rate(arrival, rate), seed).take(300)
    assert np.allclose(before * arrival.rate_req_s, after * rate, rtol=1e-12)


@given(turning, seeds)
def test_a_higher_rate_keeps_bursts_and_days_and_brings_arrivals_forward(
    arrival: Modelled, seed: int
) -> None:
    faster = at_rate(arrival, 3 * arrival.rate_req_s)
    assert faster.rate_req_s == pytest.approx(3 * arrival.rate_req_s)
    assert (Clock(faster, seed).take(300) <= Clock(arrival, seed).take(300) * (1 + 1e-9)).all()
    for kept in ("on_s", "off_s", "period_s"):
        assert getattr(faster, kept, None) == getattr(arrival, kept, None)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
@settings(max_examples=10)
@given(seed=seeds)
def test_gamma_has_its_rate_and_coefficient_of_variation(cv: float, seed: int) -> None:
    n = 50_000
    gaps = np.diff(Clock(Gamma(rate_req_s=4.0, cv=cv), seed).take(n))
    assert gaps.mean() == pytest.approx(0.25, abs=5 * 0.25 * cv / math.sqrt(n))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.12)


@settings(max_examples=10)
@given(seeds)
def test_poisson_counts_have_the_variance_of_their_mean(seed: int) -> None:
    n = 40_000
    times = Clock(Poisson(rate_req_s=10.0), seed).take(n)
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.mean() == pytest.approx(10, abs=5 * math.sqrt(10 / len(counts)))
    assert counts.var() / counts.mean() == pytest.approx(1, abs=5 * math.sqrt(2 / len(counts)))


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_on_off_has_its_rate_and_its_dispersion(seed: int) -> None:
    """In closed form for Poisson bursts: Fischer and Meier-Hellstern, Performance Evaluation 18, 1993."""
    on_s, off_s, rate_on, window_s = 2.0, 6.0, 20.0, 5.0
    arrival = OnOff(rate_on_req_s=rate_on, on_s=on_s, off_s=off_s)
    n = 400_000
    times = Clock(arrival, seed).take(n)
    assert arrival.rate_req_s == 5.0
    assert n / times[-1] == pytest.approx(5.0, rel=0.08)
    counts = np.bincount((times / window_s).astype(int))[:-1]
    turn = 1 / on_s + 1 / off_s
    share = on_s / (on_s + off_s)
    factor = 1 + np.expm1(-turn * window_s) / (turn * window_s)
    assert counts.var() / counts.mean() == pytest.approx(
        1 + 2 * rate_on * (1 - share) / turn * factor, rel=0.15
    )


def test_on_off_starts_in_either_state_as_often_as_it_is_in_it() -> None:
    arrival = OnOff(rate_on_req_s=1000.0, on_s=10.0, off_s=30.0)
    starts = np.array([Clock(arrival, seed).take(1)[0] for seed in range(400)])
    assert (starts < 0.05).mean() == pytest.approx(0.25, abs=0.09)


@settings(max_examples=5)
@given(seeds)
def test_a_day_has_its_peak_its_trough_and_its_mean(seed: int) -> None:
    day_s, days = 1000.0, 20
    arrival = Diurnal(rate_req_s=50.0, peak_to_trough=5.0, period_s=day_s)
    times = Clock(arrival, seed).take(int(50 * day_s * days))
    assert times[-1] == pytest.approx(day_s * days, rel=0.01)
    phase = times % day_s
    peak = ((phase > 200) & (phase < 300)).sum()  # the sine is at its highest at a quarter of the day
    trough = ((phase > 700) & (phase < 800)).sum()
    swing = (5 - 1) / (5 + 1) * math.sin(0.1 * math.pi) / (0.1 * math.pi)  # a mean over a tenth of the period
    assert peak / trough == pytest.approx((1 + swing) / (1 - swing), rel=0.05)


def test_regular_is_exact() -> None:
    assert (Clock(Regular(rate_req_s=4.0), 0).take(1000) == np.arange(1, 1001) / 4).all()


@pytest.mark.parametrize(
    ("text", "arrival"),
    [
        ("poisson", Poisson()),
        ("Poisson:rate=90req/min", Poisson(rate_req_s=1.5)),
        ("constant:rate=2", Regular(rate_req_s=2.0)),
        ("gamma:cv=3", Gamma(cv=3.0)),
        (
            "onoff:rate_on=20,rate_off=1,on=5s,off=500ms",
            OnOff(rate_on_req_s=20, rate_off_req_s=1, on_s=5, off_s=0.5),
        ),
        ("on-off:rate_on=20,on=5,off=1,cv=2", OnOff(rate_on_req_s=20, on_s=5, off_s=1, cv=2)),
        ("diurnal:peak_to_trough=4,period=24h", Diurnal(peak_to_trough=4, period_s=86400)),
        ("closed:64", Closed(concurrency=64)),
        ("closed:64,think=2s", Closed(concurrency=64, think_s=2.0)),
        ("closed:concurrency=8", Closed(concurrency=8)),
        ("replay:/a/b:c.csv", Replay(path="/a/b:c.csv")),
    ],
)
def test_arrivals_people_write(text: str, arrival: object) -> None:
    assert parse_arrival(text) == arrival


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("poison", "nearest: poisson"),
        ("gamma", "cv"),
        ("gamma:cv=nan", "cv nan"),
        ("gamma:cv=-1", "cv -1"),
        ("gamma:cv=lots", "lots"),
        ("gamma:cvv=3", "nearest: cv"),
        ("poisson:rate=0", "rate_req_s 0"),
        ("poisson:rate=-3", "negative"),
        ("poisson:rate=nan", "nan"),
        ("closed:0", "concurrency 0"),
        ("closed", "concurrency"),
        ("closed:8,think=-1", "negative"),
        ("onoff:rate_on=2,rate_off=3,on=1,off=1", "rate_off_req_s 3"),
        ("onoff:rate_on=2,on=0,off=1", "on_s 0"),
        ("diurnal:peak_to_trough=0.5", "peak_to_trough 0.5"),
        ("diurnal:peak_to_trough=inf", "peak_to_trough inf"),
        ("replay:", "replay"),
    ],
)
def test_wrong_arrivals_are_named(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_arrival(text)
    assert said in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(BadInput, match="rate_req_s"):
        at_rate(Poisson(), rate)
    with pytest.raises(BadInput, match="rate_req_s"):
        Poisson(rate_req_s=rate)


def test_a_closed_loop_has_users_and_no_rate() -> None:
    spec = WorkloadSpec(prompt=parse_length("10"), output=parse_length("10"), requests=100)
    closed = workload(spec, arrival="closed:8,think=2s")
    assert (closed.concurrency, closed.think_s, closed.rate_req_s) == (8, 2.0, None)
    assert not next(closed.batches(0)).arrival_s.any()
    with pytest.raises(BadInput, match="closed loop has no rate"):
        closed.at_rate(3.0)


def test_an_arrival_without_a_rate_takes_over_the_one_there_was() -> None:
    assert workload("chat", arrival="gamma:cv=3").rate_req_s == workload("chat").rate_req_s
    assert workload("chat", arrival="gamma:cv=3,rate=2").rate_req_s == 2.0
    assert workload("chat", arrival="gamma:cv=3,rate=2", rate="9req/s").rate_req_s == 9.0
    assert workload("chat", arrival=Gamma(cv=2.0)).rate_req_s == 1.0
    with pytest.raises(UnknownName):
        workload("chat", arrival="gama:cv=3")
