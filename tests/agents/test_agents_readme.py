"""What the agents' README shows works."""

from pathlib import Path

from readme_blocks import run_blocks

import haq.agents
from haq.agents import AGENTS

README = Path(haq.agents.__file__).with_name("README.md")


def test_the_examples_run() -> None:
    names = run_blocks(README)
    assert len(names["episodes"]) == 60


def test_every_agent_is_described() -> None:
    text = README.read_text("utf-8")
    assert all(f"| `{name}` |" in text for name in AGENTS)
