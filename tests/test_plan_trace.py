"""Plans for recorded traces: of one request, of a burst, of more than is simulated."""

import io
import pickle
import re

import msgspec
import pytest
from rich.console import Console

from cli_cases import run
from headway.errors import BadInput
from headway.metrics import Slo
from headway.plan import Question, plan
from headway.plan.sensitivity import sensitivity
from headway.report import plan_html, plan_text
from headway.sim import Deployment, simulate
from headway.specs import from_mapping
from headway.workload import workload

pytestmark = pytest.mark.usefixtures("without_curves")

HEAD = "arrival_s,input_tokens,output_tokens"
SLO = Slo(ttft_s=0.2, tpot_s=0.1)
QUESTION = Question(
    model="llama-3.2-1b", gpu="l4", gpus=2, slo=SLO, layouts=("mixed",), pp=(1,), weights=("bf16",), kv=("bf16",),
    budget_tokens=(2048,),
)  # fmt: skip


def saved(folder, rows, name="trace.csv"):
    file = folder / name
    file.write_text("\n".join([HEAD, *rows, ""]))
    return str(file)


def of(file, **changes):
    return msgspec.structs.replace(QUESTION, workload=file, **changes)


@pytest.mark.parametrize("slo", [SLO, Slo(tpot_s=0.1), Slo(e2e_s=2.0)])
@pytest.mark.parametrize("rate", [None, 3.0])
def test_a_trace_of_one_request_is_planned_for(tmp_path, slo, rate):
    file = saved(tmp_path, ["4,300,20"])
    found = plan(of(file, slo=slo, rate_req_s=rate), workers=1)
    assert found.feasible and found.best.attainment == 1 and found.requests == 1
    assert found.best.gpus == 1
    assert found.alone == (rate is None)
    if rate is not None:
        assert "At 3 req/s 100.0% of requests meet the SLO" in found.message
        assert "its one request is served within the limits" in found.message
    again = simulate(from_mapping(Deployment, found.best.deployment, "best"), workload(file), slo=slo)
    assert again.ttft_s.p90 == pytest.approx(found.best.ttft_p90_s, rel=0.01)
    tight = plan(of(file, slo=Slo(ttft_s=0.02)), workers=1)
    assert not tight.feasible and tight.binding == "ttft"


def test_one_request_is_said_to_be_served_alone_and_never_at_a_rate(tmp_path):
    found = plan(of(saved(tmp_path, ["4,300,20"])), workers=1)
    found = msgspec.structs.replace(found, sensitivity=sensitivity(found, workers=1))
    assert "Served alone, its one request meets the SLO" in found.message
    assert {each.kind for each in found.sensitivity.variants}.isdisjoint({"rate"})
    console = Console(file=io.StringIO(), width=300)
    for top in (5, None):
        console.print(plan_text(found, top))
    text = " ".join(console.file.getvalue().split())
    assert "trace.csv served alone" in text and "the noise of 1 request." in text
    for said in (text, plan_html(found)):
        assert re.findall(r"\b\d[\d.]* req/(?:s|min|h)", said) == []
    spare = plan(of(saved(tmp_path, ["4,300,20"]), spare=1), workers=1)
    assert "With 1 replica of every pool down (1 l4 left), served alone, its one request meets" in spare.message
    (tmp_path / "plan.json").write_text(found.to_json())
    done = run("whatif", tmp_path / "plan.json", "--replicas", "+1")
    assert done.exit_code == 0 and "as planned: 1 request served alone," in done.stderr and "down" not in done.stderr
    (tmp_path / "spare.json").write_text(spare.to_json())
    done = run("whatif", tmp_path / "spare.json", "--replicas", "+1")
    assert "every replica up, though it was judged with 1 of every pool down" in " ".join(done.stderr.split())


def test_requests_all_at_once_have_no_rate_and_the_refusal_says_what_to_do(tmp_path):
    file = saved(tmp_path, ["0,300,20", "0,200,20"])
    with pytest.raises(BadInput, match=r"its 2 requests come all at once.*--set 'workload\.arrival={kind: poisson"):
        plan(of(file), workers=1)
    with pytest.raises(BadInput, match="no time passes between its 2 requests"):
        plan(of(file, rate_req_s=2.0), workers=1)


def test_a_trace_without_a_request_is_refused(tmp_path):
    for rows, words in (([], "holds no requests"), (["broken"], "expected")):
        with pytest.raises(BadInput, match=words):
            plan(of(saved(tmp_path, rows)), workers=1)


# --- longer than what is simulated ---


def two_paces(folder, calm=400, busy=300):
    """A trace that is calm, then busy, then calm."""
    times, now = [], 0.0
    for gap_s, count in ((1.0, calm), (0.04, busy), (1.0, calm)):
        for _ in range(count):
            now += gap_s
            times.append(now)
    return saved(folder, [f"{t:.2f},{200 + 7 * (i % 9)},{20 + i % 5}" for i, t in enumerate(times)])


def test_a_trace_longer_than_a_simulation_is_judged_on_its_densest_part(tmp_path):
    file = two_paces(tmp_path)
    found = plan(of(file, requests=250, slo=Slo(ttft_s=0.08, tpot_s=0.05)), workers=1)
    assert 400 <= found.first_request <= 450 and found.requests == 250
    assert found.rate_req_s == workload(file).rate_req_s
    assert f"from number {found.first_request + 1:,} on" in found.message
    lonely = plan(of(file, requests=1100, slo=Slo(ttft_s=0.08, tpot_s=0.05)), workers=1)
    assert lonely.first_request == 0 and "Judged" not in lonely.message
    assert found.best.goodput_req_s < lonely.best.goodput_req_s * 1.1  # the whole is no harder than its worst part


def test_the_command_that_an_answer_names_repeats_the_part_that_was_judged(tmp_path):
    file = two_paces(tmp_path)
    slo = Slo(ttft_s=0.08, tpot_s=0.05, attainment=0.5)
    found = plan(of(file, requests=250, slo=slo, margin=0, rate_req_s=3.0), workers=1)
    options = found.message.split("`headway simulate` with ")[1].split("`")[0]
    first = int(re.search(r"--set workload\.first=(\d+)", options)[1])
    spec = msgspec.structs.replace(workload(file).spec, first=first, requests=250)
    for candidate in found.ranked[:3]:
        again = simulate(from_mapping(Deployment, candidate.deployment, "again"), workload(spec, rate=3.0), slo=slo)
        assert again.slo.attainment == candidate.attainment


def test_sensitivity_and_whatif_look_at_the_same_part(tmp_path):
    file = two_paces(tmp_path)
    found = plan(of(file, requests=250, slo=Slo(ttft_s=0.08, tpot_s=0.05)), workers=1)
    base = sensitivity(found, workers=1).base
    assert base.attainment == found.best.attainment


def test_workers_get_the_part_of_a_long_trace_and_not_the_whole(tmp_path, monkeypatch):
    file = two_paces(tmp_path, calm=3000)
    monkeypatch.setattr("headway.workload.spool.HELD_BYTES", 1000)
    made = workload(file)
    assert len(pickle.dumps(made.densest(100))) < 10_000 + 80 * 100 < len(pickle.dumps(made)) / 10
    held = plan(of(file, requests=100), made=made, workers=2)
    monkeypatch.undo()
    assert msgspec.structs.replace(held, seconds=0.0) == msgspec.structs.replace(
        plan(of(file, requests=100), workers=1), seconds=0.0
    )
