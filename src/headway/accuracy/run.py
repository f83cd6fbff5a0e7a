"""`validate`: every row of a table against the simulator, and what came out as one `Accuracy`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from headway.accuracy.coverage import Coverage, cover
from headway.accuracy.judge import Outcome, judge
from headway.accuracy.ranking import Ranking, rank
from headway.accuracy.reading import suspicion
from headway.accuracy.rows import Row
from headway.accuracy.score import HEADLINES, Errors, Judged, by_figure, by_group, headline, summarize_errors
from headway.accuracy.units import doubts
from headway.errors import BadInput
from headway.specs import Spec, json_text, to_mapping

__all__ = ["Accuracy", "sample", "validate"]

Answers = Callable[[Sequence[Row]], Iterator[tuple[int, Outcome]]]
Progress = Callable[[int, int | None], None]
GROUPS = ("source", "engine", "model_key", "gpu_key")
SHOWN_GROUPS = ("tp", "mode")
PHYSICS = "breaks physics"
REPEAT = "repeats another row"
NAMES_A_ROW = {"row_id", "model", "gpu", "engine_version", "dist_note", "notes", "measured"}  # no part of a setting


class Accuracy(Spec):
    """Errors of the simulator on a table of measurements.

    `errors` is one figure a row and metric, `by` the same by the values of a column, `figures` every figure there
    is. `broken` lists the rows that no hardware can have measured. `suspects` counts used rows that repeat another or
    look wrong, by reason; `trusted` and `trusted_regret` are `errors` and `regret` without them. `coverage` says how
    often the intervals held the figure measured. `judged` holds what every row was compared with.
    """

    rows: int
    used: int
    skipped: dict[str, int]
    errors: dict[str, Errors]
    by: dict[str, dict[str, dict[str, Errors]]]
    figures: dict[str, Errors]
    regret: Ranking
    broken: dict[str, str]
    suspects: dict[str, int]
    trusted: dict[str, Errors]
    trusted_regret: Ranking
    coverage: Coverage
    judged: list[tuple[Row, Outcome]]

    def to_json(self) -> str:
        """Return rows, used, skipped, errors, by, regret and coverage as JSON text; None is null."""
        data: dict[str, Any] = {"rows": self.rows, "used": self.used, "skipped": self.skipped}
        data["errors"] = {metric: _plain(errors) for metric, errors in self.errors.items()}
        data["by"] = {
            column: {
                value: {metric: _plain(errors) for metric, errors in found.items()}
                for value, found in self.by[column].items()
            }
            for column in GROUPS
        }
        data["regret"] = _plain(self.regret)
        data["coverage"] = _plain(self.coverage)
        return json_text(data) + "\n"

    def doubts(self) -> list[str]:
        """Return what speaks for another unit than expected, a line each."""
        pairs = {metric: [pair for one in self.judged if (pair := headline(one, metric))] for metric in HEADLINES}
        return list(doubts(pairs, len(self.broken), self.rows))

    def table(self) -> list[tuple[str, str, str, float, float]]:
        """Return a line per figure: row id, source, figure, measured, predicted."""
        return [
            (row.row_id, row.source, name, measured, outcome.predicted[name])
            for row, outcome in self.judged
            for name, measured in row.measured.items()
            if name in outcome.predicted
        ]


def _plain(spec: Spec) -> dict[str, Any]:
    return to_mapping(spec, defaults=True)


def sample(rows: Sequence[Row], count: int | None) -> list[Row]:
    """Return `count` rows spread evenly over the table, or all of them.

    Raises:
        BadInput: less than one.
    """
    if count is None or count >= len(rows):
        return list(rows)
    if count < 1:
        raise BadInput(f"a sample of {count} rows: expected 1 to {len(rows)}")
    return [rows[i * len(rows) // count] for i in range(count)]


def validate(rows: Sequence[Row], *, answers: Answers | None = None, progress: Progress | None = None) -> Accuracy:
    """Simulate every row and compare.

    Args:
        rows: as `read_rows` gives them.
        answers: computes `judge` of many rows, in any order, as (position, outcome); None: here, one by one.
        progress: called with rows done and rows in all.
    """
    outcomes: list[Outcome | None] = [None] * len(rows)
    for done, (place, outcome) in enumerate((answers or _here)(rows), start=1):
        outcomes[place] = outcome
        if progress is not None:
            progress(done, len(rows))
    pairs = [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if outcome is not None]
    return _account(pairs)


def _here(rows: Sequence[Row]) -> Iterator[tuple[int, Outcome]]:
    return ((place, judge(row)) for place, row in enumerate(rows))


def _account(pairs: list[Judged]) -> Accuracy:
    judged = [(row, outcome) for row, outcome in pairs if not outcome.reason]
    doubts = _doubts(judged)
    trusted = [one for one, doubt in zip(judged, doubts, strict=True) if not doubt]
    reasons = Counter(outcome.reason for _, outcome in pairs if outcome.reason)
    return Accuracy(
        rows=len(pairs),
        used=len(judged),
        skipped=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        errors=summarize_errors(judged),
        by={column: by_group(judged, column) for column in (*GROUPS, *SHOWN_GROUPS)},
        figures=by_figure(judged),
        regret=rank(judged),
        broken={row.row_id: o.reason for row, o in pairs if o.reason.startswith(PHYSICS)},
        suspects=dict(Counter(doubt for doubt in doubts if doubt)),
        trusted=summarize_errors(trusted),
        trusted_regret=rank(trusted),
        coverage=cover(judged, trusted),
        judged=judged,
    )


def _doubts(judged: list[Judged]) -> list[str]:
    """Why each row looks wrong, "" for most; of rows with equal settings and figures all but the first are repeats."""
    seen: set[tuple[object, ...]] = set()
    doubts = []
    for row, _ in judged:
        settings = [getattr(row, name) for name in row.__struct_fields__ if name not in NAMES_A_ROW]
        key = (*settings, *row.measured.items())
        doubts.append(REPEAT if key in seen else suspicion(row))
        seen.add(key)
    return doubts
