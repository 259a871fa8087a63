"""An episode of the original HAQ code (Wang et al., CVPR 2019), written anew to be timed.

Follows github.com/mit-han-lab/haq, whose files are named at each step; none of its code is here.
Faithful: float32 in the default layout, calibration of every layer in every episode by histograms
on the host, the formulas of the rounding and what autograd makes of them, the k-means of every
layer and the means after every step, SGD on cross-entropy alone, pictures decoded into PIL and
transformed one by one, `.item()` wherever it stands there.

Different, always in the original's favour: the CPU has no copies to and from a GPU; pictures lie
decoded in memory; no worker processes, progress bar or per-step meters beyond loss and accuracy;
the list of candidate thresholds does not grow by copies. CIFAR-10 is not among its data sets: the
transforms are the usual ones (pad by 4, crop, mirror) in place of RandomResizedCrop. The accuracy
of a linear episode there is that of the training pass, its validation is commented out; here it is
validated, as the size search does and the comparison asks, and the seconds stand apart.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

WIDEST = 6.0  # lib/utils/quantize_utils.py, QModule: init_range
HISTOGRAM_BELOW = 5  # ditto, _quantize_activation and _quantize_weight: else the maximum
KMEANS_STEPS = 3  # lib/env/quantize_env.py, step: max_iter
KEPT_MEANS = 2**6  # lib/utils/quantize_utils.py, kmeans_update_model: free_high_bit
LR, MOMENTUM, DECAY = 0.001, 0.9, 4e-5  # rl_quantize.py and the environments' reset
BATCHES = {"linear": 128, "size": 256}  # run/run_linear_quantize_search.sh, run_kmeans_...

State = Mapping[str, Tensor]
Seconds = dict[str, float]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures that are transformed one by one, as torchvision does."""

    def __init__(self, images: Tensor, labels: Tensor, augment: bool) -> None:
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, 3), bytes
        self.labels, self.augment = labels.tolist(), augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.images[at])
        if self.augment:
            wide = ImageOps.expand(picture, border=4, fill=0)
            left, top = (int(torch.randint(0, 9, (1,)).item()) for _ in range(2))
            picture = wide.crop((left, top, left + 32, top + 32))
            if torch.rand(1).item() < 0.5:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(picture, copy=True)).permute(2, 0, 1).contiguous()
        mean = torch.as_tensor((0.485, 0.456, 0.406)).view(-1, 1, 1)
        std = torch.as_tensor((0.229, 0.224, 0.225)).view(-1, 1, 1)
        return pixels.float().div(255).clone().sub_(mean).div_(std), self.labels[at]


def loader(images: Tensor, labels: Tensor, chosen: Tensor, batch: int, augment: bool) -> Any:
    """Return batches of the chosen pictures in random order, each augmented when it is read.

    Source: lib/utils/data_utils.py, get_split_train_dataset.
    """
    sampler = SubsetRandomSampler(chosen.tolist())
    return DataLoader(Pictures(images, labels, augment), batch_size=batch, sampler=sampler)


