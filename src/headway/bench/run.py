"""`bench`: a workload against an endpoint gives a `Result`, with the client's own error beside it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np

from headway.bench.answer import REFUSALS
from headway.bench.crew import Crew, Seen
from headway.bench.driver import Job, share_count
from headway.bench.measured import Log, Run, measured_result, quantiles
from headway.bench.paced import PacedSource
from headway.bench.selfcheck import ClientError, client_error, pace_of, told, warnings_of
from headway.bench.target import Target
from headway.metrics import Prices, Result, Slo
from headway.workload import Workload

__all__ = ["bench"]

Progress = Callable[[str, Seen], None]


def bench(
    target: Target,
    workload: Workload,
    *,
    key: str | None = None,
    slo: Slo | None = None,
    seed: int = 0,
    processes: int = 1,
    salt: int | None = None,
    check: bool = True,
    warmup: float | None = None,
    gpus: int = 0,
    prices: Prices | None = None,
    deployment: Mapping[str, Any] | None = None,
    how: str = "",
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Result:
    """Drive an endpoint with a workload, then read a source of known timing in the same way.

    Args:
        target: what is asked and how; `probe` completes one.
        workload: what arrives; deterministic per `seed`.
        key: sent as a bearer token, kept nowhere.
        slo: limits that attainment is judged by.
        seed: of every random stream of the workload.
        processes: that share the load.
        salt: of the texts; equal salts give equal texts, which an engine may have cached. None: a new one.
        check: read the source of known timing afterwards.
        warmup: as in `simulate`.
        gpus, prices, deployment: what serves, where it is known.
        how: the rule of the prompts in words, kept in the provenance.
        progress: told "driving" or "checking", and how far it is.
        stop: asked now and then; True ends the run, and the result covers what has happened.

    Raises:
        BadInput: an address that is not known, a number of processes below 1.
        MissingExtra: httptools is not installed.
    """
    salt = secrets.randbits(63) if salt is None else salt
    count = share_count(workload, processes)
    stopping = stop or (lambda: False)
    tell = progress or (lambda doing, seen: None)
    job = Job(target, key, workload, seed, salt, 0, count)
    with Crew(count) as crew:
        log, stopped = crew.run(lambda place: job._replace(place=place), partial(tell, "driving"), stopping)
        run = Run(workload, seed, slo, gpus, prices, deployment, {}, warmup)
        result = measured_result(log, run)
        error = None
        if check and not stopped and result.ttft_s.count:
            error = _check(crew, job, log, result, partial(tell, "checking"), stopping)
    told_all = {"measured": _told(target, how, log, salt) | {"client": _client(log, count, error, result)}}
    if stopped:
        told_all["stopped"] = f"interrupted after {result.requests.finished} finished requests"  # type: ignore[assignment]
    return msgspec.structs.replace(result, provenance=result.provenance | told_all)


def _check(
    crew: Crew, job: Job, log: Log, result: Result, progress: Callable[[Seen], None], stop: Callable[[], bool]
) -> ClientError | None:
    pace = pace_of(log, result)
    paced = pace.workload()
    with PacedSource(pace.first_s, pace.gap_s) as source:
        there = msgspec.structs.replace(job.target, url=source.url, body={})
        share = job._replace(target=there, key=None, workload=paced, seed=0)
        seen, stopped = crew.run(lambda place: share._replace(place=place), progress, stop)
    return None if stopped else client_error(seen, pace)


def _client(log: Log, processes: int, error: ClientError | None, result: Result) -> dict[str, Any]:
    """What the client says of itself."""
    return {
        "processes": processes,
        "peak_in_flight": log.peak,
        "send_lateness_s": quantiles(log.lateness_s),
        "sent_again": log.retried,
        "error": told(error),
        "warnings": warnings_of(error, log, result),
    }


def _told(target: Target, how: str, log: Log, salt: int) -> dict[str, Any]:
    """What a reader should know of how it was measured."""
    counts = log.counts
    asked, known = counts["asked_prompt_tokens"], counts["prompt_tokens"] >= 0
    done = counts["status"] == 0
    events, tokens = int(counts["events"][done].sum()), int(counts["output_tokens"][done].sum())
    other = int((counts["output_tokens"][done] != counts["asked_output_tokens"][done]).sum())
    off = np.abs(counts["prompt_tokens"][known] - asked[known]) / np.maximum(asked[known], 1)
    return {
        "kind": "measured",
        "url": target.url,
        "endpoint": target.endpoint,
        "model": target.model,
        "prompts": how or f"{target.prompts}, {target.chars_per_token:g} characters per token",
        "salt": salt,
        "prompt_length_error": float(off.mean()) if len(off) else None,
        "answers_of_other_length": other,
        "tokens_per_event": tokens / events if events else None,
        "refused": sum(log.lost[why].requests for why in REFUSALS if why in log.lost),
        "examples": {reason: lost.example for reason, lost in log.lost.items() if lost.example},
        "cores": os.cpu_count(),
    }
