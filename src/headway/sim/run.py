"""`simulate`: builds the cluster that a deployment describes, lets it run, and sums up what happened."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import msgspec

from headway.cost import Replica, StepTable, compile_replica, kv_transfer_bytes
from headway.engine import Engine, Gaps, Lockstep, StepLaw, WorkDone
from headway.errors import BadInput
from headway.metrics import Counters, Histogram, Result, Slo, Tally, summarize, warmup_requests
from headway.metrics.by_model import by_model
from headway.metrics.records import Records
from headway.metrics.result import EnergyKind, ScaleChange, Scaling
from headway.metrics.slo import check_slos
from headway.model import model
from headway.policies import Policy, policy
from headway.sim.arrivals import Arrivals
from headway.sim.cluster import Cluster, Handoff
from headway.sim.deployment import Deployment
from headway.sim.energy import pool_joules
from headway.sim.interrupt import CtrlC
from headway.sim.recorder import Recorder
from headway.sim.scaling import Scaler
from headway.sim.trust import uncertainty
from headway.specs import check_argument, to_mapping
from headway.state import ClusterState, PoolState
from headway.workload import Workload

Progress = Callable[[int, int | None], None]

LOOK_EVERY_S = 0.02  # at signals and progress
MOST_EVENTS = 20_000  # between two looks: about 10 ms compiled
BINS = (Histogram.BINS, Histogram.MIN_S, Histogram.INV_LOG_GROWTH)
SYNTHETIC_WARMUP = 0.05


def check_run(deployment: object, workload: object, slo: object, of: str = "") -> None:
    """Refuse what no simulation can begin with; `of` comes before the names of the arguments.

    Raises:
        BadInput: with the argument's name, what came, what is expected.
    """
    check_argument(f"{of}deployment", deployment, Deployment, "Deployment(pools=[Pool(replica=Replica(...))])")
    check_argument(f"{of}workload", workload, Workload, 'headway.workload.workload("chat").at_rate(4)')
    if slo is not None:
        check_slos(f"{of}slo", slo)


def simulate(
    deployment: Deployment,
    workload: Workload,
    *,
    slo: Slo | dict[int, Slo] | None = None,
    seed: int = 0,
    records: bool = True,
    warmup: float | None = None,
    progress: Progress | None = None,
    tables: tuple[StepTable, ...] | None = None,
) -> Result:
    """Serve the workload with the deployment in virtual time.

    Ctrl-C ends the run: the result covers what has happened by then, and its provenance says "stopped".

    Args:
        deployment: what serves.
        workload: what arrives; deterministic per `seed`.
        slo: limits that attainment is judged by, for all or per SLO class.
        seed: of every random stream.
        records: keep a row per request; without, memory does not grow with the number of requests. A run of more than
            a million that was interrupted comes without.
        warmup: share of the requests left out of the measurement, the first ones; default 0.05 for synthetic open
            loops, 0 for traces and closed loops.
        progress: called now and then with requests ended and, when known, requests in all.
        tables: step laws to use instead of the cost model's, one per pool.

    Raises:
        BadInput: an argument of another type, or something in the deployment, the workload or a policy's answer that
            cannot be.
        DoesNotFit: a model that its GPUs cannot hold.
    """
    check_run(deployment, workload, slo)
    check_argument("seed", seed, int)
    check_argument("warmup", warmup, float | None)
    with CtrlC() as ctrl_c:
        warmup = _warmup(workload) if warmup is None else warmup
        expected = workload.requests
        first_measured = warmup_requests(expected or 0, warmup)
        recorder = Recorder(records, expected or 0, first_measured, _limits(slo), BINS)
        error = uncertainty(deployment) if tables is None else None
        tables = tables or tuple(compiled(pool.replica) for pool in deployment.pools)
        cluster, pools = build(deployment, workload, tables, recorder, seed)
        stopped = _serve(cluster, expected, progress, ctrl_c)
        try:
            result = _sum_up(
                deployment, workload, cluster, pools, tables, slo=slo, warmup=warmup, seed=seed, stopped=stopped
            )
        except ValueError:  # the counts contradict each other: a second Ctrl-C came in the midst of an event
            if ctrl_c.came < 2:
                raise
            raise KeyboardInterrupt from None
    told = by_model(result.records, _models_by_pool(deployment), slo)
    result = msgspec.structs.replace(result, uncertainty=error, scaling=_scaling(deployment, cluster), by_model=told)
    if ctrl_c.came and not stopped:
        return msgspec.structs.replace(result, provenance=result.provenance | {"stopped": "interrupted at its end"})
    return result


def _serve(cluster: Cluster, expected: int | None, progress: Progress | None, ctrl_c: CtrlC) -> str:
    """Let everything happen, or what does until Ctrl-C; says so then.

    Ctrl-C ends it between two events, where the counts agree with each other: a second one does not wait for that, as
    a policy may never answer.
    """
    seen: Recorder = cluster.recorder
    events, started_s, more = 1000, time.perf_counter(), True
    try:
        ctrl_c.spare = 1
        while not ctrl_c.came and (more := cluster.advance(events)):
            if progress is not None:
                progress(seen.finished + seen.rejected + seen.failed, expected)
            now_s = time.perf_counter()
            events = min(2 * events, MOST_EVENTS) if now_s - started_s < LOOK_EVERY_S else max(events // 2, 1)
            started_s = now_s
        ctrl_c.hold()
    except KeyboardInterrupt:
        ctrl_c.hold()
        more = True
    return f"interrupted after {seen.finished} finished requests" if more else ""


def _sum_up(
    deployment: Deployment,
    workload: Workload,
    cluster: Cluster,
    pools: list[list[Engine]],
    tables: tuple[StepTable, ...],
    *,
    slo: Slo | dict[int, Slo] | None,
    warmup: float,
    seed: int,
    stopped: str,
) -> Result:
    recorder: Recorder = cluster.recorder
    powered_gpu_s = _powered_gpu_s(deployment, cluster)
    counters = count(deployment, tables, pools, cluster, slo)
    records = recorder.keep and not (stopped and recorder.tallies)
    if not records:
        counters.tally = _tally(recorder)
    if counters.unfinished and not stopped:
        raise RuntimeError(f"{counters.unfinished} of {counters.arrived} requests never ended: a bug, please report it")
    provenance: dict[str, Any] = {
        name: to_mapping_all(t) for name, t in zip(deployment.pool_names(), tables, strict=True)
    }
    if counters.failed:
        provenance["failed"] = _reasons(deployment, counters.failed, cluster.over_context, cluster.expired)
    return summarize(
        Records(recorder.columns()) if records else None,
        counters,
        slo,
        deployment.priced(powered_gpu_s),
        warmup_fraction=warmup,
        seed=seed,
        deployment=to_mapping(deployment),
        workload=to_mapping(workload.spec),
        provenance=provenance | ({"stopped": stopped} if stopped else {}),
    )


@functools.lru_cache(maxsize=256)
def compiled(replica: Replica) -> StepTable:
    """The cost model's step law of a replica, kept for the next run."""
    return compile_replica(replica)


