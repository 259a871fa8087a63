"""Number formats beside bit-widths: groups of weights, float and dynamic activations."""

import copy
import json
import pickle

import numpy as np
import pytest

from haq.allocation.budgets import Budget, fit, solve, uniform_policy
from haq.allocation.choices import permitted
from haq.allocation.costs import size_bytes, tabulate
from haq.allocation.policy import CODEBOOK, Bits, check_policy, read_policy, write_policy
from haq.allocation.schemes import Formats
from haq.allocation.trials import Score, Trial
from haq.envs.quantization import QuantizationEnv
from haq.errors import HaqError, PolicyError
from haq.network.layers import Layer

FC = Layer("fc", "linear", c_in=100, c_out=5, weights=500, biases=5, macs=500, signed=True)
CONV = Layer("conv", "conv", c_in=3, c_out=5, kernel=(3, 3), weights=135, macs=1350)
W4G32, W7T8 = Bits(4, 32, 32), Bits(7, 32, 0, "token")


@pytest.mark.parametrize(
    "bits, text",
    [
        (Bits(4, 8), "w4a8"),
        (Bits(32, 32), "fp32"),
        (Bits(4, 32), "w4a32"),
        (W4G32, "w4g32"),
        (Bits(4, 32, 128, "token"), "w4g128t8"),
        (W7T8, "w7t8"),
        (Bits(7, 32, 0, "tensor"), "w7d8"),
    ],
)
def test_formats_have_a_text(bits, text):
    assert str(bits) == text


def test_plain_bits_are_pairs_and_others_are_not():
    assert Bits(4, 8) == (4, 8) and {Bits(4, 8): 1}[(4, 8)] == 1 and tuple(Bits(4, 8)) == (4, 8)
    assert Bits(4, 32, 32) != (4, 32) and Bits(4, 32, 32) != Bits(4, 32) != Bits(4, 32, 64)
    assert len({Bits(4, 32), W4G32, Bits(4, 32, 32), Bits(4, 32, 64)}) == 3


def test_bits_are_ordered_by_all_fields():
    rising = [Bits(4, 8), Bits(4, 32), W4G32, Bits(4, 32, 32, "token"), Bits(4, 32, 64), W7T8]
    assert sorted(reversed(rising)) == rising and max(rising) == W7T8


def test_copies_keep_all_fields():
    for bits in (Bits(4, 8), W4G32, W7T8):
        assert copy.deepcopy(bits) == pickle.loads(pickle.dumps(bits)) == bits


def test_a_policy_with_formats_survives_its_file(tmp_path):
    policy = {"a": Bits(4, 8), "b": W4G32, "c": W7T8, "d": Bits(8, 32, 64, "token")}
    write_policy(tmp_path / "policy.json", policy)
    assert read_policy(tmp_path / "policy.json") == policy
    rows = json.loads((tmp_path / "policy.json").read_text())["layers"]
    assert rows["a"] == {"weight": 4, "activation": 8}  # as ever
    assert rows["b"] == {"weight": 4, "activation": 32, "block": 32}


@pytest.mark.parametrize(
    "more", [{"block": "32"}, {"dynamic": "row"}, {"size": 3}, {"block": True}]
)
def test_a_file_with_another_format_is_refused(tmp_path, more):
    row = {"weight": 4, "activation": 32, **more}
    file = {"format": "haq-policy/1", "layers": {"fc": row}}
    (tmp_path / "p.json").write_text(json.dumps(file))
    with pytest.raises(PolicyError, match="layer 'fc' has .*write it like"):
        read_policy(tmp_path / "p.json")


def test_a_trial_keeps_formats_in_its_line():
    trial = Trial(0, {"a": Bits(4, 8), "b": W7T8}, {"size": 1.0}, *Score(0.5, 1.0)[:2], 0.1, 2.0)
    assert Trial.from_line(trial.line()) == trial
    assert json.loads(trial.line())["policy"] == {"a": [4, 8], "b": [7, 32, 0, "token"]}


@pytest.mark.parametrize(
    "layer, bits, message",
    [
        (FC, Bits(4, 32, 48), "a block has 32, 64, 128 weights"),
        (FC, Bits(4, 8, 32), "read a float tensor"),
        (FC, Bits(32, 32, 32), "of 1 to 8 bits"),
        (CONV, Bits(4, 32, 32), "is of kind conv"),
        (CONV, Bits(7, 32, 0, "token"), "is of kind conv"),
        (FC, Bits(4, 32, 32, "tensor"), 'dynamic by "token"'),
    ],
)
def test_a_format_that_does_not_exist_is_refused(layer, bits, message):
    with pytest.raises(PolicyError, match=message):
        check_policy({layer.name: bits}, [layer])


