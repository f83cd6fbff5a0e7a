"""`headway simulate`: what it prints and writes, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from cli_cases import refused, run
from headway.metrics import Records, Result

SMALL = ("simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--requests", "60")
CUSTOM = (*SMALL, "--input", "exp:200", "--output", "exp:20", "--rate", "20")
REQUIRED = """
    schema requests.arrived requests.finished requests.rejected requests.failed requests.unfinished
    ttft_s.mean ttft_s.p50 ttft_s.p90 ttft_s.p99 tpot_s.mean tpot_s.p50 tpot_s.p90 tpot_s.p99
    itl_s.mean itl_s.p50 itl_s.p90 itl_s.p99 e2e_s.mean e2e_s.p50 e2e_s.p90 e2e_s.p99
    throughput.requests_per_s throughput.output_tokens_per_s slo.attainment
    kv.peak_utilization kv.prefix_hit_rate kv.preemptions energy.joules_per_output_token
    cost.usd_per_million_output_tokens
"""


def at(data, path):
    for key in path.split("."):
        data = data[key]
    return data


def simulated(*words):
    result = run(*words, "--json", "-", "--quiet")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# --- answers ---


def test_a_model_and_a_gpu_are_enough_and_what_is_assumed_is_said():
    result = run(*SMALL)
    assert result.exit_code == 0
    assert "assuming workload chat, 5.53 req/s, its own rate, 1 replica" in result.stderr
    assert "60 of 60 requests finished" in result.stdout.splitlines()[0]


def test_the_table_says_first_whether_the_slo_is_met():
    met = run(*CUSTOM, "--ttft", "10s")
    assert re.match(r"100% of requests were served within TTFT 10 s: the target of 90% is met\.", met.stdout)
    missed = run(*CUSTOM, "--ttft", "1ms", "--attainment", "50%")
    assert missed.exit_code == 0
    assert re.match(r"0% of requests were served within TTFT 1 ms: the target of 50% is missed\.", missed.stdout)


def test_json_on_stdout_is_alone_there_and_has_every_field():
    result = run(*CUSTOM, "--json", "-", "--ttft", "500ms", "--tpot", "50ms")
    data = json.loads(result.stdout)
    for path in REQUIRED.split():
        at(data, path)
    assert data["schema"] == "headway.result/1"
    assert data["requests"]["arrived"] == 60
    assert "TTFT" in result.stderr


def test_quiet_says_nothing_but_what_was_asked_for():
    result = run(*SMALL, "--quiet")
    assert (result.stdout, result.stderr) == ("", "")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (run(*CUSTOM, "--quiet", "--json", "-", "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other


def test_options_reach_the_deployment_and_the_workload():
    changes = ("--replicas", "2", "--tp", "2", "--policy", "route=round-robin", "--arrival", "gamma:cv=2")
    data = simulated(*CUSTOM, *changes)
    (pool,) = data["deployment"]["pools"]
    assert (pool["count"], pool["replica"]["tp"], data["gpus"]) == (2, 2, 4)
    assert data["deployment"]["policies"]["route"] == "round-robin"
    assert data["workload"]["arrival"] == {"kind": "gamma", "cv": 2.0, "rate_req_s": 20.0}


def test_set_reaches_deployment_workload_and_slo():
    sets = ("pools.0.replica.kv=fp8", "workload.prediction_sigma=0.5", "slo.itl_s=80ms")
    data = simulated(*CUSTOM, *(word for each in sets for word in ("--set", each)))
    assert data["deployment"]["pools"][0]["replica"]["kv"] == "fp8"
    assert data["workload"]["prediction_sigma"] == 0.5
    assert data["slo"]["limits"]["itl_s"] == 0.08


def test_one_length_replaces_that_of_a_named_workload():
    data = simulated(*SMALL, "--workload", "chat", "--output", "7")
    assert data["tokens"]["output"] == 60 * 7
    assert data["workload"]["prompt"]["kind"] == "empirical"


def test_a_deployment_file_runs_unchanged_and_set_changes_it(tmp_path):
    file = tmp_path / "d.yaml"
    file.write_text("pools:\n- replica:\n    model: llama-3.1-8b\n    gpu: h100-sxm\n    weights: fp8\n")
    data = simulated("simulate", file, "--requests", "40", "--set", "pools.0.count=3")
    (pool,) = data["deployment"]["pools"]
    assert (pool["count"], pool["replica"]["weights"]) == (3, "fp8")


def test_files_hold_the_same_answer(tmp_path):
    json_file, rows = tmp_path / "r.json", tmp_path / "r.csv"
    result = run(*CUSTOM, "--json", json_file, "--records", rows)
    assert f"wrote {json_file}" in result.stderr
    answer = Result.from_json(json_file.read_bytes())
    assert len(Records.read(rows)) == answer.requests.arrived == 60


def test_without_records_percentiles_come_from_histograms():
    data = simulated(*CUSTOM, "--no-records")
    assert data["ttft_s"]["method"] == "histogram"
    assert data["requests"]["finished"] == 60


def test_broken_lines_are_refused_or_left_out_and_counted(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,100,10\nbroken\n1,100,10\n")
    words = ("simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--workload", trace)
    refused(run(*words), f"{trace}:3", "(--skip-bad leaves such lines out)")
    result = run(*words, "--skip-bad", "--json", "-")
    assert f"skipped 1 broken line of {trace}\n" in result.stderr
    assert result.stderr.count("1 broken line left out") == 1
    data = json.loads(result.stdout)
    assert data["provenance"]["trace"]["skipped_lines"] == 1
    assert data["requests"]["finished"] == 2


def test_weights_are_as_published_unless_asked_for():
    data = simulated("simulate", "--model", "gpt-oss-20b", "--gpu", "rtx-4090", "--requests", "20")
    (pool,) = data["deployment"]["pools"]
    assert pool["replica"]["weights"] == "mxfp4"
    assert "weights" not in simulated(*CUSTOM)["deployment"]["pools"][0]["replica"]  # bf16, the default of a file
    words = ("simulate", "--model", "gpt-oss-20b", "--gpu", "h100-sxm", "--requests", "20", "--rate", "5")
    (pool,) = simulated(*words, "--weights", "bf16", "--kv", "fp8")["deployment"]["pools"]
    assert (pool["replica"].get("weights", "bf16"), pool["replica"]["kv"]) == ("bf16", "fp8")
    assert "(mxfp4, KV bf16)" in run(*words).stdout


def test_many_requests_keep_no_rows_unless_a_file_shows_them(monkeypatch, tmp_path):
    monkeypatch.setattr("headway.cli.simulate.KEPT_REQUESTS", 59)
    result = run(*CUSTOM, "--json", "-")
    assert json.loads(result.stdout)["ttft_s"]["method"] == "histogram"
    assert "no rows are kept of more than 59 requests (--records FILE keeps them)" in result.stderr
    for option, file in (("--records", "r.csv"), ("--html", "r.html")):
        result = run(*CUSTOM, "--json", "-", option, tmp_path / file)
        assert json.loads(result.stdout)["ttft_s"]["method"] == "exact"
        assert "no rows" not in result.stderr


def test_an_order_without_anything_to_go_by_is_noted(tmp_path):
    def said(order, *words):
        return run(*CUSTOM, "--policy", f"order={order}", *words).stderr

    assert "none of the first 60 requests has a deadline" in said("edf")
    assert "deadline" not in said("edf", "--set", "workload.classes=[{name: a, deadline_s: 5}]")
    assert "knows every output length" in said("sjf")
    assert "knows" not in said("sjf", "--set", "workload.prediction_sigma=0.5")
    assert "knows" not in said("fcfs") and "deadline" not in said("fcfs")


def test_a_router_without_anything_to_go_by_is_noted(tmp_path):
    one = "{role: %s, count: 2, replica: {model: llama-3.1-8b, gpu: h100-sxm}, nodes: %s}"
    neither, alone = "no node has both prefill and decode replicas", "no decode replicas stand on several nodes"
    for decode, idle in (([0, 1], None), ([0, 2], None), ([2, 3], neither), ([0, 0], alone)):
        file = tmp_path / "d.yaml"
        pools = [one % ("prefill", [0, 1]), one % ("decode", decode)]
        file.write_text(f"policies: {{route: same-node}}\npools: [{', '.join(pools)}]\n")
        done = run("simulate", file, "--workload", "chat", "--rate", "4", "--requests", "40")
        assert done.exit_code == 0, done.output
        assert "by load alone" not in done.stderr if idle is None else f"{idle}, so it goes by load" in done.stderr
    words = ("--model", "llama-3.1-8b", "--gpu", "h100-sxm", "--rate", "4", "--requests", "40")
    assert alone in run("simulate", *words, "--policy", "route=same-node").stderr


def test_a_report_is_written(tmp_path):
    page = tmp_path / "r.html"
    assert run(*CUSTOM, "--html", page).exit_code == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert run(*CUSTOM, "--html", "-").stdout.startswith("<!doctype html>")


# --- policies of the user ---

ROUTER = """
    from headway import Policy
    from headway.state import Route

    class Last(Policy):
        def __init__(self, by=1):
            self.by = by

        def route(self, request, pool):
            return Route(len(pool.replicas) - self.by, "the last")

    class Broken(Last):
        def route(self, request, pool):
            return Route(1 // 0, "never")

    class Stopped(Last):
        def route(self, request, pool):
            if request.id == 40:
                raise KeyboardInterrupt
            return Route(0, "first")

    class Exits(Last):
        def route(self, request, pool):
            raise SystemExit(0)

    class Far(Last):
        def route(self, request, pool):
            return Route(7, "there is none")
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """A module of policies in the current folder, under a name of its own: imports are remembered."""
    name = "policies_of_" + re.sub(r"\W", "_", request.node.name)
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(ROUTER).lstrip())
    monkeypatch.chdir(tmp_path)
    return name


