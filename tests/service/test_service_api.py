"""The HTTP API, as a client sees it; runs are made by writing their files and rows."""

import base64
import hashlib
import json
import re
import threading

import pytest
import schemathesis
from fastapi import HTTPException
from fastapi.testclient import TestClient
from service_parts import ASKED, Visitor, wait_for

from haq.runs.job import Job
from haq.service import checks, store
from haq.service.limits import Limits
from haq.service.routes.bodies import parsed
from haq.service.shapes import JobRequest
from haq.service.store.leases import Lease


def test_a_run_is_created_and_can_be_read(client):
    made = client.post("/v1/runs", json=ASKED)
    assert made.status_code == 201
    assert made.headers["location"] == f"/v1/runs/{made.json()['id']}"
    read = client.get(made.headers["location"]).json()
    assert read == made.json()
    assert (read["state"], read["episodes"], read["episodes_asked"]) == ("queued", 0, 3)
    assert read["job"]["budgets"] == ["avg_weight_bits=4"]
    assert read["job"]["threads"] == 1  # so that it goes on elsewhere as it began


def test_the_same_key_creates_one_run(client):
    key = {"Idempotency-Key": "monday"}
    first = client.post("/v1/runs", json=ASKED, headers=key)
    again = client.post("/v1/runs", json=ASKED, headers=key)
    other = client.post("/v1/runs", json={**ASKED, "seed": 1}, headers=key)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert again.json()["id"] == first.json()["id"]
    assert len(client.get("/v1/runs").json()["runs"]) == 1


WRONG = [
    ({"episodes": 0}, "episodes", "give 1 or more, not 0"),
    ({"episodes": "many"}, "episodes", "give a whole number, not 'many'"),
    ({"budgets": []}, "budgets", "at least 1 item"),
    ({"budgets": ["speed=3"]}, "budgets", "unknown budget 'speed'"),
    ({"budgets": ["avg_weight_bits=1"]}, "budgets", "no policy fits avg_weight_bits <= 1 bits"),
    ({"budgets": ["latency=3ms"]}, "budgets", "needs hardware to count on"),
    ({"model": "resnet21"}, "model", "unknown model 'resnet21'; did you mean 'resnet"),
    ({"model": "os:getcwd"}, "model", "unknown model 'os:getcwd'"),
    ({"model": "os:getcwd"}, "model", "unknown model 'os:getcwd'"),  # never imported
    ({"model": "hf:/etc"}, "model", "unknown model 'hf:/etc'"),  # never opened
    ({"model": "onnx:/etc/passwd"}, "model", "unknown model"),
    ({"model": "torchvision:resnet18"}, "model", "unknown model"),  # not offered
    ({"metric": "top3"}, "metric", "unknown metric 'top3'; did you mean 'top"),
    ({"metric": "miou"}, "metric", "metric miou needs logits of every class for every pixel"),
    ({"metric": "perplexity"}, "metric", "metric perplexity needs logits for the next token"),
    ({"metric": "cosine", "reward": "accuracy"}, "reward", "the metric is cosine"),
    ({"metric": "top5", "max_drop": 1, "agent": "ilp"}, "max_drop", "the metric is top5"),
    ({"length": 1}, "length", "give 2 or more, not 1"),
    ({"tokenizer": "/etc"}, "tokenizer", "should be None"),
    ({"model": "resnet20"}, "data", "resnet20 takes images of 3 channels, digits has 1"),
    ({"data": "os:getcwd"}, "data", "unknown data 'os:getcwd'"),
    ({"data": "folder:/etc"}, "data", "unknown data 'folder:/etc'"),
    ({"data": f"upload:{'0' * 32}"}, "data", "there is no upload"),
    ({"weights": "/etc/passwd"}, "weights", "unknown weights '/etc/passwd'"),
    ({"weights": "a.pt"}, "weights", "unknown weights"),
    ({"weights": "x", "float_epochs": 1}, "weights", "exclude each other"),
    ({"target": "table:/etc/passwd"}, "target", "unknown target"),
    ({"target": "/tmp/x.json"}, "target", "unknown target"),
    ({"target": "bismo-cluod"}, "target", "did you mean 'bismo-cloud'"),
    ({"agent": "dpg"}, "agent", "did you mean 'ddpg'"),
    ({"agent": "toys:Climber"}, "agent", "unknown agent 'toys:Climber'"),  # never imported
    ({"agent": "random", "paper": True}, "paper", "not random"),
    ({"clipping": "none"}, "clipping", "unknown clipping"),
    ({"pins": {"fc9": 8}}, "pins", "unknown layer 'fc9'"),
    ({"weight_bits": [5, 3]}, "weight_bits", "weight-bits 5..3 is empty"),
    ({"weight_bits": [0, 3]}, "weight_bits.0", "give 2 or more, not 0"),
    ({"size": 9}, "size", "digits"),
    ({"width": 2}, "width", "digits_cnn has no width 2"),
    ({"folder": "x"}, "folder", "Extra inputs are not permitted"),
    ({"workers": 2}, "workers", "workers 2: a search has 1 CPU threads here"),
    ({"workers": 0}, "workers", "give 1 or more, not 0"),
    ({"ray": "elsewhere:6379"}, "ray", "should be None"),
    ({"device": "cuda"}, "device", "give 'cpu', not 'cuda'"),
    ({"distill": {"kd": 1, "route": ["/etc/passwd"]}}, "distill", "it names files"),
    ({"distill": "kt:1"}, "distill", "unknown distillation"),
    ({"transforms": [{"transform": "filters", "keep": {}}]}, "transforms", "at most 0 items"),
    ({"seed": -1}, "seed", "give 0 or more, not -1"),
]


