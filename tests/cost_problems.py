"""Small cost tables with budgets, drawn by hypothesis, and every policy of such a table."""

from itertools import product

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from haq.allocation.budgets import Budget
from haq.allocation.costs import CostTable, Edge, total
from haq.allocation.policy import Bits, readers
from haq.network.layers import Layer

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
