"""A plan as a report: the answer, its cost, how it takes more load, every candidate and why it lost, what it rests on.

The page is poured into HTML (`plan_html`) or onto a terminal (`page_text`): the same figures in both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from headway.report import plan_charts as charts
from headway.report import words as w
from headway.report.class_table import class_table
from headway.report.page import NUMBER, Card, Cell, Column, Figure, Filter, Page, Row, Section, Table, rendered
from headway.report.plan_tables import assumptions, course_table, load_tables, money_tables
from headway.report.result_page import sources
from headway.report.sensitivity_text import HEADINGS, basis_words, sensitivity_words, variant_rows
from headway.report.text import CLASSES_OF, candidate_cells, candidate_headings, energy_rows
from headway.report.trust_words import plan_error_rows
from headway.sim import Deployment
from headway.sim.run import compiled, to_mapping_all
from headway.specs import from_mapping, write_yaml
from headway.units import counted, format_rate, format_seconds

if TYPE_CHECKING:
    from headway.plan import Candidate, Plan
    from headway.plan.fleet_answer import Fleet
    from headway.plan.question import Objective

MOST_BEST, MOST_REST = 1500, 200  # candidates: the page stays below 2 MB
HIGHER_IS_BETTER = ("goodput", "rate")


def plan_html(plan: Plan | Fleet) -> str:
    """Return the report of a plan as one HTML page.

    Raises:
        MissingExtra: a library of the extra `report` is not installed.
    """
    from headway.plan import Plan

    if not isinstance(plan, Plan):
        from headway.report.fleet_page import fleet_html

        return fleet_html(plan)
    return rendered(plan_page(plan, selected(plan, MOST_BEST, MOST_REST)))


def plan_page(plan: Plan, shown: list[Candidate] | None = None) -> Page:
    """Return all that there is to report of a plan; `shown` are the candidates it lists, by default all."""
    verdict = "" if plan.feasible else "no deployment meets the SLO"
    if plan.interrupted:
        verdict = f"interrupted after {counted(plan.evaluated, 'deployment')}: what is known so far"
    shown = plan.ranked if shown is None else shown
    headline, *details = w.sentences(plan.message)
    if plan.best is not None:
        headline, details = w.plan_headline(plan, plan.best), [w.plan_sentence(plan), headline, *details]
    return Page(
        kind="plan",
        title=f"Headway plan: {plan.question.model} on {' and '.join(map(plan.question.called, plan.question.stock))}",
        sentence=w.unbroken(headline),
        details=[w.unbroken(each) for each in details],
        verdict=verdict,
        tone="bad",
        question=[*w.question_rows(plan), *energy_rows(plan), *plan_error_rows(plan)],
        cards=_cards(plan, plan.best) if plan.best else [],
        sections=_filtered([
            *_front(plan), *_by_class(plan), *_tradeoffs(plan), *_load(plan), *_course(plan), *_spent(plan),
            *_sensitivity(plan), *_candidates(plan, shown), *_best(plan),
        ]),
        datasets={charts.CANDIDATES: charts.candidate_columns(plan, shown)} if shown else {},
        filters=_filters(plan, shown) if len(shown) > 1 else [],
    )  # fmt: skip


def pool_sections(plan: Plan, shown: list[Candidate], serves: str, tag: str) -> list[Section]:
    """Return all that is told of the replicas that some classes share, beside those of others on one page.

    `serves` is whose they are, `tag` tells their keys and their data set on the page from those of the others.
    """
    sections = [
        *_front(plan), *_by_class(plan), *_tradeoffs(plan), *_load(plan), *_course(plan), *_spent(plan),
        *_sensitivity(plan), *_candidates(plan, shown),
    ]  # fmt: skip
    return [
        msgspec.structs.replace(
            section,
            key=f"{section.key}-{tag}",
            title=f"{section.title}: {serves}",
            figures=[
                msgspec.structs.replace(each, key=f"{each.key}-{tag}", spec=partial(_of_data, each.spec, tag))
                for each in section.figures
            ],
            tables=[_with_data(each, tag) for each in section.tables],
        )
        for section in sections
    ]


def dataset_of(tag: str) -> str:
    """Return the name of the data set that the charts and the table of a pool's candidates share."""
    return f"{charts.CANDIDATES}-{tag}"


def _with_data(table: Table, tag: str) -> Table:
    return msgspec.structs.replace(table, dataset=dataset_of(tag)) if table.dataset else table


