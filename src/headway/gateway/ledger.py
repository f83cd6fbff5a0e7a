"""What tenants have used of their limits, kept in SQLite through restarts.

Serving never waits for the disk: the process of decisions notes which tenants' figures have changed, and they are
written behind, `FLUSH_S` apart, one row for each limit of a tenant, so that what is still to be written is bounded.
What requests under way may use at most counts as spent. So a process that is killed forgets what its tenants asked for
in the last `FLUSH_S`, and otherwise errs against the tenant. A disk that takes nothing is told, counted, tried again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from headway.gateway.brain import Brain
from headway.gateway.tenants import Usage

FLUSH_S = 0.2
PATIENCE_S = 1.0  # for another process that has the file locked
_TABLE = """CREATE TABLE IF NOT EXISTS usage (
    tenant TEXT NOT NULL, "limit" TEXT NOT NULL, value REAL NOT NULL, at_s REAL NOT NULL, PRIMARY KEY (tenant, "limit")
) WITHOUT ROWID"""


class Ledger:
    """One file. Used by one thread at a time; `read` and `write` may raise `sqlite3.Error` or `OSError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection: sqlite3.Connection | None = None

    def read(self) -> list[Usage]:
        """Return all that is kept."""
        rows = self._open().execute('SELECT tenant, "limit", value, at_s FROM usage').fetchall()
        return [Usage(*row) for row in rows]

    def write(self, rows: Iterable[Usage]) -> None:
        """Keep these, all or none."""
        connection = self._open()
        with connection:
            connection.executemany(
                "INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?)",
                [(row.tenant, row.limit, row.value, row.at_s) for row in rows],
            )

    def close(self) -> None:
        """Let go of the file."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

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


class Keeper:
    """Reads a ledger into a brain, and writes what the brain has to say behind it, in a thread of its own."""

    def __init__(self, ledger: Ledger, brain: Brain, say: Callable[[str], None] = lambda text: None) -> None:
        self.ledger = ledger
        self.brain = brain
        self.say = say
        self.thread = ThreadPoolExecutor(1, "ledger")
        self.restored = False
        self.pending: dict[tuple[str, str], Usage] = {}
        self.errors = 0
        self.failing = ""

    async def run(self) -> None:
        """Flush again and again."""
        while True:
            await self.flush()
            await asyncio.sleep(FLUSH_S)

    async def close(self) -> None:
        """Flush once more, and let go of the file."""
        await self.flush()
        await self._apart(self.ledger.close)
        self.thread.shutdown(wait=False)

    async def flush(self) -> None:
        """Write what has changed; nothing is written over what could not be read yet."""
        try:
            if not self.restored:
                self.brain.restore(await self._apart(self.ledger.read))
                self.restored = True
            self.pending |= {(usage.tenant, usage.limit): usage for usage in self.brain.unsaved()}
            if self.pending:
                await self._apart(self.ledger.write, list(self.pending.values()))
        except (sqlite3.Error, OSError) as error:
            await self._failed(error)
            return
        self.pending.clear()
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
            "unwritten": len(self.pending) + len(self.brain.changed),
        }
