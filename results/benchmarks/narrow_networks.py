"""What the studies of channels have in common: choices of bits and channels, and their networks."""

import copy
import time
from functools import partial

import torch

from haq.allocation.budgets import Budget, solve
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate, total
from haq.allocation.schemes import STATIC
from haq.allocation.sensitivities import objective
from haq.allocation.sensitivities import widths as bits_of
from haq.allocation.widths import widened, with_channels
from haq.compression.channel_scores import channel_scores
from haq.compression.widths import damage_of_channels, widths_of, without
from haq.datasets import load
from haq.formats.onnx.runtime import all_integer, integer_answer, prepared
from haq.models import build
from haq.models.weights import load_weights
from haq.network.graph import resized, trace
from haq.quantization.calibration import calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize
from haq.quantization.second_order import second_order
from haq.quantization.statistics import correct, statistics
from haq.runs.evaluator import Recipe, fine_tune
from haq.runs.samples import Part
from haq.training.scoring import logits

IMAGES = 256
"""Training images that clips, sensitivities and channels are worked out on."""

LR = 0.01
"""Highest learning rate of fine-tuning."""


class Study:
    """A float ResNet-20 and what its bits and channels do to it."""

    def __init__(self, weights, data, seed=0, formats=STATIC):
        self.data, self.seed, self.formats = load(data), seed, formats
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.data.train), generator=generator)[:IMAGES]
        self.images = self.data.train.batch(chosen)[0]
        self.sample = self.images[:2]
        network = build("resnet20", len(self.data.classes))
        load_weights(network, weights)
        self._take(network)

    def of(self, network):
        """Return the study of another network on the same data."""
        other = copy.copy(self)
        other._take(network)
        return other

    def _take(self, network):
        """Work out what bits do to a network."""
        self.graph = trace(network.eval(), self.sample)
        ends = {self.graph.layers[0].name: 8, self.graph.layers[-1].name: 8}
        self.choices = permitted(self.graph.layers, None, (2, 8), 8, ends, self.formats)
        self.table = tabulate(self.graph.layers, self.choices)
        self.clips = calibrate(self.graph, self.images.split(128))
        self._damage = {}

    @property
    def of_bits(self):
        """What each choice of bits does to the network, to second order; worked out once."""
        if "bits" not in self._damage:
            known = second_order(self.graph, self.clips, self.images, bits_of(self.choices))
            self._damage["bits"] = objective(known, self.table)
        return self._damage["bits"]

    def bits(self, quantity, limit):
        """Return the best bits within a budget, and their size; None where there are none."""
        policy = solve(self.of_bits, self.table, [Budget(quantity, limit)])
        return policy and (policy, total(self.table, policy, "size"))

    def channels(self, shares, multiple=1):
        """Return which channels may go."""
        return widths_of(self.graph.traced, self.sample, shares, multiple)

    def widths(self, size, shares, multiple=1, counted=1.0):
        """Return the best bits and channels within a size; damage of channels counts so much."""
        known, key = self.channels(shares, multiple), (shares, multiple)
        if key not in self._damage:
            self._damage[key] = damage_of_channels(
                self.graph.traced, known, self.images, self.sample
            )
        damage = self._damage[key]
        table = widened(self.graph.layers, self.choices, known.groups)
        counting = {n: {s: counted * d for s, d in row.items()} for n, row in damage.items()}
        goal = with_channels(table, self.of_bits, counting)
        policy = solve(goal, table, [Budget("size", size)])
        return policy and (policy, total(table, policy, "size"))

    def network(self, policy, shares=None, multiple=1):
        """Return the quantized network of a policy, its statistics corrected."""
        graph, clips = self.graph, self.clips
        keep = {name: bits.keep for name, bits in policy.items() if bits.keep < 1}
        if keep:
            known = self.channels(shares, multiple)
            scores = channel_scores(graph.traced, known.channels, self.images)
            keep = {g.name: keep[g.name] for g in known.groups if g.name in keep}
            narrow, _ = without(graph.traced, known, scores, keep, self.images, self.sample)
            graph = resized(graph, narrow)
            clips = calibrate(graph, self.images.split(128))
        model = quantize(graph, policy, clips)
        correct(model, graph, statistics(graph, self.images, clips), self.images)
        return model

    def tuned(self, model, images, epochs):
        """Fine-tune a network in place, the float one for a teacher; return the CPU seconds."""
        started = time.process_time()
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(self.data.train), generator=generator)[:images]
        fine_tune(
            model, self.graph, Part(self.data.train, chosen), epochs=epochs, recipe=Recipe(lr=LR),
            seed=self.seed,
        )  # fmt: skip
        return round(time.process_time() - started, 1)


def answers(model, split, count=None):
    """Return the classes that the file of a quantized network answers in ONNX Runtime.

    One that multiplies floats is asked itself.
    """
    answer = partial(logits, model, quick=True)
    if all_integer(model):
        answer = integer_answer(prepared(model, split.batch(torch.arange(2))[0]), model)
        assert answer is not None
    parts = torch.arange(count or len(split)).split(250)
    return torch.cat([answer(split.batch(index)[0]).argmax(1) for index in parts])


def converted(model):
    """Return a copy of a network in the form that its file has."""
    twin = copy.deepcopy(model)
    convert_to_integers(twin)
    return twin


def named(policy):
    """Return a policy in words, layer by layer."""
    return {name: str(bits) for name, bits in policy.items()}
