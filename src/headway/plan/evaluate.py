"""One candidate: screened, its goodput searched, and simulated at the rate asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from headway.cost import StepTable
from headway.cost.stretched import Part, eased, stretched
from headway.metrics import Result, Slo
from headway.metrics.result import EnergyKind
from headway.plan.answer import Binding, ClassShare
from headway.plan.bounds import Floats, Guess, Reach
from headway.plan.classes import Classes, classes_of, hopes
from headway.plan.floor import Floor
from headway.plan.question import Question
from headway.plan.search import Bracket, search
from headway.plan.space import resized
from headway.plan.spare import without, worst
from headway.plan.trial import KEPT_BYTES, STEP, Load, Trial, ask, interval, pooled, try_rate
from headway.sim import Deployment, Pool
from headway.sim.run import compiled
from headway.workload import Workload

__all__ = ["Asked", "Evaluator", "Goodput", "Job", "Outcome", "binding", "worst_of"]

_Heard = Sequence[tuple[Trial, Result]]  # of several seeds

_ALONE = 0.05  # mean requests in flight at the lowest rate tried
_ALONE_REQUESTS = 500
_SURER = 1.8  # places of the grid by which goodput on further seeds usually lies below that which led to them
_KEPT_BYTES = 16 << 20  # of the requests of each further seed


class Job(NamedTuple):
    """A deployment to evaluate by runs of `requests`, near a goodput (None: unknown) or only `alone`.

    `alone` asks what latencies it reaches when requests hardly meet. `seeds` are run instead of the question's, each
    of them at every rate. Prompts and outputs are `longer` by these factors, and all `steps` by theirs; a part of them
    is `eased`. `width` places of the grid of rates may be left open.
    """

    place: int
    deployment: Deployment
    requests: int
    near_req_s: float | None = None
    alone: bool = False
    seeds: tuple[int, ...] = ()
    longer: tuple[float, float] = (1.0, 1.0)
    steps: float = 1.0
    eased: Part | None = None
    width: int = 1


class Asked(NamedTuple):
    """At the rate asked for.

    Attainment and latencies are of the fleet that is judged: with the spare replicas down. `attainment_all_up`, energy
    and cost are of the whole. `ttft_s` and `tpot_s` are the quantiles at the SLO's attainment, of several classes the
    largest of any. `by_class`: by name, where classes have SLOs of their own.
    """

    attainment: float | None
    attainment_low: float | None
    attainment_high: float | None
    ttft_p90_s: float | None
    tpot_p90_s: float | None
    usd_per_million_output_tokens: float | None
    joules_per_output_token: float | None
    meets: bool
    idle_joules_per_output_token: float | None = None
    prefill_joules_per_output_token: float | None = None
    decode_joules_per_output_token: float | None = None
    mean_watts: float | None = None
    energy_kind: EnergyKind | None = None
    carbon_g_per_million_output_tokens: float | None = None
    embodied_g_per_million_output_tokens: float | None = None
    attainment_all_up: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    by_class: dict[str, ClassShare] = {}  # noqa: RUF012 - never changed

    def may_meet(self, target: float) -> bool:
        """Whether the interval reaches the target, or of several classes that of each its own."""
        if self.by_class:
            return all(each.attainment_high >= each.target for each in self.by_class.values())
        return self.attainment_high is not None and self.attainment_high >= target


class Goodput(NamedTuple):
    """In requests per second: interpolated, highest met and lowest missed; 0, 0 and None when no rate is met.

    The last is None too where the highest rate tried is met: the others are that rate then, and goodput may be more.
    """

    req_s: float = 0.0
    low_req_s: float = 0.0
    high_req_s: float | None = None

    @property
    def open_ended(self) -> bool:
        """Whether no rate was missed: the runs are too short to tell what is served at most."""
        return self.req_s > 0 and self.high_req_s is None


class Outcome(NamedTuple):
    """What was found out about a deployment, by runs of `requests`.

    `binding` breaks first: it comes to `worst_s` against the SLO's `limit_s` (both 0 where it is no latency). Without
    `asked` a bound proves that no rate meets the SLO; `worst_s` is that bound while there are no simulations.
    `seeds` confirmed it; none: the question's own was run. `binding_class` is the class whose limit that is. `down` is
    the place, among what `without` says may be left, of the worst at the rate asked for.
    """

    goodput: Goodput
    asked: Asked | None
    binding: Binding
    worst_s: float
    limit_s: float
    requests: int
    simulations: int
    seeds: tuple[int, ...] = ()
    binding_class: str = ""
    down: int = 0


class Evaluator:
    """Answers for one deployment after another; the same answer in whatever process and order.

    It keeps an `among`-th of the requests that one alone would.
    """

    def __init__(self, question: Question, workload: Workload, rate_req_s: float, among: int = 1) -> None:
        self.question, self.workload, self.rate_req_s, self.among = question, workload, rate_req_s, among
        self.classes = classes_of(question, workload)
        self.loads: dict[tuple[int, int, tuple[float, float]], Load] = {}
        self.guesses: dict[Load, Guess] = {}

    def load(self, requests: int, seed: int | None = None, longer: tuple[float, float] = (1.0, 1.0)) -> Load:
        """The requests of runs of that length, of the question's seed or another."""
        key = requests, self.question.seed if seed is None else seed, longer
        if key not in self.loads:
            kept_bytes = (KEPT_BYTES if seed is None else _KEPT_BYTES) // self.among
            self.loads[key] = Load(self.workload, requests, self.rate_req_s, key[1], kept_bytes, longer)
        return self.loads[key]

    def __call__(self, job: Job) -> Outcome:
        """Return the outcome of a deployment whose replicas fit.

        Raises:
            KeyboardInterrupt: while it simulated.
        """
        deployment, classes, slo = job.deployment, self.classes, self.classes.slo
        lefts = without(deployment, self.question.spare)
        left = lefts[0]  # as all of them have as many replicas
        loads = [self.load(job.requests, seed, job.longer) for seed in job.seeds or (None,)]
        load = loads[0]
        tables = tuple(stretched(compiled(pool.replica), job.steps) for pool in deployment.pools)
        if job.eased is not None:
            roles = (pool.role for pool in deployment.pools)
            tables = tuple(eased(each, job.eased, role) for each, role in zip(tables, roles, strict=True))
        every = [hopes(left, tables, each.lengths, classes.aimed) for each in loads]
        hope = every[0]
        if job.alone:
            missed = try_rate(left, tables, load, slo, _idle_place(hope, load))
            return self._outcome(Goodput(), None, missed, job, 1)
        short = [i for i, share in _at_best(every).items() if share < classes.aimed[i].attainment]
        if not job.seeds and short:
            i = short[0]
            return _hopeless(dict(hope)[i], classes.aimed[i], job.requests)._replace(binding_class=classes.name(i))
        whole = [ask(deployment, each, slo, tables) for each in loads]
        heard: _Heard = whole
        down = 0
        if left is not deployment:
            heard, down = worst_of([[ask(one, each, slo, tables) for each in loads] for one in lefts], slo)
        asked = pooled([each for each, _ in heard], slo)
        trials = {0: asked}

        def trial(k: int) -> Trial:
            if k not in trials:  # who fails is compared with those who failed on one seed
                tried = [[try_rate(one, tables, each, slo, k) for each in loads] for one in lefts]
                together = [pooled(each, slo, surely=asked.met) for each in tried]
                trials[k] = together[worst(together)]
            return trials[k]

        floor = _idle_place(hope, load)
        if short:  # of further seeds too many requests may not meet it at any rate
            found = Bracket(None, floor, None, trial(floor))
        else:
            near = job.near_req_s or self._guess(load)(left, tables)
            start = _place(near, load) - (_SURER if job.seeds else 0.0)
            found = search(trial, start, floor, asked.target(slo), bool(job.near_req_s), job.width)
        fields = _fields(heard, [result for _, result in whole], asked.met)
        if asked.by_class:
            fields = fields._replace(by_class=_by_class(asked, heard, classes))
        runs = len(trials) * len(loads) * len(lefts) + (0 if whole is heard else len(whole))
        return self._outcome(_goodput(found, load), fields, found.last, job, runs)._replace(down=down)

    def _guess(self, load: Load) -> Guess:
        """The same for all candidates, whose pools are often alike: anew for each, they took a tenth of short runs."""
        if load not in self.guesses:
            self.guesses[load] = Guess(load.lengths, *self.classes.aimed)
        return self.guesses[load]

    def _outcome(self, goodput: Goodput, asked: Asked | None, missed: Trial, job: Job, runs: int) -> Outcome:
        """An outcome, with what the missed trial misses."""
        slo, name = self.classes.aimed[0], ""
        if missed.by_class:
            place, slo, missed = missed.nearest
            name = self.classes.name(place)
        return Outcome(goodput, asked, *binding(missed, slo), job.requests, runs, job.seeds, name)

    def serves_alone(self, deployment: Deployment) -> float:
        """Requests per second that one replica of each pool serves within the SLO; 0 for none.

        Raises:
            KeyboardInterrupt: while it simulated.
        """
        one = resized(deployment, [1 for _ in deployment.pools])
        alone = Evaluator(msgspec.structs.replace(self.question, spare=0), self.workload, self.rate_req_s)
        return alone(Job(0, one, min(_ALONE_REQUESTS, self.workload.requests))).goodput.req_s

    def meets_alone(self, deployment: Deployment, in_flight: float = _ALONE) -> bool:
        """Whether one replica of each pool meets the SLO with so many requests in flight, or at the asked rate.

        Raises:
            KeyboardInterrupt: while it simulated.
        """
        one = resized(deployment, [1 for _ in deployment.pools])
        load, tables, hope = self._alone(one)
        if any(each.attainment < self.classes.aimed[i].attainment for i, each in hope):
            return False
        return try_rate(one, tables, load, self.classes.slo, min(0, _place_of(in_flight, hope, load))).met

    def needs_s(self, low: Floor) -> float:
        """What the latency of a floor comes to on its replica when requests hardly meet: the quantile of the target.

        Raises:
            KeyboardInterrupt: while it simulated.
        """
        one = Deployment(pools=(Pool(replica=low.replica),))
        load, tables, hope = self._alone(one)
        target = self.classes.asked[low.slo_class].attainment
        slo = Slo(**{f"{low.binding}_s": low.limit_s}, attainment=target)
        slos = {i: slo if i == low.slo_class else Slo() for i in range(len(self.classes.aimed))}
        tried = try_rate(one, tables, load, slos if self.classes.several else slo, _idle_place(hope, load))
        return binding(next((each for i, _, each in tried.by_class if i == low.slo_class), tried), slo)[1]

    def _alone(self, one: Deployment) -> tuple[Load, tuple[StepTable, ...], list[tuple[int, Reach]]]:
        """What a short run at the lowest rate takes, and what it may reach at best."""
        load = self.load(min(_ALONE_REQUESTS, self.workload.requests))
        tables = tuple(compiled(pool.replica) for pool in one.pools)
        return load, tables, hopes(one, tables, load.lengths, self.classes.aimed)


