"""The decision log: what is written is what happened, whatever the disk does, and a new brain decides it again."""

from __future__ import annotations

import ast
import errno
import math
import os
import signal
import subprocess
import sys
import threading
import time
import typing
from hashlib import sha256
from pathlib import Path
from random import Random

import msgspec
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_cases import NAMES, OneLife, arrival, fill, header, ids, logged_life, writer

from headway.errors import BadInput
from headway.gateway import GatewaySpec, Tenant
from headway.gateway import watch as watching
from headway.gateway.events import Answer, Arrival, EndRecord, EngineSample
from headway.gateway.log import writer as writing
from headway.gateway.log.form import Form, Prompt, Row, shapes, without_secrets
from headway.gateway.log.reader import runs
from headway.gateway.log.replay import replay
from headway.gateway.shadow import ShadowSaid
from headway.gateway.spec import LogSpec
from headway.gateway.watch import events_of, watch
from headway.policies import policy

LIVES = 150


# --- laws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.sweep) for part in (1, 2))])
def test_a_life_that_was_logged_is_decided_again_to_the_bit(part, tmp_path):
    """Policies that fail in every way, rejections, ejections, ends that overtake: a new brain answers the same."""
    decisions = 0
    for seed in range(part * LIVES // 3, (part + 1) * LIVES // 3):
        _, run = logged_life(tmp_path, seed)
        again = replay(run, OneLife(seed).brain)
        assert again.first is None, f"seed {seed}: {again.first}"
        assert again.equal == again.decisions and again.ended and not again.missing
        decisions += again.decisions
    assert decisions > 20 * LIVES / 3


def test_another_policy_decides_otherwise_and_the_first_difference_is_shown(tmp_path):
    seed = next(s for s in range(50) if len(OneLife(s).brain.books) > 1)
    _, run = logged_life(tmp_path, seed, events=200)
    other = OneLife(seed).brain
    other.fence.policies["admit"] = policy("admit", "queue-limit", {"limit": 0})
    again = replay(run, other, states=False)
    assert again.equal < again.decisions
    assert again.first is not None and again.first.event.startswith("arrive r")
    assert "refused_by_policy" in again.first.replayed[0] and "refused_by_policy" not in str(again.first.logged)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
reals = st.floats(allow_nan=False)
kinds = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: reals,
    bool: st.booleans(),
    str: texts,
    bytes: st.binary(max_size=8),
}


def made(hint: object, name: str) -> st.SearchStrategy[object]:
    if name in NAMES:
        return st.integers(0, 1)
    if hint == tuple[int, ...]:
        return st.lists(st.integers(0, 2**64 - 1), max_size=4).map(tuple)
    if hint in kinds:
        return kinds[hint]
    if typing.get_origin(hint) is list:
        return st.lists(made(typing.get_args(hint)[0], name), max_size=3)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        fields = typing.get_type_hints(hint)
        return st.builds(hint, **{field: made(each, "") for field, each in fields.items()})
    return st.none() | made(next(each for each in typing.get_args(hint) if each is not type(None)), name)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_event_and_every_answer_comes_back_as_it_went(data):
    rows = []
    for serial, (what, parts) in enumerate(shapes().items()):
        values = []
        for part in parts:
            hints = [cell.type for cell in part.cells]
            drawn = [data.draw(made(*pair)) for pair in zip(hints, part.fields, strict=True)]
            values.append(
                drawn[0] if part.struct is None else part.struct(**dict(zip(part.fields, drawn, strict=True)))
            )
        rows.append(Row(serial, data.draw(reals), what, tuple(values)))
    form = Form(header())
    table = form.arrow.Table.from_batches([form.batch(rows)])
    assert list(form.rows(table)) == rows


def test_what_the_host_tells_the_brain_is_an_event():
    """Whatever the host calls with the time of day is logged; what it would set by hand is not, so it must not."""
    folder = Path(watching.__file__).parent  # the text, also where the module is compiled
    texts = [(folder / name).read_text() for name in ("decider.py", "peers.py")]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    told = {
        node.func.attr
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args
        and ast.unparse(node.func.value).endswith("brain") and ast.unparse(node.args[0]) in ("self.now()", "now")
    }  # fmt: skip
    assert {"arrive", "end", "record", "tick", "adopt", "beside", "dated"} <= told <= set(events_of())
    assigned = [ast.unparse(t) for node in nodes if isinstance(node, ast.Assign) for t in node.targets]
    heard = {"brain.tell"}  # what is called with what has happened, and answers nothing
    assert not [name for name in assigned if ("book." in name or "brain." in name) and name not in heard]
    assert set(events_of()) | {kind.__name__.lower() for kind in typing.get_args(Answer)} <= set(shapes())


