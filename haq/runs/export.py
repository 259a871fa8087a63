"""What a run leaves to take away: its network as a file of its own."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from haq.allocation.policy import FLOAT
from haq.errors import HaqError, ModelError
from haq.files import write_bytes
from haq.formats import checkpoint
from haq.formats.onnx.comparison import error
from haq.formats.onnx.lower import FLOAT32, lower
from haq.formats.onnx.runtime import exact_kernels
from haq.formats.onnx.saturation import EXACT_KERNELS, exact_but_slower, saturating
from haq.formats.onnx.template import template
from haq.formats.onnx.writer import INT8, Cpu
from haq.metrics import metric_of
from haq.network.inputs import Inputs, random_inputs
from haq.quantization.fake_quant import Rounding
from haq.runs.api import Run
from haq.runs.handover import check_kernels
from haq.runs.restored import Restored, origin, restored

"""How files are run here: on the CPU, one image at a time, in one thread."""

FORMAT = "haq-onnx/1"
"""What the metadata entry "haq" of a file says in its field "format"."""

CPUS: tuple[Cpu, ...] = ("any", "vnni")
"""For which x86 CPUs a file can be written."""

COMPARED = 16
"""Random inputs on which a new file is compared with its PyTorch network."""

APART = 0.05
"""The largest error of a new file's median image, see ``haq.formats.onnx.comparison.error``."""


HALVED = "haq.half_as_many_steps"
"""Key in the metadata of a file for TensorRT of the tensors of which that is true."""

ROUGHLY = 0.25
"""The largest error of a file in which tensors have half as many steps."""


def export_checkpoint(
    run: Run | str | os.PathLike[str], out: str | os.PathLike[str], model: nn.Module | None = None
) -> checkpoint.Content:
    """Write the network of a run as a checkpoint for ``haq.load``.

    Args:
        run: As for ``restored``.
        out: Ends in .safetensors; folders that are missing are made, an old file is replaced.
        model: As for ``restored``.

    Returns:
        The metadata of the file; see ``haq.formats.checkpoint`` for the format.

    Raises:
        HaqError: As ``restored`` and ``haq.formats.checkpoint.save``.
    """
    finished = restored(run, model)
    return checkpoint.save(out, finished.network, finished.policy, origin(finished))


def export_onnx(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    model: nn.Module | None = None,
    cpu: Cpu = "any",
) -> onnx.ModelProto:
    """Write the network of a run as a file for ONNX Runtime, and return it.

    The input "images" takes normalised images (N, C, H, W); the metadata entry "haq" says how they
    are normalised, and holds the policy and where the network comes from.

    Args:
        run: Its folder or name, or what ``haq.search`` returned.
        out: Ends in .onnx; folders that are missing are made, an old file is replaced.
        model: As for ``haq.export_checkpoint``.
        cpu: "any" writes a file that is right on every x86 CPU; layers with 8-bit weights and 8-bit
            activations are slower for it on CPUs with VNNI. "vnni" writes one that is right on CPUs
            with VNNI only. ``cpu_note`` says what that means for a file.

    Raises:
        HaqError: As ``restored``; the network cannot be exported; ONNX Runtime would run a layer in
            another kernel than its bits claim; or its answers are not those of the network. No file
            is written then.
    """
    path = _checked(out)
    if cpu not in CPUS:
        raise HaqError(f"cpu must be one of {', '.join(CPUS)}, not {cpu!r}")
    finished = restored(run, model)
    network, policy = finished.network, finished.policy
    file = lower(
        template(network, finished.sample), network, _metadata(finished, cpu), cpu,
        floats=[name for name, bits in policy.items() if bits.floats],
    )  # fmt: skip
    check_kernels(file, policy)
    check_answers(file, network, _compared(finished), cpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.SerializeToString())
    return file


def export_tensorrt(
    run: Run | str | os.PathLike[str], out: str | os.PathLike[str], model: nn.Module | None = None
) -> onnx.ModelProto:
    """Write the network of a run as a file for NVIDIA's TensorRT, and return it.

    Codes are int8 around zero, unpacked. Tensors without negative values have half as many steps at
    8 bits of activations, as TensorRT has no unsigned codes: ``tensorrt_note`` names them.

    Args:
        run: As for ``export_onnx``.
        out: As for ``export_onnx``.
        model: As for ``export_onnx``.

    Raises:
        HaqError: As ``restored``; the network cannot be exported, or has weights in groups or
            other formats that this file has no form for; or its answers are not those of the
            network. No file is written then.
    """
    path = _checked(out)
    finished = restored(run, model)
    network, policy = finished.network, finished.policy
    special = [name for name, bits in policy.items() if bits.is_special]
    if special:
        raise HaqError(
            f"{_names(special)}: groups, codebooks and layers that round as they run have no form "
            "in a file for TensorRT; export with --format onnx"
        )
    halved = [
        name.removeprefix("quantizers.") for name, module in network.named_modules()
        if isinstance(module, Rounding) and module.bits != FLOAT and module.levels[1] > INT8[1]
    ]  # fmt: skip
    about = {**_metadata(finished, "any")["haq"], "runtime": "tensorrt"}
    metadata = {"haq": about, HALVED: ", ".join(halved)}
    file = lower(template(network, finished.sample), network, metadata, symmetric=True)
    apart = error(file, network, _compared(finished))
    if not apart <= (ROUGHLY if halved else APART):
        raise ModelError(
            f"the file does not answer as the network: the error of the median image is "
            f"{apart:.1%}; nothing was written; please report it with the model"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.SerializeToString())
    return file


