"""Does the simulator order configurations as measurements do, and what does trusting its order cost?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

import numpy as np
from numpy.typing import NDArray

from headway.accuracy.judge import Outcome
from headway.accuracy.rows import Row
from headway.accuracy.score import Judged, headline
from headway.specs import Spec

__all__ = ["Agreement", "Ranking", "Regret", "kendall_tau", "rank"]

LIMITS_S = (0.015, 0.025, 0.05, 0.1)  # on the time per output token
MARGINS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # by which the prediction must stay under the limit
LEAST = 3  # rows of a sweep


class Agreement(Spec):
    """Kendall's tau-b over sweeps of at least three rows: 1 the same order, 0 none, -1 the reverse."""

    mean: float | None
    median: float | None
    n: int


class Regret(Spec):
    """What choices cost against the best measured ones, as fractions of these: 0 is the best.

    Where nothing is predicted to keep the limit, the nearest to it is chosen, as `plan` then names it. A choice that
    measured above its limit costs 1. `kept` is the share of choices that kept the limit, `mean_kept` their mean
    regret, `by_margin` the mean regret where predictions must stay so much below the limit.
    """

    mean: float | None
    median: float | None
    p90: float | None
    kept: float | None
    mean_kept: float | None
    by_margin: dict[str, float]
    n: int


class Ranking(Spec):
    """Regret of choosing a configuration with its load by two objectives, and without; agreement of three orders.

    `deployments`: throughput per GPU where the configuration alone is chosen. It then runs at its best measured load
    that keeps the limit, as one that is served does; it costs 1 where it has none.
    """

    throughput_per_gpu: Regret
    energy_per_token: Regret
    deployments: Regret
    kendall: dict[str, Agreement]


def rank(judged: Iterable[Judged]) -> Ranking:
    """Return regret and rank agreement of the judged rows.

    Choices are made among the rows of one model, GPU, workload and lengths, under each of four limits on the time
    per output token; of configurations where there are several. Sweeps are rows that also share source, engine and
    precision.
    """
    judged = list(judged)
    return Ranking(
        throughput_per_gpu=_regret(judged, _rates, most=True),
        energy_per_token=_regret(judged, lambda one: headline(one, "energy_per_token"), most=False),
        deployments=_regret(judged, _rates, most=True, load=False),
        kendall={
            "throughput_per_gpu": _agreement(judged, _rates),
            "ttft": _agreement(judged, lambda one: headline(one, "ttft")),
            "tpot": _agreement(judged, lambda one: headline(one, "tpot")),
        },
    )


def kendall_tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return tau-b of two sequences of equal length; NaN where one of them is all ties."""
    rows, columns = np.triu_indices(len(first), 1)
    one, two = np.sign(first[rows] - first[columns]), np.sign(second[rows] - second[columns])
    ties = np.sqrt(float(np.count_nonzero(one)) * float(np.count_nonzero(two)))
    return float((one * two).sum() / ties) if ties else float("nan")


Pair = Callable[[Judged], tuple[float, float] | None]


def _rates(judged: Judged) -> tuple[float, float] | None:
    """(measured, predicted) tokens/s per GPU; of a closed loop without a measured throughput by Little's law."""
    row, outcome = judged
    pair = headline(judged, "output_throughput") or _little(row, outcome)
    return None if pair is None or not outcome.gpus else (pair[0] / outcome.gpus, pair[1] / outcome.gpus)


def _little(row: Row, outcome: Outcome) -> tuple[float, float] | None:
    if not row.concurrency or not row.osl_mean:
        return None
    rates = []
    for figures in (row.measured, outcome.predicted):
        if not {"ttft_mean", "tpot_mean"} <= figures.keys():
            return None
        stay_s = figures["ttft_mean"] + (row.osl_mean - 1) * figures["tpot_mean"]
        rates.append(row.concurrency * row.osl_mean / stay_s)
    return rates[0], rates[1]


