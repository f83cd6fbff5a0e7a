"""Pools for several classes and models as a report: who is served where, what sharing saves, what else was tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from headway.plan.fleet_words import told
from headway.report import words as w
from headway.report.class_table import class_rows
from headway.report.page import NUMBER, Card, Cell, Column, Page, Row, Section, Table, rendered, table
from headway.report.page_text import facts, page_text
from headway.report.plan_charts import candidate_columns
from headway.report.plan_page import dataset_of, pool_sections, selected
from headway.report.plan_tables import assumptions
from headway.report.result_page import sources
from headway.sim import Deployment
from headway.sim.run import compiled, to_mapping_all
from headway.specs import from_mapping, write_yaml
from headway.units import counted, format_rate, format_rates, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headway.plan import Candidate, Plan
    from headway.plan.fleet_answer import Fleet, Part, Way

SUMMARY = "classes", "pools", "ways"  # the sections that the terminal has without being asked for all
MOST_BEST, MOST_REST = 300, 60  # candidates of all pools together: with the charts of six the page stays below 2 MB
CLASS_HEADINGS = ["class", "limits", "req/s", "attained", "95% interval", "target", "TTFT", "TPOT", "E2E", "served by"]
POOL_HEADINGS = ["pools", "classes", "deployment", "GPUs", "$/h", "goodput", "headroom", "first to break"]
WAY_HEADINGS = ["model", "pools", "in all", "GPUs", "against the best"]


def fleet_html(fleet: Fleet) -> str:
    """Return the report as one HTML page.

    Raises:
        MissingExtra: a library of the extra `report` is not installed.
    """
    return rendered(fleet_page(fleet))


def fleet_text(fleet: Fleet, top: int | None) -> RenderableType:
    """Return the answer, classes, pools, ways to share and how far it holds; without a number all of the report."""
    from rich.console import Group
    from rich.text import Text

    page = fleet_page(fleet, whole=top is None)
    if top is None:
        return page_text(page)
    short = [section for section in page.sections if section.key in SUMMARY or section.key.startswith("holds-")]
    parts: list[RenderableType] = [Text(page.sentence, style="bold green" if fleet.feasible else "bold red")]
    parts += [Text(page.lead), Text("")] if page.lead else [Text("")]
    brief = Page(kind=page.kind, title="", sentence="", question=[], cards=[], sections=short)
    return Group(*parts, facts(page.question), page_text(brief))


def fleet_page(fleet: Fleet, *, whole: bool = False) -> Page:
    """Return all that there is to report; `whole` with every candidate, else with as many as a page has room for."""
    sections = [*_classes(fleet), *_pools(fleet), *_ways(fleet), *_short(fleet)]
    tags = [f"{place}" for place in range(len(fleet.parts))]
    listed = [_shown(part.taken, len(tags), whole) for part in fleet.parts]
    for part, tag, shown in zip(fleet.parts, tags, listed, strict=True):
        sections += _part_sections(part, tag, shown)
    if fleet.deployment is not None:
        note = "All pools in one file for headway simulate; what is not named has its default."
        sections.append(Section(key="deployment", title="Deployment", note=note, code=write_yaml(fleet.deployment)))
    sections += _assumptions(fleet)
    return Page(
        kind="plan",
        title=f"Headway plan: {w.listed(dict.fromkeys(each.model for each in fleet.classes))}",
        sentence=w.unbroken(_sentence(fleet)),
        lead=w.unbroken(told(fleet)) if fleet.feasible else "",
        verdict="" if fleet.feasible else "not every class is served within its SLO",
        tone="bad",
        question=_question(fleet),
        cards=_cards(fleet),
        sections=sections,
        datasets={
            dataset_of(tag): candidate_columns(part.taken, shown)
            for part, tag, shown in zip(fleet.parts, tags, listed, strict=True)
        },
    )


def _shown(plan: Plan, parts: int, whole: bool) -> list[Candidate]:
    """The candidates that are listed: on a page as many as all pools together have room for."""
    return plan.ranked if whole else selected(plan, MOST_BEST // parts, MOST_REST // parts)


def _sentence(fleet: Fleet) -> str:
    if not fleet.feasible:
        return fleet.message
    cost = "" if fleet.usd_per_hour is None else f" for {w.usd(fleet.usd_per_hour)} per hour"
    gpus = w.listed(f"{count} {fleet.question.called(kind)}" for kind, count in fleet.gpus.items())
    shared = "; ".join(_shared(part) for part in fleet.parts)
    run = "So far: run" if fleet.interrupted else "Run"
    return f"{run} {gpus}{cost}: {shared}."


def _shared(part: Part) -> str:
    return f"{w.listed(part.classes)} {'share' if len(part.classes) > 1 else 'on'} {part.candidate.name}"


def _question(fleet: Fleet) -> list[tuple[str, str]]:
    question = fleet.question
    tried = f"{fleet.planned} of {fleet.groups} groups of classes planned for" if fleet.interrupted else (
        f"{counted(fleet.groups, 'group')} of classes planned for, "
        f"{counted(sum(part.plan.evaluated for part in fleet.parts), 'deployment')} in those chosen"
    )  # fmt: skip
    rows = [
        ("GPUs", f"up to {question.gpu_words}"),
        ("Workload", f"{counted(len(fleet.classes), 'class').replace('classs', 'classes')} at "
         f"{format_rate(fleet.rate_req_s)} together; seed {question.seed}"),
        ("Ranked by", w.objective(question.known(question.objective), question)),
        ("Tried", f"{tried}, in {format_seconds(fleet.seconds)}"),
    ]  # fmt: skip
    if fleet.together is not None:
        each = [f"{w.share(found.attainment)} of {name}" for name, found in fleet.together.by_class.items()]
        run = f"{counted(fleet.together.requests, 'request')} of all classes, seed {fleet.together.seed}"
        rows.append(("All in one", f"{w.listed(each)} within their limits: one run of {run}"))
    return rows


def _cards(fleet: Fleet) -> list[Card]:
    if not fleet.feasible:
        return []
    pools = [pool for part in fleet.parts for pool in part.candidate.deployment["pools"]]
    replicas = sum(pool.get("count", 1) for pool in pools)
    gpus = " and ".join(f"{count} {fleet.question.called(kind)}" for kind, count in fleet.gpus.items())
    return [
        Card("GPUs", f"{sum(fleet.gpus.values())}", gpus),
        Card("Cost", f"{w.usd(fleet.usd_per_hour)}/h", counted(replicas, "replica")),
    ]


def _classes(fleet: Fleet) -> list[Section]:
    columns = [Column(name, "" if name in ("class", "limits", "served by") else NUMBER) for name in CLASS_HEADINGS]
    rows = []
    asked = {each.name: each for each in fleet.classes}
    for part in fleet.parts:
        for name, cells in class_rows(part.candidate, part.classes, asked[part.classes[0]].slo.attainment):
            one = asked[name]
            named = [name, w.limits(one.slo), w.amount(one.rate_req_s), *cells, part.serves]
            rows.append(Row([Cell(text) for text in named]))
    if not rows:
        rows = [
            Row([Cell(each.name), Cell(w.limits(each.slo)), Cell(w.amount(each.rate_req_s)), *[Cell(w.NONE)] * 2,
                 Cell(w.share(each.slo.attainment)), *[Cell(w.NONE)] * 4])
            for each in fleet.classes
        ]  # fmt: skip
    note = "Latencies are what the target share of a class keeps to."
    return [Section(key="classes", title="Classes", note=note, tables=[Table(columns, rows)])]


def _pools(fleet: Fleet) -> list[Section]:
    if not fleet.parts:
        return []
    rows = []
    goodputs = format_rates(part.candidate.goodput_req_s for part in fleet.parts)
    for part, served in zip(fleet.parts, goodputs, strict=True):
        one = part.candidate
        whose = one.binding_class or (part.classes[0] if len(part.classes) == 1 else "")
        breaks = w.BREAKS[one.binding] + (f" of {whose}" if whose else "")
        goodput = f"{one.goodput_req_s / part.rate_req_s - 1:+.0%}"
        rows.append([
            part.serves, w.listed(part.classes), one.name, f"{one.gpus}", w.usd(one.usd_per_hour),
            served, goodput, breaks,
        ])  # fmt: skip
    columns = [Column(name, NUMBER if 3 <= i < 7 else "name" if i == 2 else "") for i, name in enumerate(POOL_HEADINGS)]
    note = "Goodput: the highest rate of its classes together, in the same mix, at which each keeps its own target."
    tables = [Table(columns, [Row([Cell(text) for text in row]) for row in rows])]
    return [Section(key="pools", title="Pools", note=note, tables=tables)]


def _ways(fleet: Fleet) -> list[Section]:
    if not fleet.ways:
        return []
    columns = [Column(name, NUMBER if i in (2, 4) else "") for i, name in enumerate(WAY_HEADINGS)]
    best = min((way.value for way in fleet.ways if way.value is not None), default=None)
    rows = [_way(way, best, fleet) for way in fleet.ways]
    note = "Classes of one model between bars share replicas; sums are of all models, each with the best of all else."
    return [Section(key="ways", title="Ways to share", note=note, tables=[Table(columns, rows)])]


def _way(way: Way, best: float | None, fleet: Fleet) -> Row:
    pools = " | ".join(w.listed(each) for each in way.pools)
    if way.value is None or best is None:
        return Row([Cell(way.model), Cell(pools), Cell(w.NONE), Cell(w.NONE), Cell(w.NONE)], "lost", note=way.why)
    more = "the best" if way.value == best else f"{way.value / best - 1:+.0%}"
    objective = fleet.question.known(fleet.question.objective)
    sums = {"cost": w.usd(way.value), "gpus": f"{way.value:g}", "energy": f"{way.value:,.0f} W"}
    gpus = w.listed(f"{count} {fleet.question.called(kind)}" for kind, count in way.gpus.items())
    cells = [way.model, pools, sums.get(objective, f"{w.grams(way.value)}/h"), gpus, more]
    return Row([Cell(text) for text in cells], "best" if way.value == best else "")


def _short(fleet: Fleet) -> list[Section]:
    if not fleet.short:
        return []
    rows = [[names, said] for names, said in fleet.short.items()]
    title = "Classes that no pool serves" if not fleet.feasible else "Classes that cannot share"
    return [Section(key="short", title=title, tables=[table(["classes", "why"], rows)])]


def _part_sections(part: Part, tag: str, shown: list[Candidate]) -> list[Section]:
    """What the plan of a part says: its answer, and all that the page of such a plan has."""
    plan, best = part.plan, part.plan.best
    said = plan.message
    if best is not None and best.name != part.candidate.name:
        said += (
            f" Taken here is {part.candidate.name}: with {best.name} all pools together would come to more, or to more "
            "than there is."
        )
    first = Section(key=f"plan-{tag}", title=f"The plan for {part.serves}", note=said)
    return [first, *pool_sections(part.taken, shown, part.serves, tag)]


def _assumptions(fleet: Fleet) -> list[Section]:
    """What the figures of all pools rest on."""
    if fleet.deployment is None:
        return []
    judged = [msgspec.structs.replace(assumptions(part.plan), title=part.serves) for part in fleet.parts]
    deployment = from_mapping(Deployment, fleet.deployment, "deployment")
    named = zip(deployment.pool_names(), deployment.pools, strict=True)
    provenance: dict[str, Any] = {name: to_mapping_all(compiled(pool.replica)) for name, pool in named}
    title = "Assumptions: workload, judgement, prices"
    return [Section(key="judged", title=title, tables=judged), *sources(provenance)]
