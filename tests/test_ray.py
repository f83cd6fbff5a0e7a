"""The planner on a real Ray cluster, which these tests start for themselves and which nothing else knows of."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from cli_cases import refused, run
from headway.errors import BadInput, HeadwayError
from headway.metrics import Slo
from headway.plan import Plan, Question, RayCluster, cluster, plan, plans
from headway.plan.crew import muster
from headway.sim import CtrlC

ray = pytest.importorskip("ray", reason="no wheel of Ray for this machine: pip install 'headway[ray]'")

ASK = Question(
    model="llama-3.1-8b", gpu="h100-sxm", gpus=2, workload="chat", rate_req_s=30, slo=Slo(ttft_s=0.5, tpot_s=0.03),
    requests=150, kv=("bf16",), margin=0,
)  # fmt: skip
QUICK = msgspec.structs.replace(ASK, gpus=1, requests=100)
STARTED_S = 90


def free_ports(count):
    """Ports that nobody had a moment ago."""
    listeners = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in listeners]
    for each in listeners:
        each.close()
    return ports


@pytest.fixture(scope="module")
def addresses():
    """Of a cluster's head and of its client server: two processors on one node, without dashboard and telemetry."""
    port, client, agent = free_ports(3)
    # A short path: the names of Unix sockets hold 107 bytes, of which Ray takes 60.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = (
            "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--num-gpus=0", f"--temp-dir={folder}",
            "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=80000000",
            "--min-worker-port=0", "--max-worker-port=0", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}",
        )  # fmt: skip
        with open(Path(folder, "log"), "w+") as log:
            node = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            try:
                wait_for(node, log, port)
                yield f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}"
            finally:
                os.killpg(node.pid, signal.SIGKILL)  # all of its processes, and nobody else's
                node.wait()


@pytest.fixture
def head(addresses):
    return addresses[0]


@pytest.fixture(scope="module")
def joined(addresses):
    ray.init(address=addresses[0], log_to_driver=False, logging_level="ERROR")
    yield RayCluster("auto")
    ray.shutdown()


@pytest.fixture
def connected(joined):
    """A program that is connected already, and stays so."""
    yield joined
    assert ray.is_initialized()


def wait_for(node, log, port):
    """Until the cluster has its processors."""
    end_s = time.monotonic() + STARTED_S
    while True:
        log.seek(0)
        text = log.read()
        if "Ray runtime started" in text:
            return
        if node.poll() is not None or time.monotonic() > end_s:
            pytest.skip(f"no Ray cluster comes up on this machine: {text[-500:]}")
        time.sleep(0.1)


def timeless(found: Plan) -> bytes:
    return msgspec.structs.replace(found, seconds=0.0).to_json().encode()


def sleeper(folder):
    """Jobs that leave a note of who does them, and take a while."""

    def answer(job):
        Path(folder, f"{job}-{os.getpid()}").touch()
        time.sleep(0.2)
        if job == "fatal":
            os._exit(1)
        if job == "refused":
            raise BadInput("this job is refused")
        return os.getcwd(), job

    return answer


def noted(folder, job):
    return [int(path.name.rpartition("-")[2]) for path in Path(folder).glob(f"{job}-*")]


def test_the_plan_of_a_cluster_is_that_of_one_process_to_the_byte_and_its_progress_is_told(head):
    told = []
    with CtrlC():
        found = plan(ASK, workers=RayCluster(head), progress=lambda done, planned: told.append((done, planned)))
    assert timeless(found) == timeless(plan(ASK, workers=1))
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert not ray.is_initialized()


def test_the_command_line_plans_through_the_client_server_with_a_policy_of_the_users(addresses, tmp_path, monkeypatch):
    pytest.importorskip("grpc", reason="addresses as ray:// need grpcio: pip install 'ray[client]'")
    (tmp_path / "a_short_order.py").write_text(
        "from headway.policies import Policy\n"
        "class Shortest(Policy):\n"
        "    def order(self, queue):\n"
        "        return queue.prompt_tokens\n"
    )
    monkeypatch.chdir(tmp_path)
    words = (
        "plan", "--model", "llama-3.2-1b", "--gpu", "l4", "--gpus", "1", "--rate", "2", "--ttft", "1s", "--quiet",
        "--set", "requests=200", "--set", "policies.order=a_short_order:Shortest", "--json",
    )  # fmt: skip
    for file, who in (("ray.json", ("--ray", addresses[1])), ("here.json", ("--workers", 1))):
        done = run(*words, file, *who)
        if who[0] == "--ray" and "cannot be reached (" in done.output:  # its proxy forks beside gRPC's threads
            pytest.skip(f"Ray's client server came up without one for this client, as happens: {done.output[-300:]}")
        assert done.exit_code == 0, done.output
    there, here = (json.loads(Path(name).read_bytes()) | {"seconds": 0} for name in ("ray.json", "here.json"))
    assert there == here


