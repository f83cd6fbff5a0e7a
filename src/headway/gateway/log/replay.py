"""Decides again: a new brain is told the events of a log, and its answers are held against those that were given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headway.gateway.brain import Brain
from headway.gateway.events import Answer
from headway.gateway.log.reader import Happened, Run
from headway.gateway.log.state import restore
from headway.gateway.watch import events_of
from headway.specs import Spec


class Difference(Spec, frozen=True, kw_only=True):
    """The first event whose answers are not the same, in words."""

    serial: int
    now_s: float
    event: str
    logged: list[str]
    replayed: list[str]


class Replayed(Spec, frozen=True, kw_only=True):
    """What came of a run decided again: `decisions` were given, of which `equal` are the same to the bit.

    `missing` events are not in the log; `skipped` ones came after such a place and before the next kept state, so that
    what the brain knew then is not known. `ended`: the log has the mark of its end.
    """

    run: str
    started: str
    version: str
    events: int
    decisions: int
    equal: int
    missing: int
    skipped: int
    ended: bool
    first: Difference | None


def replay(run: Run, brain: Brain, tell: Callable[[int], None] = lambda events: None, states: bool = True) -> Replayed:
    """Tell a brain that has just been made what the log's brain was told, and compare.

    It begins with the state that the log begins with: an earlier process may have left budgets that are used up. Where
    events are missing it goes on from the next state that the log keeps. Without `states`, as for a brain of another
    deployment, it begins with nothing and ends where events are missing. `tell` is called with the events so far.
    """
    events = decisions = equal = missing = skipped = 0
    first: Difference | None = None
    unknown = False
    known = events_of(type(brain))
    for happened in run.events():
        missing += happened.missing
        unknown = unknown or happened.missing > 0
        if happened.what == "state" and states and (unknown or not events):
            restore(brain, happened.values[0].data)
            unknown = False
        if happened.what not in known:
            continue
        if unknown:
            skipped += 1
            continue
        named = dict(zip(known[happened.what].types, happened.values, strict=True))
        answers = getattr(brain, happened.what)(happened.now_s, **named) or []
        events += 1
        decisions += max(len(happened.answers), len(answers))
        same = sum(a == b for a, b in zip(happened.answers, answers, strict=False))
        equal += same
        if first is None and same < max(len(happened.answers), len(answers)):
            first = _difference(happened, answers)
        if events % 1000 == 0:
            tell(events)
    header = run.header
    return Replayed(
        run=header.run, started=header.started, version=header.version, events=events, decisions=decisions,
        equal=equal, missing=missing, skipped=skipped, ended=run.closed, first=first,
    )  # fmt: skip


def _difference(happened: Happened, answers: list[Answer]) -> Difference:
    named = next((getattr(value, "id", value) for value in happened.values if _has_id(value)), "")
    return Difference(
        serial=happened.serial, now_s=happened.now_s, event=f"{happened.what} {named}".strip(),
        logged=[str(answer) for answer in happened.answers], replayed=[str(answer) for answer in answers],
    )  # fmt: skip


def _has_id(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "id")
