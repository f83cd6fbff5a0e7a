"""How many replicas each hour of a day takes, and what that saves against the peak's number all day long.

Each slot is simulated by itself: at its highest rate where the day is a curve, with its own requests where it is a
trace. The fewest replicas whose attainment reaches the target are found by doubling and bisection, from a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import msgspec

from headway.cost.stretched import stretched
from headway.errors import BadInput
from headway.metrics import Result, Slo
from headway.plan.crew import Crew, Workforce, muster
from headway.plan.remedy import copied
from headway.plan.slots import Part, parts_of
from headway.plan.space import resized
from headway.plan.trial import judged
from headway.sim import Deployment, simulate
from headway.sim.run import compiled
from headway.sim.trust import uncertainty
from headway.specs import Spec, json_text, to_mapping
from headway.units import format_rate
from headway.workload import Workload

__all__ = ["Capacity", "Slot", "capacity"]

SCHEMA = "headway.capacity/1"
HOUR_S = 3600.0
REPLICAS_MAX = 512  # routing looks at each of them
WARMUP, WARMUP_LEAST = 0.05, 100  # of a slot's requests, and from how many on


class Slot(Spec, frozen=True, kw_only=True):
    """A part of the day: what arrives, and the fewest replicas of all pools that serve it.

    `pools` has their number by pool. Attainment with its 95 % interval, and the power of all GPUs, are those of a
    simulation at `rate_req_s`, the highest rate of the slot; of a trace that of the densest stretch simulated.
    `static_mean_watts` is with the peak's replicas. None where no number serves it.
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
    mean_watts: float | None
    static_mean_watts: float | None = None


class Capacity(Spec, frozen=True, kw_only=True):
    """A day's replicas slot by slot, in sum, and beside the peak's number all day.

    `peak_by_model` is what the peak would take at both ends of the cost model's interval; None where none serves it.
    Totals are None where a slot cannot be served; dollars too where a GPU has no price. kWh are those of the GPUs.
    """

    schema: str = SCHEMA
    feasible: bool
    message: str
    deployment: dict[str, Any]
    workload: dict[str, Any]
    slo: Slo
    seed: int
    slots: list[Slot]
    peak_replicas: int | None
    peak_by_model: tuple[int | None, int | None]
    gpu_hours: float | None
    static_gpu_hours: float | None
    usd: float | None
    static_usd: float | None
    kwh: float | None
    static_kwh: float | None

    def to_json(self, indent: int = 2) -> str:
        """Return the schema headway.capacity/1 as JSON text."""
        return json_text(to_mapping(self, defaults=True), indent)


class _Job(NamedTuple):
    """A part by its place: the fewest copies that serve it, or a run with so many; steps `factor` times as long."""

    place: int
    copies: int | None = None
    factor: float = 1.0


class _Found(NamedTuple):
    """A run with so many copies of the unit; without any no number up to the bound met the SLO."""

    copies: int | None
    attainment: float | None
    low: float | None
    high: float | None
    watts: float | None


def capacity(
    deployment: Deployment,
    made: Workload,
    slo: Slo,
    *,
    curve: Sequence[float] | None = None,
    slot_s: float | None = None,
    seed: int = 0,
    workers: Workforce = None,
    progress: Callable[[int, int], None] | None = None,
) -> Capacity:
    """Return the replicas that each slot of a day takes for the SLO's attainment, and what they save.

    Several pools grow together, in the proportion that the deployment has.

    Args:
        deployment: what is copied; its counts give the proportion of its pools alone.
        made: lengths, prefixes and classes; its arrivals say what a day is: diurnal ones, or a trace's with times.
        slo: limits, and the share of requests that must meet them in every slot.
        curve: rates of the slots in requests/s in place of the workload's arrivals; a day is cut into as many.
        slot_s: length of a slot; default an hour of a day, or a 24th of a trace.
        seed: of every random stream.
        workers: processes to use, or a `RayCluster`; the answer does not depend on it. Default: one per core.
        progress: called with simulations' slots done and planned.

    Raises:
        BadInput: no day in it, no limit, a scaling policy, or a rate that is negative.
        KeyboardInterrupt: while it simulated.
    """
    if slo.limits() == (math.inf,) * 3 and slo.itl_s is None:
        raise BadInput("the SLO limits nothing, so one replica meets it: give a TTFT, TPOT, ITL or E2E limit")
    if deployment.policies.scale != "fixed":
        raise BadInput(f"policies.scale={deployment.policies.scale}: capacity says itself how many; leave it out")
    parts = parts_of(made, slo, curve, slot_s, seed)
    unit = _unit(deployment)
    crew: Crew[_Job, _Found] = muster(_Sizer, (unit, parts, slo, seed), workers)
    low, high = uncertainty(deployment).tpot
    try:
        sized = _answers(crew, [_Job(place) for place in range(len(parts))], 0, 2 * len(parts) + 2, progress)
        peak = max(range(len(parts)), key=lambda i: (sized[i].copies or REPLICAS_MAX + 1, parts[i].rate_req_s))
        copies = sized[peak].copies
        jobs = [_Job(peak, factor=low), _Job(peak, factor=high)]
        jobs += [_Job(place, copies) for place in range(len(parts)) if copies is not None]
        fast, slow, *static = _answers(crew, jobs, len(parts), len(parts) + len(jobs), progress)
    finally:
        crew.close()
    slots = [_slot(unit, part, found) for part, found in zip(parts, sized, strict=True)]
    watts = [found.watts for found in static] or [None] * len(slots)
    slots = [msgspec.structs.replace(slot, static_mean_watts=w) for slot, w in zip(slots, watts, strict=True)]
    return _summed(unit, made, slo, seed, slots, (_replicas(unit, fast), _replicas(unit, slow)))


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


