"""A day's replicas: the fewest that do, by brute force; sums add up; a trace and a curve mean what they say."""

import csv
import io
import json
import pickle
import re
from itertools import product

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_cases import refused, run
from headway.cost import Replica
from headway.errors import BadInput
from headway.metrics import Prices, Slo
from headway.plan import capacity
from headway.plan.day import Slot, _message
from headway.plan.sizes import apart, fewest
from headway.plan.slots import parts_of
from headway.plan.space import resized
from headway.report.capacity_text import _sums, capacity_html, capacity_text
from headway.sim import Deployment, Policies, Pool, simulate
from headway.workload import RequestClass, WorkloadSpec, parse_arrival, parse_length, workload, write
from report_cases import plan, shown

SLO = Slo(ttft_s=0.5, tpot_s=0.05, attainment=0.95)
REPLICA = Replica(model="llama-3.2-1b", gpu="l4")
LENGTHS = {"prompt": parse_length("exp:200"), "output": parse_length("exp:20")}
CURVE = [4, 0, 200, 90]
ONE = Deployment(pools=(Pool(replica=REPLICA),))


def lengths(arrival="poisson", rate=10.0, **changes):
    return workload(WorkloadSpec(name="w", arrival=parse_arrival(arrival), **LENGTHS, **changes), rate=rate)


# --- the search ---


@pytest.mark.parametrize("most", [1, 2, 7, 16])
def test_the_fewest_are_found_from_wherever_the_search_starts(most):
    for least in range(1, most + 2):
        for start in range(1, most + 1):
            tried = []

            def met(copies, least=least, tried=tried):
                tried.append(copies)
                assert 1 <= copies <= most
                return copies >= least

            assert fewest(met, start, most) == (least if least <= most else 0)
            assert len(set(tried)) <= 2 * np.log2(most) + 3


# --- a curve ---


@pytest.fixture(scope="module")
def found():
    return capacity(ONE, lengths(), SLO, curve=CURVE, workers=1)


def test_each_slot_takes_the_fewest_that_brute_force_finds(found):
    for slot, part in zip(found.slots, parts_of(lengths(), [SLO], CURVE, None, 0), strict=True):
        if not slot.rate_req_s:
            assert slot.replicas == 1 and slot.attainment is None
            continue
        shares = [
            simulate(Deployment(pools=(Pool(count=n, replica=REPLICA),)), part.workload, slo=SLO, records=False).slo
            for n in range(1, slot.replicas + 1)
        ]
        assert [share.met for share in shares] == [False] * (slot.replicas - 1) + [True]
        assert shares[-1].attainment == slot.attainment


def test_more_requests_take_no_fewer_replicas(found):
    ordered = sorted(found.slots, key=lambda slot: slot.rate_req_s)
    counts = [slot.replicas for slot in ordered]
    assert counts == sorted(counts) and counts[-1] > counts[0]


def test_sums_are_those_of_the_slots_and_the_peaks_is_never_less(found):
    hours = [(slot.end_s - slot.start_s) / 3600 for slot in found.slots]
    assert sum(hours) == pytest.approx(24)
    assert found.gpu_hours == pytest.approx(sum(s.gpus * h for s, h in zip(found.slots, hours, strict=True)))
    assert found.static_gpu_hours == pytest.approx(found.peak_replicas * 24)
    assert found.kwh == pytest.approx(sum(s.mean_watts * h for s, h in zip(found.slots, hours, strict=True)) / 1000)
    assert found.usd / found.gpu_hours == pytest.approx(found.static_usd / found.static_gpu_hours)
    assert found.gpu_hours < found.static_gpu_hours and found.kwh < found.static_kwh
    peak = max(found.slots, key=lambda slot: slot.replicas)
    assert peak.mean_watts == peak.static_mean_watts


