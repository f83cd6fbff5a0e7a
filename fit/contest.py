"""Ways to predict the time between output tokens compared: told nothing of the pair asked, or ten points of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from fit.folds import LEVEL_ROWS, placed
from fit.kriging import Group, Site, choose, tell
from fit.measure import Sample

Floats = npt.NDArray[np.float64]
FEW = 10
LEAST = 25  # points of a pair, for ten of them to be told and the others asked
RIDGE = 1.0
TREES, DEPTH, BINS, RATE, LEAF = 300, 5, 64, 0.1, 5
NODE_BYTES = 8


class Entrant(NamedTuple):
    """A predictor: bytes it stores, points and timings it needs of the pair, log ratios of the points asked."""

    name: str
    stored: str
    of_pair: int
    logs: Floats


class Asked(NamedTuple):
    """One time between tokens per row: features, logarithm of what was measured, fold and pair."""

    features: Floats
    measured: Floats
    fold: npt.NDArray[np.int64]
    pair: npt.NDArray[np.str_]


def contest(
    samples: Sequence[Sample], folds: Sequence[int], sheet: Floats, ours: Floats, stored_bytes: tuple[int, int]
) -> list[Entrant]:
    """Return the entrants' log ratios on the same points.

    Args:
        samples: rows whose first figure is a time between tokens.
        folds: fold of each, whole pairs together.
        sheet: log ratios by the data sheet.
        ours: log ratios by our law, fitted without the fold.
        stored_bytes: of the operators' and of the engines' data.
    """
    measured = np.log([sample.whole.figures[0].measured_s for sample in samples if sample.whole])
    pairs = np.array(["|".join(sample.whole.pair) for sample in samples if sample.whole])
    asked = Asked(np.array([sample.features for sample in samples]), measured, np.array(folds), pairs)
    told, test = _few(asked.pair)
    rows, width = asked.features.shape
    lookup = _by_fold(asked, _nearest)
    regressed = _by_fold(asked, _ridge)
    trees = _by_fold(asked, _boosted)
    size = f"{rows * (width + 1) * 8:,}"
    laws, hosts = stored_bytes
    forest = f"{TREES * (2 ** (DEPTH + 1) - 1) * NODE_BYTES:,}"
    found = [
        Entrant("roofline by the data sheet", "0", 0, sheet),
        Entrant("nearest configuration measured", size, 0, lookup),
        Entrant("ridge regression on features and their squares", f"{8 * (2 * width + 1):,}", 0, regressed),
        Entrant(f"boosted trees, {TREES} of depth {DEPTH}", forest, 0, trees),
        Entrant("this cost model", f"{laws + hosts:,}", 0, ours),
        Entrant("nearest of ten points of the pair", f"{FEW * (width + 1) * 8:,}", FEW, _within(asked, told)),
    ]
    for name, base in (("boosted trees", trees), ("this cost model", ours)):
        level = f"{forest if base is trees else f'{laws + hosts:,}'} + 8"
        found.append(Entrant(f"{name} + level of ten points", level, FEW, base - _level(base, asked.pair, told)))
    near = ours - _near(ours, np.array([placed(sample) for sample in samples]), asked.pair, told)
    found.append(Entrant("this cost model + kriging of ten points", f"{laws + hosts:,} + {FEW * 64}", FEW, near))
    return [entrant._replace(logs=entrant.logs[test]) for entrant in found]


def _few(pairs: npt.NDArray[np.str_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which points are told, ten spread at random over each large pair, and which are asked: the others of these."""
    told, test = np.zeros(len(pairs), dtype=bool), np.zeros(len(pairs), dtype=bool)
    generator = np.random.default_rng(1)
    for pair in sorted(set(pairs)):
        mine = np.flatnonzero(pairs == pair)
        if len(mine) >= LEAST:
            some = generator.permutation(mine)[:FEW]
            test[mine] = True
            test[some], told[some] = False, True
    return told, test


def _level(logs: Floats, pairs: npt.NDArray[np.str_], told: npt.NDArray[np.bool_]) -> Floats:
    move = np.zeros(len(logs))
    for pair in set(pairs[told]):
        mine = pairs == pair
        known = logs[mine & told]
        move[mine] = np.median(known) * len(known) / (len(known) + LEVEL_ROWS)
    return move


