"""Float operations that do not depend on a library are the operations they stand for."""

import numpy as np
import onnx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from haq.formats.onnx.runtime import opened
from haq.quantization import exact


@settings(deadline=None)
@given(width=st.integers(2, 256), offset=st.integers(-90, 90), seed=st.integers(0, 99))
def test_a_layer_norm_of_codes_is_a_layer_norm(width, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    step = 0.037
    whole = torch.randint(-30, 31, (4, width), generator=generator) + offset
    whole[:, 0] += 7  # no row is constant
    x = whole.float() * step
    weight, bias = torch.rand(2, width, generator=generator)
    own = exact.layer_norm(x, [width], weight, bias, 1e-5, step=step)
    wanted = functional.layer_norm(x.double(), [width], weight.double(), bias.double(), 1e-5)
    torch.testing.assert_close(own.double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_layer_norm_of_codes_by_hand():
    x = torch.tensor([[0.5, 1.0, 1.5, 2.0]])  # codes 1, 2, 3, 4: mean 2.5, variance 1.25
    expected = (torch.tensor([[1.0, 2, 3, 4]]) - 2.5) / 1.25**0.5
    torch.testing.assert_close(exact.layer_norm(x, [4], eps=0.0, step=0.5), expected)


def test_a_table_of_gelu_has_its_value_for_every_code():
    step, zero, top = 0.05, 20, 255
    codes = torch.arange(top + 1)
    x = (codes - zero).float() * step
    own = exact.gelu(x[None], grid=(step, zero, top))[0]
    torch.testing.assert_close(own, functional.gelu(x), rtol=1e-5, atol=1e-6)


def test_bilinear_resampling_is_what_torch_gives():
    x = torch.rand(2, 3, 4, 5)
    for options in ({"size": (7, 9)}, {"size": (8, 10), "align_corners": True}):
        wanted = functional.interpolate(x, mode="bilinear", **options)
        corners = options.get("align_corners", False)
        torch.testing.assert_close(exact.bilinear(x, list(options["size"]), corners, None), wanted)


DIFFERENCES = np.arange(-int(16 / exact.POWERS), 2) * exact.POWERS
"""All differences of scores whose powers of e do not round to zero, and one more at each end."""


def test_no_power_is_near_the_border_of_two_whole_numbers():
    powers = np.exp(DIFFERENCES) * exact.TALLEST
    away = np.abs(powers % 1 - 0.5) / powers
    assert away.min() > 1.8e-6  # a library's exp in float32 errs by 1.2e-7 of it, or twice that
    assert powers[0] < 0.5


def test_powers_are_the_same_whole_numbers_in_onnx_runtime():
    nodes = [
        onnx.helper.make_node("Exp", ["x"], ["power"]),
        onnx.helper.make_node("Mul", ["power", "tallest"], ["scaled"]),
        onnx.helper.make_node("Round", ["scaled"], ["y"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in "xy"
    ]
    tallest = onnx.numpy_helper.from_array(np.array(exact.TALLEST, np.float32), "tallest")
    graph = onnx.helper.make_graph(nodes, "powers", ends[:1], ends[1:], [tallest])
    file = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    x = DIFFERENCES.astype(np.float32)
    [given_] = opened(file.SerializeToString()).run(None, {"x": x})
    wanted = np.rint(np.exp(DIFFERENCES) * exact.TALLEST)
    np.testing.assert_array_equal(given_, wanted)
    np.testing.assert_array_equal((torch.tensor(x).exp() * exact.TALLEST).round(), wanted)


@settings(deadline=None)
@given(
    columns=st.integers(1, 300), spread=st.floats(0, 40), masked=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_shares_are_those_of_a_softmax(columns, spread, masked, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(3, columns, generator=generator)
    shares = exact.share_codes(scores, masked) * exact.SHARE
    wanted = functional.softmax(scores.double(), -1)
    # Of each share what rounding differences and powers may change, and half a code of either.
    allowed = (
        wanted * (2 * exact.POWERS)
        + columns / (2 * exact.TALLEST) * wanted
        + 1 / (2 * exact.TALLEST)
        + exact.SHARE
    )
    assert ((shares - wanted).abs() <= allowed).all()


def test_shares_by_hand():
    scores = torch.log(torch.tensor([[4.0, 2.0, 1.0, 1.0]]))
    # ln 2 and ln 4 are 177 and 355 of 2**-8: powers 10679, 5349, 2669 and 2669 of 21366.
    assert exact.share_codes(scores).tolist() == [[16378, 8204, 4093, 4093]]


def test_a_row_that_a_mask_leaves_nothing_of_has_equal_shares():
    assert (exact.share_codes(torch.full((2, 8), -1e30)) == 2**12).all()


def test_the_sum_of_more_powers_than_float32_adds_up_is_exact():
    scores = torch.zeros(1, 8 * exact.ADDED_UP)
    scores[0, 0] = 1.0
    others = round(float(np.exp(-1.0) * exact.TALLEST))
    total = 10679 + others * (scores.numel() - 1)
    assert exact.share_codes(scores)[0, 0] == round(10679 * 2**15 / total)


@settings(deadline=None)
@given(width=st.integers(2, 300), mean=st.floats(-20, 20), seed=st.integers(0, 99))
def test_a_layer_norm_of_floats_is_a_layer_norm(width, mean, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, width, generator=generator) + mean
    weight, bias = torch.rand(2, width, generator=generator)
    own = exact.layer_norm(x, [width], weight, bias)
    wanted = functional.layer_norm(x.double(), [width], weight.double(), bias.double())
    torch.testing.assert_close(own.double(), wanted, rtol=1e-4, atol=1e-4)
