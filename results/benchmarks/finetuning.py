"""How a quantized network is best fine-tuned: one factor at a time, then together.

python results/benchmarks/finetuning.py --weights W.safetensors --data cifar10:DIR --ways FILE

Policies are frozen: the ones of integer programming (ilp), and uniform bits lowered to fit, both
with the first and the last layer at 8 bits and 4-bit activations. A way is a line of FILE, JSON
with what it changes of ``Way``. Each is trained, scored on the 5000 validation images, which the
float network must not have seen, and compared in pairs with the way that lacks one of its changes
(``basis``), on the same policy: accuracy, and divergence from the float network in nats. Rows are
added to results/reference/finetuning.json; those that stand there are left out. Rows without a
basis are of commit 12909a2 and older, and stand against the defaults of ``Way`` (against_default)
or the way before learned rounding (against_before).
"""

import argparse
import hashlib
import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from finetuning_starts import block_by_block, progressive
from torch.nn.modules.batchnorm import _BatchNorm

from haq.allocation.budgets import fit, solve, uniform_policy
from haq.allocation.sensitivities import objective as damages
from haq.allocation.sensitivities import widths
from haq.datasets import load
from haq.distillation.settings import distillation_of, read_distillation
from haq.models.weights import load_weights
from haq.network.inputs import joined
from haq.quantization import adaround as adaround_module
from haq.quantization.adaround import adaround
from haq.quantization.calibration import calibrate, load_clips, save_clips
from haq.quantization.fake_quant import Quantized, quantize
from haq.quantization.learned_steps import learned_steps
from haq.quantization.quantizer import step
from haq.quantization.second_order import second_order
from haq.quantization.statistics import correct, statistics
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.float_network import fresh_model
from haq.runs.folder import write_json
from haq.runs.job import parse_job
from haq.runs.plan import images_of, plan
from haq.runs.samples import Part, freeze
from haq.training.distilling import distilling
from haq.training.norms import measure_norms
from haq.training.numerics import channels_last, in_channels_last
from haq.training.objective import Batch, Moment
from haq.training.scoring import logits


@dataclass(frozen=True)
class Way:
    """How a network is fine-tuned; the defaults are those of haq before learned rounding alone.

    Above 3 bits those began with nearest levels.

    Attributes:
        agent: Of the policy: ilp, or uniform.
        bits: Mean bits of the weights.
        images: Training images of the epoch.
        passes: How often each is seen.
        start: Of the weights: nearest levels, or learned rounding: of all layers at once
            (adaround), in half the steps after block by block (blocks), or in a third of the steps
            each at 4, 3 and the asked bits (progressive).
        rounding_steps: In which that is learned.
        rounding_lr: The highest there, in gaps between levels.
        rounding_batch: Images a step there.
        rounding_images: That are seen there.
        rounding_temperature: Of the logits there.
        reach: By how many levels a weight moves at most beyond its two neighbours there.
        beside: Rate of what is learned beside the rounding, as a share of ``rounding_lr``: scales
            and biases of BatchNorm, and clips of activations; 0 leaves them as they are.
        fresh: Whether images are augmented anew each time the rounding sees them.
        mixed: Share of the batches there whose images are mixed with each other.
        optimizer: sgd (Nesterov, momentum .9), adam, or adam whose rate is in steps of each layer's
            quantizer (steps).
        lr: The highest.
        weight_decay: Of the weights of layers.
        batch: Images a step.
        warm_up: Share of the steps in which the rate rises.
        schedule: How it falls to 0: linear or cosine.
        loss: As ``--distill``.
        labels: Weight of the labels; that of kd is the rest.
        temperature: Of kd.
        steps: Rate of the learned steps over that of the weights; 0 leaves them as they are.
        norms: Whether statistics of BatchNorm are those of a batch (trained) or, corrected before,
            stay (frozen).
        after: What happens to the statistics at the end: nothing, or corrected.
        augmented: Whether training images are.
        average: Share of the steps, at the end, over which weights are averaged.
        seed: Of images, order and augmentation.
    """

    agent: str = "ilp"
    bits: float = 2.25
    images: int = 5000
    passes: int = 1
    start: str = "adaround"
    rounding_steps: int = 300
    rounding_lr: float = 0.005
    rounding_batch: int = 64
    rounding_images: int = 5000
    rounding_temperature: float = 4.0
    reach: int = 0
    beside: float = 0.0
    fresh: bool = False
    mixed: float = 0.0
    optimizer: str = "sgd"
    lr: float = 0.005
    weight_decay: float = 1e-4
    batch: int = 64
    warm_up: float = 0.1
    schedule: str = "linear"
    loss: str = "kd"
    labels: float = 0.1
    temperature: float = 4.0
    steps: float = 0.0
    norms: str = "trained"
    after: str = "corrected"
    augmented: bool = True
    average: float = 0.0
    seed: int = 0


