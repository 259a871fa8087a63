"""Which pairs of bits a layer may have: what a target offers, ranges, pins, and what is shared."""

from collections.abc import Mapping, Sequence

from haq.allocation.costs import Target
from haq.allocation.policy import FLOAT, Bits, listed, readers
from haq.allocation.schemes import SEARCHED, STATIC, Formats
from haq.errors import HaqError, TargetError, look_up
from haq.network.layers import EDGE_BITS, Layer

_FLOATS = Bits(FLOAT, FLOAT)


def permitted(
    layers: Sequence[Layer],
    target: Target | None,
    weight_bits: tuple[int, int] = (2, 8),
    act_bits: int | None = None,
    pins: Mapping[str, int | Bits] | None = None,
    formats: Formats = STATIC,
) -> dict[str, tuple[Bits, ...]]:
    """Return the bits each layer may have, in rising order.

    Layers that read the same tensor end with the same activation widths. So a pin sets the
    activations of all of them, also where ``act_bits`` says otherwise. The network's input always
    has 8 bits, whatever a pin or ``act_bits`` says, but for a layer that stays float. A layer with
    bits of weights alone, such as an embedding, has 32 bits of activations, and of weights those of
    the target's pairs.

    A layer may stay float, (32, 32), where the target offers that, ``weight_bits`` reaches up to 8
    and ``act_bits`` is not given; one that is offered nothing else always does.

    Args:
        layers: In execution order.
        target: Offers its own choices; without one, every pair of 2 to 8 bits.
        weight_bits: Fewest and most bits of the weights, from 2 to 8.
        act_bits: The bits of all activations, or None where the search is to find them.
        pins: Layer to the bits of its weights and of its activations: one number for both, or a
            pair. Where the formats have no static activations, a number is that of the weights.
        formats: What is offered of other number formats.

    Raises:
        HaqError: A range or a pin is out of place, or some layer is left without a choice.
    """
    pins = pins or {}
    formats.check()
    formats.check_layers(layers)
    _check_ranges(layers, weight_bits, act_bits, pins)
    _check_known(layers, target)
    together = readers(layers)
    allowed: dict[str, tuple[Bits, ...]] = {}
    for layer in layers:
        pinned = any(name in pins for name in together[layer.name])
        floats = act_bits is None and weight_bits[1] == SEARCHED[-1]
        anyhow = pinned or layer.weights_alone
        act = EDGE_BITS if layer.reads_input else None if anyhow else act_bits
        pin = pins.get(layer.name)
        offered = _offered(layer, target, formats)
        allowed[layer.name] = _narrowed(layer, target, weight_bits, act, pin, floats, offered)
    return share_activations(layers, allowed)


def _check_ranges(
    layers: Sequence[Layer],
    weight_bits: tuple[int, int],
    act_bits: int | None,
    pins: Mapping[str, int | Bits],
) -> None:
    low, high = weight_bits
    if low not in SEARCHED or high not in SEARCHED or low > high:
        raise HaqError(f"weight bits {low}..{high}: give a range within 2..8, the lower one first")
    if act_bits is not None and act_bits not in SEARCHED:
        raise HaqError(f"activation bits {act_bits}: give 2 to 8, or let the search find them")
    known = {layer.name: layer for layer in layers}
    for name, bits in pins.items():
        look_up(known, "layer", name)
        if isinstance(bits, int) and bits not in SEARCHED:
            raise HaqError(f"pin {name}={bits}: give 2 to 8 bits")


def _check_known(layers: Sequence[Layer], target: Target | None) -> None:
    """Name all layers of which a target knows nothing, at once.

    Raises:
        TargetError: There are some.
    """
    unknown: dict[str, TargetError] = {}
    for layer in layers if target is not None else ():
        assert target is not None
        try:
            target.choices(layer)
        except TargetError as error:
            unknown[layer.name] = error
    if unknown:
        first, *others = unknown
        more = f"; nor for {len(others)} other layers: {', '.join(others)}" if others else ""
        raise TargetError(f"{unknown[first]}{more.replace('1 other layers', 'one other layer')}")


