"""What a search needs before it looks at any image: network, layers, costs, budgets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from haq.agents import find
from haq.allocation.budgets import Budget, fit, most_bits
from haq.allocation.choices import nearest_pin, permitted, share_activations
from haq.allocation.costs import CODED, CostTable, Target, tabulate
from haq.allocation.policy import FLOAT, Bits
from haq.allocation.widths import check_budgeted, widened
from haq.compression.widths import Widths, widths_of
from haq.datasets import Data, Outline
from haq.distillation.losses import LOSSES
from haq.distillation.settings import DEFAULT, distillation_of
from haq.errors import BudgetError, HaqError, look_up
from haq.formats.onnx.template import Template
from haq.hw_profiles import ProfileTarget
from haq.hw_profiles import load as load_target
from haq.hw_profiles.measured import SIZE_NOT_TIME, Measured
from haq.metrics import named
from haq.network.graph import Graph, trace
from haq.network.inputs import Inputs, random_inputs
from haq.network.layers import Layer, edges
from haq.quantization.calibration import check_weights
from haq.quantization.clipping import CLIPPING
from haq.runs.coded_cost import budgets_of, clips_of_weights, is_asked, with_coded_size
from haq.runs.encoded_cost import check_channels, clipped_by, encodes, on_weights
from haq.runs.job import Job
from haq.training.distilling import check_distilling

LARGE = 0.1
"""Of the weights: the share above which the first and the last layer are not pinned by themselves.
"""


@dataclass(frozen=True)
class Plan:
    """What is known before any image is looked at: layers, costs, budgets.

    ``model`` is what the graph was traced from, with ``sample``; ``notes`` are sentences for the
    user about what stays float, or was decided otherwise than asked for. ``template`` is what ONNX
    files of its networks are made of, once ``haq.runs.handover`` tried; ``widths`` says which
    channels may be removed, where that is up to the search.
    """

    model: nn.Module
    sample: Inputs
    graph: Graph
    target: Target | None
    table: CostTable
    budgets: tuple[Budget, ...]
    texts: tuple[str, ...]
    images: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    template: Template | None = None
    widths: Widths | None = None


def check_names(job: Job) -> None:
    """Look up what a job names: agent, clipping, target.

    Raises:
        HaqError: Something is unknown, or the target's file cannot be read.
    """
    find(job.agent)
    if job.metric is not None:
        named(job.metric)
    look_up(CLIPPING, "clipping", job.clipping)
    if job.target:
        load_target(job.target, job.batch)


def plan(
    job: Job,
    model: nn.Module,
    images: Mapping[str, Any],
    sample: Inputs | None = None,
    notes: Sequence[str] = (),
    trained: bool = True,
) -> Plan:
    """Return the layers of a model, what their bits cost and the budgets of the job.

    Args:
        job: Its budgets, target, pins and bits count here.
        model: Left as it is.
        images: At least the "shape" of one; kept with the run.
        sample: Some inputs (N, ...) as the model gets them; random numbers of that shape if None.
        notes: Sentences for the user, known already.
        trained: Whether the model's weights are those that are searched; if they are not yet, what
            is measured on them holds no budget.

    Raises:
        HaqError: The model cannot be traced, a name is unknown, or no policy meets the budgets.
    """
    check_names(job)
    sample = random_inputs(images["shape"]) if sample is None else sample
    graph = trace(model, sample)
    check_weights(graph)
    _check_teaching(job, graph, sample)
    target: Target | None = load_target(job.target, job.batch) if job.target else None
    target = on_weights(
        target, graph.traced, clipped_by(graph.traced, job.clipping, job.per_channel)
    )
    floats = sum(graph.float_parameters.values())
    pins = _pins(job, graph.layers, target, floats)
    choices = _choices(job, graph.layers, target, pins)
    if job.widths:
        check_channels(target)
    widths = _widths(job, graph, sample)
    table = _tabulated(graph, choices, target, widths)
    if is_asked(job) and widths is None:
        table = with_coded_size(table, graph, clips_of_weights(graph, job, table))
    if job.minimise is not None:
        look_up(table.rows, "quantity", job.minimise)
    budgets = budgets_of(job, graph, target)
    if widths is not None:
        check_budgeted([budget.quantity for budget in budgets])
    measured = {CODED, *(target.units if target and encodes(target) else ())}
    certain = [budget for budget in budgets if trained or budget.quantity not in measured]
    _check_budgets(job, graph, target, table, certain, pins, widths)
    notes = (
        *notes,
        *graph.notes,
        *_float_notes(model, graph),
        *_float_products(graph),
        *_cost_notes(graph, target),
        *_pin_notes(pins, graph.layers, target),
        *_format_notes(choices),
        *_unpinned_notes(job, graph.layers, floats),
        *_width_notes(graph, widths),
        *_kernel_notes(target),
    )
    return Plan(
        model, sample, graph, target, table, budgets, job.budgets, images, notes, widths=widths
    )


def _widths(job: Job, graph: Graph, sample: Inputs) -> Widths | None:
    """Return which channels may be removed; None where none are to be.

    Raises:
        HaqError: None can be.
    """
    if not job.widths:
        return None
    known = widths_of(graph.traced, sample, job.widths, job.channel_multiple)
    if not known.groups:
        shares = ",".join(f"{share:g}" for share in job.widths)
        multiple = job.channel_multiple
        raise HaqError(
            f"--widths {shares}: no layer of this network can lose so many channels, and keep "
            f"{'some' if multiple == 1 else f'a multiple of {multiple}'}: its output or an "
            "operation that mixes channels needs them, or it has too few; "
            f"leave --widths out{'' if multiple == 1 else ', or give a smaller --channel-multiple'}"
        )
    return known


def _tabulated(
    graph: Graph,
    choices: Mapping[str, tuple[Bits, ...]],
    target: Target | None,
    widths: Widths | None,
) -> CostTable:
    floats = sum(graph.float_parameters.values())
    if widths is None:
        return tabulate(graph.layers, choices, target, floats)
    return widened(graph.layers, choices, widths.groups, target, floats)


def every_choice(planned: Plan) -> CostTable:
    """Return what all bits cost that the target runs, with the channels that may stay."""
    choices = permitted(planned.graph.layers, planned.target)
    return _tabulated(planned.graph, choices, planned.target, planned.widths)


def _width_notes(graph: Graph, widths: Widths | None) -> Iterator[str]:
    """Yield a sentence on the layers that keep all their channels, if there are any."""
    if widths is None:
        return
    able = {name for group in widths.groups for name in (*group.layers, *group.depthwise)}
    whole = [layer.name for layer in graph.layers if layer.name not in able]
    if whole:
        yield f"{listed(whole)} keep all their channels: what reads them needs each one"


def _check_teaching(job: Job, graph: Graph, sample: Inputs) -> None:
    """Say now that the network cannot be taught as asked for: taps, files of a route, epochs.

    Raises:
        HaqError: It cannot.
    """
    if not job.distill or job.distill == DEFAULT:
        return
    settings = distillation_of(job.distill)
    apart = [name for name in settings.names if LOSSES[name].same_shape]
    if job.widths and apart and not settings.regressor:
        raise HaqError(
            f"distill {apart[0]}: it compares features of the same shape, and --widths removes "
            "channels; add +regressor:1, or learn from answers with kd"
        )
    for count in {int(job.fine_tunes), job.last_epochs} - {0}:
        check_distilling(settings, graph.traced, sample, count)


def _check_budgets(
    job: Job,
    graph: Graph,
    target: Target | None,
    table: CostTable,
    budgets: Sequence[Budget],
    pins: Mapping[str, int | Bits],
    widths: Widths | None,
) -> None:
    """Say now, not after an hour, that no policy keeps the budgets; name pins that are to blame.

    Raises:
        BudgetError: No policy keeps them.
    """
    try:
        fit(most_bits(table), table, budgets)
    except BudgetError as error:
        free = permitted(
            graph.layers, target, job.weight_bits, job.fixed_act_bits, formats=job.formats
        )
        unpinned = _tabulated(graph, free, target, widths)
        if is_asked(job) and widths is None:
            unpinned = with_coded_size(unpinned, graph, clips_of_weights(graph, job, unpinned))
        try:
            fit(most_bits(unpinned), unpinned, budgets)
        except BudgetError:
            raise error from None
        names = ", ".join(f"{name}={bits}" for name, bits in pins.items())
        whose = "pinned" if job.pins is not None else "pinned unless asked otherwise"
        raise BudgetError(
            f"{error}; without pins some policy would keep it ({whose}: {names}): --pin none "
            "lets the search choose these bits too"
        ) from error


def _float_notes(model: nn.Module, graph: Graph) -> Iterator[str]:
    """Yield a sentence on the parameters that no policy quantizes, if there are any."""
    count = sum(graph.float_parameters.values())
    if count:
        every = sum(layer.weights for layer in graph.layers) + count
        names = sorted(graph.float_parameters, key=lambda name: -graph.float_parameters[name])
        shown = listed(names)
        yield f"{count / every:.1%} of the weights stay float32 and count as such: {shown}"


def _float_products(graph: Graph) -> Iterator[str]:
    """Yield a sentence on the products of two activations, if there are any."""
    if graph.float_macs:
        every = sum(layer.macs for layer in graph.layers) + graph.float_macs
        yield (
            f"{graph.float_macs / every:.1%} of the multiply-accumulates are products of two "
            "activations, as in attention, which stay float"
        )


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _cost_notes(graph: Graph, target: Target | None) -> Iterator[str]:
    """Yield a sentence if a target's costs leave out what stays float, and something does."""
    if target is None:
        return
    costs = " and ".join(target.units)
    if graph.floats and isinstance(target, ProfileTarget) and not target.counts_floats:
        yield f"{costs} of {target.name} are without what stays float: it has no costs there"
    alone = [layer.name for layer in graph.layers if layer.weights_alone]
    counted = isinstance(target, ProfileTarget) and target.counts_floats
    if alone and not counted:
        yield (
            f"{costs} of {target.name} are without {listed(alone)}: what is looked up, or "
            "multiplied in float by an LSTM, GRU or RNN, counts in size alone"
        )


