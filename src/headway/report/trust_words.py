"""How the cost model's own error reads: intervals of a run's figures, and what they rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.metrics import Result
from headway.metrics.result import Uncertainty
from headway.report import words as w
from headway.units import format_seconds

if TYPE_CHECKING:
    from headway.plan import Plan

RESTS = {
    "calibrated": "measurements taken in, own or published, of this model, GPU, engine release and precisions",
    "seen pair": "measurements of it with this model, GPU and engine release",
    "seen GPU": "measurements of it with other models or, of watts, other releases on this GPU",
    "family": "timings of this GPU or its relatives, no measurement of it on this GPU and engine release",
    "data sheet": "the data sheet: no timings of this vendor's GPUs without measured serving",
}
NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "output_throughput": "throughput", "energy_per_token": "J/token",
         "power": "power"}  # fmt: skip


LARGE = 3.0  # as a factor, not as a percentage
OPEN = "of the most it can serve"  # arrivals set it below that


def interval_rows(result: Result) -> list[tuple[str, list[str]]]:
    """Return metric and, as text, factor, interval of the mean and of the median, and level, of those that have one."""
    error = result.uncertainty
    if error is None:
        return []
    rows = []
    for metric, latency in (("ttft", result.ttft_s), ("tpot", result.tpot_s), ("e2e", result.e2e_s)):
        if latency.mean is not None and latency.p50 is not None:
            told = [
                " to ".join(format_seconds(end) for end in error.around(metric, value))
                for value in (latency.mean, latency.p50)
            ]
            rows.append((NAMES[metric], [_factor(getattr(error, metric)), *told, _level(error, metric)]))
    rate, joules = result.throughput.output_tokens_per_s, result.energy.joules_per_output_token
    if rate is not None:
        ends = " to ".join(w.amount(end) for end in error.around("output_throughput", rate))
        closed = (result.workload or {}).get("arrival", {}).get("kind") == "closed"
        shown = [_factor(error.output_throughput), ends if closed else OPEN, ""]
        rows.append(("Tokens/s", [*shown, _level(error, "output_throughput")]))
    if joules is not None:
        ends = " to ".join(w.joules(end) for end in error.around("energy_per_token", joules))
        rows.append(("J/token", [_factor(error.energy_per_token), ends, "", _level(error, "energy_per_token")]))
    if result.energy.mean_watts is not None:
        ends = " to ".join(f"{w.amount(end)} W" for end in error.around("power", result.energy.mean_watts))
        rows.append(("Power", [_factor(error.power), ends, "", _level(error, "power")]))
    return rows


INTERVAL_HEADINGS = ("factor", "mean", "p50", "rests on")


def interval_note(result: Result) -> str:
    """Return in a sentence what the intervals are and what they rest on."""
    error = result.uncertainty
    assert error is not None
    return (
        f"{error.coverage:.0%} intervals of the cost model's own error, common to the whole run. {_said(error)}."
    )


def _said(error: Uncertainty) -> str:
    """What the levels of the figures shown mean, the best first."""
    found = {_level(error, metric) for metric in NAMES}
    return "; ".join(f"{level}: {RESTS[level]}" for level in RESTS if level in found)


def _level(error: Uncertainty, metric: str) -> str:
    return error.levels.get(metric, error.level)  # results of before had one level for all


def plan_error_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return how far off the plan's figures, and ratios between its candidates, may be, as label and words."""
    error = plan.uncertainty
    if error is None:
        return []
    ends = ", ".join(
        f"{name} {_factor(getattr(error, field))} ({_level(error, field)})" for field, name in NAMES.items()
    )
    words = f"{error.coverage:.0%} intervals: {ends}; {_said(error)}"
    if plan.ratio_error is not None:
        words += f"; ratios between candidates ±{plan.ratio_error:.0%}"
    return [("Model error", words)]


def _factor(ends: tuple[float, float]) -> str:
    low, high = ends
    if low < 1 / LARGE or high > LARGE:
        return f"x {low:.2g} to x {high:.2g}"
    return f"{low - 1:+.0%} to {high - 1:+.0%}"
