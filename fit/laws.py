"""From timings to the entries of the data file, one builder for each operator; each also gives its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np

from fit import attention, collectives, experts, gemm
from fit.read import WORKSTATION, Columns, Floats
from fit.solve import Errors, errors
from headway.cost.operators import Ratio

ENGINES = ("vllm", "sglang", "trtllm")
FALLBACK_ORDER = {"mla": ("trtllm", "vllm", "sglang")}
_MLA_LAUNCHES = (("a100", "vllm"),)  # Triton kernels that follow neither bytes nor FLOPs
_MLA_FP8 = (("h100", "sglang"), ("h200", "sglang"))  # their fp8 rows do not follow bytes
_ABSORBED = 0.3  # a lower share of compute means the prefill was timed in the absorbed form, which engines avoid


class Line(NamedTuple):
    """One law with its errors: as fitted on all, on what was held out, and of the scalars without a table."""

    op: str
    gpu: str
    engine: str
    of: str
    law: dict[str, Any]
    plain: Errors | None
    full: Errors

    def entry(self) -> dict[str, Any]:
        """Return the entry of the data file."""
        said = {"error": round(max(0.01, self.full.median), 3), **self.law}
        return {"op": self.op, "gpu": self.gpu, "engine": self.engine, "of": self.of, "law": said}


def _timed(rows: Any, count: int) -> str:
    return f"{rows.engine} {rows.version}, {count} timings".replace(" ,", ",")


def _table(ratio: Ratio | None) -> Any:
    return msgspec.to_builtins(ratio)


def _numbers(names: tuple[str, ...], values: Floats, micro: tuple[str, ...]) -> dict[str, float]:
    return {
        name: float(f"{value * (1e-6 if name in micro else 1.0):.4g}")
        for name, value in zip(names, values.tolist(), strict=True)
    }


def gemm_law(fit: gemm.Fit) -> dict[str, Any]:
    """Return the fields of a `GemmLaw`."""
    named = _numbers(("compute", "memory", "launch_s", "p"), fit.numbers, ("launch_s",))
    return {**named, "ratio": _table(fit.ratio)}


def gemm_lines(table: Columns) -> list[Line]:
    """Return the laws of matrix products."""
    return _own_and_pooled("gemm", gemm, table, gemm_law)


def _own_and_pooled(op: str, module: Any, table: Columns, law_of: Callable[[Any], dict[str, Any]]) -> list[Line]:
    """A law for every family, engine and precision that was timed, and one a precision pooled over families."""
    groups = module.timings(table)
    found = []
    for rows in groups:
        plain, full = module.outside(rows)
        law = {"timed": _timed(rows, len(rows.seconds)), **law_of(module.fit(rows))}
        found.append(Line(op, rows.gpu, rows.engine, rows.of, law, plain, full))
    for of in sorted({rows.of for rows in groups}):
        parts = _to_pool([rows for rows in groups if rows.of == of])
        left = _left_out(parts, module.fit_pooled, module.predict)
        law = {"timed": _pooled(parts), **law_of(module.fit_pooled(parts))}
        found.append(Line(op, "pooled", "", of, law, None, left))
    return found


def expert_law(fit: experts.Fit) -> dict[str, Any]:
    """Return the fields of an `ExpertLaw`, its launch capped at that of a CUDA graph."""
    numbers = fit.numbers.copy()
    numbers[2] = min(numbers[2], experts.LAUNCH_CAP_US)
    names = ("compute", "memory", "launch_s", "skew", "p", "load", "padding")
    return {**_numbers(names, numbers, ("launch_s",)), "ratio": _table(fit.ratio)}


def expert_lines(table: Columns) -> list[Line]:
    """Return the laws of expert layers."""
    return _own_and_pooled("experts", experts, table, expert_law)


def decode_law(fit: attention.Fit) -> dict[str, Any]:
    """Return the fields of a `DecodeLaw`."""
    names = ("launch_s", "head_s", "memory", "memory_fp8")
    law = _numbers(names, fit.numbers, ("launch_s", "head_s"))
    tables = {"ratio": fit.ratios.get(2.0), "ratio_fp8": fit.ratios.get(1.0, fit.ratios.get(2.0))}
    return {**law, **{name: _table(ratio) for name, ratio in tables.items()}}


def prefill_law(fit: attention.Fit) -> dict[str, Any]:
    """Return the fields of a `PrefillLaw`; the launch of attention is the decode law's."""
    named = _numbers(("launch_s", "head_s", "compute", "tile_tokens"), fit.numbers, ("launch_s", "head_s"))
    del named["launch_s"]
    return {**named, "ratio": _table(fit.ratios[2.0])}


