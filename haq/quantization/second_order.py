"""Sensitivities to second order: one forward and one backward for all layers and bit-widths.

At the float network the divergence has no slope, so what rounding one tensor alone does to it is::

    damage = 1/2 * mean over images of  d' J' F J d        d: change of the tensor
                                                           J: of the outputs by the tensor
                                                           F: curvature of the divergence by them

With random signs r and F = A A' the gradient g of  r' A' outputs  gives  E <g, d>**2 = d' J' F J d,
so one backward pass serves all tensors. The change d is taken behind the layer, where it is exact
however few the bits are, after its statistics are corrected as in ``statistics.correct``; what
comes behind is linear. ``results/reference/second-order.json`` compares the figures with those of
``sensitivity``, whose cost grows with the square of the number of layers.

Source: Martens, "New insights and perspectives on the natural gradient method", arXiv:1412.1193,
sections 5 and 8, for the curvature; random signs as in Hutchinson's estimator of a trace.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from haq.allocation.policy import Policy
from haq.allocation.sensitivities import Sensitivity, Widths
from haq.distillation.kd import signs_of_curvature, total_divergence
from haq.network.graph import Graph
from haq.network.inputs import Inputs, mask_of
from haq.network.modules import Product
from haq.quantization.calibration import Clips
from haq.quantization.interpreter import CopyingInterpreter
from haq.quantization.places import (
    Place,
    float_answers,
    normalising,
    places_of,
    quickly,
    rounded_at,
)
from haq.quantization.sensitivity import REMEMBERED, parts_of, tabulated
from haq.quantization.statistics import FEW, channel_axis, restored
from haq.training.numerics import channels_last

MEASURE = "kl, second order"
"""What ``Sensitivity.measure`` says."""

SAMPLES = 256
"""Draws of signs times images, at least: the relative error of a figure is about sqrt(2 / samples),
the same for all bits of a tensor."""


def second_order(
    graph: Graph,
    clips: Clips,
    images: Inputs,
    asked: Widths,
    on_place: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Return about what ``sensitivity`` does, at a cost that is linear in the number of layers.

    Args:
        graph: As for ``sensitivity``.
        clips: From ``calibrate`` on the same graph, at least for the tensors and bits asked for.
        images: As for ``sensitivity``.
        asked: As for ``sensitivity``.
        on_place: As for ``sensitivity``.
        seed: Of the signs.

    Raises:
        ModelError: As ``sensitivity``.
    """
    return marginal(graph, clips, images, asked, None, on_place, seed)


