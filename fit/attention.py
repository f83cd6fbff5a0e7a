"""Attention: decode over cold caches, prefill of whole prompts, and both over MLA's compressed cache."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fit.read import FAMILIES, Columns, Floats, choose, groups, sheet
from fit.solve import Errors, errors, evenly, held_out, ratio_table, read_ratio, scalars
from headway.cost.operators import Ratio
from headway.cost.physics import power_sum

DECODE_AXES = ((1, 2, 4, 8, 16), (64, 128, 256))
PREFILL_AXES = ((1, 4, 16, 64), (64, 128, 256))
MLA_BYTES, MLA_FLOPS, MLA_PREFILL_FLOPS = 576, 2.0 * (576 + 512), 2.0 * (192 + 128)
_POOL_ROWS = 3000
_ROWS_MIN = 500


class Timings(NamedTuple):
    """Rows of one family and engine. `cache` is 2 for a bf16 and 1 for an fp8 cache, in bytes.

    Decode: `work_s` is the KV bytes' time at the peak; prefill: the FLOPs' time of the area. `unit_s` is, for decode,
    the FLOPs' time, for prefill that of one more token of context for every query.
    """

    gpu: str
    engine: str
    version: str
    blocks: Floats  # sequences times KV heads (prefill and MLA: query heads)
    sms: float
    heads: Floats
    group: Floats  # query heads for each KV head
    width: Floats  # head dimension
    cache: Floats
    work_s: Floats
    unit_s: Floats
    seconds: Floats

    def rows(self, mask: np.ndarray) -> Timings:
        """Return some of the rows."""
        return self._replace(**{name: getattr(self, name)[mask] for name in _ROW_FIELDS})


_ROW_FIELDS = ("blocks", "heads", "group", "width", "cache", "work_s", "unit_s", "seconds")


class Fit(NamedTuple):
    """A law's numbers and its tables, by bytes of a cached value."""

    numbers: Floats
    ratios: dict[float, Ratio]


def decode_timings(table: Columns) -> list[Timings]:
    """Return rows without a window whose cache is cold (twice the L2) or negligible (a fiftieth of it)."""
    table = choose(table, ~(table["window_size"] > 0) & (table["head_dim"] <= 256))
    found = []
    for (name, engine, version), rows in groups(table, "gpu", "engine", "engine_version").items():
        card = sheet(FAMILIES[name][0])
        batch, heads, kv, width = (rows[key].astype(float) for key in _SHAPE)
        cache = np.where(rows["kv_cache_dtype"] == "fp8", 1.0, 2.0)
        moved = 2.0 * kv * width * cache * batch * (rows["step"] + 1.0)
        cold = (moved > 2.0 * card.l2_bytes) | (moved < 0.02 * card.l2_bytes)
        seconds = rows["time_us"] * 1e-6
        byte_s = moved / card.bytes_per_s
        flop_s = 4.0 * heads * width * batch * (rows["step"] + 1.0) / card.flops["bf16"]
        shape = (batch * kv, float(card.sms), heads, heads / kv, width, cache, byte_s, flop_s, seconds)
        found.append(Timings(FAMILIES[name][0], engine, version, *shape).rows(cold & (seconds > byte_s)))
    return [rows for rows in found if len(rows.seconds) >= _ROWS_MIN]


_SHAPE = ("batch_size", "num_heads", "num_key_value_heads", "head_dim")


