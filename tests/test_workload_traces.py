"""Readers of trace files: what they take, what they refuse, and that our own form gives back every bit."""

import gzip
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headway.errors import BadInput, UnknownName
from headway.workload import (
    RequestClass,
    SharedPrefix,
    Workload,
    WorkloadSpec,
    parse_arrival,
    parse_length,
    workload,
    write,
)
from headway.workload.batch import join
from headway.workload.readers import read_trace
from workload_cases import all_of, chain, same_bytes, specs

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
SECONDS = "arrival_s,input_tokens,output_tokens\n"
ROW = '{"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [1, 2]}\n'
rows = st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1)
each = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def save(folder: Path, text: str | bytes, name: str = "trace") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --- forms ---


@each
@given(rows, st.booleans())
def test_seconds_and_lengths_come_back(
    tmp_path: Path, rows: list[tuple[float, int, int]], packed: bool
) -> None:
    text = SECONDS + "".join(f"{t!r},{i},{o}\n" for t, i, o in rows)
    requests = read_trace(save(tmp_path, gzip.compress(text.encode()) if packed else text)).requests
    expected = sorted(rows, key=lambda row: row[0])
    assert requests.arrival_s.tolist() == [t for t, _, _ in expected]
    assert requests.prompt_tokens.tolist() == [i for _, i, _ in expected]
    assert requests.output_tokens.tolist() == [o for _, _, o in expected]


def test_dates_keep_their_seven_digits(tmp_path: Path) -> None:
    text = (
        f"\ufeff{AZURE}2023-11-16 23:59:59.9999999,4808,10\r\n2023-11-17 00:00:00.0000001,3180,8\r\n"
        "2023-11-17 00:01:00,110,27\r\n2023-11-17 01:01:00.5+01:00,9,9"
    )
    requests = read_trace(save(tmp_path, text)).requests
    assert requests.arrival_s == pytest.approx([0, 2e-7, 60.0000001 - 1e-7 + 1e-7, 60.5000001], abs=2e-8)
    assert requests.prompt_tokens.tolist() == [4808, 3180, 110, 9]


def test_columns_may_come_in_any_order_among_others(tmp_path: Path) -> None:
    requests = read_trace(save(tmp_path, "x,output_tokens,input_tokens,arrival_s\n?,7,5,1.5\n")).requests
    assert (requests.arrival_s[0], requests.prompt_tokens[0], requests.output_tokens[0]) == (1.5, 5, 7)


