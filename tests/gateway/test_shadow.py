"""A shadow policy: it says what it would have done, and whatever it does wrong, the live decisions are the same."""

from __future__ import annotations

import signal
import time
from random import Random
from typing import Any

import pytest
from brain_cases import ADDRESSES, Faulty, table
from log_cases import OneLife, writer

from headway.errors import BadInput
from headway.gateway import Backing, Brain, GatewaySpec
from headway.gateway.events import Arrival, Refused, Routed
from headway.gateway.gauges import gauges_of
from headway.gateway.log.reader import runs
from headway.gateway.shadow import RECENT, SAID_MAX, STRIKES, Alarm, Shadow
from headway.gateway.spec import ShadowSpec
from headway.policies import Policy, policy
from headway.state import Reject, Route


class Endless(Policy):
    """Does not come back, and lets nothing but its own mistakes stop it."""

    def route(self, request: Any, pool: Any) -> Any:
        while True:
            try:
                sum(range(100))
            except Exception:
                continue


class Exits(Policy):
    def route(self, request: Any, pool: Any) -> Any:
        raise AssertionError("no\nway")


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("not in words")


class Odd(Policy):
    """Answers with what cannot even be shown."""

    def route(self, request: Any, pool: Any) -> Any:
        return Unprintable()

    def admit(self, request: Any, cluster: Any) -> Any:
        return Unprintable()


class First(Policy):
    def route(self, request: Any, pool: Any) -> Any:
        return Route(0, "the first")

    def admit(self, request: Any, cluster: Any) -> Any:
        return Reject("never")


def made(shadow: Shadow | None, route: str = "least-requests", count: int = 3) -> Brain:
    policies = {
        "route": policy("route", route),
        "order": policy("order", "fcfs"),
        "admit": policy("admit", "accept-all"),
    }
    spec = GatewaySpec(upstreams=ADDRESSES[:count], models=("m",))
    brain = Brain(spec, [Backing(table=table())] * count, policies)
    brain.shadow = shadow
    return brain


def ask(brain: Brain, count: int) -> list[Any]:
    rng = Random(4)
    return [
        brain.arrive(0.1 * i, Arrival(id=f"r{i}", tenant=0, slo_class=0, prompt_bytes=rng.randint(1, 9999)))
        for i in range(count)
    ]


@pytest.mark.parametrize("wrong", [Faulty, Odd, Exits, First])
def test_live_decisions_are_the_same_with_any_shadow(wrong):
    """The random streams too: a shadow that draws takes nothing from the live policy."""
    for seed in range(40):
        alone, beside = OneLife(seed), OneLife(seed)
        shadow = Shadow({"route": wrong() if seed % 2 else policy("route", "power-of-two"), "admit": wrong()}, seed)
        beside.brain.shadow = shadow
        alone.run(60)
        beside.run(60)
        assert alone.said == beside.said, seed
        given = [answer for answers in beside.said.values() for answer in answers if isinstance(answer, Routed)]
        asked, decisions = sum(shadow.counts["route"].values()), sum(1 + (each.prefill is not None) for each in given)
        assert asked == decisions or (asked > decisions and "decode" in beside.roles)  # held after the first of two


@pytest.mark.parametrize("name", ["least-requests", "least-tokens", "prefix-affinity", "round-robin"])
def test_a_policy_agrees_with_itself(name):
    shadow = Shadow({"route": policy("route", name), "admit": policy("admit", "accept-all")})
    brain = made(shadow, name)
    ask(brain, 150)
    assert shadow.counts == {"route": {"yes": 150}, "admit": {"yes": 150}}


def test_what_it_would_have_done_is_counted_and_shown():
    shadow = Shadow({"route": First(), "admit": First()})
    brain = made(shadow)
    first = [answers[0].hosts[0] == 0 for answers in ask(brain, 90)]
    assert 0 < sum(first) < 90
    assert shadow.counts["route"] == {"yes": sum(first), "no": 90 - sum(first)}
    assert shadow.counts["admit"] == {"no": 90}
    text = brain.figures.text([*gauges_of(brain), *shadow.gauges()])
    assert f'headway_shadow_total{{decision="route",agree="no"}} {90 - sum(first)}' in text
    status = shadow.status()
    assert status["route"]["agreement"] == sum(first) / 90 and status["admit"]["agreement"] == 0
    last = status["recent_differences"][-2:]
    assert {each["decision"] for each in last} == {"route", "admit"}
    assert next(each for each in last if each["decision"] == "admit")["shadow"] == "refused"
    assert next(each for each in last if each["decision"] == "route")["shadow"] == "replica 0"


