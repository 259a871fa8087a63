"""The main job on the embedded digits: whole runs, killed runs, runs from Python."""

import itertools
import json
import math
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import haq
from haq.allocation.budgets import parse_budget
from haq.allocation.costs import total
from haq.allocation.policy import Bits, read_policy
from haq.allocation.trials import best
from haq.datasets import load
from haq.errors import BudgetError, DivergedError, HaqError, RunError
from haq.hw_profiles import load as load_target
from haq.models import build
from haq.models.weights import load_weights
from haq.quantization.calibration import load_clips
from haq.quantization.fake_quant import quantize
from haq.runs.calibration import calibration_batches, clips_of_run
from haq.runs.evaluator import Evaluator, Recipe
from haq.runs.folder import read_job, read_trials
from haq.runs.job import parse_job
from haq.runs.plan import plan
from haq.runs.run import run
from haq.training.scoring import score

SMALL = {"model": "digits_mlp", "agent": "ddpg", "evaluation": "finetune",
         "reward": "metric", "episodes": 6, "float_epochs": 3,
         "val_images": 120, "train_images": 200, "budgets": ["avg_weight_bits=6.2"]}  # fmt: skip


def small(**changes):
    as_suits = {"evaluation": None, "reward": None} if "agent" in changes else {}
    return parse_job(**SMALL | as_suits | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(small(), folder)


def test_a_run_leaves_these_files(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "job.json", "float.safetensors", "clips.safetensors", "trials.jsonl", "policy.json",
        "weights.safetensors", "summary.json", "float_test.json", "tested.json",
        "sample.safetensors", "agent.safetensors",
    }  # fmt: skip


def test_the_policy_keeps_the_budget_and_the_pins(finished):
    folder, summary = finished
    policy = read_policy(folder / "policy.json")
    # fc1 has 45 % of the weights, too many to be pinned by itself; it reads the input.
    assert policy["linear"] == Bits(8, 8) and policy["fc1"].act == 8
    assert summary["budgets"][0]["achieved"] <= 6.2
    widths = [policy[name].weight for name in ("fc1", "fc2", "fc3", "linear")]
    weights = [64 * 64, 64 * 48, 48 * 32, 32 * 10]
    by_hand = sum(w * n for w, n in zip(widths, weights, strict=True)) / sum(weights)
    assert summary["cost"]["avg_weight_bits"] == pytest.approx(by_hand)


def test_the_reward_is_a_tenth_of_the_points_lost(finished):
    folder, summary = finished
    for trial in read_trials(folder):
        points = 100 * (trial.accuracy - summary["float_val_accuracy"])
        assert trial.reward == pytest.approx(0.1 * points)


def test_the_same_seed_gives_the_same_trials(finished, tmp_path):
    run(small(), tmp_path)
    assert scores(tmp_path) == scores(finished[0])


def test_another_seed_gives_other_trials(finished, tmp_path):
    run(small(seed=1), tmp_path)
    assert scores(tmp_path) != scores(finished[0])


def scores(folder):
    return [(t.policy, t.accuracy, t.loss, t.reward) for t in read_trials(folder)]


@pytest.mark.parametrize("kept", ["none", "some", "torn"])
def test_a_killed_run_goes_on_to_the_same_trials(finished, tmp_path, kept):
    whole = finished[0]
    for name in ("job.json", "float.safetensors", "clips.safetensors"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    lines = (whole / "trials.jsonl").read_bytes().splitlines(keepends=True)
    left = {"none": b"", "some": b"".join(lines[:3]), "torn": b"".join(lines[:3]) + lines[3][:20]}
    (tmp_path / "trials.jsonl").write_bytes(left[kept])
    run(read_job(tmp_path), tmp_path)
    assert scores(tmp_path) == scores(whole)
    assert policies(tmp_path) == policies(whole)


def policies(folder):
    return read_policy(folder / "policy.json")


def test_a_finished_run_resumed_stays_as_it_is(finished):
    folder, summary = finished
    before = (folder / "trials.jsonl").read_bytes()
    again = run(read_job(folder), folder)
    assert (folder / "trials.jsonl").read_bytes() == before
    assert again["final_test_accuracy"] == summary["final_test_accuracy"]


def test_a_run_of_other_trials_is_not_gone_on_with(finished, tmp_path):
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "summary.json").unlink()
    job = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps(job | {"seed": 7}))
    with pytest.raises(RunError, match="episode 0 does not repeat"):
        run(read_job(tmp_path), tmp_path)


