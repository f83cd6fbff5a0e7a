"""`headway validate`: the simulator against measured tables and recorded runs."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.calibration import compare_machines, read_calibrated, refuse_elsewhere
from headway.cli.terminal import Terminal, check_files, note_interpreted
from headway.errors import BadInput, HeadwayError

if TYPE_CHECKING:
    from headway.accuracy import Accuracy


class NothingUsed(HeadwayError):
    """A table that was read and of which no row can be simulated: no answer."""

    exit_code = 1


@click.command(cls=o.Verb, short_help="How far the simulator is from measurements.")
@click.argument("table_file", required=False, metavar="[FILE]")
@o.options(o.VALIDATION, o.CALIBRATION, o.JSON, o.POINTS, o.QUIET)
def validate(*, table_file: str | None, **asked: Any) -> None:
    """Simulate every operating point of a table of measurements, and print the errors of every figure it gives.

    FILE is a CSV, plain or gzipped, of measured operating points; docs/accuracy.md describes the columns. With
    --requests DIR it is recorded runs instead, replayed request by request.

    \b
    headway validate serving.csv.gz --json accuracy.json
    headway validate serving.csv.gz --sample 500
    headway validate --requests runs/
    """
    terminal = Terminal(asked["json_to"], asked["points_to"], quiet=asked["quiet"])
    if (table_file is None) == (asked["requests_from"] is None):
        raise BadInput("name either a table of measurements, or with --requests a folder of recorded runs")
    if asked["json_to"] == asked["points_to"] == "-":
        raise BadInput("--json - and --points - both want stdout: write one of them to a file")
    check_files(None, asked["json_to"], asked["points_to"])
    note_interpreted(terminal)
    if table_file is None:
        _replay(terminal, asked)
    else:
        _table(terminal, table_file, asked)


def _replay(terminal: Terminal, asked: o.Options) -> None:
    from headway.accuracy import replay_requests
    from headway.report import replay_text

    for name in ("sample", "workers", "points_to", "calibration_from", "fingerprint_from"):
        if asked[name] is not None:
            option = name.removesuffix("_to").removesuffix("_from")
            raise BadInput(f"--{option} belongs to a table of measurements, not to --requests")
    found = replay_requests(asked["requests_from"], asked["trace"])
    terminal.show(replay_text(found))
    if asked["json_to"]:
        terminal.write(asked["json_to"], found.to_json())


def _table(terminal: Terminal, path: str, asked: o.Options) -> None:
    from headway.accuracy import Outcome, Row, make_judge, read_rows, sample
    from headway.accuracy import validate as run
    from headway.plan.workers import Workers
    from headway.report import accuracy_text

    if asked["trace"]:
        raise BadInput("--trace belongs to --requests: a table of measurements needs no trace")
    count = asked["sample"]
    rows = sample(read_rows(path), None if count is None else int(count))
    compare_machines(asked, terminal)
    calibration = read_calibrated(asked["calibration_from"], terminal)
    workers: Workers[Row, Outcome] = Workers(make_judge, (calibration,), asked["workers"])
    try:
        with terminal.bar("validating") as bar:
            found = run(rows, answers=workers.answers, progress=bar.tell)
    finally:
        workers.close()
    refuse_elsewhere(calibration, found.skipped, found.used)
    terminal.show(accuracy_text(found))
    for doubt in found.doubts():
        terminal.note(doubt)
    if asked["json_to"]:
        terminal.write(asked["json_to"], found.to_json())
    if asked["points_to"]:
        terminal.write(asked["points_to"], _points(found))
    if not found.used:
        raise NothingUsed(f"{path}: none of its {found.rows:,} rows could be used, so nothing was compared")


def _points(found: Accuracy) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("row_id", "source", "figure", "measured", "predicted"))
    lines.writerows(found.table())
    return text.getvalue()