def _narrowed(
    layer: Layer,
    target: Target | None,
    weight_bits: tuple[int, int],
    act_bits: int | None,
    pin: int | Bits | None,
    floats: bool,
    offered: list[Bits],
) -> tuple[Bits, ...]:
    can = f"{target.name if target else 'the search'} can run it at {listed(offered)}"
    if pin is not None:
        pinned = pin if isinstance(pin, Bits) else _pinned(layer, pin)
        if pinned in offered:
            return (pinned,)
        others = [b for b in offered if b.act == FLOAT and b.weight == pin]
        if not others:
            raise HaqError(f"pin {layer.name}={pin}: {can}")
        return tuple(others)
    low, high = weight_bits
    left = [
        bits for bits in offered
        if low <= bits.weight <= high and (act_bits in (None, bits.act) or bits.act == FLOAT)
    ]  # fmt: skip
    if floats or offered == [_FLOATS]:
        left += [bits for bits in offered if bits == _FLOATS]
    if not left:
        acts = "2..8" if act_bits is None else act_bits
        wanted = f"{low}..{high} bits for weights and {acts} for activations"
        raise HaqError(f"layer {layer.name!r} has no choice with {wanted}: {can}")
    return tuple(left)


def _offered(layer: Layer, target: Target | None, formats: Formats = STATIC) -> list[Bits]:
    every = formats.offered(layer)
    if target is None:
        return every or [_FLOATS]
    if layer.weights_alone:
        widths = {bits.weight for bits in target.choices(layer)}
        return [bits for bits in (*every, _FLOATS) if bits.weight in widths]
    return sorted(set(target.choices(layer)) & {*every, _FLOATS})


def _pinned(layer: Layer, bits: int) -> Bits:
    if layer.weights_alone:
        return Bits(bits, FLOAT)
    return Bits(bits, EDGE_BITS if layer.reads_input else bits)


def nearest_pin(layer: Layer, bits: int, target: Target | None) -> Bits | None:
    """Return the pair that a pin stands for, or the nearest one below it that the target offers.

    Nearest is with the fewest bits less in sum, then with the most activation bits: what a layer is
    pinned to does not hang on which of two measured costs came out lower. The network's input
    keeps its 8 bits.

    Args:
        layer: The one that is pinned.
        bits: Of its weights and of its activations.
        target: Offers its choices; without one, every pair of 2 to 8 bits.

    Returns:
        None where nothing below it is offered either.
    """
    pinned = _pinned(layer, bits)
    below = [
        pair for pair in _offered(layer, target)
        if pair.weight <= pinned.weight and pair.act <= pinned.act
        and (pair.act == pinned.act or not layer.reads_input)
    ]  # fmt: skip
    if target is None or pinned in below:
        return pinned
    if not below:
        return None
    return max(below, key=lambda pair: (sum(pair), pair.act))


def share_activations(
    layers: Sequence[Layer], choices: Mapping[str, tuple[Bits, ...]]
) -> dict[str, tuple[Bits, ...]]:
    """Return the choices whose activation width every reader of the same tensor has too.

    Raises:
        HaqError: Layers that read the same tensor have no activation width in common.
    """
    common: dict[str, tuple[Bits, ...]] = {}
    for name, group in readers(layers).items():
        widths = [{bits.act for bits in choices[reader]} for reader in group]
        shared = set.intersection(*widths)
        if not shared:
            left = " and ".join(
                f"{reader} ({', '.join(map(str, sorted(acts)))} bits)"
                for reader, acts in zip(group, widths, strict=True)
            )
            raise HaqError(
                f"{left} read the same tensor, but have no activation width in common; "
                "change a pin or take it away"
            )
        common[name] = tuple(bits for bits in choices[name] if bits.act in shared)
    return common
