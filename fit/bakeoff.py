"""Ways to predict the time of a matrix product compared on shapes held out, and laws carried to a GPU left out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fit import gemm
from fit.laws import left_one_out
from fit.read import WORKSTATION, Columns, Floats
from fit.solve import Errors, errors, held_out

FAMILIES = (("h100", "vllm", "bf16"), ("h100", "vllm", "fp8"), ("h200", "sglang", "fp8_block"), ("b200", "vllm", "fp4"))
_SHEET = np.array([1.0, 1.0, 3.0, 8.0])  # all of the data sheet, 3 us a launch
_FEW = 8


class Entrant(NamedTuple):
    """A predictor: what it stores, how many timings of this GPU it needs, its errors by family."""

    name: str
    stored_bytes: int
    timings: int
    by_family: list[Errors]


def contest(table: Columns) -> list[Entrant]:
    """Return each predictor's errors on a fifth of the (n, k) pairs of each family."""
    every = gemm.timings(table)
    scores: dict[str, list[tuple[int, int, Errors]]] = {}
    for key in FAMILIES:
        rows = next(group for group in every if (group.gpu, group.engine, group.of) == key)
        test = held_out(rows.n, rows.k)
        seen, asked = rows.rows(~test), rows.rows(test)
        same = [other for other in every if other.of == key[2] and other.gpu != key[0]]
        elsewhere = [other for other in same if other.gpu not in WORKSTATION]
        for name, (stored, needed, predicted) in _entrants(seen, asked, elsewhere).items():
            scores.setdefault(name, []).append((stored, needed, errors(predicted, asked.seconds)))
    return [
        Entrant(name, max(s for s, _, _ in found), max(n for _, n, _ in found), [e for _, _, e in found])
        for name, found in scores.items()
    ]


def _entrants(
    seen: gemm.Timings, asked: gemm.Timings, elsewhere: list[gemm.Timings]
) -> dict[str, tuple[int, int, Floats]]:
    """Bytes stored, timings needed and predictions, by name."""
    law, count = gemm.fit(seen), len(seen.m)
    pooled = gemm.fit_pooled(elsewhere)
    base = gemm.predict(pooled, asked)
    found = {
        "data sheet": (0, 0, gemm.roofline(_SHEET, asked)),
        "pooled law, never timed here": (200, 0, base),
        f"pooled law scaled by {_FEW} timings": (208, _FEW, base * _few_shot(pooled, seen)),
        "roofline, 4 scalars": (32, count, gemm.roofline(law.numbers, asked)),
        "roofline x table (shipped)": (32 + 2 * 175, count, gemm.predict(law, asked)),
        "nearest shape timed": (8 * count, count, _nearest(seen, asked)),
    }
    boosted = _boosted(seen, asked)
    if boosted is not None:
        found["boosted trees, 300 x 31 leaves"] = (boosted[0], count, boosted[1])
    return found


def _few_shot(pooled: gemm.Fit, seen: gemm.Timings) -> float:
    """The median ratio of a few timings, spread over what was seen, to the pooled law."""
    some = seen.rows(np.linspace(0, len(seen.m) - 1, _FEW + 2).astype(int)[1:-1])
    return float(np.median(some.seconds / gemm.predict(pooled, some)))


def _features(rows: gemm.Timings) -> Floats:
    return np.log(np.stack([rows.m, rows.n, rows.k], axis=1))


def _nearest(seen: gemm.Timings, asked: gemm.Timings) -> Floats:
    """The time of the nearest shape by logarithms, as it was measured."""
    from scipy.spatial import cKDTree

    _, index = cKDTree(_features(seen)).query(_features(asked))
    return seen.seconds[index]


def _boosted(seen: gemm.Timings, asked: gemm.Timings) -> tuple[int, Floats] | None:
    """Gradient-boosted trees on the log time; None where LightGBM is not installed."""
    try:
        import lightgbm
    except ImportError:
        return None
    options = {"objective": "l1", "num_leaves": 31, "learning_rate": 0.1, "verbosity": -1, "num_threads": 1, "seed": 0}
    columns = [np.column_stack([_features(r), np.log(r.flop_s), np.log(r.byte_s), r.m % 64]) for r in (seen, asked)]
    model = lightgbm.train(options, lightgbm.Dataset(columns[0], np.log(seen.seconds)), 300)
    return len(model.model_to_string()), np.exp(model.predict(columns[1]))


class Transfer(NamedTuple):
    """Errors on a GPU: of the data sheet, of a law pooled over the others, of its own law on shapes held out."""

    gpu: str
    of: str
    sheet: Errors
    pooled: Errors
    own: Errors


def transfer(table: Columns) -> list[Transfer]:
    """Return how laws carry to a GPU left out, for the vLLM rows of each precision."""
    every = [rows for rows in gemm.timings(table) if rows.engine == "vllm"]
    found = []
    for of in ("bf16", "fp8", "fp4"):
        alike = [rows for rows in every if rows.of == of]
        for rows, rest in left_one_out(alike):
            servers = [other for other in rest if other.gpu not in WORKSTATION]
            pooled = errors(gemm.predict(gemm.fit_pooled(servers), rows), rows.seconds)
            sheet = errors(gemm.roofline(_SHEET, rows), rows.seconds)
            found.append(Transfer(rows.gpu, of, sheet, pooled, gemm.outside(rows)[1]))
    return found
