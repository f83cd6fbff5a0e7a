"""A day's replicas as a table for a terminal and as a page."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from headway.plan.day import Capacity, Slot
from headway.report import words as w
from headway.report.charts import BLUE, GREY, finished, inline
from headway.report.page import NUMBER, Card, Cell, Column, Facts, Figure, Page, Row, Section, Table, rendered
from headway.report.page import table as plain_table
from headway.report.sheet import Sheet
from headway.sim import Deployment
from headway.specs import from_mapping
from headway.units import counted, format_rate, format_rates, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

BAR_COLUMNS = 24
HEADINGS = ["from", "rate", "replicas", "GPUs", "attainment", "95% interval"]  # and power
SUMS = ["", "hour by hour", "the peak's all day", "saved", ""]
NOTE = (
    "Each slot by itself, in a steady state at its highest rate, or with its own requests of a trace. A replica that "
    "takes a minute to start must be started a minute before. kWh are those of the GPUs, without the site's overhead."
)


def capacity_text(found: Capacity) -> RenderableType:
    """Return the day as a sentence, a row for each slot with a bar, and what it saves."""
    from rich.console import Group
    from rich.text import Text

    table = Sheet()
    for heading in (*HEADINGS, _power(found), ""):
        table.add_column(heading, right=bool(heading))
    most = max((slot.replicas or 0 for slot in found.slots), default=0) or 1
    for slot, cells in zip(found.slots, _rows(found), strict=True):
        bar = "#" * max(1, round(BAR_COLUMNS * (slot.replicas or 0) / most)) if slot.replicas else "not served"
        table.add_row(*cells, bar)
    parts: list[RenderableType] = [Text(found.message, style="bold"), table]
    if found.feasible:
        sums = Sheet()
        for heading in SUMS:
            sums.add_column(heading, right=bool(heading))
        for row in _sums(found):
            sums.add_row(*row)
        parts.append(sums)
    return Group(*parts, Text(f"{model_words(found)} {NOTE}".strip(), style="dim"))


def capacity_html(found: Capacity) -> str:
    """Return the day as one HTML page.

    Raises:
        MissingExtra: a library of the extra `report` is not installed.
    """
    figures = [Figure("day", "Replicas", "grey is the number that the peak takes", partial(_chart, found), wide=True)]
    columns = [Column(HEADINGS[0]), *(Column(heading, NUMBER) for heading in (*HEADINGS[1:], _power(found)))]
    told = zip(found.slots, _rows(found), strict=True)
    rows = [Row([Cell(text) for text in cells], "" if slot.replicas else "lost") for slot, cells in told]
    sums = plain_table(SUMS[:-1], [row[:-1] for row in _sums(found)], numeric=3)
    tables = [sums, Table(columns, rows)] if found.feasible else [Table(columns, rows)]
    page = Page(
        kind="capacity",
        title=f"Headway capacity: {found.deployment['pools'][0]['replica']['model']}",
        sentence=w.unbroken(found.message),
        lead=model_words(found),
        verdict="" if found.feasible else "not every slot can be served",
        tone="bad",
        question=_asked(found),
        cards=[Card(f"{row[0]} saved", row[3], f"{row[1]} in place of {row[2]}") for row in _sums(found)],
        sections=[Section(key="slots", title="Slot by slot", note=NOTE, figures=figures, tables=tables)],
    )
    return rendered(page)


def model_words(found: Capacity) -> str:
    """Return what the peak may take by the cost model's error, and in how many slots chance decides."""
    if not found.feasible:
        return ""
    low, high = found.peak_by_model
    ends = [f"{low}" if low is not None else "no number", "no number" if high is None else counted(high, "replica")]
    said = f"At the ends of the cost model's interval the peak takes {' and '.join(ends)}."
    names = from_mapping(Deployment, found.deployment, "deployment").pool_names()
    said = f"Replicas are those of {' + '.join(names)}. {said}" if len(names) > 1 else said
    near = sum((slot.attainment_low or 1.0) < slot.target for slot in found.slots if slot.replicas)
    return f"{said} In {counted(near, 'slot')} the interval reaches below the target." if near else said


