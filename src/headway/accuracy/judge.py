"""`judge`: one row, measured against simulated."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from headway.accuracy.express import express
from headway.accuracy.physics import broken
from headway.accuracy.predict import predict
from headway.accuracy.reading import Inexpressible
from headway.accuracy.rows import Row
from headway.errors import HeadwayError

__all__ = ["Outcome", "judge", "make_judge"]


class Outcome(msgspec.Struct, frozen=True):
    """What became of a row: figures by name (see `predict`), or why it was skipped; GPUs of the deployment."""

    predicted: dict[str, float]
    reason: str = ""
    gpus: int = 0


def judge(row: Row) -> Outcome:
    """Return what the simulator says of the row's operating point; never raises for what a row holds."""
    try:
        case = express(row)
        reason = broken(row, case)
        if reason:
            return Outcome({}, reason)
        predicted = predict(case)
        if not row.measured.keys() & predicted.keys():
            return Outcome({}, "no figure of ours was measured")
        return Outcome(predicted, gpus=row.gpu_count or case.deployment.gpus)
    except Inexpressible as error:
        return Outcome({}, str(error))
    except HeadwayError as error:
        return Outcome({}, f"refused: {str(error)[:90]}")


def make_judge() -> Callable[[Row], Outcome]:
    """Return `judge`, for workers that are given a maker."""
    return judge
