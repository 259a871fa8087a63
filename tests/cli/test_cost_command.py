import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hw_targets import VELA

from haq.cli.main import main
from haq.hw_profiles import TARGETS, load
from haq.hw_profiles.bitfusion import BitFusionFormula

PAIRS = {f"{weight},{act}" for weight in range(1, 9) for act in range(1, 9)}


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Haq:
    """The command line: what it prints, and the code it exits with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["haq", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        printed = self._capsys.readouterr()
        return int(exited.value.code or 0), printed.out, printed.err

    def json(self, *arguments: str) -> dict[str, Any]:
        code, out, _ = self(*arguments, "--json")
        assert code == 0
        table: dict[str, Any] = json.loads(out)
        return table


@pytest.fixture
def haq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Haq:
    return Haq(monkeypatch, capsys)


def test_bitfusion_gives_cycles_with_the_energy_beside_them(haq: Haq) -> None:
    table = haq.json("cost", "--model", "mobilenet_v2", "--target", "bitfusion-eyeriss")
    assert (table["target"], table["batch"], table["unit"]) == ("bitfusion-eyeriss", 16, "cycles")
    assert table["provenance"] == {"latency": "modelled", "energy": "modelled"}
    assert len(table["layers"]) == 53
    for layer in table["layers"]:
        assert layer["cost"].keys() == layer["energy_nj"].keys() == PAIRS
    fc = table["layers"][-1]
    assert [fc["cost"][pair] for pair in ("8,8", "4,4", "2,2")] == [66903, 33195, 19329]
    assert fc["energy_nj"]["8,8"] == pytest.approx(216655, abs=0.5)


def test_what_the_simulator_says_stands_in_raw_where_the_cost_is_less(haq: Haq) -> None:
    table = haq.json("cost", "--model", "mobilenet_v2", "--target", "bitfusion-eyeriss")
    assert any(layer["raw"] for layer in table["layers"])
    assert any(layer["raw_energy_nj"] for layer in table["layers"])
    for layer in table["layers"]:
        for cost, raw in (("cost", "raw"), ("energy_nj", "raw_energy_nj")):
            for pair, value in layer[raw].items():
                weight, act = map(int, pair.split(","))
                wider = [f"{w},{a}" for w in range(weight, 9) for a in range(act, 9)]
                simulated = [layer[raw].get(other, layer[cost][other]) for other in wider]
                assert value > layer[cost][pair] == min(simulated)


def test_only_bitfusion_has_raw_values(haq: Haq) -> None:
    for name in TARGETS if VELA else (n for n in TARGETS if not n.startswith("ethos-")):
        layers = haq.json("cost", "--model", "digits_cnn", "--target", name, "--batch", "1")
        hardware = load(name, 1)
        expected = isinstance(hardware.formula, BitFusionFormula)
        assert all(("raw" in layer) == expected for layer in layers["layers"])


def test_the_batch_is_the_profiles_unless_given(haq: Haq) -> None:
    command = ["cost", "--model", "digits_cnn", "--target", "bitfusion-eyeriss"]
    own, one = haq.json(*command), haq.json(*command, "--batch", "1")
    assert (own["batch"], one["batch"]) == (16, 1)
    assert one["layers"][0]["cost"]["8,8"] < own["layers"][0]["cost"]["8,8"]


@pytest.mark.parametrize("name", ["bitfusion-default", "bismo-edge", "roofline-45nm"])
def test_csv_has_a_row_for_each_layer_and_pair(haq: Haq, name: str) -> None:
    command = ["cost", "--model", "digits_cnn", "--target", name]
    code, out, _ = haq(*command, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    layers = haq.json(*command)["layers"]
    unit = load(name).units["latency"]
    assert code == 0 and len(rows) == 64 * len(layers)
    for row in rows:
        (layer,) = (layer for layer in layers if layer["name"] == row["layer"])
        pair = f"{row['weight_bits']},{row['act_bits']}"
        assert float(row[f"latency_{unit}"]) == layer["cost"][pair]
        assert float(row["energy_nj"]) == layer["energy_nj"][pair]


@pytest.mark.parametrize("name", ["bitfusion-default", "bismo-cloud", "roofline-45nm"])
def test_the_csv_is_a_target_of_the_same_costs(haq: Haq, tmp_path: Path, name: str) -> None:
    command = ["cost", "--model", "digits_cnn", "--target"]
    (tmp_path / "own.csv").write_text(haq(*command, name, "--csv")[1])
    before, after = haq.json(*command, name), haq.json(*command, "table:own.csv")
    assert after["provenance"] == {"latency": "user", "energy": "user"}
    assert (after["unit"], after["batch"]) == (before["unit"], before["batch"])
    for old, new in zip(before["layers"], after["layers"], strict=True):
        assert (new["cost"], new["energy_nj"]) == (old["cost"], old["energy_nj"])
    assert load("table:own.csv").si == pytest.approx(load(name).si)


def test_the_table_on_the_screen_has_the_sums_and_says_what_they_are_worth(
    haq: Haq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = haq("cost", "--model", "digits_cnn", "--target", "bitfusion-default")
    layers = haq.json("cost", "--model", "digits_cnn", "--target", "bitfusion-default")["layers"]
    names = [line.split()[0] for line in out.splitlines()[2:-3]]
    assert names == [layer["name"] for layer in layers]
    sums = out.splitlines()[-3].split()
    assert code == 0 and sums[0] == "all"
    assert sums[1] == f"{sum(layer['cost']['8,8'] for layer in layers):,}"
    energy = f"{sum(layer['energy_nj']['8,8'] for layer in layers):,.0f} at w8a8"
    assert out.splitlines()[-2].startswith("energy_nj, all layers: ") and energy in out
    assert out.splitlines()[-1].endswith("come from: latency modelled, energy inferred")


def test_a_table_of_energy_alone_is_enough(haq: Haq, tmp_path: Path) -> None:
    rows = [f"{name},8,8,{n}.5" for n, name in enumerate(_names(haq))]
    (tmp_path / "own.csv").write_text("\n".join(["layer,weight_bits,act_bits,energy_uj", *rows]))
    table = haq.json("cost", "--model", "digits_cnn", "--target", "table:own.csv")
    assert table["unit"] == "uJ" and table["layers"][2]["cost"] == {"8,8": 2.5}
    assert haq("cost", "--model", "digits_cnn", "--target", "table:own.csv")[0] == 0


def _names(haq: Haq) -> list[str]:
    layers = haq.json("cost", "--model", "digits_cnn", "--target", "bismo-edge")["layers"]
    return [layer["name"] for layer in layers]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--target", "bitfusion"], "unknown target 'bitfusion'; did you mean 'bitfusion-"),
        (["--target", "bitfusion-eyeriss", "--json", "--csv"], "--json and --csv are two ways"),
        (["--target", "bitfusion-eyeriss", "--batch", "0"], "a batch of at least 1 image, not 0"),
        (["--target", "table:none.csv"], "table none.csv: cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(haq: Haq, arguments: list[str], sentence: str) -> None:
    code, out, err = haq("cost", "--model", "digits_cnn", *arguments)
    assert code == 2 and not out
    assert err.startswith("haq: ") and sentence in err and len(err.splitlines()) == 1


def test_nothing_but_the_cache_is_written(haq: Haq, tmp_path: Path) -> None:
    haq.json("cost", "--model", "digits_cnn", "--target", "bitfusion-default")
    assert set(os.listdir(tmp_path)) <= {"cache"}
