"""A report's page on a terminal: its sentences, facts and tables; what its charts draw stands in the tables."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from headway.report.page import NUMBER, RANGE, STRIP, Page, Section, Table
from headway.report.sheet import Sheet

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as RichTable

LABEL_COLUMNS = 17
TONES = {"best": "bold green", "lost": "dim", "good": "bold green", "bad": "bold red"}


def page_text(page: Page) -> RenderableType:
    """Return all of a report for a terminal. Every text is literal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(page.sentence, style="bold")]
    parts += [Text(page.verdict, style=TONES.get(page.tone, ""))] if page.verdict else []
    parts += [Text(page.lead)] if page.lead else []
    parts += [Text(" ".join(page.details))] if page.details else []
    parts += [Text(""), facts(page.question)]
    parts += (
        [Text(""), facts([(each.label, f"{each.value} ({each.note})") for each in page.cards])] if page.cards else []
    )
    for section in page.sections:
        if section.facts or section.tables or section.code or section.note:
            parts += _section(section)
    return Group(*parts)


def _section(section: Section) -> list[RenderableType]:
    from rich.text import Text

    parts: list[RenderableType] = [Text(""), Text(section.title, style="bold underline")]
    note = section.told or section.note
    parts += [Text(note, style="dim")] if note else []
    parts += [Text(f"- {point}") for point in section.points]
    parts += [facts(section.facts)] if section.facts else []
    for each in section.tables:
        parts += [Text(""), Text(each.title, style="bold")] if each.title else []
        parts.append(rows_table(each))
    parts += [Text(section.code)] if section.code else []
    return parts


def facts(rows: Iterable[tuple[str, str]], columns: int = LABEL_COLUMNS) -> RichTable:
    """Return names beside what there is to say of them, the names in a column of at least that width."""
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=columns)
    grid.add_column()
    for name, value in rows:
        grid.add_row(Text(name, style="dim"), Text(value))
    return grid


def rows_table(table: Table) -> RenderableType:
    """Return the rows, and below them their notes by the first cell; neighbours that share one are told together."""
    from rich.console import Group

    shown = Sheet()
    for column in table.columns:
        number = column.cells in (NUMBER, RANGE)
        shown.add_column(column.name, right=number, words=not number and column.cells != STRIP)
    for row in table.rows:
        shown.add_row(*(cell.text for cell in row.cells), style=TONES.get(row.tone, ""))
    noted = ((row.cells[0].text, row.note) for row in table.rows if row.note)
    told = []
    for note, group in itertools.groupby(noted, key=lambda one: one[1]):
        names = [name for name, _ in group]
        told.append((f"{names[0]}-{names[-1]}" if len(names) > 1 else names[0], note))
    return Group(shown, facts(told, columns=2)) if told else shown
