"""Routers: which replica takes this phase of the request."""

from __future__ import annotations

from typing import Any

import cython

from headway.errors import BadInput
from headway.policies.base import Policy
from headway.state.decisions import Hold, route_to
from headway.state.views import PoolState, ReplicaState, Request


class RoundRobin(Policy):
    """Each replica in turn."""

    reads_progress = False

    def __init__(self) -> None:
        self.turn: dict[tuple[str, str], int] = {}

    def route(self, request: Request, pool: PoolState) -> object:
        """Take the next replica of this pool's own turn."""
        whose = pool.model, pool.role
        index: cython.Py_ssize_t = self.turn.get(whose, 0) % len(pool.replicas)
        self.turn[whose] = index + 1
        return route_to(index, "next in turn")


def least_loaded(pool: PoolState, by_tokens: cython.bint) -> cython.Py_ssize_t:
    """The first replica with the smallest load: tokens to hold, or requests."""
    best: cython.Py_ssize_t = 0
    i: cython.Py_ssize_t
    load: cython.longlong
    least: cython.longlong = -1
    replica: ReplicaState
    replicas: list[Any] = pool.replicas
    for i in range(len(replicas)):
        replica = cython.cast(ReplicaState, replicas[i])
        load = replica.waiting + replica.running
        if by_tokens:
            load = replica.waiting_tokens + replica.context_tokens
        if least < 0 or load < least:
            best = i
            least = load
    return best


class LeastRequests(Policy):
    """The replica with the fewest requests, waiting and running."""

    reads_progress = False

    def route(self, request: Request, pool: PoolState) -> object:
        """Take the first of the least loaded."""
        return route_to(least_loaded(pool, False), "fewest requests")


class WeightedRequests(Policy):
    """The replica with the fewest requests for its weight: for pools of unlike replicas, as of two GPUs side by side.

    The smallest (waiting + running + 1) / weight wins, the rule of weighted least connections that proxies have.
    `weights` has for a role, or for a model whose pools have one role, a number above 0 per replica, in the order of
    the pools; who has none there has 1, and with equal weights it is `LeastRequests`.
    """

    reads_progress = False

    def __init__(self, weights: dict[str, list[float]] | None = None) -> None:
        weights = weights or {}
        for role, each in weights.items():
            if not all(0.0 < weight < float("inf") for weight in each):
                raise BadInput(f"weighted-requests with weights {each} of {role} replicas: give numbers above 0")
        self.weights = {role: tuple(float(weight) for weight in each) for role, each in weights.items()}

    def route(self, request: Request, pool: PoolState) -> object:
        """Take the first of the least loaded for its weight."""
        weights: tuple[float, ...] = self.weights.get(pool.model) or self.weights.get(pool.role, ())
        best: cython.Py_ssize_t = 0
        i: cython.Py_ssize_t
        share: cython.double
        least: cython.double = -1.0
        replica: ReplicaState
        replicas: list[Any] = pool.replicas
        for i in range(len(replicas)):
            replica = cython.cast(ReplicaState, replicas[i])
            share = replica.waiting + replica.running + 1
            if replica.index < len(weights):
                share /= weights[replica.index]
            if least < 0.0 or share < least:
                best = i
                least = share
        return route_to(best, "fewest requests for its weight")


class SameNode(Policy):
    """The replica with the fewest requests on the node where the request's KV is, as that node's own link takes it.

    A request that has no KV yet, or none of these replicas on its node, goes to the one with the fewest of all. Of
    equals the next in turn takes it: were it always the first, idle prefill replicas would fill the decode replicas of
    one node. With every node holding replicas of both roles, or the same stages of both, it is DistServe's placement
    for slow networks (Zhong et al., OSDI '24, algorithm 2).
    """

    reads_progress = False

    def __init__(self) -> None:
        self.turn: dict[tuple[str, str], int] = {}

    def route(self, request: Request, pool: PoolState) -> object:
        """Take the next of the least loaded on that node."""
        count: cython.Py_ssize_t = len(pool.replicas)
        turn: cython.Py_ssize_t = self.turn.get((pool.model, pool.role), 0)
        best: cython.Py_ssize_t = -1
        i: cython.Py_ssize_t
        near: cython.bint
        there: cython.bint = False
        load: cython.longlong
        least: cython.longlong = 0
        replica: ReplicaState
        for i in range(count):
            replica = pool.replicas[(turn + i) % count]
            near = request.node >= 0 and replica.node == request.node
            load = replica.waiting + replica.running
            if best < 0 or near > there or (near == there and load < least):
                best, there, least = (turn + i) % count, near, load
        self.turn[pool.model, pool.role] = best + 1
        return route_to(best, "fewest requests where its KV is" if there else "fewest requests")


