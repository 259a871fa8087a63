import argparse
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from haq.errors import ModelError
from haq.models import build
from haq.models.weights import load_weights, save_weights

SUFFIXES = ["safetensors", "pt", "pth", "th"]


@pytest.fixture
def net():
    return filled()


def filled(classes=10):
    """A ResNet-20 in which every entry of the state differs from a fresh one."""
    model = build("resnet20", classes)
    for i, tensor in enumerate(model.state_dict().values()):
        tensor.copy_(torch.full_like(tensor, i + 1))
    return model


def write(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def same(model, other):
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refused(path, model=None):
    """The message with which a file is refused; the model must be as before."""
    model = build("resnet20") if model is None else model
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(model, path)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_saved_comes_back(tmp_path, net):
    save_weights(net, tmp_path / "net.safetensors")
    other = build("resnet20")
    load_weights(other, str(tmp_path / "net.safetensors"))
    assert same(net, other)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_is_read(tmp_path, net, suffix):
    other = build("resnet20")
    load_weights(other, write(tmp_path / f"net.{suffix}", net.state_dict()))
    assert same(net, other)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "best_prec1": 91.7},
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
        lambda state: {"net": state, "acc": torch.tensor(92.0)},
        lambda state: {"model": {"state_dict": state}},
        OrderedDict,
    ],
)
def test_training_checkpoints_are_unwrapped(tmp_path, net, wrap):
    other = build("resnet20")
    load_weights(other, write(tmp_path / "net.th", wrap(dict(net.state_dict()))))
    assert same(net, other)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_the_prefixes_of_wrappers_are_taken_off(tmp_path, net, prefix):
    state = {f"{prefix}{key}": tensor for key, tensor in net.state_dict().items()}
    other = build("resnet20")
    load_weights(other, write(tmp_path / "net.safetensors", state))
    assert same(net, other)


def test_a_part_that_was_compiled_alone_is_known_by_its_own_name(tmp_path, net):
    state = {
        key.replace("layer1.", "layer1._orig_mod."): tensor
        for key, tensor in net.state_dict().items()
    }
    assert any("_orig_mod" in key for key in state)
    other = build("resnet20")
    load_weights(other, write(tmp_path / "net.safetensors", state))
    assert same(net, other)


def test_a_prefix_on_some_names_only_is_not_taken_off(tmp_path, net):
    state = dict(net.state_dict())
    state["module.linear.bias"] = state.pop("linear.bias")
    message = refused(write(tmp_path / "net.pt", state))
    assert "1 missing (linear.bias) and 1 unexpected (module.linear.bias)" in message


def test_a_module_of_that_name_keeps_it(tmp_path):
    model = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    save_weights(model, tmp_path / "net.safetensors")
    load_weights(model, tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    "name, ours, theirs", [("resnet20", "linear", "fc"), ("resnet18", "fc", "linear")]
)
def test_heads_are_mapped(tmp_path, name, ours, theirs):
    model, other = build(name, 10), build(name, 10)
    state = {
        "module." + (theirs + key.removeprefix(ours) if key.startswith(f"{ours}.") else key): tensor
        for key, tensor in model.state_dict().items()
    }
    assert f"module.{theirs}.weight" in state
    load_weights(other, write(tmp_path / "net.th", state))
    assert same(model, other)


def test_a_head_is_not_mapped_onto_one_that_the_file_has_too(tmp_path, net):
    state = dict(net.state_dict())
    state["fc.bias"] = state["linear.bias"].clone()
    message = refused(write(tmp_path / "net.safetensors", state))
    assert "keys 1 unexpected (fc.bias);" in message


def test_a_head_keeps_its_name_in_the_message_where_the_model_has_neither(tmp_path):
    path = write(tmp_path / "net.pt", {"fc.weight": torch.zeros(2, 2)})
    model = nn.Sequential(OrderedDict(classifier=nn.Linear(2, 2, bias=False)))
    assert "1 missing (classifier.weight) and 1 unexpected (fc.weight)" in refused(path, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_other_floating_point_dtypes_become_float32(tmp_path, net, dtype, suffix):
    state = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key, tensor in net.state_dict().items()
    }
    other = build("resnet20")
    load_weights(other, write(tmp_path / f"net.{suffix}", state))
    assert other.conv1.weight.dtype == torch.float32
    assert same(net, other)


