"""Measured points as algebra over step terms: how each figure of a row follows from any calibration of the step law.

A closed loop's steps do not depend on how long they take (`schedule.py`). One simulation therefore gives every figure
as a ratio of weighted sums of step times, and step times are linear in factors on kernels and in host terms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from headway.accuracy.express import STEADY_WAVES, Case, express
from headway.accuracy.judge import deployed
from headway.accuracy.physics import broken
from headway.accuracy.predict import predict
from headway.accuracy.reading import Inexpressible
from headway.accuracy.rows import Row
from headway.accuracy.schedule import Steps, schedule
from headway.accuracy.score import HEADLINES
from headway.cost import Replica, StepTable, compile_replica
from headway.cost.calibration import FACTORS, SHIFTS, Calibration, kernels_only, many_share, shifted
from headway.cost.engines import HostTerms, engine_facts
from headway.errors import HeadwayError
from headway.workload import workload

__all__ = ["TERMS", "Figure", "Point", "linearize", "seconds", "term_values"]

Floats = npt.NDArray[np.float64]

TERMS: Final = (*FACTORS, *SHIFTS)
METRICS: Final = ("ttft", "tpot", "output_throughput", "e2e")
_PROBE_S: Final = 1e-3  # added to a host term to see what it does: step times are linear in it


class Figure(NamedTuple):
    """One measured figure; `parts` are seconds, float64[1 + terms]: what no term changes, then what each one scales.

    `predicted` is the simulator's figure where the terms are as `at` says, `shipped` that of the shipped law. It goes
    with the power `sign` of `seconds(...)`. `floors` are the shipped host terms, below zero of which no shift goes.
    """

    metric: str
    measured: float
    predicted: float
    shipped: float
    sign: float
    parts: Floats
    at: Floats
    floors: Floats


class Point(NamedTuple):
    """A measured row with its figures; rows of equal `setting` are repeats of each other."""

    row: Row
    case: Case
    figures: tuple[Figure, ...]

    @property
    def setting(self) -> tuple[object, ...]:
        """What was run, whatever came out."""
        return tuple(getattr(self.row, name) for name in _SETTING)


_SETTING: Final = ("model_key", "precision_weights", "precision_kv", "gpu_count", "tp", "pp", "ep", "dp", "mode",
                   "workload", "isl_mean", "osl_mean", "request_rate", "concurrency", "batch_size")  # fmt: skip


def term_values(calibration: Calibration | None) -> Floats:
    """Return the values of a calibration in the order of `TERMS`; None: factors of 1, shifts of 0."""
    neutral = (*(1.0 for _ in FACTORS), *(0.0 for _ in SHIFTS))
    return np.array(neutral if calibration is None else [getattr(calibration, name).value for name in TERMS])


def seconds(parts: Floats, floors: Floats, values: Floats) -> Floats:
    """Return what `parts`, float64[..., 1 + terms], come to with the terms as `values` says."""
    shifts = np.maximum(values[..., len(FACTORS) :], -floors)
    used = np.concatenate([np.broadcast_to(values[..., : len(FACTORS)], (*shifts.shape[:-1], 3)), shifts], axis=-1)
    return np.asarray(parts[..., 0] + (parts[..., 1:] * used).sum(axis=-1))


def linearize(
    row: Row, calibration: Calibration | None = None, shipped: Point | None = None, case: Case | None = None
) -> Point | str:
    """Return the row as a point around a calibration, or why it cannot be used; never raises for what a row holds.

    `shipped` is the same row around the shipped law, where it is known, `case` what ran, where a row need not tell.
    """
    try:
        case = case or express(row)
        reason = broken(row, case)
        if not reason and case.kind == "limit":
            reason = "the highest load under latency limits: no steps of one run"
        if reason:
            return reason
        here = deployed(case, calibration)
        predicted = predict(here)
        figures = tuple(_figures(row, here, predicted, term_values(calibration), shipped))
    except (Inexpressible, HeadwayError) as error:
        return str(error).splitlines()[0][:90]
    return Point(row, case, figures) if figures else "no figure that step times decide"


def _figures(row: Row, case: Case, predicted: dict[str, float], at: Floats, shipped: Point | None) -> Iterable[Figure]:
    wanted = dict(_wanted(row, case, predicted))
    if not wanted:
        return
    known = {figure.metric: figure.shipped for figure in shipped.figures} if shipped else {}
    parts = _Parts(case)
    floors = np.array([max(0.0, getattr(_host(case.deployment.pools[-1].replica), name)) for name in SHIFTS])
    for metric, name in wanted.items():
        sign = -1.0 if metric == "output_throughput" else 1.0
        yield Figure(metric, row.measured[name], predicted[name], known.get(metric, predicted[name]), sign,
                     parts.of(metric, name), at, floors)  # fmt: skip


def _wanted(row: Row, case: Case, predicted: dict[str, float]) -> Iterable[tuple[str, str]]:
    """Metrics and the figure that stands for each: an open loop's throughput is its rate, an end is its two parts."""
    for metric in METRICS:
        name = next((name for name in HEADLINES[metric] if name in row.measured), "")
        told = metric == "e2e" and {"ttft", "tpot"} <= {name.split("_")[0] for name in row.measured}
        if predicted.get(name, 0.0) > 0.0 and not told and not (metric == "output_throughput" and case.kind == "open"):
            yield metric, name


