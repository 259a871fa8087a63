"""Fixtures that several tests of runs read."""

import pytest
from kit_parts import WIDTHS, subject

from haq.runs.kit.make import Choices, make_kit


@pytest.fixture(scope="session")
def whole_kit(tmp_path_factory):
    """Return the folder of a kit; it is only read."""
    folder = tmp_path_factory.mktemp("kits") / "kit"
    make_kit(subject(), folder, Choices(WIDTHS))
    return folder
