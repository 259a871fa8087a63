"""Kits: what is in them, what a device may give, and that the profile predicts that device."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from kit_parts import WIDTHS, Net, board, subject, write_rows
from torch import nn
from typer.testing import CliRunner

from haq.allocation.costs import tabulate, total
from haq.allocation.policy import Bits
from haq.cli.main import app
from haq.errors import HaqError
from haq.hw_profiles import load
from haq.hw_profiles.document import write_json
from haq.hw_profiles.measured import OwnDevice
from haq.hw_profiles.pairs import listed
from haq.hw_profiles.rows import shape_of
from haq.network.graph import trace
from haq.network.layers import Layer
from haq.runs.kit.layer_file import layer_file
from haq.runs.kit.make import RUNNER, Choices, make_kit
from haq.runs.kit.read import MEASURED, contents_of, read_kit
from haq.runs.profiling.subject import lowering


@pytest.fixture
def kit(whole_kit, tmp_path):
    """The kit without its ONNX files, which reading does not need."""
    for name in ("kit.json", RUNNER):
        (tmp_path / name).write_bytes((whole_kit / name).read_bytes())
    return tmp_path


def test_a_kit_has_each_distinct_layer_once_at_each_width(whole_kit):
    contents = contents_of(whole_kit)
    assert len(contents.shapes) == 4  # b and c are equal
    alone = [about for about in contents.files.values() if "shape" in about]
    assert len(alone) == 4 * len(WIDTHS)
    mixed = [about["policy"] for about in contents.files.values() if "policy" in about]
    assert len(mixed) == len(WIDTHS) + 24
    assert {frozenset(policy) for policy in mixed} == {frozenset("a b c d fc".split())}
    assert sorted(path.name for path in (whole_kit / "files").iterdir()) == sorted(contents.files)


def test_every_file_runs_and_holds_as_many_bits_as_it_says(whole_kit):
    contents = contents_of(whole_kit)
    for name, about in contents.files.items():
        path = whole_kit / "files" / name
        network = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        place = network.get_inputs()[0]
        given = np.ones([size if isinstance(size, int) else 1 for size in place.shape], np.float32)
        assert np.isfinite(network.run(None, {place.name: given})[0]).all()
        if "shape" in about:
            shape = contents.shapes[about["shape"]]
            codes = next(
                onnx.numpy_helper.to_array(one)
                for one in onnx.load(path).graph.initializer if one.name == "codes"
            ).astype(int)  # fmt: skip
            depthwise = shape.kind == "depthwise"
            zero = 128 if about["bits"][0] == 8 and not depthwise else 0
            assert np.abs(codes - zero).max() <= 2 ** (about["bits"][0] - 1) - 1
            assert codes.size == shape.c_out * shape.c_in // shape.groups * np.prod(shape.kernel)


@pytest.mark.parametrize(
    "layer",
    [
        Layer("a", "conv", 4, 6, (3, 3), (2, 2), (1, 1), in_size=(9, 8), out_size=(5, 4)),
        Layer("a", "conv", 4, 6, (3, 3), (1, 1), (2, 2), in_size=(8, 8), out_size=(8, 8)),
        Layer("a", "pointwise", 4, 6, (1, 1), (2, 2), in_size=(8, 8), out_size=(4, 4)),
        Layer("a", "conv", 4, 6, (1, 5), (1, 1), (0, 2), in_size=(1, 16), out_size=(1, 16)),
        Layer("a", "conv", 2, 4, (3, 3, 3), (1, 1, 1), (1, 1, 1), in_size=(4, 6, 6),
              out_size=(4, 6, 6)),
        Layer("a", "transposed", 4, 6, (4, 4), (2, 2), (1, 1), in_size=(5, 5), out_size=(10, 10)),
        Layer("a", "linear", 4, 6, in_size=(7, 1), out_size=(7, 1)),
    ],
    ids=lambda layer: f"{layer.kind}{len(layer.kernel)}",
)  # fmt: skip
def test_a_layer_alone_has_the_sizes_that_it_has_in_its_network(layer):
    for batch in (1, 3):
        file = layer_file(shape_of(layer), Bits(4, 8), batch, "any")
        network = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        given = np.ones(network.get_inputs()[0].shape, np.float32)
        expected = (batch, layer.c_out, *layer.out_size)
        if layer.kind == "linear":
            expected = (batch * 7, layer.c_out)
        assert network.run(None, {"x": given})[0].shape == expected


def test_the_profile_predicts_a_device_whose_costs_are_known(kit):
    write_rows(kit)
    read = read_kit(kit, "board")
    assert read.validation.policies == 12
    assert read.validation.worst_error < 0.02
    assert read.validation.rank_correlation > 0.98
    assert abs(read.drift) < 1e-9 and read.rounds == 3
    contents = contents_of(kit)
    assert read.uniform == {Bits(w, 8): board(contents, f"uniform-w{w}a8.onnx") for w in (8, 4, 2)}
    path = kit / "board.json"
    path.write_text(write_json(read.profile))
    target = load(str(path))
    layers = trace(Net(), torch.zeros(1, 3, 8, 8)).layers
    assert [str(bits) for bits in target.choices(layers[0])] == ["w2a8", "w4a8", "w8a8"]
    policy = contents.files["mixed-01.onnx"]["policy"]
    predicted = sum(
        target.cost(
            layer, next(b for b in target.choices(layer) if b.weight == policy[layer.name][0])
        )["latency"]
        for layer in layers
    )
    assert predicted == pytest.approx(board(contents, "mixed-01.onnx"), rel=0.02)
    latency = target.profile.quantities["latency"]
    assert latency.provenance == "measured" and latency.error == read.validation.worst_error


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A kit with two widths of activations and float layers."""
    folder = tmp_path_factory.mktemp("kits") / "rich"
    make_kit(subject(), folder, Choices((4, 8), (4, 8), floats=True))
    return folder


