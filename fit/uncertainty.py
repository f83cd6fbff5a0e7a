"""Measures how far predictions are off at every level of evidence, and writes `cost/data/uncertainty.yaml`.

    python -m fit.uncertainty TABLE.csv.gz [--cores 2] [--write] [--keep FILE.pickle]

Every row is judged as `headway validate` does, which gives the residuals of pairs the host terms were fitted on. What
they would be for a pair or a GPU left out comes from `fit.engines`: host terms fitted without them shift the row's
figures, for a GPU left out with the operator laws of its nearest relative. Suspect rows take no part. Quantiles are
stretched until they hold 90 % of rows whose own pair, or GPU, took no part in the quantiles either. Printed beside
them: the regret of choices by safety margin.
"""

from __future__ import annotations

import argparse
import functools
import pickle
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import yaml

from fit import engines
from headway.accuracy.express import express
from headway.accuracy.judge import Outcome, judge
from headway.accuracy.ranking import LIMITS_S
from headway.accuracy.reading import Inexpressible, suspicion
from headway.accuracy.rows import Row, read_rows
from headway.accuracy.schedule import Steps
from headway.accuracy.score import headline
from headway.cost import compile_replica
from headway.cost.efficiency import efficiency
from headway.cost.engines import engine_facts
from headway.cost.power import power_law
from headway.cost.uncertainty import LEVELS, METRICS
from headway.errors import HeadwayError
from headway.hardware import gpu

DATA = Path(__file__).resolve().parents[1] / "src" / "headway" / "cost" / "data" / "uncertainty.yaml"
PROBABILITIES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
RELATIVES = {"h100": "h200", "h200": "h100", "gh200": "h100", "b200": "b300", "b300": "b200", "gb200": "gb300",
             "gb300": "gb200"}  # fmt: skip
ROWS, LEFT_OUT = 40, 8  # a cell has at least so many rows, that of an engine at least so many pairs (or GPUs) left out
MARGINS = (0.0, 0.01, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2)
ALIKE = 1.25  # measured times per token of two layouts that are compared
DRAWS = 1000
TIMES = ("ttft", "tpot")
CLAIMED = 0.90
UNUSED = np.log(5.0)  # kernels so much slower than any law's: software that did not use the GPU, no evidence of GPUs
STRETCHES = tuple(np.arange(1.0, 1.51, 0.02))


Place = tuple[str, str, str, str]  # engine, release, GPU, model


class Seen(NamedTuple):
    """One row: what it is of, what was predicted, and its seconds under the laws of the GPU's relative."""

    row: Row
    outcome: Outcome
    place: Place
    point: engines.Point | None
    elsewhere: dict[str, float]  # kernel seconds by kind of figure


class _Elsewhere(Steps):
    """Steps priced by a relative's laws, whatever table is asked for."""

    def seconds(self, table: Any) -> Any:
        """Seconds of each step by the relative's laws."""
        return super().seconds(_strange(self.replica))


@functools.lru_cache(maxsize=4096)
def _strange(replica: Any) -> Any:
    card = gpu(replica.gpu)
    near = next((like for own, like in RELATIVES.items() if card.key.startswith(own)), "unknown")
    laws = efficiency(msgspec.structs.replace(card, key=f"{near}-sibling"), replica.engine.name)
    return compile_replica(replica, laws=laws, host=engines.BARE)


def seen(row: Row) -> Seen | None:
    """Judge a row and take its steps apart; None where it cannot be expressed."""
    outcome = judge(row)
    if outcome.reason:
        return None
    case = express(row)
    replica = case.deployment.pools[-1].replica
    since = engine_facts(replica.engine.name, replica.engine.version, replica.gpu).since
    name = replica.model.rpartition(":")[0] if replica.model.rpartition(":")[2].isdigit() else replica.model
    place = replica.engine.name, since, replica.gpu, name
    none = Seen(row, outcome, place, None, {})
    if not engines.usable(case):
        return none
    try:
        made = engines.scheduled(case)
        point = engines.point_of(row, case, made)
        strange = made._replace(pools=tuple(map(_elsewhere, made.pools, case.deployment.pools)))
        elsewhere = {figure.kind: figure.kernels_s for figure in engines.figures_of(row, case, strange)}
    except (Inexpressible, HeadwayError):
        return none
    if point is None:
        return none
    return none._replace(point=point._replace(version=since), elsewhere=elsewhere)


def _elsewhere(steps: Steps, pool: Any) -> _Elsewhere:
    strange = _Elsewhere(*steps)
    strange.replica = pool.replica
    return strange


# --- residuals ----------------------------------------------------------------------------------------------


