"""What if: the same requests on a deployment as it is and otherwise, and whether what differs is more than chance.

Two things may make a difference that is none. The luck of the requests: both see the same ones, and intervals are those
of paired differences. And the cost model's own error: both are simulated again with steps as much longer and shorter
as the model may be off, and what turns its sign on the way is not told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, Literal, NamedTuple

import msgspec

from headway.cost import Replica
from headway.cost.stretched import stretched
from headway.cost.uncertainty import LEVELS, ranking_spread
from headway.metrics import Result, Slo
from headway.metrics.comparison import Comparison, Difference, compare
from headway.metrics.result import Uncertainty
from headway.sim import Deployment, simulate
from headway.sim.run import check_run, compiled
from headway.sim.trust import uncertainty
from headway.specs import Spec, check_argument, to_mapping
from headway.workload import Workload

__all__ = ["Case", "ModelError", "ModelInterval", "WhatIf", "whatif"]

SCHEMA = "headway.whatif/1"
Relation = Literal["shared", "related", "independent"]
Verdict = Literal["", "differs", "noise", "few", "model"]
Factors = tuple[float, float]  # of times, before and after


class Case(NamedTuple):
    """What serves, what arrives, and the limits it is judged by."""

    deployment: Deployment
    workload: Workload
    slo: Slo | dict[int, Slo] | None = None


class ModelInterval(Spec, frozen=True, kw_only=True):
    """One figure by the cost model's error: the lowest and highest before, after, and of after - before."""

    figure: str
    before: tuple[float, float]
    after: tuple[float, float]
    difference: tuple[float, float]


class ModelError(Spec, frozen=True, kw_only=True):
    """How far the cost model may be off on both sides, in `coverage` of cases.

    `relation`: "shared" where the same replicas serve, so that both sides are off alike; "related" for other layouts
    of one model, GPU and engine, whose ratio is surer than either; else "independent".
    """

    relation: Relation
    coverage: float
    step_times: tuple[Factors, Factors]
    figures: list[ModelInterval]


class WhatIf(Spec, frozen=True, kw_only=True):
    """Both results, their differences after - before, and what the cost model's error makes of them."""

    schema: str = SCHEMA
    changes: list[str]
    before: Result
    after: Result
    change: Comparison
    model: ModelError

    def verdict(self, one: Difference) -> Verdict:
        """Return whether a figure differs, or what may be the cause where it need not; "" where nothing tells.

        "few": there are too few requests for an interval of this figure.
        """
        if not one.difference or one.noise:
            return "noise" if one.noise and one.difference else ""
        if one.too_few:
            return "few"
        ends = next((each.difference for each in self.model.figures if each.figure == one.figure), None)
        if ends is not None and ends[0] <= 0.0 <= ends[1]:
            return "model"
        return "differs" if one.noise is False else ""

    def to_mapping(self) -> dict[str, Any]:
        """Return every field as builtins, the verdicts by figure and on the SLO, and results without their rows."""
        data: dict[str, Any] = {"schema": self.schema, "changes": self.changes}
        data |= {name: to_mapping(getattr(self, name), defaults=True) for name in ("change", "model")}
        sides = {"before": self.before.slo, "after": self.after.slo}
        data["slo"] = {side: {"met": slo.met, "target": slo.target} for side, slo in sides.items()}
        data["verdicts"] = {one.figure: self.verdict(one) for one in self.change.differences}
        return data | {"before": self.before.to_mapping(), "after": self.after.to_mapping()}


