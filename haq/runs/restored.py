"""The network of a finished run, as the run left it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from haq.allocation.policy import Policy, read_policy
from haq.compression.chain import Record, replayed, sparse_layers
from haq.errors import RunError
from haq.formats import checkpoint
from haq.metrics import metric_of
from haq.models import MODELS
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.network.inputs import Inputs
from haq.quantization.calibration import load_clips
from haq.quantization.fake_quant import quantize
from haq.quantization.integer_forward import compute_exactly
from haq.runs import folder as folders
from haq.runs.api import Run
from haq.runs.job import Job
from haq.runs.named import check_files_of_model, rebuilt
from haq.runs.origin import origin_of
from haq.runs.places import read_chain, replaced
from haq.runs.sample import sample_of
from haq.training.numerics import in_channels_last


class Restored(NamedTuple):
    """A finished run with its network, and the inputs that it kept, or made-up ones.

    The transforms are those of its float weights, and what the search itself did after them.
    """

    job: Job
    summary: Mapping[str, Any]
    policy: Policy
    network: fx.GraphModule
    sample: Inputs
    transforms: tuple[Record, ...] = ()


def restored(run: Run | str | os.PathLike[str], model: nn.Module | None = None) -> Restored:
    """Return a finished run and its quantized, fine-tuned network, in evaluation mode.

    Args:
        run: Name or folder, or what ``haq.search`` returned.
        model: Needed for the folder of a run that searched a module of the caller's own: such a
            module; its weights do not matter, and it is left as it is.

    Raises:
        HaqError: There is no such run, it is not finished or damaged, or it needs ``model``.
    """
    folder = run.folder if isinstance(run, Run) else folders.find_folder(os.fspath(run))
    job = folders.read_job(folder)
    if not (folder / "summary.json").exists():
        raise RunError(f"run {folder} has no finished episode yet: haq search --resume {folder}")
    summary = folders.read_json(folder / "summary.json")
    if summary["state"] != "finished":
        raise RunError(
            f"run {folder} is not finished ({summary['state']}): haq search --resume {folder}"
        )
    policy, chain = read_policy(folder / "policy.json"), read_chain(folder)
    if isinstance(run, Run) and isinstance(run.model, fx.GraphModule):
        sample = sample_of(folder, summary["images"])
        return Restored(job, summary, policy, run.model, sample, (*job.transforms, *chain))
    module = _named(folder, job, summary["images"]) if model is None else model
    sample = sample_of(folder, summary["images"])
    clips = load_clips(folder / "clips.safetensors")
    place = replaced(trace(module, sample), clips, sample, chain)
    network = quantize(place.graph, policy, place.clips)
    load_weights(network, folder / "weights.safetensors")
    compute_exactly(network)
    return Restored(job, summary, policy, network, sample, (*job.transforms, *chain))


def _named(folder: Path, job: Job, images: Mapping[str, Any]) -> nn.Module:
    if job.model not in MODELS and ":" not in job.model:
        raise RunError(
            f"run {folder} searched a module of its caller's own ({job.model}): give "
            "model= such a module, or what haq.search returned in place of the run's name"
        )
    check_files_of_model(folder, job, weights=False)
    model = replayed(rebuilt(job, images), sample_of(folder, images), job.transforms)
    # The layout that the search trained it in: it decides in which order sums are taken.
    return in_channels_last(model)


def _transforms(finished: Restored) -> tuple[Record, ...]:
    """Return the transforms of a run, with the zeros of a module of the caller's own."""
    chain, rows = finished.transforms, finished.summary["layers"]
    known = sparse_layers(chain)
    shares = {
        row["name"]: row["zeros"] / _weights(finished.network, row["name"])
        for row in rows if row.get("zeros") and row["name"] not in known
    }  # fmt: skip
    return (*chain, {"transform": "sparsity", "layers": shares}) if shares else chain


def _weights(network: fx.GraphModule, name: str) -> int:
    weight = network.get_submodule(name).weight  # of a codebook no parameter
    assert isinstance(weight, Tensor)
    return weight.numel()


def origin(finished: Restored) -> checkpoint.Origin:
    """Return what a file that is taken away says of the run it comes from."""
    images, versions = finished.summary["images"], finished.summary["provenance"]["versions"]
    metric = metric_of(finished.summary)
    accuracy = {
        key: value for key, value in finished.summary.items() if key.endswith(f"_{metric.word}")
    }
    return origin_of(finished.job, images, _transforms(finished), accuracy, versions)
