"""Networks of torchvision: classification, segmentation and video; weights come from a file."""

import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import nn

from haq.errors import ModelError
from haq.extras import library
from haq.models.sources.source import Card, Wanted, check_known

_SIZED = {"vit_": "image_size", "maxvit_": "input_size"}
"""Beginning of a name to what its builder calls the size of images, which is built in."""


def names() -> Sequence[str]:
    """Return the names of all networks that one tensor of images or frames goes into."""
    models = _models("NAME")
    return sorted(
        name for module in (models, models.segmentation, models.video)
        for name in models.list_models(module=module)
    )  # fmt: skip


def card(rest: str) -> Card:
    """Return shape, classes and normalisation of a network, as its published weights have them."""
    models = _checked(rest)
    published = models.get_model_weights(rest).DEFAULT
    transform = published.transforms()
    sizes = getattr(transform, "crop_size", None) or transform.resize_size
    height, width = sizes if len(sizes) == 2 else (sizes[0], sizes[0])
    frames = (16,) if rest in models.list_models(module=models.video) else ()
    return Card(
        shape=(3, *frames, height, width),
        classes=len(published.meta["categories"]),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def build(rest: str, wanted: Wanted) -> nn.Module:
    """Return a network of torchvision with fresh weights."""
    models = _checked(rest)
    asked: dict[str, Any] = {} if wanted.classes is None else {"num_classes": wanted.classes}
    if "weights_backbone" in inspect.signature(models.get_model_builder(rest)).parameters:
        asked["weights_backbone"] = None  # else they are downloaded
    if wanted.size is not None:
        for start, parameter in _SIZED.items():
            if rest.startswith(start):
                asked[parameter] = wanted.size if start == "vit_" else (wanted.size,) * 2
    try:
        network: nn.Module = models.get_model(rest, weights=None, **asked)
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"torchvision:{rest} cannot be built: {error}") from error
    return network


def _models(rest: str) -> ModuleType:
    return library("torchvision.models", "vision", f"model torchvision:{rest}", ModelError)


def _checked(rest: str) -> ModuleType:
    models, known = _models(rest), names()
    if rest not in known and rest in models.list_models():
        raise ModelError(
            f"torchvision:{rest} cannot be searched: HAQ takes networks of classification, "
            "segmentation and video, no detectors, optical flow or quantized networks"
        )
    check_known("torchvision", rest, known)
    return models
