"""Energy without what is judged: its pace predicted, what a pair's other rows tell, and nothing of itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from test_fit_power import LAW, points

from fit import joules, power
from fit.engines import Point
from fit.folds import PLACE
from fit.measure import FEATURES
from fit.power import joined

CELLS = joined([points(30, model="kernels"), points(30, "b200", model="kernels")])


def sample(pair, load):
    features = tuple(float(load) if name == PLACE[0] else 0.0 for name in FEATURES)
    return SimpleNamespace(whole=Point("", "", pair, "bf16", "vllm", "0.11", pair[1], "", ()), features=features)


def test_a_step_that_takes_longer_does_what_it_does_more_slowly():
    made = points()
    slower = made.paced(np.full(len(made.watts), np.log(2.0)))
    assert slower.terms[:, 0] == pytest.approx(made.terms[:, 0])  # in flight all the while
    assert slower.terms[:, 1] == pytest.approx(made.terms[:, 1] / 2.0)  # bytes a second
    assert slower.terms[:, 2] == pytest.approx(made.terms[:, 2] / 2.0**0.5)  # the root of FLOP/s
    assert np.all(slower.predicted(LAW) < made.predicted(LAW))
    same = power.predictions(joined([made, points(model="n")]), CELLS, power.fitted, "pair")
    paced = joined([slower, points(model="n")])
    other = power.predictions(joined([made, points(model="n")]), CELLS, power.fitted, "pair", paced)
    assert np.all(other[: len(made.watts)] < same[: len(made.watts)])
    assert np.array_equal(other[len(made.watts) :], same[len(made.watts) :])


def test_what_a_pair_draws_beyond_the_law_is_told_by_its_other_rows_and_not_by_the_row_itself(monkeypatch):
    monkeypatch.setattr(power, "TRIED", {})  # how its settings are chosen is a matter of its own
    models = ("a", "b", "c")
    made = joined([points(16, model=name) for name in models])
    extra = np.repeat([1.25, 1.0, 0.8], 16)
    made = made._replace(watts=made.watts * extra)
    rows = [sample((name, "h100"), load) for name in models for load in np.linspace(0, 6, 16)]
    folds = np.arange(48) % 4
    found = joules.told(made, CELLS, made, rows, folds, folds >= 0)
    law = np.log(power.predictions(made, CELLS, power.fitted, "seen") / made.watts)
    assert np.median(np.abs(found)) < 0.4 * np.median(np.abs(law))
    doubled = made._replace(watts=np.where(folds == 3, 2.0 * made.watts, made.watts))
    moved = joules.told(doubled, CELLS, doubled, rows, folds, folds >= 0)
    # Its own watts are in no prediction of the fold: only the figure that it is compared with has doubled.
    assert moved[folds == 3] == pytest.approx(found[folds == 3] - np.log(2.0), abs=1e-9)
    suspect = joules.told(doubled, CELLS, doubled, rows, folds, folds != 3)  # nor in another's
    assert suspect[folds == 3] == pytest.approx(moved[folds == 3])
    left = joules.told(made, CELLS, made, rows, folds, folds != 3)
    assert suspect[folds != 3] == pytest.approx(left[folds != 3])
