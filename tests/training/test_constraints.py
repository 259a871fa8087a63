"""Several constraints act as one, in their order."""

import torch
from torch import nn

from haq.datasets.tensors import TensorSplit
from haq.training.constraints import together
from haq.training.train import train


class Noted:
    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def resume(self):
        self.notes.append(f"{self.name} resume")

    def before_step(self, step):
        self.notes.append(f"{self.name} step {step}")

    def before_update(self):
        self.notes.append(f"{self.name} update")

    def apply(self):
        self.notes.append(f"{self.name} apply")


def split(count=24):
    images = torch.randint(256, (count, 1, 4, 4), dtype=torch.uint8)
    return TensorSplit(images, torch.arange(count) % 3, (0.5,), (0.3,), lambda x, g: x)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def test_constraints_act_in_their_order_at_every_step():
    notes = []
    both = together(Noted("a", notes), None, Noted("b", notes))
    train(network(), split(), epochs=1, lr=0.01, seed=0, batch=12, constraint=both)
    of_a_step = [f"{n} {what}" for what in ("step {}", "update", "apply") for n in "ab"]
    assert notes == [note.format(step) for step in (0, 1) for note in of_a_step]


def test_no_constraint_is_none():
    assert together() is None and together(None, None) is None
