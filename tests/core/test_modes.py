"""Law 9: the compiled core gives the same bits as the same files interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from digests import digest

import headway

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src"
CASES = 300


def test_compiled_equals_interpreted():
    if headway.interpreted_modules():
        pytest.skip("this package runs interpreted, so there is nothing to compare: install it with a C compiler")
    path = os.pathsep.join((str(SOURCE), str(HERE)))
    done = subprocess.run(
        [sys.executable, str(HERE / "digests.py"), "0", str(CASES)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    mode, *theirs = done.stdout.splitlines()
    assert mode == "interpreted"
    mine = [f"{seed} {digest(seed)}" for seed in range(CASES)]
    assert [one for one, other in zip(mine, theirs, strict=True) if one != other] == []
    assert len({line.split()[1] for line in mine}) == CASES, "the cases hardly differ"
