"""What a pair's other rows tell of a row: kriging of residuals, by a kernel that the rows fitted on choose.

Rows of one model, GPU, engine and precision share a level, those of one version of the engine another, and rows of like
load, lengths and layout what is left (Matern 3/2; half as much of another version). How much of each, how near is near
and how noisy a figure is maximise the marginal likelihood of the rows fitted on (C. Rasmussen, C. Williams, "Gaussian
processes for machine learning", 2006, 5.4.1), so nothing is chosen on what is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

Floats = npt.NDArray[np.float64]
PARTS = 4  # logs of the standard deviations: level of the pair, of the version, what is smooth, noise
USUAL, WIDTH = (-2.5, 0.5), 1.5  # prior of these logs, and of the logs of the scales; its width
LIKE = 0.5  # share of what is smooth that versions have in common
CHOSEN_ROWS = 48  # of a group, when the kernel is chosen
CHOSEN_LEAST = 4
ROUNDS = 2
FAR = 2.0  # standard deviations beyond which a residual counts less
SPREAD_LEAST = 0.05


class Site(NamedTuple):
    """Where rows lie: float64[rows, numbers], and the version of each, as a number."""

    numbers: Floats
    versions: npt.NDArray[np.int64]

    def some(self, rows: npt.NDArray[np.int64]) -> Site:
        """Return some of them."""
        return Site(self.numbers[rows], self.versions[rows])


class Group(NamedTuple):
    """Rows of one model, GPU, engine and precision: where they lie, and their residuals."""

    site: Site
    residuals: Floats


def covariance(kernel: Floats, one: Site, other: Site) -> Floats:
    """Return the covariance of what two sets of rows share, float64[rows, rows]."""
    level, version, smooth = np.exp(2.0 * kernel[: PARTS - 1])
    apart = ((one.numbers[:, None] - other.numbers[None]) / np.exp(kernel[PARTS:])) ** 2
    distance = np.sqrt(3.0 * apart.sum(axis=2) + 1e-12)
    same = one.versions[:, None] == other.versions[None]
    matern = (1.0 + distance) * np.exp(-distance)
    return np.asarray(level + version * same + smooth * matern * np.where(same, 1.0, LIKE))


def choose(groups: Sequence[Group], seed: int = 0) -> Floats:
    """Return the kernel with the highest marginal likelihood; far residuals count less."""
    count = groups[0].site.numbers.shape[1]
    kernel = np.concatenate([np.full(PARTS, USUAL[0]), np.full(count, USUAL[1])])
    random = np.random.default_rng(seed)
    parts = []
    for site, residuals in groups:
        if len(residuals) >= CHOSEN_LEAST:
            rows = random.permutation(len(residuals))[:CHOSEN_ROWS]
            parts.append((site.some(rows), residuals[rows]))
    if not parts:
        return kernel
    weights = [np.ones(len(residuals)) for _, residuals in parts]
    bounds = [(-6.0, 1.0)] * PARTS + [(-2.0, 4.0)] * count
    for _ in range(ROUNDS):
        kernel = minimize(_unlikely, kernel, (parts, weights), method="L-BFGS-B", bounds=bounds,
                          options={"maxiter": 20}).x  # fmt: skip
        weights = [_weights(kernel, site, residuals) for site, residuals in parts]
    return np.asarray(kernel)


def _unlikely(kernel: Floats, parts: list[tuple[Site, Floats]], weights: list[Floats]) -> float:
    total = 0.0
    for (site, residuals), weight in zip(parts, weights, strict=True):
        root = np.linalg.cholesky(_noisy(kernel, site, weight))
        white = np.linalg.solve(root, residuals)
        total += 0.5 * float(white @ white) + float(np.log(np.diag(root)).sum())
    away = np.concatenate([kernel[:PARTS] - USUAL[0], kernel[PARTS:] - USUAL[1]]) / WIDTH
    return total + 0.5 * float(away @ away)


def _weights(kernel: Floats, site: Site, residuals: Floats) -> Floats:
    """How much each residual counts, by how far the others say it is off."""
    weights = np.ones(len(residuals))
    for _ in range(ROUNDS):
        inverse = np.linalg.inv(_noisy(kernel, site, weights))
        spread = np.maximum(1.0 / np.sqrt(np.diag(inverse)), SPREAD_LEAST)
        off = np.abs(inverse @ residuals / np.diag(inverse)) / spread
        weights = np.minimum(1.0, FAR / np.maximum(off, 1e-9)) ** 2
    return weights


def _noisy(kernel: Floats, site: Site, weights: Floats) -> Floats:
    return covariance(kernel, site, site) + np.diag(np.exp(2.0 * kernel[PARTS - 1]) / weights)


def tell(kernel: Floats, known: Group) -> Callable[[Site], Floats]:
    """Return what gives the residuals to expect of rows, by those known."""
    weights = _weights(kernel, known.site, known.residuals)
    pulls = np.linalg.solve(_noisy(kernel, known.site, weights), known.residuals)
    return lambda asked: np.asarray(covariance(kernel, asked, known.site) @ pulls)
