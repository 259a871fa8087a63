"""``haq search --widths``: bits and channels in one search, in all its ends."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import haq
from haq.allocation.policy import Bits, read_policy
from haq.datasets import load
from haq.errors import HaqError
from haq.models import build
from haq.models.weights import load_weights, packed, save_weights
from haq.reports.record import read_run
from haq.reports.report import report_html
from haq.runs.evaluation import CHECKED_ON, labeled
from haq.runs.executors.base import Request, payload, unpack
from haq.runs.folder import read_job, read_json, read_trials
from haq.runs.job import parse_job
from haq.runs.plan import plan
from haq.runs.restored import restored
from haq.runs.run import run

BUDGET = "size=2.2kB"
QUICK = {
    "val_images": 50, "calibration_images": 64, "rounding_steps": 2, "widths": (1, 0.75, 0.5),
    "budgets": (BUDGET,), "weights": "float.safetensors", "threads": 1, "finalists": 0,
    "evaluation": "cheap",
}  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    save_weights(build("digits_cnn"), "float.safetensors")
    yield
    torch.set_num_threads(threads)


def searched(name, **options):
    folder = Path(name)
    folder.mkdir()
    return folder, run(parse_job(**QUICK | options), folder)


def test_a_search_removes_channels_from_the_network_and_all_its_files():
    folder, summary = searched("run", agent="ilp")
    policy, rows = read_policy(folder / "policy.json"), summary["layers"]
    assert any(bits.keep < 1 for bits in policy.values())
    finished = restored(str(folder))
    shapes = {row["name"]: finished.network.get_parameter(f"{row['name']}.weight").shape
              for row in rows}  # fmt: skip
    for row in rows:
        assert row["channels"] == shapes[row["name"]][0] <= row["float_channels"]
        assert row["params"] - row["channels"] == shapes[row["name"]].numel()
    # What the layers cost is what the network costs.
    assert sum(row["cost"]["size"] for row in rows) == summary["cost"]["size"] <= 2200
    assert [one["transform"] for one in read_json(folder / "transforms.json")["transforms"]] == [
        "filters"
    ]
    haq.export_checkpoint(str(folder), "q.safetensors")
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        answers = finished.network(images)
        assert torch.equal(haq.load("q.safetensors")(images), answers)
    haq.export_onnx(str(folder), "q.onnx")
    onnx.checker.check_model("q.onnx")
    session = onnxruntime.InferenceSession("q.onnx", providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(given, answers.numpy(), atol=1e-4)
    record = read_run(folder)
    assert record.policy == policy
    page = report_html(folder)
    assert "Channels at" in page and "channel-table" in page


def test_a_search_that_was_cut_off_goes_on_to_the_same_end():
    folder, summary = searched("whole", agent="random", episodes=4)
    trials = read_trials(folder)
    assert len({bits.keep for trial in trials for bits in trial.policy.values()}) > 1
    shutil.copytree(folder, "cut")
    cut = Path("cut")
    for name in ("summary.json", "policy.json", "weights.safetensors", "transforms.json"):
        (cut / name).unlink(missing_ok=True)
    lines = (cut / "trials.jsonl").read_text().splitlines(keepends=True)
    (cut / "trials.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    again = run(parse_job(**QUICK, agent="random", episodes=4), cut)
    assert [t.policy for t in read_trials(cut)] == [t.policy for t in trials]
    assert again["layers"] == summary["layers"]
    for name in ("weights.safetensors", "policy.json", "transforms.json"):
        if (folder / name).exists():
            assert (cut / name).read_bytes() == (folder / name).read_bytes()


def test_what_stays_is_a_multiple_where_that_is_asked_for():
    _, summary = searched("run", agent="ilp", channel_multiple=16, budgets=("size=2.4kB",))
    rows = summary["layers"]
    assert any(row["channels"] < row["float_channels"] for row in rows)
    assert all(row["channels"] % 16 == 0 for row in rows if row["channels"] < row["float_channels"])
    network = restored("run").network
    assert all(
        len(network.get_parameter(f"{row['name']}.weight")) == row["channels"] for row in rows
    )


# Kills itself in the third of four episodes.
VICTIM = """
import os, signal, sys
from pathlib import Path
import torch
from haq.runs.folder import read_job
from haq.runs.run import run

torch.set_num_threads(1)

def die(where):
    if where.stage == "search" and where.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