def test_watts_say_how_they_came_about(found):
    assert found.energy_kind == "estimated"
    assert all(said in shown(capacity_text(found)) for said in ("power, est.", "energy, est."))
    h100 = Deployment(pools=(Pool(replica=Replica(model="llama-3.2-1b", gpu="h100-sxm")),))
    fitted = capacity(h100, lengths(), SLO, curve=[2, 4], workers=1)
    assert fitted.energy_kind == "fitted"
    assert all(said in shown(capacity_text(fitted)) for said in ("power, fitted", "energy, fitted"))


def test_the_peak_takes_more_where_steps_are_longer(found):
    fast, slow = found.peak_by_model
    assert fast <= found.peak_replicas <= slow and fast < slow


def test_the_answer_does_not_depend_on_the_number_of_processes(found):
    assert capacity(ONE, lengths(), SLO, curve=CURVE, workers=2).to_json() == found.to_json()


@given(st.data())
def test_two_pools_take_the_cheapest_pair_that_brute_force_finds(data):
    """Over every set of pairs to which more of either may be added, and any two prices."""
    ends = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=9).map(lambda each: sorted(each, reverse=True)))
    least = {n + 1: end for n, end in enumerate(ends)}  # of the second beside n of the first; none beside fewer
    first = data.draw(st.integers(1, 3)) - 1
    prices = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))

    def met(counts):
        assert min(counts) >= 1
        return counts[0] > first and counts[1] >= least[min(counts[0], len(ends))]

    start = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)).filter(met))
    found = apart(met, start, prices, [(0, 1)])
    every = [pair for pair in product(range(1, 30), repeat=2) if met(pair)]
    cost = {pair: sum(a * b for a, b in zip(pair, prices, strict=True)) for pair in every}
    assert met(found) and cost[found] == min(cost.values())


def test_pools_of_different_models_are_sized_each_by_itself():
    least = (3, 1, 5)
    groups = [(0,), (1,), (2,)]
    found = apart(lambda n: all(a >= b for a, b in zip(n, least, strict=True)), (10, 10, 10), (1, 1, 1), groups)
    assert found == least
    assert apart(lambda n: n[0] >= 3, (4, 8, 2), (1, 1, 1), [(0, 1, 2)]) == (4, 8, 2)


def test_pools_that_more_of_the_other_spoil_are_sized_by_numbers_that_there_are():
    """As where prompts share a cache: plenty of the one pool does not do beside any of the other."""
    tried = []

    def met(counts):
        tried.append(counts)
        return counts[0] >= 2 and 2 <= counts[1] <= 4

    found = apart(met, (4, 4), (1, 1), [(0, 1)])
    assert min(map(min, tried)) == 1
    assert met(found) and sum(found) < 8


def test_prefill_and_decode_are_sized_apart_as_brute_force_does():
    pools = (Pool(role="prefill", count=2, replica=REPLICA), Pool(role="decode", count=4, replica=REPLICA))
    made, unit = lengths(), Deployment(pools=pools)
    found = capacity(unit, made, SLO, curve=[5, 100], workers=1)
    for slot, part in zip(found.slots, parts_of(made, [SLO], [5, 100], None, 0), strict=True):
        good = [
            sum(pair)
            for pair in product(range(1, 7), repeat=2)
            if simulate(resized(unit, list(pair)), part.workload, slo=SLO, records=False, warmup=0.05).slo.met
        ]
        assert slot.replicas == sum(slot.pools) == min(good)
    assert found.slots[0].pools == (1, 1)
    assert found.peak_pools == tuple(map(max, *(slot.pools for slot in found.slots)))
    assert found.static_gpu_hours == 24 * sum(found.peak_pools)


