"""Between which replicas an engine passes KV, of the releases that exports are for."""

from __future__ import annotations

from typing import Final, NamedTuple

from headway.hardware import Gpu
from headway.model import Model

__all__ = ["Side", "withheld"]

_STAGES: Final = {
    "vllm": "between replicas of one stage alone",
    "sglang": "to decode replicas of one stage, or of as many as the prefill replicas have",
}


class Side(NamedTuple):
    """What of a replica matters to those that it passes KV to."""

    gpu: Gpu
    tp: int
    pp: int
    block_tokens: int


def withheld(engine: str, spec: Model, prefill: Side, decode: Side) -> str:
    """Return what keeps an engine from passing KV from such a prefill replica to such a decode replica; "" is nothing.

    Read in vLLM 0.33 (NixlConnector: kv_connector/v1/nixl/base_worker.py; vllm-project/vllm#52913), in SGLang 0.5.23
    (disaggregation/common/conn.py) and its docker/rocm.Dockerfile, and in TensorRT-LLM's cacheFormatter.cpp, which had
    no states before NVIDIA/TensorRT-LLM#12150, after 1.2.
    """
    stages, sizes = (prefill.pp, decode.pp), (prefill.block_tokens, decode.block_tokens)
    makers = (prefill.gpu.vendor, decode.gpu.vendor)
    degrees = f"tp {prefill.tp} to tp {decode.tp}"
    if makers[0] != makers[1]:  # fp8 of CDNA 3 is not that of the others; nothing is said of the rest
        return f"no engine says that it passes KV from {makers[0]}'s GPUs to {makers[1]}'s"
    if engine == "sglang" and makers != ("NVIDIA", "NVIDIA"):
        return f"SGLang's images for {makers[0]} find the libraries that pass KV in interactive shells alone"
    if stages != (1, 1) and {"vllm": True, "sglang": decode.pp not in (1, prefill.pp)}.get(engine, False):
        return f"{engine} passes KV {_STAGES[engine]}, not from pp {stages[0]} to pp {stages[1]}"
    if max(prefill.tp, decode.tp) % min(prefill.tp, decode.tp):
        return f"no engine passes KV from {degrees}, neither of which divides the other"
    if engine == "trtllm" and (spec.state_layers or spec.kv_heads_total):
        what = "states beside KV" if spec.state_layers else "KV whose heads differ from layer to layer"
        return f"trtllm 1.2 does not pass {what}, which {spec.key} has"
    if engine == "vllm" and spec.state_layers and prefill.tp != decode.tp:
        return f"vllm passes the states of {spec.key} between replicas of one tp, not from {degrees}"
    if engine == "vllm" and spec.attention != "mla" and max(spec.kv_heads, decode.tp) < prefill.tp:
        return f"vllm passes no KV from {degrees} where {spec.key} has {spec.kv_heads} KV heads"
    larger = engine == "vllm" and not spec.state_layers
    if sizes[0] > sizes[1] or (sizes[0] < sizes[1] and not larger) or sizes[1] % sizes[0]:
        into = "of the same size or whole numbers of them" if larger else "of the same size"
        return f"{engine} passes KV into blocks {into}, not from block_tokens {sizes[0]} to {sizes[1]}"
    return ""
