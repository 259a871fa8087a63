"""The best policy within the budgets, against enumeration."""

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cost_problems import array, keeps, policies, problems, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from haq.allocation.budgets import Budget, cheapest, fit, least_cost, solve
from haq.allocation.budgets.integer_program import silent_stdout
from haq.allocation.choices import permitted
from haq.allocation.costs import CostTable, Edge, reference, tabulate, total
from haq.allocation.policy import Bits
from haq.errors import BudgetError
from haq.network.layers import Layer


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
    policy = solve(far, table, [Budget("latency", 260)])
    assert total(table, policy, "latency") <= 260
    # The first is free, every third one more costs 4 + 2 - 5 = 1: ten of the others.
    assert [*policy.values()].count(Bits(32, 32)) == 11


@settings(max_examples=100, deadline=None)
@given(problems(), st.data())
def test_solve_finds_what_enumeration_finds(problem, data):
    table, budgets = problem
    objective = {name: array(data.draw, len(some)) for name, some in table.choices.items()}

    def value(policy):
        return sum(objective[n][table.positions[n][bits]] for n, bits in policy.items())

    able = [policy for policy in policies(table) if keeps(table, policy, budgets)]
    policy = solve(objective, table, budgets)
    if not able:
        assert policy is None
        return
    assert policy in able
    assert value(policy) == pytest.approx(min(map(value, able)), rel=1e-6, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(problems(), st.data(), st.floats(0.5, 2000))
def test_the_least_cost_within_a_damage_is_what_enumeration_finds(problem, data, most):
    table, budgets = problem
    damage = {name: array(data.draw, len(some)) for name, some in table.choices.items()}

    def hurts(policy):
        return sum(damage[name][table.positions[name][bits]] for name, bits in policy.items())

    able = [p for p in policies(table) if keeps(table, p, budgets) and hurts(p) <= most]
    policy = least_cost("latency", damage, most, table, budgets)
    if not able:
        assert policy is None or hurts(policy) == pytest.approx(most, rel=1e-6)
        return
    assert keeps(table, policy, budgets) and hurts(policy) <= most * (1 + 1e-9)
    least = min(total(table, p, "latency") for p in able)
    assert total(table, policy, "latency") == pytest.approx(least, rel=1e-6, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(tables())
def test_nothing_is_cheaper_than_the_cheapest(table):
    for quantity in table.rows:
        least = min(total(table, policy, quantity) for policy in policies(table))
        assert cheapest(table, quantity) == pytest.approx(least, rel=1e-9, abs=1e-6)


# --- what the solver prints ------------------------------------------------------------------


C = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)  # prints as HiGHS does


@pytest.mark.parametrize("unbuffered", ["", "1"])  # decides about C's own buffer too
def test_nothing_of_the_solver_reaches_the_standard_output(unbuffered):
    code = (
        "import ctypes, os, sys\n"
        "from haq.allocation.budgets.integer_program import silent_stdout\n"
        "C = ctypes.CDLL('ucrtbase' if sys.platform == 'win32' else None)\n"
        "C.puts(b'before')\n"
        "with silent_stdout():\n"
        "    C.puts(b'HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();')\n"
        "    os.write(1, b'directly')\n"
        "C.puts(b'after')\n"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["before", "after"]


def test_the_standard_output_comes_back_after_an_error(capfd):
    with pytest.raises(ZeroDivisionError), silent_stdout():
        raise ZeroDivisionError
    os.write(1, b"back")
    assert capfd.readouterr().out == "back"


def test_searches_side_by_side_leave_the_standard_output_open(capfd):
    def solved(number):
        with silent_stdout():
            C.puts(b"in the middle")
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(solved, range(40))) == list(range(40))
    os.write(1, b"open")
    assert capfd.readouterr().out == "open"


def test_a_process_without_a_standard_output_solves_all_the_same():
    code = (
        "import os; os.close(1)\n"
        "import numpy as np\n"
        "from haq.allocation.budgets import Budget, solve\n"
        "from haq.allocation.choices import permitted\n"
        "from haq.allocation.costs import tabulate\n"
        "from haq.network.layers import Layer\n"
        "layers = [Layer('a', 'conv', 1, 1, weights=9)]\n"
        "table = tabulate(layers, permitted(layers, None))\n"
        "assert solve(table.rows['bops'], table, [Budget('size', 9)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
