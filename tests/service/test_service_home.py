"""What people look at first: the first page, the list, notes, logs, downloads, errors as pages."""

import contextlib
import html
import io
import json
import logging
import re
import warnings

import pytest
from service_parts import ASKED, Visitor, run_of
from service_searches import quick

from haq.runs.job import Job
from haq.service import estimates, findings, log, store
from haq.service.pages.front import Point, drawing
from haq.service.searching import _ended
from haq.service.snippet import snippet
from haq.service.store import Lease

PAGE = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_a_new_service_says_what_to_do_and_that_nobody_works(client):
    text = client.get("/").text
    assert "Nothing was asked for yet" in text and "Try it with handwritten digits" in text
    assert "No worker is running." in text and "haq worker" in text


def test_the_first_search_can_be_begun_as_it_stands(client):
    text = client.get("/").text
    form = text.partition('<form method="post" action="/new"')[2].partition("</form>")[0]
    fields = dict(re.findall(r'name="([^"]+)" value="([^"]*)"', form))
    assert client.post("/new", data=fields, follow_redirects=False).status_code == 303


def test_what_waits_has_a_position_and_an_estimate(client, visitor):
    engine = visitor.engine
    run_of(engine, Job(**ASKED), title="under way", owner="local")
    store.claim(engine, "here:1", 60, 3)
    for number in (1, 2):
        run_of(engine, Job(**ASKED), title=f"behind {number}", owner="local")
    text = client.get("/").text
    assert "No worker is running" not in text  # one does a run
    running, waiting = text.index("under way"), text.index("behind 1")
    assert running < waiting < text.index("behind 2")
    assert "no run like those before it has ended yet" in text
    second = store.standing(engine).waiting[1]
    assert "Number 2 of those that wait" in client.get(f"/runs/{second.id}").text
    for run in store.standing(engine).waiting:
        store.cancel(engine, run.id)
    visitor.finished()
    run_of(engine, Job(**ASKED), title="after one that ended", owner="local")
    assert "no run like those" not in client.get("/").text


def test_others_runs_count_in_the_line_but_are_not_shown(tmp_path):
    visitor = Visitor(tmp_path, is_open=False)
    run_of(visitor.engine, Job(**ASKED), title="of aaron", owner="aaron")
    mine = run_of(visitor.engine, Job(**ASKED), title="of ada", owner="ada")
    standing = store.standing(visitor.engine)
    assert estimates.waits(standing, {})[mine].position == 2
    line = visitor.as_user("ada").get("/v1/line").json()
    wait = {"run": mine, "position": 2, "seconds": None}
    assert line == {"workers": 0, "running": 0, "waiting": [wait]}


def test_a_worker_is_seen_until_it_leaves(visitor):
    store.sign_of_life(visitor.engine, "here:1")
    store.sign_of_life(visitor.engine, "here:1")
    store.sign_of_life(visitor.engine, "there:2")
    assert store.standing(visitor.engine).workers == 2
    store.leave(visitor.engine, "here:1")
    assert store.standing(visitor.engine).workers == 1


@pytest.mark.parametrize(
    "left, lengths, workers, begins",
    [
        ([10.0], [5, 5, 5], 2, [0, 5, 10]),
        ([10.0, 4.0], [1, 1], 2, [4, 5]),
        ([], [3, 3], 1, [0, 3]),
        ([None], [3], 1, [None]),
        ([None, 2.0], [3, 3], 2, [2, 5]),
        ([], [None, 3], 1, [0, None]),
        ([], [3], 0, [None]),
    ],
)
def test_when_runs_begin_by_hand(left, lengths, workers, begins):
    assert estimates.starts(left, lengths, workers) == begins


def test_a_run_takes_what_those_like_it_took(visitor):
    run_id = run_of(visitor.engine, Job(**ASKED))
    [run] = store.standing(visitor.engine).waiting
    assert (run.id, run.episodes_asked) == (run_id, 3)
    like = (run.job.model, run.job.data, run.job.agent)
    paces = {like: [1.0, 2.0, 9.0], ("other", "digits", "ilp"): [100.0]}
    assert estimates.duration(run, paces) == 6.0  # the median times three episodes
    assert estimates.duration(run, {("other", "x", "ilp"): [5.0]}) == 15.0
    assert estimates.duration(run, {}) is None


