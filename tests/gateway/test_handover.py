"""Prefill and decode pools live: one decision names two replicas, and the books of both are right."""

from __future__ import annotations

import asyncio
import importlib.util
from random import Random
from typing import Any

import pytest
from brain_cases import ADDRESSES, Life, ask, table
from log_cases import header, logged_life
from test_gateway_parity import FIELDS, Recorder, Stock, request_of, told

from cli_cases import refused, run
from headway.cost import Replica, compile_replica
from headway.gateway import Backing, Brain, GatewaySpec, Reader
from headway.gateway.events import EndRecord, EngineSample, Held, Refused, Routed
from headway.gateway.fence import Fence
from headway.gateway.gauges import gauges_of
from headway.gateway.live import LivePool, LiveReplica
from headway.gateway.log.reader import runs
from headway.gateway.log.replay import replay
from headway.gateway.log.writer import LogWriter
from headway.gateway.overview import Overview
from headway.gateway.picker import NOT_SERVING, SERVING, Picker
from headway.gateway.spec import Health, Limits, LogSpec, SloClass
from headway.hardware import node
from headway.metrics import Slo
from headway.policies import Policy, policy, policy_names
from headway.sim import Deployment, Policies, Pool, simulate
from headway.state import Hold, Route, Scale
from headway.workload import WorkloadSpec, parse_length, workload
from headway.workload.arrivals import Regular

ROLES = ("prefill", "prefill", "decode", "decode")
SEED = 3
REPLICA = Replica(model="llama-3.1-8b", gpu="l40s")


def brain(roles: tuple[str, ...] = ROLES, *, route: Policy | str = "least-requests", **more: Any) -> Brain:
    policies = {"order": policy("order", "fcfs"), "admit": policy("admit", "accept-all"), **more.pop("policies", {})}
    policies["route"] = policy("route", route) if isinstance(route, str) else route
    spec = GatewaySpec(upstreams=ADDRESSES[: len(roles)], models=("m",), **more)
    backings = [Backing(model="m", role=role, table=table(), fetch_s=(0.001, 1e-5)) for role in roles]
    return Brain(spec, backings, policies, SEED)


def routed(answers: list[Any]) -> Routed:
    (answer,) = answers
    assert isinstance(answer, Routed), answer
    return answer


# --- decisions ---


def test_kv_on_the_same_node_is_expected_sooner():
    b, roles = brain(route="same-node"), zip(ROLES, (0, 1, 1, 0), strict=True)
    far = {"fetch_s": (0.5, 1e-5), "near_fetch_s": (0.001, 1e-6)}
    backings = [Backing(model="m", role=role, table=table(), node=at, **far) for role, at in roles]
    b = Brain(b.spec, backings, b.fence.policies, SEED)
    answers = [routed(b.arrive(0.0, ask(id, prompt_tokens=4000))) for id in "ab"]
    assert [(one.prefill, one.hosts[0]) for one in answers] == [(0, 3), (1, 2)]
    for i, id in enumerate("ab"):
        computed_s = b.books[i].entries[id].due_s
        assert b.live[id].due_s == pytest.approx(computed_s + 0.001 + 4000e-6)


def test_a_decision_names_a_prefill_replica_and_the_decode_replicas_to_send_to():
    b = brain()
    one, two = (routed(b.arrive(0.0, ask(id))) for id in "ab")
    assert [(one.prefill, one.hosts), (two.prefill, two.hosts)] == [(0, (2, 3)), (1, (3, 2))]
    assert one.reason == "prefill: fewest requests; decode: fewest requests"
    assert [book.in_flight for book in b.books] == [1, 1, 1, 1] and not b.check()


