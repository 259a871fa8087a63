"""What one forward takes: a tensor, or several with a common batch axis.

Whoever handles ``Inputs`` chooses rows (``inputs[index]``, ``len``, ``split``, ``chunk``) alike for
both, and gives them to a network by ``call``. Random inputs are for where no data are at hand.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple, get_origin

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True, eq=False)
class Batch:
    """Several tensors that one forward takes, each with the batch axis first.

    Attributes:
        tensors: In the order of the forward's parameters, or in any order where they have names.
        names: Of the forward's parameters, one a tensor; empty where they are given in order.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, rows: Any) -> "Batch":
        return self.map(lambda tensor: tensor[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with every tensor changed."""
        return Batch(tuple(map(change, self.tensors)), self.names)

    def split(self, rows: int) -> "Sequence[Batch]":
        """Return parts of so many rows, the last one of what is left; as of a tensor."""
        parts = zip(*(tensor.split(rows) for tensor in self.tensors), strict=True)
        return [Batch(tensors, self.names) for tensors in parts]

    def chunk(self, count: int) -> "Sequence[Batch]":
        """Return about so many parts; as of a tensor."""
        return self.split(-(-len(self) // count))

    def get(self, name: str) -> Tensor | None:
        """Return the tensor of a name; None where there is none."""
        return dict(zip(self.names, self.tensors, strict=False)).get(name)


Inputs = Tensor | Batch

MASK = "attention_mask"
"""The input that says which tokens of a text count: not zero where they do."""


def mask_of(inputs: Inputs) -> Tensor | None:
    """Return which tokens of the inputs count, (N, tokens); None where all do."""
    return inputs.get(MASK) if isinstance(inputs, Batch) else None


def counted(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Return the rows (..., values) of tokens that count; all where none does, or is for a token.

    >>> counted(torch.arange(6.0).view(1, 3, 2), torch.tensor([[1, 0, 1]])).tolist()
    [[0.0, 1.0], [4.0, 5.0]]
    """
    left = rows if mask is None or rows.shape[:-1] != mask.shape else rows[mask != 0]
    return left if len(left) else rows


Dtype = Literal["", "bool", "uint8", "int8", "int16", "int32"]

DTYPES: Mapping[Dtype, torch.dtype] = {
    "bool": torch.bool, "uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16,
    "int32": torch.int32,
}  # fmt: skip
"""Types that inputs may have beside float32 and int64."""


class InputShape(NamedTuple):
    """What one tensor of an input looks like.

    Attributes:
        shape: Without the batch axis.
        tokens: How many values it may have, from 0 up; None where it holds floats.
        dtype: Of integers other than int64, a key of ``DTYPES``; "" for int64 and for floats.
    """

    shape: tuple[int, ...]
    tokens: int | None = None
    dtype: Dtype = ""


def as_inputs(value: Tensor | Batch | Sequence[Tensor] | Mapping[str, Tensor]) -> Inputs:
    """Return what a caller gives for one forward as inputs: a dict has the names of parameters.

    >>> as_inputs({"ids": torch.zeros(2, 3), "mask": torch.ones(2, 3)}).names
    ('ids', 'mask')
    """
    if isinstance(value, Tensor | Batch):
        return value
    if isinstance(value, Mapping):
        return Batch(tuple(value.values()), tuple(map(str, value)))
    return Batch(tuple(value))


def device_of(network: nn.Module) -> torch.device:
    """Return where a network computes: where its first parameter or buffer is; else the CPU."""
    held = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if held is None else held.device


def beside(network: nn.Module, inputs: Inputs) -> Inputs:
    """Return inputs where a network computes; themselves if they are there."""
    device = device_of(network)
    if all(tensor.device == device for tensor in tensors_of(inputs)):
        return inputs
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return inputs.map(lambda tensor: tensor.to(device))


def call(network: Callable[..., Any], inputs: Inputs) -> Any:
    """Return what a network, or the graph captured from it, gives for inputs, where it computes."""
    if isinstance(network, nn.Module):
        inputs = beside(network, inputs)
    if isinstance(inputs, Tensor):
        return network(inputs)
    if inputs.names:
        named = dict(zip(inputs.names, inputs.tensors, strict=True))
        return network(named) if takes_one_dict(network, inputs.names) else network(**named)
    return network(*inputs.tensors)


def takes_one_dict(network: Callable[..., Any], names: Sequence[str]) -> bool:
    """Return whether a forward takes one dict with such keys, and not each tensor by its name.

    A captured graph takes them by name, whatever its model does.
    """
    if not isinstance(network, nn.Module) or isinstance(network, fx.GraphModule):
        return False
    parameters = list(inspect.signature(network.forward).parameters.values())
    if any(parameter.name in names for parameter in parameters):
        return False
    needed = [parameter for parameter in parameters if parameter.default is parameter.empty]
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY
    return len(needed) == 1 and needed[0].kind in plain and len(names) > 1 - _annotated(needed[0])


def _annotated(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter is said to be a dict or the like."""
    kind = get_origin(parameter.annotation) or parameter.annotation
    return isinstance(kind, type) and issubclass(kind, Mapping)


def arguments(graph: fx.Graph, inputs: Inputs) -> tuple[Any, ...]:
    """Return what the placeholders of a captured graph are given, in their order."""
    if isinstance(inputs, Tensor) or not inputs.names:
        return tensors_of(inputs)
    named = dict(zip(inputs.names, inputs.tensors, strict=True))
    return tuple(named[str(node.target)] for node in graph.find_nodes(op="placeholder"))


def tensors_of(inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the tensors of inputs: one, or several."""
    return (inputs,) if isinstance(inputs, Tensor) else inputs.tensors


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Return inputs of all rows of the parts, which are alike; as ``torch.cat`` of tensors."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    columns = zip(*(tensors_of(part) for part in parts), strict=True)
    return Batch(tuple(torch.cat(column) for column in columns), first.names)


def random_inputs(shape: Sequence[int], count: int = 1, tokens: int | None = None) -> Tensor:
    """Return ``count`` inputs of a shape, the same every time.

    Args:
        shape: Of one input.
        count: How many.
        tokens: How many values an input of tokens may have, from 0 up; None for inputs of floats.

    Returns:
        Normal random numbers, or int64, (count, ...).

    >>> random_inputs((3,), tokens=1)
    tensor([[0, 0, 0]])
    """
    generator = torch.Generator().manual_seed(0)
    if tokens is not None:
        return torch.randint(tokens, (count, *shape), generator=generator)
    return torch.randn(count, *shape, generator=generator)


def blank_input(shape: Sequence[int], tokens: int | None = None) -> Tensor:
    """Return an input of zeros (1, ...), which every network takes; ``tokens`` as above."""
    return torch.zeros(1, *shape, dtype=torch.float32 if tokens is None else torch.int64)


def like_record(record: Mapping[str, Any], count: int = 1) -> Inputs:
    """Return random inputs of the kind that a run has on record.

    Args:
        record: With the "shape" of one, "tokens" where it is one of tokens, and "inputs" where they
            are several: name to shape and tokens.
        count: How many. Where a tensor has two values only, as a mask has, some rows end with 0.
    """
    several = record.get("inputs")
    if not several:
        return random_inputs(record["shape"], count, record.get("tokens"))
    kinds = [
        InputShape(**kind) if isinstance(kind, Mapping) else InputShape(*kind)
        for kind in several.values()
    ]
    tensors = [_of_kind(kind, count) for kind in kinds]
    return Batch(tuple(tensors), tuple(several))


def _of_kind(kind: InputShape, count: int) -> Tensor:
    dtype = DTYPES.get(kind.dtype, torch.float32 if kind.tokens is None else torch.int64)
    if kind.tokens != 2 or not kind.shape:
        return random_inputs(kind.shape, count, kind.tokens).to(dtype)
    mask = torch.ones(count, *kind.shape, dtype=dtype)
    mask[1::2, ..., -(kind.shape[-1] // 4) or None :] = 0
    return mask


def kind_of(inputs: Inputs) -> dict[str, InputShape]:
    """Return what each tensor of inputs looks like; empty where it is one without a name.

    Tokens have as many values as the largest one here tells, and one more; at least two.
    """
    if isinstance(inputs, Tensor):
        return {}
    names = inputs.names or tuple(f"input{place}" for place in range(len(inputs.tensors)))
    return {
        name: InputShape(
            tuple(tensor.shape[1:]),
            None if tensor.is_floating_point() else max(int(tensor.max()), 1) + 1,
            next((name for name, dtype in DTYPES.items() if dtype == tensor.dtype), ""),
        )
        for name, tensor in zip(names, inputs.tensors, strict=True)
    }
