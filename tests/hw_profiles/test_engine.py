"""Engines of TensorRT by their inspector's text, in the form that its documentation shows."""

import json

import pytest

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles.measure.engine import check_precisions, precisions, read_engine

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
HALF = "Channel major FP16 format where channel % 8 == 0"
FLOAT = "Row major linear FP32"
FLOATS = Bits(32, 32)


def layer(name, kind="CaskConvolution", reads=INT8, gives=INT8):
    return {
        "Name": name, "LayerType": kind, "TacticName": "sm80_xmma_fprop_implicit_gemm",
        "Inputs": [{"Name": "x", "Dimensions": [1, 8, 8, 8], "Format/Datatype": reads}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 8, 8, 8], "Format/Datatype": gives}],
    }  # fmt: skip


def engine(*layers):
    return read_engine(json.dumps({"Layers": list(layers), "Bindings": ["x", "y"]}))


ENGINE = engine(
    layer("Reformatting CopyNode for Input Tensor 0 to conv1", "Reformat", FLOAT, INT8),
    layer("conv1 + relu"),
    layer("layer1.0.conv1 + layer1.0.relu", reads=INT8, gives=HALF),
    layer("layer1.0.conv10", reads=HALF, gives=HALF),
    layer("fc", "MatrixMultiply", FLOAT, FLOAT),
)


def test_each_layer_runs_in_the_precision_of_what_it_reads():
    names = ["conv1", "layer1.0.conv1", "layer1.0.conv10", "fc"]
    assert precisions(ENGINE, names) == {
        "conv1": "int8", "layer1.0.conv1": "int8", "layer1.0.conv10": "float16", "fc": "float32",
    }  # fmt: skip


def test_a_policy_is_taken_where_every_layer_runs_as_it_claims():
    policy = {
        "conv1": Bits(8, 8), "layer1.0.conv1": Bits(4, 8), "layer1.0.conv10": FLOATS, "fc": FLOATS,
    }  # fmt: skip
    check_precisions(ENGINE, policy)
    with pytest.raises(TargetError, match="layer 'fc' at w8a8 runs in float32"):
        check_precisions(ENGINE, policy | {"fc": Bits(8, 8)})
    with pytest.raises(TargetError, match="layer 'conv1' at fp32 runs in int8"):
        check_precisions(ENGINE, policy | {"conv1": FLOATS})


@pytest.mark.parametrize("written", ["Channel major FP8 format", "N/A due to dynamic shapes"])
def test_what_is_neither_int8_nor_float_is_what_no_bits_claim(written):
    for bits in (Bits(8, 8), FLOATS):
        with pytest.raises(TargetError, match="in TensorRT's engine, so its latency"):
            check_precisions(engine(layer("a", reads=written)), {"a": bits})


def test_a_layer_that_no_product_of_the_engine_names_is_refused():
    with pytest.raises(TargetError, match="says nothing of layer conv2"):
        precisions(ENGINE, ["conv1", "conv2"])
    with pytest.raises(TargetError, match="says nothing of layers a, b"):
        precisions(engine(layer("a", "Reformat")), ["a", "b"])


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "is not that of TensorRT's inspector"), ("[]", "inspector"), ("{}", "'Layers'"),
        ('{"Layers": ["conv1 + relu"]}', "ProfilingVerbosity.DETAILED"),
        ('{"Layers": [{"Name": "conv1"}]}', r"is not as .*\('Inputs'\)"),
        ('{"Layers": [{"Name": "a", "LayerType": "b", "Inputs": 3}]}', "not iterable"),
    ],
)  # fmt: skip
def test_what_is_no_description_with_details_is_refused(text, sentence):
    with pytest.raises(TargetError, match=sentence):
        read_engine(text)


@pytest.mark.parametrize(
    "written, precision",
    [(INT8, "int8"), (HALF, "float16"), (FLOAT, "float32"),
     ("Row major linear BFloat16", "bfloat16"),
     ("Row major linear BF16 format", "bfloat16"), ("Channel major FP8 format", "fp8"),
     ("Row major linear Int32", "other"), ("N/A due to dynamic shapes", "other")],
)  # fmt: skip
def test_formats_say_the_precision(written, precision):
    assert engine(layer("a", reads=written))[0].inputs == (precision,)
