"""`headway plan`: from the options to a question, and its answer to the terminal, files and exit codes."""

import json
import re

import msgspec
import pytest

from cli_cases import refused, run
from headway.cli import options
from headway.metrics import Slo
from headway.plan import Plan, plan, question
from headway.specs import read_yaml
from report_cases import plan as made_plan

SPACE = ("layouts=[mixed]", "tp=[1]", "pp=[1]", "weights=[bf16]", "kv=[bf16]", "budget_tokens=[2048]", "requests=300")
SETS = tuple(word for each in SPACE for word in ("--set", each))
ASK = ("plan", "--model", "llama-3.2-1b", "--gpu", "l4", "--gpus", "2", "--ttft", "200ms", "--tpot", "100ms")
LENGTHS = ("--input", "exp:200", "--output", "exp:20", "--rate", "5")
SMALL = (*ASK, *LENGTHS, "--workers", "1", *SETS)


@pytest.fixture
def asked(monkeypatch):
    """Let `plan` answer at once, and keep what it was asked."""
    kept = {}

    def answer(question, **settings):
        kept.update(question=question, **settings)
        return kept.get("answer") or made_plan()

    monkeypatch.setattr("headway.plan.plan", answer)
    return kept


# --- answers ---


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    files = {name: folder / f"plan.{name}" for name in ("json", "yaml", "html")}
    result = run(*SMALL, *(word for name, file in files.items() for word in (f"--{name}", file)))
    return result, files


def test_a_plan_is_printed_and_written(answered):
    result, files = answered
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Run llama-3.2-1b with bf16 weights and bf16 KV as 1 replica on 1 l4 (tp 1)")
    data = json.loads(files["json"].read_text())
    assert data["schema"] == "headway.plan/1"
    needed = {"feasible", "binding", "evaluated", "seconds", "best", "front", "ranked", "question", "discarded"}
    assert needed <= set(data)
    for candidate in data["ranked"]:
        assert {"deployment", "gpus", "goodput_req_s_per_gpu"} <= set(candidate)
    assert data["evaluated"] == len(data["ranked"]) > 0
    assert files["html"].read_text().startswith("<!doctype html>")


def test_the_best_deployment_is_simulated_unchanged(answered):
    _, files = answered
    result = run("simulate", files["yaml"], *LENGTHS, "--requests", "300", "--ttft", "200ms", "--json", "-", "-q")
    best = json.loads(files["json"].read_text())["best"]["deployment"]
    assert read_yaml(files["yaml"]) == best == json.loads(result.stdout)["deployment"]


def test_no_answer_exits_with_one_and_says_what_stands_in_the_way():
    result = run("plan", "--model", "llama-3.1-405b", "--gpu", "l4", "--gpus", "2", "--rate", "1", "--ttft", "1s")
    assert result.exit_code == 1
    assert "does not fit" in result.stdout
    assert "GiB" in result.stdout


# --- from options to a question ---


def test_options_become_the_question(asked):
    assert run(*SMALL, "--objective", "energy", "--seed", "3", "--e2e", "9s", "--attainment", "95%").exit_code == 0
    question = asked["question"]
    assert (question.model, question.gpu, question.gpus, question.rate_req_s) == ("llama-3.2-1b", "l4", 2, 5.0)
    assert (question.objective, question.seed, question.tp, question.requests) == ("energy", 3, (1,), 300)
    assert question.slo == Slo(ttft_s=0.2, tpot_s=0.1, e2e_s=9.0, attainment=0.95)
    assert question.workload.prompt.mean_tokens == 200
    assert asked["workers"] == 1
    assert (question.cap_watts, question.clock_mhz) == (None, None)
    run(*SMALL, "--cap-watts", "60,72", "--clock-mhz", "1200")
    assert (asked["question"].cap_watts, asked["question"].clock_mhz) == ((60.0, 72.0), (1200.0,))


