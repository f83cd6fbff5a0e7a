"""The stream of an answer: however its bytes are cut, the same tokens come out, and what is wrong is named."""

import itertools

import pytest
from bench_cases import DONE, END, HEAD, PLAIN, USAGE, chunk, delta, event, failing
from hypothesis import given
from hypothesis import strategies as st

from headway.bench.answer import Answer, Events


def fed(data, cuts=()):
    answer = Answer()
    edges = [0, *sorted(cuts), len(data)]
    for i, (start, stop) in enumerate(itertools.pairwise(edges)):
        if stop > start and not answer.complete:
            answer.feed(data[start:stop], float(i))
    return answer


def cut(data, places):
    edges = [0, *sorted(places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(
    st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=4, max_size=4),
    st.lists(st.integers(0, 120), max_size=12),
)
def test_events_do_not_depend_on_how_they_are_cut_nor_on_line_ends(ends, places):
    a, b, c, d = ends
    text = f": a comment{a}data: one{b}{b}event: x{c}data:two{d}data: more{a}{a}: ping{b}{b}id: 3{c}data: {{}}{d}{d}"
    events = Events()
    got = [data for part in cut(text.encode(), places) for data in events.feed(part)]
    if text.endswith("\r"):
        got += events.feed(b"\n")
    assert got == [b"one", b"two\nmore", b"{}"]


@given(st.lists(st.integers(1, len(PLAIN) - 1), max_size=20))
def test_an_answer_does_not_depend_on_how_its_bytes_are_cut(places):
    answer = fed(PLAIN, places)
    assert answer.complete and answer.problem == "" and answer.keep_alive
    assert len(answer.times_s) == answer.tokens == 2
    assert (answer.prompt_tokens, answer.cached_tokens) == (7, 3)
    assert answer.times_s == sorted(answer.times_s)


def test_tokens_bear_the_time_of_the_bytes_that_completed_them():
    answer = Answer()
    first = chunk(event(" a"))
    answer.feed(HEAD + first[:20], 1.0)
    answer.feed(first[20:], 2.0)
    answer.feed(chunk(event(" b")) + chunk(event(" c")), 3.0)
    answer.feed(chunk(DONE) + END, 4.0)
    assert answer.times_s == [2.0, 3.0, 3.0]
    assert answer.tokens == 3


def test_what_bears_no_output_is_no_token():
    role = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
    tools = b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n'
    think = b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
    parts = role, delta("x"), b": keep-alive\n\n", think, tools, b'data: {"choices":[],"usage":null}\n\n', DONE
    answer = fed(HEAD + b"".join(map(chunk, parts)) + END)
    assert answer.problem == ""
    assert answer.tokens == 3
    assert answer.prompt_tokens == -1


def test_the_engine_counts_the_tokens_where_it_does():
    usage = {**USAGE, "completion_tokens": 9}
    answer = fed(HEAD + chunk(event(" several at once")) + chunk(event(usage=usage)) + chunk(DONE) + END)
    assert (answer.tokens, len(answer.times_s)) == (9, 1)


def test_a_finish_reason_ends_a_stream_as_done_does():
    last = b'data: {"choices":[{"text":"x","finish_reason":"length"}]}\n\n'
    assert fed(HEAD + chunk(last) + END).problem == ""


@pytest.mark.parametrize(
    ("data", "problem", "tokens"),
    [
        (HEAD + chunk(event(" a")) + END, "stream ended without [DONE]", 1),
        (HEAD + chunk(DONE) + END, "no token in the answer", 0),
        (HEAD + chunk(event(" a")) + chunk(b'data: {"error": {"message": "lost"}}\n\n' + DONE) + END, "error event", 1),
        (HEAD + chunk(b'data: {"choices": 3}\n\n' + DONE) + END, "broken event", 0),
        (HEAD + chunk(b"data: {\n\n" + DONE) + END, "broken event", 0),
        (failing(500), "HTTP 500", 0),
        (failing(429), "HTTP 429", 0),
        (b"nonsense\r\n\r\n", "broken HTTP", 0),
    ],
)
def test_what_is_wrong_is_named(data, problem, tokens):
    answer = fed(data)
    assert answer.complete
    assert answer.problem.startswith(problem)
    assert answer.tokens == tokens


def test_a_connection_that_closes_is_a_cut_unless_all_had_come():
    cuts = {b"": "connection closed before an answer", HEAD + chunk(event(" a")): "stream cut"}
    whole = b"HTTP/1.1 200 OK\r\n\r\n" + event(" a") + DONE  # its length is the connection's
    for data, problem in {**cuts, whole: ""}.items():
        answer = Answer()
        if data:
            answer.feed(data, 1.0)
        assert not answer.complete
        answer.closed()
        assert answer.complete and answer.problem == problem and not answer.keep_alive


def test_an_example_is_kept_and_bounded():
    answer = fed(failing(503, b"x" * 100_000))
    assert answer.raw == b"x" * 4096
    error = HEAD + chunk(b'data: {"error": "overloaded"}\n\n') + END
    assert b"overloaded" in fed(error).raw
