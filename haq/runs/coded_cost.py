"""What a layer's codes take in a packet at each width, as costs of a search.

Measured on the float network's weights, rounded at each width where they are clipped. The tables of
the coder are shared by all layers, and each bears its share of them.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from haq.allocation.budgets import Budget, parse_budget
from haq.allocation.costs import CODED, CostTable, Target, tabulate, total, with_quantity
from haq.allocation.policy import FLOAT, Bits
from haq.errors import BudgetError
from haq.formats.update.sizes import coded_bytes
from haq.network.graph import Graph
from haq.network.layers import EDGE_BITS
from haq.quantization.clipping import weight_clips
from haq.quantization.quantizer import codes
from haq.runs.job import Job

HEADER = 1000
"""Bytes of a packet beside its layers (digests, a deflated header), borne by all of them."""

HEADER_OF_LAYER = 48
"""Bytes of a packet for what its header says of a layer, and for its activations' scale."""

ClipsOfWeights = Mapping[str, Mapping[int, Tensor]]
"""Layer to bits to clip, as in ``haq.quantization.calibration.Clips``."""


def is_asked(job: Job) -> bool:
    """Return whether coded bytes are budgeted, or to be as few as can be."""
    quantities = [text.partition("=")[0].strip() for text in job.budgets]
    return CODED in (*quantities, job.minimise)


def clips_of_weights(graph: Graph, job: Job, table: CostTable) -> ClipsOfWeights:
    """Return where the weights of each layer are clipped at the widths it may have."""
    clips: dict[str, Mapping[int, Tensor]] = {}
    for layer in table.layers:
        widths = sorted({bits.weight for bits in table.choices[layer.name]} - {FLOAT})
        weight = graph.traced.get_parameter(f"{layer.name}.weight").detach().float()
        known = weight_clips(weight, widths, job.clipping, job.per_channel) if widths else {}
        clips[layer.name] = known
    return clips


def with_coded_size(table: CostTable, graph: Graph, clips: ClipsOfWeights) -> CostTable:
    """Return a table that knows the coded bytes of every layer and width.

    Args:
        table: Without them, or with others, which are replaced.
        graph: The float network's, with the weights it has now.
        clips: Where these are clipped.

    Raises:
        BudgetError: A layer may have its weights in groups or a codebook, which no packet holds.
    """
    for layer in table.layers:
        if any(bits.block for bits in table.choices[layer.name]):
            raise BudgetError(
                f"{CODED} is that of a checkpoint's packet, and packets hold no weights in groups "
                f"and no codebooks, which layer {layer.name!r} may have; leave these out, or "
                "budget size"
            )
    known = _by_width(table, graph, clips)
    rows = {}
    for layer in table.layers:
        rest = 4.0 * layer.biases + HEADER_OF_LAYER + HEADER / len(table.layers)
        rows[layer.name] = np.array(
            [
                rest + (4.0 * layer.weights if bits.weight == FLOAT else
                        known[bits.weight][layer.name] + 4.0 * layer.scales)
                for bits in table.choices[layer.name]
            ]
        )  # fmt: skip
    return with_quantity(table, CODED, "bytes", rows, table.fixed.get("size", 0.0))


def budgets_of(job: Job, graph: Graph, target: Target | None) -> tuple[Budget, ...]:
    """Return the budgets of a job; shares of coded bytes are measured on the weights of now.

    Raises:
        BudgetError: One of them cannot be read.
    """
    floats = sum(graph.float_parameters.values())

    def coded(bits: Bits) -> float:
        policy = {layer.name: Bits(bits.weight, EDGE_BITS) for layer in graph.layers}
        choices = {name: (pair,) for name, pair in policy.items()}
        table = tabulate(graph.layers, choices, None, floats)
        known = with_coded_size(table, graph, clips_of_weights(graph, job, table))
        return total(known, policy, CODED)

    return tuple(parse_budget(text, graph.layers, target, floats, coded) for text in job.budgets)


def _by_width(table: CostTable, graph: Graph, clips: ClipsOfWeights) -> dict[int, dict[str, float]]:
    widths = {bits.weight for choices in table.choices.values() for bits in choices} - {FLOAT}
    known = {}
    for width in sorted(widths):
        whole = {}
        for layer in table.layers:
            if width in {bits.weight for bits in table.choices[layer.name]}:
                weight = graph.traced.get_parameter(f"{layer.name}.weight").detach().float()
                clip = clips[layer.name][width]
                along = clip.view(-1, *(1,) * (weight.dim() - 1))
                whole[layer.name] = codes(weight, width, along).numpy()
        known[width] = coded_bytes(whole, width)
    return known