def test_classes_and_models_are_sized_by_the_limits_of_each():
    classes = tuple(
        RequestClass(name=name, workload=lengths().spec, rate_req_s=rate, model=serves)
        for name, rate, serves in (("often", 9.0, "a"), ("seldom", 1.0, "b"))
    )
    made = workload(WorkloadSpec(name="both", classes=classes))
    unit = Deployment(pools=tuple(Pool(serves=serves, replica=REPLICA) for serves in "ab"))
    found = capacity(unit, made, {0: SLO, 1: msgspec.structs.replace(SLO, attainment=0.99)}, curve=[20, 200], workers=1)
    assert found.slots[0].pools == (1, 1)
    assert found.slots[1].pools[0] > found.slots[1].pools[1] == 1
    assert list(found.slos) == ["often", "seldom"] and found.slots[1].slo_class in found.slos
    alone = capacity(Deployment(pools=unit.pools[:1]), made.part(0), SLO, curve=[180], workers=1)
    assert abs(alone.peak_replicas - found.slots[1].pools[0]) <= 1  # fewer of its requests are in a run of both


def test_of_classes_one_limit_is_enough_and_the_class_that_is_not_served_is_named(monkeypatch):
    monkeypatch.setattr("headway.plan.day.REPLICAS_MAX", 4)
    classes = tuple(RequestClass(name=name, workload=lengths().spec, rate_req_s=5.0) for name in ("free", "bound"))
    made = workload(WorkloadSpec(name="both", classes=classes))
    assert capacity(ONE, made, {0: Slo(), 1: SLO}, curve=[4], workers=1).feasible
    found = capacity(ONE, made, {0: SLO, 1: Slo(ttft_s=1e-4, attainment=0.99)}, curve=[4], workers=1)
    assert (found.slots[0].slo_class, found.slots[0].target) == ("bound", 0.99)
    assert "attainment of bound below 99.0%" in found.message and found.slots[0].misses in found.message


def test_dollars_are_those_of_each_kind_of_gpu_whatever_the_mixture():
    other = msgspec.structs.replace(REPLICA, gpu="l40s")
    pools = (Pool(role="prefill", replica=REPLICA), Pool(role="decode", count=3, replica=other))
    unit = Deployment(pools=pools, prices=Prices(usd_per_gpu_hour=1.5))
    found = capacity(unit, lengths(), SLO, curve=[5], usd_per_gpu_hour={REPLICA.gpu: 3.0, "l40s": 1.0}, workers=1)
    prefill, decode = found.peak_pools
    assert found.slots[0].usd_per_hour == 3 * prefill + decode != 1.5 * (prefill + decode)
    assert found.usd == found.static_usd == 24 * (3 * prefill + decode)


def test_replicas_that_only_change_places_are_no_range():
    known = {"rate_req_s": 4.0, "gpus": 3, "target": 0.9, "usd_per_hour": None, "mean_watts": None}
    told = dict.fromkeys(("attainment", "attainment_low", "attainment_high"), 1.0)
    slots = [
        Slot(start_s=0.0, end_s=3600.0, replicas=3, pools=pools, **known, **told) for pools in ((1, 2), (2, 1))
    ]
    assert _message(ONE, slots, 72.0, 96.0).startswith("3 replicas over the day: 72.0 GPU-hours")


def test_a_flat_day_saves_nothing_and_an_empty_slot_keeps_one(found):
    flat = capacity(ONE, lengths(), SLO, curve=[4, 5], workers=1).message
    assert flat.startswith("1 replica all day: ") and " to " not in flat and "%" not in flat
    assert "one replica stays up with its GPU" in found.message and "stays up" not in flat


def test_sums_of_a_flat_day_that_differ_by_rounding_save_nothing(found):
    flat = msgspec.structs.replace(found, usd=3.8800000000000003, static_usd=3.88, kwh=1.7, static_kwh=1.7 - 1e-12)
    rows = {row[0]: row[1:] for row in _sums(flat)}
    assert rows["dollars"] == ["$3.88", "$3.88", "$0", "0%"]
    assert rows["energy, est."][2:] == ["0 kWh", "0%"]
    for said in (shown(capacity_text(flat)), capacity_html(flat).partition("<script")[0]):
        assert "$3.88" in said and "$-" not in said and "-0%" not in said
    small = msgspec.structs.replace(found, usd=3.88 - 1e-6, static_usd=3.88)
    assert {row[0]: row[3:] for row in _sums(small)}["dollars"] == ["$1e-06", "<0.1%"]


