"""MiniLM within a share of float32's latency, searched on a profile that was measured here.

python results/benchmarks/minilm_latency.py [--packages DIR] [--budget latency=50%fp32 ...]

Sentences, weights and cosine are those of minilm.py. The profile is of one sentence of 40 tokens,
on one thread; linear layers may have weights in groups of 64, alone or with activations rounded as
they run, or one scale a channel and integer products. Every file that a search gives is measured
beside the float one, interleaved. Writes results/reference/minilm-latency.json after every row; the
profile stays in --folder, where it is found again. About 10 CPU minutes, most of them the profile.
"""

import argparse
import time
from pathlib import Path

import onnx
import torch
from minilm import LENGTH, SEED, captured, cosines, downloaded, floats_file, study

import haq
from haq.allocation.schemes import Formats
from haq.hw_profiles import find
from haq.hw_profiles.measure.onnx_runtime import Setup, machine, measure, session
from haq.network.inputs import as_inputs
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import read_json, write_json
from haq.runs.profiling.profile import run_profile
from haq.runs.profiling.subject import Subject, placeholder_clips

OUT = REFERENCE / "minilm-latency.json"
FORMATS = Formats(("weight-only", "dynamic"), (0, 64))
BUDGETS = ("latency=70%fp32", "latency=50%fp32")
ROUNDS = 40


def profiled(asked, path):
    """Return the profile at a path, measured if it is not there."""
    if not path.exists():
        graph = captured(asked, LENGTH).graph
        tokens = {name: one[:1] for name, one in asked.calibration.items()}
        subject = Subject("MiniLM", graph, placeholder_clips(graph), as_inputs(tokens), FORMATS)
        run_profile(subject, path, Setup(), rounds=60)
    return find(str(path))


def searched(asked, profile, budget):
    """Return what a search gives within a budget: file, cosine, and predicted latency."""
    started = time.process_time()
    run = haq.search(
        asked.model, dict(asked.calibration), target=str(profile), budgets=[budget],
        schemes=list(FORMATS.schemes), groups=FORMATS.groups, agent="ilp", metric="cosine",
        seed=SEED, out=asked.folder / "runs" / f"{budget}-{time.time():.0f}",
    )  # fmt: skip
    file = asked.folder / f"{budget.partition('=')[2].replace('%', '-')}.onnx"
    haq.export_onnx(run, file)
    cosine = cosines(asked, file)
    return file, {
        "budget": budget, "predicted_us": round(run.summary["cost"]["latency"], 1),
        "cpu_s": round(time.process_time() - started, 1), "file_bytes": file.stat().st_size,
        "cosine_mean": round(float(cosine.mean()), 5),
        "cosine_least": round(float(cosine.min()), 5),
        "policy": {name: str(bits) for name, bits in run.policy.items()},
    }  # fmt: skip


def timed(asked, file):
    """Return the latency of a file and of the float one, interleaved."""
    setup = Setup()
    sessions = {
        name: session(onnx.load(path).SerializeToString(), setup)
        for name, path in (("float32", floats_file(asked, LENGTH)), ("searched", file))
    }
    feed = {name: one[:1].numpy() for name, one in asked.calibration.items()}
    times = measure(sessions, setup, ROUNDS, seed=SEED, given=feed)
    us = {f"{name}_us": round(timing.us, 1) for name, timing in times.items()}
    return us | {"of_float": round(times["searched"].us / times["float32"].us, 4)}


def main():
    """Measure the profile, then search within each budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", type=Path, default=Path("results/packages"))
    parser.add_argument("--folder", type=Path, required=True, help="of the profile and of files")
    parser.add_argument("--budget", nargs="+", default=list(BUDGETS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    asked = study(downloaded(args.packages), args.folder)
    profile = profiled(asked, args.folder / "minilm-profile.json")
    record = read_json(OUT) if OUT.exists() else {"rows": []}
    record |= {
        "what": __doc__.splitlines()[0], "length": LENGTH, "seed": SEED, "threads": 1,
        "schemes": FORMATS.schemes, "groups": FORMATS.groups, "machine": machine(),
        "latency_us": {name: one.model_dump() for name, one in profile.model.networks.items()},
        "unseen_policies": profile.model.validation.model_dump(),
        "provenance": script_provenance(),
    }  # fmt: skip
    for budget in args.budget:
        file, row = searched(asked, args.folder / "minilm-profile.json", budget)
        row |= timed(asked, file)
        record["rows"] = [one for one in record["rows"] if one["budget"] != budget] + [row]
        write_json(OUT, record)
        print({key: value for key, value in row.items() if key != "policy"}, flush=True)


if __name__ == "__main__":
    main()
