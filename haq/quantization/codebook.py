"""Layers whose weights share the few values of a codebook.

Each weight is stored as the number of its value, each layer has 2**bits values, found by k-means.
Fine-tuning moves the values: the gradient of a value is the sum over the weights that have it.

Source: Han et al., "Deep compression", arXiv:1510.00149, section 3.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from haq.network.modules import Matrix, plain
from haq.quantization.kmeans import kmeans

DAMPING = 0.5
"""The gradient of a value is the sum over the n weights that have it, by n to this power."""


class Book(NamedTuple):
    """The codebook of a layer.

    Attributes:
        values: (2**bits,) float32; one that no weight has stands at the end, a copy of the last.
        labels: uint8, of the weights' shape: the place of each weight's value.
        zero: Whether the first value is zero and stays so, because the layer was pruned.
    """

    values: Tensor
    labels: Tensor
    zero: bool = False

    @property
    def weight(self) -> Tensor:
        """The weights as the layer has them."""
        return self.values[self.labels.int()]


def codebook(weight: Tensor, bits: int, zero: bool = False) -> Book:
    """Return the codebook of least squared error, each weight at its nearest value.

    Args:
        weight: Of any shape, finite, at least one.
        bits: From 1 to 8.
        zero: Whether zeros are to stay zeros: then zero is the first value, and the others are
            those of the weights that are not zero.

    >>> book = codebook(torch.tensor([-1.0, -0.5, 0.125, 0.75, 1.0]), bits=2)
    >>> book.values.tolist(), book.labels.tolist()
    ([-1.0, -0.5, 0.125, 0.875], [0, 1, 2, 3, 3])
    """
    every = weight.detach().double().flatten()
    others = every[every != 0] if zero else every
    room = 2**bits - zero
    means = kmeans(others.numpy(), room) if len(others) else np.zeros(1)
    rising = torch.from_numpy(means).float()
    padded = torch.cat([rising, rising[-1:].expand(room - len(rising))])
    values = torch.cat([torch.zeros(1), padded]) if zero else padded
    return Book(values, nearest(weight.detach(), values), zero)


def nearest(weight: Tensor, values: Tensor) -> Tensor:
    """Return the place of the nearest of some values for each weight, uint8."""
    order = values.double().argsort(stable=True)
    rising = values.double()[order]
    borders = (rising[1:] + rising[:-1]) / 2
    return order[torch.bucketize(weight.double().contiguous(), borders)].to(torch.uint8)


class Booked(nn.Module):
    """A layer whose weights are values of a codebook; there are no others underneath.

    Attributes:
        weight_bits: 1 to 8.
        book: (2**bits,): the values, which are trained.
        labels: uint8, of the weights' shape: which value each weight has.
        zero: Whether the first value stays zero.
    """

    weight_bits: int
    book: nn.Parameter
    labels: Tensor
    zero: bool

    @property
    def weight(self) -> Tensor:
        """The weights, made of the values whenever they are read."""
        share = (self.labels.numel() / self.book.numel()) ** -DAMPING
        values: Tensor = _Read.apply(self.book, self.labels, share, self.zero)
        return values


class _Read(torch.autograd.Function):
    # A sum over a thousand weights moves a value much further than a weight of its own would move.
    # It is divided as LSQ (arXiv:1902.08153, section 2.2) does it for steps; other powers were
    # tried in results/benchmarks/codebooks.py.

    @staticmethod
    def forward(ctx: Any, book: Tensor, labels: Tensor, share: float, zero: bool) -> Tensor:
        ctx.save_for_backward(labels)
        ctx.entries, ctx.share, ctx.zero = len(book), share, zero
        return book[labels.int()]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (labels,) = ctx.saved_tensors
        sums = torch.bincount(labels.flatten(), grads[0].double().flatten(), ctx.entries)
        if ctx.zero:
            sums[0] = 0
        return ctx.share * sums.to(grads[0].dtype), None, None, None


class BookConv1d(Booked, nn.Conv1d):  # type: ignore[override]
    """A Conv1d with a codebook."""


class BookConv2d(Booked, nn.Conv2d):  # type: ignore[override]
    """A Conv2d with a codebook."""


class BookConv3d(Booked, nn.Conv3d):  # type: ignore[override]
    """A Conv3d with a codebook."""


class BookConvTranspose1d(Booked, nn.ConvTranspose1d):  # type: ignore[override]
    """A ConvTranspose1d with a codebook."""


class BookConvTranspose2d(Booked, nn.ConvTranspose2d):  # type: ignore[override]
    """A ConvTranspose2d with a codebook."""


class BookConvTranspose3d(Booked, nn.ConvTranspose3d):  # type: ignore[override]
    """A ConvTranspose3d with a codebook."""


class BookLinear(Booked, nn.Linear):  # type: ignore[override]
    """A Linear with a codebook."""


class BookEmbedding(Booked, nn.Embedding):  # type: ignore[override]
    """An Embedding with a codebook."""


class BookMatrix(Booked, Matrix):  # type: ignore[misc]
    """A matrix with a codebook."""


BOOKED: Mapping[type[nn.Module], type[Booked]] = {
    nn.Conv1d: BookConv1d,
    nn.Conv2d: BookConv2d,
    nn.Conv3d: BookConv3d,
    nn.ConvTranspose1d: BookConvTranspose1d,
    nn.ConvTranspose2d: BookConvTranspose2d,
    nn.ConvTranspose3d: BookConvTranspose3d,
    nn.Linear: BookLinear,
    nn.Embedding: BookEmbedding,
    Matrix: BookMatrix,
}
"""Kind of a layer to the same with a codebook."""


def set_book(module: nn.Module, bits: int, book: Book) -> None:
    """Let a layer take its weights from a codebook, in place; those it has are forgotten."""
    floats = module.get_parameter("weight")
    del module._parameters["weight"]
    module.__class__ = BOOKED[plain(module)]
    assert isinstance(module, Booked)
    module.weight_bits, module.zero = bits, book.zero
    module.book = nn.Parameter(book.values.clone().to(floats))
    module.register_buffer("labels", book.labels.clone().to(floats.device))
