"""Random lives of a gateway: seeded sequences of arrivals, ends, records, failures and time, checked at each step."""

from __future__ import annotations

import functools
import math
from random import Random
from typing import Any

from headway.cost import Replica, StepTable, compile_replica
from headway.gateway import Backing, Brain, GatewaySpec, SloClass, Tenant
from headway.gateway.events import Arrival, EndRecord, EngineSample, Held, Left, Refused, Routed
from headway.gateway.spec import Health, Limits
from headway.metrics import Slo
from headway.policies import Policy, policy, policy_names
from headway.state import Accept, Reject, Route

ADDRESSES = ("127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003", "127.0.0.1:9004")


class Faulty(Policy):
    """Fails in every way there is, one after another; in between it answers."""

    def __init__(self) -> None:
        self.turn = 0

    def next(self, *answers: Any) -> Any:
        self.turn += 1
        return answers[self.turn % len(answers)]

    def route(self, request: Any, pool: Any) -> Any:
        answer = self.next(Route(0, "fine"), Route(99, "no such"), Route(-1, "none"), None, "raise", Accept())
        return 1 / 0 if answer == "raise" else answer

    def admit(self, request: Any, cluster: Any) -> Any:
        answer = self.next(Accept(), Accept(), Reject("no"), 17, "raise", Accept())
        return [][1] if answer == "raise" else answer

    def order(self, queue: Any) -> Any:
        answer = self.next(queue.arrival_s, [math.nan] * len(queue), "raise", [1.0, 2.0, 3.0])
        return {}["x"] if isinstance(answer, str) else answer


@functools.cache
def table() -> StepTable:
    return compile_replica(Replica(model="llama-3.1-8b", gpu="h100-sxm"))


def made(rng: Random) -> Brain:
    """A gateway of one to four replicas with limits tight enough to matter."""
    count = rng.randint(1, 4)
    classes = (
        SloClass(name="chat", slo=Slo(ttft_s=rng.choice([0.02, 0.5, 5.0]), tpot_s=0.05)),
        SloClass(name="batch", priority=5, deadline_s=rng.choice([None, 1.0, 60.0])),
    )
    tenants = (
        Tenant(name="a", concurrency=rng.choice([None, 3])),
        Tenant(name="b", requests_per_min=rng.choice([None, 30]), tokens_per_min=rng.choice([None, 5000])),
    )
    limits = Limits(
        in_flight=rng.choice([1, 2, 8]),
        held=rng.choice([0, 3, 100]),
        hold_s=rng.choice([0.5, 20]),
        aging_s=rng.choice([0, 1]),
    )
    spec = GatewaySpec(
        upstreams=ADDRESSES[:count],
        models=("m",),
        tenants=tenants,
        classes=classes,
        limits=limits,
        health=Health(failures=2),
    )
    backing = Backing(table=table()) if rng.random() < 0.7 else Backing()
    policies = {kind: policy(kind, rng.choice(policy_names(kind))) for kind in ("route", "order", "admit")}
    for kind in policies:
        if rng.random() < 0.25:
            policies[kind] = Faulty()
    return Brain(spec, [backing] * count, policies, rng.randint(0, 9))


