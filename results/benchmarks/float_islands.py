"""What LayerNorm and softmax cost that give the network's answers to the last bit.

Files as they are exported stand beside the same ones with ONNX Runtime's LayerNormalization and
Softmax in float32, and beside files of plain float32 operators between the integer layers, where
the products of attention are those of floats too.

python results/benchmarks/float_islands.py

Writes results/reference/float_islands.json. Weights are random, all layers have 7-bit weights and
8-bit activations; one thread. Both files take turns, in a new order each round.
"""

import copy
import json
import random
import statistics
import time

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from haq.allocation.policy import FLOAT, Bits
from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import template
from haq.formats.onnx.translation.draft import read_nodes
from haq.network.graph import trace
from haq.network.inputs import as_inputs
from haq.network.lifting.names import input_names
from haq.network.outputs import taken_apart
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.exact import SHARE
from haq.quantization.fake_quant import quantize
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json

ROUNDS, SEED = 100, 0


def deit_tiny():
    """Return timm's DeiT-tiny at 224 and four images."""
    import timm

    return timm.create_model("deit_tiny_patch16_224").eval(), (torch.randn(4, 3, 224, 224),)


def encoder():
    """Return a BERT-like encoder of MiniLM's sizes and four sequences of 128 tokens."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=128, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    return model, (torch.randint(1, 1000, (4, 128)),)


NETWORKS = {"DeiT-tiny at 224": deit_tiny, "encoder, 6 x 384, 128 tokens": encoder}


def exported(model, inputs, exactly=True):
    """Return a network, quantized without a search, and its file."""
    few = tuple(value[:2] for value in inputs)
    given = few[0] if len(few) == 1 else as_inputs(dict(zip(input_names(model), few, strict=False)))
    graph = trace(model, given)
    clips = calibrate(graph, [given], "max")
    policy = {x.name: Bits(7, FLOAT if x.weights_alone else 8) for x in graph.layers}
    network = quantize(graph, policy, clips)
    written = template(network, given, exactly)
    convert_to_integers(network)
    return network, lower(written, network)


def in_float32(file):
    """Return the file with LayerNormalization and Softmax of float32, and how many there are."""
    file = copy.deepcopy(file)
    makers = {tensor: node for node in file.graph.node for tensor in node.output}
    readers = {}
    for node in file.graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    values = {one.name: numpy_helper.to_array(one) for one in file.graph.initializer}
    plain = {}
    for node in file.graph.node:
        if node.op_type == "Exp":
            made, codes = _softmax(node, makers, readers)
            plain[codes] = made
        elif node.op_type == "ReduceSumSquare":
            made, normed = _norm(node, makers, values)
            plain[normed] = made
    nodes = []
    for node in file.graph.node:
        nodes += plain.get(node.output[0], [node])
    del file.graph.node[:]
    kept = read_nodes(nodes, {value.name for value in file.graph.output})
    file.graph.node.extend(kept)
    step = np.array(SHARE, np.float32)
    file.graph.initializer.append(numpy_helper.from_array(step, "step_of_shares"))
    onnx.checker.check_model(file, full_check=True)
    return file, len(plain)


def _softmax(exp, makers, readers):
    """Return a softmax whose shares are rounded to codes, and the tensor of the codes."""
    node = exp
    while node.op_type != "ReduceMax":  # behind it stand the scores
        node = next(makers[t] for t in reversed(node.input) if t in makers and (
            makers[t].op_type in ("Sub", "Add", "ReduceMax")))  # fmt: skip
    scores, rounded = node.input[0], exp
    for kind in ("Mul", "Round", "Mul", "Round"):
        rounded = next(n for t in rounded.output for n in readers[t] if n.op_type == kind)
    codes = rounded.output[0]
    return [
        helper.make_node("Softmax", [scores], [f"{codes}.shares"], axis=-1),
        helper.make_node("Div", [f"{codes}.shares", "step_of_shares"], [f"{codes}.places"]),
        helper.make_node("Round", [f"{codes}.places"], [codes]),
    ], codes


def _norm(squares, makers, values):
    """Return a LayerNormalization, and the tensor that it gives."""
    normed = squares.output[0].removesuffix(".ReduceSumSquare")
    read, parts, node = squares.input[0], [], makers[normed]
    while node.input[1] in values:
        parts.insert(0, node.input[1])
        node = makers[node.input[0]]
    read = node.input[0] if node.op_type == "Sub" else makers[node.input[0]].input[0]
    width = len(values[parts[0]])
    eps = float(values[f"{normed}.epsilon"]) / width
    made = helper.make_node("LayerNormalization", [read, *parts], [normed], axis=-1, epsilon=eps)
    return [made], normed


def session_of(file):
    """Return a session of one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        file.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def latencies(sessions, inputs, chance):
    """Return milliseconds of CPU time of each file, for one input, round after round."""
    rows = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        order = list(sessions)
        chance.shuffle(order)
        for name in order:
            session = sessions[name]
            feed = {
                one.name: value[:1].numpy()
                for one, value in zip(session.get_inputs(), inputs, strict=True)
            }
            started = time.process_time()
            session.run(None, feed)
            rows[name].append((time.process_time() - started) * 1e3)
    return rows


def measured(build):
    """Return the row of a network."""
    torch.manual_seed(SEED)
    model, inputs = build()
    network, file = exported(model, inputs)
    floats, islands = in_float32(file)
    plain = exported(model, inputs, exactly=False)[1]
    sessions = {
        "exact": session_of(file), "float32": session_of(floats), "plain": session_of(plain)
    }  # fmt: skip
    rows = latencies(sessions, inputs, random.Random(SEED))
    rows = {name: row[5:] for name, row in rows.items()}  # the first runs allocate
    ratios = {
        other: [a / b for a, b in zip(rows["exact"], rows[other], strict=True)]
        for other in ("float32", "plain")
    }
    return {
        "islands": islands,
        "median_ms": {name: round(statistics.median(row), 3) for name, row in rows.items()},
        "ratio": {name: round(statistics.median(row), 4) for name, row in ratios.items()},
        "ratio_quartiles": {
            name: [round(float(end), 4) for end in np.quantile(row, [0.25, 0.75])]
            for name, row in ratios.items()
        },
        "largest_difference": {
            name: apart(network, session, inputs) for name, session in sessions.items()
        },
    }


def apart(network, session, inputs):
    """Return how far a file's answers are from the network's, as a share of their range."""
    names = [one.name for one in session.get_inputs()]
    given = session.run(None, {n: v.numpy() for n, v in zip(names, inputs, strict=True)})[0]
    with torch.no_grad():
        wanted = taken_apart(network(*inputs))[1][0].numpy()
    return float(np.abs(given - wanted).max() / (wanted.max() - wanted.min()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    record = {"what": __doc__.splitlines()[0], "rounds": ROUNDS, "seed": SEED, "rows": {}}
    for name, build in NETWORKS.items():
        record["rows"][name] = measured(build)
        print(name, json.dumps(record["rows"][name]), flush=True)
        write_json(REFERENCE / "float_islands.json", {**record, **script_provenance()})
