"""Gradual magnitude pruning: exact counts, and zeros that stay zeros."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from haq.compression.magnitude import Pruner, Schedule, masks_for, schedule_over, smallest
from haq.errors import HaqError
from haq.quantization.quantizer import codes


def test_the_schedule_by_hand():
    schedule = Schedule(0.8, updates=4, every=100)
    given = [schedule.at(step) for step in (0, 50, 100, 200, 300, 400, 900)]
    assert given == pytest.approx([0, 0, 0.4625, 0.7, 0.7875, 0.8, 0.8])
    assert [step for step in range(950) if schedule.updates_at(step)] == [0, 100, 200, 300, 400]


@given(
    final=st.floats(0.1, 0.95), begin=st.integers(0, 50), updates=st.integers(1, 30),
    every=st.integers(1, 9),
)  # fmt: skip
def test_the_last_update_reaches_the_sparsity_asked_for_and_no_step_falls(
    final, begin, updates, every
):
    schedule = Schedule(final, begin=begin, updates=updates, every=every)
    end = begin + updates * every
    values = [schedule.at(step) for step in range(end + 3)]
    assert (
        values[end] == final and schedule.updates_at(end) and not schedule.updates_at(end + every)
    )
    assert values == sorted(values) and all(value == 0 for value in values[:begin])


@given(steps=st.integers(1, 300))
def test_a_schedule_over_a_training_ends_within_it(steps):
    assert schedule_over(0.7, steps).at(max(steps - 1, 1)) == 0.7


@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=40),
    share=st.floats(0, 0.95),
)
def test_a_mask_has_the_exact_count_however_many_are_equal(values, share):
    weights = torch.tensor(values)
    zeros = round(share * len(values))
    chosen = smallest(weights, zeros)
    assert int(chosen.sum()) == zeros
    if zeros and zeros < len(values):
        assert weights[chosen].abs().max() <= weights[~chosen].abs().min()


WEIGHTS = {
    "a": torch.arange(1, 11, dtype=torch.float),
    "b": torch.arange(11, 31).float().view(4, 5),
}


def test_each_layer_or_all_together():
    own = masks_for(WEIGHTS, 0.3)
    assert {name: int((~mask).sum()) for name, mask in own.items()} == {"a": 3, "b": 6}
    whole = masks_for(WEIGHTS, 0.3, "network")
    assert {name: int((~mask).sum()) for name, mask in whole.items()} == {"a": 9, "b": 0}
    named = masks_for(WEIGHTS, {"b": 0.5})
    assert named.keys() == {"b"} and int((~named["b"]).sum()) == 10


@pytest.mark.parametrize(
    "scope, share, way", [("layer", 0.96, ".* most 0.9"), ("network", 0.35, "give a smaller")]
)
def test_a_layer_that_would_be_empty_is_refused(scope, share, way):
    with pytest.raises(HaqError, match=rf"leave layer 'a' without weights; it has 10: {way}"):
        masks_for(WEIGHTS, share, scope)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_pruned_weights_stay_zero_through_momentum_and_decay(kind):
    torch.manual_seed(0)
    model, more = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), {}
    if kind is torch.optim.SGD:
        more = {"momentum": 0.9, "nesterov": True}
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.01, **more)
    pruner = Pruner(model, {"0": 0.75, "2": 0.75}, Schedule(0.75, updates=5, every=2))
    zeros = {}
    for step in range(20):
        pruner.before_step(step)
        loss = model(torch.randn(6, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        pruner.before_update()
        optimizer.step()
        pruner.apply()
        for name, weight in pruner.weights.items():
            wanted = round(pruner.schedule.at(step) * weight.numel())
            gone = weight == 0
            assert int(gone.sum()) == wanted
            assert bool(gone[zeros.get(name, torch.zeros_like(gone))].all())  # masks only grow
            zeros[name] = gone
    assert pruner.sparsity == {"0": 0.75, "2": 0.75}


def test_layers_that_are_not_there_are_named():
    with pytest.raises(HaqError, match="unknown layer '7'"):
        Pruner(nn.Sequential(nn.Linear(2, 2)), {"7": 0.5}, Schedule(0.5))


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_pruned_weight_has_the_code_zero(bits):
    weight = torch.randn(8, 40, generator=torch.Generator().manual_seed(bits))
    weight[masks_for({"w": weight}, 0.6, "network")["w"] == 0] = 0
    written = codes(weight, bits, weight.abs().amax(1, keepdim=True))
    assert int((weight == 0).sum()) == round(0.6 * weight.numel())
    assert bool((written[weight == 0] == 0).all())
