"""The fit behind `calibrate`: maximum a posteriori around the shipped law, judged on points left out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from headway.accuracy.calibration_points import TERMS, Figure, Point, seconds, term_values
from headway.cost.calibration import FACTORS
from headway.specs import Spec, from_mapping, read_yaml

__all__ = ["STRENGTHS", "UNSEEN_STRENGTHS", "Fit", "Judgement", "Prior", "errors_by_metric", "fit", "judge_fit",
           "predictions", "shipped_prior"]  # fmt: skip

Floats = npt.NDArray[np.float64]

_DATA: Final = Path(__file__).parent / "data" / "calibration.yaml"
STRENGTHS: Final = (0.125, 0.25, 0.5, 1.0)  # of the prior's widths, tried against each other on points left out
UNSEEN_STRENGTHS: Final = (*STRENGTHS, 4.0, 16.0, 64.0)  # of hardware whose law rests on a data sheet alone
FOLDS: Final = 5
SPARED: Final = 0.15  # of a metric's noise: 3 % of TTFT, 1 % of TPOT
FAR: Final = 3.0  # median error in noise: 17 % of TPOT
FALLEN: Final = 0.65  # of the shipped law's error, where it is that far
INTERVAL_SDS: Final = 1.645  # 90 % of a normal distribution
TAIL: Final = 4.0  # degrees of freedom of Student's t: one point far out moves the fit little
_ROUNDS: Final = 60


class Prior(Spec):
    """How far groups deviate from the shipped law (`widths`, by term) and figures from a group's own (`noise`)."""

    groups: int
    widths: dict[str, float]
    noise: dict[str, float]


@cache
def shipped_prior() -> Prior:
    """Return the widths and noise learned from public measurements."""
    return from_mapping(Prior, read_yaml(_DATA), str(_DATA))


class Fit(NamedTuple):
    """Terms in the order of `TERMS`: `z` in widths of the prior, their covariance, and `values` as a file has them."""

    z: Floats
    covariance: Floats
    values: Floats


class Judgement(NamedTuple):
    """What points left out say: widths to use (0: keep the shipped law), and log errors of the figures, unseen.

    Figures of the metric `without` ("": none) are not fitted. `tried` are the log errors, unseen, of the fit that came
    nearest to counting where none did.
    """

    strength: float
    without: str
    held_out: Floats
    spread: Floats
    tried: Floats


class _Table(NamedTuple):
    """Figures as arrays over figures."""

    parts: Floats
    floors: Floats
    at_s: Floats
    gap: Floats  # ln measured - ln predicted, in the direction of seconds
    noise: Floats


def _table(figures: Sequence[Figure], prior: Prior) -> _Table:
    parts, floors = np.array([f.parts for f in figures]), np.array([f.floors for f in figures])
    at_s = seconds(parts, floors, np.array([f.at for f in figures]))
    gap = np.array([f.sign * np.log(f.measured / f.predicted) for f in figures])
    return _Table(parts, floors, at_s, gap, np.array([prior.noise[f.metric] for f in figures]))


def _values(z: Floats, widths: Floats, around: Floats) -> Floats:
    factors = len(FACTORS)
    scaled = around[:factors] * np.exp(z[:factors] * widths[:factors])
    return np.concatenate([scaled, around[factors:] + (z * widths)[factors:]])


def fit(
    figures: Sequence[Figure], prior: Prior, strength: float = 1.0, around: Floats | None = None,
    least: float | Floats = 0.0,
) -> Fit:  # fmt: skip
    """Return the most probable terms; damped Gauss-Newton on Student's t residuals and a normal prior.

    The prior is `around` terms as `Fit.values` has them; None: the shipped law's. No factor falls below `least`.
    """
    table, widths = _table(figures, prior), strength * np.array([prior.widths[name] for name in TERMS])
    around = term_values(None) if around is None else around
    factors, shifts = np.split(around, [len(FACTORS)])
    with np.errstate(divide="ignore"):
        lowest = np.concatenate([np.log(least / factors), -table.floors.max(axis=0) - shifts]) / widths
    z, damping = np.maximum(np.zeros(len(TERMS)), lowest), 1e-3
    loss, residual, jacobian = _state(table, z, widths, around)
    for _ in range(_ROUNDS):
        weight = (TAIL + 1.0) / (TAIL + residual**2)
        curvature = (jacobian.T * weight) @ jacobian + np.eye(len(z))
        slope = (jacobian.T * weight) @ residual - z
        held = (z <= lowest) & (slope < 0.0)  # host terms that would fall below zero, factors below the least
        slope[held], curvature[held], curvature[:, held] = 0.0, 0.0, 0.0
        curvature[held, held] = 1.0
        step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), slope)
        moved = np.maximum(z + step, lowest)
        tried = _state(table, moved, widths, around)
        if tried[0] <= loss:
            done = loss - tried[0] < 1e-9 * (1.0 + loss)
            z, (loss, residual, jacobian), damping = moved, tried, damping / 4.0
            if done:
                break
        else:
            damping *= 8.0
    weight = (TAIL + 1.0) / (TAIL + residual**2)
    scale = max(1.0, float((weight * residual**2).mean()))
    covariance = np.linalg.inv((jacobian.T * weight / scale) @ jacobian + np.eye(len(z)))
    return Fit(z, np.asarray(covariance), _values(z, widths, around))