SUMMARY = {
    "final_test_accuracy": 0.9, "float_test_accuracy": 0.92, "episode_val_accuracy": 0.8,
    "float_val_accuracy": 0.85, "metric": "top1",
    "budgets": [{"quantity": "avg_weight_bits", "achieved": 2.9, "limit": 3.0, "unit": "bits"}],
}  # fmt: skip


def test_a_finding_in_few_words():
    found = findings.of_summary(SUMMARY)
    assert found.score == "90.00% test accuracy" and found.costs == ("average bits 2.9 of 3 bits",)
    assert found.change == "-2.00 points from float".replace("-", found.change[0])
    running = {key: value for key, value in SUMMARY.items() if "test" not in key}
    assert findings.of_summary(running).score == "80.00% validation accuracy"


def test_tags_notes_and_title_can_be_changed(client, visitor):
    run_id = client.post("/v1/runs", json=ASKED).json()["id"]
    form = {"title": "a name", "tags": "paper, w4  w4", "remark": "<b>mine</b>"}
    answer = client.post(f"/runs/{run_id}/notes", data=form, follow_redirects=False)
    assert answer.headers["location"] == f"/runs/{run_id}"
    run = client.get(f"/v1/runs/{run_id}").json()
    assert (run["title"], run["tags"], run["remark"]) == ("a name", ["paper", "w4"], "<b>mine</b>")
    page = client.get(f"/runs/{run_id}").text
    assert "&lt;b&gt;mine&lt;/b&gt;" in page and 'href="/runs?tag=paper"' in page
    changed = client.patch(f"/v1/runs/{run_id}", json={"tags": []}).json()
    assert changed["tags"] == [] and changed["title"] == "a name"


LONG = [
    ({"title": "", "tags": ""}, "title"), ({"tags": "x" * 41}, "tags"),
    ({"remark": "x" * 5001}, "remark"),
]  # fmt: skip


@pytest.mark.parametrize("form, field", LONG)
def test_notes_that_cannot_be_are_refused_beside_their_field(client, form, field):
    run_id = client.post("/v1/runs", json=ASKED).json()["id"]
    answer = client.post(f"/runs/{run_id}/notes", data=form)
    assert answer.status_code == 422 and f'id="{field}-error"' in answer.text
    assert form[field] in answer.text


def test_the_list_is_searched_and_sorted(client, visitor):
    engine = visitor.engine
    for number, title in enumerate(("Beta", "alpha", "Gamma")):
        run_id = run_of(engine, Job(**ASKED, seed=number), title=title, owner="local")
        store.annotate(engine, run_id, tags=["odd"] if number % 2 else ["even", "odder"])

    def titles(**query):
        return [run["title"] for run in client.get("/v1/runs", params=query).json()["runs"]]

    assert titles() == ["Gamma", "alpha", "Beta"]
    assert titles(order="oldest") == ["Beta", "alpha", "Gamma"]
    assert titles(order="title") == ["alpha", "Beta", "Gamma"]
    assert titles(tag="odd") == ["alpha"] and titles(text="EVEN") == ["Gamma", "Beta"]
    assert len(titles(text="digits_cnn")) == 3 and titles(text="digits_c%") == []
    assert client.get("/v1/runs?order=luck").status_code == 422
    text = client.get("/runs?tag=odd&order=title").text
    assert "alpha" in text and "Gamma" not in text


@pytest.mark.parametrize("order", list(store.ORDERS))
def test_pages_of_every_order_hold_each_run_once(client, visitor, order):
    visitor.finished()
    for number in range(7):
        run_of(visitor.engine, Job(**ASKED), title=f"t{number % 3}", owner="local")
    seen, after = [], None
    while True:
        query = {"limit": 3, "order": order} | ({"after": after} if after else {})
        page = client.get("/v1/runs", params=query).json()
        seen += [run["id"] for run in page["runs"]]
        after = page["next"]
        if after is None:
            break
    assert len(seen) == len(set(seen)) == 8


