"""`summarize`: from records and counters to a `Result`. Every metric is computed here, by one definition.

Latencies are of measured finished requests. TTFT: arrival to first output token. E2E: arrival to last. TPOT:
(e2e - ttft) / (output tokens - 1), of requests with more than one. Their percentiles are exact over records,
linear between order statistics (numpy's default); where no records are kept they come from a tally, within 1
%. ITL: every gap between consecutive output tokens, always from a histogram.

Warm-up and drain: the first `warmup_fraction` of the requests, in order of arrival, are not measured. Rates
count the requests, measured or not, that finish in the window: after the first measured arrival, up to the
last arrival. If fewer finish there than half of the measured requests that finish at all, the run is mostly
drain, and the window reaches to the end of the run instead (rule "run"). Counts of requests and tokens, KV,
energy, carbon and cost are of the whole run, so that parts sum to totals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.errors import BadInput
from headway.metrics import result as r
from headway.metrics.attainment import attained, count_by_batch, count_by_class, judge
from headway.metrics.columns import STATUS_WORDS
from headway.metrics.counters import Counters, Tally
from headway.metrics.records import Records
from headway.metrics.slo import Prices, Slos

__all__ = ["summarize", "warmup_requests"]

_JOULES_PER_KWH = 3.6e6


def summarize(
    records: Records | None,
    counters: Counters,
    slo: Slos | None = None,
    prices: Prices | None = None,
    *,
    warmup_fraction: float = 0.0,
    seed: int | None = None,
    deployment: Mapping[str, Any] | None = None,
    workload: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> r.Result:
    """Return every metric of a run, as the module defines them; the inputs stay as they are.

    Args:
        records: a row per arrived request; its column `measured` is set anew. None needs `counters.tally`.
        counters: what only the run knows.
        slo: limits for all requests, or per SLO class; None leaves attainment unknown.
        prices: dollars, grams of CO2 and PUE; None: the defaults, without dollars.
        warmup_fraction: share of the requests not measured, the first ones, in [0, 1).
        seed, deployment, workload, provenance: kept in the result as JSON holds them.

    Raises:
        BadInput: `warmup_fraction` outside [0, 1).
        ValueError: records and counters contradict each other or a law: a bug in whoever made them.
    """
    counters.check_integrity()
    if records is not None:
        records = _with_measured(records, warmup_fraction)
    seen = _seen(records, counters, slo)
    prices = prices or Prices()
    itl = r.Latency.of_histogram(counters.itl)
    energy = _energy(counters)
    return r.Result(
        deployment=_as_json(deployment),
        workload=_as_json(workload),
        seed=seed,
        gpus=counters.gpus,
        duration_s=counters.duration_s,
        window=_window(seen, warmup_fraction),
        requests=r.Requests(**{name: getattr(counters, name) for name in r.Requests.__struct_fields__}),
        tokens=_tokens(counters),
        ttft_s=seen.ttft,
        tpot_s=seen.tpot,
        itl_s=itl,
        e2e_s=seen.e2e,
        throughput=_throughput(seen, counters.mean_gpus),
        slo=judge(seen.measured_by_class, seen.attained_by_class, slo, itl.p99, seen.by_batch),
        kv=_kv(counters),
        steps=counters.steps,
        replicas=_replicas(counters),
        energy=energy,
        carbon=_carbon(energy, prices, counters),
        cost=_cost(counters, prices),
        provenance=_as_json(provenance) or {},
        records=records,
    )


def warmup_requests(requests: int, warmup_fraction: float) -> int:
    """Return how many of the first requests, in order of arrival, are left out of `requests` as warm-up.

    Raises:
        BadInput: a fraction outside [0, 1).
    """
    if not 0 <= warmup_fraction < 1:
        raise BadInput(f"warm-up fraction {warmup_fraction}: give a share from 0 to below 1, as in 0.05")
    return int(requests * warmup_fraction)


# --- what was seen, from records or from a tally -----------------------------------------------------------


class _Seen(NamedTuple):
    ttft: r.Latency
    tpot: r.Latency
    e2e: r.Latency
    measured_by_class: Mapping[int, int]
    attained_by_class: Mapping[int, int]
    by_batch: Mapping[int, NDArray[np.int64]]
    start_s: float
    end_s: float
    rule: Literal["arrivals", "run"]
    finished: int  # inside the window
    finished_tokens: int  # output tokens of these


def _seen(records: Records | None, counters: Counters, slo: Slos | None) -> _Seen:
    if records is not None:
        _check_agreement(records, counters)
        return _from_records(records, slo, counters.duration_s)
    if counters.tally is None:
        raise ValueError("without records the counters need a tally")
    return _from_tally(counters.tally, counters)


def _with_measured(records: Records, warmup_fraction: float) -> Records:
    skipped = warmup_requests(len(records), warmup_fraction)
    measured = np.ones(len(records), dtype=np.bool_)
    measured[np.argsort(records["arrival_s"], kind="stable")[:skipped]] = False
    return records.replace(measured=measured)


def _check_agreement(records: Records, counters: Counters) -> None:
    records.check_integrity()
    rows = np.bincount(records["status"], minlength=len(STATUS_WORDS)).tolist()
    recorded = dict(zip(STATUS_WORDS, rows, strict=True))
    recorded["output_tokens"] = int(records["output_tokens"].sum())
    for name, value in recorded.items():
        counted = getattr(counters, name)
        if counted != value:
            raise ValueError(f"conservation broken: {name} counted {counted}, in records {value}")


def _from_records(records: Records, slo: Slos | None, duration_s: float) -> _Seen:
    measured, finished = records["measured"], records.finished
    told = measured & finished
    tpot_s = records.tpot_s[told]
    arrivals = records["arrival_s"][measured]
    start_s, last_s = (float(arrivals.min()), float(arrivals.max())) if len(arrivals) else (0.0, 0.0)
    ends, tokens = records["last_token_s"][finished], records["output_tokens"][finished]
    after, inside = ends > start_s, (ends > start_s) & (ends <= last_s)
    good = measured & attained(records, slo) if slo is not None else np.zeros_like(measured)
    counts = [(int(rows.sum()), int(tokens[rows].sum())) for rows in (inside, after)]
    return _Seen(
        exact(records.ttft_s[told]),
        exact(tpot_s[~np.isnan(tpot_s)]),
        exact(records.e2e_s[told]),
        count_by_class(records, measured),
        count_by_class(records, good),
        count_by_batch(records, measured, good),
        start_s,
        *_span(start_s, last_s, duration_s, counts, int(told.sum())),
    )


def _from_tally(tally: Tally, counters: Counters) -> _Seen:
    counts = [
        (
            tally.finished_at_end - tally.finished_at_start,
            tally.finished_tokens_at_end - tally.finished_tokens_at_start,
        ),
        (counters.finished - tally.finished_at_start, tally.finished_tokens - tally.finished_tokens_at_start),
    ]
    return _Seen(
        r.Latency.of_histogram(tally.ttft),
        r.Latency.of_histogram(tally.tpot),
        r.Latency.of_histogram(tally.e2e),
        tally.measured_by_class,
        tally.attained_by_class,
        tally.by_batch,
        tally.start_s,
        *_span(tally.start_s, tally.end_s, counters.duration_s, counts, tally.e2e.count),
    )


def _span(
    start_s: float, last_s: float, duration_s: float, counts: list[tuple[int, int]], finished: int
) -> tuple[float, Literal["arrivals", "run"], int, int]:
    """Return the window's end, its rule, and the requests and tokens finished in it.

    counts: (requests, tokens) finished from the start to the last arrival, and from the start to the run's
    end.
    """
    if last_s > start_s and 2 * counts[0][0] >= finished:
        return last_s, "arrivals", *counts[0]
    return max(duration_s, last_s), "run", *counts[1]


def exact(seconds: NDArray[np.float64]) -> r.Latency:
    """Return the distribution of latencies in seconds, float64[n]; percentiles linear between order statistics."""
    if not len(seconds):
        return r.Latency(count=0, mean=None, p50=None, p90=None, p95=None, p99=None, method="exact")
    p50, p90, p95, p99 = np.percentile(seconds, r.PERCENTS).tolist()
    return r.Latency(
        count=len(seconds), mean=float(seconds.mean()), p50=p50, p90=p90, p95=p95, p99=p99, method="exact"
    )


# --- parts of the result -----------------------------------------------------------------------------------


def _ratio(part: float, whole: float) -> float | None:
    ratio = part / whole if whole > 0 else math.inf
    return ratio if math.isfinite(ratio) else None  # a time of 1e-310 s is above zero, a rate over it is no number


def _as_json(data: Mapping[str, Any] | None) -> Any:
    return None if data is None else msgspec.json.decode(msgspec.json.encode(data))


def _window(seen: _Seen, warmup_fraction: float) -> r.Window:
    return r.Window(
        start_s=seen.start_s,
        end_s=seen.end_s,
        rule=seen.rule,
        warmup_fraction=warmup_fraction,
        measured=sum(seen.measured_by_class.values()),
    )


def _tokens(counters: Counters) -> r.Tokens:
    return r.Tokens(
        prompt=counters.prompt_tokens,
        cached=counters.cached_tokens,
        output=counters.output_tokens,
        recomputed=counters.recomputed_tokens,
    )


def _throughput(seen: _Seen, gpus: float) -> r.Throughput:
    window_s = seen.end_s - seen.start_s
    return r.Throughput(
        requests_per_s=_ratio(seen.finished, window_s),
        output_tokens_per_s=_ratio(seen.finished_tokens, window_s),
        output_tokens_per_s_per_gpu=_ratio(seen.finished_tokens, window_s * gpus),
    )


def _replicas(counters: Counters) -> list[r.ReplicaLoad]:
    return [
        r.ReplicaLoad(
            busy_s=busy_s,
            utilization=_ratio(busy_s, counters.duration_s),
            kv_peak_utilization=_ratio(peak, total),
        )
        for busy_s, peak, total in zip(
            counters.busy_s, counters.kv_peak_blocks, counters.kv_total_blocks, strict=True
        )
    ]


def _kv(counters: Counters) -> r.Kv:
    shares = map(_ratio, counters.kv_peak_blocks, counters.kv_total_blocks)
    return r.Kv(
        peak_utilization=max((share for share in shares if share is not None), default=None),
        prefix_hit_rate=_ratio(counters.prefix_hit_tokens, counters.prefix_queried_tokens),
        prefix_queried_tokens=counters.prefix_queried_tokens,
        prefix_hit_tokens=counters.prefix_hit_tokens,
        preemptions=counters.preemptions,
    )


def _energy(counters: Counters) -> r.Energy:
    idle_joules = counters.idle_watts * counters.mean_gpus * counters.duration_s
    joules = idle_joules + counters.prefill_joules + counters.decode_joules
    return r.Energy(
        joules=joules,
        idle_joules=idle_joules,
        prefill_joules=counters.prefill_joules,
        decode_joules=counters.decode_joules,
        joules_per_output_token=_ratio(joules, counters.output_tokens),
        mean_watts=_ratio(joules, counters.duration_s),
        kind=counters.energy_kind,
    )


def _carbon(energy: r.Energy, prices: Prices, counters: Counters) -> r.Carbon:
    """Energy x PUE x intensity: the formula of Green Algorithms (Lannelongue et al., Advanced Science 8, 2021)."""
    hourly_g = prices.embodied_g_per_gpu_hour
    grams = energy.joules / _JOULES_PER_KWH * prices.carbon_g_per_kwh * prices.pue
    return r.Carbon(
        grams=grams,
        grams_per_million_output_tokens=_ratio(grams * 1e6, counters.output_tokens),
        g_per_kwh=prices.carbon_g_per_kwh,
        pue=prices.pue,
        embodied_grams=None if hourly_g is None else hourly_g * counters.mean_gpus * counters.duration_s / 3600,
    )


def _cost(counters: Counters, prices: Prices) -> r.Cost:
    if prices.usd_per_gpu_hour is None:
        return r.Cost(usd=None, usd_per_hour=None, usd_per_million_output_tokens=None)
    usd_per_hour = prices.usd_per_gpu_hour * counters.mean_gpus
    usd = usd_per_hour * counters.duration_s / 3600
    return r.Cost(
        usd=usd,
        usd_per_hour=usd_per_hour,
        usd_per_million_output_tokens=_ratio(usd * 1e6, counters.output_tokens),
    )
