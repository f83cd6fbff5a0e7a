"""How figures and specs read: shares, dollars, joules, a deployment in a line, the answer in a sentence."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.metrics import Result, Slo
from headway.metrics.comparison import ROUNDING
from headway.metrics.result import Requests
from headway.sim import Deployment, Pool
from headway.specs import from_mapping
from headway.units import counted, format_bytes, format_rate, format_rates, format_seconds

if TYPE_CHECKING:
    from headway.plan import Candidate, Plan, Question
    from headway.plan.question import Objective

NONE = "-"
BREAKS = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E", "memory": "memory", "rate": "the rate"}
OBJECTIVES = {
    "cost": "dollars per hour", "gpus": "GPUs", "energy": "joules per output token", "carbon": "CO2 per output token",
    "goodput": "goodput per GPU", "rate": "goodput",
}  # fmt: skip
FRONT_NAMED = 6
DISCARDED = {
    "memory": "too large for memory", "budget": "dearer than allowed",
    "rate": "proven unable to serve the rate, so not simulated",
    "watts": "of more power than allowed",
    "context": "of a model whose context too many requests exceed",
    "estimate": "estimated to be far behind", "floor": "of a latency whose floor is above its limit",
}  # fmt: skip


def objective(name: Objective, question: Question) -> str:
    """Return what an objective ranks by: ``dollars per hour``, ``TTFT, p99``."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    return f"{BREAKS[name]} at the target of each class" if question.slos else f"{BREAKS[name]}, {tail(question)}"


def tail(question: Question) -> str:
    """Return ``p99``, the percentile at the attainment that was asked for; p90 where each class has its own."""
    return "p90" if question.slos else f"p{100 * question.slo.attainment:.4g}"


def tails(candidate: Candidate, question: Question) -> tuple[float | None, float | None]:
    """Return a candidate's TTFT and TPOT at that percentile, in seconds."""
    if question.slos or candidate.ttft_s is None:  # the second: a plan from before these were kept
        return candidate.ttft_p90_s, candidate.tpot_p90_s
    return candidate.ttft_s, candidate.tpot_s


def certainty(kind: str) -> str:
    """How a figure of energy came about: estimated unless measured, by a law that was fitted on watts or not."""
    return "fitted estimate" if kind == "fitted" else kind


def share(value: float | None) -> str:
    """Return ``93.4%``; what is neither none nor all does not read as if it were."""
    if value is None or math.isnan(value):
        return NONE
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{100 * value:.1f}%".replace(".0%", "%")


def apart(difference: float, a: float | None, b: float | None) -> float:
    """Return the difference of two numbers, or 0 where it is no more than what rounding leaves of them."""
    return 0.0 if abs(difference) <= ROUNDING * max(abs(a or 0.0), abs(b or 0.0)) else difference


def usd(value: float | None) -> str:
    """Return dollars with cents, or three digits below a dollar."""
    if value is None:
        return NONE
    return f"${value:,.0f}" if value >= 1000 else f"${value:.2f}" if value >= 1 else f"${value:.3g}"


def joules(value: float | None) -> str:
    """Return three digits in the fitting unit: ``1.26 J``, ``43.1 MJ``."""
    if value is None:
        return NONE
    for scale, unit in ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} J"


def grams(value: float | None) -> str:
    """Return three digits in g or kg."""
    if value is None:
        return NONE
    return f"{value / 1000:,.3g} kg" if value >= 1000 else f"{value:.3g} g"


OPEN = "open"  # a goodput of which only is known that every rate tried was met


