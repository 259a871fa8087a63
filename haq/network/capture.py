"""From a model to the graph of one forward, which is compared with the model before it is used."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from haq.errors import ModelError
from haq.network.inputs import Batch, Inputs, arguments, as_inputs, call, tensors_of
from haq.network.lifting.lift import lifted
from haq.network.modules import LAYERS, PRODUCTS
from haq.network.outputs import taken_apart
from haq.network.program import export

Sample = Inputs | tuple[Tensor, ...]

_ROWS = 2
"""Inputs that a forward is captured with; torch takes an axis of one for a constant."""

_TOLERANCE = 1e-3
"""Of the largest value in the model's answer: how far the graph's may be from it."""


class Captured(NamedTuple):
    """The graph of a model's forward.

    Attributes:
        model: What was captured: the model without wrappers, or a copy of it in float32.
        traced: The graph, with modules for layers, BatchNorms and dropout.
        shapes: Of every floating-point tensor, in order of execution, for ``rows`` inputs.
        rows: How many inputs these were.
        notes: What differs from the model, in whole sentences.
    """

    model: nn.Module
    traced: fx.GraphModule
    shapes: dict[fx.Node, torch.Size]
    rows: int
    notes: tuple[str, ...]


def capture(model: nn.Module, sample: Sample) -> Captured:
    """Return the graph of a model's forward in evaluation mode, which answers as the model does.

    Args:
        model: Left as it is.
        sample: What one forward takes, with a leading batch axis, in the model's types.

    Raises:
        ModelError: The model fails on the sample, its forward cannot be captured, or the graph
            answers differently.
    """
    model = unwrapped(model)
    inputs = _checked(sample)
    model, notes = _in_float32(model)
    rows, batched = _rows(model, inputs, _ROWS)
    with torch.no_grad(), evaluating(model), torch.random.fork_rng(devices=[]):
        answer = _answer(model, rows, inputs)
        program = export(model, rows, batched)
        traced, more = lifted(model, program, rows.names)
        _copy_what_is_written_to(traced, rows)
        run = _Shapes(traced)
        _check_same(model, answer, _seeded(run.run, Batch(rows.tensors)))
        if not any(value.is_meta for value in rows.tensors):
            _check_other_inputs(model, traced, inputs)
    return Captured(model, traced, run.shapes, _ROWS, (*notes, *more))


def _checked(sample: Sample) -> Inputs:
    """Return a sample as inputs; of what callers give, it may be anything."""
    if not isinstance(sample, Tensor | Batch | Mapping | Sequence):
        raise ModelError(f"the sample is a {type(sample).__name__}; give torch tensors")
    inputs = as_inputs(sample)
    given = tensors_of(inputs)
    for value in given:
        if not isinstance(value, Tensor):
            raise ModelError(f"the sample holds a {type(value).__name__}; give torch tensors")
    if not given or given[0].dim() == 0 or len(given[0]) == 0:
        raise ModelError("the sample has no row: give one input or more, the batch axis first")
    return inputs


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module in the wrapper of ``torch.compile`` or ``DataParallel``, if it has one.

    Raises:
        ModelError: It was compiled by TorchScript, which leaves no module to quantize.
    """
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise ModelError(
                f"{name or 'the model'} was compiled by torch.jit, which leaves nothing to "
                "quantize: give the nn.Module that was scripted or traced"
            )
    inner = getattr(model, "_orig_mod", None)  # of torch.compile, whose type is dear to import
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def _in_float32(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    tensors = (*model.parameters(), *model.buffers())
    types = {value.dtype for value in tensors if value.is_floating_point()} - {torch.float32}
    if not types:
        return model, ()
    try:
        model = copy.deepcopy(model).float()
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied to bring it to float32 "
            f"({_first_line(error)}): give it in float32, model.float()"
        ) from error
    named = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in types))
    return model, (f"the network was brought from {named} to float32",)


def _rows(model: nn.Module, inputs: Inputs, count: int) -> tuple[Batch, tuple[bool, ...]]:
    """Return inputs with so many rows, and which of them have a batch axis."""
    given = tensors_of(inputs)
    batched = tuple(value.dim() > 0 and len(value) == len(given[0]) for value in given)
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    rows = []
    for value, free in zip(given, batched, strict=True):
        value = value.float() if value.is_floating_point() else value
        # Indexing copies: inputs that are one tensor for the caller are two here.
        chosen = value[torch.arange(count) % len(value)] if free else value.clone()
        rows.append(chosen.to(device))
    return Batch(tuple(rows), () if isinstance(inputs, Tensor) else inputs.names), batched


