"""Retention rules: which prefixes a replica keeps beyond what it would by itself."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from headway.errors import BadInput
from headway.policies.base import Policy
from headway.state.views import ReplicaState, Request


def kept_s(answer: Any) -> float | None:
    """Read what a policy answered, in seconds: a finite number from 0 on, or None for 0. None: it is neither."""
    if answer is None:
        return 0.0
    if not isinstance(answer, Real) or isinstance(answer, bool):
        return None
    try:
        seconds = float(answer)
    except OverflowError:  # a whole number beyond all floats
        return None
    return seconds if 0 <= seconds < math.inf else None


class Lru(Policy):
    """Nothing is kept on purpose: the engine evicts what was used least recently."""

    reads_progress = False

    def retain(self, request: Request, replica: ReplicaState) -> Any:
        """Keep nothing."""
        return 0.0


class KeepSessions(Policy):
    """The prefix of a request that belongs to a session is kept for `keep_s`, for the turn that may follow.

    Whether one follows nobody knows: the last turn of a session is kept as long, for nothing.
    """

    reads_progress = False

    def __init__(self, keep_s: float = 60.0) -> None:
        if not 0 < keep_s < math.inf:
            raise BadInput(f"keep-sessions with keep_s={keep_s}: expected seconds above 0")
        self.keep_s = keep_s

    def retain(self, request: Request, replica: ReplicaState) -> Any:
        """Keep what a session has so far; what stands alone goes as it would."""
        return self.keep_s if request.session >= 0 else 0.0
