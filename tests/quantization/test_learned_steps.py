"""Learned steps: the gradient by hand, and what training does with them."""

import pytest
import torch

from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize as quantized
from haq.quantization.fake_quant import uniform
from haq.quantization.learned_steps import LEAST, learned_steps
from haq.quantization.quantizer import quantize


def gradient(x, bits, clip, weights, **grid):
    clip = torch.tensor(clip, requires_grad=True)
    rounded = quantize(torch.tensor(x), bits, clip, **grid)
    (rounded * torch.tensor(weights)).sum().backward()
    return clip.grad


def test_the_gradient_of_a_step_by_hand():
    # 3 bits: hi = 3, s = 1. Inside round(x) - x, outside the end; N = 4 features of one image.
    x, g = [[-9.0, -0.4, 1.75, 3.5]], [[1.0, 2.0, 4.0, 8.0]]
    by_hand = 1 * -3 + 2 * 0.4 + 4 * 0.25 + 8 * 3
    of_step = by_hand / (4 * 3) ** 0.5
    assert float(gradient(x, 3, 3.0, g)) == pytest.approx(3 * of_step)  # the clip is 3 steps
    # Unsigned: lo = 0, hi = 7.
    of_step = (2 * 0.0 + 4 * 0.25 + 8 * (4 - 3.5)) / (4 * 7) ** 0.5
    assert float(gradient(x, 3, 7.0, g, signed=False)) == pytest.approx(7 * of_step)
    # Two negative codes, -2 to 5.
    of_step = (1 * -2 + 2 * 0.4 + 4 * 0.25 + 8 * 0.5) / (4 * 5) ** 0.5
    assert float(gradient(x, 3, 5.0, g, zero_point=2)) == pytest.approx(5 * of_step)


def test_each_channel_has_the_gradient_of_its_own_weights():
    x, g = [[0.25, 5.0], [0.25, 0.5]], [[1.0, 1.0], [1.0, 1.0]]
    both = gradient(x, 2, [[1.0], [0.5]], g)
    assert both.shape == (2, 1)
    # N = 2 weights a channel, hi = 1: -.25 + 1; and 0 - .5 (halves round to even) and 0.
    assert both.flatten().tolist() == pytest.approx([0.75 / 2**0.5, -0.5 / 2**0.5])


def test_a_learned_step_rounds_as_a_fixed_one_and_leaves_the_gradient_of_x():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    values, gradients = [], []
    for learned in (False, True):
        one = x.clone().requires_grad_()
        rounded = quantize(one, 3, torch.tensor(1.5, requires_grad=learned))
        rounded.square().sum().backward()
        values.append(rounded.detach())
        gradients.append(one.grad)
    assert torch.equal(*values) and torch.equal(*gradients)


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = build("digits_cnn").eval()
    images = torch.randn(16, 1, 8, 8)
    graph = trace(model, images)
    return quantized(graph, uniform(graph, 3, 4), calibrate(graph, [images], "max")), images


def test_the_steps_of_a_network_are_parameters_for_a_while(network):
    model, images = network
    names, before = set(model.state_dict()), model(images)
    parameters = {name for name, _ in model.named_parameters()}
    with learned_steps(model) as learned:
        own = {name for name, _ in model.named_parameters()} - parameters
        assert len(own) == len(learned.clips) > 4
        assert own == {name for name in names if name.endswith("clip")} - _floats(model)
        assert torch.equal(model(images), before)
        model(images).square().sum().backward()
        assert all(clip.grad is not None and clip.grad.any() for clip in learned.clips)
    assert {name for name, _ in model.named_parameters()} == parameters
    assert set(model.state_dict()) == names
    assert torch.equal(model(images), before)


def test_the_steps_of_activations_alone(network):
    model, _ = network
    with learned_steps(model, weights=False) as learned:
        own = {name for name, _ in model.named_parameters() if name.endswith("clip")}
        assert len(own) == len(learned.clips) > 2
        assert not any(name.endswith("weight_clip") for name in own)
    assert not any(name.endswith("clip") for name, _ in model.named_parameters())


def _floats(model):
    rounding = {name: part for name, part in model.named_modules() if hasattr(part, "bits")}
    return {f"{name}.clip" for name, part in rounding.items() if part.bits == 32}


def test_a_step_that_training_would_make_negative_stays_positive(network):
    model, images = network
    with learned_steps(model) as learned:
        first = [clip.detach().clone() for clip in learned.clips]
        for clip in learned.clips:
            clip.data.fill_(-1)
        learned.apply()
        for clip, was in zip(learned.clips, first, strict=True):
            assert torch.equal(clip, LEAST * was)
    assert bool(model(images).isfinite().all())


def test_steps_are_fixed_again_after_a_failure(network):
    model, _ = network
    with pytest.raises(KeyboardInterrupt), learned_steps(model):
        raise KeyboardInterrupt
    assert not any(name.endswith("clip") for name, _ in model.named_parameters())
