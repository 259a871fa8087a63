"""A wide network with few weights left against a narrow one with as many."""

import torch
from torch import nn

from haq.compression.magnitude import Pruner, schedule_over
from haq.datasets import load
from haq.datasets.tensors import TensorSplit
from haq.training.scoring import score
from haq.training.train import train


def mlp(hidden, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def test_large_and_sparse_beats_small_and_dense_at_equal_weights():
    data = load("digits")
    plain = TensorSplit(data.train.images, data.train.labels, data.mean, data.std)
    recipe = {"epochs": 12, "lr": 0.1, "batch": 64}
    gains = []
    for seed in range(3):
        small, large = mlp(4, seed), mlp(128, seed)
        train(small, plain, seed=seed, **recipe)
        # 296 weights of 9472 are left, as many as the small network has.
        shares = dict.fromkeys(("1", "3"), 1 - 4 / 128)
        schedule = schedule_over(shares["1"], steps=12 * 17)
        pruner = Pruner(large, shares, schedule)
        train(large, plain, seed=seed, constraint=pruner, **recipe)
        left = sum(int((large[at].weight != 0).sum()) for at in (1, 3))
        assert left == 74 * 4
        gains.append(score(large, data.test).accuracy - score(small, data.test).accuracy)
    assert sum(gains) / 3 > 0.01
