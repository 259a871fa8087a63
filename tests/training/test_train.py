import math

import pytest
import torch
from torch import nn

from haq.datasets import load
from haq.datasets.tensors import TensorSplit
from haq.distillation.settings import distillation_of, read_distillation
from haq.errors import DivergedError, HaqError
from haq.models import build
from haq.training.distilling import distilling
from haq.training.scoring import TEMPERATURE, logits, score
from haq.training.teacher import teacher_from
from haq.training.train import _one_cycle, train

QUICK = {"epochs": 1, "lr": 0.05, "seed": 3, "batch": 8}


def images(count=24):
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(count, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return TensorSplit(pictures, labels, (0.0,), (1.0,))


def network(name="digits_cnn"):
    torch.manual_seed(7)
    return build(name)


def trained(model, split=None, **options):
    train(model, split or images(), **QUICK | options)
    return model


def teaching(answers, asked="kd:0.9"):
    settings = distillation_of(read_distillation(asked))
    return distilling(nn.Module(), settings, answers=answers)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Recorded:
    """A split that remembers what it was asked for."""

    def __init__(self, split):
        self.split, self.labels, self.asked = split, split.labels, []

    def __len__(self):
        return len(self.split)

    def batch(self, index, generator=None):
        self.asked.append((index.tolist(), generator is not None))
        return self.split.batch(index, generator)


def test_digits_are_learned():
    data = load("digits")
    model = network("digits_mlp")
    train(model, data.train, epochs=10, lr=0.1, seed=0, batch=32)
    assert score(model, data.val).accuracy > 0.9


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    data = load("digits")
    part = TensorSplit(
        data.train.images[:60], data.train.labels[:60], data.mean, data.std, data.train.augment
    )
    one, again, other = (trained(network(), part, seed=seed) for seed in (3, 3, 4))
    assert same(one, again)
    assert not same(one, other)


def test_dropout_follows_the_seed_and_leaves_the_random_state_of_torch():
    def dropping():
        torch.manual_seed(7)
        return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))

    models = [dropping(), dropping()]
    for state, model in enumerate(models):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        trained(model)
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*models)


def test_gradients_left_by_others_do_not_count():
    clean, stale = network(), network()
    for parameter in stale.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert same(trained(clean), trained(stale))


def test_every_image_is_seen_once_an_epoch_and_augmented():
    split = Recorded(images(24))
    trained(network(), split, epochs=2, batch=10)
    assert [len(index) for index, _ in split.asked] == [10, 10, 4] * 2
    seen = [i for index, _ in split.asked for i in index]
    assert sorted(seen[:24]) == sorted(seen[24:]) == list(range(24))
    assert seen[:24] != seen[24:]
    assert all(augmented for _, augmented in split.asked)


@pytest.mark.parametrize(
    "count, batch, sizes",
    [
        (5, 2, [2, 2]),
        (6, 4, [4, 2]),
        (4, 2, [2, 2]),
        (3, 1, [1, 1, 1]),
        (1, 8, [1]),
    ],
)
def test_a_last_batch_of_one_image_is_left_out(count, batch, sizes):
    split, steps = Recorded(images(count)), []
    trained(network("digits_mlp"), split, batch=batch, on_step=steps.append)
    assert [len(index) for index, _ in split.asked] == sizes
    assert [(step.done, step.total) for step in steps] == [
        (done + 1, len(sizes)) for done in range(len(sizes))
    ]


def test_no_epochs_change_nothing():
    assert same(trained(network(), epochs=0), network())


def test_frozen_parameters_stay():
    model = network("digits_mlp")
    model.fc1.requires_grad_(False)
    trained(model)
    assert torch.equal(model.fc1.weight, network("digits_mlp").fc1.weight)
    assert not torch.equal(model.fc2.weight, network("digits_mlp").fc2.weight)


def test_training_ends_in_evaluation_mode():
    assert not trained(network()).training


def test_a_diverging_run_says_so():
    with pytest.raises(HaqError, match=r"diverged: the loss is (nan|inf); lower the learning rate"):
        trained(network("digits_mlp"), epochs=20, lr=1e12)


