"""Budgets: reading them, keeping them, and saying so when nobody can."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from haq.allocation.budgets import Budget, cheapest, fit, parse_budget, solve
from haq.allocation.costs import CostTable, Edge, permitted, reference, tabulate, total
from haq.allocation.policy import Bits, readers
from haq.errors import BudgetError, HaqError, PolicyError, TargetError
from haq.network.layers import Layer

CONV = Layer("conv1", "conv", 3, 8, weights=216, biases=8, macs=1000)
FC = Layer("fc", "linear", 8, 10, weights=80, biases=10, macs=80)
BOTH = (CONV, FC)


@dataclass
class Chip:
    """Runs 1 to 8 bits in weight bits times activation bits times MACs cycles of 5 ns."""

    name: str = "chip"
    batch: int = 16
    units: Mapping[str, str] = field(default_factory=lambda: {"latency": "cycles", "energy": "nJ"})
    si: Mapping[str, float] = field(default_factory=lambda: {"latency": 5e-9, "energy": 1e-9})

    def choices(self, layer: Layer) -> Sequence[Bits]:
        return [Bits(weight, act) for weight in range(1, 9) for act in range(1, 9)]

    def cost(self, layer: Layer, bits: Bits) -> Mapping[str, float]:
        if max(bits) > 8:
            raise TargetError(f"{self.name} runs 1 to 8 bits")
        cycles = float(layer.macs * bits.weight * bits.act)
        return {"latency": cycles, "energy": 2 * cycles}


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, limit",
    [
        ("avg_weight_bits=3", 3),
        ("avg_weight_bits=2.25", 2.25),
        ("avg_weight_bits=3 bits", 3),
        ("size=700", 700),
        ("size=90kB", 90_000),
        (" size = 1.5 MB ", 1_500_000),
        ("size=2KiB", 2048),
        ("size=1e3B", 1000),
        ("bops=1.2G", 1.2e9),
        ("bops=12", 12),
        ("latency=8000", 8000),
        ("latency=8000cycles", 8000),
        ("latency=5ms", 1e6),  # 5 ms / 5 ns
        ("latency=900us", 180_000),
        ("latency=900µs", 180_000),
        ("energy=3mJ", 3e6),
        ("energy=7 nJ", 7),
        ("latency=50%w8a8", 0.5 * 64 * 1080),
        ("latency=30% w4a8", 0.3 * 32 * 1080),
        ("bops=25%w8a8", 16 * 1080),
        ("size=12.5%fp32", (4 * 216 + 32 + 4 * 80 + 40) / 8),
        ("avg_weight_bits=50%w8a8", 4),
    ],
)
def test_a_budget_by_hand(text, limit):
    budget = parse_budget(text, BOTH, Chip())
    assert budget.quantity == text.split("=")[0].strip()
    assert budget.limit == pytest.approx(limit, rel=1e-12)


@pytest.mark.parametrize(
    "text, message",
    [
        ("size", "cannot read budget 'size': write it like size=90kB, avg_weight_bits=3,"),
        ("size=", "cannot read budget 'size=': write it like"),
        ("size=kB", "cannot read budget"),
        ("size=1.2.3kB", "unknown unit '.3kB'"),
        ("sice=90kB", r"unknown budget 'sice'; did you mean 'size'\?"),
        ("latncy=5ms", r"unknown budget 'latncy'; did you mean 'latency'\? .* energy, latency, si"),
        ("size=90kiB", "unknown unit 'kiB'; give a bare number or one of B, kB, KB"),
        ("size=5ms", "unknown unit 'ms'"),
        ("latency=5mJ", "unknown unit 'mJ'; give a bare number or one of cycles, s, ms, us"),
        ("avg_weight_bits=3B", r"unknown unit 'B'; give a bare number or one of bits"),
        ("latency=50%", "is a share of 'nothing': name a reference such as 50%w8a8"),
        ("latency=50%w9a9", "is a share of 'w9a9': name a reference"),
        ("latency=50%fp32", "chip cannot run fp32; take a reference it can run"),
        ("size=0", "'size=0': the limit must be positive and finite; write it like size=90kB"),
        ("size=-3kB", "the limit must be positive"),
        ("size=nan", "the limit must be positive"),
        ("size=inf", "the limit must be positive"),
        ("size=1e999", "the limit must be positive"),
        ("latency=0%w8a8", "the limit must be positive"),
    ],
)
def test_what_is_no_budget_says_why(text, message):
    with pytest.raises(BudgetError, match=message):
        parse_budget(text, BOTH, Chip())


@pytest.mark.parametrize(
    "text, meant", [("latncy=5ms", "latency"), ("enrgy=3mJ", "energy"), ("sise=3kB", "size")]
)
def test_without_a_target_the_quantities_that_need_one_are_known_all_the_same(text, meant):
    message = (
        rf"did you mean '{meant}'\? \(known: avg_weight_bits, bops, energy, latency, size\); "
        "latency and energy need --target"
    )
    with pytest.raises(BudgetError, match=message):
        parse_budget(text, BOTH, None)


@pytest.mark.parametrize("text", ["latency=5ms", "latency=50%w8a8", "energy=3mJ"])
def test_latency_and_energy_need_a_target(text):
    with pytest.raises(BudgetError, match="needs hardware to count on: name it with --target"):
        parse_budget(text, BOTH, None)


def test_a_target_that_counts_no_energy_says_so():
    with pytest.raises(BudgetError, match="chip knows no energy, only latency"):
        parse_budget("energy=3mJ", BOTH, Chip(units={"latency": "cycles"}))


def test_a_target_without_a_clock_takes_its_own_unit_only():
    chip = Chip(si={})
    assert parse_budget("latency=7cycles", BOTH, chip).limit == 7
    with pytest.raises(BudgetError, match="unknown unit 'ms'; give a bare number or one of cycles"):
        parse_budget("latency=5ms", BOTH, chip)


# --- keeping: by hand ------------------------------------------------------------------------


def cells(**rows):
    """Return a table of one quantity; each row maps "weight act" to a cost."""
    layers = tuple(Layer(name, "conv", 1, 1, reads=name) for name in rows)
    choices = {name: tuple(Bits(*map(int, key)) for key in row) for name, row in rows.items()}
    costs = {name: np.array([*row.values()], float) for name, row in rows.items()}
    return CostTable(layers, choices, {"latency": costs}, {"latency": "cycles"})


STAIRS = {"44": 10, "43": 8, "34": 9, "33": 6, "22": 4}
TWO = cells(a=STAIRS, b=STAIRS)
TOP = {"a": Bits(4, 4), "b": Bits(4, 4)}


@pytest.mark.parametrize(
    "limit, a, b",
    [
        (20, "44", "44"),  # fits: unchanged
        (19.99, "44", "34"),  # the last layer goes first, one step
        (18, "34", "34"),  # then the one before it
        (17.99, "34", "33"),  # w3a3 comes before w4a3, which would raise the weights again
        (8, "22", "22"),
    ],
)
def test_lowering_goes_step_by_step_from_the_last_layer(limit, a, b):
    fitted = fit(TOP, TWO, [Budget("latency", limit)])
    assert fitted == {"a": Bits(*map(int, a)), "b": Bits(*map(int, b))}


def test_at_equal_cost_activations_go_down_first():
    table = cells(a={"44": 10, "34": 8, "43": 8, "33": 5})
    assert fit({"a": Bits(4, 4)}, table, [Budget("latency", 9)]) == {"a": Bits(4, 3)}


def test_cheaper_is_read_off_the_table_and_not_off_the_bits():
    table = cells(a={"22": 9, "33": 7, "88": 3})
    assert fit({"a": Bits(2, 2)}, table, [Budget("latency", 5)]) == {"a": Bits(8, 8)}


def test_bits_are_raised_only_where_none_can_be_lowered():
    table = cells(a={"44": 10, "45": 9, "33": 1})
    assert fit({"a": Bits(4, 4)}, table, [Budget("latency", 9)]) == {"a": Bits(3, 3)}


def test_a_budget_equal_to_the_cost_fits():
    layers = [Layer(f"l{i}", "conv", 1, 1, weights=w) for i, w in enumerate((3, 7, 11, 13))]
    table = tabulate(layers, permitted(layers, None))
    policy = {layer.name: Bits(3, 3) for layer in layers}
    limit = reference(layers, None, "avg_weight_bits", Bits(3, 3))
    assert fit(policy, table, [Budget("avg_weight_bits", limit * (1 - 1e-12))]) == policy


def test_without_budgets_nothing_changes():
    assert fit(TOP, TWO, []) == TOP


def test_readers_of_one_tensor_move_together():
    layers = (Layer("a", "conv", 1, 1), Layer("b", "conv", 1, 1, reads="a"))
    both = (Bits(4, 4), Bits(4, 3), Bits(3, 4), Bits(3, 3))
    row = np.array([10.0, 8, 9.5, 7])
    table = CostTable(layers, {"a": both, "b": both}, {"latency": {"a": row, "b": row}}, {})
    # w3a4 on b saves 0.5; w4a3 moves a along and saves 4: the nearest cost goes first.
    assert fit(TOP, table, [Budget("latency", 19.5)]) == {"a": Bits(4, 4), "b": Bits(3, 4)}
    # After the weights of both, b takes the activations of both down.
    assert fit(TOP, table, [Budget("latency", 18)]) == {"a": Bits(3, 3), "b": Bits(3, 3)}


@pytest.mark.parametrize(
    "start, limit, expected",
    [(Bits(8, 8), 17, Bits(32, 32)), (Bits(32, 32), 25, Bits(8, 8))],
)
def test_readers_of_one_tensor_are_float_together(start, limit, expected):
    layers = (Layer("a", "conv", 1, 1), Layer("b", "conv", 1, 1, reads="a"))
    both = (Bits(2, 8), Bits(8, 8), Bits(32, 32))
    slow_integers = np.array([10.0, 10, 8]), np.array([10.0, 10, 8])
    slow_floats = np.array([10.0, 10, 15]), np.array([10.0, 10, 15])
    a, b = slow_integers if start == (8, 8) else slow_floats
    table = CostTable(layers, {"a": both, "b": both}, {"latency": {"a": a, "b": b}}, {})
    found = fit({"a": start, "b": start}, table, [Budget("latency", limit)])
    assert found == {"a": expected, "b": expected}


def test_what_gives_bits_away_for_nothing_comes_last():
    """From float, w8a4 is nearest in cost, but w8a8 is cheaper and has more bits."""
    table = cells(a={"84": 8, "88": 7})
    choices = {"a": (*table.choices["a"], Bits(32, 32))}
    rows = {"latency": {"a": np.array([8.0, 7, 10])}}
    table = CostTable(table.layers, choices, rows, {"latency": "us"})
    assert fit({"a": Bits(32, 32)}, table, [Budget("latency", 9)]) == {"a": Bits(8, 8)}


def test_what_a_reader_cannot_follow_is_not_done():
    layers = (Layer("a", "conv", 1, 1), Layer("b", "conv", 1, 1, reads="a"))
    choices = {"a": (Bits(4, 4), Bits(2, 3)), "b": (Bits(4, 4), Bits(4, 3))}
    rows = {"latency": {"a": np.array([10.0, 1]), "b": np.array([10.0, 9])}}
    table = CostTable(layers, choices, rows, {"latency": "cycles"})
    # No single layer can move (a has no w4a3), so the nearest policy is taken.
    assert fit(TOP, table, [Budget("latency", 11)]) == {"a": Bits(2, 3), "b": Bits(4, 3)}


def test_a_kept_budget_is_not_broken_for_another():
    table = cells(a={"44": 10, "33": 5, "22": 4})
    rows = {**table.rows, "size": {"a": np.array([5.0, 10, 4])}}
    table = CostTable(table.layers, table.choices, rows, {"latency": "cycles", "size": "bytes"})
    fitted = fit({"a": Bits(4, 4)}, table, [Budget("latency", 6), Budget("size", 6)])
    assert fitted == {"a": Bits(2, 2)}


def test_where_lowering_sticks_the_nearest_policy_is_taken():
    """Only a change of both layers at once pays: each alone costs a conversion on the edge."""
    pair = (Bits(4, 4), Bits(2, 2))
    flat = np.array([10.0, 9.0])
    edge = Edge("a", "b", {"latency": np.array([[0.0, 5], [5, 0]])})
    layers = (Layer("a", "conv", 1, 1), Layer("b", "conv", 1, 1))
    rows = {"latency": {"a": flat, "b": flat}}
    table = CostTable(layers, {"a": pair, "b": pair}, rows, {"latency": "cycles"}, (edge,))
    assert fit(TOP, table, [Budget("latency", 18)]) == {"a": Bits(2, 2), "b": Bits(2, 2)}
    with pytest.raises(BudgetError, match=r"latency <= 17\.9 cycles: the cheapest one needs 18;"):
        fit(TOP, table, [Budget("latency", 17.9)])


def test_references_count_what_stays_float():
    floats = 1000
    assert parse_budget("size=12.5%fp32", BOTH, None, floats).limit == (1256 + 4000) / 8
    assert parse_budget("size=50%w8a8", BOTH, None, floats).limit == (440 + 4000) / 2
    average = (8 * 296 + 32 * 1000) / 1296
    assert parse_budget("avg_weight_bits=50%w8a8", BOTH, None, floats).limit == average / 2
    assert parse_budget("bops=25%w8a8", BOTH, None, floats).limit == 16 * 1080


def test_a_budget_below_what_stays_float_says_so():
    table = tabulate(BOTH, permitted(BOTH, None, act_bits=8), None, float_values=1000)
    start = {layer.name: Bits(8, 8) for layer in BOTH}
    with pytest.raises(BudgetError) as error:
        fit(start, table, [Budget("size", 3999)])
    assert str(error.value) == (
        "no policy fits size <= 3999 bytes: what stays float needs 4000 bytes whatever bits the "
        "layers have, and the cheapest policy 4218; raise the budget to at least that, or make "
        "these parts layers that can be quantized"
    )
    with pytest.raises(BudgetError, match=r"no policy fits size <= 4000 bytes: the cheapest one"):
        fit(start, table, [Budget("size", 4000)])
    assert fit(start, table, [Budget("size", 4218)]) == {n.name: Bits(2, 8) for n in BOTH}


def test_an_impossible_budget_says_what_would_be_possible():
    with pytest.raises(BudgetError) as error:
        fit(TOP, TWO, [Budget("latency", 7.9)])
    assert str(error.value) == (
        "no policy fits latency <= 7.9 cycles: the cheapest one needs 8; "
        "raise the budget to at least that, or prune first"
    )


def test_budgets_that_cannot_be_met_together_say_so():
    choices = {"a": (Bits(4, 4), Bits(2, 2))}
    rows = {"latency": {"a": np.array([1.0, 9])}, "size": {"a": np.array([9.0, 2])}}
    layers = (Layer("a", "conv", 1, 1),)
    table = CostTable(layers, choices, rows, {"latency": "cycles", "size": "bytes"})
    message = (
        r"no policy fits latency <= 5 cycles and size <= 5 bytes together, though each can be met "
        r"alone \(the cheapest ones need latency 1, size 2\)"
    )
    with pytest.raises(BudgetError, match=message):
        fit({"a": Bits(4, 4)}, table, [Budget("latency", 5), Budget("size", 5)])


def test_a_budget_the_table_does_not_count_is_refused():
    with pytest.raises(HaqError, match="unknown quantity 'energy'"):
        fit(TOP, TWO, [Budget("energy", 5)])
    with pytest.raises(HaqError, match="unknown quantity 'energy'"):
        solve(TWO.rows["latency"], TWO, [Budget("energy", 5)])


def test_a_policy_of_other_layers_is_refused():
    with pytest.raises(PolicyError, match="no bits for b"):
        fit({"a": Bits(4, 4)}, TWO, [Budget("latency", 5)])


def test_fifty_layers_at_their_very_limit_are_solved():
    generator = np.random.default_rng(0)
    layers = [
        Layer(f"l{i}", "conv", 8, 8, weights=int(w), macs=int(m))
        for i, (w, m) in enumerate(generator.integers(1e3, 1e6, (50, 2)))
    ]
    table = tabulate(layers, permitted(layers, None))
    budget = Budget("bops", reference(layers, None, "bops", Bits(2, 2)))
    assert cheapest(table, "bops") == budget.limit
    assert solve(table.rows["size"], table, [budget]) == {n.name: Bits(2, 2) for n in layers}
    with pytest.raises(BudgetError, match="the cheapest one needs"):
        fit({n.name: Bits(8, 8) for n in layers}, table, [Budget("bops", budget.limit - 1)])


def test_fifty_layers_of_fifty_choices_with_edges_are_solved():
    """The edges of 50 x 50 choices are 2 x 2 for the solver: float, and not."""
    pairs = (*(Bits(w, a) for w in range(2, 9) for a in range(2, 9)), Bits(32, 32))
    layers = tuple(Layer(f"l{i}", "conv", 1, 1) for i in range(50))
    floats = np.array([bits == (32, 32) for bits in pairs])
    # Every third layer is faster in float, by less than it costs to get there and back.
    rows = {n.name: np.where(floats, 9.0 if i % 3 else 4.0, 5.0) for i, n in enumerate(layers)}
    cost = np.where(floats[:, None] != floats[None, :], 1.0, 0.0)
    edges = tuple(Edge(f"l{i}", f"l{i + 1}", {"latency": cost}) for i in range(49))
    choices = {layer.name: pairs for layer in layers}
    table = CostTable(layers, choices, {"latency": rows}, {"latency": "us"}, edges)
    # Only the first one has a single border to pay: 4 + 1 = 5, as much as without.
    assert cheapest(table, "latency") == 250
    far = {layer.name: 1.0 * ~floats for layer in layers}  # as many floats as possible
    found = solve(far, table, [Budget("latency", 260)])
    assert total(table, found, "latency") <= 260
    # The first is free, every third one more costs 4 + 2 - 5 = 1: ten of the others.
    assert [*found.values()].count(Bits(32, 32)) == 11


# --- keeping: against enumeration ------------------------------------------------------------

COSTS = st.one_of(st.integers(0, 9).map(float), st.floats(0, 1000, allow_subnormal=False))


@st.composite
def tables(draw):
    """Return a table of one to four layers: any costs, some shared tensors, perhaps edges."""
    count = draw(st.integers(1, 4))
    reads = [draw(st.integers(0, place)) for place in range(count)]
    layers = tuple(Layer(f"l{i}", "conv", 1, 1, reads=f"l{reads[r]}") for i, r in enumerate(reads))
    pairs = [*(Bits(weight, act) for weight in (2, 4, 5) for act in (2, 3)), Bits(32, 32)]
    choices = {
        layer.name: tuple(draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True)))
        for layer in layers
    }
    sizes = {name: len(some) for name, some in choices.items()}
    rows = {
        quantity: {name: array(draw, size) for name, size in sizes.items()}
        for quantity in ("latency", "size")
    }
    edges = ()
    if count > 1 and draw(st.booleans()):
        shape = (sizes["l0"], sizes["l1"])
        edges = (Edge("l0", "l1", {"latency": array(draw, shape[0] * shape[1]).reshape(shape)}),)
    if count > 1 and draw(st.booleans()):
        edges += tuple(boundary(draw, choices, f"l{i}", f"l{i + 1}") for i in range(count - 1))
    units = {"latency": "cycles", "size": "bytes"}
    table = CostTable(layers, choices, rows, units, edges, {"latency": draw(COSTS)})
    assume(policies(table))
    return table


def boundary(draw, choices, producer, consumer):
    """Return an edge as of a runtime: it costs only where float and integers meet."""
    into, back = draw(COSTS), draw(COSTS)
    floats = {name: np.array([bits == (32, 32) for bits in choices[name]]) for name in choices}
    ends = floats[producer][:, None], floats[consumer][None, :]
    cost = into * (ends[0] & ~ends[1]) + back * (~ends[0] & ends[1])
    return Edge(producer, consumer, {"latency": cost})


def array(draw, size):
    return np.array(draw(st.lists(COSTS, min_size=size, max_size=size)))


def policies(table):
    """Return every policy within the choices whose readers of one tensor agree."""
    names = [layer.name for layer in table.layers]
    groups = readers(table.layers)
    every = [dict(zip(names, bits, strict=True)) for bits in product(*table.choices.values())]
    return [p for p in every if all(p[n].act == p[groups[n][0]].act for n in names)]


def keeps(table, policy, budgets):
    return all(total(table, policy, b.quantity) <= b.limit * (1 + 1e-9) for b in budgets)


@st.composite
def problems(draw):
    """Return a table and one or two budgets, some at the very cost of a policy."""
    table = draw(tables())
    budgets = []
    for quantity in draw(st.sampled_from([("latency",), ("size",), ("latency", "size")])):
        own = total(table, draw(st.sampled_from(policies(table))), quantity)
        limit = draw(st.sampled_from([own, own * 0.75]) | st.floats(0.01, 3000))
        budgets.append(Budget(quantity, max(limit, 1e-3)))
    return table, budgets


@settings(max_examples=150, deadline=None)
@given(problems(), st.data())
def test_fit_finds_a_policy_exactly_where_there_is_one(problem, data):
    table, budgets = problem
    every = policies(table)
    start = data.draw(st.sampled_from(every))
    if not any(keeps(table, policy, budgets) for policy in every):
        with pytest.raises(BudgetError, match="no policy fits"):
            fit(start, table, budgets)
        return
    fitted = fit(start, table, budgets)
    assert fitted in every
    assert keeps(table, fitted, budgets)
    if keeps(table, start, budgets):
        assert fitted == start


@settings(max_examples=100, deadline=None)
@given(problems(), st.data())
def test_solve_finds_what_enumeration_finds(problem, data):
    table, budgets = problem
    objective = {name: array(data.draw, len(some)) for name, some in table.choices.items()}

    def value(policy):
        return sum(objective[n][table.positions[n][bits]] for n, bits in policy.items())

    able = [policy for policy in policies(table) if keeps(table, policy, budgets)]
    found = solve(objective, table, budgets)
    if not able:
        assert found is None
        return
    assert found in able
    assert value(found) == pytest.approx(min(map(value, able)), rel=1e-6, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(tables())
def test_nothing_is_cheaper_than_the_cheapest(table):
    for quantity in table.rows:
        least = min(total(table, policy, quantity) for policy in policies(table))
        assert cheapest(table, quantity) == pytest.approx(least, rel=1e-9, abs=1e-6)
