"""`summarize`: laws on random runs, parity of the two ways to count, then a run worked by hand."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput
from headway.metrics import Counters, Prices, Records, Result, Slo, Status, Tally, summarize, warmup_requests
from headway.metrics.result import ModelOutcome

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
law = settings(max_examples=60, deadline=None)
LIMITS = st.none() | st.floats(1e-3, 20)
SLOS = st.builds(Slo, ttft_s=LIMITS, tpot_s=LIMITS, itl_s=LIMITS, e2e_s=LIMITS, attainment=st.floats(0.01, 1))
FRACTIONS = st.sampled_from([0.0, 0.05, 0.3, 0.9])


@st.composite
def runs(draw):
    """Records of requests in order of arrival, and the counters that go with them."""
    n = draw(st.integers(0, 25))
    seconds = st.floats(0, 5)

    def column(values):
        return np.array(draw(st.lists(values, min_size=n, max_size=n)), dtype=float)

    arrival = np.cumsum(column(st.just(0.0) | seconds))
    first = arrival + column(seconds)
    status = column(st.sampled_from([*Status, Status.FINISHED, Status.FINISHED])).astype(np.int8)
    done = status == Status.FINISHED
    output = np.where(done, column(st.integers(1, 20)), 0).astype(np.int64)
    last = first + np.where(output > 1, column(seconds), 0.0)
    records = Records(
        {
            "id": np.arange(n),
            "arrival_s": arrival,
            "first_token_s": np.where(done, first, math.nan),
            "last_token_s": np.where(done, last, math.nan),
            "prompt_tokens": np.full(n, 7),
            "output_tokens": output,
            "status": status,
            "slo_class": column(st.integers(0, 2)).astype(np.int64),
        }
    )
    return records, counters_of(records, draw)


def counters_of(records, draw):
    words = {status: int((records["status"] == status).sum()) for status in Status}
    joules = st.floats(0, 1e7)
    counters = Counters(
        arrived=len(records),
        finished=words[Status.FINISHED],
        rejected=words[Status.REJECTED],
        failed=words[Status.FAILED],
        unfinished=words[Status.UNFINISHED],
        prompt_tokens=7 * len(records),
        output_tokens=int(records["output_tokens"].sum()),
        busy_s=[1.0, 2.0],
        kv_peak_blocks=[3, 9],
        kv_total_blocks=[10, 10],
        gpus=draw(st.integers(1, 64)),
        idle_watts=draw(st.floats(0, 500)),
        prefill_joules=draw(joules),
        decode_joules=draw(joules),
        duration_s=float(np.nanmax(np.concatenate([[0.0], records["arrival_s"], records["last_token_s"]]))),
    )
    spread = records["last_token_s"] - records["first_token_s"]
    for gap, count in zip(spread, records["output_tokens"] - 1, strict=True):
        if count > 0:
            counters.itl.add(gap / count, count)
    return counters


def tally_of(records, slo, warmup_fraction):
    """Count a run event by event, as a simulator that keeps no records does."""
    tally, finished, tokens = Tally(), 0, 0
    skipped = warmup_requests(len(records), warmup_fraction)
    good = records.finished & slo.met(records.ttft_s, records.tpot_s, records.e2e_s)
    events = [(records["last_token_s"][i], 0, i) for i in range(len(records)) if records.finished[i]]
    events += [(records["arrival_s"][i], 1, i) for i in range(len(records))]
    for now, kind, i in sorted(events):
        number = int(records["slo_class"][i])
        if kind == 0:
            finished, tokens = finished + 1, tokens + int(records["output_tokens"][i])
            if i >= skipped:
                tally.ttft.add(records.ttft_s[i])
                tally.e2e.add(records.e2e_s[i])
                if records["output_tokens"][i] > 1:
                    tally.tpot.add(records.tpot_s[i])
                tally.attained_by_class[number] = tally.attained_by_class.get(number, 0) + int(good[i])
            continue
        if i == skipped:
            tally.start_s, tally.finished_at_start, tally.finished_tokens_at_start = now, finished, tokens
        if i >= skipped:
            tally.measured_by_class[number] = tally.measured_by_class.get(number, 0) + 1
            tally.end_s, tally.finished_at_end, tally.finished_tokens_at_end = now, finished, tokens
    tally.finished_tokens = tokens
    return tally


@law
@given(runs(), SLOS, FRACTIONS)
def test_json_reads_back_equal_and_holds_no_number_that_is_none(run, slo, fraction):
    result = summarize(*run, slo, Prices(usd_per_gpu_hour=2.0), warmup_fraction=fraction, seed=3)
    text = result.to_json()
    assert "NaN" not in text and "Infinity" not in text
    back = Result.from_json(text)
    assert back.to_json() == text
    assert back == msgspec.structs.replace(result, records=None)
    assert msgspec.json.decode(text) == result.to_mapping()


@law
@given(runs(), FRACTIONS)
def test_percentiles_are_monotone_and_counts_are_of_measured_finished_requests(run, fraction):
    records, counters = run
    result = summarize(records, counters, warmup_fraction=fraction)
    for name in LATENCIES:
        told = getattr(result, name)
        if told.count:
            assert 0 <= told.p50 <= told.p90 <= told.p95 <= told.p99
    measured = result.records["measured"]
    assert result.window.measured == measured.sum() == len(records) - warmup_requests(len(records), fraction)
    assert result.ttft_s.count == result.e2e_s.count == (measured & records.finished).sum()
    assert result.tpot_s.count == (measured & (records["output_tokens"] > 1)).sum()


@law
@given(runs(), SLOS, st.floats(1, 3), FRACTIONS)
def test_attainment_never_falls_when_limits_are_loosened(run, slo, factor, fraction):
    loose = Slo(
        ttft_s=None if slo.ttft_s is None else slo.ttft_s * factor,
        tpot_s=None if slo.tpot_s is None else slo.tpot_s * factor,
        e2e_s=None if slo.e2e_s is None else slo.e2e_s * factor,
    )
    tight, easy = (summarize(*run, each, warmup_fraction=fraction).slo for each in (slo, loose))
    assert tight.measured == easy.measured
    assert tight.attained <= easy.attained
    if tight.measured:
        assert 0 <= tight.attainment_low <= tight.attainment <= tight.attainment_high <= 1
        assert tight.attainment <= easy.attainment


@law
@given(runs(), st.floats(0, 1000), st.floats(1, 3), st.floats(0, 50))
def test_energy_cost_and_carbon_parts_sum_to_totals(run, carbon_g_per_kwh, pue, usd):
    records, counters = run
    prices = Prices(usd_per_gpu_hour=usd, carbon_g_per_kwh=carbon_g_per_kwh, pue=pue)
    result = summarize(records, counters, None, prices)
    energy, tokens = result.energy, counters.output_tokens
    assert energy.joules == pytest.approx(energy.idle_joules + energy.prefill_joules + energy.decode_joules)
    assert energy.idle_joules == pytest.approx(counters.gpus * counters.idle_watts * counters.duration_s)
    assert result.carbon.grams == pytest.approx(energy.joules / 3.6e6 * carbon_g_per_kwh * pue)
    assert result.cost.usd == pytest.approx(usd * counters.gpus * counters.duration_s / 3600)
    if tokens:
        assert energy.joules_per_output_token * tokens == pytest.approx(energy.joules)
        assert result.cost.usd_per_million_output_tokens * tokens / 1e6 == pytest.approx(result.cost.usd)
        assert result.carbon.grams_per_million_output_tokens * tokens / 1e6 == pytest.approx(
            result.carbon.grams
        )
    else:
        assert energy.joules_per_output_token is result.cost.usd_per_million_output_tokens is None


@law
@given(runs(), st.sampled_from(["arrived", "finished", "rejected", "failed", "unfinished", "output_tokens"]))
def test_a_lost_request_or_token_is_found(run, name):
    records, counters = run
    setattr(counters, name, getattr(counters, name) + 1)
    with pytest.raises(ValueError, match="conservation broken"):
        summarize(records, counters)


@law
@given(runs(), SLOS, FRACTIONS)
def test_each_class_is_part_of_the_whole(run, slo, fraction):
    whole = summarize(*run, slo, warmup_fraction=fraction).slo
    by_class = summarize(*run, {0: slo, 1: slo, 2: slo}, warmup_fraction=fraction).slo
    assert by_class.attainment == whole.attainment and by_class.attained == whole.attained
    assert sum(part.measured for part in by_class.by_class.values()) == whole.measured
    if whole.measured:
        assert sum(part.attained for part in by_class.by_class.values()) == whole.attained
        each_met = all(part.met for part in by_class.by_class.values())
        assert by_class.met == (each_met and whole.itl_met is not False)


@law
@given(runs(), SLOS, FRACTIONS)
def test_counting_on_the_fly_agrees_with_records(run, slo, fraction):
    records, counters = run
    exact = summarize(records, counters, slo, warmup_fraction=fraction)
    counters.tally = tally_of(records, slo, fraction)
    told = summarize(None, counters, slo, warmup_fraction=fraction)
    for name in ("window", "requests", "tokens", "throughput", "slo", "kv", "energy", "itl_s"):
        assert getattr(told, name) == getattr(exact, name), name
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        near, right = getattr(told, name), getattr(exact, name)
        assert (near.method, right.method, near.count) == ("histogram", "exact", right.count)
        for part in ("mean", "p50", "p90", "p95", "p99"):
            expected = getattr(right, part)
            allowed = None if expected is None else pytest.approx(expected, rel=0.01, abs=2e-6)
            assert getattr(near, part) == allowed, part
    assert told.meets(slo) == exact.meets(slo)


@law
@given(runs(), SLOS, SLOS)
def test_with_records_any_slo_can_be_asked_about(run, judged, asked):
    result = summarize(*run, judged)
    assert result.meets(judged) == (result.slo.met is True)
    assert result.meets(asked) == summarize(*run, asked).meets(asked)
    assert result.meets({0: asked, 1: judged}) == (summarize(*run, {0: asked, 1: judged}).slo.met is True)


@law
@given(runs(), FRACTIONS)
def test_inputs_stay_as_they_are(run, fraction):
    records, counters = run
    before = {name: values.copy() for name, values in records.columns.items()}
    first = summarize(records, counters, Slo(ttft_s=1.0), warmup_fraction=fraction).to_json()
    assert summarize(records, counters, Slo(ttft_s=1.0), warmup_fraction=fraction).to_json() == first
    for name, values in before.items():
        assert np.array_equal(records[name], values, equal_nan=values.dtype.kind == "f")


# --- a run worked by hand ----------------------------------------------------------------------------------


def by_hand(**columns):
    """Five requests a second apart: ttft .1 .2 .3 .4 and none, 11 or 1 tokens, the last one rejected."""
    nan = math.nan
    records = Records(
        {
            "id": range(5),
            "arrival_s": [0.0, 1.0, 2.0, 3.0, 4.0],
            "first_token_s": [0.1, 1.2, 2.3, 3.4, nan],
            "last_token_s": [0.6, 1.2, 3.3, 4.4, nan],
            "prompt_tokens": [100] * 5,
            "output_tokens": [11, 1, 11, 11, 0],
            "status": [0, 0, 0, 0, Status.REJECTED],
        }
        | columns
    )
    counters = Counters(
        arrived=5,
        finished=4,
        rejected=1,
        prompt_tokens=500,
        cached_tokens=128,
        output_tokens=34,
        preemptions=2,
        recomputed_tokens=40,
        steps=31,
        busy_s=[2.2, 1.1],
        kv_peak_blocks=[30, 80],
        kv_total_blocks=[100, 100],
        prefix_queried_tokens=512,
        prefix_hit_tokens=128,
        gpus=4,
        idle_watts=100.0,
        prefill_joules=140.0,
        decode_joules=100.0,
        duration_s=4.4,
    )
    counters.itl.add([0.05, 0.1], [10, 20])
    return records, counters


def test_every_metric_of_a_run_worked_by_hand():
    prices = Prices(usd_per_gpu_hour=3.0, carbon_g_per_kwh=400.0, pue=1.5)
    result = summarize(*by_hand(), Slo(ttft_s=0.35, tpot_s=0.06), prices, deployment={"name": "two"}, seed=7)
    assert result.window == type(result.window)(
        start_s=0.0, end_s=4.0, rule="arrivals", warmup_fraction=0.0, measured=5
    )
    assert result.throughput.requests_per_s == 3 / 4  # the fourth finishes after the last arrival
    assert result.throughput.output_tokens_per_s == 23 / 4
    assert result.throughput.output_tokens_per_s_per_gpu == 23 / 16
    assert (result.ttft_s.count, result.ttft_s.mean) == (4, pytest.approx(0.25))
    assert result.ttft_s.p50 == pytest.approx(0.25) and result.ttft_s.p90 == pytest.approx(0.37)
    assert (result.tpot_s.count, result.tpot_s.p50) == (3, pytest.approx(0.1))
    assert result.e2e_s.mean == pytest.approx((0.6 + 0.2 + 1.3 + 1.4) / 4)
    assert result.itl_s.mean == pytest.approx(2.5 / 30) and result.itl_s.p99 == pytest.approx(0.1, rel=0.01)
    # Met by the first (tpot .05) and the second (one token); 3 and 4 are too slow per token, 5 was rejected.
    assert (result.slo.attained, result.slo.measured, result.slo.attainment) == (2, 5, 0.4)
    assert result.slo.met is False and result.slo.itl_met is None and result.slo.by_class == {}
    assert (
        result.kv.peak_utilization == 0.8 and result.kv.prefix_hit_rate == 0.25 and result.kv.preemptions == 2
    )
    assert [r.utilization for r in result.replicas] == pytest.approx([0.5, 0.25])
    assert result.energy.idle_joules == pytest.approx(1760) and result.energy.joules == pytest.approx(2000)
    assert result.energy.mean_watts == pytest.approx(2000 / 4.4) and result.energy.kind == "estimated"
    assert result.carbon.grams == pytest.approx(2000 / 3.6e6 * 400 * 1.5)
    assert result.cost.usd_per_hour == 12.0 and result.cost.usd == pytest.approx(12 * 4.4 / 3600)
    assert (result.deployment, result.workload, result.seed, result.steps) == ({"name": "two"}, None, 7, 31)


def test_warm_up_leaves_the_first_arrivals_out_of_latencies_but_not_of_counts():
    result = summarize(*by_hand(), Slo(ttft_s=0.35), warmup_fraction=0.4)
    assert result.records["measured"].tolist() == [False, False, True, True, True]
    assert result.requests.arrived == 5 and result.tokens.output == 34
    assert (result.ttft_s.count, result.ttft_s.mean) == (2, pytest.approx(0.35))
    assert (result.slo.attained, result.slo.measured) == (1, 3)
    assert (result.window.start_s, result.window.end_s) == (2.0, 4.0)
    assert result.throughput.output_tokens_per_s == 11 / 2  # the third only


def test_warm_up_goes_by_arrival_not_by_row():
    records, counters = by_hand()
    backwards = Records({name: values[::-1] for name, values in records.columns.items()})
    result = summarize(backwards, counters, warmup_fraction=0.2)
    assert result.records["measured"].tolist() == [True, True, True, True, False]


def test_a_run_that_is_mostly_drain_is_taken_to_its_end():
    records, counters = by_hand(arrival_s=[0.0, 0.01, 0.02, 0.03, 0.04])
    result = summarize(records, counters)
    assert (result.window.rule, result.window.end_s) == ("run", 4.4)
    assert result.throughput.requests_per_s == pytest.approx(4 / 4.4)
    at_once = summarize(*by_hand(arrival_s=[0.0] * 5))
    assert at_once.window.rule == "run" and at_once.throughput.output_tokens_per_s == pytest.approx(34 / 4.4)


def test_the_itl_limit_is_held_against_the_99th_percentile_of_all_gaps():
    loose = Slo(ttft_s=9.0, attainment=0.5)
    for itl_s, met in ((0.2, True), (0.08, False)):
        outcome = summarize(*by_hand(), msgspec.structs.replace(loose, itl_s=itl_s)).slo
        assert (outcome.itl_met, outcome.met, outcome.attainment) == (met, met, 0.8)


def test_where_classes_have_itl_limits_the_strictest_one_holds():
    slos = {0: Slo(itl_s=0.2, attainment=0.1), 1: Slo(itl_s=0.08, attainment=0.1), 2: Slo(itl_s=0.01)}
    outcome = summarize(*by_hand(slo_class=[0, 0, 1, 1, 0]), slos).slo
    assert [part.met for part in outcome.by_class.values()] == [True, True]
    assert outcome.itl_met is False and outcome.met is False
    assert summarize(*by_hand(slo_class=[0] * 5), slos).slo.met is True  # nobody was in the stricter classes


def test_one_slo_per_class():
    classes = {"slo_class": [0, 0, 1, 1, 2]}
    outcome = summarize(*by_hand(**classes), {0: Slo(ttft_s=0.15, attainment=0.5), 1: Slo(e2e_s=1.35)}).slo
    assert {name: part.attainment for name, part in outcome.by_class.items()} == {
        "0": 0.5,
        "1": 0.5,
        "2": 0.0,
    }
    assert {name: part.met for name, part in outcome.by_class.items()} == {"0": True, "1": False, "2": False}
    assert outcome.attainment == 0.4 and outcome.target is None and outcome.met is False
    shared = summarize(*by_hand(**classes), Slo(ttft_s=9.0, attainment=0.7)).slo
    assert shared.met is True and set(shared.by_class) == {"0", "1", "2"}


def test_without_an_slo_or_requests_what_is_unknown_is_null():
    nothing = summarize(*by_hand()).slo
    assert (nothing.attainment, nothing.met, nothing.target, nothing.measured) == (None, None, None, 5)
    empty = summarize(Records({name: [] for name in by_hand()[0].columns}), Counters(), Slo(ttft_s=1.0))
    assert empty.slo.attainment is empty.slo.met is None and not empty.meets(Slo(ttft_s=1.0))
    assert empty.ttft_s.mean is empty.kv.peak_utilization is empty.throughput.requests_per_s is None
    assert empty.cost.usd is None


def test_without_records_only_the_slo_of_the_run_can_be_asked_about():
    slo = Slo(ttft_s=0.35, tpot_s=0.06)
    stored = Result.from_json(summarize(*by_hand(), slo).to_json())
    assert stored.records is None and not stored.meets(slo)
    assert stored.meets(msgspec.structs.replace(slo, attainment=0.4))
    for other in (Slo(ttft_s=0.5, tpot_s=0.06), {0: slo}):
        with pytest.raises(BadInput, match="kept no records"):
            stored.meets(other)


def test_what_contradicts_a_law_is_refused():
    records, counters = by_hand(first_token_s=[0.1, 1.2, 1.9, 3.4, math.nan])
    with pytest.raises(ValueError, match="arrival <= admitted"):
        summarize(records, counters)
    records, counters = by_hand()
    counters.busy_s.pop()
    with pytest.raises(ValueError, match="one entry per replica"):
        summarize(records, counters)
    with pytest.raises(ValueError, match="need a tally"):
        summarize(None, by_hand()[1])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_a_warm_up_share_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(BadInput, match="warm-up fraction"):
        warmup_requests(10, fraction)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[:-9], "r.json: not JSON"),
        (lambda text: "[1, 2]", "expected a JSON object of the schema 'headway.result/1', came None"),
        (lambda text: text.replace("result/1", "result/9"), "came 'headway.result/9'"),
        (lambda text: text.replace('"gpus": 4', '"gpus": "four"'), "gpus: expected int"),
        (lambda text: text.replace('"steps"', '"stepps"'), "unknown field 'stepps': nearest: steps"),
    ],
)
def test_json_that_is_no_result_is_refused(edit, message):
    with pytest.raises(BadInput, match=message):
        Result.from_json(edit(summarize(*by_hand()).to_json()), "r.json")


def test_numbers_json_lacks_become_null_in_what_is_passed_through():
    passed = {"kv_link": {"latency_s": math.inf}, "pools": ({"count": 2},)}
    result = summarize(*by_hand(), deployment=passed, provenance={"error": math.nan})
    assert result.deployment == {"kv_link": {"latency_s": None}, "pools": [{"count": 2}]}
    assert result.provenance == {"error": None}


def paths(struct, before=""):
    for field in msgspec.structs.fields(struct):
        inner = [t for t in getattr(field.type, "__args__", (field.type,)) if hasattr(t, "__struct_fields__")]
        yield before + field.name
        for each in inner:
            yield from paths(each, f"{before}{field.name}.")


def test_the_schema_page_names_every_field_and_column():
    page = (Path(__file__).parents[1] / "docs" / "result-schema.md").read_text()
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    latency = {f"{name}.{part}" for name in LATENCIES for part in paths(type(summarize(*by_hand()).ttft_s))}
    classes = {path for path in paths(Result) if path.startswith(("slo.by_class.", "slo.limits."))}
    models = {path for path in paths(Result) if path.startswith("by_model.")}
    expected = set(paths(Result)) - latency - classes - models - {"records"}
    assert expected <= rows, sorted(expected - rows)
    assert set(Records({name: [] for name in by_hand()[0].columns}).columns) <= rows
    assert {f"LATENCY.{part.split('.')[1]}" for part in latency} <= rows
    assert {f"by_model.MODEL.{field}" for field in ModelOutcome.__struct_fields__} <= rows
    assert {f"slo.limits.{field}" for field in Slo.__struct_fields__} <= rows
