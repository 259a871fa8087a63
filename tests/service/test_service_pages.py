"""The page without its script: what the server draws, and what its forms do."""

import re

import pytest
from fastapi.testclient import TestClient
from service_parts import ASKED, Visitor

from haq.runs.job import Job
from haq.service import security, store

FORM = {
    "model": "digits_cnn", "data": "digits", "agent": "ddpg", "episodes": "3",
    "quantity.0": "avg_weight_bits", "budgets.0": "4", "quantity.1": "size", "budgets.1": "",
    "action": "begin", "title": "", "size": "", "act_bits": "",
}  # fmt: skip


def post(client, place, **fields):
    return client.post(place, data=fields, follow_redirects=False)


def test_an_empty_list_leads_to_the_form(client):
    assert '<a href="/new">Begin a search</a>' in client.get("/runs").text
    assert 'href="/new">Ask for a search of your own</a>' in client.get("/").text


def test_the_form_begins_a_run(client):
    answer = post(client, "/new", **FORM)
    assert answer.status_code == 303
    [run] = client.get("/v1/runs").json()["runs"]
    assert answer.headers["location"] == f"/runs/{run['id']}"
    assert (run["job"]["episodes"], run["job"]["budgets"]) == (3, ["avg_weight_bits=4"])
    assert run["title"] in client.get("/").text


def test_sending_the_form_twice_begins_one_run(client):
    for _ in range(2):
        assert post(client, "/new", **FORM, key="k").status_code == 303
    assert len(client.get("/v1/runs").json()["runs"]) == 1


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("budgets.0", "1", "no policy fits avg_weight_bits &lt;= 1 bits: the cheapest one needs"),
        ("episodes", "0", "give 1 or more, not &#39;0&#39;"),
        ("model", "os:getcwd", "unknown model &#39;os:getcwd&#39;"),
        ("act_bits", "many", "give 2 to 8, or search, not &#39;many&#39;"),
        ("act_bits", "9" * 5000, "give 2 to 8, or search, not"),
        ("episodes", "9" * 5000, "exceeded maximum size"),
        ("data", "folder:/etc", "unknown data"),
    ],
)
def test_the_form_repeats_the_servers_sentence_next_to_the_field(client, field, value, sentence):
    answer = post(client, "/new", **{**FORM, field: value})
    assert answer.status_code == 422
    [said] = re.findall(rf'<p class="error" id="{field}-error">(.*?)</p>', answer.text)
    assert sentence in said
    tag = re.search(rf'<(input|select)[^>]* id="{field}"[^>]*>', answer.text)[0]
    assert 'aria-invalid="true"' in tag and f"{field}-error" in tag
    assert client.get("/v1/runs").json()["runs"] == []


def test_the_form_shows_what_the_budgets_can_be_without_a_script(client):
    answer = post(client, "/new", **{**FORM, "action": "ranges", "quantity.1": "latency"})
    assert re.search(r"From 2\.\d+ \(cheapest policy\) to 8 bits \(dearest\); 8", answer.text)
    assert "latency needs hardware that knows it." in answer.text


def test_titles_are_text(client, visitor):
    nasty = "<script>alert(1)</script>"
    run_id = client.post("/v1/runs", json={**ASKED, "title": nasty}).json()["id"]
    for page in ("/", "/runs", f"/runs/{run_id}", f"/runs?text={nasty}"):
        text = client.get(page).text
        assert nasty not in text and "&lt;script&gt;alert" in text


def test_a_run_can_be_cancelled_tried_again_and_deleted(client):
    place = f"/runs/{client.post('/v1/runs', json=ASKED).json()['id']}"
    assert ">Cancel</button>" in client.get(place).text
    assert post(client, f"{place}/cancel").headers["location"] == place
    assert ">Try again</button>" in client.get(place).text
    assert post(client, f"{place}/retry").status_code == 303
    assert post(client, f"{place}/delete").headers["location"] == "/runs"
    assert client.get(place).status_code == 404
    assert post(client, f"{place}/explode").status_code == 404


