"""`headway serve` as a process, with small upstreams in a thread beside the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import yaml
from upstream import Upstream

import headway

KEY, ADMIN_KEY = "sk-test-key-of-alice", "admin-key"
CHAT = "/v1/chat/completions"
PATIENCE_S = 60.0
PACKAGE = str(Path(headway.__file__).parents[1])  # the copy under test, from wherever the process runs


def free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to whoever connects, so that nobody takes them meanwhile."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            port = random.SystemRandom().randrange(12_000, 32_000)
            with contextlib.suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
    return ports


class Upstreams:
    """Small engines on a loop of their own."""

    def __init__(self, *engines: Upstream) -> None:
        self.engines = engines
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        for engine in engines:
            self.do(engine.start())

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_S)

    def close(self) -> None:
        for engine in self.engines:
            self.do(engine.stop())
        self.do(self.settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE_S)
        self.loop.close()

    def endless(self) -> None:
        """Streams that begin from now on go on until `release`."""
        for engine in self.engines:
            engine.endless = True

    def release(self) -> None:
        for engine in self.engines:
            engine.release()

    async def settle(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # what they have closed is closed in the loop's next turns


class Served:
    """A running gateway. `section`: fields of `gateway:` beside the addresses; `arguments` of the command."""

    def __init__(
        self,
        folder: Path,
        upstreams: Upstreams,
        section: dict[str, Any],
        arguments: tuple[str, ...] = (),
        **fields: Any,
    ) -> None:
        self.upstreams = upstreams
        self.opened: list[HTTPConnection] = []
        self.port, self.admin = free_ports(2)
        addresses = [f"127.0.0.1:{engine.port}" for engine in upstreams.engines]
        gateway = {
            "listen": f"127.0.0.1:{self.port}",
            "admin": f"127.0.0.1:{self.admin}",
            "upstreams": addresses,
            "models": ["tiny"],
            "health": {"probe_s": 0.2},
            "scrape_s": 0.2,
            **section,
        }
        self.file = file = folder / "gateway.yaml"
        file.write_text(yaml.safe_dump({"gateway": gateway, **fields}))
        self.log = folder / "log.txt"
        command = [sys.executable, "-m", "headway", "serve", str(file), *arguments]
        env = os.environ | {"PYTHONPATH": PACKAGE}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env)
        self.until(lambda: "serving on" in self.said(), "the gateway serves")

    def said(self) -> str:
        return self.log.read_text()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None or what == "it has ended", f"ended before {what}: {self.said()}"
            assert time.monotonic() < end, f"waited in vain: {what}; {self.said()}"
            time.sleep(0.02)

    def send(self, body: Any, headers: dict[str, str] | None = None, path: str = CHAT) -> HTTPConnection:
        """Send a request and leave it there."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        self.opened.append(connection)
        text = body if isinstance(body, (bytes, str)) else json.dumps(body)
        connection.request("POST", path, text, {"Content-Type": "application/json", **(headers or {})})
        return connection

    def hang_up(self) -> None:
        """Close what was opened."""
        while self.opened:
            self.opened.pop().close()

    def ask(self, body: Any, headers: dict[str, str] | None = None, path: str = CHAT) -> tuple[HTTPResponse, bytes]:
        connection = self.send(body, headers, path)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response, text

    def get(self, path: str, port: int | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", port or self.port, timeout=PATIENCE_S)
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, text

    def status(self) -> dict[str, Any]:
        status, text = self.get("/status", self.admin, {"Authorization": f"Bearer {ADMIN_KEY}"})
        assert status == 200, text
        return dict(json.loads(text))

    def metric(self, pattern: str) -> float:
        _, text = self.get("/metrics", self.admin, {"Authorization": f"Bearer {ADMIN_KEY}"})
        return sum(float(value) for value in re.findall(rf"^{pattern}(?:{{[^}}]*}})? (\S+)$", text.decode(), re.M))

    def at_rest(self) -> None:
        """Wait until nothing is in the books, and hold them to their laws."""

        def empty() -> bool:
            now = self.status()
            return not now["live"] and not any(replica["in_flight"] for replica in now["replicas"])

        self.until(empty, "the books are empty")
        assert self.status()["faults"] == []

    @contextlib.contextmanager
    def quick(self) -> Iterator[None]:
        """A test that begins with upstreams that work and are quick, and ends with empty books."""
        for engine in self.upstreams.engines:
            engine.tokens, engine.pace_s, engine.first_s = 4, 0.005, 0.005
            engine.fail, engine.word, engine.counting, engine.piece_bytes = "", "", False, 0
            engine.seen.clear()
        self.until(lambda: all(r["healthy"] for r in self.status()["replicas"]), "all replicas are healthy")
        yield
        self.upstreams.release()
        self.hang_up()
        self.at_rest()

    def children(self, count: bool = False) -> dict[str, int]:
        """Process ids of Envoy and of the decision process; with `count` of each decision process there is."""
        found = {}
        listed = subprocess.run(["ps", "-eww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            pid, parent, args = line.split(None, 2)
            if int(parent) == self.process.pid:
                name = "decisions" if "--decisions" in args else "envoy"
                found[f"{name} {pid}" if count else name] = int(pid)
        return found

    def stop(self) -> int:
        self.hang_up()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)
