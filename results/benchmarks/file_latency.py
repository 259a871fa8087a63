"""What exported files take beside those of ONNX Runtime's own ``quantize_static``.

Networks with random weights and placeholder clips; every file of a network is measured in one run,
interleaved, one image at a time. ``quantize_static`` has what its documentation advises on x86:
QDQ, its own pre-processing, a scale a channel, int8 weights, uint8 activations. A ratio is the
median of several such runs, in each of which all sessions are opened anew; low and high are the
extremes.

    python results/benchmarks/file_latency.py [--only NAME ...] [--threads 1 2] [--repeats 5]

Writes results/reference/file-latency.json after every network, and keeps the rows of others.
"""

import argparse
import os
import statistics
from collections import Counter
from pathlib import Path

import onnx

from haq.allocation.policy import FLOAT, Bits
from haq.hw_profiles.measure import onnx_runtime
from haq.quantization.fake_quant import uniform
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import read_json, write_json
from haq.runs.onnx_summary import static
from haq.runs.profiling.subject import lowering, subject

NETWORKS = {
    "resnet20": ("resnet20", {}),
    "mobilenet_v2 (0.35), 32": ("mobilenet_v2", {"width": 0.35, "size": 32}),
    "mobilenet_v2, 224": ("mobilenet_v2", {}),
    "deit_tiny, 224": ("timm:deit_tiny_patch16_224", {}),
}

POLICIES = {"w8a8": (8, 8, 8), "w7a8": (7, 8, 7), "w4a8": (4, 8, 7), "w4a4": (4, 4, 7)}
"""Bits of weights and activations, and of weights in the first and last layer."""

OUT = REFERENCE / "file-latency.json"


def policy_of(graph, weight, act, edge):
    """Return a uniform policy whose edges have 8-bit activations."""
    policy = uniform(graph, weight, act)
    return {
        name: Bits(min(bits.weight, edge), bits.act) if bits.weight != FLOAT else bits
        for name, bits in policy.items()
    }


def files_of(model, options):
    """Return the files of a network by name."""
    asked = subject(model, **options)
    lowered = {cpu: lowering(asked, cpu) for cpu in ("any", "vnni")}
    floats = {layer.name: Bits(FLOAT, FLOAT) for layer in asked.graph.layers}
    fp32 = lowered["any"](floats)
    files = {"fp32": fp32, "quantize_static": static(onnx.load_from_string(fp32), None)}
    for name, (weight, act, edge) in POLICIES.items():
        policy = policy_of(asked.graph, weight, act, edge)
        files[name] = lowered["vnni" if name == "w8a8" else "any"](policy)
    return files


def measured(files, threads, repeats, seconds):
    """Return the latency of each file in every repeat, in microseconds."""
    setup = onnx_runtime.Setup(threads=threads)
    runs = []
    for repeat in range(repeats):
        sessions = {name: onnx_runtime.session(file, setup) for name, file in files.items()}
        timings = onnx_runtime.measure(
            sessions, setup, rounds=60, seed=repeat, seconds=seconds / repeats, enough=0.003
        )
        runs.append({name: timing.us for name, timing in timings.items()})
    return runs


def rows_of(network, files, threads, runs):
    """Return a row for each file: latency, and the ratio to ``quantize_static``."""
    rows = []
    for name, file in files.items():
        ratios = [run[name] / run["quantize_static"] for run in runs]
        setup = onnx_runtime.Setup()
        kinds = Counter(node.op_type for node in onnx_runtime.opened(file, setup).graph.node)
        rows.append({
            "network": network, "threads": threads, "file": name,
            "latency_us": round(statistics.median(run[name] for run in runs), 2),
            "of_quantize_static": round(statistics.median(ratios), 4),
            "low": round(min(ratios), 4), "high": round(max(ratios), 4), "repeats": len(runs),
            "nodes": sum(kinds.values()), "clips": kinds["Clip"],
        })  # fmt: skip
    return rows


def main():
    """Measure the networks, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="of measuring a row of files")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rows = read_json(args.out)["rows"] if args.out.exists() else []
    for network in args.only:
        files = files_of(*NETWORKS[network][:1], NETWORKS[network][1])
        for threads in args.threads:
            runs = measured(files, threads, args.repeats, args.seconds)
            rows = [r for r in rows if (r["network"], r["threads"]) != (network, threads)]
            new = rows_of(network, files, threads, runs)
            rows += new
            for row in new:
                print(row, flush=True)
            options = onnx_runtime.Setup(threads=threads).options | onnx_runtime.machine()
            write_json(args.out, {
                "what": __doc__.splitlines()[0], "rows": rows,
                "options": options | {"threads": "as in the row", "load": os.getloadavg()[0]},
                **script_provenance(),
            })  # fmt: skip


if __name__ == "__main__":
    main()
