"""Tenants that wait for each other: the bound on what one may be ahead, and how weights, classes and pauses enter."""

from __future__ import annotations

from collections import deque
from random import Random

import pytest
from brain_cases import ask, brain

from headway.gateway import Brain, SloClass, Tenant
from headway.gateway.events import EndRecord, Routed
from headway.gateway.fairness import TokenCounters, cost
from headway.gateway.spec import Limits
from headway.policies import policy

ORDERS = ("fcfs", "sjf", "priority")


class Backlog:
    """A gateway with one small replica and more asked for than it serves, tenant by tenant.

    `sent` is what each tenant's requests that were sent do cost, divided by its weight: known here in advance.
    """

    def __init__(self, seed: int, weights: tuple[float, ...], tenants_in_pause: float = 0.0, **limits: object) -> None:
        self.rng = Random(seed)
        self.weights = weights
        self.pauses = tenants_in_pause
        tenants = tuple(Tenant(name=f"t{i}", weight=weight) for i, weight in enumerate(weights))
        order = policy("order", self.rng.choice(ORDERS))
        slots = self.rng.choice([1, 2, 5])
        bounds = Limits(**{"in_flight": slots, "held": 10_000, "hold_s": 250.0, "aging_s": 0, **limits})  # type: ignore[arg-type]
        self.brain: Brain = brain(1, known=False, tenants=tenants, policies={"order": order}, limits=bounds)
        self.now, self.serial = 0.0, 0
        self.output: dict[str, int] = {}
        self.running: deque[str] = deque()
        self.sent = [0.0] * len(weights)
        self.largest, self.amiss = 0.0, 0.0

    def waiting(self, tenant: int) -> int:
        return sum(e.facts.tenant == tenant for e in self.brain.held.values())

    def ask(self, tenant: int) -> None:
        """One more request, of any size: one tenant's are long, another's short."""
        self.serial += 1
        id = f"r{self.serial}"
        self.output[id] = self.rng.randint(1, (20, 400, 2000)[tenant % 3])
        size = self.rng.choice([40, 400, 8000]) if tenant % 2 else 400
        self.hear(self.brain.arrive(self.now, ask(id, tenant=tenant, prompt_bytes=size, max_tokens=2000)))

    def hear(self, answers: list[object]) -> None:
        for answer in answers:
            if isinstance(answer, Routed):
                entry = self.brain.live[answer.id]
                tenant, weight = entry.facts.tenant, self.weights[entry.facts.tenant]
                own = cost(entry.view.prompt_tokens, self.output[answer.id])
                self.sent[tenant] += own / weight
                self.largest = max(self.largest, own / weight)
                self.running.append(answer.id)
        amiss = 0.0
        for id in self.running:
            entry = self.brain.live[id]
            own = cost(entry.view.prompt_tokens, self.output[id])
            amiss += abs(own - entry.charged) / self.weights[entry.facts.tenant]
        self.amiss = max(self.amiss, amiss)

    def end_one(self) -> None:
        id = self.running.popleft()
        prompt = self.brain.live[id].view.prompt_tokens
        record = EndRecord(id=id, status=200, attempts=1, prompt_tokens=prompt, output_tokens=self.output[id])
        self.brain.record(self.now, record)
        self.hear(self.brain.end(self.now, id))

    def run(self, ends: int) -> list[tuple[list[float], list[bool]]]:
        """Let so many requests end; after each what was sent, and who waited throughout."""
        seen = []
        resting = [False] * len(self.weights)
        for _ in range(ends):
            self.now += 0.05
            for tenant in range(len(self.weights)):
                if self.rng.random() < self.pauses:
                    resting[tenant] = not resting[tenant]
                while not resting[tenant] and self.waiting(tenant) < 4:
                    self.ask(tenant)
            if self.running:
                self.end_one()
            seen.append((list(self.sent), [self.waiting(tenant) > 0 for tenant in range(len(self.weights))]))
        assert not self.brain.check()
        return seen


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 4.0), (0.5, 1.0, 8.0)])
@pytest.mark.parametrize("pauses", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(3))
def test_no_tenant_that_waits_falls_behind_another_by_more_than_the_bound(weights, pauses, seed):
    """|W_f - W_g| <= 2 (U + E) over every span in which both wait; see `fairness.py` for U and E."""
    backlog = Backlog(seed, weights, pauses)
    seen = backlog.run(400)
    bound = 2 * (backlog.largest + backlog.amiss)
    compared = 0
    for f in range(len(weights)):
        for g in range(f):
            low, high = float("inf"), -float("inf")
            for sent, waits in seen:
                if not (waits[f] and waits[g]):
                    low, high = float("inf"), -float("inf")
                    continue
                ahead = sent[f] - sent[g]
                low, high, compared = min(low, ahead), max(high, ahead), compared + 1
                assert high - low <= bound, f"{f} against {g}: {high - low:.0f} of at most {bound:.0f}"
    assert compared > 50
    assert sum(backlog.sent) > 3 * bound, "so much was served that the bound says something"


