"""The linear quantizer: round a tensor to evenly spaced levels, and let gradients through.

There is one definition of the step and one of the rounding, here: what is trained, what is stored
as integer codes and what a runtime computes agree bit for bit because all of them divide by the
same float32 step and round halves to even.
"""

import math
from typing import Any

import torch
from torch import Tensor

BITS = range(2, 9)
"""The bit-widths that exist: one bit has no symmetric grid, and more than eight no use here."""


def levels(bits: int, signed: bool, zero_point: int | None = None) -> tuple[int, int]:
    """Return the lowest and the highest integer code.

    The signed range is narrow (the most negative code is left out), so that it is symmetric. With a
    zero point it is not: of the ``2**bits`` codes so many are negative.

    Raises:
        ValueError: ``bits`` is not one of 2 to 8, or the zero point leaves no positive code.

    >>> levels(4, signed=True), levels(4, signed=False), levels(4, signed=True, zero_point=3)
    ((-7, 7), (0, 15), (-3, 12))
    """
    if bits not in BITS:
        raise ValueError(f"bits must be from {BITS[0]} to {BITS[-1]}, not {bits!r}")
    if zero_point is not None:
        if not 0 <= zero_point <= 2**bits - 2:
            raise ValueError(f"zero point {zero_point} is not from 0 to {2**bits - 2}")
        return -zero_point, 2**bits - 1 - zero_point
    if signed:
        hi = 2 ** (bits - 1) - 1
        return -hi, hi
    return 0, 2**bits - 1


def step(bits: int, clip: Tensor | float, signed: bool, zero_point: int | None = None) -> Tensor:
    """Return the distance between two levels, ``clip / hi``, as a float32 tensor of clip's shape.

    Raises:
        ValueError: ``bits`` is out of range, or a clip is not a positive number, or so small or so
            large that float32 has no such step.
    """
    hi = levels(bits, signed, zero_point)[1]
    clip = torch.as_tensor(clip, dtype=torch.float32)
    size = clip.detach() / hi
    smallest, largest = (size, clip) if size.numel() == 1 else (size.min(), clip.max())
    # Written so that a NaN, which compares false with everything, fails.
    if not (smallest.item() > 0 and largest.item() < float("inf")):
        raise ValueError(f"clips must be positive and finite, not {_offender(clip, size)!r}")
    return size


def quantize(
    x: Tensor, bits: int, clip: Tensor | float, signed: bool = True, zero_point: int | None = None
) -> Tensor:
    """Round ``x`` to the nearest level, halves to even; gradients pass inside the clip.

    Zero is a level and the grid is even::

        lo, hi = levels(bits, signed)     -n .. n, or 0 .. 2**bits - 1, or from -zero_point
        s = clip / hi                     step, in the unit of x
        x' = s * clamp(round(x / s), lo, hi)

    The gradient with respect to ``x`` is that of the identity inside [-clip, clip] ([0, clip] if
    unsigned, [-s * zero_point, clip] with a zero point), ends included, and zero outside. It can be
    differentiated again. A ``clip`` that requires a gradient gets that of a learned step (LSQ),
    scaled so that gradient descent moves ``s = clip / hi`` as if s were the parameter::

        dL/ds = sum g * (round(x / s) - x / s inside;  lo or hi outside) / sqrt(N * hi)

    where N is the number of weights, or of features of one image, that share s.

    Args:
        x: Weights (out, ...) or activations (N, ...), of any float dtype and memory format.
            Half-precision values are divided and rounded in float32.
        bits: From 2 to 8.
        clip: Where to clip, positive, in the unit of ``x``: one for the whole tensor, or one per
            output channel in a shape that broadcasts, such as (out, 1, 1, 1).
        signed: Whether ``x`` may be negative; if not, negative values become 0.
        zero_point: For a scalar clip: how many codes are negative, where the grid is not symmetric.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``. In float32 and float64 every value
        is exactly ``s`` times an integer, and quantizing it again changes nothing; a
        half-precision result is that value rounded to its dtype. NaN stays NaN.

    Raises:
        ValueError: ``bits`` is out of range, or a clip is not positive and finite.

    Source: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference",
    arXiv:1806.08342, section 2; the gradient is Bengio et al., arXiv:1308.3432, that of the step
    Esser et al., "Learned step size quantization", arXiv:1902.08153, section 2.

    >>> quantize(torch.tensor([-9.0, -0.5, 0.6, 1.5]), bits=3, clip=3.0)
    tensor([-3., -0.,  1.,  2.])
    """
    size = step(bits, clip, signed, zero_point)
    lo, hi = levels(bits, signed, zero_point)
    bound = torch.as_tensor(clip, dtype=torch.float32).detach()
    low = -bound if zero_point is None and signed else lo * size
    learned = clip if isinstance(clip, Tensor) and clip.requires_grad else None
    result: Tensor = _Round.apply(x, size.to(x.device), lo, hi, low, bound.to(x.device), learned)
    return result


