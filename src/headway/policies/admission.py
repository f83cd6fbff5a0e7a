"""Admission rules: let a request in, or refuse it early."""

from __future__ import annotations

from typing import Any

from headway.policies.base import Policy
from headway.state.decisions import Accept, Reject
from headway.state.views import ClusterState, Request


class AcceptAll(Policy):
    """Every request is let in."""


class QueueLimit(Policy):
    """Refuse when every replica of the entry pool has `limit` requests waiting."""

    reads_progress = False

    def __init__(self, limit: int = 64) -> None:
        self.limit = limit

    def admit(self, request: Request, cluster: ClusterState) -> Any:
        """Accept while one replica of the first pool has room in its queue."""
        if min(r.waiting for r in cluster.pools[0].replicas) < self.limit:
            return Accept("room in a queue")
        return Reject(f"{self.limit} waiting at every replica")