LEARNED = {
    "start": "adaround", "rounding_steps": 600, "rounding_lr": 0.005, "rounding_batch": 32,
    "beside": 0.2, "fresh": True, "mixed": 0.0, "rounding_images": 5000,
    "rounding_temperature": 4.0, "reach": 0,
}  # fmt: skip
"""How the rounding is learned by default now."""

OF_EPOCH = (
    "passes", "optimizer", "lr", "weight_decay", "batch", "warm_up", "schedule", "loss", "labels",
    "temperature", "steps", "norms", "after", "augmented", "average",
)  # fmt: skip

parser = argparse.ArgumentParser()
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--ways", type=Path, required=True)
parser.add_argument("--val-images", type=int, default=5000)
parser.add_argument("--folder", type=Path, default=Path("results/finetuning"), help="Of caches.")
parser.add_argument("--minutes", type=float, default=40, help="Of CPU, for all runs together.")
parser.add_argument("--out", type=Path, default=REFERENCE / "finetuning.json")


class Study:
    """The float network, its policies, and what is used by several ways."""

    def __init__(self, asked):
        """Read data and weights; calibrate."""
        self.asked = asked
        asked.folder.mkdir(parents=True, exist_ok=True)
        self.data = load(asked.data)
        self.model = fresh_model("resnet20", self.data, width=1.0, seed=0)
        load_weights(self.model, asked.weights)
        self.model.eval()
        self.planned = {}
        self.graph = self.plan(3.0).graph
        file = asked.folder / "clips.safetensors"
        if not file.exists():
            save_clips(calibrate(self.graph, calibration_batches(self.data, 512, 0), "kl"), file)
        self.clips = load_clips(file)
        self.plain = channels_last(joined(list(calibration_batches(self.data, 256, 0))))
        self.floats = statistics(self.graph, self.plain, self.clips)
        self.validation = freeze(Part(self.data.val, torch.arange(asked.val_images)))
        self.truth = self.answers(self.graph.traced, self.validation)
        self.damage, self.frozen, self.taught, self.policies = None, {}, {}, {}

    def plan(self, bits):
        """Return the plan of a search at mean bits of the weights."""
        if bits not in self.planned:
            job = parse_job(
                model="resnet20", data="cifar10", budgets=(f"avg_weight_bits={bits:g}",),
                act_bits=4, agent="ilp", evaluation="cheap",
            )  # fmt: skip
            self.planned[bits] = plan(job, self.model, images_of(self.data))
        return self.planned[bits]

    def policy(self, agent, bits):
        """Return the policy of an agent, which is found once."""
        if (agent, bits) not in self.policies:
            self.policies[agent, bits] = self.new_policy(agent, bits)
        return self.policies[agent, bits]

    def new_policy(self, agent, bits):
        """Return the policy of an agent."""
        planned = self.plan(bits)
        if agent == "uniform":
            return fit(
                uniform_policy(planned.table, math.ceil(bits)), planned.table, planned.budgets
            )
        if self.damage is None:
            images = sensitivity_images(self.data, 0)
            asked = widths(planned.table.choices)
            self.damage = second_order(self.graph, self.clips, images, asked)
        return solve(damages(self.damage, planned.table), planned.table, planned.budgets)

    def answers(self, model, split):
        """Return what a network gives for the images of a split, (N, classes)."""
        parts = torch.arange(len(split)).split(125)
        return torch.cat([logits(model, split.batch(i)[0], quick=True) for i in parts])

    def images(self, way):
        """Return the training images of a way and the teacher's answers to them."""
        key = (way.images, way.augmented, way.seed)
        if key not in self.frozen:
            generator = torch.Generator().manual_seed(way.seed)
            chosen = torch.randperm(len(self.data.train), generator=generator)[: way.images]
            part = Part(self.data.train, chosen)
            self.frozen = {key: freeze(part, generator if way.augmented else None)}
            kept = self.answers(self.graph.traced, self.frozen[key])
            self.taught = {key: lambda index, images: kept[index]}
        return self.frozen[key], self.taught[key]

    def start(self, way):
        """Return the network before fine-tuning, its statistics corrected."""
        policy = self.policy(way.agent, way.bits)
        model = quantize(self.graph, policy, self.clips)
        correct(model, self.graph, self.floats, self.plain)
        if way.start != "nearest":
            file = self.asked.folder / start_name(way)
            if not file.exists():
                model = self.rounded(way, model)
                torch.save(model.state_dict(), file)
            model.load_state_dict(torch.load(file))
        return model

    def rounded(self, way, model):
        """Return a network whose rounding was learned."""
        seen = replace(way, images=way.rounding_images, augmented=True)
        if way.fresh:
            generator = torch.Generator().manual_seed(way.seed)
            chosen = torch.randperm(len(self.data.train), generator=generator)
            split = Mixed(Part(self.data.train, chosen[: way.rounding_images]), way.mixed)
        else:
            split, _ = self.images(seen)
        told = {
            "batch": way.rounding_batch, "lr": way.rounding_lr, "beside": way.beside,
            "seed": way.seed,
        }  # fmt: skip
        adaround_module.TEMPERATURE = way.rounding_temperature
        adaround_module._INSIDE = (1e-3 - way.reach, 1 - 1e-3 + way.reach)
        if way.start == "progressive":
            policies = [self.policy(way.agent, bits) for bits in (4, 3, way.bits)]
            steps = way.rounding_steps // 3
            return progressive(
                self.graph, policies, self.clips, self.floats, self.plain,
                lambda model: adaround(model, self.graph, split, steps=steps, **told),
            )  # fmt: skip
        steps = way.rounding_steps // (2 if way.start == "blocks" else 1)
        if way.start == "blocks":
            block_by_block(model, self.graph, split, steps=steps, **told)
        adaround(model, self.graph, split, steps=steps, **told)
        return model

    def tuned(self, way):
        """Return the network after the epoch of a way."""
        model = in_channels_last(self.start(way))
        if way.images:
            split, answers = self.images(way)
            learning = learned_steps(model) if way.steps else nullcontext()
            with learning as learned:
                self.train(way, model, split, answers, learned)
            if way.after == "corrected":
                measure_norms(model, split, seed=way.seed)
        return model

    def train(self, way, model, split, answers, learned):
        """Train a network in place."""
        model.train()
        for module in model.modules():
            if isinstance(module, _BatchNorm) and way.norms == "frozen":
                module.eval()
        minimized = objective_of(way, self.graph.traced, answers)(
            model, lambda: split.batch(torch.arange(2))[0], 1
        )
        optimizer, rates = optimizer_of(way, model, learned.clips if learned else [])
        generator = torch.Generator().manual_seed(way.seed + 1)
        orders = [torch.randperm(len(split), generator=generator) for _ in range(way.passes)]
        batches = [part for order in orders for part in order.split(way.batch) if len(part) > 1]
        weights = Averaged(model, (1 - way.average) * len(batches) if way.average else math.inf)
        for number, index in enumerate(batches):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share(way, number, len(batches))
            pictures, labels = split.batch(index, generator)
            optimizer.zero_grad()
            moment = Moment(number, len(batches), 0, 1)
            terms = minimized.terms(Batch(index, channels_last(pictures), labels), moment)
            torch.stack([*terms.values()]).sum().backward()
            optimizer.step()
            if learned:
                learned.apply()
            weights.add(number)
        weights.apply()
        model.eval()

    def scores(self, model):
        """Return for each validation image whether it is right, and the divergence, (N,) each."""
        answers = self.answers(model, self.validation).double()
        p = self.truth.double().log_softmax(1)
        away = (p.exp() * (p - answers.log_softmax(1))).sum(1)
        return answers.argmax(1) == self.validation.labels, away