def codes(x: Tensor, bits: int, clip: Tensor | float, signed: bool = True) -> Tensor:
    """Return the integer codes of ``x``: int8 if signed, else uint8; arguments as in `quantize`.

    ``codes(x, ...) * step(...)`` equals ``quantize(x, ...)`` in float32, bit for bit.

    Raises:
        ValueError: As `quantize`, or ``x`` holds a NaN, which has no code.

    >>> codes(torch.tensor([-9.0, -0.5, 0.6, 1.5]), bits=3, clip=3.0)
    tensor([-3,  0,  1,  2], dtype=torch.int8)
    """
    size = step(bits, clip, signed).to(x.device)
    missing = int(x.isnan().sum())
    if missing:
        raise ValueError(f"cannot encode {missing} NaN among {x.numel()} values")
    return _round(x.detach(), size, levels(bits, signed)).to(torch.int8 if signed else torch.uint8)


class _Round(torch.autograd.Function):
    # What is saved for the backward pass is x itself, which the layer before usually keeps anyway.
    # torch.fake_quantize_* multiplies by 1 / s, which rounds differently, and takes several times
    # as long on the CPU.

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, size: Tensor, lo: int, hi: int, low: Tensor, bound: Tensor,
        learned: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, low, bound)
        ctx.grid = None if learned is None else (size, lo, hi)
        return _round(x, size, (lo, hi)).mul_(size).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, low, bound = ctx.saved_tensors
        of_clip = None if ctx.grid is None else _of_clip(grads[0], x, *ctx.grid)
        return _inside(grads[0], x, low, bound), None, None, None, None, None, of_clip


def _round(x: Tensor, size: Tensor, ends: tuple[int, int]) -> Tensor:
    return _place(x, size).round_().clamp_(*ends)


def _place(x: Tensor, size: Tensor) -> Tensor:
    wide = _wide(x)
    return torch.div(wide, size) if wide is x else wide.div_(size)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _of_clip(grad: Tensor, x: Tensor, size: Tensor, lo: int, hi: int) -> Tensor:
    """Return the gradient of the step; of the clip it moves the step as far, times ``hi``."""
    place = _place(x.detach(), size)
    code = place.round().clamp_(lo, hi)
    # Outside, where the code is an end, the step stretches the end itself.
    rise = code.sub_(_between(place, place, float(lo), float(hi))).mul_(grad)
    count = x.numel() // size.numel() if size.dim() else x[0].numel()
    return rise.sum_to_size(size.shape) * (hi / math.sqrt(count * hi))


def _inside(grad: Tensor, x: Tensor, low: Tensor, bound: Tensor) -> Tensor:
    if bound.numel() > 1:
        # A mask of floats: torch.where and a mask of booleans take many times as long on the CPU.
        within = _wide(x.detach()).abs().le_(bound)
        if not bool(low.any()):
            within.mul_(x >= 0)
        return within.to(grad.dtype).mul_(grad)
    return _between(grad, x, low.item(), bound.item())


def _between(values: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """Return the values where ``x`` lies between two float32 numbers, ends included, else 0."""
    # One pass; it leaves out both ends, hence the neighbouring numbers.
    ends, far = torch.tensor([low, high]), torch.tensor([-torch.inf, torch.inf])
    bottom, top = torch.nextafter(ends, far).tolist()
    result: Tensor = torch.ops.aten.hardtanh_backward(values, x, bottom, top)
    return result


def _offender(clip: Tensor, size: Tensor) -> float:
    bad = ~((size > 0) & torch.isfinite(clip))
    return float(clip[bad].flatten()[0]) if clip.dim() else float(clip)
