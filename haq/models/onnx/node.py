"""An operator of a normalised file, as the table of operators reads it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from haq.errors import ModelError
from haq.models.onnx.document import label
from haq.models.onnx.inputs import Array


class Linear(NamedTuple):
    """A whole number that grows with the number of rows: ``start + slope * rows``."""

    start: int
    slope: int


Size = int | Linear

Run = Callable[..., Any]
"""From an operator's operands to its result, or to a tuple of them."""


class Sized(NamedTuple):
    """An operator that needs sizes: ``run(sizes, *operands)``."""

    sizes: Sequence[Size]
    run: Run

    def now(self, rows: Any) -> list[Any]:
        """Return the sizes for so many rows."""
        return [s.start + s.slope * rows if isinstance(s, Linear) else s for s in self.sizes]


class Module(NamedTuple):
    """An operator that is a module: ``run(module, *operands)``.

    Attributes:
        module: Without parameters of its own where they are the file's: see ``weights``.
        weights: Parameter of the module to its values and the constants that they come from.
        run: Calls the module.
    """

    module: nn.Module
    weights: Mapping[str, tuple[Array, tuple[str, ...]]]
    run: Run


class Node:
    """An operator of a file, its attributes and its constants.

    Attributes:
        kind: As ``op_type``.
        label: Its name, that of its result without one.
        inputs: Names of tensors; "" where one is left out.
        outputs: The same.
        baked: Places of the inputs that are read here and are no operands any more.
    """

    def __init__(
        self, node: onnx.NodeProto, constants: Mapping[str, Any], shapes: Mapping[str, list[int]],
        kinds: Mapping[str, int],
    ):  # fmt: skip
        self.kind, self.label = node.op_type, label(node)
        self.inputs, self.outputs = list(node.input), list(node.output)
        self.baked: set[int] = set()
        self._attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._constants, self._shapes, self._kinds = constants, shapes, kinds

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute; texts as ``str``."""
        value = self._attributes.get(name, default)
        if isinstance(value, TensorProto):
            return numpy_helper.to_array(value)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, place: int) -> bool:
        """Return whether an input is given."""
        return place < len(self.inputs) and bool(self.inputs[place])

    def is_constant(self, place: int) -> bool:
        """Return whether an input is a constant."""
        return self.has(place) and self.inputs[place] in self._constants

    def constant(self, place: int) -> Array | None:
        """Return an input that is left out or a constant, which is no operand then."""
        if not self.has(place):
            return None
        if not self.is_constant(place):
            raise self.refused(f"its input {self.inputs[place]!r} is computed, not a constant")
        self.baked.add(place)
        value: Array = self._constants[self.inputs[place]]
        return value

    def number(self, place: int, default: float | None = None) -> float | None:
        """Return a constant of one value."""
        value = self.constant(place)
        return default if value is None else value.item()

    def sizes(self, place: int) -> list[Size]:
        """Return a constant of whole numbers, which may grow with the number of rows."""
        value = self.constant(place)
        assert value is not None
        return value if isinstance(value, list) else [int(v) for v in value.reshape(-1)]

    def ints(self, place: int) -> list[int] | None:
        """Return a constant of whole numbers, None where it is left out."""
        if not self.has(place):
            return None
        sizes = self.sizes(place)
        if any(isinstance(size, Linear) for size in sizes):
            raise self.refused(f"its input {self.inputs[place]!r} depends on the number of rows")
        return [int(size) for size in sizes]  # type: ignore[arg-type]

    def rank(self, place: int = 0) -> int:
        """Return how many axes an input has."""
        return len(self.shape(place))

    def shape(self, place: int = 0) -> list[int]:
        """Return the shape of an input for two rows."""
        name = self.inputs[place]
        if name not in self._shapes:
            raise self.refused(f"the shape of its input {name!r} is not known")
        return self._shapes[name]

    def whole(self) -> bool:
        """Return whether the first input holds whole numbers."""
        return self._kinds.get(self.inputs[0], TensorProto.FLOAT) not in (
            TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16,
        )  # fmt: skip

    def refused(self, why: str) -> ModelError:
        """Return the error that says of this node what is not read."""
        return ModelError(f"operator {self.kind} in node {self.label!r} is not read: {why}")

    def only(self, **allowed: Any) -> None:
        """Refuse attributes with other values than these.

        Raises:
            ModelError: There is one; a value may be a tuple of alternatives.
        """
        for name, values in allowed.items():
            given = self.get(name)
            choices = values if isinstance(values, tuple) else (values,)
            if given is not None and given not in choices:
                raise self.refused(f"{name}={given}")
