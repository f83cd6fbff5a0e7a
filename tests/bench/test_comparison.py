"""Comparing two results: equal ones do not differ, shifted ones do, intervals hold the truth as often as they say."""

import msgspec
import numpy as np
import pytest

from headway.metrics import Counters, Records, Slo, summarize
from headway.metrics.comparison import Difference, compare, mean_interval, percentile_interval
from headway.report import comparison_text
from headway.report.compare_text import difference_cells

RNG = np.random.default_rng(1)
N = 400


def result_of(ttft_s, *, tpot_s=0.02, seed=0, workload="w", status=None, slo=None, first_id=0):
    n = len(ttft_s)
    arrival_s = np.arange(n) * 0.1
    status = np.zeros(n, np.int8) if status is None else np.asarray(status, np.int8)
    first_s = np.where(status == 0, arrival_s + ttft_s, np.nan)
    columns = {
        "id": np.arange(n) + first_id, "arrival_s": arrival_s, "first_token_s": first_s,
        "last_token_s": first_s + 10 * tpot_s, "prompt_tokens": np.full(n, 8),
        "output_tokens": np.where(status == 0, 11, 0), "status": status,
    }  # fmt: skip
    ends = np.bincount(status, minlength=4).tolist()
    counters = Counters(
        arrived=n, finished=ends[0], rejected=ends[1], failed=ends[2], unfinished=ends[3], duration_s=n * 0.1 + 1,
        output_tokens=int(columns["output_tokens"].sum()),
    )  # fmt: skip
    return summarize(Records(columns), counters, slo, seed=seed, workload={"name": workload})


def by_figure(comparison):
    return {one.figure: one for one in comparison.differences}


def noisy(n=N, scale=1.0):
    return 0.2 * scale * np.exp(0.5 * RNG.standard_normal(n))


def test_a_result_does_not_differ_from_itself():
    result = result_of(noisy(), slo=Slo(ttft_s=0.3))
    found = compare(result, result)
    assert found.paired and not found.notes
    for one in found.differences:
        assert one.difference == 0.0, one.figure
        if one.low is not None:
            assert one.low == one.high == 0.0 and one.noise is True
    assert {one.figure for one in found.differences if one.low is None} == set()


def test_a_shift_is_seen_through_noise_that_pairs_share():
    base = noisy()
    a, b = result_of(base), result_of(base + 0.005 + 0.001 * RNG.standard_normal(N))
    paired, apart = by_figure(compare(a, b)), by_figure(compare(a, msgspec.structs.replace(b, seed=1)))
    mean = paired["TTFT mean"]
    assert mean.low < 0.005 < mean.high and mean.noise is False and mean.requests == N
    assert paired["TTFT p50"].noise is False
    assert apart["TTFT mean"].noise is True, "5 ms is nothing beside what unpaired requests differ"
    assert apart["TTFT mean"].high - apart["TTFT mean"].low > 10 * (mean.high - mean.low)


def test_the_order_of_the_two_only_turns_the_sign():
    a, b = result_of(noisy(), slo=Slo(ttft_s=0.2)), result_of(noisy(), slo=Slo(ttft_s=0.2))
    forth, back = by_figure(compare(a, b)), by_figure(compare(b, a))
    for figure, one in forth.items():
        assert back[figure].difference == pytest.approx(-one.difference)
        if one.low is not None:
            assert (back[figure].low, back[figure].high) == pytest.approx((-one.high, -one.low))


@pytest.mark.parametrize("dependence", [0.0, 0.7])
def test_intervals_of_means_hold_the_truth_about_as_often_as_they_say(dependence):
    rng, held, times = np.random.default_rng(5), 0, 400
    for _ in range(times):
        noise = rng.standard_normal(N)
        for i in range(1, N):
            noise[i] += dependence * noise[i - 1]
        mean, half = mean_interval(3.0 + noise)
        held += abs(mean - 3.0) <= half
    assert 0.91 <= held / times <= 0.98


