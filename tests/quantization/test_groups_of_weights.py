"""Weights in groups: scales, codes, GPTQ; activations that are rounded as a layer runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from haq.allocation.policy import FLOAT, Bits
from haq.network.graph import trace
from haq.network.inputs import as_inputs
from haq.quantization.calibration import calibrate
from haq.quantization.dynamic import round_tensor, round_tokens
from haq.quantization.fake_quant import quantize
from haq.quantization.formats import GroupLinear
from haq.quantization.gptq import gptq, round_columns
from haq.quantization.groups import ends, group_codes, group_scales, round_groups, stored


def test_the_farthest_weight_gets_the_code_that_one_side_lacks():
    row = torch.tensor([[-8.0, 7.0, 1.0, 0.0]])
    assert group_scales(row, 4, 32).tolist() == [[1.0]]
    assert group_scales(-row, 4, 32).tolist() == [[-1.0]]
    assert group_codes(-row, torch.tensor([[-1.0]]), 4, 32).tolist() == [[-8, 7, 1, 0]]


def test_each_group_has_a_scale_of_its_own_and_the_last_may_be_short():
    row = torch.cat([torch.full((1, 32), 0.5), torch.full((1, 8), -300.0)], 1)
    scales = group_scales(row, 8, 32)
    assert scales.shape == (1, 2)
    assert torch.allclose(round_groups(row, scales, 8, 32), row, rtol=2e-3)


def test_groups_of_zeros_stay_zero():
    zeros = torch.zeros(3, 40)
    assert torch.equal(round_groups(zeros, group_scales(zeros, 4, 32), 4, 32), zeros)


@given(seed=st.integers(0, 2**31), bits=st.integers(2, 8), exponent=st.integers(-12, 12))
@settings(max_examples=40, deadline=None)
def test_rounding_groups_twice_changes_nothing(seed, bits, exponent):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 70, generator=generator) * 2.0**exponent
    scales = group_scales(weight, bits, 32)
    assert torch.equal(stored(scales), scales)  # a number of float16
    once = round_groups(weight, scales, bits, 32)
    assert torch.equal(round_groups(once, scales, bits, 32), once)
    codes = group_codes(weight, scales, bits, 32)
    assert ends(bits)[0] <= int(codes.min()) and int(codes.max()) <= ends(bits)[1]


def test_gradients_pass_within_the_grid():
    weight = torch.tensor([[0.4, 1.4, 9.0]], requires_grad=True)
    round_groups(weight, torch.ones(1, 1), 2, 32).sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0]]


def test_rows_are_rounded_each_by_itself():
    x = torch.tensor([[127.0, 0.4, 0.6], [1.27, 0.014, 0.0]])
    expected = torch.tensor([[127.0, 0.0, 1.0], [1.27, 0.01, 0.0]])
    assert torch.allclose(round_tokens(x), expected)
    assert torch.equal(round_tokens(x)[1], round_tokens(x[1:])[0])  # whatever else is in the batch
    assert torch.equal(round_tokens(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_a_tensor_is_rounded_as_dynamic_quantize_linear_does():
    # The example of ONNX's specification: from -3 to 2, so a code is worth 5 / 255.
    x = torch.tensor([0.0, 2.0, -3.0, -2.5, 1.34, 0.5])
    codes = torch.tensor([153.0, 255, 0, 26, 221, 179])
    assert torch.allclose(round_tensor(x), (codes - 153) * (5 / 255))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_loses_less_of_the_outputs_than_the_nearest_codes(bits):
    torch.manual_seed(0)
    weight = torch.randn(24, 64)
    inputs = torch.randn(400, 64) @ torch.randn(64, 64)  # correlated
    hessian = (inputs.T @ inputs / len(inputs)).double()
    scales = group_scales(weight, bits, 32)
    nearest = round_groups(weight, scales, bits, 32)
    better = round_columns(weight, hessian, scales, bits, 32)
    assert torch.equal(round_groups(better, scales, bits, 32), better)  # on the grid
    lost = [((one - weight) @ inputs.T).square().mean() for one in (better, nearest)]
    assert lost[0] < 0.8 * lost[1]


def test_gptq_rounds_the_layers_in_groups_of_a_network_and_no_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 4)).eval()
    inputs = torch.randn(128, 64) @ torch.randn(64, 64)
    graph = trace(model, inputs)
    policy = {"0": Bits(3, 32, 32), "2": Bits(4, 32)}
    network = quantize(graph, policy, calibrate(graph, [inputs], "max"))
    before, last = network(inputs).detach(), network.get_submodule("2").weight.clone()
    gptq(network, graph, [inputs])
    assert isinstance(network.get_submodule("0"), GroupLinear)
    assert torch.equal(network.get_submodule("2").weight, last)
    truth = model(inputs).detach()
    assert (network(inputs) - truth).norm() < (before - truth).norm()


class Tokens(nn.Module):
    """A Linear of embedded tokens; a mask says which of them count."""

    def __init__(self):
        super().__init__()
        self.table, self.linear = nn.Embedding(10, 32), nn.Linear(32, 4)

    def forward(self, input_ids, attention_mask):
        return self.linear(self.table(input_ids)) * attention_mask[..., None]


def test_gptq_leaves_out_the_tokens_that_a_mask_leaves_out():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).repeat(20, 1)
    ids, model = torch.randint(1, 10, mask.shape), Tokens().eval()
    weights = []
    for left_out in (ids * mask, ids):
        inputs = as_inputs({"input_ids": left_out, "attention_mask": mask})
        graph = trace(model, inputs[:2])
        policy = {"table": Bits(8, FLOAT), "linear": Bits(3, FLOAT, 32)}
        choices = {name: (bits,) for name, bits in policy.items()}
        network = quantize(graph, policy, calibrate(graph, [], "mse", choices=choices))
        gptq(network, graph, [inputs])
        weights.append(network.get_parameter("linear.weight"))
    assert torch.equal(*weights)
