"""Models and data of the caller's own: what is accepted, and what is said of the rest at once."""

import inspect
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import haq
from haq.datasets import load
from haq.errors import DataError, HaqError, ModelError
from haq.hw_profiles.measure import onnx_runtime
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.models import build
from haq.runs.api import search
from haq.runs.job import Job
from haq.runs.own import own_task
from haq.runs.progress import Progress
from haq.runs.verify import verify

QUICK = {"budgets": ["avg_weight_bits=6"], "rounding_steps": 2, "threads": 1}


def mlp(inputs=8, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes)
    ).eval()


def splits(shape=(8,), labels=(0, 1, 2, 3), count=40, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *shape, generator=generator).to(dtype)
    numbers = torch.tensor([labels[i % len(labels)] for i in range(count)])
    return [(inputs, numbers)] * 3


class Returning(nn.Module):
    """A network whose forward gives its logits in something."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = mlp(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


@dataclass
class Answer:
    logits: torch.Tensor


# --- the signature ---------------------------------------------------------------------------


def test_search_has_a_typed_keyword_for_every_field_of_a_job():
    parameters = inspect.signature(search).parameters
    own = {"evaluate", "out", "resume", "on_progress", "on_trial", "track"}
    asked = {name: field for name, field in Job.model_fields.items() if name != "transforms"}
    assert set(parameters) == {*asked, *own}
    assert all(p.annotation is not p.empty for p in parameters.values())
    for name, field in asked.items():
        assert parameters[name].default in (field.default, None), name
        assert f"{name}: " in search.__doc__


def test_the_version_is_that_of_the_package():
    assert haq.__version__.count(".") >= 1


# --- outputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap, said",
    [
        (lambda y: {"a": y, "b": y}, "gives a dict of 'a', 'b', not a tensor of floats: wrap"),
        (lambda y: (y, y), "gives a tuple, not a tensor of floats: wrap"),
        (lambda y: y.argmax(1), "gives a torch.int64, not a tensor of floats: wrap"),
    ],
)
@pytest.mark.parametrize("data", [splits(), torch.randn(40, 8)], ids=["labels", "inputs"])
@pytest.mark.parametrize("agent", ["guided", "ilp"])
def test_outputs_that_are_not_one_tensor_are_refused_at_once(tmp_path, wrap, said, data, agent):
    with pytest.raises(ModelError, match=said):
        search(Returning(wrap), data, agent=agent, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_needs_logits_whatever_scores_them(tmp_path):
    with pytest.raises(ModelError, match='with labels, evaluation="cheap" and finalists=0'):
        search(Returning(lambda y: {"a": y, "b": y}), splits(), evaluate=lambda _: 0.5,
               out=tmp_path / "run", **QUICK)  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_answers_without_floats_cannot_be_compared(tmp_path):
    with pytest.raises(ModelError, match=r"gives a torch.int64 and no tensor of floats: wrap"):
        search(Returning(lambda y: y.argmax(1)), torch.randn(40, 8), evaluate=lambda _: 0.5,
               agent="ilp", out=tmp_path / "run", **QUICK)  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrap", [lambda y: {"ids": y.argmax(1), "logits": y}, lambda y: (y, y.sum(1)), Answer]
)
@pytest.mark.parametrize("data", [splits(), torch.randn(70, 8)], ids=["labels", "inputs"])
@pytest.mark.parametrize("agent, more", [("ilp", {}), ("guided", {"finalists": 0, "episodes": 3})])
def test_outputs_of_any_structure_will_do_where_the_caller_scores(
    tmp_path, wrap, data, agent, more
):
    run = search(Returning(wrap), data, evaluate=lambda _: 0.25, agent=agent, out=tmp_path / "run",
                 **QUICK | {"rounding_steps": 2} | more)  # fmt: skip
    assert run.summary["final_val_score"] == 0.25


@pytest.mark.parametrize(
    "wrap", [lambda y: {"logits": y}, lambda y: (y, y.sum()), lambda y: y.argmax(1)]
)
def test_any_output_will_do_where_the_caller_scores_and_nothing_else_looks_at_it(tmp_path, wrap):
    model = Returning(wrap)
    run = search(model, torch.randn(70, 8), evaluate=lambda network: 0.25, agent="random",
                 episodes=2, budgets=["avg_weight_bits=6"], threads=1,
                 out=tmp_path / "run")  # fmt: skip
    assert run.summary["final_val_score"] == 0.25


def test_scores_of_ones_own_do_not_need_as_many_outputs_as_classes(tmp_path):
    run = search(mlp(classes=2), splits(labels=range(5)), evaluate=lambda network: 0.25,
                 agent="ilp", finalists=0, out=tmp_path / "run", **QUICK)  # fmt: skip
    assert run.summary["final_val_score"] == 0.25
    with pytest.raises(ModelError, match="gives 2 numbers for one input; data has 5 classes"):
        search(mlp(classes=2), splits(labels=range(5)), evaluate=lambda network: 0.25,
               out=tmp_path / "tuned", **QUICK)  # fmt: skip


def test_labels_need_logits(tmp_path):
    with pytest.raises(ModelError, match=r"gives a tensor of 1x4x1 for 1 input, and labels need"):
        search(Returning(lambda y: y.unsqueeze(2)), splits(), out=tmp_path / "run", **QUICK)


# --- scores ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, said",
    [
        (float("nan"), "evaluate= gives nan for the float network; it must give a finite number"),
        (float("-inf"), "evaluate= gives -inf for the float network"),
        ("good", "evaluate= gives 'good'; it must give a number"),
        (None, "evaluate= gives None; it must give a number"),
    ],
)
@pytest.mark.parametrize("data", [splits(), torch.randn(40, 8)], ids=["labels", "inputs"])
def test_scores_of_the_float_network_that_are_none_are_refused(tmp_path, data, given, said):
    with pytest.raises(HaqError, match=said):
        search(mlp(), data, evaluate=lambda _: given, agent="ilp", out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_policy_whose_score_is_no_number_never_wins(tmp_path):
    values = iter([0.5, float("nan"), 0.25, float("nan"), 0.125])
    run = search(mlp(), torch.randn(40, 8), evaluate=lambda _: next(values, 0.25), agent="random",
                 evaluation="finetune", episodes=4, budgets=["avg_weight_bits=6"], threads=1,
                 out=tmp_path / "run")  # fmt: skip
    assert run.trials[0].stopped and run.trials[2].accuracy < run.trials[0].accuracy < 0
    assert run.summary["best_episode"] == 1 and run.trials[1].accuracy == 0.25


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("data", [splits(), torch.randn(40, 8)], ids=["labels", "inputs"])
def test_weights_that_are_no_numbers_are_named_at_once(tmp_path, data, broken):
    model = mlp()
    model[2].weight.data[0, 0] = broken
    with pytest.raises(ModelError, match="layer '2' has weights that are not finite numbers"):
        search(model, data, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_activations_that_are_no_numbers_leave_nothing_behind(tmp_path):
    model = mlp()
    model[2].weight.data.fill_(1e38)
    with pytest.raises(ModelError, match="has activations that are not finite numbers"):
        search(model, torch.randn(40, 8), agent="ilp", out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


# --- data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_and_networks_of_other_floats_are_brought_to_float32(tmp_path, dtype):
    inputs = torch.randn(40, 8).to(dtype)
    task = own_task(mlp(), inputs, None, {})
    assert task.inputs.dtype == torch.float32
    assert task.notes == (f"the inputs were brought from {dtype} to torch.float32",)
    run = search(mlp(), splits(dtype=dtype), agent="ilp", out=tmp_path / "run", **QUICK)
    assert 0 <= run.summary["final_test_accuracy"] <= 1


def test_labelled_rows_are_enough(tmp_path):
    run = search(mlp(), splits(), episodes=3, finalists=1, out=tmp_path / "run", **QUICK)
    assert run.summary["cost"]["avg_weight_bits"] <= 6
    assert run.summary["images"]["shape"] == [8]


def test_the_sample_is_the_first_of_the_callers_own_inputs():
    inputs = torch.randn(40, 8)
    assert torch.equal(own_task(mlp(), inputs, None, {}).sample, inputs[:2])
    task = own_task(mlp(), splits(), None, {})
    assert torch.equal(task.sample, splits()[0][0][:1])


@pytest.mark.parametrize(
    "data, said",
    [
        (torch.randn(0, 8), "data= is a tensor of 0x8; give inputs"),
        (torch.randn(8), "data= is a tensor of 8; give inputs"),
        (torch.ones(4, 8, dtype=torch.bool), "data= is a torch.bool tensor; give floats"),
        (torch.full((4, 8), torch.nan), "input 0 of data= holds NaN or infinity"),
        ((torch.randn(4, 8), torch.randn(4, 8)), "must return three splits"),
    ],
)
def test_inputs_that_cannot_be_used_are_named(data, said):
    with pytest.raises(DataError, match=said):
        own_task(mlp(), data, None, {})


@pytest.mark.parametrize("count, said", [(63, True), (64, False)])
def test_agreement_on_what_was_corrected_on_is_said_to_be_too_high(tmp_path, count, said):
    run = search(mlp(), torch.randn(count, 8), agent="ilp", out=tmp_path / "run", **QUICK)
    note = f"agreement is scored on the same inputs that the network is corrected on ({count})"
    assert any(text.startswith(note) for text in run.summary["notes"]) == said


def test_few_inputs_are_said_to_be_few():
    (note,) = own_task(mlp(), torch.randn(5, 8), None, {}).notes
    assert note.startswith("5 inputs are few: clips and statistics taken from them are rough")
    (note,) = own_task(mlp(), torch.randn(1, 8), None, {}).notes
    assert note.startswith("1 input is few: ")


class Pair(nn.Module):
    def forward(self, left, right):
        return left + right


def test_a_network_of_two_inputs_is_refused_in_one_true_sentence():
    with pytest.raises(ModelError, match=r"Pair takes 2 inputs \(left, right\), and the data "
                                         "have one: give a dict"):  # fmt: skip
        own_task(Pair(), torch.randn(4, 8), None, {})


# --- labels ----------------------------------------------------------------------------------


def test_the_networks_output_says_how_many_classes_there_are(tmp_path):
    run = search(mlp(classes=10), splits(labels=(0, 2, 5)), agent="ilp", out=tmp_path / "run",
                 **QUICK)  # fmt: skip
    assert run.summary["images"]["classes"] == list("0123456789")


def test_a_label_beyond_the_outputs_is_named():
    with pytest.raises(DataError, match="label 4 of image 2 in the train split of data is not in "
                                        "0..3: the network gives 4 outputs"):  # fmt: skip
        own_task(mlp(), splits(labels=(0, 1, 4)), None, {})
    with pytest.raises(ModelError, match="gives 4 numbers for one input; digits has 10 classes"):
        own_task(nn.Sequential(nn.Flatten(), mlp(64)), load("digits"), None, {})


# --- wrappers and frozen networks ------------------------------------------------------------


class Compiled(nn.Module):
    """Looks like what torch.compile gives, without the time that importing it takes."""

    def __init__(self, inner):
        super().__init__()
        self._orig_mod = inner

    def forward(self, x):
        return self._orig_mod(x)


@pytest.mark.parametrize("wrap", [Compiled, nn.DataParallel])
def test_wrappers_are_taken_off(tmp_path, wrap):
    run = search(wrap(mlp()), torch.randn(40, 8), agent="ilp", out=tmp_path / "run", **QUICK)
    assert list(run.policy) == ["0", "2", "4"]


def test_a_frozen_network_is_ours_to_train(tmp_path):
    model = mlp().requires_grad_(False)
    asked = QUICK | {"rounding_steps": 0}
    run = search(model, splits(), agent="random", episodes=2, out=tmp_path / "run", **asked)
    assert len(run.trials) == 2
    assert not any(p.requires_grad for p in model.parameters())


# --- scores ----------------------------------------------------------------------------------


def test_a_score_that_is_no_number_is_the_worst_trial_and_the_search_goes_on(tmp_path):
    calls = []

    def score(network):
        calls.append(len(calls))
        return float("nan") if len(calls) in (2, 3) else -float(len(calls))

    run = search(mlp(), torch.randn(40, 8), evaluate=score, agent="random", episodes=5,
                 evaluation="finetune",
                 out=tmp_path / "run", **QUICK)  # fmt: skip
    lost = [trial for trial in run.trials if trial.stopped]
    # One less than the worst so far, which is the float network's -1 at first.
    assert lost[0].accuracy == -2.0 and all(trial.accuracy <= -2.0 for trial in lost)
    assert len(run.trials) == 5 and not run.trials[run.summary["best_episode"]].stopped


# --- what is told ----------------------------------------------------------------------------


def test_the_start_says_how_much_of_the_weights_stays_float(tmp_path):
    class Mostly(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
            self.middle = nn.LayerNorm(8)

        def forward(self, x):
            return self.last(self.middle(self.first(x)))

    seen: list[Progress] = []
    asked = QUICK | {"budgets": ["avg_weight_bits=8"], "pins": {}}
    run = search(Mostly(), torch.randn(40, 8), agent="ilp", out=tmp_path / "run",
                 on_progress=seen.append, **asked)  # fmt: skip
    plan = next(one for one in seen if one.stage == "plan")
    # 64 + 32 weights, and a scale and a shift for each of 8 features
    # They are counted: (96 w + 16 * 32) / 112 bits on average, so that 8 are 4 for the layers.
    assert run.summary["cost"]["avg_weight_bits"] == pytest.approx((96 * 4 + 16 * 32) / 112)
    assert "14.3% of the weights stay float32 and count as such: middle" in plan.note


def test_make_env_plays_the_real_evaluation():
    torch.manual_seed(0)
    model, inputs = mlp(), torch.randn(64, 8)
    env = haq.make_env(model, inputs, "avg_weight_bits=6", pins={}, threads=1)
    env.reset()
    ended = False
    while not ended:
        _, reward, ended, _, info = env.step(env.action_space.sample())
    assert reward == pytest.approx(10 * (info["accuracy"] - 1))
    assert 0 <= info["accuracy"] <= 1
    assert info["cost"]["avg_weight_bits"] <= 6


def test_make_env_knows_names_and_refuses_what_search_refuses():
    with pytest.raises(HaqError, match="unknown data 'digit'"):
        haq.make_env("digits_mlp", "digit", "avg_weight_bits=6")
    with pytest.raises(HaqError, match="cannot read budget"):
        haq.make_env(build("digits_mlp"), load("digits"), "avg_weight_bits")


class Words(nn.Module):
    """Scores 16 tokens of 50 kinds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.last = nn.Embedding(50, 8), nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, tokens):
        return self.last(torch.relu(self.mix(self.embed(tokens))).mean(1))


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_a_network_of_tokens_goes_the_whole_way(tmp_path, kind):
    tokens = torch.randint(50, (70, 16), generator=torch.Generator().manual_seed(0)).to(kind)
    model = Words().eval()
    run = search(model, tokens, agent="ilp", out=tmp_path / "run",
                 **QUICK | {"budgets": ["avg_weight_bits=24"], "pins": {}})  # fmt: skip
    with torch.no_grad():
        answer = run.model(tokens)
    for place, source in enumerate((run, run.folder)):
        haq.export_checkpoint(source, tmp_path / f"{place}.safetensors", model=model)
        network = haq.load(tmp_path / f"{place}.safetensors", model=Words())
        assert torch.equal(network(tokens), answer)
        file = haq.export_onnx(source, tmp_path / f"{place}.onnx", model=model)
        result = verify(tmp_path / f"{place}.onnx")
        assert result["equal_images"] == result["simulated_images"] == 100
    session = onnx_runtime.session(file.SerializeToString(), Setup())
    answers = onnx_runtime.answers(session, tokens.long().numpy())
    assert torch.allclose(torch.from_numpy(answers), answer, atol=0.02 * float(answer.std()))


