"""A policy: how many bits the weights and the activations of each layer have.

A policy is a plain mapping from the layer's name to its ``Bits``; in a file it is JSON. Activation
bits belong to the tensor, so layers that read the same tensor have the same. A layer that rounds
what it reads by itself (``dynamic``) reads a float tensor, as one with float activations does.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from haq.errors import HaqError, PolicyError, look_up
from haq.files import write_text
from haq.network.layers import Layer

FLOAT = 32
"""The bit-width that stands for "not quantized"."""

FORMAT = "haq-policy/1"
"""What the "format" field of a policy's file says."""

_WIDTHS = {*range(1, 9), FLOAT}

BLOCKS = (32, 64, 128)
"""How many weights along the inputs of a layer may share one scale, where not a whole row does."""

CODEBOOK = -1
"""As ``Bits.block``: the weights of the layer share the 2**bits values of a codebook."""

DYNAMIC_BITS = 8
"""Bits to which a layer rounds what it reads, if it does so by itself."""

Dynamic = Literal["", "token", "tensor"]
"""How a layer rounds what it reads by itself: not; with a scale for each row (a token; with weights
in groups for each block of a row); or with one scale and zero point for all it reads in one call.
"""

_DYNAMIC: Mapping[str, str] = {"": "", "token": "t", "tensor": "d"}


class _Widths(NamedTuple):
    weight: int
    act: int


