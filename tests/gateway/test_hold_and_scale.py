"""A router that holds, an admission rule that defers and a scaling rule that advises, live."""

from __future__ import annotations

import pytest
from brain_cases import ask, brain

from headway.gateway.events import EndRecord, Held, Refused, Routed
from headway.gateway.gauges import gauges_of
from headway.gateway.spec import Limits
from headway.policies import Policy, policy
from headway.state import Defer, Hold, Route, Scale


class OneEach(Policy):
    """One request at a replica, whatever room the gateway sees; `asked` counts."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def route(self, request, pool):
        self.asked.append((request.id, pool.held))
        idle = [replica.index for replica in pool.replicas if replica.running + replica.waiting == 0]
        return Route(idle[0], "idle") if idle else Hold("all busy")


class Later(Policy):
    def admit(self, request, cluster):
        return Defer(cluster.now + 7.0, "after lunch")


class Six(Policy):
    def scale(self, cluster):
        pool = cluster.pools[0]
        busy = sum(replica.running + replica.waiting for replica in pool.replicas)
        return [Scale(0, 6, f"{busy} busy, {pool.held} held")] if busy else []


def test_who_is_held_waits_and_is_asked_about_when_one_ends():
    router = OneEach()
    gateway = brain(2, policies={"route": router})
    told = [gateway.arrive(0.1 * i, ask(f"r{i}")) for i in range(5)]
    assert [type(answers[-1]) for answers in told] == [Routed, Routed, Held, Held, Held]
    assert len(gateway.held) == 3 and not gateway.check()
    (freed,) = gateway.end(1.0, "r0")
    assert isinstance(freed, Routed) and freed.id == "r2" and freed.reason == "idle"
    assert len(gateway.held) == 2 and not gateway.check()
    before = len(router.asked)
    gateway.record(1.1, EndRecord(id="r0", status=200, replica=0, attempts=1, duration_s=1.0))
    gateway.tick(1.2)
    assert len(router.asked) == before + 2  # an event, one answer in vain
    assert {id for id, _ in router.asked[before:]} == {4}  # the first of the line
    assert {id for answers in (gateway.end(2.0, "r1"), gateway.end(2.1, "r2")) for id in (a.id for a in answers)} == {
        "r3", "r4",
    }  # fmt: skip
    assert not len(gateway.held) and not gateway.check()


def test_a_hold_ends_as_any_wait_does():
    gateway = brain(1, policies={"route": OneEach()}, limits=Limits(hold_s=3.0))
    gateway.arrive(0.0, ask("runs"))
    (held,) = gateway.arrive(0.5, ask("hopes", deadline_s=1.0))
    assert held == Held("hopes", 1.5)
    assert gateway.arrive(0.6, ask("waits")) == [Held("waits", 3.6)]
    (late,) = gateway.tick(1.6)
    assert isinstance(late, Refused) and (late.id, late.code) == ("hopes", "deadline_exceeded")
    (worn,) = gateway.tick(3.7)
    assert isinstance(worn, Refused) and (worn.id, worn.code) == ("waits", "hold_expired")
    assert list(gateway.live) == ["runs"] and not gateway.check()


def test_a_deferred_request_is_to_be_sent_again_then():
    (answer,) = brain(policies={"admit": Later()}).arrive(2.0, ask("r"))
    assert isinstance(answer, Refused)
    assert (answer.status, answer.code, answer.message) == (429, "deferred_by_policy", "after lunch")
    assert answer.retry_after_s == pytest.approx(7.0)


def test_the_scaling_rule_advises_every_so_often():
    gateway = brain(2, policies={"scale": Six(), "route": OneEach()})
    for i in range(3):
        gateway.arrive(0.0, ask(f"r{i}"))
    gateway.tick(14.9)
    assert gateway.advisor.status() is None and "headway_advised_replicas" not in [
        name for name, _, _ in gauges_of(gateway)
    ]
    gateway.tick(15.0)
    assert gateway.advisor.status() == {"at_s": 15.0, "replicas": 6, "reason": "2 busy, 1 held"}
    assert ("headway_advised_replicas", {}, 6) in list(gauges_of(gateway))
    for i in range(3):
        gateway.end(16.0, f"r{i}")
    gateway.tick(29.9)
    assert gateway.advisor.status()["at_s"] == 15.0
    gateway.health(30.0, 1, False)
    gateway.tick(30.1)
    assert gateway.advisor.status() == {"at_s": 30.1, "replicas": 2, "reason": "no change"}


def test_target_load_advises_live():
    gateway = brain(2, policies={"scale": policy("scale", "target-load", {"target": 2.0})})
    for i in range(9):
        gateway.arrive(0.0, ask(f"r{i}"))
    gateway.tick(15.0)
    assert gateway.advisor.status()["replicas"] == 5
    assert not gateway.fence.errors


def test_target_load_advises_no_fewer_because_replicas_are_away():
    gateway = brain(3, policies={"scale": policy("scale", "target-load", {"target": 2.0})})
    for i in range(6):
        gateway.arrive(0.0, ask(f"r{i}"))
    gateway.tick(15.0)
    for index in range(3):
        gateway.health(20.0, index, False)
        gateway.tick(30.0 + 15.0 * index)
        assert gateway.advisor.status()["replicas"] == 3
    assert not gateway.fence.errors
