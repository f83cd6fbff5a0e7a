"""Expert layers: seven scalars and a table over (rows per expert, experts of the GPU, parameters of one)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fit.read import DTYPES, FAMILIES, PEAK_OF, Columns, Floats, choose, groups, sheet
from fit.solve import Errors, errors, held_out, pool, ratio_table, read_ratio, scalars
from headway.cost.operators import Ratio
from headway.cost.physics import power_sum

AXES = ((0.05, 0.25, 1, 4, 16, 64, 256, 1024), (2, 8, 32, 128, 512), (3e5, 3e6, 3e7, 3e8))
POOLED_AXES = ((0.05, 1, 16, 256, 1024), (2, 32, 512), (3e5, 1e7, 3e8))
START = (0.4, 0.9, 20.0, 0.1, 1.5, 0.4, 16.0)  # compute, memory, launch us, skew, p, load, padding
BOUNDS = ((0.05, 1.0), (0.5, 1.0), (1.0, 80.0), (0.01, 2.0), (1.0, 6.0), (0.01, 3.0), (0.1, 128.0))
ROUTING = "power_law_1.01"  # the skew of real routing; balanced rows touch min(rows, experts) exactly
LAUNCH_CAP_US = 20.0  # older versions were timed without CUDA graphs: a service does not pay their launch
# timed several times slower than bytes and FLOPs explain, and than what the same engine serves with
UNUSED = (("h100", "vllm", "fp8"), ("b200", "sglang", "fp4"))
_ROWS_MIN = 300
_POOL_ROWS = 2500


class Timings(NamedTuple):
    """Rows of one family, engine and precision; `flop_s` and `byte_s` are one expert's, for one row."""

    gpu: str
    engine: str
    of: str
    version: str
    routed: Floats
    count: Floats
    ep: Floats
    params: Floats
    model: Floats
    flop_s: Floats
    byte_s: Floats
    seconds: Floats

    def rows(self, mask: np.ndarray) -> Timings:
        """Return some of the rows."""
        return Timings(*self[:4], *(values[mask] for values in self[4:]))


class Fit(NamedTuple):
    """A law's numbers in the order of `START`; its table."""

    numbers: Floats
    ratio: Ratio | None


def timings(table: Columns) -> list[Timings]:
    """Return the rows that a law is fitted on, by family, engine and precision.

    Skewed routing only; models without gates are left out; of several kernels timed on one shape the fastest counts.
    """
    gated = ~((table["topk"] == 22) | (table["inter_size"] == 1856))
    table = choose(table, gated & (table["distribution"] == ROUTING) & (table["time_us"] > 0))
    found = []
    for (name, engine, dtype, version), rows in groups(table, "gpu", "engine", "dtype", "engine_version").items():
        family, of = FAMILIES[name][0], DTYPES[dtype]
        card = sheet(family)
        if (family, engine, of) in UNUSED or PEAK_OF[of][0] not in card.flops or len(rows["time_us"]) < _ROWS_MIN:
            continue
        rows = _fastest(rows)
        experts, topk, hidden, inter, tp, ep, tokens = (rows[key].astype(float) for key in _SHAPE)
        params = 3.0 * hidden * inter / tp
        peak, weight, _ = PEAK_OF[of]
        model = experts * 1e12 + topk * 1e10 + hidden * 1e5 + inter
        seconds = rows["time_us"] * 1e-6
        flop_s, byte_s = 2.0 * params / card.flops[peak], weight * params / card.bytes_per_s
        found.append(
            Timings(
                *(family, engine, of, version, tokens * topk / ep, experts / ep, ep, params, model),
                *(flop_s, byte_s, seconds),
            ).rows(ep <= experts)
        )
    return found


_SHAPE = ("num_experts", "topk", "hidden_size", "inter_size", "moe_tp_size", "moe_ep_size", "num_tokens")


def _fastest(rows: Columns) -> Columns:
    key = np.stack([rows[name].astype(float) for name in _SHAPE], axis=1)
    order = np.lexsort((rows["time_us"], *key.T))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.any(np.diff(key[order], axis=0) != 0, axis=1)
    return choose(rows, np.sort(order[first]))


def core(numbers: Floats, rows: Timings, at: np.ndarray | slice = slice(None)) -> Floats:
    """Return the seconds of the law without table and launch."""
    compute, memory, _, skew, p, load, padding = numbers
    count = rows.count[at]
    routed = rows.routed[at] * (1.0 + load * np.sqrt((rows.ep[at] - 1.0) / count))
    touched = count * -np.expm1(-routed / (count * (1.0 + skew)))
    return power_sum((routed + padding * touched) * rows.flop_s[at] / compute, touched * rows.byte_s[at] / memory, p)


def predict(fit: Fit, rows: Timings) -> Floats:
    """Return the seconds of a law as timed."""
    scaled = core(fit.numbers, rows)
    if fit.ratio is not None:
        scaled = scaled * read_ratio(fit.ratio, coordinates(rows))
    return fit.numbers[2] * 1e-6 + scaled


def coordinates(rows: Timings) -> tuple[Floats, Floats, Floats]:
    """Return where rows lie in the table."""
    return rows.routed / rows.count, rows.count, rows.params


def fit(rows: Timings, axes: tuple = AXES, ridge: float = 3.0) -> Fit:
    """Return the law fitted on some rows."""
    numbers = scalars(lambda x, at: x[2] * 1e-6 + core(x, rows, at), rows.seconds, START, BOUNDS)
    launch = np.full(len(rows.seconds), numbers[2] * 1e-6)
    table = ratio_table(axes, coordinates(rows), launch, core(numbers, rows), rows.seconds, ridge, ridge)
    return Fit(numbers, table)


def outside(rows: Timings) -> tuple[Errors, Errors]:
    """Return the errors of scalars alone and of the law on a fifth of the models, fitted on the others."""
    seen, wanted = [], []
    for fold in range(3):
        test = _fold(rows.model, fold)
        if test.all() or not test.any():
            test = held_out(rows.routed, rows.count)
        law, rest = fit(rows.rows(~test)), rows.rows(test)
        seen.append((predict(Fit(law.numbers, None), rest), predict(law, rest)))
        wanted.append(rest.seconds)
    measured = np.concatenate(wanted)
    plain, full = (np.concatenate([pair[i] for pair in seen]) for i in (0, 1))
    return errors(plain, measured), errors(full, measured)


def _fold(model: Floats, fold: int) -> np.ndarray:
    _, inverse = np.unique(model, return_inverse=True)
    return inverse % 3 == fold


def fit_pooled(groups_: list[Timings]) -> Fit:
    """Return one law for several families: a coarser table, drawn harder toward 1."""
    return fit(pool(groups_, _POOL_ROWS), POOLED_AXES, ridge=100.0)
