"""Speculative decoding in a step table: what drafts, and how a step that emits several tokens becomes several steps."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np

from headway.cost.efficiency import Estimate
from headway.cost.replica import Replica, drafting_model
from headway.cost.speculation import MTP, Speculation
from headway.cost.steptable import StepTable
from headway.hardware import Gpu
from headway.model import Model

__all__ = ["drafter", "folded", "speculating"]

_SUMMED: Final = ("prefill_base", "prefill_area", "prefill_window_area")
_SOURCE: Final = "declared in the deployment"
_LEVIATHAN: Final = "(1 - a^(k+1)) / (1 - a): Y. Leviathan et al., Fast inference from transformers, ICML 2023"


def drafter(replica: Replica, spec: Model, card: Gpu) -> tuple[Replica, Model] | None:
    """Return what drafts beside a resolved replica, as a replica of its own on the same GPUs; None if nothing runs.

    Another model takes the weights' precision of the replica, or the one it is published in where the GPU has no
    units for that.
    """
    speculation = replica.engine.speculation
    if speculation is None:
        return None
    alone = msgspec.structs.replace(
        replica, engine=msgspec.structs.replace(replica.engine, speculation=None), calibration=None
    )
    if speculation.draft == MTP:
        return alone, _one_layer(spec)
    draft = drafting_model(speculation)
    if draft is None:
        return None
    weights = replica.weights if replica.weights in card.peak_flops else draft.native_dtype
    return msgspec.structs.replace(alone, model=speculation.draft, weights=weights, ep=1), draft


def _one_layer(spec: Model) -> Model:
    """A layer that predicts the token after the next: attention over all tokens, and experts where the model has any.

    Its embedding and head are the model's own; what joins the two inputs, a matrix of twice the width, is left out.
    """
    states = {name: 0 for name in ("state_layers", "state_heads", "state_head_dim", "state_keys", "state_key_dim")}
    return msgspec.structs.replace(
        spec, key=f"{spec.key} mtp", layers=1, dense_layers=0, bare_layers=0, window=0, window_layers=0,
        index_layers=min(1, spec.index_layers), kv_heads_total=0, **states,
    )  # fmt: skip


def speculating(replica: Replica) -> Replica:
    """Return the replica without speculation whose table `folded` reads: all rows to be verified are sequences."""
    engine = replica.engine
    wide = msgspec.structs.replace(engine, speculation=None, max_seqs=engine.max_seqs * engine.step_tokens)
    return msgspec.structs.replace(replica, engine=wide)


def folded(
    speculation: Speculation, max_seqs: int, wide: StepTable, draft: StepTable | None, sequence_s: float
) -> StepTable:
    """Return the table of steps that give each sequence one token, E of which cost what one real step does.

    With k drafted tokens, a real step of n sequences verifies ``n (k + 1)`` tokens and drafts k times n; E is
    `Speculation.emitted`. Prompts are not divided: they come on top of the linear part, `linear_s`, and what decodes
    cost instead of theirs is in `decode_s`, which may then be negative while no step is:

        ``decode_s[n] = (linear_s[n (k + 1)] + seq_s[...] + decode_s[n] + k draft_s(n)) / E - linear_s[n] - seq_s[n]``

    Args:
        speculation: as declared.
        max_seqs: of the engine.
        wide: the table of `speculating`, with the context costs of k + 1 queries.
        draft: the table of what drafts.
        sequence_s: the host's seconds of a sequence in `wide.seq_s`, which counts rows.
    """
    n = np.arange(max_seqs + 1)
    rows, drafted, emitted = n * speculation.verified, speculation.tokens, speculation.emitted
    fields: dict[str, Any] = {}
    for unit in "sj":
        linear, seq, decode = (getattr(wide, f"{name}_{unit}") for name in ("linear", "seq", "decode"))
        step = linear[rows] + seq[rows] + decode[n]
        if unit == "s":
            step = step - sequence_s * (rows - n)
        context = {name: getattr(wide, f"{name}_{unit}")[n] for name in ("decode_ctx", "decode_window")}
        if draft is not None:
            own = {name: getattr(draft, f"{name}_{unit}") for name in ("linear", "seq", "decode", *context)}
            step = step + drafted * (own["linear"][n] + own["seq"][n] + own["decode"][n])
            linear = linear + own["linear"]
            context = {name: values + drafted * own[name][n] for name, values in context.items()}
            for name in _SUMMED:
                fields[f"{name}_{unit}"] = getattr(wide, f"{name}_{unit}") + getattr(draft, f"{name}_{unit}")
        fields[f"linear_{unit}"], fields[f"seq_{unit}"] = linear, seq[n]
        fields[f"decode_{unit}"] = step / emitted - linear[n] - seq[n]
        fields |= {f"{name}_{unit}": values / emitted for name, values in context.items()}
    for values in fields.values():
        if isinstance(values, np.ndarray):
            values.flags.writeable = False
    if draft is not None:
        fields["prompt_step_s"] = wide.prompt_step_s + draft.prompt_step_s
    return msgspec.structs.replace(
        wide, max_seqs=max_seqs, poll_steps=max(1, round(wide.poll_steps * emitted)),
        provenance=wide.provenance | _estimates(speculation), **fields,
    )  # fmt: skip


def _estimates(speculation: Speculation) -> dict[str, Estimate]:
    facts = {
        "tokens": (float(speculation.tokens), "tokens", _SOURCE),
        "acceptance": (speculation.acceptance, "share", _SOURCE),
        "tokens_per_step": (speculation.emitted, "tokens", _LEVIATHAN),
    }
    return {
        f"speculation.{name}": Estimate(value=value, unit=unit, kind="modelled", source=source, low=value, high=value)
        for name, (value, unit, source) in facts.items()
    }