# --- what is no cluster ---


def test_a_client_that_could_not_connect_leaves_the_program_as_it_was(head, monkeypatch):
    worker = pytest.importorskip("ray.util.client.worker", reason="addresses as ray:// need grpcio")

    def refuse(*_, **__):
        raise RuntimeError("Starting Ray client server failed")

    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as listener:
        patch.setattr(worker.Worker, "__init__", refuse)
        with pytest.raises(BadInput, match="Starting Ray client server failed"):
            plan(ASK, workers=RayCluster(f"ray://127.0.0.1:{listener.getsockname()[1]}"))
    assert timeless(plan(QUICK, workers=RayCluster(head))) == timeless(plan(QUICK, workers=1))


CLI = ("plan", "--model", "llama-3.2-1b", "--gpu", "l4", "--gpus", "1", "--rate", "2", "--ttft", "1s")


def test_an_address_that_nobody_listens_at_is_refused_at_once():
    (port,) = free_ports(1)
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        refused(run(*CLI, "--ray", address), f"Ray cluster {address}: cannot be reached", "--workers N")


def test_who_listens_but_is_no_cluster_is_given_up_on(monkeypatch):
    monkeypatch.setattr(cluster, "_JOIN_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        refused(run(*CLI, "--ray", address), f"Ray cluster {address}: cannot be reached", "no answer within 2 s")


@pytest.mark.parametrize("address", ["", "local", "head", "head:port", "tcp:head:6379", "ray://head"])
def test_another_form_of_address_is_refused_for_ray_would_start_a_cluster_of_its_own(address):
    refused(run(*CLI, "--ray", address), "give HOST:PORT of its head", "or auto")


def test_processes_and_a_cluster_exclude_each_other():
    refused(run(*CLI, "--ray", "auto", "--workers", 2), "--workers 2 against --ray auto")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(run(*CLI, "--ray", "head:6379"), "pip install 'headway[ray]'")


# --- a program that is connected already: last in this file, as it stays so ---


def test_a_job_whose_worker_is_killed_is_done_by_another(connected, tmp_path):
    crew = muster(sleeper, (str(tmp_path),), connected)

    def kill_first():
        while not (pids := noted(tmp_path, 3)):
            time.sleep(0.01)
        os.kill(pids[0], signal.SIGKILL)
        return pids[0]

    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill_first)
        answers = dict(crew.answers(range(8)))
    crew.close()
    assert answers == {i: (os.getcwd(), i) for i in range(8)}
    assert killed.result(1) in noted(tmp_path, 3) and len(noted(tmp_path, 3)) == 2


def test_an_error_keeps_its_type_a_stranger_is_refused(connected, tmp_path):
    crew = muster(sleeper, (str(tmp_path),), connected)
    with pytest.raises(BadInput, match="this job is refused"):
        list(crew.answers(["fine", "refused"]))
    crew._connect()
    crew.sent = ("another edition", *crew.sent[1:3], "a new name", crew.sent[4])
    with pytest.raises(BadInput, match="has another Headway than this machine; install the same version"):
        list(crew.answers(["fine"]))


def test_a_job_that_no_worker_survives_ends_the_plan(connected, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_RETRIES", 1)
    crew = muster(sleeper, (str(tmp_path),), connected)
    with pytest.raises(HeadwayError, match="was lost, and so were those in its place"):
        list(crew.answers(["fine", "fatal"]))
    assert len(noted(tmp_path, "fatal")) == 2


def test_an_interruption_keeps_what_is_known(connected):
    def stop(done, planned):
        if done == 3:
            raise KeyboardInterrupt

    found = plan(ASK, workers=connected, progress=stop)
    assert (found.interrupted, found.evaluated) == (True, 3)


def test_many_questions_are_answered_as_each_by_itself(connected):
    questions = [msgspec.structs.replace(QUICK, rate_req_s=rate) for rate in (5.0, 10.0, 400.0)]
    found = dict(plans(questions, workers=connected))
    assert [timeless(found[i]) for i in range(3)] == [timeless(plan(each, workers=1)) for each in questions]


def test_a_program_that_is_connected_is_not_led_elsewhere(connected):
    with pytest.raises(BadInput, match="connected to Ray already; give the address auto"):
        plan(ASK, workers=RayCluster("head:6379"))


def test_a_cluster_that_went_away_is_not_waited_for(connected, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_SILENCE_S", 0.05)
    crew = muster(sleeper, (str(tmp_path),), connected)
    crew._connect()
    (port,) = free_ports(1)
    crew.head = f"127.0.0.1:{port}"
    with pytest.raises(HeadwayError, match="is gone"):
        list(crew.answers(["fine"]))
