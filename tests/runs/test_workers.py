"""Workers: whoever evaluates, the trials are the same, also where workers or their owner die."""

import functools
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import haq
from haq.agents.guided import Guided
from haq.allocation.trials import Score, best
from haq.datasets import load
from haq.errors import HaqError
from haq.runs.evaluation import labeled
from haq.runs.executors import SerialExecutor
from haq.runs.executors.base import evaluate_request
from haq.runs.float_network import float_network, fresh_model
from haq.runs.folder import read_json, read_trials
from haq.runs.job import parse_job
from haq.runs.plan import images_of, plan
from haq.runs.play import play
from haq.runs.scoring import Scorer, score_key

SMALL = {"model": "digits_cnn", "agent": "ddpg", "evaluation": "finetune",
         "reward": "metric", "episodes": 9, "float_epochs": 3, 
         "val_images": 250, "train_images": 200, "budgets": ["avg_weight_bits=4"], "threads": 1,
         "final_epochs": 0, "rounding_steps": 0}  # fmt: skip
CHEAP = {"agent": "guided", "evaluation": "cheap", "finalists": 2, "reward": "accuracy",
         "episodes": 14}  # fmt: skip
FINETUNED = {"agent": "ddpg", "workers": 2}


def small(**changes):
    return parse_job(**SMALL | changes)


def scores(folder):
    return [
        (t.policy, t.accuracy, t.loss, t.reward, t.cached, t.stopped) for t in read_trials(folder)
    ]


def prepared(folder, job):
    """Return what ``play`` needs, with the float network in the folder."""
    data = load(job.data, seed=job.seed)
    model = fresh_model(job.model, data, job.width, job.seed)
    planned = plan(job, model, images_of(data))
    float_network(job, folder, model, data, lambda _: None)
    return job, folder, planned, labeled(job, folder, planned, data, lambda _: None)


def scorer_of(evaluation):
    return Scorer(evaluation.network, evaluation.score, evaluation.tuned, evaluation.places)


def here(evaluation):
    reward = evaluation.scoring.job.reward
    return SerialExecutor(functools.partial(evaluate_request, scorer_of(evaluation), reward))


@pytest.mark.parametrize(
    "asked", [CHEAP | {"workers": 3}, FINETUNED], ids=["cheap", "finetune"]
)  # fmt: skip
def test_a_pool_finds_what_this_process_finds(tmp_path, asked):
    summaries = {}
    for name in ("pool", "alone"):
        (tmp_path / name).mkdir()
        everything = prepared(tmp_path / name, small(**asked))
        executor = here(everything[-1]) if name == "alone" else None
        summaries[name] = play(*everything, executor=executor)
    assert len(scores(tmp_path / "pool")) == small(**asked).episodes
    assert scores(tmp_path / "pool") == scores(tmp_path / "alone")
    for name in ("final_val_accuracy", "final_test_accuracy", "best_episode", "finalists"):
        assert summaries["pool"].get(name) == summaries["alone"].get(name)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in summaries]
    assert weights[0] == weights[1]


def test_only_tries_are_stopped_early_never_the_answers_they_are_compared_with(tmp_path):
    everything = prepared(tmp_path, small(**CHEAP | {"episodes": 8, "finalists": 0, "pins": {}}))
    asked = []

    class Listening(SerialExecutor):
        def submit(self, request):
            asked.append(request.beat)
            return super().submit(request)

    evaluate = functools.partial(evaluate_request, scorer_of(everything[-1]), "accuracy")
    play(*everything, executor=Listening(evaluate))
    trials = read_trials(tmp_path)
    evaluated = [trial.episode for trial in trials if not trial.cached]
    known = [number for number in evaluated if number < Guided.references]
    tries = evaluated[len(known) :]
    assert known[:2] == [0, 1] and tries
    assert asked == [None] * len(known) + [best(trials[:number]).accuracy for number in tries]


# --- death -----------------------------------------------------------------------------------


# Without a guard around it: workers must not run it again.
SCRIPT = """
    import os, pathlib, signal, sys, time
    import torch, haq
    from haq.runs.folder import read_trials
    from torch import nn

    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where tests run in background
    folder, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
    with (folder / "starts").open("a") as file:
        file.write("started\\n")
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    inputs = torch.randn(64, 8)
    truth = model(inputs).detach()

    def closeness(network):
        with (folder / "pids").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        if mode == "die" and len(read_trials(folder / "run")) >= 2:
            (folder / "asleep").touch()
            time.sleep(600)
        return -float((network(inputs) - truth).square().mean())

    haq.search(model, inputs, evaluate=closeness, out=folder / "run", resume=mode == "resume",
               episodes=8, budgets=["avg_weight_bits=6"], seed=3, workers=2, agent="ddpg",
               evaluation="finetune")
"""


def alive(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "State:\tZ" not in status


def until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def start(folder, mode):
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(folder / "script.py"), str(folder), mode]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def pids(folder):
    file = folder / "pids"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def stopped(folder, by):
    """Start a run, end it with a signal once a worker hangs, and wait for all to be gone."""
    process = start(folder, "die")
    try:
        until((folder / "asleep").exists)
        process.send_signal(by)
        process.wait(timeout=300)
        until(lambda: not any(alive(pid) for pid in pids(folder)))
    finally:
        process.kill()
    assert 2 <= len(read_trials(folder / "run")) < 8


def test_workers_end_with_their_killed_owner_and_its_run_goes_on(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    assert start(whole, "whole").wait(timeout=300) == 0
    stopped(killed, signal.SIGKILL)
    assert start(killed, "resume").wait(timeout=300) == 0
    assert scores(killed / "run") == scores(whole / "run")
    assert (whole / "starts").read_text() == "started\n"
    assert len(set(pids(whole))) == 3  # the float network is scored by the owner


def test_workers_end_with_ctrl_c_and_leave_a_run(tmp_path):
    stopped(tmp_path, signal.SIGINT)
    assert read_json(tmp_path / "run" / "summary.json")["state"] == "interrupted"
    assert (tmp_path / "run" / "policy.json").exists()


# --- what may be asked for -------------------------------------------------------------------


@pytest.mark.parametrize(
    "what, changed",
    [("the model", {"model": "hook"}), ("evaluate=", {"evaluate": "generator"})],
)
def test_what_cannot_be_sent_is_said(tmp_path, what, changed):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    rows = (row for row in [1])
    if "model" in changed:
        model.rows = rows

    def score(network):
        return float(next(rows)) if "evaluate" in changed else 0.5

    with pytest.raises(HaqError, match=f"{what} cannot be sent to other processes .*generator"):
        haq.search(model, torch.randn(8, 4), evaluate=score, episodes=2, workers=2,
                   budgets=["avg_weight_bits=6"], out=tmp_path / "run")  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_merit_is_what_the_run_rewards():
    exact, close = Score(0.9, 0.5), Score(0.8, 0.3)
    assert score_key(exact, "accuracy") > score_key(close, "accuracy")
    assert score_key(exact, "loss") < score_key(close, "loss")
    assert score_key(Score(0.9, 0.3), "agreement") > score_key(Score(0.8, 0.3), "agreement")
