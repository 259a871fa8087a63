"""Which channel every value of a network belongs to, and which channels must go together.

The graph is run once with numbers in place of values: each output channel of a layer has a number
of its own, operations that move values move the numbers, and where two tensors are added or
multiplied the numbers that meet belong together from then on. What an operation does that is not
known here keeps the channels it reads: they are never removed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn

from haq.network.capture import Sample, evaluating
from haq.network.inputs import arguments
from haq.network.operators import kind_of

KEPT = 0
"""The number of every channel that must stay."""

_SAME = {
    "abs", "add", "clamp", "clamp_min", "clone", "contiguous", "detach", "div", "dropout", "elu",
    "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "maximum", "minimum",
    "mish", "mul", "neg", "relu", "relu6", "sigmoid", "silu", "softplus", "square", "sub", "tanh",
    "to", "_to_copy", nn.Dropout, nn.Dropout1d, nn.Dropout2d,
}  # fmt: skip

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

_POOLS = {
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d",
}  # fmt: skip

_MOVES = {
    "cat", "flatten", "permute", "reshape", "select", "slice", "squeeze", "t", "transpose",
    "unsqueeze", "view",
}  # fmt: skip

_RESHAPES = {"reshape", "view"}

_PADS = {"pad", "constant_pad_nd"}


@dataclass
class Channels:
    """What is known of a network's channels.

    Attributes:
        outputs: Layer to the number of each of its output channels.
        inputs: Layer to the number of each of its input channels or features.
        norms: BatchNorm to the number of each of its channels.
        pads: Node that adds channels of zeros to the numbers before, within and behind.
        sizes: Node that gives a shape, to the numbers of the tensor in that shape.
        depthwise: Layers whose output channels are their input channels.
    """

    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    pads: dict[str, Tensor] = field(default_factory=dict)
    sizes: dict[str, Tensor] = field(default_factory=dict)
    depthwise: set[str] = field(default_factory=set)
    _pairs: list[Tensor] = field(default_factory=list)
    _count: int = 1
    _groups: NDArray[np.int32] | None = None

    def fresh(self, count: int) -> Tensor:
        """Return new numbers."""
        numbers = torch.arange(self._count, self._count + count)
        self._count += count
        return numbers

    def join(self, one: Tensor, other: Tensor) -> Tensor:
        """Let the numbers of two tensors that meet belong together, and return the first's."""
        one, other = torch.broadcast_tensors(one, other)
        differ = one != other
        if bool(differ.any()):
            self._pairs.append(torch.stack([one[differ], other[differ]]).unique(dim=1))
        return one

    def keep(self, numbers: Tensor) -> None:
        """Let some channels never be removed."""
        own = numbers.unique()
        self._pairs.append(torch.stack([own, torch.zeros_like(own)]))

    def groups(self, numbers: Tensor) -> Tensor:
        """Return for channels the group of those that are removed together; ``KEPT`` if never."""
        if self._groups is None:
            pairs = torch.cat([torch.zeros(2, 1, dtype=torch.int64), *self._pairs], 1).numpy()
            matrix = coo_matrix((np.ones(pairs.shape[1]), pairs), shape=(self._count,) * 2)
            _, labels = connected_components(matrix, directed=False)
            first = labels[KEPT]
            self._groups = np.where(labels == first, KEPT, np.where(labels == KEPT, first, labels))
        return torch.from_numpy(self._groups.astype(np.int64))[numbers]


def channels_of(traced: fx.GraphModule, sample: Sample) -> Channels:
    """Return which channels of a captured network belong together.

    Args:
        traced: From ``haq.network.graph.trace``.
        sample: What one forward takes.
    """
    inputs = sample if isinstance(sample, tuple) else arguments(traced.graph, sample)
    run = _Numbers(traced)
    with torch.no_grad(), evaluating(traced):
        run.run(*(value[:1] if value.dim() else value for value in inputs))
    return run.channels


