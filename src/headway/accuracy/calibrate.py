"""`calibrate`: from a user's own measured points, the few numbers that bring the shipped law nearest to them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from headway.accuracy.calibration_fit import (
    INTERVAL_SDS,
    STRENGTHS,
    UNSEEN_STRENGTHS,
    Fit,
    Judgement,
    Prior,
    errors_by_metric,
    fit,
    judge_fit,
    predictions,
    shipped_prior,
)
from headway.accuracy.calibration_points import TERMS, Figure, Point, linearize, term_values
from headway.accuracy.reading import Inexpressible, read_engine, read_gpu, suspicion
from headway.accuracy.rows import Row
from headway.accuracy.run import NAMES_A_ROW, PHYSICS
from headway.accuracy.runs import BENCH, Run
from headway.accuracy.units import BROKEN_MOST, UNIT_RATIO, expected_unit, times
from headway.cost.calibration import FACTORS, Calibration, Evidence, Term
from headway.cost.replica import limits
from headway.errors import BadInput
from headway.hardware import is_file
from headway.model import model
from headway.specs import Spec

__all__ = ["Calibrated", "calibrate", "measured_on"]

Floats = npt.NDArray[np.float64]
Progress = Callable[[int, int | None], None]

LEAST_POINTS: Final = 10
PRECISION_POINTS: Final = 5  # with fewer of a pair of precisions the error held out is that of the others
LOADS: Final = (1, 8, 64, 256)  # requests in flight worth measuring, few to many
PROMPTS: Final = (128, 1024, 8192)
CONTRADICTION: Final = {"ttft": 1.6, "tpot": 1.25, "output_throughput": 1.25, "e2e": 1.25}
SHOWN: Final = 12  # row ids in one line
CONTRADICTED_MOST: Final = 0.2  # of the settings: with more no fit can tell which figures are right
SCATTER: Final = {"tpot": 0.2, "output_throughput": 0.2, "e2e": 0.2}  # held out at the median: four times the usual
CONTRADICTS: Final = "contradicts a repeat of its setting"
ERROR_MOST: Final = 0.5  # median after the fit: what the law describes was not measured
REPEAT: Final = "repeats another row"
ALREADY: Final = 0.7  # of a term's prior width: above, the points say little about it


class Calibrated(Spec):
    """A calibration, what it rests on, and what to know before trusting it.

    `broken` are rows that no hardware can have measured, `contradictions` repeats of one setting that disagree: neither
    are fitted. `suspects` are rows that look wrong, by reason; they were used, weighed down where they lie far out.
    `advice` says which points to measure next.
    """

    calibration: Calibration
    evidence: Evidence
    broken: dict[str, str]
    suspects: dict[str, str]
    contradictions: list[str]
    advice: list[str]


def calibrate(
    rows: Sequence[Row | Run], *, source: str = "", prior: Prior | None = None, progress: Progress | None = None
) -> Calibrated:
    """Fit a calibration on measured rows or runs of one GPU and engine.

    On hardware of the user's own description the priors may be far wider: nothing was measured on it.

    Args:
        rows: as `read_rows` or `read_run` give them.
        source: where they are from, for the provenance of results.
        prior: widths and noise; None takes the shipped ones.
        progress: called with rows done and rows in all.

    Raises:
        BadInput: several GPUs or engines, fewer than ten usable points, all of them at one load, repeats that disagree
            in over a fifth of the settings, over a fifth of rows that break physics, or figures that no calibration
            brings near: a wrong unit.
    """
    prior = prior or shipped_prior()
    gpu_key, engine = measured_on(rows)
    points, left_out = _points(rows, progress)
    described = is_file(gpu_key)  # on a data sheet alone: any factor may be right
    if not described:
        _check_units(points)
    points, contradictions = _agreeing(points, left_out)
    _check_enough(points, left_out)
    _check_physics(len(points), left_out)
    judged = judge_fit(points, prior, UNSEEN_STRENGTHS if described else STRENGTHS)
    found = fit(_figures(points, judged.without), prior, judged.strength or 1.0)
    if judged.strength and any(point.case.kind == "open" for point in points):
        points = _around(points, _calibration(found, judged, points, prior, (gpu_key, engine), source))
        found = fit(_figures(points, judged.without), prior, judged.strength)
    calibration = _calibration(found, judged, points, prior, (gpu_key, engine), source)
    figures = _figures(points)
    measured = np.array([f.measured for f in figures])
    after = predictions(figures, term_values(calibration))
    evidence = Evidence(
        points=len(points),
        left_out=dict(Counter(_kind(reason) for reason in left_out.values()).most_common()),
        kept=bool(judged.strength),
        before=_rounded(errors_by_metric(figures, np.log(np.array([f.shipped for f in figures]) / measured))),
        held_out=_rounded(errors_by_metric(figures, judged.held_out)),
        tried={} if judged.strength else _rounded(errors_by_metric(figures, judged.tried)),
        after=_rounded(errors_by_metric(figures, np.log(after / measured))),
    )
    _check_near(figures, after, evidence.after)
    counts = Counter(figure.metric for figure in figures)
    held_out, of = tuple(evidence.held_out.items()), tuple(counts.items())
    return Calibrated(
        calibration=msgspec.structs.replace(calibration, held_out=held_out, held_out_figures=of),
        evidence=evidence,
        broken={row_id: reason for row_id, reason in left_out.items() if reason.startswith(PHYSICS)},
        suspects={point.row.row_id: why for point in points if (why := suspicion(point.row))},
        contradictions=contradictions,
        advice=[*_scattered(evidence.held_out), *_advice(points, found, judged.without, evidence.after)],
    )


def measured_on(rows: Sequence[Row | Run]) -> tuple[str, str]:
    """Return the one GPU and engine of the rows.

    Raises:
        BadInput: several of them, or none that is known.
    """
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if isinstance(row, Run):
            found[row.row.gpu_key, row.row.engine] += 1
            continue
        try:
            card = read_gpu(row)
            found[card.key, read_engine(row, card)[0]] += 1
        except Inexpressible:
            continue
    if not found:
        raise BadInput("no row names a GPU of the catalogue: `headway list gpus` shows them")
    if len(found) > 1:
        held = ", ".join(f"{gpu} with {engine} ({count} rows)" for (gpu, engine), count in found.most_common(6))
        raise BadInput(f"a calibration is of one GPU and one engine; the file holds {held}: choose with --where, as "
                       "in --where gpu_key=H100 --where engine=vllm")  # fmt: skip
    return next(iter(found))


def _points(rows: Sequence[Row | Run], progress: Progress | None) -> tuple[list[Point], dict[str, str]]:
    """Usable points, and why each other row is none."""
    points: list[Point] = []
    left_out: dict[str, str] = {}
    seen: set[tuple[object, ...]] = set()
    for done, came in enumerate(rows, start=1):
        row, case = came if isinstance(came, Run) else (came, None)
        settings = [getattr(row, name) for name in row.__struct_fields__ if name not in NAMES_A_ROW]
        key = (*settings, *row.measured.items())
        point = REPEAT if key in seen else linearize(row, case=case)
        seen.add(key)
        if isinstance(point, str):
            left_out[row.row_id] = point
        else:
            points.append(point)
        if progress is not None:
            progress(done, len(rows))
    return points, left_out


def _agreeing(points: list[Point], left_out: dict[str, str]) -> tuple[list[Point], list[str]]:
    """The points without settings whose repeats are further apart than repeats are, and what those disagree in.

    Raises:
        BadInput: more than a fifth of the settings do.
    """
    groups: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in points:
        groups[(*point.setting, point.row.engine_version)].append(point)
    said: list[str] = []
    kept: list[Point] = []
    apart = 0
    for group in groups.values():
        disagree = _disagreements(group)
        said += disagree
        apart += bool(disagree)
        if disagree:
            left_out.update({point.row.row_id: CONTRADICTS for point in group})
        else:
            kept += group
    if apart > CONTRADICTED_MOST * len(groups):
        raise BadInput(
            f"{apart} of {len(groups)} settings were measured with figures that contradict each other: "
            f"{'; '.join(said[:3])}. Name what differs in its column, or choose rows with --where"
        )
    return kept, said


def _disagreements(group: Sequence[Point]) -> list[str]:
    found = []
    for metric, limit in CONTRADICTION.items():
        figures = [(f.measured, p.row.row_id) for p in group for f in p.figures if f.metric == metric]
        if figures and max(figures)[0] > limit * min(figures)[0]:
            ids = ", ".join(row_id for _, row_id in sorted(figures)[:SHOWN])
            ratio = max(figures)[0] / min(figures)[0]
            found.append(f"{metric} of one setting differs {ratio:.1f} times between rows {ids}")
    return found


def _check_units(points: list[Point]) -> None:
    """Refuse figures that are off by a factor no hardware explains."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for point in points:
        for figure in point.figures:
            ratios[figure.metric].append(figure.measured / figure.shipped)
    for metric, found in ratios.items():
        ratio = float(np.median(found))
        if not 1.0 / UNIT_RATIO <= ratio <= UNIT_RATIO:
            raise BadInput(
                f"{metric}: measured is {times(ratio)} times the predicted at the median of {len(found)} points: "
                f"{expected_unit(metric)}"
            )


