"""Replicas that start and leave in the midst of a run, as a `scale` policy asks."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import cython

from headway.engine.core import Engine
from headway.errors import BadInput
from headway.policies.base import Policy
from headway.state.decisions import Scale
from headway.state.views import ClusterState, PoolState

NEVER = cython.declare(cython.double, float("inf"))
OFF = cython.declare(cython.int, 0)
STARTING = cython.declare(cython.int, 1)
SERVING = cython.declare(cython.int, 2)
DRAINING = cython.declare(cython.int, 3)


class Scaler:
    """Which of the engines that there may be are powered, and which of these take requests.

    A replica that is added draws power at once and takes requests `startup_s` later, with nothing cached. One that is
    taken away gets no more requests, ends those it has, and is then switched off; one that still has some is the first
    to come back. One replica of a pool serves at any time.

    Args:
        policy: overrides `scale`.
        every_s: seconds from one question to the next; the first comes after as many.
        views: the pools, each with all the engines that there may be; engines are numbered in this order.
        counts: how many of each serve at the start.
        startup_s: seconds that a replica of each pool takes to start.
    """

    def __init__(
        self,
        policy: Policy,
        every_s: cython.double,
        views: list[PoolState],
        counts: list[int],
        startup_s: list[float],
    ) -> None:
        self.policy = policy
        self.every_s = every_s
        self.views = views
        self.engines = [list(view.replicas) for view in views]
        self.startup_s = startup_s
        sizes = [len(engines) for engines in self.engines]
        self.first = [sum(sizes[:pool]) for pool in range(len(sizes))]
        self.phase = [
            SERVING if i < count else OFF for size, count in zip(sizes, counts, strict=True) for i in range(size)
        ]
        self.on_s = [0.0] * sum(sizes)  # when it was switched on
        self.powered_s = [0.0] * sum(sizes)  # until it was last switched off
        self.ready_s = [NEVER] * sum(sizes)
        self.changes: list[tuple[float, int, int, str]] = []
        self.asks = 1
        self.next_s = every_s
        for pool in range(len(views)):
            self.show(pool)

    def due(self, now: cython.double) -> cython.double:
        """The next event, of which the others' is at `now`; never, where nothing else will happen and nobody starts."""
        if now == NEVER and STARTING not in self.phase:
            return NEVER
        return min(now, self.next_s)

    def asks_at(self, now: cython.double) -> cython.bint:
        """Whether it is time to ask the policy."""
        return now >= self.asks * self.every_s

    def start_ready(self, now: cython.double) -> cython.int:
        """Let those serve that have started by now."""
        slot: cython.Py_ssize_t
        for slot in range(len(self.phase)):
            if self.phase[slot] == STARTING and self.ready_s[slot] <= now:
                self.phase[slot] = SERVING
        return self.show_all()

    def ask(self, cluster: ClusterState) -> cython.int:
        """Ask the policy, and do what it answers as far as there are replicas."""
        answer = self.policy.scale(cluster)
        if not isinstance(answer, list):
            raise BadInput(f"scale policy answered {answer!r}: a list of Scale is expected, empty for no change")
        for asked in answer:
            if not isinstance(asked, Scale) or not isinstance(asked.pool, Integral):
                raise BadInput(f"scale policy answered {asked!r}: Scale(pool, replicas, reason) is expected")
            if not 0 <= asked.pool < len(self.views) or asked.replicas < 1:
                raise BadInput(
                    f"scale policy answered {asked!r}: a pool from 0 to {len(self.views) - 1} and at least 1 replica "
                    "are expected"
                )
            self.resize(asked.pool, asked.replicas, cluster.now, asked.reason)
        self.asks += 1
        return self.show_all()

    def resize(self, pool: cython.Py_ssize_t, replicas: cython.longlong, now: cython.double, reason: str) -> cython.int:
        """Bring those of a pool that serve or start to `replicas`, or as near as there are."""
        slots = range(self.first[pool], self.first[pool] + len(self.engines[pool]))
        wanted: cython.longlong = min(replicas, len(slots))
        count: cython.longlong = sum([self.phase[slot] in (STARTING, SERVING) for slot in slots])
        if count == wanted:
            return 0
        self.changes.append((now, pool, wanted, reason))
        while count < wanted:
            self.add(slots, pool, now)
            count += 1
        while count > wanted:
            self.remove(slots, pool, now)
            count -= 1
        return 0

    def add(self, slots: Any, pool: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """One more: of those that are about to leave, else of those switched off."""
        engine: Engine
        slot: cython.Py_ssize_t
        for slot in slots:
            if self.phase[slot] == DRAINING:
                self.phase[slot] = SERVING
                return 0
        slot = self.first[pool] + self.phase[self.first[pool] :].index(OFF)
        engine = self.engines[pool][slot - self.first[pool]]
        engine.kv.forget()
        self.phase[slot] = STARTING
        self.on_s[slot] = now
        self.ready_s[slot] = now + self.startup_s[pool]
        return 0

    def remove(self, slots: Any, pool: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """One fewer: the last to be ready of those that start, else the last of those with the fewest requests."""
        engine: Engine
        slot: cython.Py_ssize_t
        starting = [(self.ready_s[slot], slot) for slot in slots if self.phase[slot] == STARTING]
        if starting:
            slot = max(starting)[1]
            return self.switch_off(slot, now)
        loads = []
        for slot in slots:
            if self.phase[slot] == SERVING:
                engine = self.engines[pool][slot - self.first[pool]]
                loads.append((engine.running + engine.waiting, -slot))
        slot = -min(loads)[1]
        engine = self.engines[pool][slot - self.first[pool]]
        self.phase[slot] = DRAINING
        return self.look(engine, slot, now)

    def look(self, engine: Engine, slot: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """Switch a replica off that is to leave and has nothing left, no KV that others are to fetch either."""
        if self.phase[slot] == DRAINING and engine.running + engine.waiting + engine.kv.used == 0:
            self.switch_off(slot, now)
        return 0

    def switch_off(self, slot: cython.Py_ssize_t, now: cython.double) -> cython.int:
        """End a replica's power."""
        self.phase[slot] = OFF
        self.powered_s[slot] += now - self.on_s[slot]
        return 0

    def powered_until(self, pool: cython.Py_ssize_t, now: cython.double) -> cython.double:
        """Seconds that replicas of a pool were powered, all of them together."""
        slots = range(self.first[pool], self.first[pool] + len(self.engines[pool]))
        still = [now - self.on_s[slot] for slot in slots if self.phase[slot] != OFF]
        return sum(still) + sum([self.powered_s[slot] for slot in slots])

    def show_all(self) -> cython.int:
        """Bring the views up to date, and when this is to be called again."""
        starts = [ready for ready, phase in zip(self.ready_s, self.phase, strict=True) if phase == STARTING]
        self.next_s = min(self.asks * self.every_s, *starts) if starts else self.asks * self.every_s
        for pool in range(len(self.views)):
            self.show(pool)
        return 0

    def show(self, pool: cython.Py_ssize_t) -> cython.int:
        """Let routers see who serves, numbered anew."""
        view: PoolState = self.views[pool]
        engine: Engine
        i: cython.Py_ssize_t
        first: cython.Py_ssize_t = self.first[pool]
        phases = self.phase[first : first + len(self.engines[pool])]
        view.replicas = [engine for engine, phase in zip(self.engines[pool], phases, strict=True) if phase == SERVING]
        view.starting = phases.count(STARTING)
        for i in range(len(view.replicas)):
            engine = view.replicas[i]
            engine.index = i
        return 0
