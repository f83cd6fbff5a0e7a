"""Scaling rules: how many replicas each pool is to have."""

from __future__ import annotations

import math
from typing import Any

from headway.errors import BadInput
from headway.policies.base import Policy
from headway.state.decisions import Scale
from headway.state.views import ClusterState


class Fixed(Policy):
    """As many replicas as were deployed."""

    reads_progress = False

    def scale(self, cluster: ClusterState) -> Any:
        """No change."""
        return []


class TargetLoad(Policy):
    """As many replicas as keep the requests in flight per replica at `target`: up at once, down slowly.

    The rule of the Kubernetes horizontal pod autoscaler with its defaults (kubernetes.io, "Horizontal Pod Autoscaling",
    algorithm details): ceil(requests / target), left alone within `tolerance` of the target, and downwards no further
    than the most that was wanted in the last `down_after_s`. Requests held by the router count, and so do replicas that
    are starting.
    """

    reads_progress = False

    def __init__(self, target: float = 32.0, tolerance: float = 0.1, down_after_s: float = 300.0) -> None:
        if target <= 0:
            raise BadInput(f"target-load with target={target}: expected requests per replica, above 0")
        self.target = target
        self.tolerance = tolerance
        self.down_after_s = down_after_s
        self.wanted: dict[int, list[tuple[float, int]]] = {}

    def scale(self, cluster: ClusterState) -> Any:
        """Ask for a number where it differs from that of those which serve or start."""
        answers = []
        for index, pool in enumerate(cluster.pools):
            count = len(pool.replicas) + pool.starting
            requests = pool.held + sum(replica.running + replica.waiting for replica in pool.replicas)
            load = requests / self.target
            near = count > 0 and abs(load / count - 1.0) <= self.tolerance
            wanted = count if near else max(1, math.ceil(load))
            since_s = cluster.now - self.down_after_s
            recent = [(at_s, n) for at_s, n in self.wanted.get(index, []) if at_s > since_s]
            self.wanted[index] = [*recent, (cluster.now, wanted)]
            steady = max(n for _, n in self.wanted[index])
            if wanted > count:
                answers.append(Scale(index, wanted, f"{requests} requests for {count} replicas"))
            elif steady < count:
                answers.append(Scale(index, steady, f"{steady} were enough for {self.down_after_s:g} s"))
        return answers
