"""The page docs/accuracy-tables.md from a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fit.engines import Point
from fit.folds import FOLDS, MODEL_FOLDS
from fit.study import BIG_THREE, SERVED, Figures, Flags, Floats, Study, engine_is, figures, is_from
from fit.targets import Target, targets
from headway.accuracy import Replay
from headway.accuracy.coverage import Coverage
from headway.accuracy.ranking import Ranking, Regret, rank
from headway.accuracy.score import Errors

METRICS = {
    "ttft": "TTFT", "tpot": "TPOT or ITL", "e2e": "E2E", "output_throughput": "throughput",
    "energy_per_token": "energy per token", "power": "power",
}  # fmt: skip
KINDS = {"tpot": "TPOT or ITL", "ttft": "TTFT", "throughput": "throughput", "e2e": "E2E"}
LEAST = 20  # rows of a group, for a line of its own
GPU_LEAST = 10
HEAD = """# Accuracy: the tables

Written by `make accuracy`; [accuracy.md](accuracy.md) says what they mean. Errors are absolute relative errors of
predicted against measured figures in percent, median / 90th percentile unless said otherwise; bias is the median of
predicted / measured - 1. "Data sheet" is the same simulation with every operator at a usual share of the data sheet
(products and attention 60 % of FLOP/s, 75 % of bandwidth; experts 30 and 90 %; links 50 %; 6 us a launch), no time on
the host, and a GPU that draws its TDP.
"""


def page(study: Study, replay: Replay | None) -> str:
    """Return the page."""
    parts = [HEAD, _targets(targets(study, replay)), _shipped(study), _groups(study), _crossed(study),
             _unseen_parts(study), _new_gpus(study), _ablation(study), _contest(study), _ranks(study),
             _coverage(study.shipped.coverage), _replay(replay)]  # fmt: skip
    return "\n".join(part for part in parts if part)


# --- words --------------------------------------------------------------------------------------------------


def percent(value: float | None, signed: bool = False) -> str:
    """Return a fraction in percent: one decimal below ten."""
    if value is None or not np.isfinite(value):
        return ""
    number = 100.0 * value
    text = f"{number:.1f}" if abs(number) < 9.95 else f"{number:.0f}"
    return f"+{text}" if signed and number > 0 else text


def two(logs: Floats) -> str:
    """Return median / p90 of the relative errors."""
    if not len(logs):
        return ""
    off = np.abs(np.expm1(logs))
    return f"{percent(float(np.median(off)))} / {percent(float(np.quantile(off, 0.9)))}"


def bias(logs: Floats) -> str:
    """Return the median relative error with its sign."""
    return percent(float(np.expm1(np.median(logs))), signed=True) if len(logs) else ""


def lines(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown; columns of numbers to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    right = [all(row[i][:1] in ("", *"+-0123456789") for row in rows) for i in range(len(head))]
    marks = ["---:" if flag else "---" for flag in right]
    text = ["| " + " | ".join(cells) + " |" for cells in (head, marks, *rows)]
    return "\n".join(text) + "\n"


def _errors(errors: Errors | None) -> str:
    return f"{percent(errors.median)} / {percent(errors.p90)}" if errors and errors.n else ""


# --- sections -----------------------------------------------------------------------------------------------


def _targets(found: list[Target]) -> str:
    rows = [(*target[:-1], f"{target.rows:,}") for target in found]
    head = ("figure", "target", "all rows", "without suspects and repeats", "data sheet", "met", "rows")
    return (
        "## Targets\n\nUnseen: whole (model, GPU) pairs left out of the fit of the host terms; no serving row is in\n"
        "the operator laws. Seen: random rows left out, and moved by what the pair's other rows (same engine and\n"
        "precision) tell by kriging of their residuals on load, lengths and layout, its kernel chosen on them too, or\n"
        "by their shrunk median residual alone. The data sheet's column and what is met are without suspects and\n"
        "repeats where there are such.\n\n"
        "An unseen GPU's rows are those for which another GPU's timings have every law: where only a pooled law would\n"
        "stand in, the GPU left out took part in it. Regret is with the margin of 1 % on limits that `plan` keeps,\n"
        "which was chosen on these rows too.\n\n" + lines(head, rows)
    )


def _shipped(study: Study) -> str:
    one, other = study.shipped, study.sheet
    rows = []
    for metric, name in METRICS.items():
        mine, trusted, sheet = one.errors[metric], one.trusted[metric], other.errors[metric]
        rows.append((name, f"{mine.n:,}", percent(mine.mape), _errors(mine), percent(mine.bias, True),
                     _errors(trusted), percent(trusted.bias, True), _errors(sheet),
                     percent(sheet.bias, True)))  # fmt: skip
    head = ("metric", "rows", "mean", "median / p90", "mean bias", "trusted", "mean bias", "data sheet", "mean bias")
    skipped = [(reason, count) for reason, count in one.skipped.items()]
    doubts = [(reason, count) for reason, count in sorted(one.suspects.items(), key=lambda item: -item[1])]
    return (
        f"## The shipped model on every row\n\n{one.used:,} of {one.rows:,} rows are used "
        f"({100 * one.used / one.rows:.0f} %). Host terms were fitted on these rows: see below for rows left out.\n\n"
        + lines(head, rows)
        + "\nNot used, by reason:\n\n"
        + lines(("reason", "rows"), skipped)
        + '\nUsed but doubted; left out of the columns "trusted":\n\n'
        + lines(("reason", "rows"), doubts)
        + (f"\nBreaking physics: {len(one.broken)} rows.\n")
    )


def _groups(study: Study) -> str:
    columns = {"source": "source", "engine": "engine", "model_key": "model", "gpu_key": "GPU", "mode": "mode"}
    metrics = ("ttft", "tpot", "e2e", "output_throughput")
    text = ["### By group\n\nMedian / p90, then the data sheet's median; groups of 20 figures and more.\n"]
    for column, name in columns.items():
        rows = []
        for value, found in study.shipped.by[column].items():
            sheet = study.sheet.by[column].get(value, {})
            cells = [f"{_errors(found[m])} ({percent(sheet[m].median)})"
                     if m in found and m in sheet and found[m].n >= LEAST else "" for m in metrics]  # fmt: skip
            if any(cells):
                most = max(errors.n for errors in found.values())
                rows.append((value or "not stated", *cells, f"{most:,}"))
        text.append(lines((name, *(METRICS[m] for m in metrics), "rows"), rows))
    return "\n".join(text)


def _crossed(study: Study) -> str:
    parts: list[tuple[str, Flags, tuple[str, ...]]] = [
        ("InferenceX and sweeps", is_from(study, SERVED[0]), ("tpot", "ttft", "throughput")),
        ("ML.ENERGY", is_from(study, SERVED[1]), ("tpot", "throughput")),
        ("MLPerf Offline", is_from(study, "mlperf"), ("throughput",)),
        ("TensorRT-LLM docs", is_from(study, "trtllm-docs"), ("throughput",)),
        ("LLM-Inference-Bench", is_from(study, "argonne"), ("e2e",)),
        ("Splitwise", is_from(study, "splitwise"), ("e2e",)),
        ("dstack", is_from(study, "dstack"), ("e2e",)),
        ("llmfit", is_from(study, "llmfit"), ("tpot", "throughput")),
    ]
    splits = {"unseen pair": "pair", "unseen model": "model", "unseen GPU": "gpu"}
    near = study.splits["rows"].kriged
    rows: list[Sequence[object]] = []
    for name, member, kinds in parts:
        for kind in kinds:
            sheet = figures(study, study.stages["data sheet"], kind)
            cells = [two(sheet.of(member))]
            for split in splits.values():
                cells.append(two(figures(study, study.splits[split].logs, kind).of(member)))
            seen = figures(study, study.splits["rows"].levelled, kind)
            unseen = figures(study, study.splits["pair"].logs, kind)
            trusted = member & ~study.doubted
            if len(seen.of(member)):
                rows.append((name, KINDS[kind], *cells, two(seen.of(member)), two(unseen.of(trusted)),
                             two(seen.of(trusted)), two(figures(study, near, kind).of(trusted)),
                             f"{len(seen.of(member)):,}"))  # fmt: skip
    head = ("source", "figure", "data sheet", *splits, "seen pair", "trusted: unseen pair", "seen, level",
            "seen, kriging", "rows")  # fmt: skip
    return (
        f"## Left out of the fit\n\nPairs in {FOLDS} folds, models in {MODEL_FOLDS}, GPUs one chip at a time, "
        f"the seen pair "
        f"by random rows in\n{FOLDS} folds (repeats stay together). An unseen GPU keeps its own operator laws "
        f"here; they "
        "come from timings of\nkernels. Throughput of a closed loop without one measured is by Little's law.\n\n"
        + lines(head, rows)
    )


def _unseen_parts(study: Study) -> str:
    """TPOT, TTFT and throughput of served rows by what they have in common."""
    trusted = ~study.doubted & is_from(study, *SERVED)
    cuts: list[tuple[str, Callable[[int], str]]] = [
        ("engine", lambda i: _point(study, i).engine),
        ("GPU", lambda i: study.samples[i].row.gpu_key),
        ("model", lambda i: study.samples[i].row.model_key),
        ("mode", lambda i: study.samples[i].row.mode),
        ("precision", lambda i: _point(study, i).precision),
        ("in flight", lambda i: _load(study.samples[i].row.concurrency or study.samples[i].row.batch_size)),
    ]
    kinds = ("tpot", "ttft", "throughput")
    unseen = {kind: figures(study, study.splits["pair"].logs, kind) for kind in kinds}
    seen = {kind: figures(study, study.splits["rows"].levelled, kind) for kind in kinds}
    rows: list[Sequence[object]] = []
    for title, value_of in cuts:
        values = np.array([value_of(i) if trusted[i] else "" for i in range(len(trusted))])
        groups = sorted(set(values[trusted]), key=lambda v: -int((values == v).sum()))
        for value in groups if title != "in flight" else [name for _, name in LOADS]:
            member = values == value
            if member.sum() >= LEAST:
                cells = [text for k in kinds for text in _pair_of(unseen[k], seen[k], member)]
                rows.append((title, value, *cells, int(member.sum())))
    head = ("by", "", "TPOT unseen", "bias", "seen", "TTFT unseen", "bias", "seen", "throughput unseen", "bias", "seen",
            "rows")  # fmt: skip
    return (
        "### Served under a stated load, by what rows have in common\n\n"
        "InferenceX, sweeps and ML.ENERGY without suspects and repeats.\n\n" + lines(head, rows)
    )


def _pair_of(unseen: Figures, seen: Figures, member: Flags) -> tuple[str, str, str]:
    return two(unseen.of(member)), bias(unseen.of(member)), two(seen.of(member))


LOADS = ((8, "1-8"), (32, "9-32"), (128, "33-128"), (512, "129-512"), (1e9, "over 512"))


def _load(users: float | None) -> str:
    return next(name for most, name in LOADS if (users or 1) <= most)


def _point(study: Study, i: int) -> Point:
    point = study.samples[i].whole
    assert point is not None
    return point


def _new_gpus(study: Study) -> str:
    chips = np.array([_point(study, i).gpu for i in range(len(study.samples))])
    trusted, out = ~study.doubted, study.splits["gpu"].logs
    rows = []
    for chip in sorted(set(chips), key=lambda name: -int((chips == name).sum())):
        member = trusted & (chips == chip)
        count = {kind: len(figures(study, out, kind).of(member)) for kind in ("tpot", "e2e", "throughput")}
        kind = next((name for name, rows_ in count.items() if rows_ >= GPU_LEAST), "")
        if not kind:
            continue
        cells = []
        for name in ("gpu", "sibling", "stranger"):
            law = {"gpu": ""}.get(name, name)
            had = member & np.array([not law or bool(s.kernels.get(law)) for s in study.samples])
            cells.append(two(figures(study, study.splits[name].logs, kind).of(had)))
        sheet = two(figures(study, study.stages["data sheet"], kind).of(member))
        rows.append((chip, KINDS[kind], sheet, cells[2], cells[1], cells[0], int(member.sum())))
    head = ("GPU left out", "figure", "data sheet", "laws of another architecture", "laws of its architecture",
            "own laws, or none timed", "rows")  # fmt: skip
    return (
        "## A GPU never seen\n\nIts host terms are those of the other GPUs, its operator laws those of "
        "another GPU at the\n"
        "same shares of the data sheet, on the rows where these exist for every operator. Last: its own operator\n"
        "laws, or for GPUs that were never timed the pooled law or the data sheet.\n\n" + lines(head, rows)
    )


def _ablation(study: Study) -> str:
    served = ~study.doubted & is_from(study, *SERVED)
    return (
        "## What each part earns\n\nInferenceX, sweeps and ML.ENERGY without suspects and repeats: median / "
        "p90 of all,\n"
        "medians by engine. Terms are fitted without the pair they are judged on. Batching discipline: prompts alone\n"
        "in a step and looking for requests only every few steps (SGLang); data-parallel ranks are in lock-step in\n"
        "every stage.\n\n"
        + _by_engine(study, served, "stage", study.stages)
        + "\nThe same rows by the file's settings, where one part is missing and the other terms are fitted again:\n\n"
        + _by_engine(study, served, "lacking", study.lacking)
    )


def _by_engine(study: Study, served: Flags, what: str, variants: Mapping[str, Any]) -> str:
    """A line a variant: median and p90 of all rows, medians by engine."""
    rows = []
    for name, logs in variants.items():
        cells: list[str] = []
        for kind in ("tpot", "ttft", "throughput"):
            found = figures(study, logs, kind)
            cells.append(two(found.of(served)))
            cells += [two(found.of(served & engine_is(study, engine))).split(" /")[0] for engine in BIG_THREE]
        rows.append((name, *cells))
    return lines((what, "TPOT", *BIG_THREE, "TTFT", *BIG_THREE, "throughput", *BIG_THREE), rows)


def _contest(study: Study) -> str:
    rows = [
        (e.name, e.of_pair, e.stored, two(e.logs), percent(float(np.abs(np.expm1(e.logs)).mean())), bias(e.logs))
        for e in study.entrants
    ]
    head = ("predictor", "points of the pair", "bytes", "median / p90", "mean", "bias")
    count = len(study.entrants[0].logs)
    return (
        f"## Predictors compared\n\nTime between output tokens of InferenceX, sweeps and ML.ENERGY without "
        f"suspects and\n"
        f"repeats; learned without the pair (the same {FOLDS} folds), or with ten random points of it. "
        f"{count:,} points of\n"
        "pairs with 25 and more; the ten are not among them. Lookup, regression and trees learn from the other pairs'\n"
        "points of the same sources.\n\n" + lines(head, rows)
    )


def _ranks(study: Study) -> str:
    rows = []
    named = (("shipped, all rows", study.shipped.regret), ("shipped, trusted", study.shipped.trusted_regret),
             ("shipped, InferenceX and sweeps, trusted", _rank_served(study)),
             ("data sheet, all rows", study.sheet.regret), ("data sheet, trusted", study.sheet.trusted_regret),
             ("pairs left out, all rows", study.rank_unseen),
             ("pairs left out, trusted", study.rank_unseen_trusted))  # fmt: skip
    for name, ranking in named:
        for what, regret in (("deployment, tokens/s per GPU", ranking.deployments),
                             ("with its load, tokens/s per GPU", ranking.throughput_per_gpu),
                             ("with its load, J/token", ranking.energy_per_token)):  # fmt: skip
            if regret.n:
                rows.append((name, what, *_regret(regret)))
    head = ("model", "objective", "mean", "median", "limit kept", "mean where kept",
            "mean with 1, 2, 5, 10, 20 % of margin", "choices")  # fmt: skip
    taus = [(name, *_taus(ranking)) for name, ranking in named]
    return (
        "## Order and regret\n\nRegret in percent of choosing by prediction among the measured "
        "configurations of a model,\n"
        "GPU and workload under 15, 25, 50 and 100 ms a token; where nothing is predicted to keep the limit, what is\n"
        "predicted nearest to it is chosen. A deployment chosen runs at its best measured load that keeps the\n"
        "limit and counts as 100 where none does; where the load is chosen with it, a choice that measured above\n"
        "its limit counts as 100.\n\n"
        + lines(head, rows)
        + "\nKendall's tau-b within sweeps, mean / median (sweeps):\n\n"
        + lines(("model", "tokens/s per GPU", "TPOT", "TTFT"), taus)
    )


def _rank_served(study: Study) -> Ranking:
    doubted = {sample.row.row_id for sample, doubt in zip(study.samples, study.doubted, strict=True) if doubt}
    return rank(one for one in study.shipped.judged if one[0].source == SERVED[0] and one[0].row_id not in doubted)


def _regret(regret: Regret) -> tuple[str, ...]:
    margins = ", ".join(percent(value) for margin, value in regret.by_margin.items() if margin != "0")
    return (percent(regret.mean), percent(regret.median), percent(regret.kept), percent(regret.mean_kept), margins,
            f"{regret.n:,}")  # fmt: skip


def _taus(ranking: Ranking) -> tuple[str, ...]:
    found = (ranking.kendall[name] for name in ("throughput_per_gpu", "tpot", "ttft"))
    return tuple(f"{a.mean:.2f} / {a.median:.2f} ({a.n})" if a.mean is not None and a.median is not None else ""
                 for a in found)  # fmt: skip


def _coverage(coverage: Coverage) -> str:
    found = {"every figure": coverage.overall, **{METRICS[name]: held for name, held in coverage.metrics.items()}}
    found |= {f"evidence: {level}": held["all"] for level, held in coverage.levels.items()}
    rows = [(name, percent(held.share), f"{held.width:.2f}" if held.width else "", f"{held.n:,}")
            for name, held in found.items() if held.n]  # fmt: skip
    return (
        f"## Intervals\n\nShare of measured figures inside the interval of the shipped prediction, which claims to "
        f"hold {percent(coverage.claimed)} %,\nand its median width, high / low.\n\n"
        + lines(("of", "held, %", "high / low", "figures"), rows)
    )


def _replay(replay: Replay | None) -> str:
    if replay is None:
        return ""
    text = ["## Request by request\n"]
    for name, run in replay.runs.items():
        rows = [(metric.upper(), *(percent(points[stat].error, True) for stat in ("mean", "p50", "p90", "p99")),
                 f"{points['mean'].measured:.4g}") for metric, points in run.latencies.items()]  # fmt: skip
        text.append(f"{name}, {run.requests} requests; end after {percent(run.makespan_s.error, True)} %:\n")
        text.append(lines(("error, %", "mean", "p50", "p90", "p99", "measured mean, s"), rows))
        curves = [(what, f"{c.mean_distance:.1f}", f"{c.max_distance:.0f}", f"{c.measured_mean:.1f}") for what, c in
                  run.curves.items()]  # fmt: skip
        text.append(lines(("sequences", "mean distance", "largest", "measured mean"), curves))
    text += [f"Skipped: {name}: {reason}.\n" for name, reason in replay.reasons.items()]
    return "\n".join(text)
