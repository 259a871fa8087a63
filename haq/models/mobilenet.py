"""MobileNet v1 and v2, for images of 224x224 or 32x32.

At size 32 the stem and the first strided stage have stride 1 instead of 2, so that the last
feature map is 4x4 and not 1x1; the weights have the same shapes at both sizes.
"""

from torch import Tensor, nn

V1 = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)
"""Output channels and stride of each block of v1."""

V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, output channels, blocks and stride of each stage of v2."""


class MobileNetV1(nn.Module):
    """A stem, thirteen pairs of a depthwise and a pointwise convolution, and a linear head."""

    def __init__(self, classes: int, width: float, size: int) -> None:
        super().__init__()
        small = size == 32
        c_in = scaled(32, width)
        self.conv1 = _conv_bn(3, c_in, 3, 1 if small else 2)
        blocks: list[nn.Module] = []
        for i, (channels, stride) in enumerate(V1):
            c_out = scaled(channels, width)
            blocks.append(_separable(c_in, c_out, 1 if small and i == 1 else stride))
            c_in = c_out
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Linear(c_in, classes))
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images ``x`` (N, 3, H, W)."""
        x = self.pool(self.features(self.conv1(x)))
        logits: Tensor = self.classifier(self.flatten(x))
        return logits


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (depthwise 3x3), project (1x1); add the input where shapes allow."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.adds = stride == 1 and c_in == c_out
        expand = [] if expansion == 1 else [_conv_bn(c_in, hidden, 1)]
        self.conv = nn.Sequential(
            *expand,
            _conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, c_out, ceil(H / stride), ceil(W / stride)) of ``x`` (N, c_in, H, W)."""
        out: Tensor = self.conv(x)
        return x + out if self.adds else out


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residuals, a last 1x1 convolution, and a linear head."""

    def __init__(self, classes: int, width: float, size: int) -> None:
        super().__init__()
        small = size == 32
        c_in = scaled(32, width)
        features: list[nn.Module] = [_conv_bn(3, c_in, 3, 1 if small else 2)]
        for stage, (expansion, channels, blocks, stride) in enumerate(V2):
            c_out = scaled(channels, width)
            for i in range(blocks):
                strided = i == 0 and not (small and stage == 1)
                features.append(InvertedResidual(c_in, c_out, stride if strided else 1, expansion))
                c_in = c_out
        last = scaled(1280, max(1.0, width))
        self.features = nn.Sequential(*features, _conv_bn(c_in, last, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images ``x`` (N, 3, H, W)."""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return logits


def mobilenet_v1(classes: int = 1000, width: float = 1.0, size: int = 224) -> MobileNetV1:
    """Return MobileNet v1, with ReLU6 in the blocks and names as in HAQ's and AMC's checkpoints.

    Args:
        classes: Outputs of the linear head.
        width: Multiplies every number of channels; the product is rounded by ``scaled``.
        size: Height and width of the images: 32 gives stride 1 to the stem and to the first strided
            block (``features.1``), any other size the strides of the paper.

    Source: Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision
    applications", arXiv:1704.04861, table 1.
    """
    return MobileNetV1(classes, width, size)


def mobilenet_v2(classes: int = 1000, width: float = 1.0, size: int = 224) -> MobileNetV2:
    """Return MobileNet v2 with torchvision's parameter names.

    Args:
        classes: Outputs of the linear head.
        width: Multiplies every number of channels, the last 1280 only where it is above one; the
            product is rounded by ``scaled``.
        size: Height and width of the images: 32 gives stride 1 to the stem and to the first strided
            stage (``features.2``), any other size the strides of the paper.

    Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks",
    arXiv:1801.04381, table 2.
    """
    return MobileNetV2(classes, width, size)


def scaled(channels: int, width: float) -> int:
    """Return ``channels * width`` rounded to a multiple of 8, at least 8 and 90 % of the product.

    >>> scaled(32, 0.75), scaled(24, 0.35), scaled(96, 0.1)
    (24, 8, 16)
    """
    exact = channels * width
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def _conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU6(),
    )


def _separable(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    depthwise = _conv_bn(c_in, c_in, 3, stride, groups=c_in)
    return nn.Sequential(*depthwise, *_conv_bn(c_in, c_out, 1))


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
