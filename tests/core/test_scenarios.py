"""Small scenarios whose times are worked out by hand: they pin the core, and the reference it is held against.

Every step takes one second unless a test says otherwise, and KV pages hold one token, so the arithmetic is that of
the comments. Times are exact in binary: they are compared without tolerance.
"""

from __future__ import annotations

import copy
import dataclasses
from random import Random

import msgspec
import numpy as np
import pytest
from drive import (
    BINS,
    Case,
    ClusterCase,
    PoolCase,
    Served,
    plain_table,
    run_cluster,
    run_core,
    run_ranks,
    run_reference,
)

from headway.cost import EngineSettings, StepTable
from headway.engine import Engine, Gaps, StepLaw, WorkDone
from headway.engine.reference import ReferenceRanks, Row
from headway.policies import policy
from headway.state import PoolState, Request

COLUMNS = {"admitted_s": "admitted_s", "first_token_s": "first_s", "last_token_s": "last_s", "cached_tokens": "cached"}
LINK = (4.0, 0.5)  # bytes/s and seconds; a token of `run_cluster` is 3 bytes, so it takes 0.75 s


def table(*, kv_blocks: int = 400, block: int = 1, budget: int = 64, seqs: int = 8, **changes: object) -> StepTable:
    """A step takes one second whatever is in it."""
    plain = plain_table(linear_s=1.0, kv_blocks=kv_blocks, block=block, budget=budget, seqs=seqs)
    return msgspec.structs.replace(plain, **changes)


def engine_settings(law: StepTable) -> EngineSettings:
    return EngineSettings(
        max_batched_tokens=law.max_batched_tokens, max_seqs=law.max_seqs, block_tokens=law.block_tokens
    )


def served(rows: list[Row], law: StepTable, *, order: str = "fcfs", unit: int = 0) -> dict[str, list[float]]:
    """What became of the rows, by column; the core and the reference must say the same."""
    case = Case(law, engine_settings(law), unit, order, rows)
    columns, _ = run_core(copy.deepcopy(case))
    run_reference(case)
    for name, theirs in COLUMNS.items():
        assert columns[name].tolist() == [getattr(row, theirs) for row in case.rows], name
    assert columns["preemptions"].tolist() == [row.preemptions for row in case.rows]
    return {name: columns[name].tolist() for name in (*COLUMNS, "preemptions")} | {
        "recomputed": [row.recomputed for row in case.rows]
    }


# --- one replica: who runs --------------------------------------------------------------------------------------


def test_running_sequences_come_first_and_prompts_share_what_is_left_of_the_budget() -> None:
    """Budget 4: the first decodes with 1, so 3 a step remain for a prompt of 7, and 2 of the last for the next."""
    rows = [Row(0.0, 4, 6), Row(0.5, 7, 1), Row(0.5, 2, 1)]
    found = served(rows, table(budget=4, seqs=4))
    # steps end at 1: A's 4; 2: A + 3; 3: A + 3; 4: A + 1 + 2 of C; 5, 6: A
    assert found["admitted_s"] == [0.0, 1.0, 3.0]
    assert found["first_token_s"] == [1.0, 4.0, 4.0]
    assert found["last_token_s"] == [6.0, 4.0, 4.0]


def test_no_more_sequences_run_than_allowed() -> None:
    """Two places: the third request enters when the first has left."""
    found = served([Row(0.0, 2, 2), Row(0.0, 2, 4), Row(0.0, 2, 1)], table(seqs=2))
    assert found["admitted_s"] == [0.0, 0.0, 2.0]
    assert found["last_token_s"] == [2.0, 4.0, 3.0]


