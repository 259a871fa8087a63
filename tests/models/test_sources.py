"""Names with a prefix: every source keeps the same promises, and imports nothing unless asked."""

import subprocess
import sys

import pytest
import torch

from haq.errors import HaqError, ModelError
from haq.extras import library
from haq.models import build, input_shape
from haq.models.sources import SOURCES, about, named
from haq.models.sources.source import alike

SMALL = {
    "torchvision": ("torchvision:squeezenet1_1", 64),
    "timm": ("timm:test_resnet", 32),
    "hf": ("hf:{folder}", 16),
}
"""Prefix to a small network of it and the size of its images; {folder} is made by a fixture."""


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=4,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def small(vit_folder):
    return lambda prefix: (
        SMALL[prefix][0].format(folder=vit_folder), SMALL[prefix][1]
    )  # fmt: skip


every_source = pytest.mark.parametrize("prefix", sorted(set(SOURCES) & set(SMALL)))


@every_source
def test_the_card_tells_the_shape_that_the_network_takes(prefix, small):
    name, size = small(prefix)
    network = build(name, size=size).eval()
    shape = input_shape(name, size)
    assert shape == (3, size, size)
    with torch.no_grad():
        output = network(torch.randn(2, *shape))
    logits = getattr(output, "logits", output)
    assert logits.shape == (2, about(name).classes)


@every_source
def test_weights_are_the_same_for_the_same_random_state(prefix, small):
    name, size = small(prefix)
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build(name, size=size).state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@every_source
def test_a_wrong_name_is_refused_in_one_sentence(prefix):
    with pytest.raises(ModelError) as refused:
        build(f"{prefix}:no_such_thing_at_all")
    assert "no_such_thing_at_all" in str(refused.value)
    assert "\n" not in str(refused.value)


@every_source
def test_a_prefix_alone_shows_a_whole_name(prefix):
    with pytest.raises(ModelError, match=SOURCES[prefix].example):
        build(f"{prefix}:")


@every_source
def test_a_library_that_is_missing_says_what_to_install(prefix, monkeypatch, small):
    name, _ = small(prefix)
    package = {"hf": "transformers"}.get(prefix, prefix)
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"needs {package}, which is not installed: pip install"):
        build(name)


def test_close_names_are_offered():
    with pytest.raises(ModelError, match="torchvision:resnet50"):
        build("torchvision:resnet51")
    with pytest.raises(ModelError, match="timm:mobilenetv3_small_100"):
        build("timm:mobilnetv3_small_100")
    assert alike("resnet51", ["vgg11", "resnet18", "resnet50"])[0] == "resnet50"


def test_a_detector_is_refused_by_what_it_is():
    with pytest.raises(ModelError, match="no detectors"):
        build("torchvision:fasterrcnn_resnet50_fpn")


def test_a_library_that_breaks_when_imported_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_by_torch.py").write_text("raise RuntimeError('operator nms')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be imported \(operator nms\)"):
        library("broken_by_torch", "vision", "model broken_by_torch:a", ModelError)


def test_a_library_that_lacks_another_one_says_which(tmp_path, monkeypatch):
    (tmp_path / "half_there.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ModelError, match=r"cannot be imported \(No module named 'nowhere_at_all'\)"
    ):
        library("half_there", "vision", "model half_there:a", ModelError)


def test_a_module_of_the_users_own_is_no_prefix():
    assert named("my_package.nets:factory") is None
    with pytest.raises(HaqError, match="my_package"):
        build("my_package.nets:factory")


def test_importing_haq_and_its_help_import_no_library_of_models():
    program = (
        "import sys, runpy; import haq, haq.models, haq.runs.api\n"
        "sys.argv = ['haq', '--help']\n"
        "try: runpy.run_module('haq.cli.main', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torchvision', 'timm', 'transformers') if n in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert out.stdout.splitlines()[-1] == "[]"