class _Sizer:
    """Finds the fewest copies of a unit that serve a part of the day; the same in whatever process and order."""

    def __init__(self, unit: Deployment, parts: list[Part], slo: Slo, seed: int) -> None:
        self.unit, self.parts, self.slo, self.seed = unit, parts, slo, seed
        self.most = max(1, REPLICAS_MAX // sum(pool.count for pool in unit.pools))
        self.per_copy_req_s: float | None = None

    def __call__(self, job: _Job) -> _Found:
        """Return the run of the fewest copies, or of those asked for.

        Raises:
            KeyboardInterrupt: while it simulated.
        """
        part = self.parts[job.place]
        if not part.rate_req_s:
            return self._idle(job.copies or 1)
        runs: dict[int, tuple[bool, _Found]] = {0: (False, _Found(None, None, None, None, None))}

        def met(copies: int) -> bool:
            if copies not in runs:
                runs[copies] = self._run(part, copies, job.factor)
            return runs[copies][0]

        if job.copies is not None:
            met(job.copies)
            return runs[job.copies][1]
        return runs[fewest(met, self._guess(part, job.factor), self.most)][1]

    def _run(self, part: Part, copies: int, factor: float) -> tuple[bool, _Found]:
        result = self._simulated(copied(self.unit, copies), part, factor)
        seen = result.slo
        found = _Found(copies, seen.attainment, seen.attainment_low, seen.attainment_high, result.energy.mean_watts)
        return judged(result, self.slo).met, found

    def _simulated(self, deployment: Deployment, part: Part, factor: float) -> Result:
        tables = tuple(stretched(compiled(pool.replica), factor) for pool in deployment.pools)
        warmup = WARMUP if part.workload.requests >= WARMUP_LEAST else 0.0
        result = simulate(
            deployment, part.workload, slo=self.slo, seed=self.seed, records=False, warmup=warmup, tables=tables
        )
        if "stopped" in result.provenance:
            raise KeyboardInterrupt
        return result

    def _idle(self, copies: int) -> _Found:
        """Nothing arrives: what is there waits."""
        watts = sum(compiled(pool.replica).idle_watts * pool.count for pool in self.unit.pools)
        return _Found(copies, None, None, None, copies * watts)

    def _guess(self, part: Part, factor: float) -> int:
        """About how many copies it takes: by what one of them gets done when the busiest slot is all its own."""
        if self.per_copy_req_s is None:
            busiest = max(self.parts, key=lambda each: each.rate_req_s)
            swamped = self._simulated(self.unit, busiest, 1.0)
            self.per_copy_req_s = swamped.throughput.requests_per_s or busiest.rate_req_s
        return max(1, min(math.ceil(part.rate_req_s * factor / self.per_copy_req_s), self.most))


def fewest(met: Callable[[int], bool], start: int, most: int) -> int:
    """Return the least number from 1 to `most` that is `met`, or 0 where none is; what is met stays so with more.

    Strides from `start` double until the end lies between two numbers tried, then it is bisected.
    """
    stride = 1
    if met(start):
        low, high = 0, start
        while high > 1 and low == 0:
            tried = max(1, high - stride)
            if met(tried):
                high, stride = tried, 2 * stride
            else:
                low = tried
    else:
        low, high = start, 0
        while not high:
            if low >= most:
                return 0
            tried = min(low + stride, most)
            if met(tried):
                high = tried
            else:
                low, stride = tried, 2 * stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return high


# --- the sum ---


def _unit(deployment: Deployment) -> Deployment:
    """The smallest deployment whose pools have these proportions."""
    divisor = reduce(math.gcd, (pool.count for pool in deployment.pools))
    return resized(deployment, [pool.count // divisor for pool in deployment.pools])


def _replicas(unit: Deployment, found: _Found) -> int | None:
    return None if found.copies is None else found.copies * sum(pool.count for pool in unit.pools)


def _slot(unit: Deployment, part: Part, found: _Found) -> Slot:
    copies = found.copies
    return Slot(
        start_s=part.start_s,
        end_s=part.end_s,
        rate_req_s=part.rate_req_s,
        replicas=_replicas(unit, found),
        pools=None if copies is None else tuple(copies * pool.count for pool in unit.pools),
        gpus=None if copies is None else copies * unit.gpus,
        attainment=found.attainment,
        attainment_low=found.low,
        attainment_high=found.high,
        mean_watts=found.watts,
    )


def _summed(
    unit: Deployment, made: Workload, slo: Slo, seed: int, slots: list[Slot], ends: tuple[int | None, int | None]
) -> Capacity:
    hours = [(slot.end_s - slot.start_s) / HOUR_S for slot in slots]
    gpus = [slot.gpus for slot in slots if slot.gpus is not None]
    served = len(gpus) == len(slots)
    gpu_hours = sum(g * h for g, h in zip(gpus, hours, strict=True)) if served else None
    static = max(gpus) * sum(hours) if served else None
    each = unit.priced().usd_per_gpu_hour
    return Capacity(
        feasible=served,
        message=_message(unit, slots, slo, gpu_hours, static),
        deployment=to_mapping(unit),
        workload=to_mapping(made.spec),
        slo=slo,
        seed=seed,
        slots=slots,
        peak_replicas=max(slot.replicas or 0 for slot in slots) if served else None,
        peak_by_model=ends,
        gpu_hours=gpu_hours,
        static_gpu_hours=static,
        usd=None if each is None or gpu_hours is None else each * gpu_hours,
        static_usd=None if each is None or static is None else each * static,
        kwh=_kwh([slot.mean_watts for slot in slots], hours),
        static_kwh=_kwh([slot.static_mean_watts for slot in slots], hours),
    )


def _kwh(watts: list[float | None], hours: list[float]) -> float | None:
    known = [each for each in watts if each is not None]
    return sum(w * h for w, h in zip(known, hours, strict=True)) / 1000 if len(known) == len(watts) else None


def _message(unit: Deployment, slots: list[Slot], slo: Slo, gpu_hours: float | None, static: float | None) -> str:
    if gpu_hours is None or static is None:
        lost = [slot for slot in slots if slot.replicas is None]
        least = min(lost, key=lambda slot: slot.rate_req_s)
        return (
            f"{len(lost)} of {len(slots)} slots cannot be served: at {format_rate(least.rate_req_s)} up to "
            f"{REPLICAS_MAX} replicas leave attainment below {slo.attainment:.1%}. Where a replica alone misses the "
            "limits, more of them do not help: ask for longer limits, another layout or GPU, or, where prompts share "
            "their beginnings, a policy that keeps these together, as route=prefix-affinity."
        )
    numbers = [slot.replicas or 0 for slot in slots]
    mine, peak = (f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}" for hours in (gpu_hours, static))
    few, most = min(numbers), max(numbers)
    if few == most:
        said = f"{most} replica{'' if most == 1 else 's'} all day: {mine} GPU-hours, and no slot does with fewer."
    else:
        said = (
            f"{few} to {most} replicas over the day: {mine} GPU-hours where the peak's number all the time takes "
            f"{peak}, {1 - gpu_hours / static:.0%} fewer."
        )
    return " ".join([said, *_held(unit, slots)])


def _held(unit: Deployment, slots: list[Slot]) -> list[str]:
    """What makes the numbers larger than they might be, in sentences."""
    said = []
    if not all(slot.rate_req_s for slot in slots):
        gpus = "its GPU" if unit.gpus == 1 else f"its {unit.gpus} GPUs"
        what = "replica" if sum(pool.count for pool in unit.pools) == 1 else "of the smallest deployment"
        said.append(f"Where nothing arrives, one {what} stays up with {gpus}.")
    if len(unit.pools) > 1:
        ratio = ":".join(str(pool.count) for pool in unit.pools)
        said.append(f"The pools grow together, as {ratio}, for the peak too: sized one by one they may take fewer.")
    return said
