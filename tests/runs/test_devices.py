"""A search on another device than the CPU: all that computes is there, and nothing is mixed."""

import json

import pytest
import torch
from safetensors.torch import load_file
from second_device import DEVICE, There, second_device
from torch import nn
from torch.utils import _pytree as pytree

import haq
from haq.datasets import from_splits
from haq.errors import HaqError
from haq.network.inputs import Batch, beside, call, device_of
from haq.runs import devices
from haq.runs.api import own_evaluation, own_task
from haq.runs.devices import check_device, moved
from haq.runs.folder import write_job
from haq.runs.job import JobError, parse_job
from haq.runs.plan import plan
from haq.runs.play import play
from haq.runs.progress import silent
from haq.training.numerics import has_bfloat16


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        return self.fc((x + self.b(x)).relu().mean((2, 3)))


def network():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(96, 3, 6, 6, generator=generator) for _ in range(3)]
    labels = [torch.randint(4, (96,), generator=generator) for _ in range(3)]
    return from_splits(list(zip(parts, labels, strict=True)), "noise")


def searched(folder, data, device=None, **fields):
    """Search as ``haq.search`` does, with the float network moved to the second device."""
    asked = {"budgets": ("avg_weight_bits=4",), "agent": "ilp", "episodes": 1, "threads": 1,
             "calibration_images": 64, "train_images": 64, "val_images": 64}  # fmt: skip
    task = own_task(network(), data, None, asked | fields)
    folder.mkdir()
    planned = plan(task.job, task.model, task.images, task.sample, task.notes)
    write_job(folder, task.job)
    if device is not None:
        moved(planned, device)
        assert all(isinstance(p, There) for p in planned.graph.traced.state_dict().values())
    evaluation = own_evaluation(task, task.job, folder, planned, silent, None)
    return play(task.job, folder, planned, evaluation)


@pytest.fixture
def float32(monkeypatch):
    """Have the CPU compute as other devices do, as if it had no bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    has_bfloat16.cache_clear()
    yield
    has_bfloat16.cache_clear()


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize(
    "fields",
    [
        {"evaluation": "finetune", "final_epochs": 1},
        {"evaluation": "cheap", "finalists": 1, "rounding_steps": 2},
    ],
    ids=["finetune", "finalists"],
)
def test_a_search_mixes_no_devices_and_comes_to_the_same(tmp_path, data, fields, float32):
    here = searched(tmp_path / "here", data, **fields)
    with second_device():
        there = searched(tmp_path / "there", data, DEVICE, **fields)
    assert (
        there["state"] == "finished" and there["float_val_accuracy"] == here["float_val_accuracy"]
    )
    # Of two policies as good as each other on these labels, which are noise, either may win.
    known = [tmp_path / name / "sensitivity.json" for name in ("here", "there")]
    if known[0].exists():
        leaves = [pytree.tree_leaves(json.loads(file.read_text())) for file in known]
        one, other = ([x for x in some if isinstance(x, int | float)] for some in leaves)
        assert len(one) > 9 and other == pytest.approx(one, rel=1e-3, abs=1e-7)
    read = [(tmp_path / name / "clips.safetensors").read_bytes() for name in ("here", "there")]
    assert read[0] == read[1]
    weights = load_file(tmp_path / "there" / "weights.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize("agent, fields", [("ilp", {}), ("uniform", {}), ("ilp", {"target": True})])
def test_deterministic_agents_choose_the_same_policy_there(tmp_path, data, agent, fields, float32):
    """Sensitivities, costs and rewards are those of the CPU, so what is chosen is too."""
    asked = {"agent": agent, "evaluation": "cheap", "finalists": 0, "rounding_steps": 0}
    if fields:
        asked |= {"target": "gap9-ne16", "budgets": ("latency=70%w8a8", "size=60%w8a8")}
    here = searched(tmp_path / "here", data, **asked)
    with second_device():
        there = searched(tmp_path / "there", data, DEVICE, **asked)
    assert there["state"] == here["state"] == "finished"
    lines = [(tmp_path / name / "trials.jsonl").read_text("utf-8") for name in ("here", "there")]
    one, other = ([json.loads(line)["policy"] for line in some.splitlines()] for some in lines)
    assert one == other and len(one) >= 1
    chosen = [
        json.loads((tmp_path / name / "policy.json").read_text("utf-8"))
        for name in ("here", "there")
    ]
    assert chosen[0] == chosen[1]


def test_the_second_device_refuses_what_a_gpu_refuses():
    with second_device() as device:
        model = network().to(device)
        x = torch.randn(2, 3, 6, 6)
        with pytest.raises(RuntimeError, match="tensors on two devices"):
            model(x)
        assert isinstance(model(x.to(device)), There)
        assert torch.equal(call(model, x).cpu(), network()(x))


def test_inputs_go_where_the_network_is():
    model = nn.Linear(3, 2).to("meta")
    assert device_of(model) == torch.device("meta") and device_of(nn.ReLU()).type == "cpu"
    assert call(model, torch.zeros(1, 3)).device.type == "meta"
    both = beside(model, Batch((torch.zeros(1, 3), torch.zeros(1, 2)), ("a", "b")))
    assert both.names == ("a", "b") and {t.device.type for t in both.tensors} == {"meta"}
    x = torch.zeros(1, 3)
    assert beside(nn.Linear(3, 2), x) is x


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(HaqError, match=r"^device cuda: PyTorch .* leave --device out$"):
        haq.search(device="cuda", out=tmp_path / "run")
    with pytest.raises(HaqError, match="device cuda:1"):
        haq.search(network(), torch.zeros(8, 3, 6, 6), evaluate=lambda _: 0.0, device="cuda:1",
                   out=tmp_path / "run")  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CUDA", "mps"])
def test_other_devices_are_refused(name):
    with pytest.raises(JobError, match="give cpu, cuda or cuda:N"):
        parse_job(device=name)


def test_a_gpu_that_is_not_there_and_workers_are_refused(monkeypatch):
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)
    check_device(parse_job(device="cuda:1"))
    with pytest.raises(HaqError, match="there are 2 GPUs here, counted from 0"):
        check_device(parse_job(device="cuda:2"))
    with pytest.raises(HaqError, match="one GPU is not shared by workers"):
        check_device(parse_job(device="cuda", workers=2))
