"""Evaluate thousands of policies of one network for HAQ-Bench.

python results/benchmarks/haq_bench.py resnet20 --weights W.safetensors --data cifar10:DIR

Writes results/haq-bench/NAME.parquet; results/haq-bench/README.md says what the columns mean. The
model is any that ``haq search`` takes; so the same
command makes a table of a network of one's own. Policies follow from --seed alone.

Three stages, all of them unless --stage says otherwise; what the first two measure stands in
--folder as it comes, a line a policy, and the same command goes on from there:

cheap    every policy: statistics corrected, nothing trained, divergence and accuracy on --images
trained  random policies and the best of doubted sensitivities at the first two budgets: on other
         images too, after a few steps of training, and after epochs of 2 500 images of two seeds
write    the costs on every target, and the parquet file
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

from haq.allocation.budgets import parse_budget
from haq.allocation.costs import total
from haq.allocation.policy import Bits, Policy
from haq.allocation.sensitivities import Sensitivity, objective, widths
from haq.bench.policies import Drawn, Setting, drawn
from haq.bench.table import Bench, Subject, subject_of, write_bench
from haq.datasets import Data, load
from haq.distillation.kd import divergence
from haq.errors import HaqError
from haq.formats.onnx.runtime import integer_answer, prepared
from haq.hw_profiles import TARGETS
from haq.hw_profiles import load as load_target
from haq.models.weights import load_weights
from haq.network.graph import Graph
from haq.quantization.calibration import Clips, calibrate
from haq.quantization.fake_quant import quantize
from haq.quantization.second_order import second_order
from haq.quantization.statistics import Statistics, correct, statistics
from haq.reports.reference.publish import script_provenance
from haq.runs.calibration import calibration_batches, sensitivity_images
from haq.runs.evaluator import Evaluator, Recipe
from haq.runs.float_network import fresh_model
from haq.runs.job import parse_job
from haq.runs.plan import images_of, plan
from haq.training.numerics import channels_last
from haq.training.scoring import logits

CORRECTED_ON = 128
"""Training images on which statistics are corrected."""

REWARDED = 4000
"""Validation images that policies may be chosen by; the others judge."""

SETTINGS = (
    ("avg_weight_bits=3 a4", None, "avg_weight_bits=3", 4),
    ("avg_weight_bits=2.25 a4", None, "avg_weight_bits=2.25", 4),
    ("bismo-edge latency=50%w8a8", "bismo-edge", "latency=50%w8a8", None),
    ("bismo-edge latency=35%w8a8", "bismo-edge", "latency=35%w8a8", None),
    ("bismo-cloud latency=35%w8a8", "bismo-cloud", "latency=35%w8a8", None),
    ("avg_weight_bits=4 a4", None, "avg_weight_bits=4", 4),
    ("avg_weight_bits=2.5 a4", None, "avg_weight_bits=2.5", 4),
    ("size=50%w8a8", None, "size=50%w8a8", None),
)
"""Name, target, budget, activation bits: where a search is likely to be."""

RANKED = ("budget", "doubted")
"""Families of which some policies are trained."""

EPOCH, FEW_STEPS = 2500, 512
"""Training images of an epoch, and of a few steps."""


class Network(NamedTuple):
    """A float network and what its policies are evaluated with.

    Attributes:
        subject: What the table says of it.
        data: Images; ``order`` are those of its validation split in random order.
        graph: Captured.
        clips: Calibrated.
        order: (validation images,)
        answers: Of the float network to them, (validation images, classes).
        images: Those on which statistics are corrected.
        statistics: Of the float network on these.
    """

    subject: Subject
    data: Data
    graph: Graph
    clips: Clips
    order: Tensor
    answers: Tensor
    images: Tensor
    statistics: Statistics

    def network(self, policy: Policy) -> fx.GraphModule:
        """Return the network of a policy with corrected statistics."""
        model = quantize(self.graph, policy, self.clips)
        correct(model, self.graph, self.statistics, self.images)
        return model


def network_of(asked: argparse.Namespace) -> Network:
    """Return the network that was asked for."""
    data = load(asked.data)
    fields = {"model": asked.model, "width": asked.width, "act_bits": 4}
    job = parse_job(**fields, data=data.name, agent="ilp", budgets=("avg_weight_bits=4",))
    model = fresh_model(asked.model, data, asked.width, seed=0)
    load_weights(model, asked.weights)
    planned = plan(job, model.eval(), images_of(data))
    graph, seed = planned.graph, asked.seed
    clips = calibrate(graph, calibration_batches(data, job.calibration_images, seed))
    order = torch.randperm(len(data.val), generator=torch.Generator().manual_seed(seed))
    answers = torch.cat([
        logits(graph.traced, data.val.batch(index)[0], quick=True) for index in order.split(125)
    ])  # fmt: skip
    truth = data.val.labels[order]
    scored = slice(asked.images)
    subject = Subject(
        asked.name,
        graph.layers,
        {name: pairs[0] for name, pairs in planned.table.choices.items() if len(pairs) == 1},
        sum(graph.float_parameters.values()),
        float((answers[scored].argmax(1) == truth[scored]).double().mean()),
        Sensitivity("", 0, {}, {}),
        {
            "data": "CIFAR-10 (JPEG)" if data.name.startswith("cifar10") else data.name,
            "width": asked.width, "seed": seed,
            "float_val_accuracy": float((answers.argmax(1) == truth).double().mean()),
            "images": {"corrected": CORRECTED_ON, "scored": asked.images,
                       "rewarded": REWARDED, "epoch": EPOCH, "few_steps": FEW_STEPS},
            "settings": [list(setting) for setting in SETTINGS],
            "licence": "CC0-1.0",
            **script_provenance(),
        },
    )  # fmt: skip
    table = subject.costs()
    known = second_order(graph, clips, sensitivity_images(data, seed), widths(table.choices))
    subject = replace(subject, sensitivity=known)
    images = channels_last(torch.cat(list(calibration_batches(data, CORRECTED_ON, seed))))
    floats = statistics(graph, images, clips)
    return Network(subject, data, graph, clips, order, answers, images, floats)


def settings_of(subject: Subject) -> list[Setting]:
    """Return the budgets, with what sensitivities say of their choices."""
    settings = []
    for name, target, text, act_bits in SETTINGS:
        table = subject.costs(target, act_bits)
        hardware = load_target(target) if target else None
        budget = parse_budget(text, subject.layers, hardware, subject.float_values)
        goal = objective(subject.sensitivity, table)
        settings.append(Setting(name, table, (budget,), goal))
    return settings


def ordered(policies: list[Drawn], ranked: int, seed: int) -> tuple[list[Drawn], list[Drawn]]:
    """Return all policies, those that are trained first, the others shuffled; and these alone."""
    trained = []
    for name, *_ in SETTINGS[:2]:
        for family in RANKED:
            mine = [one for one in policies if (one.family, one.setting) == (family, name)]
            trained.append(mine[:ranked])
    first = [one for several in zip(*trained, strict=True) for one in several]
    keys = {row(one.policy) for one in first}
    rest = [one for one in policies if row(one.policy) not in keys]
    shuffled = [rest[at] for at in np.random.default_rng(seed).permutation(len(rest))]
    return [*first, *shuffled], first


def row(policy: Policy) -> str:
    """Return the bits of a policy as a text."""
    return " ".join(f"{bits.weight},{bits.act}" for bits in policy.values())


def answer_of(net: Network, model: fx.GraphModule, count: int) -> Tensor:
    """Return what the file of a network answers to the first of the validation images."""
    lowering = _lowering(net)
    answer = integer_answer(lowering, model) if lowering else None
    parts = _validation(net)[:count].split(125)
    if answer is None:
        return torch.cat([logits(model, part, quick=True) for part in parts])
    return torch.cat([answer(part) for part in parts])


_CACHE: dict[str, Any] = {}


def _lowering(net: Network) -> Any:
    if "lowering" not in _CACHE:
        highest = {name: pairs[-1] for name, pairs in net.subject.costs().choices.items()}
        _CACHE["lowering"] = prepared(net.network(highest), _validation(net)[:2])
    return _CACHE["lowering"]


def _validation(net: Network) -> Tensor:
    if "images" not in _CACHE:
        _CACHE["images"] = torch.cat([net.data.val.batch(i)[0] for i in net.order.split(500)])
    images: Tensor = _CACHE["images"]
    return images


def compared(net: Network, answers: Tensor, start: int, stop: int) -> tuple[float, float]:
    """Return divergence and accuracy on some of the validation images."""
    part = slice(start, stop)
    labels = net.data.val.labels[net.order[part]]
    right = (answers[part].argmax(1) == labels).double().mean()
    return float(divergence(answers[part], net.answers[part])), float(right)


def cheap(net: Network, policy: Policy, images: int) -> dict[str, float]:
    """Return the figures of a policy of which nothing is trained."""
    answers = answer_of(net, net.network(policy), images)
    distance, accuracy = compared(net, answers, 0, images)
    return {"divergence": distance, "accuracy": accuracy}


def untrained(net: Network, policy: Policy) -> dict[str, float]:
    """Return the figures of the same on more and on fewer images."""
    answers = answer_of(net, net.network(policy), len(net.order))
    figures = {
        f"divergence_{count}": compared(net, answers, 0, count)[0] for count in (500, 1000, 4000)
    }
    return figures | {"accuracy_4000": compared(net, answers, 0, REWARDED)[1]}


def tuned_model(net: Network, policy: Policy, images: int, seed: int) -> fx.GraphModule:
    """Return the network of a policy after an epoch of so many images.

    A few steps are not enough for the averages of BatchNorm: statistics are corrected after them.
    """
    key = f"evaluator {images} {seed}"
    if key not in _CACHE:
        recipe = Recipe(train_images=images)
        _CACHE[key] = Evaluator(net.graph, net.clips, net.data, recipe, seed)
    model: fx.GraphModule = _CACHE[key].tuned(policy)
    if images == FEW_STEPS:
        correct(model, net.graph, net.statistics, net.images)
    return model


def tuned(net: Network, policy: Policy, images: int, seed: int, name: str) -> dict[str, float]:
    """Return the figures after an epoch of so many images, on the images that judge and others."""
    answers = answer_of(net, tuned_model(net, policy, images, seed), len(net.order))
    judged = compared(net, answers, REWARDED, len(net.order))
    chosen = compared(net, answers, 0, REWARDED)
    return {
        f"{name}_divergence": judged[0], f"{name}_accuracy": judged[1],
        f"{name}_divergence_4000": chosen[0], f"{name}_accuracy_4000": chosen[1],
        f"{name}_divergence_1000": compared(net, answers, 0, 1000)[0],
    }  # fmt: skip


STAGES: dict[str, Callable[[Network, Policy], dict[str, float]]] = {
    "untrained": untrained,
    "trained": lambda net, policy: tuned(net, policy, EPOCH, 0, "trained"),
    "steps": lambda net, policy: tuned(net, policy, FEW_STEPS, 0, "steps"),
    "again": lambda net, policy: tuned(net, policy, EPOCH, 1, "again"),
}
"""What is measured of the policies that are trained, in this order."""


def measure(
    place: Path, work: Iterator[tuple[str, Policy, Callable[[], dict[str, float]]]], minutes: float
) -> None:
    """Measure what is not measured yet, a line each, until the CPU minutes are spent."""
    known = rows(place)
    spent = sum(line["cpu_seconds"] for line in known.values())
    with place.open("a", encoding="utf-8") as file:
        for what, policy, figures in work:
            if (what, row(policy)) in known:
                continue
            if spent > 60 * minutes:
                print(f"{place.name}: {spent / 60:.1f} CPU minutes are spent", flush=True)
                return
            started = time.process_time()
            line: dict[str, Any] = {"what": what, "policy": row(policy), **figures()}
            line["cpu_seconds"] = round(time.process_time() - started, 3)
            spent += line["cpu_seconds"]
            file.write(json.dumps(line) + "\n")
            file.flush()


def rows(place: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the lines of a file so far, the torn one at its end left out."""
    lines = place.read_text("utf-8").splitlines(keepends=True) if place.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return {(line["what"], line["policy"]): line for line in whole}


