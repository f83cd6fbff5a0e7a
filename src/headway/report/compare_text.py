"""A comparison of two results as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.metrics.comparison import Comparison, Difference
from headway.report import words as w
from headway.report.sheet import Sheet
from headway.units import counted, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

FOLD = 10.0  # from so many times more on, a percentage is hard to read


def comparison_text(comparison: Comparison, names: tuple[str, str]) -> RenderableType:
    """Return the differences b - a as a table, and what they rest on."""
    from rich.console import Group
    from rich.text import Text

    table = Sheet()
    table.add_column("figure", words=True)
    for heading in (*names, "difference", "95% interval", ""):
        table.add_column(heading, right=bool(heading))
    for one in comparison.differences:
        style = "bold" if one.noise is False else ""
        table.add_row(*difference_cells(one), style=style)
    parts: list[RenderableType] = [table, Text(basis(comparison), style="dim")]
    return Group(*parts, *(Text(note, style="dim") for note in comparison.notes))


def difference_cells(one: Difference) -> list[str]:
    """Return the cells of a row: figure, both values, difference, interval, verdict."""
    interval = "" if one.low is None or one.high is None else span(one, one.low, one.high)
    verdict = {None: "", True: "inside the noise", False: "differs"}[one.noise]
    if one.too_few and one.difference and one.noise is None:
        verdict = "too few requests"
    between = "" if one.difference is None else _signed(one, one.difference)
    if one.difference is not None and one.a and one.unit != "share":
        share = w.apart(one.difference, one.a, one.b) / one.a
        between += " (0%)" if not share else f" ({share:+.1%})" if share < FOLD else f" (x{share + 1:.0f})"
    return [one.name, figure_value(one, one.a), figure_value(one, one.b), between, interval, verdict]


def span(one: Difference, low: float, high: float) -> str:
    """Return ``-3 to +12 ms``, in the unit of a figure."""
    first, last = _signed(one, low), _signed(one, high)
    _, _, unit = last.partition(" ")
    return f"{first.removesuffix(f' {unit}') if unit else first} to {last}"


def basis(comparison: Comparison) -> str:
    """Return what the intervals rest on."""
    if comparison.paired:
        pairs = max((one.requests for one in comparison.differences), default=0)
        return f"{counted(pairs, 'request')} paired by id, in batches of consecutive ones, where there is an interval."
    return f"Not paired: {comparison.unpaired_because}."


def figure_value(one: Difference, value: float | None) -> str:
    """Return a value of a figure in its unit."""
    if value is None:
        return w.NONE
    if one.unit == "s":
        return format_seconds(value)
    return {"share": w.share, "J": w.joules, "USD": w.usd}.get(one.unit, w.amount)(value)


def _signed(one: Difference, value: float) -> str:
    value = w.apart(value, one.a, one.b)
    sign = "-" if value < 0 else "+" if value > 0 else ""
    if one.unit == "share":
        return f"{sign}{100 * abs(value):.1f} points"
    return sign + figure_value(one, abs(value))
