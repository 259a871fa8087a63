"""``haq prune``: take weights, channels or ranks out of a network, and train what is left."""

import copy
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import fx, nn

from haq.allocation.budgets import Budget, fit, most_bits, parse_budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import CostTable, tabulate
from haq.allocation.policy import Bits
from haq.allocation.sensitivities import objective, widths
from haq.allocation.widths import check_budgeted, widened, with_channels
from haq.compression.chain import Record, chain_text, factorisable
from haq.compression.channel_scores import channel_scores
from haq.compression.filters import keep_largest, prunable, remove
from haq.compression.low_rank import KINDS, check_factorisable, factorised, plan_for
from haq.compression.magnitude import Pruner, Scope, masks_for, schedule_over
from haq.compression.widths import Widths, damage_of_channels, widths_of, without
from haq.datasets import Data, Outline, load, outline
from haq.distillation.settings import distillation_of
from haq.errors import HaqError, look_up
from haq.hw_profiles import load as load_target
from haq.hw_profiles.measure import onnx_runtime
from haq.hw_profiles.measured import FLOATS
from haq.models.weights import load_weights, save_weights
from haq.network.graph import Graph, trace
from haq.network.inputs import Inputs
from haq.network.modules import PRODUCTS
from haq.quantization.calibration import calibrate
from haq.quantization.second_order import second_order
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.encoded_cost import check_channels
from haq.runs.float_network import example
from haq.runs.folder import provenance, write_json
from haq.runs.job import Job
from haq.runs.metric import metric_by_labels
from haq.runs.named import brings_weights, reading_of
from haq.runs.profiling.subject import Subject, lowering, placeholder_clips
from haq.runs.progress import OnProgress, Progress
from haq.runs.transforms import network_of, with_transforms
from haq.training.distilling import distilling
from haq.training.objective import Objective, labels_alone
from haq.training.scoring import score
from haq.training.train import Step, train

BATCH = 64
"""Images a step."""

What = Literal["filters", "sparsity", "factorise"]


@dataclass(frozen=True)
class Pruning:
    """What is taken out of a network.

    Attributes:
        what: "filters" removes whole channels, "sparsity" makes single weights zero, "factorise"
            puts layers of low rank in the place of others.
        share: Of the channels that stay, of the weights that become zero, or of the energy that
            the ranks hold.
        layers: Layer to its own share; for "factorise" to its ranks, or None. Empty for all
            that suit.
        kind: Of factorisation.
        scope: Whether each layer has the sparsity, or all of them together.
        residual: Whether channels that several layers compute together are removed too.
        search: Whether each layer's share of channels is searched, together with bits, within the
            budgets of the job.
        multiple: Of which the number of channels that stay is one.
    """

    what: What
    share: float
    layers: Mapping[str, Any]
    kind: str = "separable"
    scope: Scope = "layer"
    residual: bool = False
    search: bool = False
    multiple: int = 1


def pruned(graph: Graph, sample: Inputs, asked: Pruning) -> tuple[nn.Module, Record, list[str]]:
    """Return a network without what is taken out, its record, and sentences for the user.

    Args:
        graph: Of the network; left as it is.
        sample: What one forward takes.
        asked: What is taken out. For "sparsity" the network stays as it is: its weights become
            zero while it is trained.

    Raises:
        HaqError: A layer does not suit, would be empty, or would not become smaller.
    """
    if asked.what == "filters":
        return _without_filters(graph, sample, asked)
    if asked.what == "factorise":
        return _with_low_rank(graph, asked)
    shares = _sparse(graph, asked)
    weights = {name: _weight(graph, name) for name in shares}
    masks = masks_for(weights, asked.share if asked.scope == "network" else shares, asked.scope)
    if all(bool(mask.all()) for mask in masks.values()):
        raise HaqError("no weight would become zero; give a larger sparsity, or other layers")
    return copy.deepcopy(graph.traced), {"transform": "sparsity", "layers": shares}, []