def write(subject: Subject, policies: list[Drawn], asked: argparse.Namespace) -> Path:
    """Write the parquet file of what is measured so far."""
    known: dict[str, dict[str, float]] = {}
    for name in ("cheap", "trained"):
        for (_, policy), line in rows(asked.folder / f"{name}.jsonl").items():
            figures = {k: v for k, v in line.items() if k not in ("what", "policy", "cpu_seconds")}
            known.setdefault(policy, {}).update(figures)
    there = [one for one in policies if "divergence" in known.get(row(one.policy), {})]
    names = list(dict.fromkeys(name for figures in known.values() for name in figures))
    figures = {
        name: np.array([known[row(one.policy)].get(name, math.nan) for one in there])
        for name in names
    }
    figures |= costs(subject, [one.policy for one in there])
    path = Path("results/haq-bench") / f"{asked.name}.parquet"
    write_bench(Bench(subject, there, figures), path)
    return path


def costs(subject: Subject, policies: list[Policy]) -> dict[str, np.ndarray]:
    """Return what policies cost on every target; NaN where it cannot run one."""
    columns = {}
    for target in (None, *TARGETS):
        try:
            table = subject.costs(target)
        except HaqError as error:
            print(f"{target} is left out: {error}", flush=True)
            continue
        for quantity in table.rows:
            if target is None or quantity not in ("size", "avg_weight_bits", "bops"):
                name = quantity if target is None else f"{target}:{quantity}"
                columns[name] = np.array([_cost(table, one, quantity) for one in policies])
    return columns


