"""Rich renderables of results and plans, for a terminal. Every text is literal: no name is read as markup."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from headway.metrics import Latency, Result, Slo
from headway.report import words as w
from headway.report.measured_words import MEASURED, measured_rows
from headway.report.page_text import LABEL_COLUMNS, facts, page_text, rows_table
from headway.report.sensitivity_text import sensitivity_text
from headway.report.sheet import Sheet
from headway.report.trust_words import INTERVAL_HEADINGS, interval_note, interval_rows, plan_error_rows
from headway.units import counted, format_count, format_rate, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headway.plan import Candidate, Plan
    from headway.plan.fleet_answer import Fleet

CLASSES_OF = 3  # candidates whose classes are told one by one
GOOD, BAD, WARNING = "bold green", "bold red", "bold yellow"


def result_text(result: Result, in_full: bool = False) -> RenderableType:
    """Return the run as sentence, facts and a table of latencies, or all that its page says."""
    from rich.console import Group
    from rich.text import Text

    if in_full:
        from headway.report.result_page import result_page

        return page_text(result_page(result))
    slo = result.slo
    style = "bold" if slo.met is None else GOOD if slo.met else BAD
    parts: list[RenderableType] = [Text(w.result_sentence(result), style=style), Text("")]
    if "stopped" in result.provenance:
        stopped = f"Stopped early ({result.provenance['stopped']}): what follows covers the run so far."
        parts = [Text(stopped, style=WARNING), *parts]
    parts += [facts(asked_rows(result)), _latencies(result), *_error(result), facts(_happened(result))]
    return Group(*parts)


def _error(result: Result) -> list[RenderableType]:
    """How far off the cost model may be: a table and what it rests on."""
    from rich.text import Text

    rows = interval_rows(result)
    if not rows:
        return []
    table = Sheet()
    table.add_column("model error", words=True, least=LABEL_COLUMNS - 1)
    for heading in INTERVAL_HEADINGS:
        table.add_column(heading)
    for name, cells in rows:
        table.add_row(name, *cells)
    return [table, Text(interval_note(result), style="dim"), Text("")]


def plan_text(plan: Plan | Fleet, top: int | None) -> RenderableType:
    """Return a plan as the answer, the question, its `top` candidates and why they are not the best.

    Without a number all that its page says, every candidate too.
    """
    from rich.console import Group
    from rich.text import Text

    from headway.plan import Plan

    if not isinstance(plan, Plan):
        from headway.report.fleet_page import fleet_text

        return fleet_text(plan, top)
    if top is None:
        from headway.report.plan_page import plan_page

        return page_text(plan_page(plan))
    parts: list[RenderableType] = [Text(w.plan_sentence(plan), style=GOOD if plan.feasible else BAD)]
    parts += [Text(plan.message), Text("")] if plan.best else [Text("")]
    if plan.interrupted and plan.ranked:
        stopped = f"Interrupted after {counted(plan.evaluated, 'deployment')}: what follows is known so far."
        parts.insert(0, Text(stopped, style=WARNING))
    parts.append(facts([*w.question_rows(plan), *energy_rows(plan), *plan_error_rows(plan)]))
    if plan.ranked:
        parts += [_candidates(plan, top), Text("Why", style="bold"), facts(_reasons(plan, top), columns=2)]
    if len(plan.ranked) > top:
        parts.append(
            Text(
                f"and {len(plan.ranked) - top:,} more: --top N, --html FILE or --json FILE show them",
                style="dim",
            )
        )
    if plan.ranked and plan.ranked[0].by_class:
        from headway.report.class_table import class_table

        first = [each for each in plan.ranked[:top] if each.by_class][:CLASSES_OF]
        parts += [Text(""), Text("By class", style="bold"), rows_table(class_table(plan, first))]
    if plan.sensitivity is not None:
        parts += [Text(""), sensitivity_text(plan.sensitivity)]
    return Group(*parts)


def _reasons(plan: Plan, top: int) -> list[tuple[str, str]]:
    """Ranks with their reason; neighbours that share one are told together."""
    told: list[tuple[str, str]] = []
    ranks = enumerate(plan.ranked[:top], start=1)
    for reason, group in itertools.groupby(ranks, key=lambda ranked: ranked[1].reason):
        places = [rank for rank, _ in group]
        told.append((f"{places[0]}-{places[-1]}" if len(places) > 1 else f"{places[0]}", reason))
    return told


def _candidates(plan: Plan, top: int) -> Sheet:
    table = Sheet()
    table.add_column("#")
    table.add_column("deployment", words=True)
    for heading in candidate_headings(plan):
        table.add_column(heading)
    for rank, candidate in enumerate(plan.ranked[:top], start=1):
        style = GOOD if rank == 1 and plan.feasible else "" if candidate.meets else "dim"
        cells = [f"{rank}", candidate.name, *candidate_cells(plan, candidate)]
        table.add_row(*cells, style=style)
    return table


def candidate_headings(plan: Plan) -> list[str]:
    """Return what `candidate_cells` are; "per 1M" output tokens. Energy is marked, alike in all of a plan."""
    kinds = {candidate.energy_kind for candidate in plan.ranked} - {None}
    mark, tail = "fitted" if kinds == {"fitted"} else "est.", w.tail(plan.question)
    return [
        "GPUs", "attained", f"TTFT\n{tail}", f"TPOT\n{tail}", "goodput\nreq/s", "req/s\nper GPU", "$/h", "$ per\n1M",
        f"W,\n{mark}", f"J per\ntoken,\n{mark}", f"g CO2\nper 1M\n{mark}",
    ]  # fmt: skip


def energy_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return watts, joules and grams of the first candidate at the asked rate, and what the grams were reckoned by."""
    first = plan.ranked[0] if plan.ranked else None
    if first is None or first.energy_kind is None:
        return []
    certainty, prices = w.certainty(first.energy_kind), plan.question.prices
    words = co2_words(first.carbon_g_per_million_output_tokens, prices.carbon_g_per_kwh, prices.pue)
    if first.embodied_g_per_million_output_tokens is not None:
        words += f"; besides {w.grams(first.embodied_g_per_million_output_tokens)} for making the GPUs"
    drawn = f"{w.joules(first.joules_per_output_token)} per output token, {w.amount(first.mean_watts)} W on average"
    return [(f"Energy, {certainty}", f"{drawn}: {first.name}"), (f"Carbon, {certainty}", words)]


