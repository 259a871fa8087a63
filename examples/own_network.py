"""Search the bits of a network of your own, look at the result, take it away, load it back.

    python examples/own_network.py FOLDER

The images are the digits that lie in the package: nothing is downloaded; it takes about a minute.
"""

import sys
from pathlib import Path

import onnxruntime
import torch
from torch import nn

import haq
from haq.datasets import load
from haq.reports.report import report_html


def make() -> nn.Module:
    """Return an untrained network: anything that torch.export can capture will do."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """Train with plain PyTorch; bring your own trained network instead."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main(place: Path, epochs: int = 8, episodes: int = 25) -> None:
    """Do all of it and leave the run, the page and the file in the folder ``place``."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load("digits")
    # Your own data: three splits (train, validation, test), each a pair of images and labels.
    splits = [split.batch(torch.arange(len(split))) for split in (data.train, data.val, data.test)]

    model = make()
    train(model, *splits[0], epochs)

    run = haq.search(
        model, splits, out=place / "run",
        target="bismo-edge", budgets=["latency=60%w8a8", "size=20%fp32"],
        pins={}, episodes=episodes, final_epochs=5,
    )  # fmt: skip
    for name, bits in run.policy.items():
        print(f"{name}: {bits.weight}-bit weights, {bits.act}-bit activations")
    print(f"test accuracy {run.summary['final_test_accuracy']:.2%}, "
          f"float {run.summary['float_test_accuracy']:.2%}")  # fmt: skip

    # Everything about the run as pandas frames, and on one page for a browser.
    frames = haq.load_run(run.folder)
    print(frames.trials[["latency", "size", "accuracy", "reward"]].nlargest(3, "accuracy"))
    print(frames.layers[["kind", "weight_bits", "act_bits", "latency", "latency_w8a8"]])
    (place / "report.html").write_text(report_html(run.folder, model=model), encoding="utf-8")

    # A file with the packed codes, from which the network comes back to the last bit.
    haq.export_checkpoint(run, place / "digits.safetensors")
    network = haq.load(place / "digits.safetensors", make())
    images, _ = splits[2]
    with torch.no_grad():
        assert run.model is not None
        logits = run.model(images)
        same = torch.equal(network(images), logits)
    print(f"loaded back: {(place / 'digits.safetensors').stat().st_size} bytes, equal: {same}")

    # A file that plain ONNX Runtime executes with its integer kernels.
    haq.export_onnx(run, place / "digits.onnx")
    session = onnxruntime.InferenceSession(place / "digits.onnx")
    (answers,) = session.run(None, {"images": images.numpy()})
    agreement = (torch.from_numpy(answers).argmax(1) == logits.argmax(1)).double().mean()
    print(f"in ONNX Runtime: the same class for {agreement:.2%} of the test images")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
