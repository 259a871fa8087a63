"""Write a kit: a folder with all that has to be measured on a device, and what measures it."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from haq.allocation.policy import FLOAT, Bits, Policy
from haq.errors import HaqError
from haq.files import write_bytes, write_text
from haq.formats.onnx.writer import Cpu
from haq.hw_profiles.rows import Shape, shape_of
from haq.network.layers import Layer
from haq.runs.kit import run_kit
from haq.runs.kit.layer_file import SUPPORTED, layer_file
from haq.runs.profiling.subject import Subject, lowering
from haq.runs.progress import OnProgress, Progress, silent

FORMAT = "haq-kit/1"

MIXED = 24
"""Mixed policies: every second one is for the fit, the others check it."""

ACT_BITS = 8

RUNNER = "run_kit.py"


class Part(NamedTuple):
    """A layer at one size of its calls: which shape it has, and how often it is called."""

    shape: int
    calls: int


class Contents(NamedTuple):
    """What a kit is about, as it stands in ``kit.json``.

    Attributes:
        model: Name of the network.
        batch: Images computed at once.
        cpu: Which CPUs the files are for.
        shapes: Distinct layers.
        layers: Name of a layer to its parts.
        files: Name of a file to what it is: ``{"shape": 0, "weight": 4}`` or ``{"policy": …}``.
        reference: The file that is measured first and last in every round.
    """

    model: str
    batch: int
    cpu: str
    shapes: Sequence[Shape]
    layers: Mapping[str, Sequence[Part]]
    files: Mapping[str, Mapping[str, Any]]
    reference: str


def make_kit(
    asked: Subject,
    out: Path,
    weight_bits: Sequence[int],
    batch: int = 1,
    cpu: Cpu = "any",
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> Contents:
    """Write the kit of a network and return what is in it.

    Args:
        asked: The network.
        out: A folder that is not there yet, or empty.
        weight_bits: Widths of weights that the search shall choose among, at least two.
        batch: Images computed at once.
        cpu: As for exported files.
        seed: Of the policies.
        on_progress: Called often.

    Raises:
        HaqError: The folder is not empty, or the network has a layer that no file is made of.
    """
    check_folder(out)
    layers = [layer for layer in asked.graph.layers if not layer.weights_alone]
    check_layers(layers)
    shapes = list(dict.fromkeys(shape_of(part) for layer in layers for part in layer.by_size()))
    parts = {
        layer.name: [Part(shapes.index(shape_of(part)), part.calls) for part in layer.by_size()]
        for layer in layers
    }
    policies = dict(_policies([layer.name for layer in layers], weight_bits, seed))
    rows = {
        f"layer-{number:02}-w{weight}.onnx": {"shape": number, "weight": weight}
        for number in range(len(shapes))
        for weight in weight_bits
    }
    files = rows | {name: {"policy": policy} for name, policy in policies.items()}
    reference = f"uniform-w{max(weight_bits)}.onnx"
    contents = Contents(asked.name, batch, cpu, shapes, parts, files, reference)
    _write(contents, asked, out, cpu, seed, on_progress)
    return contents


def check_folder(out: Path) -> None:
    """Refuse a folder that a kit cannot be written to.

    Raises:
        HaqError: It has something in it, or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise HaqError(f"cannot write a kit to {out}: it is there already; give a new folder")
    if not out.parent.is_dir():
        raise HaqError(f"cannot write a kit to {out}: there is no folder {out.parent}")


def check_layers(layers: Sequence[Layer]) -> None:
    """Refuse a network with layers that no file is made of.

    Raises:
        HaqError: It has one, or none at all.
    """
    if not layers:
        raise HaqError("a kit needs a layer that multiplies; this network has none")
    for layer in layers:
        if layer.kind not in SUPPORTED:
            raise HaqError(
                f"layer {layer.name!r}: no file is made of a layer of kind {layer.kind!r}; give "
                "its costs in a table of your own (--target table:FILE)"
            )


def _policies(
    names: Sequence[str], weight_bits: Sequence[int], seed: int
) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the networks of one width each, then mixed ones."""
    for weight in weight_bits:
        yield f"uniform-w{weight}.onnx", dict.fromkeys(names, weight)
    generator = np.random.default_rng(seed)
    for number in range(MIXED):
        drawn = generator.choice(list(weight_bits), len(names))
        yield f"mixed-{number:02}.onnx", dict(zip(names, map(int, drawn), strict=True))


def _write(
    contents: Contents, asked: Subject, out: Path, cpu: Cpu, seed: int, on_progress: OnProgress
) -> None:
    lowered = lowering(asked, cpu)
    building = out.with_name(out.name + ".part")
    shutil.rmtree(building, ignore_errors=True)
    (building / "files").mkdir(parents=True)
    try:
        for done, (name, about) in enumerate(contents.files.items(), 1):
            if "policy" in about:
                model = lowered(policy_of(asked.graph.layers, about["policy"]))
            else:
                shape = contents.shapes[about["shape"]]
                model = layer_file(shape, about["weight"], contents.batch, cpu, seed)
            write_bytes(building / "files" / name, model)
            on_progress(Progress("build", done, len(contents.files)))
        runner = Path(run_kit.__file__).read_text(encoding="utf-8")
        write_text(building / RUNNER, runner)
        write_text(building / "kit.json", text_of(contents))
        if out.exists():
            out.rmdir()
        building.rename(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def policy_of(layers: Sequence[Layer], weights: Mapping[str, int]) -> Policy:
    """Return the policy of a network of the kit; what only looks up stays float."""
    return {
        layer.name: Bits(weights[layer.name], ACT_BITS) if layer.name in weights
        else Bits(FLOAT, FLOAT)
        for layer in layers
    }  # fmt: skip


def text_of(contents: Contents) -> str:
    """Return what ``kit.json`` holds."""
    record = {"format": FORMAT, **contents._asdict()}
    record["shapes"] = [shape.model_dump(mode="json") for shape in contents.shapes]
    record["layers"] = {
        name: [part._asdict() for part in parts] for name, parts in contents.layers.items()
    }
    return json.dumps(record, indent=1) + "\n"