class Residual(NamedTuple):
    """ln(predicted / measured) of one metric of one row, at one level of evidence."""

    level: str
    metric: str
    engine: str
    release: str  # "vllm 0.12"
    pair: tuple[str, str]
    log: float
    row_id: str


Shifts = dict[str, dict[str, float]]  # row -> kind of figure -> how much longer it is predicted


def shifts(rows: list[Seen]) -> tuple[Shifts, Shifts]:
    """How much each figure's logarithm moves when its pair, and when its GPU, is left out of the fit."""
    groups: dict[tuple[str, str], list[Seen]] = defaultdict(list)
    for one in rows:
        if one.point is not None:
            groups[one.place[:2]].append(one)
    by_pair: Shifts = defaultdict(dict)
    by_gpu: Shifts = defaultdict(dict)
    for key in sorted(groups):
        _shift_release(groups[key], by_pair, by_gpu)
    return by_pair, by_gpu


def _shift_release(members: list[Seen], by_pair: Shifts, by_gpu: Shifts) -> None:
    points = [one.point for one in members]
    slow = engines.gpus_of(points)
    group = engines.grouped(points, slow)
    figures = [(one, f) for one in members for f in one.point.figures]
    gpus = np.array([one.point.gpu for one, _ in figures])
    whole = engines.fitted(group)
    own = np.log(engines.predicted_s(whole, group) / group.measured_s)
    moved = engines.left_out(group) - own
    fold = {pair: i % engines.FOLDS for i, pair in enumerate(sorted(set(group.pairs)))}
    folds: dict[str, set[int]] = defaultdict(set)
    for pair, name in zip(group.pairs, gpus, strict=True):
        folds[name].add(fold[pair])
    for (one, figure), name, shift in zip(figures, gpus, moved, strict=True):
        if len(folds[name]) > 1:  # other models on the GPU stayed in the fit
            by_pair[one.row.row_id][figure.kind] = float(shift)
    strange = group._replace(kernels_s=np.array([one.elsewhere.get(f.kind, np.nan) for one, f in figures]))
    for name in sorted(folds):
        if len(folds) == 1:
            return  # nothing is left to predict it from
        if name in slow and whole[len(engines.SIZES) + slow[name]] > UNUSED:
            continue
        values = engines.fitted(group, only=gpus != name)
        logs = np.log(engines.predicted_s(values, strange) / group.measured_s) - own
        for (one, figure), other, shift in zip(figures, gpus, logs, strict=True):
            if other == name and np.isfinite(shift):
                by_gpu[one.row.row_id][figure.kind] = float(shift)


def logs_of(one: Seen, shift: dict[str, float]) -> dict[str, float]:
    """ln(predicted / measured) of every metric of a row, its figures being predicted so much longer."""
    row, predicted = one.row, one.outcome.predicted
    found = {}
    for metric in METRICS:
        pair = headline((row, one.outcome), metric)
        if pair is not None and pair[0] > 0.0 and pair[1] > 0.0:
            found[metric] = float(np.log(pair[1] / pair[0]))
    stay, longer = _stay(row, row.measured), _stay(row, predicted)
    times = {f"{kind}_mean": predicted.get(f"{kind}_mean", 0.0) * np.exp(shift.get(kind, 0.0)) for kind in TIMES}
    moved = _stay(row, times)
    whole = next((shift[kind] for kind in ("e2e", "rate") if kind in shift), None)
    if whole is None and longer and moved and "tpot" in shift:
        whole = float(np.log(moved / longer))
    whole = shift.get("tpot", shift.get("ttft", 0.0)) if whole is None else whole
    if stay and longer and row.concurrency:  # end to end and throughput of a closed loop follow from the other two
        found.setdefault("e2e", float(np.log(longer / stay)))
        found.setdefault("output_throughput", float(np.log(stay / longer)))
    by = {"ttft": shift.get("ttft"), "tpot": shift.get("tpot", whole), "e2e": whole, "output_throughput": -whole,
          "energy_per_token": whole, "power": 0.0}  # fmt: skip
    return {metric: log + (by[metric] if by[metric] is not None else whole) for metric, log in found.items()}


def _stay(row: Row, figures: dict[str, float]) -> float | None:
    if not row.osl_mean or not {"ttft_mean", "tpot_mean"} <= figures.keys():
        return None
    return figures["ttft_mean"] + (row.osl_mean - 1) * figures["tpot_mean"]


def record(rows: list[Seen]) -> dict[Place, set[str]]:
    """What the rows fitted on tell of each place, by metric."""
    found: dict[Place, set[str]] = defaultdict(set)
    for one in rows:
        if one.point is not None:
            found[one.place].update(logs_of(one, {}))
    return dict(found)