def _asked(found: Capacity) -> Facts:
    deployment = from_mapping(Deployment, found.deployment, "deployment")
    return [
        ("Copied", w.deployment_words(deployment)),
        ("Routed by", deployment.policies.route),
        ("Workload", f"{w.workload_words(found.workload)}; seed {found.seed}"),
        *[
            (f"SLO of {name}" if name else "SLO", f"{w.limits(slo)} for {w.share(slo.attainment)} of requests")
            for name, slo in (found.slos or {"": found.slo}).items()
        ],
    ]


def _rows(found: Capacity) -> list[list[str]]:
    """The cells of each slot's row."""
    rates = format_rates(slot.rate_req_s for slot in found.slots)
    return [_cells(slot, rate) for slot, rate in zip(found.slots, rates, strict=True)]


def _cells(slot: Slot, rate: str) -> list[str]:
    known = slot.attainment_low is not None
    interval = f"{w.share(slot.attainment_low)} to {w.share(slot.attainment_high)}" if known else ""
    watts = w.NONE if slot.mean_watts is None else f"{slot.mean_watts / 1000:.2f} kW"
    counts = [w.NONE if each is None else f"{each:,}" for each in (slot.replicas, slot.gpus)]
    if slot.pools is not None and len(slot.pools) > 1:
        counts[0] = " + ".join(map(str, slot.pools))
    share = w.share(slot.attainment) + (f" of {slot.slo_class}" if slot.slo_class else "")
    return [clock(slot.start_s), rate, *counts, share, interval, watts]


def clock(seconds: float) -> str:
    """Return ``07:30``, or seconds where these matter."""
    minutes, rest = divmod(seconds, 60.0)
    return f"{int(minutes // 60):02d}:{int(minutes % 60):02d}" if rest < 1e-6 else format_seconds(seconds)


def _mark(found: Capacity) -> str:
    return "fitted" if found.energy_kind == "fitted" else "est."


def _power(found: Capacity) -> str:
    return f"power, {_mark(found)}"


def _sums(found: Capacity) -> list[list[str]]:
    """GPU-hours, dollars and kWh: hour by hour, by the peak's number, and what that saves."""
    pairs = (
        ("GPU-hours", found.gpu_hours, found.static_gpu_hours, w.amount),
        ("dollars", found.usd, found.static_usd, w.usd),
        (f"energy, {_mark(found)}", found.kwh, found.static_kwh, lambda value: f"{w.amount(value)} kWh"),
    )
    return [
        [name, shown(mine), shown(static), shown(saved), w.share(saved / static if static else None)]
        for name, mine, static, shown in pairs
        if mine is not None and static is not None
        for saved in [w.apart(static - mine, mine, static)]
    ]


def _number(replicas: int | None) -> str:
    return counted(replicas, "replica") if replicas else "too few replicas"


def _chart(found: Capacity) -> dict[str, Any]:
    """Replicas over the day as steps, with the peak's number behind them."""
    import altair as alt

    rows = [
        {
            "from": slot.start_s / 3600, "to": slot.end_s / 3600, "replicas": slot.replicas or 0, "zero": 0,
            "peak": found.peak_replicas or 0,
            "label": f"{clock(slot.start_s)}: {format_rate(slot.rate_req_s)}, {_number(slot.replicas)}",
        }
        for slot in found.slots
    ]  # fmt: skip
    base = inline(rows).encode(
        x=alt.X("from:Q", title="hours", axis=alt.Axis(grid=False)), x2="to", y2="zero", tooltip=alt.Tooltip("label:N")
    )
    behind = base.mark_rect(color=GREY, opacity=0.25).encode(y=alt.Y("peak:Q", title="replicas"))
    front = base.mark_rect(color=BLUE, opacity=0.85, stroke="white").encode(y="replicas:Q")
    return finished(alt.layer(behind, front))