def test_older_runs_are_on_the_next_page(client, visitor):
    for number in range(52):
        store.submit(visitor.engine, "local", Job(episodes=60), f"run {number:02}")
    page = client.get("/runs").text
    assert "run 51" in page and "run 01" not in page
    older = re.search(r'rel="next" href="(.*?)"', page)[1].replace("&amp;", "&")
    assert "run 01" in client.get(older).text


def test_comparing_needs_two_runs(client):
    answer = client.get("/compare")
    assert answer.status_code == 422 and "Choose two runs or more." in answer.text


def test_the_pages_name_nothing_from_elsewhere(client, visitor):
    run_id = client.post("/v1/runs", json=ASKED).json()["id"]
    for page in ("/", "/new", f"/runs/{run_id}", "/login"):
        text = client.get(page).text
        for address in re.findall(r'(?:src|href|action)="([^"]*)"', text):
            assert address.startswith(("/", "#", "data:,")), address
        assert "<script>" not in text and " onclick" not in text and " style=" not in text
    for part in ("style.css", "service.js", "themes.json", "plotly.js"):
        assert client.get(f"/static/{part}").status_code == 200


class TestSignedIn:
    @pytest.fixture
    def visitor(self, tmp_path):
        return Visitor(tmp_path, is_open=False)

    @pytest.fixture
    def client(self, visitor):
        client = TestClient(visitor.app, base_url="https://testserver", follow_redirects=False)
        token = security.create_token(visitor.engine, "ada")
        client.answer = client.post("/login", data={"token": token, "next": "/new"})
        return client

    def csrf(self, client):
        return re.search(r'name="csrf" content="(.*?)"', client.get("/").text)[1]

    def test_without_a_session_the_way_leads_to_the_login(self, visitor):
        client = TestClient(visitor.app, follow_redirects=False)
        answer = client.get("/new?x=1")
        assert answer.headers["location"] == "/login?next=/new%3Fx%3D1"
        assert client.post("/login", data={"token": "haq_no"}).status_code == 401

    def test_the_cookie_is_for_this_site_and_no_script(self, client):
        assert client.answer.headers["location"] == "/new"
        cookie = client.answer.headers["set-cookie"].lower()
        for word in ("httponly", "secure", "samesite=strict", "path=/"):
            assert word in cookie
        assert "Sign out ada" in client.get("/").text

    @pytest.mark.parametrize(
        "path", ["https://evil.example", "//evil.example", "/\\evil", "/\n", ""]
    )
    def test_signing_in_leads_nowhere_else(self, client, visitor, path):
        token = security.create_token(visitor.engine, "ada")
        answer = client.post("/login", data={"token": token, "next": path})
        assert answer.headers["location"] == "/"

    def test_forms_need_the_secret_of_the_session(self, client):
        assert client.post("/new", data=FORM).status_code == 403
        assert client.post("/new", data={**FORM, "csrf": "x"}).status_code == 403
        assert client.post("/v1/runs", json=ASKED).status_code == 403
        assert client.post("/new", data={**FORM, "csrf": self.csrf(client)}).status_code == 303
        sent = client.post("/v1/runs", json=ASKED, headers={"X-CSRF-Token": self.csrf(client)})
        assert sent.status_code == 201

    def test_signing_out_ends_the_session(self, client, visitor):
        cookie = client.cookies["haq_session"]
        client.post("/logout", data={"csrf": self.csrf(client)})
        assert security.by_session(visitor.engine, cookie) is None
        assert client.get("/").status_code == 303

    def test_another_users_run_is_not_there(self, client, visitor):
        place = visitor.as_user("bob").post("/v1/runs", json=ASKED).headers["location"]
        page = place.removeprefix("/v1")
        csrf = self.csrf(client)
        assert client.get(page).status_code == 404
        assert client.post(f"{page}/delete", data={"csrf": csrf}).status_code == 404
        run_id = place.rpartition("/")[2]
        assert client.get(f"/compare/report?run={run_id}").status_code == 404
