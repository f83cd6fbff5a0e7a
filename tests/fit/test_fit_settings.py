"""Settings of how rows are read: a fold chooses by what it keeps alone, and finds the reading that made the rows."""

from __future__ import annotations

import numpy as np
import pytest
from engine_cases import every, synthetic

from fit.engines import PULL, Point
from fit.folds import _fitter, _fold
from fit.settings import CHUNKED, TRIED, others, pulled, read_as, settled
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


def other_where_hidden(true, out):
    """Another reading of every second row, which what is left out follows and what is kept does not."""
    shown = [slower(point, 3.0) if hidden else point for point, hidden in zip(true, out, strict=True)]
    tried = [{"sweep=other": misread(point, 3.0)} if i % 2 == 0 else {} for i, point in enumerate(shown)]
    return shown, tried


def test_what_is_left_out_has_no_say():
    true, keys = pairs(), [KEY] * 72
    out = [point.pair[0] not in ("m0", "m1") for point in true]
    shown, tried = other_where_hidden(true, out)
    with_a_say = settled(shown, keys, [False] * 72, tried, _fitter(PULL))
    assert with_a_say != shown  # had it one, it would be heard
    assert settled(shown, keys, out, tried, _fitter(PULL)) == shown


def test_no_fit_of_a_choice_sees_what_is_left_out():
    true, keys = pairs(), [KEY] * 72
    out = [point.pair[0] in ("m0", "m1") for point in true]
    hidden = {point.row_id for point, away in zip(true, out, strict=True) if away}
    met: set[str] = set()

    def watched(ridge):
        def fit(kept, kept_keys, asked, asked_keys):
            met.update(point.row_id for point in (*kept, *asked))
            return _fitter(ridge)(kept, kept_keys, asked, asked_keys)

        return fit

    for choose in (
        lambda: settled(true, keys, out, [{"x=2": misread(point, 2.0)} for point in true], watched(PULL)),
        lambda: pulled(true, keys, out, watched),
    ):
        met.clear()
        choose()
        assert met == {point.row_id for point in true} - hidden


def test_a_fold_is_predicted_by_settings_that_it_did_not_choose():
    true, keys = pairs(), [KEY] * 72
    out = [point.pair[0] not in ("m0", "m1") for point in true]
    shown, tried = other_where_hidden(true, out)
    plain = [{"sweep=other": misread(point, 3.0)} if some else {} for point, some in zip(true, tried, strict=True)]
    first, second = (
        {i: logs for i, logs, _, _ in _fold((points, keys, out, list(range(72)), [], some))}
        for points, some in ((true, plain), (shown, tried))
    )
    assert set(first) == {i for i, hidden in enumerate(out) if hidden}
    for i, logs in first.items():
        assert second[i] - logs == pytest.approx(np.full(2, -np.log(3.0)))


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
    assert len(others()) == sum(map(len, TRIED.values())) + len(CHUNKED)
    for name, other in others().items():
        assert other != plain, name
        parts = {"sweeps", "token_budget"} if name.startswith("prompts cut") else {name.partition(".")[0]}
        changed = {field for field in plain.__struct_fields__ if getattr(other, field) != getattr(plain, field)}
        assert changed and changed <= parts, name
    cut = others()["prompts cut=2048"]
    assert not any(sweep.prompt_a_step for sweep in cut.sweeps) and cut.token_budget["trtllm"].sweep == 2048


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


def test_the_ridge_is_one_that_does_not_hurt():
    true, keys = pairs(), [KEY] * 72
    assert pulled(true, keys, [point.pair[0] == "m0" for point in true], _fitter) < 0.1
