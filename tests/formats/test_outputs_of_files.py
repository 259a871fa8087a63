"""Files give what the network gives, under the network's own names, and take what it takes."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from haq.formats.onnx.comparison import compare
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import opened
from haq.formats.stand_in import stand_in
from haq.network.graph import trace
from haq.network.inputs import arguments, as_inputs, takes_one_dict
from haq.network.outputs import taken_apart
from haq.quantization.convert import convert_to_integers
from haq.runs.handover import check_export

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = {
    "ids": torch.randint(9, (4, 5), generator=GENERATOR),
    "x": torch.randn(4, 6, generator=GENERATOR),
}


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor


class Two(nn.Module):
    """Reads words and numbers, and gives what ``wrap`` makes of two results."""

    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.numbers = nn.Embedding(9, 8), nn.Linear(6, 8)
        self.middle, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.wrap = wrap

    def forward(self, ids, x):
        hidden = self.middle(torch.relu(self.words(ids).mean(1) + self.numbers(x)))
        return self.wrap(self.head(hidden), hidden)


class OneDict(Two):
    def forward(self, batch):
        return super().forward(batch["ids"], batch["x"])


WAYS = {
    "dict": (lambda y, h: {"logits": y, "hidden": h}, ["logits", "hidden"]),
    "dataclass": (Answer, ["logits", "hidden"]),
    "tuple": (lambda y, h: (y, torch.softmax(y, 1)), ["output0", "output1"]),
    "nested": (lambda y, h: {"heads": [y, h], "x": h.relu()}, ["heads.0", "heads.1", "x_out"]),
}


def file_of(model):
    inputs = as_inputs(INPUTS)
    graph = trace(model.eval(), inputs)
    exported = check_export(graph, inputs)
    network, _ = stand_in(graph)
    convert_to_integers(network)
    feeds = arguments(network.graph, inputs)
    with torch.no_grad():
        answers = taken_apart(network(*feeds))[1]
    return lower(exported, network), [value.numpy() for value in feeds], answers


@pytest.mark.parametrize("kind", [Two, OneDict])
@pytest.mark.parametrize("way", WAYS)
def test_a_file_takes_and_gives_what_the_network_does_by_its_names(way, kind):
    wrap, names = WAYS[way]
    file, feeds, answers = file_of(kind(wrap))
    session = opened(file.SerializeToString())
    assert [one.name for one in session.get_inputs()] == ["ids", "x"]
    assert [one.name for one in session.get_outputs()] == names
    given = session.run(None, dict(zip(("ids", "x"), feeds, strict=True)))
    for answer, expected in zip(given, answers, strict=True):
        # One code of a result that is read again may fall on the other side of a boundary.
        assert np.abs(answer - expected.numpy()).max() < 0.02 * float(expected.std())


def test_a_file_of_a_gru_both_ways_answers_as_the_network():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rows, self.head = (
                nn.GRU(6, 4, batch_first=True, bidirectional=True),
                nn.Linear(8, 3),
            )

        def forward(self, x):
            return self.head(self.rows(x)[0].sum(1))

    rows = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    graph = trace(Rows().eval(), rows)
    exported = check_export(graph, rows)
    network, _ = stand_in(graph)
    convert_to_integers(network)
    session = opened(lower(exported, network).SerializeToString())
    (answers,) = session.run(None, {"images": rows.numpy()})
    with torch.no_grad():
        assert np.abs(answers - network(rows).numpy()).max() < 1e-4


def test_a_file_of_several_inputs_is_worked_out_in_numpy():
    file, feeds, _ = file_of(Two(lambda y, h: y))
    comparison = compare(file, dict(zip(("ids", "x"), feeds, strict=True)))
    assert comparison.right and comparison.images == 4


def test_a_dict_is_given_whole_to_a_forward_that_takes_one_alone():
    class Annotated(nn.Module):
        def forward(self, batch: dict[str, torch.Tensor]):
            return batch["x"]

    assert takes_one_dict(OneDict(Answer), ("ids", "x"))
    assert takes_one_dict(Annotated(), ("x",))
    assert not takes_one_dict(Two(Answer), ("ids", "x"))
    assert not takes_one_dict(nn.Linear(2, 2), ("x",))
    assert not takes_one_dict(nn.Linear(2, 2), ("input",))
