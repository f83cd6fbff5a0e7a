"""What must hold of an engine between two events, for tests and for whoever doubts: raises AssertionError."""

from __future__ import annotations

import cython
import numpy as np

from headway.engine.core import Engine
from headway.engine.lane import Lane
from headway.engine.sequence import Sequence


def check_integrity(engine: Engine) -> cython.bint:
    """Check the sums against what they stand for."""
    lane: Lane
    for lane in engine.lanes:
        assert lane.n == lane.finish.size, f"{lane.n} decode, {lane.finish.size} have an end"
        assert lane.n == np.asarray(lane.due).sum(), "block demand lost a sequence"
        assert lane.n_window == np.asarray(lane.due_window).sum(), "window demand lost a sequence"
    return engine.kv.check_integrity()


def check_awake(engine: Engine, now: cython.double) -> cython.bint:
    """Check, when all that happens at `now` has happened, that no lane idles over what it could start."""
    lane: Lane
    seq: Sequence
    free: cython.longlong = engine.kv.total - engine.kv.used
    idle: list[Lane] = [lane for lane in engine.lanes if not lane.busy]
    if engine.group is not None and engine.group.busy:
        return True
    if not idle or engine.stage_free_s > now or engine.next_s <= now:
        return True
    assert engine.inbox.size == 0, "a lane idles over requests it has not looked at"
    for lane in idle:
        assert lane.n == 0 and engine.partial is None and not engine.landed, "a lane idles over its own requests"
    if engine.queue.size > 0 and engine.running < engine.max_seqs:
        seq = engine.queue.peek(now)
        assert engine.kv.entry_price(seq, engine.kv.hit(seq)) > free, f"a lane idles, and request {seq.id} could start"
    elif engine.incoming.size > 0 and engine.running < engine.max_seqs:
        assert engine.kv.pages(engine.incoming.first().target) > free, "a lane idles, and KV could be fetched"
    return True
