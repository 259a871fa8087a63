"""A network exported by torch once, with markers where its layers and its quantizers stand."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from haq.allocation.policy import FLOAT
from haq.errors import ModelError
from haq.formats.onnx.original import from_original
from haq.formats.onnx.translation.draft import UntranslatedError
from haq.formats.onnx.translation.translate import Marked, Marker, translated
from haq.models.onnx.network import Origin
from haq.network.capture import Sample, evaluating
from haq.network.inputs import Inputs, arguments, as_inputs, tensors_of
from haq.network.modules import Matrix
from haq.network.naming import ORIGIN
from haq.network.operators import kind_of, projects
from haq.network.outputs import tensors_given
from haq.quantization.bn_folding import norms_of
from haq.quantization.fake_quant import Rounding, Rows, set_plain
from haq.quantization.folding import layers

OPSET = 21
"""ONNX opset of the files: the first with INT4."""

DOMAIN = "haq"
"""Of the markers in a template."""


@dataclass(frozen=True)
class Template:
    """A network in ONNX, its layers and quantizers still markers.

    Attributes:
        model: With nodes ``haq.layer`` and ``haq.round`` that name the network's modules, with
            ``haq.rows`` where rows of the weights of the layer they name are looked up, with
            ``haq.weight`` where an operation reads all of them, and with
            ``haq.apart``, which do nothing, before the BatchNorms that are not folded.
        norms: Layer to the BatchNorm that folds into it.
        folded: Parameters and buffers of which torch made constants of other names; a network must
            have the same ones.
        states: Constant to the parameter or buffer whose values it has, if that is called
            otherwise.
        original: Whether it is the ONNX file that the float network comes from: names stay.
        untranslated: The operation for whose sake torch's exporter wrote it; empty where it did
            not. What is left float is not computed as ``haq.quantization.exact`` says then, but in
            float32.
    """

    model: onnx.ModelProto
    norms: Mapping[str, str]
    folded: Mapping[str, Tensor]
    states: Mapping[str, str] = field(default_factory=dict)
    original: bool = False
    untranslated: str = ""

    @property
    def float32(self) -> str:
        """What is computed in float32 and why, in a sentence; empty where nothing is."""
        if not self.untranslated:
            return ""
        return (
            f"{self.untranslated} has no rule of translation, so torch's exporter writes the ONNX "
            "file: what stays float between layers is computed in float32 there, not in float64 "
            "as in other files, and its answers can differ from PyTorch's in some codes"
        )


class _Round(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` behind a marker."""
        return _marker("round", x, self.name, x.shape)


class _Layer(nn.Module):
    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.name, self.module = name, module

    def forward(self, x: Tensor) -> Tensor:
        """Return a marker in the place of the module."""
        result = self.module(x)
        return _marker("layer", x, self.name, result.shape, result.dtype)


class _Weight(nn.Module):
    def __init__(self, name: str, module: Matrix):
        super().__init__()
        self.name, self.shape, self.dtype = name, module.weight.shape, module.weight.dtype
        for other, value in module.named_parameters(recurse=False):
            if other != "weight":  # such as a bias that is read beside it
                self.register_parameter(other, value)

    def forward(self) -> Tensor:
        """Return a marker in the place of a matrix."""
        result: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::weight", (), {"name": self.name, "shape": list(self.shape)},
            dtype=self.dtype, shape=self.shape, version=1,
        )  # fmt: skip
        return result


class _Rows(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, weight: Tensor, clip: Tensor, rows: Tensor) -> Tensor:
        """Return a marker in the place of rows of another layer's weights."""
        return _marker("rows", rows, self.name, (*rows.shape, weight.shape[1]), weight.dtype)


def _marker(
    kind: str, x: Tensor, name: str, shape: Sequence[Any], dtype: torch.dtype | None = None
) -> Tensor:
    known = [size if type(size) is int else -1 for size in shape]
    result: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{kind}", (x,), {"name": name, "shape": known},
        dtype=dtype or x.dtype, shape=tuple(shape), version=1,
    )  # fmt: skip
    return result


