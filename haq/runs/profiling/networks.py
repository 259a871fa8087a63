"""Whole networks, measured: references and mixed ones, interleaved, group by group."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from haq.allocation.policy import Policy, readers
from haq.errors import HaqError, TargetError
from haq.hw_profiles.measure.network import Network, measure, opened
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measure.timing import FEWEST_ROUNDS, Timing, drift, median_of
from haq.hw_profiles.measured import FLOATS, STANDARD
from haq.network.layers import Layer
from haq.runs.profiling.policies import mixed, references
from haq.runs.profiling.subject import Lowered, Subject, lowering
from haq.runs.progress import OnProgress, Progress

MIXED = 48
"""Mixed policies that are measured; each half is predicted by a fit to the other one."""

MIXED_ENGINES = 24
"""The same in TensorRT, which takes seconds to build each."""

SECONDS = 90.0
"""How long the measuring of all networks may take, if there were a few rounds."""

DRIFT = 0.2
"""How much slower or faster the float network may be in the end than in the beginning. Networks are
interleaved, so that their ratios are right long before."""

MEMORY_BYTES = 3 * 2**30
"""What the networks that are open at once may take, about; more are measured group by group."""

OPENINGS = 3
"""How often networks are opened: where a session's tensors and threads come to lie decides a
percent or two of how fast it is, and now and then a lot."""

_BYTES_OF_A_SESSION = 4  # for each byte of the float network's file, about


class Variant(NamedTuple):
    """A network at some policy, ready to be measured."""

    policy: Policy
    network: Network


def variant(lowered: Lowered, policy: Policy, setup: Setup) -> Variant:
    """Return the network of a policy, opened under a setup."""
    return Variant(policy, opened(lowered(policy), setup, list(policy)))


def checked_variant(lowered: Lowered, policy: Policy, setup: Setup) -> Variant:
    """Return the network of a policy, each layer in the kernel that its bits claim.

    Raises:
        TargetError: A layer runs in another kernel; its latency would be that of something else.
    """
    ready = variant(lowered, policy, setup)
    ready.network.check(policy)
    return ready


class Measurements(NamedTuple):
    """References by name, opened; all networks' policies and timings by name."""

    references: Mapping[str, Variant]
    policies: Mapping[str, Policy]
    timings: Mapping[str, Timing]


def measure_networks(
    asked: Subject, setup: Setup, rounds: int, seed: int, on_progress: OnProgress
) -> Measurements:
    """Return how long the references and the mixed networks take.

    Every group has the references in it: by them, the times of a later group are brought to those
    of the first one.

    Raises:
        HaqError: There is nothing to mix, or a layer runs in another kernel than its bits claim.
    """
    lowered, layers, formats = lowering(asked, setup=setup), asked.graph.layers, asked.formats
    able = quantizable(lowered, layers, setup) if "static" in formats.schemes else set()
    count = MIXED_ENGINES if setup.provider == "tensorrt" else MIXED
    drawn = mixed(layers, able, count, seed, formats)
    mixtures = {str(number): one for number, one in enumerate(drawn)}
    if len(mixtures) < 2:
        raise HaqError(
            f"model {asked.name} leaves nothing to mix: a profile needs two layers, or more, that "
            "read different tensors and run in kernels of the schemes asked for"
        )
    uniform = references(layers, able, formats)
    room = MEMORY_BYTES // (_BYTES_OF_A_SESSION * len(lowered(uniform["fp32"])))
    groups = in_groups(list(mixtures), max(room - len(uniform), 1))
    opened: dict[str, Variant] = {}
    timings: dict[str, Timing] = {}
    for place, names in enumerate(groups):
        group = _Group(setup, rounds, seed, SECONDS / len(groups), _note(place, groups))
        policies = uniform | {name: mixtures[name] for name in names}
        variants = _open(lowered, policies, group, on_progress)
        opened = opened or {name: variants[name] for name in uniform}
        timings = _beside(timings, _measure(variants, group, on_progress), list(uniform))
    return Measurements(opened, uniform | mixtures, timings)


class _Group(NamedTuple):
    """How one group of networks is measured."""

    setup: Setup
    rounds: int
    seed: int
    seconds: float
    note: str