@pytest.mark.parametrize(
    "formats, message",
    [
        (Formats(("static",), (32,)), "groups of 32 weights go with the schemes"),
        (Formats(("dynamic-tensor",), (32,)), "groups of 32 weights go with the schemes"),
        (Formats(("weight-only",), (48,)), "groups of 48: give 32, 64, 128 weights"),
        (Formats(("weightonly",)), "unknown scheme 'weightonly'; did you mean 'weight-only'"),
    ],
)
def test_formats_that_do_not_go_together_are_refused(formats, message):
    with pytest.raises(HaqError, match=message):
        permitted([FC], None, formats=formats)


@pytest.mark.parametrize("formats", [Formats(("weight-only",), (32,)), Formats(("dynamic",))])
def test_formats_of_linear_layers_are_refused_without_one(formats):
    with pytest.raises(HaqError, match="for linear layers.* and this network has none"):
        permitted([CONV], None, formats=formats)


def test_choices_are_those_of_the_schemes():
    choices = permitted([FC, CONV], None, (4, 5), formats=Formats(("weight-only",), (32, 0)))
    assert choices["fc"] == (Bits(4, 32), W4G32, Bits(5, 32), Bits(5, 32, 32))
    assert choices["conv"] == (Bits(4, 32), Bits(5, 32))  # no groups


def test_what_no_scheme_is_for_stays_float():
    choices = permitted([FC, CONV], None, (7, 7), formats=Formats(("dynamic", "dynamic-tensor")))
    assert choices == {"fc": (Bits(7, 32, 0, "tensor"), W7T8), "conv": (Bits(32, 32),)}


def test_a_pin_is_that_of_the_weights_where_activations_are_not_static():
    choices = permitted([FC], None, pins={"fc": 6}, formats=Formats(("weight-only",), (32, 64)))
    assert choices["fc"] == (Bits(6, 32, 32), Bits(6, 32, 64))
    both = permitted([FC], None, pins={"fc": 6}, formats=Formats(("static", "weight-only")))
    assert both["fc"] == (Bits(6, 6),)


def test_groups_have_a_half_precision_scale_each():
    # 500 weights of 3 bits: 188 bytes; 5 rows of 100 have 4 groups of 32 each; 5 biases.
    assert size_bytes(FC, 3, 32) == 188 + 2 * 5 * 4 + 4 * 5
    assert size_bytes(FC, 3, 128) == 188 + 2 * 5 + 4 * 5


def test_rows_of_embeddings_are_in_groups():
    table = Layer("words", "embedding", c_in=10, c_out=40, weights=400)
    assert size_bytes(table, 4, 32) == 200 + 2 * 10 * 2 and size_bytes(table, 4) == 200 + 4 * 10
    choices = permitted([table, FC], None, (4, 4), formats=Formats(("weight-only",), (32,)))
    assert choices["words"] == (W4G32,)


def test_operations_count_the_bits_that_are_multiplied():
    table = tabulate([FC], {"fc": (W4G32, Bits(4, 32, 32, "token"))})
    assert table.rows["bops"]["fc"].tolist() == [500 * 4 * 32, 500 * 4 * 8]


def _table():
    layers = [FC, Layer("out", "linear", c_in=64, c_out=2, weights=128, reads="fc")]
    formats = Formats(("static", "weight-only", "dynamic"), (32, 128))
    return tabulate(layers, permitted(layers, None, (2, 8), act_bits=8, formats=formats))


def test_uniform_policies_round_the_least_of_several_formats():
    table = tabulate(
        [FC], permitted([FC], None, formats=Formats(("weight-only", "dynamic"), (0, 64)))
    )
    assert uniform_policy(table, 4) == {"fc": Bits(4, 32, 64)}


def test_every_policy_is_reached_by_actions_and_kept():
    env = QuantizationEnv(_table(), lambda policy: Score(0.5))
    generator = np.random.default_rng(0)
    for _ in range(50):
        policy = env.policy(generator.random(env.n_steps))
        assert env.policy(env.actions(policy)) == policy


def test_budgets_are_kept_among_formats():
    table = _table()
    top = uniform_policy(table, 8)
    for limit in (800, 500, 300):
        policy = fit(top, table, [Budget("size", limit)])
        assert sum(size_bytes(layer, policy[layer.name].weight, policy[layer.name].block)
                   for layer in table.layers) <= limit  # fmt: skip
        assert policy["fc"].act == policy["out"].act


