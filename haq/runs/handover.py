"""What a search's network can be handed over as, tried on the float network before anything else.

The files are written once with clips of one, in memory: so a search does not find out at its end
that its network cannot be exported.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import onnx

from haq.allocation.policy import Policy
from haq.errors import HaqError, ModelError
from haq.formats import checkpoint
from haq.formats.onnx.export import check_exportable
from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import Template
from haq.formats.stand_in import stand_in
from haq.hw_profiles.measure import kernels, onnx_runtime
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measured_target import MeasuredTarget
from haq.network.capture import Sample
from haq.network.graph import Graph
from haq.network.inputs import kind_of
from haq.runs.plan import Plan, listed

SETUP = Setup()


def tried(planned: Plan) -> Plan:
    """Return a plan that knows what its network can be handed over as.

    Raises:
        HaqError: It cannot be exported, and the target is ONNX Runtime itself.
    """
    notes, exported = [], None
    try:
        checkpoint.check_savable(
            planned.graph, planned.images["shape"], planned.images.get("tokens"),
            kind_of(planned.sample),
        )  # fmt: skip
    except HaqError as error:
        notes.append(f"the network will not be written as a checkpoint: {error}")
    try:
        exported = check_export(planned.graph, planned.sample)
    except HaqError as error:
        if isinstance(planned.target, MeasuredTarget):
            raise
        notes.append(f"the network will not be exported to ONNX: {error}")
    else:
        notes += _kernel_notes(planned.graph)
        notes += [exported.float32] if exported.float32 else []
    return replace(planned, notes=(*planned.notes, *notes), template=exported)


def _kernel_notes(graph: Graph) -> Iterator[str]:
    """Yield a sentence on the layers that a file has packed, and ONNX Runtime computes in float."""
    names = [layer.name for layer in graph.layers if layer.kind == "transposed"]
    if names:
        yield (
            f"{listed(names)}: ONNX Runtime has float kernels alone for transposed convolutions; "
            "their weights are packed in the file, and become floats when it is loaded"
        )
    names = [layer.name for layer in graph.layers if layer.kind in ("recurrent", "matrix")]
    if names:
        yield (
            f"{listed(names)}: ONNX Runtime multiplies these weights in float, as all of LSTM, GRU "
            "and RNN; they are packed in the file, and become floats when it is loaded"
        )


def check_export(graph: Graph, sample: Sample) -> Template:
    """Say so, before anything is searched, if a graph's networks cannot be exported to ONNX.

    Args:
        graph: Of the float network.
        sample: What one forward takes.

    Returns:
        What ``haq.formats.onnx.lower.lower`` needs for the networks of the graph.

    Raises:
        HaqError: In one sentence, why not.
    """
    exported = check_exportable(graph, sample)
    network, policy = stand_in(graph)
    check_kernels(lower(exported, network), policy)
    return exported


def check_kernels(file: onnx.ModelProto, policy: Policy) -> Counter[str]:
    """Return how often ONNX Runtime uses which kernel for the layers of a file.

    Raises:
        HaqError: The file is not valid ONNX, does not load, or a layer runs in another kernel than
            its bits claim.
    """
    try:
        onnx.checker.check_model(file, full_check=True)
    except Exception as error:  # of several kinds without a base of their own
        raise ModelError(f"the file is not valid ONNX: {error}") from error
    run = onnx_runtime.opened(file.SerializeToString(), SETUP).graph
    origins = kernels.Origins(file.graph, run, list(policy))
    kernels.check_kernels(origins.kernels, policy)
    return Counter(operator for operators in origins.kernels.values() for operator in operators)
