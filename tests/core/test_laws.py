"""The laws of docs/laws.md on random clusters of tiny step tables; real replicas are in test_laws_real.py.

Laws 7 and 8 for one replica are held by test_parity.py, 9 by test_modes.py, 10 by test_theory.py.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from drive import (
    CASES,
    HOLDERS,
    NOSY,
    Case,
    ClusterCase,
    Nosy,
    PoolCase,
    Served,
    make_case,
    make_cluster_case,
    plain_table,
    run_cluster,
    run_core,
    run_reference,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import headway
from headway.cost import EngineSettings, StepTable
from headway.engine import FAILED, FINISHED, REJECTED
from headway.engine.checks import check_awake, check_integrity
from headway.engine.reference import Batch, ReferenceEngine, Row
from headway.sim.energy import dynamic_joules

SEEDS = st.integers(0, 2**40)
law = settings(max_examples=CASES, deadline=None)


def pages(table: StepTable, tokens: int) -> int:
    """KV pages of `tokens` tokens, counted block by block."""
    blocks = -(-tokens // table.block_tokens)
    inside = sum(block * table.block_tokens + 1 < table.window for block in range(blocks))
    return blocks + table.window_group * inside


def could_run(case: ClusterCase, row: Row) -> bool:
    """Whether a request fits every pool it passes, alone."""
    for pool in case.pools:
        handed = pool.role == "prefill" and row.output > 1
        tokens = row.prompt + (1 if handed else row.output)
        if pool.role == "decode" and row.output == 1:
            continue
        if tokens > pool.table.max_context or pages(pool.table, tokens) > pool.table.kv_blocks:
            return False
    return True


# --- 1 conservation ---------------------------------------------------------------------------------------------


@law
@given(SEEDS)
def test_law_1_every_request_ends_once_and_as_it_must(seed: int) -> None:
    case = make_cluster_case(seed)
    served = run_cluster(case)
    columns, recorder = served.columns, served.cluster.recorder
    status = columns["status"].tolist()
    assert recorder.arrived == len(case.rows) == len(status)
    for code, count in ((FINISHED, recorder.finished), (REJECTED, recorder.rejected), (FAILED, recorder.failed)):
        assert status.count(code) == count
    assert recorder.finished + recorder.rejected + recorder.failed == recorder.arrived
    assert recorder.rejected == 0 or case.admit == "queue-limit"
    lost = 0  # their deadline came while they were held or deferred
    for row, code in zip(case.rows, status, strict=True):
        assert code in (FINISHED, FAILED) or code == REJECTED
        assert code != FINISHED or could_run(case, row)
        if code == FAILED and could_run(case, row):
            assert row.deadline_s < float("inf")
            lost += 1
    assert lost <= served.cluster.expired
    assert served.cluster.expired == 0 or case.route in HOLDERS or case.admit == "off-peak"
    assert all(pool.held == 0 for pool in served.cluster.state.pools)
    for engine in served.engines:
        assert (engine.running, engine.waiting, engine.waiting_tokens, engine.context_tokens) == (0, 0, 0, 0)


@law
@given(SEEDS)
def test_law_1_every_token_is_made_once(seed: int) -> None:
    """Computed in prefills and decodes + found in caches = held at the end + lost to preemptions."""
    case = make_cluster_case(seed)
    served = run_cluster(case)
    prefilled = decoded = found = needed = 0
    for pool in served.pools:
        work = pool[0].work.as_dict()
        prefilled += int(work["prefill_by_tokens"].sum())
        decoded += int((np.arange(len(work["steps_by_decodes"])) * work["steps_by_decodes"]).sum())
        found += sum(engine.hit_tokens for engine in pool)
    for row, code, made in zip(case.rows, served.columns["status"], served.columns["output_tokens"], strict=True):
        handed = code == FAILED and made == 1  # the prefill pool did its part, the decode pool is too small
        assert made == (row.output if code == FINISHED else int(handed))
        needed += row.prompt + made - 1 if made else 0
    recorder = served.cluster.recorder
    assert prefilled + decoded + found == needed + recorder.recomputed_tokens
    assert recorder.output_tokens == served.columns["output_tokens"].sum()
    assert recorder.prompt_tokens == sum(row.prompt for row in case.rows)


@law
@given(SEEDS)
def test_law_1_what_leaves_a_prefill_pool_crosses_the_link_once(seed: int) -> None:
    case = make_cluster_case(seed)
    served = run_cluster(case)
    if served.handoff is None:
        return
    bytes_moved, window = 0.0, case.pools[0].table.window
    for row, pool in zip(case.rows, served.columns["pool"], strict=True):
        if pool == 1:
            bytes_moved += 3.0 * row.prompt + (2.0 * min(row.prompt, window) if window else 0.0)
    assert served.handoff.bytes_moved == bytes_moved


# --- 2 causality, 3 the clock -----------------------------------------------------------------------------------


@law
@given(SEEDS)
def test_law_2_nothing_happens_before_its_cause(seed: int) -> None:
    case = make_cluster_case(seed)
    columns = run_cluster(case).columns
    done = columns["status"] == FINISHED
    times = [columns[name] for name in ("arrival_s", "admitted_s", "first_token_s", "last_token_s")]
    for earlier, later in pairwise(times):
        assert (earlier[done] <= later[done]).all()
    assert (times[1][done] < times[2][done]).all(), "a first token takes a step"
    for i, row in enumerate(case.rows):
        if columns["status"][i] == REJECTED:
            assert np.isnan([column[i] for column in times[1:]]).all()
        if done[i] and columns["pool"][i] == 1:
            links = [case.link, case.near] if case.nodes else [case.link]
            sent_s = min(latency_s + 3.0 * row.prompt / bytes_per_s for bytes_per_s, latency_s in links)
            assert times[3][i] - times[2][i] >= 0.999 * sent_s, "a token was made before its KV had come"
        if case.closed is None:
            assert times[0][i] == row.arrival_s


@law
@given(SEEDS)
def test_law_3_the_clock_never_goes_back(seed: int) -> None:
    seen = [0.0]

    def look(served: Served) -> None:
        assert served.cluster.now >= seen[-1]
        seen.append(served.cluster.now)

    served = run_cluster(make_cluster_case(seed), watch=look, events=1)
    assert served.cluster.now == max(seen)
    last = served.columns["last_token_s"]
    assert served.cluster.now >= np.max(last, where=~np.isnan(last), initial=0.0)


# --- 4 KV pages, 6 idle replicas --------------------------------------------------------------------------------


@law
@given(SEEDS)
def test_law_4_pages_are_neither_lost_nor_given_twice(seed: int) -> None:
    def look(served: Served) -> None:
        for engine in served.engines:
            check_integrity(engine)

    case = make_cluster_case(seed)
    served = run_cluster(case, watch=look, events=1)
    for pool, engines in zip(case.pools, served.pools, strict=True):
        for engine in engines:
            assert engine.kv_used_blocks == engine.kv.used == 0
            assert 0 <= engine.kv.peak <= engine.kv.total == pool.table.kv_blocks
    for row, status, replica in zip(case.rows, served.columns["status"], served.columns["replica"], strict=True):
        if status == FINISHED and row.output > 1:
            engine = served.engines[replica]
            assert engine.kv.peak >= pages(case.pools[-1].table, row.prompt + row.output - 1)


def look_for_idlers(served: Served) -> None:
    for engine in served.engines:
        check_awake(engine, served.cluster.now)


@settings(max_examples=4 * CASES, deadline=None)
@given(SEEDS)
def test_law_6_no_replica_idles_over_work_it_could_start(seed: int) -> None:
    run_cluster(make_cluster_case(seed), watch=look_for_idlers, events=1)


@law
@given(SEEDS)
def test_law_6_holds_where_transfers_under_way_hold_the_pages(seed: int) -> None:
    """A decode replica preempts all it has; the next in its queue may be shorter, and fit."""
    rng = Random(seed)
    arrivals = sorted(rng.uniform(0.0, 1.0) for _ in range(20))
    rows = [Row(arrival_s, rng.randint(1, 40), rng.randint(2, 50)) for arrival_s in arrivals]
    engine = EngineSettings(max_batched_tokens=64, max_seqs=8, block_tokens=4)
    pools = [
        PoolCase(role, 1, plain_table(linear_s=1e-2, budget=64, seqs=8, block=4, kv_blocks=blocks), engine)
        for role, blocks in (("prefill", 60), ("decode", rng.randint(23, 32)))
    ]
    link = (rng.choice([1e2, 3e2, 1e3]), 0.0)
    run_cluster(ClusterCase(pools, 0, "sjf", "least-requests", None, link, None, rows), watch=look_for_idlers, events=1)


# --- 5 determinism, 7 leap = step, 8 core = reference ------------------------------------------------------------


def assert_same(one: Served, other: Served) -> None:
    """Every time, count, sum and sight, to the bit."""
    for name, column in one.columns.items():
        np.testing.assert_array_equal(column, other.columns[name], err_msg=name)
    if isinstance(one.router, Nosy):
        assert one.router.log == other.router.log
    if one.keeper is not None:
        assert one.keeper.said == other.keeper.said
    assert one.cluster.now == other.cluster.now
    if one.handoff is not None:
        assert (one.handoff.bytes_moved, one.handoff.wait_s) == (other.handoff.bytes_moved, other.handoff.wait_s)
    for mine, theirs in zip(one.engines, other.engines, strict=True):
        for name in ("preemptions", "queried_tokens", "hit_tokens"):
            assert getattr(mine, name) == getattr(theirs, name), name
        assert mine.kv.peak == theirs.kv.peak
        assert mine.gaps.sum_s(mine.law) == theirs.gaps.sum_s(theirs.law)
        np.testing.assert_array_equal(mine.gaps.as_array(), theirs.gaps.as_array())
        for name, value in mine.work.as_dict().items():
            np.testing.assert_array_equal(value, theirs.work.as_dict()[name], err_msg=name)


@law
@given(SEEDS)
def test_law_5_the_same_case_gives_the_same_run(seed: int) -> None:
    assert_same(run_cluster(make_cluster_case(seed)), run_cluster(make_cluster_case(seed), events=7))


@law
@given(SEEDS)
def test_law_7_leaping_equals_stepping_in_a_cluster(seed: int) -> None:
    """With pools and links, closed loops, each router and order; what routers saw, too."""
    assert_same(run_cluster(make_cluster_case(seed)), run_cluster(make_cluster_case(seed), leaps=False))


@law
@given(SEEDS)
def test_law_7_holds_where_everything_happens_at_once(seed: int) -> None:
    """Replicas in lock-step, fed by users who do not think: an answer here is a request there at the same instant."""
    case = make_cluster_case(seed)
    rows = [Row(0.0, 8, 3 + 5 * (i % 3)) for i in range(24)]
    pool = dataclasses.replace(case.pools[-1], role="mixed", count=2 + seed % 2)

    def run(leaps: bool) -> Served:
        return run_cluster(
            ClusterCase([pool], 0, "fcfs", case.route, None, (1.0, 0.0), (2 + seed % 5, 0.0), rows), leaps=leaps
        )

    assert_same(run(True), run(False))


@law
@given(SEEDS)
def test_law_7_holds_where_decodes_take_the_pages_of_idle_prefixes(seed: int) -> None:
    """A router that asks what is cached must not see, in the midst of a leap, what stepping would have evicted."""
    rng, now, rows = Random(seed), 0.0, []
    for _ in range(30):
        now += rng.expovariate(1 / 0.1)
        family, units = rng.randint(0, 5), rng.randint(1, 5)
        hashes = tuple(100 * family + k for k in range(units))
        rows.append(Row(now, 4 * units + 1, rng.randint(20, 60), hashes))
    table = plain_table(linear_s=1e-3, token_s=1e-5, decode_s=1e-3, seqs=4, block=4, kv_blocks=rng.randint(24, 40))
    engine = EngineSettings(max_batched_tokens=256, max_seqs=4, block_tokens=4)

    def run(leaps: bool) -> Served:
        pools = [PoolCase("mixed", 2, table, engine)]
        return run_cluster(ClusterCase(pools, 4, "fcfs", NOSY, None, (1.0, 0.0), None, rows), leaps=leaps)

    assert_same(run(True), run(False))


@law
@given(SEEDS)
def test_law_8_each_replica_of_a_cluster_is_the_reference_on_its_requests(seed: int) -> None:
    case = make_cluster_case(seed)
    case = dataclasses.replace(case, pools=[dataclasses.replace(case.pools[0], role="mixed")], closed=None, admit=None)
    case.scale = None  # a replica that starts anew has nothing cached
    if case.route in HOLDERS:  # the reference knows when a request arrives, not when a router lets it go
        case.route = NOSY
    served = run_cluster(case)
    pool, columns = case.pools[0], served.columns
    for index, engine in enumerate(served.engines):
        mine = np.flatnonzero((columns["replica"] == index) & (columns["status"] != FAILED))
        rows = [case.rows[i] for i in mine]
        for row, i in zip(rows, mine.tolist(), strict=True):
            row.keep_s = served.keeper.said[i] if served.keeper is not None else 0.0
        reference = run_reference(Case(pool.table, pool.settings, case.unit_tokens, case.order, rows))
        for column, name in (("admitted_s", "admitted_s"), ("first_token_s", "first_s"), ("last_token_s", "last_s")):
            assert columns[column][mine].tolist() == [getattr(row, name) for row in rows]
        assert columns["cached_tokens"][mine].tolist() == [row.cached for row in rows]
        assert columns["preemptions"][mine].tolist() == [row.preemptions for row in rows]
        assert engine.kv.peak == reference.peak
        assert engine.hit_tokens == reference.hit_tokens


# --- 11 more replicas -------------------------------------------------------------------------------------------

SETTINGS = EngineSettings(max_batched_tokens=256, max_seqs=16)
SERVER = plain_table(linear_s=5e-3, token_s=2e-5, decode_s=1e-4, context_s=2e-7)
REPLICAS, RUNS = (1, 2, 3, 4), range(10)


def poisson(seed: int, rate: float, families: int, requests: int) -> list[Row]:
    """Poisson arrivals, exponential lengths; `families` of prompts begin alike for up to 320 tokens (0: none do)."""
    rng, now, rows = np.random.default_rng(seed), 0.0, []
    for i in range(requests):
        now += float(rng.exponential(1 / rate))
        prompt, output, family = 1 + int(rng.exponential(200)), 1 + int(rng.exponential(60)), rng.integers(families + 1)
        own = 1_000_000 + 1000 * i
        hashes = tuple((1000 * int(family) if k < 20 else own) + k for k in range(prompt // 16)) if families else ()
        rows.append(Row(now, prompt, output, hashes))
    return rows


def attainment(count: int, route: str, rows: list[Row], families: int) -> float:
    """Share of requests with a first token within 50 ms and later ones within 7.5 ms on average."""
    pools = [PoolCase("mixed", count, SERVER, SETTINGS)]
    case = ClusterCase(pools, 16 if families else 0, "fcfs", route, None, (1.0, 0.0), None, rows)
    columns = run_cluster(case).columns
    ttft_s = columns["first_token_s"] - columns["arrival_s"]
    gaps = np.maximum(columns["output_tokens"] - 1, 1)
    return float(np.mean((ttft_s <= 0.05) & (columns["last_token_s"] - columns["first_token_s"] <= 0.0075 * gaps)))


def upper_end(changes: np.ndarray) -> float:
    """Upper end of Student's 95 % interval of the mean change over paired seeds."""
    half = stats.t.ppf(0.975, len(changes) - 1) * changes.std(ddof=1) / np.sqrt(len(changes))
    return float(changes.mean() + half)


