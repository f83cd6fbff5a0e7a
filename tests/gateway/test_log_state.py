"""A log that has lost its beginning: a new brain goes on from a state that the log keeps."""

from __future__ import annotations

import os
import pickle
import threading
import time
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from brain_cases import Faulty, table
from log_cases import OneLife, arrival, writer

from headway.errors import BadInput
from headway.gateway import Backing, Brain, GatewaySpec, Tenant
from headway.gateway.log import writer as writing
from headway.gateway.log.reader import runs
from headway.gateway.log.replay import replay
from headway.gateway.log.state import kept, restore
from headway.policies import policy


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.sweep)])
def test_a_log_without_its_beginning_is_decided_again_from_a_state_it_keeps(part, tmp_path):
    """The state is kept in the midst of a random life; a new brain that starts there answers the same to the end."""
    for seed in range(part * 30, part * 30 + 30):
        life = OneLife(seed)
        log = writer(tmp_path / str(seed))
        log.follow(life.brain)
        for _ in range(3):
            life.run_on(30)
            log.next_state_s = 0.0
            log.keep_state(life.now, life.brain)
        life.run(30)
        log.close(life.now)
        files = sorted((tmp_path / str(seed)).iterdir())
        assert len(files) == 4
        for path in files[:2] if seed % 2 else files[1:2]:
            path.unlink()
        (run,) = runs(tmp_path / str(seed))
        again = replay(run, OneLife(seed).brain)
        assert again.first is None, f"seed {seed}: {again.first}"
        assert again.equal == again.decisions > 0 and again.missing > 0 and not again.skipped


def test_a_log_that_was_cut_by_its_bound_goes_on_from_a_state(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "FLUSH_S", 0.001)
    life = OneLife(5)
    log = writer(tmp_path, {"max_bytes": 1 << 20})
    log.follow(life.brain)
    rng = Random(1)
    for i in range(6000):
        id = f"{rng.getrandbits(2000):x}"
        life.brain.arrive(i * 0.5, arrival(i, id=id))
        life.brain.end(i * 0.5 + 0.1, id)
        life.brain.tick(i * 0.5 + 0.2)
        if i % 100 == 0:
            while len(log.queue):
                time.sleep(0.001)
            log.next_state_s = 0.0
    log.close(1e6)
    (run,) = runs(tmp_path)
    again = replay(run, OneLife(5).brain)
    assert again.first is None and again.equal == again.decisions > 100
    assert again.missing > 1000 and again.skipped < 1000


def test_a_state_holds_no_key_and_only_what_states_are_made_of(tmp_path):
    key = sha256(b"sk-alice").hexdigest()
    spec = GatewaySpec(upstreams=("127.0.0.1:1",), tenants=(Tenant(name="alice", keys_sha256=(key,)),))
    policies = {
        kind: policy(kind, name)
        for kind, name in (("route", "power-of-two"), ("order", "edf"), ("admit", "accept-all"))
    }
    brain = Brain(spec, [Backing(table=table())], policies)
    brain.arrive(0.0, arrival(0))
    brain.told = lambda outcome: None  # what a host puts in
    data = kept(brain)
    assert key.encode() not in data and len(data) < 20_000, "the step table is not in it"
    other = Brain(spec, [Backing(table=table())], policies)
    restore(other, data)
    assert list(other.live) == ["r0"] and other.books[0].in_flight == 1 and not other.books[0].check()
    assert other.accounts[0].tenant is spec.tenants[0] and other.books[0].pace.table is table()


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("bombed",)


@pytest.mark.parametrize(
    "bad", [pickle.dumps(Bomb()), pickle.dumps(writing.LogWriter.close), b"", b"x", pickle.dumps(Path("x"))]
)
def test_a_state_from_elsewhere_runs_no_code(tmp_path, monkeypatch, bad):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="the state in the log cannot be read"):
        restore(OneLife(1).brain, bad)
    assert not list(tmp_path.iterdir())


def test_a_state_whose_classes_have_changed_since_is_refused_with_what_to_do(monkeypatch):
    """Compiled classes keep a checksum of their fields, and say that it differs by pickle's most general error."""
    life = OneLife(1)
    data = kept(life.brain)

    def differs(self):
        raise pickle.PickleError("Incompatible checksums")

    monkeypatch.setattr("headway.gateway.log.state._Reader.load", differs, raising=False)
    with pytest.raises(BadInput, match="version of Headway"):
        restore(OneLife(1).brain, data)


def test_a_policy_whose_state_cannot_be_kept_costs_the_states_alone(tmp_path):
    said: list[str] = []
    life = OneLife(4)
    life.brain.fence.policies["route"] = Faulty()
    life.brain.fence.policies["route"].lock = threading.Lock()
    log = writer(tmp_path, say=said.append)
    log.follow(life.brain)
    life.run(20)
    log.keep_state(life.now, life.brain)
    log.keep_state(life.now, life.brain)
    log.close(life.now)
    assert len(said) == 1 and "from its beginning alone" in said[0]
    (run,) = runs(tmp_path)
    assert list(run.events()) and run.closed