def _agreement(judged: list[Judged], pair_of: Pair) -> Agreement:
    def sweep(row: Row) -> Hashable:
        return (row.source, row.engine, row.precision_weights, row.mode, *_place(row))

    taus = []
    for pairs in _grouped(judged, sweep, pair_of).values():
        values = np.array(pairs)
        if len(values) >= LEAST:
            taus.append(kendall_tau(values[:, 0], values[:, 1]))
    found = np.array([tau for tau in taus if tau == tau])
    if not len(found):
        return Agreement(mean=None, median=None, n=0)
    return Agreement(mean=float(found.mean()), median=float(np.median(found)), n=len(found))


def _place(row: Row) -> tuple[Hashable, ...]:
    return row.model_key, row.gpu_key, row.workload, row.isl_mean, row.osl_mean if row.isl_mean else None


def _grouped(
    judged: list[Judged], key: Callable[[Row], Hashable], pair_of: Pair
) -> dict[Hashable, list[tuple[float, float]]]:
    groups: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for one in judged:
        pair = pair_of(one)
        if pair is not None:
            groups[key(one[0])].append(pair)
    return groups


_SIDES = re.compile(r"(?:prefill|decode)\[[^\]]*\]|moe_tp=\d+")


def _configuration(row: Row) -> Hashable:
    """Equal for rows that differ in their load alone."""
    layout = (row.gpu_count, row.tp, row.pp, row.ep, row.dp, row.mode, *_SIDES.findall(row.notes))
    return (row.source, row.engine, row.engine_version, row.precision_weights, row.precision_kv, *layout)


def _regret(judged: list[Judged], pair_of: Pair, *, most: bool, load: bool = True) -> Regret:
    """Regret of taking the configuration with the best predicted value under a limit."""
    groups: dict[Hashable, list[tuple[float, float, float, float, float]]] = defaultdict(list)
    numbers: dict[Hashable, dict[Hashable, int]] = defaultdict(dict)
    for one in judged:
        value, pace = pair_of(one), headline(one, "tpot")
        if value is not None and pace is not None:
            place = _place(one[0])
            known = numbers[place]
            number = known.setdefault(len(known) if load else _configuration(one[0]), len(known))
            groups[place].append((*value, *pace, number))
    tables = [np.array(rows) for place, rows in groups.items() if len(numbers[place]) > 1]
    by_margin = {f"{margin:g}": _choices(tables, margin, most) for margin in MARGINS}
    found = by_margin["0"]
    if not len(found):
        return Regret(mean=None, median=None, p90=None, kept=None, mean_kept=None, by_margin={}, n=0)
    regrets, kept = found[:, 0], found[:, 1] > 0
    return Regret(
        mean=float(regrets.mean()),
        median=float(np.median(regrets)),
        p90=float(np.quantile(regrets, 0.9)),
        kept=float(kept.mean()),
        mean_kept=float(regrets[kept].mean()) if kept.any() else None,
        by_margin={margin: float(choices[:, 0].mean()) for margin, choices in by_margin.items()},
        n=len(regrets),
    )


def _choices(tables: list[NDArray[np.float64]], margin: float, most: bool) -> NDArray[np.float64]:
    """(regret, 1 if the limit was kept) of each choice; tables hold value and pace, each measured and predicted.

    Rows of one number, the last column, are loads of one configuration: that of the row chosen is what is chosen.
    """
    found = []
    for table in tables:
        value, predicted, pace, predicted_pace, number = table.T
        sign = 1.0 if most else -1.0
        for limit_s in LIMITS_S:
            allowed = pace <= limit_s
            if not allowed.any():
                continue
            best = float((sign * value[allowed]).max())
            offered = np.where(predicted_pace <= limit_s * (1 - margin), sign * predicted, -np.inf)
            chosen = offered.argmax() if offered.max() > -np.inf else predicted_pace.argmin()
            its = allowed & (number == number[int(chosen)])
            if not its.any():
                found.append((1.0, 0.0))
            else:
                found.append((abs(best - float((sign * value[its]).max())) / abs(best), 1.0))
    return np.array(found).reshape(-1, 2)
