"""A plan's charts: candidates as points, latency against load as lines, the best's run over time, where joules went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from headway.plan.leaders import Course, LoadPoint, Spread
from headway.report import words as w
from headway.report.charts import (
    BLUE,
    GREEN,
    GREY,
    HEIGHT,
    ORANGE,
    PURPLE,
    RED,
    Spec,
    finished,
    inline,
    time_axis,
    top_legend,
)
from headway.units import format_rate, format_seconds

if TYPE_CHECKING:
    from headway.plan import Candidate, Plan
    from headway.plan.question import Objective

CANDIDATES = "candidates"  # the data set that all points come from, and that the page's filter thins out
STATES = {"best": ORANGE, "on the front": GREEN, "meets the SLO": BLUE, "misses the SLO": GREY}
COLORS, DASHES, SHAPES = [BLUE, PURPLE, GREEN], [[1, 0], [7, 4], [2, 3]], ["circle", "diamond", "square"]
PARTS = {"idle": GREY, "prefill": ORANGE, "decode": BLUE}
CLIPPED = 4.0  # of the largest of limit and prediction: an interval that reaches beyond it is cut off
LATENCIES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E", "itl_s": "ITL"}


def tail_of(plan: Plan, latency: str) -> str:
    """Return ``TTFT, p90``: which percentile of a latency is drawn."""
    return f"{LATENCIES[latency]}, {'p99' if latency == 'itl_s' else w.tail(plan.question)}"


def limits(plan: Plan, latency: str) -> list[tuple[float, str]]:
    """Return each limit on a latency, seconds, with whose it is: where classes have their own, those of each."""
    whose: dict[float, list[str]] = {}
    for name, slo in w.class_slos(plan.question).items():
        limit_s = getattr(slo, latency)
        if limit_s is not None:
            whose.setdefault(limit_s, []).append(name)
    return [(limit_s, w.listed(filter(None, names)) if any(names) else "limit") for limit_s, names in whose.items()]


def targets(plan: Plan) -> list[tuple[float, str]]:
    """Return each share of requests that has to be in time, with whose it is."""
    whose: dict[float, list[str]] = {}
    for name, slo in w.class_slos(plan.question).items():
        whose.setdefault(slo.attainment, []).append(name)
    return [(share, w.listed(filter(None, names)) if any(names) else "target") for share, names in whose.items()]


def measure(candidate: Candidate, objective: Objective) -> float | None:
    """Return a candidate's figure for an objective; None where it is not known."""
    if objective == "carbon":
        carbon = candidate.carbon_g_per_million_output_tokens
        return None if carbon is None else carbon + (candidate.embodied_g_per_million_output_tokens or 0.0)
    figures: dict[Objective, float | None] = {
        "cost": candidate.usd_per_hour, "gpus": candidate.gpus, "energy": candidate.joules_per_output_token,
        "goodput": candidate.goodput_req_s_per_gpu, "rate": candidate.goodput_req_s,
        "ttft": candidate.ttft_p90_s if candidate.ttft_s is None else candidate.ttft_s,
        "tpot": candidate.tpot_p90_s if candidate.tpot_s is None else candidate.tpot_s,
    }  # fmt: skip
    return figures[objective]


def state(plan: Plan, candidate: Candidate) -> str:
    """Return which of `STATES` a candidate is in."""
    if plan.best is not None and candidate.name == plan.best.name:
        return "best"
    if not candidate.meets:
        return "misses the SLO"
    return "on the front" if candidate.name in plan.front else "meets the SLO"


def candidate_columns(plan: Plan, shown: Iterable[Candidate]) -> dict[str, list[Any]]:
    """Return the candidates, in their order, as columns for charts and filters."""
    shown = list(shown)
    axes: list[Objective] = ["cost", "gpus", "energy", "goodput", "rate", "ttft", "tpot"]
    axes += [each for each in plan.question.front if each not in axes]
    front = set(plan.front)
    columns: dict[str, list[Any]] = {
        "name": [each.name for each in shown],
        "state": [state(plan, each) for each in shown],
        "front": [each.name in front for each in shown],
        "layout": ["split" if "role" in each.deployment["pools"][0] else "mixed" for each in shown],
        "kind": [w.kinds(each) for each in shown],
        "attainment": [_short(each.attainment) for each in shown],
    }
    return columns | {axis: [_short(measure(each, axis)) for each in shown] for axis in axes}


