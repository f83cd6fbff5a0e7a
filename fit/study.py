"""What the accuracy tables are made of: every row simulated, every figure predicted by fits that have not seen it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fit.contest import Entrant, contest
from fit.engines import DATA as ENGINES
from fit.engines import NAMES, Point
from fit.folds import Crossed, crossed, fold_by, moved_kernels, placed
from fit.joules import Energy, energy
from fit.measure import Sample
from headway.accuracy import Accuracy, Outcome, Row, validate
from headway.accuracy.ranking import Ranking, rank
from headway.accuracy.reading import suspicion
from headway.accuracy.run import NAMES_A_ROW

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
SERVED = ("aiconfigurator-silicon", "ml.energy-v3")  # engines under a stated load, with times between tokens
BIG_THREE = ("vllm", "sglang", "trtllm")


class Figures(NamedTuple):
    """Log ratios of predicted to measured seconds of one kind of figure, and the samples they are of."""

    logs: Floats
    at: npt.NDArray[np.int64]

    def of(self, keep: Flags) -> Floats:
        """Return the log ratios of some samples, given for all."""
        return self.logs[keep[self.at]]


class Study(NamedTuple):
    """Samples that are sums of steps, their log ratios by what was left out and by stage, and the rest."""

    shipped: Accuracy
    sheet: Accuracy
    samples: list[Sample]
    doubted: Flags
    splits: dict[str, Crossed]  # "pair", "model", "gpu", "rows", "sibling", "stranger"
    stages: dict[str, list[Floats]]  # of the ablation, in order
    lacking: dict[str, dict[int, Floats]]  # everything but one part, by place of the sample
    entrants: list[Entrant]
    energy: Energy
    rank_unseen: Ranking
    rank_unseen_trusted: Ranking


def studied(rows: Sequence[Row], samples: list[Sample], pool: Executor, folder: Path) -> Study:
    """Return everything; `pool` runs the fits."""
    shipped = validate(rows, answers=lambda _: _each(sample.shipped for sample in samples))
    sheet = validate(rows, answers=lambda _: _each(sample.sheet for sample in samples))
    pointed = [sample for sample in samples if sample.whole is not None and sample.plain is not None]
    points = [sample.whole for sample in pointed if sample.whole is not None]
    keys = [_setting(sample.row) for sample in pointed]
    doubted = np.array([bool(suspicion(sample.row)) for sample in pointed]) | _repeated(keys)
    splits = {}
    places, tried = [placed(sample) for sample in pointed], [sample.tried for sample in pointed]
    for split in ("pair", "model", "gpu", "rows"):
        some = places if split == "rows" else ()
        splits[split] = crossed(pool, points, fold_by(split, points, keys), places=some, tried=tried)
        print(f"  fitted without each {split}", flush=True)
    by_gpu = fold_by("gpu", points, keys)
    for law in ("sibling", "stranger"):
        splits[law] = _carried(pool, pointed, points, by_gpu, law)
    print("  carried to GPUs left out with their laws", flush=True)
    stages = _stages(pool, pointed, keys, splits["pair"])
    lacking = _lacking(pool, pointed, keys)
    print("  ablated", flush=True)
    entrants = _contested(pointed, doubted, fold_by("pair", points, keys), splits["pair"], stages["data sheet"])
    print("  predictors compared", flush=True)
    return Study(
        shipped, sheet, pointed, doubted, splits, stages, lacking, entrants,
        energy(folder, pointed, keys, splits), _ranked(pointed, splits["pair"].logs),
        _ranked(*_some(pointed, splits["pair"].logs, ~doubted)),
    )  # fmt: skip


def _each(outcomes: Iterator[Outcome]) -> Iterator[tuple[int, Outcome]]:
    return enumerate(outcomes)


def _setting(row: Row) -> str:
    """Equal for rows of equal settings and figures: the same measurement, published twice."""
    settings = [getattr(row, name) for name in row.__struct_fields__ if name not in NAMES_A_ROW]
    return repr((*settings, *row.measured.items()))


def _repeated(keys: Sequence[str]) -> Flags:
    seen: set[str] = set()
    again = []
    for key in keys:
        again.append(key in seen)
        seen.add(key)
    return np.array(again)


# --- figures ------------------------------------------------------------------------------------------------


def figures(study: Study, logs: Sequence[Floats] | dict[int, Floats], kind: str) -> Figures:
    """Return one kind of figure; "throughput" is the rate, or by Little's law where none was measured."""
    found = []
    for i, sample in enumerate(study.samples):
        if isinstance(logs, dict) and i not in logs:
            continue
        assert sample.whole is not None
        kinds = [figure.kind for figure in sample.whole.figures]
        if kind in kinds:
            found.append((float(logs[i][kinds.index(kind)]), i))
        elif kind == "throughput":
            found += [(value, i) for value in _throughput(sample, kinds, logs[i])]
    values, at = zip(*found, strict=True) if found else ((), ())
    return Figures(np.array(values, dtype=float), np.array(at, dtype=np.int64))


def _throughput(sample: Sample, kinds: list[str], logs: Floats) -> list[float]:
    if "rate" in kinds:
        return [float(logs[kinds.index("rate")])]
    if not {"tpot", "ttft"} <= set(kinds) or not sample.row.osl_mean or sample.row.mode == "single-stream":
        return []
    assert sample.whole is not None
    stay = {f.kind: (f.measured_s, f.measured_s * float(np.exp(v))) for f, v in
            zip(sample.whole.figures, logs, strict=True)}  # fmt: skip
    measured, predicted = (stay["ttft"][i] + (sample.row.osl_mean - 1) * stay["tpot"][i] for i in (0, 1))
    return [float(np.log(predicted / measured))]


