"""Operator timings made by known laws, in the columns of the published ones, for the tests of the fits."""

from __future__ import annotations

from itertools import product

import numpy as np

from fit.read import FAMILIES, PEAK_OF, Columns, sheet

RNG_SEED = 20


def noisy(seconds: np.ndarray, spread: float = 0.0, outliers: float = 0.0) -> np.ndarray:
    """Seconds times log-normal noise; a share of them, spread evenly, ten times as long."""
    rng = np.random.default_rng(RNG_SEED)
    wild = rng.random(len(seconds)) < outliers
    return seconds * np.exp(spread * rng.standard_normal(len(seconds))) * np.where(wild, 10.0, 1.0)


def grid(**axes) -> Columns:
    """All combinations of some values as columns; texts as objects, like those that are read."""
    combined = list(zip(*product(*axes.values()), strict=True))
    return {
        name: np.array(values, dtype=object if isinstance(values[0], str) else None)
        for name, values in zip(axes, combined, strict=True)
    }


def stacked(*tables: Columns) -> Columns:
    """The rows of several tables."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def p_norm(x: np.ndarray, y: np.ndarray, p: float) -> np.ndarray:
    """The law's corner, written anew."""
    return (x**p + y**p) ** (1.0 / p)


PRODUCT = {"compute": 0.72, "memory": 0.85, "launch_us": 5.0, "p": 3.0}
ROWS = (1, 8, 16, 64, 256, 1024, 4096, 16384)
WIDTHS = (
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
    6144,
    8192,
    10240,
    12288,
    14336,
    16384,
    20480,
    28672,
)


def products(
    gpu="H100", engine="vllm", dtype="bfloat16", of="bf16", rows=ROWS, widths=WIDTHS, **law
) -> Columns:
    """Matrix products by a law of four numbers."""
    law = PRODUCT | law
    table = grid(gpu=[gpu], engine=[engine], engine_version=["1"], dtype=[dtype], m=rows, n=widths, k=widths)
    m, n, k = (table[name].astype(float) for name in "mnk")
    card, (peak, weight, value) = sheet(FAMILIES[gpu][0]), PEAK_OF[of]
    flop_s = 2.0 * m * n * k / card.flops[peak]
    byte_s = (weight * n * k + value * m * k + 2.0 * m * n) / card.bytes_per_s
    core = p_norm(flop_s / law["compute"], byte_s / law["memory"], law["p"])
    return table | {"time_us": law["launch_us"] + 1e6 * core}


DECODE = {"launch_us": 8.0, "block_us": 2.0, "memory": 0.8, "memory_fp8": 0.7}
HEADS = ((32, 8), (16, 4), (8, 1), (8, 8), (64, 8), (40, 8), (4, 1))


def decodes(gpu="H100", engine="vllm", caches=("bfloat16", "fp8"), window=0, **law) -> Columns:
    """Decode attention over long caches by a law of four numbers."""
    law = DECODE | law
    tables = []
    for heads, kv in HEADS:
        table = grid(
            gpu=[gpu], engine=[engine], engine_version=["1"], kv_cache_dtype=caches, num_heads=[heads],
            num_key_value_heads=[kv], head_dim=(64, 128, 256), window_size=[window], batch_size=(1, 4, 16, 64, 256),
            isl=[1], step=(127, 8191, 16383, 32767, 65535, 131071),
        )  # fmt: skip
        batch, width = table["batch_size"].astype(float), table["head_dim"].astype(float)
        fp8 = table["kv_cache_dtype"] == "fp8"
        card = sheet(FAMILIES[gpu][0])
        byte_s = 2.0 * kv * width * np.where(fp8, 1.0, 2.0) * batch * (table["step"] + 1.0) / card.bytes_per_s
        blocks = batch * kv / card.sms
        us = law["launch_us"] + law["block_us"] * blocks
        table["time_us"] = us + 1e6 * byte_s / np.where(fp8, law["memory_fp8"], law["memory"])
        tables.append(table)
    return stacked(*tables)


PREFILL = {"launch_us": 10.0, "block_us": 0.8, "compute": 0.55, "tile": 150.0}


def prefills(gpu="H100", engine="vllm", **law) -> Columns:
    """Prompt attention by a law of four numbers."""
    law = PREFILL | law
    tables = []
    for heads, kv in HEADS:
        table = grid(
            gpu=[gpu], engine=[engine], engine_version=["1"], attn_dtype=["bfloat16"], kv_cache_dtype=["bfloat16"],
            num_heads=[heads], num_key_value_heads=[kv], head_dim=(64, 128, 256), window_size=[0],
            batch_size=(1, 2, 4, 8), isl=(64, 256, 512, 1024, 2048, 4096, 8192), step=[0],
        )  # fmt: skip
        batch, width = table["batch_size"].astype(float), table["head_dim"].astype(float)
        length, card = table["isl"].astype(float), sheet(FAMILIES[gpu][0])
        pair_s = 4.0 * heads * width * batch * length / card.flops["bf16"]
        us = law["launch_us"] + law["block_us"] * batch * heads / card.sms
        table["time_us"] = us + 1e6 * pair_s * ((length + 1.0) / 2.0 + law["tile"]) / law["compute"]
        tables.append(table)
    return stacked(*tables)


