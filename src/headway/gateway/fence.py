"""Asks policies, and stands between what one of them may do wrong and the requests of everyone else.

A policy that raises, or answers what cannot be, is answered for: routing by least load, order by arrival, admission by
letting in. Every such case is counted and the last one kept in words.
"""

from __future__ import annotations

from collections import Counter
from numbers import Integral
from typing import Any

import numpy as np

from headway.gateway.live import LiveCluster, LivePool, LiveRequest
from headway.policies import Policy
from headway.state import Accept, QueueView, Reject, Route


class Fence:
    """The deployment's policies by decision point ("route", "order", "admit")."""

    def __init__(self, policies: dict[str, Policy]) -> None:
        self.policies = policies
        self.errors: Counter[str] = Counter()
        self.last = ""

    def route(self, request: LiveRequest, pool: LivePool) -> tuple[int, str]:
        """Return the place of the chosen replica in the pool's list, and the reason."""
        try:
            answer = self.policies["route"].route(request, pool)
            index = answer.index if isinstance(answer, Route) else None
            if isinstance(index, Integral) and 0 <= int(index) < len(pool.replicas):
                return int(index), answer.reason
            self._blame("route", f"answered {answer!r} for {len(pool.replicas)} replicas")
        except Exception as error:
            self._blame("route", f"raised {type(error).__name__}: {error}")
        loads = [replica.waiting + replica.running for replica in pool.replicas]
        return loads.index(min(loads)), "fallback: fewest requests"

    def admit(self, request: LiveRequest, cluster: LiveCluster) -> str | None:
        """Return why the policy refuses the request; None when it does not."""
        try:
            answer = self.policies["admit"].admit(request, cluster)
            if isinstance(answer, Reject):
                return str(answer.reason) or "refused by the admission policy"
            if not isinstance(answer, Accept):
                self._blame("admit", f"answered {answer!r}")
        except Exception as error:
            self._blame("admit", f"raised {type(error).__name__}: {error}")
        return None

    def keys(self, now: float, requests: list[LiveRequest]) -> list[float]:
        """Return a key per waiting request, the smallest first."""
        try:
            answer: Any = self.policies["order"].order(QueueView(now, requests))
            keys = np.asarray(answer, dtype=np.float64)
            if keys.shape == (len(requests),) and not np.isnan(keys).any():
                return [float(key) for key in keys]
            self._blame("order", f"answered {str(keys)[:80]} for {len(requests)} requests")
        except Exception as error:
            self._blame("order", f"raised {type(error).__name__}: {error}")
        return [request.arrival_s for request in requests]

    def _blame(self, kind: str, what: str) -> None:
        self.errors[kind] += 1
        self.last = f"{kind} policy {type(self.policies[kind]).__name__} {what}"
