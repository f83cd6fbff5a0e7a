"""Who is left out: replicas that answer nothing but errors, and no replica for what its callers do wrong."""

from __future__ import annotations

import pytest
from brain_cases import ask, brain

from headway.gateway.brain import Brain
from headway.gateway.events import EndRecord, Routed
from headway.gateway.health import PROBATION_S
from headway.gateway.spec import Health


def answer(b: Brain, now: float, replica: int, status: int, id: str = "") -> None:
    """A replica answers a request with a status."""
    id = id or f"{now}/{replica}/{status}/{b.serial}"
    b.arrive(now, ask(id, only=(replica,)))
    b.record(now, EndRecord(id=id, status=status, replica=replica, attempts=1))
    b.end(now, id)


def out(b: Brain) -> list[int]:
    return [book.index for book in b.books if not book.healthy]


def test_a_replica_that_answers_nothing_but_errors_is_left_out_while_its_probes_are_well():
    b = brain(2)
    for i in range(5):
        assert out(b) == []
        answer(b, float(i), 0, 500)
        answer(b, float(i), 1, 200)
        b.health(float(i), 0, True)
    answer(b, 5.0, 0, 500)
    assert out(b) == [0] and "5xx" in b.judge.last and b.figures.total("headway_ejected_total") == 1
    b.health(5.5, 0, True)
    assert out(b) == [0], "that its probes are answered is nothing new"
    for i in range(20):
        (chosen,) = b.arrive(5.5, ask(f"r{i}"))
        assert isinstance(chosen, Routed) and chosen.hosts == (1,)
    assert not b.check()


def test_it_comes_back_on_probation_for_longer_each_time_and_one_good_answer_clears_it():
    b, now = brain(2), 0.0
    for i in range(5):
        answer(b, now, 0, 503, f"r{i}")
        answer(b, now, 1, 200)
    for again in (PROBATION_S, 2 * PROBATION_S, 4 * PROBATION_S):
        assert out(b) == [0]
        b.tick(now + again - 0.01)
        assert out(b) == [0]
        now += again
        b.tick(now)
        assert out(b) == [], "its time is over"
        answer(b, now, 0, 500)
    b.tick(now + 1000.0)
    answer(b, now + 1000.0, 0, 200)
    for _ in range(4):
        answer(b, now + 1001.0, 0, 500)
    assert out(b) == [], "it begins anew"


@pytest.mark.parametrize("others", [500, 404, None])
def test_where_no_other_replica_serves_nobody_is_left_out(others):
    b = brain(2)
    answer(b, 0.0, 1, 200)
    for i in range(30):
        answer(b, 1.0 + i, 0, 500)
        if others is not None:
            answer(b, 1.0 + i, 1, others)
    assert out(b) == []


def test_of_a_models_replicas_half_stay_whatever_they_answer():
    b = brain(4)
    for i in range(60):
        for replica in range(3):
            answer(b, float(i) / 20, replica, 500)
        answer(b, float(i) / 20, 3, 200)
    assert len(out(b)) == 2
    alone = brain(1)
    for i in range(30):
        answer(alone, float(i), 0, 500)
    assert out(alone) == []


def test_good_answers_between_and_errors_that_are_the_callers_count_for_nothing():
    b = brain(2)
    for i in range(40):
        answer(b, float(i), 0, 500 if i % 5 else 200)
        answer(b, float(i), 1, 200)
    assert out(b) == []
    for i in range(40):
        answer(b, 50.0 + i, 0, 400)
        answer(b, 50.0 + i, 1, 200)
    assert out(b) == []


def test_none_is_left_out_where_the_file_says_so():
    b = brain(2, health=Health(errors=0))
    for i in range(40):
        answer(b, float(i), 0, 500)
        answer(b, float(i), 1, 200)
    assert out(b) == []


def test_a_request_that_a_replica_failed_is_in_the_books_of_the_other_until_it_ends():
    b = brain(3)
    (routed,) = b.arrive(0.0, ask("a"))
    first, second = routed.hosts
    assert b.failed(0.1, "a", 2) == b.failed(0.1, "unknown", first) == []
    b.failed(0.1, "a", first)
    assert (b.books[first].in_flight, b.books[second].in_flight) == (0, 1)
    b.failed(0.2, "a", first)
    assert b.books[second].in_flight == 1, "heard twice"
    b.failed(0.3, "a", second)
    assert b.books[first].in_flight == 1, "the first is asked once more"
    b.failed(0.4, "a", first)
    assert not b.check()
    for book in b.books:
        book.advance(100.0)
    assert not b.check() and b.books[second].view.running == 1
    b.end(200.0, "a")
    assert [book.in_flight for book in b.books] == [0, 0, 0] and not b.check()