def test_a_policy_from_the_current_folder_routes(module):
    path = list(sys.path)
    choice = ("--policy", f"route={module}:Last", "--set", "policies.params.route.by=2")
    data = simulated(*CUSTOM, "--replicas", "3", *choice)
    assert [load["busy_s"] > 0 for load in data["replicas"]] == [False, True, False]
    assert sys.path == path


def test_an_exception_in_a_policy_is_told_by_its_line(module):
    result = run(*CUSTOM, "--policy", f"route={module}:Broken")
    refused(result, f"policy {module}:Broken failed at {module}.py:13 in route: ZeroDivisionError")


def test_a_policy_cannot_end_the_run_without_a_word(module):
    result = run(*CUSTOM, "--policy", f"route={module}:Exits")
    refused(result, f"policy {module}:Exits failed at {module}.py:23 in route: SystemExit: 0")


def test_a_module_that_exits_on_import_is_told_by_its_line(module, tmp_path):
    (tmp_path / f"{module}_4.py").write_text("import sys\nsys.exit(0)\n")
    refused(run(*CUSTOM, "--policy", f"route={module}_4:X"), f"failed at {module}_4.py:2", "SystemExit")


def test_an_exception_in_a_worker_process_is_told_by_its_line_too(module):
    words = ("plan", "--model", "llama-3.2-1b", "--gpu", "l4", "--gpus", "4", "--ttft", "200ms", "--rate", "5")
    result = run(*words, "--workers", "2", "--set", f"policies.route={module}:Broken", "--quiet")
    refused(result, f"policy {module}:Broken failed at {module}.py:13 in route: ZeroDivisionError")


