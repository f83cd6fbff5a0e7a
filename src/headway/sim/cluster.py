"""The cluster's clock and loop: requests arrive and are routed, engines step, KV moves between pools."""

from __future__ import annotations

import heapq
from typing import Any

import cython
import numpy as np

from headway.engine.core import Engine
from headway.engine.law import buffer
from headway.engine.sequence import FAILED, FINISHED, REJECTED, Sequence
from headway.errors import BadInput
from headway.policies.base import Policy
from headway.sim.arrivals import Arrivals
from headway.sim.clock import ARRIVAL, TRANSFER, EngineClock
from headway.sim.recorder import Recorder
from headway.state.decisions import Accept, Reject, Route
from headway.state.views import ClusterState, PoolState

NEVER = cython.declare(cython.double, float("inf"))
ENDED = cython.declare(cython.int, FINISHED)


class Handoff:
    """The link over which KV goes from prefill to decode replicas.

    A transfer occupies the sender's and the receiver's end of the link, each one transfer at a time, first come
    first served; the fixed latency of a transfer occupies nobody. `bytes_per_token` are those of layers with full
    attention and those of layers with a sliding window, of which only the window's tokens move.
    """

    def __init__(
        self,
        replicas: int,
        bytes_per_token: tuple[float, float],
        window: cython.longlong,
        bytes_per_s: cython.double,
        latency_s: cython.double,
    ) -> None:
        self.bytes_per_token, self.window_bytes_per_token = bytes_per_token
        self.window = window
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self.free_s = buffer(np.zeros(replicas))
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
        start_s: cython.double = max(now, max(self.free_s[source], self.free_s[target]))
        size: cython.double = self.bytes_per_token * tokens + self.window_bytes_per_token * min(tokens, self.window)
        end_s: cython.double = start_s + size / self.bytes_per_s
        self.free_s[source] = end_s
        self.free_s[target] = end_s
        self.bytes_moved += size
        self.wait_s += start_s - now
        return end_s + self.latency_s


