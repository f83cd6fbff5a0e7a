"""How many replicas each hour of a day takes, and what that saves against the peak's number all day long.

Each slot is simulated by itself: at its highest rate where the day is a curve, with its own requests where it is a
trace. The fewest copies of all pools whose attainment reaches the target are found by doubling and bisection, from a
guess; then each pool is sized by itself (`sizes.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, cast

import msgspec

from headway.cost.stretched import stretched
from headway.errors import BadInput
from headway.hardware import gpu
from headway.metrics import Result, Slo
from headway.metrics.attainment import Attainment
from headway.metrics.result import EnergyKind
from headway.plan.crew import Crew, Workforce, muster
from headway.plan.evaluate import binding
from headway.plan.setups import goes_by_node
from headway.plan.sizes import apart, fewest, scattered
from headway.plan.slots import Part, parts_of
from headway.plan.space import resized
from headway.plan.trial import Trial, judged, needs_rows
from headway.sim import Deployment, Policies, simulate
from headway.sim.run import check_run, compiled, energy_kind
from headway.sim.trust import uncertainty
from headway.specs import Spec, check_argument, json_text, to_mapping
from headway.units import counted, format_rate, format_seconds
from headway.workload import Workload

__all__ = ["Capacity", "Slot", "capacity"]

SCHEMA = "headway.capacity/1"
HOUR_S = 3600.0
REPLICAS_MAX = 512  # routing looks at each of them
_TOO_LARGE = "too many requests exceed its KV cache or the context"
WARMUP, WARMUP_LEAST = 0.05, 100  # of a slot's requests, and from how many on


class Slot(Spec, frozen=True, kw_only=True):
    """A part of the day: what arrives, and the fewest replicas of all pools that serve it.

    `pools` has their number by pool. Attainment with its 95 % interval, and the power of all GPUs, are those of a
    simulation at `rate_req_s`, the highest rate of the slot; of a trace that of the densest stretch simulated. Where
    classes have SLOs of their own, attainment is that of `slo_class`, the nearest to missing its target.
    `usd_per_hour` is None without a price. `static_mean_watts` is with the peak's replicas. None where no number
    serves it: then `misses` says what the most that were tried miss, of `slo_class`.
    """

    start_s: float
    end_s: float
    rate_req_s: float
    replicas: int | None
    pools: tuple[int, ...] | None
    gpus: int | None
    attainment: float | None
    attainment_low: float | None
    attainment_high: float | None
    target: float
    slo_class: str = ""
    usd_per_hour: float | None
    mean_watts: float | None
    static_mean_watts: float | None = None
    misses: str = ""


class Capacity(Spec, frozen=True, kw_only=True):
    """A day's replicas slot by slot, in sum, and beside the peak's numbers all day.

    `peak_pools` are the most of each pool in any slot. `peak_by_model` is what the peak would take at both ends of the
    cost model's interval; None where none serves it. `slos`: by class, where these have their own in place of `slo`.
    Totals are None where a slot cannot be served; dollars too where a GPU has no price. kWh are those of the GPUs;
    `energy_kind` says how they and the watts came about.
    """

    schema: str = SCHEMA
    feasible: bool
    message: str
    deployment: dict[str, Any]
    workload: dict[str, Any]
    slo: Slo
    slos: dict[str, Slo]
    seed: int
    slots: list[Slot]
    peak_replicas: int | None
    peak_pools: tuple[int, ...] | None
    peak_by_model: tuple[int | None, int | None]
    gpu_hours: float | None
    static_gpu_hours: float | None
    usd: float | None
    static_usd: float | None
    kwh: float | None
    static_kwh: float | None
    energy_kind: EnergyKind = "estimated"

    def to_json(self, indent: int = 2) -> str:
        """Return the schema headway.capacity/1 as JSON text."""
        return json_text(to_mapping(self, defaults=True), indent)


class _Job(NamedTuple):
    """A part by its place: the fewest replicas that serve it, or a run with so many; steps `factor` times as long."""

    place: int
    counts: tuple[int, ...] | None = None
    factor: float = 1.0


class _Found(NamedTuple):
    """A run with so many replicas of each pool, and what it misses; without any no number tried met the SLO."""

    counts: tuple[int, ...] | None = None
    attainment: float | None = None
    low: float | None = None
    high: float | None = None
    slo_class: int = 0
    watts: float | None = None
    misses: str = ""


def capacity(
    deployment: Deployment,
    made: Workload,
    slo: Slo | dict[int, Slo],
    *,
    curve: Sequence[float] | None = None,
    slot_s: float | None = None,
    usd_per_gpu_hour: Mapping[str, float] | None = None,
    seed: int = 0,
    workers: Workforce = None,
    progress: Callable[[int, int], None] | None = None,
) -> Capacity:
    """Return the replicas that each slot of a day takes for the SLO's attainment, and what they save.

    Every pool is sized by itself, as far as that is cheaper; three and more pools of one model keep their proportion.

    Args:
        deployment: what is copied; of its counts nothing is left but the proportion of three and more pools of a model.
        made: lengths, prefixes and classes; its arrivals say what a day is: diurnal ones, or a trace's with times.
        slo: limits, and the share of requests that must meet them in every slot; of classes by their numbers each its
            own.
        curve: rates of the slots in requests/s in place of the workload's arrivals; a day is cut into as many.
        slot_s: length of a slot; default an hour of a day, or a 24th of a trace.
        usd_per_gpu_hour: by kind of GPU, of all of them, in place of the deployment's price, which is of its mixture.
        seed: of every random stream.
        workers: processes to use, or a `RayCluster`; the answer does not depend on it. Default: one per core.
        progress: called with simulations' slots done and planned.

    Raises:
        BadInput: an argument of another type, no day in it, no limit, a scaling policy, or a rate that is negative.
        KeyboardInterrupt: while it simulated.
    """
    check_run(deployment, made, slo)
    check_argument("usd_per_gpu_hour", usd_per_gpu_hour, dict[str, float] | None, '{"h100-sxm": 2.5}')
    check_argument("seed", seed, int)
    slos = (slo,) if isinstance(slo, Slo) else tuple((slo or {}).values())
    if all(each.limits() == (math.inf,) * 3 and each.itl_s is None for each in slos):
        raise BadInput("the SLO limits nothing, so one replica meets it: give a TTFT, TPOT, ITL or E2E limit")
    if deployment.policies.scale != "fixed":
        raise BadInput(f"policies.scale={deployment.policies.scale}: capacity says itself how many; leave it out")
    parts = parts_of(made, slos, curve, slot_s, seed)
    unit, usd = _unit(deployment), usd_per_gpu_hour
    crew: Crew[_Job, _Found] = muster(_Sizer, (unit, parts, slo, seed, _prices(unit, usd)), workers)
    low, high = uncertainty(deployment).tpot
    try:
        sized = _answers(crew, [_Job(place) for place in range(len(parts))], 0, 2 * len(parts) + 2, progress)
        peak = max(range(len(parts)), key=lambda i: (_gpus(unit, sized[i].counts), parts[i].rate_req_s))
        most = _most([found.counts for found in sized])
        jobs = [_Job(peak, factor=low), _Job(peak, factor=high)]
        jobs += [_Job(place, most) for place in range(len(parts)) if most is not None]
        fast, slow, *static = _answers(crew, jobs, len(parts), len(parts) + len(jobs), progress)
    finally:
        crew.close()
    slots = [_slot(unit, made, slo, part, found, usd) for part, found in zip(parts, sized, strict=True)]
    watts = [found.watts for found in static] or [None] * len(slots)
    slots = [msgspec.structs.replace(slot, static_mean_watts=w) for slot, w in zip(slots, watts, strict=True)]
    ends = tuple(None if each.counts is None else sum(each.counts) for each in (fast, slow))
    static_usd = None if most is None else _usd(unit, most, usd)
    return _summed(unit, made, slo, seed, slots, most, static_usd, (ends[0], ends[1]))


def _answers(
    crew: Crew[_Job, _Found],
    jobs: list[_Job],
    done: int,
    planned: int,
    progress: Callable[[int, int], None] | None,
) -> list[_Found]:
    found: dict[int, _Found] = {}
    for place, answer in crew.answers(jobs):
        found[place] = answer
        if progress is not None:
            progress(done + len(found), planned)
    return [found[place] for place in range(len(jobs))]


class _Runs:
    """Runs with so many replicas of each pool, each once, and whether they meet the SLO."""

    def __init__(self, run: Callable[[tuple[int, ...]], tuple[bool, _Found]]) -> None:
        self._known: dict[tuple[int, ...], tuple[bool, _Found]] = {}
        self._run = run

    def met(self, counts: tuple[int, ...]) -> bool:
        """Whether so many do."""
        if counts not in self._known:
            self._known[counts] = self._run(counts)
        return self._known[counts][0]

    def __getitem__(self, counts: tuple[int, ...]) -> _Found:
        """What was found with so many."""
        self.met(counts)
        return self._known[counts][1]

    def missed(self) -> list[tuple[int, ...]]:
        """Those known not to do."""
        return [counts for counts, (met, _) in self._known.items() if not met]


class _Sizer:
    """Finds the fewest replicas that serve a part of the day; the same in whatever process and order."""

    def __init__(
        self, unit: Deployment, parts: list[Part], slo: Slo | dict[int, Slo], seed: int, prices: list[float]
    ) -> None:
        self.unit, self.parts, self.slo, self.seed, self.prices = unit, parts, slo, seed, prices
        self.ratio = tuple(pool.count for pool in unit.pools)
        self.most = max(1, REPLICAS_MAX // sum(self.ratio))
        self.groups = [
            [place for place, pool in enumerate(unit.pools) if pool.model == model] for model in unit.models
        ]
        self.by_node = len(unit.pools) == 2 and len(unit.models) == 1 and goes_by_node(unit, unit.models[0])
        self.per_copy_req_s: float | None = None

    def __call__(self, job: _Job) -> _Found:
        """Return the run of the fewest replicas, or of those asked for.

        Raises:
            KeyboardInterrupt: while it simulated.
        """
        part = self.parts[job.place]
        if not part.rate_req_s:
            return self._idle(job.counts or tuple(1 for _ in self.ratio))
        runs = _Runs(lambda counts: self._run(self.unit, part, counts, job.factor))
        if job.counts is not None:
            return runs[job.counts]
        if not self.by_node:
            return self._cheapest(runs, part, job.factor)
        near = _Runs(lambda counts: self._run(_near(self.unit), part, counts, job.factor))
        found = self._cheapest(near, part, job.factor)
        if found.counts is None:
            return found
        counts = scattered(runs.met, found.counts, near.missed(), self.prices, REPLICAS_MAX)
        if counts is None:
            most = runs[max(runs.missed(), key=sum)]
            return _Found(slo_class=most.slo_class, misses=most.misses)
        return runs[counts]

    def _cheapest(self, runs: _Runs, part: Part, factor: float) -> _Found:
        """The run of the cheapest numbers, where more replicas never serve less."""
        copies = fewest(lambda n: runs.met(self._copies(n)), self._guess(part, factor), self.most)
        if not copies:
            most = runs[self._copies(self.most)]
            return _Found(slo_class=most.slo_class, misses=most.misses)
        return runs[apart(runs.met, self._copies(copies), self.prices, self.groups)]

    def _copies(self, copies: int) -> tuple[int, ...]:
        return tuple(copies * count for count in self.ratio)

    def _run(self, unit: Deployment, part: Part, counts: tuple[int, ...], factor: float) -> tuple[bool, _Found]:
        result = self._simulated(resized(unit, list(counts)), part, factor)
        trial, slo, slo_class = judged(result, self.slo), self.slo, 0
        met, seen = trial.met, cast(Attainment, result.slo)
        if not isinstance(slo, Slo):
            slo_class, slo, trial = trial.nearest
            seen = result.slo.by_class[f"{slo_class}"]
        misses = "" if met else _misses(trial, slo, sum(counts))
        watts = result.energy.mean_watts
        return met, _Found(counts, seen.attainment, seen.attainment_low, seen.attainment_high, slo_class, watts, misses)

    def _simulated(self, deployment: Deployment, part: Part, factor: float) -> Result:
        tables = tuple(stretched(compiled(pool.replica), factor) for pool in deployment.pools)
        warmup = WARMUP if part.workload.requests >= WARMUP_LEAST else 0.0
        rows = needs_rows(self.slo)
        result = simulate(
            deployment, part.workload, slo=self.slo, seed=self.seed, records=rows, warmup=warmup, tables=tables
        )
        if "stopped" in result.provenance:
            raise KeyboardInterrupt
        return result

    def _idle(self, counts: tuple[int, ...]) -> _Found:
        """Nothing arrives: what is there waits."""
        waiting = [compiled(pool.replica).idle_watts for pool in self.unit.pools]
        return _Found(counts, watts=sum(watts * count for watts, count in zip(waiting, counts, strict=True)))

    def _guess(self, part: Part, factor: float) -> int:
        """About how many copies it takes: by what one of them gets done when the busiest slot is all its own."""
        if self.per_copy_req_s is None:
            busiest = max(self.parts, key=lambda each: each.rate_req_s)
            swamped = self._simulated(self.unit, busiest, 1.0)
            self.per_copy_req_s = swamped.throughput.requests_per_s or busiest.rate_req_s
        return max(1, min(math.ceil(part.rate_req_s * factor / self.per_copy_req_s), self.most))


def _misses(trial: Trial, slo: Slo, replicas: int) -> str:
    """``with 512 replicas TTFT comes to 23 ms against 1 ms``."""
    what, seconds, limit_s = binding(trial, slo)
    if what == "memory":
        return _TOO_LARGE
    if what == "rate":
        return f"{counted(replicas, 'replica')} cannot keep up"
    comes = f"comes to {format_seconds(seconds)} against {format_seconds(limit_s)}"
    return f"with {counted(replicas, 'replica')} {what.upper()} {comes}"


# --- the sum ---


def _unit(deployment: Deployment) -> Deployment:
    """The smallest deployment whose pools have these proportions."""
    divisor = reduce(math.gcd, (pool.count for pool in deployment.pools))
    return resized(deployment, [pool.count // divisor for pool in deployment.pools])


def _near(unit: Deployment) -> Deployment:
    """The deployment as if all replicas stood on one node, where more of them never serve less."""
    policies = unit.policies
    if policies.route == "same-node":
        policies = msgspec.structs.replace(policies, route=Policies().route)
    return msgspec.structs.replace(unit, policies=policies, kv_link=unit.links(unit.models[0])[1])


def _prices(unit: Deployment, given: Mapping[str, float] | None) -> list[float]:
    """What a replica of each pool costs, in proportion: by its GPUs where one of these has no price of its own."""
    kinds = [pool.replica.gpu for pool in unit.pools]
    usd = [given[kind] if given else gpu(kind).usd_per_hour for kind in kinds]
    alike = None in usd or 0 in usd or (not given and unit.prices.usd_per_gpu_hour is not None)
    return [pool.replica.gpus * (1.0 if alike else each or 0.0) for pool, each in zip(unit.pools, usd, strict=True)]


def _gpus(unit: Deployment, counts: tuple[int, ...] | None) -> float:
    """GPUs of so many replicas; infinite where no number does."""
    return math.inf if counts is None else resized(unit, list(counts)).gpus


def _usd(unit: Deployment, counts: tuple[int, ...], given: Mapping[str, float] | None) -> float | None:
    """Dollars per hour of so many replicas."""
    if given:
        pools = zip(unit.pools, counts, strict=True)
        return sum(given[pool.replica.gpu] * pool.replica.gpus * count for pool, count in pools)
    return resized(unit, list(counts)).usd_per_hour


def _most(found: list[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The most of each pool in any slot; None where one cannot be served."""
    known = [counts for counts in found if counts is not None]
    return tuple(map(max, zip(*known, strict=True))) if len(known) == len(found) else None


