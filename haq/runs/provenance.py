"""Where costs come from: what a target is worth, and how the numbers of a run were found."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from haq.allocation.costs import CostTable, Edge, Target
from haq.allocation.policy import Policy
from haq.hw_profiles import Explained, build, find
from haq.hw_profiles.answers import METHODS
from haq.hw_profiles.pairs import listed
from haq.hw_profiles.schema import weakest
from haq.network.layers import Layer


def describe(name: str) -> dict[str, Any]:
    """Return what a target is and how far its costs can be trusted, ready for JSON.

    Args:
        name: A name, a profile or a table, as for ``--target``.

    Raises:
        HaqError: There is no such target, or its file cannot be used.
    """
    profile = find(name)
    pairs = build(profile).pairs
    return {
        "target": name,
        "name": profile.name,
        "title": profile.title,
        "device": profile.device,
        "runtime": profile.runtime.model_dump(mode="json"),
        "version": profile.version,
        "quantities": {
            quantity: about.model_dump(mode="json")
            for quantity, about in profile.quantities.items()
        },
        "bits": listed(pairs),
        "choices": [list(pair) for pair in pairs],
        "batch": profile.batch.model_dump(mode="json"),
        "model": profile.model.type if profile.model else None,
        "rows": len(profile.table.rows) if profile.table else 0,
    }


def cost_origin(
    target: Target | None, table: CostTable, policy: Policy, layers: Sequence[Layer] | None = None
) -> dict[str, Any] | None:
    """Return how the costs of a policy were found and how far they can be trusted.

    Args:
        target: None where there is none; then there is nothing to say, as all costs are counted.
        table: Its layers, and its edges, whose costs are those of a fit.
        policy: The bits of every layer.
        layers: With the channels that the policy leaves them; None for all they have.

    Returns:
        ``{"profile", "device", "version", "batch", "quantities": {"latency": {"provenance",
        "methods": {"exact": 50, "shape": 3}, "edges", "error", "source"}}}``; None without a
        profile. ``provenance`` is the class of the weakest term, ``methods`` counts layers and
        ``edges`` the edges that cost something.

    Raises:
        TargetError: The target has no cost for a layer of the policy.
    """
    if not isinstance(target, Explained):
        return None
    profile = target.profile
    answers = [
        target.how(layer, policy[layer.name].with_keep(1.0)) for layer in layers or table.layers
    ]
    quantities = {}
    for name, about in profile.quantities.items():
        own = [answer[name] for answer in answers]
        # Where channels are chosen, edges are what narrower layers save by the same formula.
        fitted = () if table.together else table.edges
        edges = sum(_edge_cost(table, edge, policy, name) != 0 for edge in fitted)
        classes = [answer.provenance for answer in own]
        methods = Counter(answer.method for answer in own)
        quantities[name] = {
            "provenance": weakest([*classes, "calibrated"] if edges else classes),
            "methods": {method: methods[method] for method in METHODS if method in methods},
            "edges": edges,
            "error": about.error,
            "source": about.source,
        }
    return {
        "profile": profile.name, "device": profile.device, "version": profile.version,
        "batch": target.batch, "quantities": quantities,
    }  # fmt: skip


def _edge_cost(table: CostTable, edge: Edge, policy: Policy, quantity: str) -> float:
    if quantity not in edge.cost:
        return 0.0
    ends = (table.positions[name][policy[name]] for name in (edge.producer, edge.consumer))
    return float(edge.cost[quantity][tuple(ends)])
