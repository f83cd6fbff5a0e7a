"""What is urgent: who gives way in a full queue, how requests age, and the limits that a request sets itself."""

from __future__ import annotations

import pytest
from brain_cases import ask, brain

from headway.gateway import Brain, SloClass, Tenant
from headway.gateway.events import EndRecord, Held, Refused, Routed
from headway.gateway.spec import Limits
from headway.metrics import Slo
from headway.policies import policy

CLASSES = (SloClass(name="chat"), SloClass(name="batch", priority=3), SloClass(name="night", offline=True, priority=-9))
CHAT, BATCH, NIGHT = range(3)


def full(held: int = 2, *, slo_class: int = NIGHT, **limits: object) -> Brain:
    """A replica that is busy, and a queue full of one class."""
    b = brain(1, known=False, classes=CLASSES, limits=Limits(in_flight=1, held=held, **limits))  # type: ignore[arg-type]
    b.arrive(0.0, ask("running"))
    for i in range(held):
        assert isinstance(b.arrive(0.0, ask(f"w{i}", slo_class=slo_class))[0], Held)
    return b


# --- shedding -----------------------------------------------------------------------------------------------------


def test_offline_work_gives_way_to_what_is_not_the_last_come_first():
    b = full()
    shed, held = b.arrive(1.0, ask("chat"))
    assert isinstance(shed, Refused) and isinstance(held, Held) and held.id == "chat"
    assert (shed.id, shed.status, shed.code) == ("w1", 429, "shed")
    assert "offline work gives way" in shed.message and (shed.retry_after_s or 0) > 0
    shed, held = b.arrive(1.0, ask("batch", slo_class=BATCH))
    assert (shed.id, held.id) == ("w0", "batch")
    shed, held = b.arrive(1.0, ask("chat 2"))
    assert (shed.id, held.id) == ("batch", "chat 2")
    assert not b.check() and len(b.held) == 2


@pytest.mark.parametrize("arriving", [NIGHT, BATCH])
def test_what_is_less_urgent_never_pushes_out_what_is_more(arriving):
    b = full(slo_class=CHAT)
    (refused,) = b.arrive(1.0, ask("new", slo_class=arriving))
    assert isinstance(refused, Refused) and (refused.id, refused.code) == ("new", "queue_full")
    assert set(b.held.entries) == {"w0", "w1"}


def test_offline_work_that_has_aged_is_still_offline():
    b = full(slo_class=NIGHT, aging_s=0.1, hold_s=100.0)
    b.tick(20.0)
    assert [a.id for a in b.arrive(20.0, ask("chat"))] == ["w1", "chat"]
    assert [a.id for a in b.end(21.0, "running")] == ["chat"]


def test_batch_that_has_waited_is_as_urgent_as_chat_and_not_shed_by_it():
    b = full(slo_class=BATCH, aging_s=1.0)
    assert isinstance(b.arrive(1.0, ask("early"))[0], Refused), "batch gives way at first"
    assert b.arrive(1.0, ask("early 2"))[0].id == "w0"
    b = full(slo_class=BATCH, aging_s=1.0)
    b.end(4.0, "w0")
    b.arrive(4.0, ask("chat"))
    assert [a.id for a in b.end(4.1, "running")] == ["w1"], "as urgent by now, and there before"


def test_who_fills_the_queue_gives_way_to_a_tenant_with_less_of_it():
    tenants = (Tenant(name="flood"), Tenant(name="quiet"), Tenant(name="large", weight=3.0))
    b = brain(1, known=False, tenants=tenants, limits=Limits(in_flight=1, held=6))
    for i in range(7):
        b.arrive(0.0, ask(f"f{i}"))
    assert isinstance(b.arrive(0.0, ask("f7"))[0], Refused), "no tenant pushes out its own"
    taken = {tenant: 0 for tenant in range(3)}
    for i in range(12):
        for tenant in (1, 2):
            answers = b.arrive(0.1, ask(f"{tenant}-{i}", tenant=tenant))
            assert answers[-1].id == f"{tenant}-{i}"
    for entry in b.held.entries.values():
        taken[entry.facts.tenant] += 1
    assert taken == {0: 1, 1: 1, 2: 4} or taken == {0: 1, 1: 2, 2: 3} or taken == {0: 2, 1: 1, 2: 3}
    assert not b.check()


