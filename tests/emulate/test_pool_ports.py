"""Prefill and decode replicas over HTTP: a header names who computes the prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from headway.emulate import Emulator, Settings, Split, parse_fault
from headway.errors import BadInput
from tests.core.drive import plain_table
from tests.emulate.http_cases import REPLICA, connect, held

ROLES = ("prefill", "prefill", "decode", "decode")
ASKED = {"prompt": [7] * 32, "max_tokens": 4, "ignore_eos": True, "stream": True}
PATH = "/v1/completions"


class Slow:
    """A link that takes 200 ms."""

    def send(self, source: int, target: int, tokens: int, now: float) -> float:
        self.ends = source, target
        return now + 0.2


@pytest.fixture
def serve(monkeypatch: Any) -> Callable[..., Any]:
    table = plain_table(linear_s=0.005, decode_s=0.0005)
    monkeypatch.setattr("headway.emulate.server.compile_replica", lambda replica: table)

    def run(what: Any, **settings: Any) -> Any:
        return held(Emulator([REPLICA] * 4, Settings(port=0, **settings), splits=[Split(0, ROLES, Slow())]), what)

    return run


def at(emulator: Emulator, number: int, host: str = "127.0.0.1") -> str:
    return f"{host}:{emulator.ports[number].address[1]}"


def pools_of(emulator: Emulator) -> Any:
    return emulator.players[0].pools  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["x-prefiller-host-port", "x-llm-d-prefiller-host-port"])
def test_the_named_replica_computes_the_prompt_and_the_asked_one_decodes_it(serve, name):
    async def what(emulator: Emulator) -> Any:
        client = await connect(emulator.ports[3])
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        reply = await client.ask("POST", PATH, ASKED, **{name.replace("-", "_"): at(emulator, 1)})
        took_s = loop.time() - began_s
        assert reply.status == 200 and len(reply.events) == 5
        pools = pools_of(emulator)
        assert pools.link.ends == (1, 3) and took_s > 0.2
        assert [engines[0].busy.until(9.0) > 0 for engines in pools.engines] == [False, True, False, True]
        assert not pools.ways
        assert [row["output_tokens"] for row in emulator.summary()] == [0, 0, 0, 4]

    serve(what)


def test_without_the_header_the_asked_replica_serves_alone_and_a_stranger_is_refused(serve):
    async def what(emulator: Emulator) -> Any:
        client = await connect(emulator.ports[2])
        assert (await client.ask("POST", PATH, ASKED)).status == 200
        assert not hasattr(pools_of(emulator).link, "ends")
        for stranger in ("127.0.0.1:1", at(emulator, 3, "192.0.2.1"), "nonsense"):
            reply = await client.ask("POST", PATH, ASKED, x_prefiller_host_port=stranger)
            assert reply.status == 502 and "x-prefiller-host-port" in reply.json["error"]["message"]
        reply = await client.ask("GET", "/metrics")
        assert b"vllm:num_requests_running" in reply.body

    serve(what)


def test_embeddings_and_answers_of_one_token_end_where_their_prompts_are_computed(serve):
    async def what(emulator: Emulator) -> Any:
        client = await connect(emulator.ports[2])
        named = {"x_prefiller_host_port": at(emulator, 0, "localhost")}
        one = await client.ask("POST", PATH, ASKED | {"max_tokens": 1, "stream": False}, **named)
        assert one.json["usage"]["completion_tokens"] == 1
        vectors = await client.ask("POST", "/v1/embeddings", {"input": ["some text", "more"]}, **named)
        assert len(vectors.json["data"]) == 2
        assert not hasattr(pools_of(emulator).link, "ends") and not pools_of(emulator).ways

    serve(what)


def test_who_hangs_up_leaves_nothing_at_either_replica(serve):
    async def what(emulator: Emulator) -> Any:
        pools = pools_of(emulator)
        for stage in ("engine", "moving"):
            client = await connect(emulator.ports[2])
            named = {"x_prefiller_host_port": at(emulator, 0)}
            client.send("POST", PATH, ASKED | {"prompt": [7] * 2000, "max_tokens": 2000}, **named)
            while stage not in [way.stage for way in pools.ways.values()]:
                await asyncio.sleep(0.001)
            client.close()
            while pools.ways:
                await asyncio.sleep(0.002)
            books = [pools.books(i, 1e9) for i in range(4)]
            assert [each["running"] + each["waiting"] + each["kv_used"] for each in books] == [0] * 4
        assert emulator.ports[2].meters.ended["abort"] == 2

    serve(what)


def test_what_befalls_one_replica_as_a_whole_is_refused_and_a_fault_of_requests_is_not(serve):
    fault = parse_fault("crash:at=1s,for=1s,replica=2")
    with pytest.raises(BadInput, match="mixed pools"):
        Emulator([REPLICA] * 4, Settings(port=0, faults=(fault,)), splits=[Split(0, ROLES, Slow())])

    async def what(emulator: Emulator) -> Any:
        client = await connect(emulator.ports[2])
        assert (await client.ask("POST", PATH, ASKED)).status == 503

    serve(what, faults=(parse_fault("error:p=1,status=503"),))
