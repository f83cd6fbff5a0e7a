"""What engines are sent instead of what callers wrote: priorities, salts, limits of output; and callers' own limits."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headway.errors import BadInput
from headway.gateway import GatewaySpec, Reader, SloClass, Tenant
from headway.gateway.events import Arrival
from headway.gateway.reading import Reply
from headway.gateway.steering import PRIORITY, RESERVED, SALT, UNCOUNTED
from headway.specs import from_mapping

TENANTS = (
    Tenant(name="free", keys_sha256=(sha256(b"f").hexdigest(),)),
    Tenant(name="paid", keys_sha256=(sha256(b"p").hexdigest(),), tokens_per_day=1e6),
)
CLASSES = (SloClass(name="chat", priority=2), SloClass(name="batch", priority=7))
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
FREE, PAID = {"authorization": "Bearer f"}, {"authorization": "Bearer p"}


def spec(**fields: Any) -> GatewaySpec:
    told = {"tenants": TENANTS, "salt_prefixes": False, **fields}
    return GatewaySpec(upstreams=("127.0.0.1:1",), models=("m",), classes=CLASSES, **told)


def sent(body: dict[str, Any] | bytes, headers: dict[str, str] = FREE, path: str = CHAT, **fields: Any) -> Any:
    """The arrival, and what the engine is sent."""
    reader, text = Reader(spec(**fields)), body if isinstance(body, bytes) else json.dumps(body).encode()
    arrival = reader.read("id", path, headers, text)
    assert isinstance(arrival, Arrival), arrival
    return arrival, json.loads(reader.rewritten(arrival, text) or text)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}


# --- priority -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "engine"), [("low-first", 7), ("high-first", -7)])
def test_engines_that_know_priorities_are_sent_that_of_the_class(said, engine):
    for body in (chat(), chat(priority=-100)):
        _, got = sent(body, FREE | {"x-headway-class": "batch"}, engine_priority=said)
        assert got == chat(priority=engine)


def test_a_callers_own_priority_is_removed_unless_it_is_allowed():
    assert sent(chat(priority=-100))[1] == chat()
    assert sent(chat(priority=-100), engine_priority="caller")[1] == chat(priority=-100)


@pytest.mark.parametrize("field", RESERVED)
def test_a_caller_tells_no_engine_where_as_whose_or_from_whose_kv_it_computes(field):
    for headers in (FREE, PAID):
        _, got = sent(chat(max_tokens=5, **{field: {"remote_host": "192.0.2.6"}}), headers)
        assert got == chat(max_tokens=5)
        _, got = sent(chat(max_tokens=5, **{field: None}), headers)
        assert got == chat(max_tokens=5)


def test_kv_parameters_do_not_come_in_by_vllms_other_door():
    """There `vllm_xargs` becomes the dictionary that `kv_transfer_params` is put into."""
    within = {"vllm_xargs": {"kv_transfer_params": "x", "lmcache.cache_salt": "theirs"}}
    assert sent(chat(**within))[1] == chat()


def test_fields_that_the_file_lets_through_pass_and_no_others():
    said = chat(vllm_xargs={"k": 1}, rid="x", cache_salt="mine", priority=3)
    assert sent(said, caller_fields=("vllm_xargs",))[1] == chat(vllm_xargs={"k": 1})


def test_fields_within_others_and_what_they_hold_are_left_as_they_are():
    """Only the engine's own fields are meant: a tool may have an argument `rid`, however odd its numbers."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"rid": {}, "priority": {}}}}
    reader, text = Reader(spec()), json.dumps(chat(tools=[tool])).encode()
    arrival = reader.read("id", CHAT, FREE, text)
    assert isinstance(arrival, Arrival) and reader.rewritten(arrival, text) is None
    odd = b'{"model": "m", "messages": [], "rid": 1e999, "top": 1e999}'
    kept = b'{"model":"m","messages":[],"top":1e999}'
    arrival = reader.read("id", CHAT, FREE, odd)
    assert isinstance(arrival, Arrival) and reader.rewritten(arrival, odd) == kept


@pytest.mark.parametrize(
    "more",
    [
        {"documents": [{"text": "long " * 1000}]},
        {"chat_template": "{{ 'long ' }}" * 500},
        {"chat_template_kwargs": {"documents": ["long " * 1000]}},
    ],
)
def test_what_templates_put_into_a_prompt_is_counted(more):
    """A budget sets a token aside for each byte."""
    bare, _ = sent(chat(), PAID)
    told, got = sent(chat(**more), PAID)
    assert told.prompt_bytes > bare.prompt_bytes + 5000
    assert got == chat(**more, max_tokens=4096)
    assert told.chain != bare.chain, "it comes before the messages"


def test_names_that_are_escaped_are_seen_too():
    body = b'{"model": "m", "messages": [], "cache_s\\u0061lt": "x", "\\u0070riority": -1}'
    assert sent(body)[1] == {"model": "m", "messages": []}


def test_what_needs_no_change_is_passed_on_as_it_came():
    reader, text = Reader(spec()), json.dumps(chat(temperature=0.123456789012345678)).encode()
    arrival = reader.read("id", CHAT, FREE, text)
    assert isinstance(arrival, Arrival) and reader.rewritten(arrival, text) is None
    mentioned = json.dumps(chat(user='"priority"')).encode()
    assert reader.rewritten(arrival, mentioned) is None


