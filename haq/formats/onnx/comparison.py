"""Whether ONNX Runtime computes what a file says, and whether that is what the network does."""

import copy
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from haq.formats.onnx.groups import INTEGER_LEVEL
from haq.formats.onnx.layout import Layout, layout_in
from haq.formats.onnx.reference import Difference, simulate_from
from haq.formats.onnx.runtime import answered, opened
from haq.formats.onnx.values import Array, Feeds, count, named, some
from haq.network.capture import evaluating
from haq.network.inputs import Inputs, call
from haq.network.outputs import taken_apart
from haq.quantization.integer_forward import is_exact

BATCH = 25
"""Images worked out at once, codes of all tensors included."""

LIMITED = 8
"""Images worked out of a file that takes a fixed number at a time."""

DIGITS = 1e-3
"""Of the range of the results: by how much sums of floats in another order may change them."""

APPROXIMATE = 2e-2
"""The same where MatMulNBits rounds what it reads to 8 bits: how, each kernel has its own way."""

_PRODUCTS = (
    "Conv", "Gemm", "MatMul", "ConvInteger", "ConvTranspose", "MatMulInteger", "MatMulNBits",
    "MatMulIntegerToFloat",
)  # fmt: skip


class Comparison(NamedTuple):
    """A file's answers in ONNX Runtime beside those worked out in numpy.

    Attributes:
        images: How many were compared.
        exact: Whether the file holds nothing but integers and their rescaling.
        equal: Images whose answers are equal to the last bit.
        largest: Difference of two answers.
        wrong: Layers that ONNX Runtime computes otherwise, each judged from its own input; where a
            float operator stands before a tensor, its codes may differ by one.
    """

    images: int
    exact: bool
    equal: int
    largest: float
    wrong: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether ONNX Runtime computes what the file says."""
        return not self.wrong and (not self.exact or self.equal == self.images)


def compare(file: onnx.ModelProto, images: Feeds) -> Comparison:
    """Return how far ONNX Runtime is, on this machine, from a file's integers.

    Args:
        file: As ``haq.formats.onnx.lower.lower`` makes it.
        images: (N, ...), what the file's network takes, or its inputs by name.
    """
    layout = layout_in(file)
    limit = layout.inputs[0].rows if layout else None
    if limit:  # as many at a time as the file takes, and few of them
        images = some(images, 0, limit * max(1, LIMITED // limit))
    each, number = limit or BATCH, count(images)
    session = opened(file.SerializeToString())
    equal, largest, all_exact = 0, 0.0, True
    wrong: dict[str, None] = {}
    for start in range(0, number, each):
        feed = _feed(file, layout, some(images, start, start + each))
        answers = session.run(None, feed)[0]
        simulated, exact = simulate_from(file, feed, {})[0]
        axis = (layout.output_axis or 0) if layout else 0
        same = np.moveaxis(simulated == answers, axis, 0)
        rows = same.reshape(len(same), -1).all(1)
        if not exact or not rows.all():
            wrong |= dict.fromkeys(_wrong(file, feed))
        equal, all_exact = equal + int(rows.sum()), all_exact and exact
        largest = max(largest, float(np.abs(simulated - answers).max(initial=0)))
    return Comparison(number, all_exact, equal, largest, tuple(wrong))


def _feed(file: onnx.ModelProto, layout: Layout | None, images: Feeds) -> dict[str, Array]:
    """Return what a file takes for rows of its network."""
    by_name = named(images, file.graph.input[0].name)
    if layout is None:
        return by_name
    names = [one.name for one in layout.inputs]
    in_order = [by_name[n] for n in names] if set(names) <= by_name.keys() else by_name.values()
    return layout.feed(list(in_order))


def _wrong(file: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[str]:
    """Return the layers that go wrong on their own inputs, as ONNX Runtime computed those."""
    shown = copy.deepcopy(file)
    codes = [node.output[0] for node in file.graph.node if node.op_type == "QuantizeLinear"]
    for tensor in codes:
        shown.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.UINT8, None))
    session = opened(shown.SerializeToString())
    # Asked for no tensor, a session gives all of its outputs.
    given = dict(zip(codes, session.run(codes, feeds), strict=True)) if codes else {}
    answers = session.run(None, feeds)[0]
    simulated, differences = simulate_from(file, feeds, given)
    loose = _is_approximate(file.graph)
    tensors = [one.tensor for one in differences if _counts(one, loose)]
    allowed = APPROXIMATE if loose else DIGITS
    if np.abs(simulated.logits - answers).max(initial=0) > allowed * np.ptp(answers):
        tensors.append(file.graph.output[0].name)
    return [_layer_before(file.graph, tensor) for tensor in tensors]


def _is_approximate(graph: onnx.GraphProto) -> bool:
    """Return whether a kernel of a file rounds what it reads in a way of its own."""
    levels = {a.i for n in graph.node for a in n.attribute if a.name == "accuracy_level"}
    return INTEGER_LEVEL in levels


def _counts(difference: Difference, loose: bool) -> bool:
    """Return whether a difference is more than what float sums, or such kernels, explain."""
    return difference.exact or difference.largest > (256 * APPROXIMATE if loose else 1)


def _layer_before(graph: onnx.GraphProto, tensor: str) -> str:
    """Return the name of the last product whose result is in a tensor; the tensor's without one."""
    makers = {output: node for node in graph.node for output in node.output}
    waiting, seen = [tensor], {tensor}
    while waiting:
        node = makers.get(waiting.pop(0))
        if node is None:
            continue
        if node.op_type in _PRODUCTS:
            return str(node.name)
        waiting += [name for name in node.input if name not in seen]
        seen.update(node.input)
    return tensor


def error(file: onnx.ModelProto, network: nn.Module, images: Inputs, exact: bool = False) -> float:
    """Return how far a file's answers in ONNX Runtime are from those of its PyTorch network.

    It is the error of the median image: the norm of the difference, as a share of the norm of the
    difference between the answers and their mean over the images.

    Args:
        file: The network's.
        network: After ``haq.quantization.convert.convert_to_integers``; left as it is.
        images: (N, ...).
        exact: Whether to run the file with kernels that are exact on every CPU.
    """
    session = opened(file.SerializeToString(), exact)
    answers = answered(session, images)
    results = _exactly(network, images)
    expected = taken_apart(results)[1][0].double().reshape(len(images), -1).numpy()
    apart = np.linalg.norm(answers.reshape(expected.shape) - expected, axis=1)
    spread = np.linalg.norm(expected - expected.mean(0), axis=1).mean()
    # Networks that answer all images alike have no spread to compare with.
    return float(np.median(apart) / max(spread, 0.01 * np.linalg.norm(expected, axis=1).mean()))


def _exactly(network: nn.Module, images: Inputs) -> object:
    """Return a network's answers: its own where it computes with integers, else in float64.

    In float32 where it holds constants of that.
    """
    if is_exact(network):
        with torch.no_grad(), evaluating(network):
            return call(network, images)
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        try:
            return call(network.double(), _wide(images))
        except RuntimeError:
            return call(network.float(), images)


def _wide(images: Inputs) -> Inputs:
    if not isinstance(images, Tensor):
        return images.map(lambda one: one.double() if one.is_floating_point() else one)
    return images.double() if images.is_floating_point() else images