def attention_lines(table: Columns, op: str) -> list[Line]:
    """Return the laws of decode or of prefill attention."""
    decode = op == "decode"
    groups = attention.decode_timings(table) if decode else attention.prefill_timings(table)
    fitting = attention.fit_decode if decode else attention.fit_prefill
    predicting = attention.predict_decode if decode else attention.predict_prefill
    fields = decode_law if decode else prefill_law
    found = []
    for rows in groups:
        plain, full = attention.outside(rows, fitting, predicting)
        law = {"timed": _timed(rows, len(rows.seconds)), **fields(fitting(rows))}
        found.append(Line(op, rows.gpu, rows.engine, "gqa", law, plain, full))
    parts = _to_pool(groups)

    def pooled(some: list[attention.Timings]) -> attention.Fit:
        return fitting(attention.pool(some), 100.0)

    left = _left_out(parts, pooled, predicting)
    found.append(Line(op, "pooled", "", "gqa", {"timed": _pooled(parts), **fields(pooled(parts))}, None, left))
    return found


def mla_lines(table: Columns) -> list[Line]:
    """Return the laws of MLA; where prefill was timed in the absorbed form, the pooled prefill stands in."""
    decodes = {(g.gpu, g.engine): g for g in attention.mla_timings(table, "generation_mla")}
    prefills = {(g.gpu, g.engine): g for g in attention.mla_timings(table, "context_mla")}
    fits = {key: attention.fit_mla_prefill(rows) for key, rows in prefills.items() if key not in _MLA_LAUNCHES}
    usable = {key: fit for key, fit in fits.items() if fit.numbers[2] > _ABSORBED}
    pooled_prefill = attention.fit_mla_prefill(attention.pool([prefills[key] for key in usable]))
    found, kept = [], []
    for key, rows in decodes.items():
        if key in _MLA_LAUNCHES:
            continue
        if key in _MLA_FP8:
            rows = rows.rows(rows.cache == 2.0)
        kept.append(rows)
        fit = attention.fit_mla(rows)
        plain, full = attention.outside(rows, attention.fit_mla, _predict_mla)
        numbers = _mla_law(fit, usable.get(key, pooled_prefill), key in _MLA_FP8)
        law = {"timed": _timed(rows, len(rows.seconds)), **numbers}
        found.append(Line("mla", *key, "mla", law, plain, full))
    parts = [rows for rows in kept if rows.gpu != "a100"]

    def pooled(some: list[attention.Timings]) -> attention.Fit:
        return attention.fit_mla(attention.pool(some))

    law = {"timed": _pooled(parts), **_mla_law(pooled(parts), pooled_prefill, False)}
    found.append(Line("mla", "pooled", "", "mla", law, None, _left_out(parts, pooled, _predict_mla)))
    for key, rows in prefills.items():
        if key in usable:
            _, full = attention.outside(rows, attention.fit_mla_prefill, attention.predict_prefill)
            found.append(Line("mla prefill", *key, "mla", {}, None, full))
    return found


def _predict_mla(fit: attention.Fit, rows: attention.Timings) -> Floats:
    return attention.mla_decode(fit.numbers, rows)


def _mla_law(decode: attention.Fit, prefill: attention.Fit, no_fp8: bool) -> dict[str, float]:
    names = ("launch_s", "head_s", "memory", "memory_fp8", "compute")
    law = _numbers(names, decode.numbers, ("launch_s", "head_s"))
    if no_fp8:
        law["memory_fp8"] = float(f"{0.92 * law['memory']:.4g}")
    _, head, compute, tile = prefill.numbers.tolist()
    law |= {"prefill_head_s": float(f"{head * 1e-6:.4g}"), "prefill_compute": compute, "tile_tokens": tile}
    return law


