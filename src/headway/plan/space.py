"""The search space: every deployment of the model on the GPUs there are, less those whose memory is too small."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, permutations, product
from typing import NamedTuple

import msgspec

from headway.cost import Replica
from headway.cost.engines import check_engine
from headway.cost.handover import Side, withheld
from headway.cost.memory import check_context
from headway.cost.power import power_law, waiting_watts
from headway.cost.published import PUBLISHED, with_published
from headway.errors import BadInput, DoesNotFit
from headway.hardware import Gpu, gpu
from headway.model import Model, model
from headway.plan.question import Question
from headway.plan.setups import Setup, check_policies, keeps_kv, kept_near, policed, setups_of, slow_network
from headway.plan.shapes import Shape, shapes_of
from headway.sim import Deployment, Policies, Pool

__all__ = [
    "Option", "Space", "enumerate_space", "left_out", "powered_copies", "priced", "resized", "singles",
]  # fmt: skip

_FAST_LINKS = ("nvlink", "xgmi")  # inside a node joined by these, TP serves better than a pipeline
_ROUNDING = 1e-9
_EVERY_COUNT = 16  # replicas of a pool are counted one by one up to here, then in steps of an eighth


class Option(NamedTuple):
    """A deployment to evaluate."""

    name: str
    deployment: Deployment


class Space(NamedTuple):
    """What there is to evaluate, how many were discarded for which reason, and the refusal nearest to fitting.

    Reasons: "memory", a replica does not fit its GPUs; "budget", it costs too much; "watts", it may draw too much.
    """

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


def enumerate_space(question: Question, weigh: Callable[[Replica], float] = lambda _: 1.0) -> Space:
    """Return every candidate: GPUs of each kind used, layouts, replicas, mixed or split, budget, precisions, power.

    The pools of a split may differ in layout and in GPU; pipelines where nothing else fits, or the network is slow.
    `Question.pp` tells when mixed replicas are, `Question.dp` where there are ranks. Two kinds of GPU side by side have
    the same KV precision and token budget; requests are routed to their replicas by the rate that `weigh` expects of
    one.

    Raises:
        UnknownName: model or GPU. BadInput: a degree, a precision, a power limit or a clock that the model or no GPU
            has.
    """
    fits = _Fits()
    options: list[Option] = []
    discarded: Counter[str] = Counter()
    kinds = _kinds(question, fits)
    pairs = [(one, other) for one, other in permutations(kinds, 2) if one.goes_with(other)]
    each = (_alone(kind) for kind in kinds)
    both = (_together(one, other, weigh) for one, other in pairs)
    check_policies(question)
    made = chain.from_iterable((*each, *both))
    for deployment in chain.from_iterable(policed(question, one) for one in made):
        if not all(fits.try_(pool.replica) for pool in deployment.pools):
            discarded["memory"] += 1
        elif _too_dear(deployment, question):
            discarded["budget"] += 1
        elif powered_copies(deployment, question) < 1:
            discarded["watts"] += 1
        else:
            options += [Option(each.name, each) for each in kept_near(question, deployment)]
    return Space(options, dict(discarded), fits.nearest)


def singles(question: Question) -> Iterator[Deployment]:
    """Yield the smallest deployment of every replica that fits, of each kind of GPU: one, and as many as may be down.

    A replica of each role where there are no mixed ones.

    Raises:
        As `enumerate_space`.
    """
    fits, count = _Fits(), question.spare + 1
    for kind in _kinds(question, fits):
        for shape, budget in product(kind.mixed(), kind.budgets):
            if not fits.try_(kind.replica(shape, budget)):
                continue
            pools: tuple[Pool, ...] = (Pool(replica=kind.whole(shape, budget)),)
            name = f"{kind.name(f'{count}x {shape}')} b{budget}"
            if "mixed" not in question.layouts:
                pools, name = _roles(kind, shape, kind, shape), kind.name(f"{count}P {shape} + {count}D {shape}")
            made = _deployment(question, name, *(_of(pool, count) for pool in pools))
            allowed = not _too_dear(made, question) and powered_copies(made, question) >= 1
            if made.gpus <= kind.most and allowed:
                yield made


def _too_dear(deployment: Deployment, question: Question) -> bool:
    usd, most = deployment.usd_per_hour, question.max_usd_per_hour
    return most is not None and usd is not None and usd > most * (1 + _ROUNDING)


def powered_copies(deployment: Deployment, question: Question) -> float:
    """Return how many times a deployment's GPUs there is power for, together and in the racks that hold them."""
    if question.max_watts is None and question.watts_per_rack is None:
        return math.inf
    total, used, watts = 0.0, Counter[str](), dict[str, float]()
    for pool in deployment.pools:
        replica, gpus = pool.replica, pool.count * pool.replica.gpus
        watts[replica.gpu] = question.watts(replica.gpu, replica.cap_watts)
        used[replica.gpu] += gpus
        total += gpus * watts[replica.gpu]
    racks = min(question.powered(kind, watts[kind]) / count for kind, count in used.items())
    together = math.inf if question.max_watts is None else question.max_watts / total
    return min(together, racks if question.watts_per_rack is not None else math.inf) * (1 + _ROUNDING)


