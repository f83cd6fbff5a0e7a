"""What if: equal cases do not differ, signs turn with the sides, pairs survive a rate, the model's error is honest."""

import json
import re

import msgspec
import numpy as np
import pytest

from cli_cases import refused, run
from headway.cli.whatif import simulated
from headway.cost import Replica, compile_replica
from headway.cost.stretched import eased, stretched
from headway.metrics import Prices, Result, Slo
from headway.metrics.comparison import compare
from headway.plan.otherwise import Case, whatif
from headway.report.whatif_text import whatif_sentence
from headway.sim import Deployment, Policies, Pool, simulate
from headway.specs import to_mapping
from headway.workload import WorkloadSpec, parse_arrival, parse_length, workload
from report_cases import plan

SLO = Slo(ttft_s=0.3, tpot_s=0.03)
REPLICA = Replica(model="llama-3.2-1b", gpu="l4")
LENGTHS = {"prompt": parse_length("exp:200"), "output": parse_length("exp:20")}


def deployment(count=2, replica=REPLICA, **changes):
    return Deployment(pools=(Pool(count=count, replica=replica),), **changes)


def requests(rate=8.0, count=400, arrival="poisson"):
    spec = WorkloadSpec(name="w", arrival=parse_arrival(arrival), requests=count, **LENGTHS)
    return workload(spec, rate=rate)


def case(**changes):
    return Case(**({"deployment": deployment(), "workload": requests(), "slo": SLO} | changes))


def by_figure(found):
    return {one.figure: one for one in found.change.differences}


def test_what_two_requests_show_is_no_fact(tmp_path):
    (tmp_path / "two.csv").write_text("arrival_s,input_tokens,output_tokens\n0.1,900,200\n0.2,400,300\n")
    two = case(workload=workload(str(tmp_path / "two.csv")))
    found = whatif(two, two._replace(deployment=deployment(1)), ["replicas -1"])
    assert by_figure(found)["TPOT p90"].difference and by_figure(found)["TTFT p90"].difference
    assert {figure: found.verdict(by_figure(found)[figure]) for figure in ("TPOT p50", "TPOT p90", "TTFT p99")} == {
        "TPOT p50": "few", "TPOT p90": "few", "TTFT p99": "few",
    }  # fmt: skip
    said = whatif_sentence(found)
    assert "Too few requests to tell: TTFT p90 and TPOT p90." in said
    assert "p90 rises" not in said and "p90 falls" not in said
    data = json.loads(json.dumps(found.to_mapping()))
    rows = {one["figure"]: one for one in data["change"]["differences"]}
    assert rows["TPOT p90"]["low"] is rows["TPOT p90"]["high"] is None and rows["TPOT p90"]["requests"] == 2
    assert data["verdicts"]["TPOT p90"] == "few"


# --- the law of a replica, stretched ---


def test_all_times_of_a_law_are_stretched_and_nothing_else():
    law = compile_replica(REPLICA)
    longer = stretched(law, 2.0)
    chunks = [(0, 100)]
    assert longer.step_seconds(3, 900, 900, chunks) == pytest.approx(2 * law.step_seconds(3, 900, 900, chunks))
    assert longer.intake_s == 2 * law.intake_s
    for name in law.__struct_fields__:
        if not name.endswith("_s"):
            assert getattr(longer, name) is getattr(law, name), name
    assert not longer.linear_s.flags.writeable


def test_prompts_and_tokens_eased_are_all_steps_in_half_the_time():
    table = compile_replica(Replica(model="llama-3.1-8b", gpu="h100-sxm"))
    both = eased(eased(table, "prompts"), "tokens")
    for step in ((40, 20_000, 0, ()), (40, 20_000, 0, ((0, 900), (300, 700))), (0, 0, 0, ((0, 100),))):
        whole, prompts, tokens = table.step_seconds(*step), *(
            eased(table, part).step_seconds(*step) for part in ("prompts", "tokens")
        )
        assert both.step_seconds(*step) == pytest.approx(whole / 2)
        assert prompts + tokens == pytest.approx(1.5 * whole) and max(prompts, tokens) <= whole
        assert prompts < whole or not step[3]
        assert eased(table, "prompts", "prefill").step_seconds(*step) == both.step_seconds(*step)
        assert eased(table, "tokens", "prefill").step_seconds(*step) == whole
    assert (np.diff(eased(table, "prompts").linear_s) >= 0).all()
    assert eased(table, "kv").kv_blocks == 2 * table.kv_blocks and not eased(table, "link").p2p_s.any()


