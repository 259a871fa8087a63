"""A network and its landscape, both made up: what HAQ-Bench has of a real one, in milliseconds."""

import numpy as np

from haq.allocation.budgets import Budget
from haq.allocation.policy import Bits, readers
from haq.allocation.sensitivities import Sensitivity, objective
from haq.bench.policies import Counts, Setting, drawn
from haq.bench.table import Bench, Subject
from haq.network.layers import Layer

LAYERS = (
    Layer("first", "conv", 3, 8, weights=200, macs=20_000, reads="first", reads_input=True),
    Layer("a", "conv", 8, 8, weights=576, macs=90_000, reads="a"),
    Layer("b", "conv", 8, 16, weights=1152, macs=60_000, reads="b"),
    Layer("shortcut", "pointwise", 8, 16, weights=128, macs=9_000, reads="a"),
    Layer("c", "conv", 16, 16, weights=2304, macs=90_000, reads="c"),
    Layer("d", "conv", 16, 16, weights=2304, macs=90_000, reads="d"),
    Layer("last", "linear", 16, 10, weights=160, macs=160, reads="last"),
)
PINS = {"first": Bits(8, 8), "last": Bits(8, 8)}
SLOPES = {"a": 1.0, "b": 0.6, "shortcut": 0.2, "c": 0.3, "d": 0.1}


def damages(factor, scale=1.0):
    return {
        name: {bits: scale * SLOPES[name] * factor ** (2 - bits) for bits in range(2, 9)}
        for name in SLOPES
    }


KNOWN = Sensitivity("made up", 1, damages(4.0), damages(3.0, 0.5))


def truth(policy):
    """What a policy is worth: a sum over all places, and a pair of layers that mind each other."""
    together = readers(LAYERS)
    total = sum(KNOWN.weights[name][policy[name].weight] for name in SLOPES)
    total += sum(
        KNOWN.activations[name][policy[name].act]
        for name in SLOPES if together[name][0] == name
    )  # fmt: skip
    both = 2.0 ** (4 - policy["c"].weight - policy["d"].weight)
    return 0.02 * total**1.2 * np.exp(both)


def subject():
    about = {"data": "none"}
    return Subject("made-up", LAYERS, PINS, 0, 0.9, KNOWN, about)


def settings(network):
    table = network.costs(act_bits=4)
    goal = objective(network.sensitivity, table)
    return [
        Setting(f"avg_weight_bits={limit} a4", table, (Budget("avg_weight_bits", limit),), goal)
        for limit in (3.0, 4.0)
    ]


COUNTS = Counts(levels=120, moves=40, budget=10, doubted=8, moved=12)


def bench():
    network = subject()
    policies = drawn(network.costs(), settings(network), 0, COUNTS)
    losses = np.array([truth(one.policy) for one in policies])
    figures = {"divergence": losses, "accuracy": 0.9 * np.exp(-losses)}
    return Bench(network, policies, figures)
