"""Live views of requests, replicas, pools and the cluster, as policies see them.

A host (the simulator's engine, later the gateway) owns and updates them. A policy reads; it never writes. Time is
`now` in the view and randomness is the view's `rng`, a stream of its own, so a policy gives the same answers in
every host.
"""

from __future__ import annotations

from random import Random
from typing import Any

import cython

INFINITY = float("inf")


class Request:
    """What may be known of a request when it arrives: lengths in tokens, times in seconds.

    `predicted_output_tokens` is a prediction (NaN when there is none), never the true length. `priority`: lower is
    more urgent. `deadline_s`: absolute, infinity when there is none. `session`: -1 when the request stands alone.
    `models`: by name, those that may serve it, in the order of the deployment; one, where it asked for that one.
    `node`: the number of the node where its prompt's KV is, -1 before it has a prefill replica or where none is known.
    """

    def __init__(self, id: cython.longlong, arrival_s: cython.double, prompt_tokens: cython.longlong) -> None:
        self.id = id
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.predicted_output_tokens = float("nan")
        self.priority = 0
        self.deadline_s = INFINITY
        self.slo_class = 0
        self.tenant = 0
        self.session = -1
        self.node = -1
        self.models: tuple[str, ...] = ()


class ReplicaState:
    """One engine instance: counts of requests, tokens and KV blocks.

    `waiting` and `running` are requests; `waiting_tokens` are prompt tokens still to be computed for the waiting
    ones; `context_tokens` are tokens held in KV by the running ones; `kv_used_blocks` are blocks in use by them.
    `node`: the number of the node it stands on, of one that hands over KV or takes it; -1 where that is not known.
    """

    def __init__(self, index: cython.Py_ssize_t, kv_total_blocks: cython.longlong) -> None:
        self.index = index
        self.kv_total_blocks = kv_total_blocks
        self.node = -1
        self.running = 0
        self.waiting = 0
        self.waiting_tokens = 0
        self.context_tokens = 0
        self.kv_used_blocks = 0

    def cached_tokens(self, request: Request) -> cython.longlong:
        """Tokens of the request's prompt whose KV this replica already holds (0 where the host cannot know)."""
        return 0


class PoolState:
    """All replicas of one model in one role: "mixed", "prefill" or "decode"; alike where there is one pool of them.

    `held` are the requests that wait for the pool at the router, at no replica yet; `starting` the replicas that were
    asked for and take no requests yet.
    """

    def __init__(self, role: str, replicas: list[Any], rng: Random, model: str = "") -> None:
        self.role = role
        self.model = model
        self.replicas = replicas
        self.rng = rng
        self.now = 0.0
        self.held = 0
        self.starting = 0


class ClusterState:
    """All pools at the instant `now` (seconds since the start)."""

    def __init__(self, pools: tuple[PoolState, ...], rng: Random) -> None:
        self.pools = pools
        self.rng = rng
        self.now = 0.0

    def entries(self, request: Request) -> list[PoolState]:
        """The pools that the request may enter: one for each model that may serve it, in the order of `models`."""
        firsts = {pool.model: pool for pool in reversed(self.pools) if pool.role != "decode"}
        return [firsts[model] for model in request.models if model in firsts] or [self.pools[0]]


class QueueView:
    """Waiting requests of one replica as numpy arrays of equal length n, one row a request."""

    def __init__(self, now: cython.double, requests: list[Any]) -> None:
        import numpy as np

        def column(name: str) -> Any:
            return np.array([getattr(r, name) for r in requests], dtype=np.float64)

        self.now = now
        self.arrival_s = column("arrival_s")
        self.prompt_tokens = column("prompt_tokens")
        self.predicted_output_tokens = column("predicted_output_tokens")
        self.priority = column("priority")
        self.deadline_s = column("deadline_s")

    def __len__(self) -> int:
        return len(self.arrival_s)
