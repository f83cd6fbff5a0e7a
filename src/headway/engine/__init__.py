"""One replica: its queue, the composition of each step, KV pages, the prefix cache.

Lives here: the fast `Engine` (compiled), and `reference.py`, the slow engine that is its specification.
May import: cost, policies, state, workload.
Start reading in `core.py` (`Engine.step`), then `lane.py`, where a batch is kept as sums.
"""

from headway.engine.core import Engine
from headway.engine.gaps import Gaps, LogCounts
from headway.engine.law import StepLaw
from headway.engine.lockstep import Lockstep
from headway.engine.sequence import FAILED, FINISHED, REJECTED, UNFINISHED, HashChains, Sequence
from headway.engine.work import WorkDone

__all__ = [
    "FAILED",
    "FINISHED",
    "REJECTED",
    "UNFINISHED",
    "Engine",
    "Gaps",
    "HashChains",
    "Lockstep",
    "LogCounts",
    "Sequence",
    "StepLaw",
    "WorkDone",
]
