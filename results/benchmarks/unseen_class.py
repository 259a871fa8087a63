"""A student that never saw a three learns threes from its teacher's answers.

python results/benchmarks/unseen_class.py

Writes results/reference/unseen_class.json. The digits of scikit-learn; the teacher is trained on
all of them, the students on those that are no threes. A student with distillation sees the
teacher's answers alone, one without the labels alone; both see the same images in the same order.
"""

import argparse

import torch
from torch import nn

from haq.datasets import load
from haq.datasets.tensors import TensorSplit
from haq.distillation.settings import distillation_of
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json
from haq.training.distilling import distilling
from haq.training.objective import labels_alone
from haq.training.scoring import logits, score
from haq.training.train import train

parser = argparse.ArgumentParser()
parser.add_argument("--seeds", type=int, default=5)
parser.add_argument("--temperature", type=float, default=8)
parser.add_argument("--without", type=int, default=3)
asked = parser.parse_args()

torch.set_num_threads(1)
data = load("digits")
images, labels = data.train.images, data.train.labels
recipe = {"epochs": 20, "lr": 0.05, "batch": 64}


def mlp(hidden, seed):
    """Return a network with one hidden layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def split(chosen):
    """Return training images, not augmented."""
    return TensorSplit(images[chosen], labels[chosen], data.mean, data.std)


def recall(network):
    """Return the share of the test images of the class left out that are recognised."""
    those, _ = data.test.batch((data.test.labels == asked.without).nonzero().flatten())
    return float((logits(network, those).argmax(1) == asked.without).float().mean())


teacher = mlp(128, 0)
train(teacher, split(labels >= 0), seed=0, **recipe)
taught = distilling(teacher, distillation_of({"kd": 1, "temperature": asked.temperature}))
rows = []
for seed in range(asked.seeds):
    for name, objective in (("distillation", taught), ("labels", labels_alone)):
        student = mlp(64, seed + 1)
        train(student, split(labels != asked.without), seed=seed, objective=objective, **recipe)
        row = {"seed": seed, "learned from": name, "recall": recall(student),
               "test_accuracy": score(student, data.test).accuracy}  # fmt: skip
        rows.append(row)
        print(row)
write_json(
    REFERENCE / "unseen_class.json",
    {
        "what": __doc__.splitlines()[0], "class": asked.without, "recipe": recipe,
        "temperature": asked.temperature, "teacher_recall": recall(teacher),
        "teacher_test_accuracy": score(teacher, data.test).accuracy, "rows": rows,
        **script_provenance(),
    },
)  # fmt: skip
