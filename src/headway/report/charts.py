"""Charts as Vega-Lite specs, by Altair: given figures on axes, with labels for hovering."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.metrics import Latency, Result
from headway.report import words as w
from headway.units import format_seconds

Spec = dict[str, Any]

# Okabe and Ito's palette, told apart with every common form of colour blindness.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A8F98"
HEIGHT = 220
CURVE_POINTS = 200  # of a distribution: more than a screen shows
SECONDS = "datum.value >= 1 ? format(datum.value, '~g') + ' s' : format(datum.value * 1000, '~g') + ' ms'"
JOULES = "datum.value ? format(datum.value, '~s') + 'J' : '0'"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def distribution(name: str, values_s: NDArray[np.float64], limit_s: float | None) -> Spec:
    """Return the share of requests served within a time; values_s: seconds of each request, float64[n]."""
    ordered = np.sort(values_s[values_s > 0])  # a logarithmic axis has no zero
    ranks = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), CURVE_POINTS)).astype(int))
    points = [_point(float(ordered[rank]), (int(rank) + 1) / len(ordered)) for rank in ranks]
    return _distribution(name, points, limit_s, line=True)


def percentiles(name: str, latency: Latency, limit_s: float | None) -> Spec:
    """Return the percentiles of a latency, where no per-request records are at hand."""
    known = ((0.5, latency.p50), (0.9, latency.p90), (0.95, latency.p95), (0.99, latency.p99))
    points = [_point(seconds, part) for part, seconds in known if seconds]
    return _distribution(name, points, limit_s, line=False)


def _point(seconds: float, part: float) -> dict[str, Any]:
    return {"seconds": seconds, "share": part, "label": f"{w.share(part)} within {format_seconds(seconds)}"}


def _distribution(name: str, points: list[dict[str, Any]], limit_s: float | None, line: bool) -> Spec:
    import altair as alt

    x = alt.X("seconds:Q", title=name, scale=alt.Scale(type="log", nice=False), axis=time_axis())
    y = alt.Y(
        "share:Q",
        title="share of requests",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%", tickCount=5),
    )
    base = inline(points).encode(x=x, y=y, tooltip=alt.Tooltip("label:N", title=name))
    mark = base.mark_line(color=BLUE, strokeWidth=2, interpolate="step-after")
    dots = base.mark_point(color=BLUE, filled=True, size=30 if line else 80, opacity=0 if line else 1)
    layers = [mark, dots] if line else [dots]
    if limit_s is not None:
        rule = inline([{"seconds": limit_s, "label": f"limit {format_seconds(limit_s)}"}])
        rule = rule.encode(x="seconds:Q", tooltip=alt.Tooltip("label:N", title=name))
        layers.append(rule.mark_rule(color=RED, strokeWidth=2, strokeDash=[5, 3]))
    return finished(alt.layer(*layers))


def replicas(result: Result) -> Spec:
    """Return how busy each replica was, and how full its KV cache at the fullest."""
    import altair as alt

    names = ["time busy", "KV cache, fullest moment"]
    rows = [
        {
            "replica": index,
            "what": what,
            "share": value,
            "label": f"replica {index}, {what}: {w.share(value)}",
        }
        for index, load in enumerate(result.replicas)
        for what, value in zip(names, (load.utilization, load.kv_peak_utilization), strict=True)
        if value is not None
    ]
    chart = inline(rows).encode(
        x=alt.X("replica:O", title="replica", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("share:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5)),
        color=alt.Color("what:N", scale=alt.Scale(domain=names, range=[BLUE, ORANGE]), legend=top_legend()),
        shape=alt.Shape("what:N", scale=alt.Scale(domain=names, range=["circle", "diamond"])),
        tooltip=alt.Tooltip("label:N", title=" "),
    )
    return finished(chart.mark_point(filled=True, size=90, opacity=0.9))


def energy(result: Result) -> Spec:
    """Return where the joules went."""
    import altair as alt

    parts = {
        "idle": result.energy.idle_joules,
        "prefill": result.energy.prefill_joules,
        "decode": result.energy.decode_joules,
    }
    rows = [{"part": part, "joules": value, "label": w.joules(value)} for part, value in parts.items()]
    chart = inline(rows).encode(
        x=alt.X(
            "joules:Q",
            title=f"energy, {w.certainty(result.energy.kind)}",
            axis=alt.Axis(labelExpr=JOULES, tickCount=5),
        ),
        y=alt.Y("part:N", title=None, sort=list(parts)),
        color=alt.Color("part:N", scale=alt.Scale(domain=list(parts), range=[GREY, ORANGE, BLUE]), legend=None),
        tooltip=alt.Tooltip("label:N", title=" "),
    )
    return finished(chart.mark_bar(), height=130)


def inline(rows: list[dict[str, Any]]) -> Any:
    """Return a chart without a mark over rows that stay in its spec."""
    import altair as alt

    return alt.Chart(alt.InlineData(values=rows))


def time_axis() -> Any:
    """Return an axis that reads in ms and s."""
    import altair as alt

    return alt.Axis(labelExpr=SECONDS, labelOverlap="greedy", labelSeparation=8, grid=False)


def top_legend(columns: int = 2) -> Any:
    """Return a legend above the chart, no wider than on a phone."""
    import altair as alt

    return alt.Legend(title=None, orient="top", direction="vertical", columns=columns, labelLimit=250, symbolOpacity=1)


def finished(chart: Any, height: int = HEIGHT) -> Spec:
    """Return the chart's spec at the width of its place, in the page's type."""
    import altair as alt

    soft, line = "#4A4F57", "#B9BEC6"
    axis = {"labelColor": soft, "titleColor": soft, "domainColor": line, "tickColor": line, "gridColor": "#E7E9ED"}
    styled = (
        chart.properties(width="container", height=height, background="transparent")
        .configure(font=FONT)
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", **axis)
        .configure_legend(labelFontSize=12, symbolSize=90)
        .configure_view(stroke=None)
    )
    with alt.data_transformers.enable(consolidate_datasets=False):  # rows stay in the spec that draws them
        spec: Spec = styled.to_dict()
    return spec
