"""LSTM, GRU, RNN and their cells in files, written by our own rules."""

import numpy as np
import pytest
import torch
from islands import converted
from torch import nn

from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import opened
from haq.formats.onnx.template import template
from haq.formats.stand_in import stand_in
from haq.network.graph import trace
from haq.quantization.calibration import calibrate

STEPS = torch.randn(12, 5, 6, generator=torch.Generator().manual_seed(0))


class Last(nn.Module):
    """Answers from the last output; rows come first or second."""

    def __init__(self, rnn, width=8):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 4)

    def forward(self, x):
        if self.rnn.batch_first:
            return self.head(self.rnn(x)[0][:, -1])
        return self.head(self.rnn(x.transpose(0, 1))[0][-1])


class Ended(Last):
    """Answers from the states after the last step."""

    def forward(self, x):
        states = self.rnn(x)[1]
        each = states if isinstance(states, tuple) else (states,)
        return self.head(torch.cat([one[-1] for one in each], 1))


class Begun(Last):
    """Begins with states that the input decides, not with zeros."""

    def forward(self, x):
        rows = 2 if self.rnn.bidirectional else 1
        width = self.rnn.proj_size or self.rnn.hidden_size
        state = x.mean(1)[None, :, :1].expand(rows, -1, width).contiguous()
        if not isinstance(self.rnn, nn.LSTM):
            return self.head(self.rnn(x, state)[0][:, -1])
        cell = x.mean(1)[None, :, 1:2].expand(rows, -1, self.rnn.hidden_size).contiguous()
        return self.head(self.rnn(x, (state, cell))[0][:, 0])


class Cell(nn.Module):
    """Some steps of a cell."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(8, 4)

    def forward(self, x):
        zeros = torch.zeros(x.shape[0], 8)
        state = (zeros, zeros) if isinstance(self.cell, nn.LSTMCell) else zeros
        for step in range(3):
            state = self.cell(x[:, step], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


FIRST = {"batch_first": True}
BOTH = {"batch_first": True, "bidirectional": True}
NETWORKS = {
    "LSTM": lambda: Last(nn.LSTM(6, 8, **FIRST)),
    "LSTM both ways, two layers": lambda: Last(nn.LSTM(6, 8, 2, **BOTH), 16),
    "LSTM, steps first, no bias": lambda: Last(nn.LSTM(6, 8, bias=False)),
    "LSTM, states out": lambda: Ended(nn.LSTM(6, 8, 2, **FIRST), 16),
    "LSTM, states in": lambda: Begun(nn.LSTM(6, 8, **BOTH), 16),
    "LSTM that projects, both ways, two layers": lambda: Last(
        nn.LSTM(6, 8, 2, proj_size=5, **BOTH), 10
    ),
    "LSTM that projects, states in": lambda: Begun(nn.LSTM(6, 8, proj_size=5, **BOTH), 10),
    "LSTM that projects, states out": lambda: Ended(nn.LSTM(6, 8, proj_size=5, **FIRST), 13),
    "GRU both ways, two layers": lambda: Last(nn.GRU(6, 8, 2, **BOTH), 16),
    "GRU, states in, no bias": lambda: Begun(nn.GRU(6, 8, bias=False, **FIRST)),
    "GRU, states out": lambda: Ended(nn.GRU(6, 8, 2, **FIRST)),
    "RNN": lambda: Last(nn.RNN(6, 8, **FIRST)),
    "RNN of ReLUs, both ways": lambda: Last(nn.RNN(6, 8, nonlinearity="relu", **BOTH), 16),
    "LSTM cell": lambda: Cell(nn.LSTMCell(6, 8)),
    "GRU cell": lambda: Cell(nn.GRUCell(6, 8)),
    "RNN cell": lambda: Cell(nn.RNNCell(6, 8, bias=False)),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_answers_as_the_network(name):
    torch.manual_seed(0)
    graph = trace(NETWORKS[name]().eval(), STEPS[:2])
    exported = template(stand_in(graph)[0], STEPS[:2])
    assert not exported.untranslated
    network = converted(graph, calibrate(graph, [STEPS], "max"), 7, 8)
    file = lower(exported, network)
    [answers] = opened(file.SerializeToString()).run(["logits"], {"images": STEPS.numpy()})
    with torch.no_grad():
        wanted = network(STEPS).numpy()
    # A last digit can decide between two codes of what the last layer reads.
    assert np.abs(answers - wanted).max() <= 0.02 * np.ptp(wanted)
    assert np.median(np.abs(answers - wanted)) <= 1e-5 * np.ptp(wanted)
