"""`predict`: simulates a case and returns the figures that were measured, by the definitions of who measured them."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from headway.accuracy.express import Case
from headway.accuracy.reading import Inexpressible
from headway.metrics import Result
from headway.sim import simulate
from headway.workload import WorkloadSpec, workload
from headway.workload.arrivals import Closed, at_rate

__all__ = ["predict"]

BISECTIONS = 8  # of a rate: to 0.4 % of the saturated one
RETRIES = 4  # halvings of the rate below the bisected range


def predict(case: Case) -> dict[str, float]:
    """Return figures by name, in seconds, tokens/s, requests/s, watts and joules per output token.

    Throughput is of the whole run, as a load generator counts it; of a steady state it is of the time between the end
    of the first wave and the start of the last requests, while all users are there, and energy per token is mean power
    over it. A static batch has one TTFT, the last request's, and one end, the last.

    Raises:
        Inexpressible: some requests can never be served.
    """
    if case.kind == "limit":
        return {"output_throughput": _highest(case) * case.scale}
    result = _run(case, case.workload, _first_wave(case) if case.kind == "steady" else case.warmup)
    if case.kind == "static":
        return _rates(case, result) | _batch(result)
    latencies = {"ttft": result.ttft_s, "tpot": result.tpot_s, "itl": result.itl_s, "e2e": result.e2e_s}
    figures = {
        f"{name}_{stat}": value
        for name, latency in latencies.items()
        for stat in ("mean", "p50", "p90", "p99")
        if (value := getattr(latency, stat)) is not None
    }
    return figures | _rates(case, result)


def _run(case: Case, spec: WorkloadSpec, warmup: float) -> Result:
    result = simulate(case.deployment, workload(spec), seed=case.seed, warmup=warmup)
    if result.requests.finished < result.requests.arrived:
        raise Inexpressible("requests longer than the model's context or the KV cache")
    return result


def _first_wave(case: Case) -> float:
    arrival, requests = case.workload.process, case.workload.requests or 1
    assert isinstance(arrival, Closed)
    return min(0.5, arrival.concurrency / requests)


def _rates(case: Case, result: Result) -> dict[str, float]:
    span_s = max(result.duration_s, 1e-12)
    output = result.tokens.output / span_s
    if case.kind == "steady":
        output = _while_full(result, _first_wave(case)) or output
    requests = output * result.requests.finished / result.tokens.output
    watts = result.energy.mean_watts or 0.0
    return {
        "output_throughput": output * case.scale,
        "total_throughput": output * (1 + result.tokens.prompt / result.tokens.output) * case.scale,
        "request_throughput": requests * case.scale,
        "power": watts * case.scale,
        "energy_per_token": watts / output,
    }


def _while_full(result: Result, warmup: float) -> float:
    """Output tokens/s from the arrival of the first request after the warm-up to that of the last of all."""
    records = result.records
    assert records is not None
    arrival_s, first_s, last_s = (records[name] for name in ("arrival_s", "first_token_s", "last_token_s"))
    begin_s, end_s = np.quantile(arrival_s, warmup), float(arrival_s.max())
    if not end_s > begin_s:
        return 0.0
    inside_s = np.clip(last_s, begin_s, end_s) - np.clip(first_s, begin_s, end_s)
    gaps = records["output_tokens"] - 1
    later = gaps * np.divide(inside_s, last_s - first_s, out=np.zeros(len(gaps)), where=last_s > first_s)
    tokens = float(later.sum()) + float(((first_s > begin_s) & (first_s <= end_s)).sum())
    return tokens / float(end_s - begin_s)


def _batch(result: Result) -> dict[str, float]:
    records = result.records
    assert records is not None
    first_s, last_s = float(records["first_token_s"].max()), float(records["last_token_s"].max())
    gaps = max(1, int(records["output_tokens"].max()) - 1)
    step_s = (last_s - first_s) / gaps
    return {
        **{f"ttft_{stat}": first_s for stat in ("mean", "p50", "p90", "p99")},
        **{f"{name}_{stat}": step_s for name in ("tpot", "itl") for stat in ("mean", "p50")},
        **{f"e2e_{stat}": last_s for stat in ("mean", "p50", "p90", "p99")},
    }


def _highest(case: Case) -> float:
    """Output tokens/s at the highest rate that keeps the limits, by bisection below saturation."""
    users = case.deployment.pools[0].replica.engine.max_seqs
    full = msgspec.structs.replace(case.workload, arrival=Closed(concurrency=users), requests=4 * users)
    saturated = _run(case, full, 0.25).throughput.requests_per_s or 1.0
    low, high = 0.0, saturated
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _keeps(case, middle) else (low, middle)
    for _ in range(RETRIES):
        if low:
            break
        high /= 2
        low = high if _keeps(case, high) else 0.0
    if not low:
        raise Inexpressible("limits kept at no load by our estimate")
    return low * workload(case.workload).mean_output_tokens


def _keeps(case: Case, rate: float) -> bool:
    assert case.limits is not None
    arrival = at_rate(case.workload.process, rate)
    result = _run(case, msgspec.structs.replace(case.workload, arrival=arrival), 0.05)
    ttft_s, tpot_s = result.ttft_s.p99 or 0.0, result.tpot_s.p99 or 0.0
    return ttft_s <= (case.limits.ttft_s or math.inf) and tpot_s <= (case.limits.tpot_s or math.inf)
