"""Requests that no replica has yet: held by the router until something ends, deferred by the admission rule."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
from drive import (
    ADMISSION,
    CASES,
    HOLDER,
    HOLDERS,
    ClusterCase,
    PoolCase,
    make_cluster_case,
    plain_table,
    run_cluster,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.cost import EngineSettings
from headway.engine import FAILED, FINISHED
from headway.engine.reference import Row
from headway.errors import BadInput
from headway.policies import Policy
from headway.state import Accept, Defer, Hold, Route

SEEDS = st.integers(0, 2**40)
law = settings(max_examples=CASES, deadline=None)


def slots(replicas: int, rows: list[Row], route: str, *, order: str = "fcfs", admit: str | None = None) -> ClusterCase:
    """Replicas that serve one request at a time, for as many seconds as it has output tokens, nearly."""
    table = plain_table(decode_s=1.0, seqs=1)
    engine = EngineSettings(max_batched_tokens=256, max_seqs=1, block_tokens=16)
    return ClusterCase([PoolCase("mixed", replicas, table, engine)], 0, order, route, admit, (1e12, 0.0), None, rows)


def row(arrival_s: float, seconds: int, priority: int = 0, deadline_s: float = float("inf")) -> Row:
    return Row(arrival_s, 1, seconds + 1, (), priority, deadline_s)


class Counting(Policy):
    """Late binding that notes when it was asked, and for whom."""

    reads_progress = False
    asked: ClassVar[list[tuple[float, int]]] = []

    def route(self, request, pool):
        Counting.asked.append((pool.now, request.id))
        for replica in pool.replicas:
            if replica.running + replica.waiting == 0:
                return Route(replica.index, "idle")
        return Hold("all busy")


class Never(Policy):
    def route(self, request, pool):
        return Hold("never")


class Gate(Policy):
    """Opens at ten seconds."""

    asked: ClassVar[list[float]] = []

    def admit(self, request, cluster):
        Gate.asked.append(cluster.now)
        return Accept("open") if cluster.now >= 10.0 else Defer(10.0, "opens at ten")


class Backwards(Policy):
    def admit(self, request, cluster):
        return Defer(cluster.now, "now again")


class Dithering(Policy):
    def admit(self, request, cluster):
        return Defer(cluster.now + 1.0, "later")


# --- laws -------------------------------------------------------------------------------------------------------


@law
@given(SEEDS)
def test_nobody_is_lost_and_whoever_has_no_deadline_is_served(seed: int) -> None:
    case = dataclasses.replace(make_cluster_case(seed), route=HOLDERS[seed % 2], closed=None, admit=None)
    for row in case.rows:
        row.deadline_s = float("inf")
    served = run_cluster(case)
    plain = run_cluster(dataclasses.replace(case, route="round-robin"))
    assert served.columns["status"].tolist() == plain.columns["status"].tolist()
    assert served.cluster.expired == 0


@law
@given(SEEDS)
def test_a_held_request_fails_at_its_deadline_not_before_and_never_runs_after(seed: int) -> None:
    case = dataclasses.replace(make_cluster_case(seed), route=HOLDERS[seed % 2], closed=None, admit=None)
    patient = dataclasses.replace(case, rows=[dataclasses.replace(r, deadline_s=float("inf")) for r in case.rows])
    served, waited = run_cluster(case), run_cluster(patient)
    lost = 0
    for i, row in enumerate(case.rows):
        if served.columns["status"][i] == FAILED and waited.columns["status"][i] == FINISHED:
            lost += 1
            assert row.deadline_s < float("inf")
            assert served.columns["output_tokens"][i] == (served.columns["replica"][i] >= 0) <= len(case.pools) - 1
        elif served.columns["replica"][i] >= 0 and len(case.pools) == 1:
            assert served.columns["status"][i] == waited.columns["status"][i]
    assert lost <= served.cluster.expired


@law
@given(SEEDS)
def test_leaping_asks_about_the_held_as_often_as_stepping(seed: int) -> None:
    case = dataclasses.replace(make_cluster_case(seed), route=HOLDER)
    leapt, stepped = run_cluster(case), run_cluster(case, leaps=False)
    assert leapt.router.log == stepped.router.log
    for name in ("admitted_s", "first_token_s", "last_token_s", "status", "replica"):
        np.testing.assert_array_equal(leapt.columns[name], stepped.columns[name])


@law
@given(SEEDS)
def test_an_event_costs_one_answer_in_vain_at_most(seed: int) -> None:
    case = dataclasses.replace(make_cluster_case(seed), route=HOLDER, admit=None)
    served = run_cluster(case)
    routed = int((served.columns["replica"] >= 0).sum()) * 2
    assert len(served.router.log) <= served.cluster.events + routed + len(case.rows)


# --- what happens -----------------------------------------------------------------------------------------------


def test_the_held_are_asked_about_when_one_is_admitted_or_ends_and_at_no_other_time() -> None:
    Counting.asked.clear()
    served = run_cluster(slots(1, [row(0.0, 5), row(1.0, 3), row(2.0, 2)], f"{__name__}:Counting"))
    assert [(round(now, 3), id) for now, id in Counting.asked] == [
        (0.0, 0), (1.0, 1), (5.0, 1), (5.0, 2), (5.0, 2), (8.0, 2),
    ]  # fmt: skip
    # twice at 5 s: when 0 ends and 1 goes to the replica, and when the replica takes 1 from its queue
    np.testing.assert_allclose(served.columns["admitted_s"], [0.0, 5.0, 8.0], atol=1e-6)


def test_one_line_for_all_replicas_goes_by_the_order_of_the_deployment() -> None:
    rows = [row(0.0, 9), row(0.0, 4), row(0.1, 1, 2), row(0.2, 1, 1), row(0.3, 1, 0)]
    served = run_cluster(slots(2, rows, f"{__name__}:Counting", order="priority"))
    assert served.columns["admitted_s"].round(3).tolist() == [0.0, 0.0, 6.0, 5.0, 4.0]
    assert served.columns["replica"].tolist() == [0, 1, 1, 1, 1]


def test_held_requests_do_not_stand_behind_a_long_one() -> None:
    rows = [row(0.0, 50), *(row(0.0, 2) for _ in range(6))]
    late = run_cluster(slots(2, rows, "late-binding")).columns
    early = run_cluster(slots(2, rows, "round-robin")).columns
    assert Counter(late["replica"].tolist()) == {0: 2, 1: 5}  # `queue` of one waits behind the long one
    assert Counter(early["replica"].tolist()) == {0: 4, 1: 3}
    assert np.sort(late["last_token_s"])[:5].max() < 11 < np.sort(early["last_token_s"])[:5].max()


def test_a_deadline_ends_the_wait_and_only_the_wait() -> None:
    rows = [row(0.0, 5), row(1.0, 3, deadline_s=3.0), row(2.0, 2, deadline_s=6.0), row(2.0, 2, deadline_s=1.0)]
    served = run_cluster(slots(1, rows, f"{__name__}:Counting"))
    assert served.columns["status"].tolist() == [FINISHED, FAILED, FINISHED, FAILED]
    assert served.cluster.expired == 2
    assert round(served.cluster.now, 3) == 7.0  # who runs is not cut at its deadline


def test_a_router_that_never_decides_is_told_so() -> None:
    with pytest.raises(BadInput, match=r"Never still holds 1 requests.*expected a Route where every replica"):
        run_cluster(slots(1, [row(0.0, 5)], f"{__name__}:Never"))


def test_a_deferred_request_is_asked_about_when_it_said(monkeypatch) -> None:
    Gate.asked.clear()
    monkeypatch.setitem(ADMISSION, f"{__name__}:Gate", {})
    rows = [row(0.0, 5), row(1.0, 3), row(2.0, 2, deadline_s=4.0), row(12.0, 1)]
    served = run_cluster(slots(4, rows, "least-requests", admit=f"{__name__}:Gate"))
    assert Gate.asked == [0.0, 1.0, 2.0, 10.0, 10.0, 12.0]
    assert served.columns["status"].tolist() == [FINISHED, FINISHED, FAILED, FINISHED]
    np.testing.assert_allclose(served.columns["admitted_s"][[0, 1, 3]], [10.0, 10.0, 12.0])


def test_a_deferred_request_fails_at_its_deadline_though_it_was_to_be_asked_about_later(monkeypatch) -> None:
    monkeypatch.setitem(ADMISSION, f"{__name__}:Gate", {})
    served = run_cluster(slots(1, [row(2.0, 2, deadline_s=4.0)], "least-requests", admit=f"{__name__}:Gate"))
    assert (served.cluster.now, served.cluster.expired) == (4.0, 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [("Backwards", "at 0.0 s until 0.0 s: a later time is expected"), ("Dithering", "deferred request 0 10001 times")],
)
def test_an_admission_rule_that_defers_for_ever_is_told_so(broken, message, monkeypatch) -> None:
    monkeypatch.setitem(ADMISSION, f"{__name__}:{broken}", {})
    with pytest.raises(BadInput, match=message):
        run_cluster(slots(1, [row(0.0, 5)], "least-requests", admit=f"{__name__}:{broken}"))


def test_off_peak_lets_batch_work_in_when_a_queue_is_empty() -> None:
    rows = [row(0.0, 5), row(0.1, 5), row(0.2, 1, priority=1), row(0.3, 1)]
    served = run_cluster(slots(1, rows, "least-requests", admit="off-peak"))
    assert np.argsort(served.columns["admitted_s"]).tolist() == [0, 1, 3, 2]
    assert served.cluster.recorder.finished == 4
