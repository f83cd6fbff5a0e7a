"""Prompts: as long as asked, sharing what their chains share and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.bench import Prompts, Target
from headway.bench.prompts import WORDS, mixed
from headway.errors import BadInput

IDS = Prompts(Target(url="http://x.org"), 5)
WORDED = Prompts(Target(url="http://x.org", prompts="words", chars_per_token=4.4, overhead_tokens=6.0), 5)
REFUSED = ("x.org:99999", "u:hunter2@x.org", "x.org/?a=1", "x.org:0")


def shared(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@given(st.integers(1, 5000), st.integers(0, 2**40), st.lists(st.integers(0, 2**62), max_size=20))
def test_ids_are_as_many_as_asked_and_ordinary(tokens, request_id, chain):
    prompt = json.loads(IDS.make(request_id, tokens, chain, 64))
    assert len(prompt) == tokens
    assert all(1000 <= token < 10_000 for token in prompt)


@given(st.integers(0, 12), st.integers(1, 2**40), st.integers(16, 200))
def test_prompts_share_the_blocks_they_have_in_common_and_no_more(common, other, block):
    a, b = list(range(12)), [*range(common), *(i + 1000 + other for i in range(12 - common))]
    tokens = 12 * block + 9
    left, right = (json.loads(IDS.make(i, tokens, chain, block)) for i, chain in ((1, a), (2, b)))
    assert common * block <= shared(left, right) < common * block + 5
    text, more = (json.loads(WORDED.make(i, tokens, chain, block)) for i, chain in ((1, a), (2, b)))
    assert round(block * 4.4) * common <= shared(text, more) < round(block * 4.4) * common + 5 * 12


@given(st.integers(10, 3000))
def test_text_is_cut_to_the_rule(tokens):
    prompt = json.loads(WORDED.make(3, tokens, [], 0))
    assert len(prompt) == round((tokens - 6) * 4.4)


def test_another_salt_gives_other_texts_and_the_same_the_same():
    make = [Prompts(Target(url="http://x.org"), salt).make(1, 100, [1], 16) for salt in (0, 0, 1)]
    assert make[0] == make[1]
    assert shared(json.loads(make[0]), json.loads(make[2])) < 5


def test_a_run_longer_than_the_pool_is_still_whole():
    assert len(json.loads(IDS.make(1, 200_000, [], 0))) == 200_000


def test_the_mixing_is_one_to_one_and_words_are_alike():
    assert len({mixed(i) for i in range(10_000)}) == 10_000
    assert len(WORDS) == len(set(WORDS)) >= 64
    assert {len(word) for word in WORDS} == {4}


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://x", "http://", *(f"http://{rest}" for rest in REFUSED)],
)
def test_an_impossible_url_is_refused_without_repeating_a_secret(url):
    with pytest.raises(BadInput, match="URL") as found:
        Target(url=url)
    assert "hunter2" not in str(found.value)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://x.org", "/v1/completions"),
        ("http://x.org/v1", "/v1/completions"),
        ("http://x.org/v1/completions", "/v1/completions"),
        ("https://x.org/llm/v1/chat/completions", "/llm/v1/completions"),
    ],
)
def test_a_url_may_name_any_part_of_the_path(url, path):
    assert Target(url=url).path == path