def _check_near(figures: list[Figure], after: Floats, errors: dict[str, float]) -> None:
    """Refuse points that the law stays far from whatever its terms; a TTFT beside others may: queues magnify errors."""
    for metric, error in errors.items():
        if error > ERROR_MOST and (metric != "ttft" or len(errors) == 1):
            ratios = [f.measured / said for f, said in zip(figures, after, strict=True) if f.metric == metric]
            raise BadInput(
                f"{metric}: after the fit still {100 * error:.0f} % off at the median, measured is "
                f"{times(float(np.median(ratios)))} times the predicted: nothing was calibrated; "
                f"{expected_unit(metric)}, and that rows name the load and layout they were measured with"
            )


def _check_enough(points: list[Point], left_out: dict[str, str]) -> None:
    loads = {_load(point) for point in points}
    if len(points) >= LEAST_POINTS and len(loads) > 1:
        return
    missing = (
        f"all {len(points)} points are at one load"
        if len(points) >= LEAST_POINTS
        else f"{len(points)} usable point{'' if len(points) == 1 else 's'}, a calibration takes at least {LEAST_POINTS}"
    )
    reasons = Counter(_kind(reason) for reason in left_out.values()).most_common(3)
    unusable = "; ".join(f"{count} rows left out: {reason}" for reason, count in reasons)
    said = f"{missing}{'; ' + unusable if unusable else ''}"
    if not points:
        raise BadInput(f"{said}. Mend these rows first")
    nexts = "; ".join(_uncovered(points)) or "repeat the points you have at further loads"
    raise BadInput(f"{said}. Measure next: {nexts}")


