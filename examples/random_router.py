"""A router that looks at nothing: what every other one has to beat.

headway simulate deployment.yaml --policy route=random_router:RandomRouter     # with examples/ on PYTHONPATH
"""

from headway.policies import Policy
from headway.state import Route


class RandomRouter(Policy):
    """Any replica, by the view's own stream: the same draws in every host."""

    def route(self, request, pool):
        """Draw one."""
        return Route(int(pool.rng.random() * len(pool.replicas)), "drawn")
