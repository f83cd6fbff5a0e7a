"""Latency against load and the course of the best's run: what a plan carries for its report."""

import math

import msgspec
import pytest

from headway.metrics import Slo
from headway.plan import Plan, Question, plan
from headway.plan.crew import muster
from headway.plan.curves import Looker, with_curves
from headway.sim import Deployment, simulate
from headway.specs import from_mapping
from headway.workload import workload

QUESTION = Question(
    model="llama-3.1-8b", gpu="h100-sxm", gpus=3, workload="chat", rate_req_s=25, slo=Slo(ttft_s=0.5, tpot_s=0.03),
    requests=300, kv=("bf16",),
)  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Plan:
    return plan(QUESTION, workers=1)


def by_rate(found):
    return [(curve, point) for curve in found.curves for point in curve.points]


def test_the_first_three_have_curves_over_the_asked_rate_and_their_goodput(found):
    assert [curve.name for curve in found.curves] == [each.name for each in found.ranked[:3]]
    for curve, candidate in zip(found.curves, found.ranked, strict=False):
        rates = [point.rate_req_s for point in curve.points]
        assert rates == sorted(set(rates))
        assert found.rate_req_s in rates
        assert rates[0] < candidate.goodput_req_s / 2 and rates[-1] > candidate.goodput_req_s


def test_at_the_asked_rate_a_curve_has_the_candidates_own_figures(found):
    for curve, candidate in zip(found.curves, found.ranked, strict=False):
        (point,) = [each for each in curve.points if each.rate_req_s == found.rate_req_s]
        assert (point.attainment, point.attainment_low, point.attainment_high) == (
            candidate.attainment, candidate.attainment_low, candidate.attainment_high,
        )  # fmt: skip
        assert point.ttft_s.tail_s == candidate.ttft_p90_s
        assert point.tpot_s.tail_s == candidate.tpot_p90_s
        assert point.seeds == list(candidate.seeds)


@pytest.mark.parametrize("attainment", [0.5, 0.99])
def test_tails_are_those_of_the_share_asked_for(attainment):
    slo = Slo(ttft_s=0.5, attainment=attainment)
    asked = msgspec.structs.replace(
        QUESTION, gpus=1, layouts=("mixed",), weights=("bf16",), slo=slo, rate_req_s=5.0
    )
    found = plan(asked, workers=1)
    (point,) = [each for each in found.curves[0].points if each.rate_req_s == 5.0]
    assert point.ttft_s.tail_s == pytest.approx(found.best.ttft_s)
    assert (found.best.ttft_s < found.best.ttft_p90_s) == (attainment < 0.9)


def test_the_models_interval_holds_the_prediction_and_is_that_of_longer_and_shorter_steps(found):
    for _, point in by_rate(found):
        for spread in (point.ttft_s, point.tpot_s, point.e2e_s, point.itl_s):
            assert 0 < spread.tail_low_s <= spread.tail_s <= spread.tail_high_s < math.inf
            assert spread.p50_s <= spread.tail_s
    for curve in found.curves:
        idle = curve.points[0].tpot_s  # requests hardly meet: all times go with the steps
        assert idle.tail_high_s / idle.tail_s > math.sqrt(curve.steps[1])
        assert idle.tail_low_s / idle.tail_s < math.sqrt(curve.steps[0])


def test_latency_rises_with_load(found):
    for curve in found.curves:
        first, *_, last = curve.points
        assert first.tpot_s.tail_s < last.tpot_s.tail_s
        assert first.attainment >= last.attainment


def test_the_course_is_that_of_the_run_and_being_watched_changes_nothing(found):
    course = found.course
    assert course.name == found.best.name
    deployment = from_mapping(Deployment, found.best.deployment, "best")
    assert [each.pool for each in course.pools] == deployment.pool_names()
    source = msgspec.structs.replace(workload("chat").spec, requests=course.requests)
    seen = simulate(deployment, workload(source, rate=found.rate_req_s), seed=course.seed)
    assert course.at_s == sorted(course.at_s)
    assert course.at_s[-1] == pytest.approx(seen.duration_s, abs=1e-4)
    spans = [b - a for a, b in zip([0, *course.at_s], course.at_s, strict=False)]
    (pool,) = course.pools
    assert sum(map(math.prod, zip(pool.busy, spans, strict=True))) * pool.replicas == pytest.approx(
        sum(each.busy_s for each in seen.replicas), abs=0.01
    )
    assert 0 < max(pool.kv_most) <= seen.kv.peak_utilization + 5e-5  # written with four decimals
    assert pool.running[-1] == pool.waiting[-1] == 0
    for mean, most in zip(pool.kv_mean, pool.kv_most, strict=True):
        assert 0 <= mean <= most <= 1


def crew(found):
    return muster(Looker, (found.question, workload("chat"), found.rate_req_s), 1)


def test_ctrl_c_costs_curves_not_the_answer(found):
    def press(done, planned):
        if done == 8:  # the first curve is whole, the second is not
            raise KeyboardInterrupt

    bare = msgspec.structs.replace(found, curves=[], course=None)
    seen = with_curves(bare, crew(bare), press)
    assert seen.ranked == bare.ranked and not seen.interrupted
    assert seen.curves == found.curves[:1]
    assert seen.course is None


def test_with_replicas_to_spare_curves_are_of_those_that_are_left_as_goodput_is():
    spared = plan(msgspec.structs.replace(QUESTION, spare=1, tp=(1,), layouts=("mixed",)), workers=1)
    for curve, candidate in zip(spared.curves, spared.ranked, strict=False):
        beyond = curve.points[-1]
        assert beyond.rate_req_s == pytest.approx(1.1 * candidate.goodput_req_s, rel=0.03)
        assert beyond.attainment_low < spared.question.slo.attainment


def test_where_nothing_is_served_curves_are_around_the_asked_rate(found):
    ranked = [msgspec.structs.replace(each, goodput_req_s=0.0, meets=False) for each in found.ranked]
    bare = msgspec.structs.replace(found, feasible=False, best=None, ranked=ranked, curves=[], course=None)
    nothing = with_curves(bare, crew(bare))
    assert [curve.name for curve in nothing.curves] == [each.name for each in ranked[:3]]
    for curve in nothing.curves:
        assert curve.points[0].rate_req_s == pytest.approx(25 / 4, rel=0.03)
        assert curve.points[-1].rate_req_s == pytest.approx(25 * 1.1, rel=0.03)
    assert nothing.course.name == ranked[0].name


def test_curves_survive_json_and_a_plan_without_them_is_read(found):
    assert Plan.from_json(found.to_json()) == found
    data = found.to_mapping()
    del data["curves"], data["course"]
    assert Plan.from_json(msgspec.json.encode(data)).course is None


def test_joules_are_idle_prefill_and_decode(found):
    for each in found.ranked:
        if each.joules_per_output_token is not None:
            parts = (
                each.idle_joules_per_output_token,
                each.prefill_joules_per_output_token,
                each.decode_joules_per_output_token,
            )
            assert sum(parts) == pytest.approx(each.joules_per_output_token)
