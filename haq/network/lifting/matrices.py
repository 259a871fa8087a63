"""The matrices of operations that have several weights become layers of their own."""

import re

from torch import fx, nn

from haq.network.lifting.draft import Draft
from haq.network.lifting.nodes import name_of
from haq.network.lifting.weights import Weight, parameter
from haq.network.modules import Matrix
from haq.network.operators import RECURRENT

_OTHERS = {"bilinear", "embedding_bag", "_embedding_bag", "einsum", "matmul", "mm", "bmm"}

_NORMALISED = re.compile(r"parametrizations\.(\w+)\.original\d*$|(?<=\d)_[gv]$|_orig$")
"""What stands in the name of a parameter that a weight is computed from."""


def hold_matrices(draft: Draft, node: fx.Node) -> None:
    """Let an operation read each of its matrices from a module under the matrix's name.

    Of an LSTM, GRU or RNN also those that are computed from other parameters.
    """
    recurrent = name_of(node) in RECURRENT
    if not recurrent and name_of(node) not in _OTHERS:
        return
    for operand in node.all_input_nodes:
        weight = draft.weights.get(operand)
        if weight is None or not _is_matrix(weight) or not (recurrent or weight.name):
            continue
        if weight.key in draft.reads or id(weight.value) in draft.owners:
            continue  # something else reads it too
        name = _name(draft, weight)
        module = Matrix(weight.value)
        module.weight = parameter(weight, draft.state)
        if isinstance(weight.value, nn.Parameter):
            draft.owners[id(weight.value)] = name
        else:
            draft.computed.append(name)
        draft.modules.install(name, module, weight.key)
        draft.reads[weight.key] = draft.graph.call_module(name)


def _is_matrix(weight: Weight) -> bool:
    value = weight.value
    return bool(weight.sources) and value.dim() > 1 and value.is_floating_point()


def _name(draft: Draft, weight: Weight) -> str:
    name = weight.name or next(iter(weight.sources.values()))
    return draft.names.after(_NORMALISED.sub(lambda match: match[1] or "", name))