def _kernel_notes(target: Target | None) -> Iterator[str]:
    """Yield a sentence if a target was measured in kernels of 8 bits for fewer."""
    model = target.profile.model if isinstance(target, ProfileTarget) else None
    if target is not None and isinstance(model, Measured) and "w7a8" in model.networks:
        yield f"{' and '.join(target.units)} of {target.name}: {SIZE_NOT_TIME}"


def _format_notes(choices: Mapping[str, Sequence[Bits]]) -> Iterator[str]:
    """Yield a sentence on layers for which there is no scheme of those asked for."""
    floats = [name for name, pairs in choices.items() if [*pairs] == [(FLOAT, FLOAT)]]
    if floats:
        yield f"{listed(floats)} stay float: none of the schemes asked for has kernels for them"


def _pins(
    job: Job, layers: Sequence[Layer], target: Target | None, floats: int
) -> dict[str, int | Bits]:
    """Return the pins of a job; without any, 8 bits in the first and the last layer.

    One of these that holds more than ``LARGE`` of the weights is not pinned: its bits decide what
    the network costs. Nothing is pinned by itself where no activations are static. Where the target
    does not offer such a pair, the first and the last layer have the nearest one below it, and no
    pin without one. A pin of the user gives way by one bit only, for integer kernels that saturate
    at 8.
    """
    if job.pins is None and "static" not in job.schemes:
        return {}
    if job.pins is None:
        ends = {*edges(layers)} - {*_large_ends(layers, floats)}
        nearest = {x.name: nearest_pin(x, 8, target) for x in layers if x.name in ends}
        return {name: pair for name, pair in nearest.items() if pair}
    pins: dict[str, int | Bits] = dict(job.pins)
    for layer in layers:
        pair = nearest_pin(layer, 8, target) if job.pins.get(layer.name) == 8 else None
        if pair and sum(pair) >= 15:
            pins[layer.name] = pair
    return pins


