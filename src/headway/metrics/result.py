"""`Result`: what happened in one run, simulated or measured; as JSON the schema headway.result/1.

Units are last in the names. None (null in JSON, never NaN) is a value that is unknown or undefined, such as
a mean over nothing. `docs/result-schema.md` describes every field.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headway.errors import BadInput
from headway.metrics.attainment import SloOutcome, attained, count_by_class, judge
from headway.metrics.histogram import Histogram
from headway.metrics.records import Records
from headway.metrics.slo import Slo, Slos
from headway.specs import Spec, from_json, json_text, to_mapping

__all__ = ["Latency", "Result", "Uncertainty"]

SCHEMA = "headway.result/1"
PERCENTS = (50.0, 90.0, 95.0, 99.0)


class Window(Spec, frozen=True, kw_only=True):
    """The stretch of the run that rates are taken over; see `summarize` for the rule."""

    start_s: float
    end_s: float
    rule: Literal["arrivals", "run"]
    warmup_fraction: float
    measured: int  # requests that arrived after warm-up


class Requests(Spec, frozen=True, kw_only=True):
    """Requests of the whole run; arrived = finished + rejected + failed + unfinished."""

    arrived: int
    finished: int
    rejected: int
    failed: int
    unfinished: int


class Tokens(Spec, frozen=True, kw_only=True):
    """Tokens of the whole run."""

    prompt: int
    cached: int
    output: int
    recomputed: int


class Latency(Spec, frozen=True, kw_only=True):
    """Distribution of one latency, seconds; `method` says where its percentiles come from."""

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    method: Literal["exact", "histogram"]

    @classmethod
    def of_histogram(cls, histogram: Histogram) -> Latency:
        """Return mean (exact) and percentiles (within 1 %) of what a histogram counted."""
        p50, p90, p95, p99 = histogram.percentiles(PERCENTS)
        return cls(
            count=histogram.count, mean=histogram.mean, p50=p50, p90=p90, p95=p95, p99=p99, method="histogram"
        )


class Throughput(Spec, frozen=True, kw_only=True):
    """Rates of requests that finished inside the window, and of their output tokens."""

    requests_per_s: float | None
    output_tokens_per_s: float | None
    output_tokens_per_s_per_gpu: float | None


class Kv(Spec, frozen=True, kw_only=True):
    """The KV cache over the whole run: highest share of blocks in use, prefix hits, preemptions."""

    peak_utilization: float | None
    prefix_hit_rate: float | None
    prefix_queried_tokens: int
    prefix_hit_tokens: int
    preemptions: int


class ReplicaLoad(Spec, frozen=True, kw_only=True):
    """One replica over the whole run: time with a step in flight, and its share of the run."""

    busy_s: float
    utilization: float | None
    kv_peak_utilization: float | None


EnergyKind = Literal["estimated", "fitted", "measured"]


class Energy(Spec, frozen=True, kw_only=True):
    """Energy of all GPUs over the whole run; joules = idle + prefill + decode.

    Of a simulation it is "fitted" where every GPU's power law was fitted on watts of that GPU, else "estimated".
    """

    joules: float
    idle_joules: float
    prefill_joules: float
    decode_joules: float
    joules_per_output_token: float | None
    mean_watts: float | None
    kind: EnergyKind


class Carbon(Spec, frozen=True, kw_only=True):
    """Grams of CO2 of that energy, with the site's overhead; apart from them those of making the GPUs."""

    grams: float
    grams_per_million_output_tokens: float | None
    g_per_kwh: float
    pue: float
    embodied_grams: float | None = None


class Cost(Spec, frozen=True, kw_only=True):
    """Rent of all GPUs, busy or idle, over the whole run."""

    usd: float | None
    usd_per_hour: float | None
    usd_per_million_output_tokens: float | None


class ScaleChange(Spec, frozen=True, kw_only=True):
    """From `at_s` on a pool was to have this many replicas, those that start included."""

    at_s: float
    pool: str
    replicas: int
    reason: str


