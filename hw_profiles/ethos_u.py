"""Arm's Ethos-U: bytes of weights in flash as Arm's compiler encodes them, and cycles of layers.

Weights stand in flash entropy-coded, one stream a layer. What fewer bits save there depends on the
weights themselves, so the formula takes the codes of a network; without one it draws some. The
encoder, and the estimate of cycles, are those of the compiler Vela, an optional package.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles.formula import Ceilings, CodesOf, Constants
from haq.hw_profiles.planes import pair
from haq.hw_profiles.schema import Name
from haq.network.layers import Layer

SCALE_BYTES = 10
"""Of the bias and the scale of an output channel."""

ALIGNMENT = 16
"""Of every stream in flash, in bytes."""

MOST_STRIDE = 3

MOST_TAPS = 64
"""Height of a kernel; height times width may be the square of it."""


@cache
def vela(module: str) -> ModuleType:
    """Return a module of the compiler.

    Raises:
        TargetError: The compiler is not installed.
    """
    try:
        return importlib.import_module(f"ethosu.vela.{module}")
    except ImportError as error:
        raise TargetError(
            "the targets ethos-u… need Arm's compiler Vela, whose encoder says how many bytes "
            'weights take in flash; install it with pip install "haq[ethos-u]"'
        ) from error


class Operation(NamedTuple):
    """A layer, or one group of its channels, as the NPU runs it.

    Attributes:
        layer: At one size of its calls.
        block: How the outputs are cut into blocks: ``ArchitectureBlockConfig`` of the compiler.
        kind: ``NpuBlockType`` of the compiler.
        c_in: Channels that it reads.
        c_out: Channels that it writes.
        times: How many of these the layer is.
    """

    layer: Layer
    block: Any
    kind: Any
    c_in: int
    c_out: int
    times: int


@dataclass(frozen=True)
class EthosUFormula:
    """What layers cost on an Ethos-U; images are computed one by one.

    Attributes:
        accelerator: As the compiler calls it, such as "ethos-u55-128".
        system: Section of clocks and memories in the compiler's own configuration.
        memory: Section that says which of them holds what.
        codes: Of the network's weights; None draws normal ones.
    """

    accelerator: str
    system: str
    memory: str
    batch: int
    codes: CodesOf | None = None
    _known: dict[tuple[Layer, int], dict[str, float]] = field(default_factory=dict, repr=False)

    def of_network(self, codes: CodesOf) -> "EthosUFormula":
        """Return the formula for a network's own weights."""
        return replace(self, codes=codes, _known={})

    def cost(self, layer: Layer, bits: Bits) -> dict[str, float]:
        """Return cycles of all calls of the layer for the batch, and its bytes in flash.

        ``flash`` holds the encoded weights and, for each channel, bias and scale in 10 bytes; it is
        what the compiler writes when a layer's weights are one stream. A call takes as long as the
        slowest of three, which overlap::

            latency of an image = max(cycles of the multipliers and of what follows them,
                                      bytes of the inputs and outputs / bytes a cycle of the SRAM,
                                      flash / bytes a cycle of the flash)

        Source: Arm's compiler Vela, its weight encoder and its performance estimate.

        Raises:
            TargetError: The compiler is not installed, or leaves such a layer to another processor.
        """
        if (layer, bits.weight) not in self._known:
            self._known[layer, bits.weight] = self._cost(layer, bits.weight)
        return self._known[layer, bits.weight]

    def _cost(self, layer: Layer, weight_bits: int) -> dict[str, float]:
        operations = [self._operation(part) for part in layer.by_size()]
        codes = (self.codes or drawn)(layer, weight_bits)
        weights = in_flash_order(codes, layer)
        # A layer that is called with several sizes may be cut, and so encoded, in several ways.
        streams = {
            (one.block.ofm_block.depth, one.block.is_partkernel): one for one in operations
        }  # fmt: skip
        flash = {cut: self.encoded_bytes(weights, one) for cut, one in streams.items()}
        cycles = 0
        for one in operations:
            own = flash[one.block.ofm_block.depth, one.block.is_partkernel]
            cycles += one.layer.calls * self._cycles(one, own)
        return {"latency": self.batch * cycles, "flash": sum(flash.values())}

    @property
    def _architecture(self) -> Any:
        return architecture(self.accelerator, self.system, self.memory)

    def _operation(self, layer: Layer) -> Operation:
        check_runs(self.accelerator, layer)
        kinds, shapes = vela("operation").NpuBlockType, vela("shape4d").Shape4D
        kind = kinds.VectorProduct if layer.kind == "linear" else kinds.ConvolutionMxN
        times, c_in, c_out = layer.groups, layer.c_in // layer.groups, layer.c_out // layer.groups
        if layer.kind == "depthwise":
            kind, times, c_in, c_out = kinds.ConvolutionDepthWise, 1, layer.c_in, layer.c_out
        resampling = vela("ethos_u55_regs.ethos_u55_regs").resampling_mode
        spread = layer.kind == "transposed" and max(layer.stride) > 1
        block = vela("architecture_allocator").find_block_config(
            self._architecture, kind, shapes(1, *pair(layer.out_size), c_out),
            shapes(1, *pair(layer.in_size), c_in), None, False, 8, _kernel(layer), 0, True,
            resampling.TRANSPOSE if spread else resampling.NONE,
        )  # fmt: skip
        if block is None:
            raise TargetError(
                f"{self.accelerator} cannot run layer {layer.name!r}: no block of its outputs fits "
                "into the NPU's memory"
            )
        return Operation(layer, block, kind, c_in, c_out, times)

    def encoded_bytes(self, weights: NDArray[np.int16], operation: Operation) -> int:
        """Return the bytes in flash of weights (out, height, width, in) with biases and scales."""
        return sum(
            self._stream_bytes(part, operation) for part in np.split(weights, operation.times)
        )

    def _stream_bytes(self, weights: NDArray[np.int16], operation: Operation) -> int:
        """Return the bytes of one operation's streams, one a core, scales and weights in turn."""
        traversal = vela("api").NpuBlockTraversal
        cores = self._architecture.ncores
        total = 0
        for core in range(min(cores, len(weights))):
            own = np.ascontiguousarray(weights[core::cores])
            depth = (operation.block.ofm_block.depth + cores - 1 - core) // cores
            encoded, _ = vela("weight_compressor").encode_weights(
                self._architecture.accelerator_config, own, (1, 1), 8, int(depth),
                operation.kind == vela("operation").NpuBlockType.ConvolutionDepthWise,
                traversal.PART_KERNEL_FIRST
                if operation.block.is_partkernel and operation.layer.kind != "depthwise"
                else traversal.DEPTH_FIRST,
            )  # fmt: skip
            total += -(-SCALE_BYTES * len(own) // ALIGNMENT) * ALIGNMENT + len(encoded)
        return total

    def _cycles(self, operation: Operation, flash: int) -> int:
        performance, areas = vela("npu_performance"), vela("tensor").MemArea
        chip, query = self._architecture, self._query(operation)
        kinds = vela("operation").Op
        op = {"linear": kinds.FullyConnected, "depthwise": kinds.DepthwiseConv2DBias}.get(
            operation.layer.kind, kinds.Conv2DBias
        )
        computing = performance.measure_cycle_cost(chip, op, kinds.Relu, query).op_cycles
        moved = performance.measure_element_access(chip, query)
        a_cycle = chip.memory_bandwidths_per_cycle
        features = (moved.ifm_read[0] + moved.ofm_write) / a_cycle[areas(query.ifm_memory_area)]
        weights = performance.measure_mem2mem_cycles(
            chip, chip.permanent_storage_mem_area, areas.Sram, flash
        )
        return int(max(operation.times * computing, operation.times * features, weights))

    def _query(self, operation: Operation) -> Any:
        shapes = vela("shape4d").Shape4D
        query = vela("npu_performance").PerformanceQuery(operation.kind)
        layer, area = operation.layer, self._architecture.feature_map_storage_mem_area
        spread = layer.kind == "transposed"
        sizes = pair(layer.out_size if spread else layer.in_size)
        query.ifm_shape = shapes(1, *sizes, operation.c_in)
        query.ofm_shape = shapes(1, *pair(layer.out_size), operation.c_out)
        query.ifm_bits = query.ofm_bits = 8
        query.ifm_memory_area = query.ofm_memory_area = area
        query.ifm_format = query.ofm_format = vela("tensor").TensorFormat.NHCWB16
        query.const_shape = shapes(1, 1, 1, operation.c_out)
        query.const_memory_area = vela("tensor").MemArea.Sram  # where they are, once fetched
        query.kernel, query.config = _kernel(layer), operation.block
        return query

    def ceilings(self, bits: Bits, clock_hz: float) -> Ceilings:
        """Return the rate of the multipliers, and that of the flash."""
        chip = self._architecture
        flash = chip.memory_bandwidths_per_cycle[chip.permanent_storage_mem_area]
        macs = int(self.accelerator.rpartition("-")[2])
        return Ceilings(macs * clock_hz, float(flash) * clock_hz)


def check_runs(accelerator: str, layer: Layer) -> None:
    """Refuse a layer that the compiler leaves to the processor beside the NPU.

    Raises:
        TargetError: The sentence for the user.
    """
    reason = None
    if len(layer.kernel) != 2:
        reason = "it runs convolutions of images, of two dimensions"
    elif layer.kind == "transposed" and max(layer.stride) > 2:
        reason = "a transposed convolution may have strides of 1 and 2"
    elif layer.kind != "transposed" and max(layer.stride) > MOST_STRIDE:
        reason = f"strides may be 1 to {MOST_STRIDE}"
    elif layer.kernel[0] > MOST_TAPS or layer.kernel[0] * layer.kernel[1] > MOST_TAPS**2:
        reason = f"a kernel may have {MOST_TAPS} rows and {MOST_TAPS**2:,} taps"
    if reason:
        raise TargetError(
            f"{accelerator} cannot run layer {layer.name!r} ({layer.kind}, kernel "
            f"{'x'.join(map(str, layer.kernel))}, stride {'x'.join(map(str, layer.stride))}): "
            f"{reason}; take another target, or give the costs of all layers in a table "
            "(--target table:FILE)"
        )


def _kernel(layer: Layer) -> Any:
    height, width = pair(layer.kernel)
    # A transposed convolution is a dense one over the inputs, spread out.
    down, across = (1, 1) if layer.kind == "transposed" else pair(layer.stride)
    return vela("operation").Kernel(width, height, across, down)


@cache
def architecture(accelerator: str, system: str, memory: str) -> Any:
    """Return the compiler's description of an NPU and of the memories beside it.

    Raises:
        TargetError: The compiler is not installed, or does not know one of the names.
    """
    features = vela("architecture_features")
    try:
        return features.ArchitectureFeatures(
            vela_config_files=[str(Path(features.CONFIG_FILES_PATH) / "Arm" / "vela.ini")],
            accelerator_config=accelerator,
            system_config=system,
            memory_mode=memory,
            max_blockdep=features.ArchitectureFeatures.MAX_BLOCKDEP,
            verbose_config=False,
            arena_cache_size=None,
        )
    except Exception as error:  # its errors have no common base, and one of them fails itself
        raise TargetError(
            f"Vela does not know {accelerator} with {system} and {memory}: {error}"
        ) from error


def in_flash_order(codes: NDArray[np.int8], layer: Layer) -> NDArray[np.int16]:
    """Return codes (out, in of a group, …) as (out, height, width, in), as the encoder takes them.

    >>> in_flash_order(np.ones((8, 4), np.int8), Layer("fc", "linear", 4, 8)).shape
    (8, 1, 1, 4)
    """
    planes = codes.reshape(*codes.shape[:2], *layer.kernel)
    if layer.kind == "transposed":
        planes = planes[..., ::-1, ::-1]
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1).astype(np.int16))


def drawn(layer: Layer, weight_bits: int) -> NDArray[np.int8]:
    """Return codes of normal weights, each channel clipped at its largest magnitude."""
    sizes = layer.c_out, layer.c_in // layer.groups, *layer.kernel
    values = np.random.default_rng(0).standard_normal(sizes, np.float32)
    most = np.abs(values).reshape(layer.c_out, -1).max(1).reshape(-1, *(1,) * (len(sizes) - 1))
    codes: NDArray[np.int8] = np.rint(values / most * (2 ** (weight_bits - 1) - 1)).astype(np.int8)
    return codes


class EthosU(Constants):
    """Which NPU it is, and which memories stand beside it."""

    gives: ClassVar[Mapping[str, str]] = {"latency": "cycles", "flash": "bytes"}

    type: Literal["ethos-u"]
    accelerator: Name
    system: Name
    memory: Name

    def formula(self, clock_hz: float, batch: int) -> EthosUFormula:
        """Return the formula for a batch of images; its costs are cycles, whatever the clock."""
        return EthosUFormula(self.accelerator, self.system, self.memory, batch)