def test_the_sequence_admitted_last_is_preempted_and_computes_its_kv_anew() -> None:
    """7 pages: both hold 2, then 3 each; the third step needs 8, so B goes with 3 tokens of KV and 2 generated.

    B needs 4 pages to come back; A holds 5 until it ends at 4.
    """
    found = served([Row(0.0, 2, 4), Row(0.0, 2, 4)], table(kv_blocks=7))
    assert found["preemptions"] == [0, 1]
    assert found["last_token_s"] == [4.0, 6.0]  # B: tokens at 1 and 2, then 5 (4 tokens of prompt anew) and 6
    assert found["recomputed"] == [0, 3]
    assert found["admitted_s"] == [0.0, 0.0]


def test_who_was_preempted_waits_before_all_others() -> None:
    """As above; C would fit at 3, but B is the queue's head, and both enter at 4."""
    found = served([Row(0.0, 2, 4), Row(0.0, 2, 4), Row(1.5, 1, 1)], table(kv_blocks=7))
    assert found["admitted_s"] == [0.0, 0.0, 4.0]
    assert found["first_token_s"] == [1.0, 1.0, 5.0]
    assert found["last_token_s"] == [4.0, 6.0, 5.0]


def test_nobody_is_admitted_in_the_step_of_a_preemption() -> None:
    """As above with C the more urgent: 3 pages are free once B is out at 2, yet C enters at 3."""
    rows = [Row(0.0, 2, 4, priority=1), Row(0.0, 2, 4, priority=1), Row(1.5, 1, 1)]
    found = served(rows, table(kv_blocks=7), order="priority")
    assert found["admitted_s"] == [0.0, 0.0, 3.0]
    assert found["last_token_s"] == [4.0, 6.0, 4.0]


def test_a_prompt_under_way_that_finds_no_page_is_preempted() -> None:
    """Budget 3, 9 pages: A decodes, so 2 of B's 6 tokens are computed a step; B enters with room for all of them.

    At 3 A takes its fifth page, the last one, and B goes with 4 tokens. A holds 8 pages until it ends at 7.
    """
    found = served([Row(0.0, 2, 7), Row(0.5, 6, 1)], table(kv_blocks=9, budget=3, seqs=3))
    assert found["preemptions"] == [0, 1]
    assert found["admitted_s"] == [0.0, 1.0]
    assert found["last_token_s"] == [7.0, 9.0]  # B: alone from 7 on, 3 tokens a step
    assert found["recomputed"] == [0, 4]


def test_a_prompt_under_way_is_preempted_before_those_that_decode() -> None:
    """Budget 4, 12 pages: three decode, so one of B's 6 tokens is computed a step, from 1 on.

    At 3 the three hold 9 pages and B 2; three more are needed, and B goes. The three end at 4 with 12 pages.
    """
    found = served([*(Row(0.0, 1, 4) for _ in range(3)), Row(0.5, 6, 1)], table(kv_blocks=12, budget=4, seqs=4))
    assert found["preemptions"] == [0, 0, 0, 1]
    assert found["admitted_s"] == [0.0, 0.0, 0.0, 1.0]
    assert found["last_token_s"] == [4.0, 4.0, 4.0, 6.0]  # B: 4 tokens, then 2
    assert found["recomputed"] == [0, 0, 0, 2]


# --- one replica: prefixes --------------------------------------------------------------------------------------


def test_units_idle_longest_are_evicted_first() -> None:
    """Of 4 pages of 4 tokens two hold the idle units 1 and 2; 12 other tokens need a third page: unit 1 goes."""
    rows = [Row(0.0, 5, 1, (1,)), Row(10.0, 5, 1, (2,)), Row(20.0, 12, 1), Row(30.0, 5, 1, (2,)), Row(40.0, 5, 1, (1,))]
    found = served(rows, table(kv_blocks=4, block=4), unit=4)
    assert found["cached_tokens"] == [0, 0, 0, 4, 0]


