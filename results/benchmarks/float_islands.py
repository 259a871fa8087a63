"""What LayerNorm, softmax and means cost in float64: files as they are exported, and in float32.

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
from onnx import TensorProto, numpy_helper

from haq.allocation.policy import FLOAT, Bits
from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import template
from haq.network.graph import trace
from haq.network.inputs import as_inputs
from haq.network.lifting.names import input_names
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
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


def exported(model, inputs):
    """Return the file of a network, quantized without a search."""
    few = tuple(value[:2] for value in inputs)
    given = few[0] if len(few) == 1 else as_inputs(dict(zip(input_names(model), few, strict=False)))
    graph = trace(model, given)
    clips = calibrate(graph, [given], "max")
    policy = {x.name: Bits(7, FLOAT if x.weights_alone else 8) for x in graph.layers}
    network = quantize(graph, policy, clips)
    written = template(network, given)
    convert_to_integers(network)
    return lower(written, network)


def in_float32(file):
    """Return the file with its float64 operators in float32."""
    file = copy.deepcopy(file)
    casts = 0
    for node in file.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.DOUBLE:
                attribute.i, casts = TensorProto.FLOAT, casts + 1
    for tensor in file.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.checker.check_model(file, full_check=True)
    return file, casts


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
    file = exported(model, inputs)
    plain, casts = in_float32(file)
    sessions = {"float64": session_of(file), "float32": session_of(plain)}
    rows = latencies(sessions, inputs, random.Random(SEED))
    rows = {name: row[5:] for name, row in rows.items()}  # the first runs allocate
    ratios = [a / b for a, b in zip(rows["float64"], rows["float32"], strict=True)]
    medians = {name: round(statistics.median(row), 3) for name, row in rows.items()}
    ends = np.quantile(ratios, [0.25, 0.75])
    return {
        "casts_to_float64": casts, "median_ms": medians,
        "ratio": round(statistics.median(ratios), 4),
        "ratio_quartiles": [round(float(end), 4) for end in ends],
    }  # fmt: skip


torch.set_num_threads(1)
record = {"what": __doc__.splitlines()[0], "rounds": ROUNDS, "seed": SEED, "rows": {}}
for name, build in {"DeiT-tiny at 224": deit_tiny, "encoder, 6 x 384, 128 tokens": encoder}.items():
    record["rows"][name] = measured(build)
    print(name, json.dumps(record["rows"][name]), flush=True)
    write_json(REFERENCE / "float_islands.json", {**record, **script_provenance()})
