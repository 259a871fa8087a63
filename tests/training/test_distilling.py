"""A student and its teacher in a training: every loss, every phase, and what stays untouched."""

import copy
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from readme_blocks import run_blocks
from torch import nn

from haq.datasets import load
from haq.datasets.tensors import TensorSplit
from haq.distillation.losses import LOSSES
from haq.distillation.regressor import regressor
from haq.distillation.settings import distillation_of, read_distillation
from haq.distillation.taps import find_taps, tapped
from haq.errors import HaqError
from haq.models import build
from haq.models.weights import save_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize, uniform
from haq.training.distilling import check_distilling, distilling
from haq.training.objective import Batch, Moment, labels_alone
from haq.training.scoring import logits, score
from haq.training.train import train

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SPLIT = TensorSplit(IMAGES, torch.arange(12) % 10, (0.0,), (1.0,))


def settings(asked):
    return distillation_of(read_distillation(asked))


@cache
def captured(name="digits_cnn", seed=7):
    torch.manual_seed(seed)
    return trace(build(name), IMAGES[:2])


def copied(seed=7):
    return copy.deepcopy(captured(seed=seed).traced).requires_grad_(True)


def quantized(graph=None):
    graph = graph or captured()
    return quantize(graph, uniform(graph, 2, 4), calibrate(graph, [IMAGES], "max"))


