"""`headway serve`: a deployment and live replicas give an OpenAI-compatible gateway."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from headway.cli import options as o
from headway.cli.apart import apart
from headway.cli.asked import beside_file
from headway.cli.calibration import compare_machines, with_calibration
from headway.cli.journal import followed
from headway.cli.journal import rows as journal_rows
from headway.cli.terminal import Terminal, note_interpreted
from headway.errors import BadInput

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headway.gateway import Backing, Decider, GatewaySpec
    from headway.gateway.menu import Menu
    from headway.policies import Policy
    from headway.sim import Deployment, Policies
    from headway.sim.cluster import Handoff

H = TypeVar("H", bound="Decider")

OPTIONS = (
    click.option("--check", cls=o.Section, section="Service", is_flag=True,
                 help="Only check the file, and say what would be served."),
    click.option("--log", "log_as", cls=o.Section, section="Service", type=click.Choice(["text", "json"]),
                 default="text", show_default=True,
                 help="Notes for a reader on stderr, or JSON lines, one for each request."),
    click.option("--decisions", "decisions_in", cls=o.Section, section="Service", metavar="DIR",
                 help="Only the decision process, on a socket in DIR: for an Envoy that is run elsewhere."),
)  # fmt: skip


class Served(NamedTuple):
    """What a file asks for."""

    spec: GatewaySpec
    deployment: Deployment | None  # none where the file describes no pools: then nothing is predicted by a cost model
    backings: list[Backing]
    names: Policies

    def policies(self) -> dict[str, Policy]:
        """The policies by decision point; the user's own are looked for in the current folder, too."""
        from headway.policies import policy

        sys.path.insert(0, os.getcwd())
        kinds = ["route", "order", "admit"] + (["choose_model"] if len(self.menu.models) > 1 else [])
        kinds += ["retain"] if self.names.retain != "lru" else []
        kinds += ["scale"] if self.names.scale != "fixed" else []
        return {kind: policy(kind, getattr(self.names, kind), self.names.params.get(kind)) for kind in kinds}

    @property
    def scale_every_s(self) -> float:
        """Seconds from one advice on the number of replicas to the next."""
        from headway.gateway.advice import EVERY_S

        return EVERY_S if self.deployment is None else self.deployment.scale_every_s

    @property
    def menu(self) -> Menu:
        """The names that requests may ask for."""
        from headway.gateway.menu import menu_of

        contexts: dict[str, int] = {}
        for each in self.backings:
            if each.table is not None:
                contexts[each.model] = min(each.table.max_context, contexts.get(each.model, each.table.max_context))
        aliases = {} if self.deployment is None else self.deployment.aliases
        return menu_of([backing.model for backing in self.backings], self.spec.models, aliases, contexts)


@click.command(cls=o.Verb, short_help="A live gateway whose decisions the policies take.")
@click.argument("deployment_file", metavar="DEPLOYMENT.yaml")
@o.options(OPTIONS, o.CALIBRATION, o.SEED, o.QUIET)
def serve(deployment_file: str, **asked: Any) -> None:
    """Serve OpenAI's API in front of live replicas: Envoy carries the bytes, the policies decide.

    The file is a deployment, as `headway plan --yaml` writes it, with a section `gateway:` that names the
    replicas' addresses. Ctrl-C lets running requests finish, and ends. SIGHUP has the file read anew.

    \b
    headway serve examples/gateway.yaml --check
    headway serve examples/gateway.yaml
    """
    as_json = asked["log_as"] == "json"
    terminal = Terminal(quiet=asked["quiet"], json_notes=as_json)
    if asked["decisions_in"]:
        served = served_of(deployment_file, asked["calibration_from"], terminal)
        ledger = Path(deployment_file).parent / served.spec.ledger
        _decide(served, served.policies(), (Path(asked["decisions_in"]), ledger), asked["seed"], terminal)
        return

    compare_machines(asked, terminal)

    def load() -> GatewaySpec:
        return apart(lambda: _checked(deployment_file, asked["calibration_from"], terminal).spec)

    if asked["check"]:
        served = _checked(deployment_file, asked["calibration_from"], terminal)
        refuse_places(served.spec, deployment_file)
        _check(served, terminal)
        return
    note_interpreted(terminal)
    from headway.gateway import Supervisor
    from headway.gateway.loglines import ENVOY_FORMAT

    command = [sys.executable, "-m", "headway", "serve", deployment_file, "--seed", str(asked["seed"])]
    command += ["--calibration", asked["calibration_from"]] if asked["calibration_from"] else []
    command += ["--quiet"] if asked["quiet"] else []
    command += ["--log", asked["log_as"], "--decisions"]
    spec = load()
    refuse_places(spec, deployment_file)
    supervisor = Supervisor(spec, load, command, terminal.note, ENVOY_FORMAT if as_json else "")
    asyncio.run(_supervise(supervisor))


