"""`Question`: what a plan is asked for, and the checks that need no simulation."""

from __future__ import annotations

import math
from typing import Literal, get_args

import msgspec

from headway.cost import EngineSettings
from headway.cost.calibration import Calibration
from headway.errors import BadInput, UnknownName
from headway.hardware import Link, gpu
from headway.hardware.catalogue import name_within
from headway.hardware.files import gpu_name, is_file, located
from headway.metrics import Prices, Slo
from headway.sim import Policies
from headway.specs import Spec, check_types
from headway.units import counted
from headway.workload import WorkloadSpec

__all__ = ["OBJECTIVES", "Layout", "Objective", "Question", "default_requests"]

Objective = Literal["cost", "gpus", "energy", "carbon", "goodput", "rate", "ttft", "tpot"]
Layout = Literal["mixed", "split"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

_FRONT: tuple[Objective, ...] = ("cost", "energy", "goodput")
_FRONTS: dict[Objective, tuple[Objective, ...]] = {
    **dict.fromkeys(OBJECTIVES, _FRONT),
    "gpus": ("gpus", "energy", "goodput"),
    "carbon": ("cost", "carbon", "goodput"),
    "rate": ("cost", "energy", "rate"),
    "ttft": ("cost", "energy", "ttft"),
    "tpot": ("cost", "energy", "tpot"),
}
_DEGREES = ("tp", "pp", "dp", "ep")
_TRIED = (
    "weights", "kv", "budget_tokens", "cap_watts", "clock_mhz", "engines", "max_seqs", "prefix_cache", "layouts",
)  # fmt: skip
_POINTS = ("route", "order", "admit")  # where a policy may be tried; how a plan scales is what it answers
_REQUESTS = 8_000  # goodput of one seed against 64,000 requests, 70B chat on H100: -1 % and 2 to 4 % noise
_REQUESTS_MAX = 40_000
_GPUS_MAX = 4_096
_QUEUE_TTFTS = 40  # a run must last this many TTFT limits, or 3 % too much load hardly shows in its queue ...
_BATCH_TURNS = 30  # ... and this many outputs at the TPOT limit, or the batch hardly grows to what it comes to


class Question(Spec, frozen=True, kw_only=True):
    """Which deployment of `model` on up to `gpus` GPUs serves `workload` at `rate_req_s` within `slo`?

    Attributes:
        model: catalogue key, or path to a config.json.
        gpu: catalogue key of the only kind of GPU used, or how many there are of each kind: then plans may have one
            kind, two kinds side by side, or prefill on one and decode on another.
        gpus: how many there are in all; plans that use fewer are tried as well. None: as many as `gpu` says.
        workload: a preset's name, a trace file, a YAML file or the spec itself. Not a closed loop.
        skip_bad: broken lines of its trace are left out, and not refused.
        rate_req_s: mean arrival rate to serve; None takes the workload's own.
        slo: limits and the share of requests that must meet them; slos: those of classes of the workload by their
            names, in place of `slo`: then every class must reach its own share.
        objective: what the plans that meet the SLO are ranked by: dollars per hour (cost), GPUs, joules (energy) or
            grams of CO2 (carbon) per output token, goodput per GPU or of all (rate), the TTFT or TPOT that the SLO's
            share of requests keeps to at the asked rate. Where a price is missing, GPUs stand for cost.
        front: two or three objectives that the Pareto front is made of; none given takes cost, energy and goodput, of
            which the objective replaces the one nearest to it.
        max_usd_per_hour, max_tp: no plan costs more, no replica is cut wider.
        max_watts: the GPUs of no plan can draw more together, each up to its power limit or TDP; hosts, network and
            cooling come on top.
        watts_per_rack, gpus_per_rack: a rack has power and places for so many; all GPUs of a kind stand in as few racks
            as hold them, and those of a plan are spread over these. One needs the other.
        spare: so many replicas of every pool may be down, and the SLO is still met.
        seed: of every random stream; all candidates and rates see the same requests.
        requests: in a simulation of those in front; None chooses it by the rate and the limits. A trace ends where it
            ends.
        tp, pp: degrees to try. None tries every power of two that cuts the model for tp; for pp 2 and 4 as well where a
            replica spans nodes, where links in the node are slow, or where nothing fits without.
        dp, ep: of a model with experts, numbers of data-parallel ranks that attend their own sequences, and of groups
            that the experts are divided among. None tries ranks of powers of two: in a node; over up to 4 nodes where
            no replica holds the model on less than one; in split pools only on whole nodes (or half of the GPUs there
            are), and of as few GPUs as hold it where less than a node does. Their experts are cut over all GPUs, or
            divided among all.
        weights, kv: precisions to try; None tries what the GPU computes in, bf16 and fp8.
        budget_tokens: token budgets of a step to try on mixed replicas. A prefill pool takes the largest (it hardly
            matters there: 3 % of goodput), a decode pool, which computes no prompts, the smallest.
        cap_watts, clock_mhz: power limits of a GPU and locked SM clocks to try; TDP and boost clock are those of a GPU
            left alone. None leaves it alone.
        engines: engines to try, each NAME or NAME:VERSION, in place of that of `engine`.
        max_seqs, prefix_cache: most sequences in a step, and prefix caching on (true) or off, to try; with more
            sequences than a token budget has room for, that budget is left out. None takes those of `engine`.
        policies_to_try: names of the library, or module:Class, by decision point (route, order, admit): each is tried
            with each deployment, routers where there is a choice.
        layouts: "mixed" replicas, or prefill and decode "split" over two pools.
        kv_link: what carries KV between prefill and decode replicas, per GPU, wherever they stand; None takes the GPUs'
            own link between two on one node, and their network cards between others. Other nodes and links than a GPU
            is commonly sold with are described in a file that says which GPU it is `like`. Over a slow network plans
            are tried with KV kept on its node, too (docs/plan-schema.md, "Nodes and links").
        engine: every other engine setting.
        exhaustive: simulate every candidate at length, to check the search by.
        margin: share by which the limits on the time per token (TPOT, ITL) are taken tighter than `slo` has them, as a
            prediction may be off: a larger one costs more than it saves (docs/accuracy.md, "How sure").
        calibration: what own measurements change in the step law of the GPU and the engine, or "published": what
            published ones of the model do, in mixed replicas that they are of (`headway.cost.published`).
        policies, prices: given to every candidate. Unlike replicas side by side are routed to by their weight where
            the question leaves the router as it is.
        usd_per_gpu_hour: prices by kind of GPU, in place of the catalogue's.

    Raises:
        BadInput: a value of another type than its field's, a number out of range, nothing to try, or an SLO that limits
            nothing.
    """

    model: str
    gpu: str | dict[str, int]
    gpus: int | None = None
    workload: str | WorkloadSpec = "chat"
    skip_bad: bool = False
    rate_req_s: float | None = None
    slo: Slo = Slo()
    slos: dict[str, Slo] = msgspec.field(default_factory=dict)
    objective: Objective = "cost"
    front: tuple[Objective, ...] = ()
    max_usd_per_hour: float | None = None
    max_tp: int | None = None
    max_watts: float | None = None
    watts_per_rack: float | None = None
    gpus_per_rack: int | None = None
    spare: int = 0
    exhaustive: bool = False
    seed: int = 0
    requests: int | None = None
    tp: tuple[int, ...] | None = None
    pp: tuple[int, ...] | None = None
    dp: tuple[int, ...] | None = None
    ep: tuple[int, ...] | None = None
    weights: tuple[str, ...] | None = None
    kv: tuple[str, ...] | None = None
    budget_tokens: tuple[int, ...] = (2048, 8192)
    cap_watts: tuple[float, ...] | None = None
    clock_mhz: tuple[float, ...] | None = None
    engines: tuple[str, ...] | None = None
    max_seqs: tuple[int, ...] | None = None
    prefix_cache: tuple[bool, ...] | None = None
    policies_to_try: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    layouts: tuple[Layout, ...] = ("mixed", "split")
    margin: float = 0.01
    kv_link: Link | None = None
    engine: EngineSettings = EngineSettings()
    calibration: Calibration | Literal["published"] | None = None
    policies: Policies = Policies()
    prices: Prices = Prices()
    usd_per_gpu_hour: dict[str, float] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no search can answer."""
        check_types(self, "question")
        if not self.front:
            msgspec.structs.force_setattr(self, "front", _FRONTS[self.objective])
        self._locate()
        self._check_stock()
        self._check_limits()
        if self.rate_req_s is not None and not 0 < self.rate_req_s < math.inf:
            raise BadInput(f"rate {self.rate_req_s:g} req/s: give a finite rate above zero, as in 20")
        if self.requests is not None and self.requests < 1:
            raise BadInput(f"requests {self.requests}: a simulation needs at least 1")
        if self.seed < 0:
            raise BadInput(f"seed {self.seed}: give 0 or more")
        limits = [limit for slo in (self.slo, *self.slos.values()) for limit in (*slo.limits(), slo.itl_s or math.inf)]
        if min(limits) == math.inf:
            raise BadInput("the SLO limits nothing, so any deployment meets it: give a TTFT, TPOT, ITL or E2E limit")
        if self.policies.scale != "fixed":
            raise BadInput(
                f"policies.scale={self.policies.scale}: a plan says how many replicas it takes; leave the policy out, "
                "and `headway simulate` the plan with it"
            )
        if not 0 <= self.margin < 1:
            raise BadInput(f"margin {self.margin:g}: give a share of the limit from 0 to below 1, as in 0.05")
        self._check_tried()
        self._check_settings()
        self._check_budget_tokens()
        self._check_power()

    def _locate(self) -> None:
        """Name GPUs that files describe by paths that mean the same in every folder, in prices as well."""
        kinds = [self.gpu] if isinstance(self.gpu, str) else list(self.gpu)
        paths = [located(kind) for kind in kinds]
        if len(set(paths)) < len(paths):
            raise BadInput(f"gpu {', '.join(kinds)}: name each kind once")
        if paths != kinds:
            stock = paths[0] if isinstance(self.gpu, str) else dict(zip(paths, self.gpu.values(), strict=True))
            msgspec.structs.force_setattr(self, "gpu", stock)
        files = [path for path in paths if is_file(path)]
        if files and self.usd_per_gpu_hour:
            usd = {_priced(kind, paths, files): each for kind, each in self.usd_per_gpu_hour.items()}
            msgspec.structs.force_setattr(self, "usd_per_gpu_hour", usd)

    def _check_tried(self) -> None:
        tried = {name: getattr(self, name) for name in (*_DEGREES, *_TRIED) if getattr(self, name) is not None}
        for kind, names in self.policies_to_try.items():
            if kind not in _POINTS:
                raise UnknownName("decision point of policies_to_try", kind, _POINTS)
            tried[f"policies_to_try.{kind}"] = names
        for name, each in tried.items():
            if not each or (name in _DEGREES and min(each) < 1):
                raise BadInput(f"{name} {list(each)}: give at least one value to try, degrees from 1")
            if len(set(each)) < len(each):
                raise BadInput(f"{name} {list(each)}: give each value to try once")

    def _check_settings(self) -> None:
        """Refuse a setting that is named twice, each time otherwise: what is to be tried would silently win."""
        plain, policies = EngineSettings(), Policies()
        pairs = [
            ("engine.max_batched_tokens", self.engine.max_batched_tokens, plain.max_batched_tokens, "budget_tokens",
             self.budget_tokens),
            ("engine.max_seqs", self.engine.max_seqs, plain.max_seqs, "max_seqs", self.max_seqs),
            ("engine.prefix_cache", self.engine.prefix_cache, plain.prefix_cache, "prefix_cache", self.prefix_cache),
            *(
                (f"policies.{kind}", getattr(self.policies, kind), getattr(policies, kind), f"policies_to_try.{kind}",
                 names)
                for kind, names in self.policies_to_try.items()
            ),
        ]  # fmt: skip
        for name, one, usual, tried, each in pairs:
            if each is not None and one != usual and one not in each:
                raise BadInput(
                    f"{name} {one} against {tried} {list(each)}, which are tried in its place; give one of them"
                )

    def _check_power(self) -> None:
        if (self.watts_per_rack is None) != (self.gpus_per_rack is None):
            raise BadInput(
                f"watts_per_rack {self.watts_per_rack} and gpus_per_rack {self.gpus_per_rack}: a rack's power says "
                "something where it is known how many GPUs it has places for: give both"
            )
        if self.gpus_per_rack is not None and self.gpus_per_rack < 1:
            raise BadInput(f"gpus_per_rack {self.gpus_per_rack}: give a number from 1")
        for name, most in (("max_watts", self.max_watts), ("watts_per_rack", self.watts_per_rack)):
            if most is None:
                continue
            if not 0 < most < math.inf:
                raise BadInput(f"{name} {most:g}: give watts above 0")
            lowest = min(self.cap_watts or (math.inf,))
            least, kind = min((self.watts(kind, lowest), kind) for kind in self.stock)
            if least > most:
                other = "a power limit (cap_watts)" if self.cap_watts is None else f"a cap_watts below {lowest:g}"
                raise BadInput(
                    f"{name} {most:g} against gpu {kind}, one of which draws up to {least:g} W: raise the one, or try "
                    f"{other}"
                )

    def watts(self, kind: str, cap_watts: float | None) -> float:
        """The most that a GPU of a kind draws under a power limit."""
        return min(gpu(kind).tdp_watts, math.inf if cap_watts is None else cap_watts)

    def powered(self, kind: str, watts: float) -> int:
        """How many GPUs of a kind the racks have power for, where each draws so much."""
        if self.watts_per_rack is None or self.gpus_per_rack is None:
            return self.stock[kind]
        racks = -(-self.stock[kind] // self.gpus_per_rack)
        return racks * self.per_rack(watts)

    def per_rack(self, watts: float) -> int:
        """How many GPUs that draw so much a rack has places and power for, where racks have a limit."""
        assert self.watts_per_rack is not None and self.gpus_per_rack is not None
        return min(self.gpus_per_rack, int(self.watts_per_rack / watts))

    def _check_budget_tokens(self) -> None:
        engine = self.engine
        if self.max_seqs is not None:
            least, fewest = max(self.budget_tokens), min(self.max_seqs)
            if not 1 <= fewest * engine.step_tokens <= least:
                raise BadInput(
                    f"max_seqs {list(self.max_seqs)} against budget_tokens {list(self.budget_tokens)}: a step has room "
                    f"for at least {engine.step_tokens} token of each sequence; raise the one or lower the other"
                )
            return
        least, needed = min(self.budget_tokens), engine.max_seqs * engine.step_tokens
        if least < needed:
            each = "one token" if engine.step_tokens == 1 else f"{engine.step_tokens} tokens to verify"
            raise BadInput(
                f"budget_tokens {least} against engine.max_seqs {engine.max_seqs}: a step has room for at least {each} "
                f"of each sequence; give {needed} or more, or lower engine.max_seqs"
            )

    def _check_stock(self) -> None:
        self._check_counts()
        if self.most > _GPUS_MAX:
            raise BadInput(
                f"gpus {self.most:,}: plans have up to {_GPUS_MAX:,}; plan for a part of the rate, and multiply"
            )

    def _check_counts(self) -> None:
        if self.gpus is not None and self.gpus < 1:
            raise BadInput(f"gpus {self.gpus}: a plan needs at least 1 GPU")
        if isinstance(self.gpu, str):
            if self.gpus is None:
                raise BadInput(f"gpus is missing: how many {self.gpu} are there?")
            return
        if not self.gpu or min(self.gpu.values()) < 1:
            raise BadInput(f"gpu {self.gpu}: give at least one kind, and at least 1 GPU of each")
        if self.gpus is not None and self.gpus > sum(self.gpu.values()):
            each = ", ".join(f"{count} {kind}" for kind, count in self.gpu.items())
            raise BadInput(f"gpus {self.gpus} against gpu {each}: there are only {sum(self.gpu.values())}")

    def _check_limits(self) -> None:
        if self.max_tp is not None and self.tp is not None and min(self.tp) > self.max_tp:
            raise BadInput(f"tp {list(self.tp)} against max_tp {self.max_tp}: no degree is left to try")
        if self.max_tp is not None and self.max_tp < 1:
            raise BadInput(f"max_tp {self.max_tp}: give a degree from 1")
        if not 0 <= self.spare < self.most:
            raise BadInput(
                f"spare {self.spare} against {counted(self.most, 'GPU')}: with so many replicas down none is left; "
                "give 0 or more, below the number of GPUs"
            )
        if not 2 <= len(set(self.front)) == len(self.front) <= 3:
            raise BadInput(f"front {list(self.front)}: give two or three different objectives")
        for kind in self.usd_per_gpu_hour:
            if kind not in self.stock:
                raise BadInput(f"usd_per_gpu_hour of {kind} against gpu {', '.join(self.stock)}: none of it is there")
        if self.max_usd_per_hour is not None:
            self._check_budget(self.max_usd_per_hour)

    def _check_budget(self, most_usd: float) -> None:
        if not 0 < most_usd < math.inf:
            raise BadInput(f"max_usd_per_hour {most_usd:g}: give dollars above 0")
        if self.unpriced:
            raise BadInput(
                f"max_usd_per_hour {most_usd:g} against gpu {self.unpriced[0]}, whose price is not known: give it "
                "(--price, usd_per_gpu_hour), or limit gpus instead"
            )
        cheapest = min(self.stock, key=lambda kind: self.usd_per_hour(kind) or 0.0)
        usd = self.usd_per_hour(cheapest)
        if usd is not None and usd > most_usd:
            raise BadInput(
                f"max_usd_per_hour {most_usd:g} against gpu {cheapest}: one costs ${usd:.2f} per hour; raise the one "
                "or name a cheaper GPU"
            )

    @property
    def stock(self) -> dict[str, int]:
        """How many there are of each kind of GPU."""
        if isinstance(self.gpu, str):
            return {self.gpu: self.gpus or 0}
        return {kind: min(count, self.gpus or count) for kind, count in self.gpu.items()}

    @property
    def front_named(self) -> bool:
        """Whether the front is of other objectives than those that are taken where none are given."""
        return self.front not in (_FRONT, _FRONTS[self.objective])

    @property
    def most(self) -> int:
        """GPUs of all kinds that a plan may use."""
        return self.gpus or sum(self.stock.values())

    @property
    def gpu_words(self) -> str:
        """The GPUs in words: ``16 h100-sxm``, ``24 of 16 h100-sxm and 16 a100-80gb-sxm``."""
        each = " and ".join(f"{count} {self.called(kind)}" for kind, count in self.stock.items())
        return each if self.most == sum(self.stock.values()) else f"{self.most} of {each}"

    def called(self, kind: str) -> str:
        """A kind of GPU as candidates are named by it: a file without its folder where that leaves no doubt."""
        alike = [each for each in self.stock if gpu_name(each) == gpu_name(kind)]
        return gpu_name(kind) if len(alike) < 2 else kind

    def usd_per_hour(self, kind: str) -> float | None:
        """Dollars per hour of one GPU of a kind; None where neither the question nor the catalogue knows."""
        if kind in self.usd_per_gpu_hour:
            return self.usd_per_gpu_hour[kind]
        given = self.prices.usd_per_gpu_hour
        return gpu(kind).usd_per_hour if given is None else given

    def price_source(self, kind: str) -> str:
        """Where the price of a kind of GPU is from."""
        if kind in self.usd_per_gpu_hour or self.prices.usd_per_gpu_hour is not None:
            return "the question"
        found = gpu(kind).sources.get("usd_per_hour")
        return "nobody lists one" if found is None else f"{found.kind}: {found.source}"

    @property
    def unpriced(self) -> list[str]:
        """Kinds of GPU without a price."""
        return [kind for kind in self.stock if self.usd_per_hour(kind) is None]

    def known(self, objective: Objective) -> Objective:
        """The objective, or GPUs in place of a cost that is not known."""
        return "gpus" if objective == "cost" and self.unpriced else objective

    @property
    def aimed_slo(self) -> Slo:
        """The SLO that candidates are judged by: limits on the time per token less the margin."""
        return self.aimed(self.slo)

    def aimed(self, slo: Slo) -> Slo:
        """The SLO with its limits on the time per token less the margin."""
        share = 1 - self.margin
        tpot_s, itl_s = (None if limit is None else limit * share for limit in (slo.tpot_s, slo.itl_s))
        return msgspec.structs.replace(slo, tpot_s=tpot_s, itl_s=itl_s)

    def slo_of(self, name: str) -> Slo:
        """The SLO of a class by its name, as asked."""
        return self.slos.get(name, self.slo)


def _priced(kind: str, stock: list[str], files: list[str]) -> str:
    """The GPU that a price is of: by its own name, or by the name that it has within the one file that says so."""
    if kind in stock or is_file(kind):
        return located(kind)
    named = [path for path in files if name_within(path) == kind]
    return named[0] if len(named) == 1 else kind


def default_requests(slo: Slo, rate_req_s: float, output_tokens: float) -> int:
    """Requests of a long run when the question leaves it open: 8,000, or more where limits are long at a high rate."""
    queue_s = _QUEUE_TTFTS * max(slo.ttft_s or 0.0, slo.e2e_s or 0.0)
    batch_s = _BATCH_TURNS * output_tokens * (slo.tpot_s or 0.0)
    return int(min(max(_REQUESTS, rate_req_s * max(queue_s, batch_s)), _REQUESTS_MAX))