def test_what_is_to_be_tried_and_watts_become_the_question(asked):
    run(*SMALL, "--engine", "vllm,sglang:0.5", "--policy", "route=round-robin,prefix-affinity", "--policy", "order=sjf",
        "--max-watts", "1.4kW", "--watts-per-rack", "20kW", "--gpus-per-rack", "16", "--set", "max_seqs=[64,512]",
        "--set", "prefix_cache=[true,false]", "--set", "dp=[1,2]", "--set", "ep=[1]")  # fmt: skip
    question = asked["question"]
    assert (question.engines, question.engine.name) == (("vllm", "sglang:0.5"), "vllm")
    assert question.policies_to_try == {"route": ("round-robin", "prefix-affinity")}
    assert question.policies.order == "sjf"
    assert (question.max_watts, question.watts_per_rack, question.gpus_per_rack) == (1400.0, 20_000.0, 16)
    assert (question.max_seqs, question.prefix_cache) == ((64, 512), (True, False))
    assert (question.dp, question.ep) == ((1, 2), (1,))


def test_the_answer_names_the_engine_that_won(tmp_path):
    kept = tmp_path / "plan.json"
    said = run(*SMALL, "--engine", "sglang,vllm", "--json", kept).stderr
    best = Plan.from_json(kept.read_text()).best
    winner = "sglang" if "sglang" in best.name else "vllm"
    assert f"`headway export {kept} --to {winner} --out launch`" in said
    assert run("export", kept, "--to", winner, "--out", tmp_path / "launch").exit_code == 0


def test_a_plan_of_ranks_is_printed_and_exported(tmp_path):
    kept = tmp_path / "plan.json"
    ranks = ("--model", "qwen3-30b-a3b", "--gpu", "h100-sxm", "--gpus", "2", "--rate", "5", "--ttft", "2s")
    only = ("layouts=[mixed]", "tp=[1]", "pp=[1]", "dp=[2]", "weights=[bf16]", "kv=[bf16]", "budget_tokens=[2048]",
            "requests=200")  # fmt: skip
    result = run("plan", *ranks, *(word for each in only for word in ("--set", each)), "--json", kept)
    assert result.exit_code == 0
    assert "1x tp1dp2" in result.stdout and "1x tp1dp2ep2" in result.stdout
    assert "1 replica on 2 h100-sxm (tp 1, dp 2" in result.stdout
    names = [candidate.name for candidate in Plan.from_json(kept.read_text()).ranked]
    divided = next(name for name in names if "ep2" in name)
    for engine, flag in (("vllm", "--data-parallel-size 2"), ("compose", "--enable-expert-parallel")):
        written = run("export", kept, "--to", engine, "--candidate", divided, "--out", tmp_path / engine)
        assert written.exit_code == 0
        assert any(flag in file.read_text() for file in (tmp_path / engine).rglob("*") if file.is_file())


KIND = ("plan", "--model", "llama-3.2-1b", "--ttft", "200ms", "--gpu")


def test_several_kinds_of_gpu_and_constraints_become_the_question(asked):
    run(*KIND, "l4:2,h100-sxm:1", "--max-usd-per-hour", "5", "--max-tp", "2", "--spare", "1", "--engine", "sglang:0.5",
        "--price", "l4=0.4,h100-sxm=2", "--objective", "rate", "--front", "rate,ttft")  # fmt: skip
    question = asked["question"]
    assert (question.gpu, question.gpus, question.most) == ({"l4": 2, "h100-sxm": 1}, None, 3)
    assert (question.max_usd_per_hour, question.max_tp, question.spare) == (5.0, 2, 1)
    assert (question.engine.name, question.engine.version) == ("sglang", "0.5")
    assert question.usd_per_gpu_hour == {"l4": 0.4, "h100-sxm": 2.0}
    assert (question.objective, question.front) == ("rate", ("rate", "ttft"))
    run(*KIND, "l4,h100-sxm:1", "--gpus", "3")
    assert (asked["question"].stock, asked["question"].most) == ({"l4": 3, "h100-sxm": 1}, 3)
    run(*KIND, "l4:4")
    assert (asked["question"].stock, asked["question"].most) == ({"l4": 4}, 4)