def build(
    deployment: Deployment, workload: Workload, tables: tuple[StepTable, ...], recorder: Recorder, seed: int
) -> tuple[Cluster, list[list[Engine]]]:
    """Make engines, policies and the cluster; a random stream of its own for each subsystem.

    The engines come as lists, one for each of the deployment's pools.
    """
    chosen = deployment.policies
    order = None if chosen.order == "fcfs" else policy("order", chosen.order, chosen.params.get("order"))
    kinds = ("route", "choose_model") if len(deployment.models) > 1 else ("route",)
    policies: dict[str, Policy] = {kind: policy(kind, getattr(chosen, kind), chosen.params.get(kind)) for kind in kinds}
    if order is not None:
        policies["order"] = order
    if chosen.admit != "accept-all":
        policies["admit"] = policy("admit", chosen.admit, chosen.params.get("admit"))
    if chosen.retain != "lru":
        policies["retain"] = policy("retain", chosen.retain, chosen.params.get("retain"))
    pools = []
    groups: dict[tuple[str, str], list[Engine]] = {}  # who is routed among: all replicas of one model and role
    for pool, table in zip(deployment.pools, tables, strict=True):
        settings = pool.replica.engine
        if workload.block_tokens % table.block_tokens and settings.prefix_cache:
            raise BadInput(
                f"the workload names prefixes in blocks of {workload.block_tokens} tokens, the engine's KV blocks hold "
                f"{table.block_tokens}: the one must be a multiple of the other; set engine.block_tokens or "
                "engine.prefix_cache=false"
            )
        law, work = StepLaw(table), WorkDone(settings.max_batched_tokens, settings.max_seqs)
        gaps = Gaps(*BINS, settings.max_seqs)
        unit = workload.block_tokens
        ranks = pool.places * pool.replica.dp
        group = groups.setdefault((pool.model, pool.role), [])
        places = range(len(group), len(group) + ranks)
        engines = [Engine(i, law, settings, pool.role, order, unit, work, gaps) for i in places]
        group += engines
        if table.ranks > 1:
            for first in range(0, ranks, table.ranks):
                Lockstep(engines[first : first + table.ranks])
        pools.append(engines)
    views = [
        PoolState(role, group, Random(f"{seed}/route/{i}"), name)
        for i, ((name, role), group) in enumerate(groups.items())
    ]
    state = ClusterState(tuple(views), Random(f"{seed}/admit"))
    handoffs = {name: handoff(deployment, name) for name, role in groups if role == "decode"}
    menus = tuple(deployment.may_serve(name) for name in workload.models) or (deployment.models,)
    arrivals = Arrivals(workload.batches(seed), tables[0].intake_s, menus)
    closed = None if workload.concurrency is None else (workload.concurrency, workload.think_s)
    scaler = _scaler(deployment, views)
    return Cluster(list(groups.values()), state, policies, arrivals, recorder, handoffs, closed, scaler), pools