def test_the_best_of_the_formats_is_found_exactly():
    table = tabulate([FC], {"fc": (Bits(4, 32, 128), W4G32, Bits(4, 32, 32, "token"))})
    goal = {"fc": np.array([3.0, 1.0, 2.0])}
    assert solve(goal, table, [Budget("size", 1000)]) == {"fc": W4G32}
    assert solve(goal, table, [Budget("size", 285)]) == {"fc": Bits(4, 32, 128)}


# --- codebooks ---------------------------------------------------------------------------------

W4K = Bits(4, 32, CODEBOOK)


def test_a_codebook_has_a_text_and_survives_its_file(tmp_path):
    assert str(W4K) == "w4k" and W4K != Bits(4, 32) and W4K.is_book and not Bits(4, 32).is_book
    write_policy(tmp_path / "policy.json", {"fc": W4K})
    assert read_policy(tmp_path / "policy.json") == {"fc": W4K}
    trial = Trial(0, {"fc": W4K}, {}, {}, 0.5, 1.0, 0.0, 0.1)
    assert Trial.from_line(trial.line()) == trial


def test_a_codebook_costs_its_labels_and_its_values():
    # 500 weights of 3 bits are 188 bytes, 8 values 32, 5 biases 20; scales there are none.
    assert size_bytes(FC, 3, CODEBOOK) == 188 + 32 + 20
    table = tabulate([FC], {"fc": (Bits(3, 32, CODEBOOK),)})
    assert table.rows["size"]["fc"].tolist() == [240] and table.rows["bops"]["fc"] == 500 * 3 * 32


@pytest.mark.parametrize("layer", [FC, CONV])
def test_every_kind_of_layer_may_have_a_codebook(layer):
    assert Formats(("codebook",)).offered(layer) == [Bits(b, 32, CODEBOOK) for b in range(2, 9)]
    both = Formats(("codebook", "weight-only")).offered(layer)
    assert both[:3] == [Bits(2, 32, CODEBOOK), Bits(2, 32), Bits(3, 32, CODEBOOK)]


def test_tables_have_codebooks_alone_where_nothing_else_is_asked_for():
    words = Layer("words", "embedding", c_in=9, c_out=4, weights=36)
    assert Formats(("codebook",)).offered(words) == [Bits(b, 32, CODEBOOK) for b in range(2, 9)]
    assert Bits(4, 32) in Formats(("codebook", "static")).offered(words)


@pytest.mark.parametrize(
    "bits, message",
    [
        (Bits(4, 8, CODEBOOK), "give it 32-bit activations"),
        (Bits(32, 32, CODEBOOK), "of 1 to 8 bits"),
        (Bits(4, 32, CODEBOOK, "token"), "leave dynamic out"),
        (Bits(4, 32, -2), "or -1 for a codebook"),
    ],
)
def test_a_codebook_that_cannot_be_is_refused(bits, message):
    with pytest.raises(PolicyError, match=message):
        check_policy({"fc": bits}, [FC])


def test_the_environment_offers_codebooks_before_linear_codes_of_equal_bits():
    choices = (Bits(2, 32, CODEBOOK), Bits(2, 32), Bits(3, 32, CODEBOOK), Bits(3, 32))
    table = tabulate([FC], {"fc": choices})
    env = QuantizationEnv(table, lambda policy: Score(0.5, 1.0), [], 0.9)
    chosen = []
    for action in (0.0, 0.3, 0.6, 1.0):
        env.reset()
        *_, info = env.step(np.array([action]))
        chosen.append(info["policy"]["fc"])
    assert chosen == list(choices)


@pytest.mark.parametrize(
    "bits", [Bits(4, 8), Bits(4, 32, 64), Bits(7, 32, 0, "token"), W4K, Bits(4, 8, keep=0.5)]
)
def test_every_way_to_copy_bits_keeps_all_fields(bits):
    copies = [
        bits._replace(), type(bits)._make(bits.row()), copy.copy(bits), copy.deepcopy(bits),
        pickle.loads(pickle.dumps(bits)), Bits(**bits._asdict()), bits.with_act(bits.act),
    ]  # fmt: skip
    for one in copies:
        assert type(one) is Bits and (one.row(), str(one)) == (bits.row(), str(bits))
    assert bits._replace(weight=2).row() == (2, *bits.row()[1:])
    with pytest.raises(TypeError, match="width"):
        bits._replace(width=2)
