"""A policy beside the live one: asked on the same view at the same moment, heard by nobody but the figures and the log.

It cannot touch the live decision, which has been taken when it is asked: it draws from streams of its own, what it
raises is caught, and one that is too slow again and again is asked no more.
"""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Integral
from random import Random
from types import FrameType
from typing import Any

import msgspec

from headway.gateway.books import Entry, ReplicaBook
from headway.gateway.fence import raised
from headway.gateway.live import LiveCluster, LivePool
from headway.policies import Policy
from headway.state import Accept, Defer, Hold, PoolState, Reject, Route

SLOW_S = 0.005  # of one answer: the live decision takes a tenth of it
STRIKES = 3  # slow answers in a row after which it is asked no more
RECENT = 20
SAID_MAX = 100  # no log takes it, where there is none


class TooSlow(BaseException):
    """Raised within a shadow policy whose time is up; no policy's `except Exception` holds it back."""


class ShadowSaid(msgspec.Struct, frozen=True, kw_only=True):
    """What the shadow would have decided for a request: a replica, or whether to let it in; or why it did not."""

    id: str
    decision: str  # "route" or "admit"
    agrees: bool | None  # None where it failed
    replica: int | None = None
    reason: str = ""
    error: str = ""


class Shadow:
    """Shadow policies by decision point ("route", "admit"); see the module.

    `guard` limits the time of one answer: it raises `TooSlow` in the midst of it, where the host can.
    """

    def __init__(
        self,
        policies: dict[str, Policy],
        seed: int = 0,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.policies = policies
        self.guard = guard
        self.seed, self.rng = seed, Random(f"{seed}/shadow/admit")
        self.pools: dict[tuple[str, str], LivePool] = {}  # by model and role
        self.counts: dict[str, Counter[str]] = {kind: Counter() for kind in policies}
        self.strikes: Counter[str] = Counter()
        self.off: dict[str, str] = {}
        self.last_error = ""
        self.said: deque[ShadowSaid] = deque(maxlen=SAID_MAX)  # for the log, which takes it after every event
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)

    def route(self, now: float, entry: Entry, books: list[ReplicaBook], live: LivePool, chosen: ReplicaBook) -> None:
        """Ask where the request, which goes to `chosen`, would have gone among these replicas, which `live` shows."""

        def read(answer: Any) -> ShadowSaid:
            if isinstance(answer, Hold):
                return self._said("route", entry, False, reason=str(answer.reason))
            index = answer.index if isinstance(answer, Route) else None
            if not (isinstance(index, Integral) and 0 <= int(index) < len(books)):
                raise ValueError(f"answered {str(answer)[:80]} for {len(books)} replicas")
            would = books[int(index)]
            return self._said("route", entry, would is chosen, replica=would.index, reason=str(answer.reason))

        if self._asked("route"):
            pool = self._pool(live)
            pool.show(now, live.replicas, live.held)
            said = self._ask("route", entry, pool, read)
            self._keep(said, f"replica {chosen.index}", "held" if said.replica is None else f"replica {said.replica}")

    def admit(self, now: float, entry: Entry, live: tuple[PoolState, ...], refused: bool) -> None:
        """Ask whether the request, which the live policy let in or `refused`, would have been let in to these pools."""

        def read(answer: Any) -> ShadowSaid:
            if not isinstance(answer, Accept | Reject | Defer):
                raise ValueError(f"answered {str(answer)[:80]}")
            agrees = isinstance(answer, Accept) == (not refused)
            return self._said("admit", entry, agrees, reason=str(answer.reason))

        if self._asked("admit"):
            for pool in live:
                self._pool(pool).show(now, pool.replicas, pool.held)
            cluster = LiveCluster(tuple(self._pool(pool) for pool in live), self.rng)
            cluster.show(now)
            said = self._ask("admit", entry, cluster, read)
            self._keep(said, *(("refused", "let in") if refused else ("let in", "refused")))

    def take(self) -> list[ShadowSaid]:
        """Return what was said since the last time."""
        said = list(self.said)
        self.said.clear()
        return said

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Answers by decision point and agreement, for Prometheus."""
        for kind, counts in self.counts.items():
            for agree in ("yes", "no", "error"):
                yield "headway_shadow_total", {"decision": kind, "agree": agree}, counts[agree]

    def status(self) -> dict[str, Any]:
        """How it stands beside the live policies, as JSON."""
        return {
            **{
                kind: {
                    "policy": type(self.policies[kind]).__name__,
                    "agree": counts["yes"],
                    "differ": counts["no"],
                    "errors": counts["error"],
                    "agreement": counts["yes"] / max(counts["yes"] + counts["no"], 1),
                    "off": self.off.get(kind, ""),
                }
                for kind, counts in self.counts.items()
            },
            "last_error": self.last_error,
            "recent_differences": list(self.recent),
        }

    def _pool(self, live: PoolState) -> LivePool:
        """The view of the same replicas, with a random stream of its own."""
        whose = live.model, live.role
        if whose not in self.pools:
            rng = Random(f"{self.seed}/shadow/route/{len(self.pools)}")
            self.pools[whose] = LivePool(live.role, [], rng, live.model)
        return self.pools[whose]

    def _asked(self, kind: str) -> bool:
        return kind in self.policies and kind not in self.off

    def _ask(self, kind: str, entry: Entry, view: Any, read: Callable[[Any], ShadowSaid]) -> ShadowSaid:
        """Ask one policy and read its answer; what goes wrong with either is an answer, too."""
        try:
            with self.guard():
                said = read(getattr(self.policies[kind], kind)(entry.view, view))
            self.strikes[kind] = 0
            return said
        except TooSlow:
            self.strikes[kind] += 1
            if self.strikes[kind] >= STRIKES:
                self.off[kind] = f"took more than {SLOW_S * 1e3:g} ms {STRIKES} times in a row"
            return self._said(kind, entry, None, error="was too slow")
        except BaseException as error:
            return self._said(kind, entry, None, error=raised(error)[:200])

    def _said(self, kind: str, entry: Entry, agrees: bool | None, **more: Any) -> ShadowSaid:
        return ShadowSaid(id=entry.facts.id, decision=kind, agrees=agrees, **more)

    def _keep(self, said: ShadowSaid, live: str, would: str) -> None:
        self.counts[said.decision]["error" if said.agrees is None else "yes" if said.agrees else "no"] += 1
        self.said.append(said)
        if said.error:
            self.last_error = f"{said.decision} shadow {type(self.policies[said.decision]).__name__}: {said.error}"
        elif not said.agrees:
            self.recent.append(
                {"id": said.id, "decision": said.decision, "live": live, "shadow": would, "reason": said.reason[:200]}
            )


class Alarm:
    """A guard for the main thread: `SIGALRM` after `limit_s` raises `TooSlow` in Python code that still runs then.

    What has been compiled is not interrupted; it is found too slow when it comes back.
    """

    def __init__(self, limit_s: float = SLOW_S) -> None:
        self.limit_s = limit_s
        self.armed = False
        signal.signal(signal.SIGALRM, self._ring)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self.armed:
            self.armed = False
            raise TooSlow

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Limit what runs inside."""
        began_s = time.perf_counter()
        self.armed = True
        try:
            signal.setitimer(signal.ITIMER_REAL, self.limit_s)
            yield
            if time.perf_counter() - began_s > self.limit_s:
                raise TooSlow
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