class _Numbers(fx.Interpreter):
    """Runs a network on values and on the numbers of their channels, side by side."""

    def __init__(self, traced: fx.GraphModule):
        super().__init__(traced)
        self.extra_traceback = False
        self.channels = Channels()
        self.numbers: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.numbers[n] = self._numbers_of(n, value)
        else:
            self._keep_inputs(n)
        return value

    def _numbers_of(self, node: fx.Node, value: Tensor) -> Tensor:
        kind = kind_of(node)
        rules: Sequence[tuple[bool, Callable[[fx.Node, Tensor], Tensor | None]]] = (
            (kind in (nn.Conv2d, nn.Linear), self._layer),
            (kind in _NORMS, self._norm),
            (kind in _SAME, self._same),
            (kind in _POOLS, self._pool),
            (kind == "mean", self._mean),
            (kind in _PADS, self._pad),
            (kind in _MOVES, self._move),
        )
        for suits, rule in rules:
            if suits and (numbers := rule(node, value)) is not None:
                return numbers
        self._keep_inputs(node)
        return torch.zeros(value.shape, dtype=torch.int64)

    def _keep_inputs(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in self.numbers and kind_of(node) not in ("sym_size", "sym_numel"):
                self.channels.keep(self.numbers[source])

    def _layer(self, node: fx.Node, value: Tensor) -> Tensor | None:
        name, module = str(node.target), self.fetch_attr(str(node.target))
        axis = 1 if isinstance(module, nn.Conv2d) else -1
        read = _along(self.numbers[node.all_input_nodes[0]], axis)
        if read is None:
            return None
        before = self.channels.inputs.setdefault(name, read)
        self.channels.join(before, read)
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            if module.groups != module.in_channels:
                return None
            self.channels.depthwise.add(name)
            repeated = read.repeat_interleave(module.out_channels // module.groups)
            return _spread(self.channels.outputs.setdefault(name, repeated), value, axis)
        if name not in self.channels.outputs:
            self.channels.outputs[name] = self.channels.fresh(module.weight.shape[0])
        return _spread(self.channels.outputs[name], value, axis)

    def _norm(self, node: fx.Node, value: Tensor) -> Tensor | None:
        own = _along(self.numbers[node.all_input_nodes[0]], 1)
        if own is None:
            return None
        before = self.channels.norms.setdefault(str(node.target), own)
        return _spread(self.channels.join(before, own), value, 1)

    def _same(self, node: fx.Node, value: Tensor) -> Tensor | None:
        sources = node.all_input_nodes
        operands = [self.numbers[source] for source in sources if source in self.numbers]
        own = operands[0]
        for other in operands[1:]:
            own = self.channels.join(own, other)
        return own if own.shape == value.shape else None

    def _pool(self, node: fx.Node, value: Tensor) -> Tensor | None:
        own = _along(self.numbers[node.all_input_nodes[0]], 1)
        return None if own is None else _spread(own, value, 1)

    def _mean(self, node: fx.Node, value: Tensor) -> Tensor | None:
        own = self.numbers[node.all_input_nodes[0]]
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if not isinstance(dims, Sequence):
            return None
        axes = tuple(dims)
        first, last = own.amin(axes, keepdim=True), own.amax(axes, keepdim=True)
        return first.reshape(value.shape) if torch.equal(first, last) else None

    def _pad(self, node: fx.Node, value: Tensor) -> Tensor | None:
        own = _along(self.numbers[node.all_input_nodes[0]], 1)
        widths: Any = node.args[1]
        if own is None or len(widths) > 6 or value.dim() != 4:
            return None
        before, behind = (*widths, 0, 0, 0, 0)[4:6]
        if before < 0 or behind < 0:
            return None
        whole = torch.cat([self.channels.fresh(before), own, self.channels.fresh(behind)])
        if before or behind:
            self.channels.pads[node.name] = whole
        return _spread(whole, value, 1)

    def _move(self, node: fx.Node, value: Tensor) -> Tensor | None:
        sources = [source for source in node.all_input_nodes if source in self.numbers]
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        given = iter([self.numbers[source] for source in sources])
        replaced = fx.node.map_aggregate(
            (args, kwargs), lambda part: next(given) if isinstance(part, Tensor) else part
        )
        moved: Tensor = self.call_function(node.target, *replaced)
        before = torch.cat([self.numbers[source].flatten() for source in sources]).unique()
        if not torch.equal(before, moved.unique()):
            return None  # a selection of channels, whose bounds stand in the graph
        if kind_of(node) in _RESHAPES:
            self.channels.sizes[node.name] = moved
        return moved


def _along(numbers: Tensor, axis: int) -> Tensor | None:
    """Return the numbers along an axis, if they are the same at all other places."""
    rows = numbers.movedim(axis, -1).reshape(-1, numbers.shape[axis])
    return rows[0] if bool((rows == rows[0]).all()) else None


def _spread(numbers: Tensor, value: Tensor, axis: int) -> Tensor:
    """Return numbers along an axis in the shape of a tensor."""
    shape = [1] * value.dim()
    shape[axis] = len(numbers)
    return numbers.view(shape).expand(value.shape)


@dataclass(frozen=True)
class Family:
    """Layers whose output channels go together, each with its like in the others.

    Attributes:
        name: The first of the layers, in order of execution.
        layers: Those that compute the channels, without depthwise ones.
        groups: The channels, as numbers of ``Channels.groups``; each can be removed.
    """

    name: str
    layers: tuple[str, ...]
    groups: tuple[int, ...]

    @property
    def inner(self) -> bool:
        """Whether the channels are seen outside of one path: one layer alone computes them."""
        return len(self.layers) == 1


def families(channels: Channels) -> tuple[Family, ...]:
    """Return the layers whose channels can be removed, together with those that go with them."""
    members: dict[int, list[str]] = {}
    for name, numbers in channels.outputs.items():
        if name not in channels.depthwise:
            for group in channels.groups(numbers).tolist():
                members.setdefault(group, []).append(name)
    members.pop(KEPT, None)
    return tuple(_families(members))


def _families(members: Mapping[int, list[str]]) -> Iterator[Family]:
    alike: dict[tuple[str, ...], list[int]] = {}
    for group, names in members.items():
        alike.setdefault(tuple(dict.fromkeys(names)), []).append(group)
    for layers, groups in alike.items():
        yield Family(layers[0], layers, tuple(groups))