def _without_filters(
    graph: Graph, sample: Inputs, asked: Pruning
) -> tuple[nn.Module, Record, list[str]]:
    known = prunable(graph.traced, sample)
    shares = dict(asked.layers)
    if not shares:
        chosen = [family for family in known if family.inner or asked.residual]
        shares = {family.name: asked.share for family in chosen}
    if not shares:
        raise HaqError(
            "no layer has channels that it alone computes; give --residual to remove those that "
            "several layers compute together"
        )
    keep = keep_largest(graph.traced, sample, shares, asked.multiple)
    if all(len(keep[name]) == len(_weight(graph, name)) for name in keep):
        raise HaqError("no channel would be removed; give a smaller share of them, or other layers")
    network = remove(graph.traced, sample, keep)
    left = [family.name for family in known if family.name not in keep]
    notes = [f"whole stay {', '.join(left)}"] if left else []
    return network, {"transform": "filters", "keep": keep}, notes


def _with_low_rank(graph: Graph, asked: Pruning) -> tuple[nn.Module, Record, list[str]]:
    network = copy.deepcopy(graph.traced)
    entries: dict[str, list[Any]] = {}
    notes: list[str] = []
    for name in asked.layers or [layer.name for layer in graph.layers]:
        if not asked.layers and not _suits(network, name, asked.kind):
            continue
        layer = factorisable(network, name)
        try:
            plan = plan_for(name, layer, asked.kind, asked.layers.get(name), asked.share)
        except HaqError as error:
            if asked.layers:
                raise
            notes.append(str(error))
            continue
        entries[name] = [plan.kind, list(plan.ranks)]
        network.set_submodule(name, factorised(layer, plan))
    if not entries:
        why = notes[0] if notes else f"none is {KINDS[asked.kind]}"
        raise HaqError(f"no layer becomes smaller as {asked.kind}: {why}")
    return network, {"transform": "factorised", "layers": entries}, notes


def _suits(network: fx.GraphModule, name: str, kind: str) -> bool:
    look_up(KINDS, "factorisation", kind)
    try:
        check_factorisable(name, network.get_submodule(name), kind)
    except HaqError:
        return False
    return True


def _sparse(graph: Graph, asked: Pruning) -> dict[str, float]:
    """Return the sparsity of each layer.

    The first layer, depthwise ones and the last stay dense unless they are named: they have few
    weights, and the most to lose.
    """
    if asked.layers:
        known = {layer.name for layer in graph.layers}
        for name, share in asked.layers.items():
            factorisable(graph.traced, name)
            if not 0 <= share <= 1:
                raise HaqError(
                    f"layer {name!r}: a sparsity is the share of its weights that becomes zero, 0 "
                    f"or more and below 1, not {share:g}"
                )
        return {name: float(share) for name, share in asked.layers.items() if name in known}
    ends = {graph.layers[0].name, graph.layers[-1].name}
    return {
        layer.name: asked.share for layer in graph.layers
        if layer.kind != "depthwise" and layer.name not in ends
        and isinstance(graph.traced.get_submodule(layer.name), PRODUCTS)
    }  # fmt: skip


