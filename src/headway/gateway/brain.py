"""The brain: events in, decisions out, time passed in; no socket, no clock, no thread.

Every method takes `now` (seconds, never decreasing) and returns answers: those to the request it was told of, and those
to held requests whose turn has come. A host carries events here and answers back: Envoy's (`decider.py`), or a test's.
An accepted request is routed or held and ends exactly once, by `end`; `record` brings its figures, before or after.
Nothing else changes what it decides: a new brain that is told the same events answers the same (`log/replay.py`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from random import Random
from typing import Any

from headway.gateway.admission import unattainable
from headway.gateway.advice import EVERY_S, Advisor
from headway.gateway.books import Backing, Entry
from headway.gateway.events import Answer, Arrival, EndRecord, EngineSample, Held, Left, Outcome, Refused, Routed
from headway.gateway.fence import Fence
from headway.gateway.figures import Figures
from headway.gateway.handover import books_of, lines_of
from headway.gateway.health import Judge
from headway.gateway.hedging import Hedges
from headway.gateway.held import HeldQueue
from headway.gateway.lines import Line, room_in, spare_of
from headway.gateway.live import LiveCluster, LiveRequest
from headway.gateway.menu import Menu, menu_of
from headway.gateway.retention import Retention
from headway.gateway.shadow import Shadow
from headway.gateway.spec import GatewaySpec
from headway.gateway.tenants import Accounts, Keys, Usage
from headway.policies import Policy
from headway.state import Defer, Hold

TOMBSTONE_S = 60.0  # how long an end is kept whose request is not known yet
RECORD_S = 10.0  # how long an ended request waits for its figures
KEPT_MAX = 100_000
TEMPLATE_TOKENS = 64  # that an engine's chat template adds at most to a prompt of which every byte is a token


class Brain:
    """Decides for every request; see the module.

    Args:
        spec: tenants, classes, limits, health.
        backings: the replicas, in the order of `spec.upstreams`.
        policies: objects by decision point: "route", "order", "admit", "choose_model" where there are several models,
            "retain" where prefixes are kept, and "scale" where advice is wanted.
        seed: of the random streams that policies draw from.
        scale_every_s: seconds from one advice to the next.
        menu: what the names mean that requests ask for; the models of the replicas by their own names.
    """

    def __init__(
        self,
        spec: GatewaySpec,
        backings: list[Backing],
        policies: dict[str, Policy],
        seed: int = 0,
        scale_every_s: float = EVERY_S,
        menu: Menu | None = None,
    ) -> None:
        self.spec, self.limits = spec, spec.limits
        self.backings, self.books = backings, books_of(backings, spec.limits.in_flight)
        self.fence, self.figures = Fence(policies), Figures()
        self.advisor = Advisor(self.fence, scale_every_s)
        self.retention = Retention(self.fence, self.books, backings, self.figures)
        self.promised = [klass.slo.limits() for klass in spec.classes]
        self.accounts = Accounts(Keys(spec.tenants).tenants)
        self.menu = menu or menu_of([backing.model for backing in backings], spec.models)
        weights = [account.tenant.weight for account in self.accounts]
        queues = {model: HeldQueue(self.fence, spec, weights) for model in self.menu.models}
        self.lines = lines_of(self.books, [backing.model for backing in backings], queues, seed)
        self.sizes = [line.sizes for line in self.lines]
        self.judge = Judge(spec, [group for line in self.lines for group in line.groups], self.figures)
        self.cluster = LiveCluster(tuple(pool for line in self.lines for pool in line.pools), Random(f"{seed}/admit"))
        self.hedges = Hedges(spec.hedging, self.books)
        self.live: dict[str, Entry] = {}
        self.tombstones: OrderedDict[str, float] = OrderedDict()
        self.unread: OrderedDict[str, tuple[float, Entry]] = OrderedDict()  # ended, without figures yet
        self.serial = 0
        self.engines: dict[int, EngineSample] = {}
        self.shadow: Shadow | None = None
        self.tell: Callable[[Outcome], None] = lambda outcome: None

    # --- events ----------------------------------------------------------------------------------------------

    def arrive(self, now: float, facts: Arrival) -> list[Answer]:
        """A request has arrived."""
        if self.tombstones.pop(facts.id, None) is not None:
            return [Left(facts.id)]
        if facts.id in self.live:
            return [Refused(facts.id, 409, "duplicate_id", "a request of this id is under way")]
        self.figures.arrived(*self._whose(facts))
        entry = self._entry(now, facts)
        refused = self._refusal(now, entry)
        if refused is not None:
            return [self._refuse(entry, refused)]
        line = self.lines[entry.line]
        at_once = not line.held.entries and line.room(now)
        answers: list[Answer] = []
        if not at_once and len(line.held) >= self.limits.held:
            loser = line.held.crowded_out(entry, now)
            if loser is None:
                words = f"{len(line.held)} requests wait already, none of them less urgent"
                return [self._refuse(entry, Refused(facts.id, 429, "queue_full", words, line.queue_s(now, entry)))]
            answers.append(self._shed(now, loser))
        self.accounts.reserve(now, facts.tenant, entry.reserved)
        self.live[facts.id] = entry
        if at_once:
            line.held.pass_by(entry, now)
            answer = self._route(now, entry)
            if answer is not None:
                return [answer]
        line.held.push(entry, now)
        if not at_once:
            answers += self._pump(now)
        if entry.stage == "held":
            self._decided("held", entry.reason or "no room")
            answers.append(Held(facts.id, min(now + self.limits.hold_s, entry.view.deadline_s)))
        return answers

    def end(self, now: float, id: str) -> list[Answer]:
        """A request is over for the proxy: answered, cut or left. An id not known yet is remembered."""
        entry = self.live.pop(id, None)
        if entry is None:
            self._bury(now, id)
            return []
        self._close(now, entry)
        if entry.record is not None:
            self._settle(now, entry, entry.record)
        else:
            self.unread[id] = (now, entry)
        return self._pump(now)

    def failed(self, now: float, id: str, replica: int) -> list[Answer]:
        """A replica failed a request before its first byte: the proxy asks the other host, if there is one."""
        entry = self.live.get(id)
        if entry is not None and self.hedges.lost(now, entry, replica):
            return self._pump(now)
        if entry is None or entry.stage != "sent" or entry.at != replica or len(entry.hosts) == 1:
            return []
        (other,) = set(entry.hosts) - {replica}
        self.books[replica].hand_over(entry, self.books[other], now)
        return self._pump(now)

    def hedged(self, now: float, id: str, replica: int) -> list[Answer]:
        """The proxy has sent a request to its second host as well: both have it until one has it no more."""
        entry = self.live.get(id) or self.unread.get(id, (0.0, None))[1]
        if entry is not None and self.hedges.begin(now, entry, replica):
            self.figures.count("headway_hedged_total", replica=self.spec.upstreams[replica])
        return []

    def record(self, now: float, record: EndRecord) -> list[Answer]:
        """The figures of a request, which may come before or after its end."""
        if record.replica is not None:
            entry = self.live.get(record.id) or self.unread.get(record.id, (0.0, None))[1]
            if entry is not None and entry.hosts and record.attempts > 1:
                if self.hedges.untold(now, entry):
                    self.hedged(now, record.id, entry.hosts[1])
                if not entry.hedged and record.replica != entry.hosts[0]:
                    self.judge.hear(self.books[entry.hosts[0]], False, probe=False)
            self.judge.learn(now, self.books[record.replica], record)
            if entry is not None and entry.prefill is not None:
                self.judge.learn_prompt(now, self.books[entry.prefill], record)
        if record.id in self.live:
            self.live[record.id].record = record
        elif record.id in self.unread:
            _, entry = self.unread.pop(record.id)
            self._settle(now, entry, record)
        elif record.attempts:
            self.figures.count("headway_unmatched_total", what="record")
        elif record.caller_left:  # before the question came, which it may still do, on another connection
            self._bury(now, record.id)
        return self._pump(now)

    @property
    def held(self) -> dict[str, Entry]:
        """Those who wait, for any model, by id."""
        return {id: entry for line in self.lines for id, entry in line.held.entries.items()}

    def knows(self, id: str) -> bool:
        """Whether the figures of this request are waited for."""
        return id in self.live or id in self.unread

    def health(self, now: float, replica: int, ok: bool, *, probe: bool = True) -> list[Answer]:
        """A probe, or a request's outcome, says whether a replica answers; a failed probe ejects at once."""
        self.judge.hear(self.books[replica], ok, probe)
        return self._pump(now)

    def sample(self, now: float, replica: int, sample: EngineSample) -> list[Answer]:
        """An engine's own metrics, read now."""
        self.engines[replica] = sample
        self.books[replica].advance(now)
        drift = self.books[replica].compare(sample)
        if drift is not None and abs(drift) > max(2, 0.1 * self.books[replica].in_flight):
            self.figures.count("headway_drifted_total", replica=self.spec.upstreams[replica])
        return self._pump(now)

    def adopt(self, now: float, replica: int, active: int) -> list[Answer]:
        """A replica has so many requests under way; those that are not in the books are an earlier process's."""
        self.books[replica].adopt(active)
        return self._pump(now)

    def beside(self, now: float, replica: int, requests: int) -> list[Answer]:
        """Other gateways have so many requests at a replica."""
        self.books[replica].share(requests)
        return self._pump(now)

    def dated(self, now: float, unix_s: float) -> list[Answer]:
        """The calendar's time, by whose days budgets go: to be told at first, and when a clock is set."""
        self.accounts.dated(now, unix_s)
        return []

    def elsewhere(self, now: float, used: list[Usage]) -> list[Answer]:
        """Other processes have used so much: of budgets all so far, of rates since this was said last."""
        self.accounts.elsewhere(now, used)
        return []

    def tick(self, now: float) -> list[Answer]:
        """Time has passed: who has waited too long is refused, and what is kept for a while is forgotten."""
        answers: list[Answer] = []
        for entry in [entry for line in self.lines for entry in line.held.expired(now, self.limits.hold_s)]:
            late = now >= entry.view.deadline_s
            self._drop(now, entry)
            why = "its deadline passed" if late else f"no replica had room for {self.limits.hold_s:g} s"
            status, code = (504, "deadline_exceeded") if late else (429, "hold_expired")
            refusal = Refused(entry.facts.id, status, code, f"the request waited in the queue until {why}", 1.0)
            answers.append(self._refuse(entry, refusal))
        while self.tombstones and next(iter(self.tombstones.values())) < now - TOMBSTONE_S:
            self.tombstones.popitem(last=False)
        while self.unread and next(iter(self.unread.values()))[0] < now - RECORD_S:
            _, (_, entry) = self.unread.popitem(last=False)
            self.figures.count("headway_unmatched_total", what="end")
            if entry.hosts:
                self.accounts.settle(now, entry.facts.tenant, entry.reserved, entry.reserved)  # unknown: maybe all
            self._over(entry, 0)
        self.judge.tick(now)
        if now >= self.advisor.due_s:
            for line in self.lines:
                line.show_all(now)
            self.cluster.show(now)
            self.advisor.ask(now, self.cluster)
        return answers + self._pump(now)

    # --- deciding --------------------------------------------------------------------------------------------

    def _entry(self, now: float, facts: Arrival) -> Entry:
        klass = self.spec.classes[facts.slo_class]
        self.serial += 1
        view = LiveRequest(self.serial, now, 1)
        patience_s = math.inf if klass.deadline_s is None else klass.deadline_s
        patience_s = patience_s if facts.deadline_s is None else min(patience_s, facts.deadline_s)
        view.describe(1.0, klass.priority, now + patience_s, facts.slo_class, facts.tenant, facts.chain, facts.session)
        ttft_s, tpot_s, e2e_s = self.promised[facts.slo_class]
        limits = min(ttft_s, facts.ttft_s or ttft_s), min(tpot_s, facts.tpot_s or tpot_s), min(e2e_s, patience_s)
        entry = Entry(facts, view, limits)
        entry.bound = facts.prompt_tokens or facts.prompt_bytes + TEMPLATE_TOKENS
        if facts.generates:
            entry.bound += facts.max_tokens or self.limits.output_tokens
        view.allow(self.menu.names.get(facts.model, self.menu.models))
        self._put(entry, view.models[0])
        return entry

    def _put(self, entry: Entry, model: str) -> None:
        """Put a request before the replicas of a model, with the lengths that are expected there."""
        entry.line, facts = self.menu.models.index(model), entry.facts
        line = self.lines[entry.line]
        most = facts.prompt_most or facts.prompt_bytes
        tokens = facts.prompt_tokens or min(line.sizes.tokens(facts.tenant, facts.prompt_bytes), most)
        entry.view.expect(tokens, line.lengths.predict(facts.tenant, facts.max_tokens) if facts.generates else 1.0)
        entry.output = line.lengths.budget(facts.tenant, facts.max_tokens) if facts.generates else 0

    def _refusal(self, now: float, entry: Entry) -> Refused | None:
        """Why this request is not accepted; None when it is."""
        facts = entry.facts
        over = self.accounts[facts.tenant].refusal(now, *entry.reserved)
        if over is not None:
            return Refused(facts.id, 429, *over)
        healthy = {line.model: line.answering(facts) for line in self.lines}
        models = tuple([model for model in entry.view.models if healthy[model]])
        entry.view.allow(self.menu.roomy(facts, models, self.sizes))
        if not entry.view.models:
            words = self.lines[entry.line].absent
            return Refused(facts.id, 503, "no_replica", words, self.spec.health.probe_s)
        for line in self.lines:
            line.show_entry(now, healthy[line.model])
        self.cluster.show(now)
        no = self.fence.admit(entry.view, self.cluster)
        if self.shadow is not None:
            self.shadow.admit(now, entry, self.cluster.pools, no is not None)
        if isinstance(no, Defer):  # who asks again is the caller: to let it wait here would cost a place in the queue
            return Refused(facts.id, 429, "deferred_by_policy", no.reason or "to be sent again later", no.until_s - now)
        if no is not None:
            return Refused(facts.id, 429, "refused_by_policy", no.reason or "refused by the admission policy", 1.0)
        line = self._chosen(entry)
        own = healthy[line.model]
        queue_s = 0.0 if not line.held.entries and room_in(own) else line.queue_s(now, entry)
        klass = self.spec.classes[facts.slo_class]
        return unattainable(entry, klass, line.allowed(facts), now, queue_s, line.duration_s)

    def _chosen(self, entry: Entry) -> Line:
        """Settle which model serves a request; the policy is asked where several may."""
        if len(self.lines) > 1:
            model = entry.view.models[0]
            if len(entry.view.models) > 1:
                model, reason = self.fence.choose_model(entry.view, self.cluster)
                self.figures.count("headway_chosen_total", model=model, reason=reason)
            entry.view.allow((model,))
            self._put(entry, model)
        return self.lines[entry.line]

    def _route(self, now: float, entry: Entry) -> Answer | None:
        """Ask the router, among the replicas that have room; there is one at least. None: it holds the request.

        A request that may go to a few only goes to one of these even when they are full: it does not wait for them in
        front of others.
        """
        line = self.lines[entry.line]
        healthy = line.answering(entry.facts)
        books = [book for book in healthy if book.room] or healthy
        if not books:
            self._drop(now, entry)
            words = "no replica that this request may go to answers at the moment"
            return self._refuse(entry, Refused(entry.facts.id, 503, "no_replica", words, self.spec.health.probe_s))
        decision = line.ask(now, entry, books, self.fence, self.shadow)
        if isinstance(decision, Hold):
            entry.reason = decision.reason
            return None
        if entry.facts.id in line.held.entries:
            line.held.remove(entry.facts.id)
        chosen, entry.reason = decision
        spare = spare_of(healthy, chosen)
        entry.hosts = (chosen.index,) if spare is None else (chosen.index, spare.index)
        keep_s = self.retention.ask(now, entry, chosen)
        chosen.add(entry, now)
        line.held.charge(entry)
        self._decided("routed", entry.reason)
        if entry.prefill is not None:
            self.figures.count("headway_prefilled_total", replica=self.spec.upstreams[entry.prefill])
        model = line.model if entry.facts.model in self.menu.aliases else ""
        hedge_s = self.hedges.wait_s(now, entry, chosen, spare)
        return Routed(entry.facts.id, entry.hosts, entry.reason, model, entry.prefill, hedge_s, keep_s)

    def _pump(self, now: float) -> list[Answer]:
        """Route whoever waits while there is room."""
        return [answer for line in self.lines for answer in self._pump_line(now, line)]

    def _pump_line(self, now: float, line: Line) -> list[Answer]:
        """Those of one model, until the router holds one: an event costs one answer in vain."""
        answers: list[Answer] = []
        while line.held.entries and line.room(now) and (entry := line.held.first(now)) is not None:
            if now >= entry.view.deadline_s:
                self._drop(now, entry)
                words = "the request waited in the queue until its deadline passed"
                answers.append(self._refuse(entry, Refused(entry.facts.id, 504, "deadline_exceeded", words, 1.0)))
            elif (answer := self._route(now, entry)) is not None:
                answers.append(answer)
            else:
                break
        return answers

    def _shed(self, now: float, entry: Entry) -> Refused:
        """Let a held request make room for a more urgent one."""
        wait_s = self.lines[entry.line].queue_s(now, entry)
        self._drop(now, entry)
        offline = self.spec.classes[entry.facts.slo_class].offline
        why = "offline work gives way" if offline else "one more urgent, or of a tenant with less in it, took the place"
        words = f"the queue of {self.limits.held} is full: {why}"
        return self._refuse(entry, Refused(entry.facts.id, 429, "shed", words, wait_s))

    # --- ends ------------------------------------------------------------------------------------------------

    def _drop(self, now: float, entry: Entry) -> None:
        """A held request will not run."""
        del self.live[entry.facts.id]
        self._close(now, entry)

    def _close(self, now: float, entry: Entry) -> None:
        """Take a request out of the books."""
        self.accounts[entry.facts.tenant].live -= 1
        if entry.stage == "sent":
            self.hedges.end(now, entry)
            self.books[entry.at].remove(entry, now)
            self.lines[entry.line].took(now - entry.sent_s)
        else:
            held = self.lines[entry.line].held
            if entry.facts.id in held.entries:
                held.remove(entry.facts.id)
            self.accounts.settle(now, entry.facts.tenant, entry.reserved, (0, 0))
        entry.stage = "ended"

    def _bury(self, now: float, id: str) -> None:
        if id in self.unread:
            self.figures.count("headway_unmatched_total", what="second end")
            return
        self.tombstones[id] = now
        while len(self.tombstones) > KEPT_MAX:
            self.tombstones.popitem(last=False)

    def _settle(self, now: float, entry: Entry, record: EndRecord) -> None:
        """Learn from a request that is over, and judge it."""
        facts = entry.facts
        served = 200 <= record.status < 300 and not record.upstream_failed and not record.caller_left
        if record.replica is not None and entry.hosts and record.replica != entry.hosts[0]:
            chosen = record.replica in entry.hosts
            ours = "headway_hedges_won_total" if entry.hedged else "headway_retried_total"
            self.figures.count(ours if chosen else "headway_misrouted_total")
        tokens = record.output_tokens or 0
        if facts.samples > 1:
            tokens = max(tokens, record.counted_tokens or 0)
        tpot_s = None
        if served and record.first_s is not None and tokens > 1:
            tpot_s = max(record.duration_s - record.first_s, 0.0) / (tokens - 1)
        if served:
            self._learn(now, entry, record, tpot_s)
        if entry.hosts:
            failed = (record.upstream_failed or record.status >= 500) and not tokens
            prompt = record.prompt_tokens or (0 if failed else entry.view.prompt_tokens)
            output = entry.output if record.caller_left and not tokens else tokens  # who leaves early is not told
            self.accounts.settle(now, facts.tenant, entry.reserved, (prompt + output, prompt + output))
            self.lines[entry.line].held.settle(entry, prompt, output)
        self._over(
            entry,
            record.status,
            upstream_s=record.sent_s,
            duration_s=record.duration_s,
            replica=record.replica,
            attempts=record.attempts,
            attained=served and entry.kept(record.first_s, tpot_s, record.duration_s),
            ttft_s=record.first_s if served else None,
            tpot_s=tpot_s,
            e2e_s=record.duration_s if served else None,
            prompt_tokens=record.prompt_tokens,
            cached_tokens=record.cached_tokens,
            output_tokens=tokens or None,
        )

    def _learn(self, now: float, entry: Entry, record: EndRecord, tpot_s: float | None) -> None:
        tenant, line = entry.facts.tenant, self.lines[entry.line]
        if record.output_tokens and entry.facts.generates:
            line.lengths.learn(tenant, record.output_tokens)
        if record.prompt_tokens and entry.facts.prompt_tokens is None:
            line.sizes.learn(tenant, entry.facts.prompt_bytes, record.prompt_tokens)
        if record.first_s is None or record.sent_s is None or record.replica not in entry.hosts[:1]:
            return
        book = self.books[record.replica]
        book.learn_first(now, entry, record.first_s - record.sent_s)
        if tpot_s is not None:
            book.pace.learn_token(now, book.pace.token_s(book.running + 1, book.context), tpot_s)

    # --- what is seen ----------------------------------------------------------------------------------------

    def _whose(self, facts: Arrival) -> tuple[str, str]:
        return self.spec.classes[facts.slo_class].name, self.accounts[facts.tenant].tenant.name

    def _decided(self, outcome: str, reason: str) -> None:
        self.figures.count("headway_decisions_total", outcome=outcome, reason=reason)

    def _refuse(self, entry: Entry, refusal: Refused) -> Refused:
        self._decided("refused", refusal.code)
        self._over(entry, refusal.status, code=refusal.code, reason=refusal.message)
        return refusal

    def _over(self, entry: Entry, status: int, reason: str = "", replica: int | None = None, **more: Any) -> None:
        """Tell what became of a request, once for each that arrived."""
        facts, (klass, tenant) = entry.facts, self._whose(entry.facts)
        outcome = Outcome(
            id=facts.id,
            slo_class=klass,
            tenant=tenant,
            status=status,
            model=self.lines[entry.line].model,
            arrived_s=entry.view.arrival_s,
            sent_s=entry.sent_s if entry.hosts else None,
            reason=reason or entry.reason,
            replica=entry.hosts[0] if replica is None and entry.hosts else replica,
            prefill=entry.prefill if entry.hosts else None,
            **more,
        )
        self.figures.over(outcome)
        self.tell(outcome)

    def check(self) -> list[str]:
        """Say which laws the books break; an empty list is what is expected, at any moment."""
        sent = sum(book.in_flight for line in self.lines for book in line.books)
        faults = [fault for book in self.books for fault in book.check()]
        faults += [fault for number, line in enumerate(self.lines) for fault in line.check(number)]
        if sent + len(held := self.held) != len(self.live) + len(self.hedges.copies):
            faults.append(f"{sent} under way + {len(held)} held != {len(self.live)} live")
        by_tenant = [account.live for account in self.accounts]
        if sum(by_tenant) != len(self.live) or min(by_tenant) < 0:
            faults.append(f"tenants have {by_tenant} live, the books {len(self.live)}")
        arrived = self.figures.total("headway_arrived_total")
        over = self.figures.total("headway_refused_total") + self.figures.total("headway_ended_total")
        if arrived != over + len(self.live) + len(self.unread):
            faults.append(f"{arrived:g} arrived != {over:g} over + {len(self.live)} live + {len(self.unread)} unread")
        return faults
