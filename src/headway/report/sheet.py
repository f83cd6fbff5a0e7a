"""Tables for a terminal that are never cut: they break headings, then cells, then columns, as the width asks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
    from rich.table import Table

GAP = 2  # columns between two cells
EDGES = 2  # and beside the outer ones
WORDS = 10  # a column of words is no narrower, unless its longest is
NAME = 40  # and in a pipe no narrower than that: longer is prose
_PLACES = re.compile(r"(?<= to) (?=\S)|(?<=,) | (?=\(|points)")  # where a figure may break


class _Column(NamedTuple):
    heading: str
    right: bool
    words: bool
    least: int


class Sheet:
    """A table of text under headings, for rich to print; no text is read as markup.

    Where it is too wide, headings and words break at spaces; then figures do inside ranges and before brackets; then
    the columns are told in several tables below each other, each with the first column.
    """

    def __init__(self) -> None:
        self.columns: list[_Column] = []
        self.rows: list[tuple[list[str], str]] = []
        self.caption = ""  # a line below it
        self.unbound = False  # where there is room for any table

    def add_column(self, heading: str, *, right: bool = True, words: bool = False, least: int = 1) -> None:
        """Add a column: `right` for figures, `words` for names and prose, which break at any space.

        It is `least` columns wide where there is room.
        """
        self.columns.append(_Column(heading, right and not words, words, least))

    def add_row(self, *cells: str, style: str = "") -> None:
        """Add a row; cells that are missing at its end are empty."""
        self.rows.append(([*cells, *[""] * (len(self.columns) - len(cells))], style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one table, or several where one is too wide, and the caption."""
        from rich.text import Text

        yield from self._tables(console, options)
        if self.caption:
            yield Text(self.caption, style="dim")

    def _tables(self, console: Console, options: ConsoleOptions) -> RenderResult:
        every = list(range(len(self.columns)))
        room, least = options.max_width, [self._least(every, loose) for loose in (False, True)]
        if self.unbound:
            least[0] = self._at_ease()
            room = max(_needed(least[0]), room)
        for loose in (False, True):
            if _needed(least[loose]) <= room:
                widths = self._fitted(every, room, least[loose])
                yield from console.render(self._table(every, widths, loose), options.update(max_width=room))
                return
        for block in self._blocks(room):
            widths = self._fitted(block, room, self._least(block, loose=True))
            wide = options.update(max_width=max(room, _needed(widths)))
            yield from console.render(self._table(block, widths, True), wide)

    def _widest(self) -> list[int]:
        headings = enumerate(self.columns)
        return [max(_long(each.heading), *map(_long, self._cells(place)), each.least) for place, each in headings]

    def _at_ease(self) -> list[int]:
        """The width of each column with nothing broken but prose."""
        least = self._least(range(len(self.columns)), loose=False)
        return [
            max(min(wide, NAME), low, _long(each.heading)) if each.words else wide
            for each, wide, low in zip(self.columns, self._widest(), least, strict=True)
        ]

    def _cells(self, place: int) -> list[str]:
        return [cells[place] for cells, _ in self.rows] or [""]

    def _least(self, places: Sequence[int], loose: bool) -> list[int]:
        """The narrowest that each column may be without a cut: `loose` where figures may break."""
        least = []
        for place in places:
            column, cells = self.columns[place], self._cells(place)
            heading = max(map(len, column.heading.split()), default=1)
            if column.words:
                longest = max(map(_long, cells))
                within = max((len(word) for cell in cells for word in cell.split()), default=1)
                within = max(within, min(longest, WORDS))
            else:
                within = max(_long(piece) for cell in cells for piece in (_PLACES.split(cell) if loose else [cell]))
            least.append(max(heading, within, 1))
        return least

    def _fitted(self, places: Sequence[int], room: int, least: Sequence[int]) -> list[int]:
        """Widths that fit, the widest column narrowed first, none below its `least`."""
        widest = self._widest()
        widths = [widest[place] for place in places]
        while _needed(widths) > room:
            free = [i for i in range(len(widths)) if widths[i] > least[i]]
            if not free:
                break
            widths[max(free, key=lambda i: (not self._breaks(places[i], widths[i]), widths[i]))] -= 1
        return widths

    def _breaks(self, place: int, width: int) -> bool:
        """Whether a column narrower than that breaks a cell: where only its heading breaks, that is cheaper."""
        return max(map(_long, self._cells(place))) >= width

    def _blocks(self, room: int) -> list[list[int]]:
        """The first column with as many of the others as fit, again and again."""
        blocks: list[list[int]] = [[0]]
        for place in range(1, len(self.columns)):
            if len(blocks[-1]) > 1 and _needed(self._least([*blocks[-1], place], True)) > room:
                blocks.append([0])
            blocks[-1].append(place)
        return blocks

    def _table(self, places: Sequence[int], widths: Sequence[int], loose: bool) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", collapse_padding=True)
        for place, width in zip(places, widths, strict=True):
            column = self.columns[place]
            justify: JustifyMethod = "right" if column.right else "left"
            table.add_column(Text(column.heading), justify=justify, width=width, overflow="fold")
        for cells, style in self.rows:
            shown = [
                cells[place] if self.columns[place].words or not loose else _broken(cells[place], width)
                for place, width in zip(places, widths, strict=True)
            ]
            table.add_row(*map(Text, shown), style=style)
        return table


def unbound(part: RenderableType) -> None:
    """Let every sheet of an answer take the columns it needs, as into a pipe; print it with `crop=False`."""
    from rich.console import Group

    if isinstance(part, Sheet):
        part.unbound = True
    elif isinstance(part, Group):
        for each in part.renderables:
            unbound(each)


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1) + EDGES


def _long(text: str) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, text.split("\n")))


def _broken(cell: str, width: int) -> str:
    """A figure on as many lines as it needs."""
    lines: list[str] = []
    for piece in _PLACES.split(cell):
        if lines and _long(lines[-1]) + 1 + _long(piece) <= width:
            lines[-1] += f" {piece}"
        else:
            lines.append(piece)
    return "\n".join(lines)