def tensorrt_note(file: onnx.ModelProto) -> str | None:
    """Return which tensors have half as many steps in a file for TensorRT, in one line."""
    halved = next((entry.value for entry in file.metadata_props if entry.key == HALVED), "")
    if not halved:
        return None
    return (
        f"{_names(halved.split(', '))}: without negative values 8 bits are 7 in TensorRT, which "
        "has no unsigned codes; a search with --act-bits 7 scores what is handed over"
    )


def _checked(out: str | os.PathLike[str]) -> Path:
    path = Path(out)
    if path.suffix != ".onnx":
        raise HaqError(f"{path}: the name of an ONNX file ends in .onnx")
    if path.is_dir():
        raise HaqError(f"{path} is a folder; give the name of a file")
    return path


def _metadata(finished: Restored, cpu: Cpu) -> dict[str, Any]:
    layers = {name: list(bits.row()) for name, bits in finished.policy.items()}
    source = origin(finished).model_dump(mode="json")
    classes = finished.summary["images"].get("classes")
    about = {
        "format": FORMAT, "cpu": cpu, "policy": layers, "class_names": classes,
        "metric": metric_of(finished.summary).name,
    }  # fmt: skip
    return {"haq": {**about, **source}}


def _compared(finished: Restored) -> Inputs:
    """Return inputs that the run kept if they are tokens or several, else random ones.

    They are zeros where the network takes no random ones, such as floats for ids.
    """
    images, rows = finished.summary["images"], finished.sample
    if not (isinstance(rows, Tensor) and rows.is_floating_point()):
        return rows
    inputs = random_inputs(images["shape"], COMPARED, images.get("tokens"))
    try:
        with torch.no_grad():
            finished.network(inputs)
    except Exception:  # whatever the network makes of them
        return torch.zeros_like(inputs)
    return inputs


def check_answers(file: onnx.ModelProto, network: nn.Module, images: Inputs, cpu: Cpu) -> None:
    """Compare a few answers of a new file in ONNX Runtime with those of the PyTorch network.

    Args:
        file: The network's.
        network: After ``haq.quantization.convert.convert_to_integers``.
        images: (N, ...).
        cpu: For which it was written.

    Raises:
        ModelError: They differ by more than rounding explains, or the file is said to be right on
            every CPU and its codes say that it is not.
    """
    unsafe = saturating(file) if cpu == "any" else []
    if unsafe:
        raise ModelError(
            f"layer {unsafe[0].layer!r} would not be exact on CPUs without VNNI (codes of "
            f"{unsafe[0].top} and {unsafe[0].largest}); please report it with the model"
        )
    apart = error(file, network, images, exact=cpu == "vnni" and not exact_kernels())
    if not apart <= APART:
        raise ModelError(
            "ONNX Runtime does not answer as the network: the error of the median of "
            f"{len(images)} images is {apart:.1%}, and rounding explains up to {APART:.0%}; "
            "nothing was written; please report it with the model"
        )


def float32_note(file: onnx.ModelProto) -> str | None:
    """Return what is computed in float32 in a file and why, None where nothing is."""
    return next((entry.value for entry in file.metadata_props if entry.key == FLOAT32), None)


def cpu_note(file: onnx.ModelProto) -> str | None:
    """Return what is to be said of a file's x86 CPUs, in one line; None if nothing is."""
    slower, unsafe = exact_but_slower(file), [one.layer for one in saturating(file)]
    if unsafe:
        return (
            f"{_names(unsafe)}: right on CPUs with VNNI only; elsewhere set the session option "
            f"{EXACT_KERNELS} to 1, or export with cpu any"
        )
    if slower:
        return (
            f"{_names(slower)}: 8-bit weights with 8-bit activations are stored as uint8, exact on "
            "every x86 CPU; these layers take about twice as long where there is VNNI, unless "
            "exported with cpu vnni, which is right on those CPUs only"
        )
    return None


def _names(layers: list[str], most: int = 4) -> str:
    more = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", ".join(layers[:most]) + more


FORMATS: Mapping[str, Callable[..., Any]] = {
    "onnx": export_onnx,
    "tensorrt": export_tensorrt,
    "safetensors": export_checkpoint,
}
"""Name of a format to a function of the run and the file to write."""
