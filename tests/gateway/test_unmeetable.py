"""What no replica could keep even when idle is refused for good; what a busy one cannot keep, until later."""

from __future__ import annotations

from brain_cases import ask, brain
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from headway.gateway import Brain, SloClass, admission
from headway.gateway.events import EndRecord, Refused, Routed
from headway.metrics import Slo

limits = st.sampled_from(["ttft_s", "tpot_s", "deadline_s"])


@given(limits, st.floats(1e-4, 10.0), st.integers(1, 400_000), st.integers(1, 2000), st.integers(0, 30))
def test_unmeetable_is_what_an_idle_gateway_refuses_and_nothing_else(limit, limit_s, size, output, busy):
    facts = {"prompt_tokens": size // 4 + 1, "max_tokens": output, limit: limit_s}
    idle, loaded = brain(), brain()
    for each in (idle, loaded):
        each.lines[0].lengths.learn(0, 300)
    for i in range(busy):
        loaded.arrive(0.0, ask(f"before{i}", prompt_bytes=40_000))
    (alone,), (beside,) = idle.arrive(0.0, ask("a", **facts)), loaded.arrive(0.0, ask("a", **facts))
    if isinstance(alone, Routed):
        assert isinstance(beside, Routed) or (beside.status == 429 and beside.retry_after_s >= 1.0)
    else:
        for refused in (alone, beside):
            assert (refused.status, refused.code, refused.retry_after_s) == (422, "unmeetable", None)
    assert idle.check() == loaded.check() == []


def test_the_floor_and_what_was_promised_are_told():
    b = brain(1, classes=(SloClass(name="chat", slo=Slo(ttft_s=0.05)),))
    (refused,) = b.arrive(0.0, ask("a", prompt_tokens=100_000))
    assert isinstance(refused, Refused) and refused.code == "unmeetable"
    entry = b._entry(0.0, ask("b", prompt_tokens=100_000))
    floor_s = admission.idle_s(b.books, entry, entry.view.prompt_tokens)[0]
    for said in (f"{floor_s:.3g} s", "a prompt of 100000 tokens", "class 'chat' promises 0.05 s"):
        assert said in refused.message


def test_no_text_is_refused_for_good_for_the_length_that_is_guessed():
    b = brain(1, classes=(SloClass(slo=Slo(ttft_s=0.05)),))
    (refused,) = b.arrive(0.0, ask("a", prompt_bytes=4_000_000))
    assert isinstance(refused, Refused) and (refused.status, refused.code) == (429, "slo_unattainable")
    assert refused.retry_after_s >= 1.0


def test_a_replica_that_is_away_may_come_back_and_keep_what_the_others_cannot():
    b = brain(2, classes=(SloClass(slo=Slo(ttft_s=0.05)),))
    slow = b.books[0].pace.table
    assert slow is not None
    b.books[0].pace.table = structs.replace(slow, intake_s=slow.intake_s + 1.0)
    b.health(0.0, 1, False)
    (refused,) = b.arrive(0.0, ask("a"))
    assert isinstance(refused, Refused) and (refused.status, refused.code) == (429, "slo_unattainable")
    b.health(1.0, 1, True)
    assert isinstance(b.arrive(1.0, ask("b"))[0], Routed)
    (refused,) = b.arrive(1.0, ask("only there", only=(0,)))
    assert isinstance(refused, Refused) and refused.code == "unmeetable", "where it may go there is no other"


def test_a_slowness_that_was_learned_may_pass_and_is_no_floor():
    b = brain(1, classes=(SloClass(slo=Slo(ttft_s=0.1)),))
    for i in range(20):
        assert isinstance(b.arrive(float(i), ask(f"r{i}", slo_class=0))[0], Routed | Refused)
        b.record(i + 0.6, EndRecord(id=f"r{i}", status=200, replica=0, attempts=1, sent_s=0.0, first_s=0.5))
        b.end(i + 0.6, f"r{i}")
    assert isinstance(b.arrive(21.0, ask("beside"))[0], Routed)
    b.books[0].pace.first.ratio = 10.0
    (refused,) = b.arrive(22.0, ask("now"))
    assert isinstance(refused, Refused) and (refused.status, refused.code) == (429, "slo_unattainable")


def slowed(count: int = 14) -> Brain:
    """A gateway whose one engine has been ten times too slow for so many requests, and is idle at 14 s."""
    b = brain(1, classes=(SloClass(slo=Slo(ttft_s=0.2)),))
    for i in range(count):
        b.arrive(float(i), ask(f"slow{i}"))
        b.record(i + 0.9, EndRecord(id=f"slow{i}", status=200, replica=0, attempts=1, sent_s=0.0, first_s=4.0))
        b.end(i + 0.9, f"slow{i}")
    return b


@given(st.integers(1, 60), st.floats(0.0, 1e5))
def test_an_idle_healthy_gateway_serves_again_however_slow_it_was(count, later_s):
    b = slowed(count)
    assert isinstance(b.arrive(count + later_s, ask("back"))[0], Routed)


def test_slowness_is_forgotten_with_time_also_where_a_replica_is_never_idle():
    b = slowed()
    assert isinstance(b.arrive(14.0, ask("long"))[0], Routed)
    assert isinstance(b.arrive(14.1, ask("at once"))[0], Refused)
    assert isinstance(b.arrive(20.0, ask("soon"))[0], Refused)
    assert isinstance(b.arrive(300.0, ask("later"))[0], Routed)


@given(st.lists(st.floats(14.0, 200.0), max_size=8), st.floats(200.0, 400.0))
def test_what_is_forgotten_does_not_depend_on_who_looks(looks, now):
    one, other = slowed(), slowed()
    for look in sorted(looks):
        one.books[0].advance(look)
    for each in (one, other):
        each.books[0].advance(now)
    assert one.books[0].pace.first.ratio == other.books[0].pace.first.ratio


def test_a_replica_that_comes_back_is_taken_at_its_law():
    b = slowed()
    assert b.books[0].pace.first.ratio > 1
    b.health(14.0, 0, False)
    b.health(14.1, 0, True)
    assert b.books[0].pace.first.ratio == 1.0
    assert [isinstance(b.arrive(14.2, ask(id))[0], Routed) for id in ("a", "b")] == [True, True]
