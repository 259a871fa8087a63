"""A quantized network in one small file: integer codes at their bit-width, and what else it needs.

The file is safetensors with six or seven tensors of one dimension. In each lie, one after another,
the values of all modules, in the order in which the forward first calls them::

    codes        U8   weights as two's complement of their layer's bit-width, the first code in the
                      lowest bits of the first byte; every layer begins with a new byte
    scales       F32  steps of the weights, one per output channel or one per layer
    act_scales   F32  steps of the activations, one per quantizer
    multipliers  F32  of BatchNorms that follow a layer, one per channel; empty where all are 1
    biases       F32  of layers, and of those BatchNorms
    floats       F32  parameters and buffers of all else, after those of the layers left in float
    others       U8   little-endian bytes of the buffers that are not float32, each in its own type;
                      left out where there are none

and one entry of metadata, "haq", a JSON object with the fields of ``Content``. Weights are
symmetric and lack the most negative code; activations count from zero where they cannot be
negative and are symmetric where they can, unless the field "skews" says how many of their codes are
negative.

What is loaded gives the logits of what was saved, bit for bit, on the CPU. That is why saving folds
no BatchNorm into the weights: their products with its multiplier would be rounded once more, and an
activation that is near the border of two levels would now and then fall on the other side. Instead
its four vectors become the two that PyTorch makes of them itself before it sees an image, a
multiplier and a bias. (A BatchNorm that does not follow a layer stays as it is: for an input that
is not contiguous PyTorch computes otherwise.) A network whose last step was
``haq.quantization.bn_folding.fold_norms`` has multipliers of 1, and its file is as large as the
cost "size" says, but for the header and the scales of the activations.

What was loaded is made to be run. To train a network further take the weights of its run.
"""

from haq.formats.checkpoint.header import FORMAT, HEADER, TENSORS, Content, LayerRecord, Origin
from haq.formats.checkpoint.read import about, load
from haq.formats.checkpoint.write import check_savable, encode, save

__all__ = [
    "FORMAT",
    "HEADER",
    "TENSORS",
    "Content",
    "LayerRecord",
    "Origin",
    "about",
    "check_savable",
    "encode",
    "load",
    "save",
]
