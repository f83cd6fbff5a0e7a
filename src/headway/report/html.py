"""The report page: one HTML file with its charts, scripts and styles inside; it fetches nothing."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.errors import MissingExtra
from headway.metrics import Result
from headway.report import charts
from headway.report import words as w
from headway.report.text import attainment_rows, busy_words, cost_words, latency_rows
from headway.specs import write_yaml
from headway.units import format_rate, format_seconds

PAGE = Path(__file__).with_name("page")


class Figure(NamedTuple):
    """A chart with its title and a line on how to read it."""

    title: str
    note: str
    spec: charts.Spec


class Table(NamedTuple):
    """Rows of cells; `numeric` columns are set right and sorted by the number in a cell's second entry."""

    title: str
    note: str
    headings: list[str]
    rows: list[list[Any]]
    sortable: bool = False


def check_html() -> None:
    """Find the libraries a page is made with, before long work whose result would go into one.

    Raises:
        MissingExtra: one of them is not installed.
    """
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"an HTML report needs {error.name}", "report") from None
