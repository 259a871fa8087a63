import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from haq.errors import HaqError, ModelError
from haq.models import MODELS, build, input_shape
from haq.models.mobilenet import scaled
from haq.models.resnet_cifar import Shortcut, resnet_cifar

every_model = pytest.mark.parametrize("name", MODELS)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def strides(model):
    return [m.stride[0] for m in model.modules() if isinstance(m, nn.Conv2d)]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of the user's into the current folder; it is forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(text):
        Path("my_nets.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@every_model
def test_every_model_can_be_traced_and_gives_its_default_classes(name):
    traced = torch.fx.symbolic_trace(build(name).eval())
    with torch.no_grad():
        assert traced(torch.zeros(1, *input_shape(name))).shape == (1, MODELS[name].classes)


@every_model
def test_every_model_takes_another_number_of_classes(name):
    smallest = min(MODELS[name].sizes)
    model = build(name, classes=7, size=smallest).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, *input_shape(name, smallest))).shape == (2, 7)


@every_model
def test_the_seed_decides_the_first_weights(name):
    torch.manual_seed(3)
    once = build(name, classes=2).state_dict()
    torch.manual_seed(3)
    again = build(name, classes=2).state_dict()
    assert all(torch.equal(once[key], again[key]) for key in once)


@every_model
def test_every_model_reuses_no_module(name):
    model = build(name, classes=2)
    traced = torch.fx.symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert len(called) == len(set(called))


@pytest.mark.parametrize(
    "name, count",
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("mobilenet_v1", 4_231_976),
        ("mobilenet_v2", 3_504_872),
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
    ],
)
def test_parameters_are_those_of_the_published_models(name, count):
    assert parameters(build(name)) == count


def test_the_mlp_by_hand():
    assert parameters(build("digits_mlp")) == 65 * 64 + 65 * 48 + 49 * 32 + 33 * 10


def test_the_small_cnn_by_hand():
    convolutions = 9 * 16 + 9 * 16 * 32 + 9 * 32 + 32 * 64
    norms = 2 * (16 + 32 + 32 + 64)
    assert parameters(build("digits_cnn")) == convolutions + norms + (64 + 1) * 10


@pytest.mark.parametrize(
    "name, width, count",
    [
        ("mobilenet_v1", 0.25, 470_072),
        ("mobilenet_v1", 0.5, 1_331_592),
        ("mobilenet_v1", 0.75, 2_585_560),
        ("mobilenet_v2", 0.5, 1_968_680),
        ("mobilenet_v2", 1.4, 6_108_776),
    ],
)
def test_parameters_at_published_widths(name, width, count):
    assert parameters(build(name, width=width)) == count


@pytest.mark.parametrize(
    "channels, width, expected",
    [(32, 1.0, 32), (32, 0.75, 24), (24, 0.5, 16), (24, 0.35, 8), (32, 0.1, 8), (96, 0.1, 16)],
)
def test_scaled_channels_by_hand(channels, width, expected):
    # 24 * 0.5 = 12 rounds up to 16; 96 * 0.1 = 9.6 would round to 8, which is below 8.64.
    assert scaled(channels, width) == expected


def test_the_last_convolution_of_v2_does_not_shrink():
    assert build("mobilenet_v2", width=0.5).classifier[1].in_features == 1280
    assert build("mobilenet_v2", width=1.4).classifier[1].in_features == 1792


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_small_images_have_two_strides_less_and_the_same_weights(name):
    small, large = build(name, size=32), build(name, size=224)
    assert strides(large).count(2) == 5
    assert strides(small).count(2) == 3
    assert strides(small)[0] == 1
    shapes = [{key: t.shape for key, t in m.state_dict().items()} for m in (small, large)]
    assert shapes[0] == shapes[1]
    small.pool.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0].shape[2:]))
    last = []
    small.eval()(torch.zeros(1, 3, 32, 32))
    assert last == [(4, 4)]