class Mixed:
    """Images of a split, some batches of them mixed with each other."""

    def __init__(self, split, share):
        """Mix a share of the batches."""
        self.split, self.share = split, share

    def __len__(self):
        """Return the number of images."""
        return len(self.split)

    def batch(self, index, generator=None):
        """Return images at ``index``, perhaps each mixed with another."""
        images, labels = self.split.batch(index, generator)
        if self.share and float(torch.rand((), generator=generator)) < self.share:
            other = torch.randperm(len(images), generator=generator)
            part = torch.rand(len(images), 1, 1, 1, generator=generator)
            images = part * images + (1 - part) * images[other]
        return images, labels


class Averaged:
    """The mean of a network's parameters from some step on."""

    def __init__(self, model, since):
        """Begin with nothing."""
        self.model, self.since, self.total, self.count = model, since, None, 0

    def add(self, step):
        """Count the parameters after a step."""
        if step >= self.since:
            now = [parameter.detach().clone() for parameter in self.model.parameters()]
            self.total = now if self.total is None else torch._foreach_add(self.total, now)
            self.count += 1

    def apply(self):
        """Give the network the mean, if any step counted."""
        if self.count:
            with torch.no_grad():
                for parameter, total in zip(self.model.parameters(), self.total, strict=True):
                    parameter.copy_(total / self.count)