# --- order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["fcfs", "sjf", "edf", "priority"])
def test_the_most_urgent_class_goes_first_under_every_order_and_offline_last(order):
    b = brain(1, known=False, classes=CLASSES, limits=Limits(in_flight=1), policies={"order": policy("order", order)})
    b.arrive(0.0, ask("running"))
    for name, slo_class in (("night", NIGHT), ("batch", BATCH), ("chat", CHAT)):
        b.arrive(0.1, ask(name, slo_class=slo_class, prompt_bytes=400 + 4000 * (2 - slo_class)))
    served, last = [], "running"
    while answers := b.end(0.2, last):
        last = answers[0].id
        served.append(last)
    assert served == ["chat", "batch", "night"]


# --- a request's own limits -----------------------------------------------------------------------------------------


def test_a_request_may_ask_for_less_time_than_its_class_and_not_for_more():
    b = brain(1, classes=(SloClass(slo=Slo(ttft_s=2.0, tpot_s=0.5, e2e_s=60.0)),))
    b.arrive(0.0, ask("tighter", ttft_s=0.5, tpot_s=0.1, deadline_s=9.0))
    b.arrive(0.0, ask("looser", ttft_s=20.0, tpot_s=5.0, deadline_s=100.0))
    assert b.live["tighter"].limits == (0.5, 0.1, 9.0)
    assert b.live["looser"].limits == (2.0, 0.5, 60.0)


def test_its_own_ttft_is_judged_at_admission_where_the_class_has_none():
    b = brain(1)
    for i in range(20):
        b.arrive(0.0, ask(f"long{i}", prompt_bytes=100_000))
    (answer,) = b.arrive(0.0, ask("hasty", ttft_s=0.2))
    assert isinstance(answer, Refused) and answer.code == "slo_unattainable"
    assert "time to first token" in answer.message and "the request asks for 0.2 s" in answer.message
    assert isinstance(b.arrive(0.0, ask("patient"))[0], Routed)


def test_a_tpot_that_the_batch_does_not_allow_is_refused_and_one_that_it_does_is_not():
    b = brain(1, classes=(SloClass(slo=Slo(tpot_s=0.012)),))
    assert isinstance(b.arrive(0.0, ask("first"))[0], Routed)
    alone_s = b.books[0].token_s(b.live["first"].view)
    (refused,) = b.arrive(0.0, ask("faster than it can", tpot_s=alone_s / 2))
    assert isinstance(refused, Refused) and "time per output token" in refused.message
    assert (refused.status, refused.retry_after_s) == (422, None), "not even alone"
    busy = next(i for i in range(300) if isinstance(b.arrive(0.0, ask(f"r{i}", prompt_bytes=16_000))[0], Refused))
    (refused,) = b.arrive(0.0, ask("one too many", prompt_bytes=16_000))
    assert isinstance(refused, Refused) and refused.status == 429 and (refused.retry_after_s or 0) >= 1.0
    assert busy > 5, "a batch is let in until it would be too slow for its class"
    assert b.books[0].token_s(b.live["first"].view) > 0.011


def test_embeddings_have_no_time_per_token():
    b = brain(1)
    assert isinstance(b.arrive(0.0, ask("e", generates=False, tpot_s=1e-6))[0], Routed)


@pytest.mark.parametrize(
    ("own", "met"), [({}, 1), ({"ttft_s": 0.1}, 0), ({"tpot_s": 0.01}, 0), ({"deadline_s": 0.9}, 0)]
)
def test_attainment_counts_a_request_by_its_own_limits(own, met):
    b = brain(1, known=False, classes=(SloClass(slo=Slo(ttft_s=1.0)),))
    b.arrive(0.0, ask("a", **own))
    b.end(1.0, "a")
    b.record(1.0, EndRecord(id="a", status=200, replica=0, attempts=1, first_s=0.2, duration_s=1.0, output_tokens=9))
    assert b.figures.total("headway_attained_total") == met


def test_what_waits_behind_less_urgent_work_alone_is_not_predicted_to_wait_for_it():
    classes = (SloClass(name="chat", slo=Slo(ttft_s=5.0)), SloClass(name="night", offline=True))
    b = brain(1, classes=classes, limits=Limits(in_flight=1))
    b.arrive(0.0, ask("running"))
    for i in range(100):
        b.arrive(0.0, ask(f"n{i}", slo_class=1))
    assert isinstance(b.arrive(0.0, ask("chat"))[-1], Held)
