"""Statistics measured afresh are the means over batches of what the norms see."""

import pytest
import torch
from torch import nn

from haq.datasets.tensors import TensorSplit
from haq.training.norms import measure_norms


def split(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 2, 4, 4), generator=generator, dtype=torch.uint8)
    return TensorSplit(images, torch.arange(count) % 3, (0.5,) * 2, (0.3,) * 2, lambda x, g: x)


def test_one_batch_has_its_own_mean_and_variance():
    norm, images = nn.BatchNorm2d(2).eval(), split(40)
    norm.running_mean.fill_(7.0)
    measure_norms(norm, images)
    pictures, _ = images.batch(torch.arange(40))
    rows = pictures.movedim(1, -1).flatten(0, -2)
    assert torch.allclose(norm.running_mean, rows.mean(0), atol=1e-2)
    assert torch.allclose(norm.running_var, rows.var(0), rtol=1e-2)
    assert norm.momentum == 0.1 and not norm.training


def test_several_batches_count_alike():
    norm, images = nn.BatchNorm2d(2).eval(), split(250)
    measure_norms(norm, images)
    assert int(norm.num_batches_tracked) == 2
    pictures, _ = images.batch(torch.arange(250))
    assert torch.allclose(norm.running_mean, pictures.mean((0, 2, 3)), atol=1e-2)


@pytest.mark.parametrize("images, batches", [(125, 1), (126, 1), (127, 2), (2, 1)])
def test_a_batch_of_one_image_has_no_statistics(images, batches):
    norm = nn.BatchNorm2d(2).eval()
    measure_norms(norm, split(200), images)
    assert int(norm.num_batches_tracked) == batches


def test_networks_without_running_statistics_stay():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_norms(model, split(10))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
