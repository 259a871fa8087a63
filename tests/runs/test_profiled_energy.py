"""Energy in profiles: fitted to networks whose energies are known, and measured under zeus."""

import json

import pytest
import torch
from torch import nn

from haq.allocation.budgets import parse_budget
from haq.allocation.costs import tabulate, total
from haq.allocation.policy import Bits
from haq.errors import HaqError
from haq.hw_profiles import load
from haq.hw_profiles.document import write_json
from haq.hw_profiles.measure.energy import Energy, Meter
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measure.timing import Timing
from haq.hw_profiles.measured import CLIPPED, FLOATS, INTEGERS, Passing, crossings, kernel
from haq.network.graph import handovers, trace
from haq.runs.profiling import energy as profiled_energy
from haq.runs.profiling.energy import Times, fitted_energy, measure_energy, meter_of
from haq.runs.profiling.networks import Measurements
from haq.runs.profiling.policies import mixed, references
from haq.runs.profiling.profile import _model, _profile
from haq.runs.profiling.subject import Subject, placeholder_clips


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.c(self.b(self.a(x).relu()).relu()).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    sample = torch.zeros(1, 3, 8, 8)
    graph = trace(Net(), sample)
    return Subject("net", graph, placeholder_clips(graph), sample)


US = {FLOATS: 40.0, INTEGERS: 10.0, CLIPPED: 12.0}
WATTS = {FLOATS: 3.0, INTEGERS: 1.5, CLIPPED: 1.6}


@pytest.fixture(scope="module")
def known(network):
    """Networks of which all latencies and energies are known, and what they come from."""
    layers = network.graph.layers
    names = [layer.name for layer in layers]
    uniform = references(layers, set(names))
    policies = uniform | {
        str(at): one for at, one in enumerate(mixed(layers, set(names), 40, seed=0))
    }
    tensors = [Passing(**one._asdict()) for one in handovers(network.graph, network.sample)]

    def of(policy, price, change):
        own = sum((at + 1) * price[kernel(policy[name])] for at, name in enumerate(names))
        return own + sum(change * value for value in crossings(tensors, policy))

    times = {name: of(policy, US, 0.01) for name, policy in policies.items()}
    micro = {bits: US[bits] * WATTS[bits] for bits in US}
    joules = {
        name: Energy(1e-6 * of(policy, micro, 0.04), 0.01, 5.0, 30)
        for name, policy in policies.items()
    }
    timings = {name: Timing(us, us, us, us, us, 9, 0.0) for name, us in times.items()}
    rows = {
        name: {bits: (at + 1) * US[bits] for bits in US if name != "a" or bits != CLIPPED}
        for at, name in enumerate(names)
    }
    return Measurements(uniform, policies, timings), joules, rows, tensors


def test_rows_and_changes_are_those_that_the_networks_come_from(known):
    networks, joules, rows, tensors = known
    model, energies = fitted_energy(networks, joules, rows, tensors, batch=1)
    assert model.validation.policies == 40 and model.validation.worst_error < 0.03
    assert model.validation.rank_correlation > 0.98
    assert model.networks == {
        name: pytest.approx(1e6 * joules[name].joules) for name in networks.references
    }
    assert model.idle_watts == 5.0 and model.spread == 0.01
    for name, row in energies.items():
        assert row.keys() == rows[name].keys()
    sums = sum(row[FLOATS] for row in energies.values())
    assert sums == pytest.approx(model.networks["fp32"], rel=1e-3)


def test_a_profile_with_energy_is_a_target_of_measured_joules(network, known, tmp_path):
    networks, joules, rows, tensors = known
    model, latencies = _model(network, Setup(), networks, rows)
    own, energies = fitted_energy(networks, joules, latencies, tensors, batch=1)
    model = model.model_copy(update={"energy": own})
    profile = _profile("mine", network, Setup(), "any", model, latencies, energies)
    path = tmp_path / "mine.json"
    path.write_text(write_json(profile))
    target, layers = load(str(path)), network.graph.layers
    assert target.units == {"latency": "us", "energy": "uJ"} and target.si["energy"] == 1e-6
    about = target.profile.quantities["energy"]
    assert about.provenance == "measured" and "5.0 W of idle" in about.source
    assert about.error == own.validation.worst_error
    policy = networks.policies["7"]
    table = tabulate(layers, {name: (bits,) for name, bits in policy.items()}, target)
    assert total(table, policy, "energy") == pytest.approx(1e6 * joules["7"].joules, rel=0.05)
    assert total(table, policy, "latency") == pytest.approx(networks.timings["7"].us, rel=0.05)
    floats = parse_budget("energy=50%fp32", layers, target)
    assert floats.limit == pytest.approx(own.networks["fp32"] / 2, rel=1e-3)
    assert json.loads(path.read_text())["model"]["energy"]["fitted_on"] == 40


def test_every_network_is_run_in_windows_with_idle_taken_off(network):
    """On a machine that takes 4 W at rest and 6 W more while a network is asked for."""

    class Monitor:
        """Has the two methods of ``ZeusMonitor`` that a meter calls, and their answer."""

        def __init__(self):
            self.now = self.joules = 0.0

        def begin_window(self, key, sync_execution=True, restart=False):
            self.began = self.now, self.joules

        def end_window(self, key, sync_execution=True):
            return type("Measurement", (), {
                "time": self.now - self.began[0], "joules": self.joules - self.began[1],
            })()  # fmt: skip

    machine = Monitor()

    def rest(seconds):
        machine.now += seconds
        machine.joules += 4 * seconds

    def clock():  # half a second passes from look to look, with a call between
        machine.now += 0.5
        machine.joules += 5
        return machine.now

    meter = Meter("a machine", machine, lambda measured: measured.joules)
    policies = {
        "fp32": {name: FLOATS for name in ("a", "b", "c", "fc")},
        "w7a8": {name: Bits(7, 8) for name in ("a", "b", "c", "fc")},
    }
    told = []
    energies = measure_energy(
        network, Setup(), policies, meter, told.append, Times(1.0, rest, clock)
    )
    assert energies.keys() == policies.keys() and len(told) == 2
    for energy in energies.values():
        assert energy.idle_watts == pytest.approx(4) and energy.spread == pytest.approx(0)
        # A window has two calls in 1.5 s, which take 15 J, 6 of them at rest.
        assert energy.calls == 6 and energy.joules == pytest.approx(4.5)


def test_without_a_meter_it_says_what_else_there_is(monkeypatch):
    monkeypatch.setattr(profiled_energy, "find_meter", lambda processor: None)
    with pytest.raises(HaqError, match="no counter for its CPU"):
        meter_of("cpu")
    with pytest.raises(HaqError, match="no counter for its GPU"):
        meter_of("cuda")
