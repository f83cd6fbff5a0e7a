"""SLOs by class: what each class of a workload must meet, and what is proven or guessed where there are several.

A plan is good when every class reaches its own share. Where there is one class, all of this is its SLO alone.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from headway.cost import Replica, StepTable
from headway.errors import BadInput
from headway.metrics import Slo
from headway.plan.bounds import Ceiling, Lengths, Reach, reach
from headway.plan.floor import Floor, floor
from headway.plan.question import Question, default_requests
from headway.sim import Deployment
from headway.units import counted
from headway.workload import Workload

__all__ = ["Ceilings", "Classes", "classes_of", "hopes", "long_requests", "lowest"]


class Classes(NamedTuple):
    """The SLOs of the classes by number, as asked and as candidates are judged by, and their shares of all requests.

    A single one has no name.
    """

    names: tuple[str, ...]
    asked: tuple[Slo, ...]
    aimed: tuple[Slo, ...]
    shares: tuple[float, ...]

    @property
    def several(self) -> bool:
        """Whether each is judged by itself."""
        return bool(self.names)

    def name(self, slo_class: int) -> str:
        """The name of a class; "" of a single one."""
        return self.names[slo_class] if self.several else ""

    def check(self, lengths: Lengths) -> None:
        """Refuse to judge a class by none of its requests.

        Raises:
            BadInput: a run has no requests of a class.
        """
        there = {i for i, _ in lengths.by_class(len(self.aimed))}
        for i, name in enumerate(self.names):
            if i not in there:
                raise BadInput(
                    f"none of the {counted(len(lengths.prompt), 'request')} of a run is of class {name}, "
                    f"{self.shares[i]:.2g} of all: ask for longer runs, as by --set "
                    f"requests={round(1000 / self.shares[i], -3):.0f}, or plan for it by itself"
                )

    @property
    def least(self) -> float:
        """The share of the class with the fewest requests."""
        return min(self.shares) if self.several else 1.0

    @property
    def slo(self) -> Slo | dict[int, Slo]:
        """What `simulate` judges by."""
        return dict(enumerate(self.aimed)) if self.several else self.aimed[0]


def classes_of(question: Question, workload: Workload) -> Classes:
    """Return the classes of a question's workload; a single one where the question has no SLO by class.

    Raises:
        BadInput, UnknownName: an SLO of a class that the workload does not have.
    """
    given = workload.spec.classes
    names = tuple(each.name for each in given)
    workload.check_classes(question.slos)
    if not question.slos or len(names) == 1:
        slo = question.slo_of(names[0] if names else "")
        return Classes((), (slo,), (question.aimed(slo),), (1.0,))
    asked = tuple(question.slo_of(name) for name in names)
    aimed = tuple(question.aimed(slo) for slo in asked)
    sizes = [(each.rate_req_s or 0.0) if workload.spec.mixed else each.share for each in given]
    return Classes(names, asked, aimed, tuple(size / sum(sizes) for size in sizes))


def long_requests(asked: tuple[Slo, ...], rate_req_s: float, output_tokens: float) -> int:
    """Requests of a long run where the question leaves it open: as many as the class that asks for most."""
    return max(default_requests(slo, rate_req_s, output_tokens) for slo in asked)


def hopes(
    deployment: Deployment, tables: tuple[StepTable, ...], lengths: Lengths, slos: tuple[Slo, ...]
) -> list[tuple[int, Reach]]:
    """Return the number of each class that has requests, and what it may reach at best."""
    return [(i, reach(deployment, tables, own, slos[i])) for i, own in lengths.by_class(len(slos))]


class Ceilings:
    """How many times the asked rate is beyond replicas for certain; below 1 the asked rate is.

    By one of the classes alone, or by all of them together under limits and a share as loose as the loosest of each.
    """

    def __init__(self, lengths: Lengths, slos: tuple[Slo, ...]) -> None:
        self.each = [Ceiling(own, slos[i]) for i, own in lengths.by_class(len(slos))]
        if len(slos) > 1:
            self.each.append(Ceiling(lengths, _loosest(slos)))

    def __call__(self, deployment: Deployment, tables: tuple[StepTable, ...]) -> float:
        """Return the number of times; inf: by none."""
        return min(each(deployment, tables) for each in self.each)


def lowest(replicas: list[Replica], lengths: Lengths, slos: tuple[Slo, ...]) -> Floor | None:
    """Return the first limit of any class that is below what any of the replicas can do; None if none is."""
    lows = ((i, floor(replicas, own, slos[i])) for i, own in lengths.by_class(len(slos)))
    return next((low._replace(slo_class=i) for i, low in lows if low), None)


def _loosest(slos: tuple[Slo, ...]) -> Slo:
    """An SLO that is met wherever all of these are."""
    first = msgspec.structs.replace(slos[0], attainment=min(slo.attainment for slo in slos))
    loose = {}
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        limits = [getattr(slo, name) for slo in slos]
        known = [limit for limit in limits if limit is not None]
        loose[name] = max(known) if len(known) == len(limits) else None
    return msgspec.structs.replace(first, **loose)
