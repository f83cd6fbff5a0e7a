"""Prefill and decode replicas in virtual time are the simulator's, and whoever leaves early leaves nothing behind."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from headway.cost import EngineSettings, Replica, compile_replica
from headway.emulate.pools import PacedPools
from headway.engine.checks import check_integrity
from headway.engine.live import make_sequence, told
from headway.hardware import Link
from headway.policies import Policy, policy
from headway.sim import Deployment, Policies, Pool, handoff, simulate
from headway.workload import SharedPrefix, WorkloadSpec, parse_length, workload
from headway.workload.arrivals import Poisson
from tests.core.drive import plain_table

CHOSEN: dict[int, dict[str, int]] = {}
SEEN: list[tuple[float, ...]] = []


class Chooser(Policy):
    """Draws, and notes what it chose."""

    reads_progress = False

    def __init__(self) -> None:
        self.asked = policy("route", "power-of-two")

    def route(self, request: Any, pool: Any) -> Any:
        answer = self.asked.route(request, pool)
        CHOSEN.setdefault(request.id, {})[pool.role] = answer.index
        return answer


class Keeper(Policy):
    """Keeps some prefixes, a few of them for ever."""

    reads_progress = False

    def retain(self, request: Any, replica: Any) -> Any:
        return kept_s(request.id)


def kept_s(number: int) -> float:
    return (0.0, 0.3, 2.0, 1e6)[number % 4]


def deployment(prefills: int, decodes: int, retain: str = "lru", **engine: Any) -> Deployment:
    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=EngineSettings(**engine))
    pools = Pool(role="prefill", count=prefills, replica=replica), Pool(role="decode", count=decodes, replica=replica)
    link = Link(name="slow enough to be waited for", bytes_per_s=10e9, latency_s=1e-4)
    return Deployment(pools=pools, policies=Policies(route=f"{__name__}:Chooser", retain=retain), kv_link=link)


def load_of(seed: int) -> Any:
    rng = Random(seed)
    spec = WorkloadSpec(
        prompt=parse_length("uniform:200:4000"),
        output=parse_length(rng.choice(["uniform:1:150", "uniform:100:300"])),
        arrival=Poisson(rate_req_s=rng.choice([20.0, 60.0])),
        requests=120,
        shared_prefix=SharedPrefix(tokens=parse_length(160), groups=3, block_tokens=16),
    )
    return workload(spec)


def pools_of(asked: Deployment, tables: tuple[Any, ...], link: Any = None) -> PacedPools:
    members = []
    for pool, table in zip(asked.pools, tables, strict=True):
        members += [(table, pool.replica, pool.role)] * pool.count
    return PacedPools(members, link or handoff(asked, "llama-3.1-8b"))


def sequences(load: Any, seed: int, keeps: bool = False) -> list[Any]:
    seqs = []
    for batch in load.batches(seed):
        for i in range(len(batch)):
            units = batch.hashes[batch.hash_offsets[i] : batch.hash_offsets[i + 1]]
            tokens = int(batch.prompt_tokens[i]), int(batch.output_tokens[i])
            number, keep_s = int(batch.id[i]), kept_s(int(batch.id[i])) if keeps else 0.0
            seqs.append(make_sequence(number, float(batch.arrival_s[i]), tokens, 0, units, keep_s))
    return seqs


def run(pools: PacedPools, news: list[tuple[float, Any]], until_s: float = float("inf")) -> dict[int, list[float]]:
    """Send, and let happen; `news` are (time, what to do then). The times of each one's tokens, by id."""
    times: dict[int, list[float]] = {}
    for when, do in [*sorted(news, key=lambda each: each[0]), (until_s, lambda: None)]:
        for now, _, parts in pools.advance(when):
            for part in parts:
                for seq in part.tokens:
                    times.setdefault(seq.id, []).append(now)
        do()
    return times


@pytest.mark.parametrize("seed", range(12))
def test_times_equal_the_simulators_to_the_bit(seed):
    """The whole way, with shared prefixes, transfers that wait for each other, and pages that run out."""
    CHOSEN.clear()
    rng, keeps = Random(seed), seed % 2 > 0
    retain = f"{__name__}:Keeper" if keeps else "lru"
    asked = deployment(rng.choice([1, 2, 3]), rng.choice([1, 2, 3]), retain, max_seqs=rng.choice([8, 64]))
    whole = compile_replica(asked.pools[0].replica)
    tables = tuple(msgspec.structs.replace(whole, kv_blocks=rng.choice([600, 1200])) for _ in asked.pools)
    load = load_of(seed)
    result = simulate(asked, load, seed=seed, tables=tables)
    assert result.requests.finished == result.requests.arrived
    pools, seqs = pools_of(asked, tables), sequences(load, seed, keeps)
    prefills = asked.pools[0].count
    for seq in seqs:
        at = CHOSEN[seq.id]
        decode, prefill = prefills + at.get("decode", 0), at["prefill"]
        assert pools.fits(seq, decode, prefill)
        pools.send(seq, seq.arrival_s, decode, prefill)
    times, rows = run(pools, []), result.records
    assert result.requests.finished == len(seqs)
    for i, seq in enumerate(seqs):
        assert times[seq.id][0] == rows["first_token_s"][i]
        assert times[seq.id][-1] == rows["last_token_s"][i]
        assert len(times[seq.id]) == rows["output_tokens"][i]
        assert told(seq).cached_tokens == rows["cached_tokens"][i]
    assert result.kv.preemptions == sum(pools.books(i, 1e9)["preemptions"] for i in range(len(pools.lives)))
    empty(pools)
    SEEN.append((result.kv.preemptions, pools.link.wait_s, told(seqs[-1]).cached_tokens))