# --- salts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tenants", "said", "salted"),
    [
        (TENANTS, None, True),
        (TENANTS, False, False),
        (TENANTS[:1], None, False),
        (TENANTS[:1], True, True),
        ((), None, False),
    ],
)
def test_several_tenants_share_no_prefix_unless_the_file_says_so(tenants, said, salted):
    _, got = sent(chat(cache_salt="mine"), tenants=tenants, salt_prefixes=said)
    assert ("cache_salt" in got) is salted and got.get("cache_salt") != "mine"
    if salted and len(tenants) == 2:
        _, others = sent(chat(), PAID, tenants=tenants, salt_prefixes=said)
        assert others["cache_salt"] != got["cache_salt"]


# --- what a budget must know -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "asked", "limit", "most"),
    [
        (CHAT, chat(), 4096, 4096),
        (CHAT, chat(n=3), 4096, 3 * 4096),
        (CHAT, chat(max_tokens=7), 7, 7),
        (CHAT, chat(max_tokens=7, max_completion_tokens=9), 7, 9),  # engines differ in which they heed
        (CHAT, chat(max_tokens=None), 4096, 4096),
        (COMPLETION, {"model": "m", "prompt": "hi"}, 16, 16),
        (COMPLETION, {"model": "m", "prompt": ["a", "b"], "n": 2}, 16, 64),
        (COMPLETION, {"model": "m", "prompt": [[1, 2], [3]], "max_tokens": 5}, 5, 10),
        (COMPLETION, {"model": "m", "prompt": [1, 2, 3], "max_tokens": 5}, 5, 5),
    ],
)
def test_the_output_of_a_tenant_with_a_budget_has_a_limit_that_the_engine_is_told(path, asked, limit, most):
    arrival, got = sent(asked, PAID, path)
    assert arrival.max_tokens == most
    assert got["max_tokens"] == limit
    assert {**asked, "max_tokens": limit} == got


@pytest.mark.parametrize("name", [b"n_predict", b"max_new_tokens", b"best_of", b"n_pr\\u0065dict"])
def test_a_budget_is_not_got_round_by_an_engines_own_names(name):
    body = b'{"model": "m", "messages": [], "max_tokens": 1, "%s": 400}' % name
    assert sent(body, PAID)[1] == {"model": "m", "messages": [], "max_tokens": 1}
    assert len(sent(body, FREE)[1]) == 4


def test_who_has_no_budget_is_not_limited():
    arrival, got = sent(chat())
    assert arrival.max_tokens is None and got == chat()


def test_an_embedding_is_not_given_a_limit():
    body = {"model": "m", "input": "hi"}
    assert sent(body, PAID, "/v1/embeddings")[1] == body


# --- a request's own limits, and the file -----------------------------------------------------------------------------


def test_a_request_says_its_limits_in_headers():
    said = {"x-headway-ttft": "200ms", "x-headway-tpot": "0.05s", "x-headway-deadline": "9s"}
    arrival, _ = sent(chat(), FREE | said)
    assert (arrival.ttft_s, arrival.tpot_s, arrival.deadline_s) == (0.2, 0.05, 9.0)


@pytest.mark.parametrize("header", ["x-headway-ttft", "x-headway-tpot", "x-headway-deadline"])
@pytest.mark.parametrize("value", ["", "soon", "0s", "-1s", "inf", "nan", "1e999s", "1e-99999999s", "9" * 5000])
def test_a_limit_that_is_none_is_400_and_names_the_header(header, value):
    got = Reader(spec()).read("id", CHAT, FREE | {header: value}, json.dumps(chat()).encode())
    assert isinstance(got, Reply) and got.status == 400
    error = msgspec.json.decode(got.body)["error"]
    assert header in error["message"] and error["param"] == header


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"engine_priority": "high"}, "low-first (vLLM), high-first (SGLang)"),
        ({"tenants": [{"name": "a", "tokens_per_day": 0}]}, "tokens_per_day=0: expected a number above 0"),
        ({"tenants": [{"name": "a", "weight": float("inf")}]}, "weight=inf"),
        ({"tenants": [{"name": "a", "weight": -1}]}, "weight=-1"),
        ({"tenants": [{"name": "a", "tokens_per_month": 5}], "ledger": ""}, "ledger is empty"),
        ({"limits": {"output_tokens": 0}}, "output_tokens=0"),
        ({"caller_fields": ["cache_salt"]}, "caller_fields: 'cache_salt' is not among the fields that are removed"),
        ({"caller_fields": ["vllm_args"]}, "kv_transfer_params, "),
    ],
)
def test_a_file_that_is_wrong_is_told_how(change, says):
    with pytest.raises(BadInput, match=says.replace("(", r"\(").replace(")", r"\)")):
        from_mapping(GatewaySpec, {"upstreams": ["h:1"], **change}, "gateway")


def test_the_page_lists_what_is_removed():
    page = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
    assert [name for name in (*RESERVED, SALT, PRIORITY, *UNCOUNTED) if f"`{name}`" not in page] == []