class _Fits:
    """Which replicas fit, each asked once; `nearest` is the refusal that lacks the least memory."""

    def __init__(self) -> None:
        self.known: dict[Replica, bool] = {}
        self.nearest: DoesNotFit | None = None

    def try_(self, replica: Replica) -> bool:
        if replica not in self.known:
            try:
                check_context(replica)
            except DoesNotFit as refusal:
                self.known[replica] = False
                if self.nearest is None or _lack(refusal) < _lack(self.nearest):
                    self.nearest = refusal
            else:
                self.known[replica] = True
        return self.known[replica]


def _lack(refusal: DoesNotFit) -> float:
    return refusal.needed_bytes / refusal.available_bytes


class _Kind(NamedTuple):
    """One kind of GPU in one precision and power limit, and how its replicas may be cut."""

    question: Question
    gpu: str
    most: int
    weights: str
    kv: str
    throttle: Throttle
    setup: Setup
    shapes: list[Shape]
    fits: _Fits

    @property
    def budgets(self) -> list[int]:
        """Token budgets to try."""
        return self.setup.budgets(self.question)

    def replica(self, shape: Shape, budget_tokens: int) -> Replica:
        """A replica of any role."""
        calibration = self.question.calibration
        engine = msgspec.structs.replace(self.setup.engine, max_batched_tokens=budget_tokens)
        return Replica(
            model=self.question.model, gpu=self.gpu, **shape._asdict(), weights=self.weights, kv=self.kv,
            **self.throttle._asdict(), engine=engine, calibration=None if calibration == PUBLISHED else calibration,
        )  # fmt: skip

    def whole(self, shape: Shape, budget_tokens: int) -> Replica:
        """A mixed replica."""
        made = self.replica(shape, budget_tokens)
        return with_published(made) if self.question.calibration == PUBLISHED else made

    def mixed(self) -> list[Shape]:
        """Shapes of mixed replicas: pipelines and ranks where they may be of use."""
        card, alone = gpu(self.gpu), [shape for shape in self.shapes if shape.dp == 1]
        anyhow = self.question.pp is not None or card.link_kind not in _FAST_LINKS or self._split_alone() == alone
        pipes = alone if anyhow else [shape for shape in alone if shape.pp == 1 or shape.gpus > card.gpus_per_node]
        return pipes + self._ranks()

    def split(self) -> list[Shape]:
        """Shapes of replicas in split pools: pipelines where nothing fits otherwise, ranks on large replicas.

        Where less than a node holds the model, and the space is large, ranks of as few GPUs as can be.
        """
        ranks, large = self._ranks(), min(gpu(self.gpu).gpus_per_node, self.most // 2)
        if self.question.dp is None:
            ranks = [shape for shape in ranks if shape.gpus >= large]
        if self.question.dp is None and not self._wide():
            least = min((shape.tp for shape in ranks if self._holds(shape)), default=0)
            ranks = [shape for shape in ranks if shape.tp == least]
        return self._split_alone() + ranks

    def apart(self) -> Iterator[tuple[Shape, Shape]]:
        """Pipelines whose stages share nodes by two, where the network is slow and no node holds both whole."""
        least, node = min(self.budgets), gpu(self.gpu).gpus_per_node
        pipes = [s._replace(apart=True) for s in self.shapes if s.pp > 1 and s.dp == 1 and keeps_kv(self.question)]
        for one, other in product(filter(self._holds, pipes), repeat=2):
            fit = one.pp == other.pp and one.tp + other.tp <= node < one.gpus + other.gpus
            if fit and slow_network(self.replica(one, least), self.replica(other, least)):
                yield one, other

    def passing(self, pairs: Iterable[tuple[Shape, Shape]], other: _Kind) -> Iterator[tuple[Shape, Shape]]:
        """Those of the pairs between which the engine passes KV: prompts on this kind of GPU, tokens on the other."""
        engine, spec = self.setup.engine.name, model(self.question.model)
        return ((one, two) for one, two in pairs if not withheld(engine, spec, self.side(one), other.side(two)))

    def side(self, shape: Shape) -> Side:
        """What matters of a replica of a shape to those that it passes KV to."""
        return Side(gpu(self.gpu), shape.tp, shape.pp, self.setup.engine.block_tokens)

    def _split_alone(self) -> list[Shape]:
        """Those that are no ranks."""
        alone = [shape for shape in self.shapes if shape.dp == 1]
        plain = [shape for shape in alone if shape.pp == 1]
        return plain if any(map(self._holds, plain)) else alone

    def _ranks(self) -> list[Shape]:
        """Shapes of ranks: in a node, and over several where no replica holds the model on less than one."""
        ranks, node = [shape for shape in self.shapes if shape.dp > 1], gpu(self.gpu).gpus_per_node
        if self.question.dp is not None or not ranks:
            return ranks
        wide = self._wide()
        return [shape for shape in ranks if shape.gpus <= node or (wide and shape.gpus % node == 0)]

    def _wide(self) -> bool:
        """Whether no replica holds the model on less than a node."""
        node = gpu(self.gpu).gpus_per_node
        return not any(shape.gpus < node and shape.pp == 1 and self._holds(shape) for shape in self.shapes)

    def _holds(self, shape: Shape) -> bool:
        """Whether replicas of a shape fit, at the smallest budget."""
        return self.fits.try_(self.replica(shape, min(self.budgets)))

    def goes_with(self, other: _Kind) -> bool:
        """Whether plans combine the two: precisions are alike where both GPUs have them."""
        like = self.weights == other.weights or not _has(gpu(other.gpu), self.weights)
        like = like or not _has(gpu(self.gpu), other.weights)
        same = (self.kv, self.throttle, self.setup) == (other.kv, other.throttle, other.setup)
        return self.gpu != other.gpu and like and same

    def fitting(self, shapes: list[Shape], budget_tokens: int) -> list[Shape]:
        """Those of the shapes whose replicas fit: only they are combined with another kind of GPU."""
        return [shape for shape in shapes if self.fits.try_(self.replica(shape, budget_tokens))]

    def name(self, pools: str) -> str:
        named = "" if isinstance(self.question.gpu, str) else f" {self.question.called(self.gpu)}"
        return f"{pools}{named} {self.weights}/{self.kv}{self.throttle}{self.setup.words}"


def _alone(kind: _Kind) -> Iterator[Deployment]:
    if "mixed" in kind.question.layouts:
        yield from _mixed(kind)
    if "split" in kind.question.layouts:
        yield from _split(kind)


def _mixed(kind: _Kind) -> Iterator[Deployment]:
    for budget, shape in product(kind.budgets, kind.mixed()):
        replica = kind.whole(shape, budget)
        for count in _counts(kind.question, kind.most // shape.gpus):
            name = f"{kind.name(f'{count}x {shape}')} b{budget}"
            yield _deployment(kind.question, name, Pool(count=count, replica=replica))


def _split(kind: _Kind) -> Iterator[Deployment]:
    shapes = kind.split()
    for before, after in kind.passing(chain(product(shapes, shapes), kind.apart()), kind):
        prefill, decode = _roles(kind, before, kind, after)
        for first in _counts(kind.question, (kind.most - after.gpus) // before.gpus):
            ahead = _of(prefill, first)
            for second in _counts(kind.question, (kind.most - first * before.gpus) // after.gpus):
                name = kind.name(f"{first}P {before} + {second}D {after}")
                yield _deployment(kind.question, name, ahead, _of(decode, second))


def _together(one: _Kind, other: _Kind, weigh: Callable[[Replica], float]) -> Iterator[Deployment]:
    """Two kinds of GPU: side by side, or prompts on the one and tokens on the other."""
    question = one.question
    if "split" in question.layouts:
        large, small = max(one.budgets), min(one.budgets)
        pairs = product(one.fitting(one.split(), large), other.fitting(other.split(), small))
        for before, after in one.passing(pairs, other):
            prefill, decode = _roles(one, before, other, after)
            for first, second in _both_counts(one, before, other, after):
                name = f"{one.name(f'{first}P {before}')} + {other.name(f'{second}D {after}')}"
                yield _deployment(question, name, _of(prefill, first), _of(decode, second))
    kinds = list(question.stock)
    if "mixed" not in question.layouts or kinds.index(one.gpu) > kinds.index(other.gpu):
        return  # side by side there is no order
    for budget in one.budgets:
        for left, right in product(one.fitting(one.mixed(), budget), other.fitting(other.mixed(), budget)):
            pools = Pool(replica=one.whole(left, budget)), Pool(replica=other.whole(right, budget))
            rates = [weigh(pool.replica) / pool.replica.dp for pool in pools]  # of each rank
            weights = [float(f"{rate / min(rates):.2g}") for rate in rates]
            for first, second in _both_counts(one, left, other, right):
                name = f"{one.name(f'{first}x {left}')} + {other.name(f'{second}x {right}')} b{budget}"
                made = _deployment(question, name, _of(pools[0], first), _of(pools[1], second))
                yield _routed(made, weights)


def _roles(one: _Kind, before: Shape, other: _Kind, after: Shape) -> tuple[Pool, Pool]:
    """A prefill and a decode pool of one replica: prompts take the largest budget, a decode pool needs the least."""
    budgets = one.budgets
    prefill, decode = one.replica(before, max(budgets)), other.replica(after, min(budgets))
    return Pool(role="prefill", replica=prefill), Pool(role="decode", replica=decode)


def _of(pool: Pool, count: int) -> Pool:
    return msgspec.structs.replace(pool, count=count)


def _both_counts(one: _Kind, left: Shape, other: _Kind, right: Shape) -> Iterator[tuple[int, int]]:
    """Replicas of both, within what there is of each and of all."""
    total = one.question.most
    for first in _counts(one.question, min(one.most, total - right.gpus) // left.gpus):
        for second in _counts(one.question, min(other.most, total - first * left.gpus) // right.gpus):
            yield first, second


def _deployment(question: Question, name: str, *pools: Pool) -> Deployment:
    made = Deployment(
        name=name, pools=pools, policies=question.policies, prices=question.prices,
        kv_link=question.kv_link if pools[0].role == "prefill" else None,
    )  # fmt: skip
    return priced(question, made)


def priced(question: Question, deployment: Deployment) -> Deployment:
    """Return the deployment with the mean price of its GPUs, where the question names prices by kind."""
    usd = [question.usd_per_hour(pool.replica.gpu) for pool in deployment.pools]
    if not question.usd_per_gpu_hour or None in usd:
        return deployment
    cost = sum((each or 0.0) * pool.count * pool.replica.gpus for each, pool in zip(usd, deployment.pools, strict=True))
    prices = msgspec.structs.replace(question.prices, usd_per_gpu_hour=cost / deployment.gpus)
    return msgspec.structs.replace(deployment, prices=prices)


def _routed(deployment: Deployment, weights: list[float]) -> Deployment:
    """The deployment with its two pools routed to by weight, unless the question names a router."""
    policies = deployment.policies
    if policies.route != Policies().route:
        return deployment
    each = [weight for weight, pool in zip(weights, deployment.pools, strict=True) for _ in range(pool.ranks)]
    params = {**policies.params, "route": {"weights": {"mixed": each}}}
    routed = msgspec.structs.replace(policies, route="weighted-requests", params=params)
    return msgspec.structs.replace(deployment, policies=routed)


def resized(deployment: Deployment, counts: list[int]) -> Deployment:
    """Return the deployment with so many replicas in its pools, each routed to by the weight that its pool has."""
    pools = tuple(
        msgspec.structs.replace(pool, count=count, nodes=None)
        for pool, count in zip(deployment.pools, counts, strict=True)
    )
    policies = deployment.policies
    route = policies.params.get("route", {})
    if "weights" in route:
        weights: dict[str, list[float]] = {}
        firsts: Counter[str] = Counter()
        for pool, count in zip(deployment.pools, counts, strict=True):
            group = pool.model if pool.model in route["weights"] else pool.role
            if group not in route["weights"]:
                continue
            given = route["weights"][group][firsts[group] :]
            weights.setdefault(group, []).extend((given or [1.0])[:1] * count * pool.replica.dp)
            firsts[group] += pool.ranks
        params = {**policies.params, "route": {**route, "weights": weights}}
        policies = msgspec.structs.replace(policies, params=params)
    return msgspec.structs.replace(deployment, pools=pools, policies=policies)


def _counts(question: Question, most: int) -> list[int]:
    """How many replicas a pool may have: all numbers to 16, then to an eighth, and the most there can be.

    More than may be down.
    """
    counts = list(range(1, min(most, _EVERY_COUNT) + 1))
    while counts and counts[-1] < most:
        counts.append(min(most, counts[-1] + max(1, counts[-1] // 8)))
    return [count for count in counts if count > question.spare]


def _kinds(question: Question, fits: _Fits) -> list[_Kind]:
    """Every kind of GPU there is in every precision and power limit; what a GPU lacks is refused if no other has it."""
    spec = model(question.model)
    setups = [setup for setup in setups_of(question) if setup.budgets(question)]
    kinds: list[_Kind] = []
    refused: list[BadInput] = []
    for name, most in question.stock.items():
        card = gpu(name)
        for setup in setups:
            try:
                check_engine(setup.engine.name, card)
                shapes = shapes_of(question, setup.engine.name, most, spec, card)
                throttles = _throttles(question, card)
            except BadInput as refusal:
                refused.append(refusal)
                continue
            for weights, kv, throttle in product(_weights(question, spec, card), _kv(question, card), throttles):
                kinds.append(_Kind(question, name, most, weights, kv, throttle, setup, shapes, fits))
    if not kinds:
        wanted = f"weights {list(question.weights or ())}, kv {list(question.kv or ())}"
        raise (refused or [BadInput(f"{wanted}: none of {', '.join(question.stock)} takes these precisions")])[0]
    return kinds


def left_out(question: Question) -> dict[str, str]:
    """Return the kinds of several that no plan can have, as they lack the precisions asked for, and which these are."""
    if len(question.stock) < 2:
        return {}
    spec, kinds = model(question.model), {}
    for name in question.stock:
        card, lacks = gpu(name), []
        if not _weights(question, spec, card):
            lacks.append(f"{' or '.join(question.weights or ())} weights")
        if not _kv(question, card):
            lacks.append(f"{' or '.join(question.kv or ())} KV")
        if lacks:
            kinds[name] = f"it has no {' and no '.join(lacks)}"
    return kinds


def _has(card: Gpu, weights: str) -> bool:
    return weights in card.peak_flops


def _weights(question: Question, spec: Model, card: Gpu) -> tuple[str, ...]:
    """A model published in bf16 may be narrowed to fp8; one published narrower is served as it is."""
    if question.weights is not None:
        return _those(question.weights, lambda each: _has(card, each) or each == spec.native_dtype, question)
    if spec.native_dtype != "bf16":
        return (spec.native_dtype,)
    return ("bf16", "fp8") if _has(card, "fp8") else ("bf16",)


def _kv(question: Question, card: Gpu) -> tuple[str, ...]:
    own = ("bf16", "fp8") if _has(card, "fp8") else ("bf16",)
    return own if question.kv is None else _those(question.kv, own.__contains__, question)


def _those(asked: tuple[str, ...], has: Callable[[str], bool], question: Question) -> tuple[str, ...]:
    """The precisions that this of several kinds of GPU has; of a single kind all, so that a wrong one is refused."""
    return asked if len(question.stock) == 1 else tuple(filter(has, asked))


def _throttles(question: Question, card: Gpu) -> list[Throttle]:
    """Power limits times clocks; each asked of the GPU once, before anything is simulated.

    Of several kinds of GPU, each takes the power limits up to its own TDP.
    """
    law, caps = power_law(card.key), question.cap_watts or (None,)
    allowed = [cap for cap in caps if cap is None or cap <= card.tdp_watts]
    if not allowed or (len(question.stock) == 1 and len(allowed) < len(caps)):
        least = waiting_watts(law, card)
        raise BadInput(
            f"cap_watts={max(cap or 0.0 for cap in caps):g}: a {card.key} draws {card.tdp_watts:.0f} W at most; give "
            f"more than {least:.0f} W, which it draws with an engine loaded, up to {card.tdp_watts:.0f} W"
        )
    throttles = [Throttle(*each) for each in product(allowed, question.clock_mhz or (None,))]
    for throttle in throttles:
        waiting_watts(law, card, *throttle)
    return throttles
