"""Host terms fitted without what they are judged on: pairs, models, GPUs or random rows; and the level of a pair."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fit import engines
from fit.engines import RELEASES, SIZES, Fit, Point, release
from fit.kriging import Group, Site, choose, tell
from fit.measure import FEATURES, Sample
from fit.settings import Fitter, Key, pulled, settled

Floats = npt.NDArray[np.float64]
FOLDS = 8
MODEL_FOLDS = 6
CHIPS = {"gb200": "b200", "gb300": "b300", "gh200": "h200"}  # cards with the chip of another
LEVEL_ROWS = 2.0  # rows of a pair that count as much as the belief that its level is that of all
PLACE = ("log users of a rank", "log prompt", "log output", "log tp", "log dp", "log ep", "split")
EVERYTHING = ("any", "0")


class Crossed(NamedTuple):
    """Log ratios of predicted to measured seconds of each point's figures, from a fit that has not seen its fold."""

    logs: list[Floats]
    levelled: list[Floats]  # after the level of the point's other rows of the same (model, GPU, engine, precision)
    kriged: list[Floats]  # after what these rows tell by kriging instead


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
    places: Sequence[tuple[float, ...]] = (), tried: Sequence[Mapping[str, Point]] = (),
) -> Crossed:  # fmt: skip
    """Fit each fold's complement and predict the fold.

    `together` fits one set of terms for all engines and releases, without factors of GPUs. Suspect rows are predicted
    but not fitted on. With `places`, numbers of each point, every prediction is also moved by the shrunk median
    residual of the rows fitted on that share the point's model, GPU, engine and precision, or by what they tell by
    kriging on these numbers. With `tried`, each point's other readings by setting, a fold's complement chooses among
    them (`fit.settings`).
    """
    keys = [EVERYTHING if together else (point.engine, release(point.engine, point.version)) for point in points]
    of_engine: dict[str, list[int]] = defaultdict(list)
    for i, (engine, _) in enumerate(keys):
        of_engine[engine].append(i)
    jobs = [
        ([points[i] for i in members], [keys[i] for i in members], [folds[i] == fold for i in members], members,
         [places[i] for i in members] if places else [], [tried[i] for i in members] if tried else [])
        for members in of_engine.values()
        for fold in sorted({folds[i] for i in members})
    ]  # fmt: skip
    jobs.sort(key=lambda job: -len(job[0]))
    logs: list[Floats] = [np.zeros(0)] * len(points)
    levelled, kriged = list(logs), list(logs)
    for found in pool.map(_fold, jobs):
        for i, plain, moved, told in found:
            logs[i], levelled[i], kriged[i] = plain, moved, told
    return Crossed(logs, levelled, kriged)


Job = tuple[list[Point], list[Key], list[bool], list[int], list[tuple[float, ...]], list[Mapping[str, Point]]]


def _fold(job: Job) -> list[tuple[int, Floats, Floats, Floats]]:
    """(position, logs, levelled and kriged logs) of the points left out."""
    points, keys, out, members, places, tried = job
    ridge = engines.PULL
    if tried:
        points = settled(points, keys, out, tried, _fitter(ridge))
        ridge = pulled(points, keys, out, _fitter)
    fits = fit_all([p for p, o in zip(points, out, strict=True) if not o],
                   [k for k, o in zip(keys, out, strict=True) if not o], ridge)  # fmt: skip
    asked = [i for i, o in enumerate(out) if o]
    found = dict(zip(asked, predict(fits, [points[i] for i in asked], [keys[i] for i in asked]), strict=True))
    moved = told = found
    if places:
        seen = [i for i, o in enumerate(out) if not o and not points[i].suspect]
        known = [points[i] for i in seen]
        residuals = predict(fits, known, [keys[i] for i in seen])
        level, near = levels(known, residuals), likeness(known, residuals, [places[i] for i in seen])
        moved = {i: logs - level(points[i]) for i, logs in found.items()}
        told = {i: logs - near(points[i], places[i]) for i, logs in found.items()}
    return [(members[i], found[i], moved[i], told[i]) for i in asked]


def _fitter(ridge: float) -> Fitter:
    """Return what predicts the log ratios of some points by terms fitted on others."""
    return lambda kept, kept_keys, asked, keys: predict(fit_all(kept, kept_keys, ridge), asked, keys)