def test_the_objectives_of_the_command_are_those_of_the_question():
    assert tuple(options.OBJECTIVES) == question.OBJECTIVES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("l4,h100-sxm:1",), "--gpu l4: how many are there? Give l4:N, or --gpus"),
        (("l4:2,l4:1",), "name each GPU once"),
        (("l4:x",), "count 'x' is not understood"),
        (("l4:2", "--gpus", "3"), "gpus 3 against gpu 2 l4: there are only 2"),
        (("l4:2", "--engine", "vlm"), "unknown engine 'vlm': nearest: vllm"),
        (("l4:2", "--engine", "vllm", "--set", "engine.name=sglang"), "--engine vllm against --set engine.name=sglang"),
        (("l4:0,a10g:2",), "'l4:0': none of it is there"),
        (("l4:2", "--front", "cost,speed"), "unknown objective of --front 'speed'"),
        (("l4:2", "--price", "l4"), "write GPU=USD, as in h100-sxm=2.5"),
        (("l4:2", "--max-tp", "1", "--set", "tp=[2]"), "tp [2] against max_tp 1"),
        (("l4:2", "--set", "dp=[2]"), "dp [2] against model llama-3.2-1b, which has no experts"),
        (("l4:2", "--engine", "vllm,vlm"), "unknown engine 'vlm': nearest: vllm"),
        (("l4:2", "--engine", "vllm,sglang", "--set", "engines=[trtllm]"), "vllm,sglang against --set engines"),
        (("l4:2", "--max-watts", "50W"), "max_watts 50 against gpu l4, one of which draws up to 72 W"),
        (("l4:2", "--max-watts", "much"), "power 'much' is not understood"),
        (("l4:2", "--watts-per-rack", "20kW"), "give both"),
        (("l4:2", "--policy", "route=round-robin,power-of-to"), "unknown route policy 'power-of-to'"),
        (("l4:2", "--policy", "scale=fixed,target-load"), "decision point of policies_to_try 'scale'"),
        (("l4:2", "--policy", "route"), "write KIND=NAME"),
        (("l4:2", "--policy", "route=round-robin", "--policy", "route=least-tokens"),
         "--policy route=round-robin against --policy route=least-tokens"),
        (("l4:2", "--policy", "route=round-robin,least-tokens", "--set", "policies.route=least-requests"),
         "--set policies.route=least-requests against --policy route=round-robin,least-tokens"),
        (("l4:2", "--slo", "chat:ttft=1s"), "workload chat has no classes: give one for all requests (--ttft"),
    ],
)
def test_wishes_that_cannot_be_are_refused(words, message):
    refused(run(*KIND, *words), message)


def test_the_answer_says_how_to_go_on(asked, tmp_path):
    assert "--json plan.json keeps the plan; `headway export plan.json --to vllm" in run(*ASK).stderr
    kept = tmp_path / "best.yaml"
    assert f"`headway export {kept} --to vllm --out launch`" in run(*ASK, "--yaml", kept).stderr
    asked["answer"] = answer_with(engine={"name": "sglang"})
    assert "--to sglang --out launch`" in run(*ASK).stderr
    asked["answer"] = made_plan(feasible=False, best=None)
    assert "headway export" not in run(*ASK).stderr


def answer_with(**replica):
    """A plan whose best has replicas with these settings."""
    best = made_plan().best
    pools = [{**pool, "replica": {**pool["replica"], **replica}} for pool in best.deployment["pools"]]
    return made_plan(best=msgspec.structs.replace(best, deployment={**best.deployment, "pools": pools}))


@pytest.mark.parametrize(
    ("replica", "words", "why"),
    [
        (
            {"engine": {"name": "trtllm"}, "weights": "fp8"},
            "--to trtllm --model-path CHECKPOINT_IN_FP8 --out {}",
            "published in bf16",
        ),
        ({"gpu": "gaudi-3"}, "--to gateway --out {}", "GPUs of NVIDIA and AMD"),
    ],
)
def test_the_command_that_goes_on_works_as_it_is_printed(asked, tmp_path, replica, words, why):
    asked["answer"] = answer_with(**replica)
    kept = tmp_path / "plan.json"
    said = run(*ASK, "--json", kept).stderr
    assert f"`headway export {kept} {words.format('launch')}`" in said
    assert why in said
    done = run("export", kept, *words.format(tmp_path / "launch").split())
    assert done.exit_code == 0, done.stderr
    assert list((tmp_path / "launch").iterdir())


def test_power_and_carbon_are_printed_with_what_they_rest_on(answered):
    result, files = answered
    best = json.loads(files["json"].read_text())["best"]
    assert best["energy_kind"] == "estimated"
    lines = {label: line for line in result.stdout.splitlines() for label in ("Energy", "Carbon") if label in line}
    assert f"{best['mean_watts']:.3g} W on average" in lines["Energy"]
    assert "estimated" in lines["Energy"] and "estimated" in lines["Carbon"]
    assert f"{best['carbon_g_per_million_output_tokens']:.3g} g CO2 per million output tokens" in lines["Carbon"]
    assert "at 445 g/kWh and PUE 1.56" in lines["Carbon"]