def test_what_no_number_serves_is_said_and_nothing_is_summed():
    found = capacity(ONE, lengths(), Slo(ttft_s=1e-4), curve=[1, 2], workers=1)
    assert not found.feasible and "cannot be served" in found.message
    assert re.search(r"below 90.0%: with 512 replicas TTFT comes to \S+ ms against 100 us\.", found.message)
    assert {slot.replicas for slot in found.slots} == {None}
    assert (found.gpu_hours, found.usd, found.kwh, found.static_kwh, found.peak_replicas) == (None,) * 5


# --- days ---


def test_slots_of_diurnal_arrivals_hold_the_highest_rate_in_them():
    parts = parts_of(lengths("diurnal:peak_to_trough=3,period=24h"), [SLO], None, None, 0)
    assert len(parts) == 24
    rates = [part.rate_req_s for part in parts]
    assert max(rates) == pytest.approx(15.0) and min(rates) == pytest.approx(5.0, rel=0.05)
    assert np.argmax(rates) in (5, 6) and np.argmin(rates) in (17, 18)
    assert parts[0].rate_req_s == pytest.approx(parts[11].rate_req_s)  # it rises and falls alike
    assert all(part.workload.rate_req_s == part.rate_req_s for part in parts)


def test_slots_of_a_trace_are_its_own_requests_each_once(tmp_path):
    write(lengths("diurnal:peak_to_trough=4,period=100s", requests=1000), tmp_path / "t.jsonl", seed=5)
    made = workload(tmp_path / "t.jsonl")
    whole = next(iter(made.batches(0)))
    parts = parts_of(made, [SLO], None, 10.0, 0)
    batches = [next(iter(part.workload.batches(0))) for part in parts]
    assert np.concatenate([batch.id for batch in batches]).tolist() == whole.id.tolist()
    times = np.concatenate([batch.arrival_s + float(whole.arrival_s[batch.id[0]]) for batch in batches])
    assert times == pytest.approx(whole.arrival_s)
    assert [part.rate_req_s for part in parts[:-1]] == pytest.approx([len(batch) / 10 for batch in batches[:-1]])


def test_what_is_left_of_a_day_is_a_slot_unless_it_is_a_crumb(tmp_path):
    for last_s, slots in ((100.1, 10), (104.0, 11)):
        (tmp_path / "t.csv").write_text(f"arrival_s,input_tokens,output_tokens\n0,9,9\n50,9,9\n{last_s},9,9\n")
        parts = parts_of(workload(tmp_path / "t.csv"), SLO, None, 10.0, 0)
        assert len(parts) == slots and parts[-1].end_s == last_s
        assert sum(part.workload.requests for part in parts if part.rate_req_s) == 3


def test_of_a_crowded_slot_the_densest_stretch_is_simulated(tmp_path, monkeypatch):
    monkeypatch.setattr("headway.plan.slots.STRETCH", 50)
    times = np.concatenate([np.arange(100.0), 100 + np.arange(100) / 10, 110 + np.arange(100.0)])
    lines = "".join(f"{t},100,10\n" for t in times)
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n" + lines)
    (part,) = parts_of(workload(tmp_path / "t.csv"), SLO, None, 1000.0, 0)
    assert part.rate_req_s == pytest.approx(10.0)
    assert part.workload.requests == 50


def test_of_a_long_trace_nothing_is_held_but_what_is_simulated(tmp_path, monkeypatch):
    """More requests than a batch has, an idle slot among them: the same stretches as of the whole trace at once."""
    monkeypatch.setattr("headway.plan.slots.STRETCH", 500)
    times = np.sort(np.random.default_rng(1).random(150_000)) * 3600.0
    times = np.round(times[(times < 900) | (times > 1100)], 6)
    lines = "".join(f"{t},{100 + i % 7},10\n" for i, t in enumerate(times))
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n" + lines)
    parts = parts_of(workload(tmp_path / "t.csv"), [SLO], None, 100.0, 0)
    assert [place for place, part in enumerate(parts) if not part.rate_req_s] == [9, 10]
    assert len(pickle.dumps(parts)) < 40 * 500 * 100, "what goes to every worker"
    for part in parts:
        if part.rate_req_s:
            (batch,) = part.workload.batches(0)
            assert len(batch) == 500 and batch.arrival_s[0] == 0.0
            inside = times[(times >= part.start_s) & (times < part.end_s)]
            assert float(batch.arrival_s[-1]) <= (inside[500:] - inside[:-500]).min()
            assert part.rate_req_s == pytest.approx(500 / (inside[500:] - inside[:-500]).min(), rel=1e-6)


