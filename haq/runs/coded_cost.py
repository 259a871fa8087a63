"""What a layer's codes take in a packet at each width, as costs of a search.

Measured on the float network's weights, rounded at each width where they are clipped. The tables of
the coder are shared by all layers, and each bears its share of them.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from haq.allocation.budgets import Budget, parse_budget
from haq.allocation.costs import CODED, CostTable, Target, tabulate, total, with_quantity
from haq.allocation.policy import CODEBOOK, FLOAT, Bits
from haq.formats.update.sizes import coded_bytes
from haq.network.graph import Graph
from haq.network.layers import EDGE_BITS, SPARSE
from haq.quantization.clipping import weight_clips
from haq.quantization.codebook import codebook
from haq.quantization.groups import group_codes, group_scales
from haq.quantization.quantizer import codes
from haq.runs.encoded_cost import rows_of
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
        weight = rows_of(graph.traced, layer.name)
        known = weight_clips(weight, widths, job.clipping, job.per_channel) if widths else {}
        clips[layer.name] = known
    return clips


def with_coded_size(table: CostTable, graph: Graph, clips: ClipsOfWeights) -> CostTable:
    """Return a table that knows the coded bytes of every layer and width.

    Args:
        table: Without them, or with others, which are replaced.
        graph: The float network's, with the weights it has now.
        clips: Where these are clipped, where they have neither groups nor a codebook.
    """
    known = _by_width(table, graph, clips)
    rows = {}
    for layer in table.layers:
        rest = 4.0 * layer.biases + HEADER_OF_LAYER + HEADER / len(table.layers)
        rows[layer.name] = np.array(
            [
                rest + (4.0 * layer.weights if bits.weight == FLOAT else
                        known[bits.weight, bits.block][layer.name])
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


Width = tuple[int, int]
"""Bits of weights, and how many of a row share a scale, as in ``Bits.block``."""


def _by_width(
    table: CostTable, graph: Graph, clips: ClipsOfWeights
) -> dict[Width, dict[str, float]]:
    """Return the bytes of the codes and scales of each layer at each width it may have."""
    known = {}
    for width in sorted({one for layer in table.layers for one in _widths(table, layer.name)}):
        whole, scales = {}, {}
        for layer in table.layers:
            if width in _widths(table, layer.name):
                weight = rows_of(graph.traced, layer.name)
                rounded = _rounded(weight, width, clips.get(layer.name, {}))
                whole[layer.name] = rounded[0].numpy()
                scales[layer.name] = rounded[1] if width[1] else 4.0 * layer.scales
        sizes = coded_bytes(whole, width[0])
        known[width] = {name: sizes[name] + scales[name] for name in whole}
    return known


def _widths(table: CostTable, name: str) -> set[Width]:
    return {(bits.weight, bits.block) for bits in table.choices[name] if bits.weight != FLOAT}


def _rounded(weight: Tensor, width: Width, clips: Mapping[int, Tensor]) -> tuple[Tensor, float]:
    """Return the codes of weights, and the bytes of the scales of groups, or of a codebook."""
    bits, block = width
    if block == CODEBOOK:
        pruned = float((weight == 0).float().mean()) >= SPARSE
        labels = codebook(weight, bits, zero=pruned).labels.to(torch.int16)
        return (labels - 2 ** (bits - 1)).to(torch.int8), 4.0 * 2**bits
    if block:
        scales = group_scales(weight, bits, block)
        return group_codes(weight, scales, bits, block), 2.0 * scales.numel()
    along = clips[bits].view(-1, *(1,) * (weight.dim() - 1))
    return codes(weight, bits, along), 0.0