def _check_physics(points: int, left_out: dict[str, str]) -> None:
    """Refuse a table of which so much cannot have been measured that the rest is in doubt."""
    broken = Counter(_kind(reason) for reason in left_out.values() if reason.startswith(PHYSICS))
    if broken.total() > BROKEN_MOST * (points + broken.total()):
        said = "; ".join(f"{count} rows: {reason}" for reason, count in broken.most_common(3))
        raise BadInput(
            f"{broken.total()} of {points + broken.total()} rows cannot have been measured as they stand ({said}): "
            "check the units, the GPU, TP and precision they name, or choose rows with --where"
        )


def _scattered(held_out: dict[str, float]) -> list[str]:
    """A warning where points left out are predicted badly by the others: no law goes through them all."""
    far = [f"{metric} {100 * error:.0f} %" for metric, error in held_out.items() if error > SCATTER.get(metric, 1.0)]
    if not far:
        return []
    return [
        f"the points scatter: those held out stay {', '.join(far)} off at the median (5 % is usual); repeat some, and "
        "name what differs between them in its column"
    ]


def _kind(reason: str) -> str:
    """A reason without the particulars of one row."""
    return reason.partition(";")[0]


def _load(point: Point) -> tuple[float | None, ...]:
    return point.row.concurrency, point.row.request_rate, point.row.batch_size


def _figures(points: Sequence[Point], without: str = "") -> list[Figure]:
    return [figure for point in points for figure in point.figures if figure.metric != without]


def _around(points: list[Point], calibration: Calibration) -> list[Point]:
    """The points with open loops simulated again: which steps happen there depends on how long they take."""
    moved = []
    for point in points:
        again = linearize(point.row, calibration, point, point.case) if point.case.kind == "open" else point
        moved.append(point if isinstance(again, str) else again)
    return moved


# --- what comes out -------------------------------------------------------------------------------------------


