"""Settings of how rows are read: a fold chooses by what it keeps alone, and finds the reading that made the rows."""

from __future__ import annotations

import numpy as np
import pytest
from engine_cases import every, synthetic

from fit.engines import PULL, Point
from fit.folds import _fitter
from fit.settings import TRIED, others, pulled, read_as, settled
from headway.accuracy import express as expressed
from headway.accuracy.reading import reading, token_budget
from headway.accuracy.rows import Row

KEY = ("vllm", "0.12")


def misread(point: Point, share: float) -> Point:
    """The row as it looks where its kernels take so many times what they should."""
    figures = tuple(figure._replace(kernels_s=share * figure.kernels_s) for figure in point.figures)
    return point._replace(figures=figures)


def slower(point: Point, share: float) -> Point:
    figures = tuple(figure._replace(measured_s=share * figure.measured_s) for figure in point.figures)
    return point._replace(figures=figures)


def pairs(count=6) -> list[Point]:
    return [one for k in range(count) for one in synthetic(f"m{k}", spread=0.02, count=12)]


def test_the_reading_that_made_the_rows_is_found_and_a_wrong_one_is_not_taken():
    true, keys = pairs(), [KEY] * 72
    out = [point.pair[0] == "m0" for point in true]
    wrong = [misread(point, 1.0 if i % 2 else 3.0) for i, point in enumerate(true)]
    right = [{"sweep=right": point, "sweep=worse": misread(point, 5.0)} if i % 2 == 0 else {}
             for i, point in enumerate(true)]  # fmt: skip
    assert settled(wrong, keys, out, right, _fitter(PULL)) == true
    worse = [{"sweep=worse": misread(point, 3.0)} if i % 2 == 0 else {} for i, point in enumerate(true)]
    assert settled(true, keys, out, worse, _fitter(PULL)) == true


def test_what_is_left_out_has_no_say():
    true, keys = pairs(), [KEY] * 72
    out = [point.pair[0] in ("m0", "m1") for point in true]
    tried = [{"sweep=other": misread(point, 3.0)} if i % 2 == 0 else {} for i, point in enumerate(true)]
    changed = [slower(point, 7.0) if hidden else point for point, hidden in zip(true, out, strict=True)]
    changed_tried = [{name: slower(point, 7.0) if hidden else point for name, point in some.items()}
                     for some, hidden in zip(tried, out, strict=True)]  # fmt: skip
    by_truth = settled(true, keys, out, tried, _fitter(PULL))
    by_change = settled(changed, keys, out, changed_tried, _fitter(PULL))
    kept = [i for i, hidden in enumerate(out) if not hidden]
    assert [by_truth[i] for i in kept] == [by_change[i] for i in kept]


def test_a_setting_that_only_rows_left_out_have_stays_as_in_the_file():
    true, keys = pairs(), [KEY] * 72
    out = [point.pair[0] == "m0" for point in true]
    tried = [{"sweep=other": misread(point, 0.2)} if hidden else {} for point, hidden in zip(true, out, strict=True)]
    assert settled(true, keys, out, tried, _fitter(PULL)) == true


def test_of_two_settings_of_a_row_the_one_that_gains_more_is_taken():
    true, keys = pairs(), [KEY] * 72
    wrong = [misread(point, 1.0 if i % 2 else 4.0) for i, point in enumerate(true)]
    tried = [{"a=half": misread(point, 2.0), "b=whole": point} if i % 2 == 0 else {} for i, point in enumerate(true)]
    assert settled(wrong, keys, [False] * 72, tried, _fitter(PULL)) == true


def test_every_other_value_differs_from_the_file_and_changes_nothing_else():
    plain = reading()
    assert len(others()) == sum(map(len, TRIED.values()))
    for name, other in others().items():
        assert other != plain, name
        part = name.partition(".")[0]
        same = [field for field in plain.__struct_fields__ if getattr(other, field) == getattr(plain, field)]
        assert set(plain.__struct_fields__) - set(same) == {part}, name


def test_rows_are_read_otherwise_only_within():
    row = Row(row_id="1", source="s", engine="vllm", model_key="llama-3-8b", gpu_key="H100", gpu_count=1, mode="agg")
    before = token_budget(row, "vllm")
    with read_as(others()["token_budget.vllm.sweep=2048"]):
        assert token_budget(row, "vllm") == 2048 != before
        assert expressed.reading().token_budget["vllm"].sweep == 2048
    assert token_budget(row, "vllm") == before


@pytest.mark.parametrize("suspect", ["", "strange"])
def test_suspect_rows_do_not_choose(suspect):
    true, keys = every(("h100-sxm",), count=8), [KEY] * 88
    marked = [point._replace(suspect=suspect if i % 4 == 0 else "") for i, point in enumerate(true)]
    shown = [slower(point, 4.0) if i % 4 == 0 else point for i, point in enumerate(marked)]
    tried = [{"x=4": misread(point, 4.0)} if i % 4 == 0 else {} for i, point in enumerate(shown)]
    found = settled(shown, keys, [False] * 88, tried, _fitter(PULL))
    assert (found == shown) is bool(suspect) and np.isfinite(found[0].figures[0].kernels_s)


def test_the_ridge_is_one_that_does_not_hurt_and_what_is_left_out_has_no_say():
    true, keys = pairs(), [KEY] * 72
    out = [point.pair[0] == "m0" for point in true]
    changed = [slower(point, 7.0) if hidden else point for point, hidden in zip(true, out, strict=True)]
    assert pulled(true, keys, out, _fitter) == pulled(changed, keys, out, _fitter) < 0.1