def residuals(rows: list[Seen], by_pair: Shifts, by_gpu: Shifts) -> list[Residual]:
    """Every figure at every level it can be predicted at."""
    told = record(rows)
    models: dict[tuple[tuple[str, str, str], str], set[str]] = defaultdict(set)  # by GPU under a release, and metric
    for place, metrics in told.items():
        for metric in metrics:
            models[place[:3], metric].add(place[3])
    found = []
    for one in rows:
        key, engine = one.row.row_id, one.place[0]
        unseen = "family" if gpu(one.place[2]).vendor == "NVIDIA" else "data sheet"
        pair, names = (one.row.model_key, one.row.gpu_key), (engine, " ".join(one.place[:2]))
        watts = power_law(one.place[2]).evidence == "own"
        for metric in logs_of(one, {}):
            there = models[one.place[:3], metric]
            now = "seen pair" if one.place[3] in there else "seen GPU" if there else unseen
            levels: dict[str, dict[str, float]] = {now: {}}
            if key in by_pair:
                levels.setdefault("seen GPU" if there - {one.place[3]} else unseen, by_pair[key])
            if key in by_gpu:
                levels[unseen] = by_gpu[key]
            if metric in ("energy_per_token", "power") and not watts:
                levels = {"family": levels[min(levels, key=LEVELS.index)]}
            found += [
                Residual(level, metric, *names, pair, logs_of(one, shift)[metric], key)
                for level, shift in levels.items()
            ]
    return found


# --- quantiles ----------------------------------------------------------------------------------------------


def left_out(one: Residual) -> Any:
    """What was left out at once: a GPU, or a pair."""
    return one.pair[1] if one.level in ("family", "data sheet") else one.pair


def quantiles(found: list[Residual], at: tuple[float, ...] = PROBABILITIES) -> Any:
    """Weighted quantiles; what is left out at once weighs as the root of its rows, a seen pair as its rows."""
    size = Counter(left_out(one) for one in found)
    weights = np.array([1.0 if one.level == "seen pair" else size[left_out(one)] ** -0.5 for one in found])
    logs = np.array([one.log for one in found])
    order = np.argsort(logs, kind="stable")
    share = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    return np.interp(at, share, logs[order])


def cells(found: list[Residual]) -> dict[tuple[str, str, str], list[Residual]]:
    """Residuals by level and metric, and where there are enough also by engine, and by its release."""
    members: dict[tuple[str, str, str], list[Residual]] = defaultdict(list)
    for one in found:
        for name in ("", one.engine, one.release):
            members[one.level, name, one.metric].append(one)
    whole = {key: len(members[key[0], key[1].partition(" ")[0], key[2]]) for key in members}
    return {
        key: rows for key, rows in members.items()
        if (" " not in key[1] or len(rows) < whole[key]) and len(rows) >= ROWS
        and (not key[1] or key[0] == "seen pair" or len(set(map(left_out, rows))) >= LEFT_OUT)
    }  # fmt: skip


class Held(NamedTuple):
    """A cell's residuals, each with the ends of the quantiles that its own pair, or GPU, took no part in."""

    logs: Any
    lows: Any
    highs: Any

    def share(self, stretch: float = 1.0) -> float:
        """Share of residuals inside, the ends being moved away from 0 by a factor."""
        above = stretch * np.minimum(self.lows, 0.0) <= self.logs
        return float((above & (self.logs <= stretch * np.maximum(self.highs, 0.0))).mean())

    def stretch(self) -> float:
        """The least factor at which as many are inside as the interval claims."""
        return next((factor for factor in STRETCHES if self.share(factor) >= CLAIMED), STRETCHES[-1])


def held(found: list[Residual]) -> dict[tuple[str, str, str], Held]:
    """Every cell by quantiles of other pairs, of other GPUs where GPUs were left out; a seen pair's by its own."""
    return {key: _held(members) for key, members in cells(found).items()}


def _held(members: list[Residual]) -> Held:
    ends = (PROBABILITIES[0], PROBABILITIES[-1])
    names = [left_out(one) for one in members]
    if members[0].level == "seen pair":
        low, high = quantiles(members, ends)
        bounds = {name: (low, high) for name in names}
    else:
        bounds = {}
        for name in set(names):
            others = [one for one, of in zip(members, names, strict=True) if of != name]
            bounds[name] = tuple(quantiles(others or members, ends))
    lows, highs = np.array([bounds[name] for name in names]).T
    return Held(np.array([one.log for one in members]), lows, highs)


