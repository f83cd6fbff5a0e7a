"""Fixtures every test may use."""

import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("house", deadline=None, max_examples=30)  # a busy machine is no fault of the code's
settings.load_profile("house")

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores Ctrl-C
os.environ.pop("COLUMNS", None)  # of pytest's workers: what is printed here goes into a pipe

CLOCKED = ("bench", "emulate", "gateway")  # folders whose tests hold processes and sockets to the wall clock


def pytest_collection_modifyitems(items):
    """What a shared machine did to a test against the clock it does not do three times; the summary tells of each."""
    for item in items:
        if item.path.parent.name in CLOCKED or item.path.name == "test_ray.py":
            item.add_marker(pytest.mark.flaky(reruns=2))


def pytest_collection_finish():
    """What was collected stays to the end: no search for garbage has to look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def left_open(request):
    """A connection that came while its server was closing is found in the module that left it, not in a later one."""
    yield
    if request.path.parent.name in CLOCKED:
        gc.collect()


@pytest.fixture(scope="module")
def without_curves():
    """Plans of this module end with their answer: latencies at other rates are a third of the time of a small one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headway.plan.curves._looks", lambda candidate, plan: [])
        yield


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder of public measurements and traces beside the repository; without it the test is skipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no public measurements at {SHARED_DATA}")
    return SHARED_DATA
