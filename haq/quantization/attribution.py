"""What each tensor adds to the damage of a whole policy, where all are rounded together.

Sensitivities are measured with one tensor rounded alone. Below 3 bits the network that a tensor
meets is another one, and damages do not add up. Here all tensors move together, from float to what
the policy makes of them, and the slope of the divergence D is summed up along the way::

    W(t) = W + t (Q(W) - W)       likewise for what layers read, with the difference held fixed
    phi  = 1/K * sum over k of  < dD/dW at t_k , Q(W) - W >,     t_k = (k + 1/2) / K

so that the sum of phi over all tensors is the divergence of the policy, but for what K steps miss:
that is completeness. K forwards and backwards, however many layers there are.

Source: Sundararajan et al., "Axiomatic attribution for deep networks", arXiv:1703.01365, for the
path; BatchNorm normalises with the statistics of the images, as in ``sensitivity``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from haq.allocation.policy import Policy
from haq.allocation.sensitivities import Kind, Widths
from haq.distillation.kd import total_divergence
from haq.network.graph import Graph
from haq.network.inputs import Inputs
from haq.network.modules import LayerModule
from haq.quantization.calibration import Clips
from haq.quantization.interpreter import CopyingInterpreter
from haq.quantization.places import (
    Place,
    float_answers,
    normalising,
    places_of,
    quickly,
)
from haq.quantization.sensitivity import REMEMBERED, parts_of
from haq.training.numerics import channels_last

STEPS = 4
"""Forwards and backwards along the way."""


@dataclass(frozen=True)
class Attribution:
    """How the divergence of a policy is made up.

    Attributes:
        shares: Of weights and of activations: layer to phi, in nats an image. Layers that read the
            same tensor have equal values, which count once.
        total: The sum of phi over all tensors.
        divergence: Of the policy; equal to ``total`` but for what the steps miss.
    """

    shares: Mapping[Kind, Mapping[str, float]]
    total: float
    divergence: float


def attribution(
    graph: Graph, clips: Clips, policy: Policy, images: Inputs, asked: Widths, steps: int = STEPS
) -> Attribution:
    """Return how the divergence of a policy is made up.

    Args:
        graph: The model's.
        clips: From ``calibrate`` on the same graph.
        policy: Bits of every layer.
        images: What the model takes, (N, ...), at least 2.
        asked: Which tensors move: those for which any bits are asked; the others stay float.
        steps: Of the way, at least 1.

    Raises:
        ModelError: The network does not give tensors of finite floats.
    """
    model = normalising(graph, clips).requires_grad_(False)
    places = places_of(graph, clips, model, _bits_of(policy, asked))
    images = channels_last(images)
    parts: Sequence[Inputs] = images.chunk(parts_of(model, images, REMEMBERED // 4))
    phi, divergence = [0.0] * len(places), 0.0
    for part in parts:
        share = len(part) / len(images)
        with quickly():
            reference = float_answers(CopyingInterpreter(model).run(part))
        for step in range(steps):
            way = _Way(model, places, (step + 0.5) / steps)
            for at, slope in enumerate(way.slopes(part, reference)):
                phi[at] += share * slope / steps
        end = _Way(model, places, 1.0)
        with quickly():
            divergence += share * float(total_divergence(end.answers(part), reference))
    shares: dict[Kind, dict[str, float]] = {"weights": {}, "activations": {}}
    for place, value in zip(places, phi, strict=True):
        shares[place.kind] |= dict.fromkeys(place.layers, value)
    return Attribution(shares, sum(phi), divergence)


def _bits_of(policy: Policy, asked: Widths) -> Widths:
    """Return which bits each tensor that moves has in a policy."""
    return {
        "weights": {n: (policy[n].weight,) for n, bits in asked["weights"].items() if bits},
        "activations": {n: (policy[n].act,) for n, bits in asked["activations"].items() if bits},
    }


class _Way(CopyingInterpreter):
    """Runs a graph with all places moved by the share ``t`` of what rounding does to them."""

    def __init__(self, model: fx.GraphModule, places: Sequence[Place], t: float):
        super().__init__(model)
        self.places, self.t = places, t
        self._rounding = {n: p for p in places if p.kind == "activations" for n in p.nodes}
        self._moved: dict[fx.Node, tuple[Tensor, Tensor]] = {}  # what is read, and Q(y) - y

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node; between float and rounded where a place is."""
        if n not in self._rounding:
            return super().run_node(n)
        place = self._rounding[n]
        (before,), _ = self.fetch_args_kwargs_from_env(n)
        with torch.no_grad(), place.round(place.bits[0]):
            change = super().run_node(n) - before
        moved = before + self.t * change
        moved = moved if moved.requires_grad else moved.requires_grad_(torch.is_grad_enabled())
        self._moved[n] = moved, change
        return moved

    def answers(self, images: Inputs) -> list[Tensor]:
        """Return what the network gives there."""
        changes = self._move_weights()
        try:
            return float_answers(self.run(images))
        finally:
            self._move_back(changes)

    def slopes(self, images: Inputs, reference: Sequence[Tensor]) -> list[float]:
        """Return <dD/dW, Q(W) - W> of every place."""
        changes = self._move_weights()
        weights = {at: self._weight(self.places[at]).requires_grad_() for at in changes}
        try:
            with quickly(gradients=True):
                distance = total_divergence(float_answers(self.run(images)), reference)
                read = [self._moved[node][0] for node in self._rounding]
                gradients = torch.autograd.grad(
                    distance, [*weights.values(), *read], materialize_grads=True
                )
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)
            self._move_back(changes)
        return self._sums(changes, dict(zip([*weights, *self._rounding], gradients, strict=True)))

    def _sums(self, changes: Mapping[int, Tensor], gradients: Mapping[Any, Tensor]) -> list[float]:
        sums = []
        for at, place in enumerate(self.places):
            if place.kind == "weights":
                pairs = [(gradients[at], changes[at])]
            else:
                pairs = [(gradients[node], self._moved[node][1]) for node in place.nodes]
            sums.append(sum(float((one.float() * other.float()).sum()) for one, other in pairs))
        return sums

    def _weight(self, place: Place) -> Tensor:
        module = self.module.get_submodule(place.layers[0])
        assert isinstance(module, LayerModule)
        return module.weight

    def _move_weights(self) -> dict[int, Tensor]:
        """Move the weights, and return each place's number and Q(W) - W."""
        changes = {}
        for at, place in enumerate(self.places):
            if place.kind == "weights":
                weight = self._weight(place)
                before = weight.data
                with place.round(place.bits[0]):
                    changes[at] = weight.data - before
                weight.data = before + self.t * changes[at]
        return changes

    def _move_back(self, changes: Mapping[int, Tensor]) -> None:
        for at, change in changes.items():
            self._weight(self.places[at]).data -= self.t * change
