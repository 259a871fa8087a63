"""How the weights of layers with a codebook are written: labels, values, and a Gather of them.

ONNX Runtime carries the Gather out when it loads the file; what computes the layer is its kernel of
floats. Labels take 2, 4 or 8 bits in the file.
"""

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from haq.formats.onnx.writer import Array, Writer
from haq.network.modules import Product, along_weight
from haq.quantization.bn_folding import Norm, affine
from haq.quantization.codebook import Booked

_STORED = {2: ml_dtypes.uint2, 4: ml_dtypes.uint4, 8: np.uint8}


def book_weight(file: Writer, name: str, module: Booked, norm: Norm | None = None) -> str:
    """Write the weights of a layer once, times the multipliers of the BatchNorm behind it.

    Returns:
        The tensor of floats, in the shape of the layer's weights.
    """
    weight = f"{name}.weight_values"
    if f"{name}.weight_labels" not in file.constants:
        kind = next(kind for bits, kind in _STORED.items() if bits >= module.weight_bits)
        labels: Array = module.labels.numpy()
        values: Array = module.book.detach().numpy()
        stored = file.constant(f"{name}.weight_labels", labels.astype(kind))
        book = file.constant(f"{name}.weight_book", values)
        places = f"{name}.weight_places"
        file.first += [
            helper.make_node("Cast", [stored], [places], places, to=TensorProto.INT32),
            helper.make_node("Gather", [book, places], [weight], weight),
        ]
    return weight if norm is None else _merged(file, name, module, norm, weight)


def _merged(file: Writer, name: str, module: Booked, norm: Norm, weight: str) -> str:
    merged = f"{name}.weight_merged"
    if f"{name}.multiplier" not in file.constants:
        assert isinstance(module, Product)
        multiplier, _ = affine(norm)
        column = file.constant(f"{name}.multiplier", along_weight(multiplier, module).numpy())
        file.first.append(helper.make_node("Mul", [weight, column], [merged], merged))
    return merged
