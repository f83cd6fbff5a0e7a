"""The last quarter of an hour, kept in bounded rings: what the live page draws."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from headway.gateway.events import Outcome

STEP_S = 2.0
POINTS = 450  # a quarter of an hour
RECENT_S = 60.0  # what attainment and goodput are said of
SPREAD_S = 20.0  # what percentiles are taken over
DURATIONS_MAX = 2000  # of each class that percentiles are taken of
REFUSALS_MAX = 50
KINDS = ("ttft", "tpot", "e2e")


class ClassHistory:
    """What became of the requests of one class."""

    def __init__(self) -> None:
        self.over: Counter[str] = Counter()  # since the last point: "over", "met", "refused", "failed"
        self.recent: deque[Counter[str]] = deque(maxlen=round(RECENT_S / STEP_S))
        self.durations: dict[str, deque[tuple[float, float]]] = {name: deque(maxlen=DURATIONS_MAX) for name in KINDS}

    def add(self, now: float, outcome: Outcome) -> None:
        """Take in a request that is over."""
        self.over["over"] += 1
        self.over["met"] += outcome.attained
        if outcome.code or outcome.e2e_s is None:
            self.over["refused" if outcome.code else "failed"] += 1
        durations = outcome.ttft_s, outcome.tpot_s, outcome.e2e_s
        for values, seconds in zip(self.durations.values(), durations, strict=True):
            if seconds is not None:
                values.append((now, seconds))

    def point(self, now: float) -> dict[str, Any]:
        """Close an interval: its counts, and percentiles in seconds over the last `SPREAD_S`."""
        counts, self.over = self.over, Counter()
        self.recent.append(counts)
        point: dict[str, Any] = {name: counts[name] for name in ("over", "met", "refused", "failed")}
        for name, values in self.durations.items():
            while values and values[0][0] < now - SPREAD_S:
                values.popleft()
            ordered = sorted(seconds for _, seconds in values)
            point[f"{name}_p50_s"], point[f"{name}_p95_s"] = quantile(ordered, 0.5), quantile(ordered, 0.95)
        return point

    def lately(self) -> Counter[str]:
        """Counts over the last `RECENT_S`, as far as points reach."""
        return sum(self.recent, Counter(self.over))


def quantile(ordered: list[float], share: float) -> float | None:
    """Return the smallest value that `share` of all do not exceed; None of none."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


class History:
    """Rings of points and of refusals. `classes`: names; `replicas` returns what is to be kept of each one."""

    def __init__(self, classes: list[str], gauges: Callable[[], dict[str, Any]]) -> None:
        self.classes = {name: ClassHistory() for name in classes}
        self.gauges = gauges
        self.points: deque[dict[str, Any]] = deque(maxlen=POINTS)
        self.refusals: deque[dict[str, Any]] = deque(maxlen=REFUSALS_MAX)
        self.serial = 0
        self.due_s = 0.0

    def add(self, now: float, outcome: Outcome) -> None:
        """Take in a request that is over; refusals of one kind in a row become one, with their number."""
        self.classes[outcome.slo_class].add(now, outcome)
        if outcome.code:
            who = {"status": outcome.status, "code": outcome.code, "slo_class": outcome.slo_class,
                   "tenant": outcome.tenant}  # fmt: skip
            last = self.refusals[-1] if self.refusals else {}
            times = last["times"] + 1 if who.items() <= last.items() else 1
            if times > 1:
                self.refusals.pop()
            self.refusals.append({**who, "reason": outcome.reason, "at_s": now, "times": times})

    def mark(self, now: float) -> None:
        """Add a point when one is due."""
        if now < self.due_s:
            return
        at_s = self.due_s if now < self.due_s + STEP_S else now
        self.due_s = at_s + STEP_S
        self.serial += 1
        classes = {name: kept.point(now) for name, kept in self.classes.items()}
        self.points.append({"serial": self.serial, "at_s": at_s, "classes": classes, **self.gauges()})
