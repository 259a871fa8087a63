"""Measure a network in ONNX Runtime on this machine, and write what a search needs to know.

The networks that are measured are those the exporter writes: one float, one of 7-bit weights and
8-bit activations, one of 7-bit weights and 4-bit activations, and mixed ones, half of them to find
out what a change of precision costs and the other half to find out how far the predictions are off.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch

from haq.allocation.policy import Bits, Policy, readers
from haq.datasets import load as load_data
from haq.errors import HaqError, TargetError, look_up
from haq.files import write_text
from haq.formats.onnx import export
from haq.hw_profiles import document, kernels, measured, onnx_runtime
from haq.hw_profiles.measured import CLIPPED, CPUS, FLOATS, INTEGERS, STANDARD, kernel
from haq.hw_profiles.onnx_runtime import Setup, Timing
from haq.models import build, input_shape
from haq.models.weights import load_weights
from haq.network.capture import Sample
from haq.network.graph import Graph, handovers, trace
from haq.network.layers import EDGE_BITS, Layer
from haq.network.sites import module_name
from haq.quantization.calibration import Clips, calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.quantizer import BITS
from haq.runs.calibration import calibration_batches
from haq.runs.float_network import fresh_model
from haq.runs.progress import OnProgress, Progress, silent

MIXED = 48
"""Mixed policies that are measured; every second one is for the fit, the others check it."""

PLACEHOLDER_CLIP = 6.0
"""Where activations are clipped without data: latency does not depend on it (ReLU6 fits in)."""

BUSY = 0.25
"""Share of interrupted calls from which on the machine counts as busy."""

_CALIBRATION_IMAGES = 64
ROUNDS = 150
"""Most rounds of measuring, unless the user says otherwise."""

SECONDS = 90.0
"""How long the measuring of all networks may take, if there were a few rounds."""

MEMORY_BYTES = 3 * 2**30
"""What the networks that are open at once may take, about; more are measured group by group."""

_BYTES_OF_A_SESSION = 4  # for each byte of the float network's file, about
_NODE_RUNS = 60
_REFERENCES = ("fp32", "w7a8", "w7a4")


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        name: For titles.
        graph: Traced, with the weights that are exported.
        clips: Where its tensors are clipped.
        sample: One image.
    """

    name: str
    graph: Graph
    clips: Clips
    sample: Sample


def subject(
    model: str,
    *,
    weights: Path | None = None,
    data: str | None = None,
    width: float = 1.0,
    size: int | None = None,
    seed: int = 0,
) -> Subject:
    """Return a network by its name.

    Args:
        model: A name, or package.module:factory.
        weights: Of the float network; random ones serve as well for a latency.
        data: Says the size of the images and the number of classes, and calibrates.
        width: Width multiplier.
        size: Height and width of an image, where there are no data.
        seed: Of random weights.

    Raises:
        HaqError: A name is unknown, or something does not fit.
    """
    if data is not None:
        images = load_data(data, seed=seed, size=size)
        network, shape = fresh_model(model, images, width, seed), images.shape
    else:
        known = input_shape(model, size)
        if known is None and size is None:
            raise HaqError(f"model {model}: give --size, the height and width of its images")
        shape = known or (3, size or 1, size or 1)
        torch.manual_seed(seed)
        network = build(model, None, width, size)
    if weights is not None:
        load_weights(network, weights)
    sample = torch.zeros(1, *shape)
    graph = trace(network, sample)
    if data is None:
        return Subject(model, graph, placeholder_clips(graph), sample)
    batches = calibration_batches(images, _CALIBRATION_IMAGES, seed)
    return Subject(model, graph, calibrate(graph, batches, "max"), sample)


def placeholder_clips(graph: Graph) -> Clips:
    """Return clips that are good enough for a latency, without any image."""
    weights = {}
    for layer in graph.layers:
        weight = graph.traced.get_parameter(f"{layer.name}.weight").detach().float()
        clip = weight.abs().flatten(1).amax(1).clamp_min(1e-6)  # (channels,)
        weights[layer.name] = dict.fromkeys(BITS, clip)
    acts = dict.fromkeys(BITS, torch.tensor(PLACEHOLDER_CLIP))
    return Clips(weights, {point.tensor: acts for point in graph.points})


Lowered = Callable[[Policy], bytes]


def lowering(asked: Subject) -> Lowered:
    """Return the function from a policy to its ONNX file; the export itself is done once, here."""
    standard = {layer.name: STANDARD for layer in asked.graph.layers}
    made = export.template(quantize(asked.graph, standard, asked.clips), asked.sample)

    def lowered(policy: Policy) -> bytes:
        network = quantize(asked.graph, policy, asked.clips)
        model: bytes = export.lower(made, network).SerializeToString()
        return model

    return lowered