class LeastTokens(Policy):
    """The replica with the fewest tokens to hold: prompts waiting plus context running."""

    def route(self, request: Request, pool: PoolState) -> object:
        """Take the first of the least loaded."""
        return route_to(least_loaded(pool, True), "fewest tokens")


class PowerOfTwo(Policy):
    """Two replicas drawn at random, the one with fewer requests of them (Mitzenmacher 2001)."""

    reads_progress = False

    def route(self, request: Request, pool: PoolState) -> object:
        """Draw two different replicas from the view's stream."""
        count: cython.Py_ssize_t = len(pool.replicas)
        if count == 1:
            return route_to(0, "only one")
        first: cython.Py_ssize_t = int(pool.rng.random() * count)
        second: cython.Py_ssize_t = int(pool.rng.random() * (count - 1))
        if second >= first:
            second += 1
        one: ReplicaState = pool.replicas[first]
        two: ReplicaState = pool.replicas[second]
        if two.waiting + two.running < one.waiting + one.running:
            return route_to(second, "fewer requests of two")
        return route_to(first, "fewer requests of two")


class PrefixAffinity(Policy):
    """The replica with the least work left for this request: tokens it must compute plus tokens queued before it.

    Cached tokens count as saved work, so a long shared prefix outweighs a short queue, but a busy replica does not
    attract everything it has cached. `token_price` weighs a running context token against a prompt token to
    compute: a decode step reads a context token, a prefill pushes a prompt token through all weights.
    """

    def __init__(self, token_price: float = 0.05) -> None:
        self.token_price = token_price

    def route(self, request: Request, pool: PoolState) -> object:
        """Take the first replica with the least weighted work."""
        best: cython.Py_ssize_t = 0
        i: cython.Py_ssize_t
        work: cython.double
        least: cython.double = -1.0
        cached: cython.longlong
        hit: cython.longlong = 0
        replica: ReplicaState
        replicas: list[Any] = pool.replicas
        for i in range(len(replicas)):
            replica = cython.cast(ReplicaState, replicas[i])
            cached = replica.cached_tokens(request)
            work = (request.prompt_tokens - cached) + replica.waiting_tokens
            work += self.token_price * replica.context_tokens
            if least < 0.0 or work < least:
                best = i
                least = work
                hit = cached
        return route_to(best, "cached prefix" if hit else "least work, nothing cached")


class LateBinding(Policy):
    """The least loaded replica with fewer than `queue` requests waiting; where all have that many, nobody yet.

    Who waits at the router is bound to a replica as late as can be, and until then stands in one line for all: a
    request is not stuck behind a long one while another replica comes free, and an order by key orders the whole pool.
    """

    reads_progress = False

    def __init__(self, queue: int = 1) -> None:
        if queue < 1:
            raise BadInput(f"late-binding with queue={queue}: expected at least 1, or no replica ever gets a request")
        self.queue = queue

    def route(self, request: Request, pool: PoolState) -> object:
        """Take the first of the least loaded that have room in their queue."""
        best: cython.Py_ssize_t = -1
        i: cython.Py_ssize_t
        load: cython.longlong
        least: cython.longlong = 0
        replica: ReplicaState
        replicas: list[Any] = pool.replicas
        for i in range(len(replicas)):
            replica = cython.cast(ReplicaState, replicas[i])
            load = replica.waiting + replica.running
            if replica.waiting < self.queue and (best < 0 or load < least):
                best = i
                least = load
        return Hold("no room in a queue") if best < 0 else route_to(best, "fewest requests, room in its queue")
