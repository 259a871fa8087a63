"""Latencies of single layers: the profiler's times of their nodes, scaled to whole networks."""

from collections.abc import Collection, Mapping, Sequence

from haq.allocation.policy import Bits, Policy
from haq.hw_profiles.measure.fit import shared_out
from haq.hw_profiles.measured import CLIPPED, FLOATS, INTEGERS, kernel
from haq.network.graph import Graph
from haq.network.layers import Layer
from haq.network.sites import module_name
from haq.runs.profiling.networks import Measurements
from haq.runs.progress import OnProgress, Progress

_NODE_RUNS = 60


def layer_latencies(
    graph: Graph, networks: Measurements, on_progress: OnProgress
) -> dict[str, dict[Bits, float]]:
    """Return layer to kernel to latency, so that the references' own latencies are their sums."""
    times = _node_times(networks, on_progress)
    owners = _owners(graph.layers)
    latencies: dict[str, dict[Bits, float]] = {name: {} for name in owners.values()}
    for reference, variant in networks.references.items():
        if reference == "w7a4":
            continue
        ran = FLOATS if reference == "fp32" else kernel(_only(variant.policy, latencies))
        sums = dict.fromkeys(latencies, 0.0)
        for node, us in times[reference].items():
            sums[owners[variant.network.owners[node]]] += us
        for name, us in sums.items():
            if kernel(variant.policy[name]) == ran:
                latencies[name][ran] = us
    if "w7a4" not in networks.references:
        return latencies
    clipping = max(networks.timings["w7a4"].us - networks.timings["w7a8"].us, 0.0)
    shares = _clip_shares(graph, networks.references["w7a4"].policy, times["w7a4"])
    for name, share in shares.items():
        latencies[name][CLIPPED] = latencies[name][INTEGERS] + share * clipping
    return latencies


def _owners(layers: Sequence[Layer]) -> dict[str, str]:
    """Return to whose time that of a layer belongs: what is looked up adds to another.

    Such layers have no costs on a target, but the nodes behind them take time.
    """
    owners: dict[str, str] = {}
    last = next(layer.name for layer in layers if not layer.weights_alone)
    for layer in layers:
        last = last if layer.weights_alone else layer.name
        owners[layer.name] = last
    return owners


def _only(policy: Policy, layers: Collection[str]) -> Bits:
    """Return the bits of the layers that are not float."""
    return next(policy[name] for name in layers if policy[name] != FLOATS)


def _node_times(networks: Measurements, on_progress: OnProgress) -> dict[str, dict[str, float]]:
    """Return reference to node to latency; they sum up to that of the whole network."""
    times = {}
    for done, (name, variant) in enumerate(networks.references.items(), 1):
        nodes = variant.network.node_times(_NODE_RUNS)
        # A function that is inlined as late as when it runs has nodes that are in no graph.
        known = {node: us for node, us in nodes.items() if node in variant.network.owners}
        times[name] = shared_out(known, networks.timings[name].us)
        on_progress(Progress("layers", done, len(networks.references)))
    return times


def _clip_shares(graph: Graph, policy: Policy, times: Mapping[str, float]) -> dict[str, float]:
    """Return, for each layer of fewer than 8 bits, its share of what clipping all of them takes.

    A tensor is rounded and clipped once, for the first layer that reads it. Where that has no node
    of its own, as in an engine that fuses it, all have the same share.
    """
    spent = {name: 0.0 for name, bits in policy.items() if kernel(bits) == CLIPPED}
    for point in graph.points:
        if point.layers and point.layers[0] in spent:
            label = module_name(point.tensor, point.layers).removeprefix("quantizers.") + "."
            spent[point.layers[0]] += sum(us for n, us in times.items() if n.startswith(label))
    total = sum(spent.values())
    return {name: us / total if total else 1 / len(spent) for name, us in spent.items()}
