"""`Question`: what a plan is asked for, and the checks that need no simulation."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from headway.cost import EngineSettings
from headway.cost.calibration import Calibration
from headway.errors import BadInput
from headway.metrics import Prices, Slo
from headway.sim import Policies
from headway.specs import Spec
from headway.workload import WorkloadSpec

__all__ = ["Layout", "Objective", "Question", "default_requests"]

Objective = Literal["cost", "energy", "goodput"]
Layout = Literal["mixed", "split"]

_REQUESTS = 8_000  # goodput of one seed against 64,000 requests, 70B chat on H100: -1 % and 2 to 4 % noise
_REQUESTS_MAX = 40_000
_QUEUE_TTFTS = 40  # a run must last this many TTFT limits, or 3 % too much load hardly shows in its queue ...
_BATCH_TURNS = 30  # ... and this many outputs at the TPOT limit, or the batch hardly grows to what it comes to


class Question(Spec, frozen=True, kw_only=True):
    """Which deployment of `model` on up to `gpus` GPUs serves `workload` at `rate_req_s` within `slo`?

    Attributes:
        model: catalogue key, or path to a config.json.
        gpu: catalogue key of the only kind of GPU used.
        gpus: how many there are; plans that use fewer are tried as well.
        workload: a preset's name, a trace file, a YAML file or the spec itself. Not a closed loop.
        rate_req_s: mean arrival rate to serve; None takes the workload's own.
        objective: what the plans that meet the SLO are ranked by: dollars per hour, joules per output token, or
            goodput per GPU.
        seed: of every random stream; all candidates and rates see the same requests.
        requests: in a simulation of those in front; None chooses it by the rate and the limits. A trace ends where it
            ends.
        tp, pp: degrees to try. None tries every power of two that cuts the model for tp; for pp 2 and 4 as well where a
            replica spans nodes, where links in the node are slow, or where nothing fits without.
        weights, kv: precisions to try; None tries what the GPU computes in, bf16 and fp8.
        budget_tokens: token budgets of a step to try on mixed replicas. A prefill pool takes the largest (it hardly
            matters there: 3 % of goodput), a decode pool, which computes no prompts, the smallest.
        cap_watts, clock_mhz: power limits of a GPU and locked SM clocks to try; TDP and boost clock are those of a GPU
            left alone. None leaves it alone.
        layouts: "mixed" replicas, or prefill and decode "split" over two pools.
        engine: every other engine setting.
        margin: share by which the limits on the time per token (TPOT, ITL) are taken tighter than `slo` has them, as a
            prediction may be off: a larger one costs more than it saves (docs/accuracy.md, "How sure").
        calibration: what own measurements change in the step law of the GPU and the engine.
        policies, prices: given to every candidate.

    Raises:
        BadInput: a number out of range, nothing to try, or an SLO that limits nothing.
    """

    model: str
    gpu: str
    gpus: int
    workload: str | WorkloadSpec = "chat"
    rate_req_s: float | None = None
    slo: Slo
    objective: Objective = "cost"
    seed: int = 0
    requests: int | None = None
    tp: tuple[int, ...] | None = None
    pp: tuple[int, ...] | None = None
    weights: tuple[str, ...] | None = None
    kv: tuple[str, ...] | None = None
    budget_tokens: tuple[int, ...] = (2048, 8192)
    cap_watts: tuple[float, ...] | None = None
    clock_mhz: tuple[float, ...] | None = None
    layouts: tuple[Layout, ...] = ("mixed", "split")
    margin: float = 0.01
    engine: EngineSettings = EngineSettings()
    calibration: Calibration | None = None
    policies: Policies = Policies()
    prices: Prices = Prices()

    def __post_init__(self) -> None:
        """Refuse what no search can answer."""
        if self.gpus < 1:
            raise BadInput(f"gpus {self.gpus}: a plan needs at least 1 GPU")
        if self.rate_req_s is not None and not 0 < self.rate_req_s < math.inf:
            raise BadInput(f"rate {self.rate_req_s:g} req/s: give a finite rate above zero, as in 20")
        if self.requests is not None and self.requests < 1:
            raise BadInput(f"requests {self.requests}: a simulation needs at least 1")
        if self.seed < 0:
            raise BadInput(f"seed {self.seed}: give 0 or more")
        if all(limit is None for limit in (self.slo.ttft_s, self.slo.tpot_s, self.slo.itl_s, self.slo.e2e_s)):
            raise BadInput("the SLO limits nothing, so any deployment meets it: give a TTFT, TPOT, ITL or E2E limit")
        if self.policies.scale != "fixed":
            raise BadInput(
                f"policies.scale={self.policies.scale}: a plan says how many replicas it takes; leave the policy out, "
                "and `headway simulate` the plan with it"
            )
        if not 0 <= self.margin < 1:
            raise BadInput(f"margin {self.margin:g}: give a share of the limit from 0 to below 1, as in 0.05")
        for name in ("tp", "pp", "weights", "kv", "budget_tokens", "cap_watts", "clock_mhz", "layouts"):
            tried = getattr(self, name)
            if tried is None:
                continue
            if not tried or (name in ("tp", "pp") and min(tried) < 1):
                raise BadInput(f"{name} {list(tried)}: give at least one value to try, degrees from 1")
            if len(set(tried)) < len(tried):
                raise BadInput(f"{name} {list(tried)}: give each value to try once")

    @property
    def aimed_slo(self) -> Slo:
        """The SLO that candidates are judged by: limits on the time per token less the margin."""
        share = 1 - self.margin
        tpot_s, itl_s = (None if limit is None else limit * share for limit in (self.slo.tpot_s, self.slo.itl_s))
        return msgspec.structs.replace(self.slo, tpot_s=tpot_s, itl_s=itl_s)


def default_requests(slo: Slo, rate_req_s: float, output_tokens: float) -> int:
    """Requests of a long run when the question leaves it open: 8,000, or more where limits are long at a high rate."""
    queue_s = _QUEUE_TTFTS * max(slo.ttft_s or 0.0, slo.e2e_s or 0.0)
    batch_s = _BATCH_TURNS * output_tokens * (slo.tpot_s or 0.0)
    return int(min(max(_REQUESTS, rate_req_s * max(queue_s, batch_s)), _REQUESTS_MAX))
