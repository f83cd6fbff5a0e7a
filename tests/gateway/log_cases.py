"""Lives that are logged, and logs that are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brain_cases import Life

from headway.gateway.events import Arrival
from headway.gateway.log.form import Header
from headway.gateway.log.reader import Run, runs
from headway.gateway.log.writer import LogWriter
from headway.gateway.spec import LogSpec

NAMES = {"tenant": ["a", "b"], "slo_class": ["chat", "batch"]}


class OneLife(Life):
    """A random life in which the decision process is not killed: a log's run is one process.

    What a host tells of an earlier process, and of the calendar, happens in the midst of it, too.
    """

    def happen(self) -> list[Any]:
        what = self.rng.random()
        if what < 0.03:
            return self.brain.adopt(self.now, self.rng.randrange(len(self.brain.books)), self.rng.randrange(6))
        if what < 0.04:
            return self.brain.beside(self.now, self.rng.randrange(len(self.brain.books)), self.rng.randrange(4))
        if what < 0.05:
            self.epoch_s += self.rng.choice([0.0, 2.0, 5e4])  # the clock is set, never back
            return self.brain.dated(self.now, self.epoch_s + self.now)
        return super().happen()

    def kill(self) -> list[Any]:
        return []


def header(run: str = "0123abcd", **more: Any) -> Header:
    about = {"version": "1", "started": "20260101T000000", "seed": 0, "names": NAMES, "deployment": {}}
    return Header(run=run, **(about | more))


def writer(folder: Path, limits: dict[str, Any] | None = None, **more: Any) -> LogWriter:
    return LogWriter(LogSpec(folder=str(folder), **(limits or {})), header(), **more)


def arrival(i: int, **facts: Any) -> Arrival:
    return Arrival(**{"id": f"r{i}", "tenant": 0, "slo_class": 0, "prompt_bytes": 400, **facts})


def fill(log: LogWriter, first: int, count: int, **facts: Any) -> None:
    """Put arrivals into the queue."""
    for i in range(first, first + count):
        log.put(float(i), "arrive", (arrival(i, **facts),))


def logged_life(folder: Path, seed: int, events: int = 60, **more: Any) -> tuple[OneLife, Run]:
    """A random life, and its log."""
    life = OneLife(seed)
    log = writer(folder / str(seed), **more)
    log.follow(life.brain)
    life.run(events)
    log.close(life.now)
    (run,) = runs(folder / str(seed))
    return life, run


def ids(run: Run) -> list[str]:
    return [event.values[0].id for event in run.events() if event.what == "arrive"]
