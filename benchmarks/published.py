"""What DistServe's authors published about OPT-13B, and the discipline of their engines, written anew.

Facts from LLMServe/DistServe (Apache-2.0), paths below `simdistserve/`:
- lengths: 300 (prompt, output) pairs of ShareGPT in the order in which they were sent to a real vLLM,
  benchmarks/alignment/data-ground-truth/opt-13b-sharegpt-workload/vllm-300-3.exp at 20a1633; means 780 and 176 (the
  paper says 755 and 200); the script that prepares the data set keeps prompt + output < 2048
- law of vLLM's engine, apart from their own: estimators/profile_data/profiler-a100-80g.vllm.json at 0bba606
- discipline: base/worker.py at 4fc87c0. A prefill instance runs everything that waits as one batch. A colocated
  instance does the same whenever something waits, and decodes in all other steps: prefill first, nothing mixed
- a step takes 2 ms and 0.0001 ms per token longer than the law (the same file), a prefill one more 1 ms
  (estimators/time_estimator.py at f06659f)
- goodput: bisection between 0 and 5 req/s per GPU until the bounds are less than 0.25 apart; a rate is met when P90 of
  TTFT and P90 of TPOT, each by itself, are below their limits; 300 requests, NumPy seed 0 (benchmarks/simulate_dist.py)
- baseline: vLLM with tp 1 for OPT-13B (below `distserve/evaluation/`, 2-benchmark-serving/2-start-api-server.py at
  36306b0)
- result: 1.56 req/s per GPU with tp_prefill=2, tp_decode=1 (README.md at 09804e8)
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.cost import EngineSettings, StepTable, distserve_table

MODEL = "opt-13b"
LENGTHS = Path(__file__).resolve().parent / "data" / "distserve_sharegpt_300.csv"
GOLDEN_REQ_S = 1.56
TTFT_S, TPOT_S, ATTAINMENT = 0.2, 0.1, 0.9

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Law(NamedTuple):
    """Milliseconds: prefill a, b per token, c per token squared; decode a, b per context token, c per sequence."""

    prefill: tuple[float, float, float]
    small: tuple[float, float, float]
    large: tuple[float, float, float]  # from 95 sequences on


VLLM = {
    1: Law(
        (23.62736227, 0.15054561, 8.65348374e-06),
        (19.562534173678987, 0.0004941120550644942, 0.05060571771697455),
        (16.8386301447433, 0.00043897725301957885, 0.14000261546561776),
    ),
    2: Law(
        (19.600575891293346, 0.06467523343305222, 6.037181652318591e-06),
        (20.450486868259052, 0.0001870012118669617, 0.072631560578732484),
        (14.956474555927338, 0.00038090428876808935, 0.09315896525582677),
    ),
    4: Law(
        (21.811658992892433, 0.03679032097721533, 3.0231950949588526e-07),
        (21.584287035694526, 6.461362045192257e-05, 0.04606739300723169),
        (19.903237240495486, 0.00023666803411092447, 0.052304365258722736),
    ),
}
VLLM_66B_TP4 = Law(  # the same file, OPT-66B
    (30.68963525855282, 0.15204703019896387, 3.286440997304907e-05),
    (32.98482446677012, 0.000578810141033908, 0.11317390154663971),
    (34.04976500574734, 0.0003554059382548905, 0.16256977123158795),
)
_LARGE = 95


def lengths() -> tuple[Ints, Ints]:
    """Return prompt and output tokens of the 300 published requests, in their order."""
    prompt, output = np.loadtxt(LENGTHS, delimiter=",", skiprows=1, dtype=np.int64).T
    return prompt, output


def vllm_table(tp: int, engine: EngineSettings) -> StepTable:
    """Return the step table of vLLM's published law, composed as `distserve_table` composes DistServe's."""
    law, table = VLLM[tp], distserve_table(MODEL, tp, engine=engine)
    a, b, c = (1e-3 * each for each in law.prefill)
    linear = a + (b - c) * np.arange(engine.max_batched_tokens + 1.0)
    linear[0] = 0.0
    n = np.arange(engine.max_seqs + 1)
    small, large = (1e-3 * np.array(each) for each in (law.small, law.large))
    decode_a, decode_b, decode_c = (np.where(n < _LARGE, s, z) for s, z in zip(small, large, strict=True))
    decode = decode_a + decode_c * n - linear[n]
    decode[0] = 0.0
    return msgspec.structs.replace(
        table, linear_s=linear, decode_s=decode, decode_ctx_s=decode_b, prefill_area_s=2.0 * c
    )


def own_law(tp: int) -> Law:
    """Return DistServe's own law, as the package holds it."""
    found = distserve_table(MODEL, tp).provenance
    phases = ("prefill", "decode_small", "decode_large")
    return Law(*((found[f"{p}.a"].value, found[f"{p}.b"].value, found[f"{p}.c"].value) for p in phases))


def prefill_alone(arrival_s: Floats, prompt: Ints, law: Law, overhead: bool) -> Floats:
    """Return the TTFT of each request in a prefill instance: all that waits is one batch, first come first served."""
    a, b, c = law.prefill
    ttft, now, first = np.empty(len(arrival_s)), 0.0, 0
    while first < len(arrival_s):
        now = max(now, arrival_s[first])
        end = int(np.searchsorted(arrival_s, now, side="right"))
        tokens = prompt[first:end]
        ms = a + b * tokens.sum() + c * (tokens**2).sum()
        now += 1e-3 * (ms + (3.0 + 1e-4 * tokens.sum() if overhead else 0.0))
        ttft[first:end] = now - arrival_s[first:end]
        first = end
    return ttft


def prefill_first(arrival_s: Floats, prompt: Ints, output: Ints, law: Law) -> tuple[Floats, Floats]:
    """Return TTFT and TPOT of each request in a colocated instance that prefills first and mixes nothing.

    KV room is not limited: this baseline is, if anything, too good.
    """
    n, taken, step, ctx, now = len(arrival_s), 0, 0, 0, 0.0
    first_s, last_s = np.empty(n), np.empty(n)
    running: list[tuple[int, int]] = []  # (its last step, the request)
    while taken < n or running:
        if not running:
            now = max(now, arrival_s[taken])
        waiting = range(taken, int(np.searchsorted(arrival_s, now, side="right")))
        if waiting:
            tokens = prompt[waiting.start : waiting.stop]
            a, b, c = law.prefill
            now += 1e-3 * (a + b * tokens.sum() + c * (tokens**2).sum())
            for i in waiting:
                first_s[i] = last_s[i] = now
                if output[i] > 1:
                    heapq.heappush(running, (step + int(output[i]) - 1, i))
                    ctx += int(prompt[i]) + 1
            taken = waiting.stop
            continue
        a, b, c = law.small if len(running) < _LARGE else law.large
        now += 1e-3 * (a + b * ctx + c * len(running))
        step, ctx = step + 1, ctx + len(running)
        while running and running[0][0] == step:
            _, i = heapq.heappop(running)
            last_s[i] = now
            ctx -= int(prompt[i] + output[i])
    return first_s - arrival_s, (last_s - first_s) / np.maximum(output - 1, 1)
