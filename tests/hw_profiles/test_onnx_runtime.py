"""ONNX Runtime: which kernel runs a layer, and networks that are opened and measured."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from haq.errors import HaqError, TargetError
from haq.hw_profiles.measure import kernels, onnx_runtime
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measured import (
    FLOATS,
    INTEGERS,
)

SETUP = Setup()


def chain(*quantized, rounds_output=True):
    """Return a model of 3x3 convolutions "l0", "l1", …: those quantized have integers around them.

    Args:
        quantized: For each convolution whether it is; a ReLU follows each.
        rounds_output: Whether what the last one gives is rounded too.
    """
    nodes, constants = [], []

    def add(kind, inputs, output, name=None, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name or output, **attributes))
        return output

    def constant(name, values):
        constants.append(numpy_helper.from_array(values, name))
        return name

    def rounded(tensor, name):
        scale = constant(f"{name}.scale", np.float32(0.02))
        zero = constant(f"{name}.zero", np.uint8(0))
        codes = add("QuantizeLinear", [tensor, scale, zero], f"{name}.q")
        return add("DequantizeLinear", [codes, scale, zero], f"{name}.d")

    generator = np.random.default_rng(0)
    tensor, grid = "images", False
    for place, integer in enumerate(quantized):
        name = f"l{place}"
        if integer and not grid:
            tensor = rounded(tensor, f"{name}.input")
        values = generator.integers(-127, 128, (16, 16, 3, 3))
        if integer:
            codes = constant(f"{name}.codes", values.astype(np.int8))
            scale = constant(f"{name}.weight_scale", np.full(16, 0.001, np.float32))
            zero = constant(f"{name}.weight_zero", np.zeros(16, np.int8))
            weight = add("DequantizeLinear", [codes, scale, zero], f"{name}.w", axis=0)
        else:
            weight = constant(f"{name}.w", (values * 0.001).astype(np.float32))
        add("Conv", [tensor, weight], f"{name}.sum", name, pads=[1] * 4)
        tensor, grid = add("Relu", [f"{name}.sum"], f"{name}.relu"), False
        if integer and (rounds_output or place + 1 < len(quantized)):
            tensor, grid = rounded(tensor, f"{name}.output"), True
    add("Identity", [tensor], "logits")
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 16, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 16, 8, 8])
    graph = helper.make_graph(nodes, "chain", [images], [logits], constants)
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def origins(model, count):
    names = [f"l{place}" for place in range(count)]
    run = onnx_runtime.opened(model.SerializeToString(), SETUP).graph
    return kernels.Origins(model.graph, run, names)


def bits(*quantized):
    return {f"l{place}": INTEGERS if one else FLOATS for place, one in enumerate(quantized)}


# --- kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quantized",
    [(True, True, True), (False, False, False), (False, True, False), (True, False, True)],
)
def test_layers_run_in_the_kernels_their_bits_claim(quantized):
    """The last case is that of a float layer that ONNX Runtime would quantize by default."""
    found = origins(chain(*quantized), 3)
    kernels.check_kernels(found.kernels, bits(*quantized))
    for name, integer in zip(found.kernels, quantized, strict=True):
        assert found.kernels[name] == (["QLinearConv"] if integer else ["Conv"])


def test_a_layer_in_another_kernel_is_named():
    found = origins(chain(True, True, rounds_output=False), 2)
    with pytest.raises(
        TargetError,
        match=r"layer 'l1' at w8a8 should run in an integer kernel, but ONNX Runtime runs it in "
        r"(Fused)?Conv;",
    ):
        kernels.check_kernels(found.kernels, bits(True, True))
    assert [name for name, _ in kernels.misplaced(found.kernels, bits(True, True))] == ["l1"]


def test_a_float_layer_in_an_integer_kernel_is_named():
    found = origins(chain(True, True), 2)
    with pytest.raises(TargetError, match="layer 'l0' at fp32 should run in a float kernel, but"):
        kernels.check_kernels(found.kernels, bits(False, True))


def test_every_node_that_runs_belongs_to_a_layer():
    model = chain(False, True, False)
    found = origins(model, 3)
    times = onnx_runtime.node_times(model.SerializeToString(), SETUP, runs=2)
    assert times.keys() == found.layers.keys()
    assert set(found.layers.values()) == {"l0", "l1", "l2"}
    assert all(us >= 0 for us in times.values())


# --- sessions ----------------------------------------------------------------------------------


def test_what_is_no_model_is_refused():
    with pytest.raises(TargetError, match="ONNX Runtime cannot load the model on CPUExecution"):
        onnx_runtime.session(b"nothing", SETUP)


def test_a_provider_that_is_not_there_names_those_that_are(provider="cuda"):
    if onnx_runtime.PROVIDERS[provider] in onnxruntime.get_available_providers():
        pytest.skip(f"ONNX Runtime has {onnx_runtime.PROVIDERS[provider]} here")
    with pytest.raises(TargetError, match=f"{provider}.*finds only .*CPUExecutionProvider.* here"):
        onnx_runtime.check_provider(provider)


def test_unknown_providers_are_refused():
    with pytest.raises(HaqError, match=r"unknown provider 'cpus'; did you mean 'cpu'\?"):
        onnx_runtime.check_provider("cpus")


def test_a_gpu_is_measured_by_wall_time_after_many_warm_ups():
    setup = Setup("cuda")
    assert (setup.clock, setup.warm_ups) == ("wall time", 50)


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="ONNX Runtime has no CUDAExecutionProvider here",
)
def test_a_gpu_runs_and_waits():
    model = chain(False, False).SerializeToString()
    setup = Setup("cuda")
    timings = onnx_runtime.measure({"fp32": onnx_runtime.session(model, setup)}, setup, rounds=3)
    assert timings["fp32"].us > 0


@pytest.mark.parametrize("batch", [1, 3])
def test_networks_are_measured_for_their_batch(batch):
    setup = Setup(batch=batch)
    models = {"float": chain(False, False), "integer": chain(True, True)}
    sessions = {
        name: onnx_runtime.session(model.SerializeToString(), setup)
        for name, model in models.items()
    }
    seen = []
    timings = onnx_runtime.measure(
        sessions, setup, rounds=3, on_round=lambda done, most: seen.append((done, most))
    )
    assert timings.keys() == models.keys()
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for one in timings.values():
        assert one.samples == 3
        assert 0 < one.low <= one.us <= one.high
        assert one.us <= one.p50 <= one.p90


def test_one_thread_is_measured_by_its_own_clock():
    assert Setup(threads=1).clock == "thread CPU time"
    assert Setup(threads=2).clock == "wall time"
    assert Setup(threads=2).options["threads"] == 2
