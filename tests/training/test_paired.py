"""Drops of accuracy between two networks on the same images, and how large they may truly be."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multinomial

from haq.training.paired import Paired, correct_answers, largest_drop, paired


class Split:
    labels = torch.tensor([0, 1, 1, 0, 1])

    def __len__(self):
        return 5

    def batch(self, index, generator=None):
        return torch.eye(2)[self.labels[index]] * 2, self.labels[index]


def test_lost_and_gained_by_hand():
    first = torch.tensor([True, True, True, False])
    second = torch.tensor([False, True, False, True])
    pairs = paired(first, second)
    assert pairs == Paired(4, 0.75, 2, 1)
    assert pairs.drop == 0.25
    assert pairs.error == pytest.approx(math.sqrt(3 - 1 / 4) / 4)


def test_the_answers_of_every_batch_are_compared_with_the_labels():
    assert correct_answers(lambda x: x, Split(), batch=2).tolist() == [True] * 5
    assert correct_answers(lambda x: -x, Split(), batch=3).tolist() == [False] * 5


@pytest.mark.parametrize(("lost", "gained", "low", "high"), [(1, 0, -0.0594, 0.1181)])
def test_the_interval_of_tangos_article(lost, gained, low, high):
    """44 patients of whom one preferred the other treatment: -0.059 to 0.118 at 95 %."""
    assert largest_drop(Paired(44, 1.0, lost, gained), 0.025) == pytest.approx(high, abs=1e-4)
    assert -largest_drop(Paired(44, 1.0, gained, lost), 0.025) == pytest.approx(low, abs=1e-4)


def test_where_nothing_is_lost_the_bound_falls_with_the_images():
    z = 1.6448536
    for images in (10, 359, 5000):
        bound = largest_drop(Paired(images, 1.0, 0, 0), 0.05)
        assert bound == pytest.approx(z**2 / (images + z**2), rel=1e-6)


@pytest.mark.parametrize("truth", [(0.1, 0.0), (0.05, 0.02), (0.2, 0.1), (0.03, 0.03)])
def test_the_true_drop_is_above_the_bound_as_seldom_as_promised(truth):
    """Every outcome of 40 images, by its probability; a score test keeps its level nearly."""
    lost, gained = truth
    missed = sum(
        multinomial.pmf([b, c, 40 - b - c], 40, [lost, gained, 1 - lost - gained])
        for b in range(41) for c in range(41 - b)
        if largest_drop(Paired(40, 1.0, b, c), 0.05) < lost - gained
    )  # fmt: skip
    assert missed < 0.06


@given(st.integers(1, 500), st.data())
def test_the_bound_is_above_the_drop_and_grows_with_what_is_lost(images, data):
    lost = data.draw(st.integers(0, images))
    gained = data.draw(st.integers(0, images - lost))
    pairs = Paired(images, 1.0, lost, gained)
    bound = largest_drop(pairs, 0.05)
    assert pairs.drop <= bound <= 1
    assert bound <= largest_drop(pairs, 0.01) + 1e-9
    if lost + gained < images:
        assert bound <= largest_drop(pairs._replace(lost=lost + 1), 0.05) + 1e-9