MLA = {"launch_us": 12.0, "block_us": 4.0, "memory": 0.75, "memory_fp8": 0.6, "compute": 0.5}


def latents(gpu="H100", engine="trtllm", op="generation_mla", **law) -> Columns:
    """MLA: decode over its compressed cache, or a whole prompt."""
    law = (MLA if op == "generation_mla" else PREFILL) | law
    decode = op == "generation_mla"
    table = grid(
        gpu=[gpu], engine=[engine], engine_version=["1"], op=[op], kv_cache_dtype=("bfloat16", "fp8"),
        num_heads=(8, 16, 32, 64, 128), batch_size=(1, 4, 16, 64, 128, 256),
        isl=[1] if decode else (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
        step=(15, 8191, 16383, 32767, 65535, 131071) if decode else [0],
    )  # fmt: skip
    card, fp8 = sheet(FAMILIES[gpu][0]), table["kv_cache_dtype"] == "fp8"
    batch, heads, length = (table[name].astype(float) for name in ("batch_size", "num_heads", "isl"))
    if decode:
        context = batch * (table["step"] + 1.0)
        byte_s = 576 * np.where(fp8, 1.0, 2.0) * context / card.bytes_per_s
        flop_s = 2.0 * (576 + 512) * heads * context / card.flops["bf16"]
        share = np.where(fp8, law["memory_fp8"], law["memory"])
        core = p_norm(byte_s / share, flop_s / law["compute"], 2.0)
        blocks = batch
    else:
        pair_s = 2.0 * (192 + 128) * heads * batch * length / card.flops["bf16"]
        core = pair_s * ((length + 1.0) / 2.0 + law["tile"]) / law["compute"]
        blocks = batch * heads
    return table | {"time_us": law["launch_us"] + law["block_us"] * blocks / card.sms + 1e6 * core}


EXPERTS = {
    "compute": 0.5,
    "memory": 0.8,
    "launch_us": 15.0,
    "skew": 0.2,
    "p": 2.0,
    "load": 0.3,
    "padding": 8.0,
}
SHAPES = (
    (8, 2, 4096, 14336),
    (128, 8, 2048, 768),
    (256, 8, 7168, 2048),
    (160, 6, 5120, 1536),
    (64, 6, 2048, 1408),
)


def experts(
    gpu="H100", engine="vllm", dtype="bfloat16", of="bf16", distribution="power_law_1.01", **law
) -> Columns:
    """Expert layers by a law of seven numbers."""
    law = EXPERTS | law
    card, (peak, weight, _) = sheet(FAMILIES[gpu][0]), PEAK_OF[of]
    tables = []
    for count, topk, hidden, inter in SHAPES:
        table = grid(
            gpu=[gpu], engine=[engine], engine_version=["1"], dtype=[dtype], distribution=[distribution],
            num_experts=[count], topk=[topk], hidden_size=[hidden], inter_size=[inter], moe_tp_size=(1, 2),
            moe_ep_size=(1, 4), num_tokens=tuple(2**i for i in range(16)),
        )  # fmt: skip
        tp, ep, tokens = (table[name].astype(float) for name in ("moe_tp_size", "moe_ep_size", "num_tokens"))
        params, mine = 3.0 * hidden * inter / tp, count / ep
        busiest = tokens * topk / ep * (1.0 + law["load"] * np.sqrt((ep - 1.0) / mine))
        touched = mine * (1.0 - np.exp(-busiest / (mine * (1.0 + law["skew"]))))
        flop_s = (busiest + law["padding"] * touched) * 2.0 * params / card.flops[peak]
        byte_s = touched * weight * params / card.bytes_per_s
        core = p_norm(flop_s / law["compute"], byte_s / law["memory"], law["p"])
        tables.append(table | {"time_us": law["launch_us"] + 1e6 * core})
    return stacked(*tables)


WIRE = {"latency_us": 7.0, "bus": 0.7, "root_ns": 4.0, "p": 2.0}
SIZES = tuple(2**i for i in range(9, 29))


def collectives(gpu="H100", lib="vllm", op="all_reduce", gpus=(2, 4, 8), sizes=SIZES, **law) -> Columns:
    """A collective by a law of four numbers."""
    law = WIRE | law
    table = grid(source=["aiconfigurator"], gpu=[gpu], lib=[lib], op=[op], num_gpus=gpus, message_bytes=sizes)
    size, count = table["message_bytes"].astype(float), table["num_gpus"].astype(float)
    link = sheet(FAMILIES[gpu][0]).link_bytes_per_s
    wire_us = 1e6 * (2.0 if op == "all_reduce" else 1.0) * (count - 1.0) / count * size / link
    moving = law["root_ns"] * 1e-3 * np.sqrt(size) + wire_us / law["bus"]
    return table | {"time_us": p_norm(np.full_like(moving, law["latency_us"]), moving, law["p"])}
