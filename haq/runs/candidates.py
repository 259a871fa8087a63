"""Candidates of a search, built and measured end to end beside the networks of its profile."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from haq.allocation.costs import CostTable, total
from haq.allocation.policy import FLOAT, Bits, Policy
from haq.errors import TargetError
from haq.formats.onnx.writer import Cpu
from haq.hw_profiles.measure import onnx_runtime
from haq.hw_profiles.measure.network import machine_of, measure, version_of
from haq.hw_profiles.measure.timing import Timing, drift
from haq.hw_profiles.measured import FLOATS, STANDARD, Measured
from haq.hw_profiles.profile import Profile
from haq.runs.profiling.networks import checked_variant
from haq.runs.progress import OnProgress, Progress, silent


class Measurement(NamedTuple):
    """One candidate, measured.

    Attributes:
        policy: Its bits.
        predicted: Latency by the cost table, in microseconds for the target's batch.
        us: Latency by the clock, times ``drift``.
        low: End of the 95 % interval of ``us``.
        high: The other end.
        samples: Calls behind it.
        contended: Share of them that another process interrupted.
        drift: What the references take in the profile, over what they take now: the machine may be
            busier or cooler than it was then.
    """

    policy: Policy
    predicted: float
    us: float
    low: float
    high: float
    samples: int
    contended: float
    drift: float


def setup_of(profile: Profile) -> onnx_runtime.Setup:
    """Return the circumstances under which a profile was measured.

    Raises:
        TargetError: It was not measured by ``haq profile``, or not with this processor and this
            ONNX Runtime.
    """
    options = profile.runtime.options
    by_name = {provider: name for name, provider in onnx_runtime.PROVIDERS.items()}
    provider = by_name.get(str(options.get("provider")))
    if not isinstance(profile.model, Measured) or provider is None:
        raise TargetError(f"{profile.name} was not measured in ONNX Runtime: see haq profile")
    here = machine_of(provider) | {"version": version_of(provider)}
    there = {**options, "version": profile.runtime.version}
    for what in ("cpu", "instructions", "version", "card"):
        if here.get(what) != there.get(what):
            raise TargetError(
                f"{profile.name} was measured with {what} {there.get(what)!r}, here it is "
                f"{here.get(what)!r}: nothing can be checked here; make a profile of this machine "
                "with haq profile"
            )
    floats = str(options.get("floats", "float32"))
    return onnx_runtime.Setup(provider, int(options["threads"]), profile.batch.reference, floats)


def cpu_of(profile: Profile) -> Cpu:
    """Return which CPUs the files of a search on a profile are for."""
    return "vnni" if profile.runtime.options.get("runs_on") == "vnni" else "any"


def measure_candidates(
    lowered: Callable[[Policy], bytes],
    policies: Sequence[Policy],
    table: CostTable,
    profile: Profile,
    rounds: int = 60,
    seed: int = 0,
    on_progress: OnProgress = silent,
) -> list[Measurement]:
    """Return how long networks of some policies take, measured together with the references.

    Args:
        lowered: From a policy to its ONNX file; ``lowering`` makes one.
        policies: At least one.
        table: Of the target: what the policies were predicted to take.
        profile: Of the target, measured on this machine.
        rounds: Most rounds of measuring.
        seed: Of the order and the bootstrap.
        on_progress: Called after each round.

    Raises:
        TargetError: The profile is another machine's, or a layer runs in another kernel than its
            bits claim.
    """
    setup = setup_of(profile)
    asked = {str(place): policy for place, policy in enumerate(policies)}
    asked |= _references(profile, table)
    networks = {
        name: checked_variant(lowered, policy, setup).network for name, policy in asked.items()
    }

    def on_round(done: int, most: int) -> None:
        on_progress(Progress("measure", done, most, f"{len(policies)} candidates"))

    timings = measure(networks, setup, rounds, seed, on_round, math.inf)
    factor = _drift_since(profile, timings)
    return [
        _measurement(policy, total(table, policy, "latency"), timings[str(place)], factor)
        for place, policy in enumerate(policies)
    ]


def _drift_since(profile: Profile, timings: Mapping[str, Timing]) -> float:
    assert isinstance(profile.model, Measured)
    then = {name: network.value for name, network in profile.model.networks.items()}
    return drift(then, {name: timing.us for name, timing in timings.items()})


def _measurement(policy: Policy, predicted: float, timing: Timing, factor: float) -> Measurement:
    now = timing.times(factor)
    return Measurement(
        policy, predicted, now.us, now.low, now.high, now.samples, now.contended, factor
    )


def _references(profile: Profile, table: CostTable) -> dict[str, Policy]:
    # Networks of 7-bit and of 8-bit weights run in the same kernels.
    static = any(bits.act != FLOAT for some in table.choices.values() for bits in some)
    uniform: Mapping[str, Bits] = {"fp32": FLOATS}
    if static:
        uniform = {**uniform, "w7a8": STANDARD, "w8a8": STANDARD}
    assert isinstance(profile.model, Measured)
    known = profile.model.networks.keys()
    return {
        what: {layer.name: FLOATS if layer.weights_alone else bits for layer in table.layers}
        for what, bits in uniform.items() if what in known
    }  # fmt: skip
