"""The search space: every deployment of the model on the GPUs there are, less those whose memory is too small."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import msgspec

from headway.cost import Replica, memory_fit
from headway.cost.power import power_law, waiting_watts
from headway.cost.replica import drafting_model, tp_degrees
from headway.errors import BadInput, DoesNotFit
from headway.hardware import Gpu, gpu
from headway.model import Model, model
from headway.plan.question import Question
from headway.sim import Deployment, Pool

__all__ = ["Option", "Space", "enumerate_space"]

_STAGES = (1, 2, 4)
_FAST_LINKS = ("nvlink", "xgmi")  # inside a node joined by these, TP serves better than a pipeline
_EVERY_COUNT = 16  # replicas of a pool are counted one by one up to here, then in steps of an eighth


class Option(NamedTuple):
    """A deployment to evaluate."""

    name: str
    deployment: Deployment


class Space(NamedTuple):
    """What there is to evaluate, how many were discarded for which reason, and the refusal nearest to fitting."""

    options: list[Option]
    discarded: dict[str, int]
    nearest: DoesNotFit | None


class Throttle(NamedTuple):
    """What holds every GPU of a deployment back: watts it may draw, MHz its clock is locked to; None: nothing."""

    cap_watts: float | None
    clock_mhz: float | None

    def __str__(self) -> str:
        cap = "" if self.cap_watts is None else f" {self.cap_watts:g}W"
        return cap if self.clock_mhz is None else f"{cap} {self.clock_mhz:g}MHz"


class Shape(NamedTuple):
    """How a replica spreads over GPUs."""

    tp: int
    pp: int

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"tp{self.tp}" + (f"pp{self.pp}" if self.pp > 1 else "")


def enumerate_space(question: Question) -> Space:
    """Return every candidate: GPUs used, tp, pp, replicas, mixed or split with its ratio, budget, precisions, power.

    The pools of a split may differ in TP; they are pipelines only where nothing fits otherwise. `Question.pp` tells
    when mixed replicas are.

    Raises:
        UnknownName: model or GPU. BadInput: a degree, a precision, a power limit or a clock that the model or the GPU
            does not have.
    """
    spec, card = model(question.model), gpu(question.gpu)
    fits = _Fits()
    options: list[Option] = []
    discarded = 0
    shapes, throttles = _shapes(question, spec, card), _throttles(question, card)
    for weights, kv, throttle in product(_weights(question, spec, card), _kv(question, card), throttles):
        known = _Known(question, weights, kv, throttle, shapes, fits)
        for deployment in _deployments(known):
            if all(fits.try_(pool.replica) for pool in deployment.pools):
                options.append(Option(deployment.name, deployment))
            else:
                discarded += 1
    return Space(options, {"memory": discarded} if discarded else {}, fits.nearest)


class _Fits:
    """Which replicas fit, each asked once; `nearest` is the refusal that lacks the least memory."""

    def __init__(self) -> None:
        self.known: dict[Replica, bool] = {}
        self.nearest: DoesNotFit | None = None

    def try_(self, replica: Replica) -> bool:
        if replica not in self.known:
            try:
                memory_fit(replica)
            except DoesNotFit as refusal:
                self.known[replica] = False
                if self.nearest is None or _lack(refusal) < _lack(self.nearest):
                    self.nearest = refusal
            else:
                self.known[replica] = True
        return self.known[replica]


def _lack(refusal: DoesNotFit) -> float:
    return refusal.needed_bytes / refusal.available_bytes


class _Known(NamedTuple):
    question: Question
    weights: str
    kv: str
    throttle: Throttle
    shapes: list[Shape]
    fits: _Fits

    def replica(self, shape: Shape, budget_tokens: int) -> Replica:
        engine = msgspec.structs.replace(self.question.engine, max_batched_tokens=budget_tokens)
        return Replica(
            model=self.question.model, gpu=self.question.gpu, tp=shape.tp, pp=shape.pp, weights=self.weights,
            kv=self.kv, **self.throttle._asdict(), engine=engine, calibration=self.question.calibration,
        )  # fmt: skip

    def mixed(self) -> list[Shape]:
        """Shapes of mixed replicas: pipelines where they may be of use."""
        card = gpu(self.question.gpu)
        if self.question.pp is not None or card.link_kind not in _FAST_LINKS or self.split() == self.shapes:
            return self.shapes
        return [shape for shape in self.shapes if shape.pp == 1 or shape.gpus > card.gpus_per_node]

    def split(self) -> list[Shape]:
        """Shapes of replicas in split pools: pipelines where nothing fits otherwise."""
        plain = [shape for shape in self.shapes if shape.pp == 1]
        smallest = min(self.question.budget_tokens)
        return plain if any(self.fits.try_(self.replica(shape, smallest)) for shape in plain) else self.shapes

    def name(self, pools: str) -> str:
        return f"{pools} {self.weights}/{self.kv}{self.throttle}"


def _deployments(known: _Known) -> Iterator[Deployment]:
    if "mixed" in known.question.layouts:
        yield from _mixed(known)
    if "split" in known.question.layouts:
        yield from _split(known)


def _mixed(known: _Known) -> Iterator[Deployment]:
    for budget, shape in product(known.question.budget_tokens, known.mixed()):
        replica = known.replica(shape, budget)
        for count in _counts(known.question.gpus // shape.gpus):
            name = f"{known.name(f'{count}x {shape}')} b{budget}"
            yield _deployment(known, name, Pool(count=count, replica=replica))


def _split(known: _Known) -> Iterator[Deployment]:
    large, small = max(known.question.budget_tokens), min(known.question.budget_tokens)
    for before, after in product(known.split(), repeat=2):
        prefill, decode = known.replica(before, large), known.replica(after, small)
        for first in _counts((known.question.gpus - after.gpus) // before.gpus):
            for second in _counts((known.question.gpus - first * before.gpus) // after.gpus):
                name = known.name(f"{first}P {before} + {second}D {after}")
                pools = (
                    Pool(role="prefill", count=first, replica=prefill),
                    Pool(role="decode", count=second, replica=decode),
                )
                yield _deployment(known, name, *pools)


def _deployment(known: _Known, name: str, *pools: Pool) -> Deployment:
    return Deployment(name=name, pools=pools, policies=known.question.policies, prices=known.question.prices)


def _counts(most: int) -> list[int]:
    """How many replicas a pool may have: all numbers to 16, then to an eighth, and the most there can be."""
    counts = list(range(1, min(most, _EVERY_COUNT) + 1))
    while counts and counts[-1] < most:
        counts.append(min(most, counts[-1] + max(1, counts[-1] // 8)))
    return counts


def _shapes(question: Question, spec: Model, card: Gpu) -> list[Shape]:
    """TP: powers of two within one node, unless the question names degrees; no more stages than layers.

    With speculation no pipelines, and the TP degrees that cut the draft too.
    """
    speculation = question.engine.speculation
    stages = question.pp or (_STAGES if speculation is None else (1,))
    draft = None if speculation is None else drafting_model(speculation)
    allowed = [tp for tp in tp_degrees(spec, card) if draft is None or tp in tp_degrees(draft, card)]
    degrees = question.tp or [tp for tp in allowed if tp & (tp - 1) == 0]
    shapes = [Shape(tp, pp) for tp, pp in product(degrees, stages) if pp <= spec.layers]
    fitting = [shape for shape in shapes if shape.gpus <= question.gpus]
    if not fitting:
        asked = ", ".join(map(str, shapes)) or f"pp {list(stages)} of {spec.layers} layers"
        raise BadInput(f"{question.gpus} GPUs hold none of the replicas asked for ({asked}): raise gpus, lower tp, pp")
    return fitting


def _weights(question: Question, spec: Model, card: Gpu) -> tuple[str, ...]:
    """A model published in bf16 may be narrowed to fp8; one published narrower is served as it is."""
    if question.weights is not None:
        return question.weights
    if spec.native_dtype != "bf16":
        return (spec.native_dtype,)
    return ("bf16", "fp8") if "fp8" in card.peak_flops else ("bf16",)


def _throttles(question: Question, card: Gpu) -> list[Throttle]:
    """Power limits times clocks; each asked of the GPU once, before anything is simulated."""
    throttles = [Throttle(*each) for each in product(question.cap_watts or (None,), question.clock_mhz or (None,))]
    for throttle in throttles:
        waiting_watts(power_law(card.key), card, *throttle)
    return throttles


def _kv(question: Question, card: Gpu) -> tuple[str, ...]:
    if question.kv is not None:
        return question.kv
    return ("bf16", "fp8") if "fp8" in card.peak_flops else ("bf16",)