def test_float_layers_and_widths_of_activations_have_files_and_rows(rich):
    contents = contents_of(rich)
    names = {name for name in contents.files if name.startswith("layer-00")}
    # The first layer reads the image, whose activations have 8 bits.
    assert names == {f"layer-00-{bits}.onnx" for bits in ("w4a8", "w8a8", "fp32")}
    assert {f"layer-01-{bits}.onnx" for bits in ("w4a4", "w8a4", "fp32")} <= contents.files.keys()
    uniform = {name for name in contents.files if name.startswith("uniform")}
    assert uniform == {f"uniform-{b}.onnx" for b in ("w4a8", "w8a8", "w8a4", "fp32")}
    drawn = {tuple(bits) for about in contents.files.values() for bits in
             about.get("policy", {}).values()}  # fmt: skip
    assert drawn == {(4, 4), (4, 8), (8, 4), (8, 8), (32, 32)}
    for name in contents.files:
        onnxruntime.InferenceSession(rich / "files" / name, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("batch", [1, 4])
def test_a_device_that_changes_precision_is_predicted_too(rich, tmp_path, batch):
    record = json.loads((rich / "kit.json").read_text("utf-8"))
    (tmp_path / "kit.json").write_text(json.dumps(record | {"batch": batch}), "utf-8")
    write_rows(tmp_path)
    read = read_kit(tmp_path, "board")
    assert read.validation.worst_error < 0.02 and read.validation.rank_correlation > 0.98
    model = read.profile.model
    assert isinstance(model, OwnDevice) and model.fitted_on == 12
    assert model.to_quantized == pytest.approx(0.03, rel=0.2)
    assert model.to_float == pytest.approx(0.01, rel=0.5)
    path = tmp_path / "board.json"
    path.write_text(write_json(read.profile))
    target, layers = load(str(path)), trace(Net(), torch.zeros(1, 3, 8, 8)).layers
    assert target.counts_floats and target.batch == batch
    assert listed(target.choices(layers[1])) == "w4a4, w4a8, w8a4, w8a8, fp32"
    contents = contents_of(tmp_path)
    policy = {name: Bits(*bits) for name, bits in contents.files["mixed-05.onnx"]["policy"].items()}
    assert any(bits.floats for bits in policy.values())
    table = tabulate(layers, {name: (bits,) for name, bits in policy.items()}, target)
    assert total(table, policy, "latency") == pytest.approx(
        board(contents, "mixed-05.onnx"), rel=0.03
    )


def test_transposed_layers_are_clipped_by_their_outputs_and_run():
    up = nn.ConvTranspose2d(6, 8, 2, 2, groups=2)
    asked = subject(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), up))
    largest = up.weight.detach().view(2, 3, 4, 2, 2).abs().amax((1, 3, 4)).flatten()
    assert torch.equal(asked.clips.weights["2"][8], largest)
    file = lowering(asked)({"0": Bits(8, 8), "2": Bits(4, 8)})
    network = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    given = {network.get_inputs()[0].name: np.ones((1, 3, 8, 8), np.float32)}
    assert network.run(None, given)[0].shape == (1, 8, 12, 12)


