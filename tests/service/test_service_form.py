"""The form for a new search: what it asks for, what it refuses, sweeps, and runs once more."""

import json
import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_parts import ASKED, Visitor

from haq.agents import AGENTS
from haq.allocation.schemes import SCHEMES
from haq.hw_profiles import TARGETS
from haq.metrics import METRICS
from haq.runs.job import parse_job
from haq.service import choices
from haq.service.limits import Limits
from haq.service.pages import fields
from haq.service.settings import Settings
from haq.service.shapes import JobRequest

FORM = {
    "model": "digits_cnn", "data": "digits", "agent": "ilp", "episodes": "3", "action": "begin",
    "quantity.0": "avg_weight_bits", "budgets.0": "4", "quantity.1": "size", "budgets.1": "",
}  # fmt: skip


def post(client, **changes):
    return client.post("/new", data=FORM | changes, follow_redirects=False)


def the_run(client):
    [run] = client.get("/v1/runs").json()["runs"]
    return run


def said(answer, field):
    assert answer.status_code == 422
    [sentence] = re.findall(
        rf'<p class="error" id="{re.escape(field)}-error">(.*?)</p>', answer.text
    )
    return sentence.replace("&#39;", "'").replace("&#34;", '"')


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What the API and the form offer."""
    client = Visitor(tmp_path_factory.mktemp("shown")).client
    return client.get("/v1/choices").json(), unescape(client.get("/new").text)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_is_explained(shown, name):
    offered, page = shown
    about = choices.AGENTS_ABOUT[name]
    assert 20 < len(about) < 140 and about.endswith(".")
    assert offered["explained"]["agents"][name] == about and about in page


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_explained(shown, name):
    offered, page = shown
    [target] = [one for one in offered["targets"] if one["name"] == name]
    assert len(target["about"]) > 10 and f'<option value="{name}">' in page


def test_no_word_is_left_unexplained(client):
    explained = client.get("/v1/choices").json()["explained"]
    assert set(explained["agents"]) == set(AGENTS)
    assert set(explained["schemes"]) == set(SCHEMES)
    assert set(explained["metrics"]) == set(METRICS)
    shapes = JobRequest.model_json_schema()["properties"]
    for field, words in (("reward", "rewards"), ("evaluation", "evaluations")):
        assert set(shapes[field]["anyOf"][0]["enum"]) == set(explained[words])


def test_only_what_is_needed_is_unfolded(client):
    before, _, folded = client.get("/new").text.partition('<details class="fold"')
    names = set(re.findall(r'name="([^"]+)"', before)) - {
        "key",
        "action",
        "viewport",
        "color-scheme",
    }
    rows = {f"{part}.{row}" for part in ("quantity", "budgets") for row in (0, 1)}
    assert names == {"model", "data", "target"} | rows
    assert '<details class="fold" id="fold-keep">' in '<details class="fold"' + folded


def test_a_fold_with_a_mistake_is_open(client):
    answer = post(client, seed="-1")
    assert said(answer, "seed") == "give 0 or more, not '-1'"
    assert '<details class="fold" id="fold-search" open>' in answer.text
    assert '<details class="fold" id="fold-bits">' in answer.text


def test_data_that_do_not_go_with_a_model_are_known_beforehand(client):
    text = client.get("/new").text
    fits = json.loads(re.search(r'data-fits="(.*?)"', text)[1].replace("&#34;", '"'))
    assert fits["digits_cnn"] == ["digits"] and fits["resnet20"] == []


def test_images_go_with_models_of_as_many_channels():
    settings = Settings(data={"digits": "digits", "c": "cifar10:x", "t": "text:x"})
    known = choices.choices(settings)
    fits = choices.fits(settings, known, ["digits", "c", "t", "upload:1"])
    assert fits["resnet20"] == ["c", "upload:1"] and fits["digits_mlp"] == ["digits"]


def test_pins_ranges_formats_and_rewards_reach_the_job(client):
    answer = post(
        client, pins="conv2 = 4\nconv3=6", least_bits="3", act_bits="8", reward="loss",
        evaluation="cheap", finalists="0", tags="paper, w4", remark="two\nlines", seed="7",
    )  # fmt: skip
    assert answer.status_code == 303
    run = the_run(client)
    job = run["job"]
    assert job["pins"] == {"conv2": 4, "conv3": 6} and job["weight_bits"] == [3, 8]
    assert (job["act_bits"], job["reward"], job["finalists"], job["seed"]) == (8, "loss", 0, 7)
    assert (run["tags"], run["remark"]) == (["paper", "w4"], "two\nlines")


@pytest.mark.parametrize(
    "changes, field, sentence",
    [
        ({"pins": "conv1"}, "pins", "line 'conv1': write LAYER=BITS, or none"),
        ({"pins": "conv1=9"}, "pins", "conv1: give at most 8, not '9'"),
        ({"pins": "conv9=4"}, "pins", "unknown layer 'conv9'"),
        ({"least_bits": "1"}, "least_bits", "give 2 or more, not '1'"),
        ({"most_bits": "x"}, "most_bits", "give a whole number, not 'x'"),
        ({"least_bits": "5", "most_bits": "3"}, "least_bits", "5..3 is empty"),
        ({"more": "{"}, "more", "this is no JSON"),
        ({"more": '{"nonsense": 1}'}, "more", "no field 'nonsense' (known: act_bits"),
        ({"more": "[" * 3000}, "more", "this is no JSON"),
        ({"budgets.0": ""}, "budgets.0", "give a budget, such as 3, 90kB"),
        ({"budgets.0": "3,4", "budgets.1": "8kB 9kB"}, "budgets.1", "with the first budget alone"),
        ({"budgets.0": " ".join(map(str, range(21)))}, "budgets.0", "at most 20 values"),
        ({"budgets.0": "4 1"}, "budgets.0", "avg_weight_bits=1: no policy fits"),
        ({"tags": "x" * 41}, "tags", "give at most 40 characters"),
        ({"hook": "http://127.0.0.1:9/"}, "hook", "nothing can be told here"),
        ({"target": "gap9-ne16x"}, "target", "did you mean 'gap9-ne16'"),
        ({"reward": "joy"}, "reward", "'loss' or 'agreement', not 'joy'"),
    ],
)  # fmt: skip
def test_a_mistake_is_said_beside_its_field_and_nothing_typed_is_lost(
    client, changes, field, sentence
):
    answer = post(client, remark="keep <this>", title="and this", **changes)
    assert sentence in said(answer, field)
    assert "keep &lt;this&gt;</textarea>" in answer.text and 'value="and this"' in answer.text
    for value in changes.values():
        assert "".join(value.splitlines()[:1]) in unescape(answer.text)
    assert client.get("/v1/runs").json()["runs"] == []


def test_the_script_is_told_the_same_as_the_form(client):
    told = client.post("/new/check", data=FORM | {"pins": "conv1=9"}).json()
    assert told == {"errors": {"pins": "conv1: give at most 8, not '9'"}, "ranges": {}}
    told = client.post("/new/check", data=FORM | {"quantity.1": "latency"}).json()
    assert told["errors"] == {} and told["ranges"]["1"] == "latency needs hardware that knows it."
    assert re.match(r"From 2\.\d+ \(cheapest policy\) to 8 bits", told["ranges"]["0"])


def test_several_budgets_are_a_sweep(client, visitor):
    answer = post(client, **{"budgets.0": "3, 4;5", "budgets.1": "9kB"}, title="front", key="k")
    place = answer.headers["location"]
    assert re.fullmatch("/sweeps/[0-9a-f]{32}", place)
    assert post(client, **{"budgets.0": "3, 4;5", "budgets.1": "9kB"}, title="front",
                key="k").headers["location"] == place  # sent twice  # fmt: skip
    runs = client.get(f"/v1{place}").json()["runs"]
    assert [run["job"]["budgets"] for run in runs] == [
        [f"avg_weight_bits={bits}", "size=9kB"] for bits in (3, 4, 5)
    ]
    assert runs[0]["title"] == "front, avg_weight_bits=3, size=9kB"
    page = client.get(place).text
    assert "0 of 3 are over; all of digits_cnn" in page and all(run["id"] in page for run in runs)


def test_a_sweep_is_begun_whole_or_not_at_all(client):
    job = {**ASKED, "budgets": ["size=9kB"]}
    body = {"job": job, "budgets": [["avg_weight_bits=4"], ["avg_weight_bits=1"]]}
    answer = client.post("/v1/sweeps", json=body)
    assert answer.status_code == 422
    assert answer.json()["message"].startswith("avg_weight_bits=1: no policy fits")
    assert client.get("/v1/runs").json()["runs"] == []
    body["budgets"][1] = ["avg_weight_bits=5"]
    made = client.post("/v1/sweeps", json=body)
    assert made.status_code == 201 and len(made.json()["runs"]) == 2
    assert client.get(made.headers["location"]).json()["id"] == made.json()["id"]
    assert client.get(f"/v1/sweeps/{'0' * 32}").status_code == 404


def test_a_sweep_does_not_get_around_the_limit_of_runs(tmp_path):
    visitor = Visitor(tmp_path, limits=Limits(waiting=2))
    body = {"job": ASKED, "budgets": [["size=9kB"], ["size=8kB"], ["size=7kB"]]}
    assert visitor.client.post("/v1/sweeps", json=body).status_code == 429


def test_a_sweep_is_its_users_alone(tmp_path):
    visitor = Visitor(tmp_path, is_open=False)
    ada, bob = visitor.as_user("ada"), visitor.as_user("bob")
    body = {"job": ASKED, "budgets": [["size=9kB"], ["size=8kB"]]}
    place = ada.post("/v1/sweeps", json=body).headers["location"]
    assert ada.get(place).status_code == 200 and bob.get(place).status_code == 404


JOBS = [
    {}, {"agent": "ilp"}, {"agent": "ddpg", "paper": True}, {"max_drop": 1.0},
    {"evaluation": "finetune"}, {"pins": {}}, {"pins": {"conv2": 4}, "weight_bits": [3, 6]},
    {"schemes": ["weight-only"], "groups": [32, 64]}, {"widths": [1, 0.5], "channel_multiple": 4,
     "budgets": ["size=5kB"]}, {"distill": "none", "per_channel": False, "metric": "cosine"},
    {"budgets": ["size=9kB", "avg_weight_bits=4", "bops=9G"]}, {"lr": 0.1, "act_bits": "search"},
    {"target": "bismo-edge", "batch": 4, "budgets": ["latency=50%w8a8"], "minimise": None},
]  # fmt: skip


@pytest.mark.parametrize("asked", JOBS, ids=str)
def test_a_run_once_more_asks_for_the_same(asked):
    job = parse_job(**({"episodes": 9} | asked))
    form = fields.values_of(job, "t")
    budgets = fields.budgets_of(form)
    again = fields.fields_of(form) | ({"budgets": budgets[0]} if budgets else {})
    again = JobRequest.model_validate(again).job_fields()
    if job.max_drop is not None:
        again["episodes"] = 9  # such a search has its own number unless asked otherwise
    assert parse_job(**again) == job


def test_again_fills_the_form(client):
    asked = {**ASKED, "title": "first", "seed": 5, "tags": ["a"]}
    run_id = client.post("/v1/runs", json=asked).json()["id"]
    text = client.get(f"/new?again={run_id}").text
    assert "Again with changes" in text and "As <em>first</em> was asked for" in text
    assert re.search(r'id="seed" name="seed" value="5"', text)
    assert '<details class="fold" id="fold-search" open>' in text
    assert f'href="/new?again={run_id}"' in client.get(f"/runs/{run_id}").text
    assert client.get(f"/new?again={'0' * 32}").status_code == 404


NAMES = [*fields._PLAIN, "pins", "more", "tags", "widths", "groups", "least_bits", "budgets.0"]


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=20)))
def test_whatever_is_typed_is_read_or_refused_in_a_sentence(form):
    try:
        fields.budgets_of(form)
        fields.fields_of(form)
    except fields.FieldMistake as error:
        assert error.field in form and str(error)
