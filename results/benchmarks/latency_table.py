"""The published table of latencies: every layer of known networks at every width, on this CPU.

    python results/benchmarks/latency_table.py [--only NETWORK ...] [--fresh]

Writes results/latency/CPU.parquet after each network, and goes on where it stopped; the README
there has the protocol and the columns. About two minutes on a quiet machine.
"""

import argparse
import platform
import re
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import onnx
import pyarrow as pa
import pyarrow.parquet as parquet

from haq.allocation.policy import FLOAT, Bits
from haq.hw_profiles.measure import onnx_runtime
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measured import CLIPPED, FLOATS, INTEGERS, STANDARD, kernel
from haq.hw_profiles.rows import shape_of
from haq.runs.profiling.layers import layer_latencies
from haq.runs.profiling.networks import Measurements, checked_variant, quantizable
from haq.runs.profiling.subject import lowering, subject
from haq.runs.progress import silent

FOLDER = Path(__file__).parents[1] / "latency"

NETWORKS = {
    "resnet20": "resnet20",
    "resnet50": "resnet50",
    "mobilenet_v1": "mobilenet_v1",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3_large": "torchvision:mobilenet_v3_large",
    "efficientnet_lite0": "timm:efficientnet_lite0",
}
"""Name in the table to the model."""

WEIGHTS, ACTS = range(2, 9), (8, 4)

KERNELS = {FLOATS: ("float32", "fp32"), INTEGERS: ("int8", "w7a8"), CLIPPED: ("int8+clip", "w7a4")}
"""A kernel to its name in the table, and to the network it is measured in."""

REPEATS, ROUNDS = 5, 20

SCHEMA = pa.schema([
    ("network", pa.string()), ("layer", pa.string()), ("kind", pa.string()),
    ("c_in", pa.int32()), ("c_out", pa.int32()), ("kernel", pa.string()),
    ("stride", pa.string()), ("padding", pa.string()), ("groups", pa.int32()),
    ("in_size", pa.string()), ("out_size", pa.string()), ("calls", pa.int32()),
    ("macs", pa.int64()), ("weights", pa.int64()),
    ("weight_bits", pa.int32()), ("act_bits", pa.int32()),
    ("latency_us", pa.float64()), ("lowest_us", pa.float64()), ("highest_us", pa.float64()),
    ("kernel_used", pa.string()), ("measured_as", pa.string()), ("exact_on", pa.string()),
    ("network_us", pa.float64()), ("repeats", pa.int32()), ("batch", pa.int32()),
    ("threads", pa.int32()), ("cpu", pa.string()), ("instructions", pa.string()),
    ("runtime", pa.string()), ("measured_on", pa.string()),
])  # fmt: skip


def policies_of(layers, able):
    """Return the three networks that are measured, by name."""
    integers = {"w7a8": STANDARD, "w7a4": Bits(STANDARD.weight, 4)}
    return {"fp32": {layer.name: FLOATS for layer in layers}} | {
        name: {layer.name: bits if layer.name in able else FLOATS for layer in layers}
        for name, bits in integers.items()
    }


def measured(asked, setup):
    """Return layer to kernel to latency, and the networks' own, of every repeat."""
    lowered = lowering(asked)
    able = quantizable(lowered, asked.graph.layers, setup)
    policies = policies_of(asked.graph.layers, able)
    variants = {name: checked_variant(lowered, one, setup) for name, one in policies.items()}
    repeats = []
    for repeat in range(REPEATS):
        sessions = {name: onnx_runtime.session(one.model, setup) for name, one in variants.items()}
        timings = onnx_runtime.measure(sessions, setup, ROUNDS, seed=repeat)
        networks = Measurements(variants, policies, timings)
        layers = layer_latencies(asked.graph, setup, networks, silent)
        repeats.append((layers, {name: timing.us for name, timing in timings.items()}))
    return repeats


def bits_of_rows():
    """Yield the pairs of bits of a layer's rows."""
    yield FLOATS
    yield from (Bits(weight, act) for act in ACTS for weight in WEIGHTS)


def exact_on(layer, bits, ran):
    """Return on which x86 CPUs the kernel's sums are exact."""
    sums = bits.weight + bits.act <= 15
    return "all" if ran == FLOATS or layer.kind == "depthwise" or sums else "vnni"


def rows_of(name, asked, repeats, setup):
    """Return the rows of a network."""
    machine = onnx_runtime.machine()
    common = {
        "network": name, "repeats": len(repeats), "batch": setup.batch, "threads": setup.threads,
        "cpu": machine["cpu"], "instructions": machine["instructions"],
        "runtime": f"onnxruntime {version('onnxruntime')}",
        "measured_on": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    rows = []
    for layer in asked.graph.layers:
        shape = {
            key: "x".join(map(str, value)) if isinstance(value, tuple) else value
            for key, value in shape_of(layer).model_dump().items()
        }
        about = {"layer": layer.name, **shape, "calls": layer.calls, "macs": layer.macs,
                 "weights": layer.weights}  # fmt: skip
        for bits in bits_of_rows():
            ran = kernel(bits)
            ran = ran if ran in repeats[0][0][layer.name] else FLOATS
            if bits.act < 8 and ran == FLOATS and INTEGERS in repeats[0][0][layer.name]:
                ran = INTEGERS  # its tensor is clipped for the layer that reads it first
            used, network = KERNELS[ran]
            values = [layers[layer.name][ran] for layers, _ in repeats]
            rows.append(common | about | {
                "weight_bits": bits.weight, "act_bits": bits.act,
                "latency_us": statistics.median(values), "lowest_us": min(values),
                "highest_us": max(values), "kernel_used": used, "measured_as": network,
                "exact_on": exact_on(layer, bits, ran),
                "network_us": statistics.median(whole[network] for _, whole in repeats),
            })  # fmt: skip
    return rows


def file_of(cpu):
    """Return the file of a CPU."""
    return FOLDER / f"{re.sub('[^a-z0-9]+', '-', cpu.lower()).strip('-')}.parquet"


def main():
    """Measure the networks that the table lacks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--out", type=Path, default=file_of(onnx_runtime.machine()["cpu"]))
    args = parser.parse_args()
    rows = parquet.read_table(args.out).to_pylist() if args.out.exists() else []
    setup = Setup()
    for name in args.only:
        known = [row for row in rows if row["network"] == name]
        if known and not args.fresh:
            continue
        asked = subject(NETWORKS[name])
        new = rows_of(name, asked, measured(asked, setup), setup)
        rows = [row for row in rows if row["network"] != name] + new
        table = pa.Table.from_pylist(rows, SCHEMA)
        protocol = {
            "license": "CC0-1.0", "clock": setup.clock, "python": platform.python_version(),
            "onnx": onnx.__version__, "rounds": str(ROUNDS), "warm_ups": str(setup.warm_ups),
            "haq": version("haq"), "system": platform.system(),
        }  # fmt: skip
        args.out.parent.mkdir(exist_ok=True)
        parquet.write_table(table.replace_schema_metadata(protocol), args.out, compression="zstd")
        floats = [row for row in new if row["weight_bits"] == FLOAT]
        print(name, len(floats), "layers", {r["measured_as"]: r["network_us"] for r in new})


if __name__ == "__main__":
    main()
