"""ResNets for 32x32 images: three stages of 16, 32 and 64 channels, shortcuts without parameters.

Module names are those of the widespread CIFAR ResNets (``conv1``, ``bn1``, ``layer1.0.conv1`` …
``linear``), so that their public checkpoints load.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Shortcut(nn.Module):
    """Every second row and column, and zero channels added evenly before and after."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before = added // 2
        self.after = added - added // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C + added, ceil(H / 2), ceil(W / 2)) of ``x`` (N, C, H, W)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """Two 3x3 convolutions and what goes around them."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(c_out - c_in)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, c_out, ceil(H / stride), ceil(W / stride)) of ``x`` (N, c_in, H, W)."""
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.relu2(out + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """A stem, three stages of ``blocks`` blocks each, and a linear head on the mean."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images ``x`` (N, 3, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.flatten(self.pool(x)))
        return logits


def resnet_cifar(depth: int, classes: int = 10) -> ResNet:
    """Return the CIFAR ResNet with ``depth`` weighted layers, Kaiming-normal initialised.

    Args:
        depth: 6n + 2 for n blocks a stage: 20, 32, 44, 56, ….
        classes: Outputs of the linear head.

    Raises:
        ValueError: No ResNet has this depth.

    Source: He et al., "Deep residual learning for image recognition", arXiv:1512.03385, section
    4.2, with option A of the shortcuts.
    """
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest:
        raise ValueError(f"depth must be 6n + 2 with n >= 1, not {depth}")
    return ResNet(blocks, classes)


def _stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Block(c_out, c_out, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(c_in, c_out, stride), *rest)