def test_what_the_brain_knew_before_the_log_began_is_known_again(tmp_path):
    life = OneLife(8)
    life.run_on(40)
    log = writer(tmp_path)
    log.follow(life.brain)
    life.run(60)
    log.close(life.now)
    (run,) = runs(tmp_path)
    again = replay(run, OneLife(8).brain)
    assert again.first is None and again.equal == again.decisions > 0


def test_what_the_brain_calls_of_itself_is_no_event_of_its_own():
    seen: list[str] = []
    brain = OneLife(3).brain
    watch(brain, lambda now, name, values, answers: seen.append(name))
    brain.record(0.0, EndRecord(id="x", status=503, replica=0, attempts=1, upstream_failed=True))
    brain.health(0.1, 0, True)
    assert seen == ["record", "health"]


# --- the disk ---------------------------------------------------------------------------------------------------


class Disk:
    """Writes like `os.write`, in pieces, until it is full."""

    def __init__(self) -> None:
        self.full = False
        self.left = 1 << 40

    def write(self, descriptor: int, data: bytes) -> int:
        if self.full and self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = data[: min(1000, self.left if self.full else 1000)]
        self.left -= len(data)
        return os.write(descriptor, data)


@pytest.mark.parametrize("left", [0, 1, 500, 5000])
def test_a_full_disk_costs_nothing_that_the_queue_holds(tmp_path, left):
    """The batch that did not fit is written again, from its start, once there is room."""
    disk, said = Disk(), []
    log = writer(tmp_path, write=disk.write, say=said.append)
    fill(log, 0, 300)
    assert log.flush()
    disk.full, disk.left = True, left
    fill(log, 300, 300)
    assert not log.flush() and not log.flush()
    assert log.status()["failing"] == "No space left on device"
    assert log.segments.path.stat().st_size == log.segments.size, "no part of a batch is left in the file"
    assert len(said) == 1 and "No space left on device" in said[0]
    disk.full = False
    fill(log, 600, 10)
    assert log.flush()
    assert len(said) == 2 and not log.status()["failing"] and not log.dropped
    (run,) = runs(tmp_path)
    assert ids(run) == [f"r{i}" for i in range(610)]


def test_what_the_queue_has_no_room_for_is_counted_and_leaves_a_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "QUEUE_EVENTS", 100)
    disk = Disk()
    disk.full, disk.left = True, 0
    log = writer(tmp_path, write=disk.write)
    fill(log, 0, 130)
    assert not log.flush()
    assert log.dropped == 30 and dict((n, v) for n, _, v in log.gauges())["headway_log_dropped_total"] == 30
    disk.full = False
    assert log.flush()
    fill(log, 130, 5)
    log.close(200.0)
    assert log.flush()
    (run,) = runs(tmp_path)
    assert [event.missing for event in run.events()] == [0] * 100 + [30] + [0] * 5
    again = replay(run, OneLife(1).brain)
    assert (again.events, again.missing, again.skipped) == (100, 30, 5)


def test_long_prompts_do_not_fill_the_memory(tmp_path):
    log = writer(tmp_path)
    fill(log, 0, 4000, chain=tuple(range(2000)))
    assert log.dropped > 0
    assert sum(36 * len(each[3][0].chain) for each in log.queue) <= writing.QUEUE_BYTES


def test_a_disk_that_hangs_holds_nobody_up(tmp_path, monkeypatch):
    """A thousand requests are decided while the disk does not answer; then all are in the log."""
    monkeypatch.setattr(writing, "FLUSH_S", 0.001)
    hangs, asked = threading.Event(), threading.Event()

    def write(descriptor: int, data: bytes) -> int:
        asked.set()
        assert hangs.wait(30)
        return os.write(descriptor, data)

    life = OneLife(2)
    log = writer(tmp_path, write=write)
    log.follow(life.brain)
    life.brain.arrive(0.0, arrival(0))
    assert asked.wait(30)
    for i in range(1, 1001):
        life.brain.arrive(float(i), arrival(i))
        life.brain.end(float(i), f"r{i}")
    assert not log.written_rows and log.serial == 2002
    hangs.set()
    log.close(2000.0)
    (run,) = runs(tmp_path)
    assert ids(run) == [f"r{i}" for i in range(1001)]


