"""Runs in the tools in which people follow them: each episode once, whatever the tool does."""

import json
import math

import pytest
import torch
from torch import nn

import haq
from haq.errors import HaqError
from haq.runs.folder import read_trials
from haq.runs.progress import Progress, silent
from haq.runs.tracking import TRACKERS, Follower, following, tracker
from haq.runs.tracking.follow import identity

JOB = {"model": "digits_mlp", "budgets": ["size=2kB"], "agent": "ilp", "episodes": 3}
TRIAL = {
    "policy": {"fc1": [4, 8], "fc2": [2, 6]}, "cost": {"size": 9.0}, "loss": None, "seconds": 1.0,
    "cached": False, "stopped": False,
}  # fmt: skip


def line(episode, accuracy, **more):
    fields = {"episode": episode, "accuracy": accuracy, "reward": accuracy - 1}
    return json.dumps(TRIAL | fields | more)


@pytest.fixture
def run(tmp_path):
    """A run of two episodes."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(JOB))
    second = line(1, 0.25, notes={"sigma": 0.5})
    (folder / "trials.jsonl").write_text(f"{line(0, 0.5)}\n{second}\n")
    summary(folder, "running")
    return folder


def summary(folder, state):
    content = {"state": state, "metric": "top1", "float_val_accuracy": 0.75, "cost": {"size": 9.0}}
    (folder / "summary.json").write_text(json.dumps(content))


def third(folder):
    with (folder / "trials.jsonl").open("a") as file:
        file.write(f"{line(2, 1.0)}\n")
    summary(folder, "finished")


class Diary:
    """A tracker that keeps what it is told, across runs of the same identity."""

    name = "diary"

    def __init__(self):
        self.begun, self.episodes, self.ended = [], [], []

    def begin(self, name, identity, settings):
        self.begun.append((name, identity, settings))
        return len(self.episodes)

    def add(self, episode, values):
        self.episodes.append((episode, values))

    def end(self, values, finished):
        self.ended.append((values, finished))


def test_an_episode_as_a_tracker_sees_it(run):
    diary = Diary()
    Follower(run, diary, print).catch_up()
    [(name, known_by, settings)] = diary.begun
    assert (name, known_by) == ("mine", identity(run))
    assert settings["agent"] == "ilp" and settings["budgets"] == '["size=2kB"]'
    assert "target" not in settings  # which was not asked for
    assert diary.episodes == [
        (0, {"accuracy": 0.5, "best_accuracy": 0.5, "reward": -0.5, "seconds": 1.0,
             "bits/weights": 3.0, "bits/activations": 7.0, "cost/size": 9.0}),
        (1, {"accuracy": 0.25, "best_accuracy": 0.5, "reward": -0.75, "seconds": 1.0,
             "bits/weights": 3.0, "bits/activations": 7.0, "cost/size": 9.0, "agent/sigma": 0.5}),
    ]  # fmt: skip


def test_each_episode_is_told_once(run):
    diary = Diary()
    follower = Follower(run, diary, print)
    follower.catch_up()
    follower.catch_up()
    third(run)
    follower.end()
    assert [episode for episode, _ in diary.episodes] == [0, 1, 2]
    assert diary.ended == [({"float_val_accuracy": 0.75, "cost/size": 9.0}, True)]


def test_a_line_that_is_half_written_waits_for_its_end(run):
    diary, whole = Diary(), line(2, 1.0)
    follower = Follower(run, diary, print)
    with (run / "trials.jsonl").open("a") as file:
        file.write(whole[:20])
        file.flush()
        follower.catch_up()
        assert len(diary.episodes) == 2
        file.write(whole[20:] + "\n")
    follower.catch_up()
    assert [episode for episode, _ in diary.episodes] == [0, 1, 2]


def test_a_resumed_run_goes_on_where_the_tracker_is(run):
    diary = Diary()
    Follower(run, diary, print).end()
    third(run)
    Follower(run, diary, print).end()
    assert [episode for episode, _ in diary.episodes] == [0, 1, 2]
    assert diary.episodes[2][1]["best_accuracy"] == 1.0
    assert diary.begun[0][1] == diary.begun[1][1]
    assert [finished for _, finished in diary.ended] == [False, True]


def test_a_tracker_that_fails_is_left_alone_and_said_once(run):
    class Full(Diary):
        def add(self, episode, values):
            raise OSError("disk full\nsecond line")

    said = []
    follower = Follower(run, Full(), said.append)
    follower.catch_up()
    follower.end()
    assert follower.failed and said == ["diary is not told any more: disk full"]


def test_a_run_without_an_episode_tells_nothing(tmp_path):
    diary = Diary()
    with following(tmp_path, silent, [diary]) as on_progress:
        on_progress(Progress("search", 1, 2))
    assert diary.begun == diary.ended == []


def read_tensorboard(place):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(place / "logs" / "mine")).Reload()
    final = [event.value for event in events.Scalars("run/float_val_accuracy")]
    return [(event.step, event.value) for event in events.Scalars("reward")], final


def read_mlflow(place):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    [found] = client.search_runs([client.get_experiment_by_name("haq").experiment_id])
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    assert found.data.params["agent"] == "ilp"
    history = client.get_metric_history(found.info.run_id, "reward")
    final = client.get_metric_history(found.info.run_id, "run/float_val_accuracy")
    return [(metric.step, metric.value) for metric in history], [final[-1].value]


def test_tensorboard_shows_each_episode_once_though_the_run_was_resumed(run, tmp_path):
    pytest.importorskip("tensorboard")
    check(run, f"tensorboard:{tmp_path}/logs", lambda: read_tensorboard(tmp_path))


def test_mlflow_shows_each_episode_once_though_the_run_was_resumed(run, tmp_path):
    pytest.importorskip("mlflow")
    check(run, f"mlflow:sqlite:///{tmp_path}/mlflow.db", lambda: read_mlflow(tmp_path))


def check(run, text, read):
    Follower(run, tracker(text), pytest.fail).end()
    third(run)
    Follower(run, tracker(text), pytest.fail).end()
    rewards, final = read()
    assert rewards == [(0, -0.5), (1, -0.75), (2, 0.0)]
    assert final[-1] == 0.75


def test_wandb_without_a_network_writes_a_folder(run, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    third(run)
    Follower(run, tracker("wandb:haq"), pytest.fail).end()
    wandb.teardown()  # which the end of the process does else
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert identity(run) in file.name
    content = file.read_bytes()
    for word in (b"best_accuracy", b"cost/size", b"float_val_accuracy", b"size=2kB"):
        assert word in content
    assert wandb.run is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tensorbord:logs", "unknown tracker 'tensorbord'; did you mean 'tensorboard'"),
        ("wandb", "tracker 'wandb' does not say where: write wandb:PROJECT"),
        ("mlflow:", "tracker 'mlflow:' does not say where"),
    ],
)
def test_a_tracker_that_cannot_be_is_refused(text, sentence):
    with pytest.raises(HaqError, match=sentence):
        tracker(text)


@pytest.mark.parametrize("place", ["mlruns", "file:mlruns", "file:///mlruns", "sqlite://"])
def test_mlflow_needs_a_database_or_a_server(place):
    pytest.importorskip("mlflow")
    with pytest.raises(HaqError, match=f"tracker mlflow:{place} names no database and no server"):
        tracker(f"mlflow:{place}")


def test_a_server_that_does_not_answer_is_refused():
    pytest.importorskip("mlflow")
    with pytest.raises(HaqError, match="tracker mlflow:http://localhost:1 does not answer"):
        tracker("mlflow:http://localhost:1")


def test_events_do_not_go_into_a_file(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "logs").write_text("")
    with pytest.raises(HaqError, match="logs is a file; give a folder"):
        tracker(f"tensorboard:{tmp_path}/logs")


def test_every_tracker_that_lacks_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.import_module", missing)
    for name, place in (("tensorboard", "logs"), ("mlflow", "sqlite:///x"), ("wandb", "haq")):
        with pytest.raises(HaqError, match=rf"pip install 'haq\[{name}\]'"):
            TRACKERS[name](place)


def missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def searched(out, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    return haq.search(model, torch.randn(80, 8, generator=torch.Generator().manual_seed(1)),
                      agent="random", episodes=3, budgets=["avg_weight_bits=6"], pins={},
                      rounding_steps=3, threads=1, out=out, **more)  # fmt: skip


def test_a_search_in_python_hands_on_each_episode(tmp_path):
    trials = []
    run = searched(tmp_path / "run", on_trial=trials.append)
    assert trials == run.trials == read_trials(tmp_path / "run")
    assert all(math.isfinite(trial.reward) for trial in trials)


def test_a_callback_can_end_a_search_which_goes_on_later(tmp_path):
    first, second = [], []

    def stop(trial):
        first.append(trial)
        raise KeyboardInterrupt

    assert searched(tmp_path / "run", on_trial=stop).summary["state"] == "interrupted"
    run = searched(tmp_path / "run", on_trial=second.append, resume=True)
    assert [trial.episode for trial in (*first, *second)] == [0, 1, 2]
    assert run.summary["state"] == "finished"
