"""A run read back as pandas frames."""

import pytest

import haq
from haq.allocation.policy import read_policy
from haq.errors import RunError
from haq.runs.folder import read_trials, write_job
from haq.runs.job import parse_job
from haq.runs.run import run

JOB = parse_job(
    model="digits_mlp", episodes=3, float_epochs=1, val_images=60, train_images=64, final_epochs=0,
    agent="random", evaluation="finetune", reward="metric", budgets=["avg_weight_bits=6"],
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(JOB, folder)
    return folder


def test_trials_are_a_frame_with_a_column_a_cost(folder):
    trials = haq.load_run(folder).trials
    kept = read_trials(folder)
    assert list(trials.index) == [0, 1, 2]
    assert list(trials["accuracy"]) == [trial.accuracy for trial in kept]
    assert list(trials["avg_weight_bits"]) == [trial.cost["avg_weight_bits"] for trial in kept]
    assert trials["policy"][2] == kept[2].policy


def test_layers_are_a_frame_with_bits_and_costs(folder):
    run, policy = haq.load_run(str(folder)), read_policy(folder / "policy.json")
    assert list(run.layers.index) == ["fc1", "fc2", "fc3", "linear"]
    assert list(run.layers["weight_bits"]) == [policy[name].weight for name in run.layers.index]
    assert run.layers.loc["fc1", "size_w8a8"] == 64 * 64 + 4 * 64 + 4 * 64
    assert run.layers["size"].sum() == pytest.approx(run.summary["cost"]["size"])
    assert run.layers.attrs["units"] == run.trials.attrs["units"] == run.summary["units"]


def test_the_rest_of_the_run_is_there_too(folder):
    found = haq.load_run(folder)
    assert (found.folder, found.job) == (folder, JOB)
    assert found.policy == read_policy(folder / "policy.json")


def test_a_run_without_a_finished_episode_has_empty_frames(tmp_path):
    write_job(tmp_path, JOB)
    found = haq.load_run(tmp_path)
    assert len(found.trials) == len(found.layers) == 0
    assert found.summary == found.policy == {}


def test_no_run_there(tmp_path):
    with pytest.raises(RunError, match="no run at '.*nothing'"):
        haq.load_run(tmp_path / "nothing")
