"""The cluster's clock and loop: requests arrive and are routed, engines step, KV moves between pools."""

from __future__ import annotations

import heapq
from typing import Any

import cython
import numpy as np

from headway.engine.core import Engine
from headway.engine.law import buffer
from headway.engine.queue import WaitingQueue
from headway.engine.sequence import FAILED, FINISHED, REJECTED, Sequence
from headway.errors import BadInput
from headway.policies.base import Policy
from headway.policies.retaining import kept_s
from headway.sim.arrivals import Arrivals
from headway.sim.clock import ARRIVAL, DEFERRED, TRANSFER, EngineClock
from headway.sim.held import HeldLines
from headway.sim.recorder import Recorder
from headway.sim.scaling import Scaler
from headway.state.decisions import Accept, Choose, Defer, Hold, Reject, Route
from headway.state.views import ClusterState, PoolState

NEVER = cython.declare(cython.double, float("inf"))
ENDED = cython.declare(cython.int, FINISHED)
MOST_DEFERRALS = 10_000  # of one request: more is a policy that never decides


class Handoff:
    """The links over which KV goes from prefill to decode replicas: `far` between nodes, `near` within one.

    A transfer occupies the sender's and the receiver's end of its link, each one transfer at a time, first come
    first served; the fixed latency of a transfer occupies nobody. `bytes_per_token` are those of layers with full
    attention and those of layers with a sliding window, of which only the window's tokens move. Links are bytes/s and
    seconds of latency; `nodes` has a number for each replica, -1 for one that takes no part.
    """

    def __init__(
        self,
        nodes: list[int],
        bytes_per_token: tuple[float, float],
        window: cython.longlong,
        far: tuple[float, float],
        near: tuple[float, float],
    ) -> None:
        self.bytes_per_token, self.window_bytes_per_token = bytes_per_token
        self.window = window
        self.far, self.near = far, near
        self.nodes = buffer(np.array(nodes, dtype=np.int64))
        self.bytes_per_s = buffer(np.array([far[0], near[0]]))
        self.latency_s = buffer(np.array([far[1], near[1]]))
        self.replicas = len(nodes)
        self.free_s = buffer(np.zeros(2 * self.replicas))  # of the links between nodes, then of those within
        self.bytes_moved = 0.0
        self.wait_s = 0.0

    def send(
        self,
        source: cython.Py_ssize_t,
        target: cython.Py_ssize_t,
        tokens: cython.longlong,
        now: cython.double,
    ) -> cython.double:
        """Start a transfer as soon as both ends are free; when it has arrived."""
        link: cython.Py_ssize_t = self.nodes[source] == self.nodes[target]
        ends: cython.Py_ssize_t = link * self.replicas
        start_s: cython.double = max(now, max(self.free_s[ends + source], self.free_s[ends + target]))
        size: cython.double = self.bytes_per_token * tokens + self.window_bytes_per_token * min(tokens, self.window)
        end_s: cython.double = start_s + size / self.bytes_per_s[link]
        self.free_s[ends + source] = end_s
        self.free_s[ends + target] = end_s
        self.bytes_moved += size
        self.wait_s += start_s - now
        latency_s: cython.double = self.latency_s[link]
        return end_s + latency_s


def number(engine: Engine, slot: cython.Py_ssize_t, node: cython.int) -> cython.int:
    """Give an engine its place among those of all pools, and on a node."""
    engine.slot, engine.node = slot, node
    return 0


