"""Whether a network can be written as an ONNX file, found out before it is searched."""

from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import Template, template
from haq.formats.stand_in import stand_in
from haq.network.capture import Sample
from haq.network.graph import Graph


def check_exportable(graph: Graph, sample: Sample) -> Template:
    """Return the template of a graph's networks, or say why they cannot be exported.

    The network is written once as a file, with clips of one. That its layers get the kernels they
    claim only ONNX Runtime can tell: see ``haq.runs.handover.check_kernels``.

    Args:
        graph: Of the float network.
        sample: What one forward takes.

    Raises:
        ModelError: torch cannot export the network.
    """
    network, _ = stand_in(graph)
    exported = template(network, sample)
    lower(exported, network)
    return exported
