"""What no hardware can do, or no run can have measured: a row that claims it is reported and not used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from headway.accuracy.express import Case
from headway.accuracy.reading import suspicion
from headway.accuracy.rows import Row
from headway.hardware import Gpu, gpu
from headway.model import model
from headway.workload import workload

__all__ = ["broken"]

_METER: Final = 1.05  # watts over a limit: a limit holds on average over milliseconds, and meters err by some per cent
_JOULES: Final = 1.5  # energy per token may be of another part of the run than power and throughput
_PARTS: Final = 2 / 3  # mean of a request's parts against the mean of requests whose lengths differ
_ROUNDED: Final = 1.01  # of percentiles read from a histogram
_UNITS: Final = 0.05  # of what is possible: nobody errs so much in measuring, but by a factor of a thousand in units
_CACHED = re.compile(r"prefix[-_ ]?cach\w*[= ]+(on|true|yes|1)\b|\bcached\b", re.IGNORECASE)


class _Floors(NamedTuple):
    """The least that hardware needs: seconds of a decode step's token, of reading the weights, of a prompt's FLOPs.

    `gpus` are all that the figures are of, `peak` their FLOP/s, `body` the weights that a token is multiplied with.
    """

    token_s: float
    weights_s: float
    prompt_s: float
    gpus: float
    peak: float
    body: float
    prompt_tokens: float
    output_tokens: float
    card: Gpu


def broken(row: Row, case: Case) -> str:
    """Return what law the row's figures break, or "".

    A step reads at least the weights that one token uses: no time per token is below their bytes over the bandwidth of
    all GPUs of an instance, divided by the tokens a step gives at most where some are drafted; no first token comes
    before they were read once. Every prompt and output token costs two operations a weight: no throughput is above the
    dense peak, and no prompt of stated length that is not cached is through before the peak has computed it. Embedding
    tables are not counted: a token reads one line of them.

    Nor can figures of one run contradict each other: watts above TDP or the stated limit by 5 %, energy per token off
    watts over tokens/s by half, an end at less than two thirds of first token and further tokens together (open loops
    aside: their short requests weigh a mean time per token up), percentiles that fall.
    """
    floors = _floors(case)
    checks: tuple[Callable[[Row, Case, _Floors], Iterator[str]], ...] = (_too_fast, _too_much_power, _contradicted)
    reason = next((reason for check in checks for reason in check(row, case, floors)), "")
    return reason and f"breaks physics: {reason}"


def _floors(case: Case) -> _Floors:
    prefill, pool = case.deployment.pools[0].replica, case.deployment.pools[-1]
    replica = pool.replica
    spec, card = model(replica.model), gpu(replica.gpu)
    tables = spec.embedding_params() + (0 if spec.tied_embeddings else spec.head_params())
    body = spec.active_params() - tables
    share = body / (spec.total_params() - tables)
    read_s = (spec.weight_bytes(replica.weights) - 2 * tables) * share / card.memory_bytes_per_s
    made = workload(case.workload)
    peak = card.peak_flops["bf16" if replica.weights not in card.peak_flops else replica.weights]
    gpus = sum(pool.count * pool.replica.gpus for pool in case.deployment.pools)
    return _Floors(
        token_s=read_s / (replica.gpus * replica.engine.step_tokens),
        weights_s=read_s / prefill.gpus,
        prompt_s=2 * body * made.mean_prompt_tokens / (peak * prefill.gpus),
        gpus=gpus * case.scale,
        peak=peak * replica.gpus * (case.scale if case.scale > 1 else pool.count),
        body=body,
        prompt_tokens=made.mean_prompt_tokens,
        output_tokens=made.mean_output_tokens,
        card=card,
    )


def _too_fast(row: Row, case: Case, floors: _Floors) -> Iterator[str]:
    came = row.measured
    for name in ("tpot_mean", "tpot_p50", "itl_mean", "itl_p50"):
        if came.get(name, floors.token_s) < floors.token_s:
            yield f"{name} below the time to read the weights{_units(came[name], floors.token_s)}"
    ratio = 1 + floors.prompt_tokens / floors.output_tokens
    rate = came.get("output_throughput", 0.0) * ratio if len(case.deployment.pools) == 1 else 0.0
    if rate * 2 * floors.body > floors.peak:
        yield "throughput above the GPUs' peak"
    if "e2e_mean" in came and came["e2e_mean"] < (floors.output_tokens - 1) * floors.token_s:
        yield "end before the weights can be read for every token"
    first_s = came.get("ttft_mean", float("inf"))
    if first_s < floors.weights_s:
        yield f"ttft_mean below the time to read the weights{_units(first_s, floors.weights_s)}"
    computed = row.isl_mean and not _CACHED.search(f"{row.notes} {row.dist_note} {suspicion(row)}")
    if computed and first_s < floors.prompt_s:
        yield "ttft_mean below the time of the prompt's FLOPs at the GPUs' peak"


def _units(came_s: float, least_s: float) -> str:
    return " (are these seconds in a column of milliseconds?)" if came_s < _UNITS * least_s else ""


def _too_much_power(row: Row, case: Case, floors: _Floors) -> Iterator[str]:
    watts = row.measured.get("power", 0.0) / floors.gpus
    cap = case.deployment.pools[0].replica.cap_watts
    if watts > floors.card.tdp_watts * _METER:
        yield "power above the GPUs' TDP"
    if cap is not None and watts > cap * _METER:
        yield "power above the stated limit"


def _contradicted(row: Row, case: Case, floors: _Floors) -> Iterator[str]:
    came = row.measured
    if came.keys() >= {"power", "output_throughput", "energy_per_token"}:
        off = came["energy_per_token"] * came["output_throughput"] / came["power"]
        if not 1 / _JOULES <= off <= _JOULES:
            yield "energy per token contradicts power over throughput"
    parts_s = came.get("ttft_mean", 0.0)
    if case.kind != "open":
        parts_s += (floors.output_tokens - 1) * came.get("tpot_mean", 0.0)
    if came.get("e2e_mean", parts_s) < parts_s * _PARTS:
        yield "end before first token and further tokens together"
    for name in ("ttft", "tpot", "itl", "e2e"):
        found = [came[key] for stat in ("p50", "p90", "p99") if (key := f"{name}_{stat}") in came]
        if any(low > high * _ROUNDED for low, high in pairwise(found)):
            yield f"percentiles of {name} that fall"
