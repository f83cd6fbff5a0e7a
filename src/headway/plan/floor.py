"""The physical floor of a latency: weights over bandwidth, operations over peak, by the data sheet alone.

No policy, engine or law gets below it, so an SLO that is below is answered before anything is simulated.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np

from headway.cost import Replica
from headway.hardware import gpu
from headway.metrics import Slo
from headway.model import DTYPE_BYTES, Model, model
from headway.plan.answer import Binding
from headway.plan.bounds import Floats, Lengths
from headway.units import counted

__all__ = ["Floor", "floor", "token_bytes", "token_s"]


class Floor(NamedTuple):
    """The limit that is below its floor, seconds of both, the replica that comes lowest, and what it has to do.

    `slo_class`: whose limit that is, by number.
    """

    binding: Binding
    limit_s: float
    least_s: float
    replica: Replica
    why: str
    slo_class: int = 0


def floor(replicas: Iterable[Replica], lengths: Lengths, slo: Slo) -> Floor | None:
    """Return the first of TPOT, ITL, TTFT and E2E whose limit is below what any of the replicas can do; None if none.

    A latency is below its floor when fewer requests than the SLO's target could be in time on an idle replica that
    reads its weights at the data sheet's bandwidth, computes at its peak, and takes no time for anything else.
    """
    replicas = list(dict.fromkeys(replicas))
    if not replicas:
        return None
    quickest = min(replicas, key=token_s)
    ablest = min(replicas, key=lambda each: (float(_prompt_s(each, lengths).sum()), token_s(each)))
    later = lengths.output - 1
    tokens_s, first_s = np.where(later > 0, token_s(quickest), 0.0), _prompt_s(ablest, lengths)
    gap_s = tokens_s if quickest.engine.speculation is None else 0.0 * tokens_s  # tokens of one step come together
    prompt, output = (int(np.quantile(each, slo.attainment)) for each in (lengths.prompt, lengths.output))
    reads, computes = _reads(quickest), _reads(ablest) if lengths.cached else _computes(ablest, prompt)
    ways: tuple[tuple[Binding, float | None, Floats, Replica, str], ...] = (
        ("tpot", slo.tpot_s, tokens_s, quickest, reads),
        ("itl", slo.itl_s, gap_s, quickest, reads),
        ("ttft", slo.ttft_s, first_s, ablest, computes),
        ("e2e", slo.e2e_s, first_s + tokens_s * later, ablest, f"{computes} Of {counted(output, 'token')}: {reads}"),
    )
    for binding, limit_s, least_s, replica, why in ways:
        if limit_s is not None and float((least_s <= limit_s).mean()) < slo.attainment:
            needed_s = float(np.quantile(least_s, slo.attainment, method="higher"))
            return Floor(binding, limit_s, needed_s, replica, why)
    return None


def _reads(replica: Replica) -> str:
    per_s, whole = gpu(replica.gpu).memory_bytes_per_s, token_bytes(replica)
    several = f", some {counted(replica.engine.step_tokens, 'token')} at a time" if replica.engine.speculation else ""
    own = ""
    if replica.dp > 1:
        own = f", {(whole - _expert_bytes(replica)) / 1e9:.3g} GB of them on the {replica.tp} of its own rank"
    return (
        f"each token reads {whole / 1e9:.3g} GB of weights ({replica.weights}){several}{own}, and "
        f"{_verb(replica.tp * replica.dp, replica, 'read')} {per_s / 1e12:.3g} TB/s"
        f"{_each(replica.tp * replica.dp)}."
    )


def _computes(replica: Replica, tokens: int) -> str:
    """In words why a prompt takes as long."""
    if _compute_s(replica, tokens) < _read_s(replica):
        return _reads(replica)
    return (
        f"a prompt of {counted(tokens, 'token')} takes {_flops(replica) * tokens / 1e12:.3g} TFLOP, and "
        f"{_verb(replica.gpus, replica, 'compute')} {_peak(replica) / 1e12:,.0f} TFLOP/s{_each(replica.gpus)} "
        f"({replica.weights})."
    )


def _verb(count: int, replica: Replica, verb: str) -> str:
    """``1 h100-sxm reads``, ``8 h100-sxm read``."""
    return f"{count} {replica.gpu_name} {verb}{'s' if count == 1 else ''}"


def _each(count: int) -> str:
    return " each" if count > 1 else ""


def token_bytes(replica: Replica) -> float:
    """Bytes of weights that all GPUs of a replica read for one token: no idle expert, one row of the embedding."""
    spec = _active(replica.model)
    table = 0 if spec.tied_embeddings else 2 * spec.embedding_params()
    return float(spec.weight_bytes(replica.weights) - table)


def _expert_bytes(replica: Replica) -> float:
    """Bytes of `token_bytes` that are experts' weights."""
    spec = _active(replica.model)
    return spec.moe_layers() * spec.experts * spec.expert_params() * DTYPE_BYTES[replica.weights]


def token_s(replica: Replica) -> float:
    """Seconds of one token at least: the stages come one after the other, the GPUs of a stage read side by side.

    All of them the experts, those of the token's own data-parallel rank the rest.
    """
    whole, experts = token_bytes(replica), _expert_bytes(replica)
    per_s = gpu(replica.gpu).memory_bytes_per_s * replica.tp * replica.dp
    return (whole + (replica.dp - 1) * (whole - experts)) / per_s / replica.engine.step_tokens


def _read_s(replica: Replica) -> float:
    """Seconds in which all weights that a token needs are read once."""
    return token_s(replica) * replica.engine.step_tokens


def _compute_s(replica: Replica, tokens: float) -> float:
    """Seconds of a prompt's operations at least; of ranks as if they shared them all, not the experts' alone."""
    return _flops(replica) * tokens / (_peak(replica) * replica.gpus)


def _prompt_s(replica: Replica, lengths: Lengths) -> Floats:
    """Seconds of each prompt at least, on all GPUs of the replica; of one that may be cached only the weights."""
    tokens = 0.0 * lengths.prompt if lengths.cached else 1.0 * lengths.prompt
    return np.asarray(np.maximum(_read_s(replica), _compute_s(replica, 1.0) * tokens))


def _flops(replica: Replica) -> float:
    """Operations on weights for one token of a prompt; its attention comes on top."""
    spec = _active(replica.model)
    return 2.0 * (spec.total_params() - (0 if spec.tied_embeddings else spec.head_params()) - spec.embedding_params())


def _peak(replica: Replica) -> float:
    peaks = gpu(replica.gpu).peak_flops
    return peaks.get(replica.weights) or max(peaks.values())


def _active(key: str) -> Model:
    """The model with only as many experts as a token takes."""
    spec = model(key)
    return msgspec.structs.replace(spec, experts=spec.experts_per_token) if spec.experts else spec