def amount(value: float | None) -> str:
    """Return a bare number: whole from a hundred on, else three digits."""
    if value is None or math.isnan(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quantity(value: float, unit: str) -> str:
    """Return a number of a fact sheet in a unit that reads well: ``990 TFLOP/s``, ``80.9% of peak``."""
    if unit == "byte":
        return format_bytes(value)
    if unit == "s":
        return format_seconds(value)
    if unit == "byte/s":
        return f"{value / 1e9:,.0f} GB/s"
    if unit == "FLOP/s":
        return f"{value / 1e12:,.0f} TFLOP/s"
    if unit.startswith("share "):
        return f"{share(value)} {unit.removeprefix('share ')}"
    return f"{value:,.3g}" if unit in ("ratio", "exponent") else f"{value:,.4g} {unit}"


def unbroken(text: str) -> str:
    """Return the text with a number held together with its unit where lines wrap."""
    return re.sub(r"(?<=\d) (?=(?:ms|µs|s|min|h|req/s|req/min|GPUs?|J|MJ)\b)", "\u00a0", text)


def listed(words: Iterable[str]) -> str:
    """Return ``a, b and c``."""
    *most, last = list(words)
    return f"{', '.join(most)} and {last}" if most else last


def limits(slo: Slo) -> str:
    """Return the limits of an SLO: ``TTFT 500 ms and TPOT 50 ms``."""
    named = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("E2E", slo.e2e_s), ("p99 ITL", slo.itl_s))
    said = [f"{name} {format_seconds(limit)}" for name, limit in named if limit is not None]
    return listed(said) if said else "no limit"


def pool_words(pool: Pool) -> str:
    """Return one pool: ``2 x tp 4 h100-sxm, fp8``, its role unless mixed."""
    replica = pool.replica
    layout = f"tp {replica.tp}" + (f" pp {replica.pp}" if replica.pp > 1 else "") + _apart(pool)
    precision = replica.weights if replica.kv == replica.weights else f"{replica.weights}, KV {replica.kv}"
    role = "" if pool.role == "mixed" else f" {pool.role}"
    return f"{pool.count} x {layout}{role} on {replica.gpu_name} ({precision})"


def _apart(pool: Pool) -> str:
    return ", a stage on each node" if pool.replica.apart else ""


def deployment_words(deployment: Deployment) -> str:
    """Return a deployment in a line."""
    return "; ".join(
        f"{name}: {' + '.join(pool_words(pool) for pool in deployment.pools if pool.model == name)}"
        for name in deployment.models
    )


def deployment_of(result: Result) -> Deployment | None:
    """Return the deployment a result carries; None when it carries none."""
    return None if result.deployment is None else from_mapping(Deployment, result.deployment, "deployment")


def requests_words(requests: Requests) -> str:
    """Return how many requests arrived and how they ended."""
    ends = ("rejected", "failed", "unfinished")
    lost = "".join(f", {count:,} {end}" for end in ends if (count := getattr(requests, end)))
    return f"{requests.arrived:,} arrived, {requests.finished:,} finished{lost}"


def failed_words(result: Result) -> str:
    """Return how many requests failed and why: ``100 failed: longer than the model's context``."""
    reasons = result.provenance.get("failed", {})
    told = ", ".join(reasons)
    if len(reasons) > 1:
        told = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
    return f"{result.requests.failed:,} failed" + (f": {told}" if told else "")


def workload_words(workload: dict[str, Any] | None) -> str:
    """Return the workload a result carries, in a line."""
    if workload is None:
        return "an unnamed workload"
    if any(each.get("workload") for each in workload.get("classes", ())):
        each = [f"{one['name']} at {format_rate(one['rate_req_s'])}" for one in workload["classes"]]
        return f"{workload.get('name', 'custom')}: {listed(each)}"
    arrival = workload.get("arrival", {})
    kind, rate = arrival.get("kind", ""), arrival.get("rate_req_s")
    if kind == "closed":
        come = f"{counted(arrival['concurrency'], 'user')} in a closed loop"
    elif kind == "replay":
        come = f"replayed at {format_rate(rate)}" if rate else "replayed as recorded"
    else:
        come = f"{kind.replace('_', '/')} arrivals" + (f" at {format_rate(rate)}" if rate else "")
    return f"{workload.get('name', 'custom')}, {come}"


