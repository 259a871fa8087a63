"""Who may do what, and what nobody may."""

import asyncio
import base64
import json
import logging
import threading

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from service_parts import ASKED, Visitor
from sqlalchemy import select

from haq.errors import HaqError
from haq.service import security, store
from haq.service.limits import Limits
from haq.service.logs import JsonLines
from haq.service.tables import SESSIONS, TOKENS


@pytest.fixture
def visitor(tmp_path):
    return Visitor(tmp_path, is_open=False)


def anonymous(visitor):
    return TestClient(visitor.app, raise_server_exceptions=False)


def test_a_token_is_shown_once_and_only_its_hash_is_kept(visitor):
    token = security.create_token(visitor.engine, "ada", "read")
    secret = token.rpartition("_")[2] if "_" not in token[17:] else token[17:]
    with visitor.engine.begin() as connection:
        [row] = connection.execute(select(TOKENS))
    assert secret not in str(row)
    assert security.by_token(visitor.engine, token)[0] == ("ada", "read", None)


@pytest.mark.parametrize(
    "spoil",
    [lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"), lambda t: t + "A", lambda t: "", str.upper,
     lambda t: t.replace("haq_", "haq_0", 1), lambda t: "haq_" + "0" * 12 + t[16:]],
)  # fmt: skip
def test_another_token_opens_nothing(visitor, spoil):
    token = security.create_token(visitor.engine, "ada")
    assert security.by_token(visitor.engine, spoil(token)) is None


def test_without_a_token_nothing_is_told(visitor):
    client = anonymous(visitor)
    paths = visitor.app.openapi()["paths"]
    for path, methods in paths.items():
        for method in methods:
            if path in ("/healthz", "/readyz"):
                continue
            place = path.format(
                run_id="0" * 32, upload_id="0" * 32, kind="data", name="x", channel="door",
                sweep="0" * 32,
            )  # fmt: skip
            answer = client.request(method, place, json=ASKED)
            assert answer.status_code in (401, 422), (method, path)
            assert "Bearer" in answer.headers.get("www-authenticate", "") or (
                answer.status_code == 422
            )
    assert client.get("/v1/runs").status_code == 401


@pytest.mark.parametrize(
    "scope, created, traceback", [("read", 403, 403), ("submit", 201, 403), ("admin", 201, 200)]
)
def test_a_scope_allows_so_much(visitor, scope, created, traceback):
    run = visitor.as_user("other").post("/v1/runs", json=ASKED).json()["id"]
    client = visitor.as_user("ada", scope)
    assert client.get("/v1/runs").status_code == 200
    assert client.post("/v1/runs", json=ASKED).status_code == created
    assert client.get(f"/v1/runs/{run}/traceback").status_code == traceback
    if scope == "read":
        assert client.post(f"/v1/runs/{run}/cancel").status_code == 403
        assert client.delete(f"/v1/runs/{run}").status_code == 403


def test_users_see_their_own_runs_and_admins_all(visitor):
    ada, bob, root = (visitor.as_user(*who) for who in (["ada"], ["bob"], ["root", "admin"]))
    place = ada.post("/v1/runs", json=ASKED).headers["location"]
    for act in (bob.get, bob.delete):
        assert act(place).status_code == 404
    for part in ("events", "trials", "layers", "policy", "report", "charts", "files",
                 "files/policy.json"):  # fmt: skip
        assert bob.get(f"{place}/{part}").status_code == 404
    for act in ("cancel", "retry"):
        assert bob.post(f"{place}/{act}").status_code == 404
    assert bob.get("/v1/runs").json()["runs"] == []
    assert len(ada.get("/v1/runs").json()["runs"]) == 1
    assert len(root.get("/v1/runs").json()["runs"]) == 1
    assert root.post(f"{place}/cancel").status_code == 200


def test_one_users_key_says_nothing_of_anothers(visitor):
    key = {"Idempotency-Key": "k"}
    first = visitor.as_user("ada").post("/v1/runs", json=ASKED, headers=key)
    second = visitor.as_user("bob").post("/v1/runs", json=ASKED, headers=key)
    assert (first.status_code, second.status_code) == (201, 201)


