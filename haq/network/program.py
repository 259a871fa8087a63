"""The operations of a forward, in order and without side effects: what ``torch.export`` sees.

Control flow on shapes, optional arguments and hooks are resolved there. Operations in place become
operations that give a new tensor: simple ones here, those on views by torch's decompositions.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import OutputKind

from haq.errors import ModelError
from haq.network.inputs import Batch, call
from haq.network.outputs import Structure, taken_apart

aten = torch.ops.aten


class Program(NamedTuple):
    """A forward as operations.

    Attributes:
        graph: Parameters, buffers and constants are placeholders before those of the inputs; it
            gives a tuple of tensors.
        state: Placeholder to the parameter or buffer itself, or to a constant of the forward.
        structure: What the forward makes of the tensors.
    """

    graph: fx.Graph
    state: Mapping[str, Tensor]
    structure: Structure


class _Outermost(nn.Module):
    """Holds the model, and tells what its forward gives."""

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], on_structure: Callable[[Structure], None]
    ):
        super().__init__()
        self.model, self.names, self.on_structure = model, names, on_structure

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors in the model's output."""
        structure, tensors = taken_apart(call(self.model, Batch(inputs, self.names)))
        self.on_structure(structure)
        return tuple(tensors)


def export(model: nn.Module, inputs: Batch, batched: tuple[bool, ...]) -> Program:
    """Return the forward of a model in evaluation mode.

    Args:
        model: In evaluation mode.
        inputs: What one forward takes, with at least two rows each.
        batched: Of each, whether its first axis is the batch, which may have any size later.

    Raises:
        ModelError: The forward cannot be captured; the message says why.
    """
    structures: list[Structure] = []
    outermost = _Outermost(model, inputs.names, structures.append)
    sizes = tuple({0: Dim.DYNAMIC} if free else {} for free in batched)
    try:
        with _quiet(), _without_fast_path(), torch.no_grad():
            exported = torch.export.export(
                outermost, inputs.tensors, dynamic_shapes={"inputs": sizes}, strict=False
            )
            _inline(exported.graph_module)
            if not _without_side_effects(exported):
                exported = _decomposed(exported)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_why(type(model).__name__, error)) from error
    _check_state(exported)
    signature = exported.graph_signature
    state: dict[str, Tensor] = {
        placeholder: outermost.get_parameter(name)
        for placeholder, name in signature.inputs_to_parameters.items()
    }
    for placeholder, name in signature.inputs_to_buffers.items():
        state[placeholder] = outermost.get_buffer(name)
    for placeholder, name in signature.inputs_to_lifted_tensor_constants.items():
        state[placeholder] = exported.constants[name]
    return Program(exported.graph, state, structures[-1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch logs and warns of: where it matters, the message says it."""
    loggers = [logging.getLogger(name) for name in _TALKING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_TALKING = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch._export", "torch")


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Let attention be written as the operations it consists of."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _why(model: str, error: Exception) -> str:
    text = str(error) or type(error).__name__
    start = f"the forward of {model} cannot be captured: "
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return start + (
            "it branches on values that it computes; compute both ways and choose with torch.where"
        )
    if "specialized it to be a constant" in text:
        return start + (
            "it works for one number of inputs at a time alone, as where a constant has a row for "
            "each input, or where the number comes from len(x) instead of x.shape[0]"
        )
    return f"{start}{text.splitlines()[0]} (torch.export)"


def _check_state(exported: ExportedProgram) -> None:
    changed = [*exported.graph_signature.buffers_to_mutate.values()]
    changed += getattr(exported.graph_signature, "parameters_to_mutate", {}).values()
    if changed:
        raise ModelError(
            f"the forward changes {changed[0].removeprefix('model.')!r} in evaluation mode; a "
            "network must give the same answer each time"
        )


def _inline(module: fx.GraphModule) -> None:
    """Put the operations under ``with torch.no_grad()`` and its like where these stand."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and str(node.target) in _BLOCKS:
            place = next(n for n, arg in enumerate(node.args) if _is_block(arg))
            block = module.get_submodule(str(node.args[place].target))
            assert isinstance(block, fx.GraphModule)
            _inline(block)
            holders = [n for n in block.graph.nodes if n.op == "placeholder"]
            values = dict(zip(holders, node.args[place + 1 :], strict=True))
            with module.graph.inserting_before(node):
                results = module.graph.graph_copy(block.graph, values)
            _replace_results(node, results)
    module.graph.eliminate_dead_code()


_BLOCKS = {"wrap_with_set_grad_enabled", "wrap_with_autocast"}


def _is_block(argument: Any) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def _replace_results(node: fx.Node, results: Any) -> None:
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _without_side_effects(exported: ExportedProgram) -> bool:
    """Replace operations in place on tensors without views, and return whether that was all."""
    order = {node: place for place, node in enumerate(exported.graph.nodes)}
    inputs = exported.graph_signature.user_inputs
    for node in order:
        if _writes(node):
            changed = node.all_input_nodes[0]
            state = changed.op == "placeholder" and changed.name not in inputs
            functional = None if state else _functional(node, order)
            if functional is None:
                return False
            later = {other for other in order if order[other] > order[node]}
            changed.replace_all_uses_with(node, later.__contains__)
            node.target = functional
    return True


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _functional(node: fx.Node, order: Mapping[fx.Node, int]) -> Any:
    """Return the operation that gives what ``node`` writes, or None where views may see it."""
    changed, others = node.all_input_nodes[0], node.all_input_nodes[1:]
    operation: Any = node.target
    name = operation._schema.name.removeprefix("aten::")
    functional = getattr(getattr(aten, name.removesuffix("_"), None), operation._overloadname, None)
    if functional is None or not name.endswith("_") or node.args[0] is not changed:
        return None
    before = [user for user in changed.users if order[user] < order[node]]
    safe = _is_fresh(changed) and all(map(_is_fresh, before))
    same = all(_dtype(other) in (None, _dtype(changed)) for other in others)
    return functional if safe and same else None


def _dtype(node: fx.Node) -> torch.dtype | None:
    return getattr(node.meta.get("val"), "dtype", None)


_COMPUTE = {  # made of other operations, and give new tensors all the same
    "aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::conv_transpose1d",
    "aten::conv_transpose2d", "aten::conv_transpose3d", "aten::linear",
    "aten::matmul", "aten::batch_norm", "aten::layer_norm", "aten::group_norm", "aten::pad",
    "aten::instance_norm", "aten::max_pool2d", "aten::adaptive_avg_pool2d", "aten::relu6",
    "aten::softmax",
}  # fmt: skip


def _is_fresh(node: fx.Node) -> bool:
    """Return whether a node gives nothing that shares memory with another tensor."""
    if node.op in ("output", "placeholder"):
        return True  # whether the caller's own inputs change is not the network's answer
    if not isinstance(node.target, OpOverload):
        return False
    schema = node.target._schema
    if any(result.alias_info is not None for result in schema.returns):
        return False
    if not any("Tensor" in str(result.type) for result in schema.returns):
        return True
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(
        node.target.name(), "CompositeImplicitAutograd"
    )
    return schema.name in _COMPUTE or not composite


_KEPT = torch.library.Library("haq", "DEF")
"""Operations that torch would take apart: marked so that modules can be put in their places."""

MARKED: dict[Any, Any] = {}
"""Each of them to the operation that it stands for."""


def _mark(name: str) -> None:
    operation = getattr(aten, name).default
    schema = str(operation._schema).removeprefix("aten::")
    _KEPT.define(schema)

    def compute(first: Tensor, *rest: Any) -> Tensor:
        return torch.empty_like(first)

    _KEPT.impl(name, compute, "CompositeExplicitAutograd")
    MARKED[getattr(torch.ops.haq, name).default] = operation


for _name in ("batch_norm", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"):
    _mark(_name)


def _decomposed(exported: ExportedProgram) -> ExportedProgram:
    """Return the program without operations in place, whatever they write to."""
    marks = {operation: mark for mark, operation in MARKED.items()}
    for node in exported.graph.nodes:
        if node.target in marks:
            node.target = marks[node.target]
    exported = exported.run_decompositions({})
    for node in exported.graph.nodes:
        node.target = MARKED.get(node.target, node.target)
    (results,) = exported.graph.output_node().args
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    answers = [r for r, kind in zip(results, kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
    exported.graph.output_node().args = (tuple(answers),)
    return exported
