"""The page that every report is poured into: a sentence, facts, cards, sections; one file that fetches nothing."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from headway.errors import MissingExtra

TEMPLATE = Path(__file__).with_name("template")
RANGE = "range"  # of numbers: set like one, but on two lines where it has to be
STRIP = "strip"  # a curve in characters: for the terminal, where a page has a chart
NUMBER = "n"  # short, as it stands in thousands of cells
Facts = list[tuple[str, str]]


class Card(msgspec.Struct, frozen=True):
    """One of the main figures."""

    label: str
    value: str
    note: str = ""


class Figure(msgspec.Struct, frozen=True):
    """A chart under its title, with a line on how to read it; `key` is its own on the page.

    `spec` makes the Vega-Lite spec when the page is drawn. A `wide` one has a row for itself.
    """

    key: str
    title: str
    note: str
    spec: Callable[[], dict[str, Any]]
    wide: bool = False


class Column(msgspec.Struct, frozen=True):
    """A table's column; its cells are `NUMBER`, `RANGE`, "name", "prose", `STRIP` or plain."""

    name: str
    cells: str = ""


class Cell(msgspec.Struct, frozen=True):
    """A table's cell; a sortable column with numbers is ordered by `order`, an unknown number comes last."""

    text: str
    order: float | None = None


class Row(msgspec.Struct, frozen=True):
    """A table's row; `tone` is "best", "lost" or nothing; `note` stands below it in the table's whole width."""

    cells: list[Cell]
    tone: str = ""
    note: str = ""


class Table(msgspec.Struct, frozen=True):
    """Rows under headings; a sortable one is sorted by its headings, which are buttons.

    `title` says what it holds where a section has several. The rows of a table with a `dataset` are those of that data
    set, in its order: the page's filter shows some of both.
    """

    columns: list[Column]
    rows: list[Row]
    sortable: bool = False
    title: str = ""
    dataset: str = ""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the page under a heading; the page's filter stands above the figures of a `filtered` one.

    `told` is the note for a terminal, where that of the page says how to use it.
    """

    key: str
    title: str
    note: str = ""
    told: str = ""
    points: list[str] = []
    figures: list[Figure] = []
    facts: Facts = []
    tables: list[Table] = []
    code: str = ""
    filtered: bool = False


class Filter(msgspec.Struct, frozen=True):
    """Shows the rows whose `column` is one of those that the chosen option (label, values) names; the first: all."""

    column: str
    label: str
    options: list[tuple[str, list[str]]]


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """All of a report: `sentence` is the answer, `lead` says more, `verdict` is a few words in a good or bad `tone`.

    `details` are what else belongs to the answer, in smaller print below it: a sentence or two each.

    `datasets` are columns of rows that several charts name, so that the page holds them once. `filters` are questions
    to ask of the rows of the data set "candidates".
    """

    kind: str
    title: str
    sentence: str
    lead: str = ""
    verdict: str = ""
    tone: str = ""
    details: list[str] = []
    question: Facts
    cards: list[Card]
    sections: list[Section]
    datasets: dict[str, dict[str, list[Any]]] = {}
    filters: list[Filter] = []

    @property
    def assumes(self) -> bool:
        """Whether a section says what is assumed."""
        return any("ssumptions" in section.title for section in self.sections)


def table(headings: list[str], rows: list[list[str]], numeric: int = 0) -> Table:
    """Return a table of plain text whose last `numeric` columns are numbers."""
    first = len(headings) - numeric
    columns = [Column(name, NUMBER if index >= first else "") for index, name in enumerate(headings)]
    return Table(columns, [Row([Cell(text) for text in row]) for row in rows])


def check_html() -> None:
    """Find the libraries a page is made with, before long work whose answer would go into one.

    Raises:
        MissingExtra: one of them is not installed.
    """
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"an HTML report needs {error.name}", "report") from None


def rendered(page: Page) -> str:
    """Return the page as HTML text; every text of the report is escaped.

    Raises:
        MissingExtra: a library of the extra `report` is not installed.
    """
    check_html()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape

    def prose(text: str) -> Markup:
        """What stands between backticks is code."""
        return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))

    loader = FileSystemLoader(TEMPLATE)
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["prose"] = prose
    specs = {figure.key: figure.spec() for section in page.sections for figure in section.figures}
    return jinja.get_template("page.html.j2").render(page=page, specs=specs, bundle=Markup(_bundle()))


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, 0.9 MB, without a network: vl-convert carries them."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.headwayEmbed = vegaEmbed;"))
