"""Reading a budget that a user wrote, such as "size=90kB" or "latency=50%w8a8"."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

from haq.allocation.budgets.limit import Budget
from haq.allocation.costs import CODED, UNITS, WITHOUT_TARGET, Target, reference
from haq.allocation.policy import FLOAT, Bits
from haq.errors import BudgetError, HaqError, TargetError, look_up
from haq.network.layers import Layer

_FORMS = (
    "write it like size=90kB, avg_weight_bits=3, bops=1.2G, latency=5ms or energy=3mJ, "
    "or as a share of a reference: latency=50%w8a8, size=12.5%fp32"
)
_NUMBER = re.compile(
    r"\s*([+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf))\s*(.*?)\s*", re.IGNORECASE
)
_REFERENCE = re.compile(r"w([1-8])a([1-8])")
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1024.0, "MiB": 1024.0**2}
_COUNTS = {"K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_PARTS = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}
_SI = {"latency": "s", "energy": "J"}


def parse_budget(
    text: str,
    layers: Sequence[Layer],
    target: Target | None,
    float_values: int = 0,
    coded: Callable[[Bits], float] | None = None,
) -> Budget:
    """Return the budget that a text such as "size=90kB" or "latency=50%w8a8" asks for.

    A bare number is in the unit of the table. A share is of what the whole network costs with
    every layer at the reference's bits.

    Args:
        text: The quantity, "=", and a number with a unit or with "%" and a reference.
        layers: All of them, for the reference.
        target: Needed for latency and energy; both are for its batch.
        float_values: Values that stay float32 in no layer; references count them.
        coded: Measures the whole network's coded bytes with every layer at these bits; without it
            they have no references.

    Raises:
        BudgetError: The text cannot be read, needs a target, or names a reference that the target
            cannot run.
    """
    quantity, equals, amount = (part.strip() for part in text.partition("="))
    match = _NUMBER.fullmatch(amount)
    if not equals or not match:
        raise BudgetError(f"cannot read budget {text!r}: {_FORMS}")
    _check_quantity(text, quantity, target)
    number, unit = float(match[1]), match[2]
    if not 0 < number < math.inf:
        raise BudgetError(f"budget {text!r}: the limit must be positive and finite; {_FORMS}")
    if unit.startswith("%"):
        bits = _reference_bits(text, unit[1:].strip())
        if quantity == CODED:
            return Budget(quantity, number / 100 * _coded(text, bits, coded))
        whole = _reference(text, layers, target, quantity, bits, float_values)
        return Budget(quantity, number / 100 * whole)
    factors = _factors(quantity, target)
    if unit not in factors:
        raise BudgetError(_unknown_unit(text, unit, factors))
    return Budget(quantity, number * factors[unit])


def _coded(text: str, bits: Bits, coded: Callable[[Bits], float] | None) -> float:
    if coded is None or bits.weight == 1:
        raise BudgetError(
            f"budget {text!r}: {CODED} is measured on a network, at 2 to 8 bits or fp32; give "
            f"bytes, such as {CODED}=60kB, or another reference"
        )
    return coded(bits)


def _check_quantity(text: str, quantity: str, target: Target | None) -> None:
    if quantity in _SI and target is None:
        raise BudgetError(f"budget {text!r} needs hardware to count on: name it with --target")
    if quantity in _SI and target and quantity not in target.units:
        raise BudgetError(
            f"budget {text!r}: {target.name} knows no {quantity}, only {', '.join(target.units)}"
        )
    known = {**WITHOUT_TARGET, **(target.units if target else _SI)}
    try:
        look_up(known, "budget", quantity)
    except HaqError as error:
        hint = "" if target else f"; {' and '.join(_SI)} need --target"
        raise BudgetError(f"{error}{hint}") from None


def _reference_bits(text: str, name: str) -> Bits:
    match = _REFERENCE.fullmatch(name)
    if match:
        return Bits(int(match[1]), int(match[2]))
    if name == "fp32":
        return Bits(FLOAT, FLOAT)
    raise BudgetError(
        f"budget {text!r} is a share of {name or 'nothing'!r}: "
        "name a reference such as 50%w8a8 (1 to 8 bits each) or 12.5%fp32"
    )


def _reference(
    text: str,
    layers: Sequence[Layer],
    target: Target | None,
    quantity: str,
    bits: Bits,
    float_values: int,
) -> float:
    try:
        return reference(layers, target, quantity, bits, float_values)
    except TargetError as error:
        raise BudgetError(
            f"budget {text!r}: {error}; take a reference it can run, or an absolute limit"
        ) from error


def _factors(quantity: str, target: Target | None) -> dict[str, float]:
    if quantity in ("size", CODED):
        return {"": 1.0, **_BYTES}
    if quantity == "bops":
        return {"": 1.0, **_COUNTS}
    units = {**UNITS, **(target.units if target else {})}
    own = {"": 1.0, units[quantity]: 1.0}
    if target and quantity in _SI and quantity in target.si:
        symbol, si = _SI[quantity], target.si[quantity]
        own |= {prefix + symbol: part / si for prefix, part in _PARTS.items()}
    return own


def _unknown_unit(text: str, unit: str, factors: Mapping[str, float]) -> str:
    known = [name for name in factors if name]
    units = f" or one of {', '.join(known)}" if known else ""
    return f"budget {text!r}: unknown unit {unit!r}; give a bare number{units} ({_FORMS})"