def prefill_timings(table: Columns) -> list[Timings]:
    """Return rows of prompts up to 64k tokens a batch, bf16 attention and cache, no window."""
    tokens = table["batch_size"] * table["isl"]
    plain = (table["attn_dtype"] == "bfloat16") & (table["kv_cache_dtype"] == "bfloat16")
    plain &= ~(table["window_size"] > 0) & (table["head_dim"] <= 256)
    table = choose(table, plain & (tokens >= 64) & (tokens <= 65536))
    found = []
    for (name, engine, version), rows in groups(table, "gpu", "engine", "engine_version").items():
        card = sheet(FAMILIES[name][0])
        batch, heads, kv, width = (rows[key].astype(float) for key in _SHAPE)
        length, seconds = rows["isl"].astype(float), rows["time_us"] * 1e-6
        unit_s = 4.0 * heads * width * batch * length / card.flops["bf16"]
        area_s = unit_s * (length + 1.0) / 2.0
        shape = (batch * heads, float(card.sms), heads, heads / kv, width, 2.0 + 0.0 * width, area_s, unit_s, seconds)
        found.append(Timings(FAMILIES[name][0], engine, version, *shape).rows(seconds > area_s))
    return [rows for rows in found if len(rows.seconds) >= _ROWS_MIN]


def mla_timings(table: Columns, op: str) -> list[Timings]:
    """Return the rows of the MLA operators alone; whole modules were timed with their launches."""
    table = choose(table, (table["op"] == op) & ((table["step"] == 0) | (op == "generation_mla")))
    found = []
    for (name, engine, version), rows in groups(table, "gpu", "engine", "engine_version").items():
        card = sheet(FAMILIES[name][0])
        batch, heads = rows["batch_size"].astype(float), rows["num_heads"].astype(float)
        cache = np.where(rows["kv_cache_dtype"] == "fp8", 1.0, 2.0)
        seconds, length = rows["time_us"] * 1e-6, rows["isl"].astype(float)
        if op == "generation_mla":
            context = batch * (rows["step"] + 1.0)
            work_s = MLA_BYTES * cache * context / card.bytes_per_s
            unit_s = MLA_FLOPS * heads * context / card.flops["bf16"]
            moved = work_s * card.bytes_per_s
            keep = (moved > 2.0 * card.l2_bytes) | (moved < 0.02 * card.l2_bytes)
        else:
            unit_s = MLA_PREFILL_FLOPS * heads * batch * length / card.flops["bf16"]
            work_s = unit_s * (length + 1.0) / 2.0
            keep = (cache == 2.0) & (batch * length >= 64) & (batch * length <= 65536)
        blocks = batch * (heads if op == "context_mla" else 1.0)
        shape = (blocks, float(card.sms), heads, heads, 0.0 * heads, cache, work_s, unit_s, seconds)
        found.append(Timings(FAMILIES[name][0], engine, version, *shape).rows(keep))
    return [rows for rows in found if len(rows.seconds) >= 200]


# --- laws ---------------------------------------------------------------------------------------------------


def decode_parts(numbers: Floats, rows: Timings, at: np.ndarray | slice = slice(None)) -> tuple[Floats, Floats]:
    """Return the seconds of launch and blocks, and those of the bytes."""
    launch, block, memory, memory_fp8 = numbers
    share = np.where(rows.cache[at] == 1.0, memory_fp8, memory)
    return (launch + block * rows.blocks[at] / rows.sms) * 1e-6, rows.work_s[at] / share


def mla_decode(numbers: Floats, rows: Timings, at: np.ndarray | slice = slice(None)) -> Floats:
    """Return the seconds of MLA's decode law: bytes and FLOPs in a 2-norm."""
    launch, block, memory, memory_fp8, compute = numbers
    share = np.where(rows.cache[at] == 1.0, memory_fp8, memory)
    core = power_sum(rows.work_s[at] / share, rows.unit_s[at] / compute, 2.0)
    return (launch + block * rows.blocks[at] / rows.sms) * 1e-6 + core


def prefill_parts(numbers: Floats, rows: Timings, at: np.ndarray | slice = slice(None)) -> tuple[Floats, Floats]:
    """Return the seconds of launch and heads, and those of the FLOPs."""
    launch, block, compute, tile = numbers
    scaled = (rows.work_s[at] + tile * rows.unit_s[at]) / compute
    return (launch + block * rows.blocks[at] / rows.sms) * 1e-6, scaled


