"""Why: the reason each candidate won or lost, and the plan's answer in words, with the numbers they rest on."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from headway.hardware.catalogue import name_within
from headway.hardware.files import gpu_name, is_file
from headway.metrics import Slo
from headway.plan.contest import Contest
from headway.plan.evaluate import Asked, Outcome
from headway.plan.question import Objective, Question
from headway.plan.ranking import MEASURES, Entry
from headway.plan.remedy import WIDER_GPUS, Remedy, larger
from headway.plan.space import left_out, powered_copies
from headway.plan.spare import standing, without
from headway.sim import Deployment
from headway.units import counted, format_rate, format_seconds

__all__ = [
    "NAMES", "breaks", "named", "of_class", "of_the_stock", "only_estimated", "reason", "so_far",
    "too_much", "undecided_words", "verdict",
]  # fmt: skip

NAMES: dict[str, str] = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
_FIGURES: dict[Objective, str] = {
    "energy": "energy", "carbon": "carbon", "ttft": "TTFT", "tpot": "TPOT", "rate": "goodput",
}  # fmt: skip
_UNCHANGED = 0.005  # a change that no figure shows
_UNITS = {
    "energy": "J per output token", "carbon": "g CO2 per million output tokens", "goodput": "req/s per GPU",
    "rate": "req/s of goodput",
}  # fmt: skip


def reason(entry: Entry, best: Entry, question: Question, rate_req_s: float) -> str:
    """Return why a candidate won, or lost to `best`, and what more runs usually make of that."""
    return _reason(entry, best, question, rate_req_s) + _usually(entry, question)


def _reason(entry: Entry, best: Entry, question: Question, rate_req_s: float) -> str:
    outcome = entry.outcome
    if not outcome.simulations and outcome.binding == "memory":
        return f"{_limit(entry)}: no rate meets the SLO, none was simulated"
    if not outcome.simulations:
        return f"{_limit(entry)} at best, which its step times prove: no rate meets the SLO, none was simulated"
    if outcome.goodput.req_s == 0 and outcome.worst_s <= outcome.limit_s and outcome.binding in NAMES:
        return f"{_limit(entry)}, but too few keep all limits even when requests hardly meet: no rate meets the SLO"
    if outcome.goodput.req_s == 0:
        return f"{_limit(entry)} even when requests hardly meet: no rate meets the SLO"
    share = outcome.goodput.req_s / rate_req_s
    down = f"with {counted(question.spare, 'replica')} of every pool down " if question.spare else ""
    serves = f"{down}serves up to {format_rate(outcome.goodput.req_s)}, then {breaks(entry)}"
    if not entry.meets:
        return f"{_unlucky(entry, question)}{serves}: {share:.0%} of the rate asked for"
    serves = _unbounded(entry) if outcome.goodput.open_ended else f"{serves}: {share - 1:+.0%} headroom"
    mine, its = _value(entry, question), _value(best, question)
    if entry is best:
        return f"best of those that meet the SLO: {mine}; {serves}"
    if mine == its and entry.deployment.gpus > best.deployment.gpus:
        return f"meets the SLO at {mine} too, but takes {entry.deployment.gpus} GPUs; {serves}"
    if mine == its:
        return f"meets the SLO at {mine} too, but {serves}"
    verb = "gives" if question.objective in ("goodput", "rate") else "takes"
    return f"meets the SLO, but {verb} {mine} against {its}; {serves}"


def verdict(best: Entry, question: Question, rate_req_s: float | None, first: int) -> str:
    """Return the answer of a feasible plan; `first`: the place in its trace of the first request simulated.

    Without a rate it is one request, which is served alone.
    """
    asked, goodput = best.outcome.asked, best.outcome.goodput
    assert asked is not None
    assert asked.attainment is not None and asked.attainment_low is not None
    cost = "" if best.usd_per_hour is None else f", ${best.usd_per_hour:.2f} per hour"
    cost += f", {best.joules:.3g} J per output token"
    seeds = best.outcome.seeds
    runs = f" on {len(seeds)} seeds that had no part in the choice" if seeds else ""
    at = "served alone," if rate_req_s is None else f"at {format_rate(rate_req_s)}"
    met = "its one request meets the SLO" + _less(question) if rate_req_s is None else _attained(asked, question)
    most = _unbounded(best) if goodput.open_ended else f"it serves up to {format_rate(goodput.req_s)}"
    text = (
        f"{best.deployment.name}: {best.deployment.gpu_words}{cost}. {_when(best, question, at)} {met}{runs}"
        f"{_interval(asked, question)}{'' if rate_req_s is None else f'; {most}'}."
    )
    if question.spare and asked.attainment_all_up is not None:
        text += f" With every replica up {asked.attainment_all_up:.1%} meet it; cost and energy are of all of them."
    again = f"{seeds[0]} to {seeds[-1]}" if seeds else f"{question.seed}"
    those = "these runs, one each" if seeds else "this run"
    options = _limits(question) + _down(best, question) + (f" --set workload.first={first}" if first else "")
    text += f" `headway simulate` with --requests {best.outcome.requests}{options} --seed {again} repeats {those}."
    slos = [(each.attainment_low, each.target) for each in asked.by_class.values()]
    if any(low < target for low, target in slos or [(asked.attainment_low, question.slo.attainment)]):
        text += f" Its lead over the target is within the noise of {counted(best.outcome.requests, 'request')}."
    return text


def _attained(asked: Asked, question: Question) -> str:
    """How many requests meet the SLO, of each class where each has its own."""
    if not asked.by_class:
        return f"{_share(asked.attainment)} of requests meet the SLO{_less(question)}"
    each = [f"{_share(one.attainment)} of {name}" for name, one in asked.by_class.items()]
    return f"{', '.join(each[:-1])} and {each[-1]} meet the SLO of their class{_less(question)}"


def _share(value: float | None) -> str:
    """``97.8%``; what is not all does not read as if it were."""
    return ">99.9%" if value is not None and 0.9995 <= value < 1 else f"{value:.1%}"


def _interval(asked: Asked, question: Question) -> str:
    if not asked.by_class:
        interval = f"95% interval {asked.attainment_low:.1%} to {asked.attainment_high:.1%}"
        return f" ({interval}; target {question.slo.attainment:.0%})"
    name, least = min(asked.by_class.items(), key=lambda one: one[1].attainment_low - one[1].target)
    interval = f"95% interval {least.attainment_low:.1%} to {least.attainment_high:.1%}"
    return f" (least of {name}, {interval}; target {least.target:.0%})"


def _unbounded(entry: Entry) -> str:
    """That no rate was missed, and why."""
    if entry.outcome.requests == 1:
        return "its one request is served within the limits, which does not tell what it serves at most"
    return (
        f"it met the SLO at every rate tried, up to {format_rate(entry.outcome.goodput.req_s)}, as all "
        f"{entry.outcome.requests:,} requests together are served within the limits: too few to tell what it serves "
        "at most"
    )


def _when(entry: Entry, question: Question, at: str) -> str:
    """What is down when it is asked whether the SLO is met, `at` a rate."""
    if not question.spare:
        return at[0].upper() + at[1:]
    left = standing(entry.deployment, question.spare)[0].gpu_words
    return f"With {counted(question.spare, 'replica')} of every pool down ({left} left), {at}"


def _down(entry: Entry, question: Question) -> str:
    """The options that take the spare replicas out of a deployment, as it is judged."""
    if not question.spare:
        return ""
    left = without(entry.deployment, question.spare)[entry.outcome.down]
    counts = "".join(f" --set pools.{place}.count={pool.count}" for place, pool in enumerate(left.pools))
    if entry.deployment.wide(left.models[0]):
        nodes = [json.dumps(pool.nodes, separators=(",", ":")) for pool in left.pools]
        counts += "".join(f" --set 'pools.{place}.nodes={each}'" for place, each in enumerate(nodes))
    weights = left.policies.params.get("route", {}).get("weights", {})
    return counts + "".join(
        f" --set policies.params.route.weights.{role}={json.dumps(each, separators=(',', ':'))}"
        for role, each in weights.items()
    )


def _less(question: Question) -> str:
    """That limits on the time per token were taken tighter, where that is so."""
    slos = (question.slo, *question.slos.values())
    limits = ("TPOT", [slo.tpot_s for slo in slos]), ("ITL", [slo.itl_s for slo in slos])
    names = [name for name, each in limits if any(limit is not None for limit in each)]
    return f" with {question.margin:.0%} of margin on {' and '.join(names)}" if names and question.margin else ""


def _limits(question: Question) -> str:
    """The limits that candidates were judged by, as options, where they are not those of the SLO."""
    aimed = question.aimed_slo
    if not question.margin:
        return ""
    classes = "".join(f" --slo {name}:{_all_limits(question.aimed(slo))}" for name, slo in question.slos.items())
    tpot = "" if aimed.tpot_s is None else f" --tpot {1000 * aimed.tpot_s:.12g}ms"
    return classes + tpot + ("" if aimed.itl_s is None else f" --set slo.itl_s={aimed.itl_s:.12g}")


def _all_limits(slo: Slo) -> str:
    """An SLO as `--slo` takes it."""
    named = (("ttft", slo.ttft_s), ("tpot", slo.tpot_s), ("itl", slo.itl_s), ("e2e", slo.e2e_s))
    limits = [f"{name}={1000 * limit:.12g}ms" for name, limit in named if limit is not None]
    return ",".join([*limits, f"attainment={slo.attainment:g}"])


def too_much(entry: Entry, contest: Contest, more: Remedy) -> str:
    """Return the answer when the SLO can be met, but not at this rate, with what would serve it."""
    question, most_req_s = contest.question, contest.most_req_s
    goodput, copies = entry.outcome.goodput.req_s, more.deployment.name
    if more.copies > 1:
        copies = f"{more.copies} times {copies}"
    if more.attainment is None and more.requests:
        would = f"No number of copies tried serves it, up to {counted(more.gpus, 'GPU')} ({copies})"
    elif more.attainment is None:
        gpus = counted(more.gpus, "GPU")
        would = f"By goodput alone about {gpus} would do ({copies}): an estimate that no simulation confirmed"
    else:
        would = (
            f"{counted(more.gpus, 'GPU')} would do ({copies}): simulated, {_share(more.attainment)} of "
            f"{counted(more.requests, 'request')} meet the SLO"
        )
    proof, of, others = "", "", ""
    if most_req_s is not None:
        proof = f" step times prove that none serves more than {format_rate(most_req_s)};"
        of = f" of the {len(contest.hopeful)} ablest by estimate that were simulated"
    if most_req_s is not None and more.attainment is not None and not more.cheapest:
        others = (
            f" These are copies of what has the most goodput per GPU among the {len(contest.hopeful)} simulated; a "
            "plan with more GPUs to choose from may find fewer."
        )
    return (
        f"No plan on {question.gpu_words} serves {format_rate(contest.rate_req_s)}:{proof} the nearest{of}, "
        f"{entry.deployment.name}, serves {format_rate(goodput)}, then {breaks(entry)}. {would}"
        f"{_beyond(more, question)}{_larger(question, more)}.{others}"
    )


def _beyond(more: Remedy, question: Question) -> str:
    """Which other constraints the copies break."""
    usd, most = more.usd_per_hour, question.max_usd_per_hour
    if more.attainment is None and more.requests > 0:
        return ""
    needs = []
    if usd is not None and most is not None and usd > most:
        needs.append(f", for ${usd:.2f} per hour, which needs max_usd_per_hour {most:g} raised")
    together = msgspec.structs.replace(question, watts_per_rack=None, gpus_per_rack=None)
    if powered_copies(more.deployment, together) < more.copies:
        needs.append(f", which needs max_watts {question.max_watts:g} raised")
    return " and".join([*needs, *_racks(more, question)])


def _racks(more: Remedy, question: Question) -> list[str]:
    """That the copies need more racks than all GPUs that there are, or that they have, have places in."""
    if question.watts_per_rack is None or question.gpus_per_rack is None:
        return []
    replicas = [pool.replica for pool in more.deployment.pools]
    watts = {each.gpu: question.watts(each.gpu, each.cap_watts) for each in replicas}
    needed = there = 0
    for kind, count in more.deployment.gpus_by_kind.items():
        gpus, held = more.copies * count, question.per_rack(watts[kind])
        if not held:
            return [f", which needs watts_per_rack {question.watts_per_rack:g} raised"]
        needed += -(-gpus // held)
        there += -(-max(gpus, question.stock.get(kind, 0)) // question.gpus_per_rack)
    if needed <= there:
        return []
    return [f", which needs {needed} racks, or watts_per_rack {question.watts_per_rack:g} raised"]


def undecided_words(entries: list[Entry]) -> str:
    """Return who may be better yet, where simulation does not tell."""
    if not entries:
        return ""
    first = entries[0]
    low, high = _in_doubt(first)
    more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
    return (
        f"Tied with it by what simulation tells: {first.deployment.name}{more}, which would be better, and meets the "
        f"SLO for {low:.1%} to {high:.1%} on {len(first.outcome.seeds)} seeds."
    )


def _in_doubt(entry: Entry) -> tuple[float, float]:
    """The interval of its attainment, of several classes that of the one nearest to missing."""
    asked = entry.outcome.asked
    assert asked is not None and asked.attainment_low is not None and asked.attainment_high is not None
    if not asked.by_class:
        return asked.attainment_low, asked.attainment_high
    least = min(asked.by_class.values(), key=lambda each: each.attainment_low - each.target)
    return least.attainment_low, least.attainment_high


def of_the_stock(question: Question) -> str:
    """Return what of the stock goes for nothing: kinds that no plan has, prices that are not known."""
    return " ".join(filter(None, (_left_out(question), _unpriced(question))))


def _left_out(question: Question) -> str:
    """The kinds of GPU that no plan can have, and why."""
    kinds = left_out(question)
    if not kinds:
        return ""
    each = "; ".join(f"{gpu_name(kind)} ({why})" for kind, why in kinds.items())
    return f"No plan uses {each}."


def _unpriced(question: Question) -> str:
    """That GPUs stand for a cost that is not known, and what to do about it."""
    if question.known(question.objective) == question.objective and "cost" not in question.front:
        return ""
    kinds = question.unpriced
    if not kinds:
        return ""
    each = ",".join(f"{name_within(kind) if is_file(kind) else kind}=USD" for kind in kinds)
    named = " and ".join(map(gpu_name, kinds))
    return f"No price of {named} is known, so GPUs stand for cost: --price {each} gives it."


def only_estimated(likely: Deployment | None, rate_req_s: float) -> str:
    """Return the answer of a search that was interrupted before anything was simulated."""
    if likely is None:
        return "Interrupted before any candidate was simulated; none is estimated to serve the rate."
    gpus = counted(likely.gpus, "GPU")
    usd = "" if likely.usd_per_hour is None else f" for ${likely.usd_per_hour:,.2f} per hour"
    return (
        f"Interrupted before any candidate was simulated. By estimate alone {likely.name} ({gpus}{usd}) is "
        f"the cheapest for {format_rate(rate_req_s)}; estimates are mostly 0.6 to 1.6 times what simulation finds."
    )


def so_far(entry: Entry, tried: int, candidates: int, rate_req_s: float | None) -> str:
    """Return the answer of a search that was interrupted before anything met the SLO; `entry` comes nearest."""
    goodput = entry.outcome.goodput.req_s
    serves = f"serves {format_rate(goodput)}" if goodput > 0 else "meets it at no rate"
    at = "" if rate_req_s is None else f" at {format_rate(rate_req_s)}"
    return (
        f"none of {tried:,} tried of {counted(candidates, 'candidate')} meets the SLO{at}; the nearest of those, "
        f"{entry.deployment.name}, {serves}. The others are not known."
    )


def _larger(question: Question, more: Remedy) -> str:
    """What is known of replicas that may do with fewer GPUs, but that the question's GPUs could not hold."""
    if more.cheapest:
        return f", the least found of replicas up to tp {max(more.wider)}" if more.wider else ""
    words = []
    if more.wider:
        none = f"none was found to serve it on up to {WIDER_GPUS} GPUs; more may need fewer"
        words.append(f"; of replicas of tp {_either(more.wider)} {none}")
    untried = [tp for tp in larger(question) if tp not in more.wider]
    if untried:
        words.append(f"; replicas of tp {_either(untried)} were not tried and may need fewer")
    return "".join(words)


