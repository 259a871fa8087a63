"""BatchNorm in evaluation as what it is there, a multiplier and a bias per channel, and folding it.

Symmetric codes per channel survive the folding: only the scales of the weights change, and the sign
of a channel's codes where its multiplier is negative.
"""

from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from haq.network.modules import Product, along_weight, outputs_of
from haq.network.operators import folded_norms
from haq.quantization.codebook import Booked
from haq.quantization.fake_quant import Quantized
from haq.quantization.formats import Grouped
from haq.quantization.quantizer import codes, step

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def norms_of(network: fx.GraphModule) -> dict[str, str]:
    """Return for each layer with a BatchNorm of its own behind it that norm's name.

    A norm that uses the statistics of each batch is none of them, nor one that has other callers.
    """
    names = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    modules = {name: network.get_submodule(name) for name in names}
    # By module, which may be called under several names.
    calls = Counter(id(modules[name]) for name in names)
    layers = [name for name, module in modules.items() if isinstance(module, Product)]
    return {
        layer: norm for layer, norm in folded_norms(network, layers).items()
        if calls[id(modules[layer])] == calls[id(modules[norm])]
        and modules[norm].running_mean is not None
    }  # fmt: skip


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the multiplier and the bias (channels,) that PyTorch makes of a BatchNorm itself.

    A BatchNorm with these two, mean 0, variance 1 and no eps has the same results bit for bit on
    the CPU, where its input is contiguous.
    """
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    weight, bias = (norm.weight, norm.bias) if norm.affine else (None, None)
    # With neither mean nor bias, one becomes the multiplier; with both, zero becomes the bias.
    with torch.no_grad():
        multiplier = functional.batch_norm(one[None], zero, var, weight, zero, eps=norm.eps)[0]
        offset = functional.batch_norm(zero[None], mean, var, weight, bias, eps=norm.eps)[0]
    return multiplier, offset


def fold_norms(network: fx.GraphModule) -> None:
    """Let the weights take up the multipliers of the BatchNorms behind them, in place.

    Each BatchNorm is left with its bias. It is a step to take last: the network computes the same
    but for the rounding of floats, and cannot be fine-tuned any more. Layers with one scale for all
    their channels, with weights in groups or with a codebook stay as they are.

    Args:
        network: From ``haq.quantization.fake_quant.quantize``.
    """
    for name, norm_name in norms_of(network).items():
        layer, norm = network.get_submodule(name), network.get_submodule(norm_name)
        assert isinstance(layer, Product) and isinstance(norm, Norm)
        one_scale = isinstance(layer, Quantized) and _has_one_scale(layer)
        if not (one_scale or isinstance(layer, Grouped | Booked)):
            with torch.no_grad():
                _fold(layer, norm)


def _has_one_scale(layer: Quantized) -> bool:
    assert isinstance(layer, Product)
    return len(layer.weight_clip) < outputs_of(layer)


def _fold(layer: Product, norm: Norm) -> None:
    multiplier, offset = affine(norm)
    if layer.bias is not None:
        offset = offset + multiplier * layer.bias
        layer.bias.zero_()
    if isinstance(layer, Quantized):
        bits, clip = layer.weight_bits, layer.weight_clip
        signed = codes(layer.weight, bits, along_weight(clip, layer))
        signed = signed * along_weight(multiplier.sign(), layer)
        folded = clip * multiplier.abs()
        # A channel that BatchNorm switches off: all its codes are zero, and any scale will do.
        alive = multiplier.abs() * step(bits, clip, signed=True) >= torch.finfo(torch.float32).tiny
        clip.copy_(torch.where(alive, folded, clip))
        signed = signed * along_weight(alive, layer)
        layer.weight.copy_(signed * along_weight(step(bits, clip, signed=True), layer))
    else:
        layer.weight.mul_(along_weight(multiplier, layer))
    _leave_bias(norm, offset)


def _leave_bias(norm: Norm, offset: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    if norm.affine:
        norm.weight.fill_(1)
        norm.bias.copy_(offset)
    else:
        norm.running_mean.copy_(-offset)
    assert all(map(torch.equal, affine(norm), (torch.ones_like(offset), offset)))
