"""Recorded runs, request by request: the same requests at the same times, and how far the simulator is from them."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.accuracy.express import checked
from headway.accuracy.reading import Inexpressible, reading
from headway.cost import EngineSettings, Replica, StepTable, compile_replica
from headway.errors import BadInput
from headway.hardware import gpu_keys
from headway.metrics.records import Records
from headway.model import model_keys
from headway.sim import Deployment, Pool, simulate
from headway.sim.recorder import Recorder
from headway.sim.run import BINS, build
from headway.specs import Spec, json_text, to_mapping
from headway.workload import Workload, WorkloadSpec
from headway.workload.readers import read_trace
from headway.workload.trace import Trace, open_bytes, reading_errors, take

__all__ = ["Curve", "Replay", "Run", "replay_requests"]

_UNREADABLE: tuple[type[Exception], ...] = (*reading_errors(), csv.Error, KeyError, ValueError, TypeError)
_STATS = {"p50": 50.0, "p90": 90.0, "p99": 99.0}
_REQUESTS = ("input_tokens", "output_tokens", "arrival_s", "first_token_s", "last_token_s")
_SERIES = ("t", "running", "waiting")
_KV = "kv_cache_pct"
Table = dict[str, NDArray[np.float64]]


class Point(Spec):
    """A figure in seconds, measured and simulated, and the relative error."""

    measured: float
    simulated: float
    error: float


class Curve(Spec):
    """A curve over the run, sampled when it was logged: mean and largest distance, and the measured mean.

    In sequences; of the KV cache in percent of its blocks.
    """

    mean_distance: float
    max_distance: float
    measured_mean: float
    seconds: int


class Run(Spec):
    """One recorded run: `latencies[ttft|tpot|e2e][mean|p50|p90|p99]`, `curves[running|waiting|kv]`, makespan.

    There is no `kv` where the log has no column of it, or nothing but zeros.
    """

    requests: int
    latencies: dict[str, dict[str, Point]]
    curves: dict[str, Curve]
    makespan_s: Point


class Replay(Spec):
    """All runs of a folder by name, and how many were skipped by reason."""

    runs: dict[str, Run]
    skipped: dict[str, int]
    reasons: dict[str, str]

    def to_json(self) -> str:
        """Return runs, skipped and reasons as JSON text."""
        return json_text(to_mapping(self, defaults=True)) + "\n"


def replay_requests(folder: str | Path, trace: str | Path | None = None) -> Replay:
    """Replay every run of a folder: `NAME.meta.json` with the engine's arguments beside `NAME.requests.csv.gz`.

    Requests have the lengths and prefix blocks of the trace; times of both sides count from their arrival in the
    engine's process, so no time outside the engine is added. (vLLM's log has a time of queueing as well, which is the
    end of the step that ran on arrival: counted from there, the wait for it would be lost.) `trace` replaces the file
    that the meta file names, which is looked for in the folder, above it and in a folder `traces` beside those.

    Raises:
        BadInput: no run in the folder, a file that is missing or broken, or a trace of other requests.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    metas = sorted(folder.glob("*.meta.json"))
    if not metas:
        raise BadInput(f"{folder}: no *.meta.json in it; a recorded run is NAME.meta.json and NAME.requests.csv.gz")
    runs, reasons = {}, {}
    for meta in metas:
        name = meta.name.removesuffix(".meta.json")
        try:
            runs[name] = _replay(folder, name, _read_meta(meta), trace)
        except Inexpressible as error:
            reasons[name] = str(error)
    counted = {reason: list(reasons.values()).count(reason) for reason in sorted(set(reasons.values()))}
    return Replay(runs=runs, skipped=counted, reasons=reasons)


