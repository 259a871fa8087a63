"""A run with channels to choose, from the request to its pages and files."""

import numpy as np
import onnxruntime
import pytest
from service_parts import Visitor

from haq.runs.run import run
from haq.service import store
from haq.service.store import Lease

ASKED = {
    "model": "digits_mlp", "budgets": ["size=2.5kB"], "agent": "ilp", "float_epochs": 1,
    "widths": [1, 0.75, 0.5], "channel_multiple": 8, "threads": 1, "val_images": 50,
    "calibration_images": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def visitor(tmp_path_factory):
    return Visitor(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def done(visitor):
    """Return the id of a run that was asked for and carried out."""
    made = visitor.client.post("/v1/runs", json=ASKED)
    assert made.status_code == 201, made.text
    taken = store.claim(visitor.engine, "worker", 60, 3)
    folder = visitor.settings.run_folder(taken.id)
    folder.mkdir()
    run(taken.job, folder)
    store.finish(visitor.engine, Lease(taken.id, taken.fence), [])
    return made.json()["id"]


def test_the_layers_say_which_channels_stay(visitor, done):
    place = f"/v1/runs/{done}"
    assert visitor.client.get(place).json()["job"]["channel_multiple"] == 8
    layers = visitor.client.get(f"{place}/layers").json()
    assert any(row["channels"] < row["float_channels"] for row in layers)
    assert all(row["channels"] % 8 == 0 for row in layers[:-1])
    head, *rows = visitor.client.get(f"{place}/layers?format=csv").text.splitlines()
    column = head.split(",").index("channels")
    assert [int(row.split(",")[column]) for row in rows] == [row["channels"] for row in layers]
    policy = visitor.client.get(f"{place}/policy").json()
    keeps = [bits.get("keep", 1) for bits in policy["layers"].values()]
    assert keeps == [row["channels"] / row["float_channels"] for row in layers]


def test_the_report_says_why_and_the_files_are_of_the_narrower_network(visitor, done):
    page = visitor.client.get(f"/v1/runs/{done}/report").text
    assert "channel-table" in page
    assert visitor.client.get(f"/runs/{done}").status_code == 200
    files = {file["name"]: file["href"] for file in visitor.client.get(
        f"/v1/runs/{done}/files").json()}  # fmt: skip
    [record] = visitor.client.get(files["transforms.json"]).json()["transforms"]
    assert record["transform"] == "filters"
    content = visitor.client.get(files["model.onnx"]).content
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    image = np.zeros((1, 1, 8, 8), np.float32)
    (answer,) = session.run(None, {session.get_inputs()[0].name: image})
    assert answer.shape == (1, 10)


@pytest.mark.parametrize(
    "change, field, sentence",
    [
        ({"widths": [1, 0.75], "budgets": ["avg_weight_bits=3"]}, "budgets", "does not go with"),
        ({"widths": []}, "channel_multiple", "--channel-multiple 8 is for --widths"),
        ({"channel_multiple": 512}, "widths", "keep a multiple of 512"),
        ({"widths": [1, 2]}, "widths.1", "give at most 1"),
        ({"widths": [1]}, "widths", "leaves nothing to choose"),
    ],
)
def test_what_cannot_be_is_refused_beside_its_field(visitor, done, change, field, sentence):
    answer = visitor.client.post("/v1/runs", json={**ASKED, **change})
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert sentence in error["message"] and error["field"] == field
