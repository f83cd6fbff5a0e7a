"""How many replicas there should be, as the `scale` policy says: shown to whoever can start them, not acted upon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headway.gateway.books import ReplicaBook
from headway.gateway.fence import Fence
from headway.gateway.live import LiveCluster

EVERY_S = 15.0  # the horizontal pod autoscaler's period


class Advisor:
    """Asks every `every_s`, and keeps the last answer. No answer for the pool means as many as there are."""

    def __init__(self, fence: Fence, every_s: float) -> None:
        self.fence = fence
        self.every_s = every_s
        self.next_s = every_s
        self.asked_s: float | None = None
        self.replicas = 0
        self.reason = ""

    @property
    def due_s(self) -> float:
        """When to ask next; never without a policy."""
        return self.next_s if "scale" in self.fence.policies else float("inf")

    def ask(self, now: float, cluster: LiveCluster, healthy: list[ReplicaBook]) -> None:
        """Ask about these replicas, which the cluster's view shows."""
        self.next_s = now + self.every_s
        self.asked_s = now
        self.replicas, self.reason = len(healthy), "no change"
        for asked in self.fence.scale(cluster):
            self.replicas, self.reason = asked.replicas, asked.reason

    def status(self) -> dict[str, Any] | None:
        """The last answer as JSON; None before there is one."""
        if self.asked_s is None:
            return None
        return {"at_s": round(self.asked_s, 3), "replicas": self.replicas, "reason": self.reason}

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """The same for Prometheus, by which an autoscaler can go."""
        if self.asked_s is not None:
            yield "headway_advised_replicas", {}, self.replicas
