"""What becomes of a plan's best where something is otherwise: sentences and rows, for a terminal and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.plan.answer import Sensitivity, Variant
from headway.report import words as w
from headway.report.sheet import Sheet
from headway.units import counted, format_rate, format_rates

if TYPE_CHECKING:
    from rich.console import RenderableType

HEADINGS = ["otherwise", "rate", "attainment", "95% interval", "SLO", "serves up to", "headroom", "GPUs"]
SAME = 0.005  # of a share: it reads as none
TOLD = 0.03  # of a goodput: the step in which it is searched


def sensitivity_text(found: Sensitivity) -> RenderableType:
    """Return what it comes to in sentences, and a row for each variant."""
    from rich.console import Group
    from rich.text import Text

    table = Sheet()
    for heading in HEADINGS:
        table.add_column(heading, right=heading != "SLO", words=heading == "otherwise")
    for variant, cells in zip(found.variants, variant_rows(found), strict=True):
        table.add_row(*cells, style="bold" if variant is found.base else "")
    said = [Text(f"- {line}") for line in sensitivity_words(found)]
    return Group(Text(f"How far {found.name} holds", style="bold"), *said, table, Text(basis_words(found), style="dim"))


def sensitivity_words(found: Sensitivity) -> list[str]:
    """Return headroom, what holds it back, rates, lengths, the cost model and the next replica, a sentence each."""
    said = [_headroom(found), _binds(found), _turned(found, "rate"), _turned(found, "lengths")]
    return [*filter(None, said), *(_neighbour(found, each) for each in found.of("replicas"))]


def variant_rows(found: Sensitivity) -> list[list[str]]:
    """Return the cells of each variant's row; one request alone has no rate."""
    rates = format_rates(None if found.requests == 1 else variant.rate_req_s for variant in found.variants)
    goodputs = format_rates(variant.goodput_req_s for variant in found.variants)
    return [_cells(*each) for each in zip(found.variants, rates, goodputs, strict=True)]


def _cells(variant: Variant, rate: str, goodput: str) -> list[str]:
    known = variant.attainment_low is not None
    interval = f"{w.share(variant.attainment_low)} to {w.share(variant.attainment_high)}" if known else ""
    breaks = "" if variant.breaks is None else f", {w.BREAKS[variant.breaks]}"
    return [
        variant.what,
        rate,
        w.share(variant.attainment),
        interval,
        "met" if variant.meets else f"missed{breaks}",
        goodput,
        w.NONE if variant.headroom is None else f"{variant.headroom:+.0%}",
        f"{variant.gpus}",
    ]


def basis_words(found: Sensitivity) -> str:
    """Return what the rows rest on."""
    said = (
        f"Each row by runs of {counted(found.requests, 'request')} of seed {found.seed}, the same in all. Step times "
        f"between those of the model rows hold the truth in {found.coverage:.0%} of cases."
    )
    served = found.base.goodput_req_s
    if served is None or format_rate(served) == format_rate(found.planned_req_s):
        return said
    planned = format_rate(found.planned_req_s)
    return f"{said} The plan's own {planned} is of further seeds, by the lower end of their interval."


def _headroom(found: Sensitivity) -> str:
    base, (fast, slow) = found.base, found.of("model")
    if found.requests == 1:
        return "Headroom: one request does not tell what is served at most."
    if base.goodput_req_s is None or base.headroom is None:
        return "Headroom: these runs are too short to find the rate at which the SLO is missed."
    breaks = "" if base.breaks is None else f"; then {w.BREAKS[base.breaks]} breaks"
    said = (
        f"Headroom: it serves {format_rate(base.goodput_req_s)}, {base.headroom:+.0%} of the rate asked for{breaks}"
        f"{_planned(found)}."
    )
    if slow.goodput_req_s is None or fast.goodput_req_s is None:
        return said
    ends = f"{format_rate(slow.goodput_req_s)} to {format_rate(fast.goodput_req_s)}"
    verdict = "the SLO is met at either end" if slow.meets else "at the slow end the SLO is missed as asked"
    return f"{said} By the cost model's error that is {ends}: {verdict}."


def _planned(found: Sensitivity) -> str:
    """Where the plan, by its further seeds, names another limit that breaks first: both, so that neither surprises."""
    planned, here = found.planned_breaks, found.base.breaks
    if planned is None or here is None or planned == here:
        return ""
    return (
        f" (on seed {found.seed} alone, as all that follows; by the plan's own {format_rate(found.planned_req_s)}, of "
        f"further seeds, {w.BREAKS[planned]} breaks first)"
    )


def _binds(found: Sensitivity) -> str:
    """Which part holds it back: what it would serve were that twice as good."""
    served = found.base.goodput_req_s
    gains = [
        (each.goodput_req_s / served - 1, each)
        for each in found.of("parts")
        if served and each.goodput_req_s is not None
    ]
    if not gains:
        return ""
    most = max(gain for gain, _ in gains)
    what = [f"{each.what} {gain:+.0%}" for gain, each in sorted(gains, key=lambda one: -one[0]) if gain >= TOLD]
    nothing = [each.what for gain, each in gains if gain < TOLD]
    if most < TOLD:
        return f"What holds it back is no one part: {w.listed(nothing)} change nothing, one at a time."
    least = f"; {w.listed(nothing)} {'change' if len(nothing) > 1 else 'changes'} nothing" if nothing else ""
    return f"What holds it back: it would serve more with {w.listed(what)}{least}."


def _turned(found: Sensitivity, kind: str) -> str:
    """Which variants of a kind still meet the SLO."""
    variants = [each for each in found.variants if each.kind == kind]
    if not variants:
        return ""
    named = [(each.what.removeprefix("rate "), each) for each in variants]
    met = [what for what, each in named if each.meets]
    missed = [f"{what} ({w.share(each.attainment)}{_breaks(each)})" for what, each in named if not each.meets]
    said = [f"met at {w.listed(met)}"] if met else []
    said += [f"missed at {w.listed(missed)}"] if missed else []
    return f"{kind.capitalize()}: the SLO is {', '.join(said)}."


def _breaks(variant: Variant) -> str:
    return "" if variant.breaks is None else f", {w.BREAKS[variant.breaks]} breaks"


def _neighbour(found: Sensitivity, other: Variant) -> str:
    base = found.base
    gpus = other.gpus - base.gpus
    price = ""
    if base.usd_per_hour is not None and other.usd_per_hour is not None:
        price = f", {w.usd(abs(other.usd_per_hour - base.usd_per_hour))} per hour {'more' if gpus > 0 else 'less'}"
    start = f"{other.what.capitalize()} ({counted(abs(gpus), 'GPU')}{price})"
    if other.goodput_req_s is None or base.goodput_req_s is None:
        return f"{start}: the SLO is {'met' if other.meets else 'missed'}."
    each = found.buys(other)
    if gpus > 0:
        gain = f"buys {format_rate(each)} per GPU" if each > SAME * base.rate_req_s else "buys nothing"
        return f"{start} {gain}: it serves {format_rate(other.goodput_req_s)}."
    verdict = "still meets the SLO" if other.meets else f"misses it{_breaks(other)}"
    return f"{start} {verdict}: it serves {format_rate(other.goodput_req_s)}."