def test_a_flood_of_one_tenant_does_not_keep_another_waiting():
    b = brain(1, known=False, tenants=(Tenant(name="flood"), Tenant(name="quiet")), limits=Limits(in_flight=1))
    for i in range(200):
        b.arrive(0.0, ask(f"f{i}"))
    b.arrive(25.0, ask("quiet", tenant=1))  # the flood's requests have waited, and so aged, for long
    served = b.end(25.1, "f0")
    served += b.end(25.2, served[0].id)
    assert "quiet" in [answer.id for answer in served]


def test_without_fairness_the_order_policy_alone_decides():
    tenants = (Tenant(name="flood"), Tenant(name="quiet"))
    b = brain(1, known=False, tenants=tenants, limits=Limits(in_flight=1, fair=False))
    for i in range(3):
        b.arrive(0.0, ask(f"f{i}"))
    b.arrive(0.1, ask("quiet", tenant=1))
    assert [a.id for a in b.end(0.2, "f0")] == ["f1"]


def test_fairness_is_among_requests_of_the_same_urgency():
    classes = (SloClass(name="chat"), SloClass(name="batch", priority=2))
    tenants = (Tenant(name="a"), Tenant(name="b"))
    b = brain(1, known=False, tenants=tenants, classes=classes, limits=Limits(in_flight=1, aging_s=0))
    b.arrive(0.0, ask("running", tenant=0))
    b.arrive(0.1, ask("batch of b", tenant=1, slo_class=1))
    for i in range(3):
        b.arrive(0.2, ask(f"chat {i} of a", tenant=0))
    order, last = [], "running"
    while answers := b.end(1.0, last):
        last = answers[0].id
        order.append(last)
    assert order == ["chat 0 of a", "chat 1 of a", "chat 2 of a", "batch of b"]


def test_within_a_tenant_the_order_policy_decides():
    tenants = (Tenant(name="a"), Tenant(name="b"))
    b = brain(1, known=False, tenants=tenants, limits=Limits(in_flight=1), policies={"order": policy("order", "sjf")})
    b.arrive(0.0, ask("running"))
    for name, size in (("long", 4000), ("short", 40), ("middle", 400)):
        for tenant in range(2):
            b.arrive(0.1, ask(f"{name}{tenant}", tenant=tenant, prompt_bytes=size, max_tokens=1))
    order, last = [], "running"
    while answers := b.end(1.0, last):
        last = answers[0].id
        order.append(last)
    for tenant in "01":
        assert [id for id in order if id.endswith(tenant)] == [f"short{tenant}", f"middle{tenant}", f"long{tenant}"]


def test_who_pauses_is_owed_nothing_for_the_pause():
    counters = TokenCounters([1.0, 1.0])
    counters.join(0, ())
    for _ in range(100):
        counters.charge(0, 50.0)
    counters.join(1, (0,))
    assert counters.served == [5000.0, 5000.0]
    counters.leave(0)
    counters.leave(1)
    counters.charge(1, 70.0)
    counters.join(0, ())
    assert counters.served[0] == 5070.0, "the queue was empty: who left it last is the measure"


def test_a_request_whose_deadline_passes_in_the_queue_is_not_charged():
    b = brain(1, known=False, tenants=(Tenant(name="a"), Tenant(name="b")), limits=Limits(in_flight=1))
    b.arrive(0.0, ask("running"))
    b.arrive(0.0, ask("late", tenant=1, deadline_s=1.0))
    served = b.lines[0].held.counters[0].served[1]
    b.end(2.0, "running")
    assert b.lines[0].held.counters[0].served[1] == served and not b.live
