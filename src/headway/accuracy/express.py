"""`express`: a row as a deployment and a workload that can be simulated, or the reason why it cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import msgspec

from headway.accuracy.reading import (
    Inexpressible,
    Mlperf,
    alignment,
    cap_watts,
    exclusion,
    gpu_total,
    is_mlperf,
    is_sweep,
    poll_steps,
    precisions,
    read_engine,
    read_gpu,
    read_model,
    reading,
    served_model,
    speculation,
    sweep,
    token_budget,
)
from headway.accuracy.rows import Row
from headway.cost import EngineSettings, Replica, memory_fit
from headway.cost.replica import tp_degrees
from headway.errors import BadInput, DoesNotFit
from headway.hardware import Gpu, gpu
from headway.metrics import Slo
from headway.model import model
from headway.sim import Deployment, Pool
from headway.workload import WorkloadSpec
from headway.workload.arrivals import Closed, Poisson
from headway.workload.lengths import Constant, Exponential, Length, Uniform

__all__ = ["Case", "express"]

Kind = Literal["closed", "open", "static", "steady", "limit"]

WAVES = 10  # requests of a closed loop for each one in flight, as InferenceX and the sweeps send them
STEADY_WAVES = 6  # the first of them is not measured
REQUESTS_MAX = 20_000  # of a closed loop, unless that were under four waves
STEADY_LEAST = 48
LIMIT_REQUESTS = 3_000
SEQUENCES_MAX = 2_048  # of a saturated replica whose batch limit is not stated
LOAD_MAX = 100_000  # requests in flight or in a batch: beyond it a cell is no load
MEMORY_SHARES = (0.90, 0.95)
LLAMA_CPP_SHARES = (1.0,)  # it takes what there is
SHORTEST = 0.8  # of the nominal length in InferenceX, whose client draws lengths from there to the nominal one
STEADY_JITTER = 0.5  # half width of uniform lengths, as a share of the mean
_BATCH_LIMIT = re.compile(r"max[-_]num[-_]seqs=(\d+)")
_TOKEN_LIMIT = re.compile(r"max[-_]num[-_]batched[-_]tokens=(\d+)")
_EXPERT_CUTS = re.compile(r"moe_tp=(\d+)")
_HYBRID = (  # layouts that LLM-Inference-Bench and dstack give in words
    re.compile(r"Tensor \((?P<tp>\d+)\) and Pipeline \((?P<pp>\d+)\)"),
    re.compile(r"TP = (?P<tp>\d+) and PP = (?P<pp>\d+)"),
    re.compile(r"TP = (?P<tp>\d+) and EP = (?P<ep>\d+)"),
    re.compile(r"^\d+x\S+ (?P<instances>\d+)FP8"),
)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated in a row's place.

    closed: `workload` is a closed loop with all its users at once at the start. open: Poisson arrivals. static: one
    batch, sent at once. steady: a closed loop measured after its first wave. limit: the highest rate at which the
    99th percentiles keep `limits` is searched for. Throughput, power and energy are multiplied by `scale`: the
    deployment is one of so many alike. `seed` is that of the workload's draws, `warmup` the share of first requests
    that figures leave out, of closed and open loops that were run.
    """

    kind: Kind
    deployment: Deployment
    workload: WorkloadSpec
    scale: float = 1.0
    limits: Slo | None = None
    seed: int = 1
    warmup: float = 0.0


def express(row: Row) -> Case:
    """Return the case that stands for the row.

    Raises:
        Inexpressible: with the reason.
    """
    if row.mode in ("prefill-only", "decode-only"):
        raise Inexpressible(f"mode {row.mode}: no load is stated")
    if row.mode not in ("agg", "disagg", "single-stream"):
        raise Inexpressible(f"mode {row.mode!r} is none of agg, disagg and single-stream")
    if why := exclusion(row):
        raise Inexpressible(why)
    if "per-request file" in row.dist_note:
        raise Inexpressible("a replay request by request: `headway validate --requests` reads those")
    if row.mode == "disagg":
        from headway.accuracy.split import express_split

        return express_split(row)
    replica, count = _replica(row)
    prompt, output = lengths(row)
    make = _load(row)
    return make(row, reaching(replica, prompt + output), count, prompt, output)


