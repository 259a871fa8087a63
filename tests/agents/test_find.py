"""Agents by name: lines of the table, and classes of other packages."""

from pathlib import Path

import pytest
from toys import Climber, played, toy, weight_closeness

from haq.agents import AGENTS, find
from haq.agents.base import Proposal
from haq.agents.driver import play
from haq.errors import HaqError


def test_a_name_of_the_table_is_its_class() -> None:
    assert all(find(name) is agent for name, agent in AGENTS.items())


def test_a_class_of_another_package_is_found_by_its_module() -> None:
    assert find("toys:Climber") is Climber


def test_an_agent_of_ones_own_plays_and_learns() -> None:
    env = toy(weight_closeness, act_bits=8)
    scores = [episode.info["accuracy"] for episode in played("toys:Climber", env, 150)]
    assert scores[0] < 0.6 < 0.9 < max(scores)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module with things that are no agents."""
    (tmp_path / "odd_agents.py").write_text(
        "from haq.agents import Agent\n"
        "NUMBER = 3\n"
        "def function(env, episodes, seed): ...\n"
        "class Alone: ...\n"
        "class Mute(Agent): ...\n"
    )
    (tmp_path / "broken_agents.py").write_text("1 / 0\n")
    (tmp_path / "torn_agents.py").write_text("class\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "odd_agents"


@pytest.mark.parametrize(
    "name, message",
    [
        ("gided", r"unknown agent 'gided'; did you mean 'guided'\? \(known: ddpg, guided, ilp, "),
        ("", "unknown agent ''"),
        ("nowhere.at_all:Agent", "'nowhere.at_all' cannot be imported .* on PYTHONPATH"),
        (":Climber", r"agent ':Climber': .*package\.module:Class"),
        ("odd_agents:", r"agent 'odd_agents:': .*package\.module:Class"),
        ("odd_agents:Alon", r"module 'odd_agents' has no 'Alon'; did you mean 'Alone'\?"),
        ("broken_agents:A", r"'broken_agents' cannot be imported \(division by zero\)"),
        ("torn_agents:A", "'torn_agents' cannot be imported"),
        ("odd_agents:NUMBER", "'odd_agents:NUMBER' is not an agent: derive the class from haq"),
        ("odd_agents:function", "is not an agent"),
        ("odd_agents:Alone", "is not an agent"),
        ("odd_agents:Mute", "is not an agent"),
        ("haq.agents:Agent", "is not an agent"),
    ],
)
def test_what_is_no_agent_is_said_in_one_sentence(name: str, message: str, package: str) -> None:
    with pytest.raises(HaqError, match=message):
        find(name)


@pytest.mark.parametrize("count", [0, 5, 7])
def test_a_proposal_of_another_length_is_refused(count: int) -> None:
    class Short(Climber):
        def propose(self, number: int) -> Proposal:
            return Proposal([0.5] * count)

    env = toy(act_bits=8)
    with pytest.raises(ValueError, match=f"proposed {count} actions; an episode has 6 steps"):
        list(play(Short(env, 1, 0), env, 1))