def test_by_the_books_a_prompt_leaves_its_prefill_replica_when_it_is_predicted_to_be_computed():
    b = brain()
    b.arrive(0.0, ask("a", prompt_tokens=4000))
    prefill, decode = b.books[0], b.books[2]
    due_s = prefill.entries["a"].due_s
    assert due_s > 0.05 and b.live["a"].due_s == pytest.approx(due_s + 0.001 + 4000e-5)
    prefill.advance(due_s - 1e-6)
    decode.advance(due_s - 1e-6)
    assert (prefill.in_flight, prefill.view.waiting, prefill.view.waiting_tokens) == (1, 1, 4000)
    assert (decode.view.running, decode.view.waiting_tokens, decode.running) == (1, 0, 0)
    assert decode.view.context_tokens == 4000  # the place is taken from the decision on
    prefill.advance(due_s)
    decode.advance(due_s + 0.05)
    assert (prefill.in_flight, prefill.waiting_tokens, decode.running) == (0, 0, 1) and not b.check()
    b.end(1.0, "a")
    assert [book.in_flight for book in b.books] == [0] * 4 and not b.check()


@pytest.mark.parametrize("when_s", [0.0, 10.0])
def test_who_leaves_is_gone_from_both_replicas_in_prefill_and_after_it(when_s):
    b = brain()
    for i in range(20):
        b.arrive(0.0, ask(f"r{i}", prompt_tokens=8000))
    for i in range(20):
        b.end(when_s, f"r{i}")
        assert not b.check()
    assert [book.in_flight for book in b.books] == [0] * 4
    assert [book.waiting_tokens for book in b.books] == [0] * 4


def test_a_failed_decode_replica_hands_its_request_to_the_second_host_and_the_prompt_is_computed_again():
    b = brain()
    one = routed(b.arrive(0.0, ask("a", prompt_tokens=4000)))
    b.failed(5.0, "a", one.hosts[0])
    assert b.live["a"].at == one.hosts[1] and b.books[one.prefill].in_flight == 1 and not b.check()
    b.end(5.1, "a")
    assert [book.in_flight for book in b.books] == [0] * 4 and not b.check()


def test_a_prompt_that_is_slow_to_be_computed_teaches_its_prefill_replica_s_pace():
    b = brain()
    for i in range(60):
        answer = routed(b.arrive(10.0 * i, ask(f"r{i}", prompt_tokens=2000)))
        b.end(10.0 * i + 5, f"r{i}")
        slow_s = 2.0 if answer.prefill == 0 else 0.09
        done = EndRecord(id=f"r{i}", status=200, replica=answer.hosts[0], attempts=1, sent_s=0.0, first_s=slow_s,
                         duration_s=slow_s + 1.0, prompt_tokens=2000, output_tokens=50)  # fmt: skip
        b.record(10.0 * i + 5, done)
        if answer.prefill == 0:
            b.health(10.0 * i + 6, 0, i > 30)
            b.health(10.0 * i + 6, 0, True)
    assert b.books[0].pace.first.ratio > b.books[1].pace.first.ratio


# --- health ---


def test_without_a_prefill_replica_requests_are_refused_and_without_one_of_two_they_are_not():
    b = brain()
    b.health(0.0, 0, False)
    assert routed(b.arrive(0.0, ask("a"))).prefill == 1
    b.health(0.1, 1, False)
    (no,) = b.arrive(0.2, ask("b"))
    assert isinstance(no, Refused) and (no.status, no.code) == (503, "no_replica")
    assert "prefill" in no.message
    b.health(0.3, 0, True)
    assert routed(b.arrive(0.4, ask("c"))).prefill == 0 and not b.check()


@pytest.mark.skipif(not importlib.util.find_spec("google"), reason="no protobuf: pip install 'headway[serve]'")
@pytest.mark.parametrize(("gone", "said"), [((0,), SERVING), ((0, 1), NOT_SERVING), ((2, 3), NOT_SERVING)])
def test_a_picker_is_ready_while_both_pools_answer(gone, said):
    b = brain()
    for replica in gone:
        b.health(0.0, replica, False)
    picker = Picker(b, Reader(b.spec), list(ADDRESSES[:4]))
    assert asyncio.run(picker.check(b"", None)) == said
    assert asyncio.run(picker.check(b"\x0a\x08liveness", None)) == SERVING


