"""What is said of the runs that lie in a folder."""

import json
import os

import pytest

from haq.errors import HaqError
from haq.runs.listing import runs_in

JOB = {"model": "digits_mlp", "budgets": ["size=2kB"], "agent": "ilp", "episodes": 3}
TRIAL = {
    "policy": {"fc1": [4, 8]}, "cost": {"size": 9.0}, "accuracy": 0.5, "loss": None, "reward": 0.5,
    "seconds": 1.0, "cached": False, "stopped": False,
}  # fmt: skip
SUMMARY = {"state": "finished", "metric": "top1", "float_val_accuracy": 0.95}


@pytest.fixture
def run(tmp_path):
    """Writes a run's files, the later ones newer."""
    times = iter(range(1000, 2000))

    def write(name, job=JOB, trials=0, summary=None):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "job.json").write_text(json.dumps(job))
        lines = [json.dumps({"episode": number, **TRIAL}) for number in range(trials)]
        (folder / "trials.jsonl").write_text("".join(f"{line}\n" for line in lines))
        if summary is not None:
            (folder / "summary.json").write_text(json.dumps(summary))
        now = next(times)
        for path in folder.iterdir():
            os.utime(path, (now, now))

    return write


def test_a_run_says_what_was_asked_for_and_what_came_of_it(run, tmp_path):
    run("mine", trials=3, summary=SUMMARY | {"final_val_accuracy": 0.9, "final_test_accuracy": 0.8})
    [listed] = runs_in(tmp_path)
    assert (listed.name, listed.state) == (str(tmp_path / "mine"), "finished")
    assert (listed.model, listed.budgets, listed.agent) == ("digits_mlp", ("size=2kB",), "ilp")
    assert (listed.episodes, listed.asked, listed.metric) == (3, 3, "top1")
    assert (listed.float_val, listed.final_val, listed.final_test) == (0.95, 0.9, 0.8)


def test_a_run_without_a_summary_is_unfinished(run, tmp_path):
    run("early", trials=1)
    [listed] = runs_in(tmp_path)
    assert (listed.state, listed.episodes, listed.float_val) == ("unfinished", 1, None)


def test_a_run_whose_summary_is_of_some_episodes_is_unfinished(run, tmp_path):
    run("stopped", trials=2, summary=SUMMARY | {"state": "interrupted"})
    [listed] = runs_in(tmp_path)
    assert (listed.state, listed.float_val, listed.final_val) == ("unfinished", 0.95, None)


def test_the_run_that_changed_last_stands_at_the_end(run, tmp_path):
    for name in ("b", "a", "c"):
        run(name)
    assert [os.path.basename(listed.name) for listed in runs_in(tmp_path)] == ["b", "a", "c"]


def test_a_damaged_run_hides_no_other(run, tmp_path):
    run("bad", job=[3])
    run("good")
    bad, good = runs_in(tmp_path)
    assert (bad.state, good.state) == ("damaged", "unfinished")
    assert "does not hold a JSON object" in bad.fault


def test_a_run_that_was_asked_for_what_is_refused_today_is_listed(run, tmp_path):
    run("older", job=JOB | {"batch": 4, "schemes": ["dynamic"], "act_bits": 8})
    [listed] = runs_in(tmp_path)
    assert (listed.state, listed.fault) == ("unfinished", "")


def test_what_is_no_run_is_not_listed(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "file").write_text("")
    assert runs_in(tmp_path) == []


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(HaqError, match="there is no folder .*nowhere: give one in which runs lie"):
        runs_in(tmp_path / "nowhere")
