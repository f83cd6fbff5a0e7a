"""Which part of a workload a plan is judged on, in words, where it is not all there is to come."""

from __future__ import annotations

import numpy as np

from headway.plan.question import Question
from headway.units import format_rate
from headway.workload import Workload
from headway.workload.arrivals import Diurnal, Replay

__all__ = ["extent"]

_ALIKE = 1.05  # stretches whose rates differ less are the same


def extent(question: Question, source: Workload, requests: int, rate_req_s: float) -> str:
    """Return what the simulated `requests` leave out: the rest of a trace, the peak of a day; "" for nothing.

    Traces are simulated from their first request on, a sinusoid from its mean on, upwards.
    """
    arrival = source.spec.process
    said = []
    if source.spec.trace is not None and requests < source.requests:
        said.append(
            f"Judged on the first {requests:,} of {source.requests:,} requests of the trace: "
            f"--set requests={source.requests} judges by all of them."
        )
        if isinstance(arrival, Replay):
            said.append(_denser(source, requests, rate_req_s, question.seed))
    if isinstance(arrival, Diurnal):
        swing = (arrival.peak_to_trough - 1) / (arrival.peak_to_trough + 1)
        peak = rate_req_s * (1 + swing)
        said.append(
            f"Planned for the mean rate of the day, and the first {requests / rate_req_s / arrival.period_s:.0%} of it "
            f"was simulated: at its peak come {format_rate(peak)}; --rate {peak:.4g} plans for that, "
            "`headway capacity` for each hour."
        )
    return " ".join(filter(None, said))


def _denser(source: Workload, requests: int, rate_req_s: float, seed: int) -> str:
    """The rate at which the densest stretch of a trace comes, where that is above the rate of its first requests."""
    times = np.concatenate([batch.arrival_s for batch in source.at_rate(rate_req_s).batches(seed)])
    spans = times[requests - 1 :] - times[: len(times) - requests + 1]
    first_s, least_s = float(spans[0]), float(spans.min())
    if least_s <= 0 or first_s < _ALIKE * least_s:
        return ""
    first, most = (requests - 1) / first_s, (requests - 1) / least_s
    return (
        f"They come at {format_rate(first)}, and as many elsewhere in it at up to {format_rate(most)}: "
        f"--rate {rate_req_s * most / first:.4g} brings the first ones as fast."
    )