def run_pruning(
    job: Job,
    asked: Pruning,
    out: Path,
    epochs: int,
    lr: float,
    on_progress: OnProgress,
    measure: bool = True,
) -> dict[str, Any]:
    """Prune the network of a job, train what is left and return what came of it.

    The weights go to ``out``, with the transforms that made them, so that every command that reads
    them knows the network they are of; the figures go to ``out`` with the suffix ``.json``.
    Interrupted and asked for again in the same words, it goes on from the last whole epoch.

    Args:
        job: Model, data, weights and how to distil.
        asked: What is taken out.
        out: Ends in .safetensors.
        epochs: Of training; 0 for none.
        lr: Highest learning rate.
        on_progress: Called often.
        measure: Whether to measure the latency of both networks.

    Raises:
        HaqError: A name is unknown, or something cannot be pruned; before any image is read.
    """
    file = job.weights
    if file is None and not brings_weights(job):
        raise HaqError("--weights: there is nothing to prune in a network without weights")
    job, reading = with_transforms(job), reading_of(job)
    torch.set_num_threads(job.threads or torch.get_num_threads())
    about: Data | Outline = outline(job.data, job.size, reading) or load(
        job.data, job.seed, job.size, reading
    )
    metric = metric_by_labels(job, about)
    sample, model = example(about), network_of(job, about)
    if file is not None:
        load_weights(model, file)
    graph = trace(model, sample)
    data = about if isinstance(about, Data) else None
    if asked.search:
        choice = _choice(job, graph, sample, asked.multiple)
        data = data or load(job.data, job.seed, job.size, reading)
        network, record, notes = _searched(job, graph, sample, choice, data, on_progress)
    else:
        network, record, notes = pruned(graph, sample, asked)
    student = trace(network, sample)
    data = data or load(job.data, job.seed, job.size, reading)
    before = metric.of_score(score(model, data.test, metric=metric).accuracy)
    started = time.perf_counter()
    settings = _Training(job, data, epochs, lr, out)
    pruner = _trained(settings, asked, record, graph, student, on_progress)
    take_over(network, student.traced)
    if pruner is not None:
        record = {**record, "layers": pruner.sparsity}
    save_weights(network, out, chain_text([*job.transforms, record]))
    out.with_suffix(".part").unlink(missing_ok=True)
    after = metric.of_score(score(network, data.test, metric=metric).accuracy)
    summary = {
        "model": job.model, "data": data.name, "epochs": epochs, "lr": lr, "seed": job.seed,
        "transforms": [*job.transforms, record], "notes": notes, "metric": metric.name,
        "before": _figures(graph) | {metric.key("test"): before},
        "after": _figures(student) | {metric.key("test"): after},
        "seconds": round(time.perf_counter() - started, 1),
        **(_latencies(graph, student, sample) if measure else {}), **provenance(sys.argv),
    }  # fmt: skip
    write_json(out.with_suffix(".json"), summary)
    return summary


class _Choice(NamedTuple):
    """What bits and channels there are to choose from, and the limits."""

    widths: Widths
    table: CostTable
    of_bits: CostTable
    budgets: list[Budget]


def _choice(job: Job, graph: Graph, sample: Inputs, multiple: int) -> _Choice:
    """Return the choices of a search.

    Raises:
        HaqError: There are none, or none within the budgets.
    """
    known = widths_of(graph.traced, sample, multiple=multiple)
    if not known.groups:
        raise HaqError("no layer has channels that can be removed; search bits with haq search")
    target = load_target(job.target, job.batch) if job.target else None
    check_channels(target)
    floats = sum(graph.float_parameters.values())
    budgets = [parse_budget(text, graph.layers, target, floats) for text in job.budgets]
    check_budgeted([budget.quantity for budget in budgets])
    ends = {graph.layers[0].name: 8, graph.layers[-1].name: 8}
    choices = permitted(graph.layers, target, job.weight_bits, job.fixed_act_bits or 8, ends)
    table = widened(graph.layers, choices, known.groups, target, floats)
    fit(most_bits(table), table, budgets)
    return _Choice(known, table, tabulate(graph.layers, choices, target, floats), budgets)


def _searched(
    job: Job, graph: Graph, sample: Inputs, choice: _Choice, data: Data, on_progress: OnProgress
) -> tuple[nn.Module, Record, list[str]]:
    """Return a network without channels, its record, and a sentence on each layer that loses some.

    Bits and channels are chosen by one integer program over what both do to the network, measured
    one layer at a time.
    """
    known_widths, table, bits_alone, budgets = choice
    images = sensitivity_images(data, job.seed)
    clips = calibrate(graph, calibration_batches(data, CALIBRATED_ON, job.seed), "max")

    def on_place(done: int, count: int) -> None:
        on_progress(Progress("sensitivity", done, count))

    known = second_order(graph, clips, images, widths(bits_alone.choices), on_place)
    of_bits = objective(known, bits_alone)
    of_channels = damage_of_channels(graph.traced, known_widths, images, sample, on_place)
    goal = with_channels(table, of_bits, of_channels)
    chosen = solve(goal, table, budgets) or fit(most_bits(table), table, budgets)
    shares = {name: chosen[name].keep for name in of_channels if chosen[name].keep < 1}
    if not shares:
        raise HaqError(
            "within the budgets no layer should lose channels: fewer bits do less; search bits "
            "alone with haq search, or give --filters a share"
        )
    notes = [
        f"{name} keeps {share:.0%} of its channels: that alone changes the answers by "
        f"{of_channels[name][share]:.3g} nats, and its bits would be {chosen[name].weight}"
        for name, share in shares.items()
    ]
    scores = channel_scores(graph.traced, known_widths.channels, images)
    network, places = without(graph.traced, known_widths, scores, shares, images, sample)
    return network, {"transform": "filters", "keep": places}, notes