def _short(value: float | None) -> float | None:
    """Four digits: finer than a pixel, and the page stays small."""
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")


def against(plan: Plan, across: Objective, up: Objective, legend: bool = False) -> Spec:
    """Return all candidates by two objectives."""
    return finished(_points(_axis(plan, across, "x"), _axis(plan, up, "y"), legend), height=320)


def cost_and_rate(plan: Plan) -> Spec:
    """Return each candidate's price against the highest rate it serves; a line is the rate asked for."""
    import altair as alt

    asked = _rule("y", plan.rate_req_s, f"asked: {format_rate(plan.rate_req_s)}")
    return finished(alt.layer(_points(_price(plan), _axis(plan, "rate", "y")), *asked), height=280)


def cost_and_attainment(plan: Plan) -> Spec:
    """Return each candidate's price against its attainment at the rate asked for."""
    import altair as alt

    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(format="%", tickCount=5)
    y = alt.Y("attainment:Q", title="attainment", scale=scale, axis=axis)
    return finished(alt.layer(_points(_price(plan), y), *_targets(plan)), height=280)


def latencies(plan: Plan) -> Spec:
    """Return TTFT against TPOT at the rate asked for, with their limits."""
    import altair as alt

    layers = [_points(_axis(plan, "ttft", "x"), _axis(plan, "tpot", "y"))]
    for axis, latency in (("x", "ttft_s"), ("y", "tpot_s")):
        layers += _limits(plan, latency, axis)
    return finished(alt.layer(*layers), height=280)


def _price(plan: Plan) -> Any:
    """The horizontal axis: dollars per hour, or GPUs where there is no price."""
    return _axis(plan, plan.question.known("cost"), "x")


def _limits(plan: Plan, latency: str, axis: str = "y") -> list[Any]:
    return [
        layer
        for limit_s, whose in limits(plan, latency)
        for layer in _rule(axis, limit_s, f"{whose} {format_seconds(limit_s)}")
    ]


def _targets(plan: Plan) -> list[Any]:
    return [layer for share, whose in targets(plan) for layer in _rule("y", share, f"{whose} {w.share(share)}")]


def _axis(plan: Plan, objective: Objective, channel: str) -> Any:
    import altair as alt

    title = w.objective(objective, plan.question)
    make = alt.X if channel == "x" else alt.Y
    if objective in ("ttft", "tpot"):
        return make(f"{objective}:Q", title=title, scale=alt.Scale(type="log", nice=False), axis=time_axis())
    axis = alt.Axis(format="$~f", tickCount=6) if objective == "cost" else alt.Axis(tickCount=6)
    zero = objective in ("cost", "gpus", "goodput", "rate")
    unit = {"goodput": " (req/s)", "rate": " (req/s)", "carbon": " (g per 1M)"}.get(objective, "")
    return make(f"{objective}:Q", title=title + unit, scale=alt.Scale(zero=zero), axis=axis)


def _points(x: Any, y: Any, legend: bool = False) -> Any:
    import altair as alt

    def by_state(values: Iterable[Any]) -> Any:
        return alt.Scale(domain=list(STATES), range=list(values))

    key = top_legend() if legend else None
    known = [f"isValid(datum['{channel.shorthand.partition(':')[0]}'])" for channel in (x, y)]
    return (
        alt.Chart(alt.NamedData(name=CANDIDATES))
        .transform_filter(" && ".join(known))
        .transform_calculate(
            size="{'best': 260, 'on the front': 80}[datum.state] || 26",
            over="{'best': 3, 'on the front': 2, 'meets the SLO': 1}[datum.state] || 0",
        )
        .mark_point(filled=True, opacity=0.75, cursor="pointer")
        .encode(
            x=x, y=y, color=alt.Color("state:N", scale=by_state(STATES.values()), legend=key),
            shape=alt.Shape("state:N", scale=by_state(["diamond", "square", "circle", "cross"]), legend=key),
            size=alt.Size("size:Q", scale=None, legend=None), order="over:Q",
            tooltip=[
                alt.Tooltip("name:N", title="deployment"), alt.Tooltip("gpus:Q", title="GPUs"),
                alt.Tooltip("cost:Q", title="$ per hour", format=".2f"),
                alt.Tooltip("rate:Q", title="goodput, req/s", format=".3~g"),
                alt.Tooltip("attainment:Q", title="attainment", format=".1%"),
                alt.Tooltip("energy:Q", title="J per token", format=".3~g"),
                alt.Tooltip("reason:N", title="why"),
            ],
        )
    )  # fmt: skip