@pytest.mark.parametrize("change, field, message", WRONG, ids=[str(row[0]) for row in WRONG])
def test_what_is_wrong_is_said_of_its_field(client, change, field, message):
    answer = client.post("/v1/runs", json={**ASKED, **change})
    assert answer.status_code == 422
    problem = answer.json()
    [error] = [error for error in problem["errors"] if error["field"].startswith(field)]
    assert message in error["message"]
    assert client.get("/v1/runs").json()["runs"] == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff\xfe", b'{"episodes": NaN}', b'{"lr": 1e999}', b"[" * 100_000]
)
def test_what_is_no_job_is_refused(client, body):
    answer = client.post("/v1/runs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["message"]


def test_runs_are_listed_page_by_page_and_by_state(client):
    made = [client.post("/v1/runs", json={**ASKED, "title": f"t{n}"}).json() for n in range(3)]
    client.post(f"/v1/runs/{made[0]['id']}/cancel")
    first = client.get("/v1/runs?limit=2").json()
    rest = client.get("/v1/runs", params={"limit": 2, "after": first["next"]}).json()
    assert [run["title"] for run in first["runs"] + rest["runs"]] == ["t2", "t1", "t0"]
    assert rest["next"] is None
    cancelled = client.get("/v1/runs?state=cancelled").json()["runs"]
    assert [run["title"] for run in cancelled] == ["t0"]
    assert client.get("/v1/runs?text=T1").json()["runs"][0]["title"] == "t1"
    assert client.get("/v1/runs?after=rubbish").status_code == 422


def test_cancel_retry_delete(client):
    place = client.post("/v1/runs", json=ASKED).headers["location"]
    assert client.post(f"{place}/retry").status_code == 409
    assert client.post(f"{place}/cancel").json()["state"] == "cancelled"
    assert client.post(f"{place}/cancel").status_code == 409
    assert client.post(f"{place}/retry").json()["state"] == "queued"
    assert client.delete(place).status_code == 204
    assert client.get(place).status_code == 404


def test_a_finished_run_gives_its_results_as_json_and_csv(visitor, client):
    place = f"/v1/runs/{visitor.finished()}"
    trials = client.get(f"{place}/trials").json()
    assert [trial["episode"] for trial in trials] == [0, 1, 2]
    assert trials[0]["policy"] == {"fc": [4, 8]} and trials[0]["loss"] is None
    lines = client.get(f"{place}/trials?format=csv").text.splitlines()
    assert lines[0] == "episode,accuracy,loss,reward,seconds,cached,size,policy"
    assert len(lines) == 4
    assert client.get(f"{place}/layers").json()[0]["weight_bits"] == 4
    assert client.get(f"{place}/layers?format=csv").text == (
        "name,kind,params,macs,weight_bits,act_bits,size\nfc,linear,9,9,4,8,90.0\n"
    )
    assert client.get(f"{place}/policy?format=csv").text.startswith("layer,weight_bits,act_bits\n")


def test_a_run_without_episodes_says_so(client):
    place = client.post("/v1/runs", json=ASKED).headers["location"]
    for part in ("policy", "report"):
        answer = client.get(f"{place}/{part}")
        assert answer.status_code == 404
        assert answer.json()["message"] == "the run is queued and has no finished episode yet"
    for part in ("trials", "layers"):
        assert client.get(f"{place}/{part}").json() == []
        assert client.get(f"{place}/{part}?format=csv").text.count("\n") == 1
    assert client.get(f"{place}/charts").json()["charts"] == {}


def test_a_file_comes_whole_in_parts_and_with_its_checksum(visitor, client):
    place = f"/v1/runs/{visitor.finished()}/files/weights.safetensors"
    content = bytes(range(256))
    whole = client.get(place)
    digest = hashlib.sha256(content)
    assert whole.content == content
    assert whole.headers["etag"] == f'"{digest.hexdigest()}"'
    encoded = base64.b64encode(digest.digest()).decode()
    assert whole.headers["repr-digest"] == f"sha-256=:{encoded}:"
    part = client.get(place, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["content-range"] == "bytes 10-19/256"
    assert client.get(place, headers={"Range": "bytes=256-"}).status_code == 416
    known = client.get(place, headers={"If-None-Match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    listed = {file["name"]: file for file in client.get(place.rpartition("/")[0]).json()}
    assert listed["weights.safetensors"]["sha256"] == digest.hexdigest()


@pytest.mark.parametrize("name", ["job.json", "..%2Fjob.json", "%2e%2e", "nothing", "float.part"])
def test_no_other_file_is_given(visitor, client, name):
    place = f"/v1/runs/{visitor.finished()}/files"
    assert client.get(f"{place}/{name}").status_code == 404


def heard(client, place, **headers):
    """Return the numbered events that a stream gives until its end."""
    events, name = [], None
    with client.stream("GET", f"{place}/events", headers=headers) as stream:
        for line in stream.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "id":
                events.append((int(value), name))
    return events


def test_events_are_streamed_and_resumed(visitor, client):
    place = f"/v1/runs/{visitor.finished()}"
    kinds = ["state", "state", "trial", "trial", "trial", "state"]
    assert heard(client, place) == list(enumerate(kinds, 1))
    assert heard(client, place, **{"Last-Event-ID": "4"}) == [(5, "trial"), (6, "state")]
    over = client.get(f"{place}/events", headers={"Last-Event-ID": "6"})
    assert over.status_code == 204


def test_choices_and_ranges(client):
    choices = client.get("/v1/choices").json()
    assert "resnet20" in [model["name"] for model in choices["models"]]
    assert "bismo-cloud" in [target["name"] for target in choices["targets"]]
    assert {"ddpg", "random"} <= set(choices["agents"]) and choices["data"] == ["digits"]
    assert client.get("/v1/profiles/bismo-cloud").json()["name"] == "bismo-cloud"
    assert client.get("/v1/profiles/..%2Fbismo-cloud").status_code == 404
    found = client.post("/v1/ranges", json={**ASKED, "budgets": ["avg_weight_bits=1"]}).json()
    [bits] = [row for row in found if row["quantity"] == "avg_weight_bits"]
    assert 2 < bits["cheapest"] < bits["dearest"] == bits["w8a8"] == 8
    hard = client.post("/v1/ranges", json={**ASKED, "target": "bismo-cloud"}).json()
    assert {"latency", "energy"} <= {row["quantity"] for row in hard}


def test_the_feasible_range_is_what_the_budget_is_held_to(client):
    found = client.post("/v1/ranges", json=ASKED).json()
    [least] = [row["cheapest"] for row in found if row["quantity"] == "size"]
    at, below = f"size={least}", f"size={least - 1}"
    assert client.post("/v1/runs", json={**ASKED, "budgets": [at]}).status_code == 201
    assert client.post("/v1/runs", json={**ASKED, "budgets": [below]}).status_code == 422


def test_health_readiness_and_metrics(visitor, client):
    visitor.finished()
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
    figures = client.get("/metrics").text
    assert 'haq_runs{state="finished"} 1.0' in figures
    assert 'haq_http_requests_total{method="GET",route="/readyz",status="200"} 1.0' in figures
    visitor.settings.files.joinpath(".store").unlink()
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["message"] == "the folder of the service's files is not there"


def test_a_locked_database_is_a_503_and_the_server_stays_up(tmp_path, monkeypatch):
    monkeypatch.setattr("haq.service.database.BUSY_S", 0.05)
    visitor = Visitor(tmp_path)
    with visitor.engine.begin():
        answer = visitor.client.post("/v1/runs", json=ASKED)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
        assert visitor.client.get("/v1/runs").status_code == 200
    assert visitor.client.post("/v1/runs", json=ASKED).status_code == 201


def test_the_traceback_is_for_admins(tmp_path):
    visitor = Visitor(tmp_path, is_open=False)
    ada, root = visitor.as_user("ada"), visitor.as_user("root", "admin")
    place = ada.post("/v1/runs", json=ASKED).headers["location"]
    run = store.claim(visitor.engine, "worker", 60, 3)
    store.fail(visitor.engine, Lease(run.id, run.fence), "no", "Traceback of this")
    assert ada.get(place).json()["message"] == "no"
    assert ada.get(f"{place}/traceback").status_code == 403
    assert root.get(f"{place}/traceback").json() == {"traceback": "Traceback of this"}


def test_a_user_may_not_fill_the_queue(tmp_path):
    visitor = Visitor(tmp_path, limits=Limits(waiting=1))
    assert visitor.client.post("/v1/runs", json=ASKED).status_code == 201
    answer = visitor.client.post("/v1/runs", json=ASKED)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "61")


def test_the_openapi_document_is_complete(client):
    document = client.get("/v1/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (method, path)
            if path.startswith("/v1"):
                assert {"401", "422", "503"} <= set(operation["responses"]), (method, path)
                assert operation["security"], (method, path)


def test_a_body_of_very_many_keys_is_refused_in_one_sentence(client):
    body = json.dumps({f"key{number}": 0 for number in range(60_000)})
    for path in ("/v1/runs", "/v1/ranges"):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert answer.json() == {"message": "the body holds more than 2000 values", "errors": []}


def test_twenty_errors_are_told_and_the_others_counted(client):
    answer = client.post("/v1/runs", json={f"key{number}": number for number in range(100)})
    assert answer.status_code == 422 and len(answer.json()["errors"]) == 20
    assert answer.json()["message"] == "key0: Extra inputs are not permitted (and 80 more)"


def test_a_body_may_hold_2000_values_and_no_more():
    def body(values):  # the object and its list are values too
        return json.dumps({"list": [0] * (values - 2)}).encode()

    assert len(parsed(body(2000))["list"]) == 1998
    with pytest.raises(HTTPException, match="more than 2000 values"):
        parsed(body(2001))


def integers(schema):
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            yield schema
        for part in schema.values():
            yield from integers(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from integers(part)


def test_every_number_of_a_job_has_an_upper_limit():
    found = list(integers(JobRequest.model_json_schema()))
    assert len(found) > 10
    assert [one for one in found if not {"maximum", "exclusiveMaximum"} & set(one)] == []


def test_a_number_of_rounding_steps_without_end_is_refused(client):
    answer = client.post("/v1/runs", json={**ASKED, "rounding_steps": 10**30})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "rounding_steps"


class Waiting:
    """What is loaded first, which takes until it is released."""

    def __init__(self, release):
        self.choices = lambda settings: release.wait(60)


def test_a_job_is_small_and_so_is_what_is_said_of_it(client):
    answer = client.post("/v1/runs", json={**ASKED, "distill": {"kd": "a" * checks.MOST_BYTES}})
    assert answer.status_code == 422
    assert len(answer.text) < 3000
    assert "a weight is a finite number" in answer.json()["message"]  # at its end
    pins = {f"{number:0200}": 4 for number in range(999)} | {"x" * 200: 4}
    padded = {**ASKED, "pins": pins, "budgets": ["avg_weight_bits=4" + " " * 180] * 8}
    assert client.post("/v1/runs", json=padded).status_code == 422


def test_the_service_is_ready_once_nothing_is_left_to_load(visitor, client, monkeypatch):
    release, service = threading.Event(), visitor.app.state.service
    monkeypatch.setattr(checks, "choices", Waiting(release))
    thread = service.begin_loading()  # as when the server starts
    for answer in (client.get("/readyz"), client.post("/v1/runs", json=ASKED)):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "6")
        assert answer.json()["message"] == "the service is still loading what requests need"
    assert client.get("/healthz").status_code == 200
    release.set()
    thread.join()
    assert client.get("/readyz").status_code == 200
    before = checks._loaded.cache_info().misses
    assert client.get("/new").status_code == 200
    assert client.post("/v1/runs", json=ASKED).status_code == 201
    assert checks._loaded.cache_info().misses == before


def test_loading_begins_with_the_server(tmp_path):
    visitor = Visitor(tmp_path)
    with TestClient(visitor.app):
        wait_for(lambda: visitor.app.state.service.loading is None)


def test_what_cannot_be_loaded_is_said_to_whoever_waits_for_it(visitor, client, monkeypatch):
    monkeypatch.setattr(checks, "choices", None)
    visitor.app.state.service.begin_loading().join()
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["message"].startswith("what requests need cannot be loaded; the operator")


def test_a_data_set_that_cannot_be_loaded_keeps_nobody_from_the_others(tmp_path, caplog):
    visitor = Visitor(tmp_path, data={"gone": "folder:/nowhere", "digits": "digits"})
    visitor.app.state.service.begin_loading().join()
    assert visitor.client.get("/readyz").status_code == 200
    assert "data gone cannot be offered" in caplog.text


def test_what_a_request_leaves_out_is_as_on_the_command_line():
    asked, job = JobRequest(), Job()
    suited = {"finalists", "evaluation", "reward"}  # to the agent, where nothing is said
    assert {name: getattr(asked, name) for name in Job.model_fields if name not in suited} == {
        name: value for name, value in job.model_dump().items() if name not in suited
    }
    assert all(getattr(asked, name) is None for name in suited)


def test_every_part_of_the_document_is_there_for_a_generator(client):
    """What generators of clients stumble over: names, kinds and references."""
    document = client.get("/v1/openapi.json").json()
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    names = [one["operationId"] for one in operations]
    assert len(names) == len(set(names)) > 30
    shapes = document["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) <= set(shapes)
    for operation in operations:
        good = [code for code in operation["responses"] if code[0] == "2"]
        assert good, operation["operationId"]
        for parameter in operation.get("parameters", []):
            assert parameter["schema"], parameter
    for name, shape in shapes.items():
        assert shape.get("type") or shape.get("$ref") or "anyOf" in shape, name


@pytest.mark.parametrize(
    "path", ["me", "choices", "runs", "line", "uploads", "channels", "runs/RUN", "runs/RUN/trials",
             "runs/RUN/layers", "runs/RUN/files", "sweeps/SWEEP"],
)  # fmt: skip
def test_answers_are_as_the_document_says(visitor, path):
    client = visitor.client
    run_id = visitor.finished()
    body = {"job": ASKED, "budgets": [["size=9kB"], ["size=8kB"]]}
    sweep = client.post("/v1/sweeps", json=body).json()["id"]
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", visitor.app)
    template = path.replace("RUN", "{run_id}").replace("SWEEP", "{sweep}")
    given = {"run_id": run_id, "sweep": sweep}
    named = {name: value for name, value in given.items() if name in template}
    answer = schema[f"/v1/{template}"]["GET"].Case(path_parameters=named).call()
    assert answer.status_code == 200
    schema[f"/v1/{template}"]["GET"].validate_response(answer)
