"""Layers of low rank: exact at full rank, as far off as the values dropped, and counted right."""

import math

import onnxruntime
import pytest
import torch
from torch import nn

from haq.compression.low_rank import (
    Plan,
    break_even,
    depthwise_factors,
    factorised,
    linear_factors,
    plan_for,
    rank_for_energy,
    separable_factors,
    tucker_factors,
    weights_of,
)
from haq.errors import HaqError


def conv(inputs=6, outputs=8, kernel=3, **more):
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, kernel, **more).double()


def images(channels=6, size=(9, 7)):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)


FULL = [
    (conv(padding=1), Plan("separable", (18,))),
    (conv(padding=1, stride=2), Plan("separable", (18,))),
    (conv(kernel=(3, 5), padding=(1, 2), stride=(1, 2), bias=False), Plan("separable", (18,))),
    (conv(padding=1, stride=2, padding_mode="reflect"), Plan("separable", (18,))),
    (conv(padding=1, stride=2), Plan("tucker", (6, 8))),
]


@pytest.mark.parametrize("layer, plan", FULL, ids=str)
def test_full_rank_is_exact_on_odd_sizes(layer, plan):
    expected = layer(images())
    torch.testing.assert_close(factorised(layer, plan)(images()), expected, rtol=0, atol=1e-12)


def test_a_linear_layer_of_full_rank_is_exact():
    torch.manual_seed(0)
    layer = nn.Linear(5, 7).double()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    twin = factorised(layer, Plan("linear", (5,)))
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=1e-12)


def rebuilt(kind, weights):
    if kind == "linear":
        return weights[1] @ weights[0]
    if kind == "separable":
        return torch.einsum("riak,orlb->oiab", weights[0], weights[1])
    if kind == "tucker":
        first, core, last = weights
        return torch.einsum("ai,bakl,ob->oikl", first[:, :, 0, 0], core, last[:, :, 0, 0])
    return weights[1] * weights[0].transpose(0, 1)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_what_is_lost_is_what_was_dropped(rank):
    weight = conv().weight.detach()
    matrix = torch.randn(9, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for kind, whole, factors in [
        ("linear", matrix, linear_factors(matrix, rank)),
        ("separable", weight, separable_factors(weight, rank)),
        ("depthwise", weight, depthwise_factors(weight)),
    ]:
        error = float((rebuilt(kind, factors.weights) - whole).norm())
        assert error == pytest.approx(factors.lost, abs=1e-12) and error > 0
    factors = tucker_factors(weight, (rank, rank + 1))
    error = float((rebuilt("tucker", factors.weights) - weight).norm())
    assert 0 < error <= factors.lost + 1e-12


def test_singular_values_by_hand():
    matrix = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(
        values, torch.tensor([22.409298, 1.955340, 0.0]).double(), rtol=0, atol=1e-6
    )
    share = 22.409298**2 / (22.409298**2 + 1.955340**2)
    assert [rank_for_energy(values, energy) for energy in (share - 1e-6, share + 1e-6, 1)] == [
        1,
        2,
        2,
    ]


COUNTED = [
    (nn.Linear(40, 30), Plan("linear", (5,)), 5 * 70),
    (conv(), Plan("separable", (4,)), 4 * 3 * 14),
    (conv(), Plan("tucker", (3, 2)), 6 * 3 + 3 * 2 * 9 + 2 * 8),
    (conv(), Plan("depthwise"), 6 * 9 + 6 * 8),
    (conv(8, 8, 5, padding=2), Plan("two3x3"), 18 * 64),
]


@pytest.mark.parametrize("layer, plan, weights", COUNTED, ids=str)
def test_the_weights_are_counted(layer, plan, weights):
    twin = factorised(layer, plan)
    assert weights_of(layer, plan) == weights
    assert sum(m.weight.numel() for m in twin if hasattr(m, "weight")) == weights


@pytest.mark.parametrize("stride, size", [(1, (9, 7)), (2, (9, 7)), (2, (8, 8))])
def test_two_3x3_have_the_field_and_the_shape_of_a_5x5(stride, size):
    layer = conv(6, 8, 5, padding=2, stride=stride)
    twin = factorised(layer, Plan("two3x3"))
    assert twin(images(size=size)).shape == layer(images(size=size)).shape
    x = images(size=(11, 11)).requires_grad_()
    factorised(conv(6, 8, 5, padding=2), Plan("two3x3"))(x)[0, 0, 5, 5].backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    assert seen.min() >= 3 and seen.max() <= 7


@pytest.mark.parametrize(
    "layer, kind, ranks, sentence",
    [
        (conv(kernel=1), "separable", 2, "'c' cannot become separable: that is for a convolution"),
        (conv(6, 6, groups=6), "tucker", (2, 2), "of one group and without dilation"),
        (conv(dilation=2), "separable", 2, "of one group and without dilation"),
        (conv(padding="same"), "separable", 2, "cannot become separable"),
        (nn.Linear(4, 4), "separable", 2, "cannot become separable"),
        (conv(), "linear", 2, "cannot become linear: that is for a linear layer"),
        (conv(kernel=5), "two3x3", (), "that is for a 5 x 5 convolution with a padding of 2"),
        (conv(), "tuker", (1, 1), "unknown factorisation 'tuker'; did you mean 'tucker'"),
        (nn.Linear(40, 30), "linear", 0, "with ranks (0,): give 1 to 30"),
        (nn.Linear(40, 30), "linear", 31, "with ranks (31,): give 1 to 30"),
        (conv(), "tucker", 3, "give 1 to 6 and 1 to 8"),
        (nn.Linear(40, 30), "linear", 18, "1260 weights, and it has 1200: a rank of at most 17"),
        (nn.Linear(1, 30), "linear", 1, "and it has 30: no rank saves any"),
        (conv(2, 2), "separable", 6, "a rank of at most 2 saves some"),
        (nn.Linear(40, 30), "linear", None, "energy 2: give a share above 0 and at most 1"),
    ],
)
def test_what_would_not_save_or_does_not_fit_is_refused(layer, kind, ranks, sentence):
    with pytest.raises(HaqError) as error:
        plan_for("c", layer, kind, ranks, energy=2 if ranks is None else 0.9)
    assert sentence in str(error.value)


def test_the_break_even_is_where_weights_are_the_same():
    assert break_even(nn.Linear(40, 30), "linear") == math.ceil(1200 / 70) - 1
    assert break_even(conv(16, 16), "separable") == 23  # 24 * 3 * 32 is all 2304


def test_ranks_are_chosen_by_the_energy_they_hold():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(30, 3) @ torch.randn(3, 40))
    assert plan_for("a", layer, "linear", energy=0.9999) == Plan("linear", (3,))


def test_the_layers_run_in_onnx_runtime(tmp_path):
    layer = conv(16, 16, padding=1, stride=2).float()
    plans = Plan("separable", (7,)), Plan("tucker", (5, 6)), Plan("depthwise")
    twins = nn.ModuleList(factorised(layer, plan) for plan in plans)

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.twins = twins

        def forward(self, x):
            return torch.cat([twin(x) for twin in self.twins], 1)

    x, file = images(16).float(), tmp_path / "all.onnx"
    network = All().eval()
    torch.onnx.export(network, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), network(x), rtol=1e-4, atol=1e-5)
