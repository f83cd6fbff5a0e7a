"""Predicted against measured figures, and errors by load, as small PNG files for docs/accuracy.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fit.study import SERVED, Study, figures, is_from
from headway.accuracy.score import headline

FIGURES = {"tpot": ("time per output token", "ms", 1e3), "ttft": ("time to first token", "ms", 1e3),
           "output_throughput": ("throughput", "tokens/s", 1.0)}  # fmt: skip
SOURCES = {
    "aiconfigurator-silicon": "InferenceX, sweeps", "ml.energy-v3": "ML.ENERGY", "trtllm-docs": "TensorRT-LLM docs",
    "mlperf-inference-5.1": "MLPerf", "mlperf-inference-6.0": "MLPerf",
    "argonne-llm-inference-bench": "LLM-Inference-Bench", "splitwise-perf-model": "Splitwise",
    "dstack-h100-vs-mi300x": "dstack", "llmfit-community": "llmfit",
}  # fmt: skip
ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
WIDTH = 300
SHARPNESS = 1.3
LOADS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


def draw(study: Study, folder: Path) -> list[Path]:
    """Write every plot and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for metric, (name, unit, factor) in FIGURES.items():
        colour = "engine" if metric != "output_throughput" else "source"
        chart = _scatter(_pairs(study, metric, factor), name, unit, colour)
        made.append(_saved(chart, folder / f"accuracy-{metric}.png"))
    made.append(_saved(_by_load(study), folder / "accuracy-load.png"))
    made.append(_saved(_cumulative(study), folder / "accuracy-cumulative.png"))
    return made


def _pairs(study: Study, metric: str, factor: float) -> list[dict[str, Any]]:
    found = []
    for judged in study.shipped.judged:
        pair = headline(judged, metric)
        if pair is not None and min(pair) > 0:
            engine = ENGINES.get(judged[0].engine, "other")
            source = SOURCES.get(judged[0].source, "other")
            measured, predicted = (float(f"{factor * value:.3g}") for value in pair)
            found.append({"measured": measured, "predicted": predicted, "engine": engine, "source": source})
    return found


def _scatter(points: list[dict[str, Any]], name: str, unit: str, colour: str) -> Any:
    import altair as alt

    both = [value for point in points for value in (point["measured"], point["predicted"])]
    low, high = 10 ** np.floor(np.log10(min(both))), 10 ** np.ceil(np.log10(max(both)))
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    axis = alt.Axis(format=",~r", values=[float(v) for v in low * 10 ** np.arange(0.0, np.log10(high / low) + 0.5)])
    dots = (
        alt.Chart(alt.Data(values=points))
        .mark_circle(size=6, opacity=0.6)
        .encode(
            x=alt.X("measured:Q", scale=scale, axis=axis, title=f"measured {name}, {unit}"),
            y=alt.Y("predicted:Q", scale=scale, axis=axis, title=f"predicted, {unit}"),
            color=alt.Color(f"{colour}:N", title=None, scale=alt.Scale(scheme="category10")),
        )
    )
    ends = [{"a": low, "b": low, "up": 1.25 * low, "down": 0.8 * low},
            {"a": high, "b": high, "up": 1.25 * high, "down": 0.8 * high}]  # fmt: skip
    base = alt.Chart(alt.Data(values=ends)).mark_line(color="black", strokeWidth=0.8, clip=True)
    x = alt.X("a:Q", scale=scale)
    guides = [base.encode(x=x, y=alt.Y("b:Q", scale=scale))]
    guides += [base.mark_line(color="grey", strokeWidth=0.8, strokeDash=[4, 3], clip=True).encode(
        x=x, y=alt.Y(f"{side}:Q", scale=scale)) for side in ("up", "down")]  # fmt: skip
    title = f"{len(points):,} rows; dashed: 25 % off"
    return alt.layer(dots, *guides).properties(width=WIDTH, height=WIDTH, title=title)


def _by_load(study: Study) -> Any:
    import altair as alt

    member = is_from(study, *SERVED) & ~study.doubted
    stages = {"data sheet": study.stages["data sheet"], "unseen pair": study.splits["pair"].logs,
              "seen pair, level": study.splits["rows"].levelled}  # fmt: skip
    bins: dict[tuple[str, str, int], list[float]] = {}
    for i, sample in enumerate(study.samples):
        users = sample.row.concurrency or sample.row.batch_size
        if not member[i] or not users or sample.whole is None:
            continue
        load = next((most for most in LOADS if users <= most), LOADS[-1])
        for stage, logs in stages.items():
            for figure, value in zip(sample.whole.figures, logs[i], strict=True):
                if figure.kind in ("tpot", "ttft"):
                    bins.setdefault((figure.kind.upper(), stage, load), []).append(abs(float(np.expm1(value))))
    values = [
        {"figure": kind, "model": stage, "load": load, "error": 100 * float(np.median(errors))}
        for (kind, stage, load), errors in bins.items()
        if len(errors) >= 10
    ]
    return (
        alt.Chart(alt.Data(values=values))
        .mark_line(point=alt.OverlayMarkDef(size=18), strokeWidth=1.5)
        .encode(
            x=alt.X("load:Q", scale=alt.Scale(type="log", base=2), title="requests in flight, up to",
                    axis=alt.Axis(values=list(LOADS))),
            y=alt.Y("error:Q", title="median error, %"),
            color=alt.Color("model:N", title=None, sort=list(stages)),
            column=alt.Column("figure:N", title=None),
        )
        .properties(width=WIDTH, height=0.7 * WIDTH)
    )  # fmt: skip


def _cumulative(study: Study) -> Any:
    """Share of times between tokens within an error."""
    import altair as alt

    member = is_from(study, *SERVED) & ~study.doubted
    stages = {"data sheet": study.stages["data sheet"], "unseen pair": study.splits["pair"].logs,
              "seen pair, level": study.splits["rows"].levelled}  # fmt: skip
    values = []
    for kind in ("tpot", "ttft"):
        for stage, logs in stages.items():
            errors = np.abs(np.expm1(figures(study, logs, kind).of(member)))
            for share in np.linspace(0.02, 0.98, 49):
                error = 100 * float(np.quantile(errors, share))
                if error <= 100:
                    values.append({"figure": kind.upper(), "model": stage, "share": 100 * share, "error": error})
    return (
        alt.Chart(alt.Data(values=values))
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("error:Q", title="error up to, %", scale=alt.Scale(domain=[0, 100])),
            y=alt.Y("share:Q", title="share of rows, %", scale=alt.Scale(domain=[0, 100])),
            color=alt.Color("model:N", title=None, sort=list(stages)),
            column=alt.Column("figure:N", title=None),
        )
        .properties(width=WIDTH, height=0.7 * WIDTH)
    )


def _saved(chart: Any, path: Path) -> Path:
    chart.configure(font="sans-serif").configure_view(stroke="#ccc").save(str(path), scale_factor=SHARPNESS)
    return path
