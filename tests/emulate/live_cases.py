"""Driving an emulated replica through virtual time, without clock or network."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np

from headway.emulate import PacedReplica
from headway.engine.checks import check_integrity
from headway.engine.live import make_sequence, told
from tests.core.drive import Case, keep_some, make_case, make_rows, order_of


def live_case(seed: int) -> Case:
    """A random case as the emulator can be given one: prefix units are KV blocks, no deadlines."""
    rng = Random(seed)
    case = make_case(seed)
    order = "priority" if case.order == "edf" else case.order
    unit = case.table.block_tokens if case.settings.prefix_cache else 0
    return replace(case, unit_tokens=unit, order=order, rows=keep_some(make_rows(rng, unit), seed))


def paced(case: Case) -> PacedReplica:
    return PacedReplica(case.table, case.settings, order_of(case))


def sequences(case: Case, outputs: list[int] | None = None) -> list:
    return [
        make_sequence(
            number,
            row.arrival_s,
            (row.prompt, row.output if outputs is None else outputs[number]),
            row.priority,
            np.array(row.hashes, np.int64) if row.hashes else None,
            row.keep_s,
        )
        for number, row in enumerate(case.rows)
    ]


def run(replica: PacedReplica, seqs: list, aborts: dict[int, float] | None = None, check: bool = True):
    """Send what fits, abort at the given times; the times of each one's tokens, by id."""
    times: dict[int, list[float]] = {}
    news = [(seq.arrival_s, 0, seq.id, seq) for seq in seqs if replica.fits(seq)]
    news += [(when, 1, number, seqs[number]) for number, when in (aborts or {}).items() if replica.fits(seqs[number])]
    over: set[int] = set()
    for when, is_abort, number, seq in [*sorted(news), (float("inf"), 0, -1, None)]:
        # what happens at `when` itself happens after the arrivals at that instant
        until = np.nextafter(when, -np.inf) if np.isfinite(when) else when
        for now, tokens, ended in replica.advance(float(until)):
            for got in tokens:
                times.setdefault(got.id, []).append(now)
            over.update(gone.id for gone in ended)
            for engine in replica.engines if check else ():
                check_integrity(engine)
        if seq is None:
            break
        if not is_abort:
            replica.send(seq, when)
        elif number not in over:
            replica.abort(seq, when)
    return times


def facts(seqs: list) -> list:
    return [told(seq) for seq in seqs]