def _large_ends(layers: Sequence[Layer], floats: int) -> dict[str, float]:
    """Return the first and the last layer with their share of the weights, where it is large."""
    every = sum(layer.weights for layer in layers) + floats
    shares = {x.name: x.weights / max(every, 1) for x in layers if x.name in edges(layers)}
    return {name: share for name, share in shares.items() if share > LARGE}


def _unpinned_notes(job: Job, layers: Sequence[Layer], floats: int) -> Iterator[str]:
    """Yield a sentence for each layer that its size keeps from being pinned."""
    if job.pins is not None or "static" not in job.schemes:
        return
    for name, share in _large_ends(layers, floats).items():
        yield (
            f"layer {name!r} holds {share:.0%} of the weights, so the search chooses its bits; "
            f"--pin {name}=8 pins it"
        )


def _pin_notes(
    pins: Mapping[str, int | Bits], layers: Sequence[Layer], target: Target | None
) -> Iterator[str]:
    for layer in layers:
        pair = pins.get(layer.name)
        if isinstance(pair, Bits) and pair != Bits(8, 8):
            yield (
                f"layer {layer.name!r} is pinned to {pair}: "
                f"{target.name if target else 'the search'} does not offer w8a8"
            )


def _choices(
    job: Job, layers: Sequence[Layer], target: Target | None, pins: Mapping[str, int | Bits]
) -> dict[str, tuple[Bits, ...]]:
    """Return the bits each layer may have.

    Where a layer may stay float, the first and the last may too, unless the user pinned them.
    """
    pinned = permitted(layers, target, job.weight_bits, job.fixed_act_bits, pins, job.formats)
    if job.pins is not None:
        return pinned
    free = permitted(layers, target, job.weight_bits, job.fixed_act_bits, formats=job.formats)
    floats = Bits(FLOAT, FLOAT)
    more = {name: (floats,) for name in pins if floats in free[name]}
    widened = {name: (*pairs, *more.get(name, ())) for name, pairs in pinned.items()}
    return share_activations(layers, widened)


def images_of(data: Data | Outline) -> dict[str, Any]:
    """Return what must be known of a data set's images to feed the network later."""
    record: dict[str, Any] = {
        "data": data.name, "shape": list(data.shape), "mean": list(data.mean),
        "std": list(data.std),
    }  # fmt: skip
    if data.labels in ("classes", "pixels"):
        record["classes"] = list(data.classes)
    if data.labels != "classes":
        record["labels"] = data.labels
    if isinstance(data, Data) and data.tokens is not None:
        record["tokens"] = data.tokens
    if data.inputs:
        record["inputs"] = {name: one._asdict() for name, one in data.inputs.items()}
    return record
