"""From operations back to modules, which have a training mode, statistics and names.

Layers, BatchNorms and dropout become calls of PyTorch's plain modules under the names of their
weights' owners; all else stays an operation on parameters under their own names. So it does not
matter how a model spells its layers: a Conv2d, a subclass of it and ``functional.conv2d`` on a
Parameter are the same here.
"""

import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, count
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from haq.errors import ModelError
from haq.network.modules import (
    BUILDERS,
    DROPOUT_MODULES,
    DROPOUTS,
    Constant,
    parts_of,
    plain_norm,
)
from haq.network.outputs import put_together
from haq.network.program import Program

aten = torch.ops.aten

# Give what they read, in this graph in which nothing is written in place.
_COPIES = {
    aten.contiguous.default, aten.clone.default, aten.alias.default, aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
}  # fmt: skip

# Depend on how the values lie in memory, which may differ from the sample's.
_REPLACED = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
}

_CHECKS = {
    "_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range",
    "sym_constrain_range_for_size",
}  # fmt: skip


class _Weight(NamedTuple):
    """What depends on parameters, buffers and constants alone.

    Attributes:
        value: As it is now, mostly a tensor.
        key: Equal where the same is computed from the same parameters.
        name: Of the parameter or buffer; empty for what is computed.
        sources: The parameters and buffers, by id, to their names.
        turned: Whether it is a parameter with its axes exchanged.
    """

    value: Any
    key: Any
    name: str
    sources: Mapping[int, str]
    turned: bool = False


def _transposed(weight: _Weight) -> _Weight:
    key = f"transposed({weight.key})"
    return _Weight(weight.value.t(), key, "", weight.sources, turned=bool(weight.name))


