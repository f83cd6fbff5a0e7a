"""A what-if as a sentence and a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.metrics import Result
from headway.metrics.comparison import Comparison, Difference
from headway.plan.otherwise import ModelError, WhatIf
from headway.report import words as w
from headway.report.compare_text import basis, difference_cells, figure_value, span
from headway.report.sheet import Sheet
from headway.units import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

NAMED = ("attainment", "TTFT p90", "TPOT p90", "output tokens/s", "energy per output token", "cost per hour")
CELLS = {"differs": "yes", "noise": "noise", "few": "too few", "model": "model", "": ""}
SHARED = {
    "shared": "The same replicas serve, so both sides are off alike",
    "related": "Both sides are layouts of one model and GPU: their ratio is surer than either",
    "independent": "The replicas differ in GPU or model, so each side may be off in its own way",
}


def whatif_text(found: WhatIf, error: Comparison | None = None) -> RenderableType:
    """Return both sides as a sentence and a table; of a log, `error` compares what was measured with `before`."""
    from rich.console import Group
    from rich.text import Text

    few = '"too few": so few requests may all lie on one side of such a figure by chance.'
    fewer = [few] if any(found.verdict(one) == "few" for one in found.change.differences) else []
    notes = [basis(found.change), model_words(found.model), *fewer, *found.change.notes]
    parts = [Text(whatif_sentence(found), style="bold"), Text("")]
    return Group(*parts, _table(found, error), *(Text(note, style="dim") for note in notes))


def whatif_sentence(found: WhatIf) -> str:
    """Return what changes, and what cannot be told apart."""
    by_figure = {one.figure: one for one in found.change.differences}
    named = [by_figure[figure] for figure in NAMED if figure in by_figure and by_figure[figure].difference is not None]
    kinds = ("noise", "few", "model")
    unsure = {verdict: [one.figure for one in named if found.verdict(one) == verdict] for verdict in kinds}
    untold = {*unsure["noise"], *unsure["few"]}
    moved = [_moved(one) for one in named if one.figure not in untold and _apart(one)]
    gpus = (found.before.gpus, found.after.gpus)
    moved += [f"{counted(gpus[1], 'GPU')} in place of {gpus[0]}"] if gpus[0] != gpus[1] else []
    said = f"With {w.listed(found.changes)}: {', '.join(moved) or 'nothing is known to change'}.{_targets(found)}"
    if unsure["noise"]:
        said += f" Inside the noise: {w.listed(unsure['noise'])}."
    if unsure["few"]:
        said += f" Too few requests to tell: {w.listed(unsure['few'])}."
    if unsure["model"]:
        said += f" Within the cost model's error: {w.listed(unsure['model'])}."
    return said


def _targets(found: WhatIf) -> str:
    """Whether the SLO is met on both sides, as a sentence; "" where there is none."""
    before, after = _judged(found.before), _judged(found.after)
    if not before and not after:
        return ""
    short = [f"{w.listed(names)} {when}" for names, when in _short(found) if names]
    whose = f" Short of their targets: {'; '.join(short)}." if short else ""
    return f" The SLO is {before or 'not judged'} as it is, and {after or 'not judged'} otherwise.{whose}"


def _short(found: WhatIf) -> list[tuple[list[str], str]]:
    """The classes that miss their own targets, on either side."""
    sides = []
    for result, when in ((found.before, "as it is"), (found.after, "otherwise")):
        names = [each.get("name", "") for each in (result.workload or {}).get("classes", [])]
        missed = [int(number) for number, each in result.slo.by_class.items() if each.met is False]
        sides.append(([names[number] for number in missed if number < len(names)], when))
    return sides


def _judged(result: Result) -> str:
    """``met (target 90%)``; "" without limits."""
    if result.slo.met is None:
        return ""
    target = "" if result.slo.target is None else f" (target {w.share(result.slo.target)})"
    return f"{'met' if result.slo.met else 'missed'}{target}"


def model_words(model: ModelError) -> str:
    """Return how far off the cost model may be, and what that says of a difference."""
    (low_a, high_a), (low_b, high_b) = model.step_times
    after = "" if model.relation == "shared" else f", otherwise {low_b:.2f} to {high_b:.2f}"
    return (
        f"By the model: with step times {low_a:.2f} to {high_a:.2f} times as long{after}, which holds the truth in "
        f"{model.coverage:.0%} of cases. {SHARED[model.relation]}. \"noise\": the "
        "95% interval holds 0; \"model\": the model's error does."
    )


def _apart(one: Difference) -> bool:
    """Whether both values read differently."""
    return figure_value(one, one.a) != figure_value(one, one.b)


def _moved(one: Difference) -> str:
    way = "rises" if (one.difference or 0.0) > 0 else "falls"
    return f"{one.name} {way} from {figure_value(one, one.a)} to {figure_value(one, one.b)}"


def _table(found: WhatIf, error: Comparison | None) -> Sheet:
    table = Sheet()
    table.add_column("figure", words=True)
    sides = ("simulated",) if error is None else ("measured", "simulated")
    for heading in (*sides, "otherwise", "difference", "95% interval", "by the model", "sure"):
        table.add_column(heading, right=heading != "sure")
    measured = {} if error is None else {one.figure: figure_value(one, one.a) for one in error.differences}
    ends = {one.figure: one.difference for one in found.model.figures}
    for one in found.change.differences:
        name, *cells, _ = difference_cells(one)
        first = [] if error is None else [measured.get(one.figure, w.NONE)]
        model = span(one, *ends[one.figure]) if one.figure in ends else ""
        verdict = found.verdict(one)
        texts = [name, *first, *cells, model, CELLS[verdict]]
        table.add_row(*texts, style="bold" if verdict == "differs" else "")
        judged = [_judged(each).partition(" ")[0] or w.NONE for each in (found.before, found.after)]
        if one.figure == "attainment" and judged != [w.NONE, w.NONE]:
            table.add_row("SLO", *([] if error is None else [w.NONE]), *judged)
    return table
