"""What only the run itself knows: filled by the simulator or the load generator while it goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headway.metrics.histogram import Histogram

__all__ = ["Counters", "Tally"]


@dataclass
class Tally:
    """Stands in for `Records` when none are kept: what they would have said, counted on the fly.

    Requests are numbered from 0 in order of arrival; those from number `warmup_requests(...)` on are
    *measured*. `start_s` is the arrival of the first of them, `end_s` of the last; the fields `..._at_start`
    and `..._at_end` are running totals over all requests, noted at these two instants after what finishes
    then was counted.
    """

    start_s: float = 0.0
    end_s: float = 0.0
    finished_at_start: int = 0
    finished_at_end: int = 0
    finished_tokens_at_start: int = 0  # output tokens of the requests finished so far
    finished_tokens_at_end: int = 0
    finished_tokens: int = 0  # the same at the end of the run
    measured_by_class: dict[int, int] = field(default_factory=dict)  # SLO class -> measured requests
    attained_by_class: dict[int, int] = field(default_factory=dict)  # of these: finished within every limit
    by_batch: dict[int, NDArray[np.int64]] = field(default_factory=dict)  # both, as `count_by_batch` has them
    ttft: Histogram = field(default_factory=Histogram)  # measured finished requests
    tpot: Histogram = field(default_factory=Histogram)  # of these: more than one output token
    e2e: Histogram = field(default_factory=Histogram)


@dataclass
class Counters:
    """Counts over the whole run, warm-up and drain included. Times are seconds since the run began.

    Every arrived request ends in exactly one of `finished`, `rejected`, `failed`, `unfinished`.
    """

    arrived: int = 0
    finished: int = 0
    rejected: int = 0
    failed: int = 0
    unfinished: int = 0  # still in the system when the run was stopped

    prompt_tokens: int = 0  # of all arrived requests
    cached_tokens: int = 0  # of these, taken from a prefix cache
    output_tokens: int = 0  # generated, each counted once
    preemptions: int = 0
    recomputed_tokens: int = 0  # computed a second time after a preemption
    steps: int = 0

    busy_s: list[float] = field(default_factory=list)  # per replica
    kv_peak_blocks: list[int] = field(default_factory=list)  # per replica
    kv_total_blocks: list[int] = field(default_factory=list)  # per replica
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0

    gpus: int = 0
    gpu_seconds: float | None = None  # powered, of all GPUs; None: all of them from start to end
    idle_watts: float = 0.0  # per GPU; the mean where pools differ
    prefill_joules: float = 0.0  # above idle
    decode_joules: float = 0.0  # above idle
    energy_kind: Literal["estimated", "fitted", "measured"] = "estimated"
    duration_s: float = 0.0  # start to last event

    itl: Histogram = field(default_factory=Histogram)  # every gap that ends after the first measured arrival
    tally: Tally | None = None  # only where no records are kept

    @property
    def mean_gpus(self) -> float:
        """GPUs that were powered, over the run."""
        if self.gpu_seconds is None or self.duration_s <= 0:
            return self.gpus
        return self.gpu_seconds / self.duration_s

    def check_integrity(self) -> None:
        """Raise `ValueError` when a request was lost or counted twice, or the lists differ in length."""
        ended = self.finished + self.rejected + self.failed + self.unfinished
        if ended != self.arrived:
            raise ValueError(
                f"conservation broken: {self.arrived} arrived, but finished {self.finished} + rejected"
                f" {self.rejected} + failed {self.failed} + unfinished {self.unfinished} = {ended}"
            )
        if not len(self.busy_s) == len(self.kv_peak_blocks) == len(self.kv_total_blocks):
            raise ValueError("busy_s, kv_peak_blocks and kv_total_blocks need one entry per replica each")