# Kills itself in the third evaluation, when it is first run.
VICTIM = """
    import os, signal, sys
    import torch, haq
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    inputs = torch.randn(64, 8)
    truth = model(inputs).detach()
    calls = 0

    def closeness(network):
        global calls
        calls += 1
        if calls == 4 and sys.argv[2] == "die":  # the first call is of the float network
            os.kill(os.getpid(), signal.SIGKILL)
        return -float((network(inputs) - truth).square().mean())

    haq.search(model, inputs, evaluate=closeness, out=sys.argv[1], resume=sys.argv[2] == "resume",
               episodes=8, budgets=["avg_weight_bits=6"], seed=3, agent="ddpg",
               evaluation="finetune")
"""


def test_killed_with_9_and_resumed_equals_undisturbed(tmp_path):
    script = tmp_path / "victim.py"
    script.write_text(textwrap.dedent(VICTIM))

    def start(folder, mode):
        command = [sys.executable, str(script), str(tmp_path / folder), mode]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert start("undisturbed", "whole") == 0
    assert start("killed", "die") == -9
    assert len(read_trials(tmp_path / "killed")) < 8
    assert start("killed", "resume") == 0
    assert scores(tmp_path / "killed") == scores(tmp_path / "undisturbed")


def test_ctrl_c_leaves_a_usable_run(tmp_path):
    seen = []

    def interrupt(where):
        seen.append(where.stage)
        if seen.count("search") == 3:
            raise KeyboardInterrupt

    summary = run(small(), tmp_path, interrupt)
    assert summary["state"] == "interrupted"
    assert summary["episodes"] == 3
    top = best(read_trials(tmp_path))
    assert policies(tmp_path) == top.policy
    assert (tmp_path / "weights.safetensors").exists()
    assert run(read_job(tmp_path), tmp_path)["state"] == "finished"


def test_a_run_that_goes_on_plays_as_many_episodes_as_it_began_with(tmp_path):
    asked = {"budgets": ["avg_weight_bits=5"], "agent": "guided", "float_epochs": 1, "threads": 1,
             "val_images": 60, "train_images": 64, "rounding_steps": 0, "finalists": 0,
             "out": tmp_path / "run"}  # fmt: skip

    def interrupt(where):
        if where.stage == "search":
            raise KeyboardInterrupt

    haq.search("digits_mlp", "digits", episodes=3, on_progress=interrupt, **asked)
    again = haq.search("digits_mlp", "digits", resume=True, **asked)  # alone it would play 12
    assert again.summary["state"] == "finished" and len(again.trials) == 3


def test_an_impossible_budget_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(BudgetError, match="the cheapest one needs"):
        run(small(budgets=["avg_weight_bits=2"]), folder)
    assert not folder.exists()


def test_the_best_of_100_episodes_is_near_the_best_of_all_policies(tmp_path):
    job = small(episodes=100, float_epochs=60, val_images=359, train_images=400,
                pins={"fc1": 8, "linear": 8})  # fmt: skip
    summary = run(job, tmp_path)
    model = build("digits_mlp")
    load_weights(model, tmp_path / "float.safetensors")
    data = load("digits")
    planned = plan(job, model, {"shape": data.shape})
    clips = clips_of_run(job, tmp_path, planned.graph, [], lambda _: None)
    recipe = Recipe(job.train_images, job.val_images, job.lr)
    evaluator = Evaluator(planned.graph, clips, data, recipe, job.seed)
    budget = planned.budgets[0]
    every = [
        dict(zip(planned.table.choices, bits, strict=True))
        for bits in itertools.product(*planned.table.choices.values())
    ]
    allowed = [p for p in every if total(planned.table, p, budget.quantity) <= budget.limit]
    assert 10 < len(allowed) < len(every) == 49
    optimum = max(evaluator.score(evaluator.tuned(p)).accuracy for p in allowed)
    assert summary["episode_val_accuracy"] >= optimum - 0.005