def _near(logs: Floats, places: Floats, pairs: npt.NDArray[np.str_], told: npt.NDArray[np.bool_]) -> Floats:
    """What ten points of a pair tell of its others; the kernel is chosen on those told."""
    known = {pair: np.flatnonzero((pairs == pair) & told) for pair in sorted(set(pairs[told]))}
    site = Site(places, np.zeros(len(logs), dtype=np.int64))
    groups = {pair: Group(site.some(rows), logs[rows]) for pair, rows in known.items()}
    kernel, move = choose(list(groups.values())), np.zeros(len(logs))
    for pair, group in groups.items():
        mine = np.flatnonzero(pairs == pair)
        move[mine] = tell(kernel, group)(site.some(mine))
    return move


Learner = Callable[[Floats, Floats, Floats], Floats]


def _by_fold(asked: Asked, learner: Learner) -> Floats:
    """Log ratios where every fold was predicted by what was learned on the others."""
    logs = np.zeros(len(asked.measured))
    for fold in sorted(set(asked.fold.tolist())):
        out = asked.fold == fold
        known = asked.features[~out]
        middle, spread = known.mean(axis=0), known.std(axis=0) + 1e-9
        one, two = ((part - middle) / spread for part in (known, asked.features[out]))
        logs[out] = learner(one, asked.measured[~out], two) - asked.measured[out]
    return logs


def _nearest(known: Floats, measured: Floats, asked: Floats) -> Floats:
    _, index = cKDTree(known).query(asked)
    return measured[index]


def _ridge(known: Floats, measured: Floats, asked: Floats) -> Floats:
    first, second = (np.column_stack([part, part**2]) for part in (known, np.clip(asked, -3.0, 3.0)))
    level = measured.mean()
    square = first.T @ first + RIDGE * len(first) * 1e-2 * np.eye(first.shape[1])
    return np.asarray(level + second @ np.linalg.solve(square, first.T @ (measured - level)))


def _within(asked: Asked, told: npt.NDArray[np.bool_]) -> Floats:
    """The nearest of the points told of the same pair."""
    logs = np.zeros(len(asked.measured))
    spread = asked.features.std(axis=0) + 1e-9
    for pair in set(asked.pair[told]):
        mine, known = np.flatnonzero(asked.pair == pair), np.flatnonzero((asked.pair == pair) & told)
        _, index = cKDTree(asked.features[known] / spread).query(asked.features[mine] / spread)
        logs[mine] = asked.measured[known[index]] - asked.measured[mine]
    return logs


# --- boosted trees ------------------------------------------------------------------------------------------


def _boosted(known: Floats, measured: Floats, asked: Floats) -> Floats:
    """Gradient boosting of binned regression trees on the absolute error."""
    edges = [np.unique(np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1])) for column in known.T]
    one, two = (
        np.column_stack([np.searchsorted(edge, column) for edge, column in zip(edges, part.T, strict=True)])
        for part in (known, asked)
    )
    level = float(np.median(measured))
    fit, said = np.full(len(one), level), np.full(len(two), level)
    for _ in range(TREES):
        _grow(one, np.clip(measured - fit, -0.3, 0.3), two, np.arange(len(one)), np.arange(len(two)), fit, said, 0)
    return said


def _grow(
    known: npt.NDArray, residual: Floats, asked: npt.NDArray, rows: npt.NDArray, wanted: npt.NDArray,
    fit: Floats, said: Floats, depth: int,
) -> None:  # fmt: skip
    """Split rows where it lowers the squared error most, down to leaves; add what the leaves say."""
    split = _split(known[rows], residual[rows]) if depth < DEPTH and len(rows) >= 2 * LEAF else None
    if split is None:
        step = RATE * float(residual[rows].mean())
        fit[rows] += step
        said[wanted] += step
        return
    column, bin_ = split
    here, there = known[rows, column] <= bin_, asked[wanted, column] <= bin_
    for side, other in ((here, there), (~here, ~there)):
        _grow(known, residual, asked, rows[side], wanted[other], fit, said, depth + 1)


def _split(known: npt.NDArray, residual: Floats) -> tuple[int, int] | None:
    width = known.shape[1]
    flat = (known + BINS * np.arange(width)).ravel(order="F")
    sums = np.bincount(flat, np.tile(residual, width), BINS * width).reshape(width, BINS).cumsum(axis=1)
    counts = np.bincount(flat, minlength=BINS * width).reshape(width, BINS).cumsum(axis=1)
    total, size = sums[:, -1:], counts[:, -1:]
    rest = size - counts
    fine = (counts >= LEAF) & (rest >= LEAF)
    gain = np.where(fine, sums**2 / np.maximum(counts, 1) + (total - sums) ** 2 / np.maximum(rest, 1), -np.inf)
    column, bin_ = np.unravel_index(int(gain.argmax()), gain.shape)
    if gain[column, bin_] <= total[0, 0] ** 2 / len(residual) + 1e-12:
        return None
    return int(column), int(bin_)