CALIBRATED_ON = 256
"""Training images on which clips are chosen before a search of widths."""


class _Training(NamedTuple):
    """What is trained on, and how."""

    job: Job
    data: Data
    epochs: int
    lr: float
    out: Path


def _trained(
    training: _Training,
    asked: Pruning,
    record: Record,
    graph: Graph,
    student: Graph,
    on_progress: OnProgress,
) -> Pruner | None:
    """Train what is left, with the network as it was for a teacher; return what held the zeros."""
    job, data, epochs, lr, out = training
    pruner = None
    if asked.what == "sparsity":
        steps = epochs * -(-len(data.train) // BATCH)
        schedule = schedule_over(max(record["layers"].values()), steps)
        pruner = Pruner(student.traced, record["layers"], schedule, asked.scope)

    def on_step(step: Step) -> None:
        on_progress(Progress("prune", step.done, step.total, str(step)))

    objective: Objective = labels_alone
    if job.distill:
        settings = distillation_of(job.distill)
        objective = distilling(graph.traced, settings, student=student.traced)
    train(student.traced, data.train, epochs=epochs, lr=lr, seed=job.seed, batch=BATCH,
          objective=objective, constraint=pruner, on_step=on_step,
          keep=out.with_suffix(".part"))  # fmt: skip
    if pruner is not None:
        pruner.finish()
    return pruner


def exchanged(network: nn.Module, captured: nn.Module) -> frozenset[str]:
    """Return the matrices that a captured copy of a network has with their axes exchanged.

    Args:
        network: Whose values the copy has still.
        captured: The copy.

    Raises:
        HaqError: The copy has weights that the network computes from others.
    """
    state = network.state_dict()
    for name, _ in captured.named_parameters():
        if name not in state:
            raise HaqError(
                f"{name} is computed from other parameters of the network, as by weight_norm, and "
                "cannot be trained by itself; take the parametrization away first"
            )
    held = captured.state_dict()
    matrices = {n: v for n, v in state.items() if v.dim() == 2 and n in held}
    return frozenset(
        name for name, value in matrices.items()
        if not torch.equal(value, held[name]) and torch.equal(value.t(), held[name])
    )  # fmt: skip


def take_over(network: nn.Module, learned: nn.Module, turned: frozenset[str] = frozenset()) -> None:
    """Give a network what a captured copy of it learned, where they do not share a tensor.

    Args:
        network: Changed in place.
        learned: The copy.
        turned: As ``exchanged`` gives it.
    """
    state = learned.state_dict()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name in state and state[name].data_ptr() != value.data_ptr():
                value.copy_(state[name].t() if name in turned else state[name])


def _weight(graph: Graph, name: str) -> nn.Parameter:
    return graph.traced.get_parameter(f"{name}.weight")


def _figures(graph: Graph) -> dict[str, Any]:
    weights = [_weight(graph, layer.name) for layer in graph.layers]
    return {
        "weights": sum(weight.numel() for weight in weights),
        "non_zeros": sum(int((weight != 0).sum()) for weight in weights),
        "macs": sum(layer.macs for layer in graph.layers),
    }


def _latencies(before: Graph, after: Graph, sample: Inputs) -> dict[str, Any]:
    """Return how long both float networks take in ONNX Runtime, measured side by side."""
    setup, sessions = onnx_runtime.Setup(), {}
    for name, graph in (("before", before), ("after", after)):
        lowered = lowering(Subject(name, graph, placeholder_clips(graph), sample))
        policy: dict[str, Bits] = {layer.name: FLOATS for layer in graph.layers}
        sessions[name] = onnx_runtime.session(lowered(policy), setup)
    timings = onnx_runtime.measure(sessions, setup, rounds=30, seconds=10)
    return {"latency_us": {name: round(timing.us, 1) for name, timing in timings.items()}}
