"""A calibration for the terminal: what it changes, what it gained on points it had not seen, what to doubt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.report.sheet import Sheet

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headway.accuracy import Calibrated

_MEANING = {
    "few_tokens": "kernels of steps of up to 64 tokens",
    "many_tokens": "kernels of steps from 1,024 tokens, prompt attention",
    "context": "attention of decoding sequences",
    "layer_s": "host, per layer",
    "step_s": "host, per step",
    "sequence_s": "host, per sequence of a step",
    "prompt_layer_s": "host, per layer of a step with a prompt",
    "intake_s": "outside the engine, per request",
}
_METRICS = {"ttft": "TTFT", "tpot": "TPOT", "output_throughput": "output throughput", "e2e": "end to end"}


def calibration_text(found: Calibrated) -> RenderableType:
    """Return the tables and sentences of a calibration."""
    from rich.console import Group
    from rich.text import Text

    evidence, where = found.evidence, found.calibration
    head = f"{where.gpu} with {where.engine} {', '.join(where.versions)}".rstrip()
    said = [f"{head}: {evidence.points} points of {', '.join(where.models)}"]
    if not evidence.kept:
        said.append(_no_better(found))
    after = [f"left out: {count} rows, {reason}" for reason, count in evidence.left_out.items()]
    after += [f"not fitted, {row_id}: {reason}" for row_id, reason in found.broken.items()]
    after += [f"suspect, {row_id}: {why}" for row_id, why in found.suspects.items()]
    after += [f"contradiction: {text}" for text in found.contradictions]
    after += [f"measure next: {text}" for text in found.advice if not text.startswith("the points")]
    after += [text for text in found.advice if text.startswith("the points")]
    return Group(Text("\n".join(said)), _terms(found), _errors(found), Text("\n".join(after)))


def _no_better(found: Calibrated) -> str:
    """Why the shipped law is kept, with the errors that say so."""
    evidence = found.evidence
    off = ", ".join(
        f"{_METRICS.get(metric, metric)} {100 * error:.1f} % off instead of {100 * evidence.before[metric]:.1f} %"
        for metric, error in evidence.tried.items()
    )
    told = "warning: the shipped law is kept, nothing changes: fits to the other points did not predict points left out"
    return f"{told} better beyond chance{f' (the best: {off})' if off else ''}."


def _terms(found: Calibrated) -> RenderableType:
    table = _table("term", "change", "90 % interval", "of")
    for name, meaning in _MEANING.items():
        term = getattr(found.calibration, name)
        texts = [_shown(name, value) for value in (term.value, term.low, term.high)]
        table.add_row(name, texts[0], f"{texts[1]} to {texts[2]}", meaning)
    return table


def _shown(name: str, value: float) -> str:
    return f"{value * 1e6:+,.0f} us" if name.endswith("_s") else f"x {value:.3f}"


def _errors(found: Calibrated) -> RenderableType:
    evidence = found.evidence
    table = _table("median error", "shipped law", "held-out points", "own points")
    for metric, before in evidence.before.items():
        held, after = evidence.held_out.get(metric, before), evidence.after.get(metric, before)
        table.add_row(_METRICS.get(metric, metric), *(f"{100 * error:.1f} %" for error in (before, held, after)))
    return table


def _table(*headings: str) -> Sheet:
    table = Sheet()
    for place, heading in enumerate(headings):
        table.add_column(heading, words=place == 0 or heading == "of")
    return table
