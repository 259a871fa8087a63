"""Fixtures of the service's tests: a service of its own for each test, and a client of it."""

import pytest
from service_parts import Visitor


@pytest.fixture
def visitor(tmp_path):
    """Return a service in a folder of its own, and who visits it."""
    return Visitor(tmp_path)


@pytest.fixture
def client(visitor):
    """Return the visitor's client."""
    return visitor.client