def _slot(
    unit: Deployment,
    made: Workload,
    slo: Slo | dict[int, Slo],
    part: Part,
    found: _Found,
    usd: Mapping[str, float] | None,
) -> Slot:
    counts = found.counts
    whose, name = slo if isinstance(slo, Slo) else slo[found.slo_class], ""
    if not isinstance(slo, Slo) and (found.misses or found.attainment is not None):
        name = made.spec.classes[found.slo_class].name
    return Slot(
        start_s=part.start_s,
        end_s=part.end_s,
        rate_req_s=part.rate_req_s,
        replicas=None if counts is None else sum(counts),
        pools=counts,
        gpus=None if counts is None else resized(unit, list(counts)).gpus,
        attainment=found.attainment,
        attainment_low=found.low,
        attainment_high=found.high,
        target=whose.attainment,
        slo_class=name,
        usd_per_hour=None if counts is None else _usd(unit, counts, usd),
        mean_watts=found.watts,
        misses=found.misses,
    )


def _summed(
    unit: Deployment,
    made: Workload,
    slo: Slo | dict[int, Slo],
    seed: int,
    slots: list[Slot],
    most: tuple[int, ...] | None,
    static_usd: float | None,
    ends: tuple[int | None, int | None],
) -> Capacity:
    hours = [(slot.end_s - slot.start_s) / HOUR_S for slot in slots]
    gpu_hours = _times([slot.gpus for slot in slots], hours)
    static = None if most is None else _gpus(unit, most) * sum(hours)
    by_class = {} if isinstance(slo, Slo) else {made.spec.classes[i].name: each for i, each in slo.items()}
    return Capacity(
        feasible=most is not None,
        message=_message(unit, slots, gpu_hours, static),
        deployment=to_mapping(unit),
        workload=to_mapping(made.spec),
        slo=slo if isinstance(slo, Slo) else next(iter(slo.values())),
        slos=by_class,
        seed=seed,
        slots=slots,
        peak_replicas=None if most is None else sum(most),
        peak_pools=most,
        peak_by_model=ends,
        gpu_hours=gpu_hours,
        static_gpu_hours=static,
        usd=_times([slot.usd_per_hour for slot in slots], hours),
        static_usd=None if static_usd is None else static_usd * sum(hours),
        kwh=_kilo(_times([slot.mean_watts for slot in slots], hours)),
        static_kwh=_kilo(_times([slot.static_mean_watts for slot in slots], hours)),
        energy_kind=energy_kind(compiled(pool.replica) for pool in unit.pools),
    )


