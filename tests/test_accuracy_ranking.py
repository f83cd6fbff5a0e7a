"""Choosing a deployment by prediction, and the steady states that saturated rows are compared with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accuracy_cases import point
from headway.accuracy.express import express
from headway.accuracy.judge import Outcome
from headway.accuracy.predict import predict
from headway.accuracy.ranking import LIMITS_S, rank
from headway.accuracy.schedule import schedule
from headway.cost import compile_replica


def judged(rows):
    """Rows of (tensor parallelism, users, measured rate and pace, predicted rate and pace)."""
    return [
        (
            point(tp=tp, gpu_count=tp, concurrency=float(users),
                  measured={"output_throughput": tp * rate, "tpot_mean": pace}),
            Outcome({"output_throughput": tp * said, "tpot_mean": said_pace}, gpus=tp),
        )
        for tp, users, rate, pace, said, said_pace in rows
    ]  # fmt: skip


def chosen(rows, limit_s):
    """Regret of the layout of the row predicted best, run at its best load, by plain loops; None: none keeps it."""
    possible = [rate for _, _, rate, pace, _, _ in rows if pace <= limit_s]
    if not possible:
        return None
    best = None
    for row in rows:
        if row[5] <= limit_s and (best is None or row[4] > best[4]):
            best = row
    best = best or min(rows, key=lambda row: row[5])  # what comes nearest
    its = [rate for tp, _, rate, pace, _, _ in rows if tp == best[0] and pace <= limit_s]
    return 1 - max(its) / max(possible) if its else 1.0


RATE, PACE = st.floats(0.01, 100), st.floats(0.01, 0.12)
POINTS = st.tuples(st.sampled_from([1, 2, 4]), st.integers(1, 9), RATE, PACE, RATE, PACE)


@settings(max_examples=80)
@given(st.lists(POINTS, min_size=2, max_size=10))
def test_regret_of_deployments_matches_brute_force_and_is_never_above_that_with_the_load(rows):
    found = rank(judged(rows))
    expected = [regret for limit in LIMITS_S if (regret := chosen(rows, limit)) is not None]
    if len({row[0] for row in rows}) < 2:
        assert found.deployments.n == 0  # nothing to choose among
        return
    assert found.deployments.n == len(expected)
    if expected:
        assert found.deployments.mean == pytest.approx(sum(expected) / len(expected))
        assert found.deployments.mean <= found.throughput_per_gpu.mean + 1e-9


def test_where_nothing_is_predicted_to_keep_the_limit_the_nearest_is_chosen():
    rows = [(1, 4, 90.0, 0.014, 90.0, 0.017), (2, 4, 60.0, 0.013, 60.0, 0.016), (4, 4, 50.0, 0.012, 50.0, 0.012)]
    one = rank(judged(rows[:2])).deployments  # of limits of 15, 25, 50 and 100 ms; under the first TP 2 is nearest
    assert one.mean == pytest.approx((1 - 60 / 90) / 4) and one.kept == 1.0
    assert rank(judged(rows)).deployments.mean == pytest.approx((1 - 50 / 90) / 4)


def test_a_load_just_missed_costs_a_deployment_no_more_than_the_load_below():
    """At 50 ms 8 users are predicted to keep the limit and do not: the layout still serves 4."""
    rows = [(1, 4, 90.0, 0.04, 90.0, 0.04), (1, 8, 120.0, 0.051, 120.0, 0.049), (2, 4, 60.0, 0.045, 60.0, 0.045)]
    found = rank(judged(rows))
    assert found.throughput_per_gpu.mean == pytest.approx(0.5)  # of limits of 50 and 100 ms
    assert found.deployments.mean == 0.0


def test_a_steady_state_has_all_its_users_in_every_step():
    """Its throughput is users over the mean step, whatever the run's start and end."""
    row = point(workload="gpqa", batch_size=24.0, dist_note="avg running batch", isl_mean=None, osl_mean=200.0)
    case = express(row)
    steps, table = schedule(case, 0.2).pools[0], compile_replica(case.deployment.pools[0].replica)
    there = steps.resident + steps.waiting
    assert there.min() >= 23 and there.max() == 24
    mean_s = float((steps.times * steps.seconds(table)).sum() / (steps.times * steps.decodes).sum())
    assert predict(case)["output_throughput"] == pytest.approx(1.0 / mean_s, rel=0.05)


def test_a_steady_states_throughput_does_not_depend_on_how_long_it_is_watched(monkeypatch):
    row = point(workload="gpqa", batch_size=16.0, dist_note="avg running batch", isl_mean=None, osl_mean=100.0)
    rates = []
    for waves in (6, 24):
        monkeypatch.setattr("headway.accuracy.express.STEADY_WAVES", waves)
        rates.append(predict(express(row))["output_throughput"])
    assert np.ptp(rates) / rates[0] < 0.03