def test_a_hit_makes_a_unit_the_youngest() -> None:
    """As above, but unit 1 is used again before the eviction: unit 2 goes."""
    rows = [
        Row(0.0, 5, 1, (1,)),
        Row(10.0, 5, 1, (2,)),
        Row(15.0, 5, 1, (1,)),
        Row(20.0, 12, 1),
        Row(30.0, 5, 1, (1,)),
        Row(40.0, 5, 1, (2,)),
    ]
    found = served(rows, table(kv_blocks=4, block=4), unit=4)
    assert found["cached_tokens"] == [0, 0, 4, 0, 4, 0]


def test_a_chain_is_evicted_from_its_tail() -> None:
    """Units 1, 2 are cached; 12 other tokens leave room for one of them: the leading one stays."""
    found = served(
        [Row(0.0, 9, 1, (1, 2)), Row(10.0, 12, 1), Row(20.0, 9, 1, (1, 2))], table(kv_blocks=4, block=4), unit=4
    )
    assert found["cached_tokens"] == [0, 0, 4]


def test_units_in_use_cost_a_newcomer_nothing() -> None:
    """A holds 3 of 4 pages until 4; B shares two of them, so the fourth is enough and it enters at 1."""
    found = served([Row(0.0, 9, 4, (1, 2)), Row(0.5, 9, 2, (1, 2))], table(kv_blocks=4, block=4), unit=4)
    assert found["cached_tokens"] == [0, 8]
    assert found["admitted_s"] == [0.0, 1.0]
    assert found["last_token_s"] == [4.0, 3.0]


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    """8 cached tokens are the whole second prompt: one unit of it is computed again."""
    found = served([Row(0.0, 9, 1, (1, 2)), Row(10.0, 8, 1, (1, 2))], table(kv_blocks=9, block=4), unit=4)
    assert found["cached_tokens"] == [0, 4]


# --- one replica: how long a step takes -------------------------------------------------------------------------


def test_a_step_is_the_sum_of_its_parts() -> None:
    """A prompt of 4 behind nothing has an area of 1 + 2 + 3 + 4; a decode reads the context it extends."""
    law = table(prefill_base_s=0.5, prefill_area_s=0.25, prompt_step_s=0.125)
    law = msgspec.structs.replace(
        law, decode_ctx_s=np.full(9, 0.0625), seq_s=np.arange(9.0), decode_s=np.array([0.0, *[2.0] * 8])
    )
    found = served([Row(0.0, 4, 3)], law)
    first_s = 1.0 + 1.0 + 0.125 + 0.5 + 10 * 0.25
    assert found["first_token_s"] == [first_s]
    assert found["last_token_s"] == [first_s + 2 * (1.0 + 1.0 + 2.0) + (5 + 6) * 0.0625]


def test_a_pipeline_hands_each_batch_on_at_a_price_by_its_tokens() -> None:
    """Two stages of a second each, 0.25 s a token between them.

    A's 2 tokens: 0-1, over by 1.5, 1.5-2.5. B's 4: 1-2, over by 3, 3-4. A's second token: 2.5-3.5, over by 3.75,
    the stage is free at 4: 4-5.
    """
    law = table(stages=2, p2p_s=0.25 * np.arange(65.0))
    found = served([Row(0.0, 2, 2), Row(0.5, 4, 1)], law)
    assert found["first_token_s"] == [2.5, 4.0]
    assert found["last_token_s"] == [5.0, 4.0]
    assert found["admitted_s"] == [0.0, 1.0]


def test_a_window_bounds_pages_and_attention() -> None:
    """Window 4: decodes of a prompt of 2 read 3, 4, 4 windowed tokens at 0.25 s each."""
    law = table(window=4, window_group=1, window_blocks=4, decode_window_s=np.full(9, 0.25))
    assert served([Row(0.0, 2, 4)], law)["last_token_s"] == [1.0 + 3.0 + (3 + 4 + 4) * 0.25]


# --- data-parallel ranks ----------------------------------------------------------------------------------------


