"""Random lives of a gateway: seeded sequences of arrivals, ends, records, failures and time, checked at each step."""

from __future__ import annotations

import functools
import math
from collections import Counter
from datetime import UTC, datetime
from random import Random
from typing import Any

from msgspec import structs

from headway.cost import Replica, StepTable, compile_replica
from headway.gateway import Backing, Brain, GatewaySpec, SloClass, Tenant
from headway.gateway.admission import unattainable
from headway.gateway.events import Arrival, EndRecord, EngineSample, Held, Left, Refused, Routed
from headway.gateway.ledger import Tally
from headway.gateway.menu import Menu, menu_of
from headway.gateway.spec import BUDGETS, Health, Hedging, Limits
from headway.gateway.tenants import Usage
from headway.metrics import Slo
from headway.policies import Policy, policy, policy_names
from headway.state import Accept, Choose, Defer, Hold, Reject, Route, Scale

ADDRESSES = ("127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003", "127.0.0.1:9004")


class Faulty(Policy):
    """Fails in every way there is, one after another; in between it answers."""

    def __init__(self) -> None:
        self.turn = 0

    def next(self, *answers: Any) -> Any:
        self.turn += 1
        return answers[self.turn % len(answers)]

    def route(self, request: Any, pool: Any) -> Any:
        routes = Route(0, "fine"), Route(99, "no such"), Route(-1, "none")
        answer = self.next(*routes, None, "raise", Accept(), Hold("wait"))
        return 1 / 0 if answer == "raise" else answer

    def admit(self, request: Any, cluster: Any) -> Any:
        later = Defer(cluster.now + self.turn % 3, "later")  # one of three has come already
        answer = self.next(Accept(), Accept(), Reject("no"), 17, "raise", Accept(), later)
        return [][1] if answer == "raise" else answer

    def choose_model(self, request: Any, cluster: Any) -> Any:
        answer = self.next(Choose(request.models[-1], "the last"), Choose("gone", "no such"), None, "raise")
        return {}["x"] if answer == "raise" else answer

    def retain(self, request: Any, replica: Any) -> Any:
        answer = self.next(5.0, -1.0, math.nan, "7s", None, "raise")
        return {}["x"] if answer == "raise" else answer

    def scale(self, cluster: Any) -> Any:
        answer = self.next([], [Scale(0, 3, "more")], [Scale(4, 3, "where")], [Scale(0, -1, "none")], None, "raise")
        return {}["x"] if answer == "raise" else answer

    def order(self, queue: Any) -> Any:
        answer = self.next(queue.arrival_s, [math.nan] * len(queue), "raise", [1.0, 2.0, 3.0])
        return {}["x"] if isinstance(answer, str) else answer


@functools.cache
def table() -> StepTable:
    return compile_replica(Replica(model="llama-3.1-8b", gpu="h100-sxm"))


def brain(count: int = 2, *, known: bool = True, policies: dict[str, Policy] | None = None, **spec: object) -> Brain:
    chosen = {"route": "least-requests", "order": "fcfs", "admit": "accept-all"}
    objects = {kind: policy(kind, name) for kind, name in chosen.items()} | (policies or {})
    made = GatewaySpec(upstreams=ADDRESSES[:count], models=("m",), **spec)  # type: ignore[arg-type]
    return Brain(made, [Backing(table=table() if known else None)] * count, objects)


def ask(id: str, **facts: object) -> Arrival:
    return Arrival(**{"id": id, "tenant": 0, "slo_class": 0, "prompt_bytes": 400, **facts})  # type: ignore[arg-type]


def made(rng: Random) -> GatewaySpec:
    """A gateway of one to four replicas with limits tight enough to matter."""
    count = rng.randint(1, 4)
    classes = (
        SloClass(name="chat", slo=Slo(ttft_s=rng.choice([0.02, 0.5, 5.0]), tpot_s=0.05)),
        SloClass(name="batch", priority=5, deadline_s=rng.choice([None, 1.0, 60.0])),
        SloClass(name="night", priority=rng.choice([-3, 9]), offline=True),
    )
    tenants = (
        Tenant(name="a", concurrency=rng.choice([None, 3]), tokens_per_day=rng.choice([None, 6_000, 20_000])),
        Tenant(
            name="b",
            requests_per_min=rng.choice([None, 30]),
            tokens_per_min=rng.choice([None, 5000]),
            tokens_per_month=rng.choice([None, 9_000, 400_000]),
            weight=rng.choice([1.0, 3.0]),
        ),
    )
    limits = Limits(
        in_flight=rng.choice([1, 2, 8]),
        held=rng.choice([0, 3, 100]),
        hold_s=rng.choice([0.5, 20]),
        aging_s=rng.choice([0, 1]),
        fair=rng.random() < 0.8,
    )
    spec = GatewaySpec(
        upstreams=ADDRESSES[:count],
        models=("m",),
        tenants=tenants,
        classes=classes,
        limits=limits,
        health=Health(failures=2),
    )
    return spec