def test_a_named_workload_stays_a_name_unless_it_is_changed(asked):
    run(*ASK, "--workload", "code")
    assert asked["question"].workload == "code"
    run(*ASK, "--workload", "code", "--set", "workload.prediction_sigma=0.5", "--set", "slo.itl_s=80ms")
    assert asked["question"].workload.prediction_sigma == 0.5
    assert asked["question"].slo.itl_s == 0.08


def test_a_trace_is_read_once_with_its_broken_lines_left_out(asked, tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,100,10\nbroken\n1,100,10\n")
    refused(run(*ASK, "--workload", trace), f"{trace}:3")
    assert run(*ASK, "--workload", trace, "--skip-bad").stderr.count("broken") == 1
    assert asked["made"].requests == 2
    assert asked["question"].skip_bad


def test_a_plan_read_back_asks_for_the_same_trace_with_its_broken_lines_left_out(tmp_path):
    trace, file = tmp_path / "t.csv", tmp_path / "plan.json"
    rows = [*(f"{i / 5},200,{10 + i % 7}" for i in range(120)), "broken", *(f"{24 + i / 5},90,20" for i in range(120))]
    trace.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]))
    assert run(*ASK, "--workload", trace, "--skip-bad", *SETS, "--json", file, "-q").exit_code == 0
    found = Plan.from_json(file.read_text())
    again = plan(Plan.from_json(file.read_text()).question, workers=1)
    assert msgspec.structs.replace(again, seconds=0.0) == msgspec.structs.replace(found, seconds=0.0)


def test_an_order_without_anything_to_go_by_is_noted(asked):
    assert "knows every output length" in run(*ASK, "--set", "policies.order=sjf").stderr
    assert "knows" not in run(*ASK).stderr


# --- output ---


def test_data_on_stdout_is_alone_there(asked):
    found = made_plan()
    asked["answer"] = found
    assert run(*ASK, "--json", "-").stdout == found.to_json() + "\n"
    result = run(*ASK, "--yaml", "-")
    assert result.stdout.startswith("name: 2x tp1 bf16/bf16 b8192\npools:\n")
    assert found.message in " ".join(result.stderr.split())
    refused(run(*ASK, "--yaml", "-", "--json", "-"), "only one answer can go to stdout")


def test_top_chooses_the_rows_and_quiet_none(asked):
    rows = [len(re.findall(r"^ \d+  \d+x tp1 bf16/bf16", run(*ASK, "--top", top).stdout, re.M)) for top in ("1", "3")]
    assert rows == [1, 3]
    quiet = run(*ASK, "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_an_interrupted_plan_prints_what_is_known(asked):
    asked["answer"] = made_plan(interrupted=True)
    result = run(*ASK)
    assert result.exit_code == 130
    assert result.stdout.startswith("Interrupted after 4 deployments: what follows is known so far.\nSo far: run ")


def test_without_an_answer_no_deployment_is_written(asked, tmp_path):
    asked["answer"] = made_plan([], feasible=False)
    result = run(*ASK, "--yaml", tmp_path / "best.yaml")
    assert result.exit_code == 1
    assert not (tmp_path / "best.yaml").exists()


# --- bad input ---


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--gpus", "0"], ["--gpus", "above zero"]),
        (["--gpus", "two"], ["--gpus", "'two'"]),
        (["--rate", "nan"], ["--rate", "25req/s"]),
        (["--rate", "0"], ["--rate", "above zero"]),
        (["--objective", "speed"], ["--objective", "cost", "energy", "goodput"]),
        (["--workers", "0"], ["--workers", "above zero"]),
        (["--model", "llama-3.2-1"], ["unknown model", "nearest: llama-3.2-1b"]),
        (["--gpu", "l5"], ["unknown GPU 'l5'", "headway list gpus"]),
        (["--cap-watts", "60,x"], ["--cap-watts", "300,400,700"]),
        (["--cap-watts", "0"], ["--cap-watts", "above zero"]),
        (["--clock-mhz", "9000"], ["boost clock"]),
        (["--set", "tq=[1]"], ["unknown field 'tq'", "tp"]),
        (["--set", "tp=[3]"], ["3"]),
        (["--set", "requests=0"], ["requests 0"]),
        (["--workload", "nothing"], ["unknown workload 'nothing'"]),
        (["--html", "no/such/folder/x.html"], ["no folder"]),
    ],
)
def test_bad_input_is_refused(words, parts):
    refused(run(*SMALL[:-2], *words), *parts)