run(read_job(Path("killed")), Path("killed"), die)
"""


def test_killed_with_9_and_gone_on_with_it_ends_as_undisturbed():
    folder, summary = searched("whole", agent="random", episodes=4)
    Path("killed").mkdir()
    shutil.copy(folder / "job.json", "killed")
    ended = subprocess.run([sys.executable, "-c", VICTIM], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    killed = Path("killed")
    assert 1 <= len(read_trials(killed)) < 4
    assert read_json(killed / "summary.json")["state"] != "finished"
    again = run(read_job(killed), killed)
    assert [(t.policy, t.accuracy) for t in read_trials(killed)] == [
        (t.policy, t.accuracy) for t in read_trials(folder)
    ]
    assert again["layers"] == summary["layers"]
    for name in ("policy.json", "transforms.json"):
        assert (killed / name).exists() == (folder / name).exists()
        assert not (folder / name).exists() or read_json(killed / name) == read_json(folder / name)
    one, other = (load_file(path / "weights.safetensors") for path in (killed, folder))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("agent", ["guided", "uniform", "ddpg"])
def test_every_agent_plays_channels(agent):
    _, summary = searched("run", agent=agent, episodes=2, reward="metric")
    assert summary["state"] == "finished" and summary["cost"]["size"] <= 2200


def test_codebooks_and_channels_are_chosen_together():
    folder, summary = searched("run", agent="ilp", schemes=("codebook",), budgets=("size=2.5kB",))
    policy = read_policy(folder / "policy.json")
    assert all(bits.is_book for bits in policy.values())
    assert any(bits.keep < 1 for bits in policy.values()) and summary["cost"]["size"] <= 2500
    assert "rounding" not in summary  # values of a codebook are not rounded to levels
    haq.export_checkpoint(str(folder), "q.safetensors")
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        answers = restored(str(folder)).network(images)
        assert torch.equal(haq.load("q.safetensors")(images), answers)


def test_other_processes_score_narrower_networks_as_this_one_does():
    job = parse_job(**QUICK | {"finalists": 1, "train_images": 40})
    data, model = load("digits"), build("digits_cnn")
    load_weights(model, Path("float.safetensors"))
    planned = plan(job, model.eval(), {"shape": [1, 8, 8]})
    evaluation = labeled(job, Path(), planned, data, lambda _: None)
    there = unpack(payload(planned.model, planned.sample, evaluation.scoring))
    policy = {layer.name: Bits(4, 8) for layer in planned.graph.layers}
    policy["conv4"] = Bits(4, 8, keep=0.5)
    for stage, network in (("episode", evaluation.network), ("tuned", evaluation.tuned)):
        here = network(policy)
        assert here.get_parameter("conv4.weight").shape[0] == 32
        result = there(Request(policy, stage))
        assert result.score == evaluation.score(here)
        assert result.weights == packed(here)


def test_an_accuracy_is_kept_with_fewer_channels():
    folder, summary = searched(
        "run", agent="ilp", max_drop=60, minimise="size", budgets=("size=3kB",), episodes=2,
        final_epochs=0,
    )  # fmt: skip
    assert summary["accuracy_target"]["met"] and summary["cost"]["size"] < 2200
    assert any(bits.keep < 1 for bits in read_policy(folder / "policy.json").values())


def test_a_target_with_a_formula_says_what_narrower_layers_cost():
    folder, summary = searched(
        "run", agent="ilp", target="bismo-edge", budgets=("latency=45%w8a8",), act_bits=8
    )
    rows = summary["layers"]
    assert any(row["channels"] < row["float_channels"] for row in rows)
    spent = sum(row["cost"]["latency"] for row in rows)
    assert spent == summary["cost"]["latency"] <= summary["budgets"][0]["limit"]
    assert "channel-table" in report_html(folder)


class Sums(nn.Module):
    """A residual sum, of which both layers lose the same channels."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.head((y + torch.relu(self.b(y))).mean((2, 3)))


def test_a_module_of_ones_own_is_searched_on_inputs_alone_and_read_again():
    torch.manual_seed(0)
    inputs = torch.randn(CHECKED_ON, 1, 8, 8)
    found = haq.search(
        Sums(), inputs, budgets=["size=0.8kB"], widths=[1, 0.5], agent="ilp", out="own",
        rounding_steps=2,
    )  # fmt: skip
    assert found.policy["a"].keep == found.policy["b"].keep == 0.5
    assert found.model.get_parameter("b.weight").shape == (8, 8, 3, 3)
    again = restored("own", Sums()).network
    with torch.no_grad():
        assert torch.equal(again(inputs), found.model(inputs))
    haq.export_checkpoint(found, "own.safetensors")
    loaded = haq.load("own.safetensors", Sums())
    with torch.no_grad():
        assert torch.equal(loaded(inputs), found.model(inputs))


def test_the_environment_has_a_step_for_channels_that_go_together():
    torch.manual_seed(0)
    env = haq.make_env(Sums(), torch.randn(64, 1, 8, 8), "size=0.8kB", widths=[1, 0.5])
    assert [tuple(step) for step in env.decisions if step.what == "channels"] == [("a", "channels")]
    for action in (0.1, 0.9):
        env.reset()
        for _ in range(env.n_steps):
            _, _, over, _, info = env.step(np.array([action]))
        assert over and info["policy"]["a"].keep == info["policy"]["b"].keep
    actions = env.actions(info["proposed"])
    assert env.policy(actions) == info["policy"]


@pytest.mark.parametrize(
    "more, sentence",
    [
        ({"budgets": ("avg_weight_bits=3",)}, "a budget on avg_weight_bits does not go with"),
        ({"budgets": ("coded_size=3kB",)}, "a budget on coded_size does not go with channels"),
        ({"widths": (1,)}, "--widths"),
        ({"widths": (1.5, 1)}, "--widths"),
        ({"widths": (1, 0.001)}, "--widths 1,0.001: no layer of this network can lose so many"),
        ({"channel_multiple": 512}, "keep a multiple of 512: its output or an operation"),
        ({"channel_multiple": 16, "widths": ()}, "--channel-multiple 16 is for --widths, and none"),
        ({"channel_multiple": 0}, "--channel-multiple 0: give of what the number of channels"),
        ({"schemes": ("codebook",), "act_bits": 4}, "--act-bits 4: with --scheme codebook no"),
        ({"distill": "hint:1", "final_epochs": 1}, "distill hint: it compares features of the"),
        ({"budgets": ("size=150B",)}, "no policy fits size <= 150 bytes"),
    ],
)
def test_what_cannot_be_searched_is_refused_and_leaves_nothing(more, sentence):
    folder = Path("refused")
    folder.mkdir()
    with pytest.raises(HaqError) as refused:
        run(parse_job(**QUICK | {"agent": "ilp"} | more), folder)
    assert sentence in str(refused.value)
    assert not folder.exists() or not any(folder.iterdir())
