"""Ctrl-C: what is known survives it, wherever it lands."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import headway
from cli_cases import run
from headway.cost import Replica
from headway.errors import BadInput
from headway.metrics import Slo
from headway.plan import Question, plan
from headway.plan.workers import PROGRAM
from headway.policies import Policy
from headway.sim import CtrlC, Deployment, Policies, Pool, simulate
from headway.workload import workload
from report_cases import plan as made_plan

DEPLOYMENT = Deployment(pools=(Pool(replica=Replica(model="llama-3.2-1b", gpu="l4")),))
WORDS = ("simulate", "--model", "llama-3.2-1b", "--gpu", "l4", "--input", "40", "--output", "5", "--requests", "100")
PLAN = ("plan", "--model", "llama-3.2-1b", "--gpu", "l4", "--gpus", "1", "--rate", "2", "--ttft", "1s")


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def pressing(function):
    """The function, with Ctrl-C in its midst."""

    def pressed(*args, **kwargs):
        press()
        return function(*args, **kwargs)

    return pressed


def chat(requests: int = 100):
    return workload("chat", requests=requests)


# --- the context ---


def test_ctrl_c_is_raised_once_and_then_noted():
    with CtrlC() as ctrl_c:
        with pytest.raises(KeyboardInterrupt):
            press()
        press()
    assert ctrl_c.came == 2
    with pytest.raises(KeyboardInterrupt):
        press()


def test_held_back_it_is_noted_and_the_outer_context_learns_of_it():
    with CtrlC() as outer:
        with CtrlC() as inner:
            inner.hold()
            press()
        assert (inner.came, outer.came) == (1, 1)
        with pytest.raises(KeyboardInterrupt):
            press()


def test_what_the_outer_context_noted_stops_the_inner_one_before_it_begins():
    with CtrlC(float("inf")) as outer:
        press()
        with pytest.raises(KeyboardInterrupt), CtrlC():
            raise AssertionError("never reached")
        press()
    assert outer.came == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_treats_the_signal_itself_keeps_doing_so():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with CtrlC():
            press()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]


# --- the simulator ---


def test_a_finished_run_survives_ctrl_c_in_its_sums(monkeypatch):
    from headway.sim import run as module

    whole = simulate(DEPLOYMENT, chat())
    monkeypatch.setattr(module, "summarize", pressing(module.summarize))
    result = simulate(DEPLOYMENT, chat())
    assert result.provenance.pop("stopped") == "interrupted at its end"
    assert result.to_json() == whole.to_json()


def test_a_stopped_run_survives_a_second_ctrl_c_in_its_sums(monkeypatch):
    from headway.sim import run as module

    monkeypatch.setattr(module, "summarize", pressing(module.summarize))
    result = simulate(DEPLOYMENT, chat(20_000), progress=lambda done, total: press())
    assert result.provenance["stopped"] == f"interrupted after {result.requests.finished} finished requests"
    assert 0 < result.requests.arrived < 20_000


def test_ctrl_c_takes_effect_between_two_events(monkeypatch):
    """In the midst of one a request would be counted that has no row yet."""
    from headway.sim.recorder import Recorder

    if not headway.interpreted_modules():
        pytest.skip("compiled, nothing can come between the lines of the core")
    write, presses = Recorder.write, [1]

    def pressed(recorder, seq):
        for _ in range(presses.pop() if presses else 0):
            press()
        return write(recorder, seq)

    monkeypatch.setattr(Recorder, "write", pressed)
    result = simulate(DEPLOYMENT, chat(20_000))
    assert result.records is not None
    assert 0 < len(result.records) == result.requests.arrived < 20_000
    presses.append(2)  # the second one does not wait, and then nothing is known for sure
    with pytest.raises(KeyboardInterrupt):
        simulate(DEPLOYMENT, chat(20_000))


# --- the command line ---


def test_ctrl_c_while_the_table_is_made_costs_neither_table_nor_json(monkeypatch, tmp_path):
    from headway import report

    monkeypatch.setattr(report, "result_text", pressing(report.result_text))
    files = {name: tmp_path / f"r.{name}" for name in ("json", "html", "csv")}
    result = run(*WORDS, "--json", files["json"], "--html", files["html"], "--records", files["csv"])
    assert result.exit_code == 130
    assert "100 arrived" in result.stdout
    assert json.loads(files["json"].read_text())["requests"]["finished"] == 100
    assert files["csv"].read_text().count("\n") == 101
    assert not files["html"].exists()
    assert f"interrupted: {files['html']} was not written" in result.stderr


def test_after_ctrl_c_no_parquet_is_loaded(monkeypatch, tmp_path):
    pytest.importorskip("pyarrow")
    from headway import report

    monkeypatch.setattr(report, "result_text", pressing(report.result_text))
    result = run(*WORDS, "--records", tmp_path / "r.parquet")
    assert result.exit_code == 130
    assert not (tmp_path / "r.parquet").exists()
    assert "r.parquet was not written" in result.stderr


def test_ctrl_c_while_a_plan_is_told_costs_neither_json_nor_yaml(monkeypatch, tmp_path):
    from headway import report

    monkeypatch.setattr("headway.plan.plan", lambda *_, **__: made_plan())
    monkeypatch.setattr(report, "plan_text", pressing(report.plan_text))
    files = {name: tmp_path / f"p.{name}" for name in ("json", "yaml", "html")}
    result = run(*PLAN, *(word for name, file in files.items() for word in (f"--{name}", file)))
    assert result.exit_code == 130
    assert json.loads(files["json"].read_text())["feasible"]
    assert files["yaml"].exists() and not files["html"].exists()
    assert f"interrupted: {files['html']} was not written" in result.stderr
    assert f"`headway report {files['json']} --html {files['html']}` writes it" in " ".join(result.stderr.split())


def test_a_plan_that_was_interrupted_early_does_not_say_that_nothing_will_do():
    def stop(done: int, planned: int) -> None:
        raise KeyboardInterrupt

    slo = Slo(ttft_s=1.0, tpot_s=0.1)
    found = plan(
        Question(model="llama-3.2-1b", gpu="l4", gpus=2, workload="chat", rate_req_s=1e4, slo=slo),
        workers=1,
        progress=stop,
    )
    assert found.interrupted and not found.feasible and found.binding is None
    assert f"none of 1 tried of {found.enumerated - sum(found.discarded.values())} candidates" in found.message
    assert "would do" not in found.message and "No plan" not in found.message


def test_ctrl_c_while_jobs_are_handed_out_ends_the_workers(monkeypatch):
    from headway.plan import workers as module

    class Pool(module.ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            future = super().submit(*args, **kwargs)
            press()
            return future

    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    crew = module.Workers(Slow, (), 2)
    with pytest.raises(KeyboardInterrupt):
        list(crew.answers(list(range(8))))
    assert crew.started == []


class Slow:
    """A job that would hold everybody up."""

    def __call__(self, job: int) -> int:
        import time

        time.sleep(3600)
        return job


def test_ctrl_c_while_modules_load_is_one_line(tmp_path):
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join((str(tmp_path), str(Path(headway.__file__).parents[1])))
    command = [sys.executable, "-c", "from headway.cli import main; main()"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_what_the_root_loads_until_the_command_line_can_answer():
    """Before `headway.cli` runs, Ctrl-C is a traceback: nothing that takes long is loaded by then."""
    code = "import sys; before = set(sys.modules); import headway; print(sorted(set(sys.modules) - before))"
    path = str(Path(headway.__file__).parents[1])
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    assert not {"typing", "pathlib", "re"} & set(eval(done.stdout))


# --- what a policy prints ---

TALKER = """
    from headway.policies import Policy
    from headway.state import Route

    print("hello")

    class Talker(Policy):
        def route(self, request, pool):
            print("routing", request.id)
            return Route(0, "first")

    class Silent(Policy):
        pass
