"""Train the float networks of the benchmarks on the 45 000 training rows of CIFAR-10.

python results/benchmarks/float_networks.py NAME cifar10:DIR OUT.safetensors

NAME is a key of ``RECIPES``. The images of the first epochs are smaller (progressive resizing),
which takes a third less time; the last epochs see them whole. The state stands in OUT.part after
every epoch, and the same command goes on from there. Writes results/reference/float-NAME.json.
"""

import hashlib
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from haq.datasets import Split, load
from haq.models import build
from haq.models.weights import save_weights
from haq.reports.reference.publish import script_provenance
from haq.runs.folder import write_json
from haq.training.scoring import score
from haq.training.train import Step, train


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        model: Its name.
        width: Of its channels.
        sizes: Height and width of the images, and for how many epochs.
        lr: Highest learning rate.
        weight_decay: Of all parameters.
    """

    model: str
    width: float
    sizes: tuple[tuple[int, int], ...]
    lr: float
    weight_decay: float


RECIPES = {
    "resnet20": Recipe("resnet20", 1.0, ((24, 8), (28, 8), (32, 8)), 0.2, 5e-4),
    "mobilenet_v2": Recipe("mobilenet_v2", 0.35, ((20, 10), (24, 8), (32, 8)), 0.2, 2e-4),
}


class Resized:
    """A split whose augmented images have the size that their epoch asks for."""

    def __init__(self, split: Split, sizes: tuple[tuple[int, int], ...]) -> None:
        self.split = split
        self.of_epoch = [size for size, epochs in sizes for _ in range(epochs)]
        self.epoch = 0

    @property
    def labels(self) -> Tensor:
        """The class of every image (N,)."""
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return images and labels at ``index``, smaller where the epoch asks for it."""
        images, labels = self.split.batch(index, generator)
        size = self.of_epoch[min(self.epoch, len(self.of_epoch) - 1)]
        if generator is None or size == images.shape[-1]:
            return images, labels
        smaller = functional.interpolate(
            images, size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )
        return smaller, labels


def main(name: str, data: str, out: Path) -> None:
    """Train the network of a recipe, write its weights and its record."""
    recipe = RECIPES[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = load(data)
    network = build(recipe.model, len(images.classes), recipe.width, 32)
    split = Resized(images.train, recipe.sizes)
    epochs = len(split.of_epoch)
    started = time.process_time()

    def on_step(step: Step) -> None:
        steps = step.total // epochs
        split.epoch = step.done // steps
        if step.done % 50 == 0:
            print(
                f"{step.done}/{step.total} {time.process_time() - started:.0f} s {step}", flush=True
            )

    keep = out.with_suffix(".part")
    if keep.exists():
        with safe_open(keep, "pt") as file:
            split.epoch = int(file.metadata()["epochs"])
    train(
        network, split, epochs=epochs, lr=recipe.lr, seed=0, weight_decay=recipe.weight_decay,
        on_step=on_step, keep=keep,
    )  # fmt: skip
    save_weights(network, out)
    row = {
        "what": f"Float {recipe.model}, trained on the 45 000 training rows",
        **asdict(recipe), "epochs": epochs, "seed": 0, "batch": 128,
        "val_accuracy": score(network, images.val).accuracy,
        "test_accuracy": score(network, images.test).accuracy,
        "cpu_seconds_since_the_last_start": round(time.process_time() - started, 1),
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        **script_provenance(),
    }  # fmt: skip
    write_json(Path(f"results/reference/float-{name}.json"), row)
    print(row["val_accuracy"], row["test_accuracy"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
