"""The API over real connections: forms of answers, errors, cancellation, limits, faults. Nothing depends on time."""

import asyncio
import json
import re

import pytest

from headway.cost import EngineSettings
from headway.emulate import Limits, PacedReplica, parse_fault, prompts
from headway.engine.live import make_sequence, told
from tests.core.drive import plain_table
from tests.emulate.http_cases import MODEL, connect, one, serve, settled, until

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def exact(tokens, **fields):
    return {"prompt": [1, 2, 3], "max_tokens": tokens, "ignore_eos": True, **fields}


def ask(path, body, **settings):
    return serve(lambda emulator: one(emulator.ports[0], path, body), **settings)


# --- forms ---


def test_a_stream_of_chat_has_openais_form():
    messages = [{"role": "user", "content": "x" * 38}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 5, "ignore_eos": True, "stream": True}
    reply = ask(CHAT, body | {"stream_options": {"include_usage": True}})
    assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *tokens, usage, done = reply.events
    assert done == "[DONE]"
    assert [event["choices"][0]["delta"].get("role") for event in tokens] == ["assistant", *[None] * 5]
    assert [event["choices"][0]["finish_reason"] for event in tokens] == [*[None] * 5, "length"]
    assert {event["object"] for event in (*tokens, usage)} == {"chat.completion.chunk"}
    assert len({(event["id"], event["model"], event["created"]) for event in (*tokens, usage)}) == 1
    text = "".join(event["choices"][0]["delta"]["content"] for event in tokens)
    assert prompts.count(prompts.of_text(text)) == 5
    assert usage["choices"] == []
    asked = 10 + 3  # 38 characters, the role, the end of the message, the role of the answer
    assert usage["usage"] == {
        "prompt_tokens": asked,
        "completion_tokens": 5,
        "total_tokens": asked + 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_a_streamed_completion_and_a_whole_one_say_the_same():
    async def both(emulator):
        whole = await one(emulator.ports[0], TEXT, exact(6), x_request_id="same")
        streamed = await one(emulator.ports[0], TEXT, exact(6, stream=True), x_request_id="same")
        return whole, streamed

    whole, streamed = serve(both)
    *tokens, done = streamed.events
    assert done == "[DONE]"
    assert whole.json["choices"][0]["text"] == "".join(event["choices"][0]["text"] for event in tokens)
    assert whole.json["choices"][0]["finish_reason"] == tokens[-1]["choices"][0]["finish_reason"] == "length"
    assert whole.json["id"] == tokens[0]["id"] == "cmpl-same"
    assert whole.json["usage"]["total_tokens"] == 9
    assert whole.headers["x-request-id"] == streamed.headers["x-request-id"] == "same"


def test_a_whole_chat_answer_has_a_message():
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}
    reply = ask(CHAT, body | {"max_completion_tokens": 3, "ignore_eos": True})
    (choice,) = reply.json["choices"]
    assert reply.json["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert prompts.count(prompts.of_text(choice["message"]["content"])) == 3


def test_an_answer_without_a_given_length_has_one_of_its_own():
    async def thrice(emulator):
        ids = ("a", "b", "a")
        return [await one(emulator.ports[0], TEXT, {"prompt": [1] * 5}, x_request_id=name) for name in ids]

    usage = [reply.json["usage"]["completion_tokens"] for reply in serve(thrice)]
    assert usage[0] == usage[2] != usage[1]
    limited = ask(TEXT, {"prompt": [1] * 5, "max_tokens": 2}).json
    assert limited["choices"][0]["finish_reason"] == "length"
    least = ask(TEXT, {"prompt": "hi", "min_tokens": 30, "max_tokens": 31}).json
    assert least["usage"]["completion_tokens"] in (30, 31)


def test_embeddings_are_prompts_without_answers():
    reply = ask(EMBED, {"input": ["one", "two", "one"], "dimensions": 8}).json
    vectors = [row["embedding"] for row in reply["data"]]
    assert [row["index"] for row in reply["data"]] == [0, 1, 2]
    assert vectors[0] == vectors[2] != vectors[1]
    assert sum(x * x for x in vectors[0]) == pytest.approx(1, abs=1e-5)
    assert reply["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = ask(EMBED, {"input": [5, 6], "encoding_format": "base64", "dimensions": 3}).json
    assert len(packed["data"][0]["embedding"]) == 16


def test_models_health_and_head():
    async def look(emulator):
        client = await connect(emulator.ports[0])
        return [await client.ask("GET", path) for path in ("/v1/models", "/health")]

    models, health = serve(look, names=("mine", "other"))
    assert [row["id"] for row in models.json["data"]] == ["mine", "other"]
    assert (health.status, health.body) == (200, b"")


# --- prefix caching and the simulator's times, through the network ---


def test_cached_tokens_grow_with_the_conversation_and_are_shared_within_one_salt_only():
    async def talk(emulator):
        said = [{"role": "user", "content": "Tell me of paged memory. " * 8}]
        cached = []
        for turn in range(3):
            body = {"messages": said, "max_tokens": 40, "ignore_eos": True, "cache_salt": "a"}
            reply = (await one(emulator.ports[0], CHAT, body)).json
            cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
            said += [{"role": "assistant", "content": reply["choices"][0]["message"]["content"]}]
            said += [{"role": "user", "content": f"And turn {turn}?"}]
        for salt in ({"cache_salt": "a"}, {"cache_salt": "b"}, {}):
            reply = (await one(emulator.ports[0], CHAT, {"messages": said[:1], "max_tokens": 1, **salt})).json
            cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        return cached

    first, second, third, same, other, none = serve(talk)
    assert (first, other, none) == (0, 0, 0)
    assert 0 < same <= second < third
    assert second >= 80  # the answer's own KV was found too: the question alone has 53 tokens


def test_what_was_served_over_the_network_took_the_simulators_times():
    """Arrivals as the emulator noted them, through the engine once more: the same virtual times, to the bit."""
    noted = []

    async def many(emulator):
        port = emulator.ports[0]
        send = port.paced.send
        port.paced.send = lambda seq, sent_s: (noted.append(seq), send(seq, sent_s))
        asks = [one(port, TEXT, exact(5 + i, prompt=[i] * (10 + 7 * i))) for i in range(12)]
        return await asyncio.gather(*asks)

    replies = serve(many, table={"kv_blocks": 40})
    assert all(reply.status == 200 for reply in replies)
    engine = EngineSettings(max_batched_tokens=256, max_seqs=16)
    again = PacedReplica(plain_table(linear_s=0.001, decode_s=0.0005, kv_blocks=40), engine)
    copies = []
    for seq in sorted(noted, key=lambda seq: seq.arrival_s):
        tokens = seq.prompt_tokens, told(seq).generated
        copies.append((seq, make_sequence(seq.id, seq.arrival_s, tokens)))
        again.send(copies[-1][1], seq.arrival_s)
    for _ in again.advance(float("inf")):
        pass
    assert [told(seq) for seq, _ in copies] == [told(copy) for _, copy in copies]


# --- who leaves ---


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_pages(stream):
    async def leave(emulator):
        port = emulator.ports[0]
        clients = [await connect(port) for _ in range(30)]
        for client in clients[:-1]:
            client.send("POST", TEXT, exact(900, stream=stream))  # half a minute of virtual time
        await until(lambda: port.paced.books(port.now_s)["running"] == 16)
        clients[-1].send("POST", TEXT, exact(20, stream=stream))
        await until(lambda: len(port.under_way) == 30)
        await clients[0].head() if stream else None
        for client in clients[:-1]:
            client.close()
        await clients[-1].reply()  # which waited behind them
        return port.meters.ended

    assert serve(leave, table={"decode_s": 0.02, "kv_blocks": 1000}) == {"stop": 0, "length": 1, "abort": 29}


def test_a_slow_reader_is_cut_off():
    async def read_nothing(emulator):
        port = emulator.ports[0]
        client = await connect(port)
        client.writer.transport.pause_reading()
        (conn,) = port.connections
        conn.transport.get_extra_info("socket").setsockopt(1, 7, 4096)
        client.send("POST", TEXT, exact(3000, stream=True))
        await until(lambda: not port.connections)
        return port.meters.ended["abort"]

    quick = {"linear_s": 1e-5, "decode_s": 1e-5, "kv_blocks": 1000}
    assert serve(read_nothing, table=quick, limits=Limits(unsent_bytes=4096)) == 1


# --- errors ---


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (CHAT, b"{", 400, "not JSON"),
        (CHAT, b"[" * 100_000, 400, "not JSON|Expected"),
        (CHAT, b'{"messages":' + b"[" * 100_000, 400, "not JSON|Expected"),
        (CHAT, {"messages": "hi"}, 400, "messages"),
        (CHAT, {"messages": []}, 400, "empty"),
        (CHAT, {}, 400, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "type text"),
        (TEXT, exact("x"), 400, "max_tokens"),
        (TEXT, exact(0), 400, "at least 1"),
        (TEXT, exact(5, min_tokens=6), 400, "min_tokens"),
        (TEXT, exact(5, n=2), 400, "n=2"),
        (TEXT, exact(5, stream_options={}), 400, "stream"),
        (TEXT, exact(5, model="llama-3.1-8"), 404, "llama-3.1-8b"),
        (TEXT, exact(5, prompt=[1, -1]), 400, "token ids"),
        (TEXT, exact(5, prompt=[1, True]), 400, "token ids"),
        (TEXT, exact(5, prompt=["a", "b"]), 400, "one each"),
        (TEXT, exact(5, prompt=""), 400, "empty"),
        (TEXT, exact(10**10), 400, "context"),
        (TEXT, exact(10_000), 400, "KV"),
        (TEXT, exact(5, priority=2**40), 400, "priority"),
        (EMBED, {"input": []}, 400, "empty"),
        (EMBED, {"input": "a", "encoding_format": "x"}, 400, "float or base64"),
        ("/v1/nothing", {}, 404, "/v1/completions"),
        ("/metrics", {}, 405, "GET"),
    ],
)
def test_errors_have_openais_form_and_leave_the_connection_usable(path, body, status, said):
    async def twice(emulator):
        client = await connect(emulator.ports[0])
        return await client.ask("POST", path, body), await client.ask("GET", "/health")

    reply, health = serve(twice)
    assert reply.status == status
    error = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert re.search(said, error["message"])
    assert len(error["message"]) < 400
    assert health.status == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000, 431),
        (b"POST / HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\n{}", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"3000\r\n" + b"x" * 0x3000 + b"\r\n", 413),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(sent, status):
    async def attempt(emulator):
        client = await connect(emulator.ports[0])
        client.writer.write(sent)
        reply = await client.reply()
        assert await client.reader.read() == b""
        return reply

    reply = serve(attempt, limits=Limits(body_bytes=8192))
    assert reply.status == status
    assert reply.json["error"]["message"]