"""


@pytest.fixture
def talker(tmp_path, monkeypatch, request):
    name = f"talker_of_{request.node.name}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(TALKER))
    monkeypatch.chdir(tmp_path)
    return name


def test_what_a_policy_prints_does_not_get_between_the_data(talker):
    result = run(*WORDS, "--policy", f"route={talker}:Talker", "--json", "-")
    assert json.loads(result.stdout)["requests"]["finished"] == 100
    assert "hello\n" in result.stderr and "routing 99\n" in result.stderr
    assert "routing 99\n" in run(*WORDS, "--policy", f"route={talker}:Talker").stdout


@pytest.mark.parametrize("kind", ["route", "order", "admit"])
def test_a_policy_that_decides_nothing_is_refused(talker, kind):
    result = run(*WORDS, "--policy", f"{kind}={talker}:Silent")
    assert result.exit_code == 2
    assert f"does not define {kind}(), which every policy for {kind}= overrides" in result.stderr


def test_a_class_or_an_object_in_place_of_a_name_is_refused_with_the_name():
    class Mine(Policy):
        pass

    for came in (Mine, Mine()):
        with pytest.raises(BadInput, match=r"policies\.route: .* as route='test_interrupt:.*Mine'"):
            Policies(route=came)


@pytest.mark.parametrize("name", [":R", "..a:R", "a..b:R", ".:R"])
def test_a_policy_without_a_module_is_refused(name):
    result = run(*WORDS, "--policy", f"route={name}")
    assert result.exit_code == 2
    assert "names no module; write module:Class" in result.stderr and "Traceback" not in result.stderr


def press_while_listing(monkeypatch):
    """Ctrl-C comes while a plan's candidates are listed."""
    module = sys.modules["headway.plan.run"]
    begin = module.Planning

    def interrupted(*asked):
        press()
        return begin(*asked)

    monkeypatch.setattr(module, "Planning", interrupted)


def test_an_interruption_before_any_simulation_is_answered_by_estimate(monkeypatch):
    slo = Slo(ttft_s=0.5, tpot_s=0.03)
    question = Question(model="llama-3.1-8b", gpu="h100-sxm", gpus=2, rate_req_s=30, slo=slo, requests=300)
    press_while_listing(monkeypatch)
    found = plan(question, workers=1)
    assert found.interrupted and not found.ranked and found.best is None
    monkeypatch.undo()
    said = re.fullmatch(
        r"Interrupted before any candidate was simulated\. By estimate alone (.+) \((\d+) GPUs? for \$.*", found.message
    )
    assert int(said[2]) <= question.gpus
    assert said[1] in {candidate.name for candidate in plan(question, workers=1).ranked}


def test_an_interruption_keeps_why_nothing_can_be_simulated(monkeypatch):
    slo = Slo(ttft_s=0.5)
    question = Question(model="llama-3.1-70b", gpu="l4", gpus=1, rate_req_s=1, slo=slo, requests=300)
    press_while_listing(monkeypatch)
    found = plan(question, workers=1)
    assert found.interrupted and found.binding == "memory"
    assert "does not fit" in found.message and "estimate" not in found.message


@pytest.mark.parametrize("said", [0, 5, -5])
def test_a_worker_whose_starter_was_interrupted_ends_silently(said):
    setups = pickle.dumps(sys.path) + pickle.dumps((int, ()))
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=setups[:said], capture_output=True, check=True)
    assert not done.stdout and not done.stderr
