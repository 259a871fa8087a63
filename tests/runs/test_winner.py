"""A search on a profile that haq profile measured: its winner is measured too."""

import json

import pytest
from torch import nn

from haq.allocation.policy import FLOAT, Bits
from haq.errors import RunError
from haq.hw_profiles import load
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.models import build
from haq.runs.folder import read_job, read_json
from haq.runs.job import parse_job
from haq.runs.plan import plan
from haq.runs.profiling.profile import run_profile
from haq.runs.profiling.subject import subject
from haq.runs.progress import silent
from haq.runs.run import run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("profile") / "here.json"
    run_profile(subject("digits_cnn", data="digits"), out, Setup(), rounds=3)
    return out


def searched(folder, target, budgets, on_progress=silent, **fields):
    folder.mkdir()
    job = parse_job(
        model="digits_cnn", target=str(target), budgets=budgets, agent="uniform", episodes=2,
        float_epochs=1, train_images=64, val_images=64, final_epochs=0, threads=1,
        evaluation="finetune", reward="metric", **fields,
    )  # fmt: skip
    return run(job, folder, on_progress)


def test_the_winner_is_measured_and_stands_beside_its_prediction_and_the_budget(measured, tmp_path):
    shown = []
    summary = searched(tmp_path / "run", measured, ["latency=100000%w7a8"], shown.append)
    note = "layer 'conv1' is pinned to w7a8: here does not offer w8a8"
    assert summary["notes"][0] == note
    assert [now.note for now in shown if now.stage == "plan"] == ["; ".join(summary["notes"])]
    latency = summary["measured_latency"]
    assert latency["how"] == "best"
    assert 0 < latency["low"] <= latency["value"] <= latency["high"] < latency["budget"]
    assert latency["predicted"] == pytest.approx(summary["cost"]["latency"])
    assert read_json(tmp_path / "run" / "summary.json")["measured_latency"] == latency


def test_a_profile_of_another_machine_is_searched_on_but_not_measured(measured, tmp_path):
    other = json.loads(measured.read_text())
    other["runtime"]["options"]["cpu"] = "Abacus 3000"
    there = tmp_path / "there.json"
    there.write_text(json.dumps(other))
    summary = searched(tmp_path / "run", there, ["latency=100000%w7a8"])
    assert "measured with cpu 'Abacus 3000'" in summary["measured_latency"]["missing"]


def test_a_run_does_not_go_on_with_another_target(measured, tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text(measured.read_text())
    searched(tmp_path / "run", mine, ["size=9kB"])
    changed = json.loads(measured.read_text())
    changed["title"] = "measured again"
    mine.write_text(json.dumps(changed))
    with pytest.raises(RunError, match="is another one than when run .* began"):
        run(read_job(tmp_path / "run"), tmp_path / "run")


def test_without_a_latency_budget_nothing_is_measured(measured, tmp_path):
    summary = searched(tmp_path / "run", measured, ["size=9kB"])
    assert "measured_latency" not in summary


def planned(target, **fields):
    job = parse_job(model="digits_cnn", target=str(target), budgets=["size=9kB"], **fields)
    return plan(job, build("digits_cnn"), {"shape": (1, 8, 8)})


def choices(target, **fields):
    return planned(target, **fields).table.choices


def test_the_first_and_the_last_layer_may_stay_float_where_others_may(measured):
    ends = {Bits(7, 8), Bits(FLOAT, FLOAT)}
    found = choices(measured, act_bits="search")
    assert (set(found["conv1"]), set(found["linear"])) == (ends, ends)
    assert Bits(2, 2) in found["conv2"] and Bits(FLOAT, FLOAT) in found["conv2"]


def test_a_pin_is_a_pin_also_where_layers_may_stay_float(measured):
    assert choices(measured, act_bits="search", pins={"conv1": 7})["conv1"] == (Bits(7, 8),)


def test_a_pin_of_8_bits_gives_way_to_the_nearest_pair_that_is_offered_and_it_is_said(measured):
    of_ends = planned(measured)
    assert of_ends.table.choices["conv1"] == (Bits(7, 8), Bits(FLOAT, FLOAT))[:1]
    said = "latency of here: fewer than 8 bits of weights run in the kernels of 8: they gain size,"
    assert of_ends.notes == (
        "layer 'conv1' is pinned to w7a8: here does not offer w8a8",
        "layer 'linear' is pinned to w7a8: here does not offer w8a8",
        f"{said} not time",
    )
    of_user = planned(measured, pins={"conv2": 8})
    assert of_user.table.choices["conv2"] == (Bits(7, 8),)
    assert of_user.notes[:-1] == ("layer 'conv2' is pinned to w7a8: here does not offer w8a8",)
    assert planned(measured, pins={"conv2": 4}).notes[:-1] == ()
    assert planned("bismo-edge").notes == ()


def test_what_the_target_runs_in_float_only_stays_float_and_no_pin_is_missed(measured, tmp_path):
    content = json.loads(measured.read_text())
    table = content["table"]
    table["rows"] = [row for row in table["rows"] if row["layer"] != "linear" or row["act"] == 32]
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(content))
    assert planned(mine).table.choices["linear"] == (Bits(FLOAT, FLOAT),)


def test_costs_that_leave_out_what_stays_float_are_said(measured):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 10))
    note = "latency and energy of bismo-edge are without what stays float: it has no costs there"
    job = parse_job(model="mine", target="bismo-edge", budgets=["size=9kB"])
    assert note in plan(job, model, {"shape": (1, 8, 8)}).notes
    assert planned("bismo-edge").notes == ()  # nothing stays float
    assert load(str(measured)).counts_floats  # its rows sum up to what whole networks took
