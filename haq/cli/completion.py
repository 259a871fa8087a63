"""What a shell completes behind an option, without importing torch.

The names of registries that need torch stand here once more; a test holds them against these.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

AGENTS = ("ddpg", "guided", "ilp", "random", "trust", "uniform")
MODELS = (
    "digits_cnn", "digits_mlp", "mobilenet_v1", "mobilenet_v2", "resnet18", "resnet20", "resnet32",
    "resnet44", "resnet50", "resnet56", "hf:", "onnx:", "timm:", "torchvision:",
)  # fmt: skip
DATA = ("cifar10:", "dataset:", "digits", "folder:", "text:")
METRICS = ("agreement", "cosine", "miou", "perplexity", "top1", "top5")
SCHEMES = ("static", "weight-only", "dynamic", "dynamic-tensor", "codebook")
CLIPPING = ("kl", "max", "mse", "percentile")
QUANTITIES = ("avg_weight_bits=", "bops=", "coded_size=", "energy=", "latency=", "size=")
TRACKERS = ("mlflow:", "tensorboard:", "wandb:")

Complete = Callable[[str], list[str]]


def among(names: Iterable[str]) -> Complete:
    """Return what completes a word by names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def targets(incomplete: str) -> list[str]:
    """Complete the name of a target, or the beginning of a table's."""
    from haq.hw_profiles import TARGETS

    return among((*TARGETS, "table:"))(incomplete)


def runs(incomplete: str) -> list[str]:
    """Complete the name of a run below results/."""
    names = sorted(path.parent.name for path in Path("results").glob("*/job.json"))
    return among(names)(incomplete)
