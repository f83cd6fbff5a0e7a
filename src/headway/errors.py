"""Typed errors: what came, what is allowed, what to try next.

Every error a user can cause derives from `HeadwayError`; the command line prints its text without a traceback
and exits with its `exit_code` (1 no feasible answer, 2 bad input).
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

__all__ = ["BadInput", "DoesNotFit", "HeadwayError", "MissingExtra", "UnknownName", "nearest"]

_LISTED = {"gpu": "gpus", "model": "models", "policy": "policies", "workload": "workloads"}
_SHOWN_MAX = 12  # a longer list of allowed names is cut: nobody reads it


class HeadwayError(Exception):
    """Any error Headway reports by design."""

    exit_code = 2

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process hands its error back by pickle, which would call constructors with the text alone.
        return _restore, (type(self), self.args), vars(self)


class BadInput(HeadwayError, ValueError):
    """Something the user gave is wrong; also a `ValueError`, so that spec constructors may raise it."""


class UnknownName(BadInput):
    """A name that is not in a catalogue: offers the nearest ones and where to see all."""

    def __init__(self, kind: str, came: object, allowed: Iterable[str]) -> None:
        self.kind, self.came, self.allowed = kind, str(came), sorted(allowed)
        self.nearest = nearest(self.came, self.allowed)
        parts = [f"nearest: {', '.join(self.nearest)}"] if self.nearest else []
        catalogue = _LISTED.get(kind.lower().split()[-1])
        if catalogue:
            parts.append(f"`headway list {catalogue}` shows all")
        elif not parts or len(self.allowed) <= _SHOWN_MAX:
            cut = ", ..." if len(self.allowed) > _SHOWN_MAX else ""
            parts.append(f"allowed: {', '.join(self.allowed[:_SHOWN_MAX]) or 'none'}{cut}")
        super().__init__(f"unknown {kind} {self.came!r}: {'; '.join(parts)}")


class MissingExtra(BadInput):
    """A feature whose optional dependency is not installed, with the command that installs it."""

    def __init__(self, feature: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{feature}: pip install 'headway[{extra}]'")


class DoesNotFit(HeadwayError):
    """A model that does not fit into the memory it is given: no feasible answer rather than bad input.

    `lack` says what is missing; the text adds `remedy`, what would do.
    """

    exit_code = 1

    def __init__(self, lack: str, *, needed_bytes: int, available_bytes: int, remedy: str = "") -> None:
        self.needed_bytes, self.available_bytes, self.lack = needed_bytes, available_bytes, lack
        super().__init__(f"{lack}; {remedy}" if remedy else lack)


def _restore(type_: type[HeadwayError], args: tuple[Any, ...]) -> HeadwayError:
    error = type_.__new__(type_, *args)
    error.args = args
    return error


def nearest(came: str, allowed: Iterable[str], n: int = 3) -> list[str]:
    """Return at most `n` of the allowed names that resemble `came`, the most similar first.

    Case and the separators ``-_. `` are ignored. Names that start with or contain what came push out those
    that only share letters with it.
    """

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c not in "-_. ")

    wanted = plain(came)
    if not wanted:
        return []
    scored = []
    for name in sorted(set(allowed)):
        have = plain(name)
        score = SequenceMatcher(None, wanted, have).ratio()
        if len(wanted) > 1 and wanted in have:
            score += 2.0 if have.startswith(wanted) else 1.0
        if score >= 0.5:
            scored.append((-score, name))
    best = sorted(scored)
    contained = [entry for entry in best if entry[0] < -1.0]
    return [name for _, name in (contained or best)[:n]]