SHAPES = {
    "resnet20": {
        "conv1.weight": (16, 3, 3, 3),
        "bn1.running_mean": (16,),
        "layer1.0.conv1.weight": (16, 16, 3, 3),
        "layer2.0.conv1.weight": (32, 16, 3, 3),
        "layer3.2.bn2.bias": (64,),
        "linear.weight": (10, 64),
        "linear.bias": (10,),
    },
    "mobilenet_v2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.0.1.running_var": (32,),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.1.conv.2.bias": (16,),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.2.conv.1.0.weight": (96, 1, 3, 3),
        "features.2.conv.1.1.num_batches_tracked": (),
        "features.2.conv.2.weight": (24, 96, 1, 1),
        "features.2.conv.3.weight": (24,),
        "features.17.conv.2.weight": (320, 960, 1, 1),
        "features.18.0.weight": (1280, 320, 1, 1),
        "features.18.1.weight": (1280,),
        "classifier.1.weight": (1000, 1280),
        "classifier.1.bias": (1000,),
    },
    "mobilenet_v1": {
        "conv1.0.weight": (32, 3, 3, 3),
        "features.0.0.weight": (32, 1, 3, 3),
        "features.0.3.weight": (64, 32, 1, 1),
        "features.12.4.bias": (1024,),
        "classifier.0.weight": (1000, 1024),
    },
    "resnet18": {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (128,),
        "layer4.1.bn2.weight": (512,),
        "fc.weight": (1000, 512),
    },
    "resnet50": {
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.bn3.weight": (2048,),
        "fc.bias": (1000,),
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_are_those_of_public_checkpoints(name):
    own = {key: tuple(tensor.shape) for key, tensor in build(name).state_dict().items()}
    assert SHAPES[name].items() <= own.items()


@pytest.mark.parametrize(
    "name, entries",
    [("resnet20", 116), ("mobilenet_v2", 314), ("resnet18", 122), ("resnet50", 320)],
)
def test_no_other_entries(name, entries):
    # resnet20: 19 convolutions, 19 norms of five entries, a head of two.
    assert len(build(name).state_dict()) == entries


def test_resnet50_has_its_strides_in_the_3x3():
    block = build("resnet50").layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_the_shortcut_has_no_parameters_and_puts_zeros_on_both_sides():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    out = Shortcut(added=2)(x)
    assert out[0, 1].tolist() == [[0, 2], [8, 10]]
    assert out.shape == (1, 3, 2, 2)
    assert out[0, [0, 2]].abs().sum() == 0


def test_convolutions_start_kaiming_normal():
    torch.manual_seed(0)
    weight = build("resnet20").layer3[2].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_a_depth_that_is_no_cifar_resnet(depth):
    with pytest.raises(ValueError, match=f"depth must be 6n \\+ 2 with n >= 1, not {depth}"):
        resnet_cifar(depth)


def test_input_shapes():
    assert input_shape("resnet20") == (3, 32, 32)
    assert input_shape("resnet20", 64) == (3, 64, 64)
    assert input_shape("mobilenet_v2") == (3, 224, 224)
    assert input_shape("resnet50") == (3, 224, 224)
    assert input_shape("digits_mlp") == (1, 8, 8)
    assert input_shape("my_nets:net", 48) is None


@pytest.mark.parametrize("ask", [build, input_shape])
def test_an_unknown_model_is_named_with_what_was_meant(ask):
    with pytest.raises(
        HaqError, match=r"unknown model 'mobilnet_v1'; did you mean 'mobilenet_v1'\?"
    ):
        ask("mobilnet_v1")


@pytest.mark.parametrize("classes", [1, 0, -3, 100_001, True, 2.5])
def test_wrong_classes(classes):
    with pytest.raises(ModelError, match=f"cannot have {classes} classes; give 2 to 100000"):
        build("resnet20", classes)


@pytest.mark.parametrize("width", [0.0, -1.0, 0.09, 4.1, float("nan"), float("inf")])
def test_wrong_widths(width):
    with pytest.raises(ModelError, match=f"width {width:g} is out of range; give 0.1 to 4"):
        build("mobilenet_v2", width=width)


@every_model
def test_a_width_is_refused_where_the_family_has_none(name):
    if MODELS[name].has_width:
        assert parameters(build(name, width=0.1)) < parameters(build(name))
    else:
        with pytest.raises(ModelError, match=r"has no width 0.5: only mobilenet_v1, mobilenet_v2"):
            build(name, width=0.5)


@pytest.mark.parametrize(
    "name, size, known",
    [
        ("mobilenet_v2", 64, "32 or 224"),
        ("mobilenet_v1", 0, "32 or 224"),
        ("resnet20", 7, "8 to 256"),
        ("resnet18", -32, "32 to 1024"),
        ("digits_cnn", 32, "8"),
    ],
)
def test_wrong_sizes(name, size, known):
    message = f"{name} does not take images of size {size}; give {known}$"
    for ask in (build, input_shape):
        with pytest.raises(ModelError, match=message):
            ask(name, size=size)


NETS = """
from torch import nn

size = 3

def net():
    return nn.Linear(4, 2)

def head(classes=5):
    return nn.Linear(4, classes)

def bare(classes):
    return nn.Linear(4, classes)

def deep(depth, classes=2):
    return nn.Linear(depth, classes)

def number():
    return 7

def broken():
    return {}["weights"]

class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
"""


def test_a_factory_in_the_current_folder(module):
    module(NETS)
    assert build("my_nets:net", classes=10, size=64).out_features == 2
    assert build("my_nets:Net").out_features == 3


def test_a_factory_is_told_the_classes_where_it_asks(module):
    module(NETS)
    assert build("my_nets:head").out_features == 5
    assert build("my_nets:head", classes=9).out_features == 9
    assert build("my_nets:bare", classes=9).out_features == 9


def test_a_factory_of_an_installed_package():
    assert isinstance(build("torch.nn:Identity"), nn.Identity)


@pytest.mark.parametrize(
    "name, message",
    [
        ("my_net:net", "no module 'my_net' for model 'my_net:net': install it"),
        ("my_nets.cifar:net", "no module 'my_nets.cifar' for model"),
        ("my_nets:nett", "module 'my_nets' has no 'nett'; did you mean 'net'?"),
        ("my_nets:zzzzzz", "module 'my_nets' has no 'zzzzzz'$"),
        ("my_nets:size", "my_nets:size is of type int and cannot be called; name a function"),
        ("my_nets:number", "my_nets:number returned int, not a torch.nn.Module"),
        ("my_nets:deep", "my_nets:deep cannot be called without depth: give each parameter"),
        ("my_nets:bare", "without classes: give each parameter a default, or the number"),
        ("my_nets:", "model 'my_nets:' cannot be read; write package.module:factory"),
        (":net", "model ':net' cannot be read"),
        ("../my_nets:net", "model '../my_nets:net' cannot be read"),
        ("my_nets:net:net", "model 'my_nets:net:net' cannot be read"),
    ],
)
def test_a_factory_that_cannot_be_used(module, name, message):
    module(NETS)
    with pytest.raises(ModelError, match=message):
        build(name)


def test_a_factory_takes_no_width(module):
    module(NETS)
    with pytest.raises(ModelError, match=r"my_nets:net has no width 0.5: only mobilenet_v1"):
        build("my_nets:net", width=0.5)


def test_an_error_inside_a_factory_is_shown_as_it_is(module):
    module(NETS)
    with pytest.raises(KeyError, match="weights"):
        build("my_nets:broken")


def test_a_missing_import_inside_a_module_is_shown_as_it_is(module):
    module("import not_there_at_all")
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        build("my_nets:net")
