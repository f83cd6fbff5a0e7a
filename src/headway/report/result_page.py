"""A result as a report page: what happened, where time, energy and money went, and what it rests on."""

from __future__ import annotations

from functools import partial
from typing import Any

from headway.metrics import Result
from headway.report import charts
from headway.report import words as w
from headway.report.measured_words import MEASURED
from headway.report.page import (
    NUMBER,
    Card,
    Cell,
    Column,
    Facts,
    Figure,
    Page,
    Row,
    Section,
    Table,
    rendered,
    table,
)
from headway.report.text import (
    asked_rows,
    attainment_rows,
    busy_words,
    carbon_words,
    cost_words,
    latency_rows,
    model_rows,
)
from headway.report.trust_words import INTERVAL_HEADINGS, interval_note, interval_rows
from headway.specs import write_yaml
from headway.units import counted, format_rate, format_seconds

ABOUT = {
    "TTFT": "time to first token: arrival to first output token",
    "TPOT": "time per output token after the first, mean of each request",
    "E2E": "end to end: arrival to last output token",
}


def result_html(result: Result) -> str:
    """Return the report of a run as one HTML page.

    Raises:
        MissingExtra: a library of the extra `report` is not installed.
    """
    return rendered(result_page(result))


def result_page(result: Result) -> Page:
    """Return all that there is to report of a run."""
    slo = result.slo
    verdict, tone = ("SLO met", "good") if slo.met else ("SLO missed", "bad")
    if "stopped" in result.provenance:
        verdict, tone = f"stopped early: {result.provenance['stopped']}", "bad"
    elif slo.met is None:
        verdict = ""
    return Page(
        kind=MEASURED if MEASURED in result.provenance else "simulation",
        title=f"Headway: {w.workload_words(result.workload)}",
        sentence=w.unbroken(w.result_sentence(result)),
        verdict=verdict,
        tone=tone,
        question=asked_rows(result),
        cards=_cards(result),
        sections=[
            _latency(result),
            *_error(result),
            _load(result),
            *([] if MEASURED in result.provenance else [_spent(result)]),
            *_deployment(result),
            *sources(result.provenance),
        ],
    )


def _cards(result: Result) -> list[Card]:
    slo, throughput, cost, energy = result.slo, result.throughput, result.cost, result.energy
    cards = [
        Card("TTFT, p90", format_seconds(result.ttft_s.p90), f"p50 {format_seconds(result.ttft_s.p50)}"),
        Card("TPOT, p90", format_seconds(result.tpot_s.p90), f"p50 {format_seconds(result.tpot_s.p50)}"),
        Card(
            "Throughput",
            format_rate(throughput.requests_per_s),
            f"{w.amount(throughput.output_tokens_per_s)} output tokens/s",
        ),
        Card(
            "Cost per million tokens",
            w.usd(cost.usd_per_million_output_tokens),
            f"{w.usd(cost.usd_per_hour)} per hour, idle or busy",
        ),
        Card("Energy per token", w.joules(energy.joules_per_output_token), w.certainty(energy.kind)),
    ]
    if MEASURED in result.provenance:  # a client sees no meter, and a price only where it was told what serves
        cards = cards[: 4 if result.gpus else 3]
    if slo.attainment is not None:
        interval = f"95% interval {w.share(slo.attainment_low)} to {w.share(slo.attainment_high)}"
        cards.insert(0, Card("Attainment", w.share(slo.attainment), interval))
    return cards


def _latency(result: Result) -> Section:
    figures, records = [], result.records
    measured = None if records is None else records["measured"] & records.finished
    for name, latency, limit_s in latency_rows(result):
        if name == "ITL" or not latency.count:
            continue
        if records is None or measured is None:
            spec = partial(charts.percentiles, name, latency, limit_s)
        else:
            values_s = {"TTFT": records.ttft_s, "TPOT": records.tpot_s, "E2E": records.e2e_s}[name]
            spec = partial(charts.distribution, name, values_s[measured], limit_s)
        figures.append(Figure(name.lower(), name, ABOUT[name], spec))
    rows = [
        [name, *map(format_seconds, (each.mean, each.p50, each.p90, each.p95, each.p99, limit_s))]
        for name, each, limit_s in latency_rows(result)
    ]
    note = "The share of requests served within a time, of those that finished after warm-up. Dashed lines are limits."
    headings = ["latency", "mean", "p50", "p90", "p95", "p99", "limit"]
    tables = [table(headings, rows, numeric=6)]
    return Section(key="latency", title="Latency", note=note, figures=figures, tables=tables)