def _state(table: _Table, z: Floats, widths: Floats, around: Floats) -> tuple[float, Floats, Floats]:
    """Loss, residuals in standard deviations, and their slopes by `z`, turned round."""
    values = _values(z, widths, around)
    total = np.maximum(seconds(table.parts, table.floors, values), 1e-3 * table.at_s)
    residual = (table.gap - np.log(total / table.at_s)) / table.noise
    slopes = np.concatenate([values[: len(FACTORS)] * widths[: len(FACTORS)], widths[len(FACTORS) :]])
    free = np.column_stack([np.ones((len(total), len(FACTORS))), values[len(FACTORS) :] >= -table.floors])
    jacobian = table.parts[:, 1:] * slopes * free / (total * table.noise)[:, None]
    tails = 0.5 * (TAIL + 1.0) * np.log1p(residual**2 / TAIL)
    return float(tails.sum() + 0.5 * (z**2).sum()), residual, jacobian


def predictions(figures: Sequence[Figure], values: Floats) -> Floats:
    """Return the figures with the terms as `values` says, by algebra over their steps."""
    parts, floors = np.array([f.parts for f in figures]), np.array([f.floors for f in figures])
    ratio = seconds(parts, floors, values) / seconds(parts, floors, np.array([f.at for f in figures]))
    return np.asarray(np.array([f.predicted for f in figures]) * ratio ** np.array([f.sign for f in figures]))


def judge_fit(points: Sequence[Point], prior: Prior, strengths: Sequence[float] = STRENGTHS) -> Judgement:
    """Fit on part of the points, judge on the rest, and return what served best.

    Repeats of a setting stay together. A fit counts if it predicts the rest better by more than one standard error of
    the gain, figures weighed by their noise, and no metric worse by more than one of its own or a seventh of its noise.
    Errors far beyond any noise tell little by their gains: their median has to fall by a third, or points that scatter
    would move the law by chance. Each width of `strengths` is tried on all figures and without TTFT: where queues are
    not as we think, it pulls the steps away. The shipped law is kept where none counts.
    """
    figures = [figure for point in points for figure in point.figures]
    owner = np.array([i for i, point in enumerate(points) for _ in point.figures])
    measured = np.array([f.measured for f in figures])
    noise = np.array([prior.noise[f.metric] for f in figures])
    before = np.log(np.array([f.shipped for f in figures]) / measured)
    part_of = _folds(points)[owner]
    best, best_gain = Judgement(0.0, "", before, np.zeros(len(TERMS)), before), 0.0
    most = -np.inf
    for strength, without in itertools.product(strengths, ("", "ttft")):
        used = np.array([f.metric != without for f in figures])
        if not used.any() or (without and used.all()):
            continue
        after, fits = np.array(before), []
        for part in range(part_of.max() + 1):
            fits.append(fit(_where(figures, used & (part_of != part)), prior, strength).values)
            unseen = part_of == part
            after[unseen] = np.log(predictions(_where(figures, unseen), fits[-1]) / measured[unseen])
        gains = _capped(before / noise) - _capped(after / noise)
        gain, error = _mean(np.bincount(owner, gains) / np.bincount(owner))
        spared = all(
            mean >= -max(se, SPARED) for metric in {f.metric for f in figures}
            for mean, se in (_mean(gains[[f.metric == metric for f in figures]]),)
        )  # fmt: skip
        if spared and not _scattered(figures, before / noise, after / noise) and gain > max(error, best_gain):
            best, best_gain = Judgement(strength, without, after, _spread(np.array(fits)), after), gain
        elif not best.strength and gain > most:
            best, most = best._replace(tried=after), gain
    return best


def _where(figures: Sequence[Figure], wanted: npt.NDArray[np.bool_]) -> list[Figure]:
    return [figure for figure, keep in zip(figures, wanted, strict=True) if keep]


def _mean(values: Floats) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def _folds(points: Sequence[Point]) -> npt.NDArray[np.int64]:
    """The part each point belongs to: settings in order, dealt out in turn, so that every part spans the loads."""
    order = {setting: place for place, setting in enumerate(sorted({p.setting for p in points}, key=repr))}
    return np.array([order[point.setting] % FOLDS for point in points])


def _scattered(figures: Sequence[Figure], before: Floats, after: Floats) -> bool:
    """Whether errors of a metric, in noise, stay far beyond it, and little below what they were."""
    of = np.array([f.metric for f in figures])
    medians = [[float(np.median(np.abs(errors[of == metric]))) for errors in (before, after)] for metric in set(of)]
    return any(then > FAR and then > FALLEN * once for once, then in medians)


def _capped(error: Floats) -> Floats:
    return np.minimum(np.abs(error), 5.0)


def _spread(values: Floats) -> Floats:
    """Standard deviation of the terms by leaving parts out (the jackknife of groups), logarithms for factors."""
    values = np.concatenate([np.log(values[:, : len(FACTORS)]), values[:, len(FACTORS) :]], axis=1)
    count = len(values)
    return np.asarray(np.sqrt((count - 1) / count * ((values - values.mean(axis=0)) ** 2).sum(axis=0)))


def errors_by_metric(figures: Sequence[Figure], log_errors: Floats) -> dict[str, float]:
    """Return the median of the absolute relative error by metric."""
    size = np.abs(np.expm1(log_errors))
    return {
        metric: float(np.median(size[[f.metric == metric for f in figures]]))
        for metric in dict.fromkeys(f.metric for f in figures)
    }
