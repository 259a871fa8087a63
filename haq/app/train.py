"""Train a float network and write its weights, with what made them beside them."""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from haq.app import results
from haq.app.search import OnProgress, train_float
from haq.datasets import check_fits, load
from haq.errors import ModelError
from haq.models import build, input_shape
from haq.models.weights import save_weights
from haq.train import score


def run_training(
    model: str,
    data: str,
    out: Path,
    *,
    width: float,
    epochs: int,
    lr: float,
    seed: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Train a model on the training images and return its accuracies.

    The weights go to ``out``, the accuracies and their provenance to ``out`` with the suffix
    ``.json``.

    Raises:
        HaqError: A name is unknown, the images do not fit the model, or ``out`` cannot be written.
    """
    if out.suffix != ".safetensors":
        raise ModelError(f"out {out}: the weights are written as safetensors; name it so")
    if not out.parent.is_dir():
        raise ModelError(f"out {out}: there is no folder {out.parent}")
    images = load(data, seed=seed)
    shape = input_shape(model)
    size = images.shape[-1] if shape else None
    check_fits(images, model, input_shape(model, size) if shape else None)
    torch.manual_seed(seed)
    network = build(model, classes=len(images.classes), width=width, size=size)
    started = time.perf_counter()
    train_float(network, images, epochs, seed, on_progress, lr)
    save_weights(network, out)
    summary = {
        "model": model, "data": images.name, "epochs": epochs, "lr": lr, "seed": seed,
        "val_accuracy": score(network, images.val).accuracy,
        "test_accuracy": score(network, images.test).accuracy,
        "seconds": round(time.perf_counter() - started, 1),
        **results.provenance(sys.argv),
    }  # fmt: skip
    results.write_json(out.with_suffix(".json"), summary)
    return summary
