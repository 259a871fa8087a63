"""What every target that comes with the package has in common."""

import json
import math
from itertools import product
from pathlib import Path

import pytest
from hw_targets import EVERY_TARGET, STORED
from profile_parts import (
    FC,
    LAYERS,
    POINTWISE,
)

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import (
    TARGETS,
    Explained,
    find,
    load,
)
from haq.hw_profiles.document import parse, write_json
from haq.hw_profiles.schema import (
    AMOUNTS,
    ENERGIES,
    TIMES,
)
from haq.network.layers import Layer

every_target = pytest.mark.parametrize("name", EVERY_TARGET)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


# What every target that comes with the package must do.


@every_target
def test_a_profile_is_called_like_its_target_and_says_where_its_numbers_are_from(name: str) -> None:
    profile = find(name)
    assert profile.name == name == load(name).name
    assert profile.zero_cost and "latency" in profile.quantities
    for quantity in profile.quantities.values():
        assert len(quantity.source) > 40 and quantity.provenance != "user"


@every_target
def test_units_are_known_and_turned_into_seconds_and_joules(name: str) -> None:
    target = load(name)
    for quantity, unit in target.units.items():
        assert unit in {*TIMES, *ENERGIES, *AMOUNTS, "cycles"}
        assert (quantity in target.si) == (quantity in ("latency", "energy"))
    assert all(0 < factor <= 1 for factor in target.si.values())


@every_target
def test_the_version_is_of_the_content_only(name: str) -> None:
    text = TARGETS[name].read_text(encoding="utf-8")
    content = json.loads(text)
    version = find(name).version
    shuffled = dict(reversed(content.items()))
    assert parse(json.dumps(shuffled, indent=7), "it").version == version
    assert parse(write_json(find(name)), "it").version == version
    assert parse(json.dumps({**content, "title": "another"}), "it").version != version


@every_target
def test_costs_are_positive_and_finite_and_known_as_declared(name: str) -> None:
    target = load(name)
    for layer in LAYERS:
        for bits in target.choices(layer):
            how = target.how(layer, bits)
            assert how.keys() == target.units.keys()
            for quantity, answer in how.items():
                assert 0 < answer.value < math.inf
                assert answer.method == "model"
                assert answer.provenance == target.profile.quantities[quantity].provenance


@every_target
def test_more_bits_never_cost_less_where_that_is_declared(name: str) -> None:
    target = load(name)
    declared = [q for q, about in target.profile.quantities.items() if about.monotone]
    for layer in LAYERS:
        costs = {bits: target.cost(layer, bits) for bits in target.choices(layer)}
        for less, more in product(costs, costs):
            if less.weight <= more.weight and less.act <= more.act:
                assert all(costs[less][q] <= costs[more][q] for q in declared)


@every_target
def test_a_layer_called_twice_costs_twice(name: str) -> None:
    target = load(name)
    twice = Layer(**{**vars(POINTWISE), "calls": 2})
    for bits in (Bits(8, 8), target.pairs[0]):
        once = target.cost(POINTWISE, bits)
        both = {q: c if q in STORED else 2 * c for q, c in once.items()}
        assert target.cost(twice, bits) == pytest.approx(both)


@every_target
def test_unknown_bits_and_empty_batches_are_refused(name: str) -> None:
    target = load(name)
    for bits in (Bits(0, 8), Bits(8, 0), Bits(9, 9), Bits(8, 33)):
        with pytest.raises(TargetError, match=f"{name} cannot run layer 'fc' at {bits}; it can at"):
            target.cost(FC, bits)
    with pytest.raises(TargetError, match=f"{name} needs a batch of at least 1 image, not 0"):
        load(name, batch=0)


@every_target
def test_the_batch_is_the_profiles_unless_given(name: str) -> None:
    assert load(name).batch == find(name).batch.reference
    assert load(name, batch=3).batch == 3


@every_target
def test_every_target_can_say_how_it_knows(name: str) -> None:
    assert isinstance(load(name), Explained)