def _times(values: Sequence[float | None], hours: list[float]) -> float | None:
    """The sum over the slots; None where one is not known."""
    known = [each for each in values if each is not None]
    return sum(each * h for each, h in zip(known, hours, strict=True)) if len(known) == len(values) else None


def _kilo(value: float | None) -> float | None:
    return None if value is None else value / 1000


def _message(unit: Deployment, slots: list[Slot], gpu_hours: float | None, static: float | None) -> str:
    if gpu_hours is None or static is None:
        lost = [slot for slot in slots if slot.replicas is None]
        least = min(lost, key=lambda slot: slot.rate_req_s)
        whose = f" of {least.slo_class}" if least.slo_class else ""
        return (
            f"{len(lost)} of {counted(len(slots), 'slot')} cannot be served: at {format_rate(least.rate_req_s)} up to "
            f"{REPLICAS_MAX} replicas leave attainment{whose} below {least.target:.1%}: {least.misses}. "
            + _otherwise(unit, least)
        )
    numbers = [slot.replicas or 0 for slot in slots]
    mine, peak = (f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}" for hours in (gpu_hours, static))
    few, most = min(numbers), max(numbers)
    if len({slot.pools for slot in slots}) == 1:
        said = f"{counted(most, 'replica')} all day: {mine} GPU-hours, and no slot does with fewer."
    else:
        number = counted(most, "replica") if few == most else f"{few} to {counted(most, 'replica')}"
        said = (
            f"{number} over the day: {mine} GPU-hours where the peak's number all the time takes "
            f"{peak}, {1 - gpu_hours / static:.0%} fewer."
        )
    return " ".join([said, *_held(unit, slots)])


