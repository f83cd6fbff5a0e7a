"""Prefixes that a policy keeps: they are there when they are wanted, and give way when their time is over."""

from __future__ import annotations

from random import Random

import msgspec
import numpy as np
import pytest
from drive import Case, ClusterCase, PoolCase, keep_some, plain_table, run_cluster, run_core, run_reference

import headway
from headway import Deployment, Pool, Replica, simulate
from headway.cost import EngineSettings, compile_replica
from headway.engine.reference import Row
from headway.errors import BadInput, UnknownName
from headway.metrics import Result
from headway.policies import Policy, policy
from headway.policies.contract import StockedReplica, make_request
from headway.sim import Policies
from headway.workload import Sessions, SharedPrefix, Workload, WorkloadSpec, parse_length, workload
from headway.workload.arrivals import Poisson
from headway.workload.spec import RequestClass, Wait

UNIT = 16
SETTINGS = EngineSettings(max_batched_tokens=256, max_seqs=4)


def ask(arrival_s: float, family: int, units: int = 4, keep_s: float = 0.0, output: int = 1) -> Row:
    """A prompt of full units, and one token more, so that all of them can be found again."""
    return Row(arrival_s, UNIT * units + 1, output, tuple(100 * family + k for k in range(units)), keep_s=keep_s)


