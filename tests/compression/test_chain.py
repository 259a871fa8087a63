"""A chain of transforms is made again from its records, and its weights come from a file."""

import json

import pytest
import torch
from torch import nn

from haq.compression.chain import chain_text, read_chain, replayed, sparse_layers
from haq.compression.filters import keep_largest, remove
from haq.compression.low_rank import factorised, plan_for
from haq.errors import HaqError, ModelError
from haq.models import build
from haq.models.weights import load_weights, read_metadata, save_weights
from haq.network.graph import trace

SAMPLE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def chained():
    """Return a pruned, factorised network and its records."""
    torch.manual_seed(0)
    traced = trace(build("digits_cnn").eval(), SAMPLE).traced
    keep = keep_largest(traced, SAMPLE, {"conv1": 0.5, "conv4": 0.25})
    traced = trace(remove(traced, SAMPLE, keep), SAMPLE).traced
    layer = traced.get_submodule("conv2")
    plan = plan_for("conv2", layer, "separable", energy=0.8)
    traced.set_submodule("conv2", factorised(layer, plan))
    records = [
        {"transform": "filters", "keep": keep},
        {"transform": "factorised", "layers": {"conv2": [plan.kind, list(plan.ranks)]}},
        {"transform": "sparsity", "layers": {"conv4": 0.5}},
    ]
    return traced, records


def test_a_chain_is_replayed_and_takes_the_weights_of_its_file(tmp_path):
    network, records = chained()
    file = tmp_path / "w.safetensors"
    save_weights(network, file, chain_text(records))
    chain = read_chain(read_metadata(file))
    assert list(chain) == json.loads(json.dumps(records))
    state = torch.get_rng_state()
    again = replayed(build("digits_cnn"), SAMPLE, chain).eval()
    load_weights(again, file)
    torch.testing.assert_close(again(SAMPLE), network(SAMPLE))
    names = [layer.name for layer in trace(again, SAMPLE).layers]
    assert names == ["conv1", "conv2.0", "conv2.1", "conv3", "conv4", "linear"]
    assert sparse_layers(chain) == ("conv4",)
    with pytest.raises(ModelError, match="does not fit the model"):
        load_weights(build("digits_cnn"), file)
    assert state.shape == torch.get_rng_state().shape


def test_a_structure_is_made_again_without_memory():
    _, records = chained()
    with torch.device("meta"):
        model, sample = build("digits_cnn"), torch.zeros(1, 1, 8, 8)
    network = replayed(model, sample, records)
    assert all(value.is_meta for value in network.parameters())


def test_no_transforms_change_nothing():
    model = nn.Linear(2, 2)
    assert replayed(model, torch.zeros(1, 2), []) is model
    assert chain_text([]) == {} and read_chain({}) == ()


@pytest.mark.parametrize(
    "record, sentence",
    [
        ({}, "a transform is an object with a name"),
        ({"transform": "filter"}, "unknown transform 'filter'; did you mean 'filters'"),
        ({"transform": "filters"}, "names the channels that stay"),
        ({"transform": "filters", "keep": {"conv1": 3}}, "names the channels that stay"),
        ({"transform": "filters", "keep": {"conv1": ["a"]}}, "by their places 0 to 15"),
        ({"transform": "filters", "keep": {"conv1": [True]}}, "by their places 0 to 15"),
        ({"transform": "filters", "keep": {"nothing": [0]}}, "unknown layer 'nothing'"),
        ({"transform": "factorised"}, "names layers"),
        ({"transform": "factorised", "layers": {"conv2": "tucker"}}, "is [kind, ranks]"),
        ({"transform": "factorised", "layers": {"conv2": ["tucker", [10**9, 2]]}}, "give 1 to 16"),
        ({"transform": "factorised", "layers": {"bn1": ["tucker", [1, 2]]}}, "unknown layer 'bn1'"),
        ({"transform": "sparsity", "layers": {"conv2": 1}}, "has a sparsity of 1"),
        ({"transform": "sparsity", "layers": {"conv": 0.5}}, "unknown layer 'conv'"),
    ],
)
def test_a_record_that_does_not_suit_is_refused(record, sentence):
    with pytest.raises(HaqError) as error:
        replayed(build("digits_cnn"), SAMPLE, [record])
    assert sentence in str(error.value)


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_damaged_metadata_is_refused(text):
    with pytest.raises(ModelError, match="its transforms are not"):
        read_chain({"haq_transforms": text})
