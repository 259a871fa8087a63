"""The networks of a run's agent, kept and loaded again."""

import math

import pytest
import torch

import haq
from haq.agents import Agent, Proposal
from haq.allocation.trials import Trial
from haq.datasets import load
from haq.errors import RunError
from haq.models import build

QUICK = {"budgets": ["avg_weight_bits=6"], "finalists": 0, "final_epochs": 0, "rounding_steps": 0}


@pytest.fixture(scope="module")
def splits():
    data = load("digits")
    return [split.batch(torch.arange(40)) for split in (data.train, data.val, data.test)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, splits):
    folder = tmp_path_factory.mktemp("runs") / "ddpg"
    haq.search(
        build("digits_mlp"), splits, out=folder, agent="ddpg", episodes=23, train_images=40,
        val_images=40, calibration_images=40, **QUICK,
    )  # fmt: skip
    return folder


def test_the_agent_of_a_run_plays_under_another_budget(folder, splits):
    env = haq.make_env(
        build("digits_mlp"), splits, ["size=5kB"], calibration_images=40, sensitivity=False
    )
    agent = haq.load_agent(folder, env)
    observation, _ = env.reset()
    ended = False
    while not ended:
        action, _ = agent.predict(observation, deterministic=True)
        assert 0 <= action <= 1
        observation, _, ended, _, info = env.step(action)
    assert info["cost"]["size"] <= 5000


def test_an_environment_that_shows_more_is_refused(folder, splits):
    env = haq.make_env(build("digits_mlp"), splits, ["size=5kB"], calibration_images=40)
    with pytest.raises(RunError, match="read 10 numbers of a layer, and this environment shows 12"):
        haq.load_agent(folder, env)


def test_what_the_agent_lost_stands_with_the_episodes(folder):
    trials = haq.load_run(folder).trials
    assert list(trials["agent_critic_loss"].isna()) == [True] * 21 + [False] * 2
    assert trials["agent_sigma"][20] == 0.5
    line = (folder / "trials.jsonl").read_text().splitlines()[-1]
    assert Trial.from_line(line).notes["critic_loss"] == trials["agent_critic_loss"][22]


class Boastful(Agent):
    """Says of itself what is no number."""

    def propose(self, number):
        actions = [0.5] * self.env.n_steps
        return Proposal(actions, (), {"hope": math.inf, "doubt": math.nan, "number": number})


def test_notes_that_are_no_numbers_do_not_reach_the_file(splits, tmp_path):
    name = f"{__name__}:Boastful"
    run = haq.search(
        build("digits_mlp"), splits, out=tmp_path / "own", agent=name, episodes=1, **QUICK
    )
    assert [trial.notes for trial in run.trials] == [{"number": 0}]


def test_a_run_that_keeps_no_agent_says_so(folder, splits, tmp_path):
    run = haq.search(
        build("digits_mlp"), splits, out=tmp_path / "random", agent="random", episodes=1, **QUICK
    )
    assert not (run.folder / "agent.safetensors").exists()
    with pytest.raises(RunError, match="keeps no agent: .* this is a run of random"):
        haq.load_agent(run.folder, None)
    with pytest.raises(RunError, match="no run at"):
        haq.load_agent(tmp_path / "nowhere", None)


@pytest.mark.parametrize("content", [b"", b"x" * 64])
def test_a_damaged_file_is_refused(folder, tmp_path, content):
    (tmp_path / "job.json").write_text((folder / "job.json").read_text())
    (tmp_path / "agent.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="agent.safetensors cannot be used"):
        haq.load_agent(tmp_path, None)