def _rule(axis: str, value: float, label: str, color: str = RED) -> list[Any]:
    """A dashed line, and what it is beside its end: a page is read on paper too."""
    import altair as alt

    rows = inline([{"value": value, "label": label}])
    rule = rows.mark_rule(color=color, strokeWidth=2, strokeDash=[5, 3])
    end: dict[str, Any] = {"x": 3, "dy": -6} if axis == "y" else {"y": 9, "dx": 4}
    halo = rows.mark_text(stroke="white", strokeWidth=4, fontSize=11, align="left", **end)
    text = rows.mark_text(color=color, fontSize=11, align="left", **end)
    said = {axis: "value:Q", "tooltip": alt.Tooltip("label:N", title=" ")}
    return [rule.encode(**said), *(each.encode(text="label:N", **said) for each in (halo, text))]


def load(plan: Plan, latency: str) -> Spec:
    """Return one latency's tail against the rate for each curve, with the model's interval and the limits."""
    import altair as alt

    rows: list[dict[str, Any]] = [
        {
            "name": f"{place}. {curve.name}", "at": point.rate_req_s, "value": _short(spread.tail_s),
            "low": _short(spread.tail_low_s), "high": _short(spread.tail_high_s),
            "label": f"at {format_rate(point.rate_req_s)}: {spread_words(spread)}",
        }
        for place, curve in enumerate(plan.curves, start=1)
        for point in curve.points
        if (spread := getattr(point, latency)) is not None
    ]  # fmt: skip
    held = [limit_s for limit_s, _ in limits(plan, latency)]
    most = CLIPPED * max([row["value"] for row in rows] + held)
    least = 0.8 * min([row["low"] for row in rows] + held)
    how = {
        "title": tail_of(plan, latency),
        "scale": alt.Scale(type="log", nice=False, domain=[least, most]),
        "axis": time_axis(),
    }
    return _against_rate(plan, rows, how, _limits(plan, latency))


def load_attainment(plan: Plan) -> Spec:
    """Return the attainment of each curve against the rate, with its interval and the target."""
    import altair as alt

    rows = [
        {
            "name": f"{place}. {curve.name}", "at": point.rate_req_s, "value": point.attainment,
            "low": point.attainment_low, "high": point.attainment_high,
            "label": f"at {format_rate(point.rate_req_s)}: {attainment_words(point)}",
        }
        for place, curve in enumerate(plan.curves, start=1)
        for point in curve.points
    ]  # fmt: skip
    how = {"title": "attainment", "scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%", tickCount=5)}
    return _against_rate(plan, rows, how, _targets(plan))


def spread_words(spread: Spread) -> str:
    """Return a latency's tail with the model's interval."""
    ends = f"{format_seconds(spread.tail_low_s)} to {format_seconds(spread.tail_high_s)}"
    return f"{format_seconds(spread.tail_s)} (model's interval {ends})"


def attainment_words(point: LoadPoint) -> str:
    """Return attainment with its interval."""
    return f"{w.share(point.attainment)} ({w.share(point.attainment_low)} to {w.share(point.attainment_high)})"


def _against_rate(plan: Plan, rows: list[dict[str, Any]], how: dict[str, Any], rules: list[Any]) -> Spec:
    import altair as alt

    names = [f"{place}. {curve.name}" for place, curve in enumerate(plan.curves, start=1)]
    x = alt.X("at:Q", title="req/s", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=6, grid=False))
    asked = _rule("x", plan.rate_req_s, "asked", GREY)
    return finished(alt.layer(*_lines(rows, names, x, how, dots=True), *asked, *rules), height=280)


def course_shares(course: Course, means: str, most: str = "") -> Spec:
    """Return a share of each pool over the run; `means` and `most` name its lists, the band is between them."""
    import altair as alt

    rows = [
        {"name": pool.pool, "at": at_s, "value": mean, "low": mean, "high": top,
         "label": f"at {format_seconds(at_s)}: {w.share(mean)}" + (f", the fullest {w.share(top)}" if most else "")}
        for pool in course.pools
        for at_s, mean, top in zip(course.at_s, getattr(pool, means), getattr(pool, most or means), strict=True)
    ]  # fmt: skip
    how = {"title": "share", "scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%", tickCount=5)}
    return _over_time(course, rows, how)


