"""`headway picker`: the decisions of a deployment's policies for a gateway of the Gateway API Inference Extension."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import click

from headway.cli import options as o
from headway.cli.calibration import compare_machines
from headway.cli.journal import followed
from headway.cli.serve import host_of, refuse_places, refuse_strangers, served_of, warn_of_others
from headway.cli.terminal import Terminal, note_interpreted
from headway.errors import BadInput

OPTIONS = (
    click.option("--listen", cls=o.Section, section="Service", metavar="HOST:PORT", default="127.0.0.1:9002",
                 show_default=True, help="Where the gateway asks, by gRPC; 0.0.0.0:9002 in a pod."),
    click.option("--tls-cert", cls=o.Section, section="Service", metavar="FILE",
                 help="Certificates for TLS, PEM; without them it is plain HTTP/2."),
    click.option("--tls-key", cls=o.Section, section="Service", metavar="FILE", help="The key of the first one, PEM."),
    click.option("--log", "log_as", cls=o.Section, section="Service", type=click.Choice(["text", "json"]),
                 default="text", show_default=True,
                 help="Notes for a reader on stderr, or JSON lines, one for each request."),
)  # fmt: skip


@click.command(cls=o.Verb, short_help="The same decisions for gateways on Kubernetes.")
@click.argument("deployment_file", metavar="DEPLOYMENT.yaml")
@o.options(OPTIONS, o.CALIBRATION, o.SEED, o.QUIET)
def picker(deployment_file: str, **asked: Any) -> None:
    """Pick endpoints for a gateway of the Gateway API Inference Extension, as Envoy Gateway or Istio.

    The file is what `headway serve` reads; its upstreams are the pods, and `listen` is not used. Ctrl-C lets
    running requests finish, and ends.

    \b
    headway picker examples/gateway.yaml --listen 0.0.0.0:9002
    """
    terminal = Terminal(quiet=asked["quiet"], json_notes=asked["log_as"] == "json")
    pair = tls_pair(asked["tls_cert"], asked["tls_key"])
    compare_machines(asked, terminal)
    served = served_of(deployment_file, asked["calibration_from"], terminal)
    refuse_strangers(served.spec, terminal)
    warn_of_others(served, terminal)
    if served.spec.hedging is not None:
        from msgspec.structs import replace

        terminal.note("gateway.hedging has no effect here: the gateway sends the requests; `headway serve` hedges")
        served = served._replace(spec=replace(served.spec, hedging=None))
    note_interpreted(terminal)
    from headway.gateway.hosts import resolved
    from headway.gateway.peers import peering
    from headway.gateway.picker import Picker, pick
    from headway.gateway.spec import address

    address(asked["listen"], "--listen")
    refuse_places(served.spec, deployment_file)
    if any(text.startswith("unix:") for text in served.spec.upstreams):
        raise BadInput("gateway.upstreams: a gateway cannot go to sockets of this machine; give host:port for each")
    addresses = [each.at for each in asyncio.run(resolved(served.spec.upstreams))]
    host = host_of(Picker, served, served.policies(), addresses, asked["seed"], terminal)

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        ledger = Path(deployment_file).parent / served.spec.ledger
        async with host.remembering(ledger), peering(host, stop):
            await pick(host, asked["listen"], stop, pair)

    try:
        with followed(host, served, seed=asked["seed"], terminal=terminal):
            asyncio.run(run())
    except OSError as error:
        raise BadInput(f"{asked['listen']} or {served.spec.admin}: {error}; give another port") from None


def tls_pair(cert: str | None, key: str | None) -> tuple[bytes, bytes] | None:
    """Read key and certificates.

    Raises:
        BadInput: one without the other, or a file that cannot be read.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise BadInput("--tls-cert and --tls-key: give both, or neither")
    try:
        return Path(key).read_bytes(), Path(cert).read_bytes()
    except OSError as error:
        raise BadInput(f"{error.filename}: cannot be read: {error.strerror}") from None
