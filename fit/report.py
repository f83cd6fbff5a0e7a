"""The page docs/operator-laws.md: what was fitted, how well, and what was tried instead."""

from __future__ import annotations

import numpy as np

from fit.bakeoff import FAMILIES, Entrant, Transfer
from fit.laws import Line
from fit.solve import Errors

_TITLES = {
    "gemm": "Matrix products",
    "experts": "Expert layers",
    "decode": "Decode attention",
    "prefill": "Prefill attention",
    "mla": "MLA decode",
    "mla prefill": "MLA prefill",
    "all_reduce": "All-reduce",
    "all_gather": "All-gather",
    "reduce_scatter": "Reduce-scatter",
    "all_to_all": "All-to-all",
    "dispatch": "Expert dispatch and combine",
}
_INTRO = """# Operator laws

Seconds of matrix products, experts, attention and collectives, one law for each GPU family, engine and
precision: a roofline of fitted shares of the data sheet times a small table of ratios by shape. Written by
`python -m fit.operators DATA_DIR` from the operator timings published by NVIDIA aiconfigurator (Apache-2.0);
the laws are in `src/headway/cost/data/operators.json` ({size:,} bytes), one a line, with engine version, number
of timings and error. [The cost model](cost-model.md) adds them up.

## Which law holds

Same GPU and engine; else the same GPU under another engine; else a GPU of the same architecture; else one
pooled over the datacentre GPUs (never fp8 and fp4 onto workstation Blackwell); else the data sheet.
`StepTable.provenance` names the level. Pooled laws have a coarser table, drawn harder toward 1.

## What is fitted

- Scalars by soft-L1 on log residuals; then the table by ridge regression of what is left, drawn toward a ratio
  of 1 and toward its neighbours. Between nodes ratios are linear in the logarithms, beyond them constant. Time
  never falls with the number of tokens (a running maximum) and never beats the data sheet.
- Cold rows only: timing loops reuse one buffer, so caches between a fiftieth of the L2 and twice the L2 are
  left out, and so are products on L40S and RTX PRO 6000 that beat the memory bandwidth.
- Products with n or k up to 64, and token counts above 16 that are no multiple of 8, are left out: engines pad
  decode batches to such counts. An odd count takes 1.05 times longer in bf16 and 1.1 to 1.4 in fp8.
- vLLM's fp8_block products were timed without CUDA graphs (a floor of 50 to 280 us whatever the shape):
  SGLang's or TensorRT-LLM's law stands in. Experts' launches are capped at 20 us for the same reason, after the
  fit. MLA is fitted on the operator alone, not on the module with its launches.
- Experts are fitted on skewed routing (power law 1.01), which real routers resemble; vLLM's fp8 experts on H100
  and SGLang's fp4 experts on B200 are left out: the kernels timed were several times slower than those now
  served with.
- All-reduce: the smallest of the eager row, the graph row and NCCL's. DeepEP: the fastest number of SMs.
"""
_MLA_NOTE = """
SGLang's MLA prefill on Hopper was timed in the absorbed form, which engines avoid for prompts; the other families'
pooled law stands in. Its fp8 decode rows on Hopper do not follow bytes: bf16's share times 0.92 stands in.
"""
_CONTEST = """
## Predictors compared

Matrix products on a fifth of the (n, k) pairs, no timing of which was seen. Absolute relative error in percent,
median / mean / 90th percentile; bytes stored for one family, and timings needed on the GPU itself.

"""
_TRANSFER = """
## A GPU never timed

Matrix products under vLLM, median / mean / 90th percentile in percent. Sheet: the whole data sheet and 3 us a launch.
Pooled: fitted on the other datacentre GPUs. Own: fitted on this GPU, shapes held out.

"""


def page(lines: list[Line], contest: list[Entrant], transfer: list[Transfer], size: int) -> str:
    """Return the whole page."""
    parts = [_INTRO.format(size=size), _HELD_OUT]
    for op, title in _TITLES.items():
        parts.append(f"\n### {title}\n\n")
        parts.append(_table([line for line in lines if line.op == op]))
        if op == "mla prefill":
            parts.append(_MLA_NOTE)
    parts += [_CONTEST, _contest(contest), _TRANSFER, _transfer(transfer)]
    return "".join(parts)


_HELD_OUT = """
## Errors on what was held out

Absolute relative error in percent, median / mean / 90th percentile: a fifth of the (n, k) pairs of products;
models (experts, top k, widths) in three folds; a fifth of the head configurations; every other size of a
collective, averaged over 2, 4 and 8 GPUs. "Pooled" is the median over GPUs of the error on each of a law pooled
over the others. One split each, so differences below a point say nothing.
"""


def _cell(found: Errors | None) -> str:
    if found is None or not found.rows:
        return "-"
    return " / ".join(f"{100.0 * value:.{1 if value < 0.0995 else 0}f}" for value in found[:3])


def _table(lines: list[Line]) -> str:
    plain = any(line.plain for line in lines)
    head = ["GPU", "engine", "of", *(["scalars alone"] if plain else []), "law", "rows held out"]
    body = []
    for line in lines:
        cells = [line.gpu, line.engine or "-", line.of]
        cells += [_cell(line.plain)] if plain else []
        body.append([*cells, _cell(line.full), f"{line.full.rows:,}"])
    return _markdown(head, body)


def _contest(entrants: list[Entrant]) -> str:
    head = ["predictor", "bytes", "timings", *(" ".join(family) for family in FAMILIES), "mean of medians"]
    body = []
    for entrant in entrants:
        mean = f"{100.0 * np.mean([found.median for found in entrant.by_family]):.1f}"
        cells = [_cell(found) for found in entrant.by_family]
        body.append([entrant.name, f"{entrant.stored_bytes:,}", f"{entrant.timings:,}", *cells, mean])
    return _markdown(head, body)


def _transfer(found: list[Transfer]) -> str:
    body = [[row.gpu, row.of, _cell(row.sheet), _cell(row.pooled), _cell(row.own)] for row in found]
    return _markdown(["GPU left out", "of", "sheet", "pooled", "own"], body)


def _markdown(head: list[str], body: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *body]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
