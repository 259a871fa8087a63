"""What quantized networks answer when ONNX Runtime computes them with its 8-bit kernels.

That is what their files will answer, and on CPUs with 8-bit multiply-add instructions it takes a
fraction of the time that rounding takes in floating point.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

from haq.errors import ModelError
from haq.formats.onnx.layout import KEY, Layout, layout_of
from haq.formats.onnx.lower import lower
from haq.formats.onnx.saturation import EXACT_KERNELS
from haq.formats.onnx.template import Template, template
from haq.network.inputs import Batch, Inputs, tensors_of
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import Quantized
from haq.quantization.folding import layers

Answer = Callable[[Inputs], Tensor]
"""From inputs (N, ...) to the first output (N, ...), float32."""


class Session(Protocol):
    """What runs a file: a session of ONNX Runtime, or ``RowsAtATime``."""

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Return outputs for a feed."""

    def get_inputs(self) -> Any:
        """Return what describes the inputs."""

    def get_modelmeta(self) -> Any:
        """Return what holds the metadata."""


class RowsAtATime:
    """A session of a file that takes so many rows at a time alone, for any number of them."""

    def __init__(self, session: onnxruntime.InferenceSession, layout: Layout):
        self._session, self._layout = session, layout

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, Any]) -> list[Any]:
        """Return outputs for all rows of a feed."""
        parts = [self._session.run(outputs, part) for part in self._layout.parts(feed)]
        return [self._layout.joined(each, feed) for each in zip(*parts, strict=True)]

    def get_inputs(self) -> Any:
        """Return what describes the inputs."""
        return self._session.get_inputs()

    def get_modelmeta(self) -> Any:
        """Return what holds the metadata."""
        return self._session.get_modelmeta()


def prepared(network: fx.GraphModule, image: Inputs) -> Template | None:
    """Return what ``integer_answer`` needs for the networks of one graph; it takes seconds.

    Args:
        network: One of them, left as it is.
        image: An input of the network, (N, ...).

    Returns:
        None where floating point serves better: the CPU's fast 8-bit kernels are not exact, or the
        network cannot be exported.
    """
    if not exact_kernels():
        return None
    try:
        return template(network, image)
    except ModelError:
        return None


def integer_answer(exported: Template, network: nn.Module) -> Answer | None:
    """Return a function that computes what the file of a quantized network would answer.

    Args:
        exported: From ``prepared``, for a network of the same graph.
        network: Left as it is; ``convert_to_integers`` makes of a copy what is computed.

    Returns:
        None where a layer is float, the network cannot be lowered, or ONNX Runtime does not load
        its file.
    """
    if not isinstance(network, fx.GraphModule) or not all_integer(network):
        return None
    converted = copy.deepcopy(network)
    try:
        convert_to_integers(converted)
        session = opened(lower(exported, converted, cpu="vnni").SerializeToString())
    except ModelError:
        return None

    def answer(images: Inputs) -> Tensor:
        return torch.from_numpy(answered(session, images))

    return answer


def answered(session: Session, inputs: Inputs) -> NDArray[Any]:
    """Return the first output of a file for the rows that its network takes, (N, ...)."""
    first: NDArray[Any] = session.run(None, fed(session, inputs))[0]
    layout = _layout(session)
    axis = layout.output_axis if layout else None
    return np.ascontiguousarray(np.moveaxis(first, axis, 0)) if axis else first


def _layout(session: Session) -> Layout | None:
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    return layout_of(text) if text else None


def fed(session: Session, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Return what a session is given for inputs: by name, or in the order of its inputs."""
    layout = _layout(session)
    if layout is not None:
        return layout.feed(layout.rows_of(inputs))
    names = [one.name for one in session.get_inputs()]
    if isinstance(inputs, Batch) and inputs.names:
        named = dict(zip(inputs.names, inputs.tensors, strict=True))
        return {name: named[name].contiguous().numpy() for name in names}
    tensors = tensors_of(inputs)
    return {name: value.contiguous().numpy() for name, value in zip(names, tensors, strict=False)}


def all_integer(network: nn.Module) -> bool:
    """Return whether every layer of a network multiplies codes: none is float or has a codebook."""
    if not isinstance(network, fx.GraphModule):
        return False
    parts = [network.get_submodule(name) for name in layers(network)]
    return all(isinstance(part, Quantized) for part in parts)


def opened(file: bytes, exact: bool = False) -> Session:
    """Return a session with as many threads as PyTorch has.

    Args:
        file: A serialised model.
        exact: Whether to take only kernels that are exact on every CPU; they are slower.

    Raises:
        ModelError: ONNX Runtime does not load the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if exact:
        options.add_session_config_entry(EXACT_KERNELS, "1")
    try:
        session: Session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no common base of their own
        raise ModelError(f"ONNX Runtime does not load the model: {error}") from error
    layout = _layout(session)
    limited = layout is not None and layout.inputs[0].rows is not None
    return RowsAtATime(session, layout) if layout is not None and limited else session


@cache
def exact_kernels() -> bool:
    """Return whether the sums of 8-bit products are exact on this CPU.

    Without VNNI or its like, kernels add pairs of products in 16 bits, which the largest codes
    overflow.
    """
    left, right = np.full((8, 64), 255, np.uint8), np.full((64, 8), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["sums"])],
        "sums",
        [
            helper.make_tensor_value_info("left", TensorProto.UINT8, left.shape),
            helper.make_tensor_value_info("right", TensorProto.INT8, right.shape),
        ],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, (8, 8))],
    )
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    [sums] = opened(file.SerializeToString()).run(None, {"left": left, "right": right})
    return bool((sums == 64 * 255 * 127).all())
