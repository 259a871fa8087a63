"""The first page does what it shows."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_example_prints_what_is_shown_but_for_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = README.read_text(encoding="utf-8")
    code, shown = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL).groups()
    exec(compile(code, str(README), "exec"), {})
    printed = capsys.readouterr().out
    assert re.sub(r"\d[\d.]*", "#", printed) == re.sub(r"\d[\d.]*", "#", shown)
    accuracies = [float(value) for value in re.findall(r"([\d.]+)%", printed)]
    assert min(accuracies) > 80
    assert (tmp_path / "digits.onnx").exists()
