"""Float operations that do not depend on a library are the operations they stand for."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

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