class Scaling(Spec, frozen=True, kw_only=True):
    """What a deployment that scaled has used; `gpus` of its result are those it began with.

    Energy, cost and throughput per GPU are of the GPUs that were powered: serving, starting, or ending their requests.
    """

    gpu_hours: float
    mean_gpus: float | None
    changes: list[ScaleChange]


class ModelOutcome(Spec, frozen=True, kw_only=True):
    """One model of several: its requests and their tokens over the whole run, latencies and attainment as the run's."""

    requests: Requests
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_s: Latency
    tpot_s: Latency
    e2e_s: Latency
    slo: SloOutcome


class Uncertainty(Spec, frozen=True, kw_only=True):
    """The cost model's own error: what a predicted mean or median is multiplied by for the ends of its interval.

    `levels` has the evidence that each figure rests on, `level` is that of `tpot`; `coverage` the share of measurements
    that such intervals held. The error is common to the whole run; the noise of its random numbers is not in it.
    """

    level: str
    coverage: float
    ttft: tuple[float, float]
    tpot: tuple[float, float]
    e2e: tuple[float, float]
    output_throughput: tuple[float, float]
    energy_per_token: tuple[float, float]
    power: tuple[float, float]
    levels: dict[str, str] = msgspec.field(default_factory=dict)

    def around(self, metric: str, value: float) -> tuple[float, float]:
        """Return the ends of the interval of a predicted value; `metric` names a field."""
        low, high = getattr(self, metric)
        return value * low, value * high


class Result(Spec, frozen=True, kw_only=True):
    """What happened in one run. `records` (a row per request) stays in memory: JSON does not carry it."""

    schema: str = SCHEMA
    deployment: dict[str, Any] | None = None
    workload: dict[str, Any] | None = None
    seed: int | None = None
    gpus: int
    duration_s: float
    window: Window
    requests: Requests
    tokens: Tokens
    ttft_s: Latency
    tpot_s: Latency
    itl_s: Latency
    e2e_s: Latency
    throughput: Throughput
    slo: SloOutcome
    kv: Kv
    steps: int
    replicas: list[ReplicaLoad]
    energy: Energy
    carbon: Carbon
    cost: Cost
    uncertainty: Uncertainty | None = None
    scaling: Scaling | None = None
    by_model: dict[str, ModelOutcome] = msgspec.field(default_factory=dict)
    provenance: dict[str, Any] = msgspec.field(default_factory=dict)
    records: Records | None = None

    def meets(self, slo: Slos) -> bool:
        """Return whether the attainment this run reached, and its p99 ITL, satisfy `slo`.

        With records any SLO can be asked about; without them only one with the per-request limits of the run.
        False when no request was measured.

        Raises:
            BadInput: the run kept no records and was judged by other limits.
        """
        if self.records is not None:
            rows = self.records["measured"]
            measured = count_by_class(self.records, rows)
            good = count_by_class(self.records, rows & attained(self.records, slo))
        else:
            own = self.slo.limits
            if not isinstance(slo, Slo) or own is None or own.limits() != slo.limits():
                raise BadInput(
                    "this run kept no records: it can only be asked about the limits it was judged by"
                )
            measured, good = {0: self.slo.measured}, {0: self.slo.attained or 0}
        return judge(measured, good, slo, self.itl_s.p99).met is True

    def to_mapping(self) -> dict[str, Any]:
        """Return every field as builtins in the order of the schema, nulls included, records left out."""
        data = to_mapping(msgspec.structs.replace(self, records=None), defaults=True)
        del data["records"]
        return data

    def to_json(self, indent: int = 2) -> str:
        """Return the schema headway.result/1 as JSON text; equal results give equal bytes."""
        return json_text(self.to_mapping(), indent)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "result") -> Result:
        """Return the result that `to_json` wrote; `where` (a file name) is for error messages.

        Raises:
            BadInput: not JSON, another schema, or a field that is missing, unknown or of a wrong type.
        """
        return from_json(cls, text, SCHEMA, where)
