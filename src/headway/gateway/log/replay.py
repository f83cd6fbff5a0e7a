"""Decides again: a new brain is told the events of a log, and its answers are held against those that were given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headway.gateway.brain import Brain
from headway.gateway.events import Answer
from headway.gateway.log.reader import Happened, Run
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

    `incomplete` says where and why it stopped before the log's end, or what the log lacks; "" where it is whole.
    """

    run: str
    started: str
    version: str
    events: int
    decisions: int
    equal: int
    incomplete: str
    first: Difference | None


def replay(run: Run, brain: Brain, tell: Callable[[int], None] = lambda events: None) -> Replayed:
    """Tell a brain that has just been made what the log's brain was told, and compare.

    It stops where events are missing: what the brain would know is not known from there on. `tell` is called with the
    events so far, now and then.
    """
    events = decisions = equal = 0
    first: Difference | None = None
    incomplete = ""
    known = events_of(type(brain))
    for happened in run.events():
        if happened.missing:
            when = f"{happened.now_s:.3f} s, where the log {'goes on' if events else 'begins'}"
            incomplete = f"{happened.missing:,} events are missing before {when}"
            break
        if happened.what not in known:
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
    if not incomplete and not run.closed:
        incomplete = "the log has no end: the process still runs, or was killed"
    header = run.header
    return Replayed(
        run=header.run, started=header.started, version=header.version, events=events, decisions=decisions,
        equal=equal, incomplete=incomplete, first=first,
    )  # fmt: skip


def _difference(happened: Happened, answers: list[Answer]) -> Difference:
    named = next((getattr(value, "id", value) for value in happened.values if _has_id(value)), "")
    return Difference(
        serial=happened.serial, now_s=happened.now_s, event=f"{happened.what} {named}".strip(),
        logged=[str(answer) for answer in happened.answers], replayed=[str(answer) for answer in answers],
    )  # fmt: skip


def _has_id(value: Any) -> bool:
    return isinstance(value, str) or hasattr(value, "id")
