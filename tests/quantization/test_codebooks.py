"""Codebooks: exact k-means, gradients of the values, zeros of pruned layers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.allocation.policy import CODEBOOK, Bits
from haq.datasets.tensors import TensorSplit
from haq.network.graph import trace
from haq.quantization import kmeans as module
from haq.quantization.calibration import calibrate
from haq.quantization.codebook import Booked, codebook, nearest, set_book
from haq.quantization.fake_quant import quantize
from haq.quantization.kmeans import kmeans
from haq.quantization.places import places_of
from haq.quantization.sensitivity import sensitivity
from haq.training.train import train


def error(values, centroids):
    return float((np.abs(values[:, None] - centroids).min(1) ** 2).sum())


def least_error(values, clusters):
    """Return the least error of all ways to cut the sorted values into intervals."""
    values, best = np.sort(values), np.inf
    for borders in itertools.combinations(range(1, len(values)), clusters - 1):
        parts = np.split(values, borders)
        best = min(best, sum(float(((part - part.mean()) ** 2).sum()) for part in parts))
    return best


def test_clusters_by_hand():
    # 1 2 4 | 8 9: errors 14/3 and 1/2; any other border costs more.
    assert kmeans(np.array([9.0, 1, 4, 8, 2]), 2) == pytest.approx([7 / 3, 8.5])


@given(
    values=st.lists(st.integers(-20, 20), min_size=1, max_size=10),
    clusters=st.integers(1, 5),
)
def test_no_way_to_cut_is_better(values, clusters):
    numbers = np.array(values, np.float64) / 8
    centroids = kmeans(numbers, clusters)
    if clusters >= len(set(values)):
        assert centroids.tolist() == sorted(set(numbers.tolist()))
    else:
        assert len(centroids) == clusters and (np.diff(centroids) > 0).all()
        assert error(numbers, centroids) == pytest.approx(least_error(numbers, clusters), abs=1e-9)


@pytest.mark.parametrize("clusters", [4, 16])
def test_many_values_are_hardly_worse_than_exactly(clusters, monkeypatch):
    values = np.random.default_rng(0).laplace(size=5000)
    rough = error(values, kmeans(values, clusters))
    monkeypatch.setattr(module, "POINTS", 5000)
    assert 1 <= rough / error(values, kmeans(values, clusters)) + 1e-9 < 1 + 1e-4


def test_values_far_away_have_a_cluster_of_their_own():
    values = np.concatenate([np.random.default_rng(0).normal(size=5000), [1e3, -1e3]])
    assert {-1e3, 1e3} <= set(kmeans(values, 8).tolist())


@given(st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=40), st.integers(1, 4))
def test_every_weight_has_its_nearest_value(numbers, bits):
    weight = torch.tensor(numbers)
    book = codebook(weight, bits)
    assert book.values.shape == (2**bits,) and book.labels.max() < 2**bits
    away = (weight.double()[:, None] - book.values.double()).abs()
    chosen = away.gather(1, book.labels.long()[:, None])[:, 0]
    assert torch.equal(chosen, away.min(1).values)


def test_few_different_weights_are_kept_exactly():
    weight = torch.tensor([0.5, -1.0, 0.5, 2.0])
    assert torch.equal(codebook(weight, 2).weight, weight)
    assert codebook(weight, 3).values.tolist() == [-1, 0.5, 2, 2, 2, 2, 2, 2]
    assert codebook(torch.zeros(4), 2).weight.tolist() == [0] * 4


def test_zeros_of_a_pruned_layer_stay_zeros():
    weight = torch.tensor([0.0, 0.0, 0.0, -1.0, -1.2, 3.0, 0.0, 3.2, 0.9])
    book = codebook(weight, 2, zero=True)
    assert book.values.tolist() == pytest.approx([0, -1.1, 0.9, 3.1])
    assert book.weight[weight == 0].abs().max() == 0
    assert codebook(torch.zeros(3), 2, zero=True).weight.tolist() == [0] * 3


def test_labels_of_values_that_do_not_rise():
    assert nearest(torch.tensor([-1.0, 0.2, 5.0]), torch.tensor([0.0, 4.0, -2.0])).tolist() == [
        2, 0, 1
    ]  # fmt: skip


# --- networks ------------------------------------------------------------------------------------


def booked(bits=2, pruned=False):
    """Return a graph and its network with a codebook in each layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    if pruned:
        with torch.no_grad():
            model[3].weight[:, ::2] = 0
    images = torch.rand(8, 1, 6, 6)
    graph = trace(model, images)
    clips = calibrate(graph, [images], "max")
    policy = {layer.name: Bits(bits, 32, CODEBOOK) for layer in graph.layers}
    return graph, quantize(graph, policy, clips), clips, images