@pytest.mark.parametrize(
    "total, shares",
    [
        (1, [1]),
        (2, [1, 1]),
        (5, [1, 1, 3 / 4, 2 / 4, 1 / 4]),
        (20, [1 / 2, 1, *(n / 18 for n in range(18, 0, -1))]),
    ],
)
def test_the_learning_rate_rises_for_a_tenth_of_the_steps_and_falls(total, shares):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    schedule, rates = _one_cycle(optimizer, total), []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.2 * share for share in shares])
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("lr", [math.inf, -math.inf, math.nan, 1e39])
def test_a_rate_that_is_no_number_is_refused(lr):
    with pytest.raises(DivergedError, match=r"rate (-?inf|nan|1e\+39) is not a finite float32"):
        trained(network(), lr=lr)


def test_a_loss_that_is_no_number_says_so():
    model = network("digits_mlp")
    with pytest.raises(DivergedError, match="the loss is nan"):
        trained(
            model, objective=teaching(lambda index, images: torch.full((len(index), 10), math.nan))
        )


class Line(nn.Module):
    """One weight and one bias, as logits 0 and w x + b."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor([[2.0]])), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        y = x.flatten(1) * self.weight + self.bias
        return torch.cat([torch.zeros_like(y), y], 1)


def test_a_last_step_that_diverges_says_so():
    split = TensorSplit(torch.ones(2, 1, 1, 1), torch.tensor([0, 0]), (0.0,), (1.0,))
    with pytest.raises(DivergedError, match="weight is not a finite number; lower the learning"):
        train(Line(), split, epochs=1, lr=3e38, seed=0)


def test_a_mask_of_infinities_is_no_sign_of_divergence():
    model = Line()
    model.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    split = TensorSplit(torch.ones(2, 1, 1, 1), torch.tensor([0, 0]), (0.0,), (1.0,))
    train(model, split, epochs=1, lr=0.1, seed=0)
    model.mask[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="mask is not a finite number"):
        train(model, split, epochs=1, lr=0.1, seed=0)


def test_two_steps_of_nesterov_momentum_by_hand():
    model, rows = Line(), torch.ones(2, 1, 1, 1)
    split = TensorSplit(rows, torch.tensor([0, 0]), (0.0,), (1.0,))
    train(model, split, epochs=2, lr=0.1, seed=0, weight_decay=0, batch=2)
    # The cross-entropy of class 0 falls with w + b: its gradient is p = sigmoid(w + b) for both.
    # Of two steps the first has the whole rate, and so has the second.
    w, b, v = 2.0, 0.0, 0.0
    for _ in range(2):
        p = 1 / (1 + math.exp(-(w + b)))
        v = 0.9 * v + p
        w, b = w - 0.1 * (p + 0.9 * v), b - 0.1 * (p + 0.9 * v)
    assert model.weight.item() == pytest.approx(w) and model.bias.item() == pytest.approx(b)


@pytest.mark.parametrize("decay, bias", [("all", 3.0 * (1 - 0.1 * 0.5 * 1.9)), ("weights", 3.0)])
def test_weight_decay_spares_biases_on_request(decay, bias):
    model, rows = Line(), torch.ones(2, 1, 1, 1)
    model.bias.data.fill_(3.0)
    split = TensorSplit(rows, torch.tensor([0, 0]), (0.0,), (1.0,))
    # A teacher that agrees, and no labels: there is no gradient but that of the decay.
    train(
        model, split, epochs=1, lr=0.1, seed=0, weight_decay=0.5, decay=decay, batch=2,
        objective=teaching(lambda index, images: model(images).detach(), "kd:1"),
    )  # fmt: skip
    assert model.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5 * 1.9))
    assert model.bias.item() == pytest.approx(bias)


def test_answers_that_are_not_numbers_have_no_score():
    split = TensorSplit(torch.ones(4, 2, 1, 1), torch.zeros(4).long(), (0.0,) * 2, (1.0,) * 2)
    nothing = nn.Sequential(nn.Flatten(), nn.Threshold(9.0, math.nan))
    with pytest.raises(DivergedError, match="answers that are not numbers"):
        score(nothing, split)


def test_a_quick_score_is_nearly_the_same():
    model, split = network(), images(200)
    assert score(model, split, quick=True).loss == pytest.approx(score(model, split).loss, rel=0.01)


def test_the_score_by_hand():
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).view(3, 2, 1, 1)
    split = TensorSplit(rows, torch.tensor([0, 1, 1]), (0.0, 0.0), (1.0, 1.0))
    by_hand = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))]
    for batch in (1, 2, 500):
        accuracy, loss, stopped = score(nn.Flatten(), split, batch)
        assert (accuracy, loss) == (2 / 3, pytest.approx(sum(by_hand) / 3))
        assert not stopped


def test_a_score_against_another_network_by_hand():
    rows = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    split = TensorSplit(rows.view(2, 2, 1, 1), torch.tensor([0, 1]), (0.0,) * 2, (1.0,) * 2)
    p = (torch.tensor([2.0, 0.0], dtype=torch.float64) / TEMPERATURE).softmax(0)
    apart = float((torch.log(0.5 / p) * 0.5).sum()) * TEMPERATURE**2
    by_hand = apart / 2  # the second answer agrees
    for batch in (1, 500):
        found = score(nn.Flatten(), split, batch, reference=torch.zeros(2, 2))
        assert found == (0.5, pytest.approx(by_hand), False)


def test_a_score_ends_where_chance_cannot_make_up_for_the_images_seen():
    right = torch.tensor([[1.0, 0.0]] * 100).view(100, 2, 1, 1)
    split = TensorSplit(right, torch.tensor([0, 1] * 50), (0.0,) * 2, (1.0,) * 2)
    # One half right of 20 images: 0.5 + 4 * sqrt(0.95 * 0.05 / 20) = 0.69, of 40 images 0.64.
    assert score(nn.Flatten(), split, batch=20, beat=0.95)[::2] == (0.5, True)
    assert score(nn.Flatten(), split, batch=20, beat=0.6)[::2] == (0.5, False)
    # 0.5 lies 3.4 standard errors of 20 images below 0.8; it takes four to stop there.
    few = TensorSplit(right[:40], torch.tensor([0, 1] * 20), (0.0,) * 2, (1.0,) * 2)
    assert score(nn.Flatten(), few, batch=20, beat=0.8)[::2] == (0.5, False)
    assert score(nn.Flatten(), split, batch=100, beat=0.95)[::2] == (0.5, False)  # none is left


def test_logits_are_those_of_evaluation_mode():
    model, pictures = network().train(), images(7).images
    expected = network().eval()(pictures)
    torch.testing.assert_close(logits(model, pictures), expected)
    quick = logits(model, pictures, quick=True)
    torch.testing.assert_close(quick, expected, atol=0.1, rtol=0.05)  # bfloat16
    assert quick.dtype == torch.float32
    assert same(model, network())


def test_the_teacher_is_left_bit_for_bit_and_its_answers_are_used():
    teacher = network().train()
    alone, taught = (
        trained(network()),
        trained(network(), objective=teaching(teacher_from(teacher))),
    )
    assert same(teacher, network())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not same(alone, taught)


def test_a_teacher_is_given_indices_and_the_images_that_stand_there():
    split, given = images(24), []

    def teacher(index, pictures):
        given.append(torch.equal(pictures, split.images[index]))
        return torch.zeros(len(index), 10)

    trained(network(), split, objective=teaching(teacher))
    assert given == [True, True, True]


def test_imitation_answers_with_the_logits_of_the_model():
    model, pictures = network(), images(5).images
    answer = teacher_from(model)(torch.arange(5), pictures)
    assert torch.equal(answer, logits(model, pictures, quick=True))


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path, steps):
    asked = {"epochs": 3, "split": images(24), "keep": tmp_path / "w.part"}  # three steps an epoch
    whole = trained(network(), **asked | {"keep": None})
    seen = []

    def interrupt(step):
        seen.append(step.done)
        if step.done == steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(network(), **asked, on_step=interrupt)
    seen.clear()
    again = trained(network(), **asked, on_step=lambda step: seen.append(step.done))
    assert seen[0] == steps // 3 * 3 + 1
    assert same(again, whole)


def test_another_training_is_not_gone_on_with(tmp_path):
    def stop(step):
        if step.done == 4:
            raise KeyboardInterrupt

    asked = {"epochs": 3, "keep": tmp_path / "w.part"}
    with pytest.raises(KeyboardInterrupt):
        trained(network(), **asked, on_step=stop)
    with pytest.raises(HaqError, match="left by another training"):
        trained(network(), **asked, seed=9)
