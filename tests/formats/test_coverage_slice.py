"""A slice of the coverage table: small networks of all families, from capture to compared files."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "results" / "benchmarks"


@pytest.fixture(scope="module")
def table():
    """Return the module of the table and that of its networks."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import coverage_networks
        import coverage_table

        yield coverage_table, coverage_networks
    finally:
        sys.path.remove(str(BENCHMARKS))


def timm_vit():
    timm = pytest.importorskip("timm")
    return timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10
    )


def timm_mobilenet():
    return pytest.importorskip("timm").create_model("mobilenetv3_small_050", num_classes=10)


def torchvision_squeezenet():
    pytest.importorskip("torchvision")
    import torchvision

    return torchvision.models.squeezenet1_1(num_classes=10)


def torchvision_densenet():
    pytest.importorskip("torchvision")
    import torchvision

    return torchvision.models.DenseNet(8, (2, 2), 16, num_classes=10)


IMAGES = {
    "timm: vision transformer": (timm_vit, (3, 16, 16)),
    "timm: MobileNetV3, BatchNorms of a subclass": (timm_mobilenet, (3, 32, 32)),
    "torchvision: SqueezeNet": (torchvision_squeezenet, (3, 32, 32)),
    "torchvision: DenseNet, BatchNorm before ReLU": (torchvision_densenet, (3, 32, 32)),
}

NAMED = (
    "transformers:ViT", "transformers:BERT", "own:U-Net, nearest", "own:several heads",
    "own:super-resolution", "own:two inputs", "own:LSTM", "own:flags and lengths",
    "own:one layer at two sizes",
)  # fmt: skip


def check(row):
    assert "refused" not in row and "failed" not in row, row
    assert row["share_of_weights"] >= 0.96  # so small that norms count
    assert row["integer_layers"] > 0
    assert not row["untranslated"]
    for policy in ("w7a8", "w4a8"):
        assert row["agreement"][policy]["equal_answers"] >= 0.995
    assert row["checkpoint_equal"]


@pytest.mark.parametrize("name", IMAGES)
def test_a_network_that_takes_images(name, table):
    build, shape = IMAGES[name]
    torch.manual_seed(0)
    check(table[0].coverage(build(), table[1].images(*shape), count=8))


@pytest.mark.parametrize("name", NAMED)
def test_a_network_of_the_table(name, table):
    if name.startswith("transformers"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs = table[1].NETWORKS[name]()
    check(table[0].coverage(model, inputs, count=8))


def test_what_is_refused_says_at_which_stage_and_why(table):
    row = table[0].coverage(torch.nn.ReLU(), table[1].images(3, 4, 4), count=2)
    assert row["refused"]["at"] == "capture"
    assert "no" in row["refused"]["why"]