def marginal(
    graph: Graph,
    clips: Clips,
    images: Inputs,
    asked: Widths,
    policy: Policy | None,
    on_place: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Return what giving one tensor other bits would add to the divergence of a policy.

    That is to second order about the policy's own network, so it may be negative::

        added = mean over images of <dD/dy, d> + 1/2 d' J' F J d      d: change from the policy's y

    Args:
        graph: As for ``second_order``.
        clips: As for ``second_order``, and for the bits of the policy.
        images: As for ``second_order``.
        asked: As for ``second_order``; tensors for which nothing is asked stay float.
        policy: About which; None: the float network, which is ``second_order``.
        on_place: As for ``second_order``.
        seed: As for ``second_order``.

    Raises:
        ModelError: As ``second_order``.
    """
    model = normalising(graph, clips).requires_grad_(False)
    places = places_of(graph, clips, model, asked)
    if not places:
        return tabulated(MEASURE, len(images), places, [])
    images = channels_last(images)
    # Beside the values their gradients are kept, and what each operation needs for them.
    parts: Sequence[Inputs] = images.chunk(parts_of(model, images, REMEMBERED // 4))
    draws = max(1, -(-SAMPLES // len(images)))
    generator = torch.Generator().manual_seed(seed)
    sums = [dict.fromkeys(place.bits, 0.0) for place in places]
    for number, part in enumerate(parts):
        reference = None
        if policy is not None:
            with quickly():
                reference = float_answers(CopyingInterpreter(model).run(part))
        with rounded_at(places, policy):
            tape = _Tape(model, places)
            slopes, signs = tape.gradients(part, draws, generator, reference)
            for at, place in enumerate(places):
                changes = _changes(tape, place, clips, part)
                for bits, added in zip(
                    place.bits, _added(changes, place, slopes, signs), strict=True
                ):
                    sums[at][bits] += added / len(images)
                if on_place:
                    on_place(number * len(places) + at + 1, len(parts) * len(places))
    return tabulated(MEASURE, len(images), places, sums)


Gradients = Mapping[fx.Node, Sequence[Tensor]]
"""Node to the gradients by what it gave, one for each draw of signs."""


class _Tape(CopyingInterpreter):
    """Runs a graph so that gradients by what the places give can be taken."""

    def __init__(self, model: fx.GraphModule, places: Sequence[Place]):
        super().__init__(model)
        self.watched = {node for place in places for node in place.nodes}
        self.inputs: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.results: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n not in self.watched:
            return result
        self.inputs[n] = self.fetch_args_kwargs_from_env(n)
        # A quantizer at 32 bits gives the very tensor it reads, which others read too.
        result = result.view_as(result) if result.requires_grad else result.detach().clone()
        self.results[n] = result.requires_grad_()
        return result

    def gradients(
        self,
        images: Inputs,
        draws: int,
        generator: torch.Generator,
        reference: Sequence[Tensor] | None,
    ) -> tuple[Gradients, Gradients]:
        """Return the gradients of the divergence, times the images, and of signs times outputs."""
        try:
            return self._gradients(images, draws, generator, reference)
        except NotImplementedError:  # an operator has no derivative in bfloat16
            return self._gradients(images, draws, generator, reference, False)

    def _gradients(
        self,
        images: Inputs,
        draws: int,
        generator: torch.Generator,
        reference: Sequence[Tensor] | None,
        bfloat16: bool | None = None,
    ) -> tuple[Gradients, Gradients]:
        with quickly(gradients=True, bfloat16=bfloat16):
            answers = float_answers(self.run(images))
            goals = [
                torch.stack(
                    [(signs_of_curvature(a.detach(), generator) * a.float()).sum() for a in answers]
                )
                for _ in range(draws)
            ]
            if reference is not None:
                goals.append(len(images) * total_divergence(answers, reference)[None])
            nodes = list(self.results)
            by, last = [self.results[node] for node in nodes], goals[-1]
            rows = [
                torch.autograd.grad(
                    goal.sum(), by, retain_graph=goal is not last, materialize_grads=True
                )
                for goal in goals
            ]
        self.results = {node: result.detach() for node, result in self.results.items()}
        slopes = {node: [row[at] for row in rows[draws:]] for at, node in enumerate(nodes)}
        signs = {node: [row[at] for row in rows[:draws]] for at, node in enumerate(nodes)}
        return slopes, signs

    def again(self, node: fx.Node) -> Tensor:
        """Return what a call gives now, on the inputs that it had."""
        args, kwargs = self.inputs[node]
        args, kwargs = fx.node.map_aggregate((args, kwargs), _detached)
        result: Tensor = getattr(self, node.op)(node.target, args, kwargs)
        return result


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


Changes = Mapping[fx.Node, Tensor]
"""Node to how what it gives changes with each of the bits asked for: (images, bits, values)."""


def _changes(tape: _Tape, place: Place, clips: Clips, images: Inputs) -> Changes:
    changes = {}
    for node in place.nodes:
        before, rows = tape.results[node].float(), []
        for bits in place.bits:
            with quickly(), place.round(bits):
                after = tape.again(node).float()
            of_layer = place.kind != "activations" and node.op == "call_module"
            if of_layer and len(place.nodes) == 1:
                plain = place.kind == "weights"
                per_channel = plain and clips.weights[place.layers[0]][bits].numel() > 1
                after = _corrected(tape, node, after, before, per_channel, mask_of(images))
            rows.append(_by_image(after - before, len(images)))
        changes[node] = torch.stack(rows, 1)
    return changes


def _added(changes: Changes, place: Place, slopes: Gradients, signs: Gradients) -> list[float]:
    """Return what each of a place's bits adds, summed over the images."""

    def products(gradients: Gradients) -> Tensor:  # (images, bits, gradients)
        return torch.stack([
            change @ torch.stack([_by_image(g.float(), len(change)) for g in gradients[node]], 2)
            for node, change in changes.items()
        ]).sum(0)  # fmt: skip

    curved = products(signs).square().mean(2).sum(0) / 2
    straight = products(slopes).sum((0, 2)) if slopes[place.nodes[0]] else torch.zeros(())
    added: list[float] = (curved + straight).tolist()
    return added


def _by_image(values: Tensor, images: int) -> Tensor:
    """Return the values of each image as a row; of all in one where no axis tells images apart."""
    if values.dim() == 4:
        values = values.movedim(1, -1)  # as they lie in memory
    if values.dim() and len(values) % images == 0:  # windows of an image stand side by side
        return values.reshape(images, -1)
    if images in values.shape:
        return values.movedim(values.shape.index(images), 0).reshape(images, -1)
    return values.reshape(1, -1)


def _corrected(
    tape: _Tape, node: fx.Node, after: Tensor, before: Tensor, per_channel: bool,
    mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return what a rounded layer gives once statistics are corrected behind it.

    A BatchNorm takes up mean and variance, a bias the mean, scales of channels the variance.
    """
    module = tape.submodules[str(node.target)]
    if not isinstance(module, Product):
        return after
    if any(isinstance(tape.submodules.get(str(user.target)), _BatchNorm) for user in node.users):
        return restored(after, before, 1, trust=1.0)
    axis = channel_axis(module)
    count = before.numel() / before.shape[axis] / len(before)
    trust = min(1.0, len(before) * count**0.5 / FEW)
    return restored(after, before, axis, trust, module.bias is not None, per_channel, mask)
