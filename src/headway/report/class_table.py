"""What a candidate does for each class of requests, in cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.report import words as w
from headway.report.page import NUMBER, Cell, Column, Row, Table
from headway.units import format_seconds

if TYPE_CHECKING:
    from headway.plan import Candidate, Plan

HEADINGS = ["attained", "95% interval", "target", "TTFT", "TPOT", "E2E"]


def class_rows(candidate: Candidate, names: list[str], target: float) -> list[tuple[str, list[str]]]:
    """Return each class with its cells under `HEADINGS`; a single one has those of the candidate."""
    if not candidate.by_class:
        return [
            (
                name,
                [
                    w.share(candidate.attainment), _interval(candidate.attainment_low, candidate.attainment_high),
                    w.share(target),
                    format_seconds(candidate.ttft_p90_s if candidate.ttft_s is None else candidate.ttft_s),
                    format_seconds(candidate.tpot_p90_s if candidate.tpot_s is None else candidate.tpot_s), w.NONE,
                ],
            )
            for name in names
        ]  # fmt: skip
    return [
        (
            name,
            [
                w.share(one.attainment), _interval(one.attainment_low, one.attainment_high), w.share(one.target),
                format_seconds(one.ttft_s), format_seconds(one.tpot_s), format_seconds(one.e2e_s),
            ],
        )
        for name, one in candidate.by_class.items()
    ]  # fmt: skip


def class_table(plan: Plan, shown: list[Candidate]) -> Table:
    """Return a row for each class of each candidate."""
    columns = [Column("deployment", "name"), Column("class"), *(Column(name, NUMBER) for name in HEADINGS)]
    rows = []
    for candidate in shown:
        for place, (name, cells) in enumerate(class_rows(candidate, [], 0.0)):
            breaks = " (first to break)" if name == candidate.binding_class else ""
            named = [candidate.name if place == 0 else "", name + breaks, *cells]
            rows.append(Row([Cell(text) for text in named], "" if candidate.meets else "lost"))
    return Table(columns, rows)


def _interval(low: float | None, high: float | None) -> str:
    return w.NONE if low is None else f"{w.share(low)} to {w.share(high)}"
