"""What Clip nodes of quantized networks cost in ONNX Runtime: those of 4 bits, and of one code.

A signed tensor of 8 bits has the code -128, where bytes saturate by themselves. Without it, so that
its grid is symmetric, its file has a Clip to 1..255. Networks with placeholder clips are measured
as they are exported, with those Clips, and without any (whose answers are others); one thread, its
own CPU time, all of a network interleaved.

    python results/benchmarks/clips.py --seconds 40
"""

import argparse
from dataclasses import replace
from pathlib import Path

import onnx

from haq.hw_profiles.measure import onnx_runtime
from haq.quantization.fake_quant import uniform
from haq.reports.reference.publish import script_provenance
from haq.runs.folder import write_json
from haq.runs.profiling.subject import lowering, subject

NETWORKS = {"resnet20": {}, "mobilenet_v2": {"width": 0.35, "size": 32}}

OUT = Path(__file__).parents[1] / "reference" / "clips.json"


def clips_of(model):
    """Return how many Clips a file has."""
    return sum(node.op_type == "Clip" for node in onnx.load_from_string(model).graph.node)


def without_clips(model):
    """Return a file without its Clips."""
    file = onnx.load_from_string(model)
    clips = [node for node in file.graph.node if node.op_type == "Clip"]
    renamed = {node.output[0]: node.input[0] for node in clips}
    for node in clips:
        file.graph.node.remove(node)
    for node in file.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
    return file.SerializeToString()


def variants(asked):
    """Return the files of a network by name."""
    symmetric = replace(asked, clips=replace(asked.clips, skews={}))
    files = {}
    for act in (8, 4):
        policy = uniform(asked.graph, 7, act)
        files[f"w7a{act}"] = lowering(asked)(policy)
        files[f"w7a{act}, bytes from -127"] = lowering(symmetric)(policy)
    return files | {"w7a4, no Clip": without_clips(files["w7a4"])}


def main():
    """Measure the networks, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=40, help="of measuring a network, at most")
    args = parser.parse_args()
    setup, rows = onnx_runtime.Setup(), []
    for name, options in NETWORKS.items():
        files = variants(subject(name, **options))
        sessions = {key: onnx_runtime.session(file, setup) for key, file in files.items()}
        timings = onnx_runtime.measure(sessions, setup, rounds=60, seconds=args.seconds)
        first = timings["w7a8"].us
        for key, timing in timings.items():
            rows.append({
                "network": name, **options, "file": key, "clips": clips_of(files[key]),
                "latency_us": round(timing.us, 2), "low_us": round(timing.low, 2),
                "high_us": round(timing.high, 2), "of_w7a8": round(timing.us / first, 4),
                "samples": timing.samples, "contended": round(timing.contended, 3),
            })  # fmt: skip
            print(rows[-1], flush=True)
        write_json(OUT, {"clock": setup.clock, "rows": rows, "machine": onnx_runtime.machine(),
                         **script_provenance()})  # fmt: skip


if __name__ == "__main__":
    main()
