"""Engines of TensorRT by their inspector's text, in the form that its documentation shows."""

import json

import pytest

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles.measure.engine import check_precisions, owners, precisions, read_engine

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
        "conv1": ("int8",), "layer1.0.conv1": ("int8",), "layer1.0.conv10": ("float16",),
        "fc": ("float32",),
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


def tensor(name, **fields):
    return {"Name": name, "Location": "Device", "Dimensions": [1, 32, 8, 8], **fields}


def test_an_engine_of_version_8_as_it_was_recorded():
    """Two layers of a MobileNetV2 as TensorRT's inspector wrote them, with our nodes' names."""
    text = """{"Layers": [{
      "Name": "QuantizeLinear_2", "LayerType": "Reformat",
      "Inputs": [{"Name": "inputs.1", "Location": "Device", "Dimensions": [1,3,224,224],
                  "Format/Datatype": "Row major linear FP32"}],
      "Outputs": [{"Name": "433", "Location": "Device", "Dimensions": [1,3,224,224],
                   "Format/Datatype": "Four wide channel vectorized row major Int8 format"}],
      "ParameterType": "Reformat", "Origin": "QDQ", "TacticValue": "0x0000000000000000"
    },{
      "Name": "features.0.0.weight_dequantized + features.0.0 + PWN(op/c)",
      "LayerType": "CaskConvolution",
      "Inputs": [{"Name": "433", "Location": "Device", "Dimensions": [1,3,224,224],
                  "Format/Datatype": "Four wide channel vectorized row major Int8 format"}],
      "Outputs": [{"Name": "449", "Location": "Device", "Dimensions": [1,32,112,112],
                   "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
      "ParameterType": "Convolution", "Kernel": [3,3], "Groups": 1,
      "Weights": {"Type": "Int8", "Count": 864}, "Bias": {"Type": "Float", "Count": 32},
      "TacticName": "volta_int8x4_icudnn_int8x4_128x32_relu_xregs_small_c32_nn_v1"
    },{
      "Name": "features.1.conv.0.0.weight_codes + features.1.conv.0.0", "LayerType":
      "CudaDepthwiseConvolution",
      "Inputs": [{"Name": "449", "Location": "Device", "Dimensions": [1,32,112,112],
                  "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
      "Outputs": [{"Name": "465", "Location": "Device", "Dimensions": [1,32,112,112],
                   "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
      "ParameterType": "Convolution", "Kernel": [3,3], "Groups": 32,
      "Weights": {"Type": "Int8", "Count": 288}, "TacticValue": "0x0000000000000001"
    }], "Bindings": ["inputs.1", "465"]}"""
    ran = read_engine(text)
    names = ["features.0.0", "features.1.conv.0.0"]
    assert precisions(ran, names) == dict.fromkeys(names, ("int8",))
    check_precisions(ran, dict.fromkeys(names, Bits(4, 8)))
    assert owners(ran, names) == {
        ran[0].name: "features.0.0", ran[1].name: "features.0.0",
        ran[2].name: "features.1.conv.0.0",
    }  # fmt: skip


def test_an_engine_of_version_11_says_types_in_a_field_of_their_own():
    """And nodes in "Metadata", with control characters between them."""
    layers = [
        {"Name": "__myl_Conv_myl0_1", "LayerType": "fusion",
         "Metadata": "[ONNX Layer: a.weight_dequantized]\x1f[ONNX Layer: a]\x1e[ONNX Layer: op/r]",
         "Inputs": [tensor("x", DataType="Int8", Format="kCHW32")],
         "Outputs": [tensor("y", DataType="Int8", Format="kCHW32")]},
        {"Name": "/MatMul+b_myl0_2", "LayerType": "gemm",
         "Inputs": [tensor("y", DataType="Half", Format="kLINEAR")],
         "Outputs": [tensor("z", DataType="Half", Format="kLINEAR")]},
        {"Name": "__myl_AddCast", "LayerType": "kgen", "Metadata": "[ONNX Layer: b]",
         "Inputs": [tensor("z", DataType="Float", Format="kLINEAR")],
         "Outputs": [tensor("w", DataType="Float", Format="kLINEAR")]},
    ]  # fmt: skip
    ran = read_engine(json.dumps({"Layers": layers, "I/O Tensors": []}))
    # What adds a bias behind a product is not the product.
    assert precisions(ran, ["a", "b"]) == {"a": ("int8",), "b": ("float16",)}
    check_precisions(ran, {"a": Bits(8, 8), "b": FLOATS})
    assert owners(ran, ["a", "b"])["__myl_AddCast"] == "b"


def test_quantizers_beside_a_layer_are_not_the_layer():
    ran = engine(layer("conv1.quantized", "Myelin", FLOAT, INT8), layer("conv1 + relu", reads=HALF))
    assert precisions(ran, ["conv1"]) == {"conv1": ("float16",)}
    with pytest.raises(TargetError, match="layer 'conv1' at w8a8 runs in float16"):
        check_precisions(ran, {"conv1": Bits(8, 8)})


def test_every_call_of_a_layer_must_run_as_it_claims():
    twice = engine(layer("a"), layer("a/out_2", reads=HALF))
    assert precisions(twice, ["a"]) == {"a": ("int8", "float16")}
    with pytest.raises(TargetError, match="layer 'a' at w8a8 runs in int8 and float16"):
        check_precisions(twice, {"a": Bits(8, 8)})