def test_an_idle_replica_takes_as_much_longer_as_its_steps():
    alone = workload(WorkloadSpec(name="w", arrival=parse_arrival("constant"), requests=20, **LENGTHS), rate=0.01)
    law = compile_replica(REPLICA)
    plain, longer = (simulate(deployment(1), alone, tables=(stretched(law, f),)) for f in (1.0, 3.0))
    assert longer.e2e_s.mean == pytest.approx(3 * plain.e2e_s.mean)


# --- two cases ---


def test_equal_cases_do_not_differ():
    found = whatif(case(), case(), [])
    assert found.change.paired
    assert all(one.difference == 0.0 for one in found.change.differences)
    assert {found.verdict(one) for one in found.change.differences} == {""}


@pytest.mark.parametrize("changes", [{}, {"tp": 2}, {"gpu": "a10"}])
def test_the_order_of_the_sides_turns_the_signs_and_nothing_else(changes):
    other = case(deployment=deployment(1, msgspec.structs.replace(REPLICA, **changes)))
    forth, back = whatif(case(), other, []), whatif(other, case(), [])
    for figure, one in by_figure(forth).items():
        turned = by_figure(back)[figure].difference
        assert turned is one.difference is None or turned == pytest.approx(-one.difference)  # an A10 has no price
        assert forth.verdict(one) == back.verdict(by_figure(back)[figure])
    for one, other in zip(forth.model.figures, back.model.figures, strict=True):
        assert one.difference == pytest.approx((-other.difference[1], -other.difference[0]))


def test_both_sides_are_what_simulate_says_of_them():
    after = case(deployment=deployment(1))
    found = whatif(case(), after, [], seed=3)
    for side, result in ((case(), found.before), (after, found.after)):
        assert result.to_json() == simulate(side.deployment, side.workload, slo=SLO, seed=3).to_json()


@pytest.mark.parametrize("arrival", ["poisson", "gamma:cv=2", "onoff:rate_on=9,rate_off=3,on=5s,off=5s"])
def test_requests_stay_paired_at_another_rate(arrival):
    made = requests(6.0, arrival=arrival)
    found = whatif(case(workload=made), case(workload=made.at_rate(12.0)), [])
    assert found.change.paired, found.change.unpaired_because
    columns = [one.records.columns for one in (found.before, found.after)]
    for name in ("id", "prompt_tokens"):
        assert (columns[0][name] == columns[1][name]).all()
    assert found.verdict(by_figure(found)["TTFT mean"]) == "differs"


def test_sessions_are_not_paired_at_another_rate():
    made = workload("agent", requests=30, rate=0.2)
    one, other = (simulate(deployment(), each, records=True) for each in (made, made.at_rate(0.4)))
    assert not compare(one, other).paired


def test_each_side_is_judged_by_its_own_limits():
    tight = Slo(ttft_s=0.06, tpot_s=0.03)
    share = by_figure(whatif(case(), case(slo=tight), []))["attainment"]
    alone = simulate(deployment(), requests(), slo=tight)
    assert share.b == pytest.approx(alone.slo.attainment) and share.b < share.a
    assert share.low < share.difference < share.high < 0


# --- the cost model's error ---


def test_the_models_interval_holds_the_prediction_and_its_ends_are_simulations():
    after = case(deployment=deployment(1))
    found = whatif(case(), after, [])
    assert found.model.relation == "shared"
    laws = compile_replica(REPLICA)
    low, high = found.model.step_times[0]
    ends = [simulate(deployment(1), requests(), slo=SLO, tables=(stretched(laws, f),)) for f in (low, high)]
    slow = next(one for one in found.model.figures if one.figure == "TTFT mean")
    assert slow.after == pytest.approx((ends[0].ttft_s.mean, ends[1].ttft_s.mean))
    for one in found.model.figures:
        named = by_figure(found)[one.figure]
        assert one.before[0] <= named.a <= one.before[1] and one.after[0] <= named.b <= one.after[1], one.figure
        assert one.difference[0] <= named.difference <= one.difference[1] or named.unit == "s", one.figure


def test_what_replicas_share_narrows_the_models_interval():
    """Other layouts and other GPUs may be off apart from each other, and then no surer than the same replicas."""
    layout = msgspec.structs.replace(REPLICA, tp=2)
    other = msgspec.structs.replace(REPLICA, gpu="a10")
    relations = [whatif(case(), case(deployment=deployment(2, one)), []).model for one in (REPLICA, layout, other)]
    assert [one.relation for one in relations] == ["shared", "related", "independent"]
    same = next(one for one in relations[0].figures if one.figure == "TPOT mean")
    assert same.difference == (0.0, 0.0)
    for model in relations[1:]:
        found = next(one for one in model.figures if one.figure == "TPOT mean")
        assert found.difference[1] - found.difference[0] > 0


