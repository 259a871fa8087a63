"""The examples do what they say."""

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_own_network(tmp_path, capsys):
    runpy.run_path(str(EXAMPLES / "own_network.py"))["main"](tmp_path, epochs=1, episodes=2)
    printed = capsys.readouterr().out
    assert "test accuracy" in printed
    assert "equal: True" in printed
    agreement = re.search(r"the same class for ([\d.]+)%", printed)
    assert float(agreement[1]) > 99
    assert "All trials" in (tmp_path / "report.html").read_text()
