"""Matrices of LSTM, GRU, RNN and others are layers of their own, with bits of weights alone."""

import torch
from torch import nn

from haq.allocation.policy import FLOAT, Bits
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.quantizer import quantize as rounded

STEPS = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """Reads rows of steps and answers with the last output."""

    def __init__(self, rnn, width=8):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Cell(nn.Module):
    """Three steps of a cell."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        state = torch.zeros(x.shape[0], 8)
        for step in range(3):
            state = self.cell(x[:, step], state)
        return self.head(state)


def test_a_matrix_multiplies_once_a_step():
    graph = trace(Recurrent(nn.LSTM(6, 8, batch_first=True)), STEPS)
    into, over, _ = graph.layers
    assert (into.name, into.kind, into.c_in, into.c_out) == ("rnn.weight_ih_l0", "recurrent", 6, 32)
    assert (into.macs, over.macs) == (32 * 6 * 7, 32 * 8 * 7)
    assert (into.scales, into.weights_alone) == (32, True)
    assert graph.float_parameters == {"rnn": 2 * 32}  # its biases


def test_both_ways_and_several_layers_have_matrices_of_their_own():
    rnn = nn.GRU(6, 8, num_layers=2, bidirectional=True, batch_first=True)
    names = [layer.name for layer in trace(Recurrent(rnn, 16), STEPS).layers]
    ends = ("l0", "l0_reverse", "l1", "l1_reverse")
    assert names == [f"rnn.weight_{kind}_{end}" for end in ends for kind in ("ih", "hh")] + ["head"]


def test_a_cell_takes_one_step_a_call():
    layers = trace(Cell(), STEPS).layers
    assert [(x.name, x.macs) for x in layers[:2]] == [
        ("cell.weight_ih", 24 * 6 * 3), ("cell.weight_hh", 24 * 8 * 3)
    ]  # fmt: skip


def test_the_quantized_network_computes_with_rounded_matrices():
    model = Recurrent(nn.LSTM(6, 8, batch_first=True)).eval()
    graph = trace(model, STEPS)
    clips = calibrate(graph, [STEPS])
    floats = {"head": Bits(FLOAT, FLOAT)}
    network = quantize(
        graph, {layer.name: Bits(3, FLOAT) for layer in graph.layers} | floats, clips
    )
    with torch.no_grad():
        answer = network(STEPS)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            weight = model.get_parameter(f"rnn.{name}")
            weight.copy_(rounded(weight, 3, clips.weights[f"rnn.{name}"][3][:, None]))
        assert torch.allclose(answer, model(STEPS), atol=1e-6)


class Experts(nn.Module):
    """All experts multiply each place at once."""

    def __init__(self):
        super().__init__()
        self.experts, self.pair = nn.Parameter(torch.randn(3, 6, 8)), nn.Bilinear(8, 8, 4)

    def forward(self, x):
        each = torch.einsum("nti,eio->neto", x, self.experts).mean(2)
        return self.pair(each[:, 0], each[:, 1])


def test_weights_that_other_operations_multiply_are_layers_too():
    graph = trace(Experts(), STEPS)
    assert [(x.name, x.kind, x.weights, x.macs) for x in graph.layers] == [
        ("experts", "matrix", 3 * 6 * 8, 7 * 3 * 6 * 8),
        ("pair", "matrix", 4 * 8 * 8, 4 * 8 * 8),
    ]
    assert graph.float_macs == 0
    assert (graph.layers[1].biases, graph.float_parameters) == (4, {})