def _checked(file: str, calibration: str | None, terminal: Terminal) -> Served:
    """Read a file as the decision process will, policies included."""
    from headway.gateway import is_loopback

    served = served_of(file, calibration, terminal)
    served.policies()
    refuse_strangers(served.spec, terminal)
    if not served.spec.tenants and not is_loopback(served.spec.listen):
        terminal.note(f"no gateway.tenants: whoever reaches {served.spec.listen} may ask")
    warn_of_others(served, terminal)
    mixed = [backing.model for backing in served.backings if backing.role == "mixed"]
    if served.spec.hedging is not None and len(mixed) == len(set(mixed)):
        terminal.note("gateway.hedging has no effect: it needs two mixed replicas of a model")
    return served


def _check(served: Served, terminal: Terminal) -> None:
    """Let Envoy judge what a file asks for, and say what it is."""
    from headway.gateway import Supervisor

    supervisor = Supervisor(served.spec, lambda: served.spec, [], terminal.note)
    try:
        asyncio.run(supervisor.validate())
    finally:
        supervisor.clean()
    terminal.show(summary(served))


def served_of(file: str, calibration: str | None, terminal: Terminal) -> Served:
    """Read a file for serving.

    Raises:
        BadInput: no section `gateway:`, or as many addresses as there are no replicas.
    """
    from headway.specs import read_yaml

    return served_from(beside_file(read_yaml(file), file), file, calibration, terminal)


def served_from(data: dict[str, Any], file: str, calibration: str | None, terminal: Terminal) -> Served:
    """Read what a file holds, or what a decision log says that it held; raises as `served_of`."""
    from msgspec.structs import replace

    from headway.cost import compile_replica
    from headway.gateway import Backing, GatewaySpec, with_models
    from headway.sim import Deployment, Policies, handoff
    from headway.specs import from_mapping

    if "gateway" not in data:
        raise BadInput(
            f"{file} has no section gateway: add `gateway: {{upstreams: [127.0.0.1:8000]}}`, an address per replica"
        )
    spec = from_mapping(GatewaySpec, data.pop("gateway"), f"{file}: gateway")
    if "pools" not in data:
        if not spec.models:
            raise BadInput(f"{file} has no pools: then gateway.models must say what the replicas serve")
        names = from_mapping(Policies, data.pop("policies", {}), f"{file}: policies")
        if set(data) - {"name"}:
            raise BadInput(f"{file}: without pools there may be name, policies and gateway; came {', '.join(data)}")
        return Served(spec, None, [Backing() for _ in spec.upstreams], names)
    deployment = with_calibration(from_mapping(Deployment, data, file), calibration, terminal)
    count = sum(pool.count for pool in deployment.pools)
    if count != len(spec.upstreams):
        raise BadInput(f"{file}: {len(spec.upstreams)} gateway.upstreams for {count} replicas: give one for each")
    backings = []
    hourly_usd = deployment.priced().usd_per_gpu_hour
    for pool, nodes in zip(deployment.pools, deployment.nodes, strict=True):
        table = compile_replica(pool.replica)
        usd = None if hourly_usd is None else hourly_usd * pool.replica.gpus
        window = pool.replica.engine.max_seqs * table.ranks
        backing = Backing(
            model=pool.model, role=pool.role, table=table, window=window, usd_per_hour=usd, keep_hints=pool.keep_hints
        )
        if pool.role == "decode":
            moved = handoff(deployment, pool.model)
            backing = replace(backing, fetch_s=_fetch_s(moved, moved.far), near_fetch_s=_fetch_s(moved, moved.near))
        backings += [replace(backing, node=node) for node in nodes[: pool.count]]
    for text, backing in zip(spec.upstreams, backings, strict=True):
        if backing.role == "prefill" and text.startswith("unix:"):
            raise BadInput(f"{file}: gateway.upstreams: {text} prefills for others, who need a host:port to reach it")
    served = Served(spec, deployment, backings, deployment.policies)
    return served._replace(spec=with_models(spec, tuple(served.menu.names)))


