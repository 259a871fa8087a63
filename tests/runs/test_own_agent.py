"""A search by an agent of somebody else's, named by module:Class."""

from pathlib import Path

import pytest

from haq.errors import HaqError, RunError
from haq.runs.folder import read_trials
from haq.runs.job import parse_job
from haq.runs.run import run


def job(agent: str = "toys:Climber", seed: int = 0):
    return parse_job(
        agent=agent, budgets=["avg_weight_bits=4"], episodes=4, float_epochs=1, seed=seed,
        evaluation="cheap", finalists=0, rounding_steps=0, val_images=60, threads=1,
    )  # fmt: skip


def lines(folder: Path) -> list[str]:
    return (folder / "trials.jsonl").read_text().splitlines(keepends=True)


def test_it_searches_and_goes_on_where_it_stopped(tmp_path):
    summary = run(job(), tmp_path)
    assert (summary["state"], summary["episodes"]) == ("finished", 4)
    whole = read_trials(tmp_path)
    (tmp_path / "trials.jsonl").write_text("".join(lines(tmp_path)[:2]))
    (tmp_path / "summary.json").unlink()
    run(job(), tmp_path)
    again = read_trials(tmp_path)
    assert [(t.policy, t.reward) for t in again] == [(t.policy, t.reward) for t in whole]


def test_another_agent_of_that_name_is_not_gone_on_with(tmp_path, monkeypatch):
    run(job(), tmp_path)
    (tmp_path / "trials.jsonl").write_text("".join(lines(tmp_path)[:2]))
    (tmp_path / "summary.json").unlink()
    monkeypatch.setattr("toys.Climber.propose", lambda self, number: _first_bits(self))
    with pytest.raises(RunError, match="episode 0 does not repeat"):
        run(job(), tmp_path)


def _first_bits(agent):
    from haq.agents import Proposal

    return Proposal([0.0] * agent.env.n_steps)


def test_a_name_that_leads_nowhere_leaves_nothing_behind(tmp_path):
    with pytest.raises(HaqError, match="'toys' has no 'Climbr'; did you mean 'Climber'"):
        run(job("toys:Climbr"), tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
