"""Which network a policy is put into: the float one, or what is left where channels are removed.

Where a job chooses channels (``--widths``), each choice of shares has a float network of its own:
without the channels that are worth the least, refitted, its weights clipped anew. It is made when
it is first asked for, and the last few are remembered.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import fx

from haq.allocation.policy import Policy
from haq.compression.chain import Record
from haq.compression.channel_scores import channel_scores
from haq.compression.filters import remove
from haq.compression.widths import (
    REFITTED_ON,
    Widths,
    kept_places,
    lost_channels,
    widths_of,
    without,
)
from haq.network.capture import Sample
from haq.network.graph import Graph, resized
from haq.network.inputs import Inputs
from haq.quantization.calibration import Clips, calibrate_weights
from haq.runs.folder import read_json, write_json

REMEMBERED = 8
"""Float networks with fewer channels that are kept in memory."""

FILE = "transforms.json"
"""In a run's folder: what the search itself did to the network before its bits."""


class Place(NamedTuple):
    """The float network that a policy is put into, and where its tensors are clipped."""

    graph: Graph
    clips: Clips


@dataclass(frozen=True)
class Narrowing:
    """What narrower networks depend on beside the float one; all of it can be pickled.

    Attributes:
        shares: Of channels that may stay.
        multiple: Of which the number of channels that stay is one.
        scores: What each group of channels is worth.
        images: (N, ...), from which layers learn to do without the channels that are gone.
        method: How weights are clipped.
        per_channel: Whether each channel has a clip.
    """

    shares: tuple[float, ...]
    multiple: int
    scores: Mapping[int, float]
    images: Inputs
    method: str
    per_channel: bool


def narrowing_for(
    graph: Graph, widths: Widths, images: Inputs, method: str, per_channel: bool
) -> Narrowing:
    """Return what the narrower networks of a graph depend on.

    Args:
        graph: Of the float network.
        widths: Of it.
        images: (N, ...), without labels; some hundred.
        method: As for ``haq.quantization.calibration.calibrate``.
        per_channel: As above.
    """
    scores = channel_scores(graph.traced, widths.channels, images)
    shares = sorted({share for group in widths.groups for share in group.shares}, reverse=True)
    few = images[:REFITTED_ON]
    return Narrowing(tuple(shares), widths.multiple, scores, few, method, per_channel)


class Places:
    """From a policy to the float network that it is put into."""

    def __init__(self, graph: Graph, clips: Clips, narrowing: Narrowing | None = None):
        """Take down the whole network; without ``narrowing`` it is every policy's."""
        self.whole, self.narrowing = Place(graph, clips), narrowing
        self.widths: Widths | None = None
        if narrowing is not None:
            sample = self._sample(narrowing)
            self.widths = widths_of(graph.traced, sample, narrowing.shares, narrowing.multiple)
        self._known: OrderedDict[tuple[tuple[str, float], ...], Place] = OrderedDict()

    def __call__(self, policy: Policy) -> Place:
        """Return the network of a policy."""
        keep = self._keep(policy)
        if not keep or self.narrowing is None or self.widths is None:
            return self.whole
        key = tuple(sorted(keep.items()))
        if key not in self._known:
            self._known[key] = self._narrower(self.narrowing, self.widths, keep)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def chain(self, policy: Policy) -> tuple[Record, ...]:
        """Return the transform that makes the network of a policy of the whole one, if one does."""
        keep = self._keep(policy)
        if not keep or self.narrowing is None or self.widths is None:
            return ()
        lost = lost_channels(self.widths, self.narrowing.scores, keep)
        return ({"transform": "filters", "keep": kept_places(self.widths.channels, lost)},)

    def _keep(self, policy: Policy) -> dict[str, float]:
        groups = self.widths.groups if self.widths else ()
        return {g.name: policy[g.name].keep for g in groups if policy[g.name].keep < 1}

    def _narrower(self, known: Narrowing, widths: Widths, keep: Mapping[str, float]) -> Place:
        whole = self.whole
        network, _ = without(
            whole.graph.traced, widths, known.scores, keep, known.images, self._sample(known)
        )
        graph = resized(whole.graph, network)
        weights = calibrate_weights(graph, known.method, known.per_channel)
        return Place(graph, replace(whole.clips, weights=weights, scales={}, books={}))

    @staticmethod
    def _sample(known: Narrowing) -> Sample:
        return known.images[:2]


def write_chain(folder: Path, chain: Sequence[Record]) -> None:
    """Write down in a run's folder what the search did to the network, if it did something."""
    if chain:
        write_json(folder / FILE, {"transforms": list(chain)})
    else:
        (folder / FILE).unlink(missing_ok=True)


def read_chain(folder: Path) -> tuple[Record, ...]:
    """Return what ``write_chain`` wrote; nothing where there is none."""
    file = folder / FILE
    return tuple(read_json(file)["transforms"]) if file.exists() else ()


def replaced(graph: Graph, clips: Clips, sample: Sample, chain: Sequence[Record]) -> Place:
    """Return the structure of the network that a search made of a graph.

    Args:
        graph: Of the whole network, whose weights do not matter.
        clips: Of the run; those of weights stand for their shapes alone where layers are narrower.
        sample: What one forward takes.
        chain: From ``read_chain``.
    """
    for record in chain:
        graph = resized(graph, remove(graph.traced, sample, record["keep"]))
    if not chain:
        return Place(graph, clips)
    weights = {
        layer.name: {
            bits: torch.ones(1 if clip.numel() == 1 else layer.scales)
            for bits, clip in clips.weights[layer.name].items()
        }
        for layer in graph.layers if layer.name in clips.weights
    }  # fmt: skip
    return Place(graph, replace(clips, weights=weights, scales={}, books={}))


def sizes(network: fx.GraphModule, graph: Graph) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of the weights of a network's layers, which tell narrower ones apart."""
    return tuple(
        tuple(network.get_parameter(f"{layer.name}.weight").shape) for layer in graph.layers
    )