class _Straight(torch.autograd.Function):
    """The rounded values; the gradient goes to the others. lib/utils/quantize_utils.py, STE."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Rounded(nn.Module):
    """A layer that rounds what it reads and its weights. lib/utils/quantize_utils.py, QModule."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.weight_bits = self.act_bits = -1
        self.act_range = nn.Parameter(torch.tensor([WIDEST]))  # is trained
        self.weight_range = nn.Parameter(torch.tensor([-1.0]), requires_grad=False)
        self.calibrating = False

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of (N, ...)."""
        x, weight = self._activations(x), self._weights(self.layer.weight)
        if isinstance(self.layer, nn.Linear):
            return functional.linear(x, weight, self.layer.bias)
        return functional.conv2d(
            x, weight, self.layer.bias, self.layer.stride, self.layer.padding,
            self.layer.dilation, self.layer.groups,
        )  # fmt: skip

    def _activations(self, x: Tensor) -> Tensor:
        if self.act_bits < 0:
            return x
        if self.calibrating:
            found = min(WIDEST, x.abs().max().item())
            if self.act_bits < HISTOGRAM_BELOW:
                found = min(found, threshold(x.detach().cpu().numpy(), self.act_bits))
            self.act_range.data = torch.tensor([found])
            return x
        # All that is read follows a ReLU, but for the pictures, which are left as they are.
        clipped = 0.5 * (x.abs() - (x - self.act_range).abs() + self.act_range)
        size = self.act_range.item() / (2.0**self.act_bits - 1.0)
        return _Straight.apply(clipped, clipped.detach().clone().div_(size).round_().mul_(size))

    def _weights(self, weight: Tensor) -> Tensor:
        if self.weight_bits < 0:
            return weight
        if self.calibrating:
            found = weight.abs().max().item()
            if self.weight_bits < HISTOGRAM_BELOW:
                found = threshold(weight.detach().cpu().numpy(), self.weight_bits)
            self.weight_range.data[0] = found
            return weight
        clip = self.weight_range.item()
        size = clip / (2.0 ** (self.weight_bits - 1) - 1.0)
        rounded = weight.clamp(-clip, clip).div_(size).round_().mul_(size)
        return _Straight.apply(weight, rounded)


def threshold(values: np.ndarray[Any, Any], bits: int) -> float:
    """Return where to clip: the end of the histogram whose distribution changes least.

    A candidate keeps the first bins; their cumulative shares are squeezed into half as many points
    as there are levels, stretched again and compared.

    Source: lib/utils/quantize_utils.py, QModule._compute_threshold.
    """
    sizes = np.abs(values)
    highest = sizes.max()
    if np.isclose(highest, 0.0):
        return 0.0
    counts, edges = np.histogram(sizes, bins="sqrt", range=(0, highest), density=True)
    shares = np.cumsum(counts / counts.sum())
    points = 2 ** (bits - 1)
    candidates = range(points + 1, len(edges))
    if not candidates:
        return float(edges[-1])
    lost = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for kept in candidates:
            whole = shares.copy()
            whole[kept - 1 :] = 1
            few, many = np.linspace(0.0, 1.0, points), np.linspace(0.0, 1.0, kept)
            squeezed = np.interp(few, many, whole[:kept])
            again = whole.copy()
            again[:kept] = np.interp(many, few, squeezed)
            lost.append(np.sum((shares - again) * np.log2(shares / again)))
    return float((candidates[int(np.argmin(lost))] + 0.5) * (edges[1] - edges[0]))


def rounding(model: nn.Module) -> nn.Module:
    """Replace every convolution and linear layer by one that rounds, in place."""
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.Conv2d | nn.Linear):
            above, _, last = name.rpartition(".")
            setattr(model.get_submodule(above), last, Rounded(part))
    return model


@contextmanager
def _clocked(seconds: Seconds, part: str) -> Iterator[None]:
    started = time.process_time()
    yield
    seconds[part] = time.process_time() - started


def linear_episode(
    model: nn.Module, start: State, bits: Sequence[tuple[int, int]], train: Any, val: Any
) -> tuple[float, Seconds]:
    """Return the validation accuracy of a policy, and the CPU seconds of the episode's parts.

    Args:
        model: From ``rounding``; it is overwritten.
        start: Its float weights.
        bits: Of weights and activations of each layer in order, -1 for float.
        train: Training batches.
        val: Validation batches.

    Source: lib/env/linear_quantize_env.py, reset and step.
    """
    seconds: Seconds = {}
    with _clocked(seconds, "calibration"):
        model.load_state_dict(start)
        layers = [part for part in model.modules() if isinstance(part, Rounded)]
        for layer, pair in zip(layers, bits, strict=True):
            layer.weight_bits, layer.act_bits = pair
            layer.calibrating = True
        # One batch, in training mode or not as the last episode left it: evaluation mode.
        with torch.no_grad():
            model(next(iter(train))[0])
        for layer in layers:
            layer.calibrating = False
    with _clocked(seconds, "epoch"):
        _epoch(model, train, {})
    with _clocked(seconds, "validation"):
        accuracy = _validate(model, val)
    return accuracy, seconds


def size_episode(
    model: nn.Module, start: State, bits: Sequence[int], train: Any, val: Any
) -> tuple[float, Seconds]:
    """Return what ``linear_episode`` does, of the k-means search; arguments likewise.

    Source: lib/env/quantize_env.py, reset and step.
    """
    seconds: Seconds = {}
    with _clocked(seconds, "k-means"):
        model.load_state_dict(start)
        layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        groups = {layer: _clustered(layer, b) for layer, b in zip(layers, bits, strict=True)}
    with _clocked(seconds, "epoch"):
        _epoch(model, train, groups)
    with _clocked(seconds, "validation"):
        accuracy = _validate(model, val)
    return accuracy, seconds


def _clustered(layer: nn.Conv2d | nn.Linear, bits: int) -> tuple[int, Tensor]:
    """Replace weights by the means of their groups; return how many groups, and which has which.

    Source: lib/utils/quantize_utils.py, k_means_cpu, reconstruct_weight_from_k_means_result.
    """
    weight = layer.weight.data
    count = min(2**bits, weight.numel())
    found = KMeans(count, init="k-means++", n_init=1, max_iter=KMEANS_STEPS)
    found.fit(weight.numpy().reshape(-1, 1))
    group = torch.from_numpy(found.labels_.reshape(weight.shape)).int()
    new = torch.zeros_like(weight)
    for number, centre in enumerate(found.cluster_centers_.squeeze()):
        new[group == number] = centre.item()
    layer.weight.data = new
    return count, group


def _regrouped(layer: nn.Module, count: int, group: Tensor) -> None:
    """Source: lib/utils/quantize_utils.py, kmeans_update_model."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if count > KEPT_MEANS:
        return
    new = torch.zeros_like(layer.weight.data)
    for number in range(count):
        mask = (group == number).float()
        new += (layer.weight.data * mask).sum() / mask.sum() * mask
    layer.weight.data = new


def _epoch(model: nn.Module, train: Any, groups: Mapping[nn.Module, tuple[int, Tensor]]) -> None:
    """Source: lib/env/linear_quantize_env.py, _finetune; quantize_env.py, _kmeans_finetune."""
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, weight_decay=DECAY)
    model.train()
    for images, labels in train:
        output = model(images)
        loss = functional.cross_entropy(output, labels)
        _right(output.detach(), labels)
        loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for layer, (count, group) in groups.items():
            _regrouped(layer, count, group)


@torch.no_grad()
def _validate(model: nn.Module, val: Any) -> float:
    """Source: lib/env/quantize_env.py, _validate."""
    model.eval()
    right = seen = 0.0
    for images, labels in val:
        output = model(images)
        functional.cross_entropy(output, labels).item()
        right += _right(output, labels)
        seen += len(labels)
    return right / seen


def _right(output: Tensor, labels: Tensor) -> float:
    """Return how many top-1 answers are right. lib/utils/utils.py, accuracy (top-1 and top-5)."""
    hits = output.topk(5, 1).indices.eq(labels[:, None])
    hits.any(1).float().sum().item()
    return float(hits[:, 0].float().sum().item())