class Life:
    """One gateway's life; `said` is every answer to each request, `over` those whose end it was told."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.brain = made(self.rng)
        self.now = 0.0
        self.serial = 0
        self.said: dict[str, list[Any]] = {}
        self.over: set[str] = set()
        self.early: list[str] = []  # ended before they arrive
        self.deadline: dict[str, float] = {}

    def run(self, events: int) -> None:
        """Live on, and end."""
        self.run_on(events)
        self.finish()

    def run_on(self, events: int) -> None:
        for _ in range(events):
            self.now += self.rng.choice([0.0, 0.001, 0.05, 0.05, 0.7])
            self.hear(self.happen())
            faults = self.brain.check()
            assert not faults, faults

    def happen(self) -> list[Any]:
        what = self.rng.random()
        live = list(self.brain.live)
        if what < 0.4 or not live:
            return self.arrive()
        if what < 0.6:
            return self.end(self.rng.choice(live))
        if what < 0.7:
            known = live + list(self.brain.unread)
            return self.brain.record(self.now, self.record(self.rng.choice([*known, "unknown"])))
        if what < 0.75:
            self.serial += 1
            self.early.append(f"r{self.serial}")
            return self.brain.end(self.now, self.early[-1])
        replica = self.rng.randrange(len(self.brain.books))
        if what < 0.85:
            return self.brain.health(self.now, replica, self.rng.random() < 0.6, probe=self.rng.random() < 0.7)
        if what < 0.9:
            sample = EngineSample(running=self.rng.choice([None, 0, 3]), waiting=self.rng.choice([None, 1]))
            return self.brain.sample(self.now, replica, sample)
        return self.brain.tick(self.now)

    def arrive(self) -> list[Any]:
        if self.early and self.rng.random() < 0.5:
            id = self.early.pop()
        else:
            self.serial += 1
            id = f"r{self.serial}"
        patience_s = self.rng.choice([None, None, 0.3, 5.0])
        self.deadline[id] = self.now + (patience_s or math.inf)
        facts = Arrival(
            id=id,
            tenant=self.rng.randrange(2),
            slo_class=self.rng.randrange(2),
            prompt_bytes=self.rng.choice([10, 4000, 200_000]),
            chain=tuple(range(self.rng.choice([0, 3, 50]))),
            max_tokens=self.rng.choice([None, 1, 500]),
            deadline_s=patience_s,
        )
        self.said[id] = []
        return self.brain.arrive(self.now, facts)

    def end(self, id: str) -> list[Any]:
        self.over.add(id)
        return self.brain.end(self.now, id)

    def record(self, id: str) -> EndRecord:
        rng = self.rng
        replica = rng.choice([None, *range(len(self.brain.books))])
        return EndRecord(
            id=id,
            status=rng.choice([0, 200, 200, 500, 503]),
            replica=replica,
            attempts=rng.choice([0, 1, 2]),
            upstream_failed=rng.random() < 0.2,
            caller_left=rng.random() < 0.2,
            sent_s=rng.choice([None, 0.001]),
            first_s=rng.choice([None, 0.05]),
            duration_s=rng.choice([0.05, 1.0]),
            prompt_tokens=rng.choice([None, 20]),
            output_tokens=rng.choice([None, 1, 80]),
        )

    def hear(self, answers: list[Any]) -> None:
        """Hold each answer to the rules."""
        for answer in answers:
            before = self.said[answer.id]
            assert answer.id not in self.over, f"answered after the end: {answer}"
            assert not before or isinstance(before[-1], Held), f"{before} and then {answer}"
            before.append(answer)
            if isinstance(answer, Routed):
                self.routed(answer)
            elif isinstance(answer, Refused):
                assert answer.status in (429, 503, 504)
                assert answer.status != 429 or (answer.retry_after_s or 0) > 0
                assert answer.message
            else:
                assert isinstance(answer, Held | Left)

    def routed(self, answer: Routed) -> None:
        books = self.brain.books
        assert self.now < self.deadline[answer.id], "routed after its deadline"
        assert len(set(answer.hosts)) == len(answer.hosts) <= 2
        first = books[answer.hosts[0]]
        assert first.healthy
        assert first.in_flight <= first.window

    def finish(self) -> None:
        """Everything ends, and nothing is left."""
        while self.brain.live:
            self.hear(self.end(next(iter(self.brain.live))))
        self.now += 100.0
        self.hear(self.brain.tick(self.now))
        self.hear(self.brain.tick(self.now + 100.0))
        assert not self.brain.check()
        assert not self.brain.live and not self.brain.unread and not self.brain.tombstones and not len(self.brain.held)
        for book in self.brain.books:
            book.advance(self.now + 100.0)
            view = book.view
            assert [view.running - book.others, view.waiting, view.waiting_tokens, view.context_tokens] == [0] * 4
        assert all(account.live == 0 for account in self.brain.accounts)
        figures = self.brain.figures
        arrived, refused = figures.total("headway_arrived_total"), figures.total("headway_refused")
        accepted = [id for id, answers in self.said.items() if not isinstance(answers[-1], Refused | Left)]
        assert figures.total("headway_ended_total") == arrived - refused == len(accepted)
        assert all(id in self.over for id in accepted)