def test_what_no_column_can_hold_is_left_out_alone(tmp_path, monkeypatch):
    said: list[str] = []
    log = writer(tmp_path, say=said.append)
    fill(log, 0, 3)
    log.put(3.0, "arrive", (arrival(3, prompt_bytes="many"),))
    fill(log, 4, 3, max_tokens=2**70)
    assert log.flush()
    assert log.dropped == 1 and len(said) == 1
    (run,) = runs(tmp_path)
    assert ids(run) == ["r0", "r1", "r2", "r4", "r5", "r6"]


# --- files ------------------------------------------------------------------------------------------------------


def test_a_stream_that_was_cut_anywhere_gives_its_whole_batches(tmp_path):
    log = writer(tmp_path)
    sizes = []
    for i in range(4):
        fill(log, 10 * i, 10)
        log.flush()
        sizes.append(log.segments.size)
    data = log.segments.path.read_bytes()
    assert len(data) == sizes[-1]
    for cut in [*range(sizes[0], len(data), 97), *sizes]:
        log.segments.path.write_bytes(data[:cut])
        (run,) = runs(tmp_path)
        assert len(ids(run)) == 10 * sum(size <= cut for size in sizes), cut
        assert not run.closed


def test_a_file_that_was_cut_within_its_head_is_no_log(tmp_path):
    log = writer(tmp_path)
    fill(log, 0, 1)
    log.flush()
    for cut in (0, 3, 200):
        log.segments.path.write_bytes(log.segments.path.read_bytes()[:cut])
        with pytest.raises(BadInput, match="holds no decision log"):
            runs(tmp_path)


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from log_cases import OneLife, writer
life = OneLife(7)
log = writer(Path({folder!r}))
log.follow(life.brain)
life.run(200)
while log.queue:
    pass
life.brain.arrive(1e6, __import__("log_cases").arrival(999))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_loses_only_what_was_not_written(tmp_path):
    code = KILLED.format(path=[str(Path(__file__).parent), *sys.path], folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".arrows"]
    (run,) = runs(tmp_path)
    again = replay(run, OneLife(7).brain)
    assert again.first is None and again.equal == again.decisions > 50
    assert not again.ended and not again.missing


def test_a_half_written_file_is_told_apart_and_nothing_is_read_twice(tmp_path):
    log = writer(tmp_path)
    fill(log, 0, 20)
    log.flush()
    stream = log.segments.path
    kept = stream.read_bytes()
    log.close(20.0)
    log.flush()
    log.segments.finish()
    (whole,) = tmp_path.iterdir()
    assert whole.suffix == ".parquet"
    stream.write_bytes(kept)  # killed between the two: both are there
    whole.with_suffix(".parquet.part").write_bytes(whole.read_bytes()[:100])
    (run,) = runs(tmp_path)
    assert len(ids(run)) == 20 and run.closed


def test_parquet_that_cannot_be_written_leaves_the_stream(tmp_path, monkeypatch):
    log = writer(tmp_path)
    fill(log, 0, 20)
    log.flush()

    def full(part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log.segments, "_convert", full)
    assert not log._tried(log.segments.finish)
    fill(log, 20, 20)
    assert log.flush()
    assert sorted(path.name[-13:] for path in tmp_path.iterdir()) == ["000000.arrows", "000001.arrows"]
    (run,) = runs(tmp_path)
    assert len(ids(run)) == 40


def test_the_log_stays_within_its_bound_and_says_what_is_gone(tmp_path):
    bound = 1 << 20
    log = writer(tmp_path, {"max_bytes": bound})
    largest, rng = 0, Random(1)
    for i in range(100):
        for j in range(100):
            fill(log, 100 * i + j, 1, chain=tuple(rng.getrandbits(64) for _ in range(30)))
        assert log.flush()
        largest = max(largest, sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert bound / 2 < largest <= bound
    log.close(1e6)
    log.flush()
    (run,) = runs(tmp_path)
    kept = ids(run)
    assert kept[-1] == "r9999" and 1000 < len(kept) < 9000
    again = replay(run, OneLife(1).brain)
    assert again.events == 0 and again.missing + again.skipped == 10_000


def test_files_that_are_too_old_go_and_files_of_others_stay(tmp_path):
    old = time.time() - 8 * 86400
    for name in ("20250101T000000-00000000-000000.parquet", "mine.parquet"):
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, (old, old))
    log = writer(tmp_path)
    fill(log, 0, 1)
    log.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == [log.segments.path.name, "mine.parquet"]