def _answer(model: nn.Module, rows: Batch, inputs: Inputs) -> object:
    try:
        return _seeded(model, rows)
    except Exception as error:
        raise ModelError(
            f"the model does not run on a sample of {_shapes(inputs)}: {_first_line(error)}"
        ) from error


def _shapes(inputs: Inputs) -> str:
    shapes = ["x".join(map(str, value.shape)) for value in tensors_of(inputs)]
    names = [] if isinstance(inputs, Tensor) else inputs.names
    named = [f"{name} {shape}" for name, shape in zip(names, shapes, strict=False)]
    return ", ".join(named or shapes)


def _seeded(network: Any, rows: Batch) -> object:
    """Return an answer to copies of inputs, with the same random numbers each time."""
    torch.manual_seed(0)
    return call(network, rows.map(torch.clone))


def _copy_what_is_written_to(traced: fx.GraphModule, rows: Batch) -> None:
    """Let a forward that changes its inputs in place change copies of them."""
    if any(value.is_meta for value in rows.tensors):
        return
    given = tuple(value.clone() for value in rows.tensors)
    traced(*given)
    places = [node for node in traced.graph.nodes if node.op == "placeholder"]
    first = next(node for node in traced.graph.nodes if node.op != "placeholder")
    for place, before, after in zip(places, rows.tensors, given, strict=True):
        if not torch.equal(before, after):
            with traced.graph.inserting_before(first):
                copied = traced.graph.call_function(torch.clone, (place,))
            place.replace_all_uses_with(
                copied, delete_user_cb=lambda user, own=copied: user is not own
            )
    traced.recompile()


def _check_other_inputs(model: nn.Module, traced: fx.GraphModule, inputs: Inputs) -> None:
    """Compare graph and model on random inputs, or on the sample's, in a batch of another size."""
    rows, _ = _rows(model, inputs, _ROWS + 1)
    generator = torch.Generator().manual_seed(0)
    random = rows.map(
        lambda value: (
            torch.randn(value.shape, generator=generator).to(value)
            if value.is_floating_point()
            else value
        )
    )
    try:
        answer = _seeded(model, random)
    except Exception:  # such as indices that are floats
        answer, random = _seeded(model, rows), rows
    _check_same(model, answer, _seeded(traced, random))


def _check_same(model: nn.Module, expected: object, answer: object) -> None:
    (_, wanted), (_, given) = taken_apart(expected), taken_apart(answer)
    if len(given) == len(wanted) and all(map(_is_close, given, wanted)):
        return
    raise ModelError(
        f"the captured graph of {type(model).__name__} does not give the model's answers, so it "
        "cannot be quantized: its forward depends on something that is neither in its inputs nor "
        "in its parameters, or does not give the same answer each time"
    )


def _is_close(given: Tensor, wanted: Tensor) -> bool:
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        return False
    if wanted.is_meta or wanted.numel() == 0:
        return True
    if not (wanted.is_floating_point() or wanted.is_complex()):
        return torch.equal(given, wanted)
    finite = wanted.isfinite()
    if not torch.equal(given[~finite].nan_to_num(), wanted[~finite].nan_to_num()):
        return False
    difference = (given - wanted)[finite].abs()
    return difference.numel() == 0 or bool(
        difference.max() <= _TOLERANCE * wanted[finite].abs().max()
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put all parts of a module into evaluation mode; each has its own mode back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False  # takes seconds, and is not shown
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point():
            self.shapes[n] = result.shape
        return result


def shapes_of(traced: fx.GraphModule, inputs: Inputs) -> dict[fx.Node, torch.Size]:
    """Return the shape of every floating-point tensor, in order of execution."""
    interpreter = _Shapes(traced)
    try:
        with torch.no_grad(), evaluating(traced):
            interpreter.run(*arguments(traced.graph, inputs))
    except Exception as error:
        raise ModelError(
            f"the model does not run on a sample of {_shapes(inputs)}: {_first_line(error)}"
        ) from error
    return interpreter.shapes


def product_calls(traced: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Return the calls of every layer that multiplies, in order of execution."""
    return {
        name: nodes for name, nodes in layer_calls(traced).items()
        if type(traced.get_submodule(name)) in PRODUCTS
    }  # fmt: skip


def layer_calls(traced: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Return the calls of every layer, in order of execution."""
    calls: dict[str, list[fx.Node]] = {}
    names = {id(module): name for name, module in traced.named_modules()}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            if type(module) in LAYERS:
                calls.setdefault(names[id(module)], []).append(node)
    if not calls:
        raise ModelError("the model contains no layer with weights that its forward calls")
    return calls
