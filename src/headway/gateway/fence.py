"""Asks policies, and stands between what one of them may do wrong and the requests of everyone else.

A policy that raises, or answers what cannot be, is answered for: routing by least load, order by arrival, admission by
letting in, scaling by no change, a choice of models by the first, prefixes by leaving them to the engine. Every such
case is counted and the last one kept in words.
"""

from __future__ import annotations

import math
import signal
from collections import Counter
from numbers import Integral
from typing import Any

import numpy as np

from headway.gateway.live import LiveCluster, LivePool, LiveReplica, LiveRequest
from headway.policies import Policy
from headway.policies.retaining import kept_s
from headway.state import Accept, Choose, Defer, Hold, QueueView, Reject, Route, Scale


class Fence:
    """The deployment's policies by decision point; "choose_model", "retain" and "scale" only where they are asked."""

    def __init__(self, policies: dict[str, Policy]) -> None:
        self.policies = policies
        self.errors: Counter[str] = Counter()
        self.last = ""

    def route(self, request: LiveRequest, pool: LivePool) -> tuple[int, str] | Hold:
        """Return the place of the chosen replica in the pool's list, and the reason; or that the request is held."""
        try:
            answer = self.policies["route"].route(request, pool)
            if isinstance(answer, Hold):
                return answer
            index = answer.index if isinstance(answer, Route) else None
            if isinstance(index, Integral) and 0 <= int(index) < len(pool.replicas):
                return int(index), answer.reason
            self._blame("route", f"answered {answer!r} for {len(pool.replicas)} replicas")
        except BaseException as error:
            self._blame("route", raised(error))
        loads = [replica.waiting + replica.running for replica in pool.replicas]
        return loads.index(min(loads)), "fallback: fewest requests"

    def admit(self, request: LiveRequest, cluster: LiveCluster) -> Reject | Defer | None:
        """Return how the policy refuses the request; None when it does not."""
        try:
            answer = self.policies["admit"].admit(request, cluster)
            if isinstance(answer, Reject):
                return answer
            if isinstance(answer, Defer) and cluster.now < answer.until_s < math.inf:
                return answer
            if not isinstance(answer, Accept):
                self._blame("admit", f"answered {answer!r}")
        except BaseException as error:
            self._blame("admit", raised(error))
        return None

    def choose_model(self, request: LiveRequest, cluster: LiveCluster) -> tuple[str, str]:
        """Return one of the models that may serve the request, and the reason."""
        try:
            answer = self.policies["choose_model"].choose_model(request, cluster)
            if isinstance(answer, Choose) and answer.model in request.models:
                return answer.model, answer.reason
            self._blame("choose_model", f"answered {answer!r}, the request may have {', '.join(request.models)}")
        except BaseException as error:
            self._blame("choose_model", raised(error))
        return request.models[0], "fallback: the first"

    def retain(self, request: LiveRequest, replica: LiveReplica) -> float:
        """Return for how many seconds the request's prefix is to be kept at the replica that it goes to."""
        try:
            answer = self.policies["retain"].retain(request, replica)
            seconds = kept_s(answer)
            if seconds is not None:
                return seconds
            self._blame("retain", f"answered {answer!r}")
        except BaseException as error:
            self._blame("retain", raised(error))
        return 0.0

    def scale(self, cluster: LiveCluster) -> list[Scale]:
        """Return the changes that the policy asks for."""
        try:
            answer: Any = self.policies["scale"].scale(cluster)
            if isinstance(answer, list) and all(isinstance(each, Scale) and _can_be(each, cluster) for each in answer):
                return answer
            self._blame("scale", f"answered {answer!r} for {len(cluster.pools)} pools")
        except BaseException as error:
            self._blame("scale", raised(error))
        return []

    def keys(self, now: float, requests: list[LiveRequest]) -> list[float]:
        """Return a key per waiting request, the smallest first."""
        try:
            answer: Any = self.policies["order"].order(QueueView(now, requests))
            keys = np.asarray(answer, dtype=np.float64)
            if keys.shape == (len(requests),) and not np.isnan(keys).any():
                return [float(key) for key in keys]
            self._blame("order", f"answered {str(keys)[:80]} for {len(requests)} requests")
        except BaseException as error:
            self._blame("order", raised(error))
        return [request.arrival_s for request in requests]

    def _blame(self, kind: str, what: str) -> None:
        self.errors[kind] += 1
        self.last = f"{kind} policy {type(self.policies[kind]).__name__} {what}"


def raised(error: BaseException) -> str:
    """What a policy raised, in words. SystemExit, too: a policy ends no gateway. Ctrl-C, where that raises, goes on."""
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise error
    return f"raised {type(error).__name__}: {error}"


def _can_be(asked: Scale, cluster: LiveCluster) -> bool:
    return 0 <= asked.pool < len(cluster.pools) and asked.replicas >= 1
