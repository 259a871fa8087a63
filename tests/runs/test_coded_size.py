"""Budgets on coded bytes: costs are those of packets, and what is handed over keeps them."""

import numpy as np
import pytest
import torch
from torch import nn

import haq
from haq.allocation.budgets import parse_budget
from haq.allocation.choices import permitted
from haq.allocation.costs import CODED, tabulate, total
from haq.allocation.policy import Bits
from haq.allocation.trials import Score, Trial
from haq.cli.terminal.run import coded_size_sentence
from haq.errors import BudgetError
from haq.formats.update.sizes import coded_bytes
from haq.network.graph import trace
from haq.quantization.groups import group_codes, group_scales
from haq.quantization.quantizer import codes
from haq.reports.reasons import all_costs, why
from haq.reports.record import read_run
from haq.reports.steps import steps_of
from haq.runs import coded_size
from haq.runs.coded_cost import budgets_of, clips_of_weights, with_coded_size
from haq.runs.job import parse_job


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 16, 3)
        self.two = nn.Conv2d(16, 24, 3)
        self.last = nn.Linear(24, 4)

    def forward(self, x):
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    inputs = torch.randn(48, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    return haq.search(
        model, inputs, evaluate=lambda network: -float((network(inputs) - model(inputs)).norm()),
        budgets=["coded_size=4kB"], agent="ilp", rounding_steps=1,
        out=tmp_path_factory.mktemp("runs") / "run",
    )  # fmt: skip


def test_a_report_knows_the_coded_bytes_of_layers_that_are_fixed(run, model):
    record = read_run(run.folder, model)
    step = steps_of(record)["one"]  # pinned: its table has no other choice
    assert (step.reason, step.lower) == ("pinned", 7)
    every = all_costs(record.planned, record.job)
    lower = run.policy | {"one": run.policy["one"]._replace(weight=7)}
    known, less = total(every, run.policy, CODED), total(every, lower, CODED)
    assert step.saves == pytest.approx((known - less) / known, rel=1e-6)
    assert set(why(record)) == set(run.policy)


def test_the_packet_of_a_run_keeps_its_budget_and_is_as_predicted(run, model, tmp_path):
    haq.export_checkpoint(run, tmp_path / "a.safetensors", model)
    size = haq.pack(tmp_path / "a.safetensors", tmp_path / "a.haqz").size
    said = run.summary["coded_size"]
    assert size <= 4000
    assert abs(size - said["packet"]) <= 60  # figures in the header are others
    assert said["packet"] <= said["predicted"] <= said["budget"] == 4000
    assert run.summary["units"]["coded_size"] == "bytes"
    assert all("coded_size" in layer["cost"] for layer in run.summary["layers"])


def test_a_budget_that_no_policy_keeps_leaves_nothing(model, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(BudgetError, match=r"no policy fits coded_size <= 900 bytes: the cheap"):
        haq.search(model, torch.randn(48, 1, 10, 10), evaluate=lambda _: 0.0,
                   budgets=["coded_size=900"], out=out)  # fmt: skip
    assert not out.exists()


def test_bytes_and_shares(model):
    graph = trace(model, torch.zeros(1, 1, 10, 10))
    assert parse_budget("coded_size=2KiB", graph.layers, None).limit == 2048
    for share in ("coded_size=50%w8a8", "coded_size=50%w1a8"):
        coded = None if share.endswith("w8a8") else lambda _: 1.0
        with pytest.raises(BudgetError, match=r"give bytes, such as coded_size=60kB"):
            parse_budget(share, graph.layers, None, 0, coded)
    asked = ("coded_size=50%w8a8", "coded_size=100%w4a8", "coded_size=100%fp32")
    half, four, floats = budgets_of(parse_job(budgets=asked), graph, None)
    weights = sum(layer.weights + layer.biases for layer in graph.layers)
    assert floats.limit == pytest.approx(4 * weights + 1000 + 3 * 48)
    assert half.limit < 0.2 * floats.limit and four.limit < 0.8 * 2 * half.limit


def test_costs_are_those_of_codes_scales_and_biases(model):
    graph = trace(model, torch.zeros(1, 1, 10, 10))
    table = tabulate(graph.layers, permitted(graph.layers, None, act_bits=8))
    job = parse_job(budgets=("coded_size=9kB",), clipping="max")
    clips = clips_of_weights(graph, job, table)
    coded = with_coded_size(table, graph, clips)
    row = coded.rows[CODED]["two"]
    assert len(row) == 7 and (np.diff(row) > 0).all()
    flat = {layer.name: Bits(8, 8) for layer in graph.layers}
    weight = model.two.weight.detach()
    whole = {"two": codes(weight, 8, clips["two"][8].view(-1, 1, 1, 1)).numpy()}
    alone = coded_bytes(whole, 8)["two"]
    rest = 4 * 24 + 4 * 24 + 48 + 1000 / 3  # scales, biases, and its share of the header
    assert row[-1] - rest == pytest.approx(alone, rel=0.03)  # alone it has tables of its own
    # 8-bit codes of a uniform distribution hardly shrink.
    assert total(coded, flat, CODED) == pytest.approx(total(table, flat, "size") + 1144, rel=0.15)


def test_layers_of_zeros_take_next_to_nothing():
    known = coded_bytes({"a": np.zeros((64, 32, 3, 3), int), "b": np.zeros((4, 4), int)}, 4)
    assert sum(known.values()) < 4


class Stub:
    """A search as far as lowering looks at it."""

    def __init__(self, table, limit, sizes):
        parts = {"table": table, "budgets": [limit], "target": None}
        parts["graph"] = type("G", (), {"layers": table.layers})()
        self.planned = type("P", (), parts)()
        self.evaluation = type("E", (), {"score": staticmethod(lambda _: Score(0.5, 1.0))})()
        self.sizes = sizes


def test_a_packet_over_the_budget_lowers_the_policy(model, monkeypatch):
    graph = trace(model, torch.zeros(1, 1, 10, 10))
    table = tabulate(graph.layers, permitted(graph.layers, None, act_bits=8))
    job = parse_job(budgets=("coded_size=9kB",), clipping="max")
    table = with_coded_size(table, graph, clips_of_weights(graph, job, table))
    policy = {layer.name: Bits(8, 8) for layer in graph.layers}
    cost = total(table, policy, CODED)
    limit = parse_budget(f"coded_size={cost:.0f}", graph.layers, None)
    search = Stub(table, limit, None)
    # Packets that are a twentieth larger than predicted.
    monkeypatch.setattr(
        coded_size, "packet_bytes", lambda _, policy, __: 1.05 * total(table, policy, CODED)
    )
    top = Trial(0, policy, {CODED: cost}, 0.9, 0.9, 0.1, 1.0, False)
    lowered, network = coded_size.kept(search, top, "network", lambda policy: dict(policy))
    assert 1.05 * total(table, lowered.policy, CODED) <= limit.limit
    assert lowered.policy == network != policy
    assert lowered.accuracy == 0.5 and lowered.cost[CODED] < cost


@pytest.mark.parametrize(
    "coded, words",
    [
        ({"packet": 990, "predicted": 1000.0, "budget": 995}, "990 bytes, 1.0% less than"),
        (
            {"packet": 1010, "predicted": 1000.0, "budget": 1000},
            "more than predicted, and over the",
        ),
        ({"packet": None, "predicted": 1.0, "budget": None}, "has no checkpoint"),
    ],
)
def test_what_is_said_of_a_packet(coded, words):
    assert words in coded_size_sentence(coded)


def test_weights_in_groups_cost_their_codes_and_scales_of_half_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(80, 24), nn.ReLU(), nn.Linear(24, 4)).eval()
    graph = trace(model, torch.zeros(1, 80))
    choices = {layer.name: (Bits(4, 32, 32), Bits(8, 32)) for layer in graph.layers}
    table = tabulate(graph.layers, choices)
    clips = clips_of_weights(graph, parse_job(budgets=("coded_size=9kB",)), table)
    coded = with_coded_size(table, graph, clips)
    weight = model[0].weight.detach()
    whole = {}
    for name, layer in (("0", model[0]), ("2", model[2])):
        scales = group_scales(layer.weight.detach(), 4, 32)
        whole[name] = group_codes(layer.weight.detach(), scales, 4, 32).numpy()
    groups = 24 * 3  # 80 columns: two groups of 32, and one of 16
    expected = coded_bytes(whole, 4)["0"] + 2 * groups + 4 * 24 + 48 + 1000 / 2
    assert coded.rows[CODED]["0"][0] == pytest.approx(expected)
    assert coded.rows[CODED]["0"][0] < coded.rows[CODED]["0"][1]
    assert 0.4 * weight.numel() < coded_bytes(whole, 4)["0"] < 0.52 * weight.numel()


def test_codes_of_pruned_layers_cost_little_at_every_width():
    numbers = np.random.default_rng(0)
    z = np.rint(numbers.laplace(0, 12, (64, 32, 3, 3))).clip(-127, 127).astype(np.int8)
    z[numbers.random(z.shape) < 0.8] = 0
    mask = 0.722 * z.size / 8  # the entropy of a coin of .8
    values = np.unique(z[z != 0], return_counts=True)[1]
    entropy = -(values * np.log2(values / values.sum())).sum() / 8
    assert coded_bytes({"a": z}, 8)["a"] == pytest.approx(mask + entropy, rel=0.05)
