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
    simulation. Of `SEEN` all are moved by what the pair's other rows tell by kriging.
    """

    timed: dict[str, Floats]
    watts: dict[str, Floats]
    joules: dict[str, Floats]


def energy(folder: Path, samples: Sequence[Sample], keys: Sequence[str], splits: dict[str, Crossed]) -> Energy:
    """Return all; `keys` are equal for rows that repeat one another."""
    found = Energy({}, {}, {})
    points, cells = power.serving(folder), power.kernels(folder)
    rows = [i for i, s in enumerate(samples) if s.row.source == power.SOURCE and "power" in s.row.measured]
    rows = [i for i in rows if not suspicion(samples[i].row) and "rate" in _kinds(samples[i])]
    if len(rows) != len(points.watts):
        return found
    for split in ("pair", "model", "gpu"):
        pace = _pace([samples[i] for i in rows], [splits[split].logs[i] for i in rows])
        paced = points.paced(pace)
        for said, asked in ((found.timed, points), (found.watts, paced)):
            said[split] = np.log(power.predictions(points, cells, power.fitted, split, asked) / points.watts)
        found.joules[split] = found.watts[split] + pace
    some = [samples[i] for i in rows]
    pace = _pace(some, [splits[SEEN].kriged[i] for i in rows])
    folds = np.array(fold_by(SEEN, [_point(sample) for sample in some], [keys[i] for i in rows]))
    found.timed[SEEN] = _told(points, cells, points, some, folds)
    found.watts[SEEN] = _told(points, cells, points.paced(pace), some, folds)
    found.joules[SEEN] = found.watts[SEEN] + pace
    return found


def _told(
    points: power.Points, cells: power.Points, asked: power.Points, samples: Sequence[Sample], folds: npt.NDArray
) -> Floats:
    """Log ratios of watts by a law without a row's fold, moved by what the pair's other rows tell."""
    logs = np.zeros(len(folds))
    places = [placed(sample) for sample in samples]
    marks = [_point(sample)._replace(figures=(Figure("watts", 1.0, (), 1.0),)) for sample in samples]
    for fold in sorted(set(folds)):
        out = folds == fold
        residuals = np.zeros(len(folds))
        for family in sorted(set(points.family)):
            mine = points.family == family
            law = power.fitted(points.of(~out), cells, family)
            residuals[mine] = np.log(points.of(mine).predicted(law) / points.watts[mine])
            logs[out & mine] = np.log(asked.of(out & mine).predicted(law) / points.watts[out & mine])
        seen = np.flatnonzero(~out)
        move = likeness([marks[i] for i in seen], list(residuals[seen, None]), [places[i] for i in seen])
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