def cached(rows: list[Row], units: int) -> list[int]:
    """Units that each found in a cache of so many, in the core and in the reference."""
    rows = [Row(row.arrival_s, row.prompt, row.output, row.hashes, keep_s=row.keep_s) for row in rows]
    # a running request has a page of its own beside its units
    table = plain_table(linear_s=1e-3, kv_blocks=units + 1, seqs=4)
    case = Case(table, SETTINGS, UNIT, "fcfs", rows)
    columns, engine = run_core(case)
    run_reference(case)
    assert columns["cached_tokens"].tolist() == [row.cached for row in rows]
    assert (columns["status"] == 0).all()
    assert engine.kv.used == 0
    return (columns["cached_tokens"] // UNIT).tolist()


# --- the cache --------------------------------------------------------------------------------------------------


def test_what_is_kept_is_found_again_within_its_time_and_not_after():
    others = [ask(1.0 + i, 10 + i) for i in range(6)]

    def found(keep_s: float) -> int:
        return cached([ask(0.0, 1, keep_s=keep_s), *others, ask(8.0, 1)], units=12)[-1]

    assert found(0.0) == 0
    assert found(60.0) == 4
    assert found(8.0) == 4
    assert found(1.0) == 0


def test_whose_time_is_over_goes_as_if_it_had_been_used_last_then():
    """Before who was used later, after who was used earlier, which is gone first."""
    rows = [ask(0.0, 1, keep_s=3.5), ask(1.0, 2), ask(2.0, 3), ask(5.0, 4)]
    assert cached([*rows, ask(6.0, 5), ask(7.0, 1)], units=16)[-1] == 4  # 2 went for 5
    assert cached([*rows, ask(6.0, 5), ask(6.1, 6), ask(7.0, 1)], units=16)[-1] == 4  # and 3 for 6
    assert cached([*rows, ask(6.0, 5), ask(6.1, 6), ask(6.2, 7), ask(7.0, 1)], units=16)[-1] == 0
    assert cached([*rows, ask(6.0, 5), ask(6.1, 6), ask(6.2, 7), ask(7.0, 4)], units=16)[-1] == 4


def test_a_time_begins_with_the_end():
    """Here 200 steps of 1 ms after the beginning."""
    rows = [ask(0.0, 1, keep_s=0.5, output=200), ask(0.6, 2), ask(0.61, 3), ask(0.62, 4), ask(0.65, 1)]
    assert cached(rows, units=32)[-1] == 4


def test_what_is_kept_keeps_nobody_waiting():
    """Where all is kept for whole days a request takes the pages of whose time ends first, its tail first."""
    rows = [ask(0.0, 1, keep_s=9e4), ask(1.0, 2, keep_s=8e4), ask(2.0, 3, keep_s=7e4), ask(3.0, 4, units=6)]
    case = Case(plain_table(linear_s=1e-3, kv_blocks=13, seqs=4), SETTINGS, UNIT, "fcfs", [ask(3.0, 4, units=6)])
    alone, _ = run_core(case)
    columns, _ = run_core(Case(case.table, SETTINGS, UNIT, "fcfs", rows))
    assert columns["last_token_s"][-1] == alone["last_token_s"][-1]
    assert columns["preemptions"].sum() == 0
    assert cached([*rows, ask(4.0, 3)], units=12)[-1] == 0
    assert cached([*rows, ask(4.0, 2)], units=12)[-1] == 2
    assert cached([*rows, ask(4.0, 1)], units=12)[-1] == 4


def test_a_prefix_that_several_keep_is_kept_until_the_last_of_their_times():
    others = [ask(3.0 + i, 10 + i) for i in range(4)]
    rows = [ask(0.0, 1, keep_s=60.0), ask(1.0, 1, keep_s=0.1), ask(2.0, 1), *others, ask(8.0, 1)]
    assert cached(rows, units=12)[-1] == 4
    rows[0].keep_s = 0.0
    assert cached(rows, units=12)[-1] == 0


def test_what_an_answer_has_made_is_kept_too():
    first = Row(0.0, 33, 32, tuple(range(4)), keep_s=60.0)
    others = [ask(1.0 + i, 10 + i) for i in range(6)]
    assert cached([first, *others, Row(9.0, 65, 1, tuple(range(4)))], units=12)[-1] == 4


@pytest.mark.parametrize("keep_s", [0.02, 1e6])
def test_hundreds_of_kept_prefixes_in_a_cache_that_grows(keep_s):
    """More than a thousand units at once, so that the cache's tables double, and lists that run empty among them."""
    rng, now, rows, turns = Random(keep_s), 0.0, [], {}
    for _ in range(400):
        now += rng.expovariate(200.0)
        family = rng.randint(0, 150)
        turns[family] = min(turns.get(family, 0) + rng.randint(1, 6), 40)
        rows.append(ask(now, family, turns[family], rng.choice([0.0, keep_s, 2 * keep_s])))
    table = plain_table(linear_s=1e-3, kv_blocks=1200, seqs=4)
    case = Case(table, SETTINGS, UNIT, "fcfs", rows)
    columns, engine = run_core(case)
    reference = run_reference(case)
    assert columns["cached_tokens"].tolist() == [row.cached for row in rows]
    assert columns["last_token_s"].tolist() == [row.last_s for row in rows]
    assert engine.hit_tokens == reference.hit_tokens > 0
    assert len({unit for row in rows for unit in row.hashes}) > 1200, "nothing had to go"


def test_a_prefill_replica_keeps_prompts_and_a_decode_replica_nothing():
    """Decode replicas compute no prompts: what they kept would be of use to nobody, and cost them pages."""
    tables = [plain_table(linear_s=1e-3, kv_blocks=blocks, seqs=4) for blocks in (13, 200)]
    pools = [PoolCase(role, 1, table, SETTINGS) for role, table in zip(("prefill", "decode"), tables, strict=True)]
    rows = [ask(float(i), i % 5, output=5) for i in range(6)]
    case = ClusterCase(pools, UNIT, "fcfs", "round-robin", None, (1e6, 0.0), None, rows)
    assert run_cluster(case).columns["cached_tokens"][-1] == 0
    case.keeps = True
    asked: list[tuple[int, int]] = []

    class First(Policy):
        def retain(self, request, replica):
            asked.append((request.id, replica.kv_total_blocks))
            return 60 if request.id == 0 else None

    served = run_cluster(case, keeper=First())
    assert served.columns["cached_tokens"][-1] == 4 * UNIT
    assert asked == [(i, 13) for i in range(6)]


# --- the policies -----------------------------------------------------------------------------------------------


def test_keep_sessions_keeps_those_of_sessions_for_its_time():
    chosen = policy("retain", "keep-sessions", {"keep_s": 7.0})
    alone, turn = (
        make_request(id=0, arrival_s=0.0, prompt_tokens=10, session=number) for number in (-1, 3)
    )
    replica = StockedReplica(0, (0, 0, 0, 0, 0, 0))
    assert chosen.retain(turn, replica) == 7.0
    assert chosen.retain(alone, replica) == 0.0
    assert policy("retain", "lru").retain(turn, replica) == 0.0
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(BadInput, match="expected seconds above 0"):
            policy("retain", "keep-sessions", {"keep_s": wrong})


at_length = pytest.mark.skipif(
    bool(headway.interpreted_modules()), reason="what a policy makes of long runs is seen compiled"
)
REPLICA = Replica(model="llama-3.1-8b", gpu="h100-sxm")


def agents_and_documents(documents: int, kv_tokens: int, requests: int) -> tuple[Workload, tuple]:
    """Sessions whose turns are 20 to 40 s apart, beside questions about so many documents; and a step law."""
    agents = WorkloadSpec(
        prompt=parse_length(2000), output=parse_length(100), arrival=Poisson(rate_req_s=2.0),
        sessions=Sessions(calls=parse_length("uniform:4:12"), growth=parse_length(600), gap=Wait(seconds=(20.0, 40.0))),
    )  # fmt: skip
    about = SharedPrefix(tokens=parse_length(5888), groups=documents, skew=1.0 if documents < 100 else 0.0)
    asked = WorkloadSpec(
        prompt=parse_length(6000), output=parse_length(50), arrival=Poisson(rate_req_s=3.0), shared_prefix=about
    )
    classes = RequestClass(name="agents", workload=agents), RequestClass(name="documents", workload=asked)
    table = compile_replica(REPLICA)
    table = msgspec.structs.replace(table, kv_blocks=kv_tokens // table.block_tokens)
    return workload(WorkloadSpec(name="mix", requests=requests, classes=classes)), (table,)


def mean_ttft_s(result: Result) -> list[float]:
    """Of agents, of documents."""
    rows = result.records
    ttft_s, of = rows["first_token_s"] - rows["arrival_s"], rows["slo_class"]
    return [float(np.mean(ttft_s[of == number])) for number in (0, 1)]


def served(retain: str, documents: int, requests: int, seed: int, **params: float) -> list[float]:
    load, tables = agents_and_documents(documents, 600_000, requests)
    chosen = Policies(retain=retain, params={"retain": params})
    deployment = Deployment(pools=(Pool(replica=REPLICA),), policies=chosen)
    return mean_ttft_s(simulate(deployment, load, seed=seed, tables=tables))


@at_length
@pytest.mark.parametrize("seed", range(2))
def test_keeping_sessions_beats_lru_where_one_off_prompts_flood_the_cache(seed):
    """Each document is asked about once: its KV is of no use, and under LRU drives out that of waiting sessions."""
    lru = served("lru", 1_000_000, 700, seed)
    kept = served("keep-sessions", 1_000_000, 700, seed, keep_s=60.0)
    assert kept[0] < 0.7 * lru[0]
    assert kept[1] < lru[1], "fewer prompts to compute are good for all"


@at_length
def test_keeping_sessions_hurts_where_what_gives_way_is_wanted_sooner():
    """Some documents are asked about all the time, and ended sessions hold the pages that they need."""
    seed = 0
    lru = served("lru", 60, 1500, seed)
    kept = served("keep-sessions", 60, 1500, seed, keep_s=300.0)
    assert kept[1] > 1.3 * lru[1]


@at_length
def test_where_all_are_sessions_keeping_them_changes_nothing():
    """Who ended first is whose time ends first: the order is that of LRU."""
    load = workload("agent", requests=150, rate=2.0)
    table = msgspec.structs.replace(compile_replica(REPLICA), kv_blocks=4000)

    def rows(retain: str) -> Result:
        deployment = Deployment(pools=(Pool(replica=REPLICA),), policies=Policies(retain=retain))
        return simulate(deployment, load, tables=(table,))

    lru, kept = rows("lru"), rows("keep-sessions")
    np.testing.assert_array_equal(lru.records["last_token_s"], kept.records["last_token_s"])
    assert 0.05 < lru.kv.prefix_hit_rate < 0.95


# --- what is wrong ----------------------------------------------------------------------------------------------


class Sixty(Policy):
    def retain(self, request, replica):
        return "60s"


class Eternal(Policy):
    def retain(self, request, replica):
        return float("inf")


class Endless(Policy):
    def retain(self, request, replica):
        return 10**400


@pytest.mark.parametrize("wrong", ["Sixty", "Eternal", "Endless"])
def test_an_answer_that_is_no_time_stops_the_simulation(wrong):
    deployment = Deployment(
        pools=(Pool(replica=REPLICA),), policies=Policies(retain=f"{__name__}:{wrong}")
    )
    with pytest.raises(BadInput, match=r"retain policy answered .* seconds are expected"):
        simulate(deployment, workload("chat", requests=5))


def test_a_name_that_is_none_is_answered_with_those_there_are():
    with pytest.raises(UnknownName, match="keep-sessions"):
        policy("retain", "keep-session")


def test_random_cases_keep_something():
    """Otherwise the laws would say nothing about it."""
    kept = [keep_some([ask(0.0, 1) for _ in range(20)], seed) for seed in range(40)]
    assert sum(any(row.keep_s for row in rows) for rows in kept) > 10
