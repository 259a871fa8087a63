"""The profile of a network on this machine, from the measurements to its file.

The networks that are measured are those the exporter writes: one float, one of 7-bit weights and
8-bit activations, one of 7-bit weights and 4-bit activations, and mixed ones. These say what a
change of precision costs and, each half predicted by what the other one says, how far predictions
are off.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from haq.errors import HaqError, look_up
from haq.files import write_text
from haq.formats.onnx.runtime import exact_kernels
from haq.formats.onnx.writer import Cpu
from haq.hw_profiles.document import write_json
from haq.hw_profiles.measure import card, fit, onnx_runtime
from haq.hw_profiles.measure.energy import SECONDS, WINDOWS, Meter
from haq.hw_profiles.measure.network import machine_of, version_of
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measure.timing import QUANTILE, Timing
from haq.hw_profiles.measured import SIZE_NOT_TIME, Interval, Measured, Passing, Validation
from haq.hw_profiles.profile import FORMAT, Profile
from haq.hw_profiles.rows import Cost, Row, Table, shape_of
from haq.hw_profiles.schema import Batch, BitRule, Quantity, Runtime
from haq.network.graph import handovers
from haq.network.layers import Layer
from haq.runs.profiling.energy import fitted_energy, measure_energy
from haq.runs.profiling.layers import layer_latencies
from haq.runs.profiling.networks import Measurements, measure_networks
from haq.runs.profiling.subject import Subject
from haq.runs.progress import OnProgress, silent

ROUNDS = 150
"""Most rounds of measuring, unless the user says otherwise."""

CPUS: tuple[Cpu, ...] = get_args(Cpu)

BUSY = 0.25
"""Share of interrupted calls from which on the machine counts as busy."""


def run_profile(
    asked: Subject,
    out: Path,
    setup: Setup,
    rounds: int = ROUNDS,
    seed: int = 0,
    on_progress: OnProgress = silent,
    cpu: Cpu = "any",
    meter: Meter | None = None,
) -> Profile:
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
        meter: Measures energy too, if given.

    Raises:
        HaqError: The provider is not there, this CPU saturates though ``cpu`` says it does not, a
            layer runs in another kernel than its bits claim, or the file cannot be written.
    """
    onnx_runtime.check_provider(setup.provider)
    check_cpu(cpu)
    check_out(out)
    before = card_of(setup)
    networks = measure_networks(asked, setup, rounds, seed, on_progress)
    after = card_of(setup)
    latencies = layer_latencies(asked.graph, networks, on_progress)
    model, rows = _model(asked, setup, networks, latencies)
    energies: fit.Rows | None = None
    if meter is not None:
        joules = measure_energy(asked, setup, networks.policies, meter, on_progress)
        own, energies = fitted_energy(networks, joules, rows, model.tensors, setup.batch)
        model = model.model_copy(update={"energy": own})
    profile = _profile(out.stem, asked, setup, cpu, model, rows, energies)
    profile = with_card(profile, before, after)
    write_text(out, write_json(profile))
    return profile


State = Mapping[str, str | int | float | bool]


def card_of(setup: Setup) -> State:
    """Return what a GPU says of its clocks now, and of what holds it back; nothing for a CPU."""
    return {} if setup.provider == "cpu" else card.state()


def with_card(profile: Profile, before: State, after: State) -> Profile:
    """Return a profile that says how its GPU was before and right after it was measured."""
    changing = [name for name in after if name not in ("card", "driver")]
    known = {
        f"{name}_{when}": state[name]
        for when, state in (("before", before), ("after", after))
        for name in changing if name in state
    }  # fmt: skip
    options = {**profile.runtime.options, **known}
    return profile.model_copy(
        update={"runtime": profile.runtime.model_copy(update={"options": options})}
    )


def check_cpu(name: str) -> Cpu:
    """Return which CPUs a profile is for, if one for them can be made here.

    Raises:
        HaqError: There is no such choice, or this CPU is not one of them.
    """
    cpu = look_up({cpu: cpu for cpu in CPUS}, "cpu", name)
    if cpu == "vnni" and not exact_kernels():
        raise HaqError(
            "cpu vnni: this CPU adds products of 8 bits in 16 bits and saturates, so 8-bit weights "
            "with 8-bit activations answer wrongly on it; leave --cpu out"
        )
    return cpu


def check_out(out: Path) -> None:
    """Say so, before anything is measured, if a profile cannot be written there.

    Raises:
        HaqError: The sentence for the user.
    """
    if out.suffix != ".json":
        raise HaqError(f"cannot write {out}: a profile's name ends in .json")
    if not out.parent.is_dir():
        raise HaqError(f"cannot write {out}: there is no folder {out.parent}")


def _model(
    asked: Subject, setup: Setup, networks: Measurements, latencies: fit.Rows
) -> tuple[Measured, fit.Rows]:
    """Return what rows cannot say, and the rows, both fitted to the mixed networks."""
    tensors = tuple(Passing(**tensor._asdict()) for tensor in handovers(asked.graph, asked.sample))
    known = {
        name: (policy, networks.timings[name].us) for name, policy in networks.policies.items()
    }
    uniform = [known.pop(name) for name in networks.references]
    fitted, validation = fit.cross_validated(
        latencies, tensors, uniform, list(known.values()), setup.batch
    )
    model = Measured(
        type="measured",
        to_quantized=fitted.to_quantized,
        to_float=fitted.to_float,
        of_tensors=fitted.of_tensors,
        tensors=tensors,
        networks={name: _interval(networks.timings[name]) for name in networks.references},
        fitted_on=len(known),
        validation=validation,
    )
    return model, fitted.rows