# --- the command ---


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text("pools:\n  - {count: 2, replica: {model: llama-3.2-1b, gpu: l4}}\n")
    return path


SMALL = ("--input", "exp:200", "--output", "exp:20", "--requests", "300", "--ttft", "300ms", "--tpot", "30ms")


def test_what_changes_nothing_is_in_no_doubt():
    """A power limit that the clock keeps the GPU below: both sides are off alike, whatever that is."""
    slow = msgspec.structs.replace(REPLICA, clock_mhz=900.0)
    found = whatif(case(deployment=deployment(2, slow)), case(deployment=deployment(2, capped(slow, 71.0))), [])
    assert found.model.relation == "shared"
    assert all(one.difference == (0.0, 0.0) for one in found.model.figures)
    bound = whatif(case(), case(deployment=deployment(2, capped(REPLICA, 45.0))), [])
    assert bound.model.relation == "related"


def capped(replica, watts):
    return msgspec.structs.replace(replica, cap_watts=watts)


def test_one_replica_fewer_side_by_side(file, tmp_path):
    out = tmp_path / "both"
    result = run("whatif", file, *SMALL, "--rate", "8", "--replicas", "-1", "--json", tmp_path / "w.json", "--out", out)
    assert result.exit_code == 0, result.output
    assert "With replicas -1: " in result.stdout and "1 GPU in place of 2" in " ".join(result.stdout.split())
    data = json.loads((tmp_path / "w.json").read_text())
    assert data["schema"] == "headway.whatif/1" and data["error"] is None
    assert (data["before"]["gpus"], data["after"]["gpus"]) == (2, 1)
    assert set(data["verdicts"].values()) <= {"", "differs", "noise", "few", "model"}
    compared = run("compare", out / "simulated.json", out / "changed.json")
    assert "paired by id" in compared.stdout
    assert Result.from_json((out / "changed.json").read_bytes()).gpus == 1


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (("--rate", "2x"), "workload.arrival.rate_req_s", 16.0),
        (("--rate", "-25%"), "workload.arrival.rate_req_s", 6.0),
        (("--replicas", "+1"), "deployment.pools.0.count", 3),
        (("--gpu", "a10"), "deployment.pools.0.replica.gpu", "a10"),
        (("--tp", "2"), "deployment.pools.0.replica.tp", 2),
        (("--policy", "route=round-robin"), "deployment.policies.route", "round-robin"),
        (("--slo", "ttft=100ms"), "slo.limits.ttft_s", 0.1),
        (("--slo", "attainment=99%"), "slo.limits.attainment", 0.99),
        (("--set", "pools.0.replica.engine.max_seqs=8"), "deployment.pools.0.replica.engine.max_seqs", 8),
        (("--set", "workload.prompt={kind: constant, tokens: 99}"), "workload.prompt.tokens", 99),
        (("--set", "slo.e2e_s=9s"), "slo.limits.e2e_s", 9.0),
    ],
)
def test_each_change_reaches_one_side_alone(file, words, field, value):
    done = run("whatif", file, *SMALL, "--rate", "8", *words, "--json", "-", "-q")
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)

    def at(side):
        found = data[side]
        for step in field.split("."):
            found = found[int(step)] if step.isdigit() else found.get(step)
            if found is None:
                return None
        return found

    assert at("after") == value
    assert at("before") != value


def test_a_change_inside_the_noise_is_said_to_be(file):
    done = run("whatif", file, *SMALL, "--rate", "8", "--policy", "route=power-of-two")
    assert done.exit_code == 0, done.stderr
    assert "Inside the noise:" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((), ("what is to be different", "--replicas -1")),
        (("--replicas", "-2"), ("leaves 0", "at least 1")),
        (("--replicas", "decode=1"), ("'decode'", "allowed: mixed")),
        (("--replicas", "many"), ("4, +1 or -1",)),
        (("--rate", "2x", "--rate", "3x"), ("one of each",)),
        (("--rate", "-100%"), ("above zero",)),
        (("--rate", "quick"), ("'quick'", "2x")),
        (("--slo", "tfft=1s"), ("'tfft'", "nearest: ttft")),
        (("--slo", "ttft"), ("LIMIT=VALUE",)),
        (("--policy", "route=least-requests"), ("nothing would be different",)),
        (("--tp", "2", "--run", "x"), ("is no log",)),
        (("--gpu", "a100-80gb-sxm", "--kv", "fp8"), ("--gpu a100-80gb-sxm", "take --weights bf16 --kv bf16")),
        (("--rate", "2x", "--arrival", "closed:4"), ("no rate to multiply",)),
        (("--tp", "2", "--workload", "nothing.csv"), ("nothing.csv: no such file",)),
    ],
)
def test_what_cannot_be_asked_is_refused_with_what_can(file, words, parts):
    refused(run("whatif", file, *words), *parts)


