"""How well watts, and joules per token with the pace predicted as well, are known without the rows judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fit import power
from fit.engines import Figure, Point
from fit.folds import Crossed, fold_by, likeness, placed
from fit.measure import Sample
from headway.accuracy.reading import suspicion

Floats = npt.NDArray[np.float64]
SEEN = "rows"  # the split in which a pair's other rows are known


class Energy(NamedTuple):
    """Log ratios of predicted to measured figures by what was left out; empty where no row has watts.

    `timed` are watts where the pace is the measured one, `watts` and `joules` where it is predicted too, as in any
    simulation. Of `SEEN` all are moved by what the pair's other rows tell by kriging. Suspect rows, which `trusted` is
    false of, are predicted but not fitted on. Settings of the fit are chosen without what is left out.
    """

    timed: dict[str, Floats]
    watts: dict[str, Floats]
    joules: dict[str, Floats]
    trusted: npt.NDArray[np.bool_]


def energy(folder: Path, samples: Sequence[Sample], keys: Sequence[str], splits: dict[str, Crossed]) -> Energy:
    """Return all; `keys` are equal for rows that repeat one another."""
    at = [i for i, s in enumerate(samples) if s.row.source == power.SOURCE and "power" in s.row.measured]
    at = [i for i in at if "rate" in _kinds(samples[i])]
    rows = [samples[i] for i in at]
    found = Energy({}, {}, {}, np.array([not suspicion(sample.row) for sample in rows], dtype=bool))
    known, every, cells = power.serving(folder), power.serving(folder, suspects=True), power.kernels(folder)
    if len(rows) != len(every.watts):
        return found
    for split in ("pair", "model", "gpu"):
        pace = _pace(rows, [splits[split].logs[i] for i in at])
        for said, asked in ((found.timed, every), (found.watts, every.paced(pace))):
            said[split] = np.log(power.predictions(known, cells, power.settled, split, asked) / every.watts)
        found.joules[split] = found.watts[split] + pace
    pace = _pace(rows, [splits[SEEN].kriged[i] for i in at])
    folds = np.array(fold_by(SEEN, [_point(sample) for sample in rows], [keys[i] for i in at]))
    for said, asked in ((found.timed, every), (found.watts, every.paced(pace))):
        said[SEEN] = told(every, cells, asked, rows, folds, found.trusted)
    found.joules[SEEN] = found.watts[SEEN] + pace
    return found


def told(
    points: power.Points, cells: power.Points, asked: power.Points, samples: Sequence[Sample], folds: npt.NDArray,
    trusted: npt.NDArray[np.bool_],
) -> Floats:  # fmt: skip
    """Return log ratios of watts by a law without a row's fold, moved by what the pair's other trusted rows tell."""
    logs = np.zeros(len(folds))
    places = [placed(sample) for sample in samples]
    marks = [_point(sample)._replace(figures=(Figure("watts", 1.0, (), 1.0),)) for sample in samples]
    for fold in sorted(set(folds)):
        out = folds == fold
        seen, residuals = ~out & trusted, np.zeros(len(folds))
        for family in sorted(set(points.family)):
            mine = points.family == family
            law = power.settled(points.of(seen), cells, family)
            residuals[mine] = np.log(points.of(mine).predicted(law) / points.watts[mine])
            logs[out & mine] = np.log(asked.of(out & mine).predicted(law) / points.watts[out & mine])
        at = np.flatnonzero(seen)
        move = likeness([marks[i] for i in at], list(residuals[at, None]), [places[i] for i in at])
        for i in np.flatnonzero(out):
            logs[i] -= move(marks[i], places[i])[0]
    return logs


def _pace(samples: Sequence[Sample], logs: Sequence[Floats]) -> Floats:
    return np.array([log[_kinds(sample).index("rate")] for sample, log in zip(samples, logs, strict=True)])


def _kinds(sample: Sample) -> list[str]:
    return [figure.kind for figure in _point(sample).figures]


def _point(sample: Sample) -> Point:
    assert sample.whole is not None
    return sample.whole
