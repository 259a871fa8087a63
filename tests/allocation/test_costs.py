"""Costs: the choices of a search, their tables, and sums of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from haq.allocation.choices import nearest_pin, permitted
from haq.allocation.costs import CostTable, Edge, reference, size_bytes, tabulate, total
from haq.allocation.policy import Bits
from haq.errors import HaqError, PolicyError, TargetError
from haq.network.layers import Layer

CONV = Layer("conv1", "conv", 3, 8, weights=216, biases=8, macs=1000)
FC = Layer("fc", "linear", 8, 10, weights=80, biases=10, macs=80)
LEFT = Layer("left", "conv", 8, 8, reads="left")
RIGHT = Layer("right", "pointwise", 8, 8, reads="left")
FLOATS = Bits(32, 32)
EVERY = tuple(Bits(weight, act) for weight in range(2, 9) for act in range(2, 9))


@dataclass
class Chip:
    """Runs some pairs of bits, in weight bits times activation bits times MACs cycles."""

    pairs: Sequence[Bits]
    name: str = "chip"
    batch: int = 1
    units: Mapping[str, str] = field(default_factory=lambda: {"latency": "cycles"})
    si: Mapping[str, float] = field(default_factory=lambda: {"latency": 1e-6})
    slowest: float = 1.0

    def choices(self, layer: Layer) -> Sequence[Bits]:
        return self.pairs

    def cost(self, layer: Layer, bits: Bits) -> Mapping[str, float]:
        if bits not in self.pairs:
            raise TargetError(f"{self.name} has no {bits} for {layer.name}")
        return {"latency": self.slowest * layer.macs * bits.weight * bits.act}


ODD_OF_ALL = Chip([Bits(8, 8), Bits(2, 4), Bits(3, 4)])
ODD = Chip([Bits(8, 8), Bits(1, 1), Bits(4, 8), Bits(4, 4), Bits(16, 16)])


def test_without_a_target_every_pair_of_2_to_8_bits_is_permitted():
    assert permitted([FC], None) == {"fc": EVERY}


def test_ranges_narrow_the_choices():
    allowed = permitted([FC], None, weight_bits=(3, 4), act_bits=5)
    assert allowed == {"fc": (Bits(3, 5), Bits(4, 5))}


def test_a_target_offers_its_own_pairs_within_2_to_8_bits():
    assert permitted([FC], ODD) == {"fc": (Bits(4, 4), Bits(4, 8), Bits(8, 8))}


def test_a_pinned_layer_has_one_choice_whatever_the_ranges():
    allowed = permitted([CONV, FC], None, (2, 3), 4, pins={"fc": 8})
    assert allowed == {"conv1": (Bits(2, 4), Bits(3, 4)), "fc": (Bits(8, 8),)}


@pytest.mark.parametrize(
    "pairs, bits, expected",
    [
        ([Bits(8, 8), Bits(7, 8)], 8, Bits(8, 8)),
        ([Bits(7, 8), Bits(8, 7)], 8, Bits(7, 8)),  # equally cheap: more activation bits
        ([Bits(4, 4), Bits(2, 8), Bits(8, 8)], 5, Bits(4, 4)),  # w2a8 and w8a8 are not below w5a5
        ([Bits(4, 4), Bits(8, 2)], 8, Bits(8, 2)),  # ten bits are nearer than eight
        ([Bits(8, 8), FLOATS], 4, None),  # nothing below
    ],
)
def test_a_pin_that_is_not_offered_has_a_nearest_pair(pairs, bits, expected):
    assert nearest_pin(FC, bits, Chip(pairs)) == expected
    assert nearest_pin(FC, bits, None) == Bits(bits, bits)


def test_of_two_equally_near_pairs_the_one_with_more_activation_bits_is_the_nearest():
    class Noisy(Chip):
        def cost(self, layer: Layer, bits: Bits) -> Mapping[str, float]:
            return {"latency": bits.act}  # as a measurement that came out the other way round

    assert nearest_pin(FC, 8, Noisy([Bits(7, 8), Bits(8, 7)])) == Bits(7, 8)
    assert nearest_pin(FIRST, 8, Noisy([Bits(7, 8), Bits(8, 7)])) == Bits(7, 8)  # the image's 8


def test_a_pin_can_be_a_pair():
    assert permitted([FC], ODD, pins={"fc": Bits(4, 8)}) == {"fc": (Bits(4, 8),)}
    with pytest.raises(HaqError, match="pin fc=w8a4: chip can run it at w4a4, w4a8, w8a8"):
        permitted([FC], ODD, pins={"fc": Bits(8, 4)})


@pytest.mark.parametrize("act_bits", [None, 4])
def test_a_pin_sets_the_activations_of_all_who_read_the_tensor(act_bits):
    allowed = permitted([LEFT, RIGHT], None, (2, 3), act_bits, pins={"right": 8})
    assert allowed == {"left": (Bits(2, 8), Bits(3, 8)), "right": (Bits(8, 8),)}


def test_readers_of_a_tensor_keep_the_widths_they_have_in_common():
    class OnlyWide(Chip):
        def choices(self, layer: Layer) -> Sequence[Bits]:
            return [Bits(4, 6), Bits(4, 8)] if layer.name == "right" else ODD.pairs

    assert permitted([LEFT, RIGHT], OnlyWide(())) == {
        "left": (Bits(4, 8), Bits(8, 8)),
        "right": (Bits(4, 8),),
    }


def test_pins_that_pull_a_tensor_two_ways_are_an_error():
    with pytest.raises(
        HaqError, match=r"left \(4 bits\) and right \(8 bits\) read the same tensor"
    ):
        permitted([LEFT, RIGHT], None, pins={"left": 4, "right": 8})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight_bits": (1, 8)}, r"weight bits 1\.\.8: give a range within 2\.\.8"),
        ({"weight_bits": (5, 4)}, r"weight bits 5\.\.4"),
        ({"act_bits": 9}, "activation bits 9: give 2 to 8"),
        ({"pins": {"fcc": 8}}, r"unknown layer 'fcc'; did you mean 'fc'\?"),
        ({"pins": {"fc": 1}}, "pin fc=1: give 2 to 8 bits"),
        ({"pins": {"fc": 3}}, "pin fc=3: chip can run it at w4a4, w4a8, w8a8"),
        (
            {"weight_bits": (5, 7)},
            r"'fc' has no choice with 5\.\.7 bits for weights and 2\.\.8 for",
        ),
        ({"act_bits": 2}, r"'fc' has no choice with 2\.\.8 bits for weights and 2 for activations"),
    ],
)
def test_what_cannot_be_permitted_says_why(options, message):
    with pytest.raises(HaqError, match=message):
        permitted([FC], ODD, **options)


@pytest.mark.parametrize(
    "bits, expected",
    [
        (8, 216 + 4 * 8 + 4 * 8),
        (3, 81 + 32 + 32),
        (32, 4 * 216 + 32),  # float: no scales
    ],
)
def test_size_is_codes_scales_and_biases(bits, expected):
    assert size_bytes(CONV, bits) == expected


def test_codes_are_rounded_up_to_whole_bytes():
    assert size_bytes(Layer("x", "conv", 1, 1, weights=9), 3) == 4 + 4  # 27 bits, one scale


def test_a_table_by_hand():
    table = tabulate([CONV, FC], {"conv1": (Bits(8, 8),), "fc": (Bits(2, 4), Bits(3, 4))})
    assert table.rows["size"]["fc"].tolist() == [20 + 40 + 40, 30 + 40 + 40]
    assert table.rows["bops"]["fc"].tolist() == [80 * 2 * 4, 80 * 3 * 4]
    policy = {"conv1": Bits(8, 8), "fc": Bits(3, 4)}
    assert total(table, policy, "bops") == 64000 + 960
    assert total(table, policy, "avg_weight_bits") == (216 * 8 + 80 * 3) / 296
    assert table.units == {"size": "bytes", "avg_weight_bits": "bits", "bops": "bit operations"}
    assert all(row.dtype == np.float64 for rows in table.rows.values() for row in rows.values())


def test_values_that_stay_float_count_in_size_and_average():
    table = tabulate(
        [CONV, FC], {"conv1": (Bits(8, 8),), "fc": (Bits(2, 4), Bits(3, 4))}, ODD_OF_ALL, 100
    )
    policy = {"conv1": Bits(8, 8), "fc": Bits(3, 4)}
    assert total(table, policy, "size") == (216 + 32 + 32) + (30 + 40 + 40) + 4 * 100
    assert total(table, policy, "avg_weight_bits") == pytest.approx(
        (216 * 8 + 80 * 3 + 100 * 32) / 396
    )
    assert total(table, policy, "bops") == 64000 + 960  # nobody knows what they compute
    assert total(table, policy, "latency") == 64000 + 960
    assert reference([CONV, FC], None, "size", Bits(32, 32), 100) == 896 + 360 + 400
    assert reference([CONV, FC], None, "avg_weight_bits", Bits(32, 32), 100) == 32


def test_a_target_adds_its_quantities():
    table = tabulate([FC], permitted([FC], ODD), ODD)
    assert table.rows["latency"]["fc"].tolist() == [80 * 16, 80 * 32, 80 * 64]
    assert table.units["latency"] == "cycles"


def test_a_cost_that_is_no_number_is_refused():
    with pytest.raises(TargetError, match="latency of layer 'fc' is not a finite number"):
        tabulate([FC], {"fc": (Bits(8, 8),)}, replace(ODD, slowest=float("nan")))


TABLE = CostTable(
    (CONV, FC),
    {"conv1": (Bits(2, 2), Bits(8, 8)), "fc": (Bits(2, 2), Bits(8, 8))},
    {"latency": {"conv1": np.array([1.0, 2.0]), "fc": np.array([10.0, 20.0])}},
    {"latency": "ms"},
    edges=(
        Edge("conv1", "fc", {"latency": np.array([[100.0, 200.0], [300.0, 400.0]])}),
        Edge("conv1", "fc", {"energy": np.array([[7.0, 7.0], [7.0, 7.0]])}),
    ),
    fixed={"latency": 1000.0},
)


@pytest.mark.parametrize(
    "conv, fc, expected",
    [(2, 2, 1111), (2, 8, 1221), (8, 2, 1312), (8, 8, 1422)],
)
def test_a_total_is_rows_edges_and_what_is_fixed(conv, fc, expected):
    assert total(TABLE, {"conv1": Bits(conv, conv), "fc": Bits(fc, fc)}, "latency") == expected


def test_bits_that_are_not_in_the_table_are_refused():
    with pytest.raises(PolicyError, match=r"layer 'fc' cannot have w3a3 here; .* w2a2, w8a8"):
        total(TABLE, {"conv1": Bits(2, 2), "fc": Bits(3, 3)}, "latency")
    with pytest.raises(PolicyError, match="no bits for layer 'fc'"):
        total(TABLE, {"conv1": Bits(2, 2)}, "latency")
    with pytest.raises(HaqError, match="unknown quantity 'latencies'; did you mean 'latency'"):
        total(TABLE, {}, "latencies")


def test_references_by_hand():
    assert reference([CONV, FC], None, "size", Bits(32, 32)) == 4 * 216 + 32 + 4 * 80 + 40
    assert reference([CONV, FC], None, "avg_weight_bits", Bits(8, 8)) == 8
    assert reference([CONV, FC], None, "bops", Bits(2, 3)) == 6 * 1080
    assert reference([CONV, FC], ODD, "latency", Bits(4, 8)) == 32 * 1080


def test_a_reference_needs_no_target_for_what_it_does_not_count():
    assert reference([FC], ODD, "avg_weight_bits", Bits(3, 3)) == 3


def test_a_reference_the_target_cannot_run_is_refused():
    with pytest.raises(TargetError, match=r"^chip cannot run fp32$"):
        reference([FC], ODD, "latency", Bits(32, 32))


# --- runtimes: layers that stay float, and what a change of precision costs -----------------------

FIRST = Layer("first", "conv", 3, 8, weights=9, macs=10, reads_input=True)


@dataclass
class Runtime(Chip):
    """A chip on which 3 cycles go by where float becomes integer, and 2 on the way back."""

    pairs: Sequence[Bits] = (Bits(8, 8), Bits(8, 4), FLOATS)
    tensors: Sequence[tuple[str, str]] = (("conv1", "fc"), ("conv1", "gone"))
    into: float = 3.0

    def edges(
        self, layers: Sequence[Layer], choices: Mapping[str, tuple[Bits, ...]]
    ) -> tuple[Edge, ...]:
        def crossing(one: Bits, other: Bits) -> float:
            return self.into * (one == FLOATS != other) + 2.0 * (one != FLOATS == other)

        return tuple(
            Edge(
                a,
                b,
                {
                    "latency": np.array(
                        [[crossing(one, other) for other in choices[b]] for one in choices[a]]
                    )
                },
            )
            for a, b in self.tensors
            if {a, b} <= choices.keys()
        )


RUNTIME = Runtime()
MIXED = {"conv1": (Bits(8, 8), FLOATS), "fc": (Bits(8, 4), FLOATS)}


def test_a_layer_may_stay_float_where_the_target_offers_it():
    every = (Bits(8, 4), Bits(8, 8), FLOATS)
    assert permitted([CONV, FC], RUNTIME) == {"conv1": every, "fc": every}
    assert permitted([FIRST], RUNTIME) == {"first": (Bits(8, 8), FLOATS)}


@pytest.mark.parametrize("options", [{"act_bits": 8}, {"weight_bits": (2, 7)}, {"pins": {"fc": 8}}])
def test_no_layer_stays_float_where_its_bits_are_asked_for(options):
    pairs = [Bits(7, 8), *RUNTIME.pairs]
    assert FLOATS not in permitted([FC], Runtime(pairs), **options)["fc"]


@pytest.mark.parametrize("options", [{"act_bits": 8}, {"weight_bits": (2, 7)}])
def test_a_layer_that_the_target_runs_in_float_only_stays_float(options):
    assert permitted([FC], Runtime([FLOATS]), **options) == {"fc": (FLOATS,)}


def test_readers_of_a_tensor_are_float_together():
    allowed = permitted([LEFT, RIGHT], RUNTIME)
    assert allowed["left"] == allowed["right"] == (Bits(8, 4), Bits(8, 8), FLOATS)
    assert FLOATS not in permitted([LEFT, RIGHT], RUNTIME, pins={"right": 8})["left"]


def test_a_change_of_precision_stands_on_the_edge():
    table = tabulate([CONV, FC], MIXED, RUNTIME)
    (edge,) = table.edges  # the other tensor's reader is not among the layers
    assert edge.cost["latency"].tolist() == [[0, 2], [3, 0]]
    floats, eight = 32 * 32 * 1000, 64 * 1000
    assert total(table, {"conv1": FLOATS, "fc": Bits(8, 4)}, "latency") == floats + 32 * 80 + 3
    assert total(table, {"conv1": Bits(8, 8), "fc": FLOATS}, "latency") == eight + 1024 * 80 + 2
    assert total(table, {"conv1": FLOATS, "fc": FLOATS}, "latency") == 1024 * 1080


def test_references_count_edges():
    assert reference([CONV, FC], RUNTIME, "latency", FLOATS) == 1024 * 1080

    class Anyway(Runtime):
        """Pays at every tensor, whatever the bits."""

        def edges(
            self, layers: Sequence[Layer], choices: Mapping[str, tuple[Bits, ...]]
        ) -> tuple[Edge, ...]:
            return tuple(
                Edge(e.producer, e.consumer, {"latency": e.cost["latency"] + 7})
                for e in super().edges(layers, choices)
            )

    assert reference([CONV, FC], Anyway(), "latency", Bits(8, 8)) == 64 * 1080 + 7
    assert reference([CONV, FC], Anyway(), "bops", Bits(8, 8)) == 64 * 1080
    assert reference([FC], Anyway(), "latency", Bits(8, 8)) == 64 * 80


def test_an_edge_that_is_no_number_is_refused():
    with pytest.raises(TargetError, match="cost from layer 'conv1' to 'fc' is not a finite number"):
        tabulate([CONV, FC], MIXED, Runtime(into=float("inf")))
