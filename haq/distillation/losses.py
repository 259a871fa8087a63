"""The losses of a student against its teacher, by the names that are asked for."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from haq.distillation.attention import attention_loss
from haq.distillation.hints import hint_loss
from haq.distillation.input_gradient import input_gradient_loss
from haq.distillation.kd import distillation_loss
from haq.distillation.relational import angle_loss, distance_loss
from haq.distillation.similarity import similarity_loss

Compared = Literal["logits", "taps", "last tap", "embedding", "input gradient"]


class Loss(NamedTuple):
    """A loss and what of both networks it compares.

    Attributes:
        function: From the student's tensor and the teacher's to a scalar; that of the logits takes
            a temperature as well.
        compared: "logits" (N, classes); the features of each of the "taps" (N, C, ...), over which
            the loss is summed; those of the "last tap"; the "embedding" (N, D), which is the last
            tap's mean over positions; or the "input gradient" (N, ...).
        maps: Whether the features must have positions: (N, C, H, W) or (N, C, T).
        same_shape: Whether the features must have one shape, so that others need a regressor.
    """

    function: Callable[..., Tensor]
    compared: Compared
    maps: bool = False
    same_shape: bool = False


LOSSES: Mapping[str, Loss] = {
    "kd": Loss(distillation_loss, "logits"),
    "hint": Loss(hint_loss, "taps", same_shape=True),
    "attention": Loss(attention_loss, "taps", maps=True),
    "gradient": Loss(input_gradient_loss, "input gradient"),
    "similarity": Loss(similarity_loss, "last tap"),
    "distance": Loss(distance_loss, "embedding"),
    "angle": Loss(angle_loss, "embedding"),
}