_DECODE = ((9.0, 2.5, 0.85, 0.8), ((2.0, 40.0), (0.05, 20.0), (0.3, 1.0), (0.3, 1.0)))
_PREFILL = ((9.0, 1.0, 0.6, 200.0), ((2.0, 60.0), (0.01, 10.0), (0.1, 1.0), (1.0, 1500.0)))
_MLA = ((10.0, 3.0, 0.8, 0.7, 0.5), ((2.0, 80.0), (0.05, 100.0), (0.2, 1.0), (0.2, 1.0), (0.1, 1.0)))


def fit_decode(rows: Timings, ridge: float = 3.0) -> Fit:
    """Return the decode law."""
    numbers = scalars(lambda x, at: sum(decode_parts(x, rows, at)), rows.seconds, *_DECODE)
    ratios = {}
    for size in np.unique(rows.cache).tolist():
        part = rows.rows(rows.cache == size)
        ratios[size] = ratio_table(
            DECODE_AXES, decode_at(part), *decode_parts(numbers, part), part.seconds, ridge, ridge
        )
    if 1.0 not in ratios:
        numbers[3] = float(f"{0.92 * numbers[2]:.4g}")  # the usual loss where only bf16 caches were timed
    return Fit(numbers, ratios)


def decode_at(rows: Timings) -> tuple[Floats, Floats]:
    """Return where rows lie in the decode table."""
    return rows.group, rows.width


def predict_decode(law: Fit, rows: Timings) -> Floats:
    """Return the seconds of the decode law."""
    fixed, scaled = decode_parts(law.numbers, rows)
    for size, ratio in law.ratios.items():
        scaled = np.where(rows.cache == size, scaled * read_ratio(ratio, decode_at(rows)), scaled)
    return fixed + scaled


def fit_prefill(rows: Timings, ridge: float = 3.0) -> Fit:
    """Return the prefill law."""
    numbers = scalars(lambda x, at: sum(prefill_parts(x, rows, at)), rows.seconds, *_PREFILL)
    at = (rows.heads, rows.width)
    table = ratio_table(PREFILL_AXES, at, *prefill_parts(numbers, rows), rows.seconds, ridge, ridge)
    return Fit(numbers, {2.0: table})


def predict_prefill(law: Fit, rows: Timings) -> Floats:
    """Return the seconds of the prefill law."""
    fixed, scaled = prefill_parts(law.numbers, rows)
    for ratio in law.ratios.values():
        scaled = scaled * read_ratio(ratio, (rows.heads, rows.width))
    return fixed + scaled


def fit_mla(rows: Timings) -> Fit:
    """Return MLA's decode law, scalars alone."""
    return Fit(scalars(lambda x, at: mla_decode(x, rows, at), rows.seconds, *_MLA), {})


def fit_mla_prefill(rows: Timings) -> Fit:
    """Return MLA's prefill law, scalars alone."""
    return Fit(scalars(lambda x, at: sum(prefill_parts(x, rows, at)), rows.seconds, *_PREFILL), {})


def outside(rows: Timings, fitting, predicting) -> tuple[Errors, Errors]:
    """Return the errors of scalars and of the law on a fifth of the head configurations, fitted on the others."""
    test = held_out(rows.heads, rows.group, rows.width)
    law, rest = fitting(rows.rows(~test)), rows.rows(test)
    plain = predicting(Fit(law.numbers, {}), rest)
    return errors(plain, rest.seconds), errors(predicting(law, rest), rest.seconds)


def pool(groups_: list[Timings]) -> Timings:
    """Return rows of several groups together, as many of each; SMs are put into the blocks."""
    parts = []
    for rows in groups_:
        part = rows.rows(evenly(len(rows.seconds), _POOL_ROWS))
        parts.append(part._replace(blocks=part.blocks * 132.0 / part.sms, sms=132.0))
    merged = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ROW_FIELDS}
    return Timings("pooled", groups_[0].engine, "", sms=132.0, **merged)
