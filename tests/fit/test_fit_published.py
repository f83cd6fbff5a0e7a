"""What published rows tell of a pair: recovered where there is something, and nothing else."""

import msgspec
import numpy as np
import pytest
import yaml

from calibration_cases import GRID, law, measured
from fit import published as fitted_pairs
from fit.published import Law, Place, document, grouped, layout, section, told
from headway.accuracy.calibration_points import TERMS, linearize
from headway.cost.calibration import FACTORS

TP1, TP2 = {"few_tokens": 1.5, "many_tokens": 1.3}, {"few_tokens": 2.2, "many_tokens": 1.3}
HERE = Place("llama-3.1-8b", "h100-sxm", "vllm", "0.12", "fp8", "bf16")


def rows(tp, truth, wobble=0.0):
    turn = np.random.default_rng(tp)
    return [
        measured(load, isl, truth, float(np.exp(wobble * turn.standard_normal())), row_id=f"{tp}-{load:g}-{isl:g}",
                 tp=tp, gpu_count=tp)
        for load, isl in GRID
    ]  # fmt: skip


def points(made):
    found = [linearize(row) for row in made]
    assert not any(isinstance(point, str) for point in found), found
    return found


@pytest.fixture(scope="module")
def two():
    """One model in two layouts, which differ from the shipped law, and from each other."""
    return [*rows(1, law(**TP1)), *rows(2, law(**TP2))]


def test_terms_of_a_group_and_of_its_layouts_are_found(two):
    found = told((HERE, points(two)))
    assert found.law.group is not None and set(found.law.layouts) == {(1, 1, 1, 1), (2, 1, 1, 1)}
    off = [float(np.median(np.abs(logs))) for logs in (found.shipped, found.unseen)]
    assert off[1] < 0.35 * off[0]


def test_where_rows_scatter_around_the_shipped_law_it_is_kept():
    found = told((HERE, points(rows(1, None, wobble=0.6))))
    assert found.law.group is None
    assert not yaml.safe_load(document([found]))["groups"]


def test_a_row_is_predicted_by_the_others_alone(two):
    made = points(two)
    before = told((HERE, made)).unseen
    figures = len(made[0].figures)
    first = made[0]._replace(figures=tuple(f._replace(measured=f.measured * 30.0) for f in made[0].figures))
    after = told((HERE, [first, *made[1:]])).unseen
    signs = np.array([figure.sign for figure in first.figures])
    assert after[:figures] - before[:figures] == pytest.approx(-np.log(30.0) * np.ones(len(signs)))


def test_no_factor_is_below_what_peak_and_bandwidth_allow():
    found = told((HERE, points(rows(1, law(few_tokens=0.65, many_tokens=0.6, context=0.6)))))
    least = fitted_pairs.PEAK / fitted_pairs._kernels(found.points[0])
    assert found.law.group is not None
    assert (found.law.group.values[: len(FACTORS)] >= least * (1 - 1e-9)).all()


def test_what_takes_part(two):
    made = [(row, linearize(row)) for row in two]
    assert sum(map(len, grouped(made).values())) == len(two)
    assert sum(map(len, grouped([*made, *made[:5]]).values())) == len(two), "repeats"
    capped = [(row, _changed(point, cap_watts=400.0)) for row, point in made]
    drawn = [(row, _changed(point, media="image")) for row, point in made]
    assert not grouped(capped) and not grouped(drawn)
    unpaced = [(row, point._replace(figures=point.figures[:1])) for row, point in made]
    assert {figure.metric for _, point in unpaced for figure in point.figures} == {"ttft"} and not grouped(unpaced)
    (where,) = grouped(made)
    assert where == HERE._replace(since=where.since)


def _changed(point, **changes):
    (pool,) = point.case.deployment.pools
    pool = msgspec.structs.replace(pool, replica=msgspec.structs.replace(pool.replica, **changes))
    deployment = msgspec.structs.replace(point.case.deployment, pools=(pool,))
    return point._replace(case=msgspec.structs.replace(point.case, deployment=deployment))


def test_the_file_and_the_page_say_what_was_found(two):
    found = told((HERE, points(two)))
    (group,) = yaml.safe_load(document([found]))["groups"]
    assert group["points"] == len(two) and len(group["own"]) == 2
    assert [len(group[name]) for name in ("terms", "sds")] == [len(TERMS)] * 2
    metrics = np.array([figure.metric for point in found.points for figure in point.figures])
    off = float(np.median(np.abs(np.expm1(found.unseen[metrics == "tpot"]))))
    assert group["off"]["tpot"] == [pytest.approx(off, rel=0.01), int((metrics == "tpot").sum())]
    page = section([found])
    assert f"| tpot | {len(two)} |" in page
    regrets = [line.split("|")[4:6] for line in page.splitlines() if line.startswith("| a deployment")]
    before, after = np.array([[float(cell.strip(" %")) for cell in line] for line in regrets]).T
    assert len(before) == 8 and (after <= before).all() and after.sum() < before.sum()


def test_a_point_without_a_law_of_its_layout_has_the_groups(two):
    point = points(two)[0]
    group = told((HERE, points(two))).law.group
    assert (Law(group, {}).of(point) == group.values).all()
    assert (Law(None, {}).of(point) == [1.0] * 3 + [0.0] * 5).all()
    assert layout(point) == (1, 1, 1, 1)