def _either(degrees: Sequence[int]) -> str:
    return " or ".join(map(str, degrees))


def _unlucky(entry: Entry, question: Question) -> str:
    """What further seeds say of a candidate that they do not confirm."""
    outcome = entry.outcome
    asked, target = outcome.asked, question.slo.attainment
    if not outcome.seeds or not asked or not asked.attainment or asked.attainment_high is None:
        return ""
    near = "within the noise of" if asked.may_meet(target) else "below"
    told = f"{asked.attainment:.1%} ({asked.attainment_low:.1%} to {asked.attainment_high:.1%})"
    if asked.by_class:
        name, least = min(asked.by_class.items(), key=lambda one: one[1].attainment_low - one[1].target)
        told = f"{name} {least.attainment:.1%} ({least.attainment_low:.1%} to {least.attainment_high:.1%})"
    return f"{near} the target on {len(outcome.seeds)} further seeds: {told}; "


def _limit(entry: Entry) -> str:
    outcome = entry.outcome
    if outcome.binding not in NAMES:
        return breaks(entry)
    return f"{named(outcome)} takes {format_seconds(outcome.worst_s)} of {format_seconds(outcome.limit_s)}"


def breaks(entry: Entry) -> str:
    """What breaks first."""
    binding = entry.outcome.binding
    if binding == "memory":
        return "requests exceed its KV cache or the context"
    return "its queue grows without end" if binding == "rate" else f"{named(entry.outcome)} breaks"