def test_among_these_some_preempt_some_transfers_wait_and_some_prompts_are_cached():
    """Otherwise the law above would say little."""
    if not SEEN:
        pytest.skip("the law above was not tried here")
    assert all(any(figure > 0 for figure in column) for column in zip(*SEEN, strict=True))


def empty(pools: PacedPools) -> None:
    assert not pools.ways and pools.next_s == float("inf")
    for number, engines in enumerate(pools.engines):
        books = pools.books(number, 1e9)
        assert (books["running"], books["waiting"], books["kv_used"]) == (0, 0, 0), number
        for engine in engines:
            assert engine.waiting_tokens == 0
            check_integrity(engine)


@pytest.mark.parametrize("seed", range(30))
def test_requests_taken_back_at_any_moment_leave_empty_books(seed):
    rng = Random(seed)
    asked = deployment(2, 2, max_seqs=8)
    whole = compile_replica(asked.pools[0].replica)
    pools = pools_of(asked, tuple(msgspec.structs.replace(whole, kv_blocks=700) for _ in asked.pools))
    seqs, news, left = sequences(load_of(seed), seed, seed % 2 > 0), [], set()
    stages: set[str] = set()
    for seq in seqs:
        decode, prefill = rng.choice([2, 3]), rng.choice([0, 1, None])
        assert pools.fits(seq, decode, prefill)
        pools.send(seq, seq.arrival_s, decode, prefill)
        if rng.random() < 0.5:
            when = seq.arrival_s + rng.choice([rng.expovariate(1 / 0.1), rng.expovariate(1 / 2.0)])

            def leave(seq: Any = seq, when: float = when) -> None:
                way = pools.ways.get(seq)
                stages.add(way.stage if way else "over")
                pools.abort(seq, when)

            left.add(seq.id)
            news.append((when, leave))
    times = run(pools, news)
    for seq in seqs:
        if seq.id not in left:
            assert len(times[seq.id]) == told(seq).generated > 0
    assert "engine" in stages
    empty(pools)


def test_who_leaves_was_caught_on_every_part_of_the_way():
    """Otherwise the law above would say little."""
    link = Slow()
    asked = deployment(1, 1, max_seqs=1)
    table = plain_table(linear_s=0.010, seqs=1)
    for when, stage in ((0.0, "coming"), (0.005, "engine"), (0.012, "moving"), (0.015, "expected"), (0.9, "engine")):
        pools = pools_of(asked, (table, table), link)
        first, second = make_sequence(0, 0.0, (32, 50)), make_sequence(1, 0.0, (32, 50))
        both = [first] if stage == "moving" else [first, second]
        for seq in both:
            assert pools.fits(seq, 1, 0)
            pools.send(seq, 0.1 if stage == "coming" else 0.0, 1, 0)
        leaver = both[-1] if stage == "expected" else first
        seen: list[str] = []

        def leave(pools: PacedPools = pools, leaver: Any = leaver, when: float = when, seen: list[str] = seen) -> None:
            seen.append(pools.ways[leaver].stage)
            pools.abort(leaver, when)

        at = 0.025 if stage == "expected" else when
        run(pools, [(at, leave)])
        assert seen == [stage], stage
        empty(pools)


class Slow:
    """A link that takes half a second."""

    def send(self, source: int, target: int, tokens: int, now: float) -> float:
        return now + 0.5


def test_a_first_token_comes_with_the_prompt_and_the_second_when_the_kv_is_there():
    table = plain_table(linear_s=0.010, decode_s=0.001)
    pools = pools_of(deployment(1, 1), (table, table), Slow())
    seq = make_sequence(0, 0.0, (32, 4))
    assert pools.fits(seq, 1, 0)
    pools.send(seq, 0.0, 1, 0)
    assert run(pools, [])[0] == pytest.approx([0.010, 0.521, 0.532, 0.543], abs=1e-12)


def test_a_request_reaches_the_engine_that_computes_its_prompt_by_that_ones_time_outside():
    table = plain_table(linear_s=0.010)
    tables = tuple(msgspec.structs.replace(table, intake_s=intake_s) for intake_s in (0.5, 0.2))
    pools = pools_of(deployment(1, 1), tables, Slow())
    assert pools.intake_s == 0.2, "no answer may begin earlier than that"
    for id, prefill in ((0, 0), (1, None)):
        seq = make_sequence(id, 0.0, (32, 1))
        assert pools.fits(seq, 1, prefill)
        pools.send(seq, 0.0, 1, prefill)
    times = run(pools, [])
    assert (times[0], times[1]) == (pytest.approx([0.510]), pytest.approx([0.210]))


def test_without_a_prefill_replica_the_decode_replica_computes_the_prompt_itself():
    table = plain_table(linear_s=0.010)
    pools = pools_of(deployment(1, 1), (table, table), Slow())
    seq = make_sequence(0, 0.0, (32, 3))
    assert pools.fits(seq, 1, None)
    pools.send(seq, 0.0, 1, None)
    assert run(pools, [])[0] == pytest.approx([0.010, 0.020, 0.030], abs=1e-12)
    empty(pools)


def test_an_answer_of_one_token_is_not_handed_over():
    table = plain_table(linear_s=0.010)
    pools = pools_of(deployment(1, 1), (table, table), Slow())
    seq = make_sequence(0, 0.0, (32, 1))
    assert pools.fits(seq, 1, 0)
    pools.send(seq, 0.0, 1, 0)
    assert run(pools, [])[0] == pytest.approx([0.010])
    empty(pools)
