"""Choice of a model: which of those that may serve a request does; they come in the order of the deployment's file."""

from __future__ import annotations

import math
from typing import Any

from headway.errors import BadInput, UnknownName
from headway.policies.base import Policy
from headway.state.decisions import Choose
from headway.state.views import ClusterState, PoolState, Request

ATTRIBUTES = ("prompt_tokens", "predicted_output_tokens", "priority", "slo_class", "tenant")


class First(Policy):
    """The first of the models that may serve the request: the file's order is the preference."""

    reads_progress = False

    def choose_model(self, request: Request, cluster: ClusterState) -> Any:
        """Take the first."""
        return Choose(request.models[0], "the first of its models")


class Threshold(Policy):
    """One model after the other as an attribute of the request grows: the first below `at[0]`, the next below `at[1]`.

    `attribute` is one of the request's, as `prompt_tokens`; where it is not known (NaN) the last model serves, as it
    does beyond the last threshold. Put the models in the order small to large: short requests so go to the small one.
    """

    reads_progress = False

    def __init__(self, at: list[float] | float = 2048.0, attribute: str = "prompt_tokens") -> None:
        self.at = [float(each) for each in (at if isinstance(at, list | tuple) else [at])]
        self.attribute = attribute
        if attribute not in ATTRIBUTES:
            raise UnknownName("attribute of a request", attribute, ATTRIBUTES)
        if not self.at or self.at != sorted(self.at) or any(math.isnan(each) for each in self.at):
            raise BadInput(f"threshold with at={at!r}: expected numbers that rise, one between each model and the next")

    def choose_model(self, request: Request, cluster: ClusterState) -> Any:
        """Count the thresholds that the request's attribute has reached."""
        value = float(getattr(request, self.attribute))
        step = len(self.at) if math.isnan(value) else sum(value >= each for each in self.at)
        place = min(step, len(request.models) - 1)
        return Choose(request.models[place], f"{self.attribute} reaches {step} of {len(self.at)} thresholds")


class ByClass(Policy):
    """The model named for the request's SLO class: `models` has one for each class, by number, the last for all higher.

    Where that one may not serve the request, or no replica of it answers, the first that may does.
    """

    reads_progress = False

    def __init__(self, models: list[str] | None = None) -> None:
        self.models = list(models or [])

    def choose_model(self, request: Request, cluster: ClusterState) -> Any:
        """Look it up."""
        if self.models:
            wanted = self.models[min(request.slo_class, len(self.models) - 1)]
            if wanted in request.models:
                return Choose(wanted, "the model of its class")
        return Choose(request.models[0], "its class has no model of its own")


class InTime(Policy):
    """The first model that computes the request's prompt in time, behind the prompts that wait before it.

    Name the cheapest first: what it cannot answer in time goes to the next, and where none can, to the soonest. The
    time is `ttft_s`, or what is left to the request's deadline where that is less. `prompt_tokens_per_s` is how fast a
    replica of each model computes prompts, a number for all or one by model.
    """

    def __init__(
        self, ttft_s: float = 1.0, prompt_tokens_per_s: dict[str, float] | float = 10_000.0, margin: float = 1.0
    ) -> None:
        speeds = prompt_tokens_per_s.values() if isinstance(prompt_tokens_per_s, dict) else [prompt_tokens_per_s]
        if not ttft_s > 0 or not margin > 0 or not all(speed > 0 for speed in speeds):
            raise BadInput(
                f"in-time with ttft_s={ttft_s}, prompt_tokens_per_s={prompt_tokens_per_s}, margin={margin}: expected "
                "numbers above 0"
            )
        self.ttft_s = ttft_s
        self.prompt_tokens_per_s = prompt_tokens_per_s
        self.margin = margin

    def choose_model(self, request: Request, cluster: ClusterState) -> Any:
        """Predict the time to first token at each model's best replica."""
        limit_s = min(self.ttft_s, request.deadline_s - cluster.now)
        pools = cluster.entries(request)
        waits_s = [self.margin * self._wait_s(request, pool) for pool in pools]
        for pool, wait_s in zip(pools, waits_s, strict=True):
            if wait_s <= limit_s:
                return Choose(pool.model, "the first that is in time")
        return Choose(pools[waits_s.index(min(waits_s))].model, "none is in time, the soonest")

    def _wait_s(self, request: Request, pool: PoolState) -> float:
        speed = self.prompt_tokens_per_s
        if isinstance(speed, dict):
            if pool.model not in speed:
                raise UnknownName("model without prompt_tokens_per_s", pool.model, speed)
            speed = speed[pool.model]
        held = pool.held * request.prompt_tokens / max(len(pool.replicas), 1)  # whose lengths nobody shows
        tokens = [each.waiting_tokens + request.prompt_tokens - each.cached_tokens(request) for each in pool.replicas]
        return (min(tokens) + held) / speed if tokens else math.inf