def candidate_cells(plan: Plan, candidate: Candidate) -> list[str]:
    """Return a candidate's figures under `candidate_headings`."""
    rates = (candidate.goodput_req_s, candidate.goodput_req_s_per_gpu)
    return [
        f"{candidate.gpus}",
        w.share(candidate.attainment),
        *map(format_seconds, w.tails(candidate, plan.question)),
        *(w.OPEN if candidate.open_ended else w.amount(rate) for rate in rates),
        w.usd(candidate.usd_per_hour),
        w.usd(candidate.usd_per_million_output_tokens),
        w.amount(candidate.mean_watts),
        w.amount(candidate.joules_per_output_token),
        w.amount(candidate.carbon_g_per_million_output_tokens),
    ]


def asked_rows(result: Result) -> list[tuple[str, str]]:
    """Return what was simulated, how many requests that were, and what there is to know of their trace."""
    deployment = w.deployment_of(result)
    seed = "" if result.seed is None else f"; seed {result.seed}"
    rows = [
        ("Workload", w.workload_words(result.workload) + seed),
        ("Requests", f"{w.requests_words(result.requests)}; {result.slo.measured:,} measured after warm-up"),
    ]
    if deployment is not None:
        rows.insert(0, ("Deployment", f"{w.deployment_words(deployment)}; {counted(result.gpus, 'GPU')}"))
    if "failed" in result.provenance:
        rows.append(("Failed", w.failed_words(result)))
    rows += measured_rows(result)
    trace = result.provenance.get("trace", {})
    told = list(trace.get("notes", []))
    if "skipped_lines" in trace:
        told.append(f"{counted(trace['skipped_lines'], 'broken line')} left out")
    return [*rows, ("Trace", "; ".join(told))] if told else rows


def _latencies(result: Result) -> Sheet:
    table = Sheet()
    table.add_column("latency", words=True, least=LABEL_COLUMNS - 1)
    for heading in ("mean", "p50", "p90", "p95", "p99", "limit"):
        table.add_column(heading, least=8)
    for name, latency, limit_s in latency_rows(result):
        values = (latency.mean, latency.p50, latency.p90, latency.p95, latency.p99)
        limit = "" if limit_s is None else format_seconds(limit_s)
        table.add_row(name, *map(format_seconds, values), limit)
    return table


def latency_rows(result: Result) -> list[tuple[str, Latency, float | None]]:
    """Return name, distribution and limit of each latency, in the order they are shown."""
    limits = result.slo.limits or Slo()
    return [
        ("TTFT", result.ttft_s, limits.ttft_s),
        ("TPOT", result.tpot_s, limits.tpot_s),
        ("ITL", result.itl_s, limits.itl_s),
        ("E2E", result.e2e_s, limits.e2e_s),
    ]


def _gpus(mean: float) -> str:
    return f"{w.amount(mean)} GPU{'' if mean == 1 else 's'}"


