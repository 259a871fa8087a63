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
from haq.hw_profiles.measured import FLOATS, Passing
from haq.hw_profiles.rows import Shape, shape_of
from haq.network.graph import handovers
from haq.network.layers import EDGE_BITS, Layer
from haq.runs.kit import run_kit
from haq.runs.kit.layer_file import SUPPORTED, layer_file
from haq.runs.profiling.subject import Subject, lowering
from haq.runs.progress import OnProgress, Progress, silent

FORMAT = "haq-kit/2"

MIXED = 24
"""Mixed policies: every second one is for the fit, the others check it."""

FLOAT_SHARE = 0.3
"""Of the tensors of a mixed network, those whose readers stay float, where some may."""

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
        files: Name of a file to what it is: ``{"shape": 0, "bits": [4, 8]}``, of weights and of
            activations, or ``{"policy": {layer: bits}}``.
        reference: The file that is measured first and last in every round.
        tensors: What layers hand to each other, where some may be float.
    """

    model: str
    batch: int
    cpu: str
    shapes: Sequence[Shape]
    layers: Mapping[str, Sequence[Part]]
    files: Mapping[str, Mapping[str, Any]]
    reference: str
    tensors: Sequence[Passing] = ()


class Choices(NamedTuple):
    """What searches may choose among.

    Attributes:
        weights: Widths of weights, at least two.
        acts: Widths of activations.
        floats: Whether layers may stay float.
    """

    weights: Sequence[int]
    acts: Sequence[int] = (EDGE_BITS,)
    floats: bool = False

    def of(self, layer: Layer) -> list[Bits]:
        """Return the bits that a layer may have; what reads the network's input has 8 bits."""
        acts = [EDGE_BITS] if layer.reads_input else self.acts
        pairs = [Bits(weight, act) for weight in self.weights for act in acts]
        return [*pairs, *([FLOATS] if self.floats else [])]


def make_kit(
    asked: Subject,
    out: Path,
    choices: Choices,
    batch: int = 1,
    cpu: Cpu = "any",
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> Contents:
    """Write the kit of a network and return what is in it.

    Args:
        asked: The network.
        out: A folder that is not there yet, or empty.
        choices: What searches shall choose among.
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
    policies = dict(_policies(layers, choices, seed))
    offered = {
        (part.shape, bits): None
        for layer in layers for part in parts[layer.name] for bits in choices.of(layer)
    }  # fmt: skip
    rows = {
        layer_name(number, bits): {"shape": number, "bits": [*bits[:2]]}
        for number, bits in sorted(offered)
    }
    files = rows | {
        name: {"policy": {layer: [*bits[:2]] for layer, bits in policy.items()}}
        for name, policy in policies.items()
    }
    reference = uniform_name(Bits(max(choices.weights), max(choices.acts)))
    passing = handovers(asked.graph, asked.sample) if choices.floats else ()
    tensors = [Passing(**tensor._asdict()) for tensor in passing]
    contents = Contents(asked.name, batch, cpu, shapes, parts, files, reference, tensors)
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


def layer_name(shape: int, bits: Bits) -> str:
    """Return the file of a layer alone.

    >>> layer_name(3, Bits(4, 8))
    'layer-03-w4a8.onnx'
    """
    return f"layer-{shape:02}-{bits}.onnx"


def uniform_name(bits: Bits) -> str:
    """Return the file of the network whose layers all have these bits.

    >>> uniform_name(FLOATS)
    'uniform-fp32.onnx'
    """
    return f"uniform-{bits}.onnx"


def _policies(
    layers: Sequence[Layer], choices: Choices, seed: int
) -> Iterator[tuple[str, dict[str, Bits]]]:
    """Yield the networks of one pair of bits each, then mixed ones."""
    most = max(choices.acts)
    uniform = [Bits(weight, most) for weight in choices.weights]
    uniform += [Bits(max(choices.weights), act) for act in choices.acts if act != most]
    for bits in [*uniform, *([FLOATS] if choices.floats else [])]:
        yield uniform_name(bits), {
            layer.name: Bits(bits.weight, EDGE_BITS)
            if layer.reads_input and not bits.floats else bits
            for layer in layers
        }  # fmt: skip
    generator = np.random.default_rng(seed)
    for number in range(MIXED):
        yield f"mixed-{number:02}.onnx", _mixed(layers, choices, generator)


def _mixed(
    layers: Sequence[Layer], choices: Choices, generator: np.random.Generator
) -> dict[str, Bits]:
    """Return bits of weights drawn for every layer, of activations for every tensor."""
    acts: dict[str, int] = {}
    policy = {}
    for layer in layers:
        tensor = layer.reads or layer.name
        if tensor not in acts:
            stays = choices.floats and generator.random() < FLOAT_SHARE
            own = [EDGE_BITS] if layer.reads_input else list(choices.acts)
            acts[tensor] = FLOAT if stays else int(generator.choice(own))
        weight = int(generator.choice(list(choices.weights)))
        policy[layer.name] = FLOATS if acts[tensor] == FLOAT else Bits(weight, acts[tensor])
    return policy


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
                model = layer_file(shape, Bits(*about["bits"]), contents.batch, cpu, seed)
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


def policy_of(layers: Sequence[Layer], bits: Mapping[str, tuple[int, int]]) -> Policy:
    """Return the policy of a network of the kit; what only looks up stays float."""
    return {
        layer.name: Bits(*bits[layer.name][:2]) if layer.name in bits else FLOATS
        for layer in layers
    }


def text_of(contents: Contents) -> str:
    """Return what ``kit.json`` holds."""
    record = {"format": FORMAT, **contents._asdict()}
    record["shapes"] = [shape.model_dump(mode="json") for shape in contents.shapes]
    record["tensors"] = [tensor.model_dump(mode="json") for tensor in contents.tensors]
    record["layers"] = {
        name: [part._asdict() for part in parts] for name, parts in contents.layers.items()
    }
    return json.dumps(record, indent=1) + "\n"
