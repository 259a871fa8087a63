"""A network that teaches another one."""

from collections.abc import Callable

from torch import Tensor, nn

from haq.network.inputs import Inputs
from haq.training.scoring import logits

Teacher = Callable[[Tensor, Inputs], Tensor]
"""From image indices (N,) and the images (N, C, H, W) to the logits (N, classes) to learn from."""


def teacher_from(model: nn.Module) -> Teacher:
    """Return a teacher that answers with the logits of ``model``, which it leaves as it is."""
    return lambda index, images: logits(model, images, quick=True)
