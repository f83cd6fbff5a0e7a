"""`WorkloadSpec`: everything a workload is made of, as one frozen spec that a YAML file can hold."""

from __future__ import annotations

import math

import numpy as np

from headway.errors import BadInput
from headway.specs import Spec
from headway.workload.arrivals import Arrival, Closed, Poisson, Replay
from headway.workload.batch import Floats
from headway.workload.lengths import Binned, Length, check_quantiles, probabilities

_ENGINE_BLOCK_TOKENS = 16  # of the engines: identity finer than it, or cut across it, means nothing


class SharedPrefix(Spec, kw_only=True):
    """Prompts that begin with one of `groups` common texts, as system prompts and few-shot examples do.

    A request belongs to a group with probability proportional to 1/rank**`skew` (0: all alike). The length of
    each group's text is drawn once; a prompt shorter than it is a part of it.
    """

    tokens: Length
    groups: int = 1
    skew: float = 0.0
    block_tokens: int = 64

    def __post_init__(self) -> None:
        check_block(self.block_tokens)
        if not 1 <= self.groups <= 1 << 20:
            raise BadInput(f"groups {self.groups}: expected 1 to {1 << 20}")
        if not 0 <= self.skew < math.inf:
            raise BadInput(f"skew {self.skew}: expected a finite number, 0 or more")


class Wait(Spec, kw_only=True):
    """A time given by its quantiles, as `Empirical` gives a length."""

    seconds: tuple[float, ...] = (0.0, 0.0)
    at: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_quantiles(self.seconds, self.at, "seconds")
        if self.seconds[0] < 0:
            raise BadInput(f"seconds {self.seconds[0]}: expected 0 or more")

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """Return n times in seconds."""
        return np.interp(rng.random(n), probabilities(self.seconds, self.at), self.seconds)


class Sessions(Spec, kw_only=True):
    """Calls that build on one another, as an agent's do: each prompt is the one before plus what came since.

    The first prompt of a session is drawn from the workload's `prompt`; its first `system_tokens` are the
    same in all sessions. From call to call the prompt grows by `growth` (of a binned one the key is the
    call's place: 1 for the step from the first to the second call). Where the growth is at least the call's
    output, the output is taken to be in the next prompt, and its blocks carry the session's identity.

    In an open loop the next call comes after a nominal service time and a gap (a tool runs, a user thinks).
    Both are drawn here: arrivals are part of the workload and do not wait for the system under test.
    """

    calls: Length
    growth: Length | Binned
    gap: Wait = Wait()
    service: Wait = Wait()
    system_tokens: int = 0
    block_tokens: int = 64

    def __post_init__(self) -> None:
        check_block(self.block_tokens)
        if self.system_tokens < 0:
            raise BadInput(f"system_tokens {self.system_tokens}: expected 0 or more")


class RequestClass(Spec, kw_only=True):
    """A kind of request: its `share` of all (any scale), and how it is to be treated.

    `model`: the name that it asks for, of a model or an alias; "" leaves the choice to the deployment. With a
    `workload` of its own (a preset, a trace, a YAML file or a spec, not a closed loop) its requests are that one's, at
    `rate_req_s` or at its own rate.
    """

    name: str
    workload: str | WorkloadSpec | None = None
    rate_req_s: float | None = None
    share: float = 1.0
    priority: int = 0  # lower is more urgent
    tenant: int = 0
    deadline_s: float | None = None  # from arrival
    model: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.share < math.inf:
            raise BadInput(f"share {self.share}: expected a positive, finite number")
        if self.workload is None and self.rate_req_s is not None:
            raise BadInput(f"class {self.name} has rate_req_s and no workload: its share of all requests is its rate")
        if self.workload is not None and self.share != 1.0:
            raise BadInput(f"class {self.name} has a share and a workload: rate_req_s says how many of it come")
        if self.rate_req_s is not None and not 0 < self.rate_req_s < math.inf:
            raise BadInput(f"rate_req_s {self.rate_req_s} of class {self.name}: expected a positive, finite rate")
        if self.deadline_s is not None and not 0 < self.deadline_s < math.inf:
            raise BadInput(f"deadline_s {self.deadline_s}: expected a positive, finite number of seconds")


