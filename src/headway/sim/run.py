"""`simulate`: builds the cluster that a deployment describes, lets it run, and sums up what happened."""

from __future__ import annotations

import functools
from collections.abc import Callable
from random import Random
from typing import Any

from headway.cost import Replica, StepTable, compile_replica, kv_link, kv_transfer_bytes
from headway.engine import Engine, Gaps, StepLaw, WorkDone
from headway.errors import BadInput
from headway.metrics import Counters, Histogram, Result, Slo, Tally, summarize, warmup_requests
from headway.metrics.records import Records
from headway.model import model
from headway.policies import Policy, policy
from headway.sim.arrivals import Arrivals
from headway.sim.cluster import Cluster, Handoff
from headway.sim.deployment import Deployment
from headway.sim.energy import dynamic_joules
from headway.sim.recorder import Recorder
from headway.specs import to_mapping
from headway.state import ClusterState, PoolState
from headway.workload import Workload

Progress = Callable[[int, int | None], None]

EVENTS_AT_ONCE = 20_000  # between looks at signals and progress: about 10 ms
BINS = (Histogram.BINS, Histogram.MIN_S, Histogram.INV_LOG_GROWTH)
SYNTHETIC_WARMUP = 0.05


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

    Args:
        deployment: what serves.
        workload: what arrives; deterministic per `seed`.
        slo: limits that attainment is judged by, for all or per SLO class.
        seed: of every random stream.
        records: keep a row per request; without, memory does not grow with the number of requests.
        warmup: share of the requests left out of the measurement, the first ones; default 0.05 for synthetic open
            loops, 0 for traces and closed loops.
        progress: called now and then with requests ended and, when known, requests in all.
        tables: step laws to use instead of the cost model's, one per pool.

    Raises:
        BadInput: something in the deployment, the workload or a policy's answer that cannot be.
        DoesNotFit: a model that its GPUs cannot hold.
    """
    warmup = _warmup(workload) if warmup is None else warmup
    expected = workload.requests
    first_measured = warmup_requests(expected or 0, warmup)
    recorder = Recorder(records, expected or 0, first_measured, _limits(slo), BINS)
    tables = tables or tuple(compiled(pool.replica) for pool in deployment.pools)
    cluster, pools = build(deployment, workload, tables, recorder, seed)
    stopped = ""
    try:
        while cluster.advance(EVENTS_AT_ONCE):
            if progress is not None:
                progress(recorder.finished + recorder.rejected + recorder.failed, expected)
    except KeyboardInterrupt:
        stopped = f"interrupted after {recorder.finished} finished requests"
    counters = count(deployment, tables, pools, cluster, slo)
    if counters.unfinished and not stopped:
        raise RuntimeError(f"{counters.unfinished} of {counters.arrived} requests never ended: a bug, please report it")
    provenance: dict[str, Any] = {
        pool.role: to_mapping_all(t) for pool, t in zip(deployment.pools, tables, strict=True)
    }
    if counters.failed:
        provenance["failed"] = _reasons(deployment, counters.failed, cluster.over_context)
    return summarize(
        Records(recorder.columns()) if records else None,
        counters,
        slo,
        deployment.priced(),
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
    """Make engines, policies and the cluster; a random stream of its own for each subsystem."""
    chosen = deployment.policies
    order = None if chosen.order == "fcfs" else policy("order", chosen.order, chosen.params.get("order"))
    policies: dict[str, Policy] = {"route": policy("route", chosen.route, chosen.params.get("route"))}
    if chosen.admit != "accept-all":
        policies["admit"] = policy("admit", chosen.admit, chosen.params.get("admit"))
    pools = []
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
        pools.append([Engine(i, law, settings, pool.role, order, unit, work, gaps) for i in range(pool.count)])
    state = ClusterState(
        tuple(
            PoolState(pool.role, engines, Random(f"{seed}/route/{i}"))
            for i, (pool, engines) in enumerate(zip(deployment.pools, pools, strict=True))
        ),
        Random(f"{seed}/admit"),
    )
    handoff = _handoff(deployment) if len(pools) > 1 else None
    arrivals = Arrivals(workload.batches(seed))
    closed = None if workload.concurrency is None else (workload.concurrency, workload.think_s)
    return Cluster(pools, state, policies, arrivals, recorder, handoff, closed), pools


def _handoff(deployment: Deployment) -> Handoff:
    prefill, decode = (pool.replica for pool in deployment.pools)
    link = deployment.kv_link or kv_link(prefill, decode)
    # Each GPU moves its own shard; the side with fewer GPUs has the larger shards and sets the pace.
    window = model(prefill.model).window
    slow = max(prefill, decode, key=lambda replica: kv_transfer_bytes(replica, 1))
    full = kv_transfer_bytes(slow, window + 1) - kv_transfer_bytes(slow, window) if window else 0
    each = kv_transfer_bytes(slow, 1)
    rates = (float(full), float(each - full)) if window else (float(each), 0.0)
    return Handoff(sum(pool.count for pool in deployment.pools), rates, window, link.bytes_per_s, link.latency_s)


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
    for pool, table, engines in zip(deployment.pools, tables, pools, strict=True):
        counters.idle_watts += table.idle_watts * pool.count / deployment.gpus
        work, gaps = engines[0].work.as_dict(), engines[0].gaps
        prefill_j, decode_j = dynamic_joules(table, work)
        counters.prefill_joules += prefill_j
        counters.decode_joules += decode_j
        counters.steps += work["steps"]
        itl.merge(Histogram(gaps.as_array(), gaps.sum_s(engines[0].law)))
        for engine in engines:
            counters.preemptions += engine.preemptions
            counters.prefix_queried_tokens += engine.queried_tokens
            counters.prefix_hit_tokens += engine.hit_tokens
            counters.busy_s.append(engine.busy_until(duration_s))
            counters.kv_peak_blocks.append(engine.kv.peak)
            counters.kv_total_blocks.append(engine.kv_total_blocks)
    counters.itl = itl
    if not seen.keep:
        counters.tally = _tally(seen)
    return counters


def _reasons(deployment: Deployment, failed: int, over_context: int) -> dict[str, int]:
    """How many requests failed, by reason."""
    limit = model(deployment.pools[0].replica.model).max_context
    reasons = {
        f"prompt and output longer than the model's context of {limit:,} tokens": over_context,
        "prompt and output need more KV than a replica holds": failed - over_context,
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


def to_mapping_all(table: StepTable) -> dict[str, Any]:
    """The coefficients of a step law with value, kind, source and interval."""
    return {name: to_mapping(estimate) for name, estimate in table.provenance.items()}