def served_by(spec: GatewaySpec, seed: int) -> tuple[list[str], Menu]:
    """The models of the replicas, one or two, and what may be asked for."""
    rng, count = Random(f"models/{seed}"), len(spec.upstreams)
    two = ["small", *rng.choices(["small", "large"], k=count - 1)]
    models = ["m"] * count if rng.random() < 0.6 else two
    return models, menu_of(models, (), {"nick": (models[-1],), "any": tuple(dict.fromkeys(models[::-1]))})


def roles_of(models: list[str], seed: int) -> list[str]:
    """What the replicas do: of one model, some may compute the prompts of the others."""
    rng, count = Random(f"roles/{seed}"), len(models)
    if count == 1 or len(set(models)) > 1 or rng.random() < 0.5:
        return ["mixed"] * count
    prefills = rng.randint(1, count - 1)
    return ["prefill"] * prefills + ["decode"] * (count - prefills)


def started(
    spec: GatewaySpec, rng: Random, epoch_s: float, models: list[str], menu: Menu, roles: list[str]
) -> Brain:
    """A decision process for it."""
    known = rng.random() < 0.7
    backings = [
        Backing(model=model, role=role, fetch_s=(0.001, 1e-5), table=table() if known else None)
        for model, role in zip(models, roles, strict=True)
    ]
    policies = {kind: policy(kind, rng.choice(policy_names(kind))) for kind in ("route", "order", "admit", "scale")}
    chosen = ("first", "threshold", "in-time", "faulty")[len(spec.upstreams) % 4]
    policies["choose_model"] = Faulty() if chosen == "faulty" else policy("choose_model", chosen)
    if len(spec.upstreams) > 1:
        policies["retain"] = Faulty() if len(spec.upstreams) == 2 else policy("retain", "keep-sessions")
    for kind in ("route", "order", "admit", "scale"):
        if rng.random() < 0.25:
            policies[kind] = Faulty()
    made = Brain(spec, backings, policies, rng.randint(0, 9), menu=menu)
    made.dated(0.0, epoch_s)
    return made


