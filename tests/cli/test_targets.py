import json
from pathlib import Path

import numpy as np
import pytest

from haq.allocation.choices import permitted
from haq.allocation.costs import CostTable, Edge, tabulate
from haq.allocation.policy import Bits
from haq.cli import main as cli
from haq.cli.terminal.run import print_run
from haq.errors import TargetError
from haq.hw_profiles import TARGETS, load
from haq.network.layers import Layer
from haq.runs.provenance import cost_origin, describe

LAYERS = (
    Layer("a", "linear", c_in=16, c_out=8, weights=128, macs=128),
    Layer("b", "linear", c_in=8, c_out=4, weights=32, macs=32, reads="b"),
)
W8A8 = {"a": Bits(8, 8), "b": Bits(8, 8)}


def haq(monkeypatch: pytest.MonkeyPatch, *command: str) -> int:
    monkeypatch.setattr("sys.argv", ["haq", *command])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def board(tmp_path: Path, text: str = "") -> str:
    path = tmp_path / "board.csv"
    path.write_text(
        "layer,weight_bits,act_bits,latency_us\na,8,8,5\na,4,8,3\nb,8,8,1\nb,4,8,1\n" + text
    )
    return f"table:{path}"


def test_targets_are_listed_with_what_their_numbers_are_worth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert haq(monkeypatch, "targets") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["target", "device", "costs", "bits", "batch"]
    (cloud,) = [place for place, line in enumerate(lines) if line.startswith("bismo-cloud ")]
    for part in ("Xilinx VU9P", "latency reconstructed", "w1..8 a1..8", " 16"):
        assert part in lines[cloud]
    assert "energy inferred" in lines[cloud + 1]
    assert all(any(line.startswith(name) for line in lines) for name in TARGETS)


def test_targets_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert haq(monkeypatch, "targets", "--json") == 0
    targets = {target["name"]: target for target in json.loads(capsys.readouterr().out)}
    assert targets.keys() == TARGETS.keys()
    edge = targets["bismo-edge"]
    assert edge["device"] == "Xilinx Zynq-7020" and edge["model"] == "bitserial"
    assert edge["quantities"]["latency"]["provenance"] == "calibrated"
    assert edge["quantities"]["latency"]["error"] == 0.03
    assert edge["choices"][0] == [1, 1] and len(edge["choices"]) == 64
    assert edge["version"] == load("bismo-edge").profile.version


def test_a_file_of_ones_own_is_listed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = board(tmp_path, "a,32,32,9\n")
    assert haq(monkeypatch, "targets", name, "--json") == 0
    (target,) = json.loads(capsys.readouterr().out)
    assert target["target"] == name and target["name"] == "board.csv"
    assert target["bits"] == "w4a8, w8a8, fp32" and target["rows"] == 5
    assert target["quantities"]["latency"] == {
        "unit": "us", "provenance": "user", "source": "the table board.csv", "error": None,
        "monotone": False, "per_call": 0.0,
    }  # fmt: skip


def test_a_file_that_cannot_be_used_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert haq(monkeypatch, "targets", board(tmp_path, "a,8,8,9\n")) == 2
    assert "row 6 (a w8a8) is for the same layer and bits as row 2" in capsys.readouterr().err
    assert haq(monkeypatch, "targets", "bismo-clod") == 2
    assert "did you mean 'bismo-cloud'" in capsys.readouterr().err


def test_declared_bits_without_an_answer_are_said_when_listing(tmp_path: Path) -> None:
    profile = load(board(tmp_path)).profile
    content = json.loads(profile.model_dump_json(exclude_defaults=True))
    content["bits"] = {"weight": [4, 6, 8], "act": [8]}
    path = tmp_path / "board.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TargetError, match="layer a has no row for w6a8 at batch 1"):
        describe(str(path))
    content["bits"]["between"] = "round-up"
    path.write_text(json.dumps(content))
    assert describe(str(path))["bits"] == "w4a8, w6a8, w8a8"
    del content["bits"]["weight"], content["bits"]["act"]
    path.write_text(json.dumps(content))
    assert describe(str(path))["bits"] == "w1..8 a1..8"


