"""What the modules, tensors and inputs of a model are called in its graph."""

import inspect
from collections.abc import Iterator
from itertools import count

from torch import fx, nn


class Names:
    """The names of a model's modules and tensors.

    Attributes:
        modules: Module, by id, to its name.
        tensors: Parameter or buffer, by id, to its name.
    """

    def __init__(self, model: nn.Module):
        self._model, self._prefix = model, _prefix(model)
        self.modules = {id(m): self._prefix + name for name, m in model.named_modules()}
        tensors = (*model.named_parameters(), *model.named_buffers())
        self.tensors = {id(tensor): self._prefix + name for name, tensor in tensors}

    def after(self, parameter: str) -> str:
        """Return what a layer is called after its weight: a.weight a, in_proj_weight in_proj."""
        owner, _, leaf = parameter.rpartition(".")
        if leaf == "weight" and owner:
            module = self._model.get_submodule(owner.removeprefix(self._prefix))
            return owner if not any(True for _ in module.children()) else parameter
        short = parameter.removesuffix("_weight")
        return parameter if short in self.modules.values() else short


def _prefix(model: nn.Module) -> str:
    """Return what stands before all names, where one of them is taken in a GraphModule."""
    names = (*model._modules, *model._parameters, *model._buffers)
    taken = any(name == "meta" or hasattr(fx.GraphModule, name) for name in names)
    return "model." if taken else ""


def input_names(model: nn.Module) -> Iterator[str]:
    """Yield what a forward calls its inputs, in order."""
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            yield from (f"{name}_{number}" for number in count())
        yield name