def test_ranks_wait_for_the_slowest_and_then_for_the_experts_of_all() -> None:
    """Rank 0 computes 4 prompt tokens (5 s), rank 1 one (2 s); the experts of 5 tokens take 0.25 s each."""
    law = table(ranks=2, linear_s=1.0 + np.arange(65.0), shared_s=0.25 * np.arange(129.0), shared_j=np.zeros(129))
    case = Case(law, engine_settings(law), 0, "fcfs", [Row(0.0, 4, 2), Row(0.0, 1, 1)])
    columns, _ = run_ranks(copy.deepcopy(case))
    ReferenceRanks(law, case.settings, 0, None).run(case.rows)
    # then one decode: 2 s, and 0.25 s for its token
    assert columns["last_token_s"].tolist() == [row.last_s for row in case.rows] == [6.25 + 2.25, 6.25]
    assert columns["first_token_s"].tolist() == [row.first_s for row in case.rows] == [6.25, 6.25]


# --- the link between prefill and decode replicas ---------------------------------------------------------------


def split(
    rows: list[Row],
    *,
    prefill: int = 1,
    decode: int = 1,
    link: tuple[float, float] = LINK,
    pages: tuple[int, int] = (400, 400),
    route: str = "least-requests",
    nodes: list[int] | None = None,
    near: tuple[float, float] = (float("inf"), 0.0),
    **changes: object,
) -> Served:
    """Prefill and decode pools of this many replicas with this many pages each."""
    pools = []
    for role, count, kv_blocks in zip(("prefill", "decode"), (prefill, decode), pages, strict=True):
        law = table(kv_blocks=kv_blocks, **changes)
        pools.append(PoolCase(role, count, law, engine_settings(law)))
    case = ClusterCase(pools, 0, "fcfs", route, None, link, None, rows, nodes=nodes, near=near)
    runs = [
        run_cluster(dataclasses.replace(case, rows=copy.deepcopy(rows)), leaps=leaps) for leaps in (False, True)
    ]
    np.testing.assert_array_equal(runs[0].columns["last_token_s"], runs[1].columns["last_token_s"])
    return runs[1]


def gap_seconds(done: Served) -> tuple[int, float]:
    """How many gaps between tokens were counted in the decode pool, and their sum."""
    gaps: Gaps = done.pools[1][0].gaps
    return int(gaps.as_array().sum()), gaps.sum_s(done.pools[1][0].law)


def test_two_transfers_to_one_receiver_take_turns() -> None:
    """Two senders are ready at 1. A's 2 tokens: 1-2.5, there at 3. B's 3: 2.5-4.75, there at 5.25.

    A decodes from 3 on; B joins at the step boundary after 5.25, which is 6.
    """
    done = split([Row(0.0, 2, 6), Row(0.0, 3, 3)], prefill=2)
    assert done.columns["first_token_s"].tolist() == [1.0, 1.0]
    assert done.columns["last_token_s"].tolist() == [8.0, 8.0]  # A: 4, 5, 6, 7, 8; B: 7, 8
    assert done.columns["pool"].tolist() == [1, 1]
    # between the first token and the second lie the transfer and the wait for it: 3 s of A, 6 s of B
    assert gap_seconds(done) == (7, 3.0 + 4 * 1.0 + 6.0 + 1.0)
    assert done.handoff is not None and done.handoff.wait_s == 1.5


def test_two_transfers_from_one_sender_take_turns() -> None:
    """Both prompts end in one step at 1; the receivers are two. A is there at 3 as before, B at 5.25."""
    done = split([Row(0.0, 2, 3), Row(0.0, 3, 3)], decode=2)
    assert done.columns["replica"].tolist() == [1, 2]
    assert done.columns["last_token_s"].tolist() == [5.0, 7.25]
    assert gap_seconds(done) == (4, 3.0 + 1.0 + 5.25 + 1.0)