def _calibration(
    found: Fit, judged: Judgement, points: Sequence[Point], prior: Prior, where: tuple[str, str], source: str
) -> Calibration:
    """The fit as numbers with intervals; neutral ones where the shipped law stays."""
    widths = (judged.strength or 1.0) * np.array([prior.widths[name] for name in TERMS])
    sds = np.maximum(np.sqrt(np.diag(found.covariance)) * widths, judged.spread) * INTERVAL_SDS
    values = found.values if judged.strength else term_values(None)
    floor = np.max([figure.floors for figure in _figures(points)], axis=0)
    terms = {}
    for place, name in enumerate(TERMS):
        value, width = float(values[place]), float(sds[place])
        if name in FACTORS:
            low, high = value * float(np.exp(-width)), value * float(np.exp(width))
        else:
            least = -float(floor[place - len(FACTORS)])
            value = max(value, least)
            low, high = max(value - width, least), value + width
        terms[name] = Term(value=_short(value), low=min(_short(low), _short(value)),
                           high=max(_short(high), _short(value)))  # fmt: skip
    replicas = [pool.replica for point in points for pool in point.case.deployment.pools]
    return Calibration(
        gpu=where[0],
        engine=where[1],
        versions=tuple(sorted({replica.engine.version for replica in replicas} - {""})),
        models=tuple(sorted({replica.model for replica in replicas})),
        weights=tuple(sorted({replica.weights for replica in replicas})),
        kv=tuple(sorted({replica.kv for replica in replicas})),
        precisions=tuple(sorted(pair for pair, count in _precisions(points).items() if count >= PRECISION_POINTS)),
        gpu_counts=tuple(sorted({replica.gpus for replica in replicas})),
        layouts=tuple(sorted({(replica.tp, replica.pp, replica.dp, replica.ep) for replica in replicas})),
        limits=tuple(sorted({limits(replica) for replica in replicas})),
        source=source,
        **terms,  # type: ignore[arg-type]
    )


def _precisions(points: Sequence[Point]) -> Counter[tuple[str, str]]:
    """How many points there are of each pair of precisions, of weights and of KV."""
    replicas = (point.case.deployment.pools[-1].replica for point in points)
    return Counter((replica.weights, replica.kv) for replica in replicas)


def _short(value: float) -> float:
    return float(f"{value:.4g}") + 0.0  # no minus zero


def _rounded(errors: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in errors.items()}


def _advice(points: Sequence[Point], found: Fit, without: str, after: dict[str, float]) -> list[str]:
    """What to measure next: loads and lengths not covered, for the terms the points leave open."""
    open_terms = [name for name, sd in zip(TERMS, np.sqrt(np.diag(found.covariance)), strict=True) if sd > ALREADY]
    said = _uncovered(points)
    if open_terms:
        said.append(f"the points say little about {', '.join(open_terms)}: these stay near the shipped law")
    if after.get("ttft", 0.0) > ERROR_MOST:
        off = f"{100 * after['ttft']:.0f} %"
        said.append(f"the points' ttft stays {off} off: check the unit, milliseconds are expected, and how load began")
    for (weights, kv), count in sorted(_precisions(points).items()):
        if count < PRECISION_POINTS:
            said.append(f"{PRECISION_POINTS - count} points more with weights={weights}, kv={kv}: {count} of "
                        f"{len(points)} are too few to be sure of these precisions")  # fmt: skip
    if without:
        said.append(f"the points' {without} was not fitted: with it, other figures of points left out came out worse")
    return said


def _seats(point: Point) -> float:
    """Requests that what served a run can have in flight; what served a table's row had room for its load."""
    pool = point.case.deployment.pools[-1]
    return pool.count * pool.replica.engine.max_seqs if point.row.source == BENCH else math.inf


def _uncovered(points: Sequence[Point]) -> list[str]:
    loads = [load for point in points for load in (point.row.concurrency or point.row.batch_size,) if load]
    prompts = [point.row.isl_mean for point in points if point.row.isl_mean]
    said = []
    seats = max(map(_seats, points), default=math.inf)
    wanted = [load for load in LOADS if load <= seats]
    missing = [str(load) for load in wanted if not any(load / 2 <= seen <= load * 2 for seen in loads)]
    if missing:
        said.append(f"{', '.join(missing)} requests in flight")
    contexts = (model(point.case.deployment.pools[0].replica.model).max_context for point in points)
    longest = max(contexts, default=math.inf)
    asked = [length for length in PROMPTS if length <= longest]
    far = [str(length) for length in asked if not any(length / 3 <= seen <= length * 3 for seen in prompts)]
    if far:
        said.append(f"prompts of about {', '.join(far)} tokens")
    for metric, column in (("ttft", "ttft_mean_ms"), ("tpot", "tpot_mean_ms")):
        if not any(figure.metric == metric for point in points for figure in point.figures):
            said.append(f"the column {column}")
    return said
