"""Models of other libraries and from files: a prefix says which, the rest of the name says what.

A new kind is a file with two functions, and a line in ``SOURCES``. Libraries are imported inside
these functions: whoever names no such model does not need them.
"""

import hashlib
from collections.abc import Mapping

from haq.errors import ModelError
from haq.models.sources import hugging_face, onnx_file, timm_models, vision
from haq.models.sources.source import Card, Named, Source, Wanted

__all__ = [
    "SOURCES", "Card", "Named", "Source", "Wanted", "about", "at_absolute_path", "fingerprint",
    "named",
]  # fmt: skip

SOURCES: Mapping[str, Source] = {
    "torchvision": Source(
        "a network of torchvision", "torchvision:resnet50",
        vision.card, vision.build, vision.names,
    ),
    "timm": Source(
        "a network of timm", "timm:mobilenetv3_small_100",
        timm_models.card, timm_models.build, timm_models.names,
    ),
    "hf": Source(
        "a folder as save_pretrained of transformers writes it", "hf:DIR",
        hugging_face.card, hugging_face.build, None, hugging_face.files, hugging_face.located,
    ),
    "onnx": Source(
        "a float ONNX file", "onnx:net.onnx",
        onnx_file.card, onnx_file.build, None, onnx_file.files, onnx_file.located,
    ),
}  # fmt: skip
"""Prefix of a name to where such models come from."""


def named(name: str) -> Named | None:
    """Return the source of a model's name and what follows its prefix; None without a prefix.

    Raises:
        ModelError: Nothing follows the prefix.
    """
    prefix, colon, rest = name.partition(":")
    if not colon or prefix not in SOURCES:
        return None
    if not rest:
        raise ModelError(
            f"model {name!r} says nothing behind its prefix; write for example "
            f"{SOURCES[prefix].example}"
        )
    return Named(prefix, rest, SOURCES[prefix])


def about(name: str) -> Card | None:
    """Return what a model with a prefix says of itself; None for any other name.

    Raises:
        ModelError: There is no such model, or its library is not installed.
    """
    known = named(name)
    return known.source.card(known.rest) if known else None


def at_absolute_path(name: str) -> str:
    """Return a model's name so that it means the same in every folder."""
    known = named(name)
    if known is None or known.source.located is None:
        return name
    return f"{known.prefix}:{known.source.located(known.rest)}"


def fingerprint(name: str) -> dict[str, str]:
    """Return the files that a model with a prefix is made of: name to sha256; empty without files.

    Raises:
        ModelError: There is no such model.
    """
    known = named(name)
    if known is None or known.source.files is None:
        return {}
    digests = {}
    for path in known.source.files(known.rest):
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
