"""The network to profile, and its ONNX file at any policy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from haq.allocation.policy import Policy
from haq.allocation.schemes import STATIC, Formats
from haq.compression.chain import as_in_file
from haq.datasets import load as load_data
from haq.errors import HaqError
from haq.formats.onnx.half import in_half
from haq.formats.onnx.lower import lower
from haq.formats.onnx.template import template
from haq.formats.onnx.writer import Cpu
from haq.formats.stand_in import stand_in
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.models import build
from haq.models.sources import about
from haq.models.weights import load_weights
from haq.network.capture import Sample
from haq.network.graph import Graph, trace
from haq.quantization.calibration import WHOLE_BYTE, Clips, calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.quantizer import BITS
from haq.runs.calibration import calibration_batches
from haq.runs.encoded_cost import rows_of
from haq.runs.float_network import fresh_model
from haq.runs.job import parse_job
from haq.runs.made_up import made_up
from haq.runs.metric import metric_of_job
from haq.runs.named import reading_of
from haq.runs.plan import images_of

PLACEHOLDER_CLIP = 6.0
"""Where activations are clipped without data: latency does not depend on it (ReLU6 fits in)."""

_CALIBRATION_IMAGES = 64

CPU = Setup()
"""Who runs files, unless something else is said."""


@dataclass(frozen=True)
class Subject:
    """A network to measure.

    Attributes:
        name: For titles.
        graph: Traced, with the weights that are exported.
        clips: Where its tensors are clipped.
        sample: One image.
        formats: Whose kernels are measured.
    """

    name: str
    graph: Graph
    clips: Clips
    sample: Sample
    formats: Formats = STATIC


def subject(  # noqa: PLR0913 - one keyword an option
    model: str,
    *,
    weights: Path | None = None,
    data: str | None = None,
    width: float = 1.0,
    size: int | None = None,
    seed: int = 0,
    tokenizer: Path | None = None,
    length: int | None = None,
    formats: Formats = STATIC,
) -> Subject:
    """Return a network by its name.

    Args:
        model: A name, or package.module:factory.
        weights: Of the float network, with the transforms that their file holds; random ones serve
            as well for a latency.
        data: Says the size of the images and the number of classes, and calibrates.
        width: Width multiplier.
        size: Height and width of an image, where there are no data and the model does not say.
        seed: Of random weights.
        tokenizer: Of data that are text, as for a search.
        length: Most tokens of an input, as for a search.
        formats: Whose kernels are measured.

    Raises:
        HaqError: A name is unknown, or something does not fit.
    """
    if data is None and tokenizer is not None:
        raise HaqError(f"--tokenizer {tokenizer} reads --data, and none are given; leave it out")
    card = about(model) if ":" in model else None
    if data is None and length is not None and (card is None or card.tokens is None):
        raise HaqError(f"--length {length} is of text, and {model} takes none; leave it out")
    if data is not None:
        job = parse_job(
            model=model, data=data, size=size, seed=seed,
            tokenizer=None if tokenizer is None else str(tokenizer), length=length,
        )  # fmt: skip
        images = load_data(data, seed, size, reading_of(job))
        metric = metric_of_job(job, images_of(images))
        network = fresh_model(model, images, width, seed, metric)
        sample, _ = images.train.batch(torch.zeros(1, dtype=torch.int64))
    else:
        torch.manual_seed(seed)
        network = build(model, None, width, size)
        sample = made_up(model, network, size, 3, length)
    if weights is not None:
        network = as_in_file(network, sample, weights)
        load_weights(network, weights)
    graph = trace(network, sample)
    formats.check()
    formats.check_layers(graph.layers)
    if data is None:
        return Subject(model, graph, placeholder_clips(graph), sample, formats)
    batches = calibration_batches(images, _CALIBRATION_IMAGES, seed)
    return Subject(model, graph, calibrate(graph, batches, "max"), sample, formats)


def placeholder_clips(graph: Graph) -> Clips:
    """Return clips that are good enough for a latency, without any image."""
    weights = {}
    for layer in graph.layers:
        rows = rows_of(graph.traced, layer.name)
        clip = rows.abs().flatten(1).amax(1).clamp_min(1e-6)  # (channels,)
        weights[layer.name] = dict.fromkeys(BITS, clip)
    acts = dict.fromkeys(BITS, torch.tensor(PLACEHOLDER_CLIP))
    whole = {8: torch.tensor(WHOLE_BYTE)}
    skews = {point.tensor: whole for point in graph.points if point.signed}
    return Clips(weights, {point.tensor: acts for point in graph.points}, skews)


Lowered = Callable[[Policy], bytes]


def lowering(asked: Subject, cpu: Cpu = "any", setup: Setup = CPU) -> Lowered:
    """Return the function from a policy to its ONNX file; the export itself is done once, here.

    Args:
        asked: The network.
        cpu: What the files are for, as for ``haq.formats.onnx.lower.lower``.
        setup: Who runs them: TensorRT reads codes around zero, and GPUs compute in float16 what is
            in float16.
    """
    exported = template(stand_in(asked.graph)[0], asked.sample)

    def lowered(policy: Policy) -> bytes:
        network = quantize(asked.graph, policy, asked.clips)
        file = lower(exported, network, cpu=cpu, symmetric=setup.provider == "tensorrt")
        serialized: bytes = (
            in_half(file) if setup.floats == "float16" else file
        ).SerializeToString()
        return serialized

    return lowered