def test_a_layer_alone_computes_what_its_bits_say():
    shape = shape_of(Layer("a", "linear", 4, 3, in_size=(1, 1), out_size=(1, 1)))
    x = np.float32([[0.011, 0.3, -1, 9]])
    for bits, given in ((Bits(32, 32), x), (Bits(8, 8), [[0.02, 0.3, 0, 5.1]]),
                        (Bits(8, 4), [[0.02, 0.3, 0, 0.3]])):  # fmt: skip
        file = layer_file(shape, bits, 1, "any")
        network = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        held = {one.name: onnx.numpy_helper.to_array(one)
                for one in onnx.load_from_string(file).graph.initializer}  # fmt: skip
        weights = held["w"] if bits.floats else 0.01 * (
            held["codes"].astype(int) - held["weight_zero"].astype(int)
        )  # fmt: skip
        exact = np.maximum(np.array(given, np.float64) @ weights, 0)
        if not bits.floats:
            exact = np.minimum(exact, 255 * 0.02)
        assert network.run(None, {"x": x})[0] == pytest.approx(exact, abs=0.011)


def changed(place, **values):
    def change(rows):
        rows[place] |= values
        return rows

    return change


@pytest.mark.parametrize(
    "change, sentence",
    [
        (changed(3, us=-1.0), r"line 5: .* takes -1.0 us, which is no latency"),
        (changed(3, us=0), r"line 5: .* takes 0 us, which is no latency"),
        (changed(3, us="fast"), r"line 5: .* takes 'fast' us"),
        (changed(3, us=True), r"line 5: .* takes True us"),
        (changed(3, file="other.onnx"), "line 5: the kit has no file 'other.onnx'"),
        (changed(3, round=None), "line 5: it needs round and place"),
        (lambda rows: rows[:5], r"34 of 39 files were not measured \(layer-01-w4a8.onnx"),
        (lambda rows: [row | {"us": 7.0} for row in rows], "every layer takes 7 us"),
        (
            lambda rows: [row | {"us": row["us"] * (1 + 0.1 * row["round"])} for row in rows],
            r"\(\+20%\): the device changed its speed",
        ),
        (
            lambda rows: [row | {"us": row["us"] * (1 - 0.1 * row["round"])} for row in rows],
            r"\(-20%\): the device changed its speed",
        ),
        (
            lambda rows: [
                {"device": {"cpu": "b"}} if n == 3 else row for n, row in enumerate(rows)
            ],
            "line 5: figures of a second device begin here",
        ),
        (
            lambda rows: [row | {"us": 7.0} if "layer" not in row["file"] else row for row in rows],
            "every network takes 7 us",
        ),
        (changed(3, us=1e300), r"line 5: .* takes 1e\+300 us, which is no latency"),
        (changed(3, file=["a"]), r"line 5: the kit has no file \['a'\]"),
    ],
)
def test_what_is_no_latency_is_refused_with_its_row(kit, change, sentence):
    write_rows(kit, change=change)
    with pytest.raises(HaqError, match=sentence):
        read_kit(kit, "board")


def test_a_device_that_gets_hot_in_every_round_is_refused(kit):
    def hot(rows):
        return [row | {"us": row["us"] * (1 + 0.01 * row["place"])} for row in rows]

    write_rows(kit, change=hot, rounds=8)
    with pytest.raises(HaqError, match=r"us in the beginning of a round and .* \(\+40%\)"):
        read_kit(kit, "board")