def ranking(rows: list[Seen], by_pair: Shifts, by_gpu: Shifts) -> dict[str, dict[str, float]]:
    """90th percentile of |ln| of the error of ratios of two layouts in a sweep, at like times per token."""
    spread: dict[str, dict[str, float]] = {}
    for metric in ("output_throughput", "energy_per_token"):
        spread[metric] = {}
        for level, shift in (("seen pair", {}), ("seen GPU", by_pair), ("family", by_gpu)):
            gaps, weights = _gaps(rows, metric, None if level == "seen pair" else shift)
            order = np.argsort(gaps)
            share = np.cumsum(weights[order]) / weights.sum() if len(gaps) else np.zeros(0)
            found = float(np.interp(0.9, share, gaps[order])) if len(gaps) >= ROWS else 0.0
            spread[metric][level] = max(found, *spread[metric].values(), 0.0)
            print(f"ratio of two layouts, {metric}, {level}: {np.expm1(found):.1%} in 90 % of {len(gaps)} pairs")
        spread[metric]["data sheet"] = spread[metric]["family"]
        if not any(spread[metric].values()):  # no layouts compared: watts differ less between them than times do
            spread[metric] = spread["output_throughput"]
    return spread


def _gaps(rows: list[Seen], metric: str, shift: Shifts | None) -> tuple[Any, Any]:
    sweeps: dict[Any, list[tuple[Any, float, float]]] = defaultdict(list)
    for one in rows:
        row = one.row
        logs = logs_of(one, shift.get(row.row_id, {}) if shift is not None else {})
        pace = headline((row, one.outcome), "tpot")
        if metric in logs and (shift is None or row.row_id in shift):
            sweep = (row.source, one.place, row.workload, row.isl_mean, row.osl_mean)
            layout = (row.tp, row.pp, row.ep, row.dp, row.mode, row.gpu_count, row.precision_weights)
            sweeps[sweep].append((layout, pace[0] if pace else 0.0, logs[metric]))
    gaps, weights = [], []
    for members in sweeps.values():
        apart = [
            abs(a[2] - b[2]) for a, b in combinations(members, 2)
            if a[0] != b[0] and 0.0 < max(a[1], b[1]) <= ALIKE * min(a[1], b[1])
        ]  # fmt: skip
        gaps += apart
        weights += [max(len(apart), 1) ** -0.5] * len(apart)
    return np.array(gaps), np.array(weights)


def margins(rows: list[Seen]) -> None:
    """Print the mean regret of choices by throughput per GPU under a limit, by safety margin; bootstrap over groups."""
    groups: dict[Any, list[tuple[float, float, float, float]]] = defaultdict(list)
    for one in rows:
        row, pace = one.row, headline((one.row, one.outcome), "tpot")
        pair = headline((row, one.outcome), "output_throughput")
        stays = _stay(row, row.measured), _stay(row, one.outcome.predicted)
        if pair is None and row.concurrency and row.osl_mean and all(stays):
            pair = tuple(row.concurrency * row.osl_mean / stay for stay in stays)
        if pair and pace and one.outcome.gpus:
            key = row.model_key, row.gpu_key, row.workload, row.isl_mean, row.osl_mean if row.isl_mean else None
            groups[key].append((pair[0] / one.outcome.gpus, pair[1] / one.outcome.gpus, *pace))
    tables = [np.array(g) for g in groups.values() if len(g) > 1]
    by_group = np.array([[_regrets(table, margin) for margin in MARGINS] for table in tables])  # sum and number
    sums, counts = by_group[..., 0], by_group[..., 1]
    mean = sums.sum(axis=0) / counts.sum(axis=0)
    rng = np.random.default_rng(1)
    draws = [rng.integers(len(tables), size=len(tables)) for _ in range(DRAWS)]
    means = np.array([sums[draw].sum(axis=0) / counts[draw].sum(axis=0) for draw in draws])
    low, high = np.quantile(means - means[:, :1], (0.05, 0.95), axis=0)
    for place, margin in enumerate(MARGINS):
        print(f"margin {margin:.0%}: mean regret {mean[place]:.1%}, against none {mean[place] - mean[0]:+.1%} "
              f"({low[place]:+.1%} to {high[place]:+.1%}), {counts[:, place].sum():.0f} choices")  # fmt: skip