def test_a_list_goes_on_behind_the_longest_title(client, visitor):
    for number in range(51):
        title = "\N{ABACUS}" * 198 + f"{number:02}"
        run_of(visitor.engine, Job(**ASKED), title=title, owner="local")
    after = client.get("/v1/runs?order=title&limit=50").json()["next"]
    rest = client.get("/v1/runs", params={"order": "title", "after": after}).json()["runs"]
    assert [run["title"][-2:] for run in rest] == ["50"]
    page = client.get("/runs?order=title").text
    [more] = re.findall('rel="next" href="([^"]+)"', page)
    assert f"/runs/{rest[0]['id']}" in client.get(html.unescape(more)).text


@pytest.mark.parametrize(
    "before", ["[]", "[1]", "[1, 2]", '["x", "y"]', "[NaN, 1]", "nonsense", "[" * 900]
)
def test_a_place_that_is_none_is_refused(client, before):
    for order in store.ORDERS:
        assert client.get("/runs", params={"before": before, "order": order}).status_code == 422


@pytest.mark.parametrize(
    "method, path, status, sentence",
    [
        ("GET", "/nothing", 404, "Not Found"),
        ("GET", f"/runs/{'0' * 32}", 404, "there is no run"),
        ("DELETE", "/new", 405, "Method Not Allowed"),
        ("GET", "/runs?order=luck", 422, "give"),
        ("GET", f"/v1/runs/{'0' * 32}/files/model.onnx", 404, "there is no run"),
        ("POST", "/new", 413, "the body is larger than"),
        ("GET", "/runs/xyz", 422, "an id has 32 digits, 0 to 9 and a to f"),
    ],
)
def test_errors_are_pages_for_browsers_and_json_for_programs(
    client, method, path, status, sentence
):
    body = b"x" * (1 << 21) if status == 413 else None
    page = client.request(method, path, content=body, headers=PAGE)
    assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert sentence in page.text and "To the first page" in page.text
    answer = client.request(method, path, content=body)
    assert answer.status_code == status and sentence in answer.json()["message"]


def test_a_bug_is_a_page_that_says_nothing_of_it(visitor, client, monkeypatch):
    monkeypatch.setattr(store, "listed", lambda *_, **__: 1 / 0)
    page = client.get("/runs", headers=PAGE)
    assert page.status_code == 500 and "An error of the service" in page.text
    assert "ZeroDivision" not in page.text


def test_a_request_from_another_site_is_refused_as_a_page(client):
    page = client.post("/new", headers={**PAGE, "Origin": "https://evil.example"})
    assert page.status_code == 403 and "<h1>This is not allowed</h1>" in page.text


@pytest.mark.parametrize("referer, back", [
    ("http://testserver/new?x=1", "/new?x=1"), ("https://evil.example/new", None),
    ("http://testserver//evil", None), ("http://[", None), ("javascript:alert(1)", None),
])  # fmt: skip
def test_the_way_back_leads_to_a_page_of_ours(client, referer, back):
    text = client.get("/nothing", headers={**PAGE, "Referer": referer}).text
    assert ("Back to the page before" in text) is (back is not None)
    assert back is None or f'href="{back}"' in text


def test_the_log_says_stages_warnings_and_the_end(tmp_path, visitor, client):
    run_id = visitor.finished()
    folder = visitor.settings.run_folder(run_id)

    def execute(job, place, on_progress):
        warnings.warn("a layer is odd", UserWarning, stacklevel=1)
        logging.getLogger("haq.runs").error("at %s", folder.absolute() / "policy.json")
        return quick(job, place, on_progress)

    (folder / "summary.json").unlink()
    assert _ended(Job(**ASKED), folder, execute, lambda where: None).kind == "finished"
    text = client.get(f"/v1/runs/{run_id}/log").text
    for part in (
        "the search begins: digits_cnn on digits",
        "a layer is odd",
        "the search is finished",
    ):
        assert part in text
    assert str(visitor.settings.files) not in text
    last = client.get(f"/v1/runs/{run_id}/log?lines=1").text
    assert last.endswith("the search is finished") and "\n" not in last
    assert "the search begins" in client.get(f"/runs/{run_id}").text