def objective_of(way, teacher, answers):
    """Return what a way minimizes."""
    asked = {"kd": 1 - way.labels, "labels": way.labels, "temperature": way.temperature}
    if way.loss != "kd":
        return distilling(teacher, distillation_of(read_distillation(way.loss)))
    return distilling(teacher, distillation_of(asked), answers=answers)


def optimizer_of(way, model, steps):
    """Return the optimizer, and the highest rate of each of its groups."""
    known = {id(clip) for clip in steps}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    weights = [[p for p in rest if p.dim() > 1]]
    rates = [way.lr]
    if way.optimizer == "steps":
        layers = [m for m in model.modules() if isinstance(m, Quantized)]
        weights = [[layer.weight] for layer in layers]
        sizes = [step(m.weight_bits, m.weight_clip, signed=True).mean() for m in layers]
        rates = [way.lr * float(size) for size in sizes]
    groups = [
        ({"params": p, "weight_decay": way.weight_decay}, r)
        for p, r in zip(weights, rates, strict=True)
    ]
    others = way.lr * (0.2 if way.optimizer == "steps" else 1)
    groups += [
        ({"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0}, others),
        ({"params": steps, "weight_decay": 0.0}, way.lr * way.steps),
    ]
    groups = [(group, rate) for group, rate in groups if group["params"]]
    parameters, rates = [group for group, _ in groups], [rate for _, rate in groups]
    if way.optimizer != "sgd":
        return torch.optim.AdamW(parameters, way.lr, betas=(0.9, 0.99)), rates
    return torch.optim.SGD(parameters, way.lr, momentum=0.9, nesterov=True), rates


def share(way, number, count):
    """Return the rate of a step as a share of the highest."""
    rise = max(1, round(way.warm_up * count))
    left = (count - number) / max(1, count - rise)
    if way.schedule == "cosine":
        left = 0.5 * (1 - math.cos(math.pi * min(1.0, left)))
    return min((number + 1) / rise, left)


def paired(mine, its):
    """Return by how much two networks differ on the same images, each with its 95 % interval."""
    gain = mine[0].double() - its[0].double()
    away = mine[1] - its[1]
    half = 1.96 / math.sqrt(len(gain))
    return {
        "gain": float(gain.mean()), "gain_half_interval": float(gain.std()) * half,
        "divergence_change": float(away.mean() / its[1].mean()),
        "divergence_change_half_interval": float(away.std() * half / its[1].mean()),
    }  # fmt: skip


def main(asked):
    """Try all ways of the file that have no row yet."""
    torch.set_num_threads(1)
    started = time.process_time()
    known = json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": []}
    before = known.get("cpu_seconds", 0.0)
    study = Study(asked)
    while (way := next_way(asked.ways, known["rows"])) is not None:
        spent = before + time.process_time() - started
        if spent > 60 * asked.minutes:
            print(f"stopped after {spent:.0f} CPU seconds")
            break
        begun = time.process_time()
        study.images(way) if way.images else None
        study.start(way)
        trained = time.process_time()
        scores = study.scores(study.tuned(way))
        torch.save(scores, asked.folder / f"{name_of(way)}.pt")
        row = {
            "way": described(way), "val_images": asked.val_images,
            "val_accuracy": float(scores[0].double().mean()),
            "val_divergence": float(scores[1].mean()),
            "seconds": round(time.process_time() - trained, 1),
        }  # fmt: skip
        basis = basis_of(way)
        file = asked.folder / f"{name_of(basis)}.pt"
        if file.exists() and described(basis) != described(way):
            row |= {"basis": described(basis), "against": paired(scores, torch.load(file))}
        known["rows"].append(row)
        record = {
            "what": __doc__.splitlines()[0], "model": "resnet20", "data": study.data.name,
            "weights_sha256": hashlib.sha256(Path(asked.weights).read_bytes()).hexdigest(),
            "float_val_accuracy": float(
                (study.truth.argmax(1) == study.validation.labels).double().mean()
            ),
            "cpu_seconds": round(before + time.process_time() - started, 1),
            "rows": known["rows"], **script_provenance(),
        }  # fmt: skip
        write_json(asked.out, record)
        changed = {k: v for k, v in asdict(way).items() if v != asdict(Way())[k]}
        shown = row.get("against", {})
        print(
            f"{changed} {row['val_accuracy']:.4f} {row['val_divergence']:.4f} "
            f"{shown.get('gain', 0):+.4f}±{shown.get('gain_half_interval', 0):.4f} "
            f"{shown.get('divergence_change', 0):+.3f}±"
            f"{shown.get('divergence_change_half_interval', 0):.3f} "
            f"{row['seconds']} s (all {time.process_time() - begun:.0f})",
            flush=True,
        )


def basis_of(way):
    """Return the way that lacks a change of this one, with which it is compared in pairs.

    That is the same with the default epoch; of that, the same with the default rounding; of that,
    the one without an epoch.
    """
    epoch = {name: value for name, value in asdict(Way()).items() if name in OF_EPOCH}
    if way.images and any(asdict(way)[name] != value for name, value in epoch.items()):
        return replace(way, **epoch)
    if any(asdict(way)[name] != value for name, value in LEARNED.items()):
        return replace(way, **epoch, **LEARNED)
    return replace(way, **epoch, images=0)


def described(way):
    """Return a way as its row has it; what was added to the study later only where it differs."""
    added = {"rounding_images": 5000, "rounding_temperature": 4.0, "reach": 0}
    return {k: v for k, v in asdict(way).items() if k not in added or v != added[k]}


def start_name(way):
    """Return a file name for the start of a way."""
    told = (
        way.rounding_steps, way.rounding_lr, way.beside, way.fresh, way.mixed, way.rounding_batch,
        way.seed,
    )  # fmt: skip
    name = "-".join(f"{value:g}" for value in (way.bits, *told))
    later = (way.rounding_images, way.rounding_temperature, way.reach)
    if later != (5000, 4.0, 0):
        name += "-" + "-".join(f"{value:g}" for value in later)
    return f"{way.start}-{way.agent}-{name}.pt"


def next_way(file, rows):
    """Return the first way of a file that has no row; lines may be added while others run."""
    ways = (Way(**json.loads(line)) for line in file.read_text().splitlines() if line.strip())
    done = [row["way"] for row in rows]
    return next((way for way in ways if described(way) not in done), None)


def name_of(way):
    """Return a file name for a way."""
    return hashlib.sha256(json.dumps(described(way)).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main(parser.parse_args())
