"""Admission rules: let a request in, or refuse it early."""

from __future__ import annotations

from typing import Any

from headway.errors import BadInput
from headway.policies.base import Policy
from headway.state.decisions import Accept, Defer, Reject
from headway.state.views import ClusterState, Request


class AcceptAll(Policy):
    """Every request is let in."""


class QueueLimit(Policy):
    """Refuse when every replica that the request may go to first has `limit` requests waiting."""

    reads_progress = False

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit

    def admit(self, request: Request, cluster: ClusterState) -> Any:
        """Accept while one replica has room in its queue."""
        if min(replica.waiting for pool in cluster.entries(request) for replica in pool.replicas) < self.limit:
            return Accept("room in a queue")
        return Reject(f"{self.limit} waiting at every replica")


class OffPeak(Policy):
    """Requests of priority `priority` or less urgent wait outside while every replica has somebody waiting.

    They are asked about again every `retry_s`, and let in after `patience_s` in any case. Batch work thus fills the
    gaps of interactive traffic, instead of standing before it in the queues.
    """

    reads_progress = False

    def __init__(self, priority: int = 1, retry_s: float = 1.0, patience_s: float = 600.0) -> None:
        if retry_s <= 0:
            raise BadInput(f"off-peak with retry_s={retry_s}: expected seconds above 0")
        self.priority = priority
        self.retry_s = retry_s
        self.patience_s = patience_s

    def admit(self, request: Request, cluster: ClusterState) -> Any:
        """Accept who is urgent or has waited long enough; the others while some replica's queue is empty."""
        pools = cluster.entries(request)
        if request.priority < self.priority:
            return Accept("urgent")
        if cluster.now >= request.arrival_s + self.patience_s:
            return Accept("waited long enough")
        if any(not pool.held and min(replica.waiting for replica in pool.replicas) == 0 for pool in pools):
            return Accept("a queue is empty")
        return Defer(cluster.now + self.retry_s, "every replica has a queue")
