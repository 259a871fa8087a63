"""Learned rounding as fine-tuning."""

from torch import nn

from haq.allocation.policy import FLOAT, Policy
from haq.compression.magnitude import Pruner
from haq.datasets import Split
from haq.network.graph import Graph
from haq.quantization.adaround import adaround, roundable
from haq.quantization.codebook import Booked

SEEN = 4
"""How often each image is seen at most while the rounding is learned."""

EPOCH_FROM = 20_000
"""Images from which an epoch does a network good whose rounding was learned.

After 5 000 images it is worse than before. From how many on it is better was not measured; 45 000
images without learned rounding are better than 5 000 with it."""

ROUNDING_BATCH = 32
"""Images a step there: half as many in twice the steps do better at the same price."""

BESIDE = 0.2
"""Rate of what is learned beside the rounding; see ``haq.quantization.adaround``."""


def learn_rounding(model: nn.Module, graph: Graph, views: Split, steps: int, seed: int) -> None:
    """Learn the rounding of a network in place, and norms and clips of activations beside it.

    Args:
        model: From ``quantize``, its statistics corrected; zeros of pruned layers stay.
        graph: Of the float network that it was made of.
        views: Images, augmented anew each time; labels do not count.
        steps: At most so many; fewer where an image would be seen more than ``SEEN`` times.
        seed: Decides their order and augmentation.
    """
    held = held_zeros(model, graph)
    steps = steps_on(len(views), steps)
    adaround(model, graph, views, steps=steps, batch=ROUNDING_BATCH, beside=BESIDE, seed=seed)
    if held is not None:
        held.apply()


def steps_on(images: int, steps: int) -> int:
    """Return in how many steps the rounding is learned on some images where ``steps`` are asked.

    >>> steps_on(5000, 600), steps_on(1000, 600)
    (600, 125)
    """
    return min(steps, SEEN * images // ROUNDING_BATCH)


def suffices(model: nn.Module, policy: Policy, images: int) -> bool:
    """Return whether an epoch of so many images would do a network no good after this.

    Codebooks, weights in groups, embeddings and what has float weights alone learn no rounding, so
    they need it.
    """
    rounded = sum(bits.weight != FLOAT for bits in policy.values())
    return images < EPOCH_FROM and 0 < rounded == len(roundable(model))


def held_zeros(model: nn.Module, graph: Graph) -> Pruner | None:
    """Return what holds the zeros of a quantized network where the float network was pruned.

    Args:
        model: The quantized network, with the weights of the float one so far.
        graph: Of the float network.

    Returns:
        None where no layer was pruned.
    """
    shares = {
        layer.name: layer.zeros / layer.weights
        for layer in graph.layers
        # A codebook keeps its own zero.
        if layer.zeros and not isinstance(model.get_submodule(layer.name), Booked)
    }
    return Pruner(model, shares) if shares else None
