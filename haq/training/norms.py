"""Statistics of BatchNorms, measured afresh at the end of a training."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.datasets import Split
from haq.training.numerics import channels_last
from haq.training.objective import forward


def measure_norms(model: nn.Module, split: Split, images: int = 2000, seed: int = 0) -> None:
    """Give every BatchNorm the mean and variance that it sees now, in place.

    What training leaves are averages over its last dozen batches, taken while the weights still
    moved: for a network of few bits that is a good part of its error.

    Args:
        model: In evaluation mode before and after.
        split: The images of the training, augmented as there.
        images: At most so many, in batches of 125: statistics are means over batches.
        seed: Decides which, and their augmentation; torch's own random state stays as it is.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split), generator=generator)[:images]
    batches = [part for part in order.split(125) if len(part) > 1] or [order]
    with torch.no_grad():
        for index in batches:
            forward(model, channels_last(split.batch(index, generator)[0]))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