def result_sentence(result: Result) -> str:
    """Return what a run says, in one sentence."""
    slo = result.slo
    if slo.attainment is None:
        done = f"{result.requests.finished:,} of {counted(result.requests.arrived, 'request')} finished"
        if not result.requests.finished:
            why = f"; {failed_words(result)}" if result.requests.failed else ""
            return f"{done}{why}."
        if not result.ttft_s.count:
            return f"{done}, none of them after warm-up."
        further = ""
        if result.tpot_s.count:
            further = f" and each further one within {format_seconds(result.tpot_s.p90)}"
        return f"{done}; nine in ten had their first token within {format_seconds(result.ttft_s.p90)}{further}."
    within = f" within {limits(slo.limits)}" if slo.limits is not None else " within the limits of its class"
    verdict = "met" if slo.met else "missed"
    target = f"the SLO is {verdict}" if slo.target is None else f"the target of {share(slo.target)} is {verdict}"
    if slo.itl_met is False and slo.attainment >= (slo.target or 0):
        target = "but gaps between tokens are longer than the ITL limit: the SLO is missed"
    return f"{share(slo.attainment)} of requests were served{within}: {target}."


def plan_sentence(plan: Plan) -> str:
    """Return what to run, in one sentence; where nothing will do, the plan's own words."""
    if plan.best is None:
        return plan.message
    deployment = from_mapping(Deployment, plan.best.deployment, "deployment")
    pools = listed(map(_replicas_words, deployment.pools))
    replica = deployment.pools[0].replica
    precision = f"{replica.weights} weights and {replica.kv} KV"
    cost = "" if plan.best.usd_per_hour is None else f" for {usd(plan.best.usd_per_hour)} per hour"
    run = "So far: run" if plan.interrupted else "Run"  # by runs that may be short
    return f"{run} {replica.model} with {precision} as {pools}: {counted(plan.best.gpus, 'GPU')}{cost}."


def plan_headline(plan: Plan, best: Candidate) -> str:
    """Return the best in a line: its name, GPUs and price, and how many requests meet which limits."""
    gpus = from_mapping(Deployment, best.deployment, "deployment").gpu_words
    cost = "" if best.usd_per_hour is None else f", {usd(best.usd_per_hour)} per hour"
    question = plan.question
    who = "its one request" if plan.alone else f"{share(best.attainment)} of requests"
    met = f"{who} within {limits(question.slo)} (target {share(question.slo.attainment)})"
    met = "each class meets its SLO" if question.slos else met
    down = f"with {counted(question.spare, 'replica')} of every pool down, " if question.spare else ""
    so_far = "So far: " if plan.interrupted else ""
    return f"{so_far}{best.name} on {gpus}{cost}: {down}{pace(plan)} {met}."


def sentences(text: str) -> list[str]:
    """Return a text's sentences; what is joined by blanks again is the text."""
    return re.split(r"(?<=\.) (?=[A-Z`])", text)


def _replicas_words(pool: Pool) -> str:
    replica, role = pool.replica, "" if pool.role == "mixed" else f"{pool.role} "
    degrees = [(name, getattr(replica, name)) for name in ("pp", "dp", "ep")]
    layout = f"tp {replica.tp}" + "".join(f", {name} {degree}" for name, degree in degrees if degree > 1)
    layout += _apart(pool)
    each = "each on" if pool.count > 1 else "on"
    return f"{counted(pool.count, f'{role}replica')} {each} {replica.gpus} {replica.gpu_name} ({layout})"


def capitalised(text: str) -> str:
    """Return the text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def measured(objective: Objective, value: float | None) -> str:
    """Return a candidate's figure for an objective in its unit."""
    if value is None:
        return NONE
    if objective in ("ttft", "tpot"):
        return format_seconds(value)
    if objective in ("goodput", "rate"):
        return format_rate(value)
    named = {"cost": usd, "energy": joules, "carbon": grams}
    return named[objective](value) if objective in named else f"{value:g}"


def column(objective: Objective, values: list[float | None]) -> list[str]:
    """Return the figures of several candidates for an objective; rates in one unit."""
    if objective in ("goodput", "rate"):
        return format_rates(values)
    return [measured(objective, value) for value in values]


def kinds(candidate: Candidate) -> str:
    """Return the kinds of GPU that a candidate uses: ``h100-sxm + a100-80gb-sxm``."""
    return " + ".join(dict.fromkeys(Path(pool["replica"]["gpu"]).name for pool in candidate.deployment["pools"]))