def terms(student, teacher, asked, done=0, total=4, epochs=1, **options):
    objective = distilling(teacher, settings(asked), **options)
    minimized = objective(student, lambda: IMAGES, epochs)
    batch = Batch(torch.arange(8), IMAGES[:8], SPLIT.labels[:8])
    moment = Moment(done, total, done * epochs // total, epochs)
    return {k: v.detach().item() for k, v in minimized.terms(batch, moment).items()}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def gradients(student, teacher, name):
    objective = distilling(teacher, settings({name: 1, "labels": 0}))
    minimized = objective(student, lambda: IMAGES, 1)
    batch = Batch(torch.arange(8), IMAGES[:8], SPLIT.labels[:8])
    loss = minimized.terms(batch, Moment(0, 4, 0, 1))[name]
    loss.backward()
    own = [p.grad.abs().max().item() for p in student.parameters() if p.grad is not None]
    return loss.item(), max(own, default=0.0)


every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
def test_a_copy_of_the_teacher_has_nothing_to_learn(name):
    value, gradient = gradients(copied().eval(), captured().traced, name)
    assert abs(value) < 1e-5 and gradient < 1e-4


@every_loss
def test_a_quantized_copy_has_and_leaves_the_teacher_bit_for_bit(name):
    teacher = copied().train()  # what mode it is in does not matter
    before, modes = state(teacher), [part.training for part in teacher.modules()]
    student = quantized()
    start = state(student)
    recipe = {"epochs": 1, "lr": 0.01, "seed": 0, "batch": 6}
    train(student, SPLIT, **recipe, objective=distilling(teacher, settings({name: 1})))
    assert same(before, state(teacher))
    assert [part.training for part in teacher.modules()] == modes
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.state_dict().keys() == start.keys() and not same(start, state(student))


class _Answers(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits, dtype=torch.float64)

    def forward(self, images):
        return self.logits


def test_labels_and_answers_together_by_hand():
    student, teacher = _Answers([[1, 2, 3], [1, 0, -1]]), _Answers([[3, 1, 0], [0, 0, 2]])
    objective = distilling(teacher, settings("kd:0.9"))
    minimized = objective(student, lambda: IMAGES, 1)
    batch = Batch(torch.arange(2), IMAGES[:2], torch.tensor([2, 0]))
    parts = {k: float(v) for k, v in minimized.terms(batch, Moment(0, 1, 0, 1)).items()}
    assert parts["labels"] == pytest.approx(0.1 * 0.407605964444, abs=1e-9)
    assert sum(parts.values()) == pytest.approx(1.696761029693, abs=1e-9)


def test_each_term_stands_alone_and_a_weight_of_0_is_not_computed():
    student, teacher = quantized(), captured().traced
    both = terms(student, teacher, "kd:0.5+hint:2")
    assert list(both) == ["labels", "kd", "hint"]
    assert both["hint"] == pytest.approx(2 * terms(student, teacher, "hint:1")["hint"])
    assert list(terms(student, teacher, "kd:1+hint:0")) == ["kd"]
    first, last = (terms(student, teacher, "kd:1..0", done) for done in (0, 3))
    assert (list(first), list(last)) == (["kd"], ["labels"])


def test_a_step_tells_its_terms():
    steps = []
    objective = distilling(captured().traced, settings("kd:0.9+hint:1"))
    train(quantized(), SPLIT, epochs=1, lr=0.01, seed=0, batch=6, objective=objective,
          on_step=steps.append)  # fmt: skip
    assert all(step.loss == pytest.approx(sum(step.terms.values())) for step in steps)
    assert str(steps[0]).startswith(f"loss {steps[0].loss:.3f} (labels ")


def test_self_study_learns_from_labels_and_co_study_trains_a_copy_of_the_teacher():
    student, teacher = quantized(), captured().traced
    asked = "kd:0.9+self-study:0.25+co-study:0.5"
    phases = [list(terms(student, teacher, asked, done, 5)) for done in range(5)]
    assert phases == [["labels"], *[["labels", "kd", "teacher"]] * 2, *[["labels", "kd"]] * 2]


@pytest.mark.parametrize("feedback", [0, 1])
def test_co_study_leaves_the_teacher_itself_and_teaches_by_its_copy(feedback):
    teacher, student = captured().traced, quantized()
    before = state(teacher)
    asked = {"kd": 0.9, "co_study": 0.5, "feedback": feedback}
    objective, extras = distilling(teacher, settings(asked)), []

    def watched(*arguments):
        extras.append(objective(*arguments))
        return extras[-1]

    train(student, SPLIT, epochs=2, lr=0.05, seed=0, batch=6, objective=watched)
    assert same(before, state(teacher))
    assert not same(before, state(extras[0].extra.teacher))
    # What the last steps learned from is the copy, as it was when co-study ended.
    assert extras[0].extra.teacher.training is True  # and its own mode is left as it was


def test_feedback_changes_what_the_teacher_learns_and_not_what_the_student_does():
    weights = []
    for feedback in (0.0, 1.0):
        student, extra = quantized(), []
        objective = distilling(
            captured().traced, settings({"kd": 0.9, "co_study": 1, "feedback": feedback})
        )
        minimized = objective(student, lambda: IMAGES, 1)
        minimized.extra.train()
        batch = Batch(torch.arange(8), IMAGES[:8], SPLIT.labels[:8])
        sum(minimized.terms(batch, Moment(0, 2, 0, 1)).values()).backward()
        extra = [p.grad for p in minimized.extra.parameters() if p.grad is not None]
        weights.append(([p.grad for p in student.parameters()], extra))
    (mine, its), (again, heard) = weights
    assert all(torch.equal(*pair) for pair in zip(mine, again, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(its, heard, strict=True))


def test_the_route_is_taught_state_after_state(tmp_path):
    files = []
    for seed in (1, 2):
        files.append(str(tmp_path / f"{seed}.safetensors"))
        save_weights(captured(seed=seed).traced, files[-1])
    student, teacher = quantized(), captured().traced
    asked = {"kd": 1, "route": files}
    alone = [terms(student, captured(seed=seed).traced, "kd:1")["kd"] for seed in (1, 2, 7)]
    for epochs in (3, 1):  # an episode has one epoch, whose steps are shared
        told = [terms(student, teacher, asked, done, 3, epochs)["kd"] for done in range(3)]
        assert told == pytest.approx(alone)
    with pytest.raises(HaqError, match="2 states and the teacher do not go into 2 epochs"):
        check_distilling(settings(asked), teacher, IMAGES, 2)
    with pytest.raises(HaqError, match="nowhere.safetensors"):
        check_distilling(settings({"kd": 1, "route": ["nowhere.safetensors"]}), teacher, IMAGES, 2)


def test_taps_are_the_last_outputs_of_each_resolution_or_the_modules_named():
    graph = captured().traced
    taps = find_taps(graph, graph, IMAGES[:2])
    assert [tap.name for tap in taps] == ["8x8", "4x4"]
    assert [tuple(tap.shapes[0][1:]) for tap in taps] == [(16, 8, 8), (64, 4, 4)]
    (named,) = find_taps(graph, graph, IMAGES[:2], ["relu2=relu3"])
    (by_hand,) = find_taps(graph, graph, IMAGES[:2], ["bn2"])
    assert by_hand.student == "bn2" and named.student != named.teacher
    with pytest.raises(HaqError, match="unknown tap 'rellu2'; did you mean 'relu"):
        find_taps(graph, graph, IMAGES[:2], ["rellu2"])


def test_a_network_without_maps_has_the_tensor_its_last_layer_reads():
    graph = captured("digits_mlp").traced
    (tap,) = find_taps(graph, graph, IMAGES[:2])
    assert (tap.name, tuple(tap.shapes[0])) == ("last", (2, 32))
    with pytest.raises(HaqError, match=r"it compares maps \(N, C, H, W\), and tap 'last' gives"):
        check_distilling(settings("attention"), graph, IMAGES, 1)


def test_blocks_of_blocks_are_taps_by_their_own_names():
    torch.manual_seed(0)
    network = trace(build("resnet20"), torch.zeros(2, 3, 16, 16)).traced
    taps = find_taps(network, network, torch.zeros(2, 3, 16, 16))
    named = find_taps(
        network, network, torch.zeros(2, 3, 16, 16), ["layer1", "layer2", "layer3.2.relu2"]
    )
    assert [tap.student for tap in taps] == [tap.student for tap in named]


def test_a_tapped_network_is_the_same_network():
    network = quantized()
    twin = tapped(network, ["relu", "relu_1"], rounded=True)
    output, features = twin(IMAGES)
    assert torch.equal(output, network(IMAGES)) and len(features) == 2
    assert {id(p) for p in twin.parameters()} <= {id(p) for p in network.parameters()}
    assert len(features[0].unique()) <= 256  # rounded
    assert isinstance(network(IMAGES), torch.Tensor)


def test_the_teachers_features_go_through_the_students_quantizer():
    student, teacher = quantized(), captured().traced
    plain, rounded = (
        terms(student, teacher, f"hint:1+taps:relu1{more}")["hint"]
        for more in ("", "+through-quantizer")
    )
    _, (features,) = tapped(student, ["relu"], rounded=True)(IMAGES[:8])
    _, (its,) = tapped(teacher, ["relu"], rounded=False)(IMAGES[:8])
    rounding = student.get_submodule("quantizers.relu_read")
    by_hand = (features - rounding(its)).square().mean().item()
    assert rounded == pytest.approx(by_hand, rel=0.05) and plain != rounded
    with pytest.raises(HaqError, match="nothing rounds tap 'relu1' in the student"):
        terms(copied(), teacher, "hint:1+taps:relu1+through-quantizer")


def test_other_shapes_need_a_regressor_which_is_trained_and_thrown_away():
    teacher, student = captured().traced, captured("digits_cnn", 3).traced
    objective = partial(distilling, teacher, student=student)
    with pytest.raises(HaqError, match=r"tap 'relu2=relu4' has 32x4x4 in the student and 64x4x4"):
        objective(settings("hint:1+taps:relu2=relu4"))(student, lambda: IMAGES, 1)
    minimized = objective(settings("hint:1+taps:relu2=relu4+regressor"))(student, lambda: IMAGES, 1)
    (one,) = minimized.extra.regressors
    assert tuple(one[0].weight.shape) == (64, 32, 1, 1)
    mine = copied(3)
    keys, before = mine.state_dict().keys(), state(minimized.extra)
    train(mine, SPLIT, epochs=1, lr=0.1, seed=0, batch=6, objective=lambda *rest: minimized)
    assert mine.state_dict().keys() == keys and not same(before, state(minimized.extra))


@pytest.mark.parametrize(
    "student, teacher, kernel",
    [
        ((2, 4, 8, 8), (2, 6, 4, 4), (6, 4, 3, 3)),
        ((2, 4, 4, 4), (2, 6, 8, 8), (4, 6, 4, 4)),
        ((2, 4, 7, 6), (2, 6, 5, 5), (6, 4, 3, 2)),
        ((2, 4), (2, 6), (6, 4)),
    ],
)
def test_a_regressor_leads_from_one_shape_to_the_other(student, teacher, kernel):
    layer = regressor("tap", torch.Size(student), torch.Size(teacher))
    assert tuple(layer[0].weight.shape) == kernel
    assert tuple(layer(torch.zeros(student)).shape) == teacher


@pytest.mark.parametrize("student, teacher", [((2, 4, 4, 4), (2, 6, 5, 5)), ((2, 4), (2, 6, 5, 5))])
def test_where_no_convolution_leads_is_said(student, teacher):
    with pytest.raises(HaqError, match=r"no regressor leads from 4.* to 6x5x5 of the teacher"):
        regressor("tap", torch.Size(student), torch.Size(teacher))


def test_a_training_with_regressors_goes_on_after_an_interruption(tmp_path):
    asked = settings("hint:1+taps:relu2=relu4+regressor+kd:0.5+co-study:0.5")

    def trained(keep=None, stop=None):
        def on_step(step):
            if step.done == stop:
                raise KeyboardInterrupt

        student = copied(3)
        objective = distilling(captured().traced, asked, student=captured(seed=3).traced)
        train(student, SPLIT, epochs=3, lr=0.05, seed=0, batch=6, objective=objective, keep=keep,
              on_step=on_step)  # fmt: skip
        return student

    whole, keep = trained(), tmp_path / "w.part"
    with pytest.raises(KeyboardInterrupt):
        trained(keep, 5)
    assert same(state(whole), state(trained(keep)))


def _mlp(hidden, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def test_a_student_that_never_saw_a_three_knows_threes_from_its_teacher():
    data = load("digits")
    images, labels = data.train.images, data.train.labels
    teacher = _mlp(128, 0)
    whole = TensorSplit(images, labels, data.mean, data.std)
    train(teacher, whole, epochs=15, lr=0.1, seed=0, batch=64)
    known = labels != 3
    part = TensorSplit(images[known], labels[known], data.mean, data.std)
    threes, _ = data.test.batch((data.test.labels == 3).nonzero().flatten())
    taught = distilling(teacher, settings("kd:1+temperature:8"))
    for seed in range(5):
        recalls = []
        for objective in (taught, labels_alone):
            student = _mlp(64, seed + 1)
            train(student, part, epochs=10, lr=0.05, seed=seed, batch=64, objective=objective)
            recalls.append(float((logits(student, threes).argmax(1) == 3).float().mean()))
        assert recalls[0] >= 0.85 and recalls[1] == 0


def test_tokens_have_no_gradient():
    with pytest.raises(HaqError, match="the inputs are tokens, which have no gradient"):
        check_distilling(settings("gradient"), captured().traced, torch.ones(2, 3).long(), 1)


def test_two_bits_recover_more_with_the_teacher_than_with_labels_alone():
    """C-K4 on digits: a small network, all of it at 2 bits, few images, the same steps for both.

    ResNet-20 on CIFAR-10 is in results/reference/distillation.json.
    """
    data = load("digits")
    images, labels = data.train.images, data.train.labels
    torch.manual_seed(0)
    floats = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    whole = TensorSplit(images, labels, data.mean, data.std)
    train(floats, whole, epochs=20, lr=0.05, seed=0, batch=64)
    some, _ = whole.batch(torch.arange(256))
    graph = trace(floats, some[:2])
    clips, policy = calibrate(graph, [some], "mse"), uniform(graph, 2, 8, edge=2)
    taught = distilling(graph.traced, distillation_of({"kd": 0.9}))
    gains = []
    for seed in range(6):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:128]
        part = TensorSplit(images[order], labels[order], data.mean, data.std)
        right = []
        for objective in (labels_alone, taught):
            student = quantize(graph, policy, clips)
            train(student, part, epochs=6, lr=0.01, seed=seed, batch=32, decay="weights",
                  objective=objective)  # fmt: skip
            right.append(score(student, data.test).accuracy + score(student, data.val).accuracy)
        gains.append((right[1] - right[0]) / 2)
    assert sum(gains) / len(gains) >= 0.005


def test_the_page_on_distillation_does_what_it_says():
    names = run_blocks(Path(__file__).parents[2] / "docs/distillation.md")
    data, student = names["data"], names["student"]
    threes, _ = data.test.batch((data.test.labels == 3).nonzero().flatten())
    assert float((logits(student, threes).argmax(1) == 3).float().mean()) >= 0.85
