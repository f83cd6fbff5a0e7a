"""Work that is done in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from headway.cli.apart import apart
from headway.errors import BadInput, DoesNotFit, UnknownName


def test_what_is_returned_comes_back_and_what_is_loaded_does_not():
    code = (
        "import sys\nfrom headway.cli.apart import apart\n"
        "def work():\n    import colorsys\n    return {'a': [1, 2]}\n"
        "print(apart(work), 'colorsys' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'a': [1, 2]} False"


@pytest.mark.parametrize(
    "error",
    [BadInput("no"), UnknownName("policy", "x", ["y"]), DoesNotFit("much", needed_bytes=2, available_bytes=1)],
    ids=lambda error: type(error).__name__,
)
def test_what_is_wrong_is_raised_here(error):
    def work():
        raise error

    with pytest.raises(type(error)) as raised:
        apart(work)
    assert str(raised.value) == str(error) and raised.value.exit_code == error.exit_code


def test_a_process_that_dies_is_told():
    with pytest.raises(ChildProcessError, match="exit code 7"):
        apart(lambda: os._exit(7))


def test_the_supervisor_needs_neither_numpy_nor_the_brain():
    code = "import sys, headway.cli, headway.gateway.supervisor, headway.gateway.loglines; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "google.protobuf", "headway.cost", "headway.gateway.brain"} & set(loaded)