def _models_by_pool(deployment: Deployment) -> list[str]:
    """The model of each pool that requests are routed in, as records number them."""
    return [name for name, _ in dict.fromkeys((pool.model, pool.role) for pool in deployment.pools)]


def _scaler(deployment: Deployment, views: list[PoolState]) -> Scaler | None:
    chosen, pools = deployment.policies, deployment.pools
    if chosen.scale == "fixed":
        return None
    counts, startup_s = [pool.count for pool in pools], [pool.startup_s for pool in pools]
    rule = policy("scale", chosen.scale, chosen.params.get("scale"))
    return Scaler(rule, deployment.scale_every_s, views, counts, startup_s)


def handoff(deployment: Deployment, name: str) -> Handoff:
    """What moves KV between all pairs of a model's replicas: the links of the deployment, at their sizes.

    The ends are numbered as all ranks of the deployment are, pool after pool.
    """
    senders = [pool.replica for pool in deployment.pools if (pool.model, pool.role) == (name, "prefill")]
    receivers = [pool.replica for pool in deployment.pools if (pool.model, pool.role) == (name, "decode")]
    # Each GPU moves its own shard; the side with fewer GPUs has the larger shards and sets the pace.
    window = model(senders[0].model).window
    slow = max(*senders, *receivers, key=lambda replica: kv_transfer_bytes(replica, 1))
    full = kv_transfer_bytes(slow, window + 1) - kv_transfer_bytes(slow, window) if window else 0
    each = kv_transfer_bytes(slow, 1)
    rates = (float(full), float(each - full)) if window else (float(each), 0.0)
    ends = [
        node if pool.model == name else -1
        for pool, nodes in zip(deployment.pools, deployment.nodes, strict=True)
        for node in nodes
        for _ in range(pool.replica.dp)
    ]
    far, near = ((link.bytes_per_s, link.latency_s) for link in deployment.links(name))
    return Handoff(ends, rates, window, far, near)


def count(
    deployment: Deployment,
    tables: tuple[StepTable, ...],
    pools: list[list[Engine]],
    cluster: Cluster,
    slo: Slo | dict[int, Slo] | None,
) -> Counters:
    """Collect what the engines and the recorder counted."""
    seen: Recorder = cluster.recorder
    duration_s = cluster.now
    itl = Histogram()
    counters = Counters(
        arrived=seen.arrived,
        finished=seen.finished,
        rejected=seen.rejected,
        failed=seen.failed,
        unfinished=seen.arrived - seen.finished - seen.rejected - seen.failed,
        prompt_tokens=seen.prompt_tokens,
        cached_tokens=seen.cached_tokens,
        output_tokens=seen.output_tokens,
        recomputed_tokens=seen.recomputed_tokens,
        gpus=deployment.gpus,
        duration_s=duration_s,
    )
    if (powered := _powered_gpu_s(deployment, cluster)) is not None:
        counters.gpu_seconds = sum(powered)
    for place, (pool, table, engines) in enumerate(zip(deployment.pools, tables, pools, strict=True)):
        if powered is None:
            counters.idle_watts += table.idle_watts * pool.ranks / deployment.gpus
        elif counters.gpu_seconds:
            counters.idle_watts += table.idle_watts * powered[place] / pool.replica.gpus / counters.gpu_seconds
        work, gaps = engines[0].work.as_dict(), engines[0].gaps
        if table.ranks > 1:
            work["shared_by_tokens"] = sum(engine.group.shared_by_tokens for engine in engines[:: table.ranks])
        prefill_j, decode_j = pool_joules(table, work, sum(engine.busy.until(duration_s) for engine in engines))
        counters.prefill_joules += prefill_j
        counters.decode_joules += decode_j
        counters.steps += work["steps"]
        itl.merge(Histogram(gaps.as_array(), gaps.sum_s(engines[0].law)))
        for engine in engines:
            counters.preemptions += engine.preemptions
            counters.prefix_queried_tokens += engine.queried_tokens
            counters.prefix_hit_tokens += engine.hit_tokens
            counters.busy_s.append(engine.busy.until(duration_s))
            counters.kv_peak_blocks.append(engine.kv.peak)
            counters.kv_total_blocks.append(engine.kv_total_blocks)
    counters.itl = itl
    counters.energy_kind = energy_kind(tables)
    return counters


