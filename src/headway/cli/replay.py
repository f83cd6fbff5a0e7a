"""`headway replay`: the decisions of a log, taken again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.serve import Served, served_from, served_of
from headway.cli.terminal import Bar, Terminal, check_files

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headway.gateway.log.reader import Run
    from headway.gateway.log.replay import Replayed

DIFFERS = 1
WHOLE = "headway.replay/1"


@click.command(cls=o.Verb, short_help="Take a gateway's logged decisions again, and compare.")
@click.argument("log", metavar="LOG")
@click.argument("deployment_file", required=False, metavar="[DEPLOYMENT.yaml]")
@o.options(o.JSON, o.QUIET)
@click.pass_context
def replay(ctx: click.Context, /, log: str, deployment_file: str | None, **asked: Any) -> None:
    """Tell a new brain what a gateway was told, and hold its decisions against the logged ones, bit by bit.

    LOG is the folder that `gateway.log.folder` names, or one file of a run. The policies, the deployment and the
    seed are those that the log began with; with DEPLOYMENT.yaml they are that file's. The exit code is 0 where
    every decision is the same, else 1.

    \b
    headway replay decisions/
    headway replay decisions/ changed.yaml
    """
    terminal = Terminal(asked["json_to"], quiet=asked["quiet"])
    check_files(None, asked["json_to"])
    from headway.gateway.log.reader import runs

    given = served_of(deployment_file, None, terminal) if deployment_file else None
    found = []
    for run in runs(log):
        with terminal.bar(f"replaying {run.header.run}") as bar:
            found.append(_again(run, given, terminal, bar))
    terminal.show(_table(found))
    if asked["json_to"]:
        from headway.specs import json_text, to_mapping

        runs_said = [to_mapping(one, defaults=True) for one in found]
        terminal.write(asked["json_to"], json_text({"schema": WHOLE, "runs": runs_said}) + "\n")
    if any(one.equal < one.decisions for one in found):
        ctx.exit(DIFFERS)


def logged(run: Run, terminal: Terminal) -> Served:
    """What the gateway of a run served, by its log."""
    import headway

    if run.header.version != headway.__version__:
        terminal.note(
            f"run {run.header.run} was written by Headway {run.header.version}, this is {headway.__version__}"
        )
    return served_from(dict(run.header.deployment), f"the log of run {run.header.run}", None, terminal)


def _again(run: Run, given: Served | None, terminal: Terminal, bar: Bar) -> Replayed:
    from headway.gateway import Brain
    from headway.gateway.log.replay import replay as run_again

    served = given or logged(run, terminal)
    brain = Brain(served.spec, served.backings, served.policies(), run.header.seed, served.scale_every_s, served.menu)
    return run_again(run, brain, lambda events: bar.tell(events, None), states=given is None)


def _table(found: list[Replayed]) -> RenderableType:
    """A row per run, and what was different first."""
    from rich.console import Group
    from rich.text import Text

    from headway.report.sheet import Sheet

    table = Sheet()
    for heading in ("run", "began (UTC)", "events", "decisions", "equal", ""):
        table.add_column(heading, words=heading not in ("events", "decisions", "equal"))
    notes: list[RenderableType] = []
    for one in found:
        verdict = "identical" if one.equal == one.decisions else f"{one.decisions - one.equal:,} differ"
        table.add_row(
            one.run, one.started, f"{one.events:,}", f"{one.decisions:,}", f"{one.equal:,}",
            verdict if one.decisions else "nothing to compare",
        )  # fmt: skip
        if one.missing:
            said = f"{one.missing:,} events are not in the log, and {one.skipped:,} after them were left out"
            notes.append(Text(f"run {one.run}: {said}, up to the next state that it keeps", style="dim"))
        if not one.ended:
            notes.append(Text(f"run {one.run}: has no end: the process still runs, or was killed", style="dim"))
        if one.first is not None:
            first = one.first
            notes.append(
                Text(f"run {one.run}, first difference: event {first.serial}, {first.now_s:.3f} s, {first.event}")
            )
            notes += [Text(f"  logged    {text}") for text in first.logged or ["no decision"]]
            notes += [Text(f"  replayed  {text}") for text in first.replayed or ["no decision"]]
    return Group(table, *notes)
