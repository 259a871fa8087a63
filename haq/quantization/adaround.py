"""AdaRound: which of two levels each weight is rounded to, learned without labels."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from haq.datasets import Split
from haq.distillation.kd import total_divergence
from haq.errors import DivergedError
from haq.network.graph import Graph
from haq.network.inputs import Inputs, call
from haq.network.modules import along_weight
from haq.network.outputs import float_tensors
from haq.quantization.fake_quant import QuantEmbedding, Quantized
from haq.quantization.learned_steps import Learned, learned_steps
from haq.quantization.quantizer import levels, step
from haq.training.numerics import channels_last, has_bfloat16
from haq.training.scoring import answers
from haq.training.train import Step

TEMPERATURE = 4.0
"""Of the logits that the rounding is learned from."""


def adaround(  # noqa: PLR0913 - all but three by keyword
    model: nn.Module,
    graph: Graph,
    split: Split,
    *,
    steps: int = 300,
    batch: int = 64,
    lr: float = 0.005,
    beside: float = 0.0,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> None:
    """Choose for every weight which of its two neighbouring levels it is rounded to, in place.

    All layers together learn to give the float network's answer. A weight moves between its
    neighbours, never beyond them::

        w = s * (below + u)        u in [0, 1], at first where the float weight lies

    The gradient passes straight through the rounding to u, which Adam moves. Statistics of
    BatchNorm stay, so they must have been brought up to date by ``correct`` before.

    Args:
        model: From ``quantize``; nothing happens to layers that are float, nor to embeddings.
        graph: The float network's.
        split: Images, a thousand are enough; augmented anew each time, labels do not count.
        steps: Of Adam, each on one batch.
        batch: Images a step.
        lr: Of u, falling to zero along a cosine.
        beside: Rate of the scales and biases of BatchNorm, and, in shares of their first values,
            of the clips of activations, as a share of ``lr``; 0 leaves them as they are.
        seed: Decides the order of the images and their augmentation.
        on_step: Called after every step.

    Raises:
        DivergedError: The loss is not a finite number.

    Source: after Nagel et al., "Up or down? Adaptive rounding for post-training quantization",
    arXiv:2004.10568; there layer by layer.
    """
    layers = roundable(model)
    if steps == 0 or not layers:
        return
    model.eval()
    places = [_parametrized(layer) for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    with learned_steps(model, weights=False) if beside else nullcontext() as clips:
        optimizer = _optimizer(model, places, clips, lr, beside)
        rates = [group["lr"] for group in optimizer.param_groups]
        for number, index in enumerate(_orders(len(split), batch, steps, generator)):
            images = channels_last(split.batch(index, generator)[0])
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * number / steps))
            loss = _step(model, optimizer, images, answers(graph.traced, images))
            with torch.no_grad():
                for place in places:
                    place.clamp_(*_INSIDE)
            if clips is not None:
                clips.apply()
            if on_step:
                on_step(Step(number + 1, steps, loss))
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")


def roundable(model: nn.Module) -> list[Quantized]:
    """Return the layers of a network whose rounding can be learned: not those of codebooks."""
    return [
        part for part in model.modules()
        if isinstance(part, Quantized) and not isinstance(part, QuantEmbedding)
    ]  # fmt: skip


def _parametrized(layer: Quantized) -> nn.Parameter:
    """Let a layer's weights be what lies between their levels, and return where they lie."""
    parametrize.register_parametrization(layer, "weight", _Between(layer))
    return layer.get_parameter("parametrizations.weight.original")


def _optimizer(
    model: nn.Module, places: list[nn.Parameter], clips: Learned | None, lr: float, beside: float
) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": places}]
    if clips is not None:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        groups += [
            {"params": [*norm.parameters(recurse=False)], "lr": beside * lr} for norm in norms
        ]
        groups += [{"params": [clip], "lr": beside * lr * clip.item()} for clip in clips.clips]
    return torch.optim.Adam([group for group in groups if group["params"]], lr, betas=(0.9, 0.99))


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Inputs, truth: list[Tensor]
) -> float:
    """Take one step towards the float network's answers, and return the loss before it."""
    with torch.autocast("cpu", torch.bfloat16, has_bfloat16()):
        answer = float_tensors(call(model, images))
    optimizer.zero_grad()
    loss = total_divergence(answer, truth, TEMPERATURE)
    if not math.isfinite(loss.item()):
        raise DivergedError(f"learning the rounding diverged: the loss is {loss.item()}")
    loss.backward()
    optimizer.step()
    return loss.item()


_INSIDE = (1e-3, 1 - 1e-3)  # of the gap: on the clip itself a rounding error could cut the gradient


class _Between(nn.Module):
    """From where each weight stands between its two levels to the weight."""

    def __init__(self, layer: Quantized):
        super().__init__()
        sizes = step(layer.weight_bits, layer.weight_clip, signed=True)
        self.size: Tensor = along_weight(sizes, layer)
        low, high = levels(layer.weight_bits, signed=True)
        self.below = (layer.weight.detach() / self.size).floor().clamp(low, high - 1)

    def forward(self, place: Tensor) -> Tensor:
        """Return the weights."""
        return self.size * (self.below + place)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return where the weights stand, in [0, 1]."""
        return (weight / self.size - self.below).clamp(*_INSIDE)


def _orders(images: int, batch: int, steps: int, generator: torch.Generator) -> list[Tensor]:
    epochs = -(-steps * batch // images)
    order = torch.cat([torch.randperm(images, generator=generator) for _ in range(epochs)])
    return list(torch.split(order[: steps * batch], batch))