def _otherwise(unit: Deployment, slot: Slot) -> str:
    """What to try where no number of replicas serves a slot."""
    if slot.misses == _TOO_LARGE:
        return "More replicas do not help: ask for shorter requests, another GPU or layout, or a longer context."
    said = "Where a replica alone misses the limits, more of them do not help: ask for longer limits, another layout "
    said += "or GPU, or, where prompts share their beginnings, a policy that keeps these together, as "
    return f"{said}route=prefix-affinity.{_far(unit)}"


def _far(unit: Deployment) -> str:
    """What to try where KV takes a slow network."""
    if not any(goes_by_node(unit, name) for name in unit.models) or unit.policies.route == "same-node":
        return ""
    said = " Replicas on several nodes send KV over a slow network: route=same-node keeps it on its node"
    if unit.policies.route != "least-requests":
        return f"{said}."
    return f"{said}; route=round-robin takes idle replicas in turns, not the first of them, and so all of their links."


def _held(unit: Deployment, slots: list[Slot]) -> list[str]:
    """What makes the numbers larger than they might be, in sentences."""
    said = []
    if not all(slot.rate_req_s for slot in slots):
        gpus = sum(pool.replica.gpus for pool in unit.pools)
        what = "replica" if len(unit.pools) == 1 else "replica of each pool"
        its = "its GPU" if gpus == 1 else f"its {counted(gpus, 'GPU')}"
        said.append(f"Where nothing arrives, one {what} stays up with {its}.")
    for model in unit.models:
        counts = [pool.count for pool in unit.pools if pool.model == model]
        if len(counts) > 2:
            ratio = ":".join(map(str, counts))
            said.append(f"The pools of {model} grow together, as {ratio}: sized apart they may take fewer.")
    return said
