"""The modules that a graph calls, under their dotted names."""

from collections.abc import Hashable

from torch import Tensor, nn


class ModuleTree:
    """Modules and tensors, each put where its dotted name says.

    Attributes:
        root: The module that holds them.
        keys: Name of each installed module to what it computes.
    """

    def __init__(self) -> None:
        self.root = nn.Module()
        self.keys: dict[str, Hashable] = {}

    def install(self, name: str, module: nn.Module, key: Hashable) -> None:
        """Put a module under its name, with the children and parameters that lie there already."""
        self.keys[name] = key
        path, _, leaf = name.rpartition(".")
        parent = self._holder(path)
        before = parent._modules.get(leaf)
        if before is not None:
            for child, part in before.named_children():
                module.add_module(child, part)
            for child, value in before.named_parameters(recurse=False):
                setattr(module, child, value)
        parent.add_module(leaf, module)

    def register(self, name: str, value: Tensor) -> None:
        """Put a parameter or buffer under its name."""
        path, _, leaf = name.rpartition(".")
        holder = self._holder(path)
        if isinstance(value, nn.Parameter):
            holder.register_parameter(leaf, value)
        elif leaf not in holder._buffers:
            holder.register_buffer(leaf, value)

    def _holder(self, path: str) -> nn.Module:
        holder = self.root
        for leaf in path.split(".") if path else ():
            if leaf not in holder._modules:
                holder.add_module(leaf, nn.Module())
            holder = holder.get_submodule(leaf)
        return holder
