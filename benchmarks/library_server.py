"""The gateway with its decision process behind gRPC's own library, for `benchmarks/gateway.py`.

    python benchmarks/library_server.py serve FILE aio|threads
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc

CALLS = 512  # at a time, each in a thread: 256 streams, and a record of each


def serve(file: str, how: str) -> None:
    """`headway serve FILE` with a decision process that the library carries, by "aio" or in "threads"."""
    from headway.cli.serve import _supervise, served_of
    from headway.cli.terminal import Terminal
    from headway.gateway import Supervisor

    spec = served_of(file, None, Terminal(quiet=True)).spec
    supervisor = Supervisor(spec, lambda: spec, [sys.executable, __file__, "decide", file, how], print)
    asyncio.run(_supervise(supervisor))


class Call:
    """A call whose answers are kept until the library can take them."""

    def __init__(self) -> None:
        self.about: Any = None
        self.unsent: list[bytes] = []

    def send(self, message: bytes) -> None:
        """Keep an answer."""
        self.unsent.append(message)


def in_loop(service: Any) -> Any:
    """What the loop's server calls with a call's context."""

    async def process(_: Any, context: Any) -> None:
        call: Any = Call()
        try:
            while raw := await context.read():
                service.message(call, raw)
                while call.unsent:
                    await context.write(call.unsent.pop(0))
        finally:
            service.ended(call)

    return process


def in_thread(service: Any, deciding: threading.Lock) -> Any:
    """What the server with threads calls with a call's messages; one decides at a time."""

    def process(messages: Any, _: Any) -> Iterator[bytes]:
        call: Any = Call()
        with contextlib.suppress(grpc.RpcError):
            for raw in messages:
                with deciding:
                    service.message(call, raw)
                yield from call.unsent
                call.unsent.clear()
        with deciding:
            service.ended(call)

    return process


def decide(file: str, how: str, folder: Path) -> None:
    """Be that decision process. Each question is answered at once: the benchmark's limits hold no request."""
    from headway.cli.serve import served_of
    from headway.cli.terminal import Terminal
    from headway.gateway import Brain, Decider, Reader, addresses_in
    from headway.gateway.deciding import Records

    served = served_of(file, None, Terminal(quiet=True))
    brain = Brain(served.spec, served.backings, served.policies())
    decider = Decider(brain, Reader(served.spec), addresses_in(folder, served.spec))

    async def run() -> None:
        in_threads = how == "threads"
        server = grpc.server(ThreadPoolExecutor(CALLS)) if in_threads else grpc.aio.server()
        handled = partial(in_thread, deciding=threading.Lock()) if in_threads else in_loop
        services = {
            "envoy.service.ext_proc.v3.ExternalProcessor": {"Process": handled(decider)},
            "envoy.service.accesslog.v3.AccessLogService": {"StreamAccessLogs": handled(Records(decider))},
        }
        for name, methods in services.items():
            table = {method: grpc.stream_stream_rpc_method_handler(each) for method, each in methods.items()}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, table),))
        for name in ("decisions", "records"):
            server.add_insecure_port(f"unix:{folder / name}.sock")
        started = server.start()
        if not in_threads:
            await started
        (folder / "decisions.ready").touch()
        ticking = asyncio.create_task(decider.tick())
        await ticking  # without end

    asyncio.run(run())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        decide(*sys.argv[2:4], Path(sys.argv[4]))