def test_a_user_may_have_two_tokens_so_that_they_can_be_rotated(visitor):
    old, new = (security.create_token(visitor.engine, "ada") for _ in range(2))
    old_id = old.split("_")[1]
    assert security.revoke(visitor.engine, old_id) == [old_id]
    assert security.by_token(visitor.engine, old) is None
    assert security.by_token(visitor.engine, new)[0].name == "ada"
    with pytest.raises(HaqError, match=f"no token '{old_id}' is in use"):
        security.revoke(visitor.engine, old_id)


def test_revoking_a_token_ends_its_sessions(visitor):
    token = security.create_token(visitor.engine, "ada")
    cookie = security.open_session(visitor.engine, security.by_token(visitor.engine, token)[1])
    assert security.by_session(visitor.engine, cookie).name == "ada"
    security.revoke(visitor.engine, "ada")
    assert security.by_session(visitor.engine, cookie) is None


def test_revoking_a_token_ends_its_streams(visitor, monkeypatch):
    monkeypatch.setattr("haq.service.feed.PING_S", 0.05)
    client = visitor.as_user("ada")
    place = client.post("/v1/runs", json=ASKED).headers["location"]
    threading.Timer(0.3, security.revoke, (visitor.engine, "ada")).start()
    stream = client.get(f"{place}/events").text  # which would have no end: the run waits
    assert "event: state" in stream and "event: end" not in stream


def test_a_session_ends_by_itself(visitor):
    token = security.create_token(visitor.engine, "ada")
    cookie = security.open_session(visitor.engine, security.by_token(visitor.engine, token)[1])
    with visitor.engine.begin() as connection:
        connection.execute(SESSIONS.update().values(expires=0.0))
    assert security.by_session(visitor.engine, cookie) is None


@pytest.mark.parametrize("name", ["", "a b", "../x", "a" * 65, "a\n"])
def test_a_user_has_a_plain_name(visitor, name):
    with pytest.raises(HaqError, match="give up to 64 letters"):
        security.create_token(visitor.engine, name)


def test_beyond_this_machine_it_is_never_open_by_mistake(visitor):
    engine = visitor.engine
    assert security.is_open(engine, "127.0.0.1", allowed=False)
    assert security.is_open(engine, "0.0.0.0", allowed=True)
    with pytest.raises(HaqError, match=r"host 0.0.0.0 can be reached from other machines"):
        security.is_open(engine, "0.0.0.0", allowed=False)
    security.create_token(engine, "ada")
    security.revoke(engine, "ada")  # the last one: it stays closed
    assert not security.is_open(engine, "127.0.0.1", allowed=False)
    with pytest.raises(HaqError, match="there are tokens, so the service is not open"):
        security.is_open(engine, "127.0.0.1", allowed=True)


def test_guessing_is_slowed_down(tmp_path):
    visitor = Visitor(tmp_path, is_open=False, limits=Limits(failures=3))
    client = anonymous(visitor)
    wrong = {"Authorization": "Bearer haq_" + "0" * 12 + "_" + "A" * 43}
    codes = [client.get("/v1/runs", headers=wrong).status_code for _ in range(5)]
    assert codes[:3] == [401] * 3 and codes[4] == 429