class Life:
    """One gateway's life; `said` is every answer to each request, `over` those whose end it was told.

    `disk` is what its ledger has been told. `drawn` is what engines have computed for a tenant by day and month,
    whatever decision process knew of it, and `lost` what no ledger was told of before a kill.
    """

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.late = Random(f"hedging/{seed}")
        hedging = [None, Hedging(after_s=0.05, budget=0.3), Hedging(quantile=0.9, budget=1.0)][self.late.randrange(3)]
        self.spec = structs.replace(made(self.rng), hedging=hedging)
        self.models, self.menu = served_by(self.spec, seed)
        self.roles = roles_of(self.models, seed)
        self.taste = Random(f"asked/{seed}")
        self.spoken = Random(f"sessions/{seed}")
        self.epoch_s = self.rng.choice([1e9, 86_400 * 31 - 20.0])  # the second: a day and a month end soon
        self.brain = started(self.spec, self.rng, self.epoch_s, self.models, self.menu, self.roles)
        self.disk: dict[tuple[str, str], Usage] = {}
        self.tally = Tally()
        self.asked: dict[str, Arrival] = {}
        self.drawn: Counter[tuple[str, str, str]] = Counter()
        self.lost: Counter[str] = Counter()
        self.untold: Counter[str] = Counter()
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
            self.now += 11.0 if self.rng.random() < 0.02 else self.rng.choice([0.0, 0.001, 0.05, 0.05, 0.7])
            self.hear(self.happen())
            faults = self.brain.check()
            assert not faults, faults
            self.budgets_hold()

    def happen(self) -> list[Any]:
        what = self.rng.random()
        live = list(self.brain.live)
        if what < 0.4 or not live:
            return self.arrive()
        if what < 0.6:
            return self.end(self.rng.choice(live))
        if what < 0.7:
            known = live + list(self.brain.unread)
            return self.report(self.rng.choice([*known, "unknown"]))
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
        if what < 0.91:
            id = self.rng.choice([*live, "unknown"])
            self.hear(self.brain.failed(self.now, id, replica))  # before a hedge takes places beyond a window
            return self.hedge()
        if what < 0.93:
            return self.flush()
        if what < 0.94:
            return self.kill()
        return self.tick()

    def hedge(self) -> list[Any]:
        """The proxy tells of hedges, and of replicas that have lost one, or of what it was not asked to do."""
        answers, hedges = [], self.brain.hedges
        for id in [self.late.choice([*self.brain.live, "unknown"]), *[id for id in hedges.promised][:2]]:
            hosts = self.brain.live[id].hosts if id in self.brain.live else ()
            replica = self.late.choice([self.late.randrange(len(self.brain.books)), *hosts[1:]])
            answers += self.brain.hedged(self.now, id, replica)
        for id in self.late.sample(list(hedges.copies), len(hedges.copies) // 2):
            answers += self.brain.failed(self.now, id, self.late.choice(self.brain.live[id].hosts))
        return answers

    def tick(self) -> list[Any]:
        unread = dict(self.brain.unread)
        answers = self.hedge() + self.brain.tick(self.now)
        for id, (_, entry) in unread.items():
            if id not in self.brain.unread and entry.hosts:
                self.draw(entry, entry.bound)
        return answers

    # --- what tenants use ------------------------------------------------------------------------------------

    def period(self, limit: str, unix_s: float) -> str:
        return f"{datetime.fromtimestamp(unix_s, UTC):{'%Y-%m-%d' if limit == 'tokens_per_day' else '%Y-%m'}}"

    def draw(self, entry: Any, tokens: int, told: bool = False) -> None:
        """An engine has computed so many tokens; `told`: as the ledger was, when it was told last."""
        account = self.brain.accounts[entry.facts.tenant]
        self.untold[account.tenant.name] += tokens
        for limit in account.budgets:
            row = self.disk.get((account.tenant.name, limit))
            unix_s = row.at_s if told and row is not None else self.epoch_s + self.now
            self.drawn[account.tenant.name, limit, self.period(limit, unix_s)] += tokens

    def flush(self) -> list[Any]:
        usages = self.brain.accounts.unsaved()
        for change in self.tally.changes(usages):
            key, told = (change.tenant, change.limit), self.disk.get((change.tenant, change.limit))
            if told is None or change.limit not in BUDGETS or change.at_s > told.at_s:
                self.disk[key] = change
            elif change.at_s == told.at_s:
                self.disk[key] = structs.replace(told, value=told.value + change.value)
        self.tally.confirm(usages)
        self.untold.clear()
        return self.brain.elsewhere(self.now, self.tally.others(self.disk.values(), rates=False))

    def kill(self) -> list[Any]:
        """The decision process is killed and started again: what runs is heard of no more, but goes on to its end."""
        if self.rng.random() < 0.7:
            self.flush()
        self.lost += self.untold
        for entry in [*self.brain.live.values(), *(entry for _, entry in self.brain.unread.values())]:
            if entry.hosts:
                self.draw(entry, entry.bound, told=True)
        self.untold.clear()
        self.said.clear()
        self.over.clear()
        self.early.clear()
        self.epoch_s += self.now
        self.now = 0.0
        self.brain = started(self.spec, self.rng, self.epoch_s, self.models, self.menu, self.roles)
        self.tally = Tally()
        return self.brain.elsewhere(self.now, self.tally.others(self.disk.values(), rates=True))

    def budgets_hold(self) -> None:
        for account in self.brain.accounts:
            for limit, budget in account.budgets.items():
                name = account.tenant.name
                assert budget.left(budget.start_s) >= -self.lost[name] - 1e-6
                assert budget.reserved >= 0
                drawn = max((n for key, n in self.drawn.items() if key[:2] == (name, limit)), default=0)
                assert drawn <= budget.tokens + self.lost[name], f"{name} has drawn {drawn} of {budget.tokens}"

    # --- requests --------------------------------------------------------------------------------------------

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
            slo_class=self.rng.randrange(3),
            prompt_bytes=self.rng.choice([10, 10, 4000, 200_000]),
            chain=tuple(range(self.rng.choice([0, 3, 50]))),
            max_tokens=self.rng.choice([None, 1, 500]),
            deadline_s=patience_s,
            ttft_s=self.rng.choice([None, None, 0.3]),
            tpot_s=self.rng.choice([None, None, 0.1]),
            model=self.taste.choice(list(self.menu.names)),
            streams=self.late.random() < 0.8,
            session=self.spoken.choice([-1, 3, 2**62]),
        )
        self.said[id] = []
        self.asked[id] = facts
        answers = self.brain.arrive(self.now, facts)
        if id in self.brain.live:
            self.untold[self.spec.tenants[facts.tenant].name] += self.brain.live[id].bound
        return answers

    def end(self, id: str) -> list[Any]:
        self.over.add(id)
        entry = self.brain.live[id]
        if entry.hosts and entry.record is not None:
            self.draw(entry, (entry.record.prompt_tokens or 0) + (entry.record.output_tokens or 0))
        return self.brain.end(self.now, id)

    def report(self, id: str) -> list[Any]:
        record = self.record(id)
        if id in self.brain.unread and (entry := self.brain.unread[id][1]).hosts:
            self.draw(entry, (record.prompt_tokens or 0) + (record.output_tokens or 0))
        return self.brain.record(self.now, record)

    def record(self, id: str) -> EndRecord:
        rng = self.rng
        replica = rng.choice([None, *range(len(self.brain.books))])
        facts = self.asked.get(id)
        most = (facts.max_tokens or self.spec.limits.output_tokens) if facts is not None else 80
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
            output_tokens=rng.choice([None, 1, min(80, most), most]),
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
                assert answer.status in (422, 429, 503, 504)
                assert answer.status != 429 or (answer.retry_after_s or 0) > 0
                assert answer.message
                if answer.code in ("shed", "queue_full"):
                    self.gives_way(self.asked[answer.id])
            else:
                assert isinstance(answer, Held | Left)

    def routed(self, answer: Routed) -> None:
        books = self.brain.books
        assert self.now < self.deadline[answer.id], "routed after its deadline"
        assert len(set(answer.hosts)) == len(answer.hosts) <= 2
        first = books[answer.hosts[0]]
        assert first.healthy
        assert first.in_flight <= first.window
        assert {self.roles[host] for host in answer.hosts} <= {"mixed", "decode"}
        assert (answer.prefill is None) == (first.role == "mixed")
        if answer.prefill is not None:
            prefill = books[answer.prefill]
            assert prefill.role == "prefill" and prefill.healthy
            assert answer.id in prefill.entries and prefill.in_flight <= prefill.window
        asked, served = self.asked[answer.id].model, {self.models[host] for host in answer.hosts}
        assert len(served) == 1 and served <= set(self.menu.names[asked]), "at a replica of another model"
        assert answer.model == (served.pop() if asked in self.menu.aliases else "")

    def gives_way(self, facts: Arrival) -> None:
        """Whoever is left without a place is no more urgent than any that waits."""
        if len(self.menu.names[facts.model]) > 1:
            return  # whose queue it would have waited in is not told
        classes = self.spec.classes
        (line,) = [line for line in self.brain.lines if line.model in self.menu.names[facts.model]]
        own, held = classes[facts.slo_class], [classes[e.facts.slo_class] for e in line.held.entries.values()]
        assert own.offline or not any(each.offline for each in held), "shed before offline work"
        if not self.spec.limits.aging_s:
            worst = max(((each.offline, each.priority) for each in held), default=(False, -99))
            assert (own.offline, own.priority) >= worst, "shed before what is less urgent"

    def serves_again(self) -> None:
        """An idle, healthy replica turns nobody away for what was learned of it, but for its law alone."""
        for book in self.brain.books:
            for number, klass in enumerate(self.spec.classes):
                entry = self.brain._entry(self.now, ask("again", slo_class=number, ttft_s=0.3, max_tokens=1))
                refused = unattainable(entry, klass, [book], self.now, 0.0, 1.0)
                assert refused is None or not book.idle or refused.code == "unmeetable", refused

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
        self.serves_again()
        assert all(account.live == 0 for account in self.brain.accounts)
        figures = self.brain.figures
        arrived, refused = figures.total("headway_arrived_total"), figures.total("headway_refused_total")
        accepted = [id for id, answers in self.said.items() if not isinstance(answers[-1], Refused | Left)]
        assert figures.total("headway_ended_total") == arrived - refused == len(accepted)
        assert all(id in self.over for id in accepted)
