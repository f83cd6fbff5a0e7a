"""What a decision looks up instead of working it out: the same as where it comes from."""

from __future__ import annotations

import json
import random

import pytest
from brain_cases import ask, brain

from headway.cost import Replica, compile_replica
from headway.gateway.lines import spare_of
from headway.gateway.predict import law_of
from headway.gateway.reading import Reader
from headway.gateway.spec import GatewaySpec, Tenant

REPLICAS = (
    {"model": "llama-3.1-8b", "gpu": "h100-sxm"},
    {"model": "llama-3.1-70b", "gpu": "h100-sxm", "tp": 2, "pp": 2},
    {"model": "mixtral-8x7b", "gpu": "h100-sxm", "tp": 1, "dp": 2, "ep": 2},
    {"model": "gpt-oss-20b", "gpu": "h100-sxm"},
)


@pytest.mark.parametrize("replica", REPLICAS, ids=lambda replica: replica["model"])
def test_a_law_in_lists_is_the_step_table(replica):
    table = compile_replica(Replica(**replica))
    rng, law = random.Random(1), law_of(table)
    for _ in range(200):
        running = rng.randrange(table.max_seqs)
        context = running * rng.randrange(1, 3000)
        new = rng.choice([0, rng.randrange(1, table.max_batched_tokens - running)])
        if not running + new:
            continue
        prefix, windowed = rng.randrange(5000), min(context, running * table.window) if table.window else 0
        seconds = table.step_seconds(running, context, windowed, [(prefix, new)] if new else [])
        if table.stages > 1:
            seconds = table.stages * seconds + (table.stages - 1) * float(table.p2p_s[running + new])
        assert law.step_s(running, context, prefix, new) == pytest.approx(seconds, rel=1e-12)


def test_the_spare_replica_has_room_if_there_is_one_and_the_fewest_requests():
    rng = random.Random(2)
    for _ in range(200):
        b = brain(count=4)
        for i in range(rng.randrange(12)):
            b.arrive(i * 1e-3, ask(f"r{i}"))
        for book in b.books:
            book.window = rng.randrange(1, 5)
        chosen = rng.choice(b.books)
        others = [book for book in b.books if book is not chosen]
        assert spare_of(b.books, chosen) is min(others, key=lambda book: (not book.room, book.in_flight))
    assert spare_of([chosen], chosen) is None


@pytest.mark.parametrize("end", ["", " ", "\r\n\t "])
@pytest.mark.parametrize("said", ["x", "}", '{"a": {"b": "}"}}', "\u00fc\n"])
def test_a_salt_is_added_to_a_body_as_it_came(said, end):
    tenants = Tenant(name="a", keys_sha256=("0" * 64,)), Tenant(name="b", keys_sha256=("1" * 64,))
    reader = Reader(GatewaySpec(upstreams=("127.0.0.1:1",), models=("m",), tenants=tenants))
    fields = {"model": "m", "messages": [{"role": "user", "content": said}], "extra": {"deep": [{}]}}
    body = (json.dumps(fields, ensure_ascii=False) + end).encode()
    asked = ask_as_a(reader, body)
    sent = reader.rewritten(asked, body)
    assert sent is not None and sent.startswith(body.rstrip()[:-1])
    read = json.loads(sent)
    assert len(read.pop("cache_salt")) == 64 and read == fields


def ask_as_a(reader, body):
    reader.keys.tenant = lambda authorization: 0
    return reader.read("id", "/v1/chat/completions", {}, body)