@pytest.mark.parametrize("paired", [True, False])
def test_intervals_of_percentiles_hold_the_truth_about_as_often_as_they_say(paired):
    rng, held, times = np.random.default_rng(6), 0, 100
    for _ in range(times):
        a = rng.exponential(1.0, 300)
        b = (a if paired else rng.exponential(1.0, 300)) + 0.2 + 0.05 * rng.standard_normal(300)
        low, high = percentile_interval(a, b, 50.0, paired)
        held += low <= 0.2 <= high
    assert held / times >= 0.88


@pytest.mark.parametrize(("share", "least"), [("p50", 6), ("p90", 36), ("p99", 368)])
def test_a_percentile_of_too_few_requests_has_no_interval(share, least):
    figure = f"TTFT {share}"
    for count in (least - 1, least):
        base = noisy(count)
        few = by_figure(compare(result_of(base), result_of(base + 0.05)))
        assert few[figure].requests == count and few[figure].difference == pytest.approx(0.05)
        assert few[figure].too_few == (count < least)
        assert (few[figure].low is None) == (few[figure].high is None) == (count < least)
        assert few[figure].noise is (None if count < least else False)
        assert few["TTFT mean"].noise is False, "a mean of two pairs has an interval"
        assert difference_cells(few[figure])[-1] == ("too few requests" if count < least else "differs")


def test_unpaired_percentiles_need_enough_requests_on_both_sides():
    many, few = result_of(noisy(300)), result_of(noisy(20) + 5.0, seed=1)
    for a, b in ((many, few), (few, many)):
        found = by_figure(compare(a, b))
        assert not found["TTFT p50"].too_few and found["TTFT p50"].noise is False
        assert found["TTFT p90"].too_few and found["TTFT p90"].requests == 20


@pytest.mark.parametrize(("count", "noise"), [(5, None), (6, False)])
def test_attainment_that_changes_in_all_of_too_few_requests_proves_nothing(count, noise):
    slo = Slo(ttft_s=0.3)
    a, b = result_of(np.full(count, 0.1), slo=slo), result_of(np.full(count, 0.5), slo=slo)
    share = by_figure(compare(a, b))["attainment"]
    assert (share.difference, share.noise, share.too_few) == (-1.0, noise, noise is None)


def test_one_request_is_no_pair_and_says_so():
    found = compare(result_of(noisy(1)), result_of(noisy(1) + 0.1))
    assert not found.paired and "fewer than two requests" in found.unpaired_because
    latencies = [one for one in found.differences if one.figure.startswith(("TTFT", "E2E"))]
    assert len(latencies) == 8 and all(one.too_few and one.noise is None for one in latencies)


def test_requests_that_one_of_them_lost_are_left_out_of_latencies_and_missed_the_slo():
    base, slo = noisy(), Slo(ttft_s=10.0)
    lost = np.where(np.arange(N) % 4 == 0, 2, 0)
    found = by_figure(compare(result_of(base, slo=slo), result_of(base + 0.01, status=lost, slo=slo)))
    assert found["TTFT mean"].requests == N - N // 4
    assert found["TTFT mean"].difference == pytest.approx(0.01)
    assert found["attainment"].difference == pytest.approx(-0.25)
    assert found["attainment"].noise is False


def test_pairs_are_of_one_id_whatever_the_order():
    base = noisy()
    a = result_of(base)
    order = np.random.default_rng(3).permutation(N)
    shuffled = Records({name: column[order] for name, column in a.records.columns.items()})
    found = compare(a, msgspec.structs.replace(a, records=shuffled))
    assert all(one.difference == 0.0 for one in found.differences)
    part = compare(a, result_of(base, first_id=100))
    assert by_figure(part)["TTFT mean"].requests == N - 100
    assert "300 requests are measured in both" in part.notes[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [({"seed": 1}, "seeds"), ({"seed": None}, "seeds"), ({"workload": {}}, "workloads"), ({"records": None}, "rows")],
)
def test_what_cannot_be_paired_says_why(change, why):
    a = result_of(noisy(), slo=Slo(ttft_s=0.3))
    found = compare(a, msgspec.structs.replace(a, **change))
    assert not found.paired and why in found.unpaired_because
    rows = by_figure(found)
    assert (rows["TTFT mean"].low is None) == ("records" in change)
    assert rows["attainment"].low is not None, "a result itself tells how sure its attainment is"