class Cluster:
    """Engines in pools, the policies that feed them, and what happens next.

    `pools[i]` are the engines of pool i, which `state.pools[i]` shows. A model has a mixed pool, or a prefill pool that
    hands over to the decode pool after it, by `handoffs[model]`. A request enters the first pool of its model. In a
    closed loop the next request arrives `think_s` after one ends.
    """

    def __init__(
        self,
        pools: list[list[Engine]],
        state: ClusterState,
        policies: dict[str, Policy],
        arrivals: Arrivals,
        recorder: Recorder,
        handoffs: dict[str, Handoff],
        closed: tuple[int, float] | None,
        scaler: Scaler | None = None,
    ) -> None:
        self.engines = [engine for pool in pools for engine in pool]
        sizes = [len(pool) for pool in pools]
        self.pool_of = buffer(np.repeat(np.arange(len(pools), dtype=np.int64), sizes))
        i: cython.Py_ssize_t
        for i in range(len(self.engines)):
            number(self.engines[i], i, max((int(each.nodes[i]) for each in handoffs.values()), default=-1))
        groups = [[engine] if engine.group is None else engine.group.ranks for engine in self.engines]
        self.leaders = buffer(np.array([self.engines.index(ranks[0]) for ranks in groups], dtype=np.int64))
        self.state = state
        self.admit: Any = policies.get("admit")
        self.choose_model: Any = policies.get("choose_model")
        self.route = policies["route"]
        self.refreshes = policies["route"].reads_progress
        self.retain: Any = policies.get("retain")
        self.scaler: Any = scaler
        self.held = HeldLines(len(pools), policies.get("order"))
        self.deferrals: dict[int, int] = {}
        self.arrivals = arrivals
        self.recorder = recorder
        self.clock = EngineClock(len(self.engines))
        self.handoffs: list[Any] = [handoffs.get(view.model) for view in state.pools]  # by pool; the decode pools' too
        self.decodes: list[bool] = [view.role == "decode" for view in state.pools]
        self.entry = {view.model: i for i, view in enumerate(state.pools) if view.role != "decode"}
        self.several = len(self.entry) > 1
        self.timers: list[Any] = []
        self.serial = 0
        self.closed = closed is not None
        self.think_s = 0.0
        self.now = 0.0
        self.turn_s = -1.0
        self.turn = 0
        self.events = 0
        self.over_context = self.expired = 0
        if closed is not None:
            self.think_s = closed[1]
            for _ in range(closed[0]):
                self.timer(arrivals.intake_s, ARRIVAL, None)

    def advance(self, events: cython.longlong) -> cython.bint:
        """Let up to `events` events happen; False when none is left."""
        now: cython.double
        for _ in range(events):
            now = self.next_event()
            if now == NEVER:
                self.check_nobody_waits()
                return False
            self.now = now
            self.events += 1
            if self.timers and self.timers[0][0] == now and self.timers[0][1] == TRANSFER:
                self.run_timer()
            elif not self.closed and self.arrivals.next_s == now:
                self.arrive(now)
            elif self.timers and self.timers[0][0] == now:
                self.run_timer()
            elif self.held.size > 0 and self.held.next_s == now:
                self.expire(now)
            elif self.scaler is not None and self.scaler.next_s == now:
                self.scale(now)
            else:
                self.step(now)
        return True

    def next_event(self) -> cython.double:
        """When the next event is."""
        now: cython.double = self.clock.time_s[0]
        due: cython.double
        if not self.closed and self.arrivals.next_s < now:
            now = self.arrivals.next_s
        if self.timers:
            due = self.timers[0][0]
            if due < now:
                now = due
        if self.held.size > 0 and self.held.next_s < now:
            now = self.held.next_s
        if self.scaler is not None and (now < NEVER or self.held.size > 0):
            now = self.scaler.due(now)
        return now

    def timer(self, time_s: cython.double, priority: cython.int, what: object) -> cython.int:
        """Let a transfer end, a closed loop's next request arrive, or a deferred one be asked about, at `time_s`."""
        self.serial += 1
        heapq.heappush(self.timers, (time_s, priority, self.serial, what))
        return 0

    def run_timer(self) -> cython.int:
        """A transfer has ended, or it is the turn of a closed loop or of a deferred request."""
        now: cython.double
        now, priority, _, what = heapq.heappop(self.timers)
        if priority == ARRIVAL:
            if not self.arrivals.exhausted:
                self.arrive(now)
            return 0
        seq: Sequence = what
        if priority == DEFERRED:
            return self.ask_admission(seq, now) if now < seq.deadline_s else self.give_up(seq, 0, now)
        source: Engine = self.engines[seq.source]
        target: Engine = self.engines[seq.replica]
        source.let_go(seq, now)
        self.wake(seq.source)
        self.offer(self.pool_of[seq.source], now)
        if self.scaler is not None:
            self.scaler.look(source, seq.source, now)
        target.land(seq, now, self.late(seq.replica, now))
        self.wake(seq.replica)
        return 0

    # --- requests -----------------------------------------------------------------------------------------------

    def arrive(self, now: cython.double) -> cython.int:
        """The next request arrives: admit it, and place it in the first pool of its model."""
        engine: Engine
        seq: Sequence = self.arrivals.take()
        if self.closed:
            seq.arrival_s = now - self.arrivals.intake_s
        if self.several:
            seq.pool = self.entry[seq.models[0]] if len(seq.models) == 1 else -1
        self.recorder.arrive(seq)
        if seq.row == self.recorder.warmup:
            for engine in self.engines:
                engine.gaps.start(now)
        return self.enter(seq, now) if self.admit is None else self.ask_admission(seq, now)

    def ask_admission(self, seq: Sequence, now: cython.double) -> cython.int:
        """Let a request in, refuse it, or ask again later."""
        admit: Policy = self.admit
        self.show(admit, now)
        decision = admit.admit(seq, self.state)
        if isinstance(decision, Accept):
            return self.enter(seq, now)
        if isinstance(decision, Defer):
            return self.defer(seq, decision.until_s, now)
        if not isinstance(decision, Reject):
            raise BadInput(f"admit policy answered {decision!r}: Accept, Reject or Defer is expected")
        seq.status = REJECTED
        return self.settle(seq, now)

    def enter(self, seq: Sequence, now: cython.double) -> cython.int:
        """A request is let in: place it in the first pool of its model, which is chosen now where it has several."""
        if self.several:
            if len(seq.models) > 1:
                seq.models = (self.ask_model(seq, now),)
            seq.pool = self.entry[seq.models[0]]
        seq.handoff = self.handoffs[seq.pool] is not None and seq.output_tokens > 1
        return self.place(seq, seq.pool, now)

    def ask_model(self, seq: Sequence, now: cython.double) -> str:
        """Ask which of the models that may serve a request does."""
        chooser: Policy = self.choose_model
        self.show(chooser, now)
        decision = chooser.choose_model(seq, self.state)
        if not isinstance(decision, Choose) or decision.model not in seq.models:
            raise BadInput(
                f"choose_model policy answered {decision!r} for request {seq.id}: a Choose of {', '.join(seq.models)} "
                "is expected"
            )
        chosen: str = decision.model
        return chosen

    def show(self, policy: Policy, now: cython.double) -> cython.int:
        """Bring the views of all pools up to now, and their replicas as far as the policy looks at them."""
        view: PoolState
        engine: Engine
        self.state.now = now
        for view in self.state.pools:
            view.now = now
        if policy.reads_progress:
            for engine in self.engines:
                engine.refresh(now, self.late(engine.slot, now))
        return 0

    def defer(self, seq: Sequence, until_s: cython.double, now: cython.double) -> cython.int:
        """Ask about a request again later, or at its deadline let it go."""
        asked: cython.int = self.deferrals.get(seq.row, 0) + 1
        if not now < until_s < NEVER:
            raise BadInput(
                f"admit policy deferred request {seq.id} at {now} s until {until_s} s: a later time is expected"
            )
        if asked > MOST_DEFERRALS:
            raise BadInput(
                f"admit policy deferred request {seq.id} {asked} times: Accept or Reject is expected in the end"
            )
        self.deferrals[seq.row] = asked
        return self.timer(max(min(until_s, seq.deadline_s), now), DEFERRED, seq)

    def give_up(self, seq: Sequence, pool: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """A request's deadline has come before a replica of the pool took it."""
        self.expired += 1
        seq.status = FAILED
        return self.drop(seq, pool, now)

    def choose(self, seq: Sequence, pool: cython.Py_ssize_t, now: cython.double) -> Any:
        """Ask the router for a replica of this pool; None: the request is held."""
        view: PoolState = self.state.pools[pool]
        engine: Engine
        view.now = now
        if self.refreshes:
            for engine in view.replicas:
                engine.refresh(now, self.late(engine.slot, now))
        answer = self.route.route(seq, view)
        if not isinstance(answer, Route):
            if isinstance(answer, Hold):
                return None
            raise BadInput(f"route policy answered {answer!r} for request {seq.id}: a Route or Hold is expected")
        decision: Route = answer
        choice: cython.Py_ssize_t = decision.index
        if choice < 0 or choice >= len(view.replicas):
            raise BadInput(
                f"route policy sent request {seq.id} to replica {choice}: the {view.role} pool has "
                f"{len(view.replicas)}, numbered from 0"
            )
        engine = view.replicas[choice]
        return engine

    def place(self, seq: Sequence, pool: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """Send a request to a replica of the pool, or let it wait for one, behind those who wait already."""
        if self.held.size > 0 and self.held.line(pool).size > 0:
            self.hold(seq, pool, now)
            return self.offer(pool, now) if self.held.line(pool).peek(now) is seq else 0
        chosen = self.choose(seq, pool, now)
        return self.hold(seq, pool, now) if chosen is None else self.send(seq, chosen, pool, now)

    def send(self, seq: Sequence, engine: Engine, pool: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """Send a request to a replica: its prompt to one of the first pool, its KV to one of the second."""
        if not engine.fits(seq):
            if seq.prompt_tokens + seq.output_tokens > engine.max_context:
                self.over_context += 1
            seq.status = FAILED
            return self.drop(seq, pool, now)
        seq.pool = pool
        seq.source = seq.replica
        seq.replica = engine.slot
        if self.decodes[pool]:
            engine.expect(seq, now, self.late(seq.replica, now))
        else:
            if self.retain is not None:
                seq.keep_s = self.ask_retention(seq, engine, now)
            engine.enqueue(seq, now, self.late(seq.replica, now))
        return self.wake(seq.replica)

    def ask_retention(self, seq: Sequence, engine: Engine, now: cython.double) -> cython.double:
        """Ask how long the prefix of a request is to be kept at the replica that it is sent to."""
        retain: Policy = self.retain
        if retain.reads_progress:
            engine.refresh(now, self.late(engine.slot, now))
        answer = retain.retain(seq, engine)
        seconds = kept_s(answer)
        if seconds is None:
            raise BadInput(
                f"retain policy answered {answer!r} for request {seq.id}: seconds are expected, 0 or more and finite"
            )
        keep_s: cython.double = seconds
        return keep_s

    def wake(self, replica: cython.Py_ssize_t) -> cython.int:
        """Put a replica's next event, or that of the rank that leads it, into the clock."""
        leader: cython.Py_ssize_t = self.leaders[replica]
        engine: Engine = self.engines[leader]
        self.clock.set(leader, engine.next_s)
        return 0

    def drop(self, seq: Sequence, pool: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """A request ends before a replica of the pool took it; the KV that the prefill pool kept for it is free."""
        if self.decodes[pool]:
            source: Engine = self.engines[seq.replica]
            source.let_go(seq, now)
            self.wake(seq.replica)
        self.settle(seq, now)
        return self.offer(pool - 1, now) if self.decodes[pool] else 0

    def settle(self, seq: Sequence, now: cython.double) -> cython.int:
        """A request has ended, one way or another; a closed loop has sent its next, in time to arrive now."""
        self.recorder.end(seq)
        if self.closed and not self.arrivals.exhausted:
            self.timer(now + self.think_s, ARRIVAL, None)
        return 0

    def late(self, engine: cython.Py_ssize_t, now: cython.double) -> cython.bint:
        """Whether an engine's turn at this instant is over: it, or one that steps after it, has stepped."""
        return engine <= self.turn and self.turn_s == now

    # --- requests that wait for a pool --------------------------------------------------------------------------

    def hold(self, seq: Sequence, pool: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """Let a request wait for a pool, until its deadline at most."""
        view: PoolState = self.state.pools[pool]
        if seq.deadline_s <= now:
            return self.give_up(seq, pool, now)
        view.held += 1
        return self.held.join(seq, pool)

    def offer(self, pool: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """Ask the router again, in the order of the line, until it holds one: so a change costs one answer in vain."""
        if self.held.size == 0:
            return 0
        line: WaitingQueue = self.held.line(pool)
        view: PoolState = self.state.pools[pool]
        seq: Sequence
        while line.size > 0:
            seq = line.peek(now)
            chosen = self.choose(seq, pool, now)
            if chosen is None:
                return 0
            self.held.leave_first(seq, pool)
            view.held -= 1
            self.send(seq, chosen, pool, now)
        return 0

    def expire(self, now: cython.double) -> cython.int:
        """The deadline of a held request has come."""
        seq: Sequence = self.held.most_urgent()
        pool: cython.Py_ssize_t = self.held.leave(seq)
        view: PoolState = self.state.pools[pool]
        view.held -= 1
        self.give_up(seq, pool, now)
        return self.offer(pool, now)

    def scale(self, now: cython.double) -> cython.int:
        """Replicas have started, or it is time to ask how many there are to be; then who is held may have a place."""
        pool: cython.Py_ssize_t
        scaler: Scaler = self.scaler
        scaler.start_ready(now)
        if scaler.asks_at(now):
            self.show(scaler.policy, now)
            scaler.ask(self.state)
        for pool in range(len(self.state.pools)):
            self.offer(pool, now)
        return 0

    def check_nobody_waits(self) -> cython.int:
        """Refuse a router that holds requests which nothing will ever wake."""
        if self.held.size > 0:
            raise BadInput(
                f"route policy {type(self.route).__name__} still holds {self.held.size} requests, and nothing is left "
                "that could happen: expected a Route where every replica of the pool is idle"
            )
        return 0

    # --- engines ------------------------------------------------------------------------------------------------

    def step(self, now: cython.double) -> cython.int:
        """The engine whose turn it is closes a step and opens the next."""
        index: cython.Py_ssize_t = self.clock.heap[0]
        engine: Engine = self.engines[index]
        self.turn = max(self.turn, index) if self.turn_s == now else index
        self.turn_s = now
        if self.held.size > 0 or self.scaler is not None:
            return self.step_and_look(engine, now)
        engine.step(now)
        self.clock.set(index, engine.next_s)
        if engine.group is None:
            return self.hand_on(engine, now) if engine.out.size + engine.starts.size > 0 else 0
        for rank in engine.group.ranks:
            self.hand_on(rank, now)
        return 0

    def step_and_look(self, engine: Engine, now: cython.double) -> cython.int:
        """Step, then ask about the held where somebody was admitted, preempted or ended; let go who drained.

        Nothing else that ends a step also ends a leap, so that leaping asks as often as stepping.
        """
        rank: Engine
        ranks: list[Any] = [engine] if engine.group is None else engine.group.ranks
        news: cython.longlong = 0
        for rank in ranks:
            news -= rank.serial + rank.preemptions
        engine.step(now)
        self.clock.set(engine.slot, engine.next_s)
        for rank in ranks:
            news += rank.serial + rank.preemptions + rank.out.size
        for rank in ranks:
            self.hand_on(rank, now)
        if self.scaler is not None:
            self.scaler.look(engine, engine.slot, now)
        return self.offer(self.pool_of[engine.slot], now) if news > 0 else 0

    def link(self, pool: cython.Py_ssize_t) -> Handoff:
        """The link by which a pool's model hands over."""
        handoff: Handoff = self.handoffs[pool]
        return handoff

    def hand_on(self, engine: Engine, now: cython.double) -> cython.int:
        """Settle what has ended here, place what was prefilled, start the transfers that may start."""
        seq: Sequence
        while engine.out.size > 0:
            seq = engine.out.take()
            if seq.status == ENDED:
                self.settle(seq, now)
                continue
            seq.handoff = False
            seq.node = engine.node
            self.place(seq, seq.pool + 1, now)
        while engine.starts.size > 0:
            seq = engine.starts.take()
            self.timer(self.link(seq.pool).send(seq.source, seq.replica, seq.target, now), TRANSFER, seq)
        return 0
