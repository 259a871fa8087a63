import copy
import json
import random

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import nn
from torch.nn import functional

from haq.allocation.policy import FLOAT, Bits, readers
from haq.formats.onnx.lower import lower
from haq.formats.onnx.reference import simulate
from haq.formats.onnx.template import template
from haq.hw_profiles.measure import onnx_runtime
from haq.hw_profiles.measure.kernels import INTEGER, Origins
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.models import build
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize, uniform

FAMILIES = {
    "resnet20": ((3, 32, 32), 24),
    "mobilenet_v2": ((3, 32, 32), 8),  # ReLU6, depthwise, residuals without ReLU
    "digits_mlp": ((1, 8, 8), 64),
}


class Family:
    """A network with statistics, its graph, its clips and images."""

    def __init__(self, name):
        torch.manual_seed(0)
        self.shape, count = FAMILIES[name]
        self.images = torch.randn(count, *self.shape)
        width = 0.25 if name.startswith("mobilenet") else 1.0
        self.model = build(name, classes=10, width=width, size=self.shape[-1])
        with torch.no_grad():
            self.model.train()(self.images)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):  # also negative multipliers
                nn.init.uniform_(module.weight, -1.2, 1.2)
        self.graph = trace(self.model.eval(), self.images[:1])
        self.clips = calibrate(self.graph, [self.images], "max")
        self.template = template(self.quantized(uniform(self.graph, 8, 8)), self.images[:1])

    def quantized(self, policy):
        network = quantize(self.graph, policy, self.clips)
        convert_to_integers(network)
        return network

    def file(self, policy):
        return lower(self.template, self.quantized(policy))

    def mixed(self, seed, floats=False):
        draw = random.Random(seed)
        policy = {}
        for layer in self.graph.layers:
            first = policy.get(readers(self.graph.layers)[layer.name][0])
            act = first.act if first else 8 if layer.reads_input else draw.randint(2, 8)
            policy[layer.name] = Bits(draw.randint(2, 8), act)
        if floats:
            for group in dict.fromkeys(readers(self.graph.layers).values()):
                if draw.random() < 0.4:
                    policy |= dict.fromkeys(group, Bits(FLOAT, FLOAT))
        return policy


@pytest.fixture(scope="module")
def families():
    made = {}

    def family(name):
        if name not in made:
            made[name] = Family(name)
        return made[name]

    return family


every_family = pytest.mark.parametrize("name", FAMILIES)


def logits(file, images):
    session = onnx_runtime.session(file.SerializeToString(), Setup())
    return onnx_runtime.answers(session, images.numpy())


def run_graph(file):
    return onnx_runtime.opened(file.SerializeToString(), Setup()).graph


POLICIES = {
    "w8a8": lambda family: uniform(family.graph, 8, 8),
    "w4a4": lambda family: uniform(family.graph, 4, 4),
    "mixed": lambda family: family.mixed(seed=1),
    "some float": lambda family: family.mixed(seed=2, floats=True),
}
every_policy = pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)


@every_family
@every_policy
def test_onnx_runtime_computes_what_integers_say(families, name, make):
    family = families(name)
    file = family.file(make(family))
    simulated, exact = simulate(file, family.images.numpy())
    run = logits(file, family.images)
    assert exact == all(FLOAT not in bits for bits in make(family).values())
    if not exact:
        # The last digits of a float layer can put a value on the other side of a boundary.
        assert (abs(simulated - run).max(1) < 1e-4 * np.ptp(run)).mean() > 0.8
    else:
        assert np.array_equal(simulated, run)


@every_family
@every_policy
def test_a_file_answers_as_its_network(families, name, make):
    family = families(name)
    policy = make(family)
    with torch.no_grad():
        expected = family.quantized(policy)(family.images).numpy()
    found = logits(family.file(policy), family.images)
    # Float rounding now and then puts a value on the other side of a quantization boundary.
    same = abs(found - expected).max(1) < 1e-4 * np.ptp(expected)
    assert same.mean() > 0.4
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.9


@every_family
@every_policy
def test_every_layer_runs_in_the_kernel_that_its_bits_claim(families, name, make):
    family = families(name)
    policy = make(family)
    file = family.file(policy)
    kernels = Origins(file.graph, run_graph(file), list(policy)).kernels
    integer = {name for name in policy if INTEGER.issuperset(kernels[name])}
    assert integer == {name for name, bits in policy.items() if FLOAT not in bits}


