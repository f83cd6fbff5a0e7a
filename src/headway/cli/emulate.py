"""`headway emulate`: replicas that answer as an engine on a GPU would, and when it would."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.asked import deployment_of
from headway.cli.blame import users_fault
from headway.cli.calibration import compare_machines, with_calibration
from headway.cli.terminal import Terminal, check_files, note_interpreted
from headway.units import parse_seconds

if TYPE_CHECKING:
    from headway.emulate import Emulator, Fault
    from headway.sim import Deployment


def _fault(text: str) -> Fault:
    from headway.emulate import parse_fault

    return parse_fault(text)


def _faults(ctx: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[Fault, ...]:
    return tuple(o.read_with(_fault)(ctx, parameter, text) for text in texts)


# fmt: off
LISTENING = (
    click.option("--host", cls=o.Section, section="Service", default="127.0.0.1", show_default=True, metavar="ADDRESS",
                 help="Where to listen; there is no authentication."),
    click.option("--port", cls=o.Section, section="Service", type=click.IntRange(0, 65_535), default=8100,
                 show_default=True, metavar="N", help="Of the first replica, the others follow; 0: any free ones."),
    click.option("--name", "names", cls=o.Section, section="Service", multiple=True, metavar="NAME",
                 help="What the model is called in requests.  [default: as in the deployment] Repeatable."),
    click.option("--for", "for_s", cls=o.Section, section="Service", callback=o.read_with(o.above_zero(parse_seconds)),
                 metavar="TIME", help="End by itself after this time.  [default: at Ctrl-C]"),
)
FAULTS = (
    click.option("--fault", "faults", cls=o.Section, section="Faults", multiple=True, callback=_faults, metavar="FAULT",
                 help="stall:p=0.01,for=2s  slow:p=0.05,factor=3  reset:p=0.01  error:p=0.01,status=503  hang:p=0.01  "
                 "hang:at=10s,for=5s  crash:at=10s,for=5s,replica=0. Repeatable."),
)
# fmt: on


@click.command(cls=o.Verb, short_help="An engine without a GPU, timed by the simulator.")
@click.argument("deployment_file", required=False, metavar="[DEPLOYMENT.yaml]")
@o.options(o.MODEL, o.REPLICAS, LISTENING, o.WORKLOAD[2:3], FAULTS, o.CALIBRATION, o.SEED, o.JSON, o.QUIET)
def emulate(deployment_file: str | None, **asked: Any) -> None:
    """Serve OpenAI's API without a GPU, each token when the simulated engine would have it.

    The deployment is a YAML file, as `headway plan --yaml` writes it, or --model and --gpu. Each replica listens on
    a port of its own. Answers are filler words; a token is four characters.

    \b
    headway emulate --model llama-3.1-8b --gpu h100-sxm --replicas 3
    headway emulate best.yaml --port 9000 --fault stall:p=0.01,for=2s --for 60s
    """
    terminal = Terminal(asked["json_to"], quiet=asked["quiet"])
    check_files(None, asked["json_to"])
    deployment = deployment_of(deployment_file, asked, asked["assignments"])
    compare_machines(asked, terminal)
    deployment = with_calibration(deployment, asked["calibration_from"], terminal)
    others = [text for text in asked["policies"] or () if not text.startswith("order=")]
    if others:
        terminal.note(f"--policy {', '.join(others)} has no effect: an engine has an order, the rest is a gateway's")
    note_interpreted(terminal)
    with users_fault(deployment.policies):
        emulator = _emulator(deployment, asked)
        asyncio.run(_serve(emulator, terminal, asked["for_s"]))
    if asked["json_to"]:
        terminal.write(asked["json_to"], json.dumps({"replicas": emulator.summary()}, indent=2) + "\n")


def _emulator(deployment: Deployment, asked: o.Options) -> Emulator:
    """The emulator of a deployment; raises `BadInput` for a setting that cannot be."""
    from headway.emulate import Emulator, Settings, Split
    from headway.policies import policy
    from headway.sim import handoff

    named = deployment.policies.order
    order = None if named == "fcfs" else policy("order", named, deployment.policies.params.get("order"))
    given = {} if asked["output"] is None else {"output": asked["output"]}
    settings = Settings(
        host=asked["host"],
        port=asked["port"],
        names=asked["names"],
        seed=asked["seed"],
        faults=asked["faults"],
        **given,
    )
    pools = [pool for pool in deployment.pools for _ in range(pool.count)]
    splits = []
    for name in deployment.models:
        members = [i for i, pool in enumerate(pools) if pool.model == name]
        if pools[members[0]].role != "mixed":
            roles = tuple(pools[i].role for i in members)
            splits.append(Split(members[0], roles, handoff(deployment, name)))
    return Emulator([pool.replica for pool in pools], settings, order, [pool.model for pool in pools], splits)


async def _serve(emulator: Emulator, terminal: Terminal, for_s: float | None) -> None:
    """Serve until the time is up, or Ctrl-C or SIGTERM comes."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await emulator.start()
    try:
        terminal.say_kept()
        if not terminal.quiet:
            for port in emulator.ports:
                role = "" if port.role == "mixed" else f", {port.role}"
                where = f"{port.names[0]} on {port.replica.gpus} {port.replica.gpu_name}{role}: {port.url}/v1"
                click.echo(where, err=terminal.stdout_taken)
            terminal.note("Ctrl-C ends it" if for_s is None else f"ends by itself in {for_s:g} s")
        if for_s is not None:
            loop.call_later(for_s, stop.set)
        await stop.wait()
    finally:
        emulator.close()
    terminal.note(_said(emulator))


def _said(emulator: Emulator) -> str:
    """One line on what was served and how exact its timing was."""
    rows = emulator.summary()
    requests = sum(sum(row["ended"].values()) for row in rows)
    steps = sum(row["steps"] for row in rows)
    tokens = sum(row["output_tokens"] for row in rows)
    said = f"served {requests:,} requests, {tokens:,} tokens"
    if steps:
        within = sum(row["steps_within_2ms"] * row["steps"] for row in rows if row["steps"]) / steps
        said += f"; the tokens of {100 * within:.1f} % of {steps:,} steps were out within 2 ms of the simulator's time"
    return said
