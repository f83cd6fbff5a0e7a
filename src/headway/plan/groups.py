"""Which classes may share replicas, and the question that each such group is: one pool group for one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import msgspec

from headway.errors import BadInput
from headway.plan.question import Question
from headway.workload import Workload

__all__ = ["Group", "groupings", "groups_of", "question_of", "tokens_per_s"]

_EVERY = 4  # classes of a model up to which all groupings are tried: 15 groups; of more, all together and each alone


class Group(NamedTuple):
    """Classes of one model, by their numbers, that share replicas."""

    model: str
    classes: tuple[int, ...]


def groups_of(question: Question, source: Workload) -> list[Group]:
    """Return every group that is planned for: of a model's classes all subsets, of many only all and each alone.

    Raises:
        BadInput: no classes, or one without a limit. UnknownName: an SLO of a class that there is not.
    """
    given = source.spec.classes
    if not given:
        raise BadInput(
            f"workload {source.name} has no classes: name them in a YAML file of a workload, as in classes: "
            "[{name: office, workload: chat, rate_req_s: 5, model: llama-3.1-8b}]"
        )
    if source.rate_req_s is None:
        raise BadInput(f"workload {source.name} has no rate to plan for: give open arrivals")
    names = [each.name for each in given]
    source.check_classes(question.slos)
    for name in names:
        slo = question.slo_of(name)
        if all(limit is None for limit in (slo.ttft_s, slo.tpot_s, slo.itl_s, slo.e2e_s)):
            raise BadInput(
                f"class {name} has no limit, so any deployment serves it: give one, as --slo {name}:ttft=500ms, or a "
                "--ttft, --tpot or --e2e for all classes without one of their own"
            )
    by_model: dict[str, list[int]] = {}
    for place, each in enumerate(given):
        by_model.setdefault(each.model or question.model, []).append(place)
    return [Group(model, each) for model, members in by_model.items() for each in _subsets(members)]


def _subsets(members: Sequence[int]) -> Iterator[tuple[int, ...]]:
    sizes = range(1, len(members) + 1) if len(members) <= _EVERY else (1, len(members))
    for size in reversed(sizes):
        yield from combinations(members, size)


def groupings(groups: Sequence[Group], model: str) -> list[list[int]]:
    """Return every way to put each class of a model into one of the groups, by the groups' places; fewest first."""
    own = [place for place, group in enumerate(groups) if group.model == model]
    every = {member for place in own for member in groups[place].classes}

    def ways(left: set[int]) -> Iterator[list[int]]:
        if not left:
            yield []
            return
        first = min(left)
        for place in own:
            members = set(groups[place].classes)
            if first in members and members <= left:
                yield from ([place, *rest] for rest in ways(left - members))

    return sorted(ways(every), key=lambda way: (len(way), way))


def question_of(question: Question, source: Workload, group: Group) -> Question:
    """Return the question of a group: that of its model and its classes' requests, on all GPUs."""
    spec, rate_req_s = source.spec, source.rate_req_s or 0.0
    given = tuple(spec.classes[i] for i in group.classes)
    if spec.mixed:
        rate_req_s = sum(each.rate_req_s or 0.0 for each in given)
        own = source.part(group.classes[0]).spec if len(given) == 1 else msgspec.structs.replace(spec, classes=given)
    else:
        rate_req_s *= sum(each.share for each in given) / sum(each.share for each in spec.classes)
        own = msgspec.structs.replace(spec, classes=given)
    slos = {each.name: question.slo_of(each.name) for each in given}
    return msgspec.structs.replace(
        question,
        model=group.model,
        workload=own,
        rate_req_s=rate_req_s,
        slo=next(iter(slos.values())) if len(slos) == 1 else question.slo,
        slos=slos if len(slos) > 1 else {},
    )


def tokens_per_s(source: Workload, group: Group) -> float:
    """Output tokens per second of a group's requests."""
    classes = source.spec.classes
    if source.spec.mixed:
        parts = [source.part(i) for i in group.classes]
        return sum((part.rate_req_s or 0.0) * part.mean_output_tokens for part in parts)
    share = sum(classes[i].share for i in group.classes) / sum(each.share for each in classes)
    return share * (source.rate_req_s or 0.0) * source.mean_output_tokens