def question_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return what a plan was asked for, and what was tried."""
    question = plan.question
    named = question.workload if isinstance(question.workload, str) else question.workload.name
    slos = class_slos(question)
    each = [f"{name}: {_promise(one)}" if name else f"{_promise(one)} of requests" for name, one in slos.items()]
    slo = "; ".join(each)
    if question.margin and any(one.tpot_s or one.itl_s for one in slos.values()):
        slo += f"; judged with {question.margin:.0%} of margin on the time per token"
    tried = f"{counted(plan.evaluated, 'deployment')} in {format_seconds(plan.seconds)}"
    if plan.interrupted:
        tried += ", then interrupted"
    left = [f"{count:,} {DISCARDED.get(reason, reason)}" for reason, count in plan.discarded.items() if count]
    rows = [
        ("Model", question.model),
        ("GPUs", f"up to {question.gpu_words}{_constraints(question)}"),
        ("Workload", f"{named} {pace(plan)}; seed {question.seed}"),
        ("SLO", slo),
        ("Ranked by", objective(question.known(question.objective), question)),
        ("Tried", "; ".join([tried, *left, *_runs(plan)])),
    ]
    if plan.ranked:
        rows += [("Outcome", outcome_words(plan)), ("Front", front_words(plan))]
    return rows


def class_slos(question: Question) -> dict[str, Slo]:
    """Return the SLO of each class by its name, where classes have their own; else that of all, without one."""
    if not question.slos or isinstance(question.workload, str):
        return question.slos or {"": question.slo}
    return {each.name: question.slo_of(each.name) for each in question.workload.classes}


def _promise(slo: Slo) -> str:
    return f"{limits(slo)} for {share(slo.attainment)}"


def _runs(plan: Plan) -> list[str]:
    """How long the runs were that the figures rest on; nothing where none was made."""
    runs = []
    simulated = [candidate.requests for candidate in plan.ranked if candidate.simulations]
    if plan.long_runs and simulated:
        others = ", the others by shorter ones" if plan.long_runs < plan.evaluated else ""
        runs.append(f"{plan.long_runs:,} by runs of {counted(plan.requests, 'request')}{others}")
    elif simulated:
        runs.append(f"none by runs of more than {counted(max(simulated), 'request')}")
    if plan.confirmed:
        runs.append(f"{plan.confirmed:,} confirmed on further seeds")
    return runs


def front_words(plan: Plan) -> str:
    """Return who no other beats, in which objectives, and where there are many the first of them."""
    named = plan.front[:FRONT_NAMED]
    more = f" and {len(plan.front) - len(named)} more" if len(plan.front) > len(named) else ""
    against = ", ".join(objective(plan.question.known(each), plan.question) for each in plan.question.front)
    return f"{'; '.join(named)}{more}: none is better in {against} at once" if named else NONE


def _constraints(question: Question) -> str:
    """What the question allows, besides the GPUs there are."""
    said = (
        question.max_usd_per_hour is not None and f"{usd(question.max_usd_per_hour)} per hour at most",
        question.max_tp is not None and f"tp {question.max_tp} at most",
        question.max_watts is not None and f"{question.max_watts:,.0f} W at most",
        question.watts_per_rack is not None
        and f"racks with {question.watts_per_rack:,.0f} W for {counted(question.gpus_per_rack or 0, 'GPU')}",
        question.spare > 0
        and f"the SLO met with {counted(question.spare, 'replica')} of every pool down, so attained, latencies and "
        "goodput are of what is left, money and energy of all",
    )
    return "".join(f"; {each}" for each in said if each)


def pace(plan: Plan) -> str:
    """Return how requests come: ``at 20 req/s``, or of one that has no rate ``served alone``."""
    return "served alone" if plan.alone else f"at {format_rate(plan.rate_req_s)}"


def outcome_words(plan: Plan) -> str:
    """Return how many candidates meet the SLO, and what breaks first in the others."""
    breaks = Counter(BREAKS[candidate.binding] for candidate in plan.ranked if not candidate.meets)
    missed = breaks.total()
    met = len(plan.ranked) - missed
    meet = f"{met:,} {'meets' if met == 1 else 'meet'} the SLO{'' if plan.alone else f' {pace(plan)}'}"
    if not missed:
        return meet
    first = ", ".join(f"{name} in {count:,}" for name, count in breaks.most_common())
    return f"{meet}, {missed:,} {'misses' if missed == 1 else 'miss'} it (what breaks first: {first})"
