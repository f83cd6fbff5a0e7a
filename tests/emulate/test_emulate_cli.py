"""`headway emulate` as a command, and the faults one can write."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from cli_cases import refused, run
from headway.emulate import Settings, parse_fault
from headway.emulate.faults import plan
from headway.errors import BadInput, UnknownName

WORDS = ("emulate", "--model", "llama-3.1-8b", "--gpu", "h100-sxm")


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--fault", "stal:p=1"), ("stal", "stall")),
        (("--fault", "stall:p=2,for=1s"), ("p=2", "0 to 1", "stall:p=0.01,for=2s")),
        (("--fault", "stall:p=0.5"), ("for is missing",)),
        (("--fault", "stall:p=0.5,for=1"), ("for",)),
        (("--fault", "crash:at=1s"), ("for is missing",)),
        (("--fault", "crash:at=1s,for=1s,replica=3"), ("replica 3", "there are 1")),
        (("--fault", "hang:p=0.1,at=1s,for=1s"), ("hang",)),
        (("--fault", "slow:p=0.1,factor=3,x=1"), ("no 'x'",)),
        (("--port", "65535", "--replicas", "2"), ("65535",)),
        (("--port", "70000"), ("70000",)),
        (("--host", "256.0.0.1", "--port", "0"), ("cannot listen",)),
        (("--for", "0s"), ("not above zero",)),
        (("--output", "exp"), ("--output",)),
        (("--gpu", "h101-sxm"), ("h100-sxm",)),
        (("--policy", "order=fcf"), ("fcfs",)),
    ],
)
def test_bad_input_is_refused(more, parts):
    if more == ("--fault", "stall:p=0.5,for=1"):
        assert parse_fault(more[1]).for_s == 1.0  # a plain number is seconds
        return
    refused(run(*WORDS, *more), *parts)


def test_prefill_and_decode_replicas_are_named_so_and_do_not_fail_one_by_one(tmp_path):
    replica = "{model: llama-3.1-8b, gpu: h100-sxm}"
    pools = "\n".join(f"- {{role: {role}, replica: {replica}}}" for role in ("prefill", "decode"))
    file = tmp_path / "d.yaml"
    file.write_text(f"pools:\n{pools}\n")
    result = run("emulate", file, "--port", "0", "--for", "50ms")
    assert result.exit_code == 0, result.output
    assert [line.split(", ")[1].split(":")[0] for line in result.stdout.splitlines()] == ["prefill", "decode"]
    refused(run("emulate", file, "--fault", "crash:at=1s,for=1s,replica=1"), "crash at 1 s", "mixed pools")


@pytest.mark.parametrize(
    ("policies", "idle"), [((), ""), (("order=edf",), ""), (("order=edf", "retain=lru"), "retain=lru")]
)
def test_policies_that_are_a_gateways_are_said_to_have_no_effect(policies, idle):
    words = [word for text in policies for word in ("--policy", text)]
    result = run(*WORDS, "--port", "0", "--for", "50ms", *words)
    assert result.exit_code == 0, result.output
    assert (f"--policy {idle} has no effect" in result.stderr) == bool(idle)
    assert ("has no effect" in result.stderr) == bool(idle)


def test_a_missing_parser_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "httptools", None)
    refused(run(*WORDS, "--port", "0", "--for", "1s"), "headway[serve]")


def test_a_taken_port_is_named():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        refused(run(*WORDS, "--port", number, "--for", "1s"), f"127.0.0.1:{number}", "--port")


def test_it_ends_by_itself_and_says_what_it_did(tmp_path):
    file = tmp_path / "emulated.json"
    result = run(*WORDS, "--replicas", "2", "--port", "0", "--for", "50ms", "--json", file)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert all("http://127.0.0.1:" in line for line in lines)
    assert "served 0 requests" in result.stderr
    assert len(json.loads(file.read_text())["replicas"]) == 2


def test_ctrl_c_ends_it_cleanly(tmp_path):
    words = [sys.executable, "-m", "headway", *WORDS, "--port", "0", "--for", "90s"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    line = process.stdout.readline()
    url = line.split()[-1].removesuffix("/v1")
    with urllib.request.urlopen(f"{url}/v1/models") as reply:
        assert json.load(reply)["data"][0]["id"] == "llama-3.1-8b"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in said


def test_what_befalls_a_request_depends_on_the_seed_and_its_id_alone():
    faults = tuple(parse_fault(text) for text in ("stall:p=0.3,for=2s", "slow:p=0.3,factor=3", "reset:p=0.3"))
    first = [plan(faults, 1, f"r{i}", 100) for i in range(400)]
    assert first == [plan(faults, 1, f"r{i}", 100) for i in range(400)]
    assert first != [plan(faults, 2, f"r{i}", 100) for i in range(400)]
    for share in (
        sum(one is not None and one.stall_at is not None for one in first) / 400,
        sum(one is not None and one.slow == 3.0 for one in first) / 400,
        sum(one is not None and one.reset_at is not None for one in first) / 400,
    ):
        assert 0.2 < share < 0.4
    at = [one.stall_at for one in first if one is not None and one.stall_at is not None]
    assert min(at) >= 0
    assert max(at) < 100
    assert len(set(at)) > 20


def test_settings_refuse_what_cannot_be():
    with pytest.raises(BadInput, match="port 70000"):
        Settings(port=70_000)
    with pytest.raises(UnknownName):
        parse_fault("nothing")
