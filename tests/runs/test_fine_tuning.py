"""What an episode and the last epochs are trained with, by training the same network by hand."""

import pickle
from dataclasses import replace
from functools import cache

import pytest
import torch

from haq.allocation.policy import CODEBOOK, Bits
from haq.datasets.tensors import Data, TensorSplit, shift
from haq.distillation.settings import distillation_of, read_distillation
from haq.errors import DivergedError
from haq.metrics import METRICS
from haq.models import build
from haq.network.graph import trace
from haq.quantization.adaround import adaround
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize, uniform
from haq.runs.calibration import sensitivity_images
from haq.runs.evaluation import recipe_of
from haq.runs.evaluator import Evaluator, Recipe, compared, corrected, fine_tune, policy_seed
from haq.runs.job import parse_job
from haq.runs.places import Places
from haq.training.distilling import distilling
from haq.training.norms import measure_norms
from haq.training.objective import labels_alone
from haq.training.train import train

RECIPE = Recipe(train_images=40, val_images=50, batch=16)


def split(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 10
    return TensorSplit(images, labels, (0.5,), (0.3,), lambda x, g: shift(x, g, pixels=2))


def moved(images, generator):
    return shift(images, generator, pixels=2)


class Unread:
    """A split that must not be looked at."""

    labels = torch.zeros(10, dtype=torch.int64)

    def __len__(self):
        return 10

    def batch(self, index, generator=None):
        raise AssertionError("these images must not be read")


DATA = Data(
    "small", tuple("0123456789"), (1, 8, 8), (0.5,), (0.3,),
    train=split(60, 1), val=split(100, 2), test=Unread(),
)  # fmt: skip


@cache
def captured():
    torch.manual_seed(0)
    model = build("digits_cnn")
    images, _ = DATA.train.batch(torch.arange(60))
    graph = trace(model, images)
    return graph, calibrate(graph, [images], "max"), uniform(graph, 3, 4)


def evaluator(recipe=RECIPE):
    graph, clips, _ = captured()
    return Evaluator(graph, clips, DATA, recipe, seed=0)


def difference(one, other):
    others = dict(other.named_parameters())
    pairs = ((a, others[name]) for name, a in one.named_parameters())
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def taught(asked="kd:0.9"):
    settings = distillation_of(read_distillation(asked))
    return distilling(captured()[0].traced, settings)


def trained_by_hand(images, recipe, **changes):
    graph, clips, policy = captured()
    model = quantize(graph, policy, clips)
    settings = {
        "epochs": 1, "lr": recipe.lr, "seed": policy_seed(0, policy), "decay": "weights",
        "weight_decay": 1e-4, "batch": 16, "objective": taught(),
    }  # fmt: skip
    settings |= changes
    train(model, images, **settings)
    measure_norms(model, images, 2000, settings["seed"])
    return model


def test_an_episode_trains_on_augmented_images():
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:40]
    plain, _ = DATA.train.batch(chosen)
    images = evaluator().images
    assert torch.equal(images.labels, DATA.train.labels[chosen])
    moved = (images.images != plain).flatten(1).any(1)
    assert moved.float().mean() > 0.5  # of 25 shifts one leaves an image as it is


CHANGES = [
    {"weight_decay": 0.1}, {"decay": "all"}, {"lr": 0.01},
    {"asked": None}, {"asked": "kd:0.9+temperature:1"}, {"asked": "kd:0.5"},
]  # fmt: skip
every_change = pytest.mark.parametrize(
    "change", CHANGES, ids=lambda change: "-".join(map(str, next(iter(change.items()))))
)


def test_an_episode_is_the_recipe_and_nothing_else():
    one = evaluator()
    model = one.tuned(captured()[2])
    assert difference(model, trained_by_hand(one.images, RECIPE)) < 1e-6


@every_change
def test_every_part_of_the_recipe_tells_in_the_weights_of_an_episode(change):
    one = evaluator(replace(RECIPE, lr=0.05))
    model = one.tuned(captured()[2])
    assert difference(model, trained_by_hand(one.images, one.recipe)) < 1e-6
    if "asked" in change:
        asked = change["asked"]
        change = {"objective": taught(asked) if asked else labels_alone}
    assert difference(model, trained_by_hand(one.images, one.recipe, **change)) > 1e-6