def test_wrong_tokens_lock_out_no_right_one_from_the_same_address(tmp_path):
    visitor = Visitor(tmp_path, is_open=False, limits=Limits(failures=3))
    client, token = anonymous(visitor), security.create_token(visitor.engine, "ada")
    wrong = {"Authorization": "Bearer haq_" + "0" * 12 + "_" + "A" * 43}
    for _ in range(30):
        client.get("/v1/runs", headers=wrong)
    assert client.get("/v1/me", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    answer = client.post("/login", data={"token": token}, follow_redirects=False)
    assert answer.status_code == 303


def test_who_asks_too_often_waits(tmp_path):
    visitor = Visitor(tmp_path, is_open=False, limits=Limits(requests=2))
    client = visitor.as_user("ada")
    answers = [client.get("/v1/me") for _ in range(4)]
    assert [a.status_code for a in answers[:2]] == [200, 200]
    assert answers[-1].status_code == 429 and int(answers[-1].headers["retry-after"]) >= 1
    assert visitor.as_user("bob").get("/v1/me").status_code == 200


def test_a_large_body_is_refused(visitor):
    client = visitor.as_user("ada")
    assert client.post("/v1/runs", content=bytes((1 << 20) + 1)).status_code == 413
    pieces = (bytes(1 << 18) for _ in range(5))  # of a length that nobody said
    assert client.post("/v1/runs", content=pieces).status_code == 413
    for length in ("9" * 5000, "-1", "\u0663"):
        wrong = {"Content-Length": length.encode("utf-8")}
        assert client.post("/v1/runs", headers=wrong).status_code == 413


def test_every_page_that_is_read_has_a_head(tmp_path):
    visitor = Visitor(tmp_path)
    run_id = visitor.finished()
    paths = [path for path, methods in visitor.app.openapi()["paths"].items() if "get" in methods]
    values = {
        "run_id": run_id, "name": "policy.json", "channel": "door", "upload_id": "0" * 32,
        "sweep": "0" * 32,
    }  # fmt: skip
    for path in [*paths, "/", "/new", "/login", f"/runs/{run_id}"]:
        path = path.format(**values)
        head = visitor.client.head(path)
        if path.endswith("/events"):
            assert head.status_code == 200
            continue
        get = visitor.client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        if path not in ("/metrics", "/new", "/"):
            assert head.headers.get("content-length") == get.headers.get("content-length"), path
    assert visitor.client.head("/logout").status_code == 405


def test_guesses_from_all_addresses_of_one_line_count_together(tmp_path):
    visitor = Visitor(tmp_path, is_open=False, limits=Limits(failures=3))
    wrong = {"Authorization": "Bearer haq_" + "0" * 12 + "_" + "A" * 43}
    codes = [
        TestClient(visitor.app, client=(f"2001:db8::{number}", 5)).get("/v1/me", headers=wrong)
        for number in range(5)
    ]
    assert [answer.status_code for answer in codes] == [401, 401, 401, 429, 429]
    other = TestClient(visitor.app, client=("2001:db8:0:1::1", 5))
    assert other.get("/v1/me", headers=wrong).status_code == 401


def test_a_gate_holds_so_many_of_all_and_of_each():
    gate = security.Gate(most=3, each=2)
    with gate.passed("ada") as first, gate.passed("ada") as second, gate.passed("ada") as third:
        assert (first, second, third) == ("passed", "passed", "each")
        with gate.passed("bob") as fourth, gate.passed("eve") as fifth:
            assert (fourth, fifth) == ("passed", "all")
    with gate.passed("ada") as again:
        assert again == "passed"


def test_a_user_reads_so_many_streams_at_once(tmp_path):
    visitor = Visitor(tmp_path, is_open=False, limits=Limits(readers_each=1))
    ada = visitor.as_user("ada")
    place = ada.post("/v1/runs", json=ASKED).headers["location"]
    feed = visitor.app.state.service.feed
    run = store.find(visitor.engine, place.rpartition("/")[2])

    async def read_twice():
        stream = feed.follow(run, 0, lambda: True, "ada")
        await anext(stream)
        held = await asyncio.to_thread(ada.get, f"{place}/events")
        await stream.aclose()
        return held, feed.readers_of("ada")

    held, left = asyncio.run(read_twice())
    assert (held.status_code, held.headers["retry-after"]) == (429, "11")
    assert left == 0


def test_one_user_does_not_hold_all_that_others_need(tmp_path):
    visitor = Visitor(tmp_path, is_open=False, limits=Limits(heavy=2, heavy_each=1))
    service, ada = visitor.app.state.service, visitor.as_user("ada")
    with service.heavy(security.Principal("ada", "submit")):
        answer = ada.post("/v1/runs", json=ASKED)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "6")
        assert visitor.as_user("bob").post("/v1/runs", json=ASKED).status_code == 201
    assert ada.post("/v1/runs", json=ASKED).status_code == 201


