"""Records that come to the wrong one of two decision processes find the other."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable

import pytest

from headway.gateway import Backing, Brain, Decider, GatewaySpec, Reader
from headway.gateway.channel import Call, Channel
from headway.gateway.events import Arrival
from headway.gateway.messages import message_types
from headway.policies import policy

pytestmark = pytest.mark.skipif(importlib.util.find_spec("google") is None, reason="protobuf is not installed")
SPEC = GatewaySpec(upstreams=("127.0.0.1:1",), models=("m",))


class Elder:
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def message(self, call: Call, message: bytes) -> None:
        entries = message_types()["AccessLogs"].FromString(message).http_logs.log_entry
        self.heard += [entry.common_properties.stream_id for entry in entries]

    def ended(self, call: Call) -> None:
        pass


def decider(say: Callable[[str], None] = lambda text: None) -> Decider:
    kinds = {"route": "least-requests", "order": "fcfs", "admit": "accept-all"}
    brain = Brain(SPEC, [Backing()], {kind: policy(kind, name) for kind, name in kinds.items()})
    made = Decider(brain, Reader(SPEC), ["127.0.0.1:1"], say)
    brain.arrive(0.0, Arrival(id="ours", tenant=0, slo_class=0, prompt_bytes=4))
    return made


def records(*ids: str, attempts: int = 1) -> bytes:
    message = message_types()["AccessLogs"]()
    for id in ids:
        common = message.http_logs.log_entry.add().common_properties
        common.stream_id, common.upstream_request_attempt_count = id, attempts
    return bytes(message.SerializeToString())


def test_a_record_goes_to_the_process_that_decided(tmp_path):
    elder, path = Elder(), tmp_path / "elder.sock"
    here = decider()

    async def run() -> None:
        server = await asyncio.get_running_loop().create_unix_server(lambda: Channel(elder, 1 << 20, pytest.fail), path)
        here.elder = path
        here.records(records("ours", "theirs"))
        here.records(records("refused", attempts=0))
        await asyncio.gather(*here.telling)
        server.close()

    asyncio.run(run())
    assert elder.heard == ["theirs"]
    assert here.brain.live["ours"].record is not None


def test_once_the_elder_has_ended_its_records_are_counted_as_nobodys(tmp_path):
    here = decider()

    async def run() -> None:
        here.elder = tmp_path / "nobody.sock"
        here.records(records("theirs"))
        await asyncio.gather(*here.telling)

    asyncio.run(run())
    assert here.elder is None
    assert here.brain.figures.total("headway_unmatched_total") == 1
