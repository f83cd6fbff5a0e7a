"""Fitting: scalars by soft-L1 on log residuals, ratio tables by ridge regression on the same, errors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import least_squares
from scipy.sparse.linalg import spsolve

from headway.cost.operators import Ratio

Floats = npt.NDArray[np.float64]
_SOFT = 0.1  # residual in log time beyond which a row counts less
_ROWS = 6000  # for the scalars, which need no more


class Errors(NamedTuple):
    """Absolute relative errors of predictions against timings."""

    median: float
    mean: float
    p90: float
    rows: int


def errors(predicted: Floats, measured: Floats) -> Errors:
    """Return the absolute relative errors."""
    if not len(measured):
        return Errors(np.nan, np.nan, np.nan, 0)
    off = np.abs(predicted / measured - 1.0)
    return Errors(float(np.median(off)), float(off.mean()), float(np.quantile(off, 0.9)), len(off))


def held_out(*keys: npt.NDArray, share: float = 0.2) -> npt.NDArray[np.bool_]:
    """Return which rows are held out: all rows of a key or none, chosen by a hash of the key."""
    stacked = np.stack([np.asarray(key, dtype=np.float64) for key in keys], axis=1)
    distinct, inverse = np.unique(stacked, axis=0, return_inverse=True)
    marks = [int(hashlib.sha256(repr(row.tolist()).encode()).hexdigest()[:8], 16) / 2**32 for row in distinct]
    order = np.argsort(marks)
    chosen = np.zeros(len(distinct), dtype=bool)
    chosen[order[: max(1, round(share * len(distinct)))]] = True
    return chosen[inverse.reshape(-1)]


def scalars(
    law: Callable[[Floats, npt.NDArray], Floats], seconds: Floats, start: Sequence[float], bounds: Sequence
) -> Floats:
    """Return the parameters of ``law(parameters, rows)``, fitted on at most a few thousand rows spread evenly."""
    rows = np.unique(np.linspace(0, len(seconds) - 1, min(len(seconds), _ROWS)).astype(int))
    logs = np.log(seconds[rows])

    def residual(parameters: Floats) -> Floats:
        return np.log(law(parameters, rows)) - logs

    low, high = (np.array(edge, dtype=float) for edge in zip(*bounds, strict=True))
    begin = np.clip(np.array(start, dtype=float), low + 1e-9 * (high - low), high - 1e-9 * (high - low))
    found = least_squares(
        *(residual, begin),
        bounds=(low, high),
        loss="soft_l1",
        f_scale=_SOFT,
        x_scale=np.maximum(begin, 1e-3),
        max_nfev=150,
    )
    return np.array([float(f"{value:.4g}") for value in found.x])


def basis(axes: Sequence[Sequence[float]], coordinates: Sequence[Floats]) -> sparse.csr_matrix:
    """Return the matrix that reads a table at rows: multilinear in the logarithms, constant outside."""
    count = len(coordinates[0])
    index, weight = np.zeros((count, 1), dtype=int), np.ones((count, 1))
    for axis, values in zip(axes, coordinates, strict=True):
        logs = np.log(axis)
        at = np.clip(np.log(np.maximum(values, 1e-9)), logs[0], logs[-1])
        left = np.clip(np.searchsorted(logs, at, side="right") - 1, 0, len(logs) - 2)
        share = ((at - logs[left]) / (logs[left + 1] - logs[left]))[:, None]
        below = index * len(axis) + left[:, None]
        index = np.concatenate([below, below + 1], axis=1)
        weight = np.concatenate([weight * (1.0 - share), weight * share], axis=1)
    rows = np.repeat(np.arange(count), index.shape[1])
    size = int(np.prod([len(axis) for axis in axes]))
    return sparse.csr_matrix((weight.ravel(), (rows, index.ravel())), shape=(count, size))


def _roughness(axes: Sequence[Sequence[float]]) -> sparse.csr_matrix:
    """Differences between neighbouring nodes along each axis."""
    sizes = [len(axis) for axis in axes]
    numbers = np.arange(int(np.prod(sizes))).reshape(sizes)
    pairs = [
        np.stack([np.take(numbers, range(n - 1), d).ravel(), np.take(numbers, range(1, n), d).ravel()], axis=1)
        for d, n in enumerate(sizes)
    ]
    ends = np.concatenate(pairs)
    rows = np.repeat(np.arange(len(ends)), 2)
    return sparse.csr_matrix((np.tile([-1.0, 1.0], len(ends)), (rows, ends.ravel())), shape=(len(ends), numbers.size))


def ratio_table(
    axes: Sequence[Sequence[float]],
    coordinates: Sequence[Floats],
    fixed_s: Floats,
    scaled_s: Floats,
    seconds: Floats,
    ridge: float = 3.0,
    smooth: float = 3.0,
) -> Ratio:
    """Return the table that makes ``fixed_s + scaled_s * ratio`` closest to the timings.

    Robust least squares of log residuals by Gauss-Newton; `ridge` draws every node toward a ratio of 1 and `smooth`
    toward its neighbours, each with the weight of so many rows.
    """
    matrix = basis(axes, coordinates)
    size = matrix.shape[1]
    rough = _roughness(axes)
    penalty = ridge * sparse.identity(size) + smooth * (rough.T @ rough)
    nodes = np.zeros(size)
    for _ in range(6):
        scaled = scaled_s * np.exp(matrix @ nodes)
        total = fixed_s + scaled
        slope = scaled / total
        residual = np.log(seconds / total)
        weight = 1.0 / np.sqrt(1.0 + (residual / _SOFT) ** 2)
        design = sparse.diags(slope) @ matrix
        normal = design.T @ sparse.diags(weight) @ design + penalty
        step = spsolve(normal.tocsc(), design.T @ (weight * residual) - penalty @ nodes)
        nodes = np.clip(nodes + step, -3.0, 3.0)
    milli = np.rint(1000.0 * nodes).astype(int)
    return Ratio(axes=tuple(tuple(map(float, axis)) for axis in axes), permille=tuple(milli.tolist()))


def read_ratio(ratio: Ratio, coordinates: Sequence[Floats]) -> Floats:
    """Return the ratios at rows of coordinates on all axes."""
    return np.exp(basis(ratio.axes, coordinates) @ (np.array(ratio.permille) / 1000.0))


def evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """Return at most so many places among `count`, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def pool(groups: Sequence[Any], most: int) -> Any:
    """Return rows of several groups together, at most so many of each, so that none outweighs the others.

    A group is a named tuple of GPU, engine, precision and one more name, then columns; `seconds` is one of them.
    """
    parts = [rows.rows(evenly(len(rows.seconds), most)) for rows in groups]
    merged = (np.concatenate(column) for column in zip(*(part[4:] for part in parts), strict=True))
    return type(groups[0])("pooled", groups[0].engine, groups[0].of, "", *merged)