def test_every_answer_has_the_headers(visitor):
    client = visitor.as_user("ada")
    for path in ("/healthz", "/v1/runs", "/nothing", "/v1/runs/1"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "SAMEORIGIN"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"


def test_other_sites_change_nothing(tmp_path):
    client = Visitor(tmp_path).client
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "http://["}, {"Origin": "null"},
                    {"Sec-Fetch-Site": "cross-site"}):  # fmt: skip
        assert client.post("/v1/runs", json=ASKED, headers=headers).status_code == 403
    own = {"Origin": "http://testserver"}
    assert client.post("/v1/runs", json=ASKED, headers=own).status_code == 201
    assert "access-control-allow-origin" not in client.get("/v1/runs").headers


def test_a_form_of_another_site_is_no_json(tmp_path):
    client = Visitor(tmp_path).client
    body = json.dumps(ASKED)
    answer = client.post("/v1/runs", content=body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "host, code",
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("a.example", 421)],
)
def test_an_open_service_answers_to_names_of_this_machine_only(tmp_path, host, code):
    from haq.service.application import create_app

    visitor = Visitor(tmp_path)
    app = create_app(
        visitor.engine, visitor.settings, store_name="x", is_open=True, only_loopback=True
    )
    assert TestClient(app).get("/healthz", headers={"Host": host}).status_code == code


def test_log_lines_hold_no_secrets(visitor, caplog):
    token = security.create_token(visitor.engine, "ada")
    client = anonymous(visitor)
    with caplog.at_level(logging.INFO):
        client.get(f"/v1/runs?text={token}", headers={"Authorization": f"Bearer {token}"})
        logging.getLogger("haq").warning("postgresql://haq:sesame@host/db and %s", token)
        logging.getLogger("haq").warning("postgresql://haq:open@sesame/too@host/db")
    lines = [JsonLines().format(record) for record in caplog.records]
    assert any(json.loads(line).get("user") == "ada" for line in lines)
    assert token not in "".join(lines) and "sesame" not in "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_a_stranger_sends_is_no_error_of_ours(tmp_path, mode):
    visitor = Visitor(tmp_path, limits=Limits(requests=10**6))
    run_id = visitor.finished()
    schema = schemathesis.openapi.from_asgi("/v1/openapi.json", visitor.app)
    for found in schema.get_all_operations():
        operation = found.ok()
        if not operation.path.endswith("/events"):  # which has no end while a run goes on
            refuse_errors(operation, mode, run_id)


def refuse_errors(operation, mode, run_id):
    try:
        cases = operation.as_strategy(generation_mode=mode)

        @settings(max_examples=5, suppress_health_check=list(HealthCheck))
        @given(case=cases, real=st.booleans())
        def check(case, real):
            if real and "run_id" in (case.path_parameters or {}):
                case.path_parameters["run_id"] = run_id
            response = case.call()
            assert response.status_code < 500, f"{operation.label}: {response.text}"

        check()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # it takes nothing that could be wrong


def test_odd_requests_get_an_answer_and_no_error_of_the_server(visitor):
    client, token = anonymous(visitor), security.create_token(visitor.engine, "ada")
    many = "&".join(f"f{number}=1" for number in range(201))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/login", content=many, headers=form).status_code == 400
    bearer = {"Authorization": f"Bearer {token}"}
    for place in ([1, "\ud800"], [1, "x"], [float("inf"), "0" * 32], [1], {}):
        cursor = base64.urlsafe_b64encode(json.dumps(place).encode()).decode()
        assert client.get("/v1/runs", params={"after": cursor}, headers=bearer).status_code == 422
    before = "1.2.3_" + "0" * 32
    assert client.get("/", params={"before": before}, headers=bearer).status_code < 500
    for number in range(3):
        client.request(f"BREW{number}", "/healthz")
    told = client.get("/metrics", headers={"Authorization": "Bearer " + security.create_token(
        visitor.engine, "root", "admin")}).text  # fmt: skip
    assert 'method="other"' in told and "BREW" not in told