def test_a_broken_search_says_so_in_its_log_without_a_traceback(tmp_path):
    def execute(job, place, on_progress):
        raise ZeroDivisionError("a secret")

    assert _ended(Job(), tmp_path / "run", execute, lambda where: None).kind == "broken"
    text = log.whole(tmp_path / "run")
    assert "an internal error (ZeroDivisionError)" in text
    assert "Traceback" not in text and "secret" not in text


def test_a_log_keeps_its_last_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(log, "MOST_BYTES", 5000)
    with log.written(tmp_path, lambda where: None):
        for number in range(300):
            logging.getLogger("haq.x").info("line %d of some length, over and over", number)
    files = list(tmp_path.iterdir())
    assert len(files) == 2 and sum(file.stat().st_size for file in files) <= 10_000
    assert log.tail(tmp_path, 1).endswith("line 299 of some length, over and over")
    assert log.whole(tmp_path).count("\n") > log.tail(tmp_path).count("\n")


def test_downloads_begin_with_the_network(client, visitor):
    run_id = visitor.finished()
    names = re.findall(rf'/v1/runs/{run_id}/files/([a-z.]+)"', client.get(f"/runs/{run_id}").text)
    assert names[0] == "model.onnx"


def test_the_three_lines_run_the_file(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import torch

    from haq.runs.sample import save_sample

    save_sample(tmp_path, torch.zeros(2, 1, 8, 8))
    code = snippet(tmp_path)
    assert len(code.splitlines()) == 3
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["images"], ["out"])], "g",
        [value("images", 1, ["n", 1, 8, 8])], [value("out", 1, ["n", 1, 8, 8])],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert "-1." in said.getvalue()


def test_inputs_with_names_are_called_by_them(tmp_path):
    import torch

    from haq.network.inputs import Batch
    from haq.runs.sample import save_sample

    ids = torch.zeros(2, 5, dtype=torch.int64)
    save_sample(tmp_path, Batch((ids, ids), ("input_ids", "attention_mask")))
    assert (
        '{"input_ids": numpy.ones((1, 5), numpy.int64), "attention_mask": numpy.ones('
        in snippet(tmp_path)
    )
    assert snippet(tmp_path / "nowhere") is None


def test_the_front_is_drawn_to_scale():
    points = [Point(2, 0.5, "a", "/a"), Point(4, 0.9, "b", "/b"), Point(3, 0.4, "c", "/c")]
    drawn = drawing(points, level=0.95)
    (ax, ay, _), (bx, by, _), (cx, cy, _) = drawn["dots"]
    assert cx == pytest.approx((ax + bx) / 2, abs=0.1) and drawn["level"] < by < ay < cy
    assert drawn["line"].count(",") == 2  # c is beaten
    assert len(drawing([points[0]])["dots"]) == 1


def test_runs_are_compared_without_a_frame(client, visitor):
    one, two = visitor.finished(), visitor.finished()
    for run_id in (one, two):
        folder = visitor.settings.run_folder(run_id)
        layers = json.loads((folder / "summary.json").read_text())["layers"]
        costs = {"cost": {"avg_weight_bits": 2.9}, "units": {"avg_weight_bits": "bits"}}
        summary = SUMMARY | {"state": "finished", "layers": layers} | costs
        (folder / "summary.json").write_text(json.dumps(summary))
    text = client.get("/compare", params={"run": [one, two]}).text
    assert "<iframe" not in text and '<svg class="front"' in text
    assert text.count("90.00% test accuracy") == 2 and f'href="/runs/{two}"' in text


def test_a_deleted_or_strange_run_is_not_compared(client, visitor):
    assert client.get("/compare", params={"run": [visitor.finished(), "0" * 32]}).status_code == 404


def test_the_fence_of_a_lease_is_not_touched_by_notes(visitor):
    run_id = run_of(visitor.engine, Job(**ASKED))
    run = store.claim(visitor.engine, "w", 60, 3)
    store.annotate(visitor.engine, run_id, remark="while it runs")
    store.finish(visitor.engine, Lease(run_id, run.fence))
    assert store.find(visitor.engine, run_id).remark == "while it runs"
