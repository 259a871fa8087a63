"""What each choice of bits does to a network's answer: the record, and what a search makes of it.

``haq.quantization.sensitivity`` and ``second_order`` measure it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from haq.allocation.costs import CostTable
from haq.allocation.policy import FLOAT, Bits, readers
from haq.errors import RunError
from haq.files import write_text

Kind = Literal["weights", "activations", "formats"]
Widths = Mapping[Kind, Mapping[str, Sequence[Any]]]
"""Which bits to measure: of weights and of activations, layer to bits; and of number formats that
are more than bits (``haq.allocation.schemes``), layer to ``Bits``."""


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
        channels: Layer to the share of its channels that stays, to the measure where the others are
            removed, together with those of the layers that share them, and what reads them is
            refitted.
    """

    measure: str
    images: int
    weights: Mapping[str, Mapping[int, float]]
    activations: Mapping[str, Mapping[int, float]]
    formats: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    channels: Mapping[str, Mapping[float, float]] = field(default_factory=dict)


def widths(choices: Mapping[str, Sequence[Bits]]) -> dict[Kind, dict[str, tuple[Any, ...]]]:
    """Return which bits are up to the search: of weights and of activations, layer to bits.

    >>> widths({"conv": (Bits(2, 8), Bits(4, 8)), "fc": (Bits(8, 8),)})
    {'weights': {'conv': (2, 4), 'fc': ()}, 'activations': {'conv': (), 'fc': ()}}

    Number formats that are more than bits stand apart, each as it is.

    >>> widths({"fc": (Bits(4, 32), Bits(4, 32, 32))})["formats"]
    {'fc': (Bits(weight=4, act=32, block=32, dynamic=''),)}
    """
    formats = {
        name: tuple(dict.fromkeys(b.with_keep(1.0) for b in pairs if b.is_special))
        if len(pairs) > 1
        else ()
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
                + _of_channels(known, name, bits)
                for bits in table.choices[name]
            ]
        )
    return losses


def _of_channels(known: Sensitivity, name: str, bits: Bits) -> float:
    return 0.0 if bits.keep == 1 else known.channels.get(name, {}).get(bits.keep, 0.0)


def _of_format(known: Sensitivity, name: str, bits: Bits) -> float:
    value = known.formats.get(name, {}).get(str(bits.with_keep(1.0)))
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
    if known.channels:
        tables["channels"] = known.channels
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
        channels = {
            name: {float(share): float(v) for share, v in row.items()}
            for name, row in content.get("channels", {}).items()
        }
        return Sensitivity(
            content["measure"], content["images"], tables[0], tables[1], formats, channels
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} cannot be read ({error}); take it away and resume") from error