def worst_of(every: Sequence[_Heard], slo: Slo | dict[int, Slo]) -> tuple[_Heard, int]:
    """Return the runs of what is left that misses the SLO by most, and its place."""
    place = worst([pooled([trial for trial, _ in heard], slo) for heard in every])
    return every[place], place


def _by_class(asked: Trial, heard: _Heard, classes: Classes) -> dict[str, ClassShare]:
    """What runs at the asked rate say of each class: one of them with its own interval, several pooled."""
    found = {}
    for place, slo, each in asked.by_class:
        first = heard[0][1].slo.by_class[f"{place}"]
        low, high = first.attainment_low or 0.0, first.attainment_high or 1.0
        if len(heard) > 1:
            _, low, high = interval([one for trial, _ in heard for i, _, one in trial.by_class if i == place])
        found[classes.name(place)] = ClassShare(
            attainment=each.attainment, attainment_low=low, attainment_high=high, target=slo.attainment, meets=each.met,
            ttft_s=each.ttft_s, tpot_s=each.tpot_s, e2e_s=each.e2e_s,
        )  # fmt: skip
    return found


def _at_best(every: Sequence[list[tuple[int, Reach]]]) -> dict[int, float]:
    """Of each class the share of requests, of all runs together, that may meet the SLO."""
    counts: dict[int, list[tuple[int, int]]] = {}
    for i, each in (own for hope in every for own in hope):
        counts.setdefault(i, []).append((round(each.attainment * len(each.ttft_s)), len(each.ttft_s)))
    return {i: sum(may for may, _ in own) / sum(of for _, of in own) for i, own in counts.items()}


