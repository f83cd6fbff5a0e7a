"""The policy contract: a plain class that overrides only what it decides.

Rules: deterministic; time and randomness come from the view; no I/O; every decision carries a short reason. The
host validates each decision and refuses what it cannot do.
"""

from __future__ import annotations

from typing import Any

from headway.state.decisions import Accept
from headway.state.views import ClusterState, PoolState, QueueView, ReplicaState, Request


class Policy:
    """Base of every policy.

    `reads_progress`: the host brings `context_tokens`, `kv_used_blocks` and `cached_tokens` of the replicas up to the
    present before it asks; policies that only count requests say False and save the host the work. `rekey_on`: when
    the keys of requests already in a queue go stale: () never, ("step",) before each engine step.
    """

    reads_progress: bool = True
    rekey_on: tuple[str, ...] = ()

    def admit(self, request: Request, cluster: ClusterState) -> Any:
        """Decide `Accept`, `Reject` or `Defer` when the request arrives; after `Defer` again, at the time it named."""
        return Accept("no admission rule")

    def choose_model(self, request: Request, cluster: ClusterState) -> Any:
        """Decide by `Choose` which of `request.models` serves it: asked once, after `admit`, where it has several."""
        raise NotImplementedError(f"{type(self).__name__} does not choose models")

    def route(self, request: Request, pool: PoolState) -> Any:
        """Decide the `Route` to one of `pool.replicas` for this phase of the request, or `Hold` it.

        Held requests wait in one line, in the order of `order`; when a replica of the pool admits, preempts or ends
        one, the first of the line is asked about again, and the next ones until one is held.
        """
        raise NotImplementedError(f"{type(self).__name__} does not route")

    def retain(self, request: Request, replica: ReplicaState) -> Any:
        """Give the seconds for which the KV of the request's prefix is kept after its end; 0: as the engine does.

        Asked once, when the replica that computes its prompt is chosen.
        """
        return 0.0

    def scale(self, cluster: ClusterState) -> Any:
        """Decide how many replicas the pools are to have: a list of `Scale`, empty for no change."""
        return []

    def order(self, queue: QueueView) -> Any:
        """Give one key per waiting request (array of n floats); the smallest is served first."""
        raise NotImplementedError(f"{type(self).__name__} does not order")
