"""What becomes of many networks: captured, quantized, exported, compared; what it takes.

python results/benchmarks/coverage.py [--only PART] [--fresh]

Writes results/reference/coverage.json, a row for each network of coverage_networks.py, as it goes;
each network in a process of its own. A row that is there already is kept unless --fresh is given.
Weights are random, statistics of BatchNorms those of the 32 inputs that clips come from; agreement
is of 32 others.
"""

import argparse
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from coverage_networks import NETWORKS
from coverage_table import coverage

from haq.reports.reference.publish import script_provenance
from haq.runs.folder import read_json, write_json

OUT = Path("results/reference/coverage.json")


def _one(name: str, results: Connection) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.process_time()
    try:
        model, inputs = NETWORKS[name]()
    except Exception as error:  # such as a package that is missing
        why = f"{type(error).__name__}: {error}"[:400]
        results.send({"failed": {"at": "build", "why": why}})
        return
    results.send({"build_s": round(time.process_time() - started, 2)} | coverage(model, inputs))


def _in_a_process(processes: BaseContext, name: str, limit: float) -> dict[str, Any]:
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_one, args=(name, sender))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    row: dict[str, Any] = {"failed": {"at": "?", "why": f"took more than {limit:.0f} s"}}
    try:
        if receiver.poll(limit):
            row = receiver.recv()
    except EOFError:
        row = {"failed": {"at": "?", "why": "the process died"}}
    process.join(10 if "failed" not in row else 0)
    process.kill()
    process.join()
    return row


def _processes() -> BaseContext:
    """Return how processes are started: with everything imported, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["coverage_table", "timm", "torchvision", "transformers"])
    return context


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Return the counts that the table comes to."""
    captured = [row for row in rows.values() if row.get("captured")]
    compared = [row for row in captured if row.get("agreement")]
    return {
        "networks": len(rows),
        "captured": len(captured),
        "refused": sorted(name for name, row in rows.items() if "refused" in row),
        "failed": sorted(name for name, row in rows.items() if "failed" in row),
        "share_of_weights_98": round(
            sum(row["share_of_weights"] >= 0.98 for row in captured) / max(len(captured), 1), 3
        ),
        "exported": len(compared),
        "least_equal_answers": {
            name: min((row["agreement"][name]["equal_answers"] for row in compared), default=None)
            for name in ("w7a8", "w4a8", "w4a4")
        },
    }  # fmt: skip


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="networks whose names contain this")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are there")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one network")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    record = read_json(asked.out) if asked.out.exists() else {"rows": {}}
    provenance, processes = script_provenance(), _processes()
    for name in reversed(NETWORKS):  # small ones first
        known = record["rows"].get(name)
        if asked.only not in name or (known and not asked.fresh):
            continue
        row = _in_a_process(processes, name, asked.limit)
        record["rows"][name] = row
        rows = {one: record["rows"][one] for one in NETWORKS if one in record["rows"]}
        write_json(asked.out, {
            "what": "What becomes of networks: capture, shares, kernels, agreement, cost.",
            "summary": summary(rows), "rows": rows, **provenance,
        })  # fmt: skip
        short = row.get("refused") or row.get("failed") or {
            "w": row["share_of_weights"],
            **{name: one["equal_answers"] for name, one in row["agreement"].items()},
            "kernels": row.get("kernels") or row.get("kernels_refused"),
        }  # fmt: skip
        print(name, json.dumps(short), flush=True)


if __name__ == "__main__":
    main()