def test_a_file_is_for_its_user_alone(tmp_path):
    log = writer(tmp_path / "log")
    fill(log, 0, 1)
    log.flush()
    assert (tmp_path / "log").stat().st_mode & 0o77 == log.segments.path.stat().st_mode & 0o77 == 0
    log.segments.finish()
    (file,) = (tmp_path / "log").iterdir()
    assert file.suffix == ".parquet" and file.stat().st_mode & 0o77 == 0


# --- what is in it ----------------------------------------------------------------------------------------------


def everything(folder: Path) -> bytes:
    """All that the files say, uncompressed."""
    tables = [parquet.read_table(path) for path in folder.iterdir()]
    return repr([(table.schema.metadata, table.to_pylist()) for table in tables]).encode()


@pytest.mark.parametrize("prompts", [False, True])
def test_tenants_are_named_keys_are_absent_and_prompts_only_where_asked_for(tmp_path, prompts):
    key = sha256(b"sk-alice").hexdigest()
    spec = GatewaySpec(
        upstreams=("127.0.0.1:1",), tenants=(Tenant(name="alice", keys_sha256=(key,)),), admin_key_sha256=key
    )
    from headway.specs import to_mapping

    made = writing.header_of(spec, {"gateway": to_mapping(spec, defaults=True)}, seed=4, version="1")
    log = writing.LogWriter(LogSpec(folder=str(tmp_path), prompts=prompts), made)
    log.prompt(0.0, "r0", b'{"prompt": "the secret plan"}')
    fill(log, 0, 3)
    log.close(1.0)
    log.flush()
    log.segments.finish()
    text = everything(tmp_path)
    assert key.encode() not in text and b"admin_key" not in text
    assert (b"the secret plan" in text) == prompts
    assert b"'tenant': 'alice'" in text and b"'slo_class': 'default'" in text
    (run,) = runs(tmp_path)
    (first, *_) = (event for event in run.events() if event.what == "arrive")
    assert first.values[0].tenant == 0
    (tenant,) = run.header.deployment["gateway"]["tenants"]
    assert run.header.seed == 4 and tenant["name"] == "alice" and "keys_sha256" not in tenant


def test_secrets_are_known_by_their_names():
    kept = {"tokens_per_min": 3, "key": "route", "name": "a"}
    secret = {"keys_sha256": ["x"], "otlp": {"api_key": "x", "token": "x", "url": "y"}, "password": "x"}
    assert without_secrets(kept | secret) == kept | {"otlp": {"url": "y"}}


def test_a_decision_is_a_row_with_its_reason(tmp_path):
    life, _ = logged_life(tmp_path, 11, events=80)
    (file,) = (tmp_path / "11").iterdir()
    rows = parquet.read_table(file).to_pylist()
    said = [answer for answers in life.said.values() for answer in answers]
    assert sum(row["what"] in ("routed", "held", "refused", "left") for row in rows) == len(said)
    routed = [row for row in rows if row["what"] == "routed"]
    assert routed and all(row["reason"] and row["hosts"] for row in routed)
    serials = [row["serial"] for row in rows]
    assert serials == sorted(serials) and set(serials) == set(range(serials[-1] + 1))


def test_an_older_log_that_lacks_a_column_is_read(tmp_path):
    form = Form(header())
    batch = form.batch([Row(0, 0.0, "sample", (0, EngineSample(running=3, kv_share=0.5)))])
    table = form.arrow.Table.from_batches([batch]).drop_columns(["kv_share"])
    (row,) = form.rows(table)
    assert row.values == (0, EngineSample(running=3))


def test_times_without_end_and_odd_texts_are_kept(tmp_path):
    form = Form(header())
    rows = [
        Row(0, 0.0, "arrive", (arrival(1, deadline_s=math.inf, chain=(2**64 - 1,)),)),
        Row(0, 0.0, "shadow", (ShadowSaid(id="r1", decision="route", agrees=None, error="\ud800"),)),
        Row(1, 0.0, "prompt", (Prompt(id="r1", text="ä\0"),)),
    ]
    first, second, third = form.rows(form.arrow.Table.from_batches([form.batch(rows)]))
    assert isinstance(first.values[0], Arrival) and (first, third) == (rows[0], rows[2])
    assert second.values[0].error == "?"