@every_family
@every_policy
def test_a_file_is_plain_onnx(families, name, make):
    family = families(name)
    file = family.file(make(family))
    onnx.checker.check_model(file, full_check=True)
    assert {opset.domain for opset in file.opset_import} == {""}
    assert not file.functions
    assert not any(node.metadata_props or node.doc_string for node in file.graph.node)
    assert [value.name for value in file.graph.input] == ["images"]
    assert [value.name for value in file.graph.output] == ["logits"]
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@every_family
def test_a_stock_session_gives_the_same_logits(families, name):
    family = families(name)
    file = family.file(family.mixed(seed=2, floats=True))
    stock = onnxruntime.InferenceSession(file.SerializeToString())
    assert np.array_equal(
        onnx_runtime.answers(stock, family.images.numpy()), logits(file, family.images)
    )


@every_family
def test_a_float_policy_gives_the_float_network(families, name):
    family = families(name)
    file = family.file(dict.fromkeys(readers(family.graph.layers), Bits(FLOAT, FLOAT)))
    assert not any("Quantize" in node.op_type for node in file.graph.node)
    with torch.no_grad():
        expected = family.model(family.images).numpy()
    assert abs(logits(file, family.images) - expected).max() < 1e-4 * np.ptp(expected)


def test_every_addition_and_pooling_of_a_quantized_resnet_is_an_integer_kernel(families):
    family = families("resnet20")
    nodes = run_graph(family.file(uniform(family.graph, 8, 8))).node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("QLinearAdd") == 9
    assert kinds.count("QLinearGlobalAveragePool") == 1
    assert not {"Add", "Conv", "Gemm", "GlobalAveragePool"} & set(kinds)


def test_narrow_weights_are_stored_narrow(families):
    family = families("resnet20")
    policy = uniform(family.graph, 8, 8)
    layer = "layer3.1.conv1"
    for bits, kind in {2: TensorProto.INT2, 3: TensorProto.INT4, 5: TensorProto.INT8}.items():
        file = family.file(policy | {layer: Bits(bits, 8)})
        stored = {tensor.name: tensor for tensor in file.graph.initializer}
        codes = stored[f"{layer}.weight_codes"]
        assert codes.data_type == kind
        width = {TensorProto.INT2: 2, TensorProto.INT4: 4, TensorProto.INT8: 8}[kind]
        assert len(codes.raw_data) == 64 * 64 * 9 * width // 8


def test_the_size_of_a_file_is_that_of_its_codes_and_little_more(families):
    family = families("resnet20")
    policy = uniform(family.graph, 4, 8)
    codes = sum(
        layer.weights * (8 if policy[layer.name].weight > 4 else 4) / 8
        for layer in family.graph.layers
    )
    scales = 12 * sum(layer.c_out for layer in family.graph.layers)  # and biases and their scales
    assert family.file(policy).ByteSize() < codes + scales + 50_000


def test_metadata_is_kept(families):
    family = families("digits_mlp")
    network = family.quantized(uniform(family.graph, 4, 8))
    file = lower(family.template, network, {"model": "digits_mlp", "policy": {"fc1": [4, 8]}})
    kept = {entry.key: entry.value for entry in file.metadata_props}
    assert kept["model"] == "digits_mlp"
    assert json.loads(kept["policy"]) == {"fc1": [4, 8]}
    assert file.producer_name == "haq"


def test_a_relu6_whose_quantizer_goes_higher_stays(families):
    family = families("mobilenet_v2")
    network = family.quantized(uniform(family.graph, 8, 8))
    lowered = lower(family.template, network)
    assert not any(
        node.op_type == "Clip" and node.output[0].startswith("hardtanh")
        for node in lowered.graph.node
    )
    high = copy.deepcopy(network)
    for module in high.modules():
        if getattr(module, "signed", None) is False:
            module.clip.fill_(7.0)
    lowered = lower(family.template, high)
    names = [node.name for node in family.graph.traced.graph.nodes if "hardtanh" in node.name]
    kept = {node.output[0]: node.op_type for node in lowered.graph.node}
    assert {kept[name] for name in names} == {"Clip"}


