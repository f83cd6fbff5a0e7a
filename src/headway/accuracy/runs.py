"""Results of `headway bench` as measured points: what ran is known to the request, so nothing is read into a row."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from headway.accuracy.express import Case
from headway.accuracy.rows import Row
from headway.errors import BadInput
from headway.metrics import Result
from headway.sim import Deployment
from headway.specs import from_mapping, json_text
from headway.workload import WorkloadSpec
from headway.workload.arrivals import Closed, Replay

__all__ = ["BENCH", "Run", "read_run", "run_of"]

BENCH: Final = "headway bench"  # the source of such rows


class Run(NamedTuple):
    """A measured run: its figures as a row, and the very deployment and workload that are simulated beside it."""

    row: Row
    case: Case


def read_run(path: str | Path) -> Run:
    """Return the run of a file that `headway bench --deployment FILE --json` wrote.

    Raises:
        BadInput: no such file, no result, or one that `run_of` refuses.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    return run_of(Result.from_json(text, str(path)), Path(path).name)


def run_of(result: Result, name: str) -> Run:
    """Return a measured result as a run called `name`.

    Raises:
        BadInput: it was simulated, does not say what served, lost requests, or is of several pools or a trace.
    """
    if result.provenance.get("measured", {}).get("kind") != "measured":
        raise BadInput(f"{name}: a simulation's result; a calibration takes what `headway bench` measured")
    if result.deployment is None or result.workload is None:
        raise BadInput(f"{name}: does not say what served: headway bench --deployment FILE puts it into the result")
    deployment = from_mapping(Deployment, result.deployment, f"{name}: deployment")
    spec = from_mapping(WorkloadSpec, result.workload, f"{name}: workload")
    counts = result.requests
    if counts.finished < counts.arrived or not counts.finished:
        raise BadInput(f"{name}: {counts.arrived - counts.finished} of {counts.arrived} requests did not finish; a "
                       "calibration takes runs that lost none")  # fmt: skip
    if len(deployment.pools) > 1 or isinstance(spec.process, Replay):
        raise BadInput(f"{name}: several pools, or a trace; calibrate on one pool and drawn requests")
    closed = isinstance(spec.process, Closed)
    case = Case(kind="closed" if closed else "open", deployment=deployment, workload=spec, seed=result.seed or 0,
                warmup=result.window.warmup_fraction)  # fmt: skip
    return Run(_row(result, case, name), case)


def _row(result: Result, case: Case, name: str) -> Row:
    pool = case.deployment.pools[0]
    replica, counts, process = pool.replica, result.requests, case.workload.process
    # Of an open loop throughput says nothing, and of a closed one nothing that its latencies do not.
    means = {"ttft": result.ttft_s, "tpot": result.tpot_s, "e2e": result.e2e_s}
    measured = {f"{metric}_mean": latency.mean for metric, latency in means.items() if latency.mean}
    closed = isinstance(process, Closed)
    return Row(
        row_id=name, source=BENCH, engine=replica.engine.name, engine_version=replica.engine.version,
        model_key=replica.model, gpu_key=replica.gpu, gpu_count=case.deployment.gpus, mode="agg",
        precision_weights=replica.weights, precision_kv=replica.kv, workload=json_text(result.workload, 0),
        tp=replica.tp, pp=replica.pp, ep=replica.ep, dp=replica.dp,
        isl_mean=result.tokens.prompt / counts.arrived, osl_mean=result.tokens.output / counts.arrived,
        concurrency=float(process.concurrency) if isinstance(process, Closed) else None,
        request_rate=None if closed else counts.arrived / result.duration_s, measured=measured,
    )  # fmt: skip
