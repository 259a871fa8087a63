"""Eleven ONNX files of four packages: imported, searched, exported into themselves, compared.

python results/benchmarks/onnx_files.py --packages DIR [--only NAME]

DIR holds the wheels of rapidocr-onnxruntime, silero-vad, magika and nudenet, as ``pip download
--no-deps`` brings them; the files in them are unpacked into a temporary folder and kept nowhere.
Writes results/reference/onnx_files.json after every file. Weights have 4 to 8 bits, 6 on average,
by sensitivities without labels, activations 8. Inputs are made here or come with scikit-learn:
photos, drawn text, files of the standard library, tones in noise; those that are compared were not
calibrated on.
"""

import argparse
import io
import json
import os
import random
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

import haq
from haq.errors import HaqError
from haq.formats.onnx.layout import layout_of, text_of
from haq.formats.onnx.runtime import RowsAtATime, answered, opened
from haq.models.onnx.load import load_onnx
from haq.network.graph import trace
from haq.network.inputs import as_inputs, call
from haq.network.outputs import taken_apart
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.handover import check_kernels

OCR, SILERO = "rapidocr_onnxruntime/models/", "silero_vad/data/"
FILES = {
    "cls": (OCR + "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}, {}, "text"),
    "det": (OCR + "ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 160, 160)}, {}, "text"),
    "rec": (OCR + "ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 160)}, {}, "text"),
    "nudenet": ("nudenet/320n.onnx", {"images": (1, 3, 160, 160)}, {}, "photos"),
    "magika": ("magika/models/standard_v3_3/model.onnx", {}, {}, "bytes"),
    "silero": (SILERO + "silero_vad.onnx", {"input": (1, 576)}, {"sr": 16000}, "sound"),
    "silero op15": (
        SILERO + "silero_vad_16k_op15.onnx", {"input": (1, 576)}, {"sr": 16000}, "sound",
    ),
    "silero half": (SILERO + "silero_vad_half.onnx", {"input": (1, 576)}, {}, "sound"),
    "silero ifless": (
        SILERO + "silero_vad_op18_ifless.onnx", {"input": (1, 576)}, {"sr": 16000}, "sound",
    ),
    "silero openvino": (SILERO + "silero_vad_openvino_16k.onnx", {}, {}, "sound"),
    "silero sequence": (SILERO + "silero_vad_16k_sequence.onnx", {}, {"h": 0, "c": 0}, "sound"),
}  # fmt: skip

parser = argparse.ArgumentParser()
parser.add_argument("--packages", type=Path, required=True)
parser.add_argument("--only", nargs="+", choices=FILES, default=list(FILES))
parser.add_argument("--rows", type=int, default=64)
parser.add_argument("--bits", type=float, default=6)
parser.add_argument("--seed", type=int, default=0)
asked = parser.parse_args()
torch.set_num_threads(1)
chance = random.Random(asked.seed)
numbers = np.random.default_rng(asked.seed)


def photos(count, shape):
    """Return parts of the two photos that come with scikit-learn, (N, 3, H, W) in [0, 1]."""
    sources = load_sample_images().images
    parts = []
    for _ in range(count):
        photo = sources[chance.randrange(len(sources))]
        side = chance.randrange(min(photo.shape[:2]) // 2, min(photo.shape[:2]))
        top, left = (chance.randrange(size - side + 1) for size in photo.shape[:2])
        part = Image.fromarray(photo[top : top + side, left : left + side])
        parts.append(np.asarray(part.resize((shape[2], shape[1]))))
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float() / 255


def text(count, shape):
    """Return photos with a line of text on them, in [-1, 1]."""
    backgrounds = photos(count, shape).permute(0, 2, 3, 1).numpy() * 255
    images = []
    for background in backgrounds:
        image = Image.fromarray((background * 0.4 + 150).clip(0, 255).astype(np.uint8))
        line = "".join(chance.choices("ABCDEFGHKLMNPRSTabdefghknrst0123456789", k=10))
        font = ImageFont.load_default(size=chance.randrange(16, 34))
        ink = tuple(chance.randrange(90) for _ in range(3))
        ImageDraw.Draw(image).text((4, chance.randrange(shape[1] // 2)), line, ink, font=font)
        images.append(np.asarray(image.rotate(180) if chance.random() < 0.3 else image))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def file_bytes(count, shape):
    """Return the first and the last bytes of files of the standard library, 256 for what lacks."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.*"))
    rows = np.full((count, *shape), 256)
    for row, path in zip(
        rows, chance.sample([p for p in paths if p.is_file()], count), strict=True
    ):
        content = np.frombuffer(path.read_bytes(), np.uint8)
        half = shape[0] // 2
        first, last = content[:half], content[-half:]
        row[: len(first)], row[shape[0] - len(last) :] = first, last
    return torch.from_numpy(rows)


def sound(network, count):
    """Return pieces of tones in noise, and the states of the network while it hears them."""
    size = network.origin.inputs[0].shape[1]
    clock = np.arange((count + 1) * size) / 16000
    tone = sum(
        np.sin(2 * np.pi * f * clock * (1 + 0.1 * np.sin(3 * clock))) for f in (130, 260, 520)
    )
    loud = 0.1 * (np.sin(5 * clock) > 0) * tone + 0.02 * numbers.normal(size=clock.shape)
    pieces = torch.from_numpy(loud[: count * size].reshape(count, size).astype(np.float32))
    if len(network.origin.inputs) == 1:
        return pieces
    states = [torch.zeros(2, 128)]
    with torch.no_grad():
        for piece in pieces[:-1]:
            states.append(network(piece[None], states[-1][None])["stateN"][0])
    return {network.origin.inputs[0].name: pieces, "state": torch.stack(states)}


def inputs_for(kind, network, count):
    """Return so many inputs of a file."""
    shape = network.origin.inputs[0].shape[1:]
    if kind == "sound":
        return sound(network, count)
    return {"photos": photos, "text": text, "bytes": file_bytes}[kind](count, shape)


def spent(function, *args, **options):
    """Return what a function returns, and its CPU seconds, those of its processes included."""
    before = sum(os.times()[:4])
    result = function(*args, **options)
    return result, round(sum(os.times()[:4]) - before, 1)


def cosine(left, right):
    """Return the cosine of two answers to each row, after taking off their mean over the rows."""
    left, right = (each.reshape(len(each), -1).astype(np.float64) for each in (left, right))
    middle = right.mean(0)
    left, right = left - middle, right - middle
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(1) / np.maximum(lengths, 1e-30)


def original_answers(path, network, inputs):
    """Return what the file itself answers in ONNX Runtime, as it is run by everybody."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    layout = layout_of(text_of(network.origin))
    session = RowsAtATime(session, layout) if layout.inputs[0].rows else session
    first = session.run(None, layout.feed(layout.rows_of(inputs)))[0]
    return np.moveaxis(first, layout.output_axis, 0)


def measured(name, folder):
    """Return the row of a file."""
    path, shapes, values, kind = FILES[name]
    network, importing = spent(load_onnx, folder / path, shapes, values)
    count = asked.rows
    every = as_inputs(inputs_for(kind, network, 2 * count))
    some, others = every[torch.arange(count)], every[torch.arange(count, 2 * count)]
    with torch.no_grad():
        own = taken_apart(call(network, others))[1][0].numpy()
    floats = original_answers(folder / path, network, others)
    graph, capturing = spent(trace, network, every[torch.arange(2)])
    weights = sum(layer.weights for layer in graph.layers)
    row = {
        "file": Path(path).name, "inputs": {i.name: list(i.shape) for i in network.origin.inputs},
        "fixed": {key: np.asarray(value).tolist() for key, value in values.items()},
        "operators": len(network.origin.model().graph.node), "layers": len(graph.layers),
        "share_of_weights_in_layers": weights / (weights + sum(graph.float_parameters.values())),
        "import_relative_difference": float(np.abs(own - floats).max() / np.abs(floats).max()),
        "cpu_seconds": {"import": importing, "capture": capturing},
    }  # fmt: skip
    data = some if torch.is_tensor(some) else dict(zip(some.names, some.tensors, strict=True))
    run, searching = spent(
        haq.search, network, data, agent="ilp", budgets=[f"avg_weight_bits={asked.bits}"],
        weight_bits=(4, 8), clipping="mse", rounding_steps=0, out=folder / "run" / name,
        seed=asked.seed, pins={},
    )  # fmt: skip
    row["cpu_seconds"]["search"] = searching
    row["policy"] = {layer: list(bits) for layer, bits in run.policy.items()}
    row["avg_weight_bits"] = run.summary["cost"]["avg_weight_bits"]
    target = folder / "out" / f"{name}.onnx"
    file, row["cpu_seconds"]["export"] = spent(haq.export_onnx, run, target)
    mine = answered(opened(file.SerializeToString()), others)
    with torch.no_grad():
        network_answers = taken_apart(call(run.model, others))[1][0].numpy()
    nodes = {node.name for node in network.origin.model().graph.node if node.op_type != "Constant"}
    row |= {
        "bytes": {"before": (folder / path).stat().st_size, "after": target.stat().st_size},
        "names_of_nodes": len(nodes), "names_kept": len(nodes & {n.name for n in file.graph.node}),
        "same_inputs_and_outputs": same_ends(network.origin.model(), file),
        "largest_difference_to_float_file": float(np.abs(mine - floats).max()),
        "cosine_file_to_float_file": ends(cosine(mine, floats)),
        "cosine_file_to_pytorch": ends(cosine(mine, network_answers)),
        "kernels": dict(check_kernels(file, run.policy)),
    }  # fmt: skip
    if mine[0].size == 1:  # the cosine of single numbers says nothing
        del row["cosine_file_to_float_file"], row["cosine_file_to_pytorch"]
        row["range_of_float_file"] = float(np.ptp(floats))
        row["largest_difference_to_pytorch"] = float(np.abs(mine - network_answers).max())
    if mine.ndim == 2 and mine.shape[1] > 1:
        row["same_class_as_float_file"] = float((mine.argmax(1) == floats.argmax(1)).mean())
    return row


def ends(values):
    """Return mean and least."""
    return {"mean": float(values.mean()), "least": float(values.min())}


def same_ends(before, after):
    """Return whether names, types and free axes of inputs and outputs are those of the original."""
    return [v.SerializeToString() for v in (*before.graph.input, *before.graph.output)] == [
        v.SerializeToString() for v in (*after.graph.input, *after.graph.output)
    ]


def packages():
    """Return name and version of the wheels."""
    return {
        path.name.split("-")[0]: path.name.split("-")[1]
        for path in sorted(asked.packages.glob("*.whl"))
    }


record = {
    "what": __doc__.splitlines()[0], "packages": packages(), "rows": asked.rows,
    "bits": asked.bits, "seed": asked.seed, "files": {}, "refused": {}, **script_provenance(),
}  # fmt: skip
target = REFERENCE / "onnx_files.json"
if target.exists():  # files that are not asked for now
    before = json.loads(target.read_text())
    record["files"], record["refused"] = before["files"], before["refused"]
with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    for wheel in asked.packages.glob("*.whl"):
        with zipfile.ZipFile(io.BytesIO(wheel.read_bytes())) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if n.endswith(".onnx")])
    (folder / "out").mkdir()
    for name in asked.only:
        started = time.time()
        record["files"].pop(name, None), record["refused"].pop(name, None)
        try:
            record["files"][name] = measured(name, folder)
        except HaqError as error:
            record["refused"][name] = str(error).replace(str(folder), "DIR")
        print(
            name, round(time.time() - started), record["files"].get(name) or record["refused"][name]
        )
        results.write_json(target, record)
