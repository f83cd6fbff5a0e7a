"""CPU of the decision process for one request, without Envoy: question, decision, end, record, as bytes.

    chrt -r 3 python benchmarks/decision.py [DEPLOYMENT.yaml]

The bytes that Envoy would send go into the two channels of a decision process, 32 requests at a time; the least and the
median of 80 rounds of 300 requests. Without a file: two replicas that no cost model knows, as in `gateway.py`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from headway.cli.serve import host_of, served_from
from headway.cli.terminal import Terminal
from headway.gateway.channel import DATA, END_HEADERS, HEADERS, PREFACE, RST_STREAM, SETTINGS, Channel, _frame
from headway.gateway.decider import Decider
from headway.gateway.deciding import Records
from headway.gateway.messages import message_types
from headway.specs import read_yaml

ROUNDS, REQUESTS, LIVE, KEY = 80, 300, 32, "change-me"
PLAIN = {"upstreams": ["127.0.0.1:8001", "127.0.0.1:8002"], "models": ["paced"], "limits": {"in_flight": 4096}}


class Sink:
    """A transport that takes everything."""

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing waits."""

    def is_closing(self) -> bool:
        """Never."""
        return False

    def write(self, data: bytes) -> None:
        """Forget it."""


def question(id: str, model: str) -> bytes:
    """What Envoy asks of a request."""
    message = message_types()["ProcessingRequest"]()
    about = message.attributes["envoy.filters.http.ext_proc"].fields
    told = {"request.id": id, "request.path": "/v1/chat/completions", "request.method": "POST"}
    for name, value in {**told, "request.headers['authorization']": f"Bearer {KEY}"}.items():
        about[name].string_value = value
    said = {"role": "user", "content": "Say a word. " * 5}
    message.request_body.body = json.dumps({"model": model, "messages": [said], "max_tokens": 4, "n": 1}).encode()
    return framed(message)


def record(id: str, port: int) -> bytes:
    """What Envoy's access log says of it."""
    message = message_types()["AccessLogs"]()
    entry = message.http_logs.log_entry.add()
    common = entry.common_properties
    common.stream_id, common.upstream_request_attempt_count = id, 1
    common.time_to_first_upstream_tx_byte.nanos, common.duration.nanos = 300_000, 1_000_000
    place = common.upstream_remote_address.socket_address
    place.address, place.port_value = "127.0.0.1", port
    common.metadata.filter_metadata["headway"].fields["seen"].string_value = "0 0 0 4 9 0"
    entry.response.response_code.value = 200
    return framed(message)


def framed(message: Any) -> bytes:
    """A message as gRPC puts it on the wire."""
    raw = message.SerializeToString()
    return b"\0" + len(raw).to_bytes(4, "big") + raw


async def main(file: str | None) -> None:
    """Measure, and print."""
    data = read_yaml(file) if file else {"gateway": PLAIN}
    for tenant in data["gateway"].get("tenants", []):
        tenant |= {name: 1e15 for name in ("requests_per_min", "tokens_per_min") if name in tenant}
    terminal = Terminal(quiet=True)
    served = served_from(data, file or "plain", None, terminal)
    decider = host_of(Decider, served, served.policies(), list(served.spec.upstreams), 0, terminal)
    decider.look_at_calendar()
    asked, told = (Channel(service, 1 << 23, print) for service in (decider, Records(decider)))
    for channel in (asked, told):
        channel.connection_made(Sink())
        channel.data_received(PREFACE + _frame(SETTINGS, 0, 0, b""))
    told.data_received(_frame(HEADERS, END_HEADERS, 1, b""))
    port, took_us = int(served.spec.upstreams[0].rpartition(":")[2]), []
    gc.collect()
    gc.freeze()
    for turn in range(ROUNDS):
        names = [f"{turn:08d}-0000-0000-0000-{i:012d}" for i in range(REQUESTS)]
        streams = [2 * (turn * REQUESTS + i) + 1 for i in range(REQUESTS)]
        opened = [_frame(HEADERS, END_HEADERS, stream, b"x" * 60) for stream in streams]
        asks = [question(id, served.spec.models[0]) for id in names]
        bodies = [_frame(DATA, 0, stream, asked_of) for stream, asked_of in zip(streams, asks, strict=True)]
        ends = [_frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big")) for stream in streams]
        records = [_frame(DATA, 0, 1, record(id, port)) for id in names]
        began_s = time.process_time()
        for i in range(REQUESTS + LIVE):
            if i < REQUESTS:
                asked.data_received(opened[i] + bodies[i])
            if i >= LIVE:
                asked.data_received(ends[i - LIVE])
                told.data_received(records[i - LIVE])
        took_us.append(1e6 * (time.process_time() - began_s) / REQUESTS)
    assert not decider.brain.live and not decider.brain.check()
    routed = decider.brain.figures.total("headway_decisions_total", outcome="routed")
    assert routed == ROUNDS * REQUESTS, f"{routed:g} routed"
    print(f"{min(took_us):.1f} us a request, median {statistics.median(took_us):.1f}")


if __name__ == "__main__":
    if not all(Path(name).exists() for name in sys.argv[1:]):
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