def run_profile(
    asked: Subject,
    out: Path,
    setup: Setup,
    rounds: int = ROUNDS,
    seed: int = 0,
    on_progress: OnProgress = silent,
    cpu: str = "any",
) -> document.Profile:
    """Measure a network, write its profile and return it.

    Args:
        asked: The network.
        out: Where to write; its stem is the profile's name.
        setup: Provider, threads and batch.
        rounds: Most rounds of measuring.
        seed: Of the policies, the order and the bootstrap.
        on_progress: Called often.
        cpu: "any" offers only pairs of bits whose answers are exact on every x86 CPU; "vnni" also
            8-bit weights with 8-bit activations, which need a CPU that adds in 32 bits.

    Raises:
        HaqError: The provider is not there, this CPU saturates though ``cpu`` says it does not, a
            layer runs in another kernel than its bits claim, or the file cannot be written.
    """
    onnx_runtime.check_provider(setup.provider)
    check_cpu(cpu)
    check_out(out)
    networks = _measured(asked, setup, rounds, seed, on_progress)
    profile = _profile(out.stem, asked, setup, networks, cpu, on_progress)
    write_text(out, document.write_json(profile))
    return profile


def check_cpu(cpu: str) -> None:
    """Say so if a profile for such CPUs cannot be made here.

    Raises:
        HaqError: There is no such choice, or this CPU is not one of them.
    """
    look_up(dict.fromkeys(CPUS), "cpu", cpu)
    if cpu == "vnni" and kernels.saturates():
        raise HaqError(
            "cpu vnni: this CPU adds products of 8 bits in 16 bits and saturates, so 8-bit weights "
            "with 8-bit activations answer wrongly on it; leave --cpu out"
        )


def check_out(out: Path) -> None:
    """Say so, before anything is measured, if a profile cannot be written there.

    Raises:
        HaqError: The sentence for the user.
    """
    if out.suffix != ".json":
        raise HaqError(f"cannot write {out}: a profile's name ends in .json")
    if not out.parent.is_dir():
        raise HaqError(f"cannot write {out}: there is no folder {out.parent}")


class _Variant(NamedTuple):
    policy: Policy
    model: bytes
    session: onnxruntime.InferenceSession
    origins: kernels.Origins


class _Measured(NamedTuple):
    """References by name, with their models; all networks' policies and timings by name."""

    references: Mapping[str, _Variant]
    policies: Mapping[str, Policy]
    timings: Mapping[str, Timing]


def _measured(
    asked: Subject, setup: Setup, rounds: int, seed: int, on_progress: OnProgress
) -> _Measured:
    lowered = lowering(asked)
    layers = asked.graph.layers
    standard = _variant(lowered, {layer.name: STANDARD for layer in layers}, setup)
    able = _quantizable(layers, standard, setup)
    mixtures = mixed(layers, able, MIXED, seed)
    if len(mixtures) < 2:
        raise HaqError(
            f"model {asked.name} leaves nothing to mix: a profile needs two layers, or more, that "
            "read different tensors and run in integer kernels"
        )
    references = _references(layers, able)
    numbered = {str(number): policy for number, policy in enumerate(mixtures)}
    room = MEMORY_BYTES // (_BYTES_OF_A_SESSION * len(lowered(references["fp32"])))
    groups = in_groups(list(numbered), max(room - len(references), 1))
    kept: dict[str, _Variant] = {}
    timings: dict[str, Timing] = {}
    for place, names in enumerate(groups):
        policies = references | {name: numbered[name] for name in names}
        variants = {}
        for done, (name, policy) in enumerate(policies.items(), 1):
            variants[name] = _variant(lowered, policy, setup)
            kernels.check_kernels(variants[name].origins.kernels, policy)
            on_progress(Progress("build", done, len(policies), _of(place, groups)))

        def on_round(done: int, most: int, note: str = _of(place, groups)) -> None:
            on_progress(Progress("measure", done, most, note))

        sessions = {name: variant.session for name, variant in variants.items()}
        found = onnx_runtime.measure(
            sessions, setup, rounds, seed=seed, on_round=on_round, seconds=SECONDS / len(groups)
        )
        kept = kept or {name: variants[name] for name in references}
        then = {name: one.us for name, one in timings.items()}
        factor = onnx_runtime.drift(then, {name: found[name].us for name in references})
        timings = {name: one.times(factor) for name, one in found.items()} | timings
    return _Measured(kept, references | numbered, timings)


def _variant(lowered: Lowered, policy: Policy, setup: Setup) -> _Variant:
    model = lowered(policy)
    opened = onnx_runtime.opened(model, setup)
    exported = onnx.load_from_string(model).graph
    return _Variant(
        policy, model, opened.session, kernels.Origins(exported, opened.graph, list(policy))
    )


