"""How many replicas there should be, as the `scale` policy says: shown to whoever can start them, not acted upon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headway.gateway.fence import Fence
from headway.gateway.live import LiveCluster

EVERY_S = 15.0  # the horizontal pod autoscaler's period


class Advisor:
    """Asks every `every_s`, and keeps the last answer by model. No answer for one means as many as there are."""

    def __init__(self, fence: Fence, every_s: float) -> None:
        self.fence = fence
        self.every_s = every_s
        self.next_s = every_s
        self.asked_s: float | None = None
        self.said: dict[str, tuple[int, str]] = {}  # replicas, and why

    @property
    def due_s(self) -> float:
        """When to ask next; never without a policy."""
        return self.next_s if "scale" in self.fence.policies else float("inf")

    def ask(self, now: float, cluster: LiveCluster) -> None:
        """Ask about the replicas that the view shows: those that answer, the others as starting."""
        self.next_s = now + self.every_s
        self.asked_s = now
        self.said = {pool.model: (len(pool.replicas) + pool.starting, "no change") for pool in cluster.pools}
        for asked in self.fence.scale(cluster):
            self.said[cluster.pools[asked.pool].model] = asked.replicas, asked.reason

    def status(self) -> dict[str, Any] | None:
        """The last answer as JSON, of several models each by its name; None before there is one."""
        if self.asked_s is None:
            return None
        told = [{"replicas": replicas, "reason": reason} for replicas, reason in self.said.values()]
        shown: dict[str, Any] = told[0] if len(told) == 1 else {"models": dict(zip(self.said, told, strict=True))}
        return {"at_s": round(self.asked_s, 3), **shown}

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """The same for Prometheus, by which an autoscaler can go."""
        for model, (replicas, _) in self.said.items():
            yield "headway_advised_replicas", {} if len(self.said) == 1 else {"model": model}, replicas
