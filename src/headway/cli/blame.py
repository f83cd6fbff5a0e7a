"""An exception in a user's own policy: told by the line of their file, not by a traceback through ours."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from headway.errors import BadInput, HeadwayError

if TYPE_CHECKING:
    from headway.sim import Policies


@contextmanager
def users_fault(policies: Policies, *others: str) -> Iterator[None]:
    """Let `module:Class` policies be found in the current folder, and turn what they raise into `BadInput`.

    `others` are names of policies too.
    An exception that did not pass through their files is ours and stays as it is.
    """
    every = (policies.route, policies.order, policies.admit, policies.scale, *others)
    named = [name for name in every if ":" in name]
    here = os.getcwd()
    if named:
        sys.path.insert(0, here)
    try:
        yield
    except HeadwayError:
        raise
    except (Exception, SystemExit) as error:  # a policy that exits would end the run without a word
        for name in named:
            place = _place(error, name.partition(":")[0])
            if place is not None:
                raise BadInput(f"policy {name} failed at {place}: {type(error).__name__}: {error}") from error
        raise
    finally:
        if named:
            sys.path.remove(here)


def _place(error: BaseException, module: str) -> str | None:
    """Where the exception last left the module's file: file, line and function."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    path, frames = Path(spec.origin), []
    if isinstance(error, SyntaxError) and error.filename == spec.origin:
        return f"{_short(path)}:{error.lineno}"
    for note in getattr(error, "__notes__", ()):  # a worker process hands over its traceback as text
        frames += re.findall(rf'File "{re.escape(spec.origin)}", line (\d+), in (\w+)', note)
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == spec.origin:
            frames.append((str(frame.lineno), frame.name))
    return f"{_short(path)}:{frames[-1][0]} in {frames[-1][1]}" if frames else None


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