def lifted(model: nn.Module, program: Program) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return the network that a program describes, in evaluation mode, and what is to be said.

    Its parameters and buffers are the model's own, but for weights that are computed from others
    or read in several places, which are copies.

    Args:
        model: What the program was exported from.
        program: From ``haq.network.program.export``.
    """
    builder = _Builder(model, program)
    for node in program.graph.nodes:
        builder.add(node)
    whole = fx.GraphModule(builder.root, builder.graph, type(model).__name__)
    whole.graph.eliminate_dead_code()
    traced = fx.GraphModule(whole, whole.graph, type(model).__name__)  # without what is not called
    return traced.eval(), tuple(builder.notes())


class _Builder:
    """Writes the graph, operation by operation, and puts the modules that it calls together."""

    def __init__(self, model: nn.Module, program: Program):
        self.model, self.state, self.structure = model, program.state, program.structure
        self.graph, self.root = fx.Graph(), nn.Module()
        self.prefix = _prefix(model)
        self.inputs = _input_names(model)
        self.module_names = {id(m): self.prefix + name for name, m in model.named_modules()}
        tensors = (*model.named_parameters(), *model.named_buffers())
        self.tensor_names = {id(tensor): self.prefix + name for name, tensor in tensors}
        self.passing = _passing(model)
        self.values: dict[fx.Node, Any] = {}  # node of the program to what holds its value here
        self.weights: dict[fx.Node, _Weight] = {}
        self.lifted: dict[str, Hashable] = {}  # name of a module to what it computes
        self.owners: dict[int, str] = {}  # parameter to the layer whose weight it is
        self.reads: dict[Hashable, fx.Node] = {}
        self.used: set[int] = set()
        self.computed: list[str] = []
        self.tied: list[tuple[str, str]] = []

    def add(self, node: fx.Node) -> None:
        """Write what a node of the program does."""
        if node.op == "placeholder":
            self._placeholder(node)
        elif node.op == "output":
            tensors = [self._value(result) for result in node.args[0]]  # type: ignore[union-attr]
            self.graph.output(put_together(self.structure, tensors, self.graph))
        elif node.op == "get_attr":
            raise ModelError(
                f"the forward of {type(self.model).__name__} cannot be captured: it has a branch "
                "or a loop (torch.cond and its like) within its graph; choose with torch.where"
            )
        elif _name_of(node) not in _CHECKS:
            self._operation(node)

    def notes(self) -> Iterator[str]:
        """Yield what was changed, in whole sentences."""
        if self.computed:
            yield (
                f"the weights of {_listed(self.computed)} are computed from other parameters, as "
                "weight normalisation and pruning do; the network has them as they are now"
            )
        for first, second in self.tied:
            yield f"{second} shares its weight with {first}; each has a copy of its own"
        missed = [
            name or type(self.model).__name__ for name, module in self.model.named_modules()
            if (own := [*module.parameters(recurse=False)])
            and self.used.isdisjoint(map(id, own))
        ]  # fmt: skip
        if missed:
            yield f"the forward never reaches {_listed(missed)}, left out"

    def _placeholder(self, node: fx.Node) -> None:
        if node.name not in self.state:
            self.values[node] = self.graph.placeholder(next(self.inputs))
            return
        tensor = self.state[node.name]
        name = self.tensor_names.get(id(tensor), "")
        self.weights[node] = _Weight(tensor, id(tensor), name, {id(tensor): name} if name else {})

    def _operation(self, node: fx.Node) -> None:
        weight = self._from_weights(node)
        if weight is not None:
            self.weights[node] = weight  # written where something else than a layer reads it
            return
        call = self._layer(node) or self._norm(node) or self._dropout(node)
        if call is None and _changes_nothing(node):
            call = self._value(node.args[0])
        self.values[node] = call or self._write(node)

    def _from_weights(self, node: fx.Node) -> _Weight | None:
        operands = node.all_input_nodes
        if not operands or not all(operand in self.weights for operand in operands):
            return None
        if _is_random(node):
            return None
        arguments: Any = (node.args, node.kwargs)
        args, kwargs = fx.map_arg(arguments, lambda n: self.weights[n].value)
        keys = fx.map_arg(arguments, lambda n: self.weights[n].key)
        sources = {
            i: name for operand in operands for i, name in self.weights[operand].sources.items()
        }
        with torch.no_grad():
            value = node.target(*args, **kwargs)  # type: ignore[operator]
        return _Weight(value, f"{node.target}{keys}", "", sources)

    # What becomes a module.

    def _layer(self, node: fx.Node) -> fx.Node | None:
        product = self._product(node)
        if product is None:
            return None
        values, weight, bias, rest = product
        kind = node.target if node.target in BUILDERS else aten.linear.default
        key = (str(kind), weight.key, bias and bias.key, str(rest))
        name = self._layer_name(node, weight, key)
        if name not in self.lifted:
            module = BUILDERS[kind](weight.value, *rest)
            module.weight = self._own_weight(name, weight)
            module.bias = None if bias is None else self._parameter(bias)
            self._install(name, module, key)
        self.used |= {*weight.sources, *(bias.sources if bias else ())}
        return self.graph.call_module(name, (self._value(values),))

    def _product(self, node: fx.Node) -> tuple[Any, _Weight, _Weight | None, Sequence[Any]] | None:
        """Return what is multiplied where weights are: values, weight, bias and what follows."""
        arguments: tuple[Any, ...] = (*node.args, None, None)
        if node.target in BUILDERS:
            values, right, added = arguments[:3]
        elif node.target in (aten.matmul.default, aten.mm.default):
            values, right, added = *arguments[:2], None
        elif node.target is aten.addmm.default and not node.kwargs:
            added, values, right = arguments[:3]
        else:
            return None
        weight, bias = self.weights.get(right), self.weights.get(added)
        if weight is None or not weight.sources or values not in self.values:
            return None
        if (bias is None) != (added is None):
            return None
        if node.target in BUILDERS:
            return values, weight, bias, node.args[3:]
        if weight.value.dim() != 2 or (bias and bias.value.dim() != 1):
            return None
        return values, _transposed(weight), bias, ()

    def _layer_name(self, node: fx.Node, weight: _Weight, key: Hashable) -> str:
        """Return the name of the module that a layer stands in, or that of its weight's owner."""
        own = _innermost(node, self.model, nn.Conv2d | nn.Linear)
        name = self.module_names[id(own)] if own is not None and own is not self.model else ""
        names = [name] if name else []
        parameter = weight.name or next(iter(weight.sources.values()))
        names.append(self._name_after(parameter))
        numbered = (f"{names[0]}_{number}" for number in count(1))
        return next(
            name for name in chain(names, numbered)
            if self.lifted.get(name) == key or not self._is_taken(name)
        )  # fmt: skip

    def _name_after(self, parameter: str) -> str:
        """Return what a layer is called after its weight: a.weight a, in_proj_weight in_proj."""
        owner, _, leaf = parameter.rpartition(".")
        if leaf == "weight" and owner:
            module = self.model.get_submodule(owner.removeprefix(self.prefix))
            return owner if not any(True for _ in module.children()) else parameter
        short = parameter.removesuffix("_weight")
        return parameter if short in self.module_names.values() else short

    def _is_taken(self, name: str) -> bool:
        return name in self.lifted or any(read.target == name for read in self.reads.values())

    def _own_weight(self, name: str, weight: _Weight) -> nn.Parameter:
        """Return the weight of a new layer: the model's own, unless something else reads it."""
        if not weight.name:
            if not weight.turned:
                self.computed.append(name)
            return self._parameter(weight)
        other = self.owners.get(id(weight.value))
        read = self.reads.get(weight.key)
        if other is None and read is not None and read.target != f"{name}.weight":
            other = str(read.target).rpartition(".")[0] or str(read.target)
        if other is not None:
            self.tied.append((other, name))
            return _copy(weight.value)
        self.owners[id(weight.value)] = name
        return self._parameter(weight)

    def _parameter(self, weight: _Weight) -> nn.Parameter:
        if isinstance(weight.value, nn.Parameter):
            return weight.value
        trained = any(
            isinstance(value, nn.Parameter) and value.requires_grad
            for value in self.state.values() if id(value) in weight.sources
        )  # fmt: skip
        return nn.Parameter(weight.value.detach().contiguous(), requires_grad=trained)

    def _norm(self, node: fx.Node) -> fx.Node | None:
        if node.target is not aten.batch_norm.default or node.args[0] not in self.values:
            return None
        own = _innermost(node, self.model, _BatchNorm)
        given = [None if arg is None else self.weights.get(arg) for arg in node.args[1:5]]  # type: ignore[arg-type]
        values = [None if weight is None else weight.value for weight in given]
        training, _, eps = node.args[5:8]
        if training and values[2] is not None:
            raise ModelError(
                f"the forward of {type(self.model).__name__} changes the statistics of a BatchNorm "
                "in evaluation mode; a network must give the same answer each time"
            )
        if (
            not isinstance(own, _BatchNorm)
            or own is self.model
            or parts_of(own) != [*map(id, values)]
        ):
            return None
        name = self.module_names[id(own)]
        if name not in self.lifted:
            axes = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
            self._install(name, plain_norm(own, axes, float(eps)), id(own))  # type: ignore[arg-type]
        self.used |= {i for weight in given if weight for i in weight.sources}
        return self.graph.call_module(name, (self._value(node.args[0]),))

    def _dropout(self, node: fx.Node) -> fx.Node | None:
        if node.target not in DROPOUTS or node.args[2]:
            return None
        own = _innermost(node, self.model, _DropoutNd)
        if own is None or own is self.model:
            value: fx.Node = self._value(node.args[0])
            return value  # it is none in evaluation mode
        name = self.module_names[id(own)]
        if name not in self.lifted:
            kind = next(kind for kind in DROPOUT_MODULES if isinstance(own, kind))
            self._install(name, kind(float(node.args[1])), id(own))  # type: ignore[arg-type]
        return self.graph.call_module(name, (self._value(node.args[0]),))

    def _install(self, name: str, module: nn.Module, key: Hashable) -> None:
        self.lifted[name] = key
        path, _, leaf = name.rpartition(".")
        parent = self._holder(path)
        before = parent._modules.get(leaf)
        if before is not None:
            for child, part in before.named_children():
                module.add_module(child, part)
            for child, value in before.named_parameters(recurse=False):
                setattr(module, child, value)
        parent.add_module(leaf, module)

    def _holder(self, path: str) -> nn.Module:
        holder = self.root
        for leaf in path.split(".") if path else ():
            if leaf not in holder._modules:
                holder.add_module(leaf, nn.Module())
            holder = holder.get_submodule(leaf)
        return holder

    # What stays an operation.

    def _write(self, node: fx.Node) -> fx.Node:
        arguments: Any = (node.args, node.kwargs)
        args, kwargs = fx.map_arg(arguments, self._value)
        target: Any = node.target
        target = _REPLACED.get(target, target)
        return self.graph.create_node("call_function", target, args, kwargs, _name_of(node))

    def _value(self, node: Any) -> Any:
        if node not in self.values and node in self.weights:
            weight = self.weights[node]
            read = self.reads.get(weight.key)
            if read is None:
                read = self.reads[weight.key] = self._read(node, weight)
            self.used |= weight.sources.keys()
            return read
        return self.values[node]

    def _read(self, node: fx.Node, weight: _Weight) -> fx.Node:
        if node.op != "placeholder":
            return self._value(node.args[0]) if _changes_nothing(node) else self._write(node)
        if not weight.name or id(weight.value) in self.passing:
            number = sum(key.startswith("constants.") for key in self.lifted)
            self._install(f"constants.{number}", Constant(weight.value), weight.key)
            return self.graph.call_module(f"constants.{number}")
        owner = self.owners.get(id(weight.value))
        target = weight.name
        if owner is not None and target not in (owner, f"{owner}.weight"):
            layer = self.root.get_submodule(owner)
            layer.weight = _copy(weight.value)
            self.tied.append((target.rpartition(".")[0] or target, owner))
            owner = None
        if owner is not None:
            target = f"{owner}.weight"
        else:
            path, _, leaf = target.rpartition(".")
            _register(self._holder(path), leaf, weight.value)
        return self.graph.create_node("get_attr", target)