def _error(result: Result) -> list[Section]:
    rows = [[name, *cells] for name, cells in interval_rows(result)]
    if not rows:
        return []
    tables = [table(["figure", *INTERVAL_HEADINGS], rows, numeric=3)]
    return [Section(key="error", title="How sure", note=interval_note(result), tables=tables)]


def _load(result: Result) -> Section:
    kv, tokens = result.kv, result.tokens
    hits = "none: prompts share no prefix"
    if kv.prefix_hit_rate is not None:
        hits = f"{w.share(kv.prefix_hit_rate)} of {kv.prefix_queried_tokens:,} prompt tokens"
    facts: Facts = [
        *attainment_rows(result),
        *model_rows(result),
        ("Replicas", busy_words(result)),
        ("KV cache", f"{w.share(kv.peak_utilization)} of its blocks in use at the fullest moment"),
        ("Prefix hits", hits),
        ("Preemptions", f"{kv.preemptions:,}, {counted(tokens.recomputed, 'token')} computed again"),
        ("Tokens", f"{tokens.prompt:,} of prompts, {tokens.output:,} of output"),
    ]
    figures = [Figure("replicas", "Each replica", "over the whole run", partial(charts.replicas, result), wide=True)]
    return Section(key="load", title="Load", figures=figures if len(result.replicas) > 1 else [], facts=facts)


def _spent(result: Result) -> Section:
    energy, certainty = result.energy, w.certainty(result.energy.kind)
    facts = [
        ("Cost", cost_words(result)),
        ("Energy", f"{w.joules(energy.joules)}, {w.amount(energy.mean_watts)} W on average ({certainty})"),
        ("Carbon", f"{w.grams(result.carbon.grams)} CO2 in all, {carbon_words(result)} ({certainty})"),
    ]
    figures = [
        Figure(
            "energy",
            "Energy by phase",
            "idle: what all GPUs draw without work",
            partial(charts.energy, result),
            wide=True,
        )
    ]
    return Section(key="spent", title="Energy and cost", figures=figures, facts=facts)


def _deployment(result: Result) -> list[Section]:
    if result.deployment is None:
        return []
    note = "As a file for headway simulate; what is not named has its default."
    return [Section(key="deployment", title="Deployment", note=note, code=write_yaml(result.deployment))]


def sources(provenance: dict[str, Any]) -> list[Section]:
    """Return the numbers a step's time and energy were computed from, with their sources: a table per pool."""
    sections = []
    for role, estimates in provenance.items():
        if role in ("failed", "stopped", "trace", MEASURED):
            continue
        rows = [_source_row(name, estimate) for name, estimate in estimates.items()]
        columns = [
            Column("assumption"),
            Column("value", NUMBER),
            *map(Column, ("interval", "from")),
            Column("source", "prose"),
        ]
        note = (
            "What a step's time and energy were computed from. Fitted: on measurements by others, with the interval of "
            "the fit. Vendor: a data sheet. Measured: read off the hardware. Modelled: our estimate."
        )
        title = "Assumptions" if role == "mixed" else f"Assumptions: {role} replicas"
        tables = [Table(columns, rows, sortable=True)]
        sections.append(Section(key=f"assumptions-{role.replace('.', '-')}", title=title, note=note, tables=tables))
    return sections


def _source_row(name: str, estimate: dict[str, Any]) -> Row:
    value, low, high = (w.quantity(estimate[key], estimate["unit"]) for key in ("value", "low", "high"))
    interval = "" if low == high else f"{low.partition(' of ')[0]} to {high.partition(' of ')[0]}"
    number = Cell(value, float(estimate["value"]))
    return Row([Cell(name), number, Cell(interval), Cell(estimate["kind"]), Cell(estimate["source"])])