SCHEDULE = """
from headway.policies import Policy
from headway.state.decisions import Scale


class Schedule(Policy):
    reads_progress = False

    def __init__(self, ends_s, counts, ahead_s):
        self.slots, self.ahead_s = list(zip(ends_s, counts)), ahead_s

    def scale(self, cluster):
        now, soon = (self.at(cluster.now + ahead_s) for ahead_s in (0.0, self.ahead_s))
        pool = cluster.pools[0]
        wanted = max(now, soon)
        return [Scale(0, wanted, "by the clock")] if wanted != len(pool.replicas) + pool.starting else []

    def at(self, time_s):
        return next((count for end_s, count in self.slots if time_s < end_s), self.slots[-1][1])
"""


def test_a_whole_day_served_by_the_hours_numbers_meets_the_slo_for_as_many_gpu_hours(tmp_path, monkeypatch):
    """What sizing slot by slot leaves out, queues from one slot to the next and starting replicas, hardly counts."""
    (tmp_path / "by_the_clock.py").write_text(SCHEDULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    day = lengths("diurnal:peak_to_trough=6,period=20min", rate=120.0)
    found = capacity(ONE, day, SLO, workers=1)
    counts = [slot.replicas for slot in found.slots]
    assert max(counts) > min(counts)
    params = {"ends_s": [slot.end_s for slot in found.slots], "counts": counts, "ahead_s": 4.0}
    pool = Pool(count=counts[0], most=max(counts), startup_s=2.0, replica=REPLICA)
    policies = Policies(scale="by_the_clock:Schedule", params={"scale": params})
    whole = lengths("diurnal:peak_to_trough=6,period=20min", rate=120.0, requests=120 * 1200)
    deployment = Deployment(pools=(pool,), policies=policies, scale_every_s=1.0)
    result = simulate(deployment, whole, slo=SLO, seed=7, records=False)
    assert result.slo.attainment_low >= SLO.attainment
    assert result.scaling.gpu_hours == pytest.approx(found.gpu_hours, rel=0.05)
    assert result.energy.joules / 3.6e6 == pytest.approx(found.kwh, rel=0.05)


# --- the command ---


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("pools:\n  - {count: 3, replica: {model: llama-3.2-1b, gpu: l4}}\n")
    return path


WORK = ("--input", "exp:200", "--output", "exp:20", "--ttft", "500ms", "--workers", "1")


def test_the_table_the_json_and_the_csv_agree(file, tmp_path):
    (tmp_path / "curve.csv").write_text("hour,rate_req_s\n0,4\n12,40\n")
    words = ("--curve", tmp_path / "curve.csv", "--json", tmp_path / "c.json", "--csv", tmp_path / "c.csv")
    done = run("capacity", file, *WORK, *words)
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["schema"] == "headway.capacity/1"
    assert data["message"] in " ".join(done.stdout.split())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text())))
    assert [int(row["replicas"]) for row in rows] == [slot["replicas"] for slot in data["slots"]]
    assert [float(row["rate_req_s"]) for row in rows] == [4, 40]
    assert "00:00" in done.stdout and "12:00" in done.stdout


def test_a_curve_is_scaled_to_the_rate_asked_for(file):
    words = ("--curve", "1,3", "--rate", "20", "--json", "-", "-q")
    data = json.loads(run("capacity", file, *WORK, *words).stdout)
    assert [slot["rate_req_s"] for slot in data["slots"]] == [10, 30]


