"""A timer that wakes an event loop on time: event loops round their own timeouts up to a millisecond."""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import sys
from collections.abc import Callable

NEVER = math.inf
_MONOTONIC, _ABSOLUTE = 1, 1  # of <time.h> and <sys/timerfd.h>


class Alarm:
    """Calls back at one instant of the monotonic clock, to some 50 us on Linux; setting it anew moves it.

    On Linux it is a timer with a file descriptor; elsewhere the event loop's own.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        self._when_s = NEVER
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
            self._setting = (ctypes.c_long * 4)()  # interval and time, each in seconds and nanoseconds
        if self._fd >= 0:
            loop.add_reader(self._fd, ring)

    def set(self, when_s: float) -> None:
        """Ring at `when_s`, at once if that is past, never at infinity."""
        if self._fd < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = None if when_s == NEVER else self._loop.call_at(when_s, self._ring)
            return
        if when_s == NEVER and self._when_s == NEVER:
            return
        self._when_s = when_s
        whole = 0 if when_s == NEVER else int(when_s)
        self._setting[2] = whole
        self._setting[3] = 0 if when_s == NEVER else max(int((when_s - whole) * 1e9), 1)
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, self._setting, None)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