def test_half_a_head_is_sent_away_in_time_and_too_many_connections_at_once():
    async def attempt(emulator):
        slow = await connect(emulator.ports[0])
        slow.writer.write(b"GET /health HTTP/1.1\r\nhost:")
        late = await slow.reply()
        clients = [await connect(emulator.ports[0]) for _ in range(3)]
        over = await clients[2].reply()
        return late, over

    late, over = serve(attempt, limits=Limits(header_s=0.05, connections=2, idle_s=60.0))
    assert (late.status, over.status) == (408, 503)


def test_requests_sent_ahead_are_answered_in_turn():
    async def ahead(emulator):
        client = await connect(emulator.ports[0])
        for tokens in (3, 1, 2):
            client.send("POST", TEXT, exact(tokens))
        return [(await client.reply()).json["usage"]["completion_tokens"] for _ in range(3)]

    assert serve(ahead) == [3, 1, 2]


# --- metrics and faults ---


def test_the_metrics_page_parses_and_counts():
    async def count(emulator):
        for _ in range(3):
            await one(emulator.ports[0], TEXT, exact(5, prompt=[7] * 40))
        client = await connect(emulator.ports[0])
        return (await client.ask("GET", "/metrics")).body.decode()

    text = serve(count)
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = re.fullmatch(r'([\w:]+\{model_name="llama-3.1-8b",engine="0"[^}]*\}) (\S+)', line).groups()
            assert name not in samples
            samples[name] = float(value)
    by_name = {name.partition("{")[0]: value for name, value in samples.items()}
    assert by_name["vllm:prompt_tokens_total"] == 120
    assert by_name["vllm:generation_tokens_total"] == 15
    assert by_name["vllm:prefix_cache_queries_total"] == 120
    assert by_name["vllm:prefix_cache_hits_total"] == 64
    assert by_name["vllm:inter_token_latency_seconds_count"] == 12
    assert by_name["vllm:e2e_request_latency_seconds_count"] == 3
    assert by_name["vllm:num_requests_running"] == by_name["vllm:kv_cache_usage_perc"] == 0
    success = [value for name, value in samples.items() if 'finished_reason="length"' in name]
    assert success == [3]
    buckets = [value for name, value in samples.items() if name.startswith("vllm:time_to_first_token_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 3


def outcome(fault, name, stream=True, patience_s=20.0):
    """What a client sees of one request that it waits for so long."""

    async def attempt(emulator):
        client = await connect(emulator.ports[0])
        client.send("POST", TEXT, exact(8, stream=stream), x_request_id=name)
        try:
            reply = await asyncio.wait_for(client.reply(), patience_s)
        except (ConnectionError, asyncio.IncompleteReadError):
            return "reset"
        except TimeoutError:
            client.close()
            await asyncio.sleep(0.01)
            return "hung"
        return reply.status

    return serve(attempt, faults=(parse_fault(fault),))


def test_faults_hit_the_same_requests_every_time():
    names = [f"r{i}" for i in range(12)]
    hits = [[outcome("reset:p=0.5", name) for name in names] for _ in range(2)]
    assert hits[0] == hits[1]
    assert set(hits[0]) == {"reset", 200}


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("reset:p=1", "reset"),
        ("hang:p=1", "hung"),
        ("error:p=1,status=503", 503),
        ("stall:p=1,for=10ms", 200),
        ("slow:p=1,factor=2", 200),
        ("stall:p=1,for=20s", "hung"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_each_fault_does_what_it_says(fault, seen, stream):
    assert outcome(fault, "x", stream, patience_s=0.5 if seen == "hung" else 20.0) == seen


def test_a_stalled_or_slow_answer_is_whole():
    async def both(emulator):
        return await one(emulator.ports[0], TEXT, exact(9, stream=True))

    faults = (parse_fault("stall:p=1,for=20ms"), parse_fault("slow:p=1,factor=1.5"))
    *tokens, done = serve(both, faults=faults).events
    assert (len(tokens), done) == (9, "[DONE]")


def test_a_crash_cuts_connections_and_forgets_and_then_serves_again():
    async def watch(emulator):
        port = emulator.ports[1]
        client = await connect(port)
        client.send("POST", TEXT, exact(3000, stream=True))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.reply()
        with pytest.raises(OSError):
            await connect(port)
        while True:
            try:
                return (await one(port, TEXT, exact(2))).status, port.meters.ended["length"]
            except OSError:
                await asyncio.sleep(0.01)

    faults = (parse_fault("crash:at=500ms,for=700ms,replica=1"),)
    assert serve(watch, replicas=2, faults=faults, table={"kv_blocks": 1000}) == (200, 1)


def test_a_hang_of_a_replica_holds_everything_and_loses_nothing():
    async def watch(emulator):
        port = emulator.ports[0]
        client = await connect(port)
        client.send("POST", TEXT, exact(40, stream=True))
        await until(lambda: port.held is not None)
        health = asyncio.create_task(one(port, TEXT, exact(1)))
        await asyncio.sleep(0.02)
        assert not health.done()
        reply = await client.reply()
        assert (await health).status == 200
        await settled(port)
        return len(reply.events)

    assert serve(watch, faults=(parse_fault("hang:at=20ms,for=500ms"),)) == 41


def test_bodies_are_json_whatever_the_prompt_holds():
    body = b'{"messages":[{"role":"us\\ud800er","content":"\\ud83d\\u0000\\"}"}],"max_tokens":1}'
    reply = ask(CHAT, body)
    assert reply.status in (200, 400)
    assert json.loads(reply.body)
