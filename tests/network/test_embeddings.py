"""Embeddings are layers with bits of weights alone; a weight read twice is one layer."""

import pytest
import torch
from hw_targets import EVERY_TARGET
from torch import nn
from torch.nn import functional

from haq.allocation.choices import permitted
from haq.allocation.costs import size_bytes, tabulate
from haq.allocation.policy import FLOAT, Bits
from haq.errors import HaqError
from haq.hw_profiles import load
from haq.network.graph import trace
from haq.network.layers import Layer

TOKENS = torch.randint(9, (2, 5), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    """A network whose head may multiply with the table that its tokens are looked up in."""

    def __init__(self, tie=None, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mix = nn.Embedding(9, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias)
        self.tie = tie
        if tie == "module":
            self.head.weight = self.words.weight

    def forward(self, x):
        x = torch.relu(self.mix(self.words(x)))
        if self.tie == "function":
            return functional.linear(x, self.words.weight)
        if self.tie == "transposed":
            return x @ self.words.weight.T
        return self.head(x)


def test_an_embedding_is_a_layer_of_rows_that_multiplies_nothing():
    words = trace(Words(), TOKENS).layers[0]
    assert (words.kind, words.c_in, words.c_out, words.weights) == ("embedding", 9, 6, 54)
    assert (words.macs, words.reads, words.reads_input, words.scales) == (0, "words", False, 9)


def test_its_codes_have_a_scale_for_each_row():
    table = Layer("words", "embedding", c_in=9, c_out=6, weights=54)
    assert size_bytes(table, 4) == 27 + 9 * 4
    assert size_bytes(table, FLOAT) == 54 * 4


def test_what_it_reads_and_gives_is_not_rounded():
    points = trace(Words(), TOKENS).points
    assert [(point.layers, point.source) for point in points] == [
        (("mix",), ""),
        (("head",), "mix"),
    ]


@pytest.mark.parametrize("tie", ["module", "function", "transposed"])
def test_a_table_that_a_product_reads_too_is_one_layer(tie):
    graph = trace(Words(tie), TOKENS)
    layers = {layer.name: layer for layer in graph.layers}
    head = "head" if tie == "module" else "words"
    assert list(layers) == ["mix", head]
    assert layers[head].weights == 54
    assert sum(graph.float_parameters.values()) == 0
    said = "words and head share one weight: its bits are those of layer head"
    assert (said in graph.notes) == (tie == "module")


def test_two_tables_of_one_parameter_are_one_layer():
    class Twice(Words):
        def forward(self, x):
            return self.head(torch.relu(self.mix(self.words(x) + self.words(x.flip(1)))))

    assert [(x.name, x.calls) for x in trace(Twice(), TOKENS).layers] == [
        ("words", 2), ("mix", 1), ("head", 1)
    ]  # fmt: skip


def test_its_choices_are_those_of_weights():
    layers = trace(Words(), TOKENS).layers
    for fixed in (None, 4):
        choices = permitted(layers, None, (3, 5), fixed)
        assert choices["words"] == (Bits(3, FLOAT), Bits(4, FLOAT), Bits(5, FLOAT))
    assert permitted(layers, None, pins={"words": 6})["words"] == (Bits(6, FLOAT),)
    with pytest.raises(HaqError, match="pin words=w8a8: the search can run it at w2a32"):
        permitted(layers, None, pins={"words": Bits(8, 8)})


@pytest.mark.parametrize("name", EVERY_TARGET)
def test_every_target_takes_it_for_nothing_but_its_bytes(name):
    layers, target = trace(Words(), TOKENS).layers[:1], load(name)
    table = tabulate(layers, permitted(layers, target), target)
    widths = {weight for weight, _ in target.pairs if 2 <= weight <= 8 or weight == FLOAT}
    assert {bits.weight for bits in table.choices["words"]} == widths
    for quantity in target.units:
        assert not table.rows[quantity]["words"].any()
    assert table.rows["size"]["words"].all()