def _cost(table: Any, policy: Mapping[str, Bits], quantity: str) -> float:
    try:
        return total(table, policy, quantity)
    except HaqError:
        return math.nan


def asked_for() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="As for haq search.")
    parser.add_argument("--name", help="Of the table; that of the model without it.")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1000, help="Validation images that score.")
    parser.add_argument("--policies", type=int, help="At most so many.")
    parser.add_argument("--ranked", type=int, default=20, help="Trained policies of each kind.")
    parser.add_argument("--stage", choices=["cheap", "trained", "write"])
    parser.add_argument("--minutes", type=float, default=1e9, help="CPU minutes of a stage.")
    parser.add_argument("--folder", type=Path, help="Of the lines; runs/haq-bench/NAME without it.")
    asked = parser.parse_args()
    asked.name = asked.name or asked.model.partition(":")[2] or asked.model
    asked.folder = asked.folder or Path("runs/haq-bench") / asked.name
    return asked


def main() -> None:
    """Evaluate, train, write."""
    asked = asked_for()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    known = asked.folder / "subject.json"
    if asked.stage == "write" and known.exists():
        subject = subject_of(json.loads(known.read_text("utf-8")))
    else:
        net = network_of(asked)
        subject = net.subject
        known.write_text(json.dumps(asdict(subject)), "utf-8")
    every = drawn(subject.costs(), settings_of(subject), asked.seed)
    policies, trained = ordered(every, asked.ranked, asked.seed)
    policies = policies[: asked.policies]
    print(f"{len(policies)} policies, of which {len(trained)} are trained", flush=True)
    if asked.stage in (None, "cheap"):
        work = (
            ("cheap", one.policy, lambda p=one.policy: cheap(net, p, asked.images))
            for one in policies
        )
        measure(asked.folder / "cheap.jsonl", work, asked.minutes)
    if asked.stage in (None, "trained"):
        work = (
            (name, one.policy, lambda p=one.policy, stage=stage: stage(net, p))
            for name, stage in STAGES.items() for one in trained
        )  # fmt: skip
        measure(asked.folder / "trained.jsonl", work, asked.minutes)
    if asked.stage in (None, "write"):
        print(write(subject, policies, asked))


if __name__ == "__main__":
    main()
