"""A comparison of two results as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.metrics.comparison import Comparison, Difference
from headway.report import words as w
from headway.units import format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType


def comparison_text(comparison: Comparison, names: tuple[str, str]) -> RenderableType:
    """Return the differences b - a as a table, and what they rest on."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("figure", no_wrap=True)
    for heading in (*names, "difference", "95% interval", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for one in comparison.differences:
        style = "bold" if one.noise is False else ""
        table.add_row(*(Text(cell) for cell in difference_cells(one)), style=style)
    parts: list[RenderableType] = [table, Text(_basis(comparison), style="dim")]
    return Group(*parts, *(Text(note, style="dim") for note in comparison.notes))


def whatif_text(error: Comparison, change: Comparison, change_name: str) -> RenderableType:
    """Return what was measured beside a simulation of it (`error`), and of what is asked about (`change`)."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("figure", no_wrap=True)
    for heading in ("measured", "simulated", "otherwise", "difference", "95% interval", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    before = {one.figure: one for one in error.differences}
    for one in change.differences:
        real = before.get(one.figure)
        name, simulated, *cells, _ = difference_cells(one)
        cells = [name, w.NONE if real is None else _value(real, real.a), simulated, *cells]
        table.add_row(*(Text(cell) for cell in (*cells, "" if one.noise is not False else "differs")),
                      style="bold" if one.noise is False else "")  # fmt: skip
    basis = f"Otherwise: {change_name}; the difference is to the simulation of what was. {_basis(change)}"
    return Group(table, *(Text(note, style="dim") for note in (basis, *change.notes)))


def difference_cells(one: Difference) -> list[str]:
    """Return the cells of a row: figure, both values, difference, interval, verdict."""
    interval = "" if one.low is None or one.high is None else f"{_signed(one, one.low)} to {_signed(one, one.high)}"
    verdict = {None: "", True: "inside the noise", False: "differs"}[one.noise]
    between = "" if one.difference is None else _signed(one, one.difference)
    if one.difference is not None and one.a and one.unit != "share":
        between += f" ({100 * one.difference / one.a:+.1f}%)"
    return [one.figure, _value(one, one.a), _value(one, one.b), between, interval, verdict]


def _basis(comparison: Comparison) -> str:
    if comparison.paired:
        pairs = max((one.requests for one in comparison.differences), default=0)
        return f"{pairs:,} requests paired by id, in batches of consecutive ones, where there is an interval."
    return f"Not paired: {comparison.unpaired_because}."


def _value(one: Difference, value: float | None) -> str:
    if value is None:
        return w.NONE
    if one.unit == "s":
        return format_seconds(value)
    return w.share(value) if one.unit == "share" else w.joules(value) if one.unit == "J" else w.amount(value)


def _signed(one: Difference, value: float) -> str:
    sign = "-" if value < 0 else "+" if value > 0 else ""
    if one.unit == "share":
        return f"{sign}{100 * abs(value):.1f} points"
    return sign + _value(one, abs(value))
