"""Sensitivities: how far the network's answer moves when one layer alone has few bits.

Measured on a few hundred unlabeled images, they tell before any search which layers can go low.
``results/reference/sensitivity.json`` compares them with the loss gradient and the Hessian trace.

What comes before the rounded tensor is computed once for all bits, and only the rest again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from haq.allocation.costs import CostTable
from haq.allocation.policy import FLOAT, Bits, readers
from haq.distillation.kd import total_divergence
from haq.errors import RunError
from haq.files import write_text
from haq.network.graph import Graph
from haq.network.inputs import Inputs
from haq.quantization.calibration import Clips
from haq.quantization.interpreter import CopyingInterpreter
from haq.quantization.places import (
    Kind,
    Place,
    Widths,
    float_answers,
    normalising,
    places_of,
    quickly,
)
from haq.training.numerics import channels_last

IMAGES = 256
"""Images to measure on; more hardly change the policy."""

REMEMBERED = 2**28
"""Values (of 4 bytes) of activations in memory at once; more go in several parts."""


@dataclass(frozen=True)
class Sensitivity:
    """What few bits in one place alone do to the network's answer, as in ``sensitivity.json``.

    Attributes:
        measure: "kl": the divergence of the class distribution from the float network's, in nats
            an image; see ``haq.distillation.kd.divergence``. "kl, second order": about that, as
            ``haq.quantization.second_order`` works it out.
        images: On how many images.
        weights: Layer to bits to the measure where only the layer's weights are rounded.
        activations: Layer to bits to the measure where only the tensor is rounded that the layer
            reads; layers that read the same one have equal values.
        formats: Layer to a number format, in words such as "w4g32", to the measure where only this
            layer has it: its weights are rounded and, where that is dynamic, what it reads.
    """

    measure: str
    images: int
    weights: Mapping[str, Mapping[int, float]]
    activations: Mapping[str, Mapping[int, float]]
    formats: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def widths(choices: Mapping[str, Sequence[Bits]]) -> dict[Kind, dict[str, tuple[Any, ...]]]:
    """Return which bits are up to the search: of weights and of activations, layer to bits.

    >>> widths({"conv": (Bits(2, 8), Bits(4, 8)), "fc": (Bits(8, 8),)})
    {'weights': {'conv': (2, 4), 'fc': ()}, 'activations': {'conv': (), 'fc': ()}}

    Number formats that are more than bits stand apart, each as it is.

    >>> widths({"fc": (Bits(4, 32), Bits(4, 32, 32))})["formats"]
    {'fc': (Bits(weight=4, act=32, block=32, dynamic=''),)}
    """
    formats = {
        name: tuple(b for b in pairs if b.is_special) if len(pairs) > 1 else ()
        for name, pairs in choices.items()
    }

    def several(bits: Iterable[int]) -> tuple[int, ...]:
        choices = sorted(set(bits))
        return tuple(choices) if len(choices) > 1 else ()

    weights = {
        name: several([b.weight for b in pairs if not b.is_special] + [0] * bool(formats[name]))
        for name, pairs in choices.items()
    }
    asked: dict[Kind, dict[str, tuple[Any, ...]]] = {
        "weights": {name: tuple(b for b in bits if b) for name, bits in weights.items()},
        "activations": {name: several(b.act for b in pairs) for name, pairs in choices.items()},
    }
    return asked | ({"formats": formats} if any(formats.values()) else {})


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


def objective(known: Sensitivity, table: CostTable) -> dict[str, NDArray[np.float64]]:
    """Return what each choice of each layer adds to the divergence, for ``budgets.solve``.

    The effect of a tensor's bits counts once, with the first layer that reads it. Where more bits
    measured worse than fewer, which is noise, they count as the fewer do.

    Raises:
        RunError: The sensitivities lack a layer or a width of the table.
    """
    asked = widths(table.choices)
    first = {name: group[0] == name for name, group in readers(table.layers).items()}
    formats = {name for name, special in asked.get("formats", {}).items() if special}
    losses = {}
    for layer in table.layers:
        name = layer.name
        weights = _falling(known.weights.get(name, {}), asked["weights"][name], name)
        acts = _falling(known.activations.get(name, {}), asked["activations"][name], name)
        losses[name] = np.array(
            [
                (
                    _of_format(known, name, bits)
                    if bits.is_special and name in formats
                    else weights.get(bits.weight, 0.0)
                )
                + (acts.get(bits.act, 0.0) if first[name] else 0.0)
                for bits in table.choices[name]
            ]
        )
    return losses


def _of_format(known: Sensitivity, name: str, bits: Bits) -> float:
    value = known.formats.get(name, {}).get(str(bits))
    if value is None:
        raise RunError(f"the sensitivities know nothing of layer {name!r} at {bits}")
    return max(value, 0.0)


def _falling(values: Mapping[int, float], asked: Sequence[int], name: str) -> dict[int, float]:
    missing = [bits for bits in asked if bits not in values and bits != FLOAT]
    if missing:
        raise RunError(f"the sensitivities know nothing of layer {name!r} at {missing[0]} bits")
    least, falling = float("inf"), {}
    for bits in sorted(values):
        least = falling[bits] = min(least, max(values[bits], 0.0))
    return falling


def save_sensitivity(known: Sensitivity, path: Path) -> None:
    """Write ``sensitivity.json``."""
    tables: dict[str, Any] = {"weights": known.weights, "activations": known.activations}
    if known.formats:
        tables["formats"] = known.formats
    content = {"measure": known.measure, "images": known.images, **tables}
    write_text(path, json.dumps(content, indent=2) + "\n")


def load_sensitivity(path: Path) -> Sensitivity:
    """Read what ``save_sensitivity`` wrote.

    Raises:
        RunError: The file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tables = [
            {
                name: {int(b): float(v) for b, v in row.items()}
                for name, row in content[kind].items()
            }
            for kind in ("weights", "activations")
        ]
        formats = {
            name: {str(bits): float(v) for bits, v in row.items()}
            for name, row in content.get("formats", {}).items()
        }
        return Sensitivity(content["measure"], content["images"], tables[0], tables[1], formats)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} cannot be read ({error}); take it away and resume") from error