# How the costs of a policy were found.


def table_of(target: str) -> CostTable:
    loaded = load(target)
    return tabulate(LAYERS, permitted(LAYERS, loaded), loaded)


def test_a_modelled_cost_is_worth_what_the_profile_says() -> None:
    origin = cost_origin(load("bismo-cloud"), table_of("bismo-cloud"), W8A8)
    assert origin is not None
    assert origin["profile"] == "bismo-cloud" and origin["batch"] == 16
    assert origin["version"] == load("bismo-cloud").profile.version
    latency, energy = origin["quantities"]["latency"], origin["quantities"]["energy"]
    assert latency["methods"] == energy["methods"] == {"model": 2}
    assert (latency["provenance"], energy["provenance"]) == ("reconstructed", "inferred")
    assert latency["error"] == 0 and latency["edges"] == 0


def test_methods_are_counted_by_layer_and_the_weakest_decides(tmp_path: Path) -> None:
    content = json.loads(load(board(tmp_path)).profile.model_dump_json(exclude_defaults=True))
    content["quantities"]["latency"]["provenance"] = "measured"
    content["bits"] = {"between": "interpolate"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    table = table_of(str(path))
    mixed = cost_origin(load(str(path)), table, {"a": Bits(6, 8), "b": Bits(8, 8)})
    exact = cost_origin(load(str(path)), table, W8A8)
    assert mixed is not None and exact is not None
    assert mixed["quantities"]["latency"]["methods"] == {"exact": 1, "interpolated": 1}
    assert mixed["quantities"]["latency"]["provenance"] == "modelled"
    assert exact["quantities"]["latency"]["provenance"] == "measured"


def test_costs_of_edges_are_those_of_a_fit(tmp_path: Path) -> None:
    content = json.loads(load(board(tmp_path)).profile.model_dump_json(exclude_defaults=True))
    content["quantities"]["latency"]["provenance"] = "measured"
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    table = table_of(str(path))
    edge = Edge("a", "b", {"latency": np.array([[0.0, 2.0], [3.0, 0.0]])})
    linked = CostTable(table.layers, table.choices, table.rows, table.units, (edge,))
    told = []
    for weight in (4, 8):  # of the first layer; only a change costs something
        policy = {"a": Bits(weight, 8), "b": Bits(8, 8)}
        origin = cost_origin(load(str(path)), linked, policy)
        assert origin is not None
        latency = origin["quantities"]["latency"]
        told.append((latency["edges"], latency["provenance"]))
    assert told == [(1, "calibrated"), (0, "measured")]


def test_without_a_target_there_is_nothing_to_say() -> None:
    table = tabulate(LAYERS, permitted(LAYERS, None))
    assert cost_origin(None, table, W8A8) is None


def test_show_says_how_each_budget_was_counted(capsys: pytest.CaptureFixture[str]) -> None:
    origin = cost_origin(load("bismo-cloud"), table_of("bismo-cloud"), W8A8)
    budgets = [
        {"asked": "latency=50%w8a8", "quantity": "latency", "limit": 9, "unit": "cycles"},
        {"asked": "size=1kB", "quantity": "size", "limit": 9, "unit": "bytes"},
    ]
    summary = {
        "layers": [], "episodes": 1, "evaluations": 1, "seconds_per_evaluation": 1.0,
        "budgets": [{**budget, "achieved": 5} for budget in budgets],
    }  # fmt: skip
    version = load("bismo-cloud").profile.version[:12]
    print_run(Path("run"), {**summary, "cost_origin": origin})
    shown = capsys.readouterr().out
    told = "reconstructed (totals within 0.0%); layers: 2 model; profile bismo-cloud"
    assert f"{told} {version}, batch 16" in " ".join(shown.split())
    assert "counted" in shown
    print_run(Path("run"), summary)
    assert "does not say where this number comes from" in capsys.readouterr().out