def test_both_are_judged_by_the_limits_asked_for():
    a, b = result_of(noisy(), slo=Slo(ttft_s=0.3)), result_of(noisy(), slo=Slo(ttft_s=0.2))
    assert "different limits" in compare(a, b).notes[0]
    asked = compare(a, b, Slo(ttft_s=0.25))
    assert not asked.notes
    share = by_figure(asked)["attainment"]
    assert share.a == pytest.approx((a.records.ttft_s <= 0.25).mean())
    assert share.b == pytest.approx((b.records.ttft_s <= 0.25).mean())


def test_a_difference_below_the_clients_own_error_is_noise():
    base = noisy()
    a = result_of(base)
    error = {"error": {"ttft_s": {"p50": 0.02, "p99": 0.03}, "itl_s": {}}}
    b = msgspec.structs.replace(result_of(base + 0.01), provenance={"measured": {"client": error}})
    found = by_figure(compare(a, b))
    assert found["TTFT mean"].client_error == 0.02 and found["TTFT mean"].noise is True
    assert found["E2E mean"].noise is False


def test_what_is_left_of_rounding_is_noise():
    base = noisy()
    found = by_figure(compare(result_of(base), result_of(base + 1e-13)))
    assert found["TTFT mean"].noise is True


def test_energy_is_compared_where_both_know_it():
    a = result_of(noisy())
    assert "energy per output token" not in by_figure(compare(a, a))
    drew = msgspec.structs.replace(a, energy=msgspec.structs.replace(a.energy, joules=5.0, joules_per_output_token=2.0))
    assert by_figure(compare(drew, drew))["energy per output token"].difference == 0.0
    assert by_figure(compare(a, drew))["energy per output token"].difference is None


def test_few_requests_have_wide_intervals_and_one_has_none():
    few = by_figure(compare(result_of(np.array([0.1, 0.2])), result_of(np.array([0.2, 0.4]))))
    assert few["TTFT mean"].noise is True
    one = by_figure(compare(result_of(np.array([0.1])), result_of(np.array([0.2]))))
    assert one["TTFT mean"].low is None and one["TTFT mean"].difference == pytest.approx(0.1)


def test_the_table_says_what_differs_and_what_is_noise():
    from rich.console import Console

    base = noisy()
    found = compare(result_of(base), result_of(base + 0.05, tpot_s=0.02))
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(comparison_text(found, ("simulated", "measured")))
    console.file.close()
    said = console.export_text()
    for words in ("simulated", "differs", "inside the noise", "400 requests paired by id", "+50 ms"):
        assert words in said


def test_a_difference_of_rounding_is_shown_as_none():
    between = -1.03e-12
    one = Difference(figure="requests/s", unit="1/s", a=30.0, b=30.0 + between, difference=between, low=between, high=1)
    assert difference_cells(one)[3:5] == ["0 (0%)", "0 to +1"]
    small = Difference(figure="requests/s", unit="1/s", a=30.0, b=29.999, difference=-0.001)
    assert difference_cells(small)[3] == "-0.001 (-0.0%)"


def test_energy_says_how_it_came_about_on_both_sides():
    a = result_of(noisy())

    def drawing(kind):
        return msgspec.structs.replace(
            a, energy=msgspec.structs.replace(a.energy, joules=5.0, joules_per_output_token=2.0, kind=kind)
        )

    fitted, estimated = drawing("fitted"), drawing("estimated")
    both = (fitted, estimated, "fitted / estimated")
    for left, right, said in ((fitted, fitted, "fitted"), both, (a, estimated, "estimated")):
        found = by_figure(compare(left, right))
        assert found["energy per output token"].name == f"energy per output token ({said})"
        assert found["E2E mean"].name == "E2E mean"