def _regrets(table: Any, margin: float) -> tuple[float, float]:
    value, predicted, pace, predicted_pace = table.T
    total, count = 0.0, 0.0
    for limit_s in LIMITS_S:
        allowed = pace <= limit_s
        if not allowed.any():
            continue
        offered = np.where(predicted_pace <= limit_s * (1 - margin), predicted, -np.inf)
        chosen = int(offered.argmax() if offered.max() > -np.inf else predicted_pace.argmin())  # else the nearest
        total += 1.0 - value[chosen] / value[allowed].max() if allowed[chosen] else 1.0
        count += 1.0
    return total, count


# --- the program --------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--keep", type=Path, help="judged rows: read where it is, else written")
    asked = parser.parse_args()
    if asked.keep and asked.keep.exists():
        rows = pickle.loads(asked.keep.read_bytes())
    else:
        with ProcessPoolExecutor(asked.cores) as pool:
            rows = [one for one in pool.map(seen, read_rows(asked.table), chunksize=20) if one is not None]
        if asked.keep:
            asked.keep.write_bytes(pickle.dumps(rows))
    trusted = [one for one in rows if not suspicion(one.row)]
    print(f"{len(rows)} rows, {len(trusted)} of them not suspect")
    by_pair, by_gpu = shifts(trusted)
    found = residuals(trusted, by_pair, by_gpu)
    for name, members in (("all rows", rows), ("without suspects", trusted)):
        print(name)
        margins(members)
    text = document(trusted, found, ranking(trusted, by_pair, by_gpu))
    if asked.write:
        DATA.write_text(text, encoding="utf-8")


def document(rows: list[Seen], found: list[Residual], spread: dict[str, dict[str, float]]) -> str:
    """The data file."""
    kept, tried = cells(found), held(found)
    listed: list[dict[str, Any]] = []
    for level, engine, metric in sorted(kept, key=lambda key: (METRICS.index(key[2]), LEVELS.index(key[0]), key[1])):
        members = kept[level, engine, metric]
        out = tried[level, engine, metric]
        stretch = out.stretch() if level != "seen pair" else 1.0
        logs = [round(float(log * stretch), 3) for log in quantiles(members)]
        pairs = len({one.pair for one in members})
        cell = {"level": level, "engine": engine, "metric": metric, "rows": len(members), "pairs": pairs, "logs": logs}
        listed.append(cell)
        print(f"{metric:18} {level:10} {engine:14} {len(members):5} rows {pairs:3} pairs "
              f"x{np.exp(-logs[-1]):.2f} to x{np.exp(-logs[0]):.2f}, median x{np.exp(-logs[3]):.2f}; "
              f"left out {out.share():.1%} inside, {out.share(stretch):.1%} stretched {stretch:.2f} times")  # fmt: skip
    tails = {}
    for metric in METRICS:
        logs = np.array([abs(one.log) for one in kept["seen pair", "", metric]])
        tails[metric] = round(float(np.quantile(logs, 0.9) / np.median(logs)), 2)
    together = [one for one in rows if one.row.mode != "disagg"]
    seen_split = [one for one in rows if one.row.mode == "disagg"]
    head = (
        "# How far predictions are off: quantiles of ln(predicted / measured) by evidence, engine and metric.\n"
        "# `tails`: 90th percentile of the absolute error over its median. `ranking`: 90th percentile of |ln| of the\n"
        "# error of ratios of two layouts. `seen`: engine, release, GPU, what was measured, models fitted on;\n"
        "# `seen_split`: with prefill and decode in pools of their own.\n"
        "# By fit/uncertainty.py.\n"
    )
    source = (
        f"{len(rows)} operating points of aiconfigurator and ML.ENERGY (Apache-2.0), TensorRT-LLM's documentation "
        "(Apache-2.0), MLPerf Inference, LLM-Inference-Bench (BSD-3-Clause), splitwise-sim (MIT), dstack (Apache-2.0), "
        "llmfit (MIT); suspect rows left out"
    )
    rounded = {m: {level: round(value, 3) for level, value in of.items()} for m, of in spread.items()}
    body = {"source": source, "probabilities": list(PROBABILITIES), "tails": tails, "ranking": rounded,
            "cells": listed, "seen": _places(together), "seen_split": _places(seen_split)}  # fmt: skip
    return head + yaml.safe_dump(body, sort_keys=False, width=118, default_flow_style=None)


def _places(rows: list[Seen]) -> dict[str, Any]:
    """Engine, release, GPU, metrics between spaces: models."""
    found: dict[str, Any] = {}
    for (engine, since, card, name), metrics in sorted(record(rows).items()):
        key = " ".join(metric for metric in METRICS if metric in metrics)
        found.setdefault(engine, {}).setdefault(since, {}).setdefault(card, {}).setdefault(key, []).append(name)
    return found


if __name__ == "__main__":
    main()
