"""The decision process as a server: its sockets, what it does by the clock, and how it takes leave of a successor."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from pathlib import Path

from headway.gateway.channel import Call, Channel, Service
from headway.gateway.decider import TICK_S, Decider
from headway.gateway.plainhttp import AdminPages
from headway.gateway.spec import address

LAST_RECORDS_S = 0.2


class Records:
    """The service that Envoy's access log is sent to."""

    def __init__(self, decider: Decider) -> None:
        self.decider = decider
        self.calls: set[Call] = set()
        self.retired = False

    def message(self, call: Call, message: bytes) -> None:
        """Some records."""
        self.calls.add(call)
        self.decider.records(message)
        if self.retired:
            call.finish()

    def ended(self, call: Call) -> None:
        """Envoy has closed its log: it will open another."""
        self.calls.discard(call)

    def retire(self) -> None:
        """Have Envoy open another log, at the successor."""
        self.retired = True
        for call in list(self.calls):
            call.finish()


async def decide(decider: Decider, folder: Path, stop: asyncio.Event) -> None:
    """Serve Envoy's questions on `decisions.sock` in `folder`; `decisions.ready` says that they are served.

    When `stop` is set, this process retires: it takes leave of the admin address and of Envoy's log, and ends when the
    requests are over that it has decided.

    Raises:
        OSError: the admin address is in use.
    """
    spec, loop = decider.brain.spec, asyncio.get_running_loop()
    message_max = spec.limits.body_bytes + (1 << 20)
    elder = folder / "elder.sock"
    decider.elder = elder if elder.exists() else None
    records = Records(decider)
    services: dict[str, Service] = {"decisions": decider, "records": records}
    servers: list[asyncio.AbstractServer] = []
    for name, service in services.items():
        make = partial(Channel, service, message_max, decider.say)
        servers.append(await loop.create_unix_server(make, folder / f"{name}.sock"))
    host, port = address(spec.admin, "gateway.admin")
    pages = AdminPages(decider.pages(), spec.admin_key_sha256)
    admin = await asyncio.start_server(pages.serve, host, port, limit=1 << 14, reuse_port=True)
    tasks = [asyncio.create_task(decider.tick()), asyncio.create_task(decider.adopt(folder / "envoy.sock", elder))]
    for i in range(len(decider.addresses)):
        tasks += [asyncio.create_task(decider.probe(i)), asyncio.create_task(decider.scrape(i))]
    gc.collect()
    gc.set_threshold(50_000, 10, 10)  # else it looks a thousand times while a body of a million lists is read
    gc.freeze()  # what serves for good is not looked through again, which takes a decision some 5 ms
    try:
        (folder / "decisions.ready").touch()
        await stop.wait()
        admin.close()
        records.retire()
        while decider.open:
            await asyncio.sleep(TICK_S)
        await asyncio.sleep(LAST_RECORDS_S if decider.brain.unread else 0.0)
    finally:
        for task in tasks:
            task.cancel()
        for server in servers:
            server.close()
        for told in (decider.tracer, decider.log):
            if told is not None:
                await asyncio.to_thread(told.close)
