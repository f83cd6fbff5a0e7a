"""Queue orders: a key per waiting request, the smallest first. FCFS is the queue without keys."""

from __future__ import annotations

from typing import Any

from headway.policies.base import Policy
from headway.state.views import QueueView


class Fcfs(Policy):
    """First come, first served: the queue as it stands."""

    def order(self, queue: QueueView) -> Any:
        """Key: time of arrival."""
        return queue.arrival_s


class Priority(Policy):
    """Lower `priority` first, then time of arrival."""

    def order(self, queue: QueueView) -> Any:
        """Key: the priority; the queue breaks ties by arrival."""
        return queue.priority


class ShortestJobFirst(Policy):
    """Fewest tokens first: prompt plus *predicted* output; requests without a prediction count their prompt."""

    def order(self, queue: QueueView) -> Any:
        """Key: tokens of work expected."""
        import numpy as np

        return queue.prompt_tokens + np.nan_to_num(queue.predicted_output_tokens, nan=0.0)


class EarliestDeadlineFirst(Policy):
    """Nearest deadline first; requests without one last, in order of arrival."""

    def order(self, queue: QueueView) -> Any:
        """Key: the absolute deadline."""
        return queue.deadline_s