class _Parts:
    """The steps of a case with what each term adds to them."""

    def __init__(self, case: Case) -> None:
        made = schedule(case, 1.0 / STEADY_WAVES if case.kind == "steady" else 0.0)
        first, last = case.deployment.pools[0].replica, case.deployment.pools[-1].replica
        self.prompts, self.decodes = made.pools[0], made.pools[-1]
        self.prompt_parts = _step_parts(self.prompts, first)
        self.decode_parts = self.prompt_parts if len(made.pools) == 1 else _step_parts(self.decodes, last)
        self.requests, self.static = made.requests, case.kind == "static"
        self.intake_s = _host(first).intake_s
        self.gaps = max(0.0, workload(case.workload).mean_output_tokens - 1.0)

    def of(self, metric: str, name: str) -> Floats:
        """Parts of a figure, in seconds."""
        if metric == "ttft":
            return self._first()
        if metric == "tpot":
            return self._gap(decode_only=self.static or name.startswith("itl_p"))
        return self._first() + self.gaps * self._gap(decode_only=False)

    def _first(self) -> Floats:
        """By Little's law: those who wait, over the arrivals; and what happens outside the engine.

        Of a static batch it is the last request's: all the steps with prompts.
        """
        steps = self.prompts
        if self.static:
            waits = steps.times * (steps.chunks > 0)
        else:
            started = max(1.0, float((steps.times * steps.chunks).sum()))
            waits = steps.times * steps.waiting / min(self.requests, started)
        parts = waits @ self.prompt_parts
        parts[0] += self.intake_s
        parts[1 + TERMS.index("intake_s")] = 1.0
        return np.asarray(parts)

    def _gap(self, decode_only: bool) -> Floats:
        steps = self.decodes
        weight = steps.times * (steps.decodes * (steps.chunks == 0) if decode_only else steps.resident)
        if not weight.any():
            weight = steps.times * steps.resident
        return np.asarray(weight @ self.decode_parts / max(1.0, float((steps.times * steps.decodes).sum())))


def _host(replica: Replica) -> HostTerms:
    return engine_facts(replica.engine.name, replica.engine.version, replica.gpu).host


def _step_parts(steps: Steps, replica: Replica) -> Floats:
    """Seconds of each step, float64[steps, 1 + terms]: what no term changes, kernels by factor, one per host second."""
    bare, host = msgspec.structs.replace(replica, calibration=None), _host(replica)
    own, kernels = (compile_replica(bare, host=terms) for terms in (host, kernels_only(host)))
    factors = [steps.seconds(table) for table in _by_factor(kernels)]
    whole = steps.seconds(own)
    probes = [
        (steps.seconds(compile_replica(bare, host=shifted(host, {name: _PROBE_S}))) - whole) / _PROBE_S
        for name in SHIFTS
    ]
    return np.column_stack([whole - sum(factors), *factors, *probes])


def _by_factor(kernels: StepTable) -> list[StepTable]:
    """The kernels of a table, divided among `FACTORS`."""
    share, none = many_share(len(kernels.linear_s)), np.zeros_like
    scalars = ("prefill_base_s", "prefill_area_s", "prefill_window_area_s", "prompt_step_s")
    nothing = dict.fromkeys(scalars, 0.0)
    no_decode = {name: none(getattr(kernels, name)) for name in ("decode_s", "decode_ctx_s", "decode_window_s")}
    no_tokens = {"linear_s": none(kernels.linear_s), "seq_s": none(kernels.seq_s)}
    replace = msgspec.structs.replace
    few = replace(kernels, linear_s=kernels.linear_s * (1.0 - share), **no_decode, **nothing)
    many = replace(kernels, linear_s=kernels.linear_s * share, seq_s=none(kernels.seq_s), **no_decode)
    return [few, many, replace(kernels, **no_tokens, **nothing)]
