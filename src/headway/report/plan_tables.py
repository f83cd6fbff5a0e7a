"""A plan's tables beside its charts: what the lines and bars show, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headway.plan.leaders import Course, Spread
from headway.report import words as w
from headway.report.page import NUMBER, RANGE, STRIP, Cell, Column, Row, Table, table
from headway.report.plan_charts import joule_parts, tail_of
from headway.sim import Deployment
from headway.specs import from_mapping
from headway.units import format_rates, format_seconds

if TYPE_CHECKING:
    from headway.plan import Candidate, Plan

BLOCKS = "▁▂▃▄▅▆▇█"
STRIP_COLUMNS = 24


def load_tables(plan: Plan, latencies: Sequence[str]) -> list[Table]:
    """Return a table for each curve: a row for each rate."""
    columns = [Column("rate", NUMBER), Column("attained", NUMBER), Column("95% interval", RANGE)]
    for latency in latencies:
        name, _, tail = tail_of(plan, latency).partition(", ")
        columns += [Column(f"{name} p50", NUMBER), Column(f"{name} {tail}", NUMBER), Column("model's interval", RANGE)]
    tables = []
    for place, curve in enumerate(plan.curves, start=1):
        rows = []
        rates = format_rates(point.rate_req_s for point in curve.points)
        for point, rate in zip(curve.points, rates, strict=True):
            cells = [
                rate,
                w.share(point.attainment),
                f"{w.share(point.attainment_low)} to {w.share(point.attainment_high)}",
            ]
            for latency in latencies:
                cells += _spread_cells(getattr(point, latency))
            met = point.attainment is not None and point.attainment >= plan.question.slo.attainment
            tone = "best" if point.rate_req_s == plan.rate_req_s else "" if met else "lost"
            rows.append(Row([Cell(text) for text in cells], tone))
        tables.append(Table(columns, rows, title=f"{place}. {curve.name}"))
    return tables


def _spread_cells(spread: Spread | None) -> list[str]:
    if spread is None:
        return [w.NONE, w.NONE, w.NONE]
    ends = f"{format_seconds(spread.tail_low_s)} to {format_seconds(spread.tail_high_s)}"
    return [format_seconds(spread.p50_s), format_seconds(spread.tail_s), w.unbroken(ends)]


def course_table(course: Course) -> Table:
    """Return a row for each pool: what its lines come to, and, for a terminal, how they go."""
    columns = [
        Column("pool"), Column("replicas", NUMBER), Column("KV in use,\nmean", NUMBER),
        Column("fullest\nmoment", NUMBER), Column("KV over time", STRIP), Column("busy,\nmean", NUMBER),
        Column("busy over time", STRIP), Column("running,\nmean", NUMBER), Column("running,\nmost", NUMBER),
        Column("waiting,\nmost", NUMBER),
    ]  # fmt: skip
    rows = []
    for pool in course.pools:
        moments = len(course.at_s)
        cells = [
            pool.pool, f"{pool.replicas}", w.share(sum(pool.kv_mean) / moments), w.share(max(pool.kv_most)),
            strip(pool.kv_mean), w.share(sum(pool.busy) / moments), strip(pool.busy),
            w.amount(sum(pool.running) / moments), f"{max(pool.running):,}", f"{max(pool.waiting):,}",
        ]  # fmt: skip
        rows.append(Row([Cell(text) for text in cells]))
    return Table(columns, rows)


def strip(shares: Sequence[float]) -> str:
    """Return shares from 0 to 1 as a line of blocks, each the most of its stretch."""
    size = max(1, -(-len(shares) // STRIP_COLUMNS))
    tops = [max(shares[start : start + size]) for start in range(0, len(shares), size)]
    return "".join(BLOCKS[min(int(top * len(BLOCKS)), len(BLOCKS) - 1)] for top in tops)


def money_tables(plan: Plan, first: Candidate, shown: list[Candidate]) -> list[Table]:
    """Return what the first candidate's price is made of, and what the energy of those shown is."""
    question = plan.question
    deployment = from_mapping(Deployment, first.deployment, first.name)
    rows = []
    for name, pool in zip(deployment.pool_names(), deployment.pools, strict=True):
        gpus, each = pool.count * pool.replica.gpus, question.usd_per_hour(pool.replica.gpu)
        usd = None if each is None else each * gpus
        part = usd / first.usd_per_hour if usd is not None and first.usd_per_hour else None
        rows.append([name, w.pool_words(pool), f"{gpus}", w.usd(each), w.usd(usd), w.share(part)])
    if len(rows) > 1:
        rows.append(["all", "", f"{first.gpus}", "", w.usd(first.usd_per_hour), "100%"])
    price = table(["pool", "replicas", "GPUs", "$ per GPU and hour", "$/h", "share"], rows, numeric=4)
    money = Table(price.columns, price.rows, title=f"Price: {first.name}")
    if not shown:
        return [money]
    headings = ["deployment", "idle", "prefill", "decode", "in all", "W", "kWh/h", "g CO2 per 1M", "$ per 1M"]
    embodied = any(each.embodied_g_per_million_output_tokens is not None for each in shown)
    headings += ["g CO2 of making, per 1M"] if embodied else []
    spent = [
        [
            each.name, *(w.joules(joules) for _, joules in joule_parts(each)), w.joules(each.joules_per_output_token),
            w.amount(each.mean_watts), w.amount(None if each.mean_watts is None else each.mean_watts / 1000),
            w.amount(each.carbon_g_per_million_output_tokens), w.usd(each.usd_per_million_output_tokens),
            *([w.amount(each.embodied_g_per_million_output_tokens)] if embodied else []),
        ]
        for each in shown
    ]  # fmt: skip
    energy = table(headings, spent, numeric=len(headings) - 1)
    return [money, Table(energy.columns, energy.rows, title="Energy per output token, carbon and cost")]


