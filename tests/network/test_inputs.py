"""Inputs of one tensor and of several are chosen, split, joined and given to networks alike."""

import pytest
import torch

from haq.network.inputs import Batch, as_inputs, call, joined, tensors_of

IDS, MASK = torch.arange(10).view(5, 2), torch.ones(5, 2)
KINDS = {
    "tensor": MASK, "tuple": (IDS, MASK), "list": [IDS, MASK], "dict": {"ids": IDS, "mask": MASK},
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)


def forward(*given, **named):
    return sum(value.sum() for value in (*given, *named.values()))


@every_kind
def test_parts_join_to_the_whole(kind):
    inputs = as_inputs(KINDS[kind])
    assert len(inputs) == 5
    for parts in (inputs.split(2), inputs.chunk(2), [inputs[:1], inputs[torch.arange(1, 5)]]):
        whole = joined(parts)
        assert all(map(torch.equal, tensors_of(whole), tensors_of(inputs)))


@every_kind
def test_parts_are_as_long_as_those_of_a_tensor(kind):
    inputs = as_inputs(KINDS[kind])
    assert [len(part) for part in inputs.split(2)] == [2, 2, 1]
    assert [len(part) for part in inputs.chunk(2)] == [3, 2]


@every_kind
def test_a_network_gets_what_the_caller_gave(kind):
    inputs = as_inputs(KINDS[kind])
    assert call(forward, inputs) == sum(t.sum() for t in tensors_of(inputs))


def test_names_are_those_of_the_parameters():
    seen = {}
    call(lambda **named: seen.update(named), as_inputs({"mask": MASK, "ids": IDS}))
    assert seen == {"mask": MASK, "ids": IDS}
    assert as_inputs({"mask": MASK}).get("mask") is MASK
    assert as_inputs({"mask": MASK}).get("ids") is None
    assert Batch((IDS, MASK)).get("ids") is None
