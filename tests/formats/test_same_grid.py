"""What lies on a grid already is not rounded to it again: fewer nodes, the same answers."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from haq.allocation.policy import Bits
from haq.formats.onnx.lower import lower
from haq.formats.onnx.reference import simulate
from haq.formats.onnx.runtime import exact_kernels
from haq.formats.onnx.template import template
from haq.formats.stand_in import stand_in
from haq.hw_profiles.measure import onnx_runtime
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import Rounding, quantize


class Bottlenecks(nn.Module):
    """Residual blocks whose results are signed: a sum, and a convolution, read each of them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.wide = nn.ModuleList(nn.Conv2d(6, 12, 1) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Conv2d(12, 6, 1) for _ in range(2))
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = self.first(x)
        for wide, narrow in zip(self.wide, self.narrow, strict=True):
            x = x + narrow(wide(x).relu())
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    inputs = torch.randn(32, 3, 8, 8)
    graph = trace(Bottlenecks().eval(), inputs[:1])
    return graph, calibrate(graph, [inputs], "kl"), inputs


def written(network, act):
    graph, clips, inputs = network
    policy = {layer.name: Bits(7, 8 if layer.reads_input else act) for layer in graph.layers}
    model = quantize(graph, policy, clips)
    convert_to_integers(model)
    file = lower(template(stand_in(graph)[0], inputs[:1]), model)
    return model, file, inputs


def twice_rounded(file):
    """Return how many quantizers read a dequantized tensor of their own scale."""
    values = {one.name: onnx.numpy_helper.to_array(one) for one in file.graph.initializer}
    made = {name: node for node in file.graph.node for name in node.output}
    count = 0
    for node in file.graph.node:
        before = made.get(node.input[0]) if node.input else None
        if node.op_type == "QuantizeLinear" and before and before.op_type == "DequantizeLinear":
            count += float(values[node.input[1]]) == float(values[before.input[1]])
    return count


@pytest.mark.parametrize("act", [8, 5])
def test_nothing_is_rounded_to_the_grid_that_it_lies_on(network, act):
    model, file, inputs = written(network, act)
    assert twice_rounded(file) == 0
    counts = Counter(node.op_type for node in file.graph.node)
    assert counts["QuantizeLinear"] >= counts["Conv"]
    with torch.no_grad():
        own = model(inputs)
    assert torch.allclose(torch.as_tensor(simulate(file, inputs.numpy()).logits), own, atol=1e-6)
    if exact_kernels():
        import onnxruntime

        session = onnxruntime.InferenceSession(
            file.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        ran = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
        assert torch.equal(torch.as_tensor(ran), own)


def test_bytes_saturate_where_activations_of_eight_bits_end(network):
    model, file, inputs = written(network, 8)
    assert "Clip" not in {node.op_type for node in file.graph.node}
    codes = []
    for module in model.modules():
        if isinstance(module, Rounding) and module.signed:
            module.register_forward_hook(lambda part, _, x: codes.append((x / part.step).round()))
    with torch.no_grad():
        own = model(99 * inputs)
    lowest, highest = torch.cat([x.flatten() for x in codes]).aminmax()
    assert (lowest, highest) == (-128, 127)
    simulated = simulate(file, 99 * inputs.numpy()).logits
    assert torch.allclose(torch.as_tensor(simulated), own, rtol=1e-6)
    run = onnx_runtime.answers(
        onnx_runtime.session(file.SerializeToString(), Setup()), 99 * inputs.numpy()
    )
    assert torch.equal(torch.as_tensor(run), own)