def _powered_gpu_s(deployment: Deployment, cluster: Cluster) -> list[float] | None:
    """Seconds that the GPUs of each pool were powered; None where all are all the time."""
    scaler = cluster.scaler
    if scaler is None:
        return None
    return [scaler.powered_until(i, cluster.now) * pool.replica.gpus for i, pool in enumerate(deployment.pools)]


def _scaling(deployment: Deployment, cluster: Cluster) -> Scaling | None:
    powered_gpu_s = _powered_gpu_s(deployment, cluster)
    if powered_gpu_s is None:
        return None
    names = deployment.pool_names()
    return Scaling(
        gpu_hours=sum(powered_gpu_s) / 3600,
        mean_gpus=sum(powered_gpu_s) / cluster.now if cluster.now else None,
        changes=[
            ScaleChange(at_s=at_s, pool=names[pool], replicas=replicas, reason=reason)
            for at_s, pool, replicas, reason in cluster.scaler.changes
        ],
    )


def energy_kind(tables: Iterable[StepTable]) -> EnergyKind:
    """Return how the energy of replicas of these tables comes about."""
    return "fitted" if all(_power_kind(table) == "fitted" for table in tables) else "estimated"


def _power_kind(table: StepTable) -> str:
    law = table.provenance.get("power.resident")
    return law.kind if law else "modelled"


def _reasons(deployment: Deployment, failed: int, over_context: int, expired: int) -> dict[str, int]:
    """How many requests failed, by reason."""
    limits = sorted({model(pool.replica.model).max_context for pool in deployment.pools})
    of = " or ".join(f"{limit:,}" for limit in limits)
    reasons = {
        f"prompt and output longer than the model's context of {of} tokens": over_context,
        "deadline passed while held by the router or deferred by the admission rule": expired,
        "prompt and output need more KV than a replica holds": failed - over_context - expired,
    }
    return {reason: count for reason, count in reasons.items() if count}


def _tally(seen: Recorder) -> Tally:
    measured, attained = seen.by_class()
    start_s, *at_start = seen.window_start()
    end_s, *at_end = seen.window_end()
    return Tally(
        start_s=start_s,
        end_s=end_s,
        finished_at_start=at_start[0],
        finished_tokens_at_start=at_start[1],
        finished_at_end=at_end[0],
        finished_tokens_at_end=at_end[1],
        finished_tokens=seen.output_tokens,
        measured_by_class=measured,
        attained_by_class=attained,
        by_batch=seen.by_batch(),
        ttft=Histogram(seen.ttft.as_array(), seen.ttft.total_s),
        tpot=Histogram(seen.tpot.as_array(), seen.tpot.total_s),
        e2e=Histogram(seen.e2e.as_array(), seen.e2e.total_s),
    )


def _warmup(workload: Workload) -> float:
    return 0.0 if workload.concurrency is not None or workload.spec.trace is not None else SYNTHETIC_WARMUP


def _limits(slo: Slo | dict[int, Slo] | None) -> list[tuple[float, float, float]]:
    if slo is None:
        return [Slo().limits()]
    if isinstance(slo, Slo):
        return [slo.limits()]
    return [slo.get(i, Slo()).limits() for i in range(max(slo) + 1)]


@functools.lru_cache(maxsize=256)
def to_mapping_all(table: StepTable) -> dict[str, Any]:
    """The coefficients of a step law with value, kind, source and interval."""
    return {name: to_mapping(estimate) for name, estimate in table.provenance.items()}