def fit_all(points: Sequence[Point], keys: Sequence[Key], ridge: float = engines.PULL) -> dict[Key, Fit]:
    """Fit every release on its trusted points; what it has no figures for is taken from the next newer one."""
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point, key in zip(points, keys, strict=True):
        if not point.suspect:
            groups[key].append(_fitted_on(point))
    return engines.completed({key: _fit(members, key != EVERYTHING, ridge) for key, members in groups.items()})


def _fitted_on(point: Point) -> Point:
    """Without the throughput that stands beside the time between tokens, unless it alone tells of pictures."""
    kinds = {figure.kind for figure in point.figures}
    media = [engines.NAMES.index(f"{kind}_s") for kind in engines.MEDIA]
    if kinds != {"tpot", "rate"} or any(figure.counts[i] for figure in point.figures for i in media):
        return point
    return point._replace(figures=tuple(figure for figure in point.figures if figure.kind == "tpot"))


def _fit(members: list[Point], factors: bool, ridge: float) -> Fit:
    slow = engines.gpus_of(members) if factors else {}
    group = engines.grouped(members, slow)
    told = (group.counts[:, : len(SIZES)] > 0.0).any(axis=0)
    return Fit(engines.fitted(group, ridge), told, slow, engines.shares_of(members), 0.0)


def predict(fits: dict[tuple[str, str], Fit], points: Sequence[Point], keys: Sequence[tuple[str, str]]) -> list[Floats]:
    """Return the log ratios of each point's figures; a release never fitted takes the nearest newer, else none."""
    found: list[Floats] = [np.zeros(0)] * len(points)
    by_key: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        by_key[key].append(i)
    for key, members in by_key.items():
        fit = fits.get(key) or next((fits[other] for other in _near(key) if other in fits), None)
        fit = fit or Fit(np.zeros(len(SIZES)), None, {}, engines.shares_of([]), 0.0)
        group = engines.grouped([points[i] for i in members], fit.slow, fit.shares)
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
    """Return what moves a point's figures: the shrunk median residual of its pair, engine and precision, by kind."""
    sums: dict[Any, list[float]] = defaultdict(list)
    for point, logs in zip(points, residuals, strict=True):
        for figure, value in zip(point.figures, logs, strict=True):
            sums[(_pair(point), figure.kind)].append(float(value))
    mean = {key: float(np.median(some)) * len(some) / (len(some) + LEVEL_ROWS) for key, some in sums.items()}

    def move(point: Point) -> Floats:
        return np.array([mean.get((_pair(point), figure.kind), 0.0) for figure in point.figures])

    return move


def likeness(
    points: Sequence[Point], residuals: Sequence[Floats], places: Sequence[tuple[float, ...]]
) -> Callable[[Point, tuple[float, ...]], Floats]:
    """Return what moves a point's figures: what its pair's rows tell by kriging, by kind; the kernel is theirs too."""
    rows: dict[str, dict[Any, list[tuple[tuple[float, ...], str, float]]]] = defaultdict(lambda: defaultdict(list))
    for point, logs, place in zip(points, residuals, places, strict=True):
        for figure, value in zip(point.figures, logs, strict=True):
            rows[figure.kind][_pair(point)].append((place, point.version, float(value)))
    versions = {version: i for i, version in enumerate(sorted({point.version for point in points}))}
    known = {
        kind: {
            pair: Group(Site(np.array([p for p, _, _ in some]), np.array([versions[v] for _, v, _ in some])),
                        np.array([value for _, _, value in some]))
            for pair, some in groups.items()
        }
        for kind, groups in rows.items()
    }  # fmt: skip
    tellers = {}
    for kind, groups in known.items():
        kernel = choose(list(groups.values()))
        tellers[kind] = {pair: tell(kernel, group) for pair, group in groups.items()}

    def move(point: Point, place: tuple[float, ...]) -> Floats:
        here = Site(np.array([place]), np.array([versions.get(point.version, -1)]))
        moves = []
        for figure in point.figures:
            teller = tellers.get(figure.kind, {}).get(_pair(point))
            moves.append(0.0 if teller is None else float(teller(here)[0]))
        return np.array(moves)

    return move


def placed(sample: Sample) -> tuple[float, ...]:
    """Return where a row lies among those of its pair: users of a rank, lengths, layout, split or not."""
    at = dict(zip(FEATURES, sample.features, strict=True))
    return tuple(at[name] for name in PLACE)


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
