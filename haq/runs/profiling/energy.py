"""Energies of whole networks, measured, and of their layers, fitted to these."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from haq.allocation.policy import Policy
from haq.errors import HaqError
from haq.hw_profiles.measure import fit
from haq.hw_profiles.measure.energy import (
    SECONDS,
    Energy,
    Meter,
    energy_of,
    find_meter,
    idle_watts,
)
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measured import MeasuredEnergy, Passing
from haq.runs.profiling.networks import Measurements, checked_variant
from haq.runs.profiling.subject import Subject, lowering
from haq.runs.progress import OnProgress, Progress


class Times(NamedTuple):
    """How long windows last, and what tells the time.

    Attributes:
        seconds: Of a window, at least.
        rest: Does nothing for so many seconds.
        clock: In seconds.
    """

    seconds: float = SECONDS
    rest: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.perf_counter


def meter_of(provider: str) -> Meter:
    """Return the meter of what a provider computes on.

    Raises:
        HaqError: There is none.
    """
    processor = "CPU" if provider == "cpu" else "GPU"
    meter = find_meter("cpu" if provider == "cpu" else "gpu")
    if meter is None:
        raise HaqError(
            f"energy: this machine has no counter for its {processor} that can be read (haq doctor "
            "lists them; pip install 'haq[energy]' reads most); leave --energy out, or take a "
            "target that models energy"
        )
    return meter


def measure_energy(
    asked: Subject,
    setup: Setup,
    policies: Mapping[str, Policy],
    meter: Meter,
    on_progress: OnProgress,
    times: Times = Times(),  # noqa: B008 - a named tuple
) -> dict[str, Energy]:
    """Return the energy of a batch in each network, with what the machine takes at rest taken off.

    Raises:
        HaqError: Windows of a network differ too much.
    """
    lowered = lowering(asked, setup=setup)
    energies: dict[str, Energy] = {}
    for done, (name, policy) in enumerate(policies.items(), 1):
        call = checked_variant(lowered, policy, setup).network.call()
        idle = idle_watts(meter, times.seconds, times.rest)
        energies[name] = energy_of(call, meter, idle, times.seconds, times.clock)
        on_progress(Progress("energy", done, len(policies)))
    return energies


def fitted_energy(
    networks: Measurements,
    energies: Mapping[str, Energy],
    latencies: fit.Rows,
    tensors: Sequence[Passing],
    batch: int,
) -> tuple[MeasuredEnergy, fit.Rows]:
    """Return what rows cannot say of energy, and the rows, in microjoules of a batch.

    Layers share the energy of the references by their latencies; then rows and changes of precision
    are fitted to the mixed networks and checked, as latencies are.
    """
    microjoules = {name: 1e6 * energy.joules for name, energy in energies.items()}
    us = {name: networks.timings[name].us for name in networks.references}
    watts = sum(microjoules[name] for name in us) / sum(us.values())
    rows = {
        name: {bits: time_us * watts for bits, time_us in row.items()}
        for name, row in latencies.items()
    }
    known = {name: (policy, microjoules[name]) for name, policy in networks.policies.items()}
    uniform = [known.pop(name) for name in networks.references]
    fitted, validation = fit.cross_validated(rows, tensors, uniform, list(known.values()), batch)
    every = energies.values()
    return MeasuredEnergy(
        to_quantized=fitted.to_quantized,
        to_float=fitted.to_float,
        of_tensors=fitted.of_tensors,
        networks={name: microjoules[name] for name in us},
        idle_watts=max(sum(one.idle_watts for one in every) / len(every), 0.0),
        spread=max(one.spread for one in every),
        fitted_on=len(known),
        validation=validation,
    ), fitted.rows