def template(network: fx.GraphModule, sample: Sample, exactly: bool = True) -> Template:
    """Return the ONNX form of a network that ``haq.quantization.fake_quant.quantize`` made.

    It serves every network from the same graph: what stays float is taken from the network.

    Args:
        network: Left as it is.
        sample: What one forward takes; the first axis is the batch, and free in the file.
        exactly: Whether what stays float between integers is computed as ``quantization.exact``
            says. Otherwise plain operators of float32 do it, whose last digits differ.

    Raises:
        ModelError: torch cannot export the network.
    """
    inputs = as_inputs(sample)
    _check_bags(network)
    names, norms = layers(network), norms_of(network)
    origin = network.meta.get(ORIGIN)
    if isinstance(origin, Origin):
        marked_file = from_original(origin, network, names, norms, DOMAIN)
        return Template(
            marked_file.model, norms, marked_file.unnamed, marked_file.states, original=True
        )
    try:
        with evaluating(network):
            model = translated(
                network, arguments(network.graph, inputs), _input_names(network, inputs),
                _results(network, inputs), OPSET, DOMAIN, _marker_of(names, norms),
                exactly=exactly and _rounds(network),
            )  # fmt: skip
        return Template(model, norms, {})
    except UntranslatedError as error:
        return replace(_by_torch(network, inputs, names), untranslated=str(error))


def _check_bags(network: fx.GraphModule) -> None:
    if any(kind_of(node) in ("embedding_bag", "_embedding_bag") for node in network.graph.nodes):
        raise ModelError(
            "the network has an EmbeddingBag with bags of several sizes (offsets), which ONNX has "
            "not: give it rows of one length, (N, L), with padding_idx for the places left over"
        )


def _rounds(network: nn.Module) -> bool:
    """Return whether anything is rounded: a float network is written as plainly as it can be."""
    roundings = [module for module in network.modules() if isinstance(module, Rounding)]
    return any(module.bits != FLOAT for module in roundings)


def _marker_of(names: Sequence[str], norms: Mapping[str, str]) -> Marker:
    """Return the function that says which modules of a network are markers."""
    left_out = set(norms.values())

    def marker(module: nn.Module, name: str) -> Marked | None:
        if isinstance(module, Rounding):
            return Marked("round", name)
        if isinstance(module, Rows):
            return Marked("rows", module.layer, operand=2)
        if name in names:
            return Marked("layer", name)
        return Marked("", "") if name in left_out else None

    return marker


def _by_torch(network: fx.GraphModule, inputs: Inputs, names: Sequence[str]) -> Template:
    """Let torch export a network that has an operation without a rule of ours; it takes seconds."""
    if any(map(projects, network.graph.nodes)):
        raise ModelError(
            "torch's exporter would have to write the network, and cannot write an LSTM that "
            "projects its hidden state (proj_size)"
        )
    prefixes = tuple(f"{name}." for name in names)
    marked = copy.deepcopy(network).eval()
    for name, module in network.named_modules():
        if isinstance(module, Rounding):
            _replace(marked, name, _Round(name))
        elif isinstance(module, Rows):
            _replace(marked, name, _Rows(module.layer))
    for name in names:
        module = marked.get_submodule(name)
        if isinstance(module, Matrix):
            _replace(marked, name, _Weight(name, module))
            continue
        set_plain(module)  # only its shapes count
        _replace(marked, name, _Layer(name, module))
    _keep_shared_weights(marked)
    _give_attention_four_axes(marked)
    norms = norms_of(network)
    for norm in norms.values():
        _replace(marked, norm, nn.Identity())
    _set_norms_apart(marked)
    values = (*marked.named_parameters(), *marked.named_buffers())
    own = {name: value for name, value in values if not name.startswith(prefixes)}
    _set_apart(own)
    model = _exported(marked, inputs)
    constants = {tensor.name for tensor in model.graph.initializer}
    state = network.state_dict()
    folded = {name: state[name].clone() for name in own if name in state and name not in constants}
    return Template(model, norms, folded)