def test_a_prefill_replica_that_gives_nothing_but_errors_is_left_out_and_its_decode_replicas_are_not():
    b = brain((*ROLES, "decode"), route="round-robin", health=Health(errors=3))
    for i in range(12):
        answer = routed(b.arrive(0.1 * i, ask(f"r{i}")))
        b.end(0.1 * i + 0.05, f"r{i}")
        status = 502 if answer.prefill == 0 else 200
        b.record(0.1 * i, EndRecord(id=f"r{i}", status=status, replica=answer.hosts[0], attempts=1, duration_s=0.1))
    assert not b.books[0].healthy and all(book.healthy for book in b.books[1:])
    assert b.judge.ejected and "9001" in b.judge.last


# --- room, holding ---


def test_a_full_prefill_pool_holds_requests_until_a_prompt_is_computed():
    b = brain(("prefill", "decode"), limits=Limits(in_flight=1))
    b.arrive(0.0, ask("a", prompt_tokens=4000))
    assert isinstance(b.arrive(0.0, ask("b"))[0], Held)
    b.end(0.01, "a")
    assert set(b.live) == {"b"} and b.live["b"].stage == "sent" and not b.check()
    wide = brain(("prefill", "decode", "decode"), limits=Limits(in_flight=1))
    wide.arrive(0.0, ask("a", prompt_tokens=4000))
    assert isinstance(wide.arrive(0.0, ask("b"))[0], Held), "the decode pool has room, the prefill pool has not"
    assert routed(wide.tick(1.0)).prefill == 0 and not wide.check()