class Bits(_Widths):
    """The bit-widths of one layer, a pair, and how else its numbers are stored and rounded.

    Attributes:
        weight: Bits of its weights; 32 is float.
        act: Bits of the tensor it reads; 32 is float.
        block: So many weights along the inputs share one scale; 0: one output channel does;
            ``CODEBOOK``: the layer has a codebook instead of scales.
        dynamic: How the layer itself rounds what it reads to 8 bits, as it runs; "" if not. The
            tensor is float then.
        keep: Share of its output channels that stays; the others are removed.

    >>> Bits(4, 8), Bits(4, 32, 64), Bits(4, 8) == (4, 8), Bits(4, 32, 64) == (4, 32)
    (Bits(weight=4, act=8), Bits(weight=4, act=32, block=64, dynamic=''), True, False)
    """

    block: int
    dynamic: Dynamic
    keep: float

    def __new__(
        cls, weight: int, act: int, block: int = 0, dynamic: Dynamic = "", keep: float = 1.0
    ) -> "Bits":
        """Return the bits; they are a pair, equal to a plain one where they say nothing else."""
        self = super().__new__(cls, weight, act)
        self.block, self.dynamic, self.keep = block, dynamic, keep
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Return what a copy is made of."""
        return self._all

    @classmethod
    def _make(cls, iterable: Iterable[Any]) -> "Bits":  # type: ignore[override]
        """Return bits of two to four fields, in their order."""
        return cls(*iterable)

    def _replace(self, **fields: Any) -> "Bits":
        """Return the same with other values of some fields.

        >>> Bits(4, 32, 32)._replace(weight=3)
        Bits(weight=3, act=32, block=32, dynamic='')
        >>> print(Bits(4, 8)._replace(act=32, dynamic="token"))
        w4t8
        """
        return Bits(**{**self._asdict(), **fields})

    def _asdict(self) -> dict[str, Any]:
        """Return all five fields by name."""
        names = ("weight", "act", "block", "dynamic", "keep")
        return dict(zip(names, self._all, strict=True))

    @property
    def _all(self) -> tuple[int, int, int, Dynamic, float]:
        return self.weight, self.act, self.block, self.dynamic, self.keep

    @property
    def _is_pair(self) -> bool:
        return not self.is_special and self.keep == 1

    def __eq__(self, other: object) -> bool:
        """Return whether all fields are equal; a plain pair says nothing of the others."""
        theirs = other._all if isinstance(other, Bits) else other
        return (
            tuple(self) if self._is_pair and not isinstance(other, Bits) else self._all
        ) == theirs

    def __ne__(self, other: object) -> bool:
        """Return whether some field differs."""
        return not self == other

    __hash__ = _Widths.__hash__  # that of the pair, which plain bits equal

    def __lt__(self, other: tuple[Any, ...]) -> bool:
        """Order by weights, then activations, then groups, then rounding, then channels."""
        return self._all < (other._all if isinstance(other, Bits) else other)

    def __gt__(self, other: tuple[Any, ...]) -> bool:
        """Order by weights, then activations, then groups, then rounding, then channels."""
        return self._all > (other._all if isinstance(other, Bits) else other)

    def __repr__(self) -> str:
        """Return the fields that say something."""
        more = f", block={self.block}, dynamic={self.dynamic!r}" if self.is_special else ""
        share = f", keep={self.keep:g}" if self.keep != 1 else ""
        return f"Bits(weight={self.weight}, act={self.act}{more}{share})"

    def with_act(self, act: int) -> "Bits":
        """Return the same with other bits of the tensor that is read."""
        return Bits(self.weight, act, self.block, self.dynamic, self.keep)

    def with_keep(self, keep: float) -> "Bits":
        """Return the same with another share of its output channels."""
        return Bits(self.weight, self.act, self.block, self.dynamic, keep)

    @property
    def is_special(self) -> bool:
        """Whether the weights are in groups, or the layer rounds what it reads as it runs."""
        return bool(self.block or self.dynamic)

    @property
    def is_book(self) -> bool:
        """Whether the weights are values of a codebook."""
        return self.block == CODEBOOK

    @property
    def floats(self) -> bool:
        """Whether what the layer reads and gives out passes as floats."""
        return FLOAT in (self.weight, self.act)

    @property
    def multiplied(self) -> int:
        """Bits of the activations that are multiplied."""
        return DYNAMIC_BITS if self.dynamic else self.act

    @property
    def scheme(self) -> tuple[int, int, Dynamic]:
        """All but the bits of the tensor and the channels: what a layer decides for itself."""
        return self.weight, self.block, self.dynamic

    def row(self) -> tuple[int | str | float, ...]:
        """Return the fields for a file: those behind the pair only where they say something.

        >>> Bits(4, 8).row(), Bits(4, 32, 64).row(), Bits(7, 32, 0, "token").row()
        ((4, 8), (4, 32, 64), (7, 32, 0, 'token'))
        >>> Bits(4, 8, keep=0.5).row()
        (4, 8, 0, '', 0.5)
        """
        if self.keep != 1:
            return self._all
        return self._all[: 4 if self.dynamic else 3 if self.block else 2]

    def __str__(self) -> str:
        """Return "w8a4", or "fp32" where nothing is quantized.

        With "g32" weights have a scale for each 32 of them, and activations are float unless "t8"
        (8 bits, a scale for each token) or "d8" (8 bits, a scale for each call) follows. "w4k" is a
        codebook of 16 values. "c50" says that 50 % of its output channels stay.

        >>> print(Bits(4, 8), Bits(4, 32, 32), Bits(4, 32, 32, "token"), Bits(7, 32, 0, "tensor"))
        w4a8 w4g32 w4g32t8 w7d8
        >>> print(Bits(4, 8, keep=0.5), Bits(32, 32, keep=0.625))
        w4a8c50 fp32c62.5
        """
        return self._named + (f"c{100 * self.keep:g}" if self.keep != 1 else "")

    @property
    def _named(self) -> str:
        if self.scheme == (FLOAT, 0, "") and self.act == FLOAT:
            return "fp32"
        group = "k" if self.is_book else f"g{self.block}" if self.block else ""
        dynamic = f"{_DYNAMIC[self.dynamic]}{DYNAMIC_BITS}" if self.dynamic else ""
        return f"w{self.weight}{group}{dynamic}" + ("" if group or dynamic else f"a{self.act}")


Policy = Mapping[str, Bits]

_FIELDS = ("weight", "activation", "block", "dynamic", "keep")
"""Of a layer in a policy's file, in the order of ``Bits.row``."""


