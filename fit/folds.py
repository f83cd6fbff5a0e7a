"""Host terms fitted without what they are judged on: pairs, models, GPUs or random rows; and the level of a pair."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fit import engines
from fit.engines import RELEASES, SIZES, TIMED, Fit, Point, release
from fit.measure import FEATURES, Sample

Floats = npt.NDArray[np.float64]
FOLDS = 8
MODEL_FOLDS = 6
CHIPS = {"gb200": "b200", "gb300": "b300", "gh200": "h200"}  # cards with the chip of another
LEVEL_ROWS = 2.0  # rows of a pair that count as much as the belief that its level is that of all
SLOPE_ROWS = 3.0  # the same of its slopes
ROBUST = 0.1  # residual beyond which a row counts less for them
ROUNDS = 8
EVERYTHING = ("any", "0")


class Crossed(NamedTuple):
    """Log ratios of predicted to measured seconds of each point's figures, from a fit that has not seen its fold."""

    logs: list[Floats]
    levelled: list[Floats]  # after the level of the point's other rows of the same (model, GPU, engine, precision)
    sloped: list[Floats]  # after level and slopes of its other rows of the same engine version as well


def fold_by(split: str, points: Sequence[Point], repeats: Sequence[str]) -> list[int]:
    """Return the fold of every point; `repeats` are equal for rows that repeat one another, which stay together."""
    if split == "rows":
        return [zlib.crc32(key.encode()) % FOLDS for key in repeats]
    values = [_left_out(split, point) for point in points]
    place = {value: i for i, value in enumerate(sorted(set(values)))}
    count = {"pair": FOLDS, "model": MODEL_FOLDS}.get(split, len(place))
    return [place[value] % count for value in values]


def _left_out(split: str, point: Point) -> str:
    if split == "gpu":
        chip = point.gpu.split("-")[0]
        return CHIPS.get(chip, chip)
    return {"pair": "|".join(point.pair), "model": point.pair[0]}[split]


def crossed(
    pool: Executor, points: Sequence[Point], folds: Sequence[int], *, together: bool = False,
    slopes: Sequence[tuple[float, ...]] = (),
) -> Crossed:  # fmt: skip
    """Fit each fold's complement and predict the fold.

    `together` fits one set of terms for all engines and releases, without factors of GPUs. Suspect rows are predicted
    but not fitted on. With `slopes`, numbers of each point, every prediction is also moved by the shrunk median
    residual of the rows fitted on that share the point's model, GPU, engine and precision, or by their ridge
    regression on these numbers.
    """
    keys = [EVERYTHING if together else (point.engine, release(point.engine, point.version)) for point in points]
    of_engine: dict[str, list[int]] = defaultdict(list)
    for i, (engine, _) in enumerate(keys):
        of_engine[engine].append(i)
    jobs = [
        ([points[i] for i in members], [keys[i] for i in members], [folds[i] == fold for i in members], members,
         [slopes[i] for i in members] if slopes else [])
        for members in of_engine.values()
        for fold in sorted({folds[i] for i in members})
    ]  # fmt: skip
    jobs.sort(key=lambda job: -len(job[0]))
    logs: list[Floats] = [np.zeros(0)] * len(points)
    levelled, sloped = list(logs), list(logs)
    for found in pool.map(_fold, jobs):
        for i, plain, moved, bent in found:
            logs[i], levelled[i], sloped[i] = plain, moved, bent
    return Crossed(logs, levelled, sloped)


Job = tuple[list[Point], list[tuple[str, str]], list[bool], list[int], list[tuple[float, ...]]]


def _fold(job: Job) -> list[tuple[int, Floats, Floats, Floats]]:
    """(position, logs, levelled and sloped logs) of the points left out."""
    points, keys, out, members, slopes = job
    fits = fit_all([p for p, o in zip(points, out, strict=True) if not o],
                   [k for k, o in zip(keys, out, strict=True) if not o])  # fmt: skip
    asked = [i for i, o in enumerate(out) if o]
    found = dict(zip(asked, predict(fits, [points[i] for i in asked], [keys[i] for i in asked]), strict=True))
    moved = bent = found
    if slopes:
        seen = [i for i, o in enumerate(out) if not o and not points[i].suspect]
        known = [points[i] for i in seen]
        residuals = predict(fits, known, [keys[i] for i in seen])
        level, slope = levels(known, residuals), sloping(known, residuals, [slopes[i] for i in seen])
        moved = {i: logs - level(points[i]) for i, logs in found.items()}
        bent = {i: logs - slope(points[i], slopes[i]) for i, logs in found.items()}
    return [(members[i], found[i], moved[i], bent[i]) for i in asked]


def fit_all(points: Sequence[Point], keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Fit]:
    """Fit every release on its trusted points; what it has no figures for is taken from the next newer one."""
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point, key in zip(points, keys, strict=True):
        if not point.suspect:
            groups[key].append(_fitted_on(point))
    found: dict[tuple[str, str], Fit] = {}
    for engine, sinces in {**RELEASES, EVERYTHING[0]: [EVERYTHING[1]]}.items():
        for since in reversed(sinces):
            members = groups[(engine, since)]
            if members:
                newer = [found[(engine, other)] for other in sinces if (engine, other) in found]
                found[(engine, since)] = _fit(members, newer[0] if newer else None, engine != EVERYTHING[0])
    return found


def _fitted_on(point: Point) -> Point:
    """Without the throughput that stands beside the time between tokens."""
    kinds = {figure.kind for figure in point.figures}
    if kinds != {"tpot", "rate"}:
        return point
    return point._replace(figures=tuple(figure for figure in point.figures if figure.kind == "tpot"))