def test_a_plan_is_its_best_with_its_workload_and_limits(tmp_path):
    made = plan()
    strict = msgspec.structs.replace(made.question, slo=msgspec.structs.replace(made.question.slo, attainment=0.97))
    (tmp_path / "plan.json").write_text(msgspec.structs.replace(made, question=strict).to_json())
    done = run("capacity", tmp_path / "plan.json", "--curve", "1,2", "--workers", "1", "--json", "-")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert (data["slo"]["ttft_s"], data["slo"]["attainment"]) == (strict.slo.ttft_s, 0.97)
    assert "the workload is that of" in done.stderr
    assert data["deployment"]["pools"][0]["replica"] == made.best.deployment["pools"][0]["replica"]


def test_a_curve_over_a_trace_says_that_its_times_are_left_out(file, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0.5,100,10\n1,50,10\n")
    done = run("capacity", file, "--workload", trace, "--curve", "1,2", "--ttft", "500ms", "--workers", "1")
    assert done.exit_code == 0, done.output
    assert "as Poisson arrivals at its rates; their own times are left out" in done.stderr


def test_a_trace_of_one_request_is_a_day_and_an_empty_one_is_refused(file, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0.5,100,10\n")
    done = run("capacity", file, "--workload", trace, "--ttft", "500ms", "--workers", "1", "--json", "-", "-q")
    assert done.exit_code == 0, done.output
    assert {slot["replicas"] for slot in json.loads(done.stdout)["slots"]} == {1}
    trace.write_text("arrival_s,input_tokens,output_tokens\n")
    refused(run("capacity", file, "--workload", trace, "--ttft", "500ms"), "t.csv")


def test_no_answer_exits_with_one(file):
    done = run("capacity", file, *WORK[:-4], "--curve", "1,2", "--ttft", "100us", "--workers", "1")
    assert done.exit_code == 1
    assert "cannot be served" in done.stdout and "not served" in done.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--rate", "5"), ("poisson arrivals", "no day", "diurnal")),
        (("--curve", "1,x"), ("'x'",)),
        (("--curve", "0,0"), ("not all of them 0",)),
        (("--curve", "none.csv"), ("none.csv: no such file", "20,12")),
        (("--curve", "4"), ("--curve 4: one rate is no curve", "`headway plan --rate 4`")),
        (("--curve", "1,x"), ("--curve 1,x, rate 2",)),
        (("--curve", "1,2", "--arrival", "closed:4"), ("closed loop",)),
        (("--arrival", "diurnal:peak_to_trough=4", "--slot", "1s"), ("86,400", "1440")),
        (("--curve", "1,2", "--policy", "scale=target-load"), ("says itself how many",)),
    ],
)
def test_what_is_no_day_is_refused(file, words, parts):
    refused(run("capacity", file, *WORK, *words), *parts)


@pytest.mark.parametrize("times", [[0], [0.5], [2, 2]])
def test_requests_of_one_moment_have_an_hour_to_themselves(file, tmp_path, times):
    rows = "".join(f"{time},100,10\n" for time in times)
    (tmp_path / "one.csv").write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
    words = ("--workload", tmp_path / "one.csv", "--ttft", "1s", "--workers", "1", "--json", "-", "-q")
    done = run("capacity", file, *words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [each["rate_req_s"] for each in found["slots"]] == [len(times) / 3600]
    assert (found["slots"][0]["replicas"], found["slots"][0]["attainment"]) == (1, 1.0)
    assert found["gpu_hours"] == found["static_gpu_hours"] == found["slots"][0]["gpus"]


def test_without_a_limit_there_is_nothing_to_find():
    with pytest.raises(BadInput, match="limits nothing"):
        capacity(ONE, lengths(), Slo(), curve=[1])
    scaled = msgspec.structs.replace(ONE, policies=Policies(scale="target-load"))
    with pytest.raises(BadInput, match="says itself"):
        capacity(scaled, lengths(), SLO, curve=[1])