def summary(served: Served) -> RenderableType:
    """A table of what will be served."""
    from rich.table import Table

    from headway.units import format_seconds

    spec, names = served.spec, served.names
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("listen", f"{'https' if spec.tls else 'http'}://{spec.listen}/v1")
    table.add_row("models", ", ".join(spec.models))
    for alias in [name for name in served.menu.names if name in served.menu.aliases]:
        table.add_row("", f"{alias}: {', '.join(served.menu.names[alias])}")
    kinds = [f"{p.count} x {p.model} on {p.replica.gpu_name}{_doing(p.role)}" for p in _pools(served)]
    table.add_row("replicas", ", ".join(kinds) or f"{len(spec.upstreams)}, not described: predicted from what is seen")
    for text, backing in zip(spec.upstreams, served.backings, strict=True):
        most = spec.limits.in_flight or backing.window
        table.add_row("", f"{text}{_doing(backing.role)}, at most {most} requests at once")
    choice = f", choose_model {names.choose_model}" if len(served.menu.models) > 1 else ""
    advice = "" if names.scale == "fixed" else f", scale {names.scale} (advice)"
    table.add_row("policies", f"route {names.route}, order {names.order}, admit {names.admit}{choice}{advice}")
    if names.retain != "lru":
        table.add_row("", f"retain {names.retain}: {retained_where(served.backings)}")
    for klass in spec.classes:
        limits = [f"{name} {format_seconds(s)}" for name, s in _limits(klass.slo) if s is not None]
        limits += [] if klass.deadline_s is None else [f"deadline {format_seconds(klass.deadline_s)}"]
        refuse = f", refused below {klass.refuse_below:.0%} chance" if limits and klass.refuse_below else ""
        urgency = f"{'offline, ' if klass.offline else ''}priority {klass.priority}"
        table.add_row("class", f"{klass.name}, {urgency}: {', '.join(limits) or 'no limits'}{refuse}")
    for tenant in spec.tenants:
        rates = [("requests/min", tenant.requests_per_min), ("tokens/min", tenant.tokens_per_min)]
        rates += [("tokens/day", tenant.tokens_per_day), ("tokens/month", tenant.tokens_per_month)]
        rates += [("at once", tenant.concurrency)]
        said = [f"{value:,.10g} {name}" for name, value in rates if value is not None]
        said += [f"weight {tenant.weight:g}"] if tenant.weight != 1 else []
        table.add_row("tenant", f"{tenant.name}, {len(tenant.keys_sha256)} keys: {', '.join(said) or 'no limits'}")
    if len(spec.tenants) > 1:
        table.add_row("", "no prefix shared between tenants" if spec.salts else "prefixes shared between tenants")
    if spec.hedging is not None:
        late, quantile = spec.hedging.after_s, spec.hedging.quantile
        when = format_seconds(late) if late is not None else f"the {quantile:.0%} quantile of what is predicted"
        table.add_row("hedging", f"streams without a first byte after {when}, at most {spec.hedging.budget:.0%} of all")
    if spec.caller_fields:
        table.add_row("bodies", f"callers may say {', '.join(spec.caller_fields)}")
    if spec.peers is not None:
        signed = "" if spec.peers.key() else ", without a key"
        table.add_row("peers", f"{', '.join(spec.peers.others)}, heard on {spec.peers.listen}{signed}")
    for row in journal_rows(spec):
        table.add_row(*row)
    key = "" if spec.admin_key_sha256 else ", without a key"
    table.add_row("admin", f"http://{spec.admin}/headway, /metrics and /status{key}")
    return table


def _fetch_s(moved: Handoff, link: tuple[float, float]) -> tuple[float, float]:
    """Seconds that a transfer of KV takes which waits for nobody: for any, and for each token, windows left out."""
    bytes_per_s, latency_s = link
    return latency_s, (moved.bytes_per_token + moved.window_bytes_per_token) / bytes_per_s


def retained_where(backings: list[Backing]) -> str:
    """Where the policy `retain` has an effect: native at engines that take its hint, else in simulations alone."""
    from headway.gateway.steering import KEEP_HINT

    told = [backing.keep_hints for backing in backings]
    if all(told):
        return f"native, told by the header {KEEP_HINT}"
    where = "all replicas" if not any(told) else f"{told.count(False)} of {len(told)} replicas"
    return f"simulation-only at {where}: their engines are told nothing; pools.N.keep_hints where they obey a hint"


