"""What the nodes of a program are: their names, where they stand, whether they change anything."""

from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn

from haq.network.naming import NAMED

aten = torch.ops.aten

# Give what they read, in this graph in which nothing is written in place.
_COPIES = {
    aten.contiguous.default, aten.clone.default, aten.alias.default, aten.lift_fresh_copy.default,
    aten.lift_fresh.default, NAMED,
}  # fmt: skip

_END = 2**63 - 1


def name_of(node: fx.Node) -> str:
    """Return what a node's operation is called, without its namespace and overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return getattr(node.target, "__name__", "value")


def is_random(node: fx.Node) -> bool:
    """Return whether an operation draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def changes_nothing(node: fx.Node) -> bool:
    """Return whether a node gives what it reads: a copy, all of it, or a type that it has."""
    if node.target in _COPIES:
        return True
    if node.target is aten.slice.Tensor:
        return node.args[2:3] in ((), (0,), (None,)) and node.args[3:] in ((), (_END,), (None,))
    if name_of(node) in ("to", "_to_copy", "type_as") and "val" in node.meta:
        before, after = (each.meta["val"] for each in (node.all_input_nodes[0], node))
        return bool((before.dtype, before.device) == (after.dtype, after.device))
    return False


def innermost(node: fx.Node, model: nn.Module, kind: Any) -> nn.Module | None:
    """Return the innermost module of a kind in whose forward an operation stands."""
    for name in reversed(modules_around(node, model)):
        module = _module(model, name)
        if isinstance(module, nn.Module) and isinstance(module, kind):
            return module
    return None


def modules_around(node: fx.Node, model: nn.Module) -> list[str]:
    """Return the names of the modules in whose forward an operation stands, the outermost first."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    names = [path.removeprefix("model").removeprefix(".") for path, _ in stack]
    # A second call is written name@1, but a name may have an @ of its own.
    return [
        name.rpartition("@")[0] if "@" in name and not _module(model, name) else name
        for name in names
    ]


def _module(model: nn.Module, name: str) -> nn.Module | None:
    with suppress(AttributeError):  # of what is no module, such as a guess by torch
        module: Any = model.get_submodule(name)
        return module if isinstance(module, nn.Module) else None
    return None
