"""`why`: an answer with how far it holds, as `headway plan --why` tells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from headway.plan.answer import Plan
from headway.plan.crew import Workforce
from headway.plan.fleet_answer import Fleet
from headway.plan.sensitivity import sensitivity
from headway.specs import check_argument
from headway.workload import Workload

__all__ = ["why"]

P = TypeVar("P", bound=Plan | Fleet)


def why(
    found: P,
    *,
    made: Workload | None = None,
    workers: Workforce = None,
    progress: Callable[[int, int], None] | None = None,
) -> P:
    """Return a plan, or pools for several classes, with the `sensitivity` of its best, or of each of its pools.

    Args:
        found: what `plan` or `fleet` returned.
        made: the question's workload where the caller has it already; of a plan alone.
        workers: processes to use, or a `RayCluster`; the answer does not depend on it. Default: one per core.
        progress: called with variants done and in all, of several pools anew for each.

    Raises:
        BadInput: an argument of another type.
    """
    check_argument("found", found, Plan | Fleet, "why(plan(question))")
    if isinstance(found, Plan):
        seen = sensitivity(found, made=made, workers=workers, progress=progress)
        return msgspec.structs.replace(found, sensitivity=seen)
    assert isinstance(found, Fleet)
    parts = []
    for part in found.parts:
        seen = sensitivity(part.taken, workers=workers, progress=progress)
        parts.append(msgspec.structs.replace(part, plan=msgspec.structs.replace(part.plan, sensitivity=seen)))
    return msgspec.structs.replace(found, parts=parts)
