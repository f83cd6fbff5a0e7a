"""What a replica counts, in Prometheus' text form, under the names that vLLM gives it."""

from __future__ import annotations

from collections.abc import Mapping

from headway.metrics.exposition import Buckets, family

# Limits are our own, finer than vLLM's where latencies fall; its names are what dashboards look for.
_FAST_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
           1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
_SLOW_S = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
_LATE_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0)
REASONS = ("stop", "length", "abort")


class Meters:
    """Counters and histograms of one replica since it started; what is in use now comes from its books."""

    def __init__(self, model: str) -> None:
        self.labels = (("model_name", model), ("engine", "0"))
        self.ttft, self.gap, self.tpot = Buckets(_FAST_S), Buckets(_FAST_S), Buckets(_FAST_S)
        self.e2e, self.queue, self.late = Buckets(_SLOW_S), Buckets(_SLOW_S), Buckets(_LATE_S)
        self.prompt_tokens = self.output_tokens = 0
        self.ended = dict.fromkeys(REASONS, 0)
        self.refused = 0

    def text(self, books: Mapping[str, float]) -> str:
        """Return the page at /metrics."""
        used = books["kv_used"] / max(books["kv_total"], 1)
        kinds: dict[str, dict[str, tuple[float | Buckets, str]]] = {
            "gauge": {
                "vllm:num_requests_running": (books["running"], "Requests in the batch."),
                "vllm:num_requests_waiting": (books["waiting"], "Requests that wait to be in it."),
                "vllm:kv_cache_usage_perc": (used, "Share of the KV pages in use, 0 to 1."),
                "vllm:gpu_cache_usage_perc": (used, "The same under its older name."),
            },
            "counter": {
                "vllm:prefix_cache_queries_total": (books["queried"], "Prompt tokens looked up in the prefix cache."),
                "vllm:prefix_cache_hits_total": (books["hit"], "Prompt tokens found there."),
                "vllm:num_preemptions_total": (books["preemptions"], "Preemptions."),
                "vllm:prompt_tokens_total": (self.prompt_tokens, "Prompt tokens of requests that got a first token."),
                "vllm:generation_tokens_total": (self.output_tokens, "Tokens generated."),
                "headway:emulate_refused_total": (self.refused, "Requests answered with an error."),
            },
            "histogram": {
                "vllm:time_to_first_token_seconds": (self.ttft, "From arrival to the first token."),
                "vllm:inter_token_latency_seconds": (self.gap, "Between two tokens of an answer."),
                "vllm:time_per_output_token_seconds": (self.gap, "The same under its older name."),
                "vllm:request_time_per_output_token_seconds": (self.tpot, "Mean of an answer's gaps."),
                "vllm:e2e_request_latency_seconds": (self.e2e, "From arrival to the last token."),
                "vllm:request_queue_time_seconds": (self.queue, "From arrival to admission."),
                "headway:emulate_lateness_seconds": (self.late, "From a step's virtual end until its tokens were out."),
            },
        }
        lines: list[str] = []
        for kind, group in kinds.items():
            for name, (value, said) in group.items():
                lines += family(name, kind, said, [(self.labels, value)])
        ended = [((*self.labels, ("finished_reason", reason)), n) for reason, n in self.ended.items()]
        lines += family("vllm:request_success_total", "counter", "Requests that ended, by reason.", ended)
        return "\n".join(lines) + "\n"