def test_the_last_epochs_are_taught_by_the_float_network():
    graph, clips, policy = captured()
    model = quantize(graph, policy, clips)
    fine_tune(model, graph, DATA.train, epochs=2, recipe=RECIPE, seed=3)
    alike = trained_by_hand(DATA.train, RECIPE, epochs=2, seed=3)
    assert difference(model, alike) < 1e-6
    untaught = trained_by_hand(DATA.train, RECIPE, epochs=2, seed=3, objective=labels_alone)
    assert difference(model, untaught) > 1e-4


def buffers(model, ending):
    return {name: value for name, value in model.named_buffers() if name.endswith(ending)}


def low(policy):
    return {name: Bits(3, bits.act) for name, bits in policy.items()}


def rounded_by_hand(one, images, steps, **changes):
    graph, clips, policy = captured()
    model = corrected(Places(graph, clips), one.plain)(low(policy))
    settings = {"batch": 32, "lr": 0.005, "beside": 0.2, "seed": 0} | changes
    adaround(model, graph, images, steps=steps, **settings)
    return model


def chosen_views():
    """The images of the epoch as bytes, to be augmented anew."""
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:40]
    return replace(DATA.train, images=DATA.train.images[chosen], labels=DATA.train.labels[chosen])


def test_few_images_at_few_bits_teach_the_rounding_and_what_lies_beside_it_alone():
    one = evaluator(replace(RECIPE, rounding_steps=3))
    model = one.tuned(low(captured()[2]))
    assert difference(model, rounded_by_hand(one, chosen_views(), 3)) < 1e-6
    for images, change in [
        (one.images, {}), (chosen_views(), {"beside": 0.0}), (chosen_views(), {"batch": 16}),
        (chosen_views(), {"lr": 0.01}), (chosen_views(), {"seed": 1}),
    ]:  # fmt: skip
        assert difference(model, rounded_by_hand(one, images, 3, **change)) > 1e-6
    assert difference(evaluator().tuned(low(captured()[2])), model) > 1e-4


def test_the_rounding_sees_no_image_more_than_four_times():
    one = evaluator(replace(RECIPE, rounding_steps=1000))
    model = one.tuned(low(captured()[2]))  # 40 images, 4 times each, in batches of 32
    assert difference(model, rounded_by_hand(one, chosen_views(), 5)) < 1e-6


def test_an_epoch_of_many_images_begins_with_learned_rounding(monkeypatch):
    monkeypatch.setattr("haq.runs.rounding.EPOCH_FROM", 40)
    one, policy = evaluator(replace(RECIPE, rounding_steps=3)), low(captured()[2])
    model = rounded_by_hand(one, chosen_views(), 3)
    settings = {"decay": "weights", "weight_decay": 1e-4, "batch": 16, "objective": taught()}
    seed = policy_seed(0, policy)
    train(model, one.images, epochs=1, lr=RECIPE.lr, seed=seed, **settings)
    measure_norms(model, one.images, 2000, seed)
    assert difference(one.tuned(policy), model) < 1e-6


def test_a_codebook_which_learns_no_rounding_gets_its_epoch_with_few_images_too():
    graph, clips, policy = captured()
    *_, last = graph.layers
    booked = low(policy) | {last.name: Bits(2, 32, CODEBOOK)}
    model = evaluator(replace(RECIPE, rounding_steps=1)).tuned(booked)
    before = quantize(graph, booked, clips)
    books = [network.get_submodule(last.name).book for network in (before, model)]
    assert not torch.equal(*books)


def test_an_evaluator_from_a_pickle_learns_the_same_rounding():
    graph, clips, policy = captured()
    data = replace(DATA, train=replace(DATA.train, augment=moved))
    one = Evaluator(graph, clips, data, replace(RECIPE, rounding_steps=3), seed=0)
    one.prepare(tuning=True)
    other = pickle.loads(pickle.dumps(one))
    other.graph, other.places = graph, Places(graph, clips)
    assert difference(other.tuned(low(policy)), one.tuned(low(policy))) == 0


