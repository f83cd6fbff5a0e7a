"""What is left out at once: whole pairs, models and chips, repeats together; and nothing of it reaches the fit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from engine_cases import every, synthetic
from hypothesis import given
from hypothesis import strategies as st

from fit.engines import Point
from fit.folds import FOLDS, crossed, fold_by

names = st.sampled_from(["llama", "qwen", "gpt", "glm", "phi"])
cards = st.sampled_from(["h100-sxm", "h200", "gh200", "b200", "gb200", "gb300", "l40s"])
points = st.lists(
    st.builds(lambda model, gpu: Point("", "", (model, gpu), "", "vllm", "0.12", gpu, "", ()), names, cards),
    min_size=1,
    max_size=40,
)
CHIP = {"gh200": "h200", "gb200": "b200", "gb300": "b300"}


def together(values, folds):
    """Whether rows of one value are all in one fold."""
    return all(
        len({fold for one, fold in zip(values, folds, strict=True) if one == value}) == 1
        for value in set(values)
    )


@given(points)
def test_no_pair_model_or_chip_is_on_both_sides(some):
    repeats = [str(i) for i in range(len(some))]
    for split, value in (
        ("pair", lambda point: point.pair),
        ("model", lambda point: point.pair[0]),
        ("gpu", lambda point: CHIP.get(point.gpu, point.gpu.split("-")[0])),
    ):
        assert together([value(point) for point in some], fold_by(split, some, repeats)), split


@given(points)
def test_every_gpu_is_a_fold_of_its_own(some):
    folds = fold_by("gpu", some, [""] * len(some))
    assert len(set(folds)) == len({CHIP.get(point.gpu, point.gpu.split("-")[0]) for point in some})


@given(points, st.randoms())
def test_a_fold_does_not_depend_on_the_order_of_rows(some, random):
    order = list(range(len(some)))
    random.shuffle(order)
    for split in ("pair", "model", "gpu", "rows"):
        keys = ["|".join(point.pair) for point in some]
        folds = fold_by(split, some, keys)
        shuffled = fold_by(split, [some[i] for i in order], [keys[i] for i in order])
        assert shuffled == [folds[i] for i in order], split


@given(st.lists(st.text(max_size=3), min_size=1, max_size=40))
def test_repeats_stay_together_and_where_does_not_depend_on_other_rows(keys):
    some = synthetic(count=1) * len(keys)
    folds = fold_by("rows", some, keys)
    assert together(keys, folds)
    assert set(folds) <= set(range(FOLDS))
    assert [fold_by("rows", some[:1], [key])[0] for key in keys] == folds


def test_random_rows_fill_all_folds_about_evenly():
    keys = [str(i) for i in range(800)]
    counts = np.bincount(fold_by("rows", synthetic(count=1) * 800, keys), minlength=FOLDS)
    assert counts.min() > 60


# --- what the fit sees


def altered(some, mask, factor=3.0):
    """The points with the measurements of some of them multiplied."""
    return [
        one._replace(figures=tuple(f._replace(measured_s=factor * f.measured_s) for f in one.figures))
        if out
        else one
        for one, out in zip(some, mask, strict=True)
    ]


@pytest.fixture(scope="module")
def pairs():
    made = every(gpus=("h100-sxm", "b200"), count=12)
    return made, fold_by("pair", made, [""] * len(made))


def test_what_is_left_out_is_predicted_without_its_own_measurements(pairs):
    some, folds = pairs
    out = [fold == folds[0] for fold in folds]
    with ThreadPoolExecutor(1) as pool:
        first, second = crossed(pool, some, folds), crossed(pool, altered(some, out), folds)
    moved = [b - a for a, b in zip(first.logs, second.logs, strict=True)]
    for mine, change in zip(out, moved, strict=True):
        if mine:
            assert change == pytest.approx(np.full(2, -np.log(3.0)))
    assert max(np.abs(change).max() for mine, change in zip(out, moved, strict=True) if not mine) > 0.01


def test_suspect_rows_are_predicted_and_move_no_other_prediction(pairs):
    some, folds = pairs
    doubtful = [i % 5 == 0 for i in range(len(some))]
    some = [
        one._replace(suspect="looks wrong") if odd else one for one, odd in zip(some, doubtful, strict=True)
    ]
    with ThreadPoolExecutor(1) as pool:
        first, second = crossed(pool, some, folds), crossed(pool, altered(some, doubtful), folds)
    for odd, a, b in zip(doubtful, first.logs, second.logs, strict=True):
        assert len(a) == 2
        assert b - a == pytest.approx(np.full(2, -np.log(3.0) if odd else 0.0), abs=1e-9)


def test_an_unseen_pair_that_follows_the_law_is_predicted(pairs):
    some, folds = pairs
    with ThreadPoolExecutor(1) as pool:
        logs = np.concatenate(crossed(pool, some, folds).logs)
    assert np.median(np.abs(logs)) < 0.03
