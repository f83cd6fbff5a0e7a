"""`headway report`: a plan or a result in a file, told again."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from headway.cli import options as o
from headway.cli.terminal import Terminal, check_files
from headway.errors import BadInput

PLAN, FLEET, RESULT = "headway.plan/1", "headway.fleet/1", "headway.result/1"


@click.command(cls=o.Verb, short_help="What is in a plan's or a result's file, told again.")
@click.argument("file", metavar="PLAN.json|RESULT.json")
@o.options(o.OUTPUT[1:], o.TEXT, o.TOP, o.QUIET)
def report(file: str, **asked: Any) -> None:
    """Tell a plan or a result again, from the JSON that `plan`, `simulate` or `bench` wrote.

    Nothing is simulated: figures are those of the file.

    \b
    headway report plan.json --html plan.html
    headway report result.json --text
    """
    terminal = Terminal(quiet=asked["quiet"])
    check_files(asked["html_to"])
    schema, text = _read(file)
    if schema != RESULT:
        from headway.plan import Plan
        from headway.plan.fleet_answer import Fleet
        from headway.report import plan_html, plan_text

        plan = Plan.from_json(text, file) if schema == PLAN else Fleet.from_json(text, file)
        terminal.show(plan_text(plan, None if asked["in_full"] else asked["top"]))
        make = partial(plan_html, plan)
    else:
        from headway.metrics import Result
        from headway.report import result_html, result_text

        result = Result.from_json(text, file)
        terminal.show(result_text(result, in_full=asked["in_full"]))
        make = partial(result_html, result)
    if asked["html_to"]:
        terminal.write(asked["html_to"], make())


def _read(file: str) -> tuple[str, bytes]:
    """The schema that a file names, and its text."""
    try:
        text = Path(file).read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    try:
        data = json.loads(text)
    except ValueError:
        raise BadInput(f"{file}: not JSON; a plan or a result is expected, as --json writes it") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema not in (PLAN, FLEET, RESULT):
        raise BadInput(f"{file}: schema {schema!r}; {PLAN}, {FLEET} or {RESULT} is expected, as --json writes them")
    return schema, text
