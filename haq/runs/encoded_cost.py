"""Costs that depend on the values of the weights, on targets that store them encoded.

They are planned on the float network's weights, rounded at each width where they are clipped. What
is handed over was fine-tuned or rounded otherwise, so its own codes are encoded in the end.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from haq.allocation.costs import Target
from haq.allocation.policy import Policy
from haq.errors import HaqError
from haq.hw_profiles import ProfileTarget
from haq.network.layers import Layer
from haq.network.modules import outputs_first
from haq.quantization.clipping import weight_clips
from haq.quantization.fake_quant import Quantized
from haq.quantization.quantizer import BITS, codes

ClipsOf = Callable[[str], Mapping[int, Tensor]]
"""Name of a layer to its clips, (scales,), by bits."""


def encodes(target: Target | None) -> bool:
    """Return whether costs of a target depend on the values of the weights."""
    return isinstance(target, ProfileTarget) and target.encodes


def on_weights(target: Target | None, model: nn.Module, clips_of: ClipsOf) -> Target | None:
    """Return a target that knows the weights of a network; itself where they do not matter.

    Args:
        target: Any, or none.
        model: The float network, with the weights that it has now.
        clips_of: Where these are clipped.
    """
    if not isinstance(target, ProfileTarget) or not target.encodes:
        return target

    def codes_of(layer: Layer, bits: int) -> NDArray[np.int8]:
        return _codes(rows_of(model, layer.name), bits, clips_of(layer.name)[bits])

    return target.of_network(codes_of)


def clipped_by(model: nn.Module, clipping: str, per_channel: bool) -> ClipsOf:
    """Return where the weights of each layer are clipped, as calibration does it."""

    @cache
    def clips_of(name: str) -> dict[int, Tensor]:
        return weight_clips(rows_of(model, name), BITS, clipping, per_channel)

    return clips_of


def rows_of(model: nn.Module, name: str) -> Tensor:
    """Return the weights of a layer, (out, …), float32."""
    weight = model.get_parameter(f"{name}.weight").detach().float().cpu()
    return outputs_first(weight, model.get_submodule(name))


def _codes(rows: Tensor, bits: int, clips: Tensor) -> NDArray[np.int8]:
    own: NDArray[np.int8] = codes(rows, bits, clips.view(-1, *(1,) * (rows.dim() - 1))).numpy()
    return own


def check_channels(target: Target | None) -> None:
    """Refuse to choose channels on a target that encodes weights.

    Raises:
        HaqError: It does: what fewer channels take is known of the codes that are left alone.
    """
    if target is not None and encodes(target):
        raise HaqError(
            f"channels cannot be chosen on {target.name}: what weights take there depends on "
            "those that are left; choose channels without this target, then search bits on it"
        )


def costs_of(
    target: Target | None, layers: Iterable[Layer], policy: Policy, model: fx.GraphModule
) -> dict[str, float]:
    """Return what a quantized network costs with the codes that it has, per quantity.

    Nothing where the target does not encode them.
    """
    if not isinstance(target, ProfileTarget) or not target.encodes:
        return {}

    def codes_of(layer: Layer, bits: int) -> NDArray[np.int8]:
        module = model.get_submodule(layer.name)
        assert isinstance(module, Quantized)
        return _codes(rows_of(model, layer.name), bits, module.weight_clip.detach().cpu())

    own = target.of_network(codes_of)
    costs = [own.cost(layer, policy[layer.name]) for layer in layers if not layer.weights_alone]
    return {quantity: sum(cost[quantity] for cost in costs) for quantity in target.units}