@pytest.mark.parametrize("route", ["least-requests", "least-tokens"])
@pytest.mark.parametrize("families", [0, 30])
def test_law_11_one_more_replica_never_lowers_attainment(route: str, families: int) -> None:
    """Never beyond noise: the 95 % interval of the change, seed by seed, reaches zero; from light load to overload."""
    requests, rates = (60, (20.0, 80.0)) if headway.interpreted_modules() else (250, (5.0, 20.0, 40.0, 80.0))
    for rate in rates:
        loads = [poisson(seed, rate, families, requests) for seed in RUNS]
        shares = np.array([[attainment(count, route, rows, families) for count in REPLICAS] for rows in loads])
        for before, after in pairwise(shares.T):
            assert upper_end(after - before) >= 0.0, f"at {rate}/s: {before.mean():.3f} to {after.mean():.3f}"
        if rate == 80.0:
            assert upper_end(shares[:, 0] - shares[:, 1]) < 0.0, "one replica fewer would not be noticed"


# --- 13 energy --------------------------------------------------------------------------------------------------


class Metered(ReferenceEngine):
    """The reference, with a meter: joules of every step by the step table's own formula."""

    joules = 0.0

    def time(self, lane: Batch) -> None:
        decoding = [] if self.table.prefill_alone and lane.chunks else lane.decoding
        reads = [row.tokens + 1 for row in decoding]
        window = sum(min(read, self.window) for read in reads)
        self.joules += self.table.step_joules(len(reads), sum(reads), window, lane.chunks)
        super().time(lane)


@law
@given(SEEDS)
def test_law_13_the_energy_of_all_steps_is_the_energy_of_the_run(seed: int) -> None:
    case = make_case(seed)
    meter = Metered(case.table, case.settings, case.unit_tokens, None)
    case.order = "fcfs"
    _, engine = run_core(case)
    meter.run(case.rows)
    prefill_j, decode_j = dynamic_joules(case.table, engine.work.as_dict())
    assert np.isclose(prefill_j + decode_j, meter.joules, rtol=1e-9)
    assert prefill_j >= 0.0 and decode_j >= 0.0
