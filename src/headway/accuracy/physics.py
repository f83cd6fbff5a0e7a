"""What no hardware can do: a row that claims it is reported and not used."""

from __future__ import annotations

from headway.accuracy.express import Case
from headway.accuracy.rows import Row
from headway.hardware import gpu
from headway.model import model
from headway.workload import workload

__all__ = ["broken"]


def broken(row: Row, case: Case) -> str:
    """Return what law the row's figures break, or "".

    A decode step reads at least the weights that one token uses: no time per token is below their bytes over the
    bandwidth of all GPUs of an instance, divided by the tokens a step gives at most where some are drafted. Every
    prompt and output token costs two operations a weight: no throughput is above the dense peak. Embedding tables are
    not counted: a token reads one line of them.
    """
    pool = case.deployment.pools[-1]
    replica = pool.replica
    spec, card = model(replica.model), gpu(replica.gpu)
    tables = spec.embedding_params() + (0 if spec.tied_embeddings else spec.head_params())
    body = spec.active_params() - tables
    share = body / (spec.total_params() - tables)
    weight_bytes = (spec.weight_bytes(replica.weights) - 2 * tables) * share
    step_s = weight_bytes / (card.memory_bytes_per_s * replica.gpus * replica.engine.step_tokens)
    for name in ("tpot_mean", "tpot_p50", "itl_mean", "itl_p50"):
        if row.measured.get(name, step_s) < step_s:
            return f"breaks physics: {name} below the time to read the weights"
    made = workload(case.workload)
    dense = "bf16" if replica.weights not in card.peak_flops else replica.weights
    peak = card.peak_flops[dense] * replica.gpus * (case.scale if case.scale > 1 else pool.count)
    ratio = 1 + made.mean_prompt_tokens / made.mean_output_tokens
    rate = row.measured.get("output_throughput", 0.0) * ratio if len(case.deployment.pools) == 1 else 0.0
    if rate * 2 * body > peak:
        return "breaks physics: throughput above the GPUs' peak"
    if "e2e_mean" in row.measured and row.measured["e2e_mean"] < (made.mean_output_tokens - 1) * step_s:
        return "breaks physics: end before the weights can be read for every token"
    return ""
