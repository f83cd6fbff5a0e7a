"""Ctrl-C between the work and its answer: it waits there, so that what is known is not lost."""

from __future__ import annotations

import math
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class CtrlC:
    """A context in which the first `spare` Ctrl-C are only noted in `came`, and the next is `KeyboardInterrupt`, once.

    Whoever has only to sum up sets `spare` to infinity: `hold`. They nest: the inner one decides, the outer one learns
    that it came, and what the outer one has noted before, the inner one raises when it is entered. Outside the main
    thread, which alone gets signals, and where the program treats this signal in its own way, it changes nothing.
    """

    def __init__(self, spare: float = 0) -> None:
        self.spare = spare
        self.came = 0
        self.before: Any = None
        self.outer: CtrlC | None = None

    def __enter__(self) -> CtrlC:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            owner = getattr(before, "__self__", None)
            self.outer = owner if isinstance(owner, CtrlC) else None
            if self.outer is not None or before is signal.default_int_handler:
                self.before = before
                signal.signal(signal.SIGINT, self.note)
            if self.outer is not None and self.outer.came > self.spare:
                self.__exit__(None, None, None)
                raise KeyboardInterrupt
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.before is None:
            return
        signal.signal(signal.SIGINT, self.before)
        if self.outer is not None:
            self.outer.came += self.came

    def hold(self) -> None:
        """From now on only note it."""
        self.spare = math.inf

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.came += 1
        if self.came > self.spare:
            self.hold()
            raise KeyboardInterrupt
