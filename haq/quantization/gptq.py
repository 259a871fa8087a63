"""GPTQ: rounding weights in groups one column after another, each making up for those before it.

The error of a layer's outputs on some inputs is ``trace(E H E')``, where E is the error of the
weights and H the mean of the outer products of the inputs. A column that was rounded leaves an
error that the columns not yet rounded take up as far as H allows.
"""

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, fx, nn

from haq.network.capture import evaluating
from haq.network.graph import Graph
from haq.network.inputs import Inputs, call, counted, mask_of
from haq.quantization.formats import GroupLinear
from haq.quantization.groups import along_columns, group_scales, rounded_codes

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it: what was never seen is not free."""

AT_ONCE = 128
"""Columns whose errors are carried over together."""


def gptq(model: fx.GraphModule, graph: Graph, batches: Iterable[Inputs]) -> None:
    """Round the weights of linear layers in groups by second order, in place.

    Scales are searched anew, for squared errors that count by H's diagonal. Embeddings stay as they
    are: their rows are read one at a time, so that rounding to nearest is the best there is.

    Args:
        model: From ``quantize`` on the graph; nothing happens to layers without groups.
        graph: The float network's, whose inputs and weights count.
        batches: Inputs; no labels are needed. Tokens that an ``attention_mask`` leaves out do not
            count, where a layer reads a row for each token.

    Source: Frantar et al., "GPTQ: Accurate post-training quantization for generative pre-trained
    transformers", arXiv:2210.17323, with columns in falling order of H's diagonal.
    """
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, GroupLinear)
    }
    if not layers:
        return
    for name, hessian in _hessians(graph.traced, list(layers), batches).items():
        module, weight = layers[name], graph.traced.get_parameter(f"{name}.weight").detach()
        importance = hessian.diagonal().float()
        scales = group_scales(weight, module.weight_bits, module.block, importance)
        rounded = round_columns(weight, hessian, scales, module.weight_bits, module.block)
        with torch.no_grad():
            module.weight_scale.copy_(scales)
            module.weight.copy_(rounded)


def _hessians(
    floats: fx.GraphModule, names: list[str], batches: Iterable[Inputs]
) -> dict[str, Tensor]:
    """Return the mean of the outer products of what some layers read, (in, in) float64."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def add(name: str, read: Tensor, mask: Tensor | None) -> None:
        rows = counted(read, mask).detach().flatten(0, -2).float()
        sums[name] = sums.get(name, 0) + (rows.T @ rows).double()
        counts[name] += len(rows)

    mask: Tensor | None = None
    with ExitStack() as stack, torch.no_grad(), evaluating(floats):
        for name in names:
            hook = floats.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs, name=name: add(name, inputs[0], mask)
            )
            stack.callback(hook.remove)
        for batch in batches:
            mask = mask_of(batch)
            call(floats, batch)
    return {name: total / counts[name] for name, total in sums.items()}


def round_columns(weight: Tensor, hessian: Tensor, scales: Tensor, bits: int, block: int) -> Tensor:
    """Return weights (out, in) on their grid, rounded column after column.

    Args:
        weight: (out, in).
        hessian: (in, in), symmetric, not negative.
        scales: (out, groups).
        bits: From 2 to 8.
        block: Weights of a group.
    """
    columns = weight.shape[1]
    damped = hessian.double() + DAMPING * hessian.diagonal().mean().clamp_min(1e-30) * torch.eye(
        columns, dtype=torch.float64
    )
    order = hessian.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped[order][:, order]))
    spread = torch.linalg.cholesky(inverse, upper=True).float()  # (in, in), upper triangle
    each = along_columns(scales, block, columns)[:, order]
    left, rounded = weight.float()[:, order].clone(), torch.empty_like(weight, dtype=torch.float32)
    for start in range(0, columns, AT_ONCE):
        stop = min(start + AT_ONCE, columns)
        errors = torch.zeros(len(weight), stop - start)
        for at in range(start, stop):
            column, scale = left[:, at], each[:, at]
            rounded[:, at] = rounded_codes(column, scale, bits) * scale
            error = (column - rounded[:, at]) / spread[at, at]
            left[:, at:stop] -= error[:, None] * spread[at, at:stop]
            errors[:, at - start] = error
        left[:, stop:] -= errors @ spread[start:stop, stop:]
    result = torch.empty_like(rounded)
    result[:, order] = rounded
    return result


def has_groups(model: nn.Module) -> bool:
    """Return whether ``gptq`` has something to round."""
    return any(isinstance(module, GroupLinear) for module in model.modules())
