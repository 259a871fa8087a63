"""Inputs of several types go the whole way: search, checkpoint, ONNX file."""

import pytest
import torch
from torch import nn

import haq
from haq.allocation.policy import FLOAT, Bits
from haq.errors import DataError
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import answered, opened
from haq.formats.onnx.template import template
from haq.network.graph import trace
from haq.network.inputs import InputShape, as_inputs, like_record
from haq.quantization.calibration import Clips
from haq.quantization.fake_quant import quantize
from haq.runs.api import search
from haq.runs.onnx_summary import static


class Flags(nn.Module):
    """Means of the rows that flags and lengths leave, with -inf in a buffer that is added."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("far", torch.zeros(7).masked_fill(torch.arange(7) == 6, -torch.inf))

    def forward(self, x, flags, lengths):
        x = torch.relu(self.body(torch.where(flags[..., None], x, torch.zeros_like(x))))
        counted = torch.arange(7) < lengths[:, None]
        shares = (x.mean(-1).masked_fill(~counted, -1e4) + self.far).softmax(-1)
        return self.head((x * shares[..., None]).sum(1))


def inputs(count):
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(count, 7, 6, generator=generator),
        "flags": torch.rand(count, 7, generator=generator) > 0.3,
        "lengths": torch.randint(1, 7, (count,), generator=generator, dtype=torch.int32),
    }


def test_flags_and_lengths_go_the_whole_way(tmp_path):
    torch.manual_seed(0)
    model, given = Flags().eval(), inputs(40)
    run = search(
        model, given, agent="ilp", budgets=["avg_weight_bits=6"], pins={}, rounding_steps=2,
        threads=1, out=tmp_path / "run",
    )  # fmt: skip
    with torch.no_grad():
        answer = run.model(**given)
    haq.export_checkpoint(run, tmp_path / "net.safetensors", model=model)
    restored = haq.load(tmp_path / "net.safetensors", model=Flags())
    assert torch.equal(restored(**given), answer)
    file = haq.export_onnx(run.folder, tmp_path / "net.onnx", model=model)
    answers = answered(opened(file.SerializeToString()), as_inputs(given))
    assert torch.equal(torch.from_numpy(answers), answer)


class Shut(nn.Module):
    """Shares of rows, of which a mask of -inf leaves some."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(7, 7), nn.Linear(7, 4)
        self.register_buffer("far", torch.full((7, 7), -torch.inf).triu(1))

    def forward(self, x):
        return self.head((self.body(x) + self.far).softmax(-1).mean(1))


def test_nobody_is_warned_that_a_mask_is_infinite(recwarn):
    graph = trace(Shut().eval(), torch.randn(2, 7, 7))
    floats = quantize(
        graph, {layer.name: Bits(FLOAT, FLOAT) for layer in graph.layers}, Clips({}, {})
    )
    static(lower(template(floats, torch.randn(2, 7, 7)), floats), None)
    assert not [one for one in recwarn if one.category is RuntimeWarning]


def test_made_up_inputs_have_the_types_of_the_record():
    shapes = {"flags": InputShape((7,), 2, "bool"), "lengths": InputShape((), 5, "int32")}
    flags, lengths = like_record({"inputs": shapes}, 3).tensors
    assert (flags.dtype, flags.shape, flags[1].tolist()) == (
        torch.bool, (3, 7), [True] * 6 + [False]
    )  # fmt: skip
    assert (lengths.dtype, lengths.shape) == (torch.int32, (3,))


def test_a_mask_alone_is_no_input():
    with pytest.raises(DataError, match="is a torch.bool tensor; give floats, or int64"):
        search(nn.Sequential(nn.Linear(3, 2)), torch.ones(4, 3) > 0)
