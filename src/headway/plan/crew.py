"""Who does the planner's jobs: this machine's processes, or a Ray cluster. Nothing else of the planner knows which."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from headway.errors import BadInput
from headway.plan.workers import Workers
from headway.specs import check_argument

__all__ = ["Crew", "RayCluster", "Workforce", "muster"]

J = TypeVar("J")
R = TypeVar("R")
Job = TypeVar("Job", contravariant=True)
Answer = TypeVar("Answer", covariant=True)


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster (extra `ray`), in place of a number of processes.

    Ray runs what its nodes send each other as pickles, and this program reads theirs: the cluster must be trusted.

    Attributes:
        address: HOST:PORT of its head from one of its nodes, ray://HOST:PORT of its client server from anywhere,
            `auto` for the one that runs on this machine or that this program is connected to.

    Raises:
        BadInput: an address of another form.
    """

    address: str

    def __post_init__(self) -> None:
        """Refuse an address for which Ray would start a cluster of its own."""
        if self.address != "auto" and not re.fullmatch(r"(ray://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d{1,5}", self.address):
            raise BadInput(
                f"Ray cluster {self.address!r}: give HOST:PORT of its head, as in head:6379, ray://HOST:PORT of "
                "its client server, as in ray://head:10001, or auto for the one on this machine"
            )


Workforce = int | RayCluster | None  # so many processes here, or a cluster; None: one per core, if there is much to do


class Crew(Protocol[Job, Answer]):
    """Answers jobs, each by itself: the answers are the same whoever does them."""

    def prepare(self, jobs: int) -> None:
        """Get ready for about so many jobs, if that takes time."""
        ...

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Answer]]:
        """Yield (position, answer) in order of completion; what an answer raises is raised here, and ends the crew."""
        ...

    def close(self) -> None:
        """End what is under way; its answers are lost."""
        ...


def muster(make: Callable[..., Callable[[J], R]], context: tuple[Any, ...], workforce: Workforce) -> Crew[J, R]:
    """Return who computes `make(*context)(job)` for many jobs; function, context, jobs and answers can be pickled.

    Raises:
        BadInput: neither a number nor a cluster.
    """
    if isinstance(workforce, RayCluster):
        from headway.plan.cluster import Remote

        return Remote(make, context, workforce.address)
    check_argument("workers", workforce, int | None, '4, or RayCluster("head:6379")')
    return Workers(make, context, workforce)