def test_a_sender_keeps_the_pages_until_they_have_been_fetched() -> None:
    """3 pages hold one prompt of 2: B enters when A's KV has arrived at 3, and is there at 4 + 1.5 + 0.5."""
    done = split([Row(0.0, 2, 3), Row(0.0, 2, 3)], pages=(3, 400))
    assert done.columns["admitted_s"].tolist() == [0.0, 3.0]
    assert done.columns["first_token_s"].tolist() == [1.0, 4.0]
    assert done.columns["last_token_s"].tolist() == [5.0, 8.0]


def test_a_receiver_fetches_what_it_has_pages_for() -> None:
    """5 pages hold one of two prompts of 3: A is there at 3.75 and done at 4.75, when B's transfer begins."""
    done = split([Row(0.0, 3, 2), Row(0.0, 3, 2)], pages=(400, 5))
    assert done.columns["last_token_s"].tolist() == [4.75, 4.75 + 2.25 + 0.5 + 1.0]
    assert gap_seconds(done) == (2, 3.75 + 7.5)


def test_a_decode_replica_preempts_and_computes_the_kv_itself() -> None:
    """A transfer that takes no time: the scenario of one replica with 7 pages, with the prompts computed elsewhere."""
    done = split([Row(0.0, 2, 4), Row(0.0, 2, 4)], link=(float("inf"), 0.0), pages=(400, 7))
    assert done.columns["preemptions"].tolist() == [0, 1]
    assert done.columns["last_token_s"].tolist() == [4.0, 6.0]
    assert gap_seconds(done) == (6, 3 * 1.0 + 1.0 + 3.0 + 1.0)  # B: tokens at 1, 2, 5 and 6


def test_of_layers_with_a_window_only_the_window_moves() -> None:
    """10 tokens of 3 bytes and 4 of 2 in layers with a window of 4, at 4 bytes/s; the third transfer waits."""
    window = {"window": 4, "window_group": 1, "window_blocks": 4}
    done = split([Row(0.0, 10, 2), Row(20.0, 3, 2), Row(20.0, 3, 2)], **window)
    assert done.columns["last_token_s"].tolist() == [1.0 + 9.5 + 0.5 + 1.0, 21.0 + 3.75 + 0.5 + 1.0, 30.0]
    assert done.handoff is not None
    assert done.handoff.bytes_moved == 38.0 + 15.0 + 15.0
    assert done.handoff.wait_s == 3.75


def test_who_was_preempted_goes_before_kv_that_waits_to_be_fetched() -> None:
    """As above; C's prompt is computed from 1.5 to 2.5 and would fit at 3, but B, which waits for 4 pages, is first.

    B enters at 4. C's one page is asked for at 5, in the step that B's second decode begins: C joins the next.
    """
    rows = [Row(0.0, 2, 4), Row(0.0, 2, 4), Row(1.5, 1, 2)]
    done = split(rows, link=(float("inf"), 0.0), pages=(400, 7))
    assert done.columns["first_token_s"].tolist() == [1.0, 1.0, 2.5]
    assert done.columns["last_token_s"].tolist() == [4.0, 6.0, 7.0]


def test_on_one_node_kv_takes_the_nodes_own_link() -> None:
    """A and B are computed by 1, on nodes 0 and 1, and C by 2, on 0. The decode replicas stand on nodes 1 and 0.

    By fewest requests A and B go to the other node each, 1 to 2.5 and there at 3, and C behind A, 2.5 to 4 and there at
    4.5. The router that looks where KV is leaves them at home, there at 1, 1 and 2, and in a step 1, 1 and 3.
    """
    rows = [Row(0.0, 2, 9), Row(0.0, 2, 9), Row(1.0, 2, 3)]
    stand = {"prefill": 2, "decode": 2, "nodes": [0, 1, 1, 0]}
    anywhere, home = split(rows, **stand), split(rows, route="same-node", **stand)
    assert anywhere.columns["replica"].tolist() == [2, 3, 2]
    assert home.columns["replica"].tolist() == [3, 2, 3]
    assert anywhere.columns["last_token_s"].tolist() == [11.0, 11.0, 7.0]
    assert home.columns["last_token_s"].tolist() == [9.0, 9.0, 5.0]
    assert anywhere.handoff is not None and home.handoff is not None
    assert anywhere.handoff.bytes_moved == home.handoff.bytes_moved == 18.0