def test_its_place_among_those_that_may_be_chosen_is_the_replicas_own_number():
    shadow = Shadow({"route": First()})
    brain = made(shadow)
    brain.health(0.0, 0, False)
    ask(brain, 1)
    (said,) = shadow.take()
    assert said.replica == 1 and said.reason == "the first"


def test_a_refusal_by_the_live_policy_is_held_against_it():
    class Never(Policy):
        def admit(self, request: Any, cluster: Any) -> Any:
            return Reject("never")

    shadow = Shadow({"admit": policy("admit", "accept-all")})
    brain = made(shadow)
    brain.fence.policies["admit"] = Never()
    ((answer,),) = ask(brain, 1)
    assert isinstance(answer, Refused) and answer.message == "never"
    assert shadow.counts["admit"] == {"no": 1}


@pytest.fixture
def alarm():
    before = signal.getsignal(signal.SIGALRM)
    yield Alarm(0.02)
    signal.signal(signal.SIGALRM, before)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0, "no alarm is left"


def test_one_that_never_comes_back_is_stopped_and_then_asked_no_more(alarm):
    shadow = Shadow({"route": Endless()}, guard=alarm)
    brain = made(shadow)
    answers = ask(brain, 20)
    assert all(isinstance(each[0], Routed) for each in answers)
    assert shadow.counts["route"] == {"error": STRIKES}
    assert "3 times in a row" in shadow.status()["route"]["off"]
    assert "too slow" in shadow.last_error
    assert not brain.check()


def test_slowness_that_no_alarm_can_stop_is_found_afterwards(alarm):
    class Sleepy(Policy):
        def route(self, request: Any, pool: Any) -> Any:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
            try:
                time.sleep(0.03)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
            return Route(0, "late")

    shadow = Shadow({"route": Sleepy()}, guard=alarm)
    ask(made(shadow), 5)
    assert shadow.counts["route"] == {"error": STRIKES}


def test_a_slow_answer_now_and_then_is_forgiven(alarm):
    alarm.limit_s = 0.3  # what a busy machine takes for a quick one is less
    class Moody(Policy):
        turn = 0

        def route(self, request: Any, pool: Any) -> Any:
            self.turn += 1
            while self.turn % 3:
                pass
            return Route(0, "")

    shadow = Shadow({"route": Moody()}, guard=alarm)
    ask(made(shadow), 9)
    assert shadow.counts["route"]["error"] == 6 and not shadow.off


def test_what_it_keeps_is_bounded_where_nobody_takes_it():
    shadow = Shadow({"route": First(), "admit": First()})
    ask(made(shadow), SAID_MAX + 50)
    assert sum(shadow.counts["route"].values()) == SAID_MAX + 50
    assert len(shadow.said) == SAID_MAX and len(shadow.recent) == RECENT
    assert shadow.said[-1].id == f"r{SAID_MAX + 49}", "the latest are kept"


def test_what_it_said_is_in_the_log_beside_the_decision(tmp_path):
    shadow = Shadow({"route": First(), "admit": Odd()})
    brain = made(shadow)
    log = writer(tmp_path)
    log.follow(brain)
    answers = ask(brain, 40)
    log.close(9.0)
    (run,) = runs(tmp_path)
    arrivals = [event for event in run.events() if event.what == "arrive"]
    for event, (answer,) in zip(arrivals, answers, strict=True):
        admit, route = event.shadow
        assert (admit.decision, admit.agrees, admit.id) == ("admit", None, answer.id)
        assert "ValueError: not in words" in admit.error
        assert (route.decision, route.replica, route.agrees) == ("route", 0, answer.hosts[0] == 0)
    assert not shadow.said


def test_a_shadow_of_nothing_is_refused():
    with pytest.raises(BadInput, match="names no policy"):
        ShadowSpec()
