"""`judge`: one row, measured against simulated."""

from __future__ import annotations

import functools
from collections.abc import Callable

import msgspec

from headway.accuracy.express import Case, express
from headway.accuracy.physics import broken
from headway.accuracy.predict import predict
from headway.accuracy.reading import Inexpressible
from headway.accuracy.rows import Row
from headway.cost.calibration import Calibration, mismatch
from headway.cost.uncertainty import factors, levels
from headway.errors import HeadwayError

__all__ = ["ELSEWHERE", "Outcome", "deployed", "judge", "make_judge"]

ELSEWHERE = "not what was calibrated"


class Outcome(msgspec.Struct, frozen=True):
    """What became of a row: figures by name (see `predict`), or why it was skipped; GPUs of the deployment.

    By metric, `levels` is the evidence the prediction rests on, `factors` what it is multiplied by for the ends of its
    90 % interval.
    """

    predicted: dict[str, float]
    reason: str = ""
    gpus: int = 0
    levels: dict[str, str] = msgspec.field(default_factory=dict)
    factors: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)


def judge(row: Row, calibration: Calibration | str | None = None) -> Outcome:
    """Return what the simulator says of the row's operating point; never raises for what a row holds.

    `calibration`: own measurements', or "published".
    """
    try:
        case = express(row)
        reason = broken(row, case)
        if reason:
            return Outcome({}, reason)
        differs = _differs(case, calibration)
        if differs:
            return Outcome({}, f"{ELSEWHERE}: {differs}")
        case = deployed(case, calibration) if calibration else case
        predicted = predict(case)
        if not row.measured.keys() & predicted.keys():
            return Outcome({}, "no figure of ours was measured")
        replicas = [pool.replica for pool in case.deployment.pools]
        gpus = row.gpu_count or case.deployment.gpus
        split = case.deployment.split
        return Outcome(predicted, gpus=gpus, levels=levels(replicas, split), factors=factors(replicas, split))
    except Inexpressible as error:
        return Outcome({}, str(error))
    except HeadwayError as error:
        return Outcome({}, f"refused: {str(error)[:90]}")


def deployed(case: Case, calibration: Calibration | str | None) -> Case:
    """Return the case with every replica calibrated, or none."""
    replace = msgspec.structs.replace
    if isinstance(calibration, str):
        return replace(case, deployment=case.deployment.as_published())
    pools = tuple(replace(p, replica=replace(p.replica, calibration=calibration)) for p in case.deployment.pools)
    return replace(case, deployment=replace(case.deployment, pools=pools))


def _differs(case: Case, calibration: Calibration | str | None) -> str:
    replica = case.deployment.pools[0].replica
    return mismatch(calibration, replica.gpu, replica.engine.name) if isinstance(calibration, Calibration) else ""


def make_judge(calibration: Calibration | str | None = None) -> Callable[[Row], Outcome]:
    """Return `judge` with a calibration, for workers that are given a maker."""
    return functools.partial(judge, calibration=calibration)
