"""Which sensitivities rank policies as their accuracy does, and which score ranks them soonest.

python results/benchmarks/sensitivity.py --weights W.safetensors --data cifar10:DIR

Writes results/reference/sensitivity.json: Spearman's rank correlations over the policies of random
search, weights only, with the accuracy of the quantized network on validation images, rounded only
and with its statistics corrected. No test image is read.
"""

import argparse
import time

import torch
from scipy.stats import spearmanr
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from haq.agents import play
from haq.agents.random_search import RandomSearch
from haq.allocation.budgets import Budget
from haq.allocation.choices import permitted
from haq.allocation.costs import tabulate
from haq.allocation.policy import FLOAT, Bits
from haq.allocation.sensitivities import widths
from haq.allocation.trials import Score
from haq.datasets import load
from haq.distillation.kd import divergence
from haq.envs.quantization import QuantizationEnv
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.quantizer import BITS
from haq.quantization.quantizer import quantize as rounded
from haq.quantization.sensitivity import sensitivity
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs import folder as results
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.evaluator import CORRECTED_ON, corrected
from haq.runs.float_network import fresh_model
from haq.runs.places import Places
from haq.runs.samples import Part, freeze
from haq.training.scoring import logits, score

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet20")
parser.add_argument("--weights", required=True)
parser.add_argument("--data", required=True)
parser.add_argument("--policies", type=int, default=100)
parser.add_argument("--bits", type=float, default=3.0)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int, default=1)
asked = parser.parse_args()

torch.set_num_threads(asked.threads)
data = load(asked.data)
model = fresh_model(asked.model, data, width=1.0, seed=0)
load_weights(model, asked.weights)
graph = trace(model.eval(), torch.zeros(1, *data.shape))
plain = torch.cat(list(calibration_batches(data, CORRECTED_ON, asked.seed)))
images = sensitivity_images(data, asked.seed)
clips = calibrate(graph, [plain], "mse")
table = tabulate(graph.layers, permitted(graph.layers, None, act_bits=8))
weights = {layer.name: graph.traced.get_parameter(f"{layer.name}.weight") for layer in graph.layers}
float_logits = logits(graph.traced, images)


def changes(name, bits):
    """Return what rounding adds to a layer's weights."""
    clip = clips.weights[name][bits].view(-1, *(1,) * (weights[name].dim() - 1))
    return (rounded(weights[name], bits, clip) - weights[name]).detach()


def kl():
    """Divergence of the class distribution, statistics of the images."""
    return sensitivity(graph, clips, images, widths(table.choices)).weights


def kl_running():
    """The same with the statistics as they are."""
    train, _BatchNorm.train = _BatchNorm.train, lambda self, mode=True: self
    try:
        return kl()
    finally:
        _BatchNorm.train = train


def gradient():
    """Half the sum of Fisher information times squared change: gradients of single images."""
    names = {f"{name}.weight": weight.detach() for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(asked.seed)
    drawn = torch.multinomial(float_logits.softmax(1), 1, generator=generator)[:, 0]

    def loss(own, image, label):
        answer = functional_call(graph.traced, own, image[None])
        return functional.cross_entropy(answer, label[None])

    squares = {name: torch.zeros_like(value) for name, value in names.items()}
    for some, labels in zip(images.split(16), drawn.split(16), strict=True):
        found = vmap(grad(loss), in_dims=(None, 0, 0))(names, some, labels)
        for name, value in found.items():
            squares[name] += value.square().sum(0) / len(images)
    return {
        name: {
            bits: 0.5 * (squares[f"{name}.weight"] * changes(name, bits).square()).sum().item()
            for bits in BITS
        }
        for name in weights
    }


def hessian():
    """Mean eigenvalue of the loss's Hessian (Hutchinson) times squared change."""
    traces = dict.fromkeys(weights, 0.0)
    generator = torch.Generator().manual_seed(asked.seed)
    labels = float_logits.argmax(1)
    own = list(weights.values())
    for some, truth in zip(images.split(32), labels.split(32), strict=True):
        loss = functional.cross_entropy(graph.traced(some), truth)
        slopes = torch.autograd.grad(loss, own, create_graph=True)
        for _ in range(4):
            signs = [
                torch.randint(2, w.shape, generator=generator).to(w.dtype).mul_(2).sub_(1)
                for w in own
            ]
            products = torch.autograd.grad(slopes, own, signs, retain_graph=True)
            for name, sign, product in zip(weights, signs, products, strict=True):
                traces[name] += float((sign * product).sum()) * len(some) / len(images) / 4
    return {
        name: {
            bits: traces[name] / weights[name].numel() * float(changes(name, bits).square().sum())
            for bits in BITS
        }
        for name in weights
    }


record = {
    "what": __doc__.splitlines()[0],
    "model": asked.model, "data": data.name, "seed": asked.seed, "policies": asked.policies,
    "avg_weight_bits": asked.bits, "images": len(images), "measures": {}, "scores": {},
    **script_provenance(),
}  # fmt: skip

found = {}
for measure in (kl, kl_running, gradient, hessian):
    started = time.process_time()
    found[measure.__name__] = measure()
    seconds = time.process_time() - started
    record["measures"][measure.__name__] = {
        "what": measure.__doc__, "cpu_seconds": round(seconds, 1)
    }  # fmt: skip
    print(measure.__name__, seconds, flush=True)

half = freeze(Part(data.val, torch.arange(0, len(data.val) // 2)))
other = freeze(Part(data.val, torch.arange(len(data.val) // 2, len(data.val))))
few = freeze(Part(data.val, torch.arange(500)))
few_logits = logits(graph.traced, few.images)
make = corrected(Places(graph, clips), plain)
rows = []


def evaluate(policy):
    """Note the accuracies of a policy and what the measures say of it."""
    policy = {name: Bits(bits.weight, FLOAT) for name, bits in policy.items()}
    network = make(policy)
    sums = {
        name: sum(values[layer][bits.weight] for layer, bits in policy.items())
        for name, values in found.items()
    }
    first = score(network, few, quick=True)
    rows.append(
        sums
        | {
            "corrected": score(network, half, quick=True).accuracy,
            "held out": score(network, other, quick=True).accuracy,
            "rounded": score(quantize(graph, policy, clips), half, quick=True).accuracy,
            "accuracy": first.accuracy,
            "loss": -first.loss,
            "agreement": -float(divergence(logits(network, few.images), few_logits)),
        }
    )
    print(len(rows), rows[-1], flush=True)
    return Score(0.0)


env = QuantizationEnv(table, evaluate, [Budget("avg_weight_bits", asked.bits)])
list(play(RandomSearch(env, asked.policies, asked.seed), env, asked.policies))


def correlation(one, other):
    """Return Spearman's rank correlation of two columns."""
    return round(float(spearmanr([r[one] for r in rows], [r[other] for r in rows]).statistic), 4)


for name, entry in record["measures"].items():
    entry["with_accuracy_corrected"] = -correlation(name, "corrected")
    entry["with_accuracy_rounded"] = -correlation(name, "rounded")
for name in ("accuracy", "loss", "agreement"):
    record["scores"][name] = {
        "images": len(few), "with_accuracy_on_other_images": correlation(name, "held out"),
        "other_images": len(other),
    }  # fmt: skip
for column in ("corrected", "rounded"):
    values = sorted(row[column] for row in rows)
    record[f"accuracy_{column}"] = {"least": values[0], "greatest": values[-1]}
results.write_json(REFERENCE / "sensitivity.json", record)
print({"measures": record["measures"], "scores": record["scores"]})
