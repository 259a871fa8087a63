"""Which number formats a search may choose from, beside their bits.

=================  ===========================================================================
scheme             what becomes of the tensor that a layer reads
=================  ===========================================================================
static             rounded once for all its readers, to the bits of the policy (the default)
weight-only        stays float
codebook           stays float; the weights of a layer share 2**bits values, found by k-means
dynamic            rounded by the layer itself to 8 bits, with a scale for each row (token)
dynamic-tensor     the same with one scale and zero point for all that one call reads
=================  ===========================================================================

With groups the weights of linear layers and embeddings have a scale for so many weights of a row;
that goes with weight-only and with dynamic.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal, NamedTuple, get_args

from haq.allocation.policy import BLOCKS, CODEBOOK, FLOAT, Bits, Dynamic, takes_groups
from haq.errors import HaqError, look_up
from haq.network.layers import Layer

SEARCHED = range(2, 9)
"""The bit-widths a search may use: one bit has no symmetric grid."""

Scheme = Literal["static", "weight-only", "dynamic", "dynamic-tensor", "codebook"]

SCHEMES: Sequence[Scheme] = get_args(Scheme)

_FLOATING: dict[Scheme, Dynamic] = {
    "weight-only": "", "dynamic": "token", "dynamic-tensor": "tensor"
}  # fmt: skip
"""The schemes in which the tensor that is read stays float, and how the layer rounds it."""

_GROUPED = ("weight-only", "dynamic")


class Formats(NamedTuple):
    """The formats among which a search chooses.

    Attributes:
        schemes: At least one.
        groups: Sizes of the groups of linear layers' weights; 0 stands for one scale for each
            output channel, which is what there is without any.
    """

    schemes: tuple[Scheme, ...] = ("static",)
    groups: tuple[int, ...] = ()

    def check(self) -> None:
        """Say so if the formats do not go together.

        Raises:
            HaqError: The sentence for the user.
        """
        for scheme in self.schemes:
            look_up(dict.fromkeys(SCHEMES), "scheme", scheme)
        for size in self.groups:
            if size not in (0, *BLOCKS):
                raise HaqError(
                    f"groups of {size}: give {', '.join(map(str, BLOCKS))} weights, or 0 for one "
                    "scale a channel"
                )
        if any(self.groups) and not set(_GROUPED) & set(self.schemes):
            raise HaqError(
                f"groups of {max(self.groups)} weights go with the schemes "
                f"{' and '.join(_GROUPED)}, not with {', '.join(self.schemes)}: name one of them "
                "too, or leave the groups out"
            )

    def check_layers(self, layers: Sequence[Layer]) -> None:
        """Say so if no layer of a network can have groups or dynamic activations asked for.

        Raises:
            HaqError: The sentence for the user.
        """
        if any(self.groups) and not any(takes_groups(layer) for layer in layers):
            raise HaqError(
                f"groups of {max(self.groups)} weights are for linear layers and embeddings, and "
                "this network has none; leave the groups out"
            )
        dynamic = [scheme for scheme in self.schemes if _FLOATING.get(scheme)]
        if dynamic and not any(layer.kind == "linear" for layer in layers):
            raise HaqError(
                f"scheme {dynamic[0]} is for linear layers, and this network has none; take static "
                "or weight-only"
            )

    def offered(self, layer: Layer) -> list[Bits]:
        """Return every choice of a layer, in rising order; none where no scheme is for it."""
        return sorted(set(self._offered(layer)))

    def _offered(self, layer: Layer) -> Iterator[Bits]:
        if "codebook" in self.schemes:
            yield from (Bits(weight, FLOAT, CODEBOOK) for weight in SEARCHED)
        if layer.weights_alone:
            blocks = self.groups or (0,) if set(self.schemes) != {"codebook"} else ()
            for weight, block in product(SEARCHED, blocks):
                yield Bits(weight, FLOAT, block)
            return
        if "static" in self.schemes:
            yield from (Bits(weight, act) for weight, act in product(SEARCHED, SEARCHED))
        for scheme, dynamic in _FLOATING.items():
            if scheme not in self.schemes or (dynamic and layer.kind != "linear"):
                continue
            grouped = scheme in _GROUPED and self.groups and takes_groups(layer)
            for weight, block in product(SEARCHED, self.groups if grouped else (0,)):
                yield Bits(weight, FLOAT, block, dynamic)


STATIC = Formats()
