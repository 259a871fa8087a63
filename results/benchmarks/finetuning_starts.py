"""Ways to learn a rounding that ``finetuning.py`` compares with learning it all at once.

Block by block is Li et al., "BRECQ", arXiv:2102.05426; there with a loss weighted by gradients.
"""

import math

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from haq.quantization.adaround import _INSIDE, _parametrized
from haq.quantization.fake_quant import Quantized, quantize
from haq.quantization.interpreter import PartialRun
from haq.quantization.learned_steps import learned_steps
from haq.quantization.statistics import correct
from haq.training.numerics import channels_last, has_bfloat16

IMAGES = 2000
"""From which a block learns."""


def block_by_block(model, graph, split, *, steps, batch, lr, beside, seed):
    """Learn the rounding of every block from what the float network's block gives, in place.

    Args:
        model: From ``quantize``, its statistics corrected.
        graph: The float network's.
        split: Images; each is augmented once.
        steps: For each block.
        batch: Images a step.
        lr: Of the places between levels, falling to zero along a cosine.
        beside: Rate of BatchNorms and clips, as a share of ``lr``.
        seed: Of images and order.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(split), generator=generator)[:IMAGES]
    images = channels_last(split.batch(chosen, generator)[0])
    ours, its = PartialRun(model), PartialRun(graph.traced)
    start = its_start = 0
    reads, its_reads = {}, {}
    model.eval()
    for end in _ends(its):
        stop, its_stop = ours.place[end] + 1, its.place[end] + 1
        if not start:
            reads, its_reads = ours.begin(images), its.begin(images)
        with torch.no_grad():
            aims = _forward(its, its_reads, its_start, its_stop, end)
        _learn(ours, (start, stop, end), reads, aims, (steps, batch, lr, beside), generator)
        with torch.no_grad():
            gives = _forward(ours, reads, start, stop, end)
        reads, its_reads = {ours.nodes[stop - 1]: gives}, {its.nodes[its_stop - 1]: aims}
        start, its_start = stop, its_stop


def progressive(graph, policies, clips, floats, images, learn):
    """Return a network that learned its rounding at one policy after the other.

    Args:
        graph: The float network's.
        policies: From many bits to few.
        clips: From ``calibrate``.
        floats: Statistics of the float network on ``images``.
        images: On which statistics are corrected.
        learn: Learns the rounding of a network in place.
    """
    before = None
    for policy in policies:
        model = quantize(graph, policy, clips)
        if before is not None:
            state = {k: v for k, v in before.state_dict().items() if "weight_clip" not in k}
            model.load_state_dict(state, strict=False)
        correct(model, graph, floats, images)
        learn(model)
        before = model
    return model


def _ends(run):
    """Return the names of the nodes behind which nothing older is read: ends of blocks."""
    last = {node: max([run.place[u.name] for u in node.users], default=-1) for node in run.nodes}
    ends, reach, layers = [], -1, 0
    for number, node in enumerate(run.nodes[:-1]):
        kind = run.module.get_submodule(node.target) if node.op == "call_module" else None
        layers += isinstance(kind, torch.nn.Conv2d | torch.nn.Linear)
        if reach <= number and layers and node.name.startswith("relu"):
            ends, layers = [*ends, node.name], 0
        reach = max(reach, last[node])
    return [*ends, run.nodes[-2].name]


def _forward(run, reads, start, stop, end):
    """Return what the nodes from ``start`` to before ``stop`` give for all images."""
    node, parts = run.nodes[stop - 1], []
    assert node.name == end
    for index in torch.arange(len(next(iter(reads.values())))).split(250):
        values = {key: value[index] for key, value in reads.items()}
        run.advance(values, start, stop)
        parts.append(values[node])
    return torch.cat(parts)


def _learn(run, block, reads, aims, settings, generator):
    """Learn the rounding of one block."""
    (start, stop, _), (steps, batch, lr, beside) = block, settings
    targets = {n.target for n in run.nodes[start:stop] if n.op == "call_module"}
    parts = [run.module.get_submodule(target) for target in targets]
    layers = [part for part in parts if isinstance(part, Quantized)]
    places = [_parametrized(layer) for layer in layers]
    norms = [p for part in parts if isinstance(part, _BatchNorm) for p in part.parameters()]
    with learned_steps(run.module, weights=False) as clips:
        own = [p for part in parts for p in part.parameters() if any(p is c for c in clips.clips)]
        groups = [{"params": places, "lr": lr}, {"params": norms, "lr": beside * lr}]
        groups += [{"params": [clip], "lr": beside * lr * clip.item()} for clip in own]
        optimizer = torch.optim.Adam([g for g in groups if g["params"]], lr, betas=(0.9, 0.99))
        rates = [group["lr"] for group in optimizer.param_groups]
        for number in range(steps):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * number / steps))
            index = torch.randint(len(aims), (batch,), generator=generator)
            values = {key: value[index] for key, value in reads.items()}
            with torch.autocast("cpu", torch.bfloat16, has_bfloat16()):
                run.advance(values, start, stop)
            loss = (values[run.nodes[stop - 1]].float() - aims[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for place in places:
                    place.clamp_(*_INSIDE)
            clips.apply()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
