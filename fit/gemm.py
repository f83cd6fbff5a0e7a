"""Matrix products: four scalars and a table over (m, n, k) for each family, engine and precision."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fit.read import DTYPES, FAMILIES, PEAK_OF, WORKSTATION, Columns, Floats, Sheet, groups, sheet
from fit.solve import Errors, errors, held_out, pool, ratio_table, read_ratio, scalars
from headway.cost.operators import Ratio
from headway.cost.physics import power_sum

AXES = ((1, 64, 256, 1024, 4096, 8192, 32768), (256, 1024, 4096, 16384, 65536), (256, 1024, 4096, 16384, 65536))
POOLED_AXES = ((1, 128, 2048, 32768), (256, 4096, 65536), (256, 4096, 65536))
START = (0.75, 0.82, 4.0, 2.0)
BOUNDS = ((0.1, 1.0), (0.3, 1.0), (0.5, 30.0), (1.0, 8.0))
HOST_BOUND = (("vllm", "fp8_block"),)  # timed without CUDA graphs: flat in shape
_POOL_ROWS = 4000  # of each family, so that none outweighs the others


class Fit(NamedTuple):
    """A law's numbers: shares of compute and memory, launch in microseconds, exponent; its table."""

    numbers: Floats
    ratio: Ratio | None


class Timings(NamedTuple):
    """Cold rows of one family, engine and precision: FLOPs and bytes in seconds at the peak, seconds measured."""

    gpu: str
    engine: str
    of: str
    version: str
    m: Floats
    n: Floats
    k: Floats
    flop_s: Floats
    byte_s: Floats
    seconds: Floats

    def rows(self, mask: np.ndarray) -> Timings:
        """Return some of the rows."""
        return Timings(*self[:4], *(values[mask] for values in self[4:]))


def timings(table: Columns) -> list[Timings]:
    """Return the rows that a law is fitted on, by family, engine and precision.

    Left out: n or k up to 64 (launches), token counts above 16 that are no multiple of 8, rows that beat the memory
    bandwidth because the weights were in the cache, and precisions whose module was timed without graphs.
    """
    found = []
    for (name, engine, dtype, version), rows in groups(table, "gpu", "engine", "dtype", "engine_version").items():
        family, of = FAMILIES[name][0], DTYPES[dtype]
        card = sheet(family)
        if (engine, of) in HOST_BOUND or PEAK_OF[of][0] not in card.flops:
            continue
        found.append(_cold(Timings(family, engine, of, version, *_columns(rows, card, of)), card))
    return [group for group in found if len(group.m) >= 2000]


def _columns(rows: Columns, card: Sheet, of: str) -> tuple[Floats, ...]:
    m, n, k = (rows[name].astype(float) for name in "mnk")
    peak, weight, value = PEAK_OF[of]
    byte_s = (weight * n * k + (value * k + 2.0 * n) * m) / card.bytes_per_s
    return m, n, k, 2.0 * m * n * k / card.flops[peak], byte_s, rows["time_us"] * 1e-6


def _cold(rows: Timings, card: Sheet) -> Timings:
    warm = (rows.byte_s * card.bytes_per_s < 2.0 * card.l2_bytes) & (rows.seconds < 2e-6 + rows.byte_s / 0.83)
    warm &= rows.byte_s > rows.flop_s
    shaped = (rows.n > 64) & (rows.k > 64) & ((rows.m % 8 == 0) | (rows.m <= 16))
    small_cache = rows.gpu in ("l40s", *WORKSTATION)
    return rows.rows(shaped & (rows.seconds > rows.byte_s) & ~(warm & small_cache))


def roofline(numbers: Floats, rows: Timings, at: np.ndarray | slice = slice(None)) -> Floats:
    """Return the seconds of the four-scalar law."""
    compute, memory, launch, p = numbers
    return launch * 1e-6 + power_sum(rows.flop_s[at] / compute, rows.byte_s[at] / memory, p)


def predict(fit: Fit, rows: Timings) -> Floats:
    """Return the seconds of a law."""
    seconds = roofline(fit.numbers, rows)
    if fit.ratio is not None:
        seconds = seconds * read_ratio(fit.ratio, (rows.m, rows.n, rows.k))
    return np.maximum(seconds, np.maximum(rows.flop_s, rows.byte_s))


def fit(rows: Timings, axes: tuple = AXES, ridge: float = 3.0) -> Fit:
    """Return the law fitted on some rows."""
    numbers = scalars(lambda x, at: roofline(x, rows, at), rows.seconds, START, BOUNDS)
    base = roofline(numbers, rows)
    table = ratio_table(axes, (rows.m, rows.n, rows.k), np.zeros_like(base), base, rows.seconds, ridge, ridge)
    return Fit(numbers, table)


def outside(rows: Timings) -> tuple[Errors, Errors]:
    """Return the errors of scalars alone and of the law on a fifth of the (n, k) pairs, fitted on the others."""
    test = held_out(rows.n, rows.k)
    law, seen = fit(rows.rows(~test)), rows.rows(test)
    return errors(roofline(law.numbers, seen), seen.seconds), errors(predict(law, seen), seen.seconds)


def fit_pooled(groups_: list[Timings]) -> Fit:
    """Return one law for several families: a coarser table, drawn harder toward 1."""
    return fit(pool(groups_, _POOL_ROWS), POOLED_AXES, ridge=200.0)