def _profile(
    name: str,
    asked: Subject,
    setup: Setup,
    cpu: Cpu,
    model: Measured,
    rows: fit.Rows,
    energies: fit.Rows | None,
) -> Profile:
    machine, version = machine_of(setup.provider), version_of(setup.provider)
    runtime = "TensorRT" if setup.provider == "tensorrt" else "ONNX Runtime"
    threads = f"{setup.threads} thread" + "s" * (setup.threads > 1)
    where = (
        f"{setup.provider}, {threads}"
        if setup.provider == "cpu"
        else (f"{setup.provider}, floats in {setup.floats}")
    )
    return Profile(
        format=FORMAT,
        name=name,
        title=f"{asked.name} in {runtime} {version}, {where}",
        device=str(machine.get("card") or machine["cpu"] or "unknown processor"),
        runtime=Runtime(
            name=runtime,
            version=version,
            options=setup.options | machine | {"runs_on": cpu},
        ),
        quantities={"latency": _latency(setup, model), **_energy(model)},
        batch=Batch(reference=setup.batch, rule="none"),
        bits=BitRule(between="round-up"),
        model=model,
        table=Table(rows=tuple(_table_rows(asked.graph.layers, rows, energies))),
    )


def _latency(setup: Setup, model: Measured) -> Quantity:
    rounds = model.networks["fp32"].samples
    return Quantity(
        unit="us",
        provenance="measured",
        source=f"haq profile: {setup.options['clock']}, p{QUANTILE} of {rounds} interleaved "
        "rounds; layers from the profiler's times, scaled to the whole network",
        error=model.validation.worst_error,
    )


def _energy(model: Measured) -> dict[str, Quantity]:
    energy = model.energy
    if energy is None:
        return {}
    about = Quantity(
        unit="uJ", provenance="measured",
        source=f"haq profile: counters by zeus, {WINDOWS} windows of {SECONDS:g} s or more a "
        f"network, {energy.idle_watts:.1f} W of idle taken off, windows within "
        f"{energy.spread:.1%}; layers by their latency, then fitted to mixed networks",
        error=energy.validation.worst_error,
    )  # fmt: skip
    return {"energy": about}


def _interval(timing: Timing) -> Interval:
    return Interval(
        value=timing.us, low=timing.low, high=timing.high, samples=timing.samples,
        contended=timing.contended,
    )  # fmt: skip


def _table_rows(
    layers: Sequence[Layer], rows: fit.Rows, energies: fit.Rows | None
) -> Iterator[Row]:
    for layer in layers:
        if layer.name not in rows:  # looked up: its time is that of others
            continue
        shape = None if layer.shapes else shape_of(layer)
        for bits, us in rows[layer.name].items():
            cost = {"latency": Cost(value=us)}
            if energies is not None:
                cost["energy"] = Cost(value=energies[layer.name][bits])
            yield Row(
                layer=layer.name, shape=shape, weight=bits.weight, act=bits.act,
                block=bits.block, dynamic=bits.dynamic,
                cost=cost,
            )  # fmt: skip


def describe(profile: Profile) -> str:
    """Return what was measured, in a few lines: whole networks, changes of precision, errors."""
    model = profile.model
    assert isinstance(model, Measured)
    interrupted = max(network.contended for network in model.networks.values())
    lines = [
        profile.title,
        *(
            f"{name}  {network.value:,.1f} us  (95 %: {network.low:,.1f} to {network.high:,.1f})"
            for name, network in model.networks.items()
        ),
        f"a change of precision: {1e3 * model.to_quantized:.3f} ns a value from float, "
        f"{1e3 * model.to_float:.3f} ns to float",
        validated(model.validation),
    ]
    if model.energy is not None:
        lines += [f"{name}  {joules:,.1f} uJ" for name, joules in model.energy.networks.items()]
        lines.append(f"energy: {validated(model.energy.validation)}")
    slowed = card.slowed({"held_back_by": profile.runtime.options.get("held_back_by_after", "")})
    if slowed:
        lines.append(
            f"the GPU was held back by {', '.join(slowed)}: cool it or raise its limit, and the "
            "figures are those of its full speed"
        )
    if "w7a8" in model.networks:
        lines.append(SIZE_NOT_TIME)
    if interrupted > BUSY:
        lines.append(
            f"other processes interrupted {interrupted:.0%} of the calls: "
            "the figures are better from a quiet machine"
        )
    return "\n".join(lines)


def validated(check: Validation) -> str:
    """Return how far predictions are off, in a sentence."""
    return (
        f"{check.policies} mixed policies that the fit had not seen: mean error "
        f"{check.mean_error:.1%}, worst {check.worst_error:.1%}, "
        f"rank correlation {check.rank_correlation:.3f}"
    )
