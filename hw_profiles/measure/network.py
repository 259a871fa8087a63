"""A network that is ready to be measured, whatever runs it: ONNX Runtime, or TensorRT itself.

ONNX Runtime shows a network in TensorRT as one node, without the precisions or the times of its
layers; so engines are built and asked by TensorRT's own package.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import onnx
import onnxruntime

from haq.allocation.policy import Policy
from haq.hw_profiles.measure import card, kernels, onnx_runtime
from haq.hw_profiles.measure.nvidia import version as tensorrt_version
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measure.timing import CLOCKS, Timing, sampled


class Network(Protocol):
    """A network of some policy, opened under a setup."""

    @property
    def owners(self) -> Mapping[str, str]:
        """Node of what is run to the layer of the network to which its time belongs."""
        ...

    def misplaced(self, policy: Policy) -> Iterator[tuple[str, str]]:
        """Yield the layers that do not run as the policy says, and how they run instead."""
        ...

    def check(self, policy: Policy) -> None:
        """Say so if a layer does not run as the policy says.

        Raises:
            TargetError: The message names the first such layer.
        """
        ...

    def reopened(self) -> "Network":
        """Return the same network, opened anew."""
        ...

    def call(self) -> Callable[[], float | None]:
        """Return what computes one batch, warmed up; where it says how long, in microseconds."""
        ...

    def node_times(self, runs: int) -> Mapping[str, float]:
        """Return the mean time of every node, in microseconds."""
        ...


@dataclass(frozen=True)
class OnnxRuntimeNetwork:
    """A network in ONNX Runtime, and the layers that its nodes come from.

    Attributes:
        model: The serialized file.
        setup: Under which it was opened.
        session: Of it.
        origins: Of the nodes of the graph that is run.
    """

    model: bytes
    setup: Setup
    session: onnxruntime.InferenceSession
    origins: kernels.Origins

    @property
    def owners(self) -> Mapping[str, str]:
        """Node to layer."""
        return self.origins.layers

    def misplaced(self, policy: Policy) -> Iterator[tuple[str, str]]:
        """Yield layers and the operators that run them."""
        return kernels.misplaced(self.origins.kernels, policy)

    def check(self, policy: Policy) -> None:
        """Say so if a layer runs in another kernel than its bits claim."""
        kernels.check_kernels(self.origins.kernels, policy)

    def reopened(self) -> "OnnxRuntimeNetwork":
        """Return the same network in another session."""
        return replace(self, session=onnx_runtime.session(self.model, self.setup))

    def call(self) -> Callable[[], None]:
        """Return what computes one batch and waits for it."""
        return onnx_runtime.Bound(self.session, self.setup).run

    def node_times(self, runs: int) -> Mapping[str, float]:
        """Return the times of the profiler."""
        return onnx_runtime.node_times(self.model, self.setup, runs)


def opened(model: bytes, setup: Setup, layers: Sequence[str]) -> Network:
    """Return a network that is ready to be measured.

    Args:
        model: A serialized file, in the form that the provider reads.
        setup: Says who runs it.
        layers: Names of its layers, in order of execution.

    Raises:
        TargetError: It cannot be run, or a kernel cannot be traced back to a layer.
    """
    if setup.provider == "tensorrt":
        from haq.hw_profiles.measure.tensorrt import Engine

        return Engine(model, setup, layers)
    run = onnx_runtime.opened(model, setup)
    origins = kernels.Origins(onnx.load_from_string(model).graph, run.graph, layers)
    return OnnxRuntimeNetwork(model, setup, run.session, origins)


def version_of(provider: str) -> str:
    """Return the version of what runs networks on a provider.

    Raises:
        TargetError: It is TensorRT, and not there.
    """
    return tensorrt_version() if provider == "tensorrt" else str(onnxruntime.__version__)


def machine_of(provider: str) -> dict[str, str | int | float | bool]:
    """Return what decides the speed of this machine: of its processor, and of its card."""
    about = onnx_runtime.machine()
    return about if provider == "cpu" else about | _lasting(card.state())


def _lasting(state: Mapping[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    return {what: state[what] for what in ("card", "driver") if what in state}


def measure(
    networks: Mapping[str, Network],
    setup: Setup,
    rounds: int,
    seed: int,
    on_round: Callable[[int, int], None],
    seconds: float,
) -> dict[str, Timing]:
    """Return how long one batch takes in each network, all of them interleaved.

    The arguments are those of ``haq.hw_profiles.measure.onnx_runtime.measure``.
    """
    calls = {name: network.call() for name, network in networks.items()}
    clock = CLOCKS[setup.clock]
    return sampled(calls, clock, rounds, 0.01, seed, on_round, seconds)