def _open(
    lowered: Lowered, policies: Mapping[str, Policy], group: _Group, on_progress: OnProgress
) -> dict[str, Variant]:
    variants = {}
    for done, (name, policy) in enumerate(policies.items(), 1):
        variants[name] = checked_variant(lowered, policy, group.setup)
        on_progress(Progress("build", done, len(policies), group.note))
    return variants


def _measure(
    variants: dict[str, Variant], group: _Group, on_progress: OnProgress
) -> dict[str, Timing]:
    """Return the median timings of several openings; each takes the place of the one before."""
    rounds = -(-group.rounds // OPENINGS)
    timings: dict[str, list[Timing]] = {name: [] for name in variants}
    for opening in range(OPENINGS):
        if opening:
            for name, one in variants.items():
                variants[name] = one._replace(network=one.network.reopened())

        def on_round(done: int, most: int, before: int = opening * rounds) -> None:
            on_progress(Progress("measure", before + done, OPENINGS * most, group.note))

        networks = {name: variant.network for name, variant in variants.items()}
        seconds = group.seconds / OPENINGS
        times = measure(networks, group.setup, rounds, group.seed + opening, on_round, seconds)
        for name, timing in times.items():
            timings[name].append(timing)
    check_speed(timings)
    return {name: median_of(some) for name, some in timings.items()}


def check_speed(timings: Mapping[str, Sequence[Timing]]) -> None:
    """Refuse figures of a machine that changed its speed while they were taken.

    Args:
        timings: Of every network in each opening.

    Raises:
        HaqError: The networks were much slower, or faster, in the end.
    """
    if any(timing.samples < FEWEST_ROUNDS for some in timings.values() for timing in some):
        return
    first, last = ({name: some[at].us for name, some in timings.items()} for at in (0, -1))
    within = statistics.median(one.drift for some in timings.values() for one in some)
    for change in (drift(last, first) - 1, within):
        if abs(change) > DRIFT:
            raise HaqError(
                f"the networks took {change:+.0%} in the end against the beginning: the machine "
                "changed its speed, as one that gets hot or busy does; fix its clock, or leave it "
                "alone, and measure again"
            )


def _beside(
    first: Mapping[str, Timing], later: Mapping[str, Timing], shared: Sequence[str]
) -> dict[str, Timing]:
    """Return the first times and, where the machine was then as fast, the later ones."""
    then = {name: timing.us for name, timing in first.items()}
    factor = drift(then, {name: later[name].us for name in shared})
    return {name: timing.times(factor) for name, timing in later.items()} | dict(first)


def in_groups(names: Sequence[str], most: int) -> list[list[str]]:
    """Return the names in as few groups as can be, of about equal size and at most ``most``.

    >>> in_groups(["a", "b", "c", "d"], most=3)
    [['a', 'c'], ['b', 'd']]
    """
    count = -(-len(names) // most)
    return [list(names[start::count]) for start in range(count)]


def _note(place: int, groups: Sequence[object]) -> str:
    return f"group {place + 1} of {len(groups)}" if len(groups) > 1 else ""


def quantizable(lowered: Lowered, layers: Sequence[Layer], setup: Setup) -> set[str]:
    """Return the layers that run in integer kernels, each with all that read its tensor.

    Raises:
        TargetError: None does.
    """
    everywhere = {layer.name: FLOATS if layer.weights_alone else STANDARD for layer in layers}
    standard = variant(lowered, everywhere, setup)
    instead = dict(standard.network.misplaced(standard.policy))
    floats = set(instead)
    floats |= {layer.name for layer in layers if layer.weights_alone}
    able = {name for name, group in readers(layers).items() if floats.isdisjoint(group)}
    if not able:
        operators = ", ".join(sorted(set(instead.values())))
        raise TargetError(
            f"{setup.options['provider']} runs no layer of this network in an integer kernel "
            f"(it takes {operators}): there are no bits to choose from"
            + (
                "; of NVIDIA's, --provider tensorrt has integer convolutions"
                if setup.provider == "cuda"
                else ""
            )
        )
    return able