def course_requests(course: Course) -> Spec:
    """Return the requests running in each pool over the run, and those waiting on top."""
    import altair as alt

    rows = [
        {"name": pool.pool, "at": at_s, "value": running, "low": running, "high": running + waiting,
         "label": f"at {format_seconds(at_s)}: {running:,} running, {waiting:,} waiting"}
        for pool in course.pools
        for at_s, running, waiting in zip(course.at_s, pool.running, pool.waiting, strict=True)
    ]  # fmt: skip
    return _over_time(course, rows, {"title": "requests", "axis": alt.Axis(tickCount=5), "scale": alt.Scale(zero=True)})


def _over_time(course: Course, rows: list[dict[str, Any]], how: dict[str, Any]) -> Spec:
    import altair as alt

    x = alt.X(
        "at:Q", title="seconds from the start", scale=alt.Scale(nice=False), axis=alt.Axis(tickCount=6, grid=False)
    )
    return finished(alt.layer(*_lines(rows, [pool.pool for pool in course.pools], x, how)), height=HEIGHT)


def _lines(rows: list[dict[str, Any]], names: list[str], x: Any, how: dict[str, Any], dots: bool = False) -> list[Any]:
    """A line in its band for each name, told apart by colour and dashes, and where it has few points by their shape."""
    import altair as alt

    def scale(values: list[Any]) -> Any:
        return alt.Scale(domain=names, range=[values[i % len(values)] for i in range(len(names))])

    key = top_legend(1)
    key.symbolType = "circle" if dots else "stroke"
    base = inline(rows).encode(
        x=x,
        color=alt.Color("name:N", scale=scale(COLORS), legend=key),
        tooltip=[alt.Tooltip("name:N", title=" "), alt.Tooltip("label:N", title=" ")],
    )
    y = alt.Y("value:Q", **how)
    area = base.mark_area(opacity=0.14, clip=True).encode(y=alt.Y("low:Q", **how), y2="high:Q")
    dashes = alt.StrokeDash("name:N", scale=scale(DASHES), legend=None)
    line = base.mark_line(strokeWidth=2, clip=True).encode(y=y, strokeDash=dashes)
    if not dots:
        return [area, line]
    shape = alt.Shape("name:N", scale=scale(SHAPES), legend=None)
    return [area, line, base.mark_point(filled=True, size=60, clip=True, opacity=1).encode(y=y, shape=shape)]


def joules(shown: list[Candidate], certainty: str) -> Spec:
    """Return what the joules of an output token are made of, a bar for each candidate."""
    import altair as alt

    rows = [
        {"name": each.name, "part": part, "joules": value, "label": f"{part}: {w.joules(value)} per output token"}
        for each in shown
        for part, value in joule_parts(each)
        if value is not None
    ]
    parts = list(PARTS)
    chart = inline(rows).encode(
        x=alt.X("joules:Q", title=f"J per output token, {certainty}", axis=alt.Axis(tickCount=5)),
        y=alt.Y("name:N", title=None, sort=[each.name for each in shown], axis=alt.Axis(labelLimit=0, labels=False)),
        color=alt.Color("part:N", scale=alt.Scale(domain=parts, range=list(PARTS.values())), legend=top_legend(3)),
        order=alt.Order("place:Q"),
        tooltip=[alt.Tooltip("name:N", title=" "), alt.Tooltip("label:N", title=" ")],
    )
    chart = chart.transform_calculate(place=f"indexof({parts!r}, datum.part)")
    names = inline([{"name": each.name} for each in shown]).mark_text(align="left", baseline="bottom", dy=-12, x=2)
    named = names.encode(y=alt.Y("name:N", sort=[each.name for each in shown]), text="name:N")
    return finished(alt.layer(chart.mark_bar(height=16, stroke="white"), named), height=44 * len(shown) + 10)


def joule_parts(candidate: Candidate) -> list[tuple[str, float | None]]:
    """Return idle, prefill and decode joules of an output token."""
    values = (
        candidate.idle_joules_per_output_token, candidate.prefill_joules_per_output_token,
        candidate.decode_joules_per_output_token,
    )  # fmt: skip
    return list(zip(PARTS, values, strict=True))
