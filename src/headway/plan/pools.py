"""`fleet`: several classes and models on one stock of GPUs: which classes share replicas, and what each pool is."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from headway.errors import BadInput
from headway.plan import fleet_words as words
from headway.plan.answer import Candidate, Plan
from headway.plan.classes import long_requests
from headway.plan.crew import Workforce, muster
from headway.plan.curves import Looker, with_curves
from headway.plan.fleet_answer import AskedClass, Fleet, Part, Together, Way
from headway.plan.groups import Group, groupings, groups_of, question_of, tokens_per_s
from headway.plan.joined import Share, joined
from headway.plan.question import Question
from headway.plan.rounds import side_by_side
from headway.plan.run import Planning, confirmed
from headway.plan.stock import Choice, both, cheapest, unbeaten
from headway.sim import CtrlC, Deployment, simulate
from headway.specs import check_argument, from_mapping, to_mapping
from headway.workload import Workload, workload

__all__ = ["fleet"]

_ADD_UP = ("cost", "gpus", "energy", "carbon")
_APART = 1000  # the seed of the run of all parts together, from the question's: no plan has used it


def fleet(
    question: Question,
    *,
    workers: Workforce = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fleet:
    """Return the pools that serve all classes of a workload, each within its own SLO, at the least objective in all.

    Classes of one model may share replicas or have some of their own; classes of different models cannot share. Every
    group of classes that may share is planned for by itself, as `plan` does: so a class alone has the very plan of its
    own question. Of these plans' candidates one is chosen for each group, exactly, within the GPUs and dollars that
    there are; those chosen are confirmed on further seeds. Ctrl-C returns what the candidates known by then allow.

    Args:
        question: its workload has classes; `model` is that of classes that name none. `slos` has what each must meet,
            `slo` holds for the others. GPUs, dollars and watts are for all pools together, everything else for each.
        workers: processes to use, or a `RayCluster`; the answer does not depend on it. Default: one per core.
        progress: called with evaluations done and planned so far, of all groups; more are planned as contenders emerge.

    Raises:
        BadInput: an argument of another type, no classes, a class without a limit, an objective that does not add up
            over pools, or as `plan`.
        UnknownName: an SLO of a class that there is not, or as `plan`.
    """
    check_argument("question", question, Question, 'Question(model="llama-3.1-8b", gpu="h100-sxm", ...)')
    started_s = time.perf_counter()
    if question.objective not in _ADD_UP:
        raise BadInput(
            f"objective {question.objective} against classes that may have pools of their own: it does not add up over "
            f"pools; take {', '.join(_ADD_UP)}, or plan for one pool that all classes share (--together)"
        )
    if question.front_named:
        raise BadInput(
            f"front {','.join(question.front)} against classes that may have pools of their own: one choice of pools "
            "is the answer, and no front is made; leave it out, or plan for one pool that all classes share "
            "(--together)"
        )
    source = workload(question.workload, skip_bad=question.skip_bad)
    source = source if question.rate_req_s is None else source.at_rate(question.rate_req_s)
    search = _Search(question, source, groups_of(question, source))
    with CtrlC() as ctrl_c:
        try:
            for group in search.groups:
                search.begun.append(Planning(question_of(question, source, group)))
            for place in side_by_side(search.begun, workers, progress):
                search.add(place, search.begun[place].answer(search.begun[place].beyond(), started_s))
            best = search.settled()
            made = search.answer(best, search.ways(), search.together(best))
            ctrl_c.hold()
        except KeyboardInterrupt:
            ctrl_c.hold()
            done = len(search.plans)
            for place, each in enumerate(search.begun):
                if place not in search.plans:
                    search.add(place, each.answer(None, started_s))
            made = search.answer(search.best(), [], None, interrupted_after=done)
    parts = made.parts if made.interrupted else [search.with_curves(part, workers) for part in made.parts]
    return msgspec.structs.replace(made, parts=parts, seconds=time.perf_counter() - started_s)


class _Search:
    """The choice of a candidate for every group, from the plans that are known."""

    def __init__(self, question: Question, source: Workload, groups: list[Group]) -> None:
        self.question, self.source, self.groups = question, source, groups
        self.names = [each.name for each in source.spec.classes]
        self.models = list(dict.fromkeys(group.model for group in groups))
        self.supply = _supply(question)
        self.begun: list[Planning] = []
        self.plans: dict[int, Plan] = {}
        self.meeting: dict[int, list[Candidate]] = {}
        self.sure: dict[tuple[int, int], Candidate] = {}

    def add(self, place: int, plan: Plan) -> None:
        """Take in the plan of a group."""
        self.plans[place] = plan
        self.meeting[place] = [each for each in plan.ranked if each.meets]

    def best(self, fixed: list[int] | None = None) -> Choice | None:
        """Return the best choice within the supply; `fixed` are the groups of a model whose grouping is given."""
        return cheapest([self._of_model(model, fixed or []) for model in self.models], self.supply)

    def settled(self, fixed: list[int] | None = None) -> Choice | None:
        """Return the best choice all of whose candidates are confirmed: who fails makes room for the next."""
        while (best := self.best(fixed)) is not None:
            doubtful = [pick for pick in best.picks if pick not in self.sure]
            if not doubtful:
                return best
            for place, at in doubtful:
                self.sure[place, at] = confirmed(self.plans[place], self.meeting[place][at])
        return None

    def _of_model(self, model: str, fixed: list[int]) -> list[Choice]:
        """The unbeaten choices for a model's classes, over all groupings."""
        mine = [place for place in fixed if self.groups[place].model == model]
        found: list[Choice] = []
        for grouping in [mine] if mine else groupings(self.groups, model):
            sums = [Choice(0.0, tuple(0.0 for _ in self.supply), ())]
            for place in grouping:
                sums = both(sums, self._of_group(place), self.supply)
            found += sums
        return unbeaten(found)

    def _of_group(self, place: int) -> list[Choice]:
        """The unbeaten candidates of a group, less those that further seeds did not confirm."""
        return unbeaten(
            Choice(self._value(place, each), self._used(each), ((place, at),))
            for at, each in enumerate(self.meeting.get(place, []))
            if (place, at) not in self.sure or self.sure[place, at].meets
        )

    def _value(self, place: int, candidate: Candidate) -> float:
        """What of the objective adds up: dollars per hour, GPUs, watts, grams of CO2 per hour."""
        objective = self.question.known(self.question.objective)
        if objective in ("cost", "gpus"):
            return float(candidate.gpus) if objective == "gpus" else candidate.usd_per_hour or 0.0
        tokens_s = tokens_per_s(self.source, self.groups[place])
        if objective == "energy":
            return tokens_s * (candidate.joules_per_output_token or 0.0)
        grams = candidate.carbon_g_per_million_output_tokens, candidate.embodied_g_per_million_output_tokens
        return tokens_s * 3600 / 1e6 * sum(each or 0.0 for each in grams)

    def _used(self, candidate: Candidate) -> tuple[float, ...]:
        """What a candidate takes of each supply."""
        question = self.question
        counts, watts, racks = gpus_of(candidate), 0.0, dict.fromkeys(question.stock, 0.0)
        for pool in from_mapping(Deployment, candidate.deployment, candidate.name).pools:
            gpus, each_watts = pool.count * pool.replica.gpus, question.watts(pool.replica.gpu, pool.replica.cap_watts)
            watts += gpus * each_watts
            racks[pool.replica.gpu] += gpus / max(1, question.powered(pool.replica.gpu, each_watts))
        each = [float(counts.get(kind, 0)) for kind in question.stock]
        return (*each, sum(each), candidate.usd_per_hour or 0.0, watts, *racks.values())

    def ways(self) -> list[Way]:
        """Return what every grouping of a model's classes comes to with the best of all else, the best first."""
        found = []
        for model in self.models:
            every = groupings(self.groups, model)
            if len(every) < 2:
                continue
            own = [self._way(model, grouping, self.settled(grouping)) for grouping in every]
            found += sorted(own, key=lambda way: (way.value is None, way.value or 0.0, len(way.pools)))
        return found

    def _way(self, model: str, grouping: list[int], choice: Choice | None) -> Way:
        pools = [self._named(place) for place in grouping]
        if choice is None:
            short = [place for place in grouping if not self.plans[place].feasible]
            why = f"{' and '.join(pools[grouping.index(short[0])])}: {self.plans[short[0]].message}" if short else ""
            return Way(model=model, pools=pools, why=why or f"takes more than {words.supply(self.question)}")
        return Way(
            model=model, pools=pools, value=choice.value, usd_per_hour=self._usd(choice), gpus=self._gpus(choice)
        )

    def _named(self, place: int) -> list[str]:
        return [self.names[i] for i in self.groups[place].classes]

    def _candidate(self, pick: tuple[int, int]) -> Candidate:
        return self.sure.get(pick) or self.meeting[pick[0]][pick[1]]

    def _usd(self, choice: Choice) -> float | None:
        usd = [self._candidate(pick).usd_per_hour for pick in choice.picks]
        return None if None in usd else sum(each or 0.0 for each in usd)

    def _gpus(self, choice: Choice) -> dict[str, int]:
        counts = sum((gpus_of(self._candidate(pick)) for pick in choice.picks), Counter[str]())
        return {kind: counts[kind] for kind in self.question.stock if counts[kind]}

    def parts(self, choice: Choice) -> list[Part]:
        """Return the pools of a choice, those of one model next to each other, in the order of their classes."""
        groups = Counter(self.groups[place].model for place, _ in choice.picks)
        found = []
        for place, at in sorted(choice.picks, key=lambda pick: self._order(pick[0])):
            model, classes = self.groups[place].model, self._named(place)
            serves = f"{model}-{'-'.join(classes)}" if groups[model] > 1 else model
            plan = self.plans[place]
            found.append(
                Part(
                    model=model, classes=classes, serves=serves, rate_req_s=plan.rate_req_s,
                    candidate=self._candidate((place, at)), plan=plan,
                )
            )  # fmt: skip
        return found

    def _order(self, place: int) -> tuple[int, int]:
        return self.models.index(self.groups[place].model), self.groups[place].classes[0]

    def with_curves(self, part: Part, workers: Workforce) -> Part:
        """Return a part with the curves of the candidate taken and of its plan's first others."""
        begun = next(self.begun[place] for place, plan in self.plans.items() if plan is part.plan)
        seen = with_curves(part.taken, muster(Looker, begun.context, workers))
        plan = msgspec.structs.replace(part.plan, curves=seen.curves, course=seen.course)
        return msgspec.structs.replace(part, plan=plan)

    def deployment(self, parts: list[Part]) -> Deployment:
        """Return all parts in one."""
        shares = [
            Share(
                part.serves,
                tuple(self.names.index(name) for name in part.classes),
                from_mapping(Deployment, part.candidate.deployment, part.candidate.name),
            )
            for part in parts
        ]
        asks = {i: each.model for i, each in enumerate(self.source.spec.classes)}
        return joined(self.question, shares, asks, " | ".join(part.candidate.name for part in parts))

    def together(self, choice: Choice | None) -> Together | None:
        """Return what the deployment of a choice does when all classes come to it, on a seed of its own.

        Raises:
            KeyboardInterrupt: meanwhile.
        """
        if choice is None:
            return None
        asked = [self.question.slo_of(name) for name in self.names]
        slos = {i: self.question.aimed(slo) for i, slo in enumerate(asked)}
        rate_req_s, tokens = self.source.rate_req_s or 0.0, self.source.mean_output_tokens
        requests = self.question.requests or long_requests(tuple(asked), rate_req_s, tokens)
        source, seed = self.source.densest(requests).cut(requests), self.question.seed + _APART
        result = simulate(self.deployment(self.parts(choice)), source, slo=slos, seed=seed)
        if "stopped" in result.provenance:
            raise KeyboardInterrupt
        by_class = {self.names[int(number)]: each for number, each in result.slo.by_class.items()}
        return Together(requests=source.requests, seed=seed, by_class=by_class)

    def answer(
        self, best: Choice | None, ways: list[Way], together: Together | None, *, interrupted_after: int | None = None
    ) -> Fleet:
        """Return the answer that a choice is; where it was interrupted, after so many groups were done with."""
        parts = [] if best is None else self.parts(best)
        made = Fleet(
            question=self.question,
            rate_req_s=self.source.rate_req_s or 0.0,
            classes=self._asked(),
            feasible=best is not None,
            message="",
            interrupted=interrupted_after is not None,
            planned=len(self.plans) if interrupted_after is None else interrupted_after,
            groups=len(self.groups),
            seconds=0.0,
            value=None if best is None else best.value,
            usd_per_hour=None if best is None else self._usd(best),
            gpus={} if best is None else self._gpus(best),
            parts=parts,
            ways=ways,
            short={
                " and ".join(self._named(place)): plan.message
                for place, plan in sorted(self.plans.items())
                if not plan.feasible and not plan.interrupted
            },
            deployment=None if best is None else to_mapping(self.deployment(parts)),
            together=together,
        )
        return msgspec.structs.replace(made, message=words.message(made, self._least() if best is None else None))

    def _asked(self) -> list[AskedClass]:
        given, rate_req_s = self.source.spec.classes, self.source.rate_req_s or 0.0
        total = sum(each.share for each in given)
        return [
            AskedClass(
                name=each.name, model=each.model or self.question.model, slo=self.question.slo_of(each.name),
                rate_req_s=each.rate_req_s or rate_req_s * each.share / total,
                priority=each.priority, deadline_s=each.deadline_s,
            )
            for each in given
        ]  # fmt: skip

    def _least(self) -> dict[str, int] | None:
        """The GPUs of the best choice if there were any number of them; None where that does not help either."""
        supply, self.supply = self.supply, tuple(math.inf for _ in self.supply)
        try:
            best = self.best()
        finally:
            self.supply = supply
        return None if best is None else self._gpus(best)


def _supply(question: Question) -> tuple[float, ...]:
    """What there is: GPUs of each kind and in all, dollars per hour, watts, and the racks' power for each kind."""
    usd, watts = question.max_usd_per_hour, question.max_watts
    racks = [math.inf if question.watts_per_rack is None else 1.0 for _ in question.stock]
    most = math.inf if usd is None else usd, math.inf if watts is None else watts
    return (*map(float, question.stock.values()), float(question.most), *most, *racks)


def gpus_of(candidate: Candidate) -> Counter[str]:
    """Return the GPUs of a candidate, by kind."""
    return from_mapping(Deployment, candidate.deployment, candidate.name).gpus_by_kind
