"""Fingerprints: equal for equal images, else not."""

import torch

from haq.datasets import TensorSplit
from haq.datasets.fingerprint import fingerprint


def split(images, labels):
    return TensorSplit(images, labels, (0.5,), (0.5,))


IMAGES = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4


def test_equal_splits_have_equal_fingerprints():
    mark = fingerprint(split(IMAGES, LABELS))
    assert mark == fingerprint(split(IMAGES.clone(), LABELS.clone()))
    assert mark["images"] == 40 and len(mark["sha256"]) == 64


def test_other_labels_images_or_counts_have_others():
    swapped = LABELS.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    marks = [
        fingerprint(split(*pair))["sha256"]
        for pair in (
            (IMAGES, LABELS), (IMAGES, swapped), (IMAGES.flip(0), LABELS),
            (IMAGES[:-1], LABELS[:-1]),
        )
    ]  # fmt: skip
    assert len(set(marks)) == 4


def test_a_split_of_one_image_has_one():
    assert fingerprint(split(IMAGES[:1], LABELS[:1]))["images"] == 1