def named(outcome: Outcome) -> str:
    """The limit that binds, and of which class."""
    return NAMES[outcome.binding] + of_class(outcome.binding_class)


def of_class(slo_class: str) -> str:
    """The class, where there are several."""
    return f" of {slo_class}" if slo_class else ""


def _usually(entry: Entry, question: Question) -> str:
    """What more runs usually make of the figures that a candidate is ranked by, where that shows."""
    ranked_by = "rate", question.known(question.objective)
    changes = [(entry.changes.get(name, 1.0) - 1, noun) for name, noun in _FIGURES.items() if name in ranked_by]
    said = [f"{abs(x):.0%} {'more' if x > 0 else 'less'} {noun}" for x, noun in changes if abs(x) >= _UNCHANGED]
    if not said or entry.outcome.goodput.req_s == 0:
        return ""
    return f"; by {counted(entry.outcome.requests, 'request')} of one seed: more usually show {' and '.join(said)}"


def _value(entry: Entry, question: Question) -> str:
    objective = question.known(question.objective)
    value = MEASURES[objective](entry)
    if objective == "cost":
        return f"${value:.2f} per hour"
    if objective == "gpus":
        return counted(entry.deployment.gpus, "GPU")
    if objective in ("ttft", "tpot"):
        whom = "its share of each class" if question.slos else f"{100 * question.slo.attainment:.4g}% of requests"
        return f"{format_seconds(value)} of {NAMES[objective]} for {whom}"
    return f"{abs(value):.3g} {_UNITS[objective]}"
