from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from haq.allocation.policy import Bits
from haq.datasets.tensors import Data, TensorSplit, shift
from haq.metrics import METRICS
from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize, uniform
from haq.quantization.statistics import correct, statistics
from haq.runs import samples
from haq.runs.calibration import sensitivity_images
from haq.runs.evaluation import labeled
from haq.runs.evaluator import Evaluator, Recipe, compared, corrected, fine_tune, policy_seed
from haq.runs.job import parse_job
from haq.runs.places import Places
from haq.runs.plan import images_of, plan
from haq.runs.samples import Frozen, Part, freeze
from haq.training.scoring import score

RECIPE = Recipe(train_images=40, val_images=50, batch=16)


def split(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) * 10 // count  # sorted, as in a folder
    images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return TensorSplit(images, labels, (0.5,), (0.3,), lambda x, g: shift(x, g, pixels=1))


DATA = Data(
    "made", tuple("0123456789"), (1, 8, 8), (0.5,), (0.3,),
    train=split(60, 1), val=split(100, 2), test=split(10, 3),
)  # fmt: skip


@cache
def made():
    torch.manual_seed(0)
    model = build("digits_cnn")
    images, _ = DATA.train.batch(torch.arange(60))
    graph = trace(model, images)
    return graph, calibrate(graph, [images], "max")


def evaluator(seed=0, **changes):
    graph, clips = made()
    return Evaluator(graph, clips, DATA, RECIPE if not changes else Recipe(**changes), seed)


def scores(evaluator, policies):
    return [evaluator.score(evaluator.tuned(policy)) for policy in policies]


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def policies():
    return [uniform(made()[0], weight, 4) for weight in (2, 4, 3)]


def test_a_policy_has_the_same_score_whatever_was_evaluated_before():
    two, four, three = policies()
    once = scores(evaluator(), [two, four, three])
    torch.rand(7)
    assert scores(evaluator(), [three, two, two, four]) == [once[2], once[0], once[0], once[1]]


def test_the_tuned_weights_repeat_bit_for_bit_and_depend_on_the_seed():
    (policy, *_) = policies()
    one, again, other = (evaluator(seed).tuned(policy) for seed in (0, 0, 1))
    assert same(one, again)
    assert not same(one, other)


def test_every_evaluation_starts_from_the_float_weights():
    graph, clips = made()
    before = {name: value.clone() for name, value in graph.traced.state_dict().items()}
    (policy, *_) = policies()
    standing = evaluator(lr=0.0, train_images=40, val_images=50)
    standing.tuned(policy)
    tuned = dict(standing.tuned(policy).named_parameters())
    fresh = dict(quantize(graph, policy, clips).named_parameters())
    assert all(torch.equal(tuned[name], fresh[name]) for name in fresh)
    evaluator().tuned(policy)
    after = graph.traced.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_float_network_teaches_unless_it_is_told_not_to():
    (policy, *_) = policies()
    alone = evaluator(train_images=40, val_images=50, batch=16, distill=None)
    assert alone.teacher is None
    assert not same(alone.tuned(policy), evaluator().tuned(policy))


def test_the_score_counts_all_classes_of_a_sorted_split():
    images = evaluator().validation
    assert len(images) == 50
    assert set(images.labels.tolist()) == set(range(10))


def test_a_small_split_is_used_whole():
    greedy = evaluator(train_images=5000, val_images=2500)
    assert (len(greedy.images), len(greedy.validation)) == (60, 100)
    model = greedy.graph.traced
    assert greedy.score(model) == pytest.approx(score(model, DATA.val, quick=True))


def test_images_too_many_for_memory_are_read_as_they_are_needed(monkeypatch):
    (policy, *_) = policies()
    monkeypatch.setattr(samples, "FREEZABLE", 100)
    frugal = evaluator()
    assert isinstance(frugal.images, Part) and isinstance(frugal.validation, Part)
    assert scores(frugal, [policy]) == scores(frugal, [policy])


def test_a_part_counts_from_its_own_first_image():
    part = Part(DATA.val, torch.tensor([7, 3, 99]))
    images, labels = part.batch(torch.tensor([2, 0]))
    expected, numbers = DATA.val.batch(torch.tensor([99, 7]))
    assert torch.equal(images, expected)
    assert (len(part), part.labels.tolist()) == (3, [0, 0, 9])
    assert labels.tolist() == numbers.tolist() == [9, 0]


def test_a_part_is_augmented_by_the_generator_it_is_given():
    part, index = Part(DATA.val, torch.arange(20)), torch.arange(20)
    first, again = (part.batch(index, torch.Generator().manual_seed(4))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, part.batch(index)[0])


