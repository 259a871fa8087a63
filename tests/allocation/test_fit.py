"""Keeping budgets: step by step by hand, against a plain restatement, and by enumeration."""

import math
from dataclasses import replace

import numpy as np
import pytest
from cost_problems import keeps, policies, problems
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from haq.allocation.budgets import Budget, fit, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import CostTable, Edge, reference, tabulate, total
from haq.allocation.policy import Bits, readers
from haq.errors import BudgetError, HaqError, PolicyError
from haq.network.layers import Layer

CONV = Layer("conv1", "conv", 3, 8, weights=216, biases=8, macs=1000)
FC = Layer("fc", "linear", 8, 10, weights=80, biases=10, macs=80)
BOTH = (CONV, FC)


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
    policy = fit({"a": start, "b": start}, table, [Budget("latency", limit)])
    assert policy == {"a": expected, "b": expected}


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


# --- step by step: against a plain restatement of the rule --------------------------------------


def plain_fit(policy, table, budgets):
    """Lower a policy by the rule of ``fit``, adding up the whole table for every candidate.

    Returns:
        The policy; None where a whole sweep moves nothing.
    """
    groups = readers(table.layers)
    current = dict(policy)
    while not keeps(table, current, budgets):
        before = dict(current)
        for layer in reversed(table.layers):
            current = plain_step(current, table, budgets, layer.name, groups[layer.name])
            if keeps(table, current, budgets):
                return current
        if current == before:
            return None
    return current


def plain_step(policy, table, budgets, name, group):
    now = policy[name]
    (broken, *_) = [budget for budget in budgets if not keeps(table, policy, [budget])]
    candidates = []
    for bits in table.choices[name]:
        crosses = bits.act != now.act and 32 in (bits.act, now.act)
        moved = dict(policy)
        for other in group:
            moved[other] = (
                bits if crosses or other == name else Bits(policy[other].weight, bits.act)
            )
        if all(moved[other] in table.choices[other] for other in group):
            candidates.append((bits, moved, around(table, moved, broken.quantity, group)))
    cheaper = [c for c in candidates if c[2] < around(table, policy, broken.quantity, group)]

    def order(candidate):
        bits, _, cost = candidate
        raises = bits.weight > now.weight or bits.act > now.act
        in_vain = any(
            b.weight >= bits.weight and b.act >= bits.act and c < cost for b, _, c in cheaper
        )
        return raises, in_vain, -cost, bits.act >= now.act, -sum(bits), -bits.weight

    for _, moved, _ in sorted(cheaper, key=order):
        breaks = any(
            keeps(table, policy, [budget]) and not keeps(table, moved, [budget])
            for budget in budgets
        )
        falls = total(table, moved, broken.quantity) < total(table, policy, broken.quantity)
        if falls and not breaks:
            return moved
    return policy


def around(table, policy, quantity, group):
    """Return what the layers of a group cost, with all edges at them."""
    place = {name: table.choices[name].index(bits) for name, bits in policy.items()}
    costs = [table.rows[quantity][name][place[name]] for name in group]
    for edge in table.edges:
        if quantity in edge.cost and {edge.producer, edge.consumer} & set(group):
            costs.append(edge.cost[quantity][place[edge.producer], place[edge.consumer]])
    return math.fsum(costs)


@settings(max_examples=300, deadline=None)
@given(problems(), st.data())
def test_fit_is_the_plain_rule_to_the_last_digit(problem, data):
    table, budgets = problem
    start = data.draw(st.sampled_from(policies(table)))
    expected = plain_fit(start, table, budgets)
    assume(expected is not None)
    assert fit(start, table, budgets) == expected


def chain(layers, edges, readers=1):
    """Return a table of a chain of layers, 49 pairs each, perhaps with edges between them.

    So many layers one after the other read the same tensor.
    """
    generator = np.random.default_rng(layers)
    some = [
        Layer(
            f"l{i}", "conv", 8, 8, weights=int(w), macs=int(m), reads=f"l{i // readers * readers}"
        )
        for i, (w, m) in enumerate(generator.integers(1e3, 1e6, (layers, 2)))
    ]
    table = tabulate(some, permitted(some, None))
    pairs = np.array(table.choices["l0"])
    meeting = np.abs(pairs[:, :1] - pairs[None, :, 1])  # activations in other bits than weights
    costs = tuple(
        Edge(f"l{i}", f"l{i + 1}", {"bops": 1e5 * meeting}) for i in range(layers - 1) if edges
    )
    return replace(table, edges=costs)


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
@pytest.mark.parametrize("readers", [1, 3])
def test_a_chain_of_49_pairs_a_layer_goes_down_as_by_the_plain_rule(readers, share, edges):
    table = chain(12, edges, readers)
    start = {layer.name: Bits(8, 8) for layer in table.layers}
    budgets = [Budget("bops", share * total(table, start, "bops")), Budget("size", 3e6)]
    expected = plain_fit(start, table, budgets)
    assert fit(start, table, budgets) == expected
    assert len(set(expected.values())) > 1


def test_a_move_looks_up_its_own_layer_and_not_two_hundred():
    table = chain(200, edges=False)
    looked_up = []

    class Counted(dict):
        def __getitem__(self, name):
            looked_up.append(name)
            return super().__getitem__(name)

    vars(table)["positions"] = Counted(table.positions)  # where cached_property keeps it
    start = {layer.name: Bits(8, 8) for layer in table.layers}
    lowered = fit(start, table, [Budget("bops", 0.3 * total(table, start, "bops"))])
    bits = sum(sum(start[name]) - sum(lowered[name]) for name in start)  # at least one a move
    assert len(looked_up) < 10 * bits < 200 * bits


def test_a_layer_that_reads_its_own_output_pays_for_its_own_bits():
    table = chain(2, edges=False)
    at_home = np.random.default_rng(0).random((49, 49)) * 1e7
    table = replace(table, edges=(Edge("l1", "l1", {"bops": at_home}),))
    start = {"l0": Bits(8, 8), "l1": Bits(8, 8)}
    budgets = [Budget("bops", 0.4 * total(table, start, "bops"))]
    assert fit(start, table, budgets) == plain_fit(start, table, budgets)