def test_floats_that_stand_for_indices_go_the_whole_way(tmp_path):
    class Cast(Words):
        def forward(self, x):
            return super().forward(x.long())

    inputs = torch.randint(50, (70, 16), generator=torch.Generator().manual_seed(0)).float()
    model = Cast().eval()
    run = search(model, inputs, agent="ilp", out=tmp_path / "run",
                 **QUICK | {"budgets": ["avg_weight_bits=24"], "pins": {}})  # fmt: skip
    haq.export_onnx(run.folder, tmp_path / "it.onnx", model=model)
    haq.export_checkpoint(run.folder, tmp_path / "it.safetensors", model=model)
    with torch.no_grad():
        network = haq.load(tmp_path / "it.safetensors", model=model)
        assert torch.equal(network(inputs), run.model(inputs))


def test_a_network_that_computes_in_float32_alone_is_compared_in_it(tmp_path):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mix = nn.Linear(6, 16), nn.Linear(16, 16)
            self.cell = nn.GRU(16, 8, batch_first=True)
            self.last = nn.Linear(8, 4)

        def forward(self, x):
            x = self.mix(torch.relu(self.first(x)))
            return self.last(self.cell(x)[0][:, -1])

    torch.manual_seed(0)
    run = search(Recurrent().eval(), torch.randn(70, 3, 6), agent="ilp", out=tmp_path / "run",
                 **QUICK | {"budgets": ["avg_weight_bits=31"]})  # fmt: skip
    haq.export_onnx(run, tmp_path / "it.onnx")
    assert verify(tmp_path / "it.onnx")["equal_images"] == 100


def test_inputs_alone_are_learned_from_without_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model, inputs = mlp(), torch.randn(80, 8)
    plain, taught = (
        haq.search(model, inputs, agent="ilp", rounding_steps=0, pins={}, out=name, **more).model
        for name, more in (("plain", {}), ("taught", {"final_epochs": 2, "lr": 0.05}))
    )
    weights = zip(plain.parameters(), taught.parameters(), strict=True)
    assert not all(torch.equal(*pair) for pair in weights)


@pytest.mark.parametrize(
    "distill, said",
    [
        (False, "inputs alone have no labels to learn from"),
        ({"kd": 1, "labels": 0.5}, "distill labels: it needs labels, and inputs alone have none"),
        ({"gradient": 1}, "distill gradient: it needs labels"),
        ({"kd": 0.9, "self_study": 0.5}, "distill self_study: it needs labels"),
        ({"hint": 1, "taps": ["7"]}, "unknown tap '7'"),
    ],
)
def test_inputs_alone_cannot_be_learned_from_with_labels(tmp_path, monkeypatch, distill, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HaqError, match=said):
        haq.search(mlp(), torch.randn(40, 8), agent="ilp", final_epochs=1, distill=distill)
    assert not [*tmp_path.rglob("*.json")]
