"""Models that the operator offers by name, and metrics other than accuracy."""

import json

import onnx
import pytest
import torch
from language_models import write_language_model
from onnx import TensorProto, helper, numpy_helper
from service_parts import Visitor

from haq.errors import HaqError
from haq.runs.run import run
from haq.service import place, store
from haq.service.scores import metric_of_run, text_of
from haq.service.serve import Offers, settings_of


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    """Return a folder with a small language model, a text and an ONNX file."""
    folder = tmp_path_factory.mktemp("operator")
    write_language_model(folder, positions=8)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w"], ["c"], "conv"), node("Relu", ["c"], ["r"], "relu"),
        node("Flatten", ["r"], ["f"], "flat"), node("Gemm", ["f", "v"], ["y"], "last"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [
            numpy_helper.from_array(torch.randn(*shape).numpy(), name)
            for name, shape in (("w", (4, 1, 3, 3)), ("v", (144, 10)))
        ],
    )  # fmt: skip
    sets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=10), folder / "net.onnx")
    return folder


@pytest.fixture
def visitor(operator, tmp_path):
    return Visitor(
        tmp_path,
        models={"gpt": f"hf:{operator / 'gpt'}", "net": f"onnx:{operator / 'net.onnx'}"},
        data={"digits": "digits", "words": f"text:{operator / 'text.txt'}"},
    )


def test_choices_name_offered_models_without_their_paths_and_all_metrics(visitor, operator):
    answer = visitor.client.get("/v1/choices")
    models = {model["name"]: model for model in answer.json()["models"]}
    assert models["gpt"]["channels"] is None and models["net"]["channels"] == 1
    assert {"top1", "top5", "cosine", "agreement", "perplexity", "miou"} == {
        *answer.json()["metrics"]
    }
    assert str(operator) not in answer.text and str(operator) not in visitor.client.get("/new").text


LANGUAGE = {"model": "gpt", "data": "words", "agent": "ilp", "budgets": ["avg_weight_bits=7"]}


def test_a_language_model_is_run_and_told_by_perplexity(visitor, tmp_path):
    asked = LANGUAGE | {"length": 6, "rounding_steps": 1, "clipping": "max"}
    made = visitor.client.post("/v1/runs", json=asked).json()
    assert made["metric"] == "perplexity" and made["job"]["model"] == "gpt"
    job = store.find(visitor.engine, made["id"]).job
    folder = tmp_path / "run"
    folder.mkdir()
    summary = run(place.with_paths(job, visitor.settings), folder)
    assert 1 < summary["final_test_perplexity"] < 20
    score = json.loads((folder / "trials.jsonl").read_text().splitlines()[0])["metric_score"]
    assert float(text_of(metric_of_run(job), score)) > 1


@pytest.mark.parametrize("metric", [None, "top1", "top5", "cosine", "agreement"])
def test_an_onnx_file_takes_the_metrics_of_the_command_line(visitor, metric):
    asked = {"model": "net", "agent": "ilp", "budgets": ["avg_weight_bits=7"], "metric": metric}
    made = visitor.client.post("/v1/runs", json=asked)
    assert made.status_code == 201
    assert made.json()["metric"] == (metric or "top1")


def test_the_form_takes_a_metric_and_shows_the_best_by_it(visitor):
    form = {"model": "net", "data": "digits", "agent": "ilp", "metric": "cosine",
            "quantity.0": "avg_weight_bits", "budgets.0": "7", "action": "begin"}  # fmt: skip
    page = visitor.client.post("/new", data=form).text
    assert "Best cosine" in page and "\u2013" in page
    assert "cosine" in visitor.client.get("/new").text


@pytest.mark.parametrize(
    "change, field, said",
    [
        ({"metric": "miou"}, "metric", "metric miou needs labels, and the data have none"),
        ({"data": "digits"}, "data", "model gpt takes tokens"),
        ({"length": 100}, "data", "give a longer text"),
        ({"evaluation": "finetune", "metric": "cosine"}, "data", "have no labels"),
        ({"model": "digits_cnn"}, "data", "needs a tokenizer"),
    ],
)
def test_what_does_not_go_together_is_refused_without_a_path(
    visitor, operator, change, field, said
):
    answer = visitor.client.post("/v1/runs", json=LANGUAGE | change)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert said in answer.json()["message"] and str(operator) not in answer.text
    assert visitor.client.get("/v1/runs").json()["runs"] == []


def test_a_model_that_is_offered_no_more_is_refused_where_it_is_run(visitor, tmp_path):
    made = visitor.client.post("/v1/runs", json=LANGUAGE).json()
    job = store.find(visitor.engine, made["id"]).job
    bare = Visitor(tmp_path / "other").settings
    with pytest.raises(HaqError, match="is not offered here"):
        place.with_paths(job, bare)


@pytest.mark.parametrize(
    "offer, said",
    [
        ("gpt", "write NAME=MODEL"),
        ("gpt=hf:/nowhere", "/nowhere does not exist"),
        ("gpt=os:getcwd", "give one that begins with torchvision, timm, hf, onnx"),
        ("resnet20=hf:gpt", "comes with HAQ"),
        ("net=onnx:/nowhere.onnx", "nowhere.onnx"),
        ("a/b=timm:resnet18", "write NAME=MODEL"),
    ],
)
def test_what_cannot_be_offered_is_refused_at_the_start(tmp_path, offer, said):
    with pytest.raises(HaqError, match=said):
        settings_of(tmp_path / "files", None, Offers(models=[offer]))
    assert not (tmp_path / "files").exists()


def test_a_relative_path_means_the_same_in_every_process(operator, tmp_path, monkeypatch):
    monkeypatch.chdir(operator)
    models = settings_of(tmp_path, None, Offers(models=["net=onnx:net.onnx,x=1x1x8x8"])).models
    assert models == {"net": f"onnx:{operator / 'net.onnx'},x=1x1x8x8"}


def test_the_openapi_document_gives_no_default_that_is_not_meant(visitor):
    document = visitor.client.get("/v1/openapi.json").json()
    fields = document["components"]["schemas"]["JobRequest"]["properties"]
    for name in ("finalists", "evaluation", "reward", "metric", "episodes", "length"):
        assert fields[name].get("default") is None


@pytest.mark.parametrize("what", ["models", "data", "weights"])
def test_two_offers_of_one_name_are_refused(tmp_path, what):
    with pytest.raises(HaqError, match="net is offered already; give another name"):
        settings_of(tmp_path / "files", None, Offers(**{what: ["net=timm:a", "net=timm:b"]}))