def in_groups(names: Sequence[str], most: int) -> list[list[str]]:
    """Return the names in as few groups as can be, of about equal size and at most ``most``.

    >>> in_groups(["a", "b", "c", "d"], most=3)
    [['a', 'c'], ['b', 'd']]
    """
    count = -(-len(names) // most)
    return [list(names[start::count]) for start in range(count)]


def _of(place: int, groups: Sequence[object]) -> str:
    return f"group {place + 1} of {len(groups)}" if len(groups) > 1 else ""


def _quantizable(layers: Sequence[Layer], standard: _Variant, setup: Setup) -> set[str]:
    """Return the layers that run in integer kernels, each with all that read its tensor.

    Raises:
        TargetError: None does.
    """
    floats = {name for name, _ in kernels.misplaced(standard.origins.kernels, standard.policy)}
    able = {name for name, group in readers(layers).items() if floats.isdisjoint(group)}
    if not able:
        operators = ", ".join(
            sorted({op for ops in standard.origins.kernels.values() for op in ops})
        )
        raise TargetError(
            f"{setup.options['provider']} runs no layer of this network in an integer kernel "
            f"(it takes {operators}): there are no bits to choose from"
        )
    return able


def _references(layers: Sequence[Layer], able: Collection[str]) -> dict[str, Policy]:
    acts = {"fp32": None, "w7a8": 8, "w7a4": 4}
    return {
        what: {
            layer.name: Bits(STANDARD.weight, EDGE_BITS if layer.reads_input else act)
            if act is not None and layer.name in able else FLOATS
            for layer in layers
        }
        for what, act in acts.items()
    }  # fmt: skip


def mixed(layers: Sequence[Layer], able: Collection[str], count: int, seed: int) -> list[Policy]:
    """Return policies that mix float and quantized layers, no two of which run in equal kernels.

    Two of three choose at random for every tensor whether its readers are float, with a probability
    that is random itself; the third has one block of layers that differ from all others. Where
    there are not that many ways to mix, there are fewer policies.

    Args:
        layers: In order of execution.
        able: Names of those that can be quantized.
        count: How many.
        seed: Of all choices.
    """
    generator = np.random.default_rng(seed)
    found: dict[tuple[Bits, ...], Policy] = {}
    for attempt in range(50 * count):
        policy = _drawn(layers, able, attempt % 3 == 2, generator)
        ran = tuple(kernel(bits) for bits in policy.values())
        if len(found) < count and 1 < len({bits == FLOATS for bits in ran}):
            found.setdefault(ran, policy)
    return list(found.values())


def _drawn(
    layers: Sequence[Layer], able: Collection[str], block: bool, generator: np.random.Generator
) -> Policy:
    groups = list(dict.fromkeys(readers(layers).values()))
    if block:
        start, end = np.sort(generator.choice(len(groups) + 1, 2, replace=False))
        places = np.arange(len(groups))
        floats = ((start <= places) & (places < end)) ^ bool(generator.integers(2))
    else:
        floats = generator.random(len(groups)) < generator.uniform(0.1, 0.9)
    known = {layer.name: layer for layer in layers}
    policy = {}
    for group, stays in zip(groups, floats, strict=True):
        act = 8 if generator.integers(2) else int(generator.integers(2, 8))
        if any(known[name].reads_input for name in group):
            act = EDGE_BITS
        for name in group:
            weight = int(generator.integers(2, STANDARD.weight + 1))
            policy[name] = FLOATS if stays or name not in able else Bits(weight, act)
    return {layer.name: policy[layer.name] for layer in layers}


def _rows(
    asked: Subject, setup: Setup, networks: _Measured, on_progress: OnProgress
) -> dict[str, dict[Bits, float]]:
    """Return layer to kernel to latency, so that the references' own latencies are their sums."""
    times, layers = {}, [layer.name for layer in asked.graph.layers]
    variants, timings = networks.references, networks.timings
    for done, name in enumerate(_REFERENCES, 1):
        nodes = onnx_runtime.node_times(variants[name].model, setup, _NODE_RUNS)
        # A function that is inlined as late as when it runs has nodes that are in no graph.
        known = {node: us for node, us in nodes.items() if node in variants[name].origins.layers}
        times[name] = measured.shared_out(known, timings[name].us)
        on_progress(Progress("layers", done, len(_REFERENCES)))
    rows: dict[str, dict[Bits, float]] = {name: {} for name in layers}
    for what, ran in (("fp32", FLOATS), ("w7a8", INTEGERS)):
        sums = dict.fromkeys(layers, 0.0)
        for node, us in times[what].items():
            sums[variants[what].origins.layers[node]] += us
        for name, us in sums.items():
            if kernel(variants[what].policy[name]) == ran:
                rows[name][ran] = us
    clipping = max(timings["w7a4"].us - timings["w7a8"].us, 0.0)
    for name, share in _clips(asked.graph, variants["w7a4"].policy, times["w7a4"]).items():
        rows[name][CLIPPED] = rows[name][INTEGERS] + share * clipping
    return rows


def _clips(graph: Graph, policy: Policy, times: Mapping[str, float]) -> dict[str, float]:
    """Return, for each layer of fewer than 8 bits, its share of what clipping all of them takes.

    A tensor is rounded and clipped once, for the first layer that reads it.
    """
    spent = {name: 0.0 for name, bits in policy.items() if kernel(bits) == CLIPPED}
    for point in graph.points:
        if point.layers and point.layers[0] in spent:
            label = module_name(point.tensor, point.layers).removeprefix("quantizers.") + "."
            spent[point.layers[0]] += sum(us for n, us in times.items() if n.startswith(label))
    total = sum(spent.values())
    return {name: us / total if total else 0.0 for name, us in spent.items()}


def _profile(
    name: str,
    asked: Subject,
    setup: Setup,
    networks: _Measured,
    cpu: str,
    on_progress: OnProgress,
) -> document.Profile:
    rows, timings = _rows(asked, setup, networks, on_progress), networks.timings
    tensors = [document.Passing(**t._asdict()) for t in handovers(asked.graph, asked.sample)]
    latencies = {which: (policy, timings[which].us) for which, policy in networks.policies.items()}
    references = [latencies.pop(which) for which in _REFERENCES]
    known = list(latencies.values())
    fitted = measured.fit(rows, tensors, references, known[::2], setup.batch)
    check = known[1::2]
    validation = measured.validate(
        [fitted.latency(tensors, policy, setup.batch) for policy, _ in check],
        [us for _, us in check],
    )
    machine = onnx_runtime.machine()
    version = onnxruntime.__version__
    return document.Profile(
        format="haq-profile/1",
        name=name,
        title=f"{asked.name} in ONNX Runtime {version}, {setup.provider}, {setup.threads} thread"
        + "s" * (setup.threads > 1),
        device=str(machine["cpu"] or "unknown processor"),
        runtime=document.Runtime(
            name="ONNX Runtime", version=version, options=setup.options | machine | {"runs_on": cpu}
        ),
        quantities={
            "latency": document.Quantity(
                unit="us",
                provenance="measured",
                source=f"haq profile: {setup.clock}, p{onnx_runtime.QUANTILE} of "
                f"{timings['fp32'].samples} interleaved rounds; layers from the profiler's times, "
                "scaled to the whole network",
                error=validation.worst_error,
            )
        },
        batch=document.Batch(reference=setup.batch, rule="none"),
        bits=document.BitRule(between="round-up"),
        model=document.Measured(
            type="measured",
            to_quantized=fitted.to_quantized,
            to_float=fitted.to_float,
            tensors=tuple(tensors),
            networks={what: _interval(timings[what]) for what in _REFERENCES},
            fitted_on=len(known[::2]),
            validation=validation,
        ),
        table=document.Table(rows=tuple(_table_rows(asked.graph.layers, fitted.rows))),
    )


def _interval(timing: Timing) -> document.Interval:
    return document.Interval(
        value=timing.us, low=timing.low, high=timing.high, samples=timing.samples,
        contended=timing.contended,
    )  # fmt: skip


def _table_rows(
    layers: Sequence[Layer], rows: Mapping[str, Mapping[Bits, float]]
) -> Iterator[document.Row]:
    for layer in layers:
        for bits, us in rows[layer.name].items():
            yield document.Row(
                layer=layer.name, shape=document.shape_of(layer), weight=bits.weight, act=bits.act,
                cost={"latency": document.Cost(value=us)},
            )  # fmt: skip


def describe(profile: document.Profile) -> str:
    """Return what was found, in a few lines: the whole networks, changes of precision, errors."""
    model = profile.model
    assert isinstance(model, document.Measured)
    lines = [profile.title]
    for what, found in model.networks.items():
        lines.append(
            f"{what}  {found.value:,.1f} us  (95 %: {found.low:,.1f} to {found.high:,.1f})"
        )
    lines.append(
        f"a change of precision: {1e3 * model.to_quantized:.3f} ns a value from float, "
        f"{1e3 * model.to_float:.3f} ns to float"
    )
    check = model.validation
    lines.append(
        f"{check.policies} mixed policies that the fit had not seen: mean error "
        f"{check.mean_error:.1%}, worst {check.worst_error:.1%}, "
        f"rank correlation {check.rank_correlation:.3f}"
    )
    interrupted = max(found.contended for found in model.networks.values())
    if interrupted > BUSY:
        lines.append(
            f"other processes interrupted {interrupted:.0%} of the calls: "
            "the figures are better from a quiet machine"
        )
    return "\n".join(lines)