def test_replicas_of_several_pools_are_named(tmp_path):
    replica = "replica: {model: llama-3.2-1b, gpu: l4}"
    (tmp_path / "s.yaml").write_text(f"pools:\n  - {{role: prefill, {replica}}}\n  - {{role: decode, {replica}}}\n")
    refused(run("whatif", tmp_path / "s.yaml", "--replicas", "+1"), "of which pool", "prefill=+1", "decode")
    words = ("--replicas", "decode=+1", "--json", "-", "-q")
    done = run("whatif", tmp_path / "s.yaml", *SMALL, "--rate", "4", *words)
    assert [pool.get("count", 1) for pool in json.loads(done.stdout)["after"]["deployment"]["pools"]] == [1, 2]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_trace_of_one_request_works_and_an_empty_one_is_refused(file, tmp_path, rows):
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + "0.5,100,10\n" * rows)
    done = run("whatif", file, "--workload", trace, "--ttft", "300ms", "--tp", "2", "--json", tmp_path / "w.json")
    if not rows:
        refused(done, "trace.csv")
        return
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "w.json").read_text())["after"]["e2e_s"]["mean"] > 0


def test_a_plan_is_asked_with_its_own_workload_and_limits(tmp_path):
    made = plan()
    (tmp_path / "plan.json").write_text(made.to_json())
    done = run("whatif", tmp_path / "plan.json", "--replicas", "-1", "--json", "-", "-q")
    assert done.exit_code == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["before"]["gpus"] == made.best.gpus == data["after"]["gpus"] + 1
    assert data["before"]["requests"]["arrived"] == made.requests
    assert data["before"]["workload"]["arrival"]["rate_req_s"] == made.rate_req_s
    assert data["before"]["slo"]["limits"]["ttft_s"] == made.question.slo.ttft_s
    refused(run("whatif", tmp_path / "plan.json", "--tp", "2", "--ttft", "1s"), "--ttft", "its own workload and limits")
    (tmp_path / "plan.json").write_text(plan(feasible=False).to_json())
    said = "no candidate meets the SLO", f"`headway report {tmp_path / 'plan.json'} --text` has the deployment"
    refused(run("whatif", tmp_path / "plan.json", "--tp", "2"), *said)
    refused(run("capacity", tmp_path / "plan.json", "--curve", "1,2"), *said)
    assert "Deployment that comes nearest" in run("report", tmp_path / "plan.json", "--text").stdout
    (tmp_path / "list.json").write_text("[1, 2]")
    words = "list.json", "--workload", "chat", "--rate", "2x"
    refused(run("whatif", tmp_path / words[0], *words[1:]), "not what `headway plan --json` writes", "a .yaml file")
    refused(run("whatif", tmp_path / "list.json", "--rate", "2x"), "not what `headway plan --json` writes")


def test_unlike_pools_keep_their_weights_and_their_prices(tmp_path):
    pools = tuple(Pool(count=2, replica=msgspec.structs.replace(REPLICA, gpu=gpu)) for gpu in ("l4", "l40s"))
    policies = Policies(route="weighted-requests", params={"route": {"weights": {"mixed": [1.0, 1.0, 4.0, 4.0]}}})
    best = Deployment(pools=pools, policies=policies, prices=Prices(usd_per_gpu_hour=2.0))
    made = plan()
    question = msgspec.structs.replace(
        made.question, gpu={"l4": 2, "l40s": 3}, gpus=None, usd_per_gpu_hour={"l4": 1.0, "l40s": 3.0}
    )
    chosen = msgspec.structs.replace(made.best, deployment=to_mapping(best))
    (tmp_path / "plan.json").write_text(msgspec.structs.replace(made, question=question, best=chosen).to_json())
    words = ("--json", "-", "-q")
    done = run("whatif", tmp_path / "plan.json", "--replicas", "mixed.1=3", *words)
    assert done.exit_code == 0, done.stderr
    after = json.loads(done.stdout)["after"]
    assert after["deployment"]["policies"]["params"]["route"]["weights"]["mixed"] == [1.0, 1.0, 4.0, 4.0, 4.0]
    assert after["cost"]["usd_per_hour"] == pytest.approx(2 * 1.0 + 3 * 3.0)
    one = run("whatif", tmp_path / "plan.json", "--gpu", "l4", *words)
    assert json.loads(one.stdout)["after"]["cost"]["usd_per_hour"] == pytest.approx(4 * 1.0)


