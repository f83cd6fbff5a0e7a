"""How far a plan holds: the base is the planner's own answer, each variant a simulation, signs are as they must be."""

import json

import msgspec
import numpy as np
import pytest

from cli_cases import run
from headway.metrics import Slo
from headway.plan import Plan, Question, plan
from headway.plan.evaluate import Evaluator, Job
from headway.plan.sensitivity import sensitivity
from headway.report.sensitivity_text import sensitivity_words
from headway.sim import Deployment, simulate
from headway.specs import from_mapping
from headway.units import format_rate
from headway.workload import parse_length, workload
from headway.workload.spec import WorkloadSpec

LENGTHS = WorkloadSpec(name="w", prompt=parse_length("exp:300"), output=parse_length("exp:40"))
QUESTION = Question(
    model="llama-3.1-8b", gpu="h100-sxm", gpus=2, workload=LENGTHS, rate_req_s=60, slo=Slo(ttft_s=0.3, tpot_s=0.03),
    requests=400, tp=(1,), weights=("bf16",), kv=("bf16",), budget_tokens=(2048,), layouts=("mixed",), margin=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def planned():
    return plan(QUESTION, workers=1)


@pytest.fixture(scope="module")
def found(planned):
    return sensitivity(planned, workers=1)


def named(found):
    return {each.what: each for each in found.variants}


def best_of(planned):
    return from_mapping(Deployment, planned.best.deployment, "best")


def test_the_base_is_what_the_planner_finds_by_the_same_runs(planned, found):
    job = Job(0, best_of(planned), planned.requests)
    outcome = Evaluator(QUESTION, workload(LENGTHS), 60.0)(job)
    assert found.base.goodput_req_s == outcome.goodput.req_s
    assert found.base.attainment == outcome.asked.attainment
    assert (found.base.breaks, found.base.meets) == (outcome.binding, outcome.asked.meets)
    assert found.planned_req_s == planned.best.goodput_req_s


@pytest.mark.parametrize(("what", "rate"), [("rate -50%", 30.0), ("rate +50%", 90.0)])
def test_another_rate_is_a_simulation_at_it(planned, found, what, rate):
    variant = named(found)[what]
    again = simulate(best_of(planned), workload(LENGTHS, rate=rate, requests=400), slo=QUESTION.slo, records=False)
    assert variant.rate_req_s == rate
    assert variant.attainment == again.slo.attainment and variant.meets == again.slo.met
    assert variant.goodput_req_s == pytest.approx(found.base.goodput_req_s, rel=0.03)
    assert variant.headroom == pytest.approx(variant.goodput_req_s / rate - 1)


def test_longer_requests_and_slower_steps_serve_less_and_more_replicas_more(found):
    served = {what: each.goodput_req_s for what, each in named(found).items()}
    base = served["as planned"]
    assert served["prompts and outputs +25%"] < served["prompts +25%"] <= base * 1.03
    assert served["prompts and outputs +25%"] < served["outputs +25%"] <= base * 1.03
    assert served["prompts and outputs -25%"] > base
    fast, slow = (each.goodput_req_s for each in found.of("model"))
    assert slow < base < fast
    more = named(found)["1 replica more"]
    assert more.goodput_req_s > base and found.buys(more) == pytest.approx(more.goodput_req_s - base)
    assert more.usd_per_hour > found.base.usd_per_hour


def test_each_part_twice_as_good_serves_no_less_and_what_holds_it_back_is_said(found):
    parts = found.of("parts")
    assert [each.what for each in parts] == [
        "prompts twice as fast", "tokens twice as fast", "twice the KV cache"
    ]  # fmt: skip
    base = found.base.goodput_req_s
    assert all(each.goodput_req_s >= base / 1.03 for each in parts) and max(e.goodput_req_s for e in parts) > 1.1 * base
    first = max(parts, key=lambda each: each.goodput_req_s)
    assert f"it would serve more with {first.what} {first.goodput_req_s / base - 1:+.0%}" in sensitivity_words(found)[1]


@pytest.mark.parametrize(("gbytes_per_s", "binds"), [(1.0, True), (400.0, False)])
def test_a_slow_link_between_pools_is_what_holds_them_back(gbytes_per_s, binds):
    split = plan(msgspec.structs.replace(QUESTION, layouts=("split",), rate_req_s=5), workers=1)
    link = {"name": "slow", "bytes_per_s": gbytes_per_s * 1e9, "latency_s": 1e-5}
    best = msgspec.structs.replace(split.best, deployment={**split.best.deployment, "kv_link": link})
    found = sensitivity(msgspec.structs.replace(split, best=best), workers=1)
    words = sensitivity_words(found)[1]
    assert words.startswith("What holds it back: it would serve more with links that take no time +") == binds
    assert named(found)["twice the KV cache"].goodput_req_s == pytest.approx(found.base.goodput_req_s, rel=0.03)


def test_another_limit_than_the_plans_own_is_told_beside_it(planned, found):
    assert found.planned_breaks == planned.best.binding
    alike = msgspec.structs.replace(found, planned_breaks=found.base.breaks)
    assert "breaks first" not in sensitivity_words(alike)[0]
    other = {"ttft": "tpot", "tpot": "ttft"}[found.base.breaks]
    told = sensitivity_words(msgspec.structs.replace(found, planned_breaks=other))[0]
    own = f"by the plan's own {format_rate(found.planned_req_s)}, of further seeds, {other.upper()} breaks first"
    assert f"then {found.base.breaks.upper()} breaks (on seed {found.seed} alone, as all that follows; {own})." in told


def test_there_is_no_replica_fewer_than_one(planned, found):
    pools = best_of(planned).pools
    assert ("1 replica fewer" in named(found)) == (pools[0].count > 1)


def test_the_answer_does_not_depend_on_the_number_of_processes(planned, found):
    assert sensitivity(planned, workers=2) == found


def test_a_plan_keeps_it_in_its_json(planned, found):
    whole = msgspec.structs.replace(planned, sensitivity=found)
    assert Plan.from_json(whole.to_json()) == whole


def test_where_nothing_is_best_there_is_nothing_to_say(planned):
    assert sensitivity(msgspec.structs.replace(planned, best=None)) is None


def test_longer_requests_are_the_same_ones_longer():
    batch = next(workload("chat", requests=500).batches(0))
    longer = batch.lengthened(1.25, 0.5)
    assert (longer.arrival_s == batch.arrival_s).all() and (longer.id == batch.id).all()
    assert np.abs(longer.prompt_tokens - 1.25 * batch.prompt_tokens).max() <= 0.5
    assert longer.output_tokens.min() >= 1
    assert longer.predicted_output_tokens == pytest.approx(0.5 * batch.predicted_output_tokens)


def test_why_is_printed_and_kept(tmp_path):
    space = ("layouts=[mixed]", "tp=[1]", "weights=[bf16]", "kv=[bf16]", "budget_tokens=[2048]", "requests=300")
    sets = [word for each in space for word in ("--set", each)]
    ask = ("plan", "--model", "llama-3.2-1b", "--gpu", "l4", "--gpus", "1", "--ttft", "200ms", "--tpot", "100ms")
    lengths = ("--input", "exp:200", "--output", "exp:20", "--rate", "5", "--workers", "1")
    files = ("--json", tmp_path / "p.json", "--html", tmp_path / "p.html")
    done = run(*ask, *lengths, *sets, "--why", *files)
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    for part in ("How far", "Headroom: it serves", "By the cost model's error", "1 replica more (1 GPU"):
        assert part in said, said
    kept = json.loads((tmp_path / "p.json").read_text())["sensitivity"]
    assert kept["variants"][0]["kind"] == "base"
    assert "How far" in (tmp_path / "p.html").read_text()
