"""Work whose result is small and whose libraries are large."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

from headway.errors import HeadwayError

T = TypeVar("T")


def apart(work: Callable[[], T]) -> T:
    """Return what `work` returns, done in a process that ends: what it loads takes no memory here.

    Raises:
        HeadwayError: that `work` raised. ChildProcessError: the process ended before it was done.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _hand_over(work, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not told:
        raise ChildProcessError(f"reading ended with exit code {os.waitstatus_to_exitcode(status)}")
    result = pickle.loads(told)
    if isinstance(result, HeadwayError):
        raise result
    return result  # type: ignore[no-any-return]


def _hand_over(work: Callable[[], object], writing: int) -> None:
    """Be the process that works, and end; what it raises beside errors for the user is shown as ever."""
    code = 1
    try:
        result: object
        try:
            result = work()
        except HeadwayError as error:
            result = error
        with open(writing, "wb") as pipe:
            pipe.write(pickle.dumps(result))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)