def _replay(folder: Path, name: str, meta: dict[str, Any], trace: str | Path | None) -> Run:
    replica = _replica(name, meta)
    measured = _columns(_beside(folder, f"{name}.requests.csv"), _REQUESTS)
    requests = _joined(read_trace(_trace_path(folder, meta, trace)), measured, name)
    spec = WorkloadSpec(name=name, trace=name)
    deployment = Deployment(name=name, pools=(Pool(replica=replica),))
    inside = msgspec.structs.replace(compile_replica(replica), intake_s=0.0)
    workload = Workload(spec, requests, requests)
    result = simulate(deployment, workload, warmup=0.0, tables=(inside,))
    assert result.records is not None
    series = _columns(_beside(folder, f"{name}.timeseries.csv"), _SERIES, (_KV,))
    curves = _curves(series, result.records)
    if _KV in series and series[_KV].any():
        curves["kv"] = _curve(_kv_pct(deployment, workload, inside, series["t"]), series[_KV])
    start_s = float(measured["arrival_s"].min())
    ends = measured["last_token_s"] - start_s
    return Run(
        requests=len(ends),
        latencies=_latencies(measured, result.records),
        curves=curves,
        makespan_s=_point(float(ends.max()), float(result.records["last_token_s"].max())),
    )


# --- what ran -----------------------------------------------------------------------------------------------


def _replica(name: str, meta: dict[str, Any]) -> Replica:
    asked = meta["engine_kwargs"]
    kv = "fp8" if str(asked.get("kv_cache_dtype", "auto")).startswith("fp8") else "bf16"
    weights = reading().precisions.get(str(asked.get("dtype", "bf16")))
    if weights is None:
        raise Inexpressible("precision of the weights not modelled")
    tp, dp = asked.get("tensor_parallel_size", 1), asked.get("data_parallel_size", 1)
    engine = EngineSettings(
        version=str(meta.get("vllm_version", "")),
        max_batched_tokens=asked["max_num_batched_tokens"],
        max_seqs=asked["max_num_seqs"],
        ahead=asked.get("async_scheduling"),
    )
    return checked(
        Replica(
            model=_model_key(meta["model"]),
            gpu=_gpu_key(name, meta),
            tp=tp,
            dp=dp,
            ep=tp * dp if asked.get("enable_expert_parallel") else 1,
            weights=weights,
            kv=kv,
            engine=engine,
        )
    )


def _model_key(name: str) -> str:
    """The longest catalogue key that the published name begins with."""
    plain = name.rpartition("/")[2].lower()
    keys = [key for key in model_keys() if plain.startswith(key)]
    if not keys:
        raise Inexpressible("model not in the catalogue")
    return max(keys, key=len)


def _gpu_key(name: str, meta: dict[str, Any]) -> str:
    """From the meta file, or the part of the run's name that is a GPU."""
    for word in (str(meta.get("gpu", "")), *name.split("_")):
        key = reading().gpus.get(word, word)
        if key in gpu_keys():
            return key
    raise Inexpressible("GPU not in the catalogue")


def _joined(trace: Trace, measured: Table, name: str) -> Trace:
    """The trace's requests, in the order and at the times of their arrival."""
    batch = trace.requests
    lengths = measured["input_tokens"].astype(np.int64), measured["output_tokens"].astype(np.int64)
    same = len(batch) == len(lengths[0]) and np.array_equal(batch.prompt_tokens, lengths[0])
    if not (same and np.array_equal(batch.output_tokens, lengths[1])):
        raise BadInput(f"{name}: the trace holds other requests than the run; name the right one with --trace")
    arrival_s = measured["arrival_s"] - measured["arrival_s"].min()
    order = np.argsort(arrival_s, kind="stable")
    timed = msgspec.structs.replace(take(batch, order), arrival_s=arrival_s[order])
    return msgspec.structs.replace(trace, requests=timed, step_s=0.0, timed=True)


# --- comparison ---------------------------------------------------------------------------------------------


