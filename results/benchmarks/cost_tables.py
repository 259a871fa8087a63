"""How long the whole cost table of a network takes on each target.

python results/benchmarks/cost_tables.py [--model mobilenet_v2] [--batch N]

Prints JSON: seconds for every layer at the 49 pairs of 2 to 8 bits, one thread, each in a new
process: first without anything in the cache on disk, then with what that left there. Starting
Python and tracing the network are not counted.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from haq.allocation.policy import Bits
from haq.allocation.schemes import SEARCHED
from haq.hw_profiles import TARGETS, load
from haq.models import build, input_shape
from haq.network.graph import inventory
from haq.reports.reference.publish import script_provenance


def seconds(name, layers, batch):
    """Return the wall and CPU seconds of one whole table."""
    target = load(name, batch)
    wall, cpu = time.perf_counter(), time.process_time()
    for layer in layers:
        for weight in SEARCHED:
            for act in SEARCHED:
                target.cost(layer, Bits(weight, act))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall_seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}


def main():
    """Measure every target and print the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--batch", type=int)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    shape = input_shape(asked.model, None)
    layers = tuple(inventory(build(asked.model, None, 1.0, None), torch.zeros(1, *shape)))
    record = {
        "what": __doc__.splitlines()[0],
        "model": asked.model,
        "layers": len(layers),
        "pairs": len(SEARCHED) ** 2,
        "targets": {},
        **script_provenance(),
    }
    for name in TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["XDG_CACHE_HOME"] = folder
            measured = {"batch": load(name, asked.batch).batch}
            for run in ("empty_cache", "filled_cache"):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    measured[run] = process.submit(seconds, name, layers, asked.batch).result()
            record["targets"][name] = measured
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
