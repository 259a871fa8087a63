"""How well a measured profile predicts the latency of policies it has not seen.

python results/benchmarks/profile_accuracy.py [--model resnet20] [--threads N] [--seed N]
python results/benchmarks/profile_accuracy.py --model timm:deit_tiny_patch16_224

Writes results/reference/profile-MODEL-THREADS.json: errors, rank correlation and seconds, of the
profile that ``haq profile`` makes with random weights.
"""

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from haq.hw_profiles.measure import onnx_runtime
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.profiling.profile import ROUNDS, run_profile
from haq.runs.profiling.subject import subject


def main():
    """Profile a network and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    setup = onnx_runtime.Setup(threads=asked.threads)
    wall, cpu = time.perf_counter(), time.process_time()
    stages = {}

    def on_progress(where):
        stages.setdefault(where.stage, [time.perf_counter()] * 2)[1] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "mine.json"
        profile = run_profile(
            subject(asked.model, seed=asked.seed), out, setup, asked.rounds, asked.seed, on_progress
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    model = profile.model
    provenance = script_provenance()
    provenance["versions"] |= {name: version(name) for name in ("onnx", "onnxruntime")}
    provenance["machine"] |= onnx_runtime.machine()
    record = {
        "what": __doc__.splitlines()[0],
        "model": asked.model,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "stage_seconds": {name: round(last - first, 1) for name, (first, last) in stages.items()},
        "options": dict(profile.runtime.options),
        "batch": profile.batch.reference,
        "latency_us": {name: one.model_dump() for name, one in model.networks.items()},
        "fitted_on": model.fitted_on,
        "ns_per_value": {
            "to_quantized": round(1e3 * model.to_quantized, 4),
            "to_float": round(1e3 * model.to_float, 4),
        },
        "unseen_policies": model.validation.model_dump(),
        **provenance,
    }
    name = asked.model.rpartition(":")[2]
    results.write_json(REFERENCE / f"profile-{name}-{asked.threads}.json", record)
    print(record)


if __name__ == "__main__":
    main()