def _latencies(measured: Table, records: Records) -> dict[str, dict[str, Point]]:
    arrived, first, last = (measured[name] for name in ("arrival_s", "first_token_s", "last_token_s"))
    gaps = np.maximum(measured["output_tokens"] - 1, 1)
    pace = ((last - first) / gaps)[measured["output_tokens"] > 1]
    real = {"ttft": first - arrived, "tpot": pace, "e2e": last - arrived}
    ours = {"ttft": records.ttft_s, "tpot": records.tpot_s, "e2e": records.e2e_s}
    found = {}
    for name, times in real.items():
        simulated = ours[name][~np.isnan(ours[name])]
        points = {"mean": _point(float(times.mean()), float(simulated.mean()))}
        for stat, percent in _STATS.items():
            points[stat] = _point(float(np.percentile(times, percent)), float(np.percentile(simulated, percent)))
        found[name] = points
    return found


def _point(measured: float, simulated: float) -> Point:
    return Point(measured=measured, simulated=simulated, error=simulated / measured - 1)


def _curves(series: Table, records: Records) -> dict[str, Curve]:
    arrived, admitted, ended = (
        np.searchsorted(np.sort(records[name]), series["t"], side="right")
        for name in ("arrival_s", "admitted_s", "last_token_s")
    )
    simulated = {"running": admitted - ended, "waiting": arrived - admitted}
    return {name: _curve(curve, series[name]) for name, curve in simulated.items()}


def _curve(simulated: NDArray[Any], measured: NDArray[np.float64]) -> Curve:
    distance = np.abs(simulated - measured)
    return Curve(
        mean_distance=float(distance.mean()),
        max_distance=float(distance.max()),
        measured_mean=float(measured.mean()),
        seconds=len(distance),
    )


def _kv_pct(
    deployment: Deployment, workload: Workload, table: StepTable, at_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Percent of KV blocks in use at these times, the mean of all ranks, in a run event by event."""
    recorder = Recorder(False, workload.requests or 0, 0, [(math.inf, math.inf, math.inf)], BINS)
    cluster, (engines,) = build(deployment, workload, (table,), recorder, seed=0)
    used, k, more, share = np.zeros(len(at_s)), 0, True, 0.0
    while more and k < len(at_s):
        more = cluster.advance(1)
        while k < len(at_s) and at_s[k] < cluster.now:
            used[k], k = share, k + 1
        for engine in engines:
            engine.refresh(cluster.now)
        share = 100.0 * sum(engine.kv_used_blocks / engine.kv_total_blocks for engine in engines) / len(engines)
    return used


# --- files --------------------------------------------------------------------------------------------------


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = msgspec.json.decode(path.read_bytes())
        lacking = [key for key in ("model", "engine_kwargs") if key not in meta]
        lacking += [key for key in ("max_num_seqs", "max_num_batched_tokens") if key not in meta["engine_kwargs"]]
    except (OSError, msgspec.DecodeError, TypeError, KeyError) as error:
        raise BadInput(f"{path}: expected a JSON object with model and engine_kwargs: {error}") from None
    if lacking:
        raise BadInput(f"{path}: {lacking[0]} is missing")
    return dict(meta)


def _beside(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise BadInput(f"{folder / name}: no such file, nor {name}.gz")


def _trace_path(folder: Path, meta: dict[str, Any], trace: str | Path | None) -> Path:
    if trace is not None:
        return Path(trace)
    named = Path(str(meta.get("workload", "")))
    above = [folder, *folder.resolve().parents[:2]]
    for path in (place / part for place in above for part in (named, Path(named.name), Path("traces", named.name))):
        if path.is_file():
            return path
    raise BadInput(f"{folder}: the trace {named.name or 'of the run'} is not beside it; name it with --trace FILE")


def _columns(path: Path, names: tuple[str, ...], wanted: tuple[str, ...] = ()) -> Table:
    """The columns of these names, and of those wanted the ones that are there."""
    try:
        with open_bytes(path) as file:
            rows = list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")))
        there = (*names, *(name for name in wanted if rows and name in rows[0]))
        found = {name: np.array([float(row[name]) for row in rows]) for name in there}
    except _UNREADABLE as error:
        raise BadInput(f"{path}: expected a CSV with numbers in {', '.join(names)}: {error}") from None
    if not rows:
        raise BadInput(f"{path}: holds no rows")
    return found
