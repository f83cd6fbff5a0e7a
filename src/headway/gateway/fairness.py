"""Fairness between tenants in tokens: who has been served least, for its weight, goes next.

Virtual token counters, after Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024, Algorithm 2), which
weighs an output token as two of a prompt. There a counter grows with each token as it is generated; a gateway
learns the number of output tokens at the end, so here a request is charged what is expected of it when it is sent, and
the difference when it is over.

The bound is the paper's Theorem 4.4 with that change. While two tenants both wait, what they have been sent differs by
at most 2 (U + E): U is the largest cost of one request divided by its tenant's weight, and E the largest sum, over the
requests under way, of what was expected amiss. A tenant that comes back after a pause starts where the others are: it
is owed nothing for the time in which it asked for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

OUTPUT_WEIGHT = 2.0  # of an output token, as in the paper; a prompt's token counts 1


def cost(prompt_tokens: float, output_tokens: float) -> float:
    """Return what serving a request counts, in tokens of a prompt."""
    return prompt_tokens + OUTPUT_WEIGHT * output_tokens


class TokenCounters:
    """What each tenant has been served, divided by its weight; one object for each urgency."""

    def __init__(self, weights: list[float]) -> None:
        self.weights = weights
        self.served = [0.0] * len(weights)
        self.last: int | None = None  # who left the queue empty

    def join(self, tenant: int, waiting: Iterable[int]) -> None:
        """A tenant begins to wait, beside those who wait already."""
        empty = 0.0 if self.last is None else self.served[self.last]
        floor = min((self.served[other] for other in waiting), default=empty)
        self.served[tenant] = max(self.served[tenant], floor)

    def leave(self, tenant: int) -> None:
        """A tenant waits no more."""
        self.last = tenant

    def pass_by(self, tenant: int) -> None:
        """A tenant has come and need not wait, as nobody does."""
        if tenant != self.last:
            self.join(tenant, ())
            self.last = tenant

    def charge(self, tenant: int, tokens: float) -> None:
        """Count what a tenant is served; negative for what was expected in excess."""
        self.served[tenant] += tokens / self.weights[tenant]

    def next(self, waiting: Iterable[int]) -> int:
        """Return who goes next of those who wait, of which there is one at least."""
        return min(waiting, key=self.served.__getitem__)