def test_calibration_never_sees_an_augmented_or_a_validation_image():
    data = load("digits")
    seen = torch.cat(list(calibration_batches(data, 50, seed=0)))
    train, _ = data.train.batch(torch.arange(len(data.train)))
    assert all(bool((image == train).flatten(1).all(1).any()) for image in seen)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(torch.relu(self.body(torch.relu(self.stem(x)))))


def test_any_score_and_any_network_from_python(tmp_path):
    torch.manual_seed(0)
    model, inputs = Detector().eval(), torch.randn(16, 3, 12, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        truth = model(inputs)

    def closeness(network):
        return 1 - float((network(inputs) - truth).detach().abs().mean())

    found = haq.search(model, inputs, evaluate=closeness, out=tmp_path / "run", episodes=5,
                       budgets=["size=900B"], agent="ddpg", evaluation="finetune")  # fmt: skip
    assert found.summary["budgets"][0]["achieved"] <= 900
    assert [t.accuracy for t in found.trials][found.summary["best_episode"]] == pytest.approx(
        closeness(found.model), abs=1e-6
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_three_splits_of_ones_own_from_python(tmp_path):
    data = load("digits")
    splits = [split.batch(torch.arange(120)) for split in (data.train, data.val, data.test)]
    model = build("digits_mlp")
    found = haq.search(model, splits, out=tmp_path / "run", episodes=3, agent="ddpg",
                       budgets=["avg_weight_bits=6"])  # fmt: skip
    assert len(found.trials) == 3
    assert 0 <= found.summary["final_test_accuracy"] <= 1


def test_inputs_without_a_score_are_refused():
    with pytest.raises(HaqError, match="give evaluate="):
        haq.search(Detector(), torch.randn(4, 3, 8, 8), agent="ddpg", evaluation="finetune")


def test_a_resumed_model_must_have_the_weights_it_had(tmp_path):
    model, inputs = Detector(), torch.randn(8, 3, 8, 8)
    asked = {"evaluate": lambda network: 0.5, "out": tmp_path / "run", "episodes": 2,
             "agent": "ddpg", "evaluation": "finetune",
             "budgets": ["avg_weight_bits=5"]}  # fmt: skip
    haq.search(model, inputs, **asked)
    with pytest.raises(RunError, match="not those that the run started from"):
        haq.search(Detector(), inputs, resume=True, **asked)


def test_a_latency_budget_is_kept_on_the_target(tmp_path):
    job = small(model="digits_cnn", target="bismo-edge", budgets=["latency=50%w8a8"], episodes=3)
    summary = run(job, tmp_path)
    data = load("digits")
    layers = plan(job, build("digits_cnn"), {"shape": data.shape}).graph.layers
    limit = parse_budget("latency=50%w8a8", layers, load_target("bismo-edge")).limit
    assert summary["cost"]["latency"] <= limit
    assert any(row["act_bits"] < 8 for row in summary["layers"])


def test_damaged_clips_are_named(finished, tmp_path):
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(
            path.read_bytes()[: 100 if "clips" in path.name else None]
        )
    with pytest.raises(RunError, match="clips.safetensors cannot be read"):
        run(read_job(tmp_path), tmp_path)


def test_a_finished_run_is_not_undone_by_ctrl_c(finished, tmp_path):
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def interrupt(where):
        if where.stage == "search":
            raise KeyboardInterrupt

    again = run(read_job(tmp_path), tmp_path, interrupt)
    assert (again["state"], again["final_test_accuracy"]) == (
        "finished",
        finished[1]["final_test_accuracy"],
    )


def test_a_network_lost_between_two_files_is_made_again(finished, tmp_path):
    for path in finished[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("policy.json", "weights.safetensors", "summary.json"):
        (tmp_path / name).unlink()

    def interrupt(where):
        if where.stage == "search":
            raise KeyboardInterrupt

    assert run(read_job(tmp_path), tmp_path, interrupt)["state"] == "interrupted"
    assert policies(tmp_path) == policies(finished[0])
    assert (tmp_path / "weights.safetensors").exists()


def test_a_convolutional_run_killed_before_its_clips_repeats(tmp_path):
    asked = {"model": "digits_cnn", "budgets": ["avg_weight_bits=3"], "episodes": 3}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    run(small(**asked), tmp_path / "whole")
    for name in ("job.json", "float.safetensors"):
        (tmp_path / "killed" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    run(read_job(tmp_path / "killed"), tmp_path / "killed")
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")


def test_the_normalisation_is_kept_with_the_run(finished):
    data = load("digits")
    assert finished[1]["images"]["mean"] == list(data.mean)
    assert finished[1]["images"]["std"] == list(data.std)


@pytest.mark.parametrize("reward", ["accuracy", "loss"])
def test_policies_that_diverge_score_nothing_and_the_search_goes_on(tmp_path, reward):
    with pytest.raises(DivergedError):  # at the end, as no policy is left to finish
        run(small(lr=1e30, train_images=1000, reward=reward), tmp_path)
    trials = read_trials(tmp_path)
    assert [trial.accuracy for trial in trials] == [0.0] * 6
    assert [trial.loss for trial in trials] == pytest.approx([math.log(10)] * 6)


def test_tied_weights_are_searched_too(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    inputs = torch.randn(32, 8)
    found = haq.search(model, inputs, evaluate=lambda network: float(network(inputs).sum()),
                       out=tmp_path / "run", episodes=2, budgets=["size=400B"])  # fmt: skip
    assert found.policy["0"].weight <= 8


def test_the_model_given_keeps_its_mode(tmp_path):
    model, inputs = Detector().train(), torch.randn(8, 3, 8, 8)
    haq.search(model, inputs, evaluate=lambda network: 0.5, out=tmp_path / "run", episodes=1,
               budgets=["avg_weight_bits=5"])  # fmt: skip
    assert all(module.training for module in model.modules())


def test_options_of_named_models_are_refused_for_a_model_of_ones_own():
    with pytest.raises(HaqError, match="weights: only for a model given by its name"):
        haq.search(Detector(), torch.randn(4, 3, 8, 8), evaluate=lambda n: 0.5, weights="w.pt")


def test_an_impossible_budget_from_python_leaves_nothing_behind(tmp_path):
    with pytest.raises(BudgetError):
        haq.search(Detector(), torch.randn(4, 3, 8, 8), evaluate=lambda n: 0.5,
                   out=tmp_path / "run", budgets=["size=10B"])  # fmt: skip
    assert not (tmp_path / "run").exists()


# --- answers in seconds, and guided searches -------------------------------------------------


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answered")
    asked = {"model": "digits_cnn", "agent": "ilp", "episodes": None, "budgets": ["size=12kB"]}
    asked["rounding_steps"] = 40
    return folder, run(small(**asked), folder)


def test_ilp_answers_with_one_policy_and_no_training(answered):
    folder, summary = answered
    job = read_job(folder)
    assert (job.episodes, job.evaluation, job.last_epochs, job.last_steps) == (
        1, "cheap", 0, 40,
    )  # fmt: skip
    assert summary["evaluations"] == 1
    assert summary["budgets"][0]["achieved"] <= 12_000
    kept = json.loads((folder / "sensitivity.json").read_text())
    assert kept.keys() == {"measure", "images", "weights", "activations"}
    assert (kept["measure"], kept["images"]) == ("kl, second order", 256)
    free = [row["name"] for row in summary["layers"][1:-1]]
    assert list(kept["weights"]) == free  # the first and the last layer are pinned
    assert all(list(row) == ["2", "3", "4", "5", "6", "7", "8"] for row in kept["weights"].values())


def test_learned_rounding_loads_back(answered):
    folder, summary = answered
    data = load("digits")
    model = build("digits_cnn")
    load_weights(model, folder / "float.safetensors")
    graph = plan(read_job(folder), model, {"shape": data.shape}).graph
    network = quantize(
        graph, read_policy(folder / "policy.json"), load_clips(folder / "clips.safetensors")
    )
    load_weights(network, folder / "weights.safetensors")
    assert score(network.eval(), data.test).accuracy == summary["final_test_accuracy"]
    float_weights = torch.cat([p.flatten() for n, p in model.named_parameters() if "conv" in n])
    learned = torch.cat([p.flatten() for n, p in network.named_parameters() if "conv" in n])
    assert not torch.equal(float_weights, learned)


def guided(**changes):
    asked = {"agent": "guided", "episodes": 12, "finalists": 1, "final_epochs": 0,
             "rounding_steps": 0}  # fmt: skip
    return small(**asked | changes)


@pytest.fixture(scope="module")
def led(tmp_path_factory):
    folder = tmp_path_factory.mktemp("led")
    return folder, run(guided(), folder)


def test_guided_begins_with_the_policy_of_ilp_and_gives_the_best_their_epoch(led, tmp_path):
    folder, summary = led
    trials = read_trials(folder)
    run(small(agent="ilp", episodes=1, rounding_steps=0), tmp_path)
    assert trials[0].policy == policies(tmp_path)
    tuned = {row["episode"]: row["tuned_val_accuracy"] for row in summary["finalists"]}
    best = summary["best_episode"]
    # Conversion to integers moves an answer or two.
    assert summary["final_val_accuracy"] >= tuned.get(best, trials[best].accuracy) - 0.02
    assert policies(folder) == trials[summary["best_episode"]].policy


def test_the_policy_handed_over_is_never_worse_than_that_of_ilp_or_the_best_uniform_one(led):
    folder, summary = led
    trials, rows = read_trials(folder), summary["finalists"]
    # One finalist was asked for: the known answers take part beside it, with and without an epoch.
    finalists = [trials[row["episode"]].policy for row in rows]
    assert all(trial.policy in finalists for trial in (*trials[:3], best(trials)))
    assert len(finalists) <= 4
    assert summary["best_uniform"]["episode"] in (0, 1)  # the answer of ilp can be uniform
    reached = {
        row["episode"]: max(trials[row["episode"]].accuracy, row["tuned_val_accuracy"])
        for row in rows
    }
    assert reached[summary["best_episode"]] == max(reached.values())


def test_a_killed_guided_run_goes_on_to_the_same_end(led, tmp_path):
    whole, summary = led
    for name in ("job.json", "float.safetensors", "clips.safetensors", "sensitivity.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    lines = (whole / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_bytes(b"".join(lines[:5]))
    again = run(read_job(tmp_path), tmp_path)
    assert scores(tmp_path) == scores(whole)
    assert again["finalists"] == summary["finalists"]
    assert policies(tmp_path) == policies(whole)


@pytest.mark.parametrize("reward", ["loss", "agreement"])
def test_other_rewards(tmp_path, reward):
    asked = {"reward": reward, "finalists": 0, "episodes": 3}
    assert run(guided(**asked), tmp_path)["state"] == "finished"
    trials = read_trials(tmp_path)
    (of_float,) = {round(trial.reward + trial.loss, 6) for trial in trials}
    assert of_float == 0 if reward == "agreement" else of_float > 0


def test_inputs_without_labels_and_scores_are_enough_for_ilp(tmp_path):
    torch.manual_seed(0)
    model, inputs = build("digits_cnn"), load("digits").train.batch(torch.arange(256))[0]
    found = haq.search(model, inputs, agent="ilp", budgets=["avg_weight_bits=4"],
                       out=tmp_path / "run", rounding_steps=20)  # fmt: skip
    assert found.summary["cost"]["avg_weight_bits"] <= 4
    (trial,) = found.trials
    assert 0 <= trial.accuracy <= 1 and trial.loss >= 0
    assert found.summary["float_val_agreement"] == 1


def test_ilp_for_a_network_that_is_no_classifier(tmp_path):
    torch.manual_seed(0)
    found = haq.search(Detector().eval(), torch.randn(32, 3, 12, 12), agent="ilp",
                       budgets=["size=900B"], out=tmp_path / "run", rounding_steps=5)  # fmt: skip
    assert found.summary["budgets"][0]["achieved"] <= 900


def test_guided_plays_for_any_score(tmp_path):
    torch.manual_seed(0)
    model, inputs = Detector().eval(), torch.randn(16, 3, 12, 12)
    asked = {"evaluate": lambda network: float(network(inputs).mean()), "agent": "guided",
             "episodes": 3, "budgets": ["size=900B"], "rounding_steps": 2}  # fmt: skip
    found = haq.search(model, inputs, out=tmp_path / "run", **asked)
    assert len(found.trials) == 3
    assert "finalists" not in found.summary
    with pytest.raises(HaqError, match="reward loss: evaluate= gives one number"):
        haq.search(model, inputs, reward="loss", **asked)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"paper": True, "evaluation": "cheap"}, "paper fine-tunes in every episode"),
        ({"finalists": 3}, "every episode is fine-tuned already"),
    ],
)
def test_contradictions_are_said(fields, message):
    with pytest.raises(HaqError, match=message):
        small(**fields)