def listed(choices: Sequence[Bits]) -> str:
    """Return pairs of bits as a sentence names them."""
    return ", ".join(str(bits) for bits in choices) or "no pair of 2 to 8 bits"


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
    ...}}``; a layer may have "block", "dynamic" and "keep" too, as in ``Bits``. Whether it suits a
    model is for ``check_policy`` to say.

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
    if isinstance(item, dict) and {"weight", "activation"} <= item.keys() <= {*_FIELDS}:
        block, dynamic, keep = item.get("block", 0), item.get("dynamic", ""), item.get("keep", 1.0)
        numbers = (item["weight"], item["activation"], block)
        if all(type(number) is int for number in numbers) and dynamic in ("", "token", "tensor"):
            if type(keep) in (int, float) and 0 < keep <= 1:
                return Bits(*numbers, dynamic, float(keep))
    raise PolicyError(
        f"policy {path}: layer {name!r} has {json.dumps(item)}; write it like "
        '{"weight": 8, "activation": 8}, or {"weight": 4, "activation": 32, "block": 32, '
        '"dynamic": "token"}; "keep" is the share of its channels that stays, above 0 and at most 1'
    )


def write_policy(path: str | Path, policy: Policy) -> None:
    """Write the policy as JSON; a reader sees the whole file or the one before it."""
    layers = {name: dict(zip(_FIELDS, bits.row(), strict=False)) for name, bits in policy.items()}
    write_text(Path(path), json.dumps({"format": FORMAT, "layers": layers}, indent=2) + "\n")


def check_policy(policy: Policy, layers: Sequence[Layer]) -> None:
    """Say so if the policy does not suit the layers.

    Raises:
        PolicyError: It names a layer there is not, leaves one out, has a bit-width other than 1 to
            8 and 32, different activation bits for layers that read the same tensor, or groups or
            dynamic activations where there are none.
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
        _check_scheme(known[name], bits)
    for name, (first, *_) in readers(layers).items():
        if policy[name].act != policy[first].act:
            raise PolicyError(
                f"policy: {first!r} and {name!r} read the same tensor, but with "
                f"{policy[first].act} and {policy[name].act} bits; give them the same"
            )


def _check_scheme(layer: Layer, bits: Bits) -> None:
    if not bits.is_special:
        return
    what = f"policy: layer {layer.name!r} has {bits}"
    if bits.block not in (CODEBOOK, 0, *BLOCKS):
        sizes = ", ".join(map(str, BLOCKS))
        raise PolicyError(
            f"{what}; a block has {sizes} weights, or 0 for one scale a channel, or {CODEBOOK} for "
            "a codebook"
        )
    if bits.act != FLOAT or bits.weight == FLOAT:
        raise PolicyError(
            f"{what} and {bits.act}-bit activations; weights in groups, codebooks and dynamic "
            f"activations are of 1 to 8 bits and read a float tensor: give it {FLOAT}-bit "
            "activations"
        )
    if bits.is_book:
        if bits.dynamic:
            raise PolicyError(
                f"{what}; a layer with a codebook multiplies floats: leave dynamic out"
            )
        return
    if not takes_groups(layer) or (bits.dynamic and layer.kind != "linear"):
        raise PolicyError(
            f"{what}, and is of kind {layer.kind}; groups are for linear layers and embeddings, "
            "dynamic activations for linear layers"
        )
    if bits.block and bits.dynamic == "tensor":
        raise PolicyError(f'{what}; with weights in groups activations are dynamic by "token"')


def takes_groups(layer: Layer) -> bool:
    """Return whether the weights of a layer can be quantized in groups along its inputs."""
    return layer.kind in ("linear", "embedding")
