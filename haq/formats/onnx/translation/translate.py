"""From a network whose layers and quantizers are markers to ONNX, operation by operation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import onnx
import torch
from onnx import helper
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.formats.onnx.translation import (
    elementwise,
    exact,
    products,
    recurrent,
    reductions,
    sampling,
    shapes,
)
from haq.formats.onnx.translation.draft import (
    TYPES,
    Draft,
    Known,
    UntranslatedError,
    as_constant,
    read_nodes,
)
from haq.network.lifting.modules import DROPOUT_MODULES, Constant
from haq.network.modules import Matrix
from haq.network.operators import kind_of

RULES: Mapping[Any, elementwise.Rule] = {
    **elementwise.RULES, **shapes.RULES, **reductions.RULES, **products.RULES,
    **recurrent.RULES, **sampling.RULES,
}  # fmt: skip
"""Name of an operation to what writes it."""


class Marked(NamedTuple):
    """What stands for a module.

    Attributes:
        kind: Of the marker; empty where the module is left out.
        name: Which the marker bears.
        operand: Which of the module's arguments the marker reads.
    """

    kind: str
    name: str
    operand: int = 0


Marker = Callable[[nn.Module, str], Marked | None]
"""From a module and its name to its marker, None where it has none."""


def translated(
    network: fx.GraphModule, inputs: Sequence[Tensor], names: Sequence[str],
    results: Mapping[str, fx.Node], opset: int, domain: str, marker: Marker, exactly: bool,
) -> onnx.ModelProto:  # fmt: skip
    """Return the ONNX form of a network.

    Args:
        network: In evaluation mode, without operations in place.
        inputs: What one forward takes; the first axis of each is the batch.
        names: Of the inputs.
        results: Names of the outputs to the nodes that compute them.
        opset: Of the file.
        domain: Of the markers.
        marker: Says which modules are markers.
        exactly: Whether float operations are computed as ``haq.quantization.exact`` says.

    Raises:
        UntranslatedError: An operation has no rule; the message names it.
    """
    draft = Draft(_known(network, inputs))
    rules = {**RULES, **exact.RULES} if exactly else RULES
    draft.exactly = exactly
    graph_inputs, remaining = [], iter(names)
    for node in network.graph.nodes:
        draft.at = node.name
        if node.op == "placeholder":
            draft.names[node] = name = next(remaining)
            graph_inputs.append(_value(name, draft.of(node)))
        elif node.op != "output":
            result = _written(draft, network, node, rules, domain, marker)
            # Markers have names of their own: a layer's is that of its node.
            own = node.op == "call_function" and node.name not in (*results, *names)
            draft.names[node] = draft.called(result, node.name) if own else result
    return _model(draft, graph_inputs, results, opset, domain)


def _written(
    draft: Draft, network: fx.GraphModule, node: fx.Node,
    rules: Mapping[Any, elementwise.Rule], domain: str, marker: Marker,
) -> Any:  # fmt: skip
    if node.op == "get_attr":
        target = str(node.target)
        owner, _, leaf = target.rpartition(".")
        return draft.initializer(target, getattr(network.get_submodule(owner), leaf))
    if node.op == "call_module":
        return _module(draft, network, node, domain, marker)
    rule = rules.get(kind_of(node))
    if rule is None and isinstance(node.target, type):
        return None  # puts the output together
    try:
        result = None if rule is None else rule(draft, node)
    except (NotImplementedError, KeyError, TypeError, AssertionError) as error:
        raise UntranslatedError(str(node.target)) from error
    if result is None:
        raise UntranslatedError(str(node.target))
    return result


def _module(
    draft: Draft, network: fx.GraphModule, node: fx.Node, domain: str, marker: Marker
) -> Any:
    name = str(node.target)
    module = network.get_submodule(name)
    if isinstance(module, Constant):
        return draft.initializer(f"{name}.value", module.value)
    if isinstance(module, Matrix):
        shape = list(module.weight.shape)
        return draft.emit("weight", domain=domain, name=name, shape=shape)
    if not node.args:
        raise UntranslatedError(type(module).__name__)
    marked = marker(module, name)
    if isinstance(module, (*DROPOUT_MODULES, nn.Identity)) or (marked and not marked.kind):
        return draft.tensor(node.args[0])
    if marked is not None:
        shape = [-1 if size is None else size for size in draft.of(node).shape]
        x = draft.tensor(node.args[marked.operand])
        return draft.emit(marked.kind, x, domain=domain, name=marked.name, shape=shape)
    if isinstance(module, _BatchNorm) and module.running_mean is not None:
        if draft.exactly:
            x = draft.tensor(node.args[0])
            return draft.emit("norm", x, domain=domain, name=name, rank=draft.of(node).rank)
        return _norm(draft, module, name, node)
    raise UntranslatedError(type(module).__name__)


def _norm(draft: Draft, module: _BatchNorm, name: str, node: fx.Node) -> str:
    assert module.running_mean is not None and module.running_var is not None
    affine = {"weight": module.weight, "bias": module.bias}
    defaults = {"weight": torch.ones, "bias": torch.zeros}
    parts = [
        draft.initializer(f"{name}.{part}", value)
        if value is not None
        else draft.constant(defaults[part](module.num_features).numpy(), torch.float32)
        for part, value in affine.items()
    ]
    statistics = {"running_mean": module.running_mean, "running_var": module.running_var}
    parts += [draft.initializer(f"{name}.{part}", value) for part, value in statistics.items()]
    x = draft.tensor(node.args[0])
    return str(draft.emit("BatchNormalization", x, *parts, epsilon=float(module.eps)))


def _known(network: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """Return what is known of every value: run with two rows and with three."""
    few, more = (_recorded(network, inputs, count) for count in (2, 3))
    return {node: _united(few[node], more[node]) for node in few}


def _recorded(network: fx.GraphModule, inputs: Sequence[Tensor], count: int) -> dict[fx.Node, Any]:
    device = next((value.device for value in network.parameters()), torch.device("cpu"))
    batch = len(inputs[0])
    rows = [
        value[torch.arange(count) % batch] if value.dim() and len(value) == batch else value
        for value in inputs
    ]
    recorder = _Recorder(network)
    with torch.no_grad():
        recorder.run(*(value.to(device) for value in rows))
    return recorder.known


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False
        self.known: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.known[n] = _described(result)
        return result


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Known(value.shape, value.dtype)
    if isinstance(value, tuple | list):
        return [_described(part) for part in value]
    return value


def _united(few: Any, more: Any) -> Any:
    """Return what two runs have in common: sizes that differ vary."""
    if isinstance(few, Known):
        pairs = zip(few.shape, more.shape, strict=True)
        return Known([one if one == other else None for one, other in pairs], few.dtype)
    if isinstance(few, list):
        return [_united(one, other) for one, other in zip(few, more, strict=True)]
    return few


def _value(name: str, known: Known) -> onnx.ValueInfoProto:
    shape = ["batch" if place == 0 and size is None else size
             for place, size in enumerate(known.shape)]  # fmt: skip
    return helper.make_tensor_value_info(name, TYPES[known.dtype], shape)


def _model(
    draft: Draft, inputs: list[onnx.ValueInfoProto], results: Mapping[str, fx.Node], opset: int,
    domain: str,
) -> onnx.ModelProto:  # fmt: skip
    outputs = []
    for name, node in results.items():
        draft.nodes.append(helper.make_node("Identity", [draft.names[node]], [name]))
        outputs.append(_value(name, draft.of(node)))
    nodes = read_nodes(draft.nodes, set(results))
    written = {tensor for node in nodes for tensor in node.output}
    shown = [
        _value(name, known)
        for node, known in draft.known.items()
        if isinstance(known, Known) and (name := str(draft.names.get(node)))
        and node.op not in ("placeholder", "output") and name in written
    ]  # fmt: skip
    used = {tensor for node in nodes for tensor in node.input}
    values = [draft.constants[name] for name in draft.constants if name in used]
    values += [as_constant(name, value) for name, value in draft.state.items() if name in used]
    graph = helper.make_graph(nodes, "network", inputs, outputs, values, value_info=shown)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(domain, 1)]
    return helper.make_model(graph, opset_imports=opsets)