def _doing(role: str) -> str:
    return "" if role == "mixed" else f", {role}"


def _pools(served: Served) -> Any:
    return served.deployment.pools if served.deployment is not None else ()


def _limits(slo: Any) -> list[tuple[str, float | None]]:
    return [("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("E2E", slo.e2e_s)]


def refuse_strangers(spec: GatewaySpec, terminal: Terminal) -> None:
    """Refuse what leaves a gateway's own pages and books open to strangers, and say who is left out.

    Raises:
        BadInput: pages for other machines without a key, or peers without theirs.
    """
    from headway.gateway import is_loopback

    if spec.peers is not None:
        spec.peers.key()
    if not spec.admin_key_sha256 and not is_loopback(spec.admin):
        raise BadInput(
            f"gateway.admin {spec.admin} is open to other machines: set gateway.admin_key_sha256, or use 127.0.0.1"
        )
    for tenant in spec.tenants:
        if not tenant.keys_sha256:
            terminal.note(f"tenant {tenant.name} has no key: nobody can ask as it")


def warn_of_others(served: Served, terminal: Terminal) -> None:
    """Say what comes of a file only if engines, or the sidecars beside them, do their part."""
    for text, backing in zip(served.spec.upstreams, served.backings, strict=True):
        if backing.role == "prefill" and text.startswith("https://"):
            terminal.note(
                f"gateway.upstreams {text} prefills for others: it is named to their sidecars by IP and port alone, so "
                "start these with --prefiller-use-tls=true (newer ones: --enable-tls=prefiller), and with "
                "--prefiller-tls-insecure-skip-verify=true (--tls-insecure-skip-verify=prefiller) where its "
                "certificate is not for that IP"
            )
    if served.names.retain != "lru" and not all(backing.keep_hints for backing in served.backings):
        terminal.note(f"policies.retain {served.names.retain} is {retained_where(served.backings)}")


def refuse_places(spec: GatewaySpec, file: str) -> None:
    """Refuse what a file says that only the machine can tell to be wrong.

    Raises:
        BadInput: two names lead to one replica, or there is no folder for the ledger.
    """
    from headway.gateway.hosts import resolved

    found: dict[str, str] = {}
    for text, host in zip(spec.upstreams, asyncio.run(resolved(spec.upstreams)), strict=True):
        if host.at and host.at in found:
            raise BadInput(
                f"gateway.upstreams: {found[host.at]} and {text} are one replica, {host.at}: its requests would be "
                "counted twice; name it once"
            )
        found[host.at] = text
    folder = (Path(file).parent / spec.ledger).parent
    if spec.ledger and any(tenant.remembered for tenant in spec.tenants) and not folder.is_dir():
        raise BadInput(f"gateway.ledger {spec.ledger}: there is no folder {folder}; make it, or name another file")


async def _supervise(supervisor: Any) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    running = asyncio.create_task(supervisor.run(stop))

    def asked_to_stop() -> None:
        if stop.is_set():
            supervisor.hurry = True
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.renewal.set)
    await running


def host_of(
    kind: type[H], served: Served, policies: dict[str, Policy], addresses: list[str], seed: int, terminal: Terminal
) -> H:
    """A host of this kind around a brain."""
    from headway.gateway import Brain, Reader
    from headway.gateway.loglines import LogLines

    brain = Brain(served.spec, served.backings, policies, seed, served.scale_every_s, served.menu)
    log = LogLines(_to_stderr) if terminal.json_notes else None
    return kind(brain, Reader(served.spec, served.menu), addresses, terminal.note, log)


def _decide(
    served: Served, policies: dict[str, Policy], places: tuple[Path, Path], seed: int, terminal: Terminal
) -> None:
    """Be the decision process until SIGTERM; `places`: the folder of the sockets, and the ledger's file."""
    from headway.gateway import Decider, addresses_in, decide
    from headway.gateway.peers import gateway_in, peering

    folder, ledger = places
    if not folder.is_dir():
        raise BadInput(f"--decisions {folder}: there is no such folder; make it, open to this user alone")
    decider = host_of(Decider, served, policies, addresses_in(folder, served.spec), seed, terminal)

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with decider.remembering(ledger), peering(decider, stop, gateway_in(folder)):
            await decide(decider, folder, stop)

    with followed(decider, served, seed, terminal):
        asyncio.run(run())


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