def _place(rate_req_s: float, load: Load) -> float:
    return math.log(rate_req_s / load.rate_req_s) / math.log(STEP)


def _idle_place(hope: list[tuple[int, Reach]], load: Load) -> int:
    """The place of the grid's lowest rate, below the asked one, at which requests hardly ever meet."""
    return min(-1, _place_of(_ALONE, hope, load))


def _place_of(in_flight: float, hope: list[tuple[int, Reach]], load: Load) -> int:
    """The place of the rate at which so many requests are in flight in the mean, at best."""
    e2e_s = float(np.concatenate([each.e2e_s for _, each in hope]).mean())
    return math.floor(_place(in_flight / e2e_s / (load.lengths.pace * load.lengths.peak), load))


def _goodput(found: Bracket, load: Load) -> Goodput:
    if found.low is None or found.at is None:
        return Goodput()
    return Goodput(load.rate(found.at), load.rate(found.low), None if found.high is None else load.rate(found.high))


def _fields(heard: _Heard, whole: Sequence[Result], meets: bool) -> Asked:
    """What runs at the asked rate say: one of them with its own interval, several pooled, figures as means.

    `heard` are those of the fleet that is judged, `whole` those with every replica up.
    """
    first = heard[0][1].slo
    share, low, high = first.attainment, first.attainment_low, first.attainment_high
    if len(heard) > 1:
        share, low, high = interval([trial for trial, _ in heard])
    judged = [result for _, result in heard]
    attained, measured = (sum(getattr(result.slo, name) for result in whole) for name in ("attained", "measured"))
    return Asked(
        attainment=share,
        attainment_low=low,
        attainment_high=high,
        ttft_p90_s=_mean([result.ttft_s.p90 for result in judged]),
        tpot_p90_s=_mean([result.tpot_s.p90 for result in judged]),
        usd_per_million_output_tokens=_mean([result.cost.usd_per_million_output_tokens for result in whole]),
        joules_per_output_token=_mean([result.energy.joules_per_output_token for result in whole]),
        meets=meets,
        mean_watts=_mean([result.energy.mean_watts for result in whole]),
        energy_kind=whole[0].energy.kind,
        carbon_g_per_million_output_tokens=_mean([result.carbon.grams_per_million_output_tokens for result in whole]),
        embodied_g_per_million_output_tokens=_mean([_embodied(result) for result in whole]),
        idle_joules_per_output_token=_mean([_each(result, result.energy.idle_joules) for result in whole]),
        prefill_joules_per_output_token=_mean([_each(result, result.energy.prefill_joules) for result in whole]),
        decode_joules_per_output_token=_mean([_each(result, result.energy.decode_joules) for result in whole]),
        attainment_all_up=attained / measured if measured else None,
        ttft_s=_mean([trial.ttft_s for trial, _ in heard]),
        tpot_s=_mean([trial.tpot_s for trial, _ in heard]),
    )


