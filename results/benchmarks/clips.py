"""What Clip nodes of quantized networks cost in ONNX Runtime: those of 4 bits, and of one code.

A signed tensor of 8 bits leaves the code of -128 out, so that it is symmetric: its file has a Clip
to 1..255 that saturation would make needless. Networks with placeholder clips are measured as they
are exported, without those Clips, and without any (whose answers are others); one thread, its own
CPU time, all of a network interleaved.

    python results/benchmarks/clips.py --seconds 40
"""

import argparse
from pathlib import Path

import onnx
from onnx import numpy_helper

from haq.hw_profiles.measure import onnx_runtime
from haq.quantization.fake_quant import uniform
from haq.reports.reference.publish import script_provenance
from haq.runs.folder import write_json
from haq.runs.profiling.subject import lowering, subject

NETWORKS = {"resnet20": {}, "mobilenet_v2": {"width": 0.35, "size": 32}}

OUT = Path(__file__).parents[1] / "reference" / "clips.json"

WHOLE_BYTE = (1, 255)
"""Bounds of the Clip of a symmetric tensor of 8 bits."""


def without(model, leaves_out):
    """Return a file without some of its Clips, and how many these were."""
    file = onnx.load_from_string(model)
    known = {one.name: numpy_helper.to_array(one) for one in file.graph.initializer}
    clips = [node for node in file.graph.node if node.op_type == "Clip"]
    gone = [node for node in clips if leaves_out(tuple(int(known[x]) for x in node.input[1:3]))]
    renamed = {node.output[0]: node.input[0] for node in gone}
    for node in gone:
        file.graph.node.remove(node)
    for node in file.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    return file.SerializeToString(), len(gone)


def variants(asked):
    """Return the files of a network by name, with how many Clips were taken out of each."""
    lowered = lowering(asked)
    files = {}
    for act in (8, 4):
        file = lowered(uniform(asked.graph, 7, act))
        files[f"w7a{act}"] = file, 0
        files[f"w7a{act}, no Clip to 1..255"] = without(file, WHOLE_BYTE.__eq__)
        files[f"w7a{act}, no Clip"] = without(file, lambda bounds: True)
    return files


def main():
    """Measure the networks, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=40, help="of measuring a network, at most")
    args = parser.parse_args()
    setup, rows = onnx_runtime.Setup(), []
    for name, options in NETWORKS.items():
        files = variants(subject(name, **options))
        sessions = {key: onnx_runtime.session(file, setup) for key, (file, _) in files.items()}
        timings = onnx_runtime.measure(sessions, setup, rounds=60, seconds=args.seconds)
        first = timings["w7a8"].us
        for key, timing in timings.items():
            rows.append({
                "network": name, **options, "file": key, "clips_left_out": files[key][1],
                "latency_us": round(timing.us, 2), "low_us": round(timing.low, 2),
                "high_us": round(timing.high, 2), "of_w7a8": round(timing.us / first, 4),
                "samples": timing.samples, "contended": round(timing.contended, 3),
            })  # fmt: skip
            print(rows[-1], flush=True)
        write_json(OUT, {"clock": setup.clock, "rows": rows, "machine": onnx_runtime.machine(),
                         **script_provenance()})  # fmt: skip


if __name__ == "__main__":
    main()
