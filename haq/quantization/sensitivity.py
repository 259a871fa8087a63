"""Sensitivities: how far the network's answer moves when one layer alone has few bits.

Measured on a few hundred unlabeled images, they tell before any search which layers can go low.
``results/reference/sensitivity.json`` compares them with the loss gradient and the Hessian trace.

What comes before the rounded tensor is computed once for all bits, and only the rest again.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx

from haq.allocation.sensitivities import Kind, Sensitivity, Widths
from haq.distillation.kd import total_divergence
from haq.network.graph import Graph
from haq.network.inputs import Inputs
from haq.quantization.calibration import Clips
from haq.quantization.interpreter import CopyingInterpreter
from haq.quantization.places import Place, float_answers, normalising, places_of, quickly
from haq.training.numerics import channels_last

IMAGES = 256
"""Images to measure on; more hardly change the policy."""

REMEMBERED = 2**28
"""Values (of 4 bytes) of activations in memory at once; more go in several parts."""


def sensitivity(
    graph: Graph,
    clips: Clips,
    images: Inputs,
    asked: Widths,
    on_place: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Return what rounding one tensor alone does to the network's answer, for every tensor.

    BatchNorm normalises with the statistics of the images, in the float network too: statistics are
    corrected after quantization (``statistics.correct``), so what that mends does not count.

    Args:
        graph: The model's. Where its forward gives several tensors of floats, their divergences
            are added up.
        clips: From ``calibrate`` on the same graph.
        images: What the model takes, (N, ...), at least 2; no labels are needed.
        asked: Which bits; 32, which is float, is 0 by definition.
        on_place: Called with (done, total) as tensors are finished.

    Raises:
        ModelError: The network does not give tensors of finite floats.
    """
    model = normalising(graph, clips)
    places = places_of(graph, clips, model, asked)
    images = channels_last(images)
    parts: Sequence[Inputs] = images.chunk(parts_of(model, images, REMEMBERED))
    sums = [dict.fromkeys(place.bits, 0.0) for place in places]
    for number, part in enumerate(parts):
        recorder = _Recorder(model)
        with quickly():
            reference = float_answers(recorder.run(part))
            for at, place in enumerate(places):
                for bits in place.bits:
                    with place.round(bits):
                        answer = float_answers(recorder.run_from(place.nodes[0], part))
                    distance = float(total_divergence(answer, reference))
                    sums[at][bits] += len(part) / len(images) * distance
                if on_place:
                    on_place(number * len(places) + at + 1, len(parts) * len(places))
    return tabulated("kl", len(images), places, sums)


def tabulated(
    measure: str, images: int, places: Sequence[Place], values: Sequence[dict[Any, float]]
) -> Sensitivity:
    """Return what was measured at some places, by bits, as sensitivities."""
    tables: dict[Kind, dict[str, dict[Any, float]]] = {
        "weights": {}, "activations": {}, "formats": {}
    }  # fmt: skip
    for place, row in zip(places, values, strict=True):
        if place.kind == "formats":
            row = {str(bits): value for bits, value in row.items()}
        tables[place.kind] |= dict.fromkeys(place.layers, row)
    return Sensitivity(measure, images, **tables)


class _Recorder(CopyingInterpreter):
    """Runs a graph, remembers all values of its first run, and runs it again from any node on."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.values.setdefault(n, result)
        return result

    def run_from(self, node: fx.Node, images: Inputs) -> Any:
        """Return the output, with the first run's values of all that comes before the node."""
        nodes = list(self.graph.nodes)
        before = {n: self.values[n] for n in nodes[: nodes.index(node)]}
        return self.run(images, initial_env=before)


def parts_of(model: fx.GraphModule, images: Inputs, remembered: int) -> int:
    """Return into how many parts to split the images so that memory holds all values."""
    recorder = _Recorder(model)
    with quickly():
        recorder.run(images[:2])
    values = (
        sum(value.numel() for value in recorder.values.values() if isinstance(value, Tensor)) / 2
    )
    return max(1, min(round(values * len(images) / remembered), len(images) // 2))
