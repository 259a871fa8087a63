"""Products with a weight, however they are spelled, become layers."""

from collections.abc import Hashable, Sequence
from itertools import chain, count
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from haq.network.lifting.draft import Draft
from haq.network.lifting.modules import BUILDERS
from haq.network.lifting.nodes import innermost
from haq.network.lifting.weights import Weight, copied, parameter, transposed
from haq.network.modules import LAYERS

aten = torch.ops.aten

_TABLE = aten.embedding.default


class _Product(NamedTuple):
    """What a layer computes.

    Attributes:
        kind: The operation that builds the layer, a key of ``BUILDERS``.
        values: What is multiplied with the weight.
        weight: With the outputs along the first axis.
        bias: None where nothing is added.
        rest: What follows the bias: stride, padding, dilation and groups.
    """

    kind: Any
    values: fx.Node
    weight: Weight
    bias: Weight | None
    rest: Sequence[Any]

    @property
    def key(self) -> Hashable:
        """Equal where the same is computed."""
        return (str(self.kind), self.weight.key, self.bias and self.bias.key, str(self.rest))


def layer(draft: Draft, node: fx.Node) -> fx.Node | None:
    """Write the call of a layer, and None where an operation is no product with a weight."""
    product = _product(draft, node)
    if product is None:
        return None
    weight, bias = product.weight, product.bias
    owner = draft.owners.get(id(weight.value))
    if product.kind is _TABLE and owner and isinstance(draft.module(owner), nn.Linear):
        draft.shared[draft.names.after(weight.name)] = owner
        return _lookup(draft, owner, draft.value(product.values))
    name = _layer_name(draft, node, product)
    if draft.modules.keys.get(name) != product.key:
        module = BUILDERS[product.kind](weight.value, *product.rest)
        module.weight = _own_weight(draft, name, module, weight)
        module.bias = None if bias is None else parameter(bias, draft.state)
        draft.modules.install(name, module, product.key)
    draft.used |= {*weight.sources, *(bias.sources if bias else ())}
    return draft.call(name, product.values)


def _product(draft: Draft, node: fx.Node) -> _Product | None:
    operands = _operands(node)
    if operands is None:
        return None
    values, right, added = operands
    weight, bias = draft.weights.get(right), draft.weights.get(added)
    if weight is None or not weight.sources or not weight.value.is_floating_point():
        return None
    if values not in draft.values and not is_table(node):
        return None
    if (bias is None) != (added is None):
        return None
    if is_table(node):
        return _Product(_TABLE, values, weight, None, ())
    if node.target in BUILDERS:
        return _Product(node.target, values, weight, bias, node.args[3:])
    if weight.value.dim() != 2 or (bias and bias.value.dim() != 1):
        return None
    return _Product(aten.linear.default, values, transposed(weight), bias, ())


def _operands(node: fx.Node) -> tuple[Any, Any, Any] | None:
    """Return what is multiplied, with what, and what is added."""
    arguments: tuple[Any, ...] = (*node.args, None, None)
    if is_table(node):
        right, values, added = *arguments[:2], None
    elif node.target in BUILDERS:
        values, right, added = arguments[:3]
    elif node.target in (aten.matmul.default, aten.mm.default):
        values, right, added = *arguments[:2], None
    elif node.target is aten.addmm.default and not node.kwargs:
        added, values, right = arguments[:3]
    else:
        return None
    return values, right, added


def _layer_name(draft: Draft, node: fx.Node, product: _Product) -> str:
    """Return the name of the module that a layer stands in, or that of its weight's owner."""
    own = innermost(node, draft.model, LAYERS)
    name = draft.names.modules[id(own)] if own is not None and own is not draft.model else ""
    names = [name] if name else []
    source = product.weight.name or next(iter(product.weight.sources.values()))
    names.append(draft.names.after(source))
    numbered = (f"{names[0]}_{number}" for number in count(1))
    return next(
        name for name in chain(names, numbered)
        if draft.modules.keys.get(name) == product.key or not _is_taken(draft, name)
        or (product.kind is aten.linear.default and _is_table_of(draft, name, product.weight))
    )  # fmt: skip


def _is_table_of(draft: Draft, name: str, weight: Weight) -> bool:
    """Return whether a name is that of an Embedding with this weight, written already."""
    module = draft.module(name) if name in draft.modules.keys else None
    return isinstance(module, nn.Embedding) and module.weight is weight.value


def _is_taken(draft: Draft, name: str) -> bool:
    return name in draft.modules.keys or any(r.target == name for r in draft.reads.values())


def _own_weight(draft: Draft, name: str, module: nn.Module, weight: Weight) -> nn.Parameter:
    """Return the weight of a new layer: the model's own, unless something else reads it."""
    if not weight.name:
        if weight.original is None:
            draft.computed.append(name)
        return parameter(weight, draft.state)
    other = _other_reader(draft, name, weight)
    if other is not None and _takes_over(draft, other, name, module):
        other = None
    if other is not None:
        draft.tied.append((other, name))
        return copied(weight.value)
    draft.owners[id(weight.value)] = name
    return parameter(weight, draft.state)


def _takes_over(draft: Draft, table: str, name: str, module: nn.Module) -> bool:
    """Let a layer own the weight whose rows an Embedding before it looks up: one layer for both."""
    embedding = isinstance(module, nn.Linear) and table in draft.modules.keys
    if not embedding or not isinstance(draft.module(table), nn.Embedding):
        return False
    for call in draft.graph.find_nodes(op="call_module", target=table):
        with draft.graph.inserting_before(call):
            lookup = _lookup(draft, name, call.args[0])
        call.replace_all_uses_with(lookup)
        draft.values |= {n: lookup for n, value in draft.values.items() if value is call}
        draft.graph.erase_node(call)
    draft.shared[table] = name
    return True


def _lookup(draft: Draft, owner: str, rows: Any) -> fx.Node:
    """Write the reading of rows of a layer's weight."""
    table = draft.graph.create_node("get_attr", f"{owner}.weight")
    return draft.graph.call_function(_TABLE, (table, rows))


def is_table(node: fx.Node) -> bool:
    """Return whether a node looks up rows of a table."""
    return node.target is _TABLE


def _other_reader(draft: Draft, name: str, weight: Weight) -> str | None:
    owner = draft.owners.get(id(weight.value))
    read = draft.reads.get(weight.key)
    if owner is None and read is not None and read.target != f"{name}.weight":
        return str(read.target).rpartition(".")[0] or str(read.target)
    return owner