def test_frozen_images_are_augmented_once_and_no_more():
    part, index = Part(DATA.val, torch.arange(20)), torch.tensor([5, 2])
    frozen = freeze(part, torch.Generator().manual_seed(4))
    expected, _ = part.batch(torch.arange(20), torch.Generator().manual_seed(4))
    assert isinstance(frozen, Frozen) and len(frozen) == 20
    images, labels = frozen.batch(index, torch.Generator().manual_seed(9))
    assert torch.equal(images, expected[index])
    assert torch.equal(labels, part.labels[index])


def test_without_a_generator_images_are_frozen_as_they_are():
    part = Part(DATA.val, torch.arange(20))
    index = torch.arange(20)
    assert torch.equal(freeze(part).batch(index)[0], part.batch(index)[0])


def test_the_seed_of_a_policy_by_hand():
    # sha256('[7, [["a", 8, 4], ["b", 2, 3]]]'), its first six bytes
    policy, golden = {"b": Bits(2, 3), "a": Bits(8, 4)}, 251_809_956_709_158
    assert policy_seed(7, policy) == golden
    assert policy_seed(7, dict(sorted(policy.items()))) == golden
    assert policy_seed(8, policy) != golden
    assert policy_seed(7, policy | {"a": Bits(4, 8)}) != golden


def test_the_last_epochs_see_all_training_images():
    graph, clips = made()
    (policy, *_) = policies()
    networks, steps = [], []
    for _ in range(2):
        network = quantize(graph, policy, clips)
        fine_tune(network, graph, DATA.train, epochs=2, recipe=RECIPE, seed=0, on_step=steps.append)
        networks.append(network)
    assert [step.total for step in steps] == [8] * 16  # 60 images in batches of 16, twice
    assert same(*networks)
    assert not same(networks[0], quantize(graph, policy, clips))


def test_the_cheap_evaluation_is_the_quantized_network_with_corrected_statistics():
    graph, clips = made()
    (policy, *_) = policies()
    images = DATA.train.batch(torch.arange(60))[0]
    network = corrected(Places(graph, clips), images)(policy)
    by_hand = quantize(graph, policy, clips)
    correct(by_hand, graph, statistics(graph, images), images)
    assert same(network, by_hand)
    assert same(network, corrected(Places(graph, clips), images)(policy))
    assert not same(network, quantize(graph, policy, clips))


def test_agreement_by_hand():
    inputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    agree = compared(nn.Identity(), inputs, METRICS["agreement"])
    assert agree(nn.Identity()) == (1.0, pytest.approx(0.0, abs=1e-7), False)
    # Equal logits are the first class: two of three agree.
    accuracy, loss, _ = agree(Zeros())
    p, q = (torch.tensor([value / 2, 0.0]).softmax(0) for value in (2.0, 1.0))  # softened
    each = [4 * float((row * (2 * row).log()).sum()) for row in (p, q, q)]
    assert (accuracy, loss) == (pytest.approx(2 / 3), pytest.approx(sum(each) / 3, abs=1e-6))


class Zeros(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def test_agreement_without_classes_is_one_less_the_relative_error():
    inputs = torch.randn(4, 2, 3, 3)
    inputs -= inputs.mean()
    accuracy, loss, _ = compared(nn.Identity(), inputs, METRICS["agreement"])(Halved())
    assert loss == pytest.approx(0.25, abs=0.01)
    assert accuracy == pytest.approx(1 - loss)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


class Unseen:
    """A split that nobody may look into."""

    labels = DATA.test.labels

    def __len__(self):
        return len(self.labels)

    def batch(self, index, generator=None):
        raise AssertionError("the test images were looked at")


@pytest.mark.parametrize("agent", ["guided", "ilp", "ddpg"])
def test_nothing_that_chooses_sees_a_test_image(tmp_path, agent):
    torch.manual_seed(0)
    data = replace(DATA, test=Unseen())
    job = parse_job(agent=agent, budgets=["avg_weight_bits=4"], val_images=50, train_images=40)
    planned = plan(job, build("digits_cnn"), images_of(data))
    evaluation = labeled(job, tmp_path, planned, data, lambda _: None)
    policy = {name: pairs[0] for name, pairs in planned.table.choices.items()}
    assert 0 <= evaluation.score(evaluation.network(policy)).accuracy <= 1
    assert (evaluation.sensitivity is None) == (agent == "ddpg")
    with pytest.raises(AssertionError, match="the test images were looked at"):
        evaluation.test(planned.graph.traced, "test")


def test_sensitivities_are_measured_on_training_images_alone():
    still = replace(DATA, train=replace(DATA.train, augment=None))
    train, _ = still.train.batch(torch.arange(60))
    seen = sensitivity_images(still, seed=0)
    assert len(seen) == 60
    assert all(bool((image == train).flatten(1).all(1).any()) for image in seen)
