"""Models and data that a job names: how its data are read, and its model built again later."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from haq.datasets import Reading
from haq.errors import RunError
from haq.models import build, input_shape
from haq.models.sources import Named, about, fingerprint, named
from haq.runs.folder import read_json, write_json
from haq.runs.job import Job

LENGTH = 128
"""Tokens of one input of text, unless the job or the model says otherwise."""

_CAUSAL = ("LMHeadModel", "ForCausalLM")


def reading_of(job: Job) -> Reading:
    """Return how the data of a job are to be read for its model.

    Raises:
        HaqError: There is no such model, or its library is not installed.
    """
    card, source = about(job.model), named(job.model)
    tokenizer = None if job.tokenizer is None else str(job.tokenizer)
    if card is None:
        return Reading(job.size, tokenizer=tokenizer, length=job.length or LENGTH,
                       next_token=job.metric == "perplexity")  # fmt: skip
    if tokenizer is None and isinstance(source, Named) and source.prefix == "hf":
        tokenizer = source.rest
    most = card.facts.get("positions")
    length = job.length or (LENGTH if most is None else min(LENGTH, most))
    causal = str(card.facts.get("architecture", "")).endswith(_CAUSAL)
    return Reading(
        size=job.size or (card.shape[-1] if card.shape else None),
        mean=card.mean,
        std=card.std,
        tokenizer=tokenizer,
        length=length,
        tokens=card.tokens,
        next_token=job.metric == "perplexity" or (job.metric is None and causal),
    )


def brings_weights(job: Job) -> bool:
    """Return whether the model of a job has its weights with it, and they are not trained anew."""
    card = about(job.model) if job.float_epochs is None else None
    return card is not None and card.weights


def rebuilt(job: Job, images: Mapping[str, Any]) -> nn.Module:
    """Return the model of a run by its name; its weights do not matter.

    Args:
        job: Of the run.
        images: On record of its data.

    Raises:
        HaqError: The model cannot be had any more.
    """
    shape = input_shape(job.model)
    size = images["shape"][-1] if shape else None
    classes = len(images["classes"]) if "classes" in images else None
    with torch.random.fork_rng(devices=[]):  # the first weights of a model are drawn
        return build(job.model, classes, job.width, size, job.metric)


def write_files_of_model(folder: Path, job: Job) -> None:
    """Write down in a run's folder what its model is made of, if that is files."""
    files = fingerprint(job.model)
    if files and not (folder / "model.json").exists():
        write_json(folder / "model.json", {"model": job.model, "files": files})


def check_files_of_model(folder: Path, job: Job, weights: bool) -> None:
    """Refuse to go on with a model whose files are others than when the run began.

    Args:
        folder: Of the run.
        job: Of the run.
        weights: Whether files of weights count as well.

    Raises:
        RunError: A file has changed since, or is gone.
        HaqError: The model cannot be had any more.
    """
    if not (folder / "model.json").exists():
        return
    before, now = read_json(folder / "model.json")["files"], fingerprint(job.model)
    for name, digest in before.items():
        if (weights or not name.endswith(".safetensors")) and now.get(name) != digest:
            what = "is gone" if name not in now else "is another one"
            raise RunError(
                f"{name} of model {job.model} {what} since run {folder} began "
                f"(sha256 {digest[:12]}): put the old file back, or start a new run"
            )
