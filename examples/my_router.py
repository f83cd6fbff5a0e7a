"""Keeps a session where its prefix is cached, unless that replica is much busier."""

from headway.policies import Policy
from headway.state import Route


class MyRouter(Policy):
    """The replica with the fewest prompt tokens to compute before this request's first token."""

    def route(self, request, pool):
        """Count what is not cached and what waits already."""

        def work(replica):
            return request.prompt_tokens - replica.cached_tokens(request) + replica.waiting_tokens

        best = min(pool.replicas, key=work)
        return Route(best.index, "least left to compute")