def test_counts_of_batches_may_be_missing(tmp_path, net):
    state = {k: t for k, t in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    other = build("resnet20")
    load_weights(other, write(tmp_path / "net.pth", state))
    assert torch.equal(other.linear.weight, net.linear.weight)
    assert other.bn1.num_batches_tracked == 0


def test_a_smaller_architecture_is_told_what_is_missing(tmp_path, net):
    path = tmp_path / "net.safetensors"
    save_weights(net, path)
    # 12 more convolutions, and as many norms with four entries that count
    assert refused(path, build("resnet32")) == (
        f"{path} does not fit the model: keys 60 missing (layer1.3.conv1.weight, "
        "layer1.3.bn1.weight, layer1.3.bn1.bias, …); choose the architecture that wrote it"
    )


def test_a_larger_architecture_is_told_what_is_unexpected(tmp_path):
    path = tmp_path / "net.safetensors"
    save_weights(build("resnet32"), path)
    assert "keys 72 unexpected (layer1.3." in refused(path)


def test_another_number_of_classes(tmp_path):
    path = write(tmp_path / "net.pt", filled(classes=100).state_dict())
    assert refused(path) == (
        f"{path} does not fit the model: linear.weight is (100, 64) in the file and (10, 64) in "
        "the model; choose the architecture, the width and the number of classes that it was "
        "trained with"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path, net, value):
    net.layer1[0].bn1.running_var[:2] = value
    path = write(tmp_path / "net.pt", net.state_dict())
    assert refused(path) == (
        f"{path}: layer1.0.bn1.running_var has 2 of 16 values that are NaN or infinite; "
        "take an earlier checkpoint"
    )


def test_the_infinities_of_a_mask_are_meant(tmp_path):
    def masked():
        model = nn.Linear(2, 2)
        model.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        return model

    model, fresh = masked(), masked()
    save_weights(model, tmp_path / "it.safetensors")
    load_weights(fresh, tmp_path / "it.safetensors")
    assert same(model, fresh)
    model.mask[0, 0] = float("nan")
    save_weights(model, tmp_path / "it.safetensors")
    with pytest.raises(ModelError, match="mask has 1 of 9 values that are NaN or infinite"):
        load_weights(fresh, tmp_path / "it.safetensors")


def test_values_that_float32_cannot_hold_are_infinite(tmp_path, net):
    state = dict(net.state_dict())
    state["linear.bias"] = torch.full((10,), 1e300, dtype=torch.float64)
    assert "linear.bias has 10 of 10 values" in refused(write(tmp_path / "net.pt", state))


def test_integer_codes_are_not_weights(tmp_path, net):
    state = dict(net.state_dict())
    state["linear.bias"] = torch.ones(10, dtype=torch.int8)
    message = refused(write(tmp_path / "net.safetensors", state))
    assert message.endswith(
        "linear.bias is int8 in the file and float32 in the model; save the float weights"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file(tmp_path, suffix):
    path = tmp_path / f"none.{suffix}"
    assert refused(path) == f"cannot read weights from {path}: no such file or directory"


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "net.pt").mkdir()
    assert refused(tmp_path / "net.pt").endswith("net.pt: is a directory")


@pytest.mark.parametrize("name, suffix", [("net.onnx", "'.onnx'"), ("net", "''")])
def test_an_unknown_suffix(tmp_path, name, suffix):
    assert refused(tmp_path / name).endswith(
        f"weights are read from .safetensors, .pt, .pth, .th, not from {suffix}"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.99])
def test_a_truncated_file(tmp_path, net, suffix, share):
    path = write(tmp_path / f"net.{suffix}", net.state_dict())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    kind = "safetensors file" if suffix == "safetensors" else "PyTorch checkpoint"
    assert f"{path} is truncated or not a {kind}" in refused(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_something_else(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    path.write_text("<html>404 not found</html>\n" * 100)
    assert "is truncated or not a" in refused(path)


@pytest.mark.parametrize(
    "extra, named",
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_a_pickle_of_more_than_weights_is_not_loaded(tmp_path, net, extra, named):
    path = write(tmp_path / "net.pth", {"state_dict": net.state_dict(), "extra": extra})
    assert f"holds more than weights ({named}) and is not loaded, as such a file" in refused(path)


@pytest.mark.parametrize("content", [{}, [1, 2], torch.zeros(3), None, {"state_dict": {}}])
def test_a_checkpoint_without_weights(tmp_path, content):
    path = write(tmp_path / "net.pt", content)
    assert refused(path) == f"{path} holds no weights: save model.state_dict()"


def test_a_checkpoint_of_other_things(tmp_path):
    path = write(tmp_path / "net.pt", {"epoch": 3, "weights": torch.zeros(3)})
    assert "holds no weights but int as 'epoch': save model.state_dict()" in refused(path)


def test_saving_copies_layouts_and_ties(tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model.to(memory_format=torch.channels_last)
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "net.safetensors")
    saved = load_file(tmp_path / "net.safetensors")
    assert torch.equal(saved["1.weight"], model[0].weight)


def test_saving_makes_folders_and_replaces_and_leaves_nothing_else(tmp_path, net):
    path = tmp_path / "runs" / "first" / "net.safetensors"
    save_weights(build("resnet20"), path)
    save_weights(net, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["net.safetensors"]
    assert load_file(path)["bn1.weight"].tolist() == [2] * 16


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, net):
    (tmp_path / "net.safetensors").mkdir()
    with pytest.raises(ModelError, match=r"cannot write weights to .*: is a directory"):
        save_weights(net, tmp_path / "net.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_file_in_place_of_the_folder(tmp_path, net):
    (tmp_path / "runs").touch()
    with pytest.raises(ModelError, match=r"cannot write weights to .*: "):
        save_weights(net, tmp_path / "runs" / "net.safetensors")


def test_weights_are_written_as_safetensors_only(tmp_path, net):
    with pytest.raises(ModelError, match=r"the name must end in \.safetensors"):
        save_weights(net, tmp_path / "net.pt")