def is_from(study: Study, *sources: str) -> Flags:
    """Return which samples are of these sources, by the beginnings of their names."""
    return np.array([sample.row.source.startswith(sources) for sample in study.samples])


def engine_is(study: Study, engine: str) -> Flags:
    """Return which samples are of an engine."""
    return np.array([sample.whole is not None and sample.whole.engine == engine for sample in study.samples])


# --- ablation -----------------------------------------------------------------------------------------------


def _stages(pool: Executor, samples: list[Sample], keys: list[str], full: Crossed) -> dict[str, list[Floats]]:
    """Log ratios by stage; terms are fitted without the pair."""
    plain = [sample.plain for sample in samples if sample.plain is not None]
    whole = [sample.whole for sample in samples if sample.whole is not None]
    measured = [np.array([figure.measured_s for figure in point.figures]) for point in plain]
    bare = {name: [np.array(sample.kernels[name]) for sample in samples] for name in ("sheet", "scalars")}
    bare["tables"] = [np.array([figure.kernels_s for figure in point.figures]) for point in plain]
    named = {"data sheet": "sheet", "operator laws, scalars": "scalars", "with ratio tables": "tables"}
    stages = {
        stage: [np.log(k / m) for k, m in zip(bare[name], measured, strict=True)] for stage, name in named.items()
    }
    folds = fold_by("pair", whole, keys)
    stages["+ host terms, one set for all"] = crossed(pool, plain, folds, together=True).logs
    stages["+ batching discipline"] = crossed(pool, whole, folds, together=True).logs
    stages["+ terms by release"] = crossed(pool, whole, folds).logs
    stages["+ settings chosen in the folds"] = full.logs
    return stages


def _lacking(pool: Executor, samples: list[Sample], keys: list[str]) -> dict[str, dict[int, Floats]]:
    """Log ratios of the large engines' rows, pairs left out, one part missing and the terms fitted again."""
    at = [i for i, sample in enumerate(samples) if _point(sample).engine in BIG_THREE]
    whole = [_point(samples[i]) for i in at]
    folds = fold_by("pair", whole, [keys[i] for i in at])
    some = [samples[i] for i in at]
    plain = [sample.plain for sample in some if sample.plain is not None]
    cases = {
        "nothing": whole,
        "operator laws (data sheet instead)": moved_kernels(some, "sheet whole"),
        "ratio tables": moved_kernels(some, "scalars whole"),
        "batching discipline": plain,
    }
    cases |= {f"host: {name}": [_without(point, k) for point in whole] for k, name in enumerate(NAMES)}
    found = {name: crossed(pool, points, folds).logs for name, points in cases.items()}
    found["releases (one set of terms for all)"] = crossed(pool, whole, folds, together=True).logs
    return {name: dict(zip(at, logs, strict=True)) for name, logs in found.items()}


def _point(sample: Sample) -> Point:
    assert sample.whole is not None
    return sample.whole


def _without(point: Point, term: int) -> Point:
    """The point with a host term that never occurs."""
    figures = tuple(
        figure._replace(counts=tuple(0.0 if k == term else count for k, count in enumerate(figure.counts)))
        for figure in point.figures
    )
    return point._replace(figures=figures)


def _carried(pool: Executor, samples: list[Sample], points: list[Point], folds: list[int], law: str) -> Crossed:
    """GPUs left out with their operator laws: another GPU's laws stand in, host terms are those of the others."""
    other = moved_kernels(samples, law)
    doubled = [*points, *(point._replace(suspect="asked only") for point in other)]
    found = crossed(pool, doubled, [*folds, *folds])
    return Crossed(*(column[len(points) :] for column in found))


# --- bake-off, energy, ranks --------------------------------------------------------------------------------


def _contested(
    samples: list[Sample], doubted: Flags, folds: list[int], pairs_out: Crossed, sheet: list[Floats]
) -> list[Entrant]:
    def asked(i: int, sample: Sample) -> bool:
        first = sample.whole.figures[0].kind if sample.whole else ""
        return sample.row.source in SERVED and first == "tpot" and not doubted[i]

    at = [i for i, sample in enumerate(samples) if asked(i, sample)]
    sizes = (ENGINES.with_name("operators.json").stat().st_size, ENGINES.stat().st_size)
    return contest(
        [samples[i] for i in at],
        [folds[i] for i in at],
        np.array([sheet[i][0] for i in at]),
        np.array([pairs_out.logs[i][0] for i in at]),
        sizes,
    )


def _some(samples: list[Sample], logs: list[Floats], keep: Flags) -> tuple[list[Sample], list[Floats]]:
    at = np.flatnonzero(keep)
    return [samples[i] for i in at], [logs[i] for i in at]


def _ranked(samples: list[Sample], pairs_out: list[Floats]) -> Ranking:
    """Ranks and regret where every prediction is of a pair left out."""
    judged = []
    for sample, logs in zip(samples, pairs_out, strict=True):
        assert sample.whole is not None
        said = {}
        for figure, value in zip(sample.whole.figures, logs, strict=True):
            ratio = float(np.exp(value))
            for name, measured in sample.row.measured.items():
                if name.startswith(NAMED[figure.kind]):
                    said[name] = measured * (1.0 / ratio if figure.kind == "rate" else ratio)
        judged.append((sample.row, Outcome(said, gpus=sample.shipped.gpus)))
    return rank(judged)


NAMED = {"tpot": ("tpot", "itl"), "ttft": ("ttft",), "e2e": ("e2e",), "rate": ("output_throughput", "total_throughput")}