def test_a_layer_has_at_most_so_many_different_weights():
    graph, network, _, _ = booked(bits=3)
    for layer in graph.layers:
        part = network.get_submodule(layer.name)
        assert isinstance(part, Booked) and len(part.weight.unique()) == 8
        floats = graph.traced.get_parameter(f"{layer.name}.weight")
        assert torch.equal(part.weight, codebook(floats, 3).weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_have_the_type_of_the_network(dtype):
    layer = nn.Linear(6, 4).to(dtype)
    floats = layer.weight.detach().clone()
    set_book(layer, 2, codebook(floats, 2))
    assert layer(torch.ones(3, 6, dtype=dtype)).dtype == layer.weight.dtype == dtype
    assert (layer.weight - floats).abs().max() <= floats.abs().max()


def test_the_gradient_of_a_value_is_the_sum_over_its_weights():
    graph, network, _, _ = booked()
    part = network.get_submodule(graph.layers[-1].name)
    own = part.weight.detach().clone().requires_grad_()
    features = torch.rand(5, 96)
    torch.nn.functional.linear(features, own).square().sum().backward()
    torch.nn.functional.linear(features, part.weight).square().sum().backward()
    sums = [float(own.grad[part.labels == place].sum()) for place in range(4)]
    # Times one over the root of how many weights share a value.
    assert part.book.grad.tolist() == pytest.approx([x / (288 / 4) ** 0.5 for x in sums], rel=1e-4)


def test_training_moves_values_and_no_labels():
    _, network, _, images = booked()
    split = TensorSplit((images * 255).byte(), torch.arange(8) % 3, (0.0,), (1.0,))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train(network, split, epochs=2, lr=0.05, seed=0, batch=4, decay="weights")
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if "book" in name} == {n for n in before if "book" in n}
    assert not any("labels" in name for name in changed)


def test_training_leaves_pruned_weights_zero():
    graph, network, _, images = booked(pruned=True)
    split = TensorSplit((images * 255).byte(), torch.arange(8) % 3, (0.0,), (1.0,))
    train(network, split, epochs=2, lr=0.05, seed=0, batch=4, decay="weights")
    weight = network.get_submodule(graph.layers[-1].name).weight
    assert (weight[:, ::2] == 0).all() and (weight[:, 1::2] != 0).any()


def test_the_sensitivity_of_a_book_is_that_of_its_network():
    graph, _, clips, images = booked()
    name = graph.layers[-1].name
    bits = Bits(2, 32, CODEBOOK)
    alone = {layer.name: Bits(32, 32) for layer in graph.layers} | {name: bits}
    network = quantize(graph, alone, clips)
    known = sensitivity(
        graph, clips, images, {"weights": {}, "activations": {}, "formats": {name: (bits,)}}
    )
    assert known.formats[name]["w2k"] > 0
    place = places_of(
        graph, clips, graph.traced, {"weights": {}, "activations": {}, "formats": {name: (bits,)}}
    )[0]
    with place.round(bits):
        assert torch.equal(
            graph.traced.get_submodule(name).weight, network.get_submodule(name).weight
        )