def test_a_module_that_breaks_on_import_is_told_by_its_line(module, tmp_path):
    (tmp_path / f"{module}_2.py").write_text("x = 1\ny = unknown\n")
    refused(run(*CUSTOM, "--policy", f"route={module}_2:X"), f"failed at {module}_2.py:2", "NameError")
    (tmp_path / f"{module}_3.py").write_text("x = 1\nclass :\n")
    refused(run(*CUSTOM, "--policy", f"route={module}_3:X"), f"failed at {module}_3.py:2", "SyntaxError")


def test_a_policy_that_answers_nonsense_is_refused(module):
    refused(run(*CUSTOM, "--policy", f"route={module}:Far"), "replica 7", "has 1")


def test_unknown_policies_name_the_nearest(module):
    refused(run(*CUSTOM, "--policy", "route=round-robbin"), "nearest: round-robin", "headway list policies")
    refused(run(*CUSTOM, "--policy", f"route={module}:Lats"), "nearest: Last")
    refused(run(*CUSTOM, "--policy", "route=no_such_module:X"), "cannot import 'no_such_module'")
    refused(run(*CUSTOM, "--policy", "rout=round-robin"), "unknown kind of policy 'rout'", "nearest: route")
    refused(run(*CUSTOM, "--policy", "round-robin"), "write KIND=NAME")


# --- interruption ---