@pytest.mark.parametrize("line", ["", '{"device": "board"}\n', '{"round": 0, "place": 0}\n'])
def test_figures_that_do_not_say_whose_they_are_are_refused(kit, line):
    (kit / MEASURED).write_text(line)
    with pytest.raises(HaqError, match="line 1: it must say which device was measured"):
        read_kit(kit, "board")


def test_all_files_that_are_missing_are_named_at_once(kit):
    write_rows(kit, change=lambda rows: [r for r in rows if "mixed" not in r["file"]])
    with pytest.raises(HaqError) as refused:
        read_kit(kit, "board")
    assert all(f"mixed-{number:02}.onnx" in str(refused.value) for number in range(24))


def test_a_line_torn_by_a_kill_does_not_count(kit):
    write_rows(kit)
    with (kit / MEASURED).open("a") as file:
        file.write('{"round": 9, "pla')
    assert read_kit(kit, "board").rounds == 3


@pytest.mark.parametrize(
    "text, sentence",
    [(None, "is no kit"), ("{", "is damaged"), ('{"format": "x"}', "is not of haq-kit/2"),
     ("[]", "is damaged"), ('{"format": "haq-kit/2"}', "is damaged")],
)  # fmt: skip
def test_what_is_no_kit_is_refused(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "kit.json").write_text(text)
    with pytest.raises(HaqError, match=sentence):
        read_kit(tmp_path, "board")


def test_nothing_was_measured_yet(kit):
    with pytest.raises(HaqError, match="measured.jsonl is not there: run run_kit.py"):
        read_kit(kit, "board")


def test_a_folder_that_is_there_is_not_written_to(whole_kit):
    with pytest.raises(HaqError, match="it is there already"):
        make_kit(subject(), whole_kit, Choices(WIDTHS))


def test_a_layer_that_no_file_is_made_of_is_named_and_nothing_is_left(tmp_path):
    model = nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (3, 64)), nn.LSTM(64, 4, batch_first=True))
    with pytest.raises(HaqError, match="no file is made of a layer of kind|has none"):
        make_kit(subject(model), tmp_path / "kit", Choices(WIDTHS))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options, sentence",
    [(["--act-bits", "9"], "act-bits 9: give widths of 2 to 8"),
     (["--act-bits", "a"], "act-bits a"),
     (["--weight-bits", "8"], "give at least two widths"), (["--weight-bits", "1..8"], "2..8"),
     (["--weight-bits", "x"], "write a range like 2..8"), (["--cpu", "arm"], "cpu 'arm'")],
)  # fmt: skip
def test_what_no_kit_can_be_made_of_is_refused(tmp_path, options, sentence, capsys, monkeypatch):
    from haq.cli.main import main

    out = tmp_path / "kit"
    asked = ["kit", "make", "--model", "digits_mlp", "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", ["haq", *asked])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
    assert not out.exists()


def test_the_runner_is_copied_as_it_is(whole_kit):
    from haq.runs.kit import run_kit

    assert (whole_kit / RUNNER).read_bytes() == Path(run_kit.__file__).read_bytes()


def test_the_tutorial_can_be_followed_line_by_line(tmp_path, monkeypatch):
    """On a device whose costs are known: its figures stand in for those of the second line."""
    page = Path(__file__).parents[2] / "docs" / "own-device.md"
    block = page.read_text("utf-8").split("<!-- tutorial -->\n```bash\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    lines = [line.split() for line in block.strip().splitlines()]
    assert all(line[0] == "haq" for line in lines) and len(lines) == 6
    for _, *arguments in lines:
        if arguments[:2] == ["kit", "run"]:
            write_rows(Path(arguments[2]))
            continue
        few = (
            ["--rounding-steps", "0", "--calibration-images", "64", "--val-images", "100"]
            if "search" in arguments
            else []
        )
        result = CliRunner().invoke(app, [*arguments, *few])
        assert result.exit_code == 0, (arguments, result.output, result.exception)
    summary = json.loads(Path("runs/board/summary.json").read_text())
    assert summary["budgets"][0]["achieved"] <= summary["budgets"][0]["limit"]
    # Rows are measured, what a change of precision costs is fitted.
    assert summary["cost_origin"]["quantities"]["latency"]["provenance"] in (
        "measured", "calibrated",
    )  # fmt: skip
