"""How many replicas there should be, as the `scale` policy says: shown to whoever can start them, not acted upon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headway.gateway.fence import Fence
from headway.gateway.live import LiveCluster

EVERY_S = 15.0  # the horizontal pod autoscaler's period


class Advisor:
    """Asks every `every_s`, and keeps the last answer by pool. No answer for one means as many as there are."""

    def __init__(self, fence: Fence, every_s: float) -> None:
        self.fence = fence
        self.every_s = every_s
        self.next_s = every_s
        self.asked_s: float | None = None
        self.said: dict[tuple[str, str], tuple[int, str]] = {}  # by model and role: replicas, and why

    @property
    def due_s(self) -> float:
        """When to ask next; never without a policy."""
        return self.next_s if "scale" in self.fence.policies else float("inf")

    def ask(self, now: float, cluster: LiveCluster) -> None:
        """Ask about the replicas that the view shows: those that answer, the others as starting."""
        self.next_s = now + self.every_s
        self.asked_s = now
        pools = [(pool.model, pool.role) for pool in cluster.pools]
        there = [len(pool.replicas) + pool.starting for pool in cluster.pools]
        self.said = {pool: (count, "no change") for pool, count in zip(pools, there, strict=True)}
        for asked in self.fence.scale(cluster):
            self.said[pools[asked.pool]] = asked.replicas, asked.reason

    def status(self) -> dict[str, Any] | None:
        """The last answer as JSON, of several models or pools each by its name; None before there is one."""
        if self.asked_s is None:
            return None
        told = [{"replicas": replicas, "reason": reason} for replicas, reason in self.said.values()]
        if len(told) == 1:
            return {"at_s": round(self.asked_s, 3), **told[0]}
        split = any(role != "mixed" for _, role in self.said)
        names = [f"{model}.{role}" if split else model for model, role in self.said]
        return {"at_s": round(self.asked_s, 3), "pools" if split else "models": dict(zip(names, told, strict=True))}

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """The same for Prometheus, by which an autoscaler can go."""
        for (model, role), (replicas, _) in self.said.items():
            labels = {} if len(self.said) == 1 else {"model": model}
            yield "headway_advised_replicas", labels | ({} if role == "mixed" else {"role": role}), replicas
