"""Tells an observer of everything that a brain is told, and of what it answers.

An event is a public method of the brain that takes `now` first and returns answers, or nothing. They are found by their
signature, so that none is forgotten: whatever changes a brain's decisions is such a method, or cannot be replayed.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from headway.gateway.brain import Brain
from headway.gateway.events import Answer

# (now, event, its arguments, its answers)
Observer = Callable[[float, str, tuple[Any, ...], list[Answer]], None]


class Event(typing.NamedTuple):
    """One kind of event: the parameters after `now` by name with their types, and the defaults of the last ones."""

    types: dict[str, Any]
    defaults: dict[str, Any]


def events_of(brain: type[Brain] = Brain) -> dict[str, Event]:
    """Return the events by name."""
    found = {}
    for name, method in inspect.getmembers(brain, inspect.isroutine):  # compiled ones are no functions of Python's
        if name.startswith("_"):
            continue
        parameters = list(inspect.signature(method).parameters.values())[1:]
        if not parameters or parameters[0].name != "now":
            continue
        hints = typing.get_type_hints(method)
        if hints.get("return") in (list[Answer], type(None)):
            defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
            found[name] = Event({each.name: hints[each.name] for each in parameters[1:]}, defaults)
    return found


def watch(brain: Brain, observer: Observer) -> None:
    """Let the observer hear of every event from now on, after the brain has answered it.

    What the brain calls of itself while it handles an event is part of that event and not told.
    """
    busy = False

    def told(name: str, event: Event, method: Callable[..., list[Answer] | None]) -> Callable[..., list[Answer] | None]:
        names = list(event.types)

        @functools.wraps(method)
        def handle(now: float, *args: Any, **named: Any) -> list[Answer] | None:
            nonlocal busy
            if busy:
                return method(now, *args, **named)
            busy = True
            try:
                answers = method(now, *args, **named)
            finally:
                busy = False
            if len(args) < len(names):
                rest = names[len(args) :]
                args += tuple(named[each] if each in named else event.defaults[each] for each in rest)
            observer(now, name, args, answers or [])
            return answers

        return handle

    for name, event in events_of(type(brain)).items():
        setattr(brain, name, told(name, event, getattr(brain, name)))
