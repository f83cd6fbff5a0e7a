"""`Fleet`: pools for several classes and models, as JSON the schema headway.fleet/1 (docs/plan-schema.md)."""

from __future__ import annotations

from typing import Any

import msgspec

from headway.metrics import Slo
from headway.metrics.attainment import Attainment
from headway.plan.answer import Candidate, Plan
from headway.plan.question import Question
from headway.specs import Spec, from_json, json_text, to_mapping

__all__ = ["SCHEMA", "AskedClass", "Fleet", "Part", "Together", "Way"]

SCHEMA = "headway.fleet/1"


class AskedClass(Spec, frozen=True, kw_only=True):
    """A class as it was asked for; their order is that of the workload, which numbers them."""

    name: str
    model: str
    rate_req_s: float
    slo: Slo
    priority: int = 0
    deadline_s: float | None = None


class Part(Spec, frozen=True, kw_only=True):
    """The replicas that some classes of one model share: the candidate taken for them, and the plan that it is from.

    `serves`: the name that its pools have in the deployment. `candidate` need not be the plan's best, where another one
    leaves GPUs to the other parts. The plan's curves and course are those of the candidate and of the first others.
    """

    model: str
    classes: list[str]
    serves: str
    rate_req_s: float
    candidate: Candidate
    plan: Plan

    @property
    def taken(self) -> Plan:
        """The plan with the candidate taken as its best and its first."""
        others = [each for each in self.plan.ranked if each.name != self.candidate.name]
        return msgspec.structs.replace(self.plan, best=self.candidate, ranked=[self.candidate, *others])


class Way(Spec, frozen=True, kw_only=True):
    """One way to put the classes of a model into pools, and what all models together come to at best then.

    `value` is in the unit of the objective, as `Fleet.value`; without one `why` says what stands in the way. `gpus`: by
    kind.
    """

    model: str
    pools: list[list[str]]
    value: float | None = None
    usd_per_hour: float | None = None
    gpus: dict[str, int] = msgspec.field(default_factory=dict)
    why: str = ""


class Together(Spec, frozen=True, kw_only=True):
    """The whole deployment simulated with the requests of all classes: attainment of each by name."""

    requests: int
    seed: int
    by_class: dict[str, Attainment]


class Fleet(Spec, frozen=True, kw_only=True):
    """The answer to a `Question` about several classes or models.

    Attributes:
        rate_req_s: of all classes. classes: what each of them asked for.
        feasible: whether every class is served within its SLO by the GPUs there are.
        message: the answer in some sentences.
        interrupted: cut short by Ctrl-C: it rests on the candidates that were evaluated by then.
        planned, groups: so many groups of classes were planned for to the end, and there are.
        value: the sum of the objective: dollars per hour, GPUs, watts or grams of CO2 per hour.
        usd_per_hour: of all GPUs; None without a price. gpus: by kind.
        parts: the pools, in the order of the deployment; none where nothing is feasible.
        ways: how else the classes of one model could share, the best first; none where no model has several classes.
        short: what each group of classes that no candidate serves by itself is told, by the names of its classes.
        deployment: all parts in one, as a YAML file has it.
        together: that one simulated with all classes.
    """

    schema: str = SCHEMA
    question: Question
    rate_req_s: float
    classes: list[AskedClass]
    feasible: bool
    message: str
    interrupted: bool
    planned: int
    groups: int
    seconds: float
    value: float | None = None
    usd_per_hour: float | None = None
    gpus: dict[str, int] = msgspec.field(default_factory=dict)
    parts: list[Part] = msgspec.field(default_factory=list)
    ways: list[Way] = msgspec.field(default_factory=list)
    short: dict[str, str] = msgspec.field(default_factory=dict)
    deployment: dict[str, Any] | None = None
    together: Together | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Return every field as builtins in the order of the schema, nulls included."""
        return to_mapping(self, defaults=True)

    def to_json(self, indent: int = 2) -> str:
        """Return the schema headway.fleet/1 as JSON text."""
        return json_text(self.to_mapping(), indent)

    @property
    def missing(self) -> str:
        """What stands in the way, in a few words."""
        if self.interrupted and self.planned < self.groups:
            return f"interrupted with {self.planned} of {self.groups} groups of classes planned for"
        return "; ".join(self.short) or "all of them together take more than there is"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "fleet") -> Fleet:
        """Return the fleet that `to_json` wrote; `where` (a file name) is for error messages.

        Raises:
            BadInput: not JSON, another schema, or a field that is missing, unknown or of a wrong type.
        """
        return from_json(cls, text, SCHEMA, where)