def _each(result: Result, joules: float) -> float | None:
    """Joules per output token."""
    return joules / result.tokens.output if result.tokens.output else None


def _embodied(result: Result) -> float | None:
    grams, tokens = result.carbon.embodied_grams, result.tokens.output
    return None if grams is None or not tokens else grams / tokens * 1e6


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _hopeless(hope: Reach, slo: Slo, requests: int) -> Outcome:
    """The latency that exceeds its limit the most even at best, by the quantile that would have to be within it.

    Or that too many requests do not fit.
    """
    if hope.fits < slo.attainment:
        return Outcome(Goodput(), None, "memory", 0.0, 0.0, requests, 0)
    best = (_quantile(hope.ttft_s, slo), hope.tpot_s, _quantile(hope.e2e_s, slo), hope.tpot_s)
    return Outcome(Goodput(), None, *_worst(best, slo), requests, 0)


def _quantile(seconds: Floats, slo: Slo) -> float:
    return float(np.quantile(seconds, slo.attainment))


def binding(missed: Trial, slo: Slo) -> tuple[Binding, float, float]:
    """What a missed trial misses: requests too large for the KV cache, a limit, or only the pace.

    With the seconds it took and those of the limit, where it is one.
    """
    if missed.failed > (1 - slo.attainment) * missed.measured:
        return "memory", 0.0, 0.0
    if not missed.keeps_up and missed.attainment >= slo.attainment:
        return "rate", 0.0, 0.0
    return _worst((missed.ttft_s, missed.tpot_s, missed.e2e_s, missed.itl_s), slo)


def _worst(seconds: tuple[float, float, float, float], slo: Slo) -> tuple[Binding, float, float]:
    """The limit that is exceeded the most, or come nearest to, of (TTFT, TPOT, E2E, ITL)."""
    names: tuple[Binding, ...] = ("ttft", "tpot", "e2e", "itl")
    limits = (*slo.limits(), math.inf if slo.itl_s is None else slo.itl_s)
    worst = max(range(len(names)), key=lambda i: seconds[i] / limits[i])
    return names[worst], seconds[worst], limits[worst]