def _of_data(spec: Callable[[], dict[str, Any]], tag: str) -> dict[str, Any]:
    """A chart whose points are those of a pool's own data set."""

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            own = value == {"name": charts.CANDIDATES}
            return {"name": dataset_of(tag)} if own else {key: named(each) for key, each in value.items()}
        return [named(each) for each in value] if isinstance(value, list) else value

    made: dict[str, Any] = named(spec())
    return made


def selected(plan: Plan, best: int, rest: int) -> list[Candidate]:
    """Return the first `best` candidates, those on the front, and up to `rest` of the others at even distances."""
    front = set(plan.front)
    tail = plan.ranked[best:]
    every = max(1, -(-len(tail) // rest))
    kept = [candidate for place, candidate in enumerate(tail) if place % every == 0 or candidate.name in front]
    return [*plan.ranked[:best], *kept]


def _cards(plan: Plan, best: Candidate) -> list[Card]:
    ttft_s, tpot_s = w.tails(best, plan.question)
    return [
        Card("GPUs", f"{best.gpus}", best.name),
        Card(
            "Attainment",
            w.share(best.attainment),
            f"95% interval {w.share(best.attainment_low)} to {w.share(best.attainment_high)}",
        ),
        Card(
            f"TTFT and TPOT, {w.tail(plan.question)}",
            format_seconds(ttft_s),
            f"then {format_seconds(tpot_s)} a token",
        ),
        Card("Goodput", w.OPEN, "every rate tried was met: so few requests do not tell the most")
        if best.open_ended
        else Card("Goodput", format_rate(best.goodput_req_s), f"{format_rate(best.goodput_req_s_per_gpu)} per GPU"),
        Card(
            "Cost",
            f"{w.usd(best.usd_per_hour)}/h",
            f"{w.usd(best.usd_per_million_output_tokens)} per million output tokens",
        ),
        Card("Energy per token", w.joules(best.joules_per_output_token), w.certainty(best.energy_kind or "estimated")),
    ]


def _filters(plan: Plan, shown: list[Candidate]) -> list[Filter]:
    """What there is to choose by; a question with one answer is not asked."""
    states = list(charts.STATES)
    asked = [
        Filter("state", "SLO", [("any", []), ("met", states[:-1]), ("missed", states[-1:])]),
        Filter("front", "Front", [("any", []), ("on the front", ["true"])]),
        Filter("layout", "Layout", [("any", []), ("mixed replicas", ["mixed"]), ("prefill and decode", ["split"])]),
        Filter("kind", "GPUs", [("any", []), *((kind, [kind]) for kind in sorted({w.kinds(each) for each in shown}))]),
    ]
    counts = sorted({each.gpus for each in shown})
    up_to = [(f"up to {most}", [f"{each}" for each in counts if each <= most]) for most in counts]
    asked.append(Filter("gpus", "Number of GPUs", [("any", []), *up_to]))
    columns = charts.candidate_columns(plan, shown)
    return [found for each in asked if (found := _of_use(each, columns[each.column])) is not None]


def _of_use(asked: Filter, column: list[Any]) -> Filter | None:
    """The filter with the options that show some rows and not all; None where there is none."""
    texts = [f"{value}".lower() if isinstance(value, bool) else f"{value}" for value in column]
    kept = [option for option in asked.options[1:] if 0 < sum(text in option[1] for text in texts) < len(texts)]
    return Filter(asked.column, asked.label, [asked.options[0], *kept]) if kept else None


def _filtered(sections: list[Section]) -> list[Section]:
    """The sections, the filter in the first of those whose candidates it thins out."""
    at = next((section.key for section in sections if section.key in ("front", "tradeoffs", "candidates")), "")
    return [msgspec.structs.replace(section, filtered=section.key == at) for section in sections]


def _front(plan: Plan) -> list[Section]:
    if not plan.front:
        return []
    axes: list[Objective] = [plan.question.known(objective) for objective in plan.question.front]
    across, *others = axes
    figures = [
        Figure(
            f"front-{up}",
            f"{w.capitalised(w.objective(up, plan.question))} against {w.objective(across, plan.question)}",
            f"{_better(across, 'x')} and {_better(up, 'y')} is better",
            partial(charts.against, plan, across, up, legend=True),
        )
        for up in others
        if _known(plan, across, up)
    ]
    what = "best in one of them, or the best compromise" if plan.feasible else "none of which meets the SLO"
    named = w.listed(w.objective(each, plan.question) for each in axes)
    told = (
        f"On the front is what no other {'confirmed one ' if plan.confirmed else ''}beats in {named} at once: {what}. "
        f"One stands for all that it is as good as to within {plan.tolerance:.0%} in what is simulated."
    )
    if plan.confirmed:
        told += (
            " They were compared on the same requests; a point that was not confirmed stands where one seed puts it, "
            "often too well, so that it may seem to beat them: its reason says by how much it usually is less."
        )
    use = "Each point is a deployment; its figures show under the pointer, and a click leads to its row in the table."
    by_name = {candidate.name: candidate for candidate in plan.ranked}
    headings = ["on the front", *(w.objective(each, plan.question) for each in axes), "SLO"]
    reached = [_reached([by_name[name] for name in plan.front], each) for each in axes]
    rows = [[name, *cells, _met(by_name[name])] for name, *cells in zip(plan.front, *reached, strict=True)]
    columns = [Column(headings[0], "name"), *(Column(name, NUMBER) for name in headings[1:-1]), Column(headings[-1])]
    tables = [Table(columns, [Row([Cell(text) for text in row]) for row in rows])]
    return [Section(key="front", title="The front", note=f"{told} {use}", told=told, figures=figures, tables=tables)]


def _by_class(plan: Plan) -> list[Section]:
    first = [each for each in plan.ranked if each.by_class][:CLASSES_OF]
    if not first:
        return []
    slos = "; ".join(f"{name}: {w.limits(slo)}" for name, slo in plan.question.slos.items())
    note = f"Each class has to reach its own target ({slos}). Latencies are what that share of the class keeps to."
    return [Section(key="classes", title="Attainment by class", note=note, tables=[class_table(plan, first)])]


def _tradeoffs(plan: Plan) -> list[Section]:
    price, figures = plan.question.known("cost"), []
    if not plan.alone and _known(plan, price) and any(candidate.goodput_req_s for candidate in plan.ranked):
        figures.append(Figure("rate", "What the money serves", "", partial(charts.cost_and_rate, plan)))
    if _known(plan, price, "ttft"):
        figures.append(Figure("share", f"Attainment {w.pace(plan)}", "", partial(charts.cost_and_attainment, plan)))
    if _known(plan, "ttft", "tpot"):
        figures.append(Figure("latency", f"Latency {w.pace(plan)}", "", partial(charts.latencies, plan)))
    return [Section(key="tradeoffs", title="All candidates", figures=figures)] if figures else []


def _known(plan: Plan, *objectives: Objective) -> bool:
    """Whether there is a point to draw."""
    return any(all(charts.measure(one, each) is not None for each in objectives) for one in plan.ranked)


def _reached(candidates: list[Candidate], objective: Objective) -> list[str]:
    """The figures of candidates for an objective; a goodput only where a rate was missed."""
    unknown = [each.open_ended and objective in HIGHER_IS_BETTER for each in candidates]
    values = [None if one else charts.measure(each, objective) for each, one in zip(candidates, unknown, strict=True)]
    return [w.OPEN if one else cell for one, cell in zip(unknown, w.column(objective, values), strict=True)]


def _met(candidate: Candidate) -> str:
    return "met" if candidate.meets else "missed"


def _better(objective: Objective, channel: str) -> str:
    low, high = ("left", "right") if channel == "x" else ("down", "up")
    return high if objective in HIGHER_IS_BETTER else low


def _load(plan: Plan) -> list[Section]:
    if not plan.curves or plan.alone:  # the rate of one request says nothing
        return []
    named = [latency for latency in charts.LATENCIES if _asked(plan, latency)]
    figures = [Figure("load-attainment", "Attainment", "", partial(charts.load_attainment, plan))]
    figures += [
        Figure(f"load-{latency}", charts.tail_of(plan, latency), "", partial(charts.load, plan, latency))
        for latency in named
    ]
    first = plan.curves[0]
    note = (
        f"The first {counted(len(plan.curves), 'candidate')} from little load to more than they serve, each point by "
        f"runs of {counted(first.requests, 'request')}. Bands: of attainment the 95% interval by chance; of latencies "
        f"the {first.coverage:.0%} interval of the cost model, as simulated with steps so much shorter and longer."
    )
    if plan.question.slos:
        note += " Latencies are those of all classes together, beside the limits of each."
    return [
        Section(key="load", title="Latency against load", note=note, figures=figures, tables=load_tables(plan, named))
    ]


def _asked(plan: Plan, latency: str) -> bool:
    """Whether a latency is shown: TTFT and TPOT always, the others where an SLO limits them."""
    return bool(charts.limits(plan, latency)) or latency in ("ttft_s", "tpot_s")


def _course(plan: Plan) -> list[Section]:
    course = plan.course
    if course is None:
        return []
    figures = [
        Figure(
            "course-kv",
            "KV cache in use",
            "mean of a pool's replicas; the band reaches to the fullest",
            partial(charts.course_shares, course, "kv_mean", "kv_most"),
        ),
        Figure(
            "course-busy",
            "GPUs with a step in flight",
            "share of the time between two moments",
            partial(charts.course_shares, course, "busy"),
        ),
        Figure(
            "course-requests",
            "Requests running",
            "the band: those that wait for a replica's next steps",
            partial(charts.course_requests, course),
        ),
    ]
    note = (
        f"{course.name} {w.pace(plan)}: a run of {counted(course.requests, 'request')} (seed "
        f"{course.seed}), looked at in {counted(len(course.at_s), 'moment')}. It begins with empty replicas."
    )
    return [
        Section(key="course", title="KV cache and GPUs over time", note=note, figures=figures,
                tables=[course_table(course)])
    ]  # fmt: skip


def _spent(plan: Plan) -> list[Section]:
    if not plan.ranked:
        return []
    first = plan.ranked[0]
    shown = [each for each in plan.ranked[:3] if each.idle_joules_per_output_token is not None]
    figures = []
    if shown:
        certainty = w.certainty(first.energy_kind or "estimated")
        title, note = "Energy per output token", "idle: what all GPUs draw without work"
        figures = [Figure("joules", title, note, partial(charts.joules, shown, certainty), wide=True)]
    tables = money_tables(plan, first, shown)
    prices = plan.question.prices
    note = (
        f"{w.capitalised(w.pace(plan))}, idle GPUs included. Watts are those of the GPUs; carbon counts the site's "
        f"overhead too (PUE {prices.pue:g}), at {w.amount(prices.carbon_g_per_kwh)} g CO2 per kWh."
    )
    return [Section(key="spent", title="Cost and energy", note=note, figures=figures, tables=tables)]


def _candidates(plan: Plan, shown: list[Candidate]) -> list[Section]:
    if not shown:
        return []
    rank = {candidate.name: place for place, candidate in enumerate(plan.ranked, start=1)}
    numbers = [Column(name, NUMBER) for name in candidate_headings(plan)]
    columns = [Column("#", NUMBER), Column("deployment", "name"), *numbers]
    rows = [_row(plan, candidate, rank[candidate.name]) for candidate in shown]
    note = (
        "Below each candidate why it won or lost. Names: replicas x layout (P prefill, D decode), precision of "
        "weights/KV, b token budget of a step, W power limit and MHz clock of a GPU where one was asked for."
    )
    if len(shown) < len(plan.ranked):
        note += (
            f" {len(shown):,} of {len(plan.ranked):,} are shown: the first, the front, a sample of the rest; "
            "--text and the JSON have all."
        )
    tables = [Table(columns, rows, sortable=True, dataset=charts.CANDIDATES)]
    return [Section(key="candidates", title="Candidates", note=note, tables=tables)]


def _row(plan: Plan, candidate: Candidate, rank: int) -> Row:
    orders = dict(enumerate(w.tails(candidate, plan.question), start=2))  # in ms and s: the others sort as they read
    cells = [Cell(text, orders.get(place)) for place, text in enumerate(candidate_cells(plan, candidate))]
    tone = {"best": "best", "misses the SLO": "lost"}.get(charts.state(plan, candidate), "")
    return Row([Cell(f"{rank}"), Cell(candidate.name), *cells], tone, note=candidate.reason)


def _sensitivity(plan: Plan) -> list[Section]:
    found = plan.sensitivity
    if found is None:
        return []
    columns = [Column(name, "" if name in ("otherwise", "SLO") else NUMBER) for name in HEADINGS]
    told = zip(found.variants, variant_rows(found), strict=True)
    rows = [Row([Cell(text) for text in cells], "" if each.meets else "lost") for each, cells in told]
    said, note = sensitivity_words(found), f"{found.name}: {basis_words(found)}"
    return [Section(key="holds", title="How far it holds", note=note, points=said, tables=[Table(columns, rows)])]


def _best(plan: Plan) -> list[Section]:
    """The first deployment as a file, and what its figures rest on."""
    judged = Section(key="judged", title="Assumptions: workload, judgement, prices", tables=[assumptions(plan)])
    if not plan.ranked:
        return [judged]
    first = plan.ranked[0]
    deployment = from_mapping(Deployment, first.deployment, "deployment")
    named = zip(deployment.pool_names(), deployment.pools, strict=True)
    provenance: dict[str, Any] = {name: to_mapping_all(compiled(pool.replica)) for name, pool in named}
    note = f"{first.name} as a file for headway simulate; what is not named has its default."
    title = "Deployment" if plan.best else "Deployment that comes nearest"
    return [Section(key="deployment", title=title, note=note, code=write_yaml(first.deployment)), judged,
            *sources(provenance)]  # fmt: skip
