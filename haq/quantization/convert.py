"""The last step of every run: a network gets the integer form in which runtimes compute it."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from haq.errors import ConversionError
from haq.network.capture import Sample, evaluating
from haq.network.inputs import Inputs, as_inputs, call
from haq.network.modules import Product, along_weight
from haq.quantization.bn_folding import Norm, affine, fold_norms, norms_of
from haq.quantization.fake_quant import Quantized
from haq.quantization.folding import fold, grids_of_calls, input_grids
from haq.quantization.integer_forward import compute_exactly
from haq.quantization.steady import keep_off_borders

WORSE = 1.05
"""By how much the error of the answers may grow where a network is converted."""

NOISE = 2e-3
"""Of the spread of the answers: activations that floats round to the other of two levels."""


class Conversion(NamedTuple):
    """What conversion did to a network's answers.

    Attributes:
        before: Error of the answers before it: the norm of the difference from the float network's
            answers, as a share of the norm of their differences from their mean.
        after: The same of the converted network.
    """

    before: float
    after: float


def convert_to_integers(network: fx.GraphModule) -> None:
    """Give a network, in place, the form in which integer kernels compute it.

    It is the last step after fine-tuning, so that the network computes what its file will:
    BatchNorms are folded, and biases are rounded to the whole numbers that are added. What is left
    of a BatchNorm is its bias. From then on it computes as ``integer_forward`` says.
    """
    keep_off_borders(network)
    fold_norms(network)
    round_biases(network)
    compute_exactly(network)


def convert_and_check(
    network: fx.GraphModule, floats: nn.Module, images: Sample, batch: int = 16
) -> Conversion:
    """Convert a network as ``convert_to_integers`` does, and see that it is the same network.

    Its error may grow to 1.05 of what it was, or of what it is when nothing is done but to round
    the biases.

    Args:
        network: From ``quantize``, trained or not; changed in place.
        floats: The float network.
        images: What the networks take, (N, ...); some dozens.
        batch: Images of one forward.

    Returns:
        The error of the answers before and after.

    Raises:
        ConversionError: The answers changed by more; that is a fault of ours.
    """
    inputs = as_inputs(images)
    truth = _answers(floats, inputs, batch)
    before = _error(_answers(network, inputs, batch), truth)
    rounded = copy.deepcopy(network)
    convert_to_integers(network)
    after = _error(_answers(network, inputs, batch), truth)
    if not after <= WORSE * before + NOISE:
        round_biases(rounded)
        check_errors(before, after, _error(_answers(rounded, inputs, batch), truth))
    return Conversion(before, after)


def check_errors(before: float, after: float, explained: float) -> None:
    """Raise ``ConversionError`` where an error grew by more than rounding the biases explains."""
    if not after <= WORSE * max(before, explained) + NOISE:
        raise ConversionError(
            f"converting the network to integers changed its answers: their error was {before:.3g} "
            f"before and is {after:.3g}, and rounding the biases explains {explained:.3g}; please "
            "report it with the model"
        )


def _answers(network: nn.Module, inputs: Inputs, batch: int) -> Tensor:
    """Return all floats that a network gives for each input, (N, values)."""
    parts = []
    with torch.no_grad(), evaluating(network):
        for rows in inputs.split(batch):
            count, leaves = len(rows), pytree.tree_leaves(call(network, rows))
            answers = [leaf for leaf in leaves if _is_answer(leaf, count)]
            # Sequences may have the batch in their second axis.
            values = [x.movedim(x.shape.index(count), 0).reshape(count, -1).cpu() for x in answers]
            parts.append(torch.cat([torch.empty(count, 0), *values], 1).double())
    return torch.cat(parts)


def _is_answer(leaf: object, count: int) -> bool:
    """Return whether a part of an output has floats for each input: others do not tell an error."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return False
    return count in leaf.shape[:2]


def _error(answers: Tensor, truth: Tensor) -> float:
    spread = (truth - truth.mean(0)).norm()
    return float((answers - truth).norm() / spread.clamp_min(1e-12))


def round_biases(network: fx.GraphModule) -> None:
    """Round the biases of layers that compute with integers to whole numbers, in place."""
    norms, one = norms_of(network), input_grids(network)
    for name, calls in grids_of_calls(network).items():
        layer = network.get_submodule(name)
        norm = network.get_submodule(norms[name]) if name in norms else None
        assert isinstance(layer, Product) and isinstance(layer, Quantized)
        assert norm is None or isinstance(norm, Norm)
        for grid in {float(each.step): each for each in calls.values()}.values():
            folded = fold(layer, norm, grid)
            if folded.bias is None:
                continue
            assert folded.scale is not None
            with torch.no_grad():
                empty = (folded.weight == 0).flatten(1).all(1)
                layer.weight.masked_fill_(along_weight(empty, layer), 0)
            if name in one:  # others have a unit for each call, and their bias is rounded there
                unit = (folded.scale * grid.step).double()
                _move_bias(layer, norm, (folded.bias / unit).round() * unit - folded.bias)


def _move_bias(layer: Product, norm: Norm | None, difference: Tensor) -> None:
    with torch.no_grad():
        if norm is None:
            assert layer.bias is not None
            layer.bias.copy_(layer.bias.double() + difference)
        elif norm.affine:
            norm.bias.copy_(norm.bias.double() + difference)
        else:
            assert norm.running_mean is not None
            multiplier, _ = affine(norm)
            norm.running_mean.copy_(norm.running_mean.double() - difference / multiplier)
