"""How far an estimate may be off: intervals from the residuals of its evidence level (`data/uncertainty.yaml`).

The level says what the estimate of a metric rests on, the best first: `calibrated` on the user's own measurements of
it with this model, release, precisions and power limit, in layouts between those measured; `seen pair`: it was
measured of this model on this GPU under this engine release, and the host terms were fitted on that; `seen GPU`: of
other models, so the residuals are those of pairs left out; `family`: of none, the laws are from timings of the GPU, of
its architecture or pooled over its vendor's (residuals of GPUs left out); `data sheet`: no timings of its vendor.
Throughput alone tells little of the time per token: what was measured of a pair is kept by metric. A factor times the
prediction is an end of the interval.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from math import exp, log1p
from typing import Any, Final

import numpy as np

from headway.cost.calibration import Calibration
from headway.cost.datafile import packaged
from headway.cost.efficiency import efficiency
from headway.cost.engines import engine_facts
from headway.cost.power import power_law
from headway.cost.replica import Replica, limits
from headway.errors import BadInput
from headway.hardware import gpu, silicon
from headway.model import model
from headway.specs import Spec

__all__ = ["COVERAGE", "LEVELS", "METRICS", "evidence_level", "factors", "interval", "levels", "ranking_spread",
           "shape", "width"]  # fmt: skip

LEVELS: Final = ("calibrated", "seen pair", "seen GPU", "family", "data sheet")
METRICS: Final = ("ttft", "tpot", "e2e", "output_throughput", "energy_per_token", "power")
COVERAGE: Final = 0.90
_FIGURES_LEAST: Final = 10  # of a calibration that does not say how many
# A median of n held-out figures is unsure, and the fit was chosen by it: intervals 1 + 3.5 / n times as wide hold 90 %
# of the TTFT and TPOT of a group's other points, mean over groups (`benchmarks/calibration.py judge`).
_FEW: Final = 3.5
_PICTURED: Final = "0.11"  # the release of vLLM of all rows with pictures
_WATTS: Final = ("energy_per_token", "power")


class _Cell(Spec):
    """Quantiles of ln(predicted / measured) of one level, metric and engine: "vllm 0.12", "vllm", or "" for all."""

    level: str
    engine: str
    metric: str
    rows: int
    pairs: int
    logs: tuple[float, ...]


_Places = dict[str, dict[str, dict[str, dict[str, list[str]]]]]  # the innermost key: metrics, spaces between them


class _File(Spec):
    source: str
    probabilities: tuple[float, ...]
    cells: list[_Cell]
    tails: dict[str, float]
    ranking: dict[str, dict[str, float]]
    seen: _Places
    seen_split: _Places  # prefill and decode in pools of their own


@functools.cache
def _file() -> _File:
    return packaged(_File, "uncertainty.yaml")


@functools.lru_cache(maxsize=4096)
def evidence_level(replica: Replica, metric: str, split: bool = False) -> str:
    """Return which of `LEVELS` the estimate of one of `METRICS` rests on.

    Where prefill and decode are `split` over pools, a pair is seen that was measured so, and no other. With
    speculation no better than `family`: no measurement it was compared with declares any. The same with a power
    limit or a locked clock that can slow the GPU: one limit of one GPU was ever compared, and no clock; and with
    pictures in prompts under other releases than the one they were measured with. Power, and energy with it, is
    of level `family` at best where the GPU's watts were never measured; where they were, but under other releases,
    it is as sure as throughput, and `seen GPU` at best.

    Raises:
        UnknownName: a model, a GPU or an engine that is not known. BadInput: another metric.
    """
    if metric not in METRICS:
        raise BadInput(f"no interval is known of {metric!r}; of {', '.join(METRICS)} one is")
    calibration = replica.calibration
    if calibration is not None and calibration.changes and not split and _measured(calibration, replica, metric):
        return "calibrated"
    if replica.engine.speculation is not None or any(limits(replica)) or _pictured(replica):
        return _unseen(replica.gpu)
    level = _seen(replica, metric, _file().seen)
    if split and _seen(replica, metric, _file().seen_split) != "seen pair":
        level = max("seen GPU", level, key=LEVELS.index)
    elif split:
        level = "seen pair"
    if metric not in _WATTS:
        return level
    if power_law(replica.gpu).evidence != "own":
        return max(level, "family", key=LEVELS.index)
    if level in ("family", "data sheet"):
        return max("seen GPU", evidence_level(replica, "output_throughput", split), key=LEVELS.index)
    return level


def _measured(calibration: Calibration, replica: Replica, metric: str) -> bool:
    """Whether the points of a calibration were of what the replica is, and held figures of the metric.

    Between the least and the most of each degree measured a layout counts, as terms are of layers, steps and tokens;
    beyond them links and kernels of other shapes decide, which no point has seen.
    """
    if metric not in dict(calibration.held_out) or replica.engine.speculation is not None:
        return False
    engine = replica.engine
    releases = {engine_facts(engine.name, version, replica.gpu).since for version in calibration.versions or ("",)}
    here = (replica.tp, replica.pp, replica.dp, replica.ep)
    return (
        shape(replica.model) in map(shape, calibration.models)
        and engine_facts(engine.name, engine.version, replica.gpu).since in releases
        and (replica.weights, replica.kv) in calibration.precisions
        and limits(replica) in calibration.limits
        and bool(calibration.layouts)
        and all(min(of) <= one <= max(of) for one, of in zip(here, zip(*calibration.layouts, strict=True), strict=True))
    )


def _pictured(replica: Replica) -> bool:
    """Whether prompts hold pictures under a release whose host was never timed with them."""
    engine = replica.engine
    return replica.media != "text" and engine_facts(engine.name, engine.version, replica.gpu).since != _PICTURED


def _seen(replica: Replica, metric: str, places: _Places) -> str:
    """The level by what was measured of a metric under the release, by these records."""
    engine = replica.engine
    since = engine_facts(engine.name, engine.version, replica.gpu).since
    groups = places.get(engine.name, {}).get(since, {}).get(silicon(replica.gpu), {})
    models = [name for metrics, members in groups.items() if metric in metrics.split() for name in members]
    if not models:
        return _unseen(replica.gpu)
    return "seen pair" if shape(replica.model) in map(shape, models) else "seen GPU"


@functools.cache
def shape(key: str) -> tuple[int, ...]:
    """Return what makes models the same to a GPU: fine-tuned ones and those with a longer context are.

    Raises:
        UnknownName: no such model.
    """
    spec = model(key)
    return (spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim, spec.intermediate, spec.experts,
            spec.experts_per_token, spec.expert_intermediate)  # fmt: skip


def _unseen(key: str) -> str:
    """The level of a GPU without serving measurements: who was timed is NVIDIA's."""
    card = gpu(key)
    timed = efficiency(card).gemm["bf16"].evidence in ("own", "engine", "sibling")
    return "family" if timed or card.vendor.lower() == "nvidia" else "data sheet"