def test_what_is_missing_is_named():
    refused(run("plan", "--model", "llama-3.2-1b", "--gpu", "l4", "--ttft", "1s"), "--gpus is missing")
    refused(run("plan", "--gpus", "2", "--gpu", "l4", "--ttft", "1s"), "--model is missing", "headway list models")
    refused(run(*ASK[:7]), "SLO limits nothing")


@pytest.mark.parametrize(
    ("gpus", "parts"),
    [
        ("a100", ["unknown GPU 'a100'", "a100-80gb-sxm"]),
        ("8 H100 + 16 A100", ["'8 H100 + 16 A100'", "as in h100-sxm:8,a100-80gb-sxm:16"]),
        ("h100-sxm+l4", ["as in h100-sxm:8,a100-80gb-sxm:16"]),
    ],
)
def test_a_gpu_that_is_none_is_told_before_how_many_there_are(gpus, parts):
    refused(run("plan", "--model", "llama-3.2-1b", "--gpu", gpus, "--ttft", "1s"), *parts)


# --- what arrives, and settings named twice ---


def test_arrivals_and_requests_are_those_of_the_question(asked, tmp_path):
    assert run(*ASK, "--requests", "2k", "--rate", "5").exit_code == 0
    assert (asked["question"].requests, asked["question"].workload) == (2_000, "chat")
    assert run(*ASK, "--arrival", "gamma:cv=3", "--rate", "5").exit_code == 0
    assert (asked["question"].requests, asked["question"].workload.arrival.cv) == (None, 3.0)
    trace = tmp_path / "trace.csv"
    rows = "".join(f"2023-11-16 18:15:{second:02d}.0000000,100,10\n" for second in range(50))
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")
    assert run(*ASK, "--workload", trace, "--requests", "20").exit_code == 0
    assert (asked["made"].requests, asked["question"].workload.requests, asked["question"].requests) == (20, 20, 20)
    refused(run(*ASK, "--workload", trace, "--requests", "60"), "holds 50; ask for no more")
    refused(run(*ASK, "--arrival", "nothing"), "nothing")


def test_a_plan_refuses_a_closed_loop_and_runs_as_many_requests_as_asked_for():
    refused(run(*ASK, "--arrival", "closed:64"), "is a closed loop, which has no rate to plan for")
    found = run(*ASK, *LENGTHS, "--workers", "1", *SETS[:-2], "--requests", "250", "--json", "-")
    assert json.loads(found.stdout)["requests"] == 250


@pytest.mark.parametrize(
    ("words", "both"),
    [
        (("--set", "gpus=3"), "--gpus against --set gpus=3"),
        (("--requests", "500", "--set", "requests=600"), "--requests against --set requests=600"),
        (("--requests", "500", "--set", "workload.requests=600"), "--requests against --set workload.requests=600"),
        (("--arrival", "poisson", "--set", "workload.arrival.cv=3"), "--arrival against --set workload.arrival.cv=3"),
        (("--objective", "gpus", "--set", "objective=energy"), "--objective against --set objective=energy"),
        (("--price", "l4=1", "--set", "usd_per_gpu_hour.l4=2"), "--price against --set usd_per_gpu_hour.l4=2"),
        (("--set", "slo.ttft_s=1s"), "--ttft against --set slo.ttft_s=1s"),
        (("--set", "tp=[1]", "--set", "tp=[2]"), "--set tp=[1] against --set tp=[2]"),
    ],
)
def test_a_setting_named_twice_is_refused(words, both):
    refused(run(*ASK, *words), f"{both}: give one of them")


def test_defaults_of_options_are_not_settings(asked):
    assert run(*ASK, "--set", "objective=gpus", "--set", "seed=3", "--set", "slo.itl_s=80ms").exit_code == 0
    assert (asked["question"].objective, asked["question"].seed) == ("gpus", 3)