def whatif(
    before: Case,
    after: Case,
    changes: list[str],
    *,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> WhatIf:
    """Return both cases simulated with common random numbers, and the differences.

    Where nothing but the rate differs between the workloads, requests are still paired one by one.

    Args:
        before: as it is.
        after: otherwise.
        changes: what differs, in words, for the answer.
        seed: of every random stream of both.
        progress: called now and then with requests ended and, where known, all of all simulations.

    Raises:
        BadInput: an argument of another type, or something in a deployment or a workload that cannot be.
        DoesNotFit: a model that its GPUs cannot hold.
        KeyboardInterrupt: while it simulated.
    """
    for name, case in (("before", before), ("after", after)):
        check_argument(name, case, Case, "Case(deployment, workload, slo)")
        check_run(*case, of=f"{name}.")
    check_argument("changes", changes, list[str], '["2 replicas more"]')
    check_argument("seed", seed, int)
    errors = [uncertainty(case.deployment) for case in (before, after)]
    relation = _relation(before.deployment, after.deployment)
    times = _pairs(relation, errors, "tpot", "output_throughput")
    runs = _Runs((before, after), seed, times, progress)
    first, second = runs.run(0, 1.0), runs.run(1, 1.0)
    change = compare(first, second, before.slo, after.slo)
    if not any(one.difference for one in change.differences):  # as with a power limit that binds no step
        relation, runs.times = "shared", _pairs("shared", errors, "tpot", "output_throughput")
    pairs = [(_bare(first), _bare(second)), *((runs.run(0, a), runs.run(1, b)) for a, b in runs.times)]
    ends = [compare(*pair, before.slo, after.slo) for pair in pairs]
    joules = _pairs(relation, errors, "energy_per_token", "energy_per_token")
    found = [_by_factors(one, joules) if one.unit == "J" else _by_runs(one.figure, ends) for one in change.differences]
    return WhatIf(
        changes=changes,
        before=first,
        after=second,
        change=change,
        model=ModelError(
            relation=relation,
            coverage=errors[0].coverage,
            step_times=(errors[0].tpot, errors[1].tpot),
            figures=[one for one in found if one is not None],
        ),
    )


class _Runs:
    """Simulations of both cases, each once, as they are and by the factors; those with a factor without their rows."""

    def __init__(
        self,
        cases: tuple[Case, Case],
        seed: int,
        times: list[Factors],
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self.cases, self.seed, self.times, self.progress = cases, seed, times, progress
        self.found: dict[tuple[int, float], Result] = {}

    def run(self, side: int, factor: float) -> Result:
        """A case (0: before) with all steps `factor` times as long."""
        if (side, factor) in self.found:
            return self.found[side, factor]
        case, done = self.cases[side], len(self.found)
        each = max(one.workload.requests for one in self.cases)
        total = 2 + sum(len(set(factors)) for factors in zip(*self.times, strict=True))

        def tell(ended: int, _: int | None) -> None:
            if self.progress is not None:
                self.progress(done * each + ended, total * each)

        tables = tuple(stretched(compiled(pool.replica), factor) for pool in case.deployment.pools)
        result = simulate(
            case.deployment, case.workload, slo=case.slo, seed=self.seed, progress=tell,
            tables=None if factor == 1.0 else tables,
        )  # fmt: skip
        if "stopped" in result.provenance:
            raise KeyboardInterrupt
        self.found[side, factor] = result if factor == 1.0 else _bare(result)
        return self.found[side, factor]


def _bare(result: Result) -> Result:
    """The result without its rows: compared at once, and without intervals."""
    return msgspec.structs.replace(result, records=None)


def _relation(before: Deployment, after: Deployment) -> Relation:
    """How much of the cost model's error both sides share."""
    laws = [{_law(pool.replica) for pool in one.pools} for one in (before, after)]
    if laws[0] == laws[1]:
        return "shared"
    kinds = [{law[:3] for law in each} for each in laws]
    return "related" if kinds[0] == kinds[1] else "independent"


def _law(replica: Replica) -> tuple[Any, ...]:
    """What a replica's step law is made of."""
    engine = replica.engine
    return (
        replica.model, replica.gpu, engine.name, engine.version, engine.speculation, replica.calibration,
        replica.tp, replica.pp, replica.dp, replica.ep, replica.weights, replica.kv, replica.cap_watts,
        replica.clock_mhz,
    )  # fmt: skip


def _pairs(relation: Relation, errors: list[Uncertainty], metric: str, ratio_of: str) -> list[Factors]:
    """What both sides' figures are multiplied by at the ends of the cost model's interval.

    The error of a ratio is known of throughput and energy; that of step times is taken to be throughput's.
    """
    (low_a, high_a), (low_b, high_b) = (getattr(error, metric) for error in errors)
    if relation == "shared":
        return [(low_a, low_a), (high_a, high_a)]
    if relation == "independent":
        return list(product((low_a, high_a), (low_b, high_b)))
    level = max((error.levels[ratio_of] for error in errors), key=LEVELS.index)
    ratio = math.exp(ranking_spread(level, ratio_of))
    after = [(a, min(max(a * r, low_b), high_b)) for a, r in ((low_a, ratio), (high_a, 1 / ratio))]
    before = [(min(max(b * r, low_a), high_a), b) for b, r in ((low_b, ratio), (high_b, 1 / ratio))]
    return [*after, *before]  # the corners of what both intervals and that of the ratio leave


def _by_runs(figure: str, ends: list[Comparison]) -> ModelInterval | None:
    """The span of a figure over simulations at the ends; None where one of them lacks it."""
    seen = [one for each in ends for one in each.differences if one.figure == figure]
    if len(seen) < len(ends) or any(one.a is None or one.b is None for one in seen):
        return None
    return _spanned(figure, [(one.a or 0.0, one.b or 0.0) for one in seen])


def _by_factors(one: Difference, factors: list[Factors]) -> ModelInterval | None:
    if one.a is None or one.b is None:
        return None
    return _spanned(one.figure, [(one.a * a, one.b * b) for a, b in [(1.0, 1.0), *factors]])


def _spanned(figure: str, values: list[tuple[float, float]]) -> ModelInterval:
    before, after = zip(*values, strict=True)
    between = [b - a for a, b in values]
    return ModelInterval(
        figure=figure,
        before=(min(before), max(before)),
        after=(min(after), max(after)),
        difference=(min(between), max(between)),
    )