def levels(replicas: Iterable[Replica], split: bool = False) -> dict[str, str]:
    """Return the level of every metric for a deployment of these replicas: the poorest of theirs."""
    replicas = list(replicas)
    return {name: max((evidence_level(one, name, split) for one in replicas), key=LEVELS.index) for name in METRICS}


@functools.lru_cache(maxsize=4096)
def interval(
    replica: Replica, metric: str, coverage: float = COVERAGE, split: bool = False
) -> tuple[float, float, str]:
    """Return what a predicted metric is to be multiplied by for the ends of its interval, and its level.

    The interval holds the prediction and `coverage` of the measurements of that level, as far as past ones tell.

    Args:
        replica: what the prediction is of.
        metric: one of `METRICS`; its times are means or medians, not tails.
        coverage: above 0, up to 0.90.
        split: whether prefill and decode are in pools of their own.

    Raises:
        BadInput: another metric or coverage.
    """
    if not 0.0 < coverage <= COVERAGE:
        raise BadInput(f"coverage {coverage:g}: give a share above 0 and up to {COVERAGE:g}")
    level, engine, calibration = evidence_level(replica, metric, split), replica.engine, replica.calibration
    own = None
    if calibration is not None and _measured(calibration, replica, metric):
        held_out, figures = dict(calibration.held_out), dict(calibration.held_out_figures)
        own = width(held_out[metric], figures.get(metric, _FIGURES_LEAST), metric) * _share_of_tail(metric, coverage)
        if level == "calibrated":
            return exp(-own), exp(own), level
    release = f"{engine.name} {engine_facts(engine.name, engine.version, replica.gpu).since}"
    low, high = _factors(level, release, metric, coverage)
    if own is None:
        return low, high, level
    return min(low, exp(-own)), max(high, exp(own)), level  # the shipped law, as the user's own points found it


def width(held_out: float, figures: int, metric: str) -> float:
    """Return half of a calibrated 90 % interval in ln.

    The median error of so many held-out figures, times the reach of the tail, and more where they are few.
    """
    return log1p(held_out) * _file().tails[metric] * (1.0 + _FEW / figures)


def factors(replicas: Iterable[Replica], split: bool = False) -> dict[str, tuple[float, float]]:
    """Return `interval` of every metric for a deployment of these replicas: the widest of theirs."""
    found = {metric: [interval(replica, metric, split=split) for replica in replicas] for metric in METRICS}
    return {name: (min(each[0] for each in ends), max(each[1] for each in ends)) for name, ends in found.items()}


def ranking_spread(level: str, metric: str) -> float:
    """Return ln of how far the error of a ratio of two layouts of one model and GPU reaches, in 90 % of cases.

    `metric` is "output_throughput" (per GPU) or "energy_per_token". Errors that both share cancel out.
    """
    return _file().ranking[metric]["seen pair" if level == "calibrated" else level]


@functools.cache
def _quantiles(level: str, release: str, metric: str) -> Any:
    """Quantiles of a level, no narrower than those of better ones; of the release or engine where it has its own.

    A level without a cell takes those of the levels around it.
    """
    cells = {(cell.level, cell.engine): cell.logs for cell in _file().cells if cell.metric == metric}
    names = (release, release.partition(" ")[0], "")
    found = [next((logs for name in names if (logs := cells.get((rung, name)))), None) for rung in LEVELS[1:]]
    place = LEVELS.index(level)
    known = [logs for logs in found[:place] if logs] or [next(logs for logs in found if logs)]
    table, below = np.array(known), np.array(_file().probabilities) < 0.5
    return np.where(below, table.min(axis=0), table.max(axis=0))


def _factors(level: str, release: str, metric: str, coverage: float) -> tuple[float, float]:
    logs = _quantiles(level, release, metric)
    tail = (1.0 - coverage) / 2.0
    low, high = np.interp((tail, 1.0 - tail), _file().probabilities, logs)
    return exp(-max(0.0, float(high))), exp(-min(0.0, float(low)))  # measured is predicted over the ratio


def _share_of_tail(metric: str, coverage: float) -> float:
    """How much narrower an interval of less coverage is, by the residuals of seen pairs."""
    low, high = _factors("seen pair", "", metric, coverage)
    widest = _factors("seen pair", "", metric, COVERAGE)
    return float(np.log(high / low) / np.log(widest[1] / widest[0]))
