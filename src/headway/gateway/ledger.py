"""What tenants have used of their limits, kept in SQLite through restarts, and shared by processes that serve at once.

Serving never waits for the disk: the decision process notes which tenants' figures have changed, and what is new of
them is added to the file `FLUSH_S` apart, one row for each limit of a tenant, so that what is still to be written is
bounded. What requests under way may use at most counts as spent. So a process that is killed forgets what its tenants
asked for in the last `FLUSH_S`, and otherwise errs against the tenant; and two processes know of each other's tenants
but for that time. A disk that takes nothing is told, counted, tried again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import structs

from headway.gateway.brain import Brain
from headway.gateway.spec import BUDGETS
from headway.gateway.tenants import Usage

FLUSH_S = 0.2
PATIENCE_S = 1.0  # for another process that has the file locked
_TABLE = """CREATE TABLE IF NOT EXISTS usage (
    tenant TEXT NOT NULL, "limit" TEXT NOT NULL, value REAL NOT NULL, at_s REAL NOT NULL, PRIMARY KEY (tenant, "limit")
) WITHOUT ROWID"""
_SET = "INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?)"
_ADD = """INSERT INTO usage VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    value = CASE WHEN excluded.at_s > at_s THEN excluded.value
                 WHEN excluded.at_s = at_s THEN value + excluded.value
                 ELSE value END,
    at_s = max(at_s, excluded.at_s)"""


class Ledger:
    """One file. Used by one thread at a time; `read` and `add` may raise `sqlite3.Error` or `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection: sqlite3.Connection | None = None
        self.version: int | None = None

    def read(self) -> list[Usage]:
        """Return all that is kept."""
        rows = self._open().execute('SELECT tenant, "limit", value, at_s FROM usage').fetchall()
        return [Usage(*row) for row in rows]

    def add(self, changes: Iterable[Usage]) -> list[Usage]:
        """Add to budgets and set the levels of rates, all or none.

        Returns all that is kept then, if another process has written since the last time; otherwise nothing.
        """
        connection = self._open()
        rows = [(each.tenant, each.limit, each.value, each.at_s) for each in changes]
        with connection:
            connection.executemany(_ADD, [row for row in rows if row[1] in BUDGETS])
            connection.executemany(_SET, [row for row in rows if row[1] not in BUDGETS])
            (version,) = connection.execute("PRAGMA data_version").fetchone()
            kept = self.read() if version != self.version else []
        self.version = version
        return kept

    def close(self) -> None:
        """Let go of the file."""
        if self.connection is not None:
            self.connection.close()
            self.connection = self.version = None

    def _open(self) -> sqlite3.Connection:
        """Writes survive the end of the process at once, and a power cut but for the last ones."""
        if self.connection is None:
            self.path.touch(mode=0o600)
            made = sqlite3.connect(self.path, timeout=PATIENCE_S)
            try:
                made.execute("PRAGMA journal_mode = WAL")
                made.execute("PRAGMA synchronous = NORMAL")
                made.execute(_TABLE)
            except sqlite3.Error:
                made.close()
                raise
            self.connection = made
        return self.connection


class Tally:
    """What this process has told a ledger of its own use, to tell what is new, and what is of others."""

    def __init__(self) -> None:
        self.told: dict[tuple[str, str], Usage] = {}

    def changes(self, usages: Iterable[Usage]) -> list[Usage]:
        """Return what a ledger must add: of budgets what is new since it was told last."""
        return [structs.replace(each, value=each.value - self._own(each)) for each in usages]

    def confirm(self, usages: Iterable[Usage]) -> None:
        """A ledger has been told these."""
        self.told |= {(each.tenant, each.limit): each for each in usages if each.limit in BUDGETS}

    def others(self, kept: Iterable[Usage], rates: bool) -> list[Usage]:
        """Return what others have used of what is kept; of rates only if asked for."""
        return [
            structs.replace(each, value=each.value - self._own(each)) for each in kept if rates or each.limit in BUDGETS
        ]

    def _own(self, usage: Usage) -> float:
        """What the ledger holds of ours in the period that `usage` is of."""
        told = self.told.get((usage.tenant, usage.limit))
        return told.value if told is not None and told.at_s == usage.at_s else 0.0


class Keeper:
    """Carries use between a brain and a ledger, in a thread of its own. `now`: the brain's time."""

    def __init__(
        self, ledger: Ledger, brain: Brain, now: Callable[[], float], say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.ledger = ledger
        self.brain = brain
        self.now = now
        self.say = say
        self.thread = ThreadPoolExecutor(1, "ledger")
        self.stop = asyncio.Event()
        self.tally = Tally()
        self.pending: dict[tuple[str, str], Usage] = {}
        self.restored = False
        self.errors = 0
        self.failing = ""

    async def run(self) -> None:
        """Flush again and again until `stop` is set, then once more, and let go of the file."""
        while not self.stop.is_set():
            await self.flush()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), FLUSH_S)
        await self.flush()
        await self._apart(self.ledger.close)
        self.thread.shutdown(wait=False)

    async def flush(self) -> None:
        """Write what has changed, and take in what others have used."""
        self.pending |= {(usage.tenant, usage.limit): usage for usage in self.brain.accounts.unsaved()}
        usages = list(self.pending.values()) if self.restored else []  # levels of rates are read before they are set
        try:
            kept = await self._apart(self.ledger.add, self.tally.changes(usages))
        except (sqlite3.Error, OSError) as error:
            await self._failed(error)
            return
        self.tally.confirm(usages)
        self.brain.elsewhere(self.now(), self.tally.others(kept, rates=not self.restored))
        if self.restored:
            self.pending.clear()
        self.restored = True
        if self.failing:
            self.failing = ""
            self.say(f"the ledger {self.ledger.path} is kept again")

    async def _failed(self, error: Exception) -> None:
        self.errors += 1
        self.brain.figures.count("headway_ledger_errors_total")
        await self._apart(self.ledger.close)
        if not self.failing:
            self.say(f"the ledger {self.ledger.path} fails, limits are kept in memory meanwhile: {error}")
        self.failing = f"{type(error).__name__}: {error}"

    async def _apart(self, call: Callable[..., Any], *given: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.thread, call, *given)

    def status(self) -> dict[str, Any]:
        """Whether what tenants have used is on the disk."""
        return {
            "path": str(self.ledger.path),
            "failing": self.failing,
            "errors": self.errors,
            "unwritten": len(self.pending) + len(self.brain.accounts.changed),
        }