def test_ctrl_c_prints_what_is_known(module):
    result = run(*CUSTOM, "--policy", f"route={module}:Stopped")
    assert result.exit_code == 130
    assert result.stdout.startswith("Stopped early (interrupted after")
    assert "41 arrived" in result.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_signal_ends_a_long_run_with_what_is_known():
    words = [*SMALL[:-1], "100M", "--rate", "30", "--no-records", "--json", "-"]
    command = [sys.executable, "-m", "headway.cli", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(2.0)
        process.send_signal(signal.SIGINT)
        try:
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    if stdout:  # nothing is known when the signal came before the run began
        data = json.loads(stdout)
        assert data["requests"]["finished"] > 0
        assert "interrupted" in data["provenance"]["stopped"]


# --- bad input ---


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--rate", "0"], ["--rate", "above zero"]),
        (["--rate", "-3"], ["--rate", "negative", "25req/s"]),
        (["--rate", "nan"], ["--rate", "'nan'", "25req/s"]),
        (["--rate", "inf"], ["--rate", "'inf'"]),
        (["--rate", "5apples"], ["--rate", "5apples", "90req/min"]),
        (["--requests", "0"], ["--requests", "above zero"]),
        (["--requests", "1.5"], ["--requests", "whole number"]),
        (["--replicas", "0"], ["--replicas", "above zero"]),
        (["--tp", "-1"], ["--tp", "negative"]),
        (["--tp", "3"], ["tp=3", "allowed: 1, 2, 4, 8"]),
        (["--seed", "-1"], ["--seed"]),
        (["--ttft", "0"], ["--ttft", "above zero"]),
        (["--ttft", "soon"], ["--ttft", "'soon'", "500ms"]),
        (["--ttft", "nan"], ["--ttft", "'nan'"]),
        (["--ttft", "1s", "--attainment", "nan"], ["attainment nan"]),
        (["--ttft", "1s", "--attainment", "1.5"], ["attainment 1.5", "at most 1"]),
        (["--ttft", "1s", "--attainment", "most"], ["attainment 'most'", "90%"]),
        (["--input", "0", "--output", "9"], ["--input", "at least 1 token"]),
        (["--input", "exp:-5", "--output", "9"], ["--input", "negative"]),
        (["--input", "exp:nan", "--output", "9"], ["--input", "'nan'"]),
        (["--input", "expo:5", "--output", "9"], ["--input", "exponential"]),
        (["--input", "inf", "--output", "9"], ["--input", "'inf'", "uniform:100:200"]),
        (["--input", "-5", "--output", "9"], ["--input", "negative", "uniform:100:200"]),
        (["--input", "exp:1e12", "--output", "9"], ["--input", "at most 10**9"]),
        (["--weights", "fp"], ["weights='fp'", "nearest: fp8"]),
        (["--kv", "fp4"], ["kv='fp4'", "bf16, fp8"]),
        (["--input", "512"], ["--input and --output belong together"]),
        (["--workload", "chatt"], ["unknown workload 'chatt'", "nearest: chat"]),
        (["--workload", "no/such.csv"], ["no/such.csv"]),
        (["--arrival", "poison"], ["poison", "nearest: poisson"]),
        (["--arrival", "closed:8", "--rate", "5"], ["closed loop has no rate"]),
        (["--set", "pools.0.replica.tpp=2"], ["unknown field 'tpp'", "nearest: pp, tp"]),
        (["--set", "pools.7.count=2"], ["came '7'"]),
        (["--set", "nonsense"], ["PATH=VALUE"]),
        (["--set", "slo.ttft_z=1"], ["unknown field 'ttft_z'", "nearest: ttft_s"]),
        (["--set", "workload.requestz=1"], ["unknown field 'requestz'", "nearest: requests"]),
        (["--json", "no/such/folder/r.json"], ["no folder no/such/folder"]),
        (["--html", "no/such/folder/r.html"], ["no folder no/such/folder"]),
        (["--records", "rows.xlsx"], ["Error: rows.xlsx", ".parquet", "'.xlsx'"]),
        (["--records", "rows.csv", "--no-records"], ["leave one of them out"]),
    ],
)
def test_bad_input_is_refused_with_what_came_and_what_is_allowed(words, parts):
    refused(run("simulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm", *words), *parts)


def test_unknown_names_and_missing_options_are_refused():
    refused(run("simulate", "--model", "llama-3.1-8", "--gpu", "h100-sxm"), "unknown model", "nearest: llama-3.1-8b")
    refused(run("simulate", "--model", "llama-3.1-8b", "--gpu", "h100"), "nearest: ", "h100-sxm")
    refused(run("simulate", "--model", "llama-3.1-8b"), "--gpu is missing", "headway list gpus")
    refused(run("simulate"), "--model is missing", "DEPLOYMENT.yaml")


def test_a_model_that_does_not_fit_is_an_answer_with_what_would_do():
    result = run("simulate", "--model", "llama-3.1-70b", "--gpu", "h100-sxm")
    refused(result, "does not fit on h100-sxm", "GiB", "tp=", "would do", code=1)


def test_deployment_files_are_checked(tmp_path):
    file = tmp_path / "d.yaml"
    file.write_text("pools:\n- replica: {model: llama-3.1-8b, gpu: h100-sxm}\n  cuont: 2\n")
    refused(run("simulate", file), str(file), "unknown field 'cuont'", "nearest: count")
    refused(run("simulate", tmp_path / "dd.yaml"), "no such file", "nearest: d.yaml")
    refused(run("simulate", file, "--replicas", "4"), "--set pools.0.count=4")
    refused(run("simulate", file, "--weights", "fp8"), "--set pools.0.replica.weights=fp8")


def test_lengths_beside_a_trace_are_refused(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,100,10\n")
    refused(run(*SMALL[:5], "--workload", trace, "--input", "5"), "holds the lengths of its requests")


def test_json_that_cannot_be_written_is_refused(tmp_path):
    refused(run(*SMALL, "--json", tmp_path), "is a folder")


def test_unexpected_errors_are_not_hidden(monkeypatch):
    def broken(*args, **settings):
        raise RuntimeError("a bug")

    monkeypatch.setattr("headway.sim.simulate", broken)
    result = run(*SMALL)
    assert isinstance(result.exception, RuntimeError)
