"""Networks for the 8x8 digits: small enough to train in seconds and to try every policy on."""

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Four convolutions, the third depthwise and the fourth pointwise, and a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(32, 64, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(64)
        self.relu4 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images ``x`` (N, 1, 8, 8)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        x = self.relu4(self.bn4(self.conv4(x)))
        logits: Tensor = self.linear(self.flatten(self.pool(x)))
        return logits


class DigitsMLP(nn.Module):
    """Three hidden linear layers and a head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(64, 64)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(64, 48)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(48, 32)
        self.relu3 = nn.ReLU()
        self.linear = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) of images ``x`` (N, 1, 8, 8)."""
        x = self.relu1(self.fc1(self.flatten(x)))
        x = self.relu2(self.fc2(x))
        x = self.relu3(self.fc3(x))
        logits: Tensor = self.linear(x)
        return logits


def digits_cnn(classes: int = 10) -> DigitsCNN:
    """Return the small CNN, Kaiming-normal initialised.

    Args:
        classes: Outputs of the linear head.
    """
    model = DigitsCNN(classes)
    _initialise(model)
    return model


def digits_mlp(classes: int = 10) -> DigitsMLP:
    """Return the multi-layer perceptron, Kaiming-normal initialised.

    Args:
        classes: Outputs of the linear head.
    """
    model = DigitsMLP(classes)
    _initialise(model)
    return model


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
