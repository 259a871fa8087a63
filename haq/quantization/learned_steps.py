"""LSQ: the steps of quantizers, learned beside the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from haq.allocation.policy import FLOAT
from haq.quantization.fake_quant import Quantized, Rounding

LEAST = 1e-3
"""Share of its first value that a clip does not fall below."""


class Learned:
    """Clips that are being trained, as a constraint of ``haq.training.train``."""

    def __init__(self, clips: list[nn.Parameter]) -> None:
        self.clips = clips
        self._least = [LEAST * clip.detach().clone() for clip in clips]

    def resume(self) -> None:
        """Do nothing: clips are read with the weights."""

    def before_step(self, step: int) -> None:
        """Do nothing."""

    def before_update(self) -> None:
        """Do nothing."""

    def apply(self) -> None:
        """Keep the clips positive."""
        with torch.no_grad():
            for clip, least in zip(self.clips, self._least, strict=True):
                torch.maximum(clip, least, out=clip)


@contextmanager
def learned_steps(model: nn.Module, weights: bool = True) -> Iterator[Learned]:
    """Make the clips of a quantized network parameters, and buffers again at the end.

    Steps have no weight decay where that is of weights alone; they keep their names.

    Args:
        model: From ``haq.quantization.fake_quant.quantize``. Weights in groups and dynamic
            activations have steps that follow from their values; those stay so.
        weights: Whether the clips of weights are learned too, not of activations alone.

    Source: Esser et al., "Learned step size quantization", arXiv:1902.08153.
    """
    parts = (part for part in model.modules() if weights or isinstance(part, Rounding))
    places = [(module, name) for module in parts if (name := _clip_of(module))]
    for module, name in places:
        clip = module._buffers.pop(name)
        assert clip is not None
        module.register_parameter(name, nn.Parameter(clip))
    try:
        yield Learned([module.get_parameter(name) for module, name in places])
    finally:
        for module, name in places:
            module.register_buffer(name, _popped(module, name))


def _popped(module: nn.Module, name: str) -> torch.Tensor:
    clip = module._parameters.pop(name)
    assert clip is not None
    return clip.detach()


def _clip_of(module: nn.Module) -> str | None:
    """Return the name of a module's clip; None where it rounds by none of its own."""
    if isinstance(module, Quantized):
        return "weight_clip" if "weight_clip" in module._buffers else None
    return "clip" if isinstance(module, Rounding) and module.bits != FLOAT else None