def _fit(members: list[Point], newer: Fit | None, factors: bool) -> Fit:
    count = Counter(one.gpu for one in members if factors and not one.gpu.startswith(TIMED))
    slow = {key: i for i, key in enumerate(sorted(count))}
    group = engines.grouped(members, slow)
    values = engines.fitted(group, len(slow))
    told = (group.counts[:, : len(SIZES)] > 0.0).any(axis=0)
    if newer is not None:
        values[: len(SIZES)] = np.where(told, values[: len(SIZES)], newer.values[: len(SIZES)])
        told = told | newer.told
    return Fit(values, told, slow, 0.0)


def predict(fits: dict[tuple[str, str], Fit], points: Sequence[Point], keys: Sequence[tuple[str, str]]) -> list[Floats]:
    """Return the log ratios of each point's figures; a release never fitted takes the nearest newer, else none."""
    found: list[Floats] = [np.zeros(0)] * len(points)
    by_key: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        by_key[key].append(i)
    for key, members in by_key.items():
        fit = fits.get(key) or next((fits[other] for other in _near(key) if other in fits), None)
        fit = fit or Fit(np.zeros(len(SIZES)), None, {}, 0.0)
        group = engines.grouped([points[i] for i in members], fit.slow)
        logs = np.log(engines.predicted_s(fit.values, group) / group.measured_s)
        ends = np.cumsum([len(points[i].figures) for i in members])
        for i, part in zip(members, np.split(logs, ends[:-1]), strict=True):
            found[i] = part
    return found


def _near(key: tuple[str, str]) -> list[tuple[str, str]]:
    sinces = RELEASES.get(key[0], [])
    at = sinces.index(key[1]) if key[1] in sinces else 0
    return [(key[0], since) for since in (*sinces[at:], *reversed(sinces[:at]))]


def levels(points: Sequence[Point], residuals: Sequence[Floats]) -> Callable[[Point], Floats]:
    """Return what moves a point's figures: the shrunk mean residual of its pair, engine and precision, by kind."""
    sums: dict[Any, list[float]] = defaultdict(list)
    for point, logs in zip(points, residuals, strict=True):
        for figure, value in zip(point.figures, logs, strict=True):
            sums[(_pair(point), figure.kind)].append(float(value))
    mean = {key: float(np.median(some)) * len(some) / (len(some) + LEVEL_ROWS) for key, some in sums.items()}

    def move(point: Point) -> Floats:
        return np.array([mean.get((_pair(point), figure.kind), 0.0) for figure in point.figures])

    return move


def sloping(
    points: Sequence[Point], residuals: Sequence[Floats], slopes: Sequence[tuple[float, ...]]
) -> Callable[[Point, tuple[float, ...]], Floats]:
    """Return what moves a point's figures: robust ridge regression of its pair's residuals, by version and kind."""
    rows: dict[Any, list[tuple[tuple[float, ...], float]]] = defaultdict(list)
    for point, logs, numbers in zip(points, residuals, slopes, strict=True):
        for figure, value in zip(point.figures, logs, strict=True):
            rows[(_pair(point), point.version, figure.kind)].append((numbers, float(value)))
    found = {key: regressed(some) for key, some in rows.items()}

    def move(point: Point, numbers: tuple[float, ...]) -> Floats:
        moves = []
        for figure in point.figures:
            middle, values = found.get((_pair(point), point.version, figure.kind), (0.0, np.zeros(len(numbers) + 1)))
            moves.append(float(values[0] + (np.array(numbers) - middle) @ values[1:]))
        return np.array(moves)

    return move


def leaning(sample: Sample) -> tuple[float, ...]:
    """Return what a pair's residuals may lean on: users of a rank, lengths, TP, split or not, users squared."""
    at = dict(zip(FEATURES, sample.features, strict=True))
    users = at["log users of a rank"]
    return (users, at["log prompt"], at["log output"], at["log tp"], at["split"], users**2 / 5.0)


def regressed(rows: list[tuple[tuple[float, ...], float]]) -> tuple[Floats, Floats]:
    """Return the mean of the numbers, then level and slopes of the values: ridge regression, outliers weighing less."""
    numbers, logs = np.array([n for n, _ in rows]), np.array([v for _, v in rows])
    middle = numbers.mean(axis=0)
    columns, weights = np.column_stack([np.ones(len(logs)), numbers - middle]), np.ones(len(logs))
    pull = np.diag([LEVEL_ROWS] + [SLOPE_ROWS] * numbers.shape[1])
    values = np.zeros(columns.shape[1])
    for _ in range(ROUNDS):
        values = np.linalg.solve(columns.T @ (columns * weights[:, None]) + pull, columns.T @ (weights * logs))
        weights = 1.0 / np.maximum(np.abs(logs - columns @ values) / ROBUST, 1.0)
    return middle, values


def _pair(point: Point) -> tuple[object, ...]:
    return (*point.pair, point.engine, point.precision)


def moved_kernels(samples: Sequence[Sample], law: str) -> list[Point]:
    """Return the points with the kernel seconds of another law; those without one unchanged."""
    found = []
    for sample in samples:
        point, kernels = sample.whole, sample.kernels.get(law, ())
        assert point is not None
        if kernels and len(kernels) == len(point.figures):
            figures = tuple(f._replace(kernels_s=k) for f, k in zip(point.figures, kernels, strict=True))
            point = point._replace(figures=figures)
        found.append(point)
    return found
