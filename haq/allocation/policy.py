"""A policy: how many bits the weights and the activations of each layer have.

A policy is a plain mapping from the layer's name to its ``Bits``; in a file it is JSON. Activation
bits belong to the tensor, so layers that read the same tensor have the same.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from haq.errors import HaqError, PolicyError, look_up
from haq.files import write_text
from haq.network.layers import Layer

FLOAT = 32
"""The bit-width that stands for "not quantized"."""

FORMAT = "haq-policy/1"
"""What the "format" field of a policy's file says."""

_WIDTHS = {*range(1, 9), FLOAT}


class Bits(NamedTuple):
    """Bit-widths of one layer: of its weights and of the tensor it reads. 32 is float."""

    weight: int
    act: int

    def __str__(self) -> str:
        """Return "w8a4", or "fp32" where nothing is quantized."""
        return "fp32" if self == (FLOAT, FLOAT) else f"w{self.weight}a{self.act}"


Policy = Mapping[str, Bits]


def readers(layers: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """Return, for each layer, the names of all layers that read the same tensor, itself included.

    Args:
        layers: In execution order; so the first name of each tuple is the tensor's first reader.

    >>> conv = dict(kind="conv", c_in=3, c_out=8)
    >>> readers([Layer("a", **conv), Layer("b", **conv, reads="b"), Layer("c", **conv, reads="b")])
    {'a': ('a',), 'b': ('b', 'c'), 'c': ('b', 'c')}
    """
    groups: dict[str, list[str]] = {}
    for layer in layers:
        groups.setdefault(layer.reads or layer.name, []).append(layer.name)
    return {name: tuple(group) for group in groups.values() for name in group}


def read_policy(path: str | Path) -> dict[str, Bits]:
    """Return the policy in a JSON file that ``write_policy`` or a person wrote.

    The file holds ``{"format": "haq-policy/1", "layers": {"conv1": {"weight": 8, "activation": 8},
    ...}}``. Whether it suits a model is for ``check_policy`` to say.

    Raises:
        PolicyError: The file is missing, is not JSON, or does not hold a policy.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"policy {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PolicyError(f"policy {path}: not a JSON file ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PolicyError(f'policy {path}: not a policy; it must say "format": "{FORMAT}"')
    if not isinstance(content.get("layers"), dict):
        raise PolicyError(f'policy {path}: "layers" must map the name of each layer to its bits')
    return {name: _read_bits(path, name, item) for name, item in content["layers"].items()}


def _read_bits(path: str | Path, name: str, item: Any) -> Bits:
    if isinstance(item, dict) and item.keys() == {"weight", "activation"}:
        bits = Bits(item["weight"], item["activation"])
        if all(type(width) is int for width in bits):
            return bits
    raise PolicyError(
        f"policy {path}: layer {name!r} has {json.dumps(item)}; "
        'write it like {"weight": 8, "activation": 8}'
    )


def write_policy(path: str | Path, policy: Policy) -> None:
    """Write the policy as JSON; a reader sees the whole file or the one before it."""
    layers = {
        name: {"weight": bits.weight, "activation": bits.act} for name, bits in policy.items()
    }
    write_text(Path(path), json.dumps({"format": FORMAT, "layers": layers}, indent=2) + "\n")


def check_policy(policy: Policy, layers: Sequence[Layer]) -> None:
    """Say so if the policy does not suit the layers.

    Raises:
        PolicyError: It names a layer there is not, leaves one out, has a bit-width other than 1 to
            8 and 32, or different activation bits for layers that read the same tensor.
    """
    known = {layer.name: layer for layer in layers}
    for name in policy:
        try:
            look_up(known, "layer", name)
        except HaqError as error:
            raise PolicyError(f"policy: {error}") from None
    missing = [name for name in known if name not in policy]
    if missing:
        raise PolicyError(f"policy: no bits for {', '.join(missing)}; every layer needs some")
    for name, bits in policy.items():
        if not _WIDTHS.issuperset(bits):
            raise PolicyError(
                f"policy: layer {name!r} has {bits.weight}-bit weights and {bits.act}-bit "
                f"activations; bits are 1 to 8, or {FLOAT} for float"
            )
    for name, (first, *_) in readers(layers).items():
        if policy[name].act != policy[first].act:
            raise PolicyError(
                f"policy: {first!r} and {name!r} read the same tensor, but with "
                f"{policy[first].act} and {policy[name].act} bits; give them the same"
            )