def assumptions(plan: Plan) -> Table:
    """Return what the plan was told or takes for granted, and where that is from."""
    question, prices = plan.question, plan.question.prices
    defaults = type(prices)()
    slos = question.slos or {"": question.slo}
    aimed = [
        (f"limits of {name} judged by" if name else "limits judged by", question.aimed(slo))
        for name, slo in slos.items()
    ]
    rows = [
        ["arrivals", f"{w.pace(plan).removeprefix('at ')}, seed {question.seed}", "the question"],
        *([what, f"{w.limits(slo)} for {w.share(slo.attainment)}",
           f"the question, less {question.margin:.0%} of margin on the time per token (accuracy.md, \"How sure\")"]
          for what, slo in aimed),
        *([f"price of {question.called(kind)}", f"{w.usd(question.usd_per_hour(kind))} per GPU and hour",
           question.price_source(kind)]
          for kind in question.stock),
        ["carbon intensity", f"{w.amount(prices.carbon_g_per_kwh)} g CO2 per kWh",
         "the world's mean of 2024: IEA, Electricity 2025" if prices.carbon_g_per_kwh == defaults.carbon_g_per_kwh
         else "the question"],
        ["PUE", f"{prices.pue:g}",
         "Uptime Institute, Global Data Center Survey 2024" if prices.pue == defaults.pue else "the question"],
    ]  # fmt: skip
    if prices.embodied_kg_per_gpu is not None and prices.lifetime_years is not None:
        made = f"{w.amount(prices.embodied_kg_per_gpu)} kg CO2 per GPU over {prices.lifetime_years:g} years"
        rows.append(["making the GPUs", made, "the question"])
    engine = question.engine
    tried = [name.replace(":", " ") for name in question.engines or ()]
    rows.append(["engine", " or ".join(tried) or f"{engine.name} {engine.version}".strip(), "the question"])
    return table(["assumption", "value", "from"], rows)