def checked(replica: Replica) -> Replica:
    """Return the replica if its model fits, with a larger share of the memory where only that helps.

    TensorRT-LLM's cache takes nine tenths of what is free beside the weights: nearly the larger share of all.

    Raises:
        Inexpressible: it does not fit, or its layout or precision cannot be.
    """
    shares = {"llama.cpp": (*MEMORY_SHARES, *LLAMA_CPP_SHARES), "trtllm": MEMORY_SHARES[::-1]}
    for share in shares.get(replica.engine.name, MEMORY_SHARES):
        engine = msgspec.structs.replace(replica.engine, memory_utilization=share)
        candidate = msgspec.structs.replace(replica, engine=engine)
        try:
            memory_fit(candidate)
        except DoesNotFit:
            continue
        except BadInput as error:
            what = "TP degree" if "tp=" in str(error) else "precision"
            what = "data-parallel ranks" if str(error).startswith("dp=") else what
            what = "speculation" if str(error).startswith(("speculation", "draft", "unknown draft")) else what
            raise Inexpressible(f"{what} refused by the cost model") from None
        return candidate
    raise Inexpressible("does not fit by our count of memory")


def reaching(replica: Replica, tokens: float) -> Replica:
    """Return the replica with a longer context where the study's mean request went beyond the model's own."""
    if tokens <= model(replica.model).max_context:
        return replica
    return msgspec.structs.replace(replica, model=f"{replica.model}:{2 * round(tokens)}")