class Cluster:
    """Engines in pools, the policies that feed them, and what happens next.

    `pools[i]` are the engines of pool i. Requests enter pool 0; where there is a second pool, pool 0 only prefills
    and hands over. In a closed loop the next request arrives `think_s` after one ends.
    """

    def __init__(
        self,
        pools: list[list[Engine]],
        state: ClusterState,
        policies: dict[str, Policy],
        arrivals: Arrivals,
        recorder: Recorder,
        handoff: Handoff | None,
        closed: tuple[int, float] | None,
    ) -> None:
        self.engines = [engine for pool in pools for engine in pool]
        self.first = (0, len(pools[0]))
        groups = [[engine] if engine.group is None else engine.group.ranks for engine in self.engines]
        self.leaders = buffer(np.array([self.engines.index(ranks[0]) for ranks in groups], dtype=np.int64))
        self.state = state
        self.admit = policies.get("admit")
        self.route = policies["route"]
        self.refreshes = policies["route"].reads_progress
        self.arrivals = arrivals
        self.recorder = recorder
        self.clock = EngineClock(len(self.engines))
        self.handoff: Any = handoff
        self.timers: list[Any] = []
        self.serial = 0
        self.closed = closed is not None
        self.think_s = 0.0
        self.now = 0.0
        self.turn_s = -1.0
        self.turn = 0
        self.events = 0
        self.over_context = 0
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
                return False
            self.now = now
            self.events += 1
            if self.timers and self.timers[0][0] == now and self.timers[0][1] == TRANSFER:
                self.run_timer()
            elif not self.closed and self.arrivals.next_s == now:
                self.arrive(now)
            elif self.timers and self.timers[0][0] == now:
                self.run_timer()
            else:
                self.step(now)
        return True

    def next_event(self) -> cython.double:
        """When the next event is."""
        now: cython.double = self.clock.time_s[self.clock.heap[0]]
        due: cython.double
        if not self.closed and self.arrivals.next_s < now:
            now = self.arrivals.next_s
        if self.timers:
            due = self.timers[0][0]
            if due < now:
                now = due
        return now

    def timer(self, time_s: cython.double, priority: cython.int, what: object) -> cython.int:
        """Let a transfer end, or a closed loop's next request arrive, at `time_s`."""
        self.serial += 1
        heapq.heappush(self.timers, (time_s, priority, self.serial, what))
        return 0

    def run_timer(self) -> cython.int:
        """A transfer has ended, or it is a closed loop's turn."""
        now: cython.double
        now, priority, _, what = heapq.heappop(self.timers)
        if priority == ARRIVAL:
            if not self.arrivals.exhausted:
                self.arrive(now)
            return 0
        seq: Sequence = what
        source: Engine = self.engines[seq.source]
        target: Engine = self.engines[seq.replica]
        source.let_go(seq, now)
        self.wake(seq.source)
        target.land(seq, now, self.late(seq.replica, now))
        self.wake(seq.replica)
        return 0

    # --- requests -----------------------------------------------------------------------------------------------

    def arrive(self, now: cython.double) -> cython.int:
        """The next request arrives: admit it, and place it in the first pool."""
        i: cython.Py_ssize_t
        engine: Engine
        seq: Sequence = self.arrivals.take()
        if self.closed:
            seq.arrival_s = now - self.arrivals.intake_s
        self.recorder.arrive(seq)
        if seq.row == self.recorder.warmup:
            for engine in self.engines:
                engine.gaps.start(now)
        seq.handoff = self.handoff is not None and seq.output_tokens > 1
        if self.admit is not None:
            self.state.now = now
            if self.admit.reads_progress:
                for i in range(len(self.engines)):
                    engine = self.engines[i]
                    engine.refresh(now, self.late(i, now))
            decision = self.admit.admit(seq, self.state)
            if isinstance(decision, Reject):
                seq.status = REJECTED
                return self.settle(seq, now)
            if not isinstance(decision, Accept):
                raise BadInput(f"admit policy answered {decision!r}: Accept or Reject is expected")
        return self.place(seq, 0, now)

    def choose(self, seq: Sequence, pool: cython.Py_ssize_t, now: cython.double) -> Engine:
        """Ask the router for a replica of this pool."""
        view: PoolState = self.state.pools[pool]
        engine: Engine
        view.now = now
        if self.refreshes:
            for engine in view.replicas:
                engine.refresh(now, self.late(self.first[pool] + engine.index, now))
        decision = self.route.route(seq, view)
        if not isinstance(decision, Route):
            raise BadInput(f"route policy answered {decision!r} for request {seq.id}: a Route is expected")
        choice: cython.Py_ssize_t = decision.index
        if choice < 0 or choice >= len(view.replicas):
            raise BadInput(
                f"route policy sent request {seq.id} to replica {choice}: the {view.role} pool has "
                f"{len(view.replicas)}, numbered from 0"
            )
        engine = view.replicas[choice]
        return engine

    def place(self, seq: Sequence, pool: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """Send a request to a replica of the pool: its prompt to the first, its KV to the second."""
        engine: Engine = self.choose(seq, pool, now)
        if not engine.fits(seq):
            if pool > 0:
                source: Engine = self.engines[seq.replica]
                source.let_go(seq, now)
                self.wake(seq.replica)
            return self.fail(seq, engine, now)
        seq.pool = pool
        seq.source = seq.replica
        seq.replica = self.first[pool] + engine.index
        if pool == 0:
            engine.enqueue(seq, now, self.late(seq.replica, now))
        else:
            engine.expect(seq, now, self.late(seq.replica, now))
        return self.wake(seq.replica)

    def wake(self, replica: cython.Py_ssize_t) -> cython.int:
        """Put a replica's next event, or that of the rank that leads it, into the clock."""
        leader: cython.Py_ssize_t = self.leaders[replica]
        engine: Engine = self.engines[leader]
        self.clock.set(leader, engine.next_s)
        return 0

    def fail(self, seq: Sequence, engine: Engine, now: cython.double) -> cython.int:
        """A request can never run on this kind of replica: it is too long for the model, or for the KV cache."""
        if seq.prompt_tokens + seq.output_tokens > engine.max_context:
            self.over_context += 1
        seq.status = FAILED
        return self.settle(seq, now)

    def settle(self, seq: Sequence, now: cython.double) -> cython.int:
        """A request has ended, one way or another; a closed loop has sent its next, in time to arrive now."""
        self.recorder.end(seq)
        if self.closed and not self.arrivals.exhausted:
            self.timer(now + self.think_s, ARRIVAL, None)
        return 0

    def late(self, engine: cython.Py_ssize_t, now: cython.double) -> cython.bint:
        """Whether an engine's turn at this instant is over: it, or one that steps after it, has stepped."""
        return engine <= self.turn and self.turn_s == now

    # --- engines ------------------------------------------------------------------------------------------------

    def step(self, now: cython.double) -> cython.int:
        """The engine whose turn it is closes a step and opens the next."""
        index: cython.Py_ssize_t = self.clock.heap[0]
        engine: Engine = self.engines[index]
        self.turn = max(self.turn, index) if self.turn_s == now else index
        self.turn_s = now
        engine.step(now)
        self.clock.set(index, engine.next_s)
        if engine.group is None:
            return self.hand_on(engine, now) if engine.out.size + engine.starts.size > 0 else 0
        for rank in engine.group.ranks:
            self.hand_on(rank, now)
        return 0

    def hand_on(self, engine: Engine, now: cython.double) -> cython.int:
        """Settle what has ended here, place what was prefilled, start the transfers that may start."""
        seq: Sequence
        while engine.out.size > 0:
            seq = engine.out.take()
            if seq.status == ENDED:
                self.settle(seq, now)
                continue
            seq.handoff = False
            self.place(seq, 1, now)
        while engine.starts.size > 0:
            seq = engine.starts.take()
            self.timer(self.handoff.send(seq.source, seq.replica, seq.target, now), TRANSFER, seq)
        return 0
