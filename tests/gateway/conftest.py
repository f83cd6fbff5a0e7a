"""Fixtures of tests with a gateway in the module's fixture `gateway`."""

import pytest


@pytest.fixture
def quick(request):
    """Each test that asks the gateway begins with upstreams that work and are quick, and ends with empty books."""
    if "gateway" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("gateway").quick():
        yield