def engine_settings(row: Row, card: Gpu, sequences: float) -> EngineSettings:
    """Return the settings of the row's engine for so many sequences at a time; stated limits come first."""
    name, version = read_engine(row, card)
    align_steps, gather_steps = alignment(row, name)
    tokens = token_budget(row, name)
    stated = _TOKEN_LIMIT.search(row.notes), _BATCH_LIMIT.search(row.notes)
    tokens = int(stated[0][1]) if stated[0] else tokens
    most = int(stated[1][1]) if stated[1] else 1 << max(4, (int(sequences) - 1).bit_length())
    drafted = speculation(row)
    return EngineSettings(
        name=name,
        version=version,
        max_batched_tokens=tokens,
        max_seqs=min(most, tokens if drafted is None else tokens // drafted.verified),
        prefix_cache=False,
        poll_steps=poll_steps(row, name),
        align_steps=align_steps,
        gather_steps=gather_steps,
        speculation=drafted,
    )


def base_replica(row: Row) -> Replica:
    """Return the row's model, GPU, precisions and engine on one GPU, with settings for one sequence.

    Raises:
        Inexpressible: one of them is not known.
    """
    key, card = read_model(row), read_gpu(row)
    weights, kv = precisions(row, key, card)
    return Replica(
        model=served_model(key, weights, card),
        gpu=card.key,
        weights=weights,
        kv=kv,
        cap_watts=cap_watts(row),
        media=reading().media.get(row.workload, "text"),
        engine=engine_settings(row, card, 1),
    )


def lengths(row: Row) -> tuple[float, float]:
    """Return the mean prompt and output tokens.

    Raises:
        Inexpressible: neither the row nor its task gives them.
    """
    task = _task(row)
    prompt = row.isl_mean or (task.prompt if task else reading().prompts.get(row.workload, 0))
    output = row.osl_mean or (task.output if task else 0)
    if not prompt:
        raise Inexpressible("prompt length not stated")
    if not output:
        raise Inexpressible("output length not stated")
    return prompt, output


def spread(mean: float, share: float) -> Length:
    """Return whole lengths within a share of the mean, all alike when it is 0."""
    low, high = round(mean * (1 - share)), round(mean * (1 + share))
    return Constant(tokens=max(1, round(mean))) if low == high else Uniform(low_tokens=max(1, low), high_tokens=high)


def drawn(row: Row, nominal: float, share: float = 0.0) -> Length:
    """Return the lengths that a benchmark's client draws for a nominal one; of a vendor's own sweep within a share."""
    if is_sweep(row):
        return spread(nominal, share)
    return Uniform(low_tokens=max(1, int(SHORTEST * nominal)), high_tokens=max(1, round(nominal)))


def whole_load(value: float | None) -> int:
    """Return a number of requests.

    Raises:
        Inexpressible: it is not stated, or beyond any measurement.
    """
    if not value:
        raise Inexpressible("load not stated")
    if value > LOAD_MAX:
        raise Inexpressible(f"load of more than {LOAD_MAX:,} requests")
    return max(1, round(value))


def closed_loop(users: int, requests: int, prompt: Length, output: Length) -> WorkloadSpec:
    """Return a closed loop; all users send their first request at once."""
    return WorkloadSpec(arrival=Closed(concurrency=users), prompt=prompt, output=output, requests=requests)


def _task(row: Row) -> Mlperf | None:
    return reading().mlperf.get(row.model_key) if is_mlperf(row) else None


# --- layout -------------------------------------------------------------------------------------------------


def _replica(row: Row) -> tuple[Replica, float]:
    """The replica, with settings for one sequence, and how many there are.

    "tp=1, ep=N" on N GPUs with dp=1 is one instance whose attention is cut as well. Ranks that share experts are one
    instance; without experts, or when the notes do not say that they are cut over the ranks, ranks are instances.
    """
    base, gpus = base_replica(row), gpu_total(row)
    if row.tp is None:
        return _unstated_layout(row, base, gpus)
    tp, pp, dp, ep = row.tp, row.pp or 1, row.dp or 1, row.ep or 1
    if dp == 1 and ep == gpus > tp * pp:
        tp = gpus // pp
    if tp * pp * dp != gpus:
        raise Inexpressible("layout and number of GPUs disagree")
    cuts = _EXPERT_CUTS.search(row.notes)
    if model(base.model).experts and dp > 1 and (ep > 1 or (cuts and int(cuts[1]) > 1)):
        return checked(cut(base, tp, pp, dp, ep)), 1
    return checked(cut(base, tp, pp, 1, ep if dp == 1 else 1)), dp


def cut(base: Replica, tp: int, pp: int, dp: int, ep: int) -> Replica:
    """Return the replica on that layout; expert parallelism that does not divide its GPUs, or has none, is none."""
    groups = ep if model(base.model).experts and tp * dp % ep == 0 else 1
    return msgspec.structs.replace(base, tp=tp, pp=pp, dp=dp, ep=groups)


def _unstated_layout(row: Row, base: Replica, gpus: int) -> tuple[Replica, float]:
    """By the notes, one pipeline or one GPU; of MLPerf's and of CPU systems the smallest instance that fits."""
    if row.pp == gpus or gpus == 1:
        return checked(msgspec.structs.replace(base, pp=gpus)), 1
    said = _said_layout(row, gpus)
    if said is not None:
        tp, pp, ep, count = said
        return checked(cut(base, tp, pp, 1, ep)), count
    if not is_mlperf(row):
        raise Inexpressible("layout not stated")
    reason = Inexpressible("does not fit by our count of memory")
    for tp in tp_degrees(model(base.model), gpu(base.gpu)):
        if tp <= gpus and tp & (tp - 1) == 0:
            try:
                return checked(msgspec.structs.replace(base, tp=tp)), gpus / tp
            except Inexpressible as error:
                reason = error
    raise reason


def _said_layout(row: Row, gpus: int) -> tuple[int, int, int, int] | None:
    """TP, PP and EP of an instance and how many there are, from words in the notes."""
    whole = {"TP": (gpus, 1, 1, 1), "PP": (1, gpus, 1, 1), "EP": (gpus, 1, gpus, 1)}.get(row.notes.strip())
    if whole:
        return whole
    for form in _HYBRID:
        if found := form.search(row.notes):
            part = {name: int(text) for name, text in found.groupdict().items()}
            count, pp, ep = part.get("instances", 1), part.get("pp", 1), part.get("ep", 1)
            tp = gpus // (pp * count)
            if tp * pp * count == gpus and part.get("tp", tp) * (ep if "ep" in part else 1) == tp:
                return tp, pp, ep, count
    return None


# --- load ---------------------------------------------------------------------------------------------------


def _load(row: Row) -> Callable[[Row, Replica, float, float, float], Case]:
    if row.workload.startswith("static batch"):
        return _static
    if row.mode == "single-stream":
        return _closed
    if row.workload.startswith(("offline", "mlperf Offline")):
        return _saturated
    if row.workload in ("mlperf Server", "mlperf Interactive"):
        return _limited
    if row.request_rate:
        return _open
    if row.batch_size and "avg running batch" in row.dist_note:
        return _running
    if row.concurrency or row.workload == "mlperf SingleStream":
        return _closed
    raise Inexpressible("load not stated")


def _sized(row: Row, replica: Replica, sequences: float) -> Replica:
    """The replica with room for so many sequences, over all its data-parallel ranks."""
    settings = engine_settings(row, gpu(replica.gpu), -(-sequences // replica.dp))
    return checked(msgspec.structs.replace(replica, engine=settings))


def _deployed(replica: Replica, count: int = 1) -> Deployment:
    return Deployment(pools=(Pool(count=count, replica=replica),))


def _closed(row: Row, replica: Replica, count: float, prompt: float, output: float) -> Case:
    users = whole_load(row.concurrency or 1)
    requests = min(WAVES * users, max(REQUESTS_MAX, 4 * users))
    its = sweep(row)
    loop = closed_loop(users, requests, drawn(row, prompt), drawn(row, output, its.output_share))
    sized = _sized(row, replica, -(-users // count))
    if its.users_waiting:
        most = max(1, int(users // count) - its.users_waiting)
        sized = msgspec.structs.replace(sized, engine=msgspec.structs.replace(sized.engine, max_seqs=most))
    return Case(kind="closed", deployment=_deployed(sized, round(count)), workload=loop)


def _static(row: Row, replica: Replica, count: float, prompt: float, output: float) -> Case:
    batch = whole_load(row.batch_size or row.concurrency)
    loop = closed_loop(batch, batch, spread(prompt, 0), spread(output, 0))
    sized = _sized(row, replica, -(-batch // count))
    return Case(kind="static", deployment=_deployed(sized, round(count)), workload=loop)


def _open(row: Row, replica: Replica, count: float, prompt: float, output: float) -> Case:
    requests = whole_load(row.num_prompts or 1000)
    spec = WorkloadSpec(
        arrival=Poisson(rate_req_s=row.request_rate or 1.0),
        prompt=Exponential(mean_tokens=prompt),
        output=Exponential(mean_tokens=output),
        requests=requests,
    )
    return Case(kind="open", deployment=_deployed(_sized(row, replica, 256), round(count)), workload=spec)


def _running(row: Row, replica: Replica, count: float, prompt: float, output: float) -> Case:
    """A steady state with the mean number of running sequences that was measured."""
    return _steady(row, replica, count, max(1, round(whole_load(row.batch_size) / count)), prompt, output)


def _saturated(row: Row, replica: Replica, count: float, prompt: float, output: float) -> Case:
    """As many sequences as the KV cache holds whole, up to a bound."""
    return _steady(row, replica, count, _full(row, replica, prompt, output), prompt, output)


def _full(row: Row, replica: Replica, prompt: float, output: float) -> int:
    blocks, users = (prompt + output) / replica.engine.block_tokens, SEQUENCES_MAX
    for _ in range(2):  # fewer sequences leave more memory for their KV
        fit = memory_fit(_sized(row, replica, users * replica.dp))
        pages = blocks + fit.window_group * min(blocks, fit.window_blocks)  # of windowed layers, the window's pages
        users = max(1, min(SEQUENCES_MAX, int(fit.kv_blocks / pages)))
    return users * replica.dp


def _steady(row: Row, replica: Replica, count: float, users: int, prompt: float, output: float) -> Case:
    fixed = row.workload.startswith("offline")
    share = 0.0 if fixed else STEADY_JITTER
    requests = max(STEADY_WAVES * users, STEADY_LEAST)
    loop = closed_loop(users, requests, spread(prompt, share), spread(output, share))
    return Case(kind="steady", deployment=_deployed(_sized(row, replica, users)), workload=loop, scale=count)


def _limited(row: Row, replica: Replica, count: float, prompt: float, output: float) -> Case:
    task = _task(row)
    limits = getattr(task, row.workload.split()[1], None)
    if limits is None:
        raise Inexpressible("latency limits of this scenario not known")
    users = _full(row, replica, prompt, output)
    spec = WorkloadSpec(
        arrival=Poisson(rate_req_s=1.0),
        prompt=spread(prompt, STEADY_JITTER),
        output=spread(output, STEADY_JITTER),
        requests=LIMIT_REQUESTS,
    )
    return Case(
        kind="limit",
        deployment=_deployed(_sized(row, replica, users)),
        workload=spec,
        scale=count,
        limits=Slo(ttft_s=limits.ttft_s, tpot_s=limits.tpot_s),
    )