def _set_apart(values: Mapping[str, Tensor]) -> None:
    """Let no two parameters have the same values: torch would make one constant of them."""
    with torch.no_grad():
        for place, value in enumerate(values.values()):
            if value.is_floating_point():
                value.mul_(1 + place * 2.0**-20).add_(place * 1e-30)


def _keep_shared_weights(marked: fx.GraphModule) -> None:
    """Let what reads the weight of a layer read it in the module that stands for the layer."""
    for node in marked.graph.find_nodes(op="get_attr"):
        owner, _, leaf = str(node.target).rpartition(".")
        if isinstance(marked.get_submodule(owner), _Layer):
            node.target = f"{owner}.module.{leaf}"
    marked.recompile()


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def _give_attention_four_axes(marked: fx.GraphModule) -> None:
    """Let attention over fewer than four axes be one over four: torch exports no other."""
    for node in marked.graph.nodes:
        if getattr(node.target, "__name__", "").startswith("scaled_dot_product_attention"):
            node.target = _attention
    marked.recompile()


def _attention(query: Tensor, key: Tensor, value: Tensor, *options: Any, **more: Any) -> Tensor:
    missing = max(4 - query.dim(), 0)
    query, key, value = (x[(None,) * missing] for x in (query, key, value))
    result = functional.scaled_dot_product_attention(query, key, value, *options, **more)
    return result[(0,) * missing]


def _set_norms_apart(marked: fx.GraphModule) -> None:
    """Put a marker before each BatchNorm that is left.

    Behind a convolution that stays float torch would make one operator of the two, whose constants
    bear the names of the convolution's own parameters.
    """
    for node in list(marked.graph.nodes):
        if _is_norm(marked, node):
            with marked.graph.inserting_before(node):
                apart = marked.graph.call_function(_apart, (node.args[0],))
            node.replace_input_with(node.args[0], apart)
    marked.recompile()


def _is_norm(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), _BatchNorm)
    return node.op == "call_function" and "batch_norm" in str(node.target)


def _apart(x: Tensor) -> Tensor:
    return _marker("apart", x, "", x.shape)


def _exported(marked: fx.GraphModule, inputs: Inputs) -> onnx.ModelProto:
    # Two images: torch takes an axis of one for a constant.
    given = arguments(marked.graph, inputs)
    pairs = tuple(value[:1].repeat(2, *(1,) * (value.dim() - 1)).cpu() for value in given)
    batch = torch.export.Dim("batch")
    results = _results(marked, inputs)
    # One a name: torch knows no dataclasses.
    marked.graph.output_node().args = (tuple(results.values()),)
    marked.recompile()
    try:
        with warnings.catch_warnings(), _quiet(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                marked, pairs, dynamo=True, opset_version=OPSET, verbose=False,
                dynamic_shapes=tuple({0: batch} for _ in pairs),
                input_names=_input_names(marked, inputs), output_names=list(results),
            )  # fmt: skip
    except Exception as error:
        raise ModelError(f"the network cannot be exported to ONNX: {_reason(error)}") from error
    assert program is not None
    return program.model_proto


def _results(network: fx.GraphModule, inputs: Inputs) -> dict[str, fx.Node]:
    """Return the nodes of the tensors that a network gives, by names that no input has."""
    names = _input_names(network, inputs)
    given = tensors_given(network).items()
    return {f"{name}_out" if name in names else name: node for name, node in given}


def _input_names(network: fx.GraphModule, inputs: Inputs) -> list[str]:
    if not isinstance(inputs, Tensor) and inputs.names:
        return [str(node.target) for node in network.graph.find_nodes(op="placeholder")]
    count = len(tensors_of(inputs))
    return ["images"] if count == 1 else [f"input{place}" for place in range(count)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch says of packages that it misses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    text = str(error.__cause__ or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