def test_a_price_does_not_follow_to_another_gpu(file):
    file.write_text(file.read_text() + "prices: {usd_per_gpu_hour: 99.0}\n")
    done = run("whatif", file, *SMALL, "--rate", "4", "--gpu", "l40s", "--json", "-")
    assert json.loads(done.stdout)["after"]["cost"]["usd_per_hour"] < 99.0
    assert "$99.00 per GPU hour was the price of l4" in done.stderr


def test_whether_both_sides_meet_the_slo_is_said(file):
    done = run("whatif", file, *SMALL, "--rate", "8", "--slo", "ttft=1us", "--json", "-")
    sides = json.loads(done.stdout)["slo"]
    assert sides == {"before": {"met": True, "target": 0.9}, "after": {"met": False, "target": 0.9}}
    told = run("whatif", file, *SMALL, "--rate", "8", "--slo", "ttft=1us").stdout
    assert "The SLO is met (target 90%) as it is, and missed (target 90%) otherwise." in " ".join(told.split())
    assert re.search(r"^ ?SLO +met +missed", told, re.M)


def test_an_interval_of_a_share_leaves_no_room_beyond_none_and_all():
    few = case(workload=requests(count=60), slo=Slo(ttft_s=0.13, tpot_s=0.03))
    for other in (Slo(ttft_s=1e-6), Slo(ttft_s=60.0)):
        one = by_figure(whatif(few, few._replace(slo=other), []))["attainment"]
        assert -one.a <= one.low <= one.difference <= one.high <= 1 - one.a


@pytest.mark.parametrize("section", ["3", "{classes: 5}", "{classes: [7]}"])
def test_a_section_gateway_of_another_form_is_refused(tmp_path, section):
    path = tmp_path / "d.yaml"
    path.write_text("pools: [{replica: {model: llama-3.2-1b, gpu: l4}}]\ngateway: " + section + "\n")
    asked = ("--workload", "chat", "--rate", "2x", "--requests", "20")
    refused(run("whatif", path, *asked), f"{path}: gateway", "expected", "came")


# --- a long trace ---


@pytest.fixture
def long_trace(tmp_path):
    """1,000 requests, one a second, but those from number 401 to 600 ten a second."""
    times, now_s = [], 0.0
    for place in range(1_000):
        now_s += 0.1 if 400 <= place < 600 else 1.0
        times.append(now_s)
    trace = tmp_path / "trace.csv"
    rows = "".join(f"{now_s:.1f},{100 + place % 50},10\n" for place, now_s in enumerate(times))
    trace.write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
    return trace


@pytest.mark.parametrize("words", [("--replicas", "+1"), ("--rate", "2x")])
def test_of_a_long_trace_no_more_rows_are_kept_than_the_bound_and_they_stay_paired(
    file, long_trace, tmp_path, monkeypatch, words
):
    monkeypatch.setattr("headway.cli.whatif.MOST", 150)
    kept = []
    monkeypatch.setattr("headway.cli.whatif.simulated", lambda *given: kept.append(made := simulated(*given)) or made)
    said = run("whatif", file, "--workload", long_trace, "--ttft", "300ms", "--json", tmp_path / "w.json", *words)
    assert said.exit_code == 0, said.output
    (found,) = kept
    assert [len(each.records["arrival_s"]) for each in (found.before, found.after)] == [150, 150]
    assert np.diff(found.before.records["arrival_s"]).max() < 0.2  # those of the burst
    assert found.change.paired
    told = " ".join(said.stdout.split())
    assert "Simulated with the 150 of the trace's 1,000 requests in a row that bring the most tokens a second" in told
    assert "--requests 1000 takes all" in json.loads((tmp_path / "w.json").read_text())["notes"][0]


def test_all_of_a_long_trace_is_simulated_where_it_is_asked_for(file, long_trace, tmp_path, monkeypatch):
    monkeypatch.setattr("headway.cli.whatif.MOST", 150)
    ask = "whatif", file, "--workload", long_trace, "--ttft", "300ms", "--replicas", "+1", "--json", tmp_path / "w.json"
    assert run(*ask, "--requests", "1000").exit_code == 0
    found = json.loads((tmp_path / "w.json").read_text())
    assert found["before"]["requests"]["arrived"] == 1_000 and found["notes"] == []
    said = run(*ask, "--arrival", "poisson", "--rate", "5")
    assert "Simulated with the first 150 of 1,000 requests" in " ".join(said.stdout.split())
    assert json.loads((tmp_path / "w.json").read_text())["before"]["requests"]["arrived"] == 150
