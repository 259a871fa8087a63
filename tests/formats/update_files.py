"""Safetensors files for packets, without a network: checkpoints of random codes, and floats."""

import json
import struct

import numpy as np

from haq.formats import sparse
from haq.formats.packing import pack
from haq.formats.update.network import parse

TYPES = {"float32": "F32", "uint8": "U8", "int64": "I64", "float16": "F16", "int8": "I8"}
CODED = {"conv1": "bitmask", "conv2": "coded mask", "deep": "relative index"}
SHAPES = {"conv1": (8, 3, 3, 3), "conv2": (12, 8, 3, 3), "deep": (12, 1, 5, 5), "fc": (10, 12)}


def safetensors(tensors, metadata=None):
    """Return the bytes of a safetensors file; names in the order given."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, values in tensors.items():
        part = np.asarray(values).tobytes()
        place = [len(data), len(data) + len(part)]
        dtype = TYPES[str(np.asarray(values).dtype)]
        header[name] = {"dtype": dtype, "shape": list(np.shape(values)), "data_offsets": place}
        data += part
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def checkpoint(codes, bits, scales=None, biases=None, **fields):
    """Return the bytes of a checkpoint of HAQ.

    Args:
        codes: Layer to integers of the weights' shape.
        bits: Layer to its bits.
        scales: Layer to as many steps as it has; 0.01 a channel without them.
        biases: Float32 values; some without them.
        fields: More of the metadata.
    """
    steps = {
        name: np.full(len(z), 0.01, np.float32) if scales is None else scales[name]
        for name, z in codes.items()
    }
    rows = [[n, list(z.shape), bits[n], 8, len(steps[n])] for n, z in codes.items()]
    about = {"format": "haq-checkpoint/1", "model": "toy", "layers": rows, **fields}
    tensors = {
        "biases": np.arange(7, dtype=np.float32) / 3 if biases is None else biases,
        "floats": np.zeros(0, np.float32),
        "scales": np.concatenate([np.asarray(s, np.float32) for s in steps.values()]),
        "codes": np.frombuffer(b"".join(pack(z, bits[n]) for n, z in codes.items()), np.uint8),
    }
    return safetensors(tensors, {"haq": json.dumps(about)})


def weights(seed=0, shapes=SHAPES, spread=1.0):
    """Return Laplacian weights for each shape."""
    numbers = np.random.default_rng(seed)
    return {n: numbers.laplace(0, spread, s).astype(np.float32) for n, s in shapes.items()}


def smooth(shape=(12, 10, 3, 3)):
    """Return weights whose kernels are nearly flat: their places predict each other."""
    numbers = np.random.default_rng(4)
    whole = numbers.laplace(0, 1, (*shape[:2], 1, 1)) + numbers.laplace(0, 0.03, shape)
    return {"conv": whole.astype(np.float32)}


def moved(known, energy, seed=1):
    """Return weights that differ by this share of their energy, as fine-tuning leaves them."""
    numbers = np.random.default_rng(seed)
    return {
        name: (w + numbers.laplace(0, w.std() * np.sqrt(energy / 2), w.shape)).astype(np.float32)
        for name, w in known.items()
    }


def quantized(known, bits, **fields):
    """Return the bytes of a checkpoint of weights, a step a channel, the largest code the largest.

    Args:
        known: Weights by name.
        bits: Of all layers, or by name.
        fields: As for ``checkpoint``.
    """
    widths = {n: bits if isinstance(bits, int) else bits[n] for n in known}
    scales, codes = {}, {}
    for name, w in known.items():
        top = 2 ** (widths[name] - 1) - 1
        step = np.abs(w).reshape(len(w), -1).max(1) / top
        scales[name] = np.where(step > 0, step, 1).astype(np.float32)
        along = scales[name].reshape(-1, *[1] * (w.ndim - 1))
        codes[name] = np.clip(np.rint(w / along), -top, top).astype(np.int32)
    return checkpoint(codes, widths, scales, **fields)


def pruned(seed, share=0.7, codings=CODED):
    """Return the bytes of a checkpoint of pruned layers, each in a format, and one in groups."""
    known, numbers = weights(0), np.random.default_rng(seed)
    near, codes, steps = moved(known, 0.01 * (1 + seed), seed), {}, {}
    for name, w in near.items():
        top = np.abs(w).max()
        kept = np.abs(known[name]) >= np.quantile(np.abs(known[name]), share)
        codes[name] = np.rint(w / top * 31 * (kept if name in codings else 1)).astype(np.int8)
        steps[name] = np.float32([top / 31])
    groups = numbers.uniform(0.1, 0.2, (10, 3)).astype(np.float16)
    grouped = np.repeat(groups.astype(np.float32), 5, 1)[:, :12]
    codes["fc"] = np.clip(np.rint(near["fc"] / grouped), -8, 7).astype(np.int8)
    bits = {name: 4 if name == "fc" else 6 for name in codes}
    data = {n: sparse.FORMATS[codings.get(n, "dense")].write(z.ravel(), bits[n])
            for n, z in codes.items()}  # fmt: skip
    rows = [[n, list(z.shape), bits[n], 8, 30 if n == "fc" else 1] for n, z in codes.items()]
    about = {
        "format": "haq-checkpoint/1", "layers": rows, "formats": {"fc": [5, ""]},
        "codings": {name: [codings[name], len(data[name])] for name in codings},
    }  # fmt: skip
    tensors = {
        "biases": np.arange(7, dtype=np.float32) / 3, "group_scales": groups.ravel(),
        "scales": np.concatenate([steps[n] for n in codes if n != "fc"]),
        "codes": np.frombuffer(b"".join(data.values()), np.uint8),
    }  # fmt: skip
    return safetensors(tensors, {"haq": json.dumps(about)})


def floats(known, **more):
    """Return the bytes of a float checkpoint: weights, and other tensors."""
    return safetensors({**{f"{n}.weight": w for n, w in known.items()}, **more}, {"format": "pt"})


def network(data):
    """Return the network in the bytes of a file."""
    return parse(data)
