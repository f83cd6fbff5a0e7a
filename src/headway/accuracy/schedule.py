"""A case as the list of its steps: in a closed loop which steps happen does not depend on how long they take.

So a case is simulated once, and any other step law, or host time, is then a sum over its steps.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headway.accuracy.express import Case
from headway.cost import StepTable
from headway.metrics.records import Records
from headway.sim.recorder import Recorder
from headway.sim.run import BINS, build, compiled
from headway.workload import workload

__all__ = ["Schedule", "Steps", "schedule"]

Floats = npt.NDArray[np.float64]
EVENTS_AT_ONCE = 100_000
FULL = 0.98  # of the usual number of an engine's users: below it they leave


class Steps(NamedTuple):
    """Steps of the engines of one pool, float64[steps] each: `times` equal ones in a row, what they hold, who waits.

    `resident` counts the sequences that decode, in this step or, stalled by prompts, in a later one.
    """

    times: Floats
    decodes: Floats
    ctx: Floats
    ctx_window: Floats
    chunk_tokens: Floats
    chunks: Floats
    area: Floats
    area_window: Floats
    waiting: Floats
    resident: Floats

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of a step."""
        return np.asarray(self.decodes + self.chunk_tokens, dtype=np.int64)

    @property
    def sequences(self) -> npt.NDArray[np.int64]:
        """Sequences of a step."""
        return np.asarray(self.decodes + self.chunks, dtype=np.int64)

    def seconds(self, table: StepTable) -> Floats:
        """Seconds of each step by a step law; data-parallel ranks are taken to be equally busy."""
        n = self.decodes.astype(np.int64)
        decode_s = table.decode_s[n] + table.decode_ctx_s[n] * self.ctx + table.decode_window_s[n] * self.ctx_window
        chunk_s = table.prefill_base_s * self.chunks + table.prefill_area_s * self.area
        chunk_s += table.prompt_step_s * (self.chunks > 0)
        shared_s = 0.0 if table.shared_s is None else table.shared_s[table.ranks * self.tokens]
        return np.asarray(
            shared_s
            + table.linear_s[self.tokens]
            + table.seq_s[self.sequences]
            + np.where(n > 0, decode_s, 0.0)
            + chunk_s
            + table.prefill_window_area_s * self.area_window
        )


class Schedule(NamedTuple):
    """The steps of each pool, after the warm-up, and the requests behind them."""

    pools: tuple[Steps, ...]
    requests: int
    duration_s: float


def schedule(case: Case, warmup: float = 0.0) -> Schedule:
    """Simulate a case of a closed loop once and return its steps.

    Of a steady state those after the warm-up, a share of the steps, and before the first users leave.
    """
    deployment, load = case.deployment, workload(case.workload)
    recorder = Recorder(True, load.requests or 0, 0, [(1.0, 1.0, 1.0)], BINS)
    tables = tuple(msgspec.structs.replace(compiled(pool.replica), intake_s=0.0) for pool in deployment.pools)
    cluster, pools = build(deployment, load, tables, recorder, case.seed)
    for engine in (engine for pool in pools for engine in pool):
        engine.trace = []
    while cluster.advance(EVENTS_AT_ONCE):
        pass
    made = Records(recorder.columns())
    steady = case.kind == "steady"
    steps = tuple(_steps([engine.trace or [] for engine in pool], warmup, steady) for pool in pools)
    return Schedule(steps, len(made), cluster.now)


def _steps(traces: list[list[tuple[int, ...]]], warmup: float, steady: bool) -> Steps:
    kept = [np.array(trace[int(warmup * len(trace)) :], dtype=np.float64).reshape(-1, 11) for trace in traces]
    if steady:
        kept = [rows[: _full(rows)] for rows in kept]
    columns = np.concatenate(kept).T
    times, decodes, ctx, ctx_window, widening, tokens, chunks, area, area_window, waiting, there = columns
    middle = (times - 1.0) / 2.0
    ctx = np.where(decodes > 0.0, ctx + decodes * middle, 0.0)
    ctx_window = np.where(decodes > 0.0, ctx_window + widening * middle, 0.0)
    return Steps(times, decodes, ctx, ctx_window, tokens, chunks, area, area_window, waiting + chunks, there)


def _full(rows: Floats) -> int:
    """How many of the steps come before an engine's users become fewer for good."""
    there = rows[:, 6] + rows[:, 9] + rows[:, 10]
    full = np.flatnonzero(there >= FULL * np.median(there)) if len(there) else there
    return int(full[-1]) + 1 if len(full) else 0