def test_images_that_do_not_lie_in_memory_are_augmented_once():
    class Read:
        labels = DATA.train.labels

        def __len__(self):
            return len(DATA.train)

        def batch(self, index, generator=None):
            return DATA.train.batch(index, generator)

    graph, clips, _ = captured()
    one = Evaluator(graph, clips, replace(DATA, train=Read()), RECIPE, seed=0)
    assert one.views is one.images
    assert evaluator().views is not evaluator().images


def test_a_job_counts_the_steps_of_rounding_in_batches_of_64_images():
    recipe = recipe_of(parse_job(agent="ilp", rounding_steps=7), METRICS["top1"])
    assert recipe.rounding_steps == 14
    assert recipe_of(parse_job(agent="ilp"), METRICS["top1"]).rounding_steps == 600


def test_finalists_of_many_bits_learn_their_rounding_too():
    graph, clips, policy = captured()
    many = {name: Bits(8, 8) for name in policy}
    one = evaluator(replace(RECIPE, rounding_steps=3))
    by_hand = corrected(Places(graph, clips), one.plain)(many)
    adaround(by_hand, graph, chosen_views(), steps=3, batch=32, lr=0.005, beside=0.2, seed=0)
    assert difference(one.tuned(many), by_hand) == 0


def test_a_policy_of_float_weights_alone_gets_its_epoch():
    graph, clips, policy = captured()
    floats = {name: Bits(32, 4) for name in policy}
    one = evaluator(replace(RECIPE, rounding_steps=3))
    untrained = corrected(Places(graph, clips), one.plain)(floats)
    assert difference(one.tuned(floats), untrained) > 1e-4


def test_the_paper_leaves_the_statistics_of_training():
    graph, clips, policy = captured()
    recipe = recipe_of(parse_job(paper=True), METRICS["top1"])
    assert (recipe.norms_images, recipe.rounding_steps) == (0, 0)
    plain = evaluator(replace(RECIPE, norms_images=0)).tuned(policy)
    model, one = quantize(graph, policy, clips), evaluator()
    settings = {"decay": "weights", "weight_decay": 1e-4, "batch": 16, "objective": taught()}
    train(model, one.images, epochs=1, lr=RECIPE.lr, seed=policy_seed(0, policy), **settings)
    own = buffers(model, "running_mean")
    assert all(torch.equal(own[k], v) for k, v in buffers(plain, "running_mean").items())
    measured = buffers(one.tuned(policy), "running_mean")
    assert any(not torch.equal(own[name], value) for name, value in measured.items())


def test_steps_are_learned_where_the_recipe_says_so():
    graph, clips, policy = captured()
    first = buffers(quantize(graph, policy, clips), "clip")
    fixed = buffers(evaluator().tuned(policy), "clip")
    assert all(torch.equal(fixed[name], value) for name, value in first.items())
    learned = buffers(evaluator(replace(RECIPE, learned_steps=True)).tuned(policy), "clip")
    assert learned.keys() == first.keys()
    assert sum(not torch.equal(learned[name], value) for name, value in first.items()) > 4


def test_a_network_without_gradients_is_fine_tuned():
    graph, clips, policy = captured()
    frozen = trace(build("digits_cnn").requires_grad_(False), torch.zeros(1, 1, 8, 8))
    frozen.traced.load_state_dict(graph.traced.state_dict())
    model = Evaluator(frozen, clips, DATA, RECIPE, seed=0).tuned(policy)
    assert difference(model, evaluator().tuned(policy)) == 0


def test_sensitivities_are_measured_on_augmented_training_images():
    images = sensitivity_images(DATA, seed=0)  # a test split that is read would raise
    plain, _ = DATA.train.batch(torch.randperm(60, generator=torch.Generator().manual_seed(0)))
    assert images.shape == plain.shape
    assert (images != plain).flatten(1).any(1).float().mean() > 0.5


def test_answers_that_are_not_numbers_have_no_agreement():
    inputs = torch.randn(4, 3)
    with pytest.raises(DivergedError, match="answers that are not numbers"):
        compared(torch.nn.Identity(), inputs, METRICS["agreement"])(
            torch.nn.Threshold(9.0, float("nan"))
        )