def collective_lines(table: Columns) -> list[Line]:
    """Return the laws of collectives: three numbers each, for 2, 4 and 8 GPUs."""
    groups = collectives.timings(table)
    found = []
    for op in collectives.OPS.values():
        of_op = [rows for rows in groups if rows.op == op]
        for gpu, engine in sorted({(rows.gpu, rows.engine) for rows in of_op}):
            mine = {rows.gpus: rows for rows in of_op if (rows.gpu, rows.engine) == (gpu, engine)}
            found.append(_collective_line(op, gpu, engine, mine, of_op))
        for link, engine in sorted({(rows.link, rows.engine) for rows in of_op}):
            alike = [rows for rows in of_op if (rows.link, rows.engine) == (link, engine)]
            parts = {n: collectives.pool([rows for rows in alike if rows.gpus == n]) for n in (2, 4, 8)}
            found.append(_collective_line(op, "pooled", engine, parts, of_op))
    return found


def _collective_line(
    op: str, gpu: str, engine: str, mine: dict[int, collectives.Timings], others: list[collectives.Timings]
) -> Line:
    """The law of one family; where 8 GPUs were not timed, those of the B200, which has the same links."""
    if 8 not in mine:
        mine = {**mine, 8: next(r for r in others if (r.gpu, r.engine, r.gpus) == ("b200", engine, 8))}
    fits = [collectives.fit(mine[n]) for n in (2, 4, 8)]
    names = (("latency_s", 1e-6), ("bus", 1.0), ("root_s", 1e-9), ("p", 1.0))
    law: dict[str, Any] = {
        name: [float(f"{fit[i] * unit:.4g}") for fit in fits] for i, (name, unit) in enumerate(names)
    }
    seen = [collectives.outside(mine[n]) for n in (2, 4, 8)]
    full = Errors(*(float(np.mean(column)) for column in list(zip(*seen, strict=True))[:3]), sum(e.rows for e in seen))
    law["timed"] = f"{engine}, {sum(len(rows.size) for rows in mine.values())} sizes"
    return Line(op, gpu, "" if engine == "nccl" else engine, mine[2].link, law, None, full)


def dispatch_lines(table: Columns) -> list[Line]:
    """Return the laws of DeepEP; the network's part is the H100's, as no other was timed on several nodes."""
    groups = collectives.dispatch_timings(table)
    fits = {(rows.gpu, rows.mode): collectives.fit_dispatch(rows) for rows in groups}
    found = []
    for rows in groups:
        numbers = np.where(np.isnan(fits[rows.gpu, rows.mode]), fits["h100", rows.mode], fits[rows.gpu, rows.mode])
        law = _numbers(("launch_s", "link", "rdma_launch_s", "rdma"), numbers, ("launch_s", "rdma_launch_s"))
        law = {"timed": f"DeepEP through SGLang, {len(rows.seconds)} timings", **law}
        found.append(Line("dispatch", rows.gpu, "", rows.mode, law, None, collectives.outside_dispatch(rows)))
    for mode in ("ll", "normal"):
        like = next(line for line in found if (line.gpu, line.of) == ("h100", mode))
        found.append(like._replace(gpu="pooled"))
    return found


# --- pooling ------------------------------------------------------------------------------------------------


def _to_pool(groups: list[Any]) -> list[Any]:
    """Groups of datacentre GPUs: vLLM's where there are two or more, else every engine's."""
    servers = [rows for rows in groups if rows.gpu not in WORKSTATION] or groups
    vllm = [rows for rows in servers if rows.engine == "vllm"]
    return vllm if len(vllm) >= 2 else servers


def _pooled(parts: list[Any]) -> str:
    names = sorted({rows.gpu for rows in parts})
    return f"pooled over {', '.join(names)} ({', '.join(sorted({rows.engine for rows in parts}))})"


def _left_out(parts: list[Any], fitting: Callable, predicting: Callable) -> Errors:
    """The median over families of the errors on each one of a law pooled over the others."""
    found = [errors(predicting(fitting(rest), rows), rows.seconds) for rows, rest in left_one_out(parts)]
    if not found:
        return Errors(0.3, 0.3, 0.5, 0)
    medians = [float(np.median(column)) for column in list(zip(*found, strict=True))[:3]]
    return Errors(*medians, sum(one.rows for one in found))


def left_one_out(parts: list[Any]) -> list[tuple[Any, list[Any]]]:
    """Return each group with the groups of all other GPUs."""
    pairs = [(rows, [other for other in parts if other.gpu != rows.gpu]) for rows in parts]
    return [(rows, rest) for rows, rest in pairs if rest]
