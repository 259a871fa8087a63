"""BatchNorms and dropout become modules, which act differently while a network is trained."""

import torch
from torch import fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from haq.errors import ModelError
from haq.network.lifting.draft import Draft
from haq.network.lifting.modules import DROPOUT_MODULES, DROPOUTS, parts_of, plain_norm
from haq.network.lifting.nodes import innermost

aten = torch.ops.aten


def norm(draft: Draft, node: fx.Node) -> fx.Node | None:
    """Write the call of a BatchNorm, and None where an operation is none that a module has."""
    if node.target is not aten.batch_norm.default or node.args[0] not in draft.values:
        return None
    given = [None if arg is None else draft.weights.get(arg) for arg in node.args[1:5]]  # type: ignore[arg-type]
    values = [None if weight is None else weight.value for weight in given]
    training, _, eps = node.args[5:8]
    if training and values[2] is not None:
        raise ModelError(
            f"the forward of {type(draft.model).__name__} changes the statistics of a BatchNorm "
            "in evaluation mode; a network must give the same answer each time"
        )
    own = innermost(node, draft.model, _BatchNorm)
    if not isinstance(own, _BatchNorm) or own is draft.model or parts_of(own) != [*map(id, values)]:
        return None
    name = draft.names.modules[id(own)]
    if name not in draft.modules.keys:
        axes = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
        draft.modules.install(name, plain_norm(own, axes, float(eps)), id(own))  # type: ignore[arg-type]
    draft.used |= {i for weight in given if weight for i in weight.sources}
    return draft.call(name, node.args[0])


def dropout(draft: Draft, node: fx.Node) -> fx.Node | None:
    """Write the call of a dropout, and None where an operation is none, or always drops."""
    if node.target not in DROPOUTS or node.args[2]:
        return None
    own = innermost(node, draft.model, _DropoutNd)
    if own is None or own is draft.model:
        value: fx.Node = draft.value(node.args[0])
        return value  # it is none in evaluation mode
    name = draft.names.modules[id(own)]
    if name not in draft.modules.keys:
        kind = next(kind for kind in DROPOUT_MODULES if isinstance(own, kind))
        draft.modules.install(name, kind(float(node.args[1])), id(own))  # type: ignore[arg-type]
    return draft.call(name, node.args[0])
