"""Which values of a network's state lie in which tensor of its checkpoint."""

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from haq.allocation.policy import CODEBOOK, FLOAT, Dynamic
from haq.formats.checkpoint.header import KINDS
from haq.network.modules import LayerModule
from haq.quantization.bn_folding import Norm, affine, norms_of
from haq.quantization.codebook import Booked
from haq.quantization.fake_quant import Quantized, QuantLinear, Rounding
from haq.quantization.formats import Grouped

COUNT = "num_batches_tracked"


def called(network: fx.GraphModule) -> dict[str, nn.Module]:
    """Return the modules that the forward calls, in the order of their first calls."""
    names = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    return {name: network.get_submodule(name) for name in names}


def merge_norms(network: fx.GraphModule) -> fx.GraphModule:
    """Leave a multiplier and a bias of each BatchNorm that follows a layer, in place."""
    for name in norms_of(network).values():
        norm = network.get_submodule(name)
        assert isinstance(norm, Norm)
        multiplier, offset = affine(norm)
        # PyTorch refuses to train with an eps of 0, which is as well.
        merged = type(norm)(norm.num_features, eps=0.0)
        merged.weight, merged.bias = nn.Parameter(multiplier), nn.Parameter(offset)
        network.set_submodule(name, merged.eval())
    return network


def skews(network: fx.GraphModule) -> dict[str, int]:
    """Return for the quantizers of activations that are not symmetric how many codes are negative.

    They go by the names they have in the network.
    """
    return {
        name: module.skew for name, module in called(network).items()
        if isinstance(module, Rounding) and module.bits != FLOAT and module.skew is not None
    }  # fmt: skip


def formats(network: fx.GraphModule) -> dict[str, tuple[int, Dynamic]]:
    """Return the layers with groups or a codebook, or that round what they read as they run."""
    known: dict[str, tuple[int, Dynamic]] = {}
    for name, module in called(network).items():
        if isinstance(module, Grouped):
            known[name] = module.block, module.dynamic
        elif isinstance(module, Booked):
            known[name] = CODEBOOK, ""
        elif isinstance(module, QuantLinear) and module.dynamic:
            known[name] = 0, module.dynamic
    return known


_PLACES: Mapping[type[nn.Module], Sequence[tuple[str, str]]] = {
    Quantized: (("codes", "weight"), ("scales", "weight_clip")),
    Grouped: (("codes", "weight"), ("group_scales", "weight_scale")),
    Booked: (("codes", "labels"), ("books", "book")),
}
"""Kind of a layer to where the parts of its weights lie."""


def shares(network: fx.GraphModule) -> dict[str, list[str]]:
    """Return which names of the state of a network with merged norms lie in which tensor."""
    shares: dict[str, list[str]] = {name: [] for name in KINDS}
    state = network.state_dict()
    for name, module in called(network).items():
        if isinstance(module, Rounding):
            shares["act_scales"] += [f"{name}.clip"] if module.bits != FLOAT else []
            state.pop(f"{name}.clip")
        elif placed := next((p for kind, p in _PLACES.items() if isinstance(module, kind)), ()):
            for tensor, key in placed:
                shares[tensor].append(f"{name}.{key}")
        elif _is_merged(module):
            shares["multipliers"].append(f"{name}.weight")
            state.pop(f"{name}.running_mean")
            state.pop(f"{name}.running_var")
        elif isinstance(module, LayerModule):
            shares["floats"].append(f"{name}.weight")
        else:
            continue
        if f"{name}.bias" in state:
            shares["biases"].append(f"{name}.bias")
    known = {key for share in shares.values() for key in share}
    buffers = {key for key, _ in network.named_buffers()}
    for key, value in state.items():
        if key not in known and not key.endswith(COUNT):
            other = key in buffers and value.dtype != torch.float32
            shares["others" if other else "floats"].append(key)
    return shares


def _is_merged(module: nn.Module) -> bool:
    return isinstance(module, Norm) and module.eps == 0


def dtype(tensor: str) -> torch.dtype:
    """Return the type of the values of a file's tensor."""
    return {"U8": torch.uint8, "F16": torch.float16, "F32": torch.float32}[KINDS[tensor]]