def _register(holder: nn.Module, name: str, value: Tensor) -> None:
    if isinstance(value, nn.Parameter):
        holder.register_parameter(name, value)
    elif name not in holder._buffers:
        holder.register_buffer(name, value)


def _copy(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)


def _innermost(node: fx.Node, model: nn.Module, kind: Any) -> nn.Module | None:
    """Return the innermost module of a kind in whose forward an operation stands."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    for path in reversed(stack):
        name = path.partition("@")[0].removeprefix("model").removeprefix(".")
        module: Any = None
        with suppress(AttributeError):  # of what is no module, such as a guess by torch
            module = model.get_submodule(name)
        if isinstance(module, nn.Module) and isinstance(module, kind):
            return module
    return None


def _changes_nothing(node: fx.Node) -> bool:
    """Return whether a node gives what it reads: a copy, all of it, or a type that it has."""
    if node.target in _COPIES:
        return True
    if node.target is aten.slice.Tensor:
        return node.args[2:3] in ((), (0,), (None,)) and node.args[3:] in ((), (_END,), (None,))
    if _name_of(node) in ("to", "_to_copy", "type_as"):
        before, after = (each.meta["val"] for each in (node.all_input_nodes[0], node))
        return bool((before.dtype, before.device) == (after.dtype, after.device))
    return False


_END = 2**63 - 1


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _name_of(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return getattr(node.target, "__name__", "value")


def _input_names(model: nn.Module) -> Iterator[str]:
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            yield from (f"{name}_{number}" for number in count())
        yield name


def _prefix(model: nn.Module) -> str:
    """Return what stands before all names, where one of them is taken in a GraphModule."""
    names = (*model._modules, *model._parameters, *model._buffers)
    taken = any(name == "meta" or hasattr(fx.GraphModule, name) for name in names)
    return "model." if taken else ""


def _passing(model: nn.Module) -> set[int]:
    """Return the buffers that are no part of a model's state."""
    return {
        id(module._buffers[name]) for module in model.modules()
        for name in module._non_persistent_buffers_set
    }  # fmt: skip


def _listed(names: list[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