class HoldsDecode(Policy):
    """Holds at the decode pool until it may not; turns at the prefill pool are counted."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = False

    def route(self, request: Any, pool: Any) -> Any:
        self.asked.append(pool.role)
        if pool.role == "prefill":
            return Route(self.asked.count("prefill") % len(pool.replicas), "in turn")
        return Route(0, "open") if self.open else Hold("closed")


def test_a_request_held_before_the_decode_pool_keeps_its_prefill_replica():
    router = HoldsDecode()
    b = brain(route=router)
    assert isinstance(b.arrive(0.0, ask("a"))[0], Held)
    b.tick(0.1)
    router.open = True
    answer = routed(b.tick(0.2))
    assert answer.prefill == 1 and answer.reason == "prefill: in turn; decode: open"
    assert router.asked.count("prefill") == 1 and not b.check()


def test_a_subset_that_names_prefill_replicas_is_kept_to_and_one_that_names_none_leaves_the_choice():
    b = brain()
    assert [routed(b.arrive(0.0, ask(str(i), only=(1, 3)))).prefill for i in range(3)] == [1, 1, 1]
    answers = [routed(b.arrive(5.0, ask(f"n{i}", only=(3,)))) for i in range(2)]
    assert {answer.prefill for answer in answers} == {0, 1} and {answer.hosts for answer in answers} == {(3,)}


# --- admission ---


def test_a_first_token_is_promised_by_the_prefill_pool_and_a_pace_by_the_decode_pool():
    classes = (SloClass(slo=Slo(ttft_s=0.4, tpot_s=0.05)), SloClass(name="any"))
    b = brain(("prefill", "decode"), classes=classes)
    assert routed(b.arrive(0.0, ask("a"))).prefill == 0
    for i in range(30):
        b.arrive(0.0, ask(f"long{i}", slo_class=1, prompt_tokens=8000))
    (late,) = b.arrive(0.0, ask("late"))
    assert isinstance(late, Refused) and late.code == "slo_unattainable" and "first token" in late.message
    assert isinstance(b.arrive(60.0, ask("later"))[0], Routed), "the prompts are computed, though the answers run on"


# --- what is seen ---


def test_both_pools_are_shown():
    class More(Policy):
        def scale(self, cluster: Any) -> Any:
            return [Scale(1, 5, f"{[pool.role for pool in cluster.pools]}")]

    b = brain(policies={"scale": More()})
    b.arrive(0.0, ask("a"))
    b.sample(0.0, 0, EngineSample(running=1, waiting=0))
    shown = Overview(b, lambda: 0.0).present()
    assert [each["role"] for each in shown["replicas"]] == [*ROLES]
    assert [each["in_flight"] for each in shown["replicas"]] == [1, 0, 1, 0]
    b.tick(15.0)
    assert b.advisor.status()["pools"] == {
        "m.prefill": {"replicas": 2, "reason": "no change"},
        "m.decode": {"replicas": 5, "reason": "['prefill', 'decode']"},
    }
    gauges = [(name, labels) for name, labels, _ in gauges_of(b)]
    roles = [labels["role"] for name, labels in gauges if name == "headway_replica_info"]
    assert roles == [*ROLES]
    assert b.figures.total("headway_prefilled_total", replica=ADDRESSES[0]) == 1
    assert len(Overview(b, lambda: 15.0).present()["advice"]) == 2


def test_a_log_holds_both_choices_and_replays_to_the_bit(tmp_path):
    pytest.importorskip("pyarrow")
    b, rng = brain(route="power-of-two"), Random(1)
    log = LogWriter(LogSpec(folder=str(tmp_path)), header())
    log.follow(b)
    for i in range(80):
        b.arrive(0.05 * i, ask(f"r{i}", prompt_bytes=rng.choice([40, 40_000])))
        if i % 2:
            b.end(0.05 * i + 0.02, f"r{i - 1}")
    log.close(100.0)
    (run,) = runs(tmp_path)
    answers = [answer for event in run.events() for answer in event.answers if isinstance(answer, Routed)]
    assert {answer.prefill for answer in answers} == {0, 1}
    found = replay(run, brain(route="power-of-two"))
    assert found.decisions == found.equal >= 80


def test_logged_lives_with_both_pools_replay_from_a_kept_state(tmp_path):
    pytest.importorskip("pyarrow")
    split = [seed for seed in range(200) if "decode" in Life(seed).roles][:4]
    for seed in split:
        life, run = logged_life(tmp_path, seed, 80)
        again = Life(seed)
        found = replay(run, again.brain)
        assert found.decisions == found.equal > 0, found.first
        assert life.roles == again.roles


def test_enough_of_the_random_lives_have_both_pools_and_name_both():
    lives = [life for life in map(Life, range(60)) if "decode" in life.roles]
    assert len(lives) >= 10
    named = set()
    for life in lives:
        life.run(60)
        named |= {
            (answer.prefill is not None) for said in life.said.values() for answer in said if type(answer) is Routed
        }
    assert named == {True}


# --- parity with the simulator ---

ASKED: list[Any] = []
NODES = {"prefill": (0, 0, 1), "decode": (0, 1, 0)}
LINK = node(REPLICA.gpu, 1).scale_up  # alike within a node and between two


class Writer(Recorder):
    """Writes down what each pool showed, and what was said."""

    def route(self, request: Any, pool: Any) -> Any:
        answer = self.asked.route(request, pool)
        replicas = [
            (each.kv_total_blocks, each.cached_tokens(request), each.node, [getattr(each, name) for name in FIELDS])
            for each in pool.replicas
        ]
        ASKED.append((request.id, pool.role, pool.now, pool.held, (request, request.node), replicas, told(answer)))
        return answer


def split_deployment(name: str) -> Deployment:
    policies = Policies(route=f"{__name__}:Writer", params={"route": {"kind": "route", "name": name}})
    roles: tuple[Any, ...] = ("prefill", "decode")
    pools = tuple(Pool(role=role, count=3, replica=REPLICA, nodes=NODES[role]) for role in roles)
    return Deployment(pools=pools, policies=policies, kv_link=LINK)


@pytest.mark.parametrize("name", policy_names("route"))
def test_for_the_same_numbers_both_pools_are_routed_as_in_the_simulator(name):
    """Every decision of a simulation, asked again in the gateway's views; one policy object for both pools."""
    ASKED.clear()
    simulate(split_deployment(name), workload("agent", requests=150, rate=3.0), seed=SEED)
    assert {role for _, role, *_ in ASKED} == {"prefill", "decode"}
    fence = Fence({"route": policy("route", name)})
    b = brain(("prefill",) * 3 + ("decode",), route=name)
    pools = {pool.role: LivePool(pool.role, [], pool.rng, "llama-3.1-8b") for pool in b.lines[0].pools}
    for _, role, now, held, (request, at), replicas, said in ASKED:
        shown = []
        for index, (kv_blocks, cached, stand, numbers) in enumerate(replicas):
            shown.append(LiveReplica(index, kv_blocks, Stock(cached), stand))
            shown[-1].show(*numbers)
        pools[role].show(now, shown, held)
        ours = request_of(request)
        ours.stand(at)
        assert told(fence.route(ours, pools[role])) == said
    assert not fence.errors
    assert len({(role, said[0]) for _, role, *_, said in ASKED}) >= 5, "the case is one in which routes differ"


