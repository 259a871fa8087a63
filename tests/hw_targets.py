"""The targets that come with the package; those that need a compiler are skipped without it."""

from importlib.util import find_spec

import pytest

from haq.hw_profiles import TARGETS

VELA = find_spec("ethosu") is not None

needs_vela = pytest.mark.skipif(not VELA, reason="ethos-u-vela is not installed (haq[ethos-u])")

EVERY_TARGET = [
    pytest.param(name, marks=needs_vela) if name.startswith("ethos-") else name for name in TARGETS
]

STORED = ("flash",)
"""Quantities of what is there once, however often a layer is called and for how many images."""
