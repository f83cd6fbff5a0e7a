"""What engines say of themselves: Prometheus text under the names that each of them uses."""

from __future__ import annotations

import re

from headway.gateway.events import EngineSample

# Names as the engines document them: vLLM (v0 and v1), SGLang, llama.cpp (server --metrics).
RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing")
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred")
KV_SHARE = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "llamacpp:kv_cache_usage_ratio",
)
_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+([0-9.eE+-]+)\s*(?:\d+)?$", re.M)


def engine_sample(text: str) -> EngineSample:
    """Read one engine's metrics; series of one name are summed, as data-parallel ranks are, shares of KV averaged.

    What an engine does not publish is None.
    """
    found: dict[str, list[float]] = {}
    for name, value in _LINE.findall(text):
        if name in RUNNING or name in WAITING or name in KV_SHARE:
            try:
                found.setdefault(name, []).append(float(value))
            except ValueError:
                continue

    def first(names: tuple[str, ...]) -> list[float] | None:
        return next((found[name] for name in names if name in found), None)

    running, waiting, share = first(RUNNING), first(WAITING), first(KV_SHARE)
    return EngineSample(
        running=None if running is None else int(sum(running)),
        waiting=None if waiting is None else int(sum(waiting)),
        kv_share=None if share is None else sum(share) / len(share),
    )
