"""How far off a deployment's predicted figures may be: the widest interval of its replicas, by the poorest evidence."""

from __future__ import annotations

from headway.cost.uncertainty import COVERAGE, factors, levels
from headway.metrics.result import Uncertainty
from headway.sim.deployment import Deployment

__all__ = ["uncertainty"]


def uncertainty(deployment: Deployment) -> Uncertainty:
    """Return the 90 % intervals of a deployment's figures, as factors of the predictions."""
    replicas = [pool.replica for pool in deployment.pools]
    found = levels(replicas, deployment.split)
    return Uncertainty(level=found["tpot"], levels=found, coverage=COVERAGE, **factors(replicas, deployment.split))