def test_mooncake_counts_full_blocks_and_spreads_steps(tmp_path: Path) -> None:
    lines = [
        {
            "timestamp": 3000 * (i // 50),
            "input_length": 512 * 2 + i,
            "output_length": 7,
            "hash_ids": [0, 1 + i, 99],
        }
        for i in range(1000)
    ]
    path = save(tmp_path, "\n".join(map(json.dumps, lines)))
    made = workload(path)
    batch = all_of(made)
    assert made.block_tokens == 512
    assert np.diff(batch.hash_offsets).tolist() == [(1024 + i) // 512 for i in range(1000)]
    assert chain(batch, 7).tolist() == [0, 8]
    assert (batch.arrival_s // 3 == np.arange(1000) // 50).all()
    assert (np.diff(batch.arrival_s) > 0).mean() > 0.99
    assert made.rate_req_s == pytest.approx(1000 / 60)
    assert not same_bytes(batch, all_of(made, seed=1))
    rounded = workload(path, spread_steps=False)
    assert all_of(rounded).arrival_s.tolist() == [3.0 * (i // 50) for i in range(1000)]
    assert "steps of 3 s" in " ".join(made.notes) and not rounded.notes


def test_llmservingsim_blocks_are_of_16_tokens(tmp_path: Path) -> None:
    line = (
        '{"timestamp_ms": 46.5, "input_length": 40, "output_length": 9, "hash_ids": [4, 5], "other": "x"}\n'
    )
    made = workload(save(tmp_path, line * 2))
    batch = all_of(made)
    assert (made.block_tokens, batch.arrival_s[0], chain(batch, 1).tolist()) == (16, 0.0465, [4, 5])


CONVERSATION = {
    "id": "a",
    "conversations": [
        {"from": "system", "value": "x" * 400},
        {"from": "human", "value": "q" * 41},
        {"from": "gpt", "value": "a" * 80},
        {"from": "human", "value": "more"},
    ],
}


@pytest.mark.parametrize("as_list", [True, False])
def test_a_conversation_is_its_first_question_and_answer(tmp_path: Path, as_list: bool) -> None:
    counted = {"conversations": [{"role": "user", "tokens": 5}, {"role": "assistant", "tokens": 6}]}
    both = [CONVERSATION, counted]
    path = save(tmp_path, json.dumps(both, indent=2) if as_list else "\n".join(map(json.dumps, both)))
    made = workload(path)
    batch = all_of(made)
    assert batch.prompt_tokens.tolist() == [11, 5] and batch.output_tokens.tolist() == [20, 6]
    assert made.rate_req_s == 1.0
    assert "characters / 4" in made.notes[0]


@pytest.mark.parametrize(
    "line",
    [
        '{"input_tokens": 5, "output_tokens": 6}',
        '{"input_length": 5, "output_length": 6}',
        '{"prompt_len": 5, "output_len": 6}',
        '{"prompt_tokens": 5, "output_tokens": 6}',
        "input_tokens,output_tokens\n5,6",
    ],
)
def test_lengths_without_arrivals_come_as_poisson(tmp_path: Path, line: str) -> None:
    made = workload(save(tmp_path, line))
    batch = all_of(made, rate=2.0)
    assert (batch.prompt_tokens[0], batch.output_tokens[0]) == (5, 6)
    assert made.rate_req_s == 1.0


# --- our own form ---


@each
@given(specs(), st.sampled_from([".jsonl", ".jsonl.gz", ".parquet"]))
def test_our_own_form_gives_back_every_bit(tmp_path: Path, spec: WorkloadSpec, suffix: str) -> None:
    made, path = workload(spec), tmp_path / f"own{suffix}"
    write(made, path, seed=3)
    again = workload(path)
    assert same_bytes(all_of(again), all_of(made, seed=3))
    assert (again.block_tokens, again.concurrency, again.think_s) == (
        made.block_tokens,
        made.concurrency,
        made.think_s,
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_writing_twice_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    made = workload("agent", requests=50)
    write(made, tmp_path / f"a{suffix}")
    write(made, tmp_path / f"b{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_deadlines_survive_and_move_with_the_rate(tmp_path: Path) -> None:
    path = save(
        tmp_path, '{"arrival_s":2,"prompt_tokens":5,"output_tokens":6,"deadline_s":2.5,"priority":-1}\n' * 3
    )
    made = Workload(workload(path).spec, read_trace(path), read_trace(path))
    assert all_of(made).deadline_s.tolist() == [2.5] * 3
    assert all_of(workload(path, arrival="constant:rate=1")).deadline_s.tolist() == [1.5, 2.5, 3.5]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.jsonl, \.jsonl\.gz or \.parquet"):
        write(workload("chat", requests=5), tmp_path / "trace.csv")
    with pytest.raises(BadInput, match="cannot be written"):
        write(workload("chat", requests=5), tmp_path / "no" / "trace.jsonl")


# --- broken files ---

OWN = '{"prompt_tokens":5,"output_tokens":6,"arrival_s":1}\n'
HEADER = '{"headway":"workload/1","block_tokens":16}\n'


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (
            f"{AZURE}2023-11-16 18:15:46.68,5,6\n2023-11-16 18:15:46.68,0,6\n",
            3,
            "at least 1 as ContextTokens",
        ),
        (f"{AZURE}2023-11-16 18:15:46.68,5,6\nyesterday,5,6\n", 3, "a date and time such as"),
        (f"{AZURE}2023-11-16 18:15:46.68,5,6\n2023-11-16 18:15:47,5\n", 3, "came '2023-11-16 18:15:47,5'"),
        (f"{SECONDS}0,5,6\n1,5,-6\n", 3, "came '1,5,-6'"),
        (f"{SECONDS}0,5,6\nnan,5,6\n", 3, "seconds, 0 or more"),
        (f"{SECONDS}0,5,6\n-1,5,6\n", 3, "seconds, 0 or more"),
        (f"{SECONDS}0,5,6\n\n1,5.5,6\n", 4, "whole numbers"),
        (ROW + ROW.replace("1024", "0"), 2, "int >= 1 at input_length"),
        (ROW + ROW.replace("1024", "1536"), 2, "3 hash_ids, one per full block of 512 tokens, not 2"),
        (ROW + ROW.replace('"timestamp": 0', '"timestamp": -1'), 2, "float >= 0.0 at timestamp"),
        (ROW + ROW.replace("5,", '"5",'), 2, "int, got str at output_length"),
        (ROW + ROW.replace("[1, 2]", "[1, 99999999999999999999]"), 2, "64 bits"),
        (ROW + ROW.replace(', "hash_ids": [1, 2]', ""), 2, "hash_ids"),
        (ROW + ROW[:30], 2, "expected"),
        (ROW + "\n[]\n", 3, "object, got array"),
        (OWN + OWN.replace("5", "NaN"), 2, "valid JSON"),
        (OWN + OWN.replace("5", "-5"), 2, "int >= 1 at prompt_tokens"),
        (OWN + OWN.replace(',"arrival_s":1', ""), 2, "arrival_s in every record or in none"),
        (OWN + OWN.replace("arrival_s", "arival_s"), 2, "unknown field arival_s"),
        (OWN + OWN.replace("1}", '1,"hashes":[1]}'), 2, '"block_tokens"'),
        (HEADER + OWN + OWN.replace("1}", '1,"hashes":[1]}'), 3, "0 to 0 hashes of 16 tokens, not 1"),
        (
            json.dumps(CONVERSATION) + '\n{"conversations": [{"from": "human", "value": "hi"}]}',
            2,
            "a turn from human",
        ),
        (
            json.dumps(CONVERSATION) + "\n" + json.dumps(CONVERSATION).replace("q", ""),
            2,
            "at least one token each",
        ),
        (json.dumps([CONVERSATION, 3]), 2, "object"),
    ],
)
def test_a_broken_line_is_named_or_counted(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = save(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        workload(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: came ")
    assert "; expected " in message and said in message and len(message) < 600
    made = workload(path, skip_bad=True)
    assert (made.requests, made.skipped) == (1, 1)
    assert not any("broken" in note for note in made.notes)  # `skipped` says it, once


@pytest.mark.parametrize("text", ["", "\n\n", "[]", gzip.compress(b"", mtime=0)])
def test_an_empty_file_says_so(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(BadInput, match="holds no requests: the file is empty"):
        workload(save(tmp_path, text))


@pytest.mark.parametrize("text", [AZURE, SECONDS, HEADER, gzip.compress(SECONDS.encode(), mtime=0)])
def test_a_file_with_nothing_but_a_header_says_so(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(BadInput, match="holds no requests: only a header"):
        workload(save(tmp_path, text))


def test_a_line_with_a_column_too_many_is_broken(tmp_path: Path) -> None:
    path = save(tmp_path, f"{SECONDS}0,5,6\n1,5,6,7\n")
    with pytest.raises(BadInput, match=r":3: came '1,5,6,7'; expected 3 columns .*, not 4"):
        workload(path)
    made = workload(path, skip_bad=True)
    assert (made.requests, made.skipped) == (1, 1)


@pytest.mark.parametrize("content", ["garbage", "a,b\n1,2\n", b"\x00\xff\x01"])
def test_a_damaged_parquet_file_is_called_no_parquet_file(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(BadInput, match="is no Parquet file"):
        workload(save(tmp_path, content, "t.parquet"))


def test_a_file_of_broken_lines_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="all 2 records are broken"):
        workload(save(tmp_path, f"{SECONDS}0,0,0\n1,0,0\n"), skip_bad=True)


@pytest.mark.parametrize(
    "content",
    [
        b"a,b,c\n1,2,3\n",
        b'{"a": 1}\n',
        b"\x89PNG\r\n\x1a\n\x00\xff\xfe",
        gzip.compress(SECONDS.encode() * 1000, mtime=0)[:60],
        b"\x1f\x8b\x08\x00not gzip at all",
        b"[1, 2",
        b"PAR1 but nothing after it",
        SECONDS.encode() + b"0,5,\xff6\n",
        HEADER.replace("16", "24").encode() + OWN.encode(),
        HEADER.replace("block", "blok").encode() + OWN.encode(),
    ],
)
def test_what_is_no_trace_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = save(tmp_path, content)
    with pytest.raises(BadInput, match=str(path)):
        workload(path)


def test_a_form_nobody_knows_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="came the fields a,b; expected those of one form: TIMESTAMP"):
        workload(save(tmp_path, "a,b\n1,2\n"))


def test_parquet_that_is_not_ours_or_broken_is_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    parquet.write_table(arrow.table({"a": [1]}), path)
    with pytest.raises(BadInput, match="output_tokens, prompt_tokens are missing"):
        workload(path)
    columns = {"prompt_tokens": [5, 0], "output_tokens": [6, 6], "arrival_s": [0.0, math.nan]}
    parquet.write_table(arrow.table(columns), path)
    with pytest.raises(BadInput, match="parquet:2: came 'arrival_s=nan, prompt_tokens=0"):
        workload(path)
    assert workload(path, skip_bad=True).skipped == 1
    columns = {"prompt_tokens": ["x"], "output_tokens": [6]}
    parquet.write_table(arrow.table(columns), path)
    with pytest.raises(BadInput, match="prompt_tokens"):
        workload(path)


def test_names_that_lead_nowhere_offer_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown workload 'chatt': nearest: chat"):
        workload("chatt")
    save(tmp_path, AZURE, "azure.csv")
    with pytest.raises(BadInput, match="no such file; nearest: azure"):
        workload(tmp_path / "azur.csv")
    with pytest.raises(BadInput, match="no such file"):
        workload(tmp_path / "no" / "such.csv")
    with pytest.raises(BadInput, match="cannot be read"):
        workload(f"{tmp_path}/")


# --- what a trace can do ---


def test_a_trace_is_cut_stretched_and_given_other_arrivals(tmp_path: Path) -> None:
    path = save(tmp_path, SECONDS + "".join(f"{0.5 * i},{i + 1},7\n" for i in range(11)))
    assert workload(path).rate_req_s == 2.0
    assert all_of(workload(path, rate=4.0)).arrival_s.tolist() == [0.25 * i for i in range(11)]
    assert all_of(workload(path, requests=3)).prompt_tokens.tolist() == [1, 2, 3]
    assert workload(path, requests=3).mean_prompt_tokens == 2.0
    assert all_of(workload(path, arrival="constant")).arrival_s.tolist() == [0.5 * i for i in range(1, 12)]
    assert workload(path, arrival="closed:4").concurrency == 4
    with pytest.raises(BadInput, match="holds 11; ask for no more"):
        workload(path, requests=12)


def test_recorded_times_may_carry_modelled_lengths(tmp_path: Path) -> None:
    path = save(tmp_path, SECONDS + "0,1,1\n3,1,1\n5,1,1\n")
    made = workload("chat", arrival=f"replay:{path}")
    assert (made.requests, made.rate_req_s) == (3, 0.4)
    assert all_of(made).arrival_s.tolist() == [0, 3, 5]
    assert all_of(made, rate=0.8).arrival_s.tolist() == [0, 1.5, 2.5]


def test_a_spec_names_a_trace(tmp_path: Path) -> None:
    path = save(tmp_path, SECONDS + "0,5,1\n3,6,1\n5,7,1\n")
    yaml = save(tmp_path, f"trace: {path}\nrequests: 2\n", "spec.yaml")
    assert all_of(workload(yaml)).arrival_s.tolist() == [0, 3]
    assert workload(path).requests == 3 and workload(path).spec.arrival == parse_arrival(f"replay:{path}")
    assert workload(WorkloadSpec(trace=str(path), arrival=parse_arrival("constant:rate=4"))).rate_req_s == 4
    with pytest.raises(BadInput, match="make it with workload"):
        Workload(WorkloadSpec(trace=str(path)))


def test_times_that_are_not_there_cannot_be_replayed(tmp_path: Path) -> None:
    path = save(tmp_path, "input_tokens,output_tokens\n5,6\n")
    for made in (
        lambda: workload("chat", arrival=f"replay:{path}"),
        lambda: workload(WorkloadSpec(trace=str(path))),
    ):
        with pytest.raises(BadInput, match="no arrival times"):
            made()


def test_requests_all_at_once_have_no_rate(tmp_path: Path) -> None:
    made = workload(save(tmp_path, SECONDS + "1,1,1\n1,1,1\n"))
    assert made.rate_req_s is None
    with pytest.raises(BadInput, match="no time passes"):
        list(made.batches(0, rate_req_s=3.0))


def test_a_single_request_comes_when_it_comes_at_any_rate(tmp_path: Path) -> None:
    made = workload(save(tmp_path, SECONDS + "3,10,2\n"))
    assert made.rate_req_s is None
    assert same_bytes(all_of(made), all_of(made, rate=7.0))


def test_a_yaml_file_holds_a_workload(tmp_path: Path) -> None:
    text = (
        "name: mine\nprompt: {kind: exponential, mean_tokens: 512}\noutput: {kind: constant, tokens: 1000}\n"
    )
    made = workload(save(tmp_path, text + "arrival: {kind: poisson, rate_req_s: 90req/min}", "mine.yaml"))
    spec = WorkloadSpec(name="mine", prompt=parse_length("exp:512"), output=parse_length("1000"))
    assert (made.name, made.rate_req_s) == ("mine", 1.5)
    assert same_bytes(all_of(made, rate=1.0), all_of(workload(spec)))
    with pytest.raises(BadInput, match="nearest: prompt"):
        workload(save(tmp_path, text.replace("prompt", "promt"), "wrong.yaml"))


# --- longer than is held ---


def test_a_long_file_lies_on_disk_and_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{i * 0.5:.1f},{10 + i % 7},{1 + i % 5}" for i in range(1000)]
    plain = save(tmp_path, SECONDS + "\n".join(lines) + "\n", "plain.csv")
    chains = WorkloadSpec(
        prompt=parse_length("exp:300"), output=parse_length("exp:40"), requests=1000,
        shared_prefix=SharedPrefix(tokens=parse_length("200"), groups=3), prediction_sigma=0.3,
        classes=(RequestClass(name="a"), RequestClass(name="b", deadline_s=2.0, priority=1)),
    )  # fmt: skip
    files = [plain]
    for name in ("own.jsonl", "own.parquet"):
        write(workload(chains), tmp_path / name)
        files.append(str(tmp_path / name))
    before = [read_trace(file).requests for file in files]
    monkeypatch.setattr("headway.workload.readers.ROWS", 64)
    monkeypatch.setattr("headway.workload.files.ROWS", 64)
    monkeypatch.setattr("headway.workload.spool.HELD_BYTES", 10_000)
    for file, held in zip(files, before, strict=True):
        there = read_trace(file).requests
        assert isinstance(there.prompt_tokens, np.memmap) and not isinstance(held.prompt_tokens, np.memmap)
        assert same_bytes(there, held)
        assert same_bytes(all_of(workload(file)), join(list(workload(file).batches(0, chunk=77))))


def test_a_long_file_out_of_order_is_sorted_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{(i * 37) % 1000},{10 + i % 7},{1 + i % 5}" for i in range(1000)]
    file = save(tmp_path, SECONDS + "\n".join(lines) + "\n")
    held = read_trace(file)
    monkeypatch.setattr("headway.workload.readers.ROWS", 64)
    monkeypatch.setattr("headway.workload.spool.HELD_BYTES", 10_000)
    assert same_bytes(read_trace(file).requests, held.requests)
    assert read_trace(file).notes == held.notes == ("arrivals were out of order; sorted",)
    assert (np.diff(held.requests.arrival_s) >= 0).all()


def test_dates_may_go_back_before_the_first(tmp_path: Path) -> None:
    dated = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    file = save(tmp_path, dated + "2023-11-16 18:15:46.5,5,6\n2023-11-16 18:15:40.5,7,8\n2023-11-16 18:15:48.0,9,1\n")
    found = read_trace(file).requests
    assert found.arrival_s.tolist() == [0.0, 6.0, 7.5] and found.prompt_tokens.tolist() == [7, 5, 9]


# --- parts of a trace ---


@each
@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 500), st.integers(1, 99)), min_size=2, max_size=60),
    st.integers(1, 60),
)
def test_the_densest_part_is_the_one_that_no_other_in_a_row_beats(tmp_path: Path, gaps, wanted) -> None:
    times = np.cumsum([gap for gap, _, _ in gaps])
    tokens = np.array([prompt + output for _, prompt, output in gaps])
    text = "".join(f"{t!r},{p},{o}\n" for t, (_, p, o) in zip(times.tolist(), gaps, strict=True))
    made = workload(save(tmp_path, SECONDS + text))
    part = made.densest(wanted)
    if wanted >= len(gaps):
        assert part is made
        return

    def load(at: int) -> float:
        return float(tokens[at : at + wanted].sum() / max(times[at + wanted - 1] - times[at], 1e-9))

    first = part.spec.first
    assert load(first) >= max(load(at) for at in range(len(gaps) - wanted + 1)) * (1 - 1e-6)
    found = all_of(part)
    assert len(found) == part.requests == wanted and part.rate_req_s == made.rate_req_s
    assert found.prompt_tokens.tolist() == [prompt for _, prompt, _ in gaps[first : first + wanted]]
    assert np.allclose(found.arrival_s, times[first : first + wanted] - (times[first] if first else 0.0))


def test_a_part_is_found_across_the_parts_that_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    times, prompts = np.cumsum(rng.exponential(1.0, 500)), rng.integers(1, 900, 500)
    file = save(tmp_path, SECONDS + "".join(f"{t},{p},5\n" for t, p in zip(times, prompts, strict=True)))
    whole = [workload(file).densest(n).spec.first for n in range(1, 500, 7)]
    monkeypatch.setattr("headway.workload.trace._LOOKED_AT", 13)
    assert whole == [workload(file).densest(n).spec.first for n in range(1, 500, 7)]


def test_a_part_of_a_trace_is_what_its_spec_says(shared_data: Path, tmp_path: Path) -> None:
    for name in ("azure_2023_conv.csv.gz", "mooncake_conversation.jsonl.gz"):
        file = shared_data / "traces" / name
        if not file.exists():
            continue
        for rate in (None, 7.0):
            part = workload(file).densest(300)
            spec = msgspec.structs.replace(workload(file).spec, first=part.spec.first, requests=300)
            assert same_bytes(all_of(part, rate=rate), all_of(workload(spec), rate=rate))
    made = workload(file)
    late = workload(msgspec.structs.replace(made.spec, first=made.requests - 5))
    assert late.requests == 5 and late.rate_req_s == made.rate_req_s
    with pytest.raises(BadInput, match="first"):
        workload(msgspec.structs.replace(made.spec, first=made.requests))
    for spec in ({"trace": "x", "first": -1}, {"prompt": parse_length("5"), "output": parse_length("5"), "first": 3}):
        with pytest.raises(BadInput, match="expected 0 or more, of a trace"):
            WorkloadSpec(**spec)
