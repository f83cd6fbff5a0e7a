"""The brain without I/O: its books under random lives, and each of its decisions."""

from __future__ import annotations

import asyncio
import math
import signal
from random import Random

import pytest
from brain_cases import Faulty, Life, ask, brain

from headway.gateway import SloClass, Tenant
from headway.gateway.events import EndRecord, EngineSample, Held, Left, Refused, Routed
from headway.gateway.live import LivePool, LiveReplica, LiveRequest
from headway.gateway.shadow import Shadow
from headway.gateway.spec import Health, Limits
from headway.metrics import Slo
from headway.policies import Policy, check_policy, policy, policy_names
from headway.state import Route

LIVES, EVENTS = 1500, 60


@pytest.mark.parametrize("part", [0, 1, *(pytest.param(part, marks=pytest.mark.sweep) for part in range(2, 6))])
def test_the_books_are_right_through_random_lives(part):
    """Conservation, one end each, no answer after the end, none after the deadline, zero at rest."""
    for seed in range(part * LIVES // 6, (part + 1) * LIVES // 6):
        try:
            Life(seed).run(EVENTS)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_the_same_seed_is_the_same_life():
    one, other = Life(5), Life(5)
    one.run(200)
    other.run(200)
    assert one.said == other.said


def test_a_request_is_routed_with_a_second_host():
    (answer,) = brain().arrive(0.0, ask("a"))
    assert isinstance(answer, Routed)
    assert answer.hosts == (0, 1)
    assert answer.reason == "fewest requests"


def test_an_end_that_overtakes_its_arrival_leaves_nothing_behind():
    b = brain()
    assert b.end(0.0, "a") == []
    assert b.arrive(0.001, ask("a")) == [Left("a")]
    assert not b.live and not b.tombstones and not b.check()


def test_a_record_that_overtakes_its_arrival_leaves_nothing_to_be_waited_for():
    b = brain()
    b.record(0.0, EndRecord(id="a", status=0, caller_left=True))
    assert b.arrive(0.001, ask("a")) == [Left("a")], "nobody hears an answer"
    assert b.end(0.002, "a") == []
    assert not b.live and not b.unread and not b.check()
    b.record(0.0, EndRecord(id="b", status=413))
    assert isinstance(b.arrive(0.003, ask("b"))[0], Routed), "of others it says nothing"


def test_the_queue_holds_what_has_no_room_and_gives_it_the_next_place():
    b = brain(1, limits=Limits(in_flight=1, aging_s=0), policies={"order": policy("order", "sjf")})
    assert isinstance(b.arrive(0.0, ask("running"))[0], Routed)
    assert isinstance(b.arrive(0.1, ask("long", prompt_bytes=40_000))[0], Held)
    assert isinstance(b.arrive(0.2, ask("short", prompt_bytes=40))[0], Held)
    (answer,) = b.end(0.3, "running")
    assert isinstance(answer, Routed) and answer.id == "short"
    assert b.end(0.4, "long") == []
    assert [book.in_flight for book in b.books] == [1]


def test_who_waits_becomes_more_urgent():
    classes = (SloClass(name="chat"), SloClass(name="batch", priority=2))
    b = brain(
        1, classes=classes, limits=Limits(in_flight=1, aging_s=1.0), policies={"order": policy("order", "priority")}
    )
    b.arrive(0.0, ask("running"))
    b.arrive(0.1, ask("old batch", slo_class=1))
    b.arrive(4.0, ask("new chat"))
    assert [a.id for a in b.end(4.5, "running")] == ["old batch"]


def test_holding_ends_with_429_and_a_deadline_with_504():
    b = brain(1, known=False, limits=Limits(in_flight=1, hold_s=2.0))
    b.arrive(0.0, ask("running"))
    b.arrive(0.0, ask("patient"))
    b.arrive(0.0, ask("hasty", deadline_s=1.0))
    (late,) = b.tick(1.5)
    assert isinstance(late, Refused) and (late.id, late.status, late.code) == ("hasty", 504, "deadline_exceeded")
    (given_up,) = b.tick(2.5)
    assert isinstance(given_up, Refused) and (given_up.id, given_up.status) == ("patient", 429)
    assert not b.check()


def test_what_cannot_meet_its_limit_is_refused_at_once_with_the_reason():
    classes = (SloClass(name="chat", slo=Slo(ttft_s=0.2)), SloClass(name="any"))
    b = brain(1, classes=classes)
    assert isinstance(b.arrive(0.0, ask("first"))[0], Routed)
    for i in range(20):
        b.arrive(0.0, ask(f"long{i}", slo_class=1, prompt_bytes=100_000))
    (answer,) = b.arrive(0.0, ask("late"))
    assert isinstance(answer, Refused)
    assert (answer.status, answer.code) == (429, "slo_unattainable")
    assert "promises 0.2 s" in answer.message
    assert answer.retry_after_s is not None and answer.retry_after_s >= 1.0
    assert isinstance(b.arrive(100.0, ask("later"))[0], Routed), "the backlog is over by then"


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    b = brain(1)
    for i in range(20):
        b.arrive(0.0, ask(f"long{i}", prompt_bytes=100_000))
    (answer,) = b.arrive(0.0, ask("a", deadline_s=0.5, max_tokens=5))
    assert isinstance(answer, Refused) and (answer.status, answer.code) == (429, "deadline_unattainable")
    assert isinstance(b.arrive(100.0, ask("b", deadline_s=0.5, max_tokens=5))[0], Routed)


def test_nothing_is_predicted_of_an_unknown_engine_until_it_was_seen():
    b = brain(1, known=False, classes=(SloClass(slo=Slo(ttft_s=0.001)),))
    for i in range(20):
        assert isinstance(b.arrive(float(i), ask(f"r{i}"))[0], Routed)
        record = EndRecord(id=f"r{i}", status=200, replica=0, attempts=1, sent_s=0.0, first_s=0.5, duration_s=0.6)
        b.record(i + 0.6, record)
        b.end(i + 0.6, f"r{i}")
    assert isinstance(b.arrive(20.7, ask("alone"))[0], Routed), "what was learned alone does not close an idle engine"
    (answer,) = b.arrive(20.8, ask("now"))
    assert isinstance(answer, Refused) and answer.code == "slo_unattainable"


def test_limits_of_a_tenant_hold_and_say_when_to_come_back():
    tenants = (
        Tenant(name="a", concurrency=1),
        Tenant(name="b", requests_per_min=2),
        Tenant(name="c", tokens_per_min=600),
    )
    b = brain(tenants=tenants)
    b.arrive(0.0, ask("a1"))
    (second,) = b.arrive(0.0, ask("a2"))
    assert isinstance(second, Refused) and "1 are allowed" in second.message
    b.end(0.1, "a1")
    assert isinstance(b.arrive(0.2, ask("a3"))[0], Routed)
    for i in range(2):
        assert isinstance(b.arrive(0.0, ask(f"b{i}", tenant=1))[0], Routed)
    (third,) = b.arrive(0.3, ask("b2", tenant=1))
    assert isinstance(third, Refused) and third.retry_after_s == pytest.approx(30.0, abs=0.5)
    assert isinstance(b.arrive(31.0, ask("b3", tenant=1))[0], Routed)
    assert isinstance(b.arrive(0.0, ask("c0", tenant=2, max_tokens=500))[0], Routed)
    (more,) = b.arrive(0.1, ask("c1", tenant=2, max_tokens=500))
    assert isinstance(more, Refused) and "tokens a minute" in more.message


def test_no_tenant_gets_more_tokens_than_its_rate_over_any_long_time():
    b = brain(tenants=(Tenant(name="a", tokens_per_min=6000),))
    spent, rng = 0, Random(3)
    for i in range(2000):
        now = i * 0.1
        if isinstance(b.arrive(now, ask(f"r{i}", prompt_bytes=4 * rng.randint(1, 300), max_tokens=200))[0], Routed):
            output = rng.randint(1, 200)
            spent += b.live[f"r{i}"].view.prompt_tokens + output
            prompt = b.live[f"r{i}"].view.prompt_tokens
            b.end(now, f"r{i}")
            b.record(now, EndRecord(id=f"r{i}", status=200, attempts=1, prompt_tokens=prompt, output_tokens=output))
    assert spent <= 6000 + 6000 * 200 / 60 + 500
    assert spent >= 0.9 * 6000 * 200 / 60


def test_failures_in_a_row_eject_and_a_probe_brings_back():
    b = brain(2, health=Health(failures=2))
    for i in range(2):
        (answer,) = b.arrive(0.0, ask(f"r{i}"))
        assert isinstance(answer, Routed) and answer.hosts[0] == 0
        b.record(0.0, EndRecord(id=f"r{i}", status=200, replica=1, attempts=2))  # the second host had to take it
        b.end(0.0, f"r{i}")
    assert [book.healthy for book in b.books] == [False, True]
    assert b.figures.total("headway_retried_total") == 2
    (answer,) = b.arrive(1.0, ask("next"))
    assert isinstance(answer, Routed) and answer.hosts == (1,)
    b.health(2.0, 0, True)
    assert b.books[0].healthy


def test_with_no_replica_left_a_request_is_refused_and_a_held_one_waits():
    b = brain(1, known=False, limits=Limits(in_flight=1, hold_s=9.0))
    b.arrive(0.0, ask("running"))
    b.arrive(0.0, ask("held"))
    b.health(0.1, 0, False)
    assert b.end(0.2, "running") == []
    (refused,) = b.arrive(0.3, ask("new"))
    assert isinstance(refused, Refused) and (refused.status, refused.code) == (503, "no_replica")
    (back,) = b.health(0.4, 0, True)
    assert isinstance(back, Routed) and back.id == "held"


def test_an_answer_by_a_host_that_was_not_chosen_raises_the_alarm():
    b = brain(3)
    b.arrive(0.0, ask("a"))
    b.end(0.1, "a")
    b.record(0.1, EndRecord(id="a", status=200, replica=2, attempts=1))
    assert b.figures.total("headway_misrouted_total") == 1


def test_a_policy_that_fails_is_answered_for():
    b = brain(2, policies={kind: Faulty() for kind in ("route", "order", "admit")})
    answers = [b.arrive(0.0, ask(f"r{i}"))[0] for i in range(12)]
    assert {type(a) for a in answers} == {Routed, Refused, Held}  # it may hold: that is an answer
    assert b.fence.errors["route"] > 0 and b.fence.errors["admit"] > 0
    assert abs(b.books[0].in_flight - b.books[1].in_flight) <= 3, "the fallback spreads the load"


class Quits(Policy):
    """Raises what ends a process elsewhere."""

    def __init__(self, *kinds):
        self.kinds = [*kinds]

    def quit(self, *_):
        self.kinds.append(self.kinds.pop(0))
        raise self.kinds[-1]("over")

    route = admit = order = scale = choose_model = retain = quit


def test_a_policy_that_would_end_the_process_is_answered_for(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # as where the loop takes Ctrl-C
    quits = Quits(SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit)
    kinds = ("route", "order", "admit", "retain", "scale")
    b = brain(2, policies={kind: quits for kind in kinds}, limits=Limits(in_flight=2))
    b.shadow = Shadow({"route": quits, "admit": quits})
    for i in range(9):
        b.arrive(20.0, ask(f"r{i}"))
    b.tick(20.0)
    b.end(21.0, "r0")
    assert [book.in_flight for book in b.books] == [2, 2] and len(b.held) == 4 and not b.check()
    assert all(b.fence.errors[kind] for kind in kinds)
    assert b.shadow.counts["route"]["error"] and b.shadow.counts["admit"]["error"] == 9


def test_ctrl_c_goes_through_a_policy_where_it_is_a_persons(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        brain(1, policies={"route": Quits(KeyboardInterrupt)}).arrive(0.0, ask("a"))


class Talkative(Policy):
    def route(self, request, pool):
        return Route(0, f"request {request.id}")


def test_reasons_of_a_talkative_policy_do_not_grow_the_figures_without_end():
    b = brain(1, policies={"route": Talkative()})
    for i in range(300):
        b.arrive(float(i), ask(f"r{i}"))
        b.end(float(i), f"r{i}")
    assert len(b.figures.counters["headway_decisions_total"]) <= 65
    assert b.figures.total("headway_decisions_total", outcome="routed") == 300


def test_load_that_is_not_ours_counts_once_it_stays():
    b = brain(2)
    for i in range(2):
        b.sample(float(i), 0, EngineSample(running=7, waiting=1))
        assert b.books[0].foreign == 0
    b.sample(2.0, 0, EngineSample(running=6, waiting=0))
    assert b.books[0].foreign == 6
    (answer,) = b.arrive(3.0, ask("a"))
    assert isinstance(answer, Routed) and answer.hosts[0] == 1


def test_prefixes_are_found_again_on_the_replica_that_had_them_and_not_across_tenants():
    from headway.gateway.prefix import chain_of

    b = brain(2, tenants=(Tenant(name="a"), Tenant(name="b")), policies={"route": policy("route", "prefix-affinity")})
    text = b"system prompt " * 1000
    first = b.arrive(0.0, ask("a1", prompt_bytes=len(text), chain=chain_of(text, "a")))[0]
    assert isinstance(first, Routed) and first.hosts[0] == 0
    other = b.arrive(0.0, ask("b1", tenant=1, prompt_bytes=len(text), chain=chain_of(text, "b")))[0]
    assert isinstance(other, Routed) and other.hosts[0] == 1, "nothing of tenant a is cached for b"
    again = b.arrive(9.0, ask("a2", prompt_bytes=len(text), chain=chain_of(text + b"more" * 99, "a")))[0]
    assert isinstance(again, Routed) and (again.hosts[0], again.reason) == (0, "cached prefix")


def test_predicted_output_follows_what_a_tenant_generates():
    b = brain()
    assert math.isnan(b.lines[0].lengths.predict(0, None))
    rng = Random(1)
    for _ in range(2000):
        b.lines[0].lengths.learn(0, rng.choice([50, 150]))
    assert b.lines[0].lengths.predict(0, None) == pytest.approx(100, rel=0.25)
    assert b.lines[0].lengths.predict(0, 10) == 10
    assert 130 <= b.lines[0].lengths.budget(0, None) <= 200


# --- the views --------------------------------------------------------------------------------------------------


def test_views_show_prompts_as_waiting_until_they_are_predicted_to_be_computed():
    b = brain(1)
    b.arrive(0.0, ask("a", prompt_bytes=8000))
    book = b.books[0]
    book.advance(0.0)
    assert (book.view.running, book.view.waiting, book.view.waiting_tokens) == (0, 1, 2000)
    book.advance(5.0)
    assert (book.view.running, book.view.waiting, book.view.waiting_tokens) == (1, 0, 0)
    grown = book.view.context_tokens
    assert grown > 2000
    book.advance(6.0)
    assert book.view.context_tokens > grown
    assert book.view.kv_used_blocks == math.ceil(book.view.context_tokens / 16)


@pytest.mark.parametrize("kind", ["route", "order", "admit"])
def test_every_built_in_policy_keeps_the_contract_that_the_gateway_relies_on(kind):
    for name in policy_names(kind):
        check_policy(kind, name)


def test_a_view_cannot_be_written_by_a_policy_where_the_core_is_compiled():
    import headway

    replica = LiveReplica(0, 10, None)
    if headway.interpreted_modules():
        pytest.skip("the core runs interpreted: read-only fields are a matter of compiled code")
    with pytest.raises(AttributeError):
        replica.running = 3
    request = LiveRequest(1, 0.0, 5)
    with pytest.raises(AttributeError):
        request.priority = 1
    assert LivePool("mixed", [replica], Random(0)).replicas == [replica]
