"""The network that a program describes, written operation by operation."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import fx, nn

from haq.errors import ModelError
from haq.network.lifting.bags import open_bags
from haq.network.lifting.draft import Draft
from haq.network.lifting.matrices import hold_matrices
from haq.network.lifting.names import input_names
from haq.network.lifting.nodes import changes_nothing, modules_around, name_of
from haq.network.lifting.norms import dropout, norm
from haq.network.lifting.products import is_table, layer
from haq.network.lifting.weights import computed, of_state
from haq.network.naming import NAMED, ORIGIN, TENSORS
from haq.network.outputs import put_together
from haq.network.program import Program

_CHECKS = {
    "_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range",
    "sym_constrain_range_for_size",
}  # fmt: skip

# Each writes the call of a module, or gives None where an operation is not of its kind.
_MODULES: tuple[Callable[[Draft, fx.Node], fx.Node | None], ...] = (layer, norm, dropout)


def lifted(
    model: nn.Module, program: Program, names: Sequence[str] = ()
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Return the network that a program describes, in evaluation mode, and what is to be said.

    Its parameters and buffers are the model's own, but for weights that are computed from others
    or read in several places, which are copies.

    Args:
        model: What the program was exported from.
        program: From ``haq.network.program.export``.
        names: Of its inputs; without them those of the forward's parameters, in order.
    """
    open_bags(program.graph)
    draft, inputs = Draft(model, program), iter(names) if names else input_names(model)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            _placeholder(draft, node, inputs)
        elif node.op == "output":
            tensors = [draft.value(result) for result in node.args[0]]
            draft.graph.output(put_together(program.structure, tensors, draft.graph))
        else:
            _operation(draft, node)
    whole = fx.GraphModule(draft.modules.root, draft.graph, type(model).__name__)
    whole.graph.eliminate_dead_code()
    traced = fx.GraphModule(whole, whole.graph, type(model).__name__)  # without what is not called
    reads = {name: draft.reads.get(key) for name, key in draft.named_weights.items()}
    known = {**draft.named, **{name: node for name, node in reads.items() if node is not None}}
    left = {node.name for node in traced.graph.nodes}
    traced.meta[TENSORS] = {n: node.name for n, node in known.items() if node.name in left}
    traced.meta[ORIGIN] = getattr(model, ORIGIN, None)
    return traced.eval(), tuple(_notes(draft))


def _placeholder(draft: Draft, node: fx.Node, inputs: Iterator[str]) -> None:
    if node.name in draft.state:
        tensor = draft.state[node.name]
        draft.weights[node] = of_state(tensor, draft.names.tensors.get(id(tensor), ""))
    else:
        draft.values[node] = draft.graph.placeholder(next(inputs))


def _operation(draft: Draft, node: fx.Node) -> None:
    if node.op == "get_attr":
        raise ModelError(
            f"the forward of {type(draft.model).__name__} cannot be captured: it has a branch "
            "or a loop (torch.cond and its like) within its graph; choose with torch.where"
        )
    if name_of(node) in _CHECKS:
        return
    if node.target is NAMED:
        _name(draft, node, str(node.args[1]))
        return
    weight = None if is_table(node) else computed(node, draft.weights)
    if weight is not None:
        draft.weights[node] = weight  # written where something else than a layer reads it
        return
    calls = (module(draft, node) for module in _MODULES)
    call = next((call for call in calls if call is not None), None)
    if call is None and changes_nothing(node):
        call = draft.value(node.args[0])
    if call is None:
        hold_matrices(draft, node)
    written = call or draft.write(node)
    # An operation that changes nothing, such as an identity, is the end of its modules too.
    if isinstance(written, fx.Node):
        written.meta["modules"] = [
            *written.meta.get("modules", ()),
            *modules_around(node, draft.model),
        ]
    draft.values[node] = written


def _name(draft: Draft, node: fx.Node, name: str) -> None:
    """Note what a forward calls a tensor; of a constant, the node that reads it, if one will."""
    values: Any = node.args[0]
    if values in draft.weights:
        draft.weights[node] = draft.weights[values]
        draft.named_weights[name] = draft.weights[node].key
    else:
        draft.values[node] = draft.named[name] = draft.value(values)


def _notes(draft: Draft) -> Iterator[str]:
    """Yield what was changed, in whole sentences."""
    if draft.computed:
        yield (
            f"the weights of {_listed(draft.computed)} are computed from other parameters, as "
            "weight normalisation and pruning do; the network has them as they are now"
        )
    for first, second in draft.tied:
        yield f"{second} shares its weight with {first}; each has a copy of its own"
    for table, name in sorted(draft.shared.items()):
        if table != name:
            yield f"{table} and {name} share one weight: its bits are those of layer {name}"
    missed = [
        name or type(draft.model).__name__ for name, module in draft.model.named_modules()
        if (own := [*module.parameters(recurse=False)])
        and draft.used.isdisjoint(map(id, own))
    ]  # fmt: skip
    if missed:
        yield f"the forward never reaches {_listed(missed)}, left out"


def _listed(names: list[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
