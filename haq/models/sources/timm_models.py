"""Networks of timm by name; weights come from a file, nothing is downloaded."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import nn

from haq.errors import ModelError
from haq.extras import library
from haq.models.sources.source import Card, Wanted, check_known


def names() -> Sequence[str]:
    """Return the names of all networks, without tags of weights."""
    return list(_timm("NAME").list_models())


def card(rest: str) -> Card:
    """Return shape, classes and normalisation of a network, as its published weights have them.

    Args:
        rest: Such as "resnet50", or with the tag of published weights, "resnet50.a1_in1k".
    """
    published = _published(rest)
    return Card(
        shape=tuple(published["input_size"]),
        classes=published["num_classes"] or None,
        mean=tuple(published["mean"]),
        std=tuple(published["std"]),
        sizes=not published["fixed_input_size"],
    )


def build(rest: str, wanted: Wanted) -> nn.Module:
    """Return a network of timm with fresh weights."""
    published = _published(rest)
    asked: dict[str, Any] = {} if wanted.classes is None else {"num_classes": wanted.classes}
    if wanted.size is not None and published["fixed_input_size"]:
        asked["img_size"] = wanted.size
    try:
        network: nn.Module = _timm(rest).create_model(rest, pretrained=False, **asked)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"timm:{rest} cannot be built: {error}") from error
    return network


def _timm(rest: str) -> ModuleType:
    return library("timm", "timm", f"model timm:{rest}", ModelError)


def _published(rest: str) -> dict[str, Any]:
    """Return what timm knows of the published weights of a name, which it need not have."""
    timm = _timm(rest)
    architecture, _, tag = rest.partition(".")
    check_known("timm", architecture, timm.list_models())
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ModelError(
            f"timm:{architecture} has no weights {tag!r} (known: {', '.join(tags) or 'none'}); "
            "the tag says how images are normalised: leave it out for the first of them"
        )
    return dict(vars(timm.get_pretrained_cfg(rest)))
