"""`headway compare`: two results side by side, simulated or measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.asked import slo_of
from headway.cli.terminal import Terminal, check_files
from headway.errors import BadInput

if TYPE_CHECKING:
    from headway.metrics import Result

SUFFIXES = (".parquet", ".csv", ".jsonl")


@click.command(cls=o.Verb, short_help="Two results side by side, and whether they differ.")
@click.argument("file_a", metavar="A.json")
@click.argument("file_b", metavar="B.json")
@o.options(o.COMPARED, o.SLO, o.JSON, o.QUIET)
def compare(*, file_a: str, file_b: str, **asked: Any) -> None:
    """Print the differences of two results, as simulate and bench write them with --json, and their 95% intervals.

    Intervals need the rows of both (--records of simulate and bench). Where workload and seed are the same, requests
    are paired by id.

    \b
    headway simulate best.yaml --workload chat --rate 8 --json simulated.json --records simulated.csv
    headway bench http://localhost:8000 --workload chat --rate 8 --json measured.json --records measured.csv
    headway compare simulated.json measured.json
    """
    from headway.metrics.comparison import compare as run
    from headway.report import comparison_text

    terminal = Terminal(asked["json_to"], quiet=asked["quiet"])
    check_files(None, asked["json_to"])
    rows = asked["records_from"]
    if len(rows) not in (0, 2):
        raise BadInput(f"--records came {len(rows)} time(s): name the rows of A, then those of B, or neither")
    slo = slo_of(asked, [])
    rows_a, rows_b = rows or (None, None)
    found = run(_read(file_a, rows_a), _read(file_b, rows_b), slo)
    terminal.show(comparison_text(found, _names(file_a, file_b)))
    if asked["json_to"]:
        from headway.specs import json_text, to_mapping

        terminal.write(asked["json_to"], json_text(to_mapping(found, defaults=True)) + "\n")


def _read(path: str, rows: str | None) -> Result:
    """The result of a file, with its rows where there are some."""
    import msgspec

    from headway.metrics import Records, Result

    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    result = Result.from_json(text, path)
    beside = (str(Path(path).with_suffix(suffix)) for suffix in SUFFIXES)
    found = rows or next((other for other in beside if Path(other).is_file()), None)
    if found is None:
        return result
    records = Records.read(found)
    if len(records) != result.requests.arrived:
        raise BadInput(f"{found} has {len(records):,} rows, {path} tells of {result.requests.arrived:,} requests")
    return msgspec.structs.replace(result, records=records)


def _names(file_a: str, file_b: str) -> tuple[str, str]:
    a, b = Path(file_a).stem, Path(file_b).stem
    return (a, b) if a != b else (file_a, file_b)