class WorkloadSpec(Spec, kw_only=True):
    """Requests over time: when they come, how long they are, what they share.

    Either `prompt` and `output` are given, or `trace`: a file whose requests are taken in their order; or each of
    `classes` has a workload of its own, and all of them come side by side, each at its own rate.
    Without an `arrival` they come when the trace says, or as Poisson at 1 request/s; without `requests` all
    of the trace come, or 10,000. `first`: so many of the trace are left out before them, and its clock starts
    there.
    `classes` number the SLO classes of the requests in their order here. `prediction_sigma` is the spread (of
    logarithms) of the predicted output length around the true one: 0 is a perfect predictor.
    """

    name: str = "custom"
    arrival: Arrival | None = None
    prompt: Length | None = None
    output: Length | Binned | None = None
    trace: str | None = None
    first: int = 0
    requests: int | None = None
    shared_prefix: SharedPrefix | None = None
    sessions: Sessions | None = None
    classes: tuple[RequestClass, ...] = ()
    prediction_sigma: float = 0.0
    about: str = ""

    def __post_init__(self) -> None:
        if self.requests is not None and self.requests < 1:
            raise BadInput(f"requests {self.requests}: expected at least 1")
        if self.first < 0 or (self.first and self.trace is None):
            raise BadInput(f"first {self.first}: expected 0 or more, of a trace")
        if not 0 <= self.prediction_sigma < math.inf:
            raise BadInput(f"prediction_sigma {self.prediction_sigma}: expected a finite number, 0 or more")
        names = [each.name for each in self.classes]
        if len(set(names)) < len(names):
            raise BadInput(f"classes {', '.join(names)}: give each a name of its own")
        if self.mixed:
            return self._check_mixed()
        drawn = self.prompt is not None and self.output is not None
        if drawn == (self.trace is not None) or (self.prompt is None) != (self.output is None):
            raise BadInput("expected prompt and output, or trace alone")
        if (self.shared_prefix is not None) + (self.sessions is not None) + (self.trace is not None) > 1:
            raise BadInput(
                "expected at most one of shared_prefix, sessions and trace: each brings prefix identity"
            )
        if self.sessions is not None and isinstance(self.arrival, Replay):
            raise BadInput("sessions need modelled arrivals or a closed loop")
        if isinstance(self.arrival, Closed) and any(c.deadline_s is not None for c in self.classes):
            raise BadInput("deadline_s counts from the arrival, which a closed loop does not know beforehand")

    def _check_mixed(self) -> None:
        alone = [each.name for each in self.classes if each.workload is None]
        if alone:
            raise BadInput(f"class {alone[0]} has no workload, and others do: give one to each class, or to none")
        for name in ("arrival", "prompt", "output", "trace", "shared_prefix", "sessions", "prediction_sigma"):
            if getattr(self, name):
                raise BadInput(f"{name} beside classes that have workloads of their own: each brings its own")

    @property
    def mixed(self) -> bool:
        """Whether its classes have workloads of their own."""
        return any(each.workload is not None for each in self.classes)

    @property
    def process(self) -> Arrival:
        """The arrival model, given or not."""
        if self.arrival is not None:
            return self.arrival
        return Poisson() if self.trace is None else Replay(path=self.trace)


def check_block(block_tokens: int) -> None:
    """Refuse a block of prefix identity that is not made of whole engine blocks.

    Raises:
        BadInput: not a positive multiple of 16 tokens.
    """
    if block_tokens < 1 or block_tokens % _ENGINE_BLOCK_TOKENS:
        raise BadInput(f"block_tokens {block_tokens}: expected a multiple of {_ENGINE_BLOCK_TOKENS}")
