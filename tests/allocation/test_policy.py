"""Policies: reading, writing, and whether they suit the layers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haq.allocation.policy import FLOAT, Bits, check_policy, read_policy, readers, write_policy
from haq.errors import PolicyError
from haq.network.layers import Layer

LAYERS = (
    Layer("conv1", "conv", 3, 8),
    Layer("left", "conv", 8, 8, reads="left"),
    Layer("right", "pointwise", 8, 8, reads="left"),
)
GOOD = {"conv1": Bits(8, 8), "left": Bits(2, 4), "right": Bits(7, 4)}


def test_bits_are_spelled_as_in_budgets():
    assert [str(bits) for bits in (Bits(8, 4), Bits(FLOAT, FLOAT))] == ["w8a4", "fp32"]


def test_readers_of_a_tensor_are_named_in_execution_order():
    together = ("left", "right")
    assert readers(LAYERS) == {"conv1": ("conv1",), "left": together, "right": together}


@given(st.dictionaries(st.text(), st.builds(Bits, st.integers(1, 8), st.integers(1, 8))))
def test_what_is_written_is_read(tmp_path_factory, policy):
    path = tmp_path_factory.mktemp("policy") / "policy.json"
    write_policy(path, policy)
    assert read_policy(path) == policy


def test_the_file_is_plain_to_read(tmp_path: Path):
    write_policy(tmp_path / "p.json", {"conv1": Bits(8, 4)})
    assert json.loads((tmp_path / "p.json").read_text()) == {
        "format": "haq-policy/1",
        "layers": {"conv1": {"weight": 8, "activation": 4}},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(PolicyError, match=r"policy .*none.json: cannot be read"):
        read_policy(tmp_path / "none.json")


HEAD = '{"format": "haq-policy/1", "layers": '


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not a JSON file"),
        (HEAD, "not a JSON file"),
        ("[]", 'must say "format": "haq-policy/1"'),
        ('{"layers": {}}', 'must say "format": "haq-policy/1"'),
        (HEAD + "[]}", '"layers" must map the name'),
        (HEAD + '{"fc": 8}}', "layer 'fc' has 8; write it like"),
        (HEAD + '{"fc": {"weight": 8}}}', "layer 'fc' has"),
        (HEAD + '{"fc": {"weight": 8.0, "activation": 8}}}', "layer 'fc' has"),
        (HEAD + '{"fc": {"weight": true, "activation": 8}}}', "layer 'fc' has"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, text, message):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=message):
        read_policy(path)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path):
    (tmp_path / "p.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="not a JSON file"):
        read_policy(tmp_path / "p.json")


def test_a_policy_that_suits_the_layers_passes():
    check_policy(GOOD, LAYERS)
    check_policy({**GOOD, "conv1": Bits(FLOAT, 1)}, LAYERS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"conv2": Bits(8, 8)}, r"unknown layer 'conv2'; did you mean 'conv1'\?"),
        ({"conv1": Bits(9, 8)}, "'conv1' has 9-bit weights and 8-bit activations; bits are 1 to 8"),
        ({"conv1": Bits(8, 0)}, "'conv1' has 8-bit weights and 0-bit activations"),
        ({"right": Bits(7, 5)}, "'left' and 'right' read the same tensor, but with 4 and 5 bits"),
    ],
)
def test_a_policy_that_does_not_suit_says_why(change, message):
    with pytest.raises(PolicyError, match=message):
        check_policy({**GOOD, **change}, LAYERS)


def test_a_layer_left_out_is_named():
    with pytest.raises(PolicyError, match="no bits for left, right"):
        check_policy({"conv1": Bits(8, 8)}, LAYERS)
