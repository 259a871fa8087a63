"""Workers: whoever evaluates, the trials are the same, also where workers or their owner die."""

import functools
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn

import haq
from haq.agents.guided import Guided
from haq.allocation.policy import Bits
from haq.allocation.trials import Score, best
from haq.datasets import load
from haq.errors import HaqError, RunError
from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.runs.evaluation import labeled
from haq.runs.executors import PoolExecutor, RayExecutor, Request, SerialExecutor, executor_for
from haq.runs.executors.base import evaluate_request, payload
from haq.runs.float_network import float_network, fresh_model
from haq.runs.folder import read_json, read_trials
from haq.runs.job import parse_job
from haq.runs.plan import images_of, plan
from haq.runs.play import play
from haq.runs.run import run
from haq.runs.scoring import Scorer, ScoringData, score_key, scorer_for

SMALL = {"model": "digits_cnn", "agent": "ddpg", "episodes": 9, "float_epochs": 3, 
         "val_images": 250, "train_images": 200, "budgets": ["avg_weight_bits=4"], "threads": 1,
         "final_epochs": 0, "rounding_steps": 0}  # fmt: skip
CHEAP = {"agent": "guided", "finalists": 2, "reward": "accuracy", "episodes": 14}
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
    return Scorer(evaluation.network, evaluation.score, evaluation.tuned)


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


# --- one duty for all who evaluate -----------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    """A model, the shape of its images and a basis; without data sets or fine-tuning."""
    torch.manual_seed(0)
    model = build("digits_mlp").eval()
    inputs = load("digits").train.batch(torch.arange(200))[0]
    graph = trace(model, inputs[:1])
    job = small(workers=2, agent="ilp")
    return (
        model,
        inputs[:1],
        ScoringData(job, calibrate(graph, [inputs]), inputs[:64], inputs=inputs),
    )


def with_own(parts, own):
    model, sample, data = parts
    return model, sample, ScoringData(data.job, data.clips, own=own)


def in_this_process(parts):
    model, sample, data = parts
    return executor_for(scorer_for(trace(model, sample), data), model, sample, data_of_one(data))


def data_of_one(data):
    job = data.job.model_copy(update={"workers": 1})
    return ScoringData(job, data.clips, data.plain, data.evaluator, data.inputs, data.own)


def in_a_pool(parts):
    return PoolExecutor(payload(*parts), 2)


def in_ray(parts):
    return RayExecutor("local", payload(*parts), 2, 1)


without_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed"
)
EVERYBODY = [in_this_process, in_a_pool, pytest.param(in_ray, marks=without_ray)]
executors = pytest.mark.parametrize("executor", EVERYBODY, indirect=True)


@pytest.fixture(scope="module")
def executor(request, parts):
    with closing(request.param(parts)) as executor:
        yield executor


def requests():
    layers = ("fc1", "fc2", "fc3", "linear")
    return [Request(dict.fromkeys(layers, Bits(bits, 8))) for bits in (8, 2, 5, 3)]


@executors
def test_answers_come_to_those_who_asked_and_may_be_read_twice(parts, executor):
    model, sample, data = parts
    how = scorer_for(trace(model, sample), data)
    expected = [how.score(how.network(request.policy)) for request in requests()]
    answers = [executor.submit(request) for request in requests()]
    for answer, score in reversed(list(zip(answers, expected, strict=True))):
        assert answer().score == answer().score == score
        assert answer().seconds > 0


@executors
def test_weights_come_only_from_the_least_score_on(executor):
    request = requests()[2]
    whole = executor.submit(request)()
    assert whole.weights is not None
    same = executor.submit(request._replace(least=whole.score))()
    assert same.weights == whole.weights
    better = whole.score._replace(accuracy=whole.score.accuracy + 0.01)
    assert executor.submit(request._replace(least=better))().weights is None


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def failing(network):
    if network.fc1.weight_bits == 8:
        raise HaqError("no 8 bits: take 4")
    raise Odd(1, 2)  # which cannot be made again from its text


@pytest.mark.parametrize("started", EVERYBODY)
def test_what_an_evaluation_raises_is_raised_by_its_answer(parts, started):
    with closing(started(with_own(parts, failing))) as executor:
        for request, error, message in zip(
            requests(), (HaqError, Exception), ("no 8 bits: take 4", "1 and 2"), strict=False
        ):
            answer = executor.submit(request)
            with pytest.raises(error, match=message):
                answer()


@pytest.mark.parametrize("started", EVERYBODY)
def test_nobody_waits_for_a_crew_that_is_closed(parts, started):
    executor = started(with_own(parts, lambda network: time.sleep(600)))
    for request in requests():
        executor.submit(request)
    executor.close()  # or the test never ends


# --- death -----------------------------------------------------------------------------------


def kill_own_process(network):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_in_mid_evaluation_changes_no_score(parts, tmp_path):
    def own(network):
        bits = network.fc1.weight_bits
        if bits == 2 and not (tmp_path / "first").exists():
            (tmp_path / "first").touch()
            time.sleep(600)
        return bits / 8

    with closing(in_a_pool(with_own(parts, own))) as executor:
        answers = [executor.submit(request) for request in requests()]
        others = [answers[place]().score.accuracy for place in (0, 2, 3)]
        until((tmp_path / "first").exists)
        for pid in executor.pids:
            os.kill(pid, signal.SIGKILL)
        assert [*others, answers[1]().score.accuracy] == [1, 5 / 8, 3 / 8, 2 / 8]


def test_a_policy_that_kills_every_worker_is_an_error(parts):
    with closing(PoolExecutor(payload(*with_own(parts, kill_own_process)), 1)) as executor:
        answer = executor.submit(requests()[0])
        with pytest.raises(RunError, match="died 3 times in the same evaluation .by SIGKILL"):
            answer()


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
               episodes=8, budgets=["avg_weight_bits=6"], seed=3, workers=2, agent="ddpg")
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


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_its_package_is_named_before_anything_is_trained(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(HaqError, match=r"pip install 'haq\[ray\]'"):
        run(small(ray="local"), folder)
    assert not folder.exists()