def six(name: str) -> Brain:
    """The same pools behind a gateway."""
    law = compile_replica(REPLICA)
    spec = GatewaySpec(upstreams=tuple(f"127.0.0.1:{9001 + i}" for i in range(6)), models=("m",))
    kinds = {"route": name, "order": "fcfs", "admit": "accept-all"}
    backings = [Backing(model="m", role=role, table=law, node=at) for role, each in NODES.items() for at in each]
    return Brain(spec, backings, {kind: policy(kind, chosen) for kind, chosen in kinds.items()}, SEED)


@pytest.mark.parametrize("name", policy_names("route"))
def test_where_early_and_late_binding_know_the_same_the_brain_names_what_the_simulator_chose(name):
    """No request comes while another's prompt is computed, and none ends: then it makes no difference when one asks."""
    ASKED.clear()
    spec = {"prompt": parse_length(1500), "output": parse_length(4000), "arrival": Regular(rate_req_s=0.7)}
    load = workload(WorkloadSpec(requests=18, **spec))
    simulate(split_deployment(name), load, seed=SEED)
    chosen: dict[int, dict[str, int]] = {}
    for id, role, _, _, _, _, said in ASKED:
        chosen.setdefault(id, {})[role] = said[0]
    b = six(name)
    (batch,) = load.batches(SEED)
    for id, arrival_s in zip(batch.id, batch.arrival_s, strict=True):
        answer = routed(b.arrive(float(arrival_s), ask(str(id), prompt_tokens=1500, max_tokens=4000)))
        assert (answer.prefill, answer.hosts[0] - 3) == (chosen[id]["prefill"], chosen[id]["decode"]), id
    pairs = {tuple(each.values()) for each in chosen.values()}
    assert len(pairs) > 2 or (name == "same-node" and pairs == {(0, 0), (0, 2)})


def test_a_prefill_replica_needs_an_address_that_others_can_reach(tmp_path):
    file = tmp_path / "split.yaml"
    pools = [f"- {{role: {role}, replica: {{model: llama-3.1-8b, gpu: h100-sxm}}}}" for role in ("prefill", "decode")]
    head = "pools:\n" + "\n".join(pools) + "\n"
    file.write_text(head + 'gateway: {upstreams: ["unix:/tmp/prefill.sock", "127.0.0.1:9002"]}\n')
    refused(run("serve", file, "--check"), "unix:/tmp/prefill.sock", "host:port")