class Oddities(nn.Module):
    """Padding by words, a norm without parameters, a layer called twice, rows in two axes."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, (3, 2), padding="same", dilation=(2, 1))
        self.bn1 = nn.BatchNorm2d(8, affine=False)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=(1, 0), groups=4)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 2)
        x = functional.relu(self.conv2(x))
        x = x.flatten(2).transpose(1, 2)  # (N, positions, 8)
        x = functional.gelu(self.mix(self.mix(x)))
        return self.head(x.mean(1))


def test_what_networks_of_others_are_made_of():
    torch.manual_seed(0)
    model = Oddities()
    images = torch.randn(32, 2, 12, 12)
    with torch.no_grad():
        model.train()(images)
    graph = trace(model.eval(), images[:1])
    clips = calibrate(graph, [images], "max")
    for policy in (uniform(graph, 8, 8), uniform(graph, 3, 5)):
        network = quantize(graph, policy, clips)
        convert_to_integers(network)
        file = lower(template(network, images[:1]), network)
        onnx.checker.check_model(file, full_check=True)
        with torch.no_grad():
            expected = network(images).numpy()
        found = logits(file, images)
        assert abs(found - expected).max() < 0.05 * np.ptp(expected)
        assert abs(simulate(file, images.numpy()).logits - found).max() < 1e-4 * np.ptp(expected)


def exported(model, images, weight=8, act=8):
    """Return a network in integer form, its file, and what the two give for the images."""
    graph = trace(model.eval(), images[:1])
    network = quantize(graph, uniform(graph, weight, act), calibrate(graph, [images], "max"))
    convert_to_integers(network)
    file = lower(template(network, images[:1]), network)
    onnx.checker.check_model(file, full_check=True)
    with torch.no_grad():
        return network, file, network(images).numpy(), logits(file, images)


def test_a_layer_that_pads_by_reflection_reads_what_a_pad_gives():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(32, 2)
    )
    _, file, wanted, given = exported(model, torch.randn(4, 1, 4, 4))
    assert [node.op_type for node in file.graph.node if node.op_type in ("Pad", "Conv")] == [
        "Pad", "Conv"
    ]  # fmt: skip
    assert abs(wanted - given).max() < 1e-5 * abs(wanted).max()


@pytest.mark.parametrize("gamma", [0.0, 1e-6, 1e-12, 1e-42])
def test_channels_that_do_next_to_nothing_keep_their_bias(gamma):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 4),
    )  # fmt: skip
    images = torch.randn(32, 2, 6, 6)
    with torch.no_grad():
        before = model.train()(images)
        model[1].weight[:4], model[1].bias[:4] = gamma, 0.5
        before = model.eval()(images).numpy()
    _, file, expected, found = exported(model, images)
    assert abs(found - expected).max() < 1e-4 * np.ptp(expected)
    assert abs(expected - before).max() < 0.05 * np.ptp(before)
    assert np.array_equal(simulate(file, images.numpy()).logits, found)


class Turned(nn.Module):
    """Positions first, the batch second, as some attention has it."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = functional.relu(self.one(x.permute(1, 0, 2)))
        return self.two(x.mean(0))


class Clamped(nn.Module):
    """A ReLU6 as the last operation, a sum that is cut, a pad with ones, a mean over positions."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.three = nn.Linear(6, 3)

    def forward(self, x):
        x = self.one(functional.pad(x, (1, 1, 1, 1), value=1.0))
        x = torch.clamp(x + self.two(x), 0, 6)
        x = x.flatten(2).transpose(1, 2)[:, :, :4]  # (N, positions, 4)
        return functional.relu6(self.three(torch.cat([x, x[:, :, :2]], 2).mean(1)))


class Named(nn.Module):
    """Layers that bear the names of operations."""

    def __init__(self):
        super().__init__()
        self.relu, self.add = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.mean = nn.Linear(4, 3)

    def forward(self, x):
        x = functional.relu(self.relu(x))
        return self.mean(functional.relu(x + self.add(x)).mean((2, 3)))


@pytest.mark.parametrize(
    "model, shape", [(Turned, (5, 6)), (Clamped, (2, 6, 6)), (Named, (2, 6, 6))]
)
def test_odd_networks_come_out_as_they_are(model, shape):
    torch.manual_seed(0)
    images = torch.randn(32, *shape)
    network, file, expected, found = exported(model(), images, weight=4, act=6)
    assert abs(found - expected).max() < 0.05 * np.ptp(expected)
    worked_out, exact = simulate(file, images.numpy())
    difference = abs(worked_out - found).max()
    assert difference == 0 if exact else difference < 0.05 * np.ptp(found)
    names = [name for name, module in network.named_modules() if hasattr(module, "weight_bits")]
    kernels = Origins(file.graph, run_graph(file), names).kernels
    assert all(INTEGER.issuperset(found) and found for found in kernels.values())


def test_one_scale_a_layer():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    )  # fmt: skip
    images = torch.randn(32, 1, 6, 6)
    with torch.no_grad():
        model.train()(images)
    graph = trace(model.eval(), images)
    clips = calibrate(graph, [images], "max", per_channel=False)
    network = quantize(graph, uniform(graph, 4, 4), clips)
    convert_to_integers(network)
    file = lower(template(network, images[:1]), network)
    with torch.no_grad():
        expected = network(images).numpy()
    found = logits(file, images)
    assert abs(found - expected).max() < 0.05 * np.ptp(expected)
    assert np.array_equal(simulate(file, images.numpy()).logits, found)
