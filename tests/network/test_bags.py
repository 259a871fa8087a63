"""Bags of rows become a look-up and a sum, a mean or a maximum."""

import pytest
import torch
from torch import nn

from haq.errors import ModelError
from haq.formats.onnx.template import template
from haq.formats.stand_in import stand_in
from haq.network.graph import trace

ROWS = torch.tensor([[1, 2, 0, 3], [0, 0, 0, 0], [4, 4, 5, 0]])


class Bags(nn.Module):
    """A table, and a head."""

    def __init__(self, **more):
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(6, 3, **more), nn.Linear(3, 2)

    def forward(self, *given):
        return self.head(self.table(*given))


class Weighted(Bags):
    """The same, with a factor for each row."""

    def forward(self, rows, factors):
        return self.head(self.table(rows, per_sample_weights=factors))


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_is_an_embedding_and_what_is_made_of_its_rows(mode, padding):
    model = Bags(mode=mode, padding_idx=padding).eval()
    graph = trace(model, ROWS)
    assert [(layer.name, layer.kind) for layer in graph.layers] == [
        ("table", "embedding"), ("head", "linear")
    ]  # fmt: skip
    torch.testing.assert_close(graph.traced(ROWS), model(ROWS))


def test_rows_have_factors():
    model, factors = Weighted(mode="sum").eval(), torch.randn(3, 4)
    graph = trace(model, (ROWS, factors))
    torch.testing.assert_close(graph.traced(ROWS, factors), model(ROWS, factors))


def test_bags_of_several_sizes_are_refused_where_a_file_is_asked_for():
    class Free(Bags):
        def forward(self, x):
            return self.head(self.table(x.flatten(), torch.arange(x.shape[0]) * 2))

    network, _ = stand_in(trace(Free(mode="sum").eval(), ROWS[:, :2]))
    with pytest.raises(ModelError, match="has an EmbeddingBag with bags of several sizes"):
        template(network, ROWS[:, :2])
