"""A quantized network without calibration, to find out what can be exported before any search."""

import torch
from torch import fx

from haq.allocation.policy import FLOAT, Bits
from haq.network.graph import Graph
from haq.quantization.calibration import Clips
from haq.quantization.fake_quant import quantize
from haq.quantization.quantizer import BITS


def stand_in(graph: Graph) -> tuple[fx.GraphModule, dict[str, Bits]]:
    """Return a graph's network with 8 bits everywhere and clips of one, and its policy."""
    policy = {
        layer.name: Bits(8, FLOAT if layer.weights_alone else 8) for layer in graph.layers
    }  # fmt: skip
    ones = torch.ones(())
    clips = Clips(
        {layer.name: {8: ones.expand(layer.scales)} for layer in graph.layers},
        {point.tensor: dict.fromkeys(BITS, ones) for point in graph.points},
    )
    return quantize(graph, policy, clips), policy