def _happened(result: Result) -> list[tuple[str, str]]:
    throughput, kv, energy = result.throughput, result.kv, result.energy
    hits = "" if kv.prefix_hit_rate is None else f", {w.share(kv.prefix_hit_rate)} prefix hits"
    rate = f"{format_rate(throughput.requests_per_s)}, {w.amount(throughput.output_tokens_per_s)} output tokens/s"
    each = f", {w.amount(throughput.output_tokens_per_s_per_gpu)} per GPU" if result.gpus else ""
    rows = [("Throughput", rate + each), *attainment_rows(result), *model_rows(result)]
    if MEASURED in result.provenance:  # a client sees no replica and no meter
        rows += [("Prefix hits", hits.removeprefix(", "))] if hits else []
        return [*rows, ("Cost", cost_words(result))] if result.gpus else rows
    if (scaling := result.scaling) is not None:
        powered = "" if scaling.mean_gpus is None else f", {_gpus(scaling.mean_gpus)} on average"
        changes = counted(len(scaling.changes), "change")
        rows.append(("Scaling", f"{w.amount(scaling.gpu_hours)} GPU hours{powered}, {changes}"))
    return [
        *rows,
        (
            "KV cache",
            f"{w.share(kv.peak_utilization)} at the fullest{hits}, {counted(kv.preemptions, 'preemption')}",
        ),
        ("Replicas", busy_words(result)),
        (
            f"Energy, {w.certainty(energy.kind)}",
            f"{w.joules(energy.joules_per_output_token)} per output token, {w.joules(energy.joules)} in all "
            f"(idle {w.joules(energy.idle_joules)}, prefill {w.joules(energy.prefill_joules)}, "
            f"decode {w.joules(energy.decode_joules)}), {w.amount(energy.mean_watts)} W on average",
        ),
        (f"Carbon, {w.certainty(energy.kind)}", carbon_words(result)),
        ("Cost", cost_words(result)),
    ]


def attainment_rows(result: Result) -> list[tuple[str, str]]:
    """Return attainment with its interval: of the run, and of each class where there are several."""
    whole = [("Attainment", result.slo)] if result.slo.attainment is not None else []
    named = dict(enumerate(each["name"] for each in (result.workload or {}).get("classes", ())))
    classes = ((f"Class {named.get(int(key), key)}", each) for key, each in result.slo.by_class.items())
    return [
        (
            name,
            f"{w.share(slo.attainment)} (95% interval {w.share(slo.attainment_low)} to {w.share(slo.attainment_high)})"
            f", target {w.share(slo.target)}",
        )
        for name, slo in [*whole, *classes]
    ]


def model_rows(result: Result) -> list[tuple[str, str]]:
    """Return what became of each model's requests, where a run had several."""
    return [
        (
            f"Model {name}" if name else "No model",
            f"{counted(each.requests.arrived, 'request')}, {w.amount(each.output_tokens)} output tokens, p90 TTFT "
            f"{format_seconds(each.ttft_s.p90)}, TPOT {format_seconds(each.tpot_s.p90)}"
            + ("" if each.slo.attainment is None else f", attainment {w.share(each.slo.attainment)}"),
        )
        for name, each in result.by_model.items()
    ]


def busy_words(result: Result) -> str:
    """Return how busy the replicas were: one figure, or the range."""
    shares = [load.utilization for load in result.replicas if load.utilization is not None]
    if not shares:
        return w.NONE
    low, high = w.share(min(shares)), w.share(max(shares))
    busy = low if low == high else f"{low} to {high}"
    return f"{counted(len(result.replicas), 'replica')}, busy {busy} of {format_seconds(result.duration_s)}"


def carbon_words(result: Result) -> str:
    """Return CO2 per million output tokens with the two figures it was reckoned by, and that of making the GPUs."""
    carbon = result.carbon
    words = co2_words(carbon.grams_per_million_output_tokens, carbon.g_per_kwh, carbon.pue)
    if carbon.embodied_grams is None:
        return words
    return f"{words}; besides {w.grams(carbon.embodied_grams)} in all for making the GPUs"


def co2_words(grams_per_million: float | None, g_per_kwh: float, pue: float) -> str:
    """Return grams with the two figures they were reckoned by."""
    return f"{w.grams(grams_per_million)} CO2 per million output tokens, at {w.amount(g_per_kwh)} g/kWh and PUE {pue:g}"


def cost_words(result: Result) -> str:
    """Return rent per hour and per million output tokens, or that no price is known."""
    cost = result.cost
    if cost.usd_per_hour is None:
        return "unknown: no price for this GPU; --set prices.usd_per_gpu_hour=2.50 gives one"
    tokens = format_count(result.tokens.output)
    return (
        f"{w.usd(cost.usd_per_million_output_tokens)} per million output tokens, {w.usd(cost.usd_per_hour)} per hour; "
        f"{w.usd(cost.usd)} for these {tokens} tokens"
    )
