"""`headway calibrate`: own measurements become a calibration that `simulate`, `plan` and `validate` take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.calibration import read_fingerprint
from headway.cli.terminal import Terminal, check_files, note_interpreted
from headway.errors import BadInput

if TYPE_CHECKING:
    from headway.accuracy import Calibrated, Row
    from headway.accuracy.runs import Run
    from headway.cost.calibration import CalibrationFile


@click.command(cls=o.Verb, short_help="Step times by own measurements, from ten points on.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@o.options(o.CHOICE, o.WRITTEN, o.JSON, o.QUIET)
def calibrate(*, files: tuple[str, ...], **asked: Any) -> None:
    """Fit the step law to measured operating points of one GPU and engine, starting from the shipped law.

    FILE is a CSV, plain or gzipped, in the form that `headway validate` reads, or the results of `headway bench
    --deployment`, one a point; docs/calibration.md describes both. Held-out points decide: where they are predicted
    no better, the shipped law is kept.

    \b
    headway calibrate mine.csv --out cal.yaml
    headway calibrate bench-*.json --out cal.yaml
    headway calibrate mine.csv --where gpu_key=H100 --where engine=vllm --out cal.yaml
    headway simulate best.yaml --calibration cal.yaml
    """
    from headway.accuracy import calibrate as run
    from headway.accuracy.calibrate import measured_on
    from headway.report import calibration_text

    terminal = Terminal(asked["json_to"], asked["out_to"], quiet=asked["quiet"])
    check_files(None, asked["json_to"], asked["out_to"])
    rows = _measured(files, asked["where"])
    fingerprint = read_fingerprint(asked["fingerprint_from"]) if asked["fingerprint_from"] else {}
    _check_machine(fingerprint, measured_on(rows)[0])
    note_interpreted(terminal)
    name, digest = _named(files)
    with terminal.bar("calibrating") as bar:
        found = run(rows, source=f"{name} (sha256 {digest[:12]})", progress=bar.tell)
    terminal.show(calibration_text(found))
    _deliver(terminal, found, _file(found, fingerprint, name, digest), asked)


def _measured(files: tuple[str, ...], wanted: tuple[str, ...]) -> list[Row | Run]:
    """The rows of one table, or the runs of results."""
    from headway.accuracy import read_rows
    from headway.accuracy.runs import read_run

    results = [file for file in files if file.endswith(".json")]
    if not results and len(files) == 1:
        return [*_chosen(read_rows(files[0]), wanted)]
    if len(results) < len(files):
        raise BadInput(f"{len(files) - len(results)} tables and {len(results)} results: give one CSV, or results alone")
    if wanted:
        raise BadInput(f"--where {wanted[0]!r}: chooses rows of a table; name the results that are wanted")
    return [read_run(file) for file in files]


def _chosen(rows: list[Row], wanted: tuple[str, ...]) -> list[Row]:
    """The rows that have every value asked for."""
    from headway.errors import UnknownName

    for text in wanted:
        column, equals, value = text.partition("=")
        known = [name for name in rows[0].__struct_fields__ if name != "measured"]
        if not equals:
            raise BadInput(f"--where {text!r}: write COLUMN=VALUE, as in gpu_key=H100")
        if column not in known:
            raise UnknownName("column", column, known)
        values = {_cell(row, column) for row in rows}
        rows = [row for row in rows if _cell(row, column) == value]
        if not rows:
            raise BadInput(f"--where {text!r}: no row is left; there is {', '.join(sorted(values)[:8])}")
    return rows


def _cell(row: Row, column: str) -> str:
    """What a row has in a column, numbers without a needless point."""
    value = getattr(row, column)
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_machine(fingerprint: dict[str, Any], gpu_key: str) -> None:
    """Refuse a fingerprint that names another GPU than the points."""
    from headway.hardware import gpus_named

    name = str(fingerprint.get("gpu", ""))
    named = gpus_named(name)
    if named and gpu_key not in named:
        raise BadInput(f"the fingerprint is of {name!r}, the points of {gpu_key}: give that of the machine measured")


def _named(files: tuple[str, ...]) -> tuple[str, str]:
    """Name and SHA-256 of the measured file, or of all of them one after the other."""
    import hashlib
    from pathlib import Path

    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"{Path(files[0]).name}{more}", digest.hexdigest()


def _file(found: Calibrated, fingerprint: dict[str, Any], name: str, digest: str) -> CalibrationFile:
    import datetime

    from headway.cost.calibration import SCHEMA, CalibrationFile

    return CalibrationFile(
        schema=SCHEMA,
        calibration=found.calibration,
        evidence=found.evidence,
        fingerprint=fingerprint,
        file=name,
        sha256=digest,
        date=datetime.date.today().isoformat(),
    )


def _deliver(terminal: Terminal, found: Calibrated, file: CalibrationFile, asked: o.Options) -> None:
    from headway.specs import json_text, to_mapping, write_yaml

    if asked["out_to"]:
        terminal.write(asked["out_to"], write_yaml(file))
    elif not asked["json_to"]:
        terminal.note("nothing was written: --out cal.yaml keeps the calibration")
    if asked["json_to"]:
        told = to_mapping(file, defaults=True)
        told |= {name: getattr(found, name) for name in ("broken", "suspects", "contradictions", "advice")}
        terminal.write(asked["json_to"], json_text(told) + "\n")
