"""Gradual magnitude pruning: the smallest weights become zero, step by step, and stay zero."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from haq.errors import HaqError, look_up

Scope = Literal["layer", "network"]
"""Whether each layer has the sparsity asked for, or all layers together."""


@dataclass(frozen=True)
class Schedule:
    """The sparsity over the steps of a training.

    It rises along a cubic curve, fast at first, in ``updates`` steps of ``every`` training steps
    each, and stays between them::

        s = final + (initial - final) * (1 - (step - begin) / (updates * every)) ** 3

    Attributes:
        final: Share of the weights that are zero at the end, in [0, 1).
        initial: At ``begin``.
        begin: Training steps before the first update.
        updates: How many updates follow that one; the last one reaches ``final``.
        every: Training steps between two updates.

    Source: Zhu and Gupta, "To prune, or not to prune", arXiv:1710.01878, section 3.
    """

    final: float
    initial: float = 0.0
    begin: int = 0
    updates: int = 1
    every: int = 1

    def at(self, step: int) -> float:
        """Return the sparsity at a training step, counted from 0.

        >>> [round(Schedule(0.8, updates=4, every=100).at(t), 4) for t in (0, 50, 100, 400, 900)]
        [0.0, 0.0, 0.4625, 0.8, 0.8]
        """
        if step < self.begin:
            return 0.0
        done = min((step - self.begin) // self.every, self.updates)
        return self.final + (self.initial - self.final) * (1 - done / self.updates) ** 3

    def updates_at(self, step: int) -> bool:
        """Return whether the masks are chosen anew before a training step."""
        done, rest = divmod(step - self.begin, self.every)
        return rest == 0 and 0 <= done <= self.updates


def schedule_over(final: float, steps: int, share: float = 0.75, updates: int = 20) -> Schedule:
    """Return a schedule that reaches its sparsity when a share of some training steps is over."""
    span = max(1, int(steps * share))
    count = min(updates, span)
    return Schedule(final, updates=count, every=max(1, span // count))


def smallest(weights: Tensor, count: int) -> Tensor:
    """Return where the ``count`` smallest magnitudes stand; of equal ones the first are taken.

    Args:
        weights: Of any shape.
        count: From 0 to the number of weights.

    Returns:
        True at exactly ``count`` places, of the shape of ``weights``.

    >>> smallest(torch.tensor([3.0, -1.0, 1.0, 1.0]), 2).tolist()
    [False, True, True, False]
    """
    order = weights.detach().abs().flatten().argsort(stable=True)
    chosen = torch.zeros(weights.numel(), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen.view(weights.shape)


def masks_for(
    weights: Mapping[str, Tensor], sparsity: float | Mapping[str, float], scope: Scope = "layer"
) -> dict[str, Tensor]:
    """Return masks that leave exactly the share of weights that is asked for.

    Args:
        weights: Layer to its weights.
        sparsity: Share that becomes zero, of each layer or, with "network", of all together; or
            layer to its own share.
        scope: As in ``Scope``; a mapping is of layers.

    Returns:
        Layer to True where a weight stays; ``round(sparsity * weights)`` places are False.

    Raises:
        HaqError: A layer would be left without weights.
    """
    if scope == "network" and isinstance(sparsity, float | int):
        whole = torch.cat([weight.detach().flatten() for weight in weights.values()])
        zeros = smallest(whole, round(sparsity * len(whole)))
        sizes = [weight.numel() for weight in weights.values()]
        parts = zip(weights.items(), zeros.split(sizes), strict=True)
        masks = {name: ~part.view(weight.shape) for (name, weight), part in parts}
    else:
        shares = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(weights, sparsity)
        masks = {
            name: ~smallest(weights[name], round(share * weights[name].numel()))
            for name, share in shares.items()
        }
    for name, mask in masks.items():
        if not bool(mask.any()):
            most = math.floor((1 - 1 / mask.numel()) * 1e6) / 1e6
            way = f"give a sparsity of at most {most:g}, or leave the layer out"
            if scope == "network":
                way = "give a smaller sparsity, each layer its own, or leave the layer out"
            raise HaqError(
                f"pruning would leave layer {name!r} without weights; it has {mask.numel()}: {way}"
            )
    return masks


class Pruner:
    """Holds the masks of a network in training: gradients and weights at its zeros are zero.

    A weight that is pruned gets no gradient, and neither momentum nor weight decay brings it back:
    masks only grow.
    """

    def __init__(
        self,
        model: nn.Module,
        shares: Mapping[str, float],
        schedule: Schedule | None = None,
        scope: Scope = "layer",
    ):
        """Find the layers.

        Args:
            model: Its weights are pruned in place.
            shares: Layer to the share of its weights that is zero at the end.
            schedule: The sparsity of every step; layers with another share than its own follow it
                in proportion. None to hold the zeros that are there.
            scope: As in ``Scope``; with "network" all layers together have the schedule's.

        Raises:
            HaqError: A layer has no weights, or would be left without any.
        """
        known = {name: module.weight for name, module in model.named_modules()
                 if isinstance(getattr(module, "weight", None), nn.Parameter)}  # fmt: skip
        self.weights: dict[str, nn.Parameter] = {
            name: look_up(known, "layer", name) for name in shares
        }
        self.shares, self.schedule, self.scope = dict(shares), schedule, scope
        if schedule is not None:
            self._masks(schedule.final)  # says now what would be left empty
        self.resume()

    def resume(self) -> None:
        """Take the zeros that are there for the masks."""
        self.masks = {name: weight.detach() != 0 for name, weight in self.weights.items()}

    def before_step(self, step: int) -> None:
        """Choose the masks anew where the schedule says so, and apply them to the weights."""
        if self.schedule is not None and self.schedule.updates_at(step):
            self.masks = self._masks(self.schedule.at(step))
            self.apply()

    def before_update(self) -> None:
        """Take the gradients of pruned weights away, before the optimizer sees them."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.mul_(self.masks[name])

    def apply(self) -> None:
        """Make the pruned weights zero, after the optimizer or anybody else changed them."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.mul_(self.masks[name])

    def finish(self) -> None:
        """Reach the last sparsity, where a training was too short for its schedule."""
        if self.schedule is not None:
            self.masks = self._masks(self.schedule.final)
            self.apply()

    def _masks(self, sparsity: float) -> dict[str, Tensor]:
        if self.scope == "network":
            return masks_for(self.weights, sparsity, "network")
        assert self.schedule is not None
        done = sparsity / self.schedule.final if self.schedule.final else 0.0
        shares = {name: share * done for name, share in self.shares.items()}
        return masks_for(self.weights, shares)

    @property
    def sparsity(self) -> dict[str, float]:
        """The share of zeros in each layer."""
        return {name: float((weight == 0).float().mean()) for name, weight in self.weights.items()}