def test_the_two_links_of_a_replica_are_used_at_the_same_time() -> None:
    """Both prompts end at 1 at one sender: A's KV is there at 3 over the network, B's at 2 within the node."""
    done = split([Row(0.0, 2, 3), Row(0.0, 3, 3)], decode=2, nodes=[0, 1, 0], near=(12.0, 0.25))
    assert done.columns["last_token_s"].tolist() == [5.0, 4.0]
    assert done.handoff is not None and done.handoff.wait_s == 0.0


def test_who_has_no_replica_at_home_goes_to_the_least_busy_elsewhere() -> None:
    done = split([Row(0.0, 2, 3), Row(0.0, 2, 3)], decode=2, route="same-node", nodes=[0, 1, 2])
    assert done.columns["replica"].tolist() == [1, 2]


def test_a_request_of_one_token_needs_no_transfer() -> None:
    done = split([Row(0.0, 2, 1)])
    assert done.columns["last_token_s"].tolist() == [1.0]
    assert done.columns["pool"].tolist() == [0]
    assert done.handoff is not None and done.handoff.bytes_moved == 0.0


# --- several replicas and closed loops --------------------------------------------------------------------------


def mixed(rows: list[Row], *, count: int, route: str, closed: tuple[int, float] | None = None) -> Served:
    law = table()
    pools = [PoolCase("mixed", count, law, engine_settings(law))]
    return run_cluster(ClusterCase(pools, 0, "fcfs", route, None, LINK, closed, rows))


@pytest.mark.parametrize("route", ["round-robin", "least-requests", "least-tokens", "prefix-affinity"])
def test_of_equals_the_first_replica_is_taken(route: str) -> None:
    """Three idle replicas, then two, then one."""
    rows = [Row(1.25 * i, 2, 9) for i in range(3)]
    assert mixed(rows, count=3, route=route).columns["replica"].tolist() == [0, 1, 2]


def test_power_of_two_takes_the_first_drawn_of_equals() -> None:
    """The second draw is among the others: with two replicas it is the other one."""
    law = table()
    engine = (StepLaw(law), engine_settings(law), "mixed", None, 0, WorkDone(64, 8), Gaps(*BINS, 8))
    pool = PoolState("mixed", [Engine(i, *engine) for i in range(2)], Random(7))
    stream, router = Random(7), policy("route", "power-of-two")
    request = Request(0, 0.0, 1)
    for _ in range(20):
        first, _ = int(stream.random() * 2), stream.random()
        assert router.route(request, pool).index == first


def test_a_user_of_a_closed_loop_thinks_between_requests() -> None:
    """One user, two tokens a request in 2 s, then 3 s of thought."""
    done = mixed([Row(0.0, 2, 2) for _ in range(3)], count=1, route="round-robin", closed=(1, 3.0))
    assert done.columns["arrival_s"].tolist() == [0.0, 5.0, 10.0]
    assert done.columns["last_token_s"].tolist() == [2.0, 7.0, 12.0]


def test_the_users_of_a_closed_loop_do_not_wait_for_each_other() -> None:
    """Two users with requests of 2 and 4 tokens: the first sends its second at 3, while the other is served."""
    done = mixed([Row(0.0, 2, 2), Row(0.0, 2, 4), Row(0.0, 2, 1)], count=1, route="round-robin", closed=(2, 1.0))
    assert done.columns["arrival_s"].tolist() == [0.0, 0.0, 3.0]
    assert done.columns["last_token_s"].tolist() == [2.0, 4.0, 4.0]
