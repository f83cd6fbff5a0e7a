"""Where an answer goes: a table on stdout, JSON and reports into files, notes and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

import headway
from headway.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPED_COLUMNS = 120  # of sentences, where neither a terminal nor COLUMNS says how wide it is; tables take their own
BAR_AFTER_S = 1.0


class Terminal:
    """Prints for one run of a verb: where data goes to stdout (a file named ``-``), nothing else does."""

    def __init__(self, *data_to: str | None, quiet: bool = False, json_notes: bool = False) -> None:
        if data_to.count("-") > 1:
            raise BadInput("only one answer can go to stdout (-): give the others a file")
        self.stdout_taken = "-" in data_to
        self.quiet = quiet
        self.json_notes = json_notes
        self.kept: list[str] = []

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        self.say_kept()
        if self.json_notes:
            now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            text = json.dumps({"time": now, "level": "info", "event": "note", "message": text})
        if not self.quiet:
            click.echo(text, err=True)

    def keep(self, text: str) -> None:
        """Say something before the answer, unless there is none: it would stand between the user and the error."""
        self.kept.append(text)

    def say_kept(self) -> None:
        """Say what was kept."""
        kept, self.kept = self.kept, []
        for text in kept:
            self.note(text)

    def stdout_for_data(self) -> AbstractContextManager[object]:
        """Return a context in which what others print, as a user's policy may, does not get between the data."""
        return redirect_stdout(sys.stderr) if self.stdout_taken else nullcontext()

    def show(self, *parts: RenderableType) -> None:
        """Print the answer for a reader."""
        self.say_kept()
        if self.quiet:
            return
        from headway.report.sheet import unbound

        console = _console(stderr=self.stdout_taken)
        for part in parts:
            if _unmeasured(console):
                unbound(part)
            console.print(part, crop=False)

    def write(self, path: str, text: str) -> None:
        """Write a file and say so; ``-`` is stdout.

        Raises:
            BadInput: it cannot be written.
        """
        self.say_kept()
        if path == "-":
            click.echo(text, nl=False)
            return
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
        self.note(f"wrote {path}")

    def bar(self, doing: str) -> Bar:
        """Return a progress bar; it shows on a terminal, once the work takes more than a second."""
        return Bar(doing, shown=not self.quiet and sys.stderr.isatty(), slow=self.say_kept)


class Bar:
    """A context manager whose `tell(done, total)` moves a progress bar on stderr; `slow` is called when it appears."""

    def __init__(self, doing: str, shown: bool, slow: Callable[[], None]) -> None:
        self.doing = doing
        self.shown = shown
        self.slow = slow
        self.started_s = time.monotonic()
        self.progress: Any = None
        self.task: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def say(self, doing: str) -> None:
        """Say what is being done from now on."""
        self.doing = doing
        if self.progress is not None:
            self.progress.update(self.task, description=doing)

    def tell(self, done: int, total: int | None) -> None:
        """Show `done` of `total` (None: unknown)."""
        if self.progress is None:
            if time.monotonic() - self.started_s < BAR_AFTER_S:
                return
            self.slow()
            if not self.shown:
                return
            from rich.progress import Progress

            self.progress = Progress(console=_console(stderr=True), transient=True)
            self.task = self.progress.add_task(self.doing)
            self.progress.start()
        self.progress.update(self.task, completed=done, total=total)


def check_files(html_to: str | None, *others: str | None) -> None:
    """Refuse, before the work, a file that could not be written after it.

    Raises:
        BadInput: its folder does not exist, or it is a folder.
        MissingExtra: a report is asked for, and a library it needs is not installed.
    """
    for path in (html_to, *others):
        if path is None or path == "-":
            continue
        if Path(path).is_dir():
            raise BadInput(f"{path} is a folder: name a file in it")
        if not Path(path).absolute().parent.is_dir():
            raise BadInput(f"{path}: there is no folder {Path(path).parent}; make it, or name another file")
    if html_to is not None:
        from headway.report import check_html

        check_html()


def note_interpreted(terminal: Terminal) -> None:
    """Say in one line when the core runs uncompiled."""
    if headway.interpreted_modules():
        terminal.keep("the core runs interpreted: same results, slower; install with a C compiler to compile it")


def _unmeasured(console: Console) -> bool:
    """Whether nothing says how wide the output is: it goes into a pipe or a file."""
    said = os.environ.get("COLUMNS", "")
    return not console.is_terminal and not (said.isdecimal() and int(said))


def _console(stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if _unmeasured(console):
        console.width = PIPED_COLUMNS
    return console
