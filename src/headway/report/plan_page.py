"""A plan as a report page: the answer, what it costs, every candidate and why it lost, what it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headway.report import charts
from headway.report import words as w
from headway.report.page import NUMBER, Card, Cell, Column, Figure, Page, Row, Section, Table, rendered
from headway.report.result_page import sources
from headway.report.sensitivity_text import HEADINGS, basis_words, sensitivity_words, variant_cells
from headway.report.text import candidate_cells, candidate_headings, energy_rows
from headway.report.trust_words import plan_error_rows
from headway.sim import Deployment
from headway.sim.run import compiled, to_mapping_all
from headway.specs import from_mapping, write_yaml
from headway.units import format_rate, format_seconds

if TYPE_CHECKING:
    from headway.plan import Candidate, Plan

TABLE_BEST, TABLE_REST = 250, 100  # rows: the page stays below 2 MB whatever the number of candidates
CHART_BEST, CHART_REST = 1000, 1000  # points


def plan_html(plan: Plan) -> str:
    """Return the report of a plan as one HTML page.

    Raises:
        MissingExtra: a library of the extra `report` is not installed.
    """
    points = charts.candidate_rows(plan, selected(plan, CHART_BEST, CHART_REST)) if plan.ranked else []
    verdict = "" if plan.feasible else "no deployment meets the SLO"
    if plan.interrupted:
        verdict = f"interrupted after {w.counted(plan.evaluated, 'deployment')}: what is known so far"
    page = Page(
        kind="plan",
        title=f"Headway plan: {plan.question.model} on {' and '.join(plan.question.stock)}",
        sentence=w.unbroken(w.plan_sentence(plan)),
        lead=w.unbroken(plan.message) if plan.best else "",
        verdict=verdict,
        tone="bad",
        question=[*w.question_rows(plan), *energy_rows(plan), *plan_error_rows(plan)],
        cards=_cards(plan.best) if plan.best else [],
        sections=[*_tradeoffs(plan), *_candidates(plan), *_sensitivity(plan), *_best(plan)],
        datasets={charts.CANDIDATES: points},
    )
    return rendered(page)


def selected(plan: Plan, best: int, rest: int) -> list[Candidate]:
    """Return the first `best` candidates, those on the front, and up to `rest` of the others at even distances."""
    front = set(plan.front)
    tail = plan.ranked[best:]
    every = max(1, -(-len(tail) // rest))
    kept = [candidate for place, candidate in enumerate(tail) if place % every == 0 or candidate.name in front]
    return [*plan.ranked[:best], *kept]


def _cards(best: Candidate) -> list[Card]:
    return [
        Card("GPUs", f"{best.gpus}", best.name),
        Card(
            "Attainment",
            w.share(best.attainment),
            f"95% interval {w.share(best.attainment_low)} to {w.share(best.attainment_high)}",
        ),
        Card(
            "TTFT and TPOT, p90",
            format_seconds(best.ttft_p90_s),
            f"then {format_seconds(best.tpot_p90_s)} a token",
        ),
        Card("Goodput", format_rate(best.goodput_req_s), f"{format_rate(best.goodput_req_s_per_gpu)} per GPU"),
        Card(
            "Cost",
            f"{w.usd(best.usd_per_hour)}/h",
            f"{w.usd(best.usd_per_million_output_tokens)} per million output tokens",
        ),
        Card("Energy per token", w.joules(best.joules_per_output_token), w.certainty(best.energy_kind or "estimated")),
    ]


def _tradeoffs(plan: Plan) -> list[Section]:
    if not plan.ranked:
        return []
    rate = format_rate(plan.rate_req_s)
    line = f"a dashed line is the rate asked for, {rate}"
    figures = [
        Figure("pareto", "Cost and goodput per GPU", "left and up is better", charts.cost_and_goodput(plan), wide=True),
        Figure("rate", "What the money serves", line, charts.cost_and_rate(plan)),
    ]
    if any(candidate.attainment is not None for candidate in plan.ranked):
        figures += [
            Figure("share", f"Attainment at {rate}", "a dashed line is the target", charts.cost_and_attainment(plan)),
            Figure("latency", f"Latency at {rate}", "dashed lines are the limits", charts.latencies(plan)),
        ]
    note = (
        "Each point is a deployment; hover for its figures. Goodput is the highest rate at which the share of requests "
        "within the SLO reaches its target. On the front is what no other beats in cost, energy and goodput at once."
    )
    return [Section(key="tradeoffs", title="Trade-offs", note=note, figures=figures)]


def _candidates(plan: Plan) -> list[Section]:
    if not plan.ranked:
        return []
    shown = selected(plan, TABLE_BEST, TABLE_REST)
    rank = {candidate.name: place for place, candidate in enumerate(plan.ranked, start=1)}
    numbers = [Column(name.replace("\n", " "), NUMBER) for name in candidate_headings(plan)]
    columns = [Column("#", NUMBER), Column("deployment", "name"), *numbers, Column("why", "prose")]
    rows = [_row(plan, candidate, rank[candidate.name]) for candidate in shown]
    note = (
        "A click on a heading sorts. Names: replicas x layout (P prefill, D decode), precision of weights/KV, "
        "b token budget of a step, W power limit and MHz clock of a GPU where one was asked for."
    )
    if len(shown) < len(plan.ranked):
        note += (
            f" {len(shown):,} of {len(plan.ranked):,} are shown: the first {TABLE_BEST}, the front, a sample of the "
            "rest; the JSON has all."
        )
    tables = [Table(columns, rows, sortable=True)]
    return [Section(key="candidates", title="Candidates", note=note, tables=tables)]


def _row(plan: Plan, candidate: Candidate, rank: int) -> Row:
    numbers = (
        candidate.gpus, candidate.attainment, candidate.ttft_p90_s, candidate.tpot_p90_s, candidate.goodput_req_s,
        candidate.goodput_req_s_per_gpu, candidate.usd_per_hour, candidate.usd_per_million_output_tokens,
        candidate.mean_watts, candidate.joules_per_output_token, candidate.carbon_g_per_million_output_tokens,
    )  # fmt: skip
    cells = [Cell(text, order) for text, order in zip(candidate_cells(candidate), numbers, strict=True)]
    best = plan.best is not None and candidate.name == plan.best.name
    tone = "best" if best else "" if candidate.meets else "lost"
    return Row([Cell(f"{rank}", rank), Cell(candidate.name), *cells, Cell(candidate.reason)], tone)


def _sensitivity(plan: Plan) -> list[Section]:
    found = plan.sensitivity
    if found is None:
        return []
    columns = [Column(name, "" if name in ("otherwise", "SLO") else NUMBER) for name in HEADINGS]
    rows = [Row([Cell(text) for text in variant_cells(each)], "" if each.meets else "lost") for each in found.variants]
    note = " ".join([*sensitivity_words(found), basis_words(found)])
    return [Section(key="holds", title=f"How far {found.name} holds", note=note, tables=[Table(columns, rows)])]


def _best(plan: Plan) -> list[Section]:
    if plan.best is None:
        return []
    data = plan.best.deployment
    note = "The best deployment as a file for headway simulate; what is not named has its default."
    deployment = from_mapping(Deployment, data, "deployment")
    named = zip(deployment.pool_names(), deployment.pools, strict=True)
    provenance: dict[str, Any] = {name: to_mapping_all(compiled(pool.replica)) for name, pool in named}
    return [
        Section(key="deployment", title="Deployment", note=note, code=write_yaml(data)),
        *sources(provenance),
    ]
