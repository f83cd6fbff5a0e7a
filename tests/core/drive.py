"""Random cases for the core, and the cluster driven directly, without catalogue or cost model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import numpy as np

import headway
from headway.cost import EngineSettings, StepTable
from headway.engine import Engine, Gaps, Lockstep, StepLaw, WorkDone
from headway.engine.checks import check_integrity
from headway.engine.reference import ReferenceEngine, Row
from headway.metrics import Histogram
from headway.policies import Policy, policy, policy_names
from headway.sim.arrivals import Arrivals
from headway.sim.cluster import Cluster, Handoff
from headway.sim.recorder import Recorder
from headway.sim.scaling import Scaler
from headway.state import ClusterState, Hold, PoolState, ReplicaState, Request, Route, Scale
from headway.workload.batch import Batch

CASES = int(os.environ.get("CASES", 40 if headway.interpreted_modules() else 100))  # random ones a law is tried on
BINS = (Histogram.BINS, Histogram.MIN_S, Histogram.INV_LOG_GROWTH)
COLUMNS = (
    "arrival_s",
    "admitted_s",
    "first_token_s",
    "last_token_s",
    "cached_tokens",
    "preemptions",
    "status",
)


@dataclass
class Case:
    """One replica, its settings, and the requests it serves."""

    table: StepTable
    settings: EngineSettings
    unit_tokens: int
    order: str
    rows: list[Row]


def make_table(rng: Random, *, budget: int, seqs: int, stages: int, block: int, window: int) -> StepTable:
    """A step law with random coefficients of a plausible size, and a small KV cache."""
    tokens, n = np.arange(budget + 1.0), np.arange(seqs + 1.0)
    scale = rng.choice([1.0, 1.0, 0.0]) if stages == 1 else 1.0
    seconds = {
        "linear": rng.uniform(1e-3, 1e-2) + rng.uniform(0, 1e-4) * tokens,
        "seq": rng.uniform(0, 1e-4) * n,
        "decode": rng.uniform(0, 1e-4) * n,
        "decode_ctx": np.full(seqs + 1, scale * rng.uniform(0, 1e-5)) * (1 + n / seqs),
        "decode_window": np.full(seqs + 1, scale * rng.uniform(0, 1e-5)),
        "prefill_base": rng.uniform(0, 1e-4),
        "prefill_area": rng.uniform(0, 1e-7),
        "prefill_window_area": rng.uniform(0, 1e-7) * bool(window),
    }
    return StepTable(
        **{f"{name}_s": value for name, value in seconds.items()},
        **{f"{name}_j": value for name, value in seconds.items()},
        p2p_s=rng.uniform(0, 1e-3) + 1e-6 * tokens,
        idle_watts=100.0,
        gpus=stages,
        stages=stages,
        max_batched_tokens=budget,
        max_seqs=seqs,
        kv_blocks=rng.randint(8, 120),
        block_tokens=block,
        window=window,
        window_group=rng.randint(0, 3) if window else 0,
        window_blocks=-(-window // block),
        max_context=rng.choice([200, 10_000]),
        prefill_alone=rng.random() < 0.3,
        prompt_step_s=rng.choice([0.0, rng.uniform(0, 1e-2)]),
        poll_steps=rng.choice([1, 1, 2, 7]),
        ahead=rng.random() < 0.4,
        provenance={},
    )


def plain_table(
    *,
    linear_s: float = 1e-9,
    token_s: float = 0.0,
    decode_s: float = 0.0,
    context_s: float = 0.0,
    budget: int = 256,
    seqs: int = 16,
    block: int = 16,
    kv_blocks: int = 400,
) -> StepTable:
    """A step law one can calculate with: `linear_s` + `token_s` a token, and for decodes `decode_s` + `context_s`."""
    tokens, none = np.arange(budget + 1.0), np.zeros(seqs + 1)
    decode = np.where(np.arange(seqs + 1) > 0, decode_s, 0.0)
    seconds = {
        "linear": linear_s + token_s * tokens,
        "seq": none,
        "decode": decode,
        "decode_ctx": np.full(seqs + 1, context_s),
        "decode_window": none,
        "prefill_base": 0.0,
        "prefill_area": 0.0,
        "prefill_window_area": 0.0,
    }
    return StepTable(
        **{f"{name}_s": value for name, value in seconds.items()},
        **{f"{name}_j": 100.0 * value for name, value in seconds.items()},
        p2p_s=np.zeros(budget + 1),
        idle_watts=100.0,
        gpus=1,
        stages=1,
        max_batched_tokens=budget,
        max_seqs=seqs,
        kv_blocks=kv_blocks,
        block_tokens=block,
        window=0,
        window_group=0,
        window_blocks=0,
        max_context=10**9,
        provenance={},
    )


def make_rows(rng: Random, unit: int) -> list[Row]:
    """Requests with bursts, ties, one-token outputs and shared prefixes."""
    rows, now = [], 0.0
    for i in range(rng.randint(1, 40)):
        now += rng.choice([0.0, rng.expovariate(1 / 0.02), rng.expovariate(1 / 0.5)])
        prompt = rng.choice([1, rng.randint(1, 40), rng.randint(1, 150)])
        hashes: tuple[int, ...] = ()
        if unit and rng.random() < 0.8:
            family, common = rng.randint(0, 2), rng.randint(0, 8)
            length = prompt // unit + rng.choice([0, 0, 2])
            hashes = tuple(1000 * family + k if k < common else 10_000 + 1000 * i + k for k in range(length))
        rows.append(
            Row(
                now,
                prompt,
                rng.choice([1, rng.randint(1, 60)]),
                hashes,
                rng.randint(0, 2),
                now + rng.choice([0.1, 1.0, float("inf")]),
            )
        )
    return rows


def make_case(seed: int) -> Case:
    """A random case; small pages and budgets, so that preemption, chunking and eviction all happen."""
    rng = Random(seed)
    block = rng.choice([1, 2, 4, 16])
    budget = rng.choice([4, 16, 64, 300])
    seqs = rng.randint(1, min(budget, 12))
    window = rng.choice([0, 0, 1, rng.randint(2, 60)])
    table = make_table(rng, budget=budget, seqs=seqs, stages=rng.choice([1, 1, 1, 2, 3]), block=block, window=window)
    unit = rng.choice([0, block, 2 * block])
    settings = EngineSettings(
        max_batched_tokens=budget, max_seqs=seqs, block_tokens=block, prefix_cache=rng.random() < 0.9
    )
    order = rng.choice(["fcfs", "fcfs", "priority", "sjf", "edf"])
    return Case(table, settings, unit, order, keep_some(make_rows(rng, unit), seed))


def keep_some(rows: list[Row], seed: int) -> list[Row]:
    """The rows, in every other case some of them with a time for which their prefix is kept."""
    rng = Random(f"keep/{seed}")
    if rng.random() < 0.5:
        for row in rows:
            row.keep_s = rng.choice([0.0, 0.0, 0.05, 0.3, rng.expovariate(1.0), 1e6])
    return rows


def batch_of(rows: list[Row]) -> Batch:
    """The rows as the batch a workload would give."""
    n = len(rows)
    lengths = [len(row.hashes) for row in rows]
    return Batch(
        id=np.arange(n),
        arrival_s=np.array([row.arrival_s for row in rows]),
        prompt_tokens=np.array([row.prompt for row in rows]),
        output_tokens=np.array([row.output for row in rows]),
        priority=np.array([row.priority for row in rows], np.int32),
        slo_class=np.zeros(n, np.int32),
        tenant=np.zeros(n, np.int32),
        deadline_s=np.array([row.deadline_s for row in rows]),
        predicted_output_tokens=np.array([row.output for row in rows], np.float64),
        session=np.full(n, -1),
        hash_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        hashes=np.array([h for row in rows for h in row.hashes], np.int64),
    )


def with_ranks(case: Case, seed: int) -> Case:
    """The case on two to four data-parallel ranks, without a pipeline."""
    rng = Random(seed)
    ranks = rng.randint(2, 4)
    tokens = np.arange(ranks * case.settings.max_batched_tokens + 1.0)
    shared_s = np.where(tokens > 0, rng.uniform(0, 1e-2) + rng.uniform(0, 1e-5) * tokens, 0.0)
    shared = {"shared_s": shared_s, "shared_j": shared_s}
    aligned = {"align_steps": rng.choice([0, 1, 2, 5, 30]), "gather_steps": rng.choice([0, 0, 1, 4])}
    table = msgspec.structs.replace(case.table, stages=1, ranks=ranks, **shared, **aligned)
    return Case(table, case.settings, case.unit_tokens, case.order, case.rows)


def run_ranks(case: Case) -> tuple[dict[str, np.ndarray], list[Engine]]:
    """The case on data-parallel ranks that take turns."""
    order = order_of(case)
    sizes = case.settings.max_batched_tokens, case.settings.max_seqs
    law, work, gaps = StepLaw(case.table), WorkDone(*sizes), Gaps(*BINS, sizes[1])
    shared = (law, case.settings, "mixed", order, case.unit_tokens, work, gaps)
    engines = [Engine(i, *shared) for i in range(case.table.ranks)]
    Lockstep(engines)
    recorder = Recorder(True, len(case.rows), 0, [(1.0, 1.0, 1.0)], BINS)
    state = ClusterState((PoolState("mixed", engines, Random(0)),), Random(0))
    policies = policies_of(case, "round-robin")
    cluster = Cluster([engines], state, policies, Arrivals(iter([batch_of(case.rows)])), recorder, {}, None)
    while cluster.advance(1):
        for engine in engines:
            check_integrity(engine)
    return recorder.columns(), engines


def run_core(case: Case, *, leaps: bool = True, trace: bool = False) -> tuple[dict[str, np.ndarray], Engine]:
    """The case through the fast core."""
    order = order_of(case)
    sizes = case.settings.max_batched_tokens, case.settings.max_seqs
    engine = Engine(
        0,
        StepLaw(case.table),
        case.settings,
        "mixed",
        order,
        case.unit_tokens,
        WorkDone(*sizes),
        Gaps(*BINS, sizes[1]),
    )
    engine.set_leaps(leaps)
    engine.trace = [] if trace else None
    recorder = Recorder(True, len(case.rows), 0, [(1.0, 1.0, 1.0)], BINS)
    state = ClusterState((PoolState("mixed", [engine], Random(0)),), Random(0))
    cluster = Cluster(
        [[engine]],
        state,
        policies_of(case, "least-requests"),
        Arrivals(iter([batch_of(case.rows)])),
        recorder,
        {},
        None,
    )
    while cluster.advance(1000):
        check_integrity(engine)
    check_integrity(engine)
    engine.refresh(cluster.now)
    return recorder.columns() | {"recomputed_tokens": np.array(recorder.recomputed_tokens)}, engine


class AsTheRowsSay(Policy):
    """Keeps each prefix as long as its row says."""

    reads_progress = False

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def retain(self, request: Request, replica: ReplicaState) -> float:
        return self.rows[request.id].keep_s


def policies_of(case: Case, route: str) -> dict[str, Policy]:
    """The policies of a case: no retention where nothing is kept."""
    chosen = {"route": policy("route", route)}
    return chosen | ({"retain": AsTheRowsSay(case.rows)} if any(row.keep_s for row in case.rows) else {})


def order_of(case: Case) -> Policy | None:
    """The order policy of a case."""
    return None if case.order == "fcfs" else policy("order", case.order)


def run_reference(case: Case) -> ReferenceEngine:
    """The case through the reference; the rows of the case hold the outcome."""
    reference = ReferenceEngine(case.table, case.settings, case.unit_tokens, order_of(case))
    reference.run(case.rows)
    return reference


# --- several replicas, two pools, closed loops ------------------------------------------------------------------


class Nosy(Policy):
    """Sends a request by everything it can see, so that a view that is off by one token changes the run.

    `log` keeps what it saw. A cluster's views must be the same however the engines got there.
    """

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def route(self, request: Request, pool: PoolState) -> Route:
        seen = [request.id, request.node]
        for replica in pool.replicas:
            seen += [replica.node, replica.running, replica.waiting, replica.waiting_tokens, replica.context_tokens]
            seen += [replica.kv_used_blocks, replica.cached_tokens(request)]
        self.log.append((pool.now, pool.role, *seen))
        return Route(hash(tuple(seen)) % len(pool.replicas), "what it saw")


@dataclass
class PoolCase:
    """Identical replicas of a random step law."""

    role: str
    count: int
    table: StepTable
    settings: EngineSettings


@dataclass
class ClusterCase:
    """One mixed pool, or prefill and decode pools with a link; open loop, or closed (users, seconds of thought)."""

    pools: list[PoolCase]
    unit_tokens: int
    order: str
    route: str
    admit: str | None
    link: tuple[float, float]
    closed: tuple[int, float] | None
    rows: list[Row]
    scale: tuple[float, float, list[int]] | None = None  # every so often, seconds to start, at the start
    keeps: bool = False
    nodes: list[int] | None = None  # of all replicas; None: each on one of its own
    near: tuple[float, float] = (float("inf"), 0.0)


@dataclass
class Served:
    """What became of a cluster case: the rows as columns, and the objects that know the rest."""

    columns: dict[str, np.ndarray]
    cluster: Cluster
    pools: list[list[Engine]]
    handoff: Handoff | None
    router: Policy
    rule: Policy | None = None
    keeper: Any = None

    @property
    def engines(self) -> list[Engine]:
        return [engine for pool in self.pools for engine in pool]


class NosyHolder(Nosy):
    """Holds every other request by what it sees of a pool that is not idle, so that it asks for each wake-up."""

    def route(self, request: Request, pool: PoolState) -> Route | Hold:
        route = super().route(request, pool)
        seen = (*self.log[-1][2:], pool.held)
        busy = any(replica.running + replica.waiting for replica in pool.replicas)
        return Hold("what it saw") if busy and hash(seen) % 2 else route


class Restless(Nosy):
    """Asks for another number of replicas each time, by what it sees."""

    def scale(self, cluster: ClusterState) -> list[Scale]:
        answers = []
        for index, pool in enumerate(cluster.pools):
            seen = [pool.held, pool.starting, len(pool.replicas)]
            for replica in pool.replicas:
                seen += [replica.running, replica.waiting, replica.context_tokens, replica.kv_used_blocks]
            self.log.append((cluster.now, index, *seen))
            answers.append(Scale(index, 1 + hash(tuple(seen)) % 4, "what it saw"))
        return answers


class Keeper(Policy):
    """Keeps prefixes for times that depend on what it sees; `said` has what it decided, by request."""

    def __init__(self) -> None:
        self.said: dict[int, float] = {}

    def retain(self, request: Request, replica: ReplicaState) -> float:
        seen = (request.id, replica.running, replica.waiting, replica.waiting_tokens, replica.context_tokens)
        chosen = hash((*seen, replica.kv_used_blocks, replica.cached_tokens(request)))
        self.said[request.id] = (0.0, 0.05, 0.3, 2.0, 1e6)[chosen % 5]
        return self.said[request.id]


NOSY, HOLDER = "drive:Nosy", "drive:NosyHolder"
HOLDERS = ("late-binding", HOLDER)
ADMISSION = {"queue-limit": {"limit": 2}, "off-peak": {"retry_s": 0.05, "patience_s": 0.4}}
ROUTERS = (*policy_names("route"), NOSY)


def make_cluster_case(seed: int) -> ClusterCase:
    """A random cluster; small, with equal lengths here and there, so that things happen at the same instant."""
    rng = Random(seed)
    window = rng.choice([0, 0, 0, 1, rng.randint(2, 60)])
    roles = rng.choice([("mixed",), ("prefill", "decode")])
    pools, largest = [], 1
    for role in roles:
        block, budget = rng.choice([1, 2, 4, 16]), rng.choice([4, 16, 64, 300])
        seqs = rng.randint(1, min(budget, 12))
        table = make_table(rng, budget=budget, seqs=seqs, stages=rng.choice([1, 1, 2]), block=block, window=window)
        settings = EngineSettings(
            max_batched_tokens=budget, max_seqs=seqs, block_tokens=block, prefix_cache=rng.random() < 0.9
        )
        pools.append(PoolCase(role, rng.randint(1, 3), table, settings))
        largest = max(largest, block)
    unit = rng.choice([0, largest, largest, 2 * largest])
    rows = make_rows(rng, unit)
    if rng.random() < 0.3:
        for row in rows:
            row.prompt, row.output = rng.choice([20, 20, 40]), rng.choice([1, 5, 10, 30])
            row.hashes = row.hashes[: row.prompt // unit] if unit else ()
    return ClusterCase(
        pools,
        unit,
        order=rng.choice(["fcfs", "fcfs", "priority", "sjf", "edf"]),
        route=rng.choice([*ROUTERS, NOSY, NOSY, HOLDER, "prefix-affinity"]),
        admit=rng.choice([None, None, *ADMISSION]),
        link=(rng.choice([1e3, 1e5, 1e12]), rng.choice([0.0, 1e-3, 0.5])),
        closed=rng.choice([None, (rng.randint(1, 12), rng.choice([0.0, 0.0, 0.1]))]),
        rows=rows,
        scale=rng.choice([None, None, (rng.choice([0.02, 0.3]), rng.choice([0.0, 0.1, 1.0]), starts_with(rng, pools))]),
        keeps=Random(f"keep/{seed}").random() < 0.5,
        nodes=Random(f"nodes/{seed}").choices([0, 1], k=sum(pool.count for pool in pools)) if seed % 2 else None,
        near=(1e6, 1e-3),
    )


def starts_with(rng: Random, pools: list[PoolCase]) -> list[int]:
    """How many replicas of each pool serve at the start."""
    return [rng.randint(1, pool.count) for pool in pools]


def run_cluster(
    case: ClusterCase,
    *,
    leaps: bool = True,
    watch: Callable[[Served], None] | None = None,
    events: int = 1000,
    keeper: Policy | None = None,
) -> Served:
    """The case through the cluster; `watch` looks at it after every `events` events; `keeper` decides on prefixes."""
    order = None if case.order == "fcfs" else policy("order", case.order)
    pools = []
    for pool in case.pools:
        sizes = pool.settings.max_batched_tokens, pool.settings.max_seqs
        law, work, gaps = StepLaw(pool.table), WorkDone(*sizes), Gaps(*BINS, sizes[1])
        shared = (law, pool.settings, pool.role, order, case.unit_tokens, work, gaps)
        pools.append([Engine(i, *shared) for i in range(pool.count)])
    for engine in (engine for pool in pools for engine in pool):
        engine.set_leaps(leaps)
    views = [
        PoolState(each.role, list(pool), Random(i))
        for i, (each, pool) in enumerate(zip(case.pools, pools, strict=True))
    ]
    policies = {"route": policy("route", case.route)}
    if order is not None:
        policies["order"] = order
    if case.admit is not None:
        policies["admit"] = policy("admit", case.admit, ADMISSION[case.admit])
    if keeper is None and case.keeps:
        keeper = Keeper()
    if keeper is not None:
        policies["retain"] = keeper
    handoff = None
    if len(pools) > 1:
        window = case.pools[0].table.window
        nodes = list(range(sum(map(len, pools)))) if case.nodes is None else case.nodes
        handoff = Handoff(nodes, (3.0, 2.0 if window else 0.0), window, case.link, case.near)
    recorder = Recorder(True, len(case.rows), len(case.rows) // 4, [(1.0, 1.0, 1.0)], BINS)
    arrivals = Arrivals(iter([batch_of(case.rows)]))
    rule, scaler = None, None
    if case.scale is not None:
        every_s, startup_s, counts = case.scale
        rule = Restless()
        scaler = Scaler(rule, every_s, views, counts, [startup_s] * len(pools))
    state = ClusterState(tuple(views), Random(99))
    handoffs = {} if handoff is None else {"": handoff}
    cluster = Cluster(pools, state, policies, arrivals, recorder, handoffs, case.closed, scaler)
    served = Served({}, cluster, pools, handoff, policies["route"], rule, keeper)
    while cluster.advance(events):
        if watch is not None:
            watch(served)
    for engine in served.engines:
        engine.refresh(cluster.now)
        check_integrity(engine)
    served.columns = recorder.columns()
    return served
